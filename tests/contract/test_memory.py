"""The memory storage keeps the contract, but for what needs a place."""

from typing import Any

from netcomm.memory_storage import MemoryQueueStorage
from netcomm.storage import QueueStorage
from netcomm.testing import HostStorageContract


class TestMemory(HostStorageContract):
    has_place = False

    def open_storage(self, place: Any, read_only: bool = False) -> QueueStorage:
        return MemoryQueueStorage.from_url("memory:", read_only)
