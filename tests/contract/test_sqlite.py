"""The SQLite storage keeps the contract, and is not slowed by a backlog where it need not be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netcomm.storage import Append, QueueStorage, StoredMessage
from netcomm.testing import QueueStorageContract
from netcomm_sqlite import SqliteQueueStorage


class TestSqlite(QueueStorageContract):
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
