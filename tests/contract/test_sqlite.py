"""The SQLite storage keeps the contract, and is not slowed by a backlog where it need not be."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netcomm.storage import Append, QueueStorage, StoredMessage
from netcomm.testing import HostStorageContract
from netcomm_sqlite import SqliteQueueStorage, open_file
from netcomm_sqlite.names import Names


class TestSqlite(HostStorageContract):
    def open_storage(self, place: Path, read_only: bool = False) -> QueueStorage:
        return SqliteQueueStorage(place, read_only=read_only)

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "queue.db"


class TestSqliteByUrl(TestSqlite):
    def open_storage(self, place: Path, read_only: bool = False) -> QueueStorage:
        return SqliteQueueStorage.from_url(f"sqlite:///{place}?durability=process", read_only)


# -- Costs ----------------------------------------------------------------------------------------------------


def steps(path: Path, count: int, action: Callable[[SqliteQueueStorage], Any]) -> int:
    """How many steps SQLite needs for something when so many messages are stored, of which all expire at 1000."""
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 1
        return 0

    with SqliteQueueStorage(path / f"{count}.db", durability="process") as storage:
        messages = [StoredMessage(seq, bytes(16), b"data", 0.0, 1000.0) for seq in range(count)]
        storage.append([Append("bob", 1, messages)])
        storage.database.conn.set_progress_handler(step, 1)
        action(storage)
        storage.database.conn.set_progress_handler(None, 1)
    return taken


def test_finding_a_few_expired_messages_takes_no_longer_when_many_have_expired(tmp_path: Path) -> None:
    def find(storage: SqliteQueueStorage) -> None:
        found, following = storage.expired("bob", 0, 2000.0, 10)
        assert (len(found), following) == (10, None)

    assert steps(tmp_path, 1000, find) == steps(tmp_path, 100, find) > 0


def test_the_owner_tells_of_its_streams_without_counting_their_messages(tmp_path: Path) -> None:
    def tell(storage: SqliteQueueStorage) -> None:
        (stream,) = storage.streams()
        assert stream.size == 4 * stream.count

    assert steps(tmp_path, 1000, tell) == steps(tmp_path, 100, tell) > 0


@pytest.mark.parametrize("read_only", [False, True])
def test_opening_reads_the_messages_of_each_stream_and_not_the_whole_table_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_only: bool
) -> None:
    statements: list[str] = []
    connect = open_file.connect

    def connect_traced(names: Names, read_only: bool) -> sqlite3.Connection:
        db = connect(names, read_only)
        db.set_trace_callback(statements.append)
        return db

    path = tmp_path / "queue.db"
    with SqliteQueueStorage(path) as storage:
        storage.append([Append(ident, 1, [StoredMessage(0, bytes(16), b"", 0.0, None)]) for ident in ("bob", "eve")])
    monkeypatch.setattr(open_file, "connect", connect_traced)
    with SqliteQueueStorage(path, read_only=read_only) as storage:
        looks = [statement for statement in statements if "FROM message" in statement]
        plans = [storage.database.conn.execute(f"EXPLAIN QUERY PLAN {look}").fetchall() for look in looks]
    assert sum("count(*)" in look for look in looks) == 2
    assert not [plan for plan in plans if "SCAN" in str(plan)]
