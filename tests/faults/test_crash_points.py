"""Processes die at each point that matters in the life of a message, and it ends as the design says.

What the sender has stored arrives. It is handed over once, whatever happens to the sender; and again, marked, only
where the receiver dies between the callback and the storing of its position.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from netcomm.storage import Append, StoredMessage
from netcomm.storage_url import open_storage
from netcomm_sqlite import SqliteQueueStorage
from tests.faults.crash import RECEIVER_POINTS, SENDER_POINTS
from tests.faults.helpers import Child, Nursery, SideFile
from tests.faults.test_kill_sweep import judge

COUNT = 10
MARKED = 5  # the message in whose life somebody dies
_SECOND_LIFE = 100


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery") / "log") as nursery:
        yield nursery


class Scene:
    """A sender and a receiver in a folder; messages go one by one."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.folder = folder
        self.nursery = nursery
        self.accepted = SideFile(folder / "accepted")
        self.received = SideFile(folder / "received")

    def sender(self, first: int, crash: str | None = None) -> Child:
        return self.nursery.start(
            "sender",
            storage=f"sqlite:///{self.folder}/sender.db",
            place=[f"unix:{self.folder}/socket", 1],
            accepted=str(self.accepted.path),
            first=first,
            count=COUNT,
            seed=None,
            crash=crash and [crash, MARKED],
        )

    def receiver(self, life: int, crash: str | None = None) -> Child:
        return self.nursery.start(
            "receiver",
            storage=f"sqlite:///{self.folder}/receiver.db",
            place=[f"unix:{self.folder}/socket", 1],
            received=str(self.received.path),
            life=life,
            delay=0,
            crash=crash and [crash, MARKED],
        )

    def arrivals(self) -> list[tuple[int, int, bool]]:
        """Number, life of the receiver, and whether it was marked as redelivered, of each message in order."""
        lines = [map(int, line.split()) for line in self.received.lines()]
        return [(number, life, bool(redelivered)) for number, life, redelivered in lines]

    def assert_clean(self) -> None:
        assert judge(self.accepted.lines(), self.received.lines()).clean
        with open_storage(f"sqlite:///{self.folder}/sender.db", read_only=True) as storage:
            assert [stream.count for stream in storage.streams()] == [0]


@pytest.mark.parametrize("point", SENDER_POINTS)
def test_a_message_that_was_stored_arrives_once_wherever_the_sender_dies(
    tmp_path: Path, nursery: Nursery, point: str
) -> None:
    scene = Scene(tmp_path, nursery)
    receiver = scene.receiver(1)
    assert scene.sender(1, point).wait() == -signal.SIGKILL
    with open_storage(f"sqlite:///{tmp_path}/sender.db", read_only=True) as storage:
        left = [message.seq for message in storage.read("receiver", 0, 100, 1 << 20)]
    # What arrived before may not have been deleted yet.
    assert (MARKED - 1 in left) == (point not in ("before the store", "after the storage has deleted"))
    assert scene.sender(_SECOND_LIFE).wait() == 0, nursery.log()
    receiver.kill()
    scene.assert_clean()
    # Deleting may come late, with the next messages; so these two may hit a later message than the marked one.
    accepted = [int(line) for line in scene.accepted.lines()]
    numbers = [number for number, _, _ in scene.arrivals()]
    unnoted = [] if point in ("before the store", "after the acknowledgement is processed") else numbers
    assert set(numbers) - set(accepted) <= set(unnoted)
    assert (MARKED in numbers) == (point != "before the store")
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("point", RECEIVER_POINTS)
def test_a_message_is_handed_over_again_only_where_the_position_was_not_stored(
    tmp_path: Path, nursery: Nursery, point: str
) -> None:
    scene = Scene(tmp_path, nursery)
    receiver = scene.receiver(1, point)
    sender = scene.sender(1)
    assert receiver.wait() == -signal.SIGKILL
    receiver = scene.receiver(2)
    assert sender.wait() == 0, nursery.log()
    receiver.kill()
    scene.assert_clean()
    arrivals = scene.arrivals()
    expected = {
        "before the callback": [(2, True)],
        "in the callback": [(1, False), (2, True)],
        "after the callback": [(1, False), (2, True)],
        "after the position is stored": [(1, False)],
        "after the acknowledgement is sent": [(1, False)],
    }[point]
    assert [(life, marked) for number, life, marked in arrivals if number == MARKED] == expected
    # No other message comes twice, and the first of them that is sent after the restart is not marked.
    others = [number for number, _, _ in arrivals if number != MARKED]
    assert others == [number for number in range(1, COUNT + 1) if number != MARKED]
    assert [marked for number, _, marked in arrivals if number > MARKED + 1] == [False] * (COUNT - MARKED - 1)


# -- Opening --------------------------------------------------------------------------------------------------


def _die_at_every_statement(nursery: Nursery, path: Path, prepare) -> int:
    """Die at each statement that opening a file runs, in turn; it must open after that."""
    statement = 0
    while True:
        statement += 1
        for left in path.parent.glob(path.name + "*"):
            left.unlink()
        prepare(path)
        status = nursery.start("crash", path=str(path), statement=statement).wait()
        if status == 0:
            return statement - 1
        assert status == -signal.SIGKILL, nursery.log()
        with SqliteQueueStorage(path) as storage:
            assert storage.incarnation >= 1
            check = [message.data for message in storage.read("receiver", 0, 10, 1000)]
            assert check == ([b"kept"] if prepare is _with_a_message else []), f"statement {statement}"
            seq = len(check)
            storage.append([Append("receiver", 1, [StoredMessage(seq, bytes(16), b"new", 0.0, None)])])
            assert storage.read("receiver", seq, 10, 1000)[0].data == b"new"


def _with_nothing(path: Path) -> None:
    pass


def _with_a_message(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        storage.append([Append("receiver", 1, [StoredMessage(0, bytes(16), b"kept", 0.0, None)])])


@pytest.mark.parametrize("prepare", [_with_nothing, _with_a_message], ids=["a new file", "a file that exists"])
def test_a_process_may_die_anywhere_while_it_opens_a_file(tmp_path: Path, nursery: Nursery, prepare) -> None:
    assert _die_at_every_statement(nursery, tmp_path / "queue.db", prepare) > 5


def test_a_process_may_die_when_the_file_has_just_come_into_being(tmp_path: Path) -> None:
    # SQLite makes an empty file first; the owner's lock beside it is older still.
    path = tmp_path / "queue.db"
    path.with_name("queue.db-lock").touch()
    path.touch()
    with SqliteQueueStorage(path) as storage:
        assert storage.incarnation == 1
