"""The SQLite storage keeps the contract."""

from pathlib import Path

import pytest

from netcomm.storage import QueueStorage
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
