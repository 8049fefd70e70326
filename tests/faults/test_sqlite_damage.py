"""What the SQLite storage does on a disk that is full, fails, can't be written, or has damaged the file.

Either everything that was accepted reads back exactly, or a StorageError says what is wrong and what to do.
"""

import contextlib
import errno
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from netcomm import Limits, Peer, SnakemqConnector, SnakemqListener
from netcomm.errors import StorageCorrupt, StorageError, StorageLocked, StorageUnavailable
from netcomm.storage import Append, Position, StoredMessage
from netcomm_sqlite import SqliteQueueStorage, open_file, owner_lock, schema
from netcomm_sqlite.failures import Failures
from netcomm_sqlite.message_table import message_checksum
from netcomm_sqlite.stream_table import PART_SIZE, Stream, part_checksum
from tests.faults.helpers import DEADLINE_S, ROOT, wait_until
from tests.trials import SOAK, trials

DAMAGES = 300 * SOAK
EPOCH = 2**62 + 1


def message(seq: int, size: int = 100, ttl: float | None = None) -> StoredMessage:
    chance = random.Random(seq)
    return StoredMessage(seq, chance.randbytes(16), chance.randbytes(size), 1_700_000_000.0 + seq, ttl)


def append(storage: SqliteQueueStorage, *messages: StoredMessage, ident: str = "receiver") -> None:
    storage.append([Append(ident, EPOCH, messages)])


def read(storage: SqliteQueueStorage, ident: str = "receiver") -> list[StoredMessage]:
    return storage.read(ident, 0, 1_000_000, 1 << 40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


# -- A full disk ----------------------------------------------------------------------------------------------


def fill(storage: SqliteQueueStorage, start: int, batch: int = 1) -> tuple[list[StoredMessage], StorageError]:
    """Append until it fails; returns what was accepted, and the error."""
    accepted: list[StoredMessage] = []
    for seq in range(start, start + 100_000, batch):
        messages = [message(each, 1000) for each in range(seq, seq + batch)]
        try:
            append(storage, *messages)
        except StorageError as error:
            return accepted, error
        accepted += messages
    raise AssertionError("it never was full")


@pytest.mark.parametrize("batch", [1, 50])
def test_a_file_that_may_not_grow_keeps_what_was_accepted_and_goes_on_when_it_may(path: Path, batch: int) -> None:
    with SqliteQueueStorage(path) as storage:
        storage.database.conn.execute("PRAGMA max_page_count = 200")
        accepted, error = fill(storage, 0, batch)
        assert isinstance(error, StorageUnavailable)
        assert "no space left" in str(error)
        assert "free some" in str(error)
        assert str(path) in str(error)
        assert accepted
        assert read(storage) == accepted
        storage.database.conn.execute("PRAGMA max_page_count = 100000")
        more = message(len(accepted) + batch)
        append(storage, more)
        assert read(storage) == [*accepted, more]
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [*accepted, more]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 2 MiB; only root can have one."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder) as mounted:
        yield mounted


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts, and gives root's rights away")


@only_root
def test_a_full_disk_keeps_what_was_accepted_and_goes_on_when_there_is_space(disk: Path) -> None:
    path = disk / "queue.db"
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    with SqliteQueueStorage(path) as storage:
        accepted, error = fill(storage, 0)
        assert isinstance(error, StorageUnavailable)
        assert "no space left" in str(error)
        with pytest.raises(StorageUnavailable, match="no space left"):
            append(storage, message(len(accepted) + 1, 300_000))
        assert read(storage) == accepted
        ballast.unlink()
        more = message(len(accepted) + 2)
        append(storage, more)
        storage.store_positions({"sender": Position(EPOCH, 5)})
        assert read(storage) == [*accepted, more]
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [*accepted, more]
        assert storage.positions() == {"sender": Position(EPOCH, 5)}


@only_root
def test_a_storage_on_a_full_disk_can_be_closed_and_opened_again_when_there_is_space(disk: Path) -> None:
    path = disk / "queue.db"
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    with SqliteQueueStorage(path) as storage:
        accepted, _ = fill(storage, 0)
    # Closing has moved the log into the file as far as there was room, so there may be room again.
    with contextlib.suppress(OSError), (disk / "more").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    # The log may have some room left in itself; where it has not, this tells.
    with contextlib.suppress(StorageUnavailable), SqliteQueueStorage(path) as storage:
        assert read(storage) == accepted
    ballast.unlink()
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == accepted
        storage.delete_below("receiver", len(accepted))
        assert read(storage) == []
        append(storage, message(len(accepted) + 1))


def send_until_it_fails(peer: Peer) -> tuple[list[bytes], StorageError]:
    accepted = []
    for seq in range(100_000):
        data = message(seq, 1000).data
        try:
            peer.send("receiver", data, persistent=True)
        except StorageError as error:
            return accepted, error
        accepted.append(data)
    raise AssertionError("it never was full")


def look(path: Path) -> list[StoredMessage]:
    with SqliteQueueStorage(path, read_only=True) as storage:
        return read(storage)


@only_root
def test_a_peer_tells_of_a_full_disk_and_delivers_what_it_has_accepted_while_it_is_full(disk: Path) -> None:
    limits = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    received: list[bytes] = []
    errors: list[BaseException] = []
    with SnakemqListener("receiver", "127.0.0.1", 0, limits=limits) as receiver:
        receiver.on_recv.add(lambda ident, data: received.append(data))
        with SnakemqConnector("sender", "127.0.0.1", 1, storage=f"sqlite:///{disk}/queue.db", limits=limits) as peer:
            peer.on_error.add(errors.append)
            accepted, error = send_until_it_fails(peer)
            assert accepted
            assert "no space left" in str(error)
            # Sending has to be noted first, and the messages that have arrived to be deleted: the reserve is for that.
            peer.add_connector(*receiver.address)
            assert peer.flush(DEADLINE_S)
            assert received == accepted
            assert not [error for error in errors if isinstance(error, StorageError)]
            wait_until(lambda: not look(disk / "queue.db"), "that the messages which have arrived are deleted")
            assert peer.send("receiver", b"more", persistent=True).wait(DEADLINE_S)


# -- A disk that fails ----------------------------------------------------------------------------------------

_LIMITED = """
import json, resource, signal, sys
from netcomm.errors import StorageError, StorageUnavailable
from tests.faults.test_sqlite_damage import SqliteQueueStorage, fill, read
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
storage = SqliteQueueStorage(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
accepted, error = fill(storage, 0)
good = read(storage) == accepted
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
storage.close()
print(json.dumps([len(accepted), good, isinstance(error, StorageUnavailable), str(error)]))
"""


def test_a_file_that_cannot_be_written_any_further_is_reported_and_keeps_what_was_accepted(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(path)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    count, good, unavailable, text = json.loads(done.stdout)
    assert count > 5
    assert good
    assert unavailable, text
    assert "what was accepted before is kept" in text
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [message(seq, 1000) for seq in range(count)]


def connect_as(kind: type[sqlite3.Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let connections to SQLite be of a kind that shows a fault."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=kind, **options))


class FailingConnection(sqlite3.Connection):
    """A connection whose statements fail with an I/O error while `failing` names how they begin."""

    failing: tuple[str, ...] = ()

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
        if sql.strip().startswith(self.failing or ("-",)):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR | 3 << 8  # SQLITE_IOERR_WRITE
            raise error
        return super().execute(sql, *args)


@pytest.mark.parametrize("statement", ["BEGIN", "UPDATE stream", "COMMIT"])
def test_an_io_error_anywhere_in_a_transaction_leaves_the_storage_as_it_was(
    path: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_as(FailingConnection, monkeypatch)
    with SqliteQueueStorage(path) as storage:
        append(storage, message(0))
        monkeypatch.setattr(FailingConnection, "failing", (statement,))
        with pytest.raises(StorageUnavailable, match="disk fails"):
            append(storage, message(1), message(2))
        monkeypatch.setattr(FailingConnection, "failing", ())
        assert read(storage) == [message(0)]
        append(storage, message(3))
        (stream,) = storage.streams()
        assert (stream.count, stream.next_seq) == (2, 4)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [message(0), message(3)]


class InterruptedConnection(sqlite3.Connection):
    """A connection on which Ctrl-C comes once, when a statement that begins with `interrupted` has been run."""

    interrupted: str | None = None

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
        cursor = super().execute(sql, *args)
        if self.interrupted is not None and sql.strip().startswith(self.interrupted):
            self.interrupted = None
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize("statement", ["BEGIN", "UPDATE stream", "COMMIT"])
@pytest.mark.parametrize("first", [[], [0]], ids=["a new stream", "a known stream"])
def test_a_change_that_is_interrupted_is_stored_or_is_not_and_the_storage_goes_on(
    path: Path, statement: str, first: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_as(InterruptedConnection, monkeypatch)
    with SqliteQueueStorage(path) as storage:
        append(storage, *map(message, first))
        storage.database.conn.interrupted = statement  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            append(storage, message(1), message(2))
        kept = [*first, 1, 2] if statement == "COMMIT" else first
        assert read(storage) == [message(seq) for seq in kept]
        append(storage, message(3))
        (stream,) = storage.streams()
        assert (stream.count, stream.next_seq) == (len(kept) + 1, 4)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [message(seq) for seq in [*kept, 3]]


def test_an_io_error_where_one_message_is_stored_by_itself_leaves_the_storage_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_as(FailingConnection, monkeypatch)
    with SqliteQueueStorage(path) as storage:
        append(storage, message(0))
        append(storage, message(1))
        monkeypatch.setattr(FailingConnection, "failing", ("INSERT INTO message",))
        with pytest.raises(StorageUnavailable, match="disk fails"):
            append(storage, message(2))
        monkeypatch.setattr(FailingConnection, "failing", ())
        append(storage, message(3))
        (stream,) = storage.streams()
        assert (stream.count, stream.next_seq) == (3, 4)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [message(0), message(1), message(3)]


def test_one_message_whose_storing_is_interrupted_is_stored_and_the_storage_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_as(InterruptedConnection, monkeypatch)
    with SqliteQueueStorage(path) as storage:
        append(storage, message(0))
        storage.database.conn.interrupted = "INSERT INTO message"  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            append(storage, message(1))
        append(storage, message(2))
        (stream,) = storage.streams()
        assert (stream.count, stream.next_seq) == (3, 3)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [message(0), message(1), message(2)]


@pytest.mark.parametrize("statement", ["BEGIN", "UPDATE stream", "COMMIT"])
def test_a_file_whose_closing_is_interrupted_is_let_go_of_and_keeps_everything(
    path: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_file, "BUSY_S", 0.1)
    connect_as(InterruptedConnection, monkeypatch)
    storage = SqliteQueueStorage(path)
    append(storage, message(0))
    append(storage, message(1))
    storage.database.conn.interrupted = statement  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        storage.close()
    assert not path.with_name("queue.db-wal").exists()
    with SqliteQueueStorage(path) as again:
        assert read(again) == [message(0), message(1)]
        append(again, message(2))


@pytest.mark.parametrize(("code", "error"), [(errno.EWOULDBLOCK, StorageLocked), (errno.ENOLCK, StorageError)])
def test_a_lock_that_can_not_be_had_is_not_taken_for_another_owner(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[StorageError]
) -> None:
    def lock_file(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner_lock, "lock_file", lock_file)
    with pytest.raises(StorageError) as raised:
        SqliteQueueStorage(path)
    assert type(raised.value) is error


def test_a_protocol_of_locks_that_fails_is_not_taken_for_damage(path: Path) -> None:
    failure = sqlite3.OperationalError("locking protocol")
    failure.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL
    assert type(Failures(path).translate(failure)) is StorageUnavailable


def test_a_database_that_another_program_has_locked_is_reported_and_used_again_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_file, "BUSY_S", 0.1)
    with SqliteQueueStorage(path) as storage:
        append(storage, message(0))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable, match="locked by another program"):
            append(storage, message(1))
        assert read(storage) == [message(0)]
        other.execute("ROLLBACK")
        other.close()
        append(storage, message(1))
        assert read(storage) == [message(0), message(1)]


def test_closing_does_not_wait_for_another_program_that_has_locked_the_database(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_file, "BUSY_S", 10 * DEADLINE_S)
    storage = SqliteQueueStorage(path)
    append(storage, message(0))
    append(storage, message(1))
    closing = threading.Thread(target=storage.close)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        closing.start()
        closing.join(DEADLINE_S)
        closed = not closing.is_alive()
        other.execute("ROLLBACK")
    closing.join()
    assert closed
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [message(0), message(1)]


# -- Rights ---------------------------------------------------------------------------------------------------

_AS_NOBODY = """
import json, os, sys
from netcomm_sqlite import SqliteQueueStorage
from netcomm.errors import StorageError
from netcomm.storage import Append, StoredMessage
os.setgid(65534)
os.setuid(65534)
try:
    with SqliteQueueStorage(sys.argv[1], read_only=len(sys.argv) > 2) as storage:
        found = len(storage.read("receiver", 0, 10, 1000))
        if len(sys.argv) == 2:
            storage.append([Append("receiver", 1, [StoredMessage(9, bytes(16), b"", 0.0, None)])])
    print(json.dumps(["fine", found]))
except StorageError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def as_nobody(path: Path, *options: str) -> tuple[str, object]:
    """Open a file with no rights but those of everybody."""
    for folder in path.parents[1:]:  # not its own: that one is a matter of the test
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(path), *options], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kind, text = json.loads(done.stdout)
    return kind, text


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A file with a message in it, in a folder of its own."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with SqliteQueueStorage(folder / "queue.db") as storage:
        append(storage, message(0))
    return folder / "queue.db"


@only_root
@pytest.mark.parametrize("what", ["file", "folder", "all"])
def test_a_file_or_folder_without_the_right_to_write_is_reported(stored: Path, what: str) -> None:
    lock = stored.with_name("queue.db-lock")
    stored.chmod(0o444 if what in ("file", "all") else 0o666)
    lock.chmod(0o444 if what == "all" else 0o666)
    stored.parent.chmod(0o755 if what in ("folder", "all") else 0o777)
    kind, text = as_nobody(stored)
    assert kind == "StorageError", text
    assert "queue.db" in str(text)
    assert "permission" in str(text).lower()
    with SqliteQueueStorage(stored) as storage:
        assert read(storage) == [message(0)]


@only_root
def test_a_look_needs_no_right_to_write_to_a_file_that_was_closed(stored: Path) -> None:
    stored.chmod(0o444)
    stored.parent.chmod(0o755)
    kind, text = as_nobody(stored, "read-only")
    # SQLite can't look at a file in WAL mode where it can make no index beside it; then the text has to say so.
    assert (kind, text) == ("fine", 1) or (kind == "StorageError" and "queue.db" in str(text))


@only_root
def test_a_file_without_the_right_to_read_is_reported(stored: Path) -> None:
    stored.chmod(0o600)
    stored.with_name("queue.db-lock").chmod(0o666)
    stored.parent.chmod(0o777)
    for options in ((), ("read-only",)):
        kind, text = as_nobody(stored, *options)
        assert kind == "StorageError", text
        assert "queue.db" in str(text)
    stored.parent.chmod(0o700)
    for options in ((), ("read-only",)):
        kind, text = as_nobody(stored, *options)
        assert kind == "StorageError", text


@only_root
def test_a_file_system_that_is_mounted_for_reading_only_is_reported(tmp_path: Path, disk: Path) -> None:
    path = disk / "queue.db"
    with SqliteQueueStorage(path) as storage:
        append(storage, message(0))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StorageError, match=r"queue\.db") as caught:
        SqliteQueueStorage(path)
    assert not isinstance(caught.value, StorageCorrupt)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [message(0)]
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=False)


def test_a_path_that_cannot_be_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    paths = ["missing/queue.db", ".", "x" * 300, "loop", "file/queue.db"]
    for name in paths:
        for read_only in (False, True):
            with pytest.raises(StorageError):
                SqliteQueueStorage(tmp_path / name, read_only=read_only)


# -- Damage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as an owner leaves it: messages of all sizes to two receivers, some deleted, and positions."""
    path = tmp_path_factory.mktemp("whole") / "queue.db"
    with SqliteQueueStorage(path, durability="process") as storage:
        for ident in IDENTS:
            append(
                storage, *[message(seq, 100 + seq * 37 % 3000, 1e9 if seq % 3 else None) for seq in SEQS], ident=ident
            )
            storage.delete_below(ident, KEPT.start)
            storage.mark_sent(ident, 77)
        storage.store_positions(POSITIONS)
    return path


IDENTS = ["receiver", "grüße"]
SEQS = range(60)
KEPT = range(10, 60)
POSITIONS = {f"sender {number}": Position(2**63 + number, 2**40 + number) for number in range(20)}


def expected() -> list[StoredMessage]:
    return [varied_message(seq) for seq in KEPT]


def varied_message(seq: int) -> StoredMessage:
    return message(seq, 100 + seq * 37 % 3000, 1e9 if seq % 3 else None)


def examine(path: Path, read_only: bool) -> None:
    """Open a file and read everything: it must be what `whole` has."""
    with SqliteQueueStorage(path, durability="process", read_only=read_only) as storage:
        streams = {stream.ident: stream for stream in storage.streams()}
        assert set(streams) == set(IDENTS)
        for ident in IDENTS:
            stream = streams[ident]
            assert (stream.epoch, stream.next_seq, stream.sent_below, stream.count) == (EPOCH, 60, 77, len(KEPT))
            assert read(storage, ident) == expected()
        assert storage.positions() == POSITIONS


def outcome(path: Path, read_only: bool) -> str:
    """What became of a damaged file: "exact", "corrupt", or what is wrong with netcomm."""
    try:
        examine(path, read_only)
    except StorageCorrupt as error:
        text = str(error)
        helpful = str(path) in text and "move the file away" in text and ".recover" in text
        return "corrupt" if helpful else f"no help: {text}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "exact"


def flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 1, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_early_bits(data: bytearray, chance: random.Random) -> None:
    """In the heads of pages, where it does the most harm."""
    page = chance.randrange(len(data) // 4096) * 4096
    data[page + chance.randrange(100 if chance.random() < 0.5 else 12)] ^= 1 << chance.randrange(8)


def blank_a_page(data: bytearray, chance: random.Random) -> None:
    page = chance.randrange(len(data) // 4096) * 4096
    data[page : page + 4096] = bytes(4096)


def swap_pages(data: bytearray, chance: random.Random) -> None:
    one, other = (chance.randrange(len(data) // 4096) * 4096 for _ in range(2))
    data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def truncate_to_a_page(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data) // 4096) * 4096 :]


@pytest.mark.parametrize("damage", [flip_bits, flip_early_bits, blank_a_page, swap_pages, truncate, truncate_to_a_page])
def test_a_damaged_file_reads_back_exactly_or_says_that_it_is_damaged(
    whole: Path, path: Path, damage: Callable[[bytearray, random.Random], None]
) -> None:
    original = whole.read_bytes()
    outcomes: dict[str, list[int]] = {"corrupt": [], "exact": []}
    with trials("damaged SQLite files") as tried:
        for seed in range(DAMAGES if damage in (flip_bits, truncate) else DAMAGES // 3):
            data = bytearray(original)
            damage(data, random.Random(seed))
            for left in path.parent.glob("queue.db*"):
                left.unlink()
            path.write_bytes(data)
            outcomes.setdefault(outcome(path, read_only=seed % 2 == 1), []).append(seed)
            tried.count += 1
        print(f"\n{damage.__name__}:", {kind: len(seeds) for kind, seeds in outcomes.items()})
        assert set(outcomes) == {"corrupt", "exact"}, f"seeds: { ({**outcomes, 'corrupt': ..., 'exact': ...}) }"
        assert outcomes["corrupt"]


# A message that was stored by itself counts itself until the storage is closed: the row of its stream does not.


def left_behind(path: Path, count: int) -> Path:
    """A file as a process leaves it that dies after it has stored so many messages, each by itself."""
    copy = path.parent / "left" / "queue.db"
    copy.parent.mkdir()
    with SqliteQueueStorage(path) as storage:
        for seq in range(count):
            append(storage, message(seq))
        for file in path.parent.glob("queue.db*"):
            if not file.name.endswith("-lock"):
                copy.with_name(file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.parametrize("count", [1, 2, 3, 256, 257, 258, 600])
def test_what_was_stored_by_itself_is_there_after_the_process_has_died(path: Path, count: int) -> None:
    copy = left_behind(path, count)
    with SqliteQueueStorage(copy, read_only=True) as storage:
        (stream,) = storage.streams()
        assert (stream.next_seq, stream.count, stream.size) == (count, count, 100 * count)
        assert read(storage) == [message(seq) for seq in range(count)]
    with SqliteQueueStorage(copy) as storage:
        (stream,) = storage.streams()
        assert (stream.next_seq, stream.count, stream.size) == (count, count, 100 * count)
        append(storage, message(count))
        storage.delete_below("receiver", 1)
        append(storage, message(count + 1))
        assert read(storage) == [message(seq) for seq in range(1, count + 2)]
    with SqliteQueueStorage(copy, read_only=True) as storage:
        assert storage.streams()[0].count == count + 1


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(statement).fetchall()


def test_a_storage_that_was_closed_counts_all_in_the_row_of_the_stream(path: Path) -> None:
    copy = left_behind(path, 10)
    count = "SELECT next_seq, count, size FROM stream"
    assert rows(path, count) == [(10, 10, 1000)]
    assert rows(copy, count) == [(1, 1, 100)]
    SqliteQueueStorage(copy).close()
    assert rows(copy, count) == [(10, 10, 1000)]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM message WHERE place = 3",
        "DELETE FROM message WHERE place = 1",
        "UPDATE message SET place = 5 WHERE place = 3",
        "UPDATE message SET id = id + 1 WHERE place = 9",
    ],
)
def test_what_is_missing_of_messages_that_count_themselves_is_damage(path: Path, damage: str) -> None:
    copy = left_behind(path, 10)
    with contextlib.closing(sqlite3.connect(copy)) as db:
        db.execute(damage)
        db.commit()
    with pytest.raises(StorageCorrupt), SqliteQueueStorage(copy) as storage:
        read(storage)


def test_damage_of_a_tail_number_is_found_when_the_message_is_read(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        for seq in range(3):
            append(storage, message(seq))
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE message SET place = 7 WHERE place = 2")
        db.commit()
    with SqliteQueueStorage(path) as storage, pytest.raises(StorageCorrupt, match="message 2 is not what"):
        read(storage)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("part", [-1, 0, 1, 2, 3, 4, 5])
def test_a_message_of_a_stream_that_there_is_not_is_damage(path: Path, part: int, read_only: bool) -> None:
    with SqliteQueueStorage(path) as storage:
        for ident in ("one", "two"):
            append(storage, message(0), ident=ident)
    size = PART_SIZE
    with contextlib.closing(sqlite3.connect(path)) as db:
        # Parts 2 and 4: there is room below the first, between them, and behind the last.
        for old, new, stream in ((2, 4, 2), (1, 2, 1)):
            checksum = part_checksum(new, stream, 0)
            db.execute("UPDATE part SET id = ?, checksum = ? WHERE id = ?", (new, checksum, old))
            db.execute("UPDATE message SET id = ? WHERE id = ?", (new * size, old * size))
        db.commit()
        SqliteQueueStorage(path, read_only=read_only).close()
        db.execute(
            "INSERT INTO message SELECT ?, place, size, uuid, queued_at, ttl, expires_at, data, checksum, envelope,"
            " state FROM message LIMIT 1",
            (part * size + 1,),
        )
        db.commit()
    with pytest.raises(StorageCorrupt):
        SqliteQueueStorage(path, read_only=read_only)


def test_a_file_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE mine (x)")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(StorageError, match="not a netcomm queue storage"):
        SqliteQueueStorage(path)
    assert path.read_bytes() == before
    path.write_text("a text\n" * 1000)
    with pytest.raises(StorageError, match="damaged"):
        SqliteQueueStorage(path)
    assert path.read_text() == "a text\n" * 1000


def test_a_peer_reports_a_message_that_is_damaged_and_does_not_deliver_it(path: Path) -> None:
    limits = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05)
    url = f"sqlite:///{path}"
    with SnakemqListener("receiver", "127.0.0.1", 0, limits=limits) as receiver:
        received: list[bytes] = []
        receiver.on_recv.add(lambda ident, data: received.append(data))
        with SqliteQueueStorage(path) as storage:
            append(storage, *[message(seq) for seq in range(10)])
        data = bytearray(path.read_bytes())
        data[data.index(message(5).data)] ^= 1
        path.write_bytes(data)
        errors: list[BaseException] = []
        with SnakemqConnector("sender", *receiver.address, storage=url, limits=limits) as peer:
            peer.on_error.add(errors.append)
            peer.flush(1)
            peer.terminate(0)
        assert message(5).data not in received
        assert any(isinstance(error, StorageCorrupt) and "damaged" in str(error) for error in errors)


# -- Migration ------------------------------------------------------------------------------------------------


def make_version_1(path: Path) -> None:
    """A file as the first schema had it: made by the first step alone, and filled by hand."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        schema.MIGRATIONS[0](Database(db))
        stream = Stream(1, "receiver", EPOCH, 20, 5, 20, sum(100 + seq for seq in range(20)))
        db.execute(
            "INSERT INTO stream (id, ident, epoch, next_seq, sent_below, count, size, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (1, "receiver", EPOCH, 20, 5, 20, stream.size, stream.checksum()),
        )
        for each in version_1_messages():
            db.execute(
                "INSERT INTO message (stream, seq, size, uuid, queued_at, ttl, data, checksum)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    1,
                    each.seq,
                    len(each.data),
                    each.uuid,
                    each.queued_at,
                    each.ttl,
                    each.data,
                    message_checksum(1, each),
                ),
            )
        db.execute("PRAGMA user_version = 1")
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")


def make_version_2(path: Path) -> None:
    """The same file, brought up to the second schema."""
    make_version_1(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        schema.MIGRATIONS[1](Database(db))
        db.execute("PRAGMA user_version = 2")


def version_1_messages() -> list[StoredMessage]:
    return [message(seq, 100 + seq, float(seq) if seq % 2 else None) for seq in range(20)]


@pytest.mark.parametrize("make", [make_version_1, make_version_2])
def test_migration_keeps_messages_and_finds_what_expires(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == version_1_messages()
        (stream,) = storage.streams()
        assert (stream.epoch, stream.next_seq, stream.sent_below, stream.count) == (EPOCH, 20, 5, 20)
        found, _ = storage.expired("receiver", 0, 1_700_000_000.0 + 10, 100)
        assert found == [each for each in version_1_messages() if each.ttl is not None and each.seq * 2 <= 10]
        append(storage, message(20))
        assert storage.database.conn.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [*version_1_messages(), message(20)]


def test_migration_keeps_messages_whose_seqs_are_far_apart(path: Path) -> None:
    make_version_1(path)
    far = [message(seq) for seq in (2**40, 2**40 + 1, 2**61)]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for each in far:
            db.execute(
                "INSERT INTO message (stream, seq, size, uuid, queued_at, data, checksum)"
                " VALUES (1, ?, 100, ?, ?, ?, ?)",
                (each.seq, each.uuid, each.queued_at, each.data, message_checksum(1, each)),
            )
        stream = Stream(1, "receiver", EPOCH, 2**61 + 1, 5, 23, sum(100 + seq for seq in range(20)) + 300)
        db.execute(
            "UPDATE stream SET next_seq = ?, count = ?, size = ?, checksum = ?",
            (stream.next_seq, stream.stored, stream.size, stream.checksum()),
        )
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == [*version_1_messages(), *far]
        assert storage.streams()[0].next_seq == 2**61 + 1
        append(storage, message(2**61 + 1))
        assert storage.read("receiver", 2**61, 10, 1 << 20) == [far[-1], message(2**61 + 1)]


def test_a_look_at_version_1_says_what_to_do_and_changes_nothing(path: Path) -> None:
    make_version_1(path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="brought up to date"):
        SqliteQueueStorage(path, read_only=True)
    assert path.read_bytes() == before


def test_a_migration_that_is_cut_short_begins_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_version_1(path)

    def half(db: Database) -> None:
        db.execute("ALTER TABLE message ADD COLUMN expires_at REAL")
        raise OSError(errno.EIO, "cut short")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (schema.MIGRATIONS[0], half))
        with pytest.raises(StorageError, match="cut short"):
            SqliteQueueStorage(path)
    with SqliteQueueStorage(path) as storage:
        assert read(storage) == version_1_messages()


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    SqliteQueueStorage(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
    for read_only in (False, True):
        with pytest.raises(StorageError, match="newer netcomm"):
            SqliteQueueStorage(path, read_only=read_only)
