"""System calls on the real SQLite files fail, or are the last ones of a process that is killed; no promise is broken.

strace does it. A run without injections shows which calls there are; the injections are spread evenly over them, and
over the ways to fail. There are 200 in the short form; in the long one (see tests/trials.py), every call fails in every
way. A failure prints the command that replays it, in the project's folder.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from netcomm import Message, SnakemqConnector, SnakemqListener
from tests.faults.helpers import DEADLINE_S, Nursery
from tests.faults.injected import BATCHES, place
from tests.faults.sender import LIMITS, number_of
from tests.trials import SOAK, trials

INJECTIONS = 200 * SOAK
PARTS = 10

SIDES = ("sender", "receiver")
# Not those that read: SQLite itself takes a disk that can't be read for a damaged file.
CALLS = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "open", "openat", "unlink", "unlinkat")
FILES = ("", "-wal", "-journal", "-shm", "-lock")


@dataclass(frozen=True)
class Kind:
    """A way to fail: what strace does, to how many calls in a row, and whether the process dies of its first error."""

    what: str
    calls: int = 1
    die: bool = False


KINDS = (
    Kind("error=EIO"),
    Kind("signal=SIGKILL"),
    Kind("error=ENOSPC", calls=5),
    Kind("error=EIO", die=True),
)


@dataclass(frozen=True)
class Injection:
    """The `nth` call of a name, on the files of one side, fails in some way."""

    side: str
    call: str
    nth: int
    kind: Kind

    def option(self) -> str:
        last = f"..{self.nth + self.kind.calls - 1}" if self.kind.calls > 1 else ""
        return f"inject={self.call}:{self.kind.what}:when={self.nth}{last}"


@dataclass
class Outcome:
    """What became of a process.

    status: as of `Child.wait`; notes: see `tests.faults.injected.Life`; log: strace's; replay: a command; later: what
        arrived in the life after it, and whether it was marked as redelivered.
    """

    status: int
    notes: list[list[Any]]
    log: list[str]
    replay: str
    later: list[tuple[int, bool]]


class Stage:
    """Runs the process under strace, and then lets its peers live again, without strace."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.folder = folder
        self.nursery = nursery
        self.runs = 0

    def run(self, side: str, injection: Injection | None = None, defect: str | None = None) -> Outcome:
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        die = injection is not None and injection.kind.die
        config = {"folder": str(folder), "side": side, "notes": str(folder / "notes"), "die": die, "defect": defect}
        strace = ["strace", "-f", "-qq", "-o", str(folder / "strace")]
        strace += ["-e", f"trace={','.join('?' + call for call in CALLS)}"]
        for file in FILES:
            strace += ["-P", str(folder / f"{side}.db{file}")]
        if injection is not None:
            strace += ["-e", injection.option()]
        program = [sys.executable, "-m", "tests.faults.injected", json.dumps(config)]
        replay = f"{shlex.join(['rm', '-rf', str(folder)])}; mkdir -p {folder}; {shlex.join([*strace, *program])}"
        try:
            status = self.trace(strace, config)
            later = self.live_again(folder)
        except BaseException as error:
            error.add_note(replay)
            raise
        notes = [json.loads(line) for line in (folder / "notes").read_text().splitlines()]
        return Outcome(status, notes, (folder / "strace").read_text().splitlines(), replay, later)

    def trace(self, strace: list[str], config: dict[str, Any]) -> int:
        """Run the process, forked off and not started anew, since strace would make its imports slow."""
        child = self.nursery.start("injected", **config)
        try:
            with subprocess.Popen([*strace, "-p", str(child.pid)], stderr=subprocess.PIPE) as tracer:
                try:
                    _, errors = tracer.communicate(timeout=DEADLINE_S)
                finally:
                    tracer.kill()
            assert tracer.returncode == 0, errors
        finally:
            child.kill()
        return child.wait()

    def live_again(self, folder: Path) -> list[tuple[int, bool]]:
        """Open both storages, and let everything arrive that is in them."""
        arrived: list[tuple[int, bool]] = []

        def on_message(ident: str, message: Message) -> None:
            arrived.append((number_of(message.data), message.redelivered))

        where = place(folder)
        sent, received = (f"sqlite:///{folder}/{side}.db?durability=process" for side in SIDES)
        with SnakemqListener("receiver", *where, storage=received, limits=LIMITS) as receiver:
            receiver.on_message.add(on_message)
            with SnakemqConnector("sender", *where, storage=sent, limits=LIMITS) as sender:
                assert sender.wait_connected("receiver", DEADLINE_S)
                assert sender.flush(DEADLINE_S)
        return arrived


def complaints(outcome: Outcome, failures: int, may_die: bool) -> list[str]:
    """What is wrong with an outcome.

    failures: how many system calls failed at most; may_die: whether the process was to be killed, or to die.
    """
    found = []
    died = outcome.status == -9
    if outcome.status != 0 and not (died and may_die):
        found.append(f"it has ended with {outcome.status}")
    accepted = {number for what, *rest in outcome.notes if what == "accepted" for number in rest[0]}
    refused = {number for what, *rest in outcome.notes if what == "refused" for number in rest[0]}
    first = [(rest[0], rest[1]) for what, *rest in outcome.notes if what == "received"]
    arrived = [number for number, _ in [*first, *outcome.later]]

    if accepted - set(arrived):
        found.append(f"lost: {sorted(accepted - set(arrived))}")
    fresh = list(dict.fromkeys(arrived))
    if fresh != sorted(fresh):
        found.append(f"out of order: {fresh}")
    for batch in BATCHES:
        if 0 < len(set(batch) & set(arrived)) < len(batch):
            found.append(f"in part: {sorted(set(batch) & set(arrived))} of {batch}")
    # It may be there all the same where nothing was stored behind it.
    to_light = {number for number in refused & set(arrived) if any(number < other for other in accepted)}
    if to_light:
        found.append(f"brought to light: {sorted(to_light)}")
    if len({number for number, _ in first}) < len(first):
        found.append(f"handed over twice in one life: {first}")
    again = [entry for entry in outcome.later if entry[0] in {number for number, _ in first}]
    if not all(redelivered for _, redelivered in again) or (again and not died):
        found.append(f"handed over again: {again}")
    if not died and any(redelivered for _, redelivered in [*first, *outcome.later]):
        found.append("marked as redelivered, and nobody died")

    errors = [tuple(note[-2:]) for note in outcome.notes if note[0] in ("refused", "failed")]
    if len(errors) > failures:
        found.append(f"{len(errors)} errors of {failures} failures")
    for error, text in errors:
        if error not in ("StorageError", "StorageUnavailable") or ".db" not in text:
            found.append(f"{error}: {text}")
    return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    why = None
    if shutil.which("strace") is None:
        why = "strace is not installed: it is Debian's package `strace`"
    elif subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True).returncode:
        why = "strace may not trace here: a container needs the capability SYS_PTRACE"
    if why is not None:
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("injection")
    with Nursery(folder / "log") as nursery:
        yield Stage(folder, nursery)


@pytest.fixture(scope="module")
def points(stage: Stage) -> list[tuple[str, str, int]]:
    """Every call there is, as (side, call, nth), in the order in which they happen."""
    found = []
    for side in SIDES:
        outcome = stage.run(side)
        assert complaints(outcome, failures=0, may_die=False) == []
        calls = re.findall(r"^(\d+) +(\w+)\(", "\n".join(outcome.log), re.MULTILINE)
        assert len({thread for thread, _ in calls}) == 1
        count: Counter[str] = Counter()
        for _, call in calls:
            count[call] += 1
            found.append((side, call, count[call]))
    return found


def spread(points: list[tuple[str, str, int]], count: int) -> list[Injection]:
    """Injections at `count` points, evenly."""
    kinds = len(KINDS)
    # In another order in each round: SQLite writes by turns the header of a page and the page.
    return [Injection(*points[i * len(points) // count], KINDS[(i + i // kinds) % kinds]) for i in range(count)]


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_whichever_system_call_fails(
    stage: Stage, points: list[tuple[str, str, int]], part: int
) -> None:
    hits = 0
    injections = spread(points, INJECTIONS)[part::PARTS]
    with trials("failing or last system calls of SQLite") as tried:
        for injection in injections:
            outcome = stage.run(injection.side, injection)
            kills = "signal" in injection.kind.what
            failures = 0 if kills else injection.kind.calls
            found = complaints(outcome, failures, may_die=kills or injection.kind.die)
            told = f"{found}\n{outcome.notes}\nthen: {outcome.later}\n{stage.nursery.log()[-2000:]}"
            assert not found, f"{told}\n{outcome.replay}"
            hits += outcome.status == -9 or any("(INJECTED)" in line for line in outcome.log)
        tried.count += hits
    # Where threads took turns otherwise than in the run without injections, the last calls may not come.
    assert hits >= 0.9 * len(injections)


@pytest.mark.parametrize(
    ("defect", "kind"),
    [("early", Kind("signal=SIGKILL")), ("silent", Kind("error=EIO"))],
    ids=["accepted before it is stored", "accepted although it could not be stored"],
)
def test_a_broken_promise_is_noticed(stage: Stage, points: list[tuple[str, str, int]], defect: str, kind: Kind) -> None:
    def is_lossy(point: tuple[str, str, int]) -> bool:
        outcome = stage.run("sender", Injection(*point, kind), defect)
        return any(complaint.startswith("lost") for complaint in complaints(outcome, failures=1, may_die=True))

    writes = [point for point in points if point[:2] == ("sender", "pwrite64")]
    # The storage writes for other reasons too, so that not each of them concerns a message.
    assert any(is_lossy(point) for point in writes[len(writes) // 2 :: 5])
