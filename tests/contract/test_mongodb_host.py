"""What the MongoDB storage promises of a host's steps, beyond the contract: one case at a time."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, BulkWriteError

from netcomm.errors import StorageUnavailable
from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep
from netcomm.storage import Append, StoredMessage
from netcomm.testing.host_steps import BUS, NOW, all_rows, everything, numbers, row, rows
from netcomm_mongodb import MongoQueueStorage
from tests.contract.mongodb_server import mongodb_url, own_mongodb

__all__ = ["mongodb_url", "own_mongodb"]  # fixtures

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _quick_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """pymongo's threads look for their end this often."""
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.02)


@pytest.fixture
def prefix() -> str:
    return f"case{next(_numbers)}_"


@pytest.fixture
def url(mongodb_url: str, prefix: str) -> str:
    return f"{mongodb_url}&netcomm_prefix={prefix}&netcomm_lease_s=3600"


@pytest.fixture
def host(url: str) -> Iterator[MongoQueueStorage]:
    """A storage whose lease's thread does nothing: what is put off is done when the test says so."""
    with MongoQueueStorage.from_url(url) as storage:
        yield storage


@pytest.fixture
def database(mongodb_url: str, prefix: str) -> Iterator[Callable[[str], Any]]:
    """The collections of the storage, by their names without prefix."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongodb_url)
    with client:
        found = client.get_default_database()
        yield lambda name: found[prefix + name]


class Cut:
    """A collection whose next change fails; `late` makes it afterwards, however late."""

    def __init__(self, storage: MongoQueueStorage, name: str, method: str) -> None:
        self._connection: Any = storage._connection
        self._name = name
        self._method = method
        self._real = getattr(self._connection, name)
        self.late: Callable[[], object] = lambda: None
        setattr(self._connection, name, self)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name != self._method:
            return method

        def fail(*arguments: Any, **options: Any) -> None:
            setattr(self._connection, self._name, self._real)
            self.late = lambda: method(*arguments, **options)
            raise AutoReconnect("cut by the test")

        return fail


def collect_all(host: MongoQueueStorage) -> None:
    while host._owner._collect_garbage():
        pass


def test_rows_of_a_step_that_failed_may_come_late(
    host: MongoQueueStorage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come when the step was made again, and some of its rows were deleted, and removed."""
    monkeypatch.setattr("netcomm_mongodb.sweeper._WAITING", 1)
    host.commit([HostStep(next_numbers={"tasks": 0})])
    step = HostStep(appended={"tasks": rows(0, 1, 2)})
    cut = Cut(host, "rows", "insert_many")
    with pytest.raises(StorageUnavailable):
        host.commit([step])
    host.commit([step])
    host.commit([HostStep(deleted={"tasks": [(0, 2)]})])
    with pytest.raises(BulkWriteError):  # row 2 is there
        cut.late()
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert numbers(host, "tasks") == numbers(look, "tasks") == [2]
        assert host.logs() == look.logs() == {"tasks": HostLog(3, 1, 4, 2, NOW + 2, NOW + 2)}
        host.commit([HostStep(deleted={"tasks": [(0, 3)]})])
        assert host.logs() == look.logs() == {"tasks": HostLog(3, 0, 0, None, None, None)}


def test_a_step_in_doubt_is_undone_by_the_next_change_of_anything(host: MongoQueueStorage, url: str) -> None:
    host.commit([HostStep(appended={"tasks": rows(0)}, marks={"mark": 1})])
    before = everything(host)
    cut = Cut(host, "meta", "update_one")
    step = HostStep(
        appended={"tasks": rows(1)},
        deleted={"tasks": [(0, 1)]},
        marks={"mark": 2},
        documents={"document": b"x"},
        positions={("bob", BUS): HostPosition(1, 2, 1.0)},
    )
    with pytest.raises(StorageUnavailable):
        host.commit([step])
    cut.late()
    assert everything(host) == before
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert look.marks() == {"mark": 2}  # it was made
        host.append([Append("eve", 1, [StoredMessage(0, bytes(16), b"", 1.0, None)])])
        assert everything(look) == before
        host.commit([step])
        assert everything(look) == everything(host)
        assert look.marks() == {"mark": 2}
        assert numbers(look, "tasks") == [1]


def test_an_update_that_comes_late_changes_nothing(host: MongoQueueStorage) -> None:
    cut = Cut(host, "meta", "update_one")
    with pytest.raises(StorageUnavailable):
        host.commit([HostStep(marks={"mark": 1})])
    host.commit([HostStep(marks={"mark": 2})])
    cut.late()
    host.commit([HostStep(marks={"other": 1})])
    assert host.marks() == {"mark": 2, "other": 1}


def test_rows_are_not_replaced_while_their_step_is_in_doubt(host: MongoQueueStorage, url: str) -> None:
    """The process dies in the second try of a step whose first try was made."""
    host.commit([HostStep(next_numbers={"tasks": 0})])
    step = HostStep(appended={"tasks": rows(0, 1)})
    first = Cut(host, "meta", "update_one")
    with pytest.raises(StorageUnavailable):
        host.commit([step])
    first.late()
    Cut(host, "meta", "update_one")
    with pytest.raises(StorageUnavailable):
        host.commit([step])  # and no more
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert numbers(look, "tasks") == [0, 1]
    host.commit([step])
    assert numbers(host, "tasks") == [0, 1]


def test_what_a_log_says_is_gone_is_removed_before_it_leaves_the_journal(
    host: MongoQueueStorage, database: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.commit([HostStep(appended={"tasks": rows(0, 1, 2)})])
    monkeypatch.setattr("netcomm_mongodb.sweeper._JOURNAL_RECORDS", 3)
    host.commit([HostStep(deleted={"tasks": [(0, 2)]}, changed={"tasks": {2: b"state"}})])
    assert database("rows").count_documents({}) == 3  # that is put off
    host.commit([HostStep(marks={f"mark {number}": 1 for number in range(5)})])
    assert database("rows").count_documents({}) == 1
    assert database("rows").find_one({})["state"] == b"state"
    assert database("host").find_one({"_id": "log:tasks"})["holes"] == []


def test_a_state_that_comes_late_changes_nothing(
    host: MongoQueueStorage, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr("netcomm_mongodb.sweeper._WAITING", 1)
    host.commit([HostStep(appended={"tasks": rows(0)})])
    cut = Cut(host, "rows", "bulk_write")
    host.commit([HostStep(changed={"tasks": {0: b"first"}})])  # its sweep fails, and is put off
    assert all_rows(host, "tasks") == [row(0, state=b"first")]
    host.commit([HostStep(changed={"tasks": {0: b"second"}})])
    cut.late()
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert all_rows(host, "tasks") == all_rows(look, "tasks") == [row(0, state=b"second")]


def test_a_log_that_begins_anew_has_nothing_of_the_one_before(
    host: MongoQueueStorage, database: Callable[[str], Any]
) -> None:
    host.commit([HostStep(appended={"tasks": rows(0, 1, 2)})])
    cut = Cut(host, "rows", "delete_many")
    host.commit([HostStep(dropped=["tasks"], appended={"tasks": rows(1)})])
    assert numbers(host, "tasks") == [1]
    with pytest.raises(AutoReconnect):
        collect_all(host)
    collect_all(host)
    cut.late()  # the removal of the rows before
    assert numbers(host, "tasks") == [1]
    assert database("rows").count_documents({}) == 1


def test_debris_is_removed(host: MongoQueueStorage, database: Callable[[str], Any]) -> None:
    for number in range(3):
        cut = Cut(host, "meta", "update_one")
        with pytest.raises(StorageUnavailable):
            host.commit([HostStep(appended={f"log {number}": rows(0, 1)}, documents={"document": b"x"})])
        cut.late()
        host.append([])  # now it is undone
    assert database("rows").count_documents({}) == 9
    host.commit([HostStep(marks={"mark": 1})])
    collect_all(host)
    assert database("rows").count_documents({}) == 0


def test_failures_of_long_ago_are_forgotten(
    host: MongoQueueStorage, database: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm_mongodb.sweeper._FAILED", 4)
    for number in range(20):
        Cut(host, "meta", "update_one")
        with pytest.raises(StorageUnavailable):
            host.commit([HostStep(appended={"tasks": rows(number)})])
        host.commit([HostStep(marks={"mark": number})])
    host.commit([HostStep(marks={"mark": 100})])
    assert len(database("meta").find_one({"_id": "head"})["failed"]) <= 2 * 5
    assert host.logs() == {}
    host.commit([HostStep(appended={"tasks": rows(30)})])
    assert numbers(host, "tasks") == [30]


def test_what_is_left_of_forgotten_records_is_removed_in_the_end(
    host: MongoQueueStorage, database: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm_mongodb.sweeper._AGE", 20)
    monkeypatch.setattr("netcomm_mongodb.sweeper._JOURNAL_RECORDS", 2)
    host._owner._sweeper.load()
    for number in range(70):
        host.commit([HostStep(positions={(f"guest {number}", BUS): HostPosition(1, number, 1.0)})])
        host.commit([HostStep(positions={(f"guest {number}", BUS): None})])
    assert host.host_positions() == {}
    left = database("host").count_documents({})
    assert 0 < left < 45


def test_the_journal_of_a_host_stays_short(
    host: MongoQueueStorage, database: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm_mongodb.sweeper._JOURNAL_RECORDS", 5)
    for number in range(30):
        host.commit([HostStep(marks={f"mark {number}": number})])
    assert len(database("meta").find_one({"_id": "head"})["host"]) <= 6
    assert host.marks() == {f"mark {number}": number for number in range(30)}


def test_plain_appends_do_not_write_what_a_host_has(host: MongoQueueStorage) -> None:
    host.commit([HostStep(marks={f"mark {number}": number for number in range(50)})])
    host.append([Append("bob", 1, [StoredMessage(0, bytes(16), b"", 1.0, None)])])
    written: list[dict[str, Any]] = []
    connection: Any = host._connection
    real = connection.meta

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def update_one(self, which: Any, change: Any) -> Any:
            written.append(change["$set"])
            return real.update_one(which, change)

    connection.meta = Watched()
    host.append([Append("bob", 1, [StoredMessage(1, bytes(16), b"", 1.0, None)])])
    connection.meta = real
    assert [set(fields) for fields in written] == [{"n", "streams", "positions"}]


def test_rows_and_documents_may_have_parts(
    host: MongoQueueStorage, database: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm_mongodb.documents._PART_BYTES", 100)
    large = HostRow(0, bytes(range(256)) + b"x", b"envelope", 1.0, b"state")
    host.commit([HostStep(appended={"tasks": [large, row(1)]}, documents={"document": large.data})])
    assert all_rows(host, "tasks") == [large, row(1)]
    assert host.documents() == {"document": large.data}
    assert database("row_parts").count_documents({}) == 6
    host.commit([HostStep(deleted={"tasks": [(0, 1)]}, documents={"document": b""})])
    collect_all(host)
    assert all_rows(host, "tasks") == [row(1)]
    assert database("row_parts").count_documents({}) == 0
