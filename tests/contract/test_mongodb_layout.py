"""What version 2 of the layout says of a host opens unchanged, and version 1 becomes version 2.

The documents are as netcomm wrote them; only the dates are changed, to lie in the past. Parts had 40 bytes, not 8 MiB.
The owner ended without closing: the head has a journal, and is later than `host`. Rows 0 and 3 of `tasks`, and all of
`old`, are gone, but were not removed yet, nor has row 1 got its state; row 9 is debris of a step that failed.
"""

import itertools
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from bson.int64 import Int64
from pymongo import MongoClient

from netcomm.errors import StorageCorrupt
from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep, HostStorage
from netcomm.message import Stream
from netcomm.storage import Append, StoredMessage, StoredStream
from netcomm.testing.host_steps import BUS, all_rows, everything, streams
from netcomm_mongodb import MongoQueueStorage
from tests.contract import test_mongodb_format
from tests.contract.mongodb_server import mongodb_url, own_mongodb

__all__ = ["mongodb_url", "own_mongodb"]  # fixtures

_numbers = itertools.count(1)

_WRITTEN: dict[str, list[dict[str, Any]]] = {
    "meta": [
        {
            "_id": "head",
            "schema": 2,
            "store_id": b"\xe2\x00E\x81\xdb\x9cC\xc3[i\x9d\x13\xda\x07\xde\xb1",
            "incarnation": Int64(2),
            "checksum": 1356487906,
            "owner": "44935904aef5b10af9b22029c50118a2",
            "n": Int64(8),
            "streams": [
                {
                    "_id": {"ident": "bob", "stream": 5},
                    "epoch": Int64(5),
                    "next_seq": Int64(2),
                    "sent_below": Int64(0),
                    "floor": Int64(0),
                    "count": Int64(2),
                    "size": Int64(20),
                    "gone": [],
                    "gaps": [],
                    "version": Int64(8),
                    "checksum": Int64(3687036532),
                }
            ],
            "positions": [],
            "lease_s": 0.5,
            "owner_name": "process 1234 on host",
            "taken_at": datetime(2024, 11, 27, 16, 22, 14, 777000),
            "failed": [Int64(1), Int64(1099511627777), Int64(1099511627778), Int64(2199023255554)],
            "host": [
                {"_id": "log:old", "gone": True, "version": Int64(6), "checksum": 998584599},
                {
                    "_id": "log:empty",
                    "born": Int64(2199023255554),
                    "next_number": Int64(4611686018427387904),
                    "count": Int64(0),
                    "size": Int64(0),
                    "holes": [],
                    "changed": [],
                    "states": [],
                    "version": Int64(6),
                    "checksum": 1236881026,
                },
                {
                    "_id": "log:tasks",
                    "born": Int64(1099511627777),
                    "next_number": Int64(7),
                    "count": Int64(4),
                    "size": Int64(148),
                    "holes": [Int64(0), Int64(1), Int64(3), Int64(4)],
                    "changed": [Int64(1)],
                    "states": [b"again"],
                    "version": Int64(6),
                    "checksum": Int64(3304875190),
                },
                {"_id": "mark:old", "gone": True, "version": Int64(6), "checksum": 1242993401},
                {"_id": "mark:handed out", "number": Int64(7), "version": Int64(6), "checksum": 1729262369},
                {
                    "_id": "document:settings",
                    "content": "documents.0000020000000002.00000000",
                    "version": Int64(6),
                    "checksum": Int64(2549869308),
                },
                {"_id": "document:old", "gone": True, "version": Int64(6), "checksum": Int64(3236134509)},
                {
                    "_id": "position:5:bob",
                    "epoch": Int64(-5),
                    "next_seq": Int64(9),
                    "stored_at": 2.5,
                    "version": Int64(6),
                    "checksum": Int64(3726740462),
                },
                {"_id": "position:2:eve", "gone": True, "version": Int64(6), "checksum": Int64(3423848795)},
            ],
            "host_checksum": 275132908,
            "removals": [
                "4216c5c07db0ff9c0e63b59f",
                "documents.0000010000000001.00000000",
                "documents.0000010000000001.00000001",
            ],
            "step": Int64(2199023255554),
        },
        {
            "_id": "lease",
            "owner": "44935904aef5b10af9b22029c50118a2",
            "renewed_at": datetime(2024, 11, 27, 16, 22, 14, 790000),
        },
    ],
    "streams": [
        {
            "_id": "bob",
            "epoch": Int64(7),
            "next_seq": Int64(1),
            "sent_below": Int64(0),
            "floor": Int64(0),
            "count": Int64(1),
            "size": Int64(5),
            "gone": [],
            "gaps": [],
            "version": Int64(3),
            "checksum": 1971060235,
        }
    ],
    "positions": [],
    "messages": [
        {
            "_id": "0655c89506c6ada593695a43.0000000000000000",
            "uuid": b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            "queued_at": 1000.0,
            "ttl": None,
            "size": Int64(5),
            "data": b"plain",
            "parts": 0,
            "token": Int64(1),
            "attempt": Int64(1),
            "checksum": 318800228,
        },
        {
            "_id": "7eb999fd99336c30f4c63846.0000000000000000",
            "uuid": b"\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01",
            "queued_at": 1001.0,
            "ttl": 30.0,
            "size": Int64(11),
            "data": b"bus",
            "parts": 0,
            "token": Int64(2),
            "attempt": Int64(1),
            "checksum": 607260493,
            "stream": "7eb999fd99336c30f4c63846",
            "expires_at": 1031.0,
            "envelope": b"about it",
        },
        {
            "_id": "7eb999fd99336c30f4c63846.0000000000000001",
            "uuid": b"\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02\x02",
            "queued_at": 1002.0,
            "ttl": None,
            "size": Int64(9),
            "data": b"",
            "parts": 0,
            "token": Int64(2),
            "attempt": Int64(2),
            "checksum": Int64(4287390874),
            "envelope": b"only that",
        },
    ],
    "parts": [],
    "host": [
        {
            "_id": "document:old",
            "content": "documents.0000010000000001.00000001",
            "version": Int64(2),
            "checksum": 1031812310,
        },
        {
            "_id": "document:settings",
            "content": "documents.0000010000000001.00000000",
            "version": Int64(2),
            "checksum": Int64(3607622610),
        },
        {
            "_id": "log:old",
            "born": Int64(1099511627777),
            "next_number": Int64(1),
            "count": Int64(1),
            "size": Int64(12),
            "holes": [],
            "changed": [],
            "states": [],
            "version": Int64(2),
            "checksum": 1808458950,
        },
        {
            "_id": "log:tasks",
            "born": Int64(1099511627777),
            "next_number": Int64(4),
            "count": Int64(4),
            "size": Int64(48),
            "holes": [],
            "changed": [],
            "states": [],
            "version": Int64(2),
            "checksum": Int64(2481947793),
        },
        {"_id": "mark:handed out", "number": Int64(3), "version": Int64(2), "checksum": Int64(4143845605)},
        {"_id": "mark:old", "number": Int64(1), "version": Int64(2), "checksum": Int64(2666564633)},
        {
            "_id": "position:2:eve",
            "epoch": Int64(1),
            "next_seq": Int64(1),
            "stored_at": 1.0,
            "version": Int64(2),
            "checksum": Int64(2596277774),
        },
        {
            "_id": "position:5:bob",
            "epoch": Int64(-5),
            "next_seq": Int64(4),
            "stored_at": 1.5,
            "version": Int64(2),
            "checksum": 2119950279,
        },
    ],
    "rows": [
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000000",
            "stored_at": 1000.0,
            "size": Int64(12),
            "envelope": b"envelope",
            "data": b"data",
            "parts": 0,
            "step": Int64(1099511627777),
            "checksum": Int64(4201202035),
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": Int64(2560896264),
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000001",
            "stored_at": 1001.0,
            "size": Int64(12),
            "envelope": b"envelope",
            "data": b"data",
            "parts": 0,
            "step": Int64(1099511627777),
            "checksum": Int64(3869374333),
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": 2003191350,
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000002",
            "stored_at": 1002.0,
            "size": Int64(12),
            "envelope": b"envelope",
            "data": b"data",
            "parts": 0,
            "step": Int64(1099511627777),
            "checksum": Int64(3287821679),
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": Int64(2622618933),
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000003",
            "stored_at": 1003.0,
            "size": Int64(12),
            "envelope": b"envelope",
            "data": b"data",
            "parts": 0,
            "step": Int64(1099511627777),
            "checksum": Int64(3744504673),
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": 1939052043,
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000004",
            "stored_at": 1004.0,
            "size": Int64(112),
            "envelope": b"envelope",
            "data": b"",
            "parts": 3,
            "step": Int64(2199023255554),
            "checksum": Int64(3147119332),
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": Int64(2437909874),
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000006",
            "stored_at": 1006.0,
            "size": Int64(12),
            "envelope": b"envelope",
            "data": b"data",
            "parts": 0,
            "step": Int64(2199023255554),
            "checksum": Int64(2967139671),
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": Int64(2512018767),
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000009",
            "stored_at": 1009.0,
            "size": Int64(14),
            "envelope": b"envelope",
            "data": b"debris",
            "parts": 0,
            "step": Int64(2199023255553),
            "checksum": Int64(3000438477),
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": 1689323202,
        },
        {
            "_id": "4216c5c07db0ff9c0e63b59f.0000000000000000",
            "stored_at": 1000.0,
            "size": Int64(12),
            "envelope": b"envelope",
            "data": b"data",
            "parts": 0,
            "step": Int64(1099511627777),
            "checksum": 157514849,
            "state": b"",
            "state_version": Int64(0),
            "state_checksum": Int64(2560896264),
        },
        {
            "_id": "documents.0000010000000001.00000000",
            "size": Int64(5),
            "data": b"first",
            "parts": 0,
            "step": Int64(1099511627777),
            "checksum": Int64(3953426825),
        },
        {
            "_id": "documents.0000010000000001.00000001",
            "size": Int64(1),
            "data": b"x",
            "parts": 0,
            "step": Int64(1099511627777),
            "checksum": 537131832,
        },
        {
            "_id": "documents.0000020000000002.00000000",
            "size": Int64(6),
            "data": b"second",
            "parts": 0,
            "step": Int64(2199023255554),
            "checksum": 210920159,
        },
    ],
    "row_parts": [
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000004.0000",
            "data": b"abcdefghijklmnopqrstuvwxyzabcdefghijklmn",
            "step": Int64(2199023255554),
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000004.0001",
            "data": b"opqrstuvwxyzabcdefghijklmnopqrstuvwxyzab",
            "step": Int64(2199023255554),
        },
        {
            "_id": "2e969a4ec50ab1648792041e.0000000000000004.0002",
            "data": b"cdefghijklmnopqrstuvwxyz",
            "step": Int64(2199023255554),
        },
    ],
}


def row(number: int, data: bytes = b"data", state: bytes = b"") -> HostRow:
    return HostRow(number, data, b"envelope", 1000.0 + number, state)


_TASKS = [row(1, state=b"again"), row(2), row(4, b"abcdefghijklmnopqrstuvwxyz" * 4), row(6)]
_KEPT = (
    {
        "tasks": HostLog(7, 4, 148, 1, 1001.0, 1006.0),
        "empty": HostLog(2**62, 0, 0, None, None, None),
    },
    {"tasks": _TASKS, "empty": []},
    {"handed out": 7},
    {"settings": b"second"},
    {("bob", BUS): HostPosition(2**64 - 5, 9, 2.5)},
)
_TO_BOB = [
    StoredMessage(0, bytes([1]) * 16, b"bus", 1001.0, 30.0, b"about it"),
    StoredMessage(1, bytes([2]) * 16, b"", 1002.0, None, b"only that"),
]
_STREAMS = {
    ("bob", Stream.DURABLE): StoredStream("bob", 7, 1, 0, 1, 5, 1000.0, None, 1000.0),
    ("bob", BUS): StoredStream("bob", 5, 2, 0, 2, 20, 1001.0, 1031.0, 1002.0, BUS),
}


@pytest.fixture(autouse=True)
def _quick_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """pymongo's threads look for their end this often."""
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.02)


@pytest.fixture
def prefix() -> str:
    return f"layout{next(_numbers)}_"


@pytest.fixture
def url(mongodb_url: str, prefix: str) -> str:
    return f"{mongodb_url}&netcomm_prefix={prefix}"


@pytest.fixture
def database(mongodb_url: str) -> Iterator[Any]:
    client: MongoClient[dict[str, Any]] = MongoClient(mongodb_url)
    with client:
        yield client.get_default_database()


def write(database: Any, prefix: str, written: dict[str, list[dict[str, Any]]]) -> None:
    for name, documents in written.items():
        if documents:
            database[prefix + name].insert_many(documents)
    order = [("stream", 1), ("expires_at", 1)]
    database[f"{prefix}messages"].create_index(order, name="by_expiry", sparse=True)


def assert_as_written(storage: HostStorage) -> None:
    assert everything(storage) == _KEPT
    assert streams(storage) == _STREAMS
    assert storage.read("bob", 0, 9, 99, stream=BUS) == _TO_BOB
    assert [message.data for message in storage.read("bob", 0, 9, 99)] == [b"plain"]


def test_a_reader_sees_what_was_written_and_changes_nothing(url: str, prefix: str, database: Any) -> None:
    write(database, prefix, _WRITTEN)
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert_as_written(look)
    for name, documents in _WRITTEN.items():
        assert list(database[prefix + name].find({}, sort=[("_id", 1)])) == documents


def test_an_owner_goes_on_from_what_was_written(url: str, prefix: str, database: Any) -> None:
    write(database, prefix, _WRITTEN)
    with MongoQueueStorage.from_url(url) as storage:
        assert_as_written(storage)
        storage.commit([HostStep(appended={"tasks": [row(9, b"new")]}, deleted={"tasks": [(2, 3)]})])
        assert all_rows(storage, "tasks") == [_TASKS[0], *_TASKS[2:], row(9, b"new")]
    with MongoQueueStorage.from_url(url) as storage:
        assert all_rows(storage, "tasks") == [_TASKS[0], *_TASKS[2:], row(9, b"new")]
        storage.commit([HostStep(dropped=["tasks", "empty"], documents={"settings": None})])
        assert everything(storage) == ({}, {}, {"handed out": 7}, {}, _KEPT[4])
    for name in ("rows", "row_parts"):
        assert database[prefix + name].count_documents({}) == 0


def test_a_storage_of_version_1_keeps_what_a_host_has(url: str, prefix: str, database: Any) -> None:
    write(database, prefix, test_mongodb_format._WRITTEN)
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert everything(look) == ({}, {}, {}, {}, {})
    assert database[f"{prefix}meta"].find_one({"_id": "head"})["schema"] == 1
    with MongoQueueStorage.from_url(url) as storage:
        # From now on, a netcomm that knows version 1 leaves it alone: it would not see these.
        assert database[f"{prefix}meta"].find_one({"_id": "head"})["schema"] == 2
        test_mongodb_format.assert_as_written(storage)
        storage.commit([HostStep(appended={"tasks": [row(0)]})])
        storage.append([Append("bob", 1, [StoredMessage(0, bytes(16), b"bus", 1000.0, None, b"about it")], BUS)])
    with MongoQueueStorage.from_url(url) as storage:
        assert all_rows(storage, "tasks") == [row(0)]
        assert storage.read("bob", 0, 9, 99, stream=BUS)[0].envelope == b"about it"
        assert storage.read("bob", 0, 100, 10**6) == test_mongodb_format._TO_BOB
        assert storage.positions() == test_mongodb_format._POSITIONS


_DAMAGES: list[tuple[str, str, dict[str, Any]]] = [
    ("meta", "head", {"step": 1}),
    ("meta", "head", {"failed": [1, 5]}),
    ("meta", "head", {"host": [{"_id": "log:tasks"}]}),
    ("meta", "head", {"host": [{"_id": "nonsense"}]}),
    ("host", "mark:other", {"number": 9}),
    ("rows", "ROW", {"data": b"dato"}),
    ("rows", "ROW", {"envelope": b""}),
    ("rows", "ROW", {"state": b"x"}),
    ("rows", "ROW", {"step": None}),
    ("rows", "CONTENT", {"data": b"x"}),
]


@pytest.mark.parametrize(("collection", "id", "change"), _DAMAGES)
def test_what_is_damaged_is_not_handed_out(
    url: str, prefix: str, database: Any, collection: str, id: str, change: dict[str, Any]
) -> None:
    with MongoQueueStorage.from_url(url) as storage:
        storage.commit([HostStep(marks={"other": 1}, appended={"tasks": [row(0)]}, documents={"settings": b"y"})])
    ids = [found["_id"] for found in database[f"{prefix}rows"].find({}, {"_id": 1}, sort=[("_id", 1)])]
    id = {"ROW": ids[0], "CONTENT": ids[1]}.get(id, id)
    assert database[prefix + collection].update_one({"_id": id}, {"$set": change}).matched_count == 1
    with pytest.raises(StorageCorrupt, match="is damaged"), MongoQueueStorage.from_url(url, read_only=True) as look:
        everything(look)
