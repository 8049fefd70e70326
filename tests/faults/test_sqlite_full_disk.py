"""A queue that has filled its disk can be emptied: a reserve that appends may not use lets messages leave.

The disks are real ones, of a few MiB. Those who fill a disk are the queue itself, or others.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netcomm.errors import StorageUnavailable
from netcomm.storage import Append, Position, StoredMessage
from netcomm_sqlite import SqliteQueueStorage
from netcomm_sqlite.blocks import RESERVE, RESERVE_BESIDE, RESERVE_OF_LOG
from netcomm_sqlite.failures import Failures
from tests.faults.helpers import ROOT

EPOCH = 2**62 + 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        why = "only root may mount the small disk that these tests fill: run them as root, or under `unshare -rm`"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def path(disk: Path) -> Path:
    return disk / "queue.db"


def message(seq: int, size: int = 1000, ttl: float | None = None) -> StoredMessage:
    chance = random.Random(seq)
    return StoredMessage(seq, chance.randbytes(16), chance.randbytes(size), 1_700_000_000.0 + seq, ttl)


def append(storage: SqliteQueueStorage, *messages: StoredMessage) -> None:
    storage.append([Append("receiver", EPOCH, messages)])


def read(storage: SqliteQueueStorage) -> list[StoredMessage]:
    return storage.read("receiver", 0, 1_000_000, 1 << 40)


def fill(storage: SqliteQueueStorage, size: int = 1000, batch: int = 1, start: int = 0) -> list[StoredMessage]:
    """Append until there is no space; returns what was accepted."""
    accepted: list[StoredMessage] = []
    for seq in range(start, start + 100_000, batch):
        messages = [message(each, size, 1e9 if each % 2 else None) for each in range(seq, seq + batch)]
        try:
            append(storage, *messages)
        except StorageUnavailable:
            return accepted
        accepted += messages
    raise AssertionError("it never was full")


def fill_by_others(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "others").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with contextlib.suppress(OSError), (disk / "others").open("ab", buffering=0) as file:
        while True:
            file.write(b"x")
    assert free_space(disk) == 0


def free_space(disk: Path) -> int:
    info = os.statvfs(disk)
    return info.f_bavail * info.f_frsize


def blocks(path: Path) -> int:
    """How many bytes of the disk a file has."""
    return path.stat().st_blocks * 512


def drain(storage: SqliteQueueStorage, messages: list[StoredMessage]) -> None:
    """Let messages leave as a peer does."""
    storage.renew("receiver", EPOCH + 1)
    for start in range(0, len(messages), 10):
        part = messages[start : start + 10]
        assert storage.read("receiver", part[0].seq, len(part), 1 << 30) == part
        storage.mark_sent("receiver", part[-1].seq + 1)
        storage.store_positions({"sender": Position(EPOCH, start)})
        storage.delete("receiver", [part[0].seq])
        storage.delete_below("receiver", part[-1].seq + 1)
    assert read(storage) == []


SHAPES = pytest.mark.parametrize(
    ("size", "batch"), [(10, 1), (1000, 1), (1000, 50), (5000, 1), (20_000, 7), (600_000, 1)]
)


@SHAPES
def test_a_queue_that_has_filled_its_disk_is_emptied_and_filled_again(path: Path, size: int, batch: int) -> None:
    with SqliteQueueStorage(path, durability="process") as storage:
        accepted = fill(storage, size, batch)
        assert sum(len(each.data) for each in accepted) > (100_000 if size == 10 else 1_000_000)
        fill_by_others(path.parent)
        drain(storage, accepted)
        again = fill(storage, size, batch, start=accepted[-1].seq + 1 + batch)
        assert len(again) > 0.6 * len(accepted)
        assert read(storage) == again
        drain(storage, again)


@SHAPES
def test_a_queue_that_has_filled_its_disk_is_closed_opened_looked_at_and_emptied(
    path: Path, size: int, batch: int
) -> None:
    with SqliteQueueStorage(path, durability="process") as storage:
        accepted = fill(storage, size, batch)
        incarnation = storage.incarnation
    for _ in range(5):
        fill_by_others(path.parent)
        incarnation += 1
        with SqliteQueueStorage(path) as storage:
            assert storage.incarnation == incarnation
            fill_by_others(path.parent)
            with SqliteQueueStorage(path, read_only=True) as look:
                assert read(look) == accepted
    fill_by_others(path.parent)
    with SqliteQueueStorage(path) as storage:
        drain(storage, accepted)
        append(storage, message(accepted[-1].seq + 100, 1000))


def test_a_full_disk_does_not_keep_a_process_that_was_killed_from_its_messages(path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from tests.faults.test_sqlite_full_disk import SqliteQueueStorage, fill, fill_by_others
path = Path(sys.argv[1])
accepted = fill(SqliteQueueStorage(path), batch=int(sys.argv[2]))
fill_by_others(path.parent)
print(len(accepted), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), "3"], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    with SqliteQueueStorage(path) as storage:
        accepted = read(storage)
        assert len(accepted) == int(done.stdout) > 100
        fill_by_others(path.parent)
        drain(storage, accepted)


def test_a_backlog_that_fills_the_disk_is_deleted_at_once(path: Path) -> None:
    with SqliteQueueStorage(path, durability="process") as storage:
        accepted = fill(storage, 10, 100)
        (stream,) = storage.streams()
        assert stream.count == len(accepted) > 10_000
        fill_by_others(path.parent)
        storage.delete("receiver", [each.seq for each in accepted[::2]])
        assert read(storage) == accepted[1::2]
        assert storage.streams()[0].count == len(accepted[1::2])
        storage.delete_below("receiver", stream.next_seq)
        assert read(storage) == []
        assert storage.streams()[0].count == 0
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == []


def test_the_queue_command_drops_what_has_filled_the_disk(path: Path) -> None:
    with SqliteQueueStorage(path, durability="process") as storage:
        accepted = fill(storage, batch=10)
    fill_by_others(path.parent)
    command = [sys.executable, "-m", "netcomm", "queue", "drop", f"sqlite:///{path}", "receiver", "--all", "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"dropped {len(accepted):,} messages" in done.stdout
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == []


def test_a_look_at_a_closed_queue_on_a_full_disk_gives_the_reserve_back(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        accepted = fill(storage)
    fill_by_others(path.parent)
    for left in path.parent.glob("queue.db-[ws]*"):
        left.unlink()
    fill_by_others(path.parent)
    lock = path.with_name("queue.db-lock")
    with SqliteQueueStorage(path, read_only=True) as look:
        assert read(look) == accepted
        assert blocks(lock) < RESERVE
    # But for what a look leaves behind: the index of the log.
    assert blocks(lock) >= RESERVE - 64 * 1024
    with SqliteQueueStorage(path) as storage:
        drain(storage, accepted)


def test_the_reserve_is_of_real_blocks_and_no_append_uses_it(path: Path) -> None:
    lock, log = path.with_name("queue.db-lock"), path.with_name("queue.db-wal")
    with SqliteQueueStorage(path) as storage:
        assert blocks(log) >= RESERVE_OF_LOG
        assert blocks(lock) >= RESERVE_BESIDE
        accepted = fill(storage)
        for seq in range(len(accepted) + 1, len(accepted) + 200):
            with contextlib.suppress(StorageUnavailable):
                append(storage, message(seq, seq % 100))
        assert blocks(log) >= RESERVE_OF_LOG
        assert blocks(lock) >= RESERVE_BESIDE
        assert blocks(path) >= path.stat().st_size
        # Each page that the file has, or will get from its log, has its place.
        assert path.stat().st_size >= 4096 * storage.database.conn.execute("PRAGMA page_count").fetchone()[0]
    assert RESERVE <= blocks(lock) <= 1024 * 1024
    SqliteQueueStorage(path).close()
    assert RESERVE <= blocks(lock) <= 1024 * 1024


def test_an_append_that_is_too_large_gives_back_what_it_took(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        append(storage, message(0))
        before = free_space(path.parent)
        with pytest.raises(StorageUnavailable, match="no space left"):
            append(storage, *[message(seq, 100_000) for seq in range(1, 90)])
        assert free_space(path.parent) >= before - 64 * 1024
        append(storage, message(100))
        assert [each.seq for each in read(storage)] == [0, 100]


def test_a_large_batch_is_stored_only_where_the_file_can_take_it_from_the_log(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        size = 0
        with contextlib.suppress(StorageUnavailable):
            for seq in range(30):
                append(storage, *[message(10 * seq + each, 100_000) for each in range(10)])
                size += 1
        accepted = read(storage)
        assert len(accepted) == 10 * size > 0
        fill_by_others(path.parent)
        drain(storage, accepted)


def test_the_file_has_blocks_for_messages_that_are_stored_one_by_one_behind_a_batch(path: Path) -> None:
    with SqliteQueueStorage(path, durability="process") as storage:
        append(storage, message(0))
        append(storage, message(1))
        append(storage, *[message(seq, 16_000) for seq in range(2, 52)])
        for seq in range(52, 60):
            append(storage, message(seq, 100_000))
            pages = storage.database.conn.execute("PRAGMA page_count").fetchone()[0]
            assert path.stat().st_size >= 4096 * pages


def test_positions_of_new_senders_are_stored_on_a_disk_that_others_have_filled(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        fill_by_others(path.parent)
        for number in range(300):
            storage.store_positions({f"sender {number}": Position(EPOCH, number)})
        accepted = fill(storage)  # a few: the file may have had blocks for more pages
    with SqliteQueueStorage(path) as storage:
        assert len(storage.positions()) == 300
        fill_by_others(path.parent)
        accepted += fill(storage, start=5000)
        (path.parent / "others").unlink()
        append(storage, message(9000))
        assert read(storage)[-1] == message(9000)
        assert len(read(storage)) == len(accepted) + 1
        assert blocks(path.with_name("queue.db-lock")) >= RESERVE_BESIDE
        assert blocks(path.with_name("queue.db-wal")) >= RESERVE_OF_LOG


def test_a_queue_from_before_the_reserve_is_opened_and_emptied_where_there_is_hardly_space(path: Path) -> None:
    messages = [message(seq) for seq in range(300)]
    with SqliteQueueStorage(path) as storage:
        append(storage, *messages)
    os.truncate(path.with_name("queue.db-lock"), 8)
    ballast = path.parent / "ballast"
    ballast.write_bytes(bytes(256 * 1024))
    fill_by_others(path.parent)
    ballast.unlink()
    with SqliteQueueStorage(path) as storage:
        with pytest.raises(StorageUnavailable, match="no space left"):
            append(storage, message(1000))
        drain(storage, messages)


def test_a_look_that_is_under_way_does_not_keep_messages_from_leaving(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        accepted = fill(storage)
        fill_by_others(path.parent)
        look = sqlite3.connect(path, isolation_level=None)
        look.execute("BEGIN")
        look.execute("SELECT count(*) FROM message").fetchone()
        # The log can't begin anew meanwhile: what is left of the reserve is for this.
        storage.mark_sent("receiver", 5)
        storage.delete_below("receiver", 5)
        look.close()
        drain(storage, accepted[5:])


def test_a_log_whose_index_has_no_space_is_taken_for_a_full_disk(path: Path) -> None:
    # SQLite calls that an error of input and output; and a small disk has a page left for it where it has any.
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 19 << 8  # SQLITE_IOERR_SHMSIZE
    assert "no space left" in str(Failures(path).translate(error))
