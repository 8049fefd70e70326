"""What a host keeps agrees with its positions, whatever befalls the SQLite file or the process that has it open."""

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netcomm.errors import StorageCorrupt, StorageUnavailable
from netcomm.host_storage import HostPosition, HostRow, HostStep
from netcomm.message import Stream
from netcomm.storage import Append, StoredMessage
from netcomm.testing.host_steps import all_rows, everything, streams
from netcomm_sqlite import SqliteQueueStorage, stream_table
from tests.faults.helpers import Nursery, SideFile, wait_until
from tests.faults.host_writer import KEY, step, steps_kept
from tests.faults.test_sqlite_damage import flip_bits, flip_early_bits
from tests.faults.test_sqlite_full_disk import disk, fill_by_others
from tests.trials import SOAK

__all__ = ["disk"]  # a fixture

DOOMED = 5
LAST = 8
KILLS = 12 * SOAK
DAMAGES = 200 * SOAK


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery") / "log") as nursery:
        yield nursery


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


# -- Death ----------------------------------------------------------------------------------------------------


def test_a_process_may_die_at_each_statement_of_a_step(tmp_path: Path, nursery: Nursery) -> None:
    survived = False
    kept: set[int] = set()
    for statement in [0, *range(1, 100)]:
        path, done = tmp_path / f"{statement}.db", SideFile(tmp_path / f"{statement}.done")
        config = {"path": str(path), "done": str(done.path), "last": LAST}
        status = nursery.start("host_writer", **config, crash=[DOOMED, statement]).wait()
        survived = status == 0
        assert survived or status == -signal.SIGKILL, nursery.log()
        noted = len(done.lines())
        with SqliteQueueStorage(path) as storage:
            found = steps_kept(storage)
            assert found == LAST if survived else found in (noted, noted + 1)
            kept.add(found)
            # Whether it was stored or not, the host may commit the same step again.
            storage.commit([step(found)])
            assert steps_kept(storage) == found
        assert nursery.start("host_writer", **config, crash=None).wait() == 0, nursery.log()
        with SqliteQueueStorage(path) as storage:
            assert steps_kept(storage) == LAST
        if survived:
            break
    assert survived
    assert statement > 12  # so many there are at least
    assert kept == {DOOMED - 1, DOOMED, LAST}


def test_a_process_may_be_killed_at_any_moment(path: Path, tmp_path: Path, nursery: Nursery) -> None:
    done = SideFile(tmp_path / "done")
    chance = random.Random(1)
    noted = 0
    for _ in range(KILLS):
        child = nursery.start("host_writer", path=str(path), done=str(done.path), last=10**9, crash=None)
        before = done.size()
        wait_until(lambda before=before: done.size() > before, "a step")  # type: ignore[misc]
        until = time.monotonic() + chance.uniform(0, 0.02)
        while time.monotonic() < until:
            pass
        child.kill()
        noted = int(done.lines()[-1])
        with SqliteQueueStorage(path) as storage:
            assert steps_kept(storage) in (noted, noted + 1)


# -- Backups --------------------------------------------------------------------------------------------------


def test_whatever_backup_is_restored_rows_and_positions_agree(path: Path, tmp_path: Path) -> None:
    backups = []
    with SqliteQueueStorage(path, durability="process") as storage:
        for number in range(1, 40):
            storage.commit([step(number)])
            if number % 3 == 0:  # the file and its log, while nothing is written
                backup = tmp_path / f"copied {number}.db"
                for suffix in ("", "-wal"):
                    shutil.copyfile(f"{path}{suffix}", f"{backup}{suffix}")
                backups.append((number, backup))
            elif number % 10 == 0:  # as `sqlite3 FILE .backup` does
                backup = tmp_path / f"backed up {number}.db"
                with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
                    source.backup(target)
                backups.append((number, backup))
    for number, backup in backups:
        with SqliteQueueStorage(backup) as storage:
            assert steps_kept(storage) == number
            storage.commit([step(number + 1)])
            assert steps_kept(storage) == number + 1
        with SqliteQueueStorage(backup, read_only=True) as look:
            assert steps_kept(look) == number + 1


# -- A full disk ----------------------------------------------------------------------------------------------


def rows(first: int, count: int, size: int) -> list[HostRow]:
    numbers = range(first, first + count)
    return [HostRow(number, random.Random(number).randbytes(size), b"e" * 20, 1.0) for number in numbers]


def pushed(first: int, count: int, size: int) -> HostStep:
    return HostStep(
        appended={"tasks": rows(first, count, size)},
        positions={KEY: HostPosition(1, first + count, 1.0)},
        marks={"handed out": first + count},
    )


def fill(storage: SqliteQueueStorage, first: int, count: int, size: int) -> int:
    """Push until there is no space; returns the number behind the last row that was stored."""
    for number in range(first, 10**6, count):
        try:
            storage.commit([pushed(number, count, size)])
        except StorageUnavailable:
            with pytest.raises(StorageUnavailable, match="no space left"):
                storage.commit([pushed(number, count, size)])
            assert storage.host_positions()[KEY] == HostPosition(1, number, 1.0)
            assert storage.marks() == {"handed out": number}
            assert storage.logs()["tasks"].next_number == number
            return number
    raise AssertionError("it never was full")


@pytest.mark.parametrize(("count", "size"), [(1, 1000), (100, 100), (7, 20_000), (1, 600_000)])
def test_a_step_for_which_the_disk_has_no_room_is_not_made_and_acks_are(disk: Path, count: int, size: int) -> None:
    path, ballast = disk / "queue.db", disk / "ballast"
    ballast.write_bytes(bytes(256 * 1024))
    with SqliteQueueStorage(path, durability="process") as storage:
        storage.commit([pushed(0, 1, size)])
        end = fill(storage, 1, count, size)
        fill_by_others(disk)
        assert storage.logs()["tasks"].count == end
        # A part of a step that there is room for is not made without the others.
        mixed = pushed(end, 2000, 1000)._replace(deleted={"tasks": [(0, 1)]})
        with pytest.raises(StorageUnavailable):
            storage.commit([HostStep(marks={"other": 1}), mixed])
        assert storage.marks() == {"handed out": end}
        assert storage.rows("tasks", 0, 1, 1) == rows(0, 1, size)
        # What lets rows leave is made from the reserve.
        for number in range(0, end, 50):
            retried = {} if size > 100_000 else {number: b"2"}  # a new state takes the room of its row
            position = HostPosition(1, number, 2.0)
            storage.commit(
                [HostStep(changed={"tasks": retried}, positions={("worker", Stream.BUS_VOLATILE): position})]
            )
            acked = HostStep(deleted={"tasks": [(number, number + 50)]}, documents={"none": None})
            storage.commit([acked, HostStep(marks={"handed out": number + 1})])
        assert storage.logs()["tasks"].count == 0
        ballast.unlink()
        again = fill(storage, end, count, size)
        assert again > end
    with SqliteQueueStorage(path, read_only=True) as look:
        assert look.logs()["tasks"].count == again - end
        assert all_rows(look, "tasks") == rows(end, again - end, size)
        assert look.host_positions()[KEY].next_seq == again


# -- Damage ---------------------------------------------------------------------------------------------------


def store_some(path: Path) -> None:
    with SqliteQueueStorage(path, durability="process") as storage:
        for number in range(1, 6):
            storage.commit([step(number)])
        storage.commit([pushed(6, 40, 900)])
        storage.commit([HostStep(documents={f"document {number}": b"x" * number * 40 for number in range(20)})])
        storage.append([Append("client", 3, [StoredMessage(seq, bytes(16), b"plain", 1.0, None) for seq in range(5)])])
        bus = [StoredMessage(seq, bytes(16), b"b", 1.0, 9.0, b"env") for seq in range(9)]
        storage.append([Append("client", 4, bus, Stream.BUS_DURABLE)])


def all_of(storage: SqliteQueueStorage) -> tuple[object, ...]:
    return (
        everything(storage),
        streams(storage),
        storage.read("client", 0, 99, 10**6),
        storage.read("client", 0, 99, 10**6, stream=Stream.BUS_DURABLE),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "queue.db"
    store_some(path)
    return path


@pytest.mark.parametrize("damage", [flip_bits, flip_early_bits])
def test_what_a_host_keeps_is_read_exactly_or_reported_as_damaged(
    whole: Path, path: Path, damage: Callable[[bytearray, random.Random], None]
) -> None:
    with SqliteQueueStorage(whole, read_only=True) as look:
        expected = all_of(look)
    found = set()
    for seed in range(DAMAGES):
        chance = random.Random(seed)
        data = bytearray(whole.read_bytes())
        damage(data, chance)
        for left in path.parent.glob("queue.db*"):
            left.unlink()
        path.write_bytes(data)
        try:
            with SqliteQueueStorage(path, durability="process") as storage:
                assert all_of(storage) == expected
            found.add("exact")
        except StorageCorrupt:
            found.add("corrupt")
    assert found == {"exact", "corrupt"}


CHANGES = {
    "a payload": "UPDATE message SET data = x'00' WHERE envelope = CAST('envelope' AS BLOB)",
    "a byte of a payload": "UPDATE message SET data = CAST(replace(CAST(data AS TEXT), 'row 4', 'row 5') AS BLOB)",
    "a row's envelope": "UPDATE message SET envelope = x'00' WHERE length(envelope) = 8",
    "a row's state": "UPDATE message SET state = CAST('attempt 9' AS BLOB) WHERE state = CAST('attempt 5' AS BLOB)",
    "a state that was not there": "UPDATE message SET state = x'31' WHERE state IS NULL AND uuid IS NULL",
    "a row's time": "UPDATE message SET queued_at = 4.5 WHERE queued_at = 4.0",
    "a row's place": "UPDATE message SET id = id + 1000 WHERE queued_at = 4.0",
    "a row that is missing": "DELETE FROM message WHERE queued_at = 4.0",
    "a message's envelope": "UPDATE message SET envelope = NULL WHERE envelope = CAST('env' AS BLOB)",
    "a mark": "UPDATE mark SET value = value + 1",
    "a mark's name": "UPDATE mark SET name = name || 'x'",
    "a document": "UPDATE document SET content = x'00'",
    "a document's name": "UPDATE document SET name = name || 'x'",
    "a position": "UPDATE host_position SET next_seq = next_seq + 1",
    "a position's stream": "UPDATE host_position SET stream = 4",
    "a position's time": "UPDATE host_position SET stored_at = 0",
    "a position's sender": "UPDATE host_position SET ident = ident || 'x'",
    "a stream's number": "UPDATE stream SET kind = 4 WHERE kind = 5",
    "a log's name": "UPDATE stream SET ident = ident || 'x' WHERE kind = 8",
    "a log's counter": "UPDATE stream SET next_seq = next_seq + 1 WHERE kind = 8",
    "the kind of a log": "UPDATE stream SET kind = 0 WHERE kind = 8",
    "a log that is missing": "DELETE FROM stream WHERE kind = 8",
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_value_that_is_not_what_was_stored_is_reported(whole: Path, path: Path, change: str, read_only: bool) -> None:
    shutil.copyfile(whole, path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(change).rowcount > 0
        db.commit()
    with pytest.raises(StorageCorrupt), SqliteQueueStorage(path, read_only=read_only) as storage:
        all_of(storage)


# -- Numbers of parts -----------------------------------------------------------------------------------------


def test_ids_of_logs_that_were_dropped_are_used_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_table, "_MOST_PARTS", 6)
    with SqliteQueueStorage(path, durability="process") as storage:
        for number in range(40):
            name = f"log {number}"
            storage.commit([HostStep(appended={name: rows(number, 3, 10)}, dropped=[f"log {number - 3}"])])
        assert {name: all_rows(storage, name) for name in storage.logs()} == {
            f"log {number}": rows(number, 3, 10) for number in (37, 38, 39)
        }
    with SqliteQueueStorage(path) as storage:
        assert set(storage.logs()) == {"log 37", "log 38", "log 39"}


def test_a_forked_child_commits_nothing(path: Path) -> None:
    with SqliteQueueStorage(path, durability="process") as storage:
        storage.commit([step(1)])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                storage.commit([step(2)])
            except Exception as error:
                status = 0 if "forked" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert steps_kept(storage) == 1
