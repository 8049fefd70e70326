"""A file that an earlier netcomm made opens, and nothing in it is lost.

Each dump in `files` is of one version of the schema, taken while the file had an owner. When the schema changes, a dump
of the new version joins them, and the old ones stay.
"""

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from netcomm import Limits, Message, SnakemqConnector, SnakemqListener
from netcomm.errors import StorageError
from netcomm.host_storage import HostPosition, HostRow, HostStep
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import Stream
from netcomm.storage import Append, Position, StoredMessage, StoredStream
from netcomm.testing.host_steps import everything
from netcomm_sqlite import SqliteQueueStorage, schema
from tests.faults.helpers import DEADLINE_S

DUMPS = sorted((Path(__file__).parent / "files").glob("sqlite_version_*.sql"))
FAR = 2**40  # seqs that lie so far apart are in different parts of the stream


def message(seq: int, ttl: float | None = None) -> StoredMessage:
    return StoredMessage(seq, bytes([seq % 256]) * 16, b"message %d" % seq, 1_700_000_000.0 + seq % 1000, ttl)


# The last three count themselves: the row of their stream does not tell of them yet.
TO_RECEIVER = [*map(message, (0, 2, 3, 4, FAR + 5, FAR + 6)), message(FAR + 7, 1e9), message(FAR + 8)]
TO_OTHER = [message(0), message(1, 60.0), message(2, 1e9)]
STREAMS = [
    StoredStream("receiver", 7, FAR + 9, 3, 8, 120, 1_700_000_000.0, 2_700_000_783.0, 1_700_000_784.0),
    StoredStream("other", 2**63 - 1, 3, 0, 3, 27, 1_700_000_000.0, 1_700_000_061.0, 1_700_000_002.0),
    StoredStream("empty", 9, 1, 0, 0, 0, None, None, None),
]
# From version 4 on: what a host keeps, and a stream of its bus.
HOST_STEPS = [
    HostStep(
        appended={"tasks": [HostRow(number, b"row %d" % number, b"envelope", 1.5) for number in (0, 1, FAR, FAR + 1)]},
        next_numbers={"älteres": 12},
        marks={"tasks": 2**62},
        documents={"queue/tasks": b"durable", "name": b""},
        positions={
            ("sender", Stream.BUS_DURABLE): HostPosition(2**64 - 1, 12, 1_700_000_000.25),
            ("älterer", Stream.BUS_VOLATILE): HostPosition(3, 2**63, 0.5),
        },
    ),
    HostStep(changed={"tasks": {FAR: b"attempt 2"}}, deleted={"tasks": [(1, 2)]}),
]
BUS = (("host", Stream.BUS_DURABLE), 11, [message(3)._replace(envelope=b"subject"), message(4)])
POSITIONS = {"sender": Position(2**64 - 1, 12), "älterer": Position(3, 2**63)}


@pytest.fixture(params=DUMPS, ids=lambda dump: dump.stem)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "queue.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(request.param.read_text(encoding="utf-8"))
    return path


def version_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        return version


def examine(storage: SqliteQueueStorage) -> None:
    assert storage.store_id == bytes.fromhex("08ff719a6c65f790759459b806064e05")
    assert [stream for stream in storage.streams() if stream.stream is Stream.DURABLE] == STREAMS
    assert storage.read("receiver", 0, 100, 1 << 20) == TO_RECEIVER
    assert storage.read("other", 0, 100, 1 << 20) == TO_OTHER
    assert storage.read("empty", 0, 100, 1 << 20) == []
    assert storage.expired("other", 0, 1_800_000_000.0, 100) == ([TO_OTHER[1]], 2_700_000_002.0)
    assert storage.positions() == POSITIONS


def test_a_look_reads_all_that_this_version_stored_and_refuses_older_files(path: Path) -> None:
    before = path.read_bytes()
    if version_of(path) < len(schema.MIGRATIONS):
        with pytest.raises(StorageError, match="opened once as its owner, it is brought up to date"):
            SqliteQueueStorage(path, read_only=True)
    else:
        with SqliteQueueStorage(path, read_only=True) as storage:
            examine(storage)
            assert storage.incarnation == 2
    assert path.read_bytes() == before


def test_a_file_that_was_brought_up_to_date_stays_so(path: Path) -> None:
    SqliteQueueStorage(path).close()
    assert version_of(path) == len(schema.MIGRATIONS)
    with SqliteQueueStorage(path, read_only=True) as storage:
        examine(storage)
    statements: list[str] = []
    with SqliteQueueStorage(path) as storage:
        storage.database.conn.set_trace_callback(statements.append)
        examine(storage)
        storage.commit([HostStep(appended={"new": [HostRow(0, b"row", b"", 1.0)]})])
        assert storage.rows("new", 0, 9, 99) == [HostRow(0, b"row", b"", 1.0)]
    assert not [statement for statement in statements if statement.startswith(("ALTER", "CREATE", "DROP"))]


def test_what_a_host_keeps_is_read(path: Path) -> None:
    had_hosts = version_of(path) >= 4
    with SqliteQueueStorage(path) as storage:
        if not had_hosts:
            assert everything(storage) == ({}, {}, {}, {}, {})
            storage.commit(HOST_STEPS)
            key, epoch, messages = BUS
            storage.append([Append(key[0], epoch, messages, key[1])])
    with SqliteQueueStorage(path) as storage, MemoryQueueStorage() as model:
        examine(storage)
        model.commit(HOST_STEPS)
        assert everything(storage) == everything(model)
        assert storage.read("host", 0, 9, 999, stream=Stream.BUS_DURABLE) == BUS[2]
        (found,) = [stream for stream in storage.streams() if stream.stream is Stream.BUS_DURABLE]
        assert (found.epoch, found.next_seq, found.count) == (11, 5, 2)


def test_an_owner_reads_all_that_an_earlier_version_stored_and_goes_on(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        examine(storage)
        assert storage.incarnation == 3
        storage.append([Append("receiver", 1, [message(FAR + 9)])])
        storage.append([Append("empty", 1, [message(1), message(2)]), Append("new", 5, [message(0)])])
        storage.delete("other", [1])
        storage.delete_below("receiver", 3)
        storage.store_positions({"sender": Position(1, 1)})
    with SqliteQueueStorage(path) as storage:
        assert storage.incarnation == 4
        assert storage.read("receiver", 0, 100, 1 << 20) == [*TO_RECEIVER[2:], message(FAR + 9)]
        assert storage.read("other", 0, 100, 1 << 20) == [message(0), message(2, 1e9)]
        streams = [stream for stream in storage.streams() if stream.stream is Stream.DURABLE]
        found = [(stream.ident, stream.epoch, stream.next_seq, stream.count) for stream in streams]
        assert found == [("receiver", 7, FAR + 10, 7), ("other", 2**63 - 1, 3, 2), ("empty", 9, 3, 2), ("new", 5, 1, 1)]
        assert storage.positions() == {**POSITIONS, "sender": Position(1, 1)}


def test_a_peer_delivers_what_an_earlier_version_stored(path: Path) -> None:
    limits = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05)
    received: list[Message] = []
    done = threading.Event()

    def receive(ident: str, message: Message) -> None:
        received.append(message)
        if message.data == TO_RECEIVER[-1].data:
            done.set()

    with SnakemqListener("receiver", "127.0.0.1", 0, limits=limits) as receiver:
        receiver.on_message.add(receive)
        with SnakemqConnector("sender", *receiver.address, storage=f"sqlite:///{path}", limits=limits):
            assert done.wait(DEADLINE_S)
    # Those below the mark may have been sent before.
    assert [(each.data, each.redelivered) for each in received] == [
        (each.data, each.seq < STREAMS[0].sent_below) for each in TO_RECEIVER
    ]
