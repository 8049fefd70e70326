"""Each storage agrees with a model of plain lists and dictionaries, whatever is called in whatever order.

hypothesis makes up the calls. It always makes up the same ones: a failure, which shows the calls that lead to it, is
replayed by running the test again.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from pymongo.errors import AutoReconnect

from netcomm.errors import StorageUnavailable
from netcomm.memory_storage import MemoryQueueStorage
from netcomm_mongodb import MongoQueueStorage
from netcomm_sqlite import SqliteQueueStorage
from tests.contract.host_machine import HostMachine, Sketch, sketches
from tests.contract.mongodb_server import mongodb_url, own_mongodb
from tests.contract.storage_machine import Draft, StorageMachine, batches

__all__ = ["mongodb_url", "own_mongodb"]  # fixtures


# It is not the calls that take long, but finding the fewest that fail; hypothesis gives up after 300 s.
pytestmark = pytest.mark.timeout(400)


def run(make: Callable[[], StorageMachine | HostMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        make,
        settings=settings(
            derandomize=True,
            database=None,
            deadline=None,
            print_blob=True,
            max_examples=examples,
            stateful_step_count=steps,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_memory() -> None:
    def make() -> StorageMachine:
        storage = MemoryQueueStorage()
        return StorageMachine(lambda read_only: storage, has_place=False)

    run(make, examples=60, steps=40)


def test_sqlite(tmp_path: Path) -> None:
    numbers = itertools.count()

    def make() -> StorageMachine:
        path = tmp_path / f"{next(numbers)}.db"
        # No power is cut here: nothing has to be waited for.
        return StorageMachine(lambda read_only: SqliteQueueStorage(path, durability="process", read_only=read_only))

    run(make, examples=60, steps=40)


def test_what_a_host_keeps_in_memory() -> None:
    def make() -> HostMachine:
        storage = MemoryQueueStorage()
        return HostMachine(lambda read_only: storage, has_place=False)

    run(make, examples=60, steps=40)


def test_what_a_host_keeps_in_a_file(tmp_path: Path) -> None:
    numbers = itertools.count()

    def opens(path: Path, read_only: bool) -> SqliteQueueStorage:
        return SqliteQueueStorage(path, durability="process", read_only=read_only)

    def make() -> HostMachine:
        path = tmp_path / f"{next(numbers)}.db"

        def die() -> Callable[[bool], SqliteQueueStorage]:
            """A dead process leaves the file and its log as they are."""
            nonlocal path
            left = tmp_path / f"{next(numbers)}.db"
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{path}{suffix}", f"{left}{suffix}")
            path = left
            return lambda read_only: opens(left, read_only)

        return HostMachine(lambda read_only: opens(path, read_only), die=die)

    run(make, examples=60, steps=40)


class LostAnswer:
    """A collection of which each change fails, before or after the server has made it."""

    def __init__(self, collection: Any, is_made: bool) -> None:
        self._collection = collection
        self._is_made = is_made

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._collection, name)
        if name not in ("update_one", "insert_many"):
            return method

        def change(*arguments: Any, **options: Any) -> None:
            if self._is_made:
                method(*arguments, **options)
            raise AutoReconnect("the answer got lost")

        return change


class MongodbMachine(StorageMachine):
    """With appends whose answer gets lost."""

    @rule(found=batches, again=st.booleans(), is_made=st.booleans())
    def append_without_answer(self, found: list[Draft], again: bool, is_made: bool) -> None:
        storage: Any = self.storage
        batch = self.batch_of(found, again)
        connection = storage._connection
        collection = connection.meta
        connection.meta = LostAnswer(collection, is_made)
        try:
            with pytest.raises(StorageUnavailable):
                storage.append(batch)
        finally:
            connection.meta = collection

    @precondition(lambda self: self.has_place)
    @rule()
    def look_from_elsewhere(self) -> None:
        self.storage.append([])  # until the owner's next change, others may see what it could not be sure of
        super().look_from_elsewhere()


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes thousands of messages, or large ones, takes a few here."""
    for name, value in {
        "documents._PART_BYTES": 30,
        "garbage._JOURNAL_ENTRIES": 2,
        "garbage._LATE_DELETES": 4,
        "messages._DELETE_SLICE": 3,
        "messages._MAX_GAPS": 3,
        "storage._POSITIONS_SLICE": 2,
        "garbage._SINGLE_DELETES": 3,
        "bulk._SLICE": 3,
        "rows._FEW": 2,
        "row_reader._READ_AHEAD": 4,
        "sweeper._JOURNAL_RECORDS": 3,
        "sweeper._WAITING": 4,
        "sweeper._FAILED": 2,
        "sweeper._AGE": 5,
        "sweeper._LOGS": 1,
    }.items():
        monkeypatch.setattr(f"netcomm_mongodb.{name}", value)
    # pymongo's threads look for their end this often.
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.02)


@pytest.mark.usefixtures("_small_steps")
def test_mongodb(mongodb_url: str) -> None:
    numbers = itertools.count()

    def make() -> StorageMachine:
        # With a long lease, its thread does nothing: the order of things is that of the calls.
        url = f"{mongodb_url}&netcomm_prefix=stateful{next(numbers)}_&netcomm_lease_s=3600"
        return MongodbMachine(lambda read_only: MongoQueueStorage.from_url(url, read_only))

    run(make, examples=25, steps=30)


class MongodbHostMachine(HostMachine):
    """With steps whose answers get lost."""

    @rule(
        found=st.lists(sketches, min_size=1, max_size=2),
        where=st.sampled_from(["meta", "rows"]),
        is_made=st.booleans(),
        then=st.sampled_from(["again", "nothing", "death"]),
    )
    def commit_without_answer(self, found: list[Sketch], where: str, is_made: bool, then: str) -> None:
        storage: Any = self.storage
        steps = self.steps_of(found)
        connection = storage._connection
        collection = getattr(connection, where)
        setattr(connection, where, LostAnswer(collection, is_made))
        try:
            storage.commit(steps)
            raised = False
        except StorageUnavailable:
            raised = True
        finally:
            setattr(connection, where, collection)
        assert raised or where == "rows"
        self.last = steps
        if then == "nothing" and raised:
            self.last = []
            self.both_keep_the_same()
            storage.commit([])  # until the owner's next change, others may see what it could not be sure of
            return
        if not raised or (then == "death" and where == "meta" and is_made):
            self.model.commit(steps)
        if then == "death":
            self.die_and_open()
            self.both_keep_the_same()
        if raised:
            self.commit_again()


@pytest.mark.usefixtures("_small_steps")
def test_what_a_host_keeps_in_mongodb(mongodb_url: str) -> None:
    numbers = itertools.count()

    def make() -> HostMachine:
        url = f"{mongodb_url}&netcomm_prefix=host{next(numbers)}_&netcomm_lease_s=3600"
        opened: list[Any] = []

        def opens(read_only: bool) -> MongoQueueStorage:
            opened.append(MongoQueueStorage.from_url(url, read_only))
            return opened[-1]

        def die() -> Callable[[bool], MongoQueueStorage]:
            """What a dead process leaves, once its lease is over."""
            storage = next(storage for storage in reversed(opened) if not storage._read_only)
            storage._connection.meta.update_one({"_id": "head"}, {"$set": {"owner": None}})
            storage._owner.stop()
            storage._closed = True
            storage._connection.close()
            return opens

        return MongodbHostMachine(opens, die=die)

    run(make, examples=25, steps=30)
