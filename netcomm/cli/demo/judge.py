"""The judge: what was lost, handed over twice, or changed on the way, by the journals of both processes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from netcomm.cli.demo import journal, plan
from netcomm.cli.demo.journal import Record
from netcomm.cli.demo.plan import Key


@dataclass(frozen=True, slots=True)
class Report:
    """How it went.

    files: that have arrived; bytes: that have arrived, each counted once.
    redelivered: how often a message was handed over again by another process of the receiver, and was marked so.
    repeated: how many messages are repetitions by the sender: see `netcomm.cli.demo`.
    lost, duplicated, wrong: the names of the files that did not arrive or not in full; of which something was handed
        over again without need or mark; of which something arrived that was not sent so.
    """

    files: int
    bytes: int
    reconnects: int
    redelivered: int = 0
    repeated: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether netcomm has kept its promise."""
        return not self.lost and not self.duplicated and not self.wrong


def judge(
    planned: Iterable[Key], sent: Iterable[Record], accepted: Iterable[int], received: Iterable[Record], connects: int
) -> Report:
    """Compare what has arrived with what was sent, and with what was to be sent.

    accepted: the attempts of which the sender knows that `send` has returned.
    """
    attempts = {record.attempt: record for record in sent}
    arrived: dict[int, list[Record]] = {}
    lost: set[str] = set()
    duplicated: set[str] = set()
    wrong: set[str] = set()
    redelivered = 0
    for record in received:
        attempt = attempts.get(record.attempt)
        if attempt is None:
            wrong.add(record.name)
            continue
        if not record.intact or (attempt.key, attempt.sha256) != (record.key, record.sha256):
            wrong.add(attempt.name)
        before = arrived.setdefault(record.attempt, [])
        if before:
            # Only the death of the process that had it first excuses a second time, and only with the mark.
            if record.redelivered and record.process not in {earlier.process for earlier in before}:
                redelivered += 1
            else:
                duplicated.add(attempt.name)
        before.append(record)
    sizes = {attempts[number].key: records[0].size for number, records in arrived.items()}
    lost.update(name for name, offset in planned if (name, offset) not in sizes)
    lost.update(attempts[number].name for number in accepted if number not in arrived)
    return Report(
        files=len({name for name, _ in sizes} - lost),
        bytes=sum(sizes.values()),
        reconnects=max(0, connects - 1),
        redelivered=redelivered,
        repeated=len(arrived) - len(sizes),
        lost=sorted(lost),
        duplicated=sorted(duplicated),
        wrong=sorted(wrong),
    )


def judge_journals(folder: Path) -> Report:
    """Judge by the plan and the journals in the folder that the processes share."""
    sent, accepted = journal.sent(folder)
    planned = [piece.key for piece in plan.load(folder)]
    return judge(planned, sent, accepted, journal.received(folder), journal.connects(folder))
