"""The MongoDB storage keeps the contract, and its own promises."""

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from netcomm.errors import ConfigurationError, StorageCorrupt, StorageError, StorageLocked, StorageUnavailable
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream
from netcomm.storage_url import open_storage
from netcomm.testing import HostStorageContract
from netcomm_mongodb import MongoQueueStorage
from tests.contract.mongodb_server import mongodb_url, own_mongodb

__all__ = ["mongodb_url", "own_mongodb"]  # fixtures

_numbers = itertools.count(1)


def message(seq: int, data: bytes = b"data", ttl: float | None = None) -> StoredMessage:
    return StoredMessage(seq, seq.to_bytes(16), data, 1000.0 + seq, ttl)


@pytest.fixture(autouse=True)
def _quick_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """pymongo's threads look for their end this often; the rest of the driver's timing matters to no test here."""
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.02)


@pytest.fixture
def url(mongodb_url: str) -> str:
    """The URL of a storage of the test's own."""
    return f"{mongodb_url}&netcomm_prefix=test{next(_numbers)}_"


@pytest.fixture
def database(url: str) -> Iterator[Callable[[str], Any]]:
    """The collections of the storage at `url`, by their names without prefix."""
    server, _, options = url.partition("?")
    prefix = options.rpartition("netcomm_prefix=")[2]
    client: MongoClient[dict[str, Any]] = MongoClient(server)
    with client:
        found: Database[dict[str, Any]] = client.get_default_database()
        yield lambda name: found[prefix + name]


class TestMongodb(HostStorageContract):
    def open_storage(self, place: str, read_only: bool = False) -> QueueStorage:
        return MongoQueueStorage.from_url(place, read_only)

    @pytest.fixture
    def place(self, url: str) -> str:
        return url


def test_the_url_chooses_the_place(mongodb_url: str) -> None:
    server, _, _ = mongodb_url.rpartition("/")
    place = mongodb_url.partition("?")[0]
    urls = [f"{place}?netcomm_prefix=one_", f"{place}?netcomm_prefix=two.", place, f"{place}_2"]
    opened = [MongoQueueStorage.from_url(url) for url in urls]
    try:
        assert len({storage.store_id for storage in opened}) == len(urls)
    finally:
        for storage in opened:
            storage.close()
        with MongoClient(server) as client:
            client.drop_database(place.rpartition("/")[2] + "_2")


def test_pymongos_options_pass_through_the_url(url: str) -> None:
    storage = MongoQueueStorage.from_url(f"{url}&retryWrites=false&w=1&heartbeatFrequencyMS=12345")
    with storage, warnings.catch_warnings():
        warnings.simplefilter("error")
        storage.append([Append("bob", 1, [message(0)])])
        assert storage.read("bob", 0, 10, 10) == [message(0)]


_UNUSABLE = [
    "mongodb://localhost/db?netcomm_prefx=a",
    "mongodb://localhost/db?netcomm_prefix=%24x",
    "mongodb://localhost/db?netcomm_prefix=system.x",
    "mongodb://localhost/db?netcomm_lease_s=soon",
    "mongodb://localhost/db?netcomm_lease_s=0",
    "mongodb://localhost/db?netcomm_lease_s=nan",
    "mongodb://localhost/d%20b",
    "mongodb://localhost/a.b",
    "mongodb://localhost:99999/db",
    "mongodb://localhost:port/db",
    "mongodb:///db",
    "mongodb:db",
    "mongodb://user:secret:more@localhost/db",
]


@pytest.mark.parametrize("url", _UNUSABLE)
@pytest.mark.filterwarnings("error")
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MongoQueueStorage.from_url(url)
    assert "secret" not in str(caught.value)


def test_no_text_shows_the_password() -> None:
    with pytest.raises(StorageUnavailable) as caught:
        MongoQueueStorage.from_url("mongodb://user:secret@127.0.0.1:1/db?serverSelectionTimeoutMS=50")
    assert "127.0.0.1:1/db" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_open_storage_finds_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("mongodb", "netcomm_mongodb:MongoQueueStorage", "netcomm.storage")
    monkeypatch.setattr("netcomm.storage_url._entry_points", lambda: [point])
    with open_storage(url) as storage:
        assert isinstance(storage, MongoQueueStorage)


def test_a_look_at_a_place_without_a_storage_makes_none(url: str, database: Callable[[str], Any]) -> None:
    with pytest.raises(StorageError, match="no queue storage"):
        MongoQueueStorage.from_url(url, read_only=True)
    assert database("meta").find_one({}) is None


def test_who_is_locked_out_learns_by_whom(url: str) -> None:
    with MongoQueueStorage.from_url(url), pytest.raises(StorageLocked, match=r"process \d+ on .*netcomm_prefix"):
        MongoQueueStorage.from_url(url)


def test_owners_that_open_at_once_exclude_each_other(url: str) -> None:
    """FerretDB's updates are not atomic; so they come one shortly after the other."""
    barrier = threading.Barrier(4)
    gate = threading.Lock()
    opened: list[MongoQueueStorage] = []
    failures: list[BaseException] = []

    def work() -> None:
        barrier.wait(10)
        with gate:
            try:
                opened.append(MongoQueueStorage.from_url(url))
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for storage in opened:
        storage.close()
    assert len(opened) == 1
    assert [type(failure) for failure in failures] == [StorageLocked] * 3


@pytest.mark.parametrize("size", [8 * 2**20, 8 * 2**20 + 1, 17 * 2**20 + 17])
def test_a_message_may_be_larger_than_a_document(url: str, database: Callable[[str], Any], size: int) -> None:
    large = message(1, bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    appended = [message(0), large, message(2)]
    storage = MongoQueueStorage.from_url(url)
    with storage:
        storage.append([Append("bob", 1, appended)])
        assert storage.streams()[0].size == size + 8
        assert storage.read("bob", 0, 10, 2**30) == appended
    with MongoQueueStorage.from_url(url) as storage:
        assert storage.read("bob", 1, 1, 1) == [large]
        storage.delete("bob", [1])
        assert storage.read("bob", 0, 10, 2**30) == [appended[0], appended[2]]
    assert database("parts").count_documents({}) == 0


def test_large_messages_that_have_arrived_leave_nothing(url: str, database: Callable[[str], Any]) -> None:
    with MongoQueueStorage.from_url(url) as storage:
        storage.append([Append("bob", 1, [message(0, b"x" * 9 * 2**20), message(1)])])
        assert database("parts").count_documents({}) == 2
        storage.delete_below("bob", 2)
    assert database("parts").count_documents({}) == 0
    assert database("messages").count_documents({}) == 0


_DAMAGES: list[tuple[str, dict[str, Any]]] = [
    ("data", {"data": b"dato"}),
    ("uuid", {"uuid": b"x" * 16}),
    ("time", {"queued_at": "noon"}),
    ("type", {"data": None}),
    ("ttl", {"ttl": 6.0}),
]


def test_a_damaged_message_is_not_handed_out(url: str, database: Callable[[str], Any]) -> None:
    messages = database("messages")
    with MongoQueueStorage.from_url(url) as storage:
        storage.append([Append("bob", 1, [message(0, ttl=5.0), message(1)])])
        whole = messages.find_one({}, sort=[("_id", 1)])
        for what, change in _DAMAGES:
            messages.update_one({"_id": whole["_id"]}, {"$set": change})
            with pytest.raises(StorageCorrupt, match="is damaged"):
                pytest.fail(f"{what}: {storage.read('bob', 0, 10, 10)}")
            with pytest.raises(StorageCorrupt):
                pytest.fail(f"{what}: {storage.expired('bob', 0, 1e9, 10)}")
            assert storage.read("bob", 1, 10, 10) == [message(1)]
            messages.replace_one({"_id": whole["_id"]}, whole)
        assert storage.read("bob", 0, 10, 10) == [message(0, ttl=5.0), message(1)]


def test_a_message_without_one_of_its_parts_is_damaged(url: str, database: Callable[[str], Any]) -> None:
    with MongoQueueStorage.from_url(url) as storage:
        storage.append([Append("bob", 1, [message(0, b"x" * 9 * 2**20)])])
        database("parts").delete_one({})
        with pytest.raises(StorageCorrupt, match="is damaged"):
            storage.read("bob", 0, 10, 10)


def test_damaged_streams_and_identities_are_noticed(url: str, database: Callable[[str], Any]) -> None:
    with MongoQueueStorage.from_url(url) as storage:
        storage.append([Append("bob", 1, [message(0), message(1), message(2)])])
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("streams", "bob", {"next_seq": 1}),
        ("streams", "bob", {"count": 7}),
        ("streams", "bob", {"gaps": [0]}),
        ("streams", "bob", {"epoch": "x"}),
        ("meta", "head", {"store_id": b"x" * 16}),
        ("meta", "head", {"incarnation": 0}),
        ("meta", "head", {"n": None}),
        ("meta", "head", {"streams": [{"_id": "bob"}]}),
    ]
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        for collection, name, change in changes:
            whole = database(collection).find_one({"_id": name})
            database(collection).update_one({"_id": name}, {"$set": change})
            with pytest.raises(StorageCorrupt, match="is damaged"):
                pytest.fail(f"{change}: {look.streams()}")
            database(collection).replace_one({"_id": name}, whole)
        assert look.streams()[0].count == 3
    database("streams").update_one({}, {"$set": {"count": 2}})
    with pytest.raises(StorageCorrupt, match="is damaged"):
        MongoQueueStorage.from_url(url)
    database("streams").update_one({}, {"$set": {"count": 3}})
    MongoQueueStorage.from_url(url).close()


def test_a_damaged_position_is_noticed(url: str, database: Callable[[str], Any]) -> None:
    with MongoQueueStorage.from_url(url) as storage:
        storage.store_positions({"bob": Position(1, 2)})
    database("positions").update_one({}, {"$set": {"next_seq": 3}})
    with MongoQueueStorage.from_url(url) as storage, pytest.raises(StorageCorrupt):
        storage.positions()


def test_a_storage_of_a_newer_netcomm_is_left_alone(url: str, database: Callable[[str], Any]) -> None:
    MongoQueueStorage.from_url(url).close()
    database("meta").update_one({"_id": "head"}, {"$set": {"schema": 3}})
    before = database("meta").find_one({"_id": "head"})
    with pytest.raises(StorageError, match="newer netcomm"):
        MongoQueueStorage.from_url(url)
    assert database("meta").find_one({"_id": "head"}) == before


def test_a_storage_that_vanishes_is_noticed(url: str, database: Callable[[str], Any]) -> None:
    storage = MongoQueueStorage.from_url(url)
    storage.append([Append("bob", 1, [message(0)])])
    database("meta").delete_many({})
    with pytest.raises(StorageError, match="no queue storage"):
        storage.append([Append("bob", 1, [message(1)])])
    with pytest.raises(StorageError, match="no queue storage"):
        storage.close()


def _debris(stream_of: dict[str, Any], seq: int, token: int) -> dict[str, Any]:
    """What an append leaves that never came to its end."""
    key = stream_of["_id"].partition(".")[0]
    return {**stream_of, "_id": f"{key}.{seq:016x}", "token": token, "attempt": 99, "size": 4, "data": b"debr"}


@pytest.mark.parametrize("reopened", [False, True])
def test_debris_is_never_seen_nor_counted(url: str, database: Callable[[str], Any], reopened: bool) -> None:
    storage = MongoQueueStorage.from_url(url)
    storage.append([Append("bob", 1, [message(0, ttl=1.0), message(1)])])
    messages = database("messages")
    sample = messages.find_one({}, sort=[("_id", 1)])
    messages.insert_many([_debris(sample, seq, token=0) for seq in range(2, 8)])
    if reopened:
        storage.close()
        storage = MongoQueueStorage.from_url(url)
    with storage, MongoQueueStorage.from_url(url, read_only=True) as look:
        assert storage.read("bob", 0, 10, 1000) == look.read("bob", 0, 10, 1000) == [message(0, ttl=1.0), message(1)]
        # Seqs 2, 3 and 6 are passed over, as netcomm does after a failure; 4 and 5 are used again.
        appended = [message(4, b"four"), message(5, b"five", ttl=9.0)]
        storage.append([Append("bob", 1, appended)])
        storage.append([Append("bob", 1, [message(7, b"seven")])])
        messages.insert_many([_debris(sample, seq, token=storage.incarnation) for seq in (8, 9)])
        whole = [message(0, ttl=1.0), message(1), *appended, message(7, b"seven")]
        summary = StoredStream("bob", 1, 8, 0, 5, 21, 1000.0, 1001.0, 1007.0)
        for seen in (storage, look):
            assert seen.read("bob", 0, 10, 1000) == whole
            assert seen.read("bob", 2, 2, 1000) == appended
            assert seen.expired("bob", 0, 1e9, 10) == ([whole[0], whole[3]], None)
            assert seen.streams() == [summary]
        storage.delete("bob", [2, 3, 6, 8])
        assert storage.streams() == [summary]
        storage.delete_below("bob", 6)
        assert storage.streams() == [StoredStream("bob", 1, 8, 0, 1, 5, 1007.0, None, 1007.0)]
        assert storage.read("bob", 0, 10, 1000) == [message(7, b"seven")]
        assert messages.count_documents({}) == 4  # 6 to 9
        storage.append([Append("bob", 1, [message(10)])])
        storage.delete_below("bob", 11)
    assert messages.count_documents({}) == 0


def test_an_owner_after_this_one_is_not_overwritten(url: str, database: Callable[[str], Any]) -> None:
    with MongoQueueStorage.from_url(url) as storage:
        storage.append([Append("bob", 1, [message(0)])])
        sample = database("messages").find_one({})
        later = _debris(sample, 1, token=storage.incarnation + 1)
        database("messages").insert_one(later)
        with pytest.raises(StorageUnavailable):
            storage.append([Append("bob", 1, [message(1)])])
        assert database("messages").find_one({"_id": later["_id"]}) == later


def test_many_gaps_are_kept_apart(url: str) -> None:
    appended = [message(3 * number) for number in range(130)]
    with MongoQueueStorage.from_url(url) as storage:
        for start in range(0, 130, 10):
            storage.append([Append("bob", 1, appended[start : start + 10])])
        assert storage.read("bob", 0, 1000, 10**6) == appended
        storage.delete_below("bob", 3 * 120)
        assert storage.streams()[0].count == 10
    with MongoQueueStorage.from_url(url) as storage:
        assert storage.read("bob", 0, 1000, 10**6) == appended[120:]


def test_what_an_owner_left_undone_is_done(url: str, database: Callable[[str], Any]) -> None:
    """A crash between the head's update and the removal of messages."""
    with MongoQueueStorage.from_url(url) as storage:
        storage.append([Append("bob", 1, [message(seq) for seq in range(10)])])
        removed = list(database("messages").find({}, sort=[("_id", 1)], limit=6))
        storage.delete("bob", [5])
        storage.delete_below("bob", 4)
        head_before = database("meta").find_one({"_id": "head"})
        assert storage.streams()[0].count == 5
        head = database("meta").find_one({"_id": "head"})
    # The head as it was, and the messages too.
    database("meta").replace_one({"_id": "head"}, {**head, "owner": None, "n": head["n"] + 10})
    database("messages").insert_many([document for document in removed if document["_id"][-1] in "01235"])
    assert [entry["gone"] for entry in head_before["streams"]] == [[5]]
    with MongoQueueStorage.from_url(url) as storage:
        assert storage.streams()[0].count == 5
        assert storage.read("bob", 0, 4, 10**6)[0].seq == 4
    left = [int(found["_id"].partition(".")[2], 16) for found in database("messages").find({}, {"_id": 1})]
    assert 5 in left  # its note was made good before the crash, and left the head
    assert not {0, 1, 2, 3} & set(left)
