"""A storage that an earlier version wrote opens unchanged.

The documents are as netcomm wrote them when the plug-in was one module; only the dates are changed, to lie in the past.
Parts had 40 bytes, not 8 MiB. The owner ended without closing: the head has a journal, and is later than `streams` and
`positions`. Messages 0 and 7 to bob are gone, but were not removed yet; 9 is debris of an append that failed.
"""

import itertools
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from bson.int64 import Int64
from pymongo import MongoClient

from netcomm.errors import StorageLocked
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream
from netcomm_mongodb import MongoQueueStorage
from tests.contract.mongodb_server import mongodb_url, own_mongodb

__all__ = ["mongodb_url", "own_mongodb"]  # fixtures

_numbers = itertools.count(1)

_WRITTEN: dict[str, list[dict[str, Any]]] = {
    "meta": [
        {"_id": "clock", "now": datetime(2024, 11, 27, 16, 26, 30, 664000)},
        {
            "_id": "head",
            "schema": 1,
            "store_id": b"\x1e\xe9\xb5L\x9c\xa9\x8b*>\xfc\xb5\xe9\x7f40\x14",
            "incarnation": Int64(2),
            "checksum": 1525362716,
            "owner": "492f164584a971ee3bf42573d8eba05c",
            "n": Int64(12),
            "streams": [
                {
                    "_id": "eve",
                    "epoch": Int64(-5),
                    "next_seq": Int64(1),
                    "sent_below": Int64(1),
                    "floor": Int64(0),
                    "count": Int64(1),
                    "size": Int64(3),
                    "gone": [],
                    "gaps": [],
                    "version": Int64(10),
                    "checksum": Int64(3202972621),
                },
                {
                    "_id": "bob",
                    "epoch": Int64(5),
                    "next_seq": Int64(9),
                    "sent_below": Int64(6),
                    "floor": Int64(1),
                    "count": Int64(5),
                    "size": Int64(121),
                    "gone": [Int64(7)],
                    "gaps": [Int64(4), Int64(6)],
                    "version": Int64(11),
                    "checksum": 1250201845,
                },
            ],
            "positions": [
                {"_id": "kim", "epoch": Int64(7), "next_seq": Int64(15), "version": Int64(12), "checksum": 12729635}
            ],
            "lease_s": 0.5,
            "owner_name": "process 1234 on host",
            "taken_at": datetime(2024, 11, 27, 16, 26, 30, 541000),
        },
        {
            "_id": "lease",
            "owner": "492f164584a971ee3bf42573d8eba05c",
            "renewed_at": datetime(2024, 11, 27, 16, 26, 30, 545000),
        },
    ],
    "streams": [
        {
            "_id": "bob",
            "epoch": Int64(5),
            "next_seq": Int64(4),
            "sent_below": Int64(2),
            "floor": Int64(0),
            "count": Int64(4),
            "size": Int64(117),
            "gone": [],
            "gaps": [],
            "version": Int64(3),
            "checksum": Int64(3000225209),
        },
        {
            "_id": "eve",
            "epoch": Int64(9223372036854775807),
            "next_seq": Int64(1),
            "sent_below": Int64(0),
            "floor": Int64(0),
            "count": Int64(1),
            "size": Int64(3),
            "gone": [],
            "gaps": [],
            "version": Int64(2),
            "checksum": Int64(3324859968),
        },
    ],
    "positions": [
        {
            "_id": "joe",
            "epoch": Int64(-2),
            "next_seq": Int64(-9223372036854775805),
            "version": Int64(4),
            "checksum": Int64(4023856828),
        },
        {"_id": "kim", "epoch": Int64(7), "next_seq": Int64(12), "version": Int64(4), "checksum": Int64(3001599804)},
    ],
    "messages": [
        {
            "_id": "0655c89506c6ada593695a43.0000000000000000",
            "uuid": bytes([0]) * 16,
            "queued_at": 1000.0,
            "ttl": None,
            "size": Int64(4),
            "data": b"data",
            "parts": 0,
            "token": Int64(1),
            "attempt": Int64(1),
            "checksum": Int64(2378072045),
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000001",
            "uuid": bytes([1]) * 16,
            "queued_at": 1001.0,
            "ttl": 60.0,
            "size": Int64(4),
            "data": b"data",
            "parts": 0,
            "token": Int64(1),
            "attempt": Int64(1),
            "checksum": Int64(2876978413),
            "stream": "0655c89506c6ada593695a43",
            "expires_at": 1061.0,
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000002",
            "uuid": bytes([2]) * 16,
            "queued_at": 1002.0,
            "ttl": None,
            "size": Int64(104),
            "data": b"",
            "parts": 3,
            "token": Int64(1),
            "attempt": Int64(1),
            "checksum": 427031869,
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000003",
            "uuid": bytes([3]) * 16,
            "queued_at": 1003.0,
            "ttl": None,
            "size": Int64(5),
            "data": b"three",
            "parts": 0,
            "token": Int64(1),
            "attempt": Int64(1),
            "checksum": 1011478728,
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000006",
            "uuid": bytes([6]) * 16,
            "queued_at": 1006.0,
            "ttl": 30.0,
            "size": Int64(3),
            "data": b"six",
            "parts": 0,
            "token": Int64(2),
            "attempt": Int64(1),
            "checksum": Int64(3942201398),
            "stream": "0655c89506c6ada593695a43",
            "expires_at": 1036.0,
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000007",
            "uuid": bytes([7]) * 16,
            "queued_at": 1007.0,
            "ttl": None,
            "size": Int64(4),
            "data": b"data",
            "parts": 0,
            "token": Int64(2),
            "attempt": Int64(1),
            "checksum": 779402906,
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000008",
            "uuid": bytes([8]) * 16,
            "queued_at": 1008.0,
            "ttl": None,
            "size": Int64(5),
            "data": b"eight",
            "parts": 0,
            "token": Int64(2),
            "attempt": Int64(1),
            "checksum": Int64(2890472216),
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000009",
            "uuid": bytes([9]) * 16,
            "queued_at": 1009.0,
            "ttl": None,
            "size": Int64(4),
            "data": b"nine",
            "parts": 0,
            "token": Int64(2),
            "attempt": Int64(2),
            "checksum": 1983880624,
        },
        {
            "_id": "6c1a9eb6429a1ac786b50fe4.0000000000000000",
            "uuid": bytes([0]) * 16,
            "queued_at": 1000.0,
            "ttl": None,
            "size": Int64(3),
            "data": b"eve",
            "parts": 0,
            "token": Int64(1),
            "attempt": Int64(1),
            "checksum": 656354453,
        },
    ],
    "parts": [
        {
            "_id": "0655c89506c6ada593695a43.0000000000000002.0000",
            "data": b"abcdefghijklmnopqrstuvwxyzabcdefghijklmn",
            "token": Int64(1),
            "attempt": Int64(1),
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000002.0001",
            "data": b"opqrstuvwxyzabcdefghijklmnopqrstuvwxyzab",
            "token": Int64(1),
            "attempt": Int64(1),
        },
        {
            "_id": "0655c89506c6ada593695a43.0000000000000002.0002",
            "data": b"cdefghijklmnopqrstuvwxyz",
            "token": Int64(1),
            "attempt": Int64(1),
        },
    ],
}


def message(seq: int, data: bytes, ttl: float | None = None) -> StoredMessage:
    return StoredMessage(seq, bytes([seq]) * 16, data, 1000.0 + seq, ttl)


_TO_BOB = [
    message(1, b"data", 60.0),
    message(2, b"abcdefghijklmnopqrstuvwxyz" * 4),
    message(3, b"three"),
    message(6, b"six", 30.0),
    message(8, b"eight"),
]
_TO_EVE = [message(0, b"eve")]
_STREAMS = {
    "bob": StoredStream("bob", 5, 9, 6, 5, 121, 1001.0, 1036.0, 1008.0),
    "eve": StoredStream("eve", 2**64 - 5, 1, 1, 1, 3, 1000.0, None, 1000.0),
}
_POSITIONS = {"kim": Position(7, 15), "joe": Position(2**64 - 2, 2**63 + 3)}


@pytest.fixture(autouse=True)
def _quick_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """pymongo's threads look for their end this often."""
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.02)


@pytest.fixture
def prefix() -> str:
    return f"format{next(_numbers)}_"


@pytest.fixture
def url(mongodb_url: str, prefix: str) -> str:
    return f"{mongodb_url}&netcomm_prefix={prefix}"


@pytest.fixture
def database(mongodb_url: str, prefix: str) -> Iterator[Any]:
    """The database, in which the documents are."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongodb_url)
    with client:
        found = client.get_default_database()
        for name, documents in _WRITTEN.items():
            found[prefix + name].insert_many(documents)
        order = [("stream", 1), ("expires_at", 1)]
        found[f"{prefix}messages"].create_index(order, name="by_expiry", sparse=True)
        yield found


def assert_as_written(storage: QueueStorage) -> None:
    head = _WRITTEN["meta"][1]
    assert storage.store_id == head["store_id"]
    assert storage.read("bob", 0, 100, 10**6) == _TO_BOB
    assert storage.read("eve", 0, 100, 10**6) == _TO_EVE
    assert storage.expired("bob", 0, 1040.0, 10) == ([_TO_BOB[3]], 1061.0)
    assert {stream.ident: stream for stream in storage.streams()} == _STREAMS
    assert storage.positions() == _POSITIONS


@pytest.mark.usefixtures("database")
def test_a_reader_sees_what_an_earlier_version_wrote(url: str) -> None:
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert_as_written(look)
        assert look.incarnation == 2


def test_a_reader_changes_nothing_that_an_earlier_version_wrote(url: str, prefix: str, database: Any) -> None:
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert_as_written(look)
    for name, documents in _WRITTEN.items():
        assert list(database[prefix + name].find({}, sort=[("_id", 1)])) == documents


def test_an_owner_goes_on_from_what_an_earlier_version_wrote(url: str, prefix: str, database: Any) -> None:
    with MongoQueueStorage.from_url(url) as storage:
        assert storage.incarnation == 3
        assert_as_written(storage)
    with MongoQueueStorage.from_url(url) as storage:
        assert_as_written(storage)
        more = [message(9, b"nine again"), message(10, b"ten")]
        storage.append([Append("bob", 5, more)])
        assert storage.read("bob", 0, 100, 10**6) == [*_TO_BOB, *more]
        storage.delete_below("bob", 11)
    left = [found["_id"] for found in database[f"{prefix}messages"].find({}, {"_id": 1})]
    assert left == ["6c1a9eb6429a1ac786b50fe4.0000000000000000"]
    assert database[f"{prefix}parts"].count_documents({}) == 0


def test_the_lease_of_an_earlier_version_counts(url: str, prefix: str, database: Any) -> None:
    database[f"{prefix}meta"].update_one({"_id": "lease"}, {"$currentDate": {"renewed_at": True}})
    database[f"{prefix}meta"].update_one({"_id": "head"}, {"$set": {"lease_s": 3600.0}})
    with pytest.raises(StorageLocked, match="in process 1234 on host"):
        MongoQueueStorage.from_url(url)
