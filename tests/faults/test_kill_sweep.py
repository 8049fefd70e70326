"""Sender and receiver are killed with SIGKILL, again and again, and no message is lost.

The short form has 50 rounds, each with its kills, and is for every run; for the long one, of 500, see tests/trials.py.
The seed of a run is in its summary, and NETCOMM_SEED sets it.
"""

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.helpers import Child, Nursery, SideFile, wait_until
from tests.trials import SOAK, trials

ROUNDS = 50 * SOAK
MESSAGES = 200
SEED = int(os.environ.get("NETCOMM_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
# Numbers must not be used again: what was stored, and not yet noted as accepted, arrives too.
_NUMBERS_PER_LIFE = 1_000_000


@dataclass
class Verdict:
    """What the side files say.

    lost: numbers that were accepted, and have not arrived.
    disordered: those that came after a higher one, not marked as redelivered.
    repeated: those that came twice to one process of the receiver, or again, not marked, to a later one.
    redelivered: how many came again, marked, to a later process.
    """

    lost: list[int] = field(default_factory=list)
    disordered: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    redelivered: int = 0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.disordered or self.repeated)


def judge(accepted: list[str], received: list[str]) -> Verdict:
    """Hold the two side files against each other."""
    verdict = Verdict()
    lives: dict[int, str] = {}
    highest = -1
    for line in received:
        text, life, redelivered = line.split()
        number = int(text)
        if number in lives:
            if redelivered == "1" and lives[number] != life:
                verdict.redelivered += 1
            else:
                verdict.repeated.append(number)
        elif number < highest and redelivered == "0":
            verdict.disordered.append(number)
        lives[number] = life
        highest = max(highest, number)
    verdict.lost = [int(text) for text in accepted if int(text) not in lives]
    return verdict


class Sweep:
    """A sender and a receiver, over many lives of theirs, with the same two storages."""

    def __init__(self, folder: Path, nursery: Nursery, seed: int, break_it: bool = False) -> None:
        self.folder = folder
        self.nursery = nursery
        self.chance = random.Random(seed)
        self.break_it = break_it
        self.accepted = SideFile(folder / "accepted")
        self.received = SideFile(folder / "received")
        self.lives = 0
        self.kills = {"sender": 0, "receiver": 0}
        self.receiver = self.start_receiver()

    def start_sender(self, target: int) -> Child:
        self.lives += 1
        return self.nursery.start(
            "sender",
            storage=f"sqlite:///{self.folder}/sender.db?durability={self.chance.choice(('power', 'process'))}",
            place=[f"unix:{self.folder}/socket", 1],
            accepted=str(self.accepted.path),
            first=self.lives * _NUMBERS_PER_LIFE,
            count=target,
            seed=self.chance.random(),
        )

    def start_receiver(self) -> Child:
        self.lives += 1
        return self.nursery.start(
            "receiver",
            storage=f"sqlite:///{self.folder}/receiver.db?durability={self.chance.choice(('power', 'process'))}",
            place=[f"unix:{self.folder}/socket", 1],
            received=str(self.received.path),
            life=self.lives,
            delay=0.002 if self.break_it else self.chance.choice((0, 0, 0, 0.001)),
            acknowledge_at_once=self.break_it,
        )

    def round(self, number: int) -> None:
        """Send messages, kill one or both a few times, and let everything that was accepted arrive."""
        target = (number + 1) * MESSAGES
        sender = self.start_sender(target)
        for _ in range(self.chance.randint(1, 3)):
            victims = self.chance.choice((["sender"], ["receiver"], ["sender", "receiver"]))
            self.wait_for_moment(sender)
            if "sender" in victims and not sender.ended():
                sender.kill()
                self.kills["sender"] += 1
            if "receiver" in victims:
                self.receiver.kill()
                self.kills["receiver"] += 1
            assert sender.status in (None, 0, -9), self.nursery.log()
            # Whoever starts first finds the other one missing.
            restarts = [name for name in victims if name == "receiver" or sender.status == -9]
            self.chance.shuffle(restarts)
            for name in restarts:
                if name == "sender":
                    sender = self.start_sender(target)
                else:
                    self.receiver = self.start_receiver()
        assert sender.wait() == 0, self.nursery.log()

    def wait_for_moment(self, sender: Child) -> None:
        """Wait for the moment of the next kill: when a side file has grown, or at any time."""
        side = self.chance.choice((self.accepted, self.received, None))
        if side is None:
            # From the first instruction of the new processes on; a process needs some milliseconds to connect.
            moment = time.monotonic() + self.chance.random() * 0.02
            wait_until(lambda: time.monotonic() >= moment, "a moment")
            return
        size = side.size() + self.chance.randint(1, 800)
        wait_until(lambda: side.size() >= size or sender.ended(), f"the next line in {side.path.name}")

    def verdict(self) -> Verdict:
        return judge(self.accepted.lines(), self.received.lines())


def test_no_accepted_message_is_lost_or_handed_over_twice_however_often_processes_are_killed(tmp_path: Path) -> None:
    with Nursery(tmp_path / "log") as nursery, trials("rounds of sending and killing") as tried:
        sweep = Sweep(tmp_path, nursery, SEED)
        for number in range(ROUNDS):
            sweep.round(number)
            tried.count += 1
            if number % 10 == 9:  # and not only at the end, where it would be known which round it was
                assert sweep.verdict().clean, f"seed {SEED}, round {number}: {sweep.verdict()}"
        sweep.receiver.kill()
        verdict = sweep.verdict()
        assert verdict.clean, f"seed {SEED}: {verdict}"
        log = nursery.log()
    accepted = len(sweep.accepted.lines())
    print(
        f"\n{ROUNDS} rounds, seed {SEED}: {accepted} messages accepted, {sweep.kills['sender']} senders and"
        f" {sweep.kills['receiver']} receivers killed; {len(verdict.lost)} lost, {len(verdict.disordered)} out of"
        f" order, {len(verdict.repeated)} handed over twice, {verdict.redelivered} redelivered and marked"
    )
    assert accepted == ROUNDS * MESSAGES
    assert sweep.kills["sender"] > ROUNDS / 4
    assert sweep.kills["receiver"] > ROUNDS / 4
    assert "Traceback" not in log


def test_the_sweep_finds_the_loss_where_messages_are_acknowledged_before_they_are_handed_over(tmp_path: Path) -> None:
    with Nursery(tmp_path / "log") as nursery:
        sweep = Sweep(tmp_path, nursery, SEED, break_it=True)
        for number in range(4):
            sweep.round(number)
        sweep.receiver.kill()
    assert sweep.verdict().lost


def test_the_judge_tells_order_repetition_and_redelivery_apart() -> None:
    received = ["1 1 0", "2 1 0", "2 2 1", "4 2 0", "3 2 0", "4 2 1", "5 2 0", "5 3 0"]
    verdict = judge(["1", "2", "3", "6"], received)
    assert verdict.lost == [6]
    assert verdict.disordered == [3]
    assert verdict.repeated == [4, 5]
    assert verdict.redelivered == 1
