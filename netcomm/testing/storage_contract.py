"""`QueueStorageContract`: what every `QueueStorage` must do, as pytest tests.

A plug-in's tests subclass it, say how their storage is opened, and inherit the tests:

    class TestRedis(QueueStorageContract):
        @pytest.fixture
        def place(self):
            return f"redis://localhost/0?netcomm_prefix={uuid.uuid4()}:"

        def open_storage(self, place, read_only=False):
            return RedisQueueStorage.from_url(place, read_only)

It needs pytest; nothing else of netcomm does.
"""
# ruff: noqa: D102 - the tests' names say what must be true

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

try:
    import pytest
except ImportError as error:
    raise ImportError("netcomm.testing.QueueStorageContract needs pytest: pip install pytest") from error

from netcomm.errors import StorageError, StorageLocked
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream

_EVERYTHING = 10**6
_NOW = 1_700_000_000.25
_EPOCH = 7
_THREADS = 8
_APPENDS = 10
_DEADLINE_S = 60.0

Open = Callable[..., QueueStorage]
_Test = TypeVar("_Test", bound=Callable[..., None])

_PAYLOADS = {
    "empty": b"",
    "one byte": b"\0",
    "every byte": bytes(range(256)),
    "5 MB": bytes(range(250)) * 20_000,
}

_IDENTS = [
    "a",
    "with space",
    "with.dots.",
    ".",
    "$dollar",
    "with$dollar.and.dot",
    "/slashes//in/it/",
    "back\\slash",
    "quotes'\"`",
    "per%20cent%",
    "question?mark&and=more#hash",
    "star*[x]{y}",
    "žluťoučký kůň",
    "名前",
    "🐴",
    "x" * 255,
    "ž" * 127 + "x",  # 255 bytes
]

# Places that fold case, trim spaces, normalise or decode what they are given would mix these up.
_ALIKE = ["a", "A", "a ", " a", "a.", "a.0", "a/", "á", "a\u0301", "%61", "a%", "a_", "$a", "a:0", "a\n"]

_CHANGES: dict[str, Callable[[QueueStorage], object]] = {
    "append": lambda storage: storage.append([Append("bob", _EPOCH, [message(9)])]),
    "delete_below": lambda storage: storage.delete_below("bob", 1),
    "delete": lambda storage: storage.delete("bob", [0]),
    "mark_sent": lambda storage: storage.mark_sent("bob", 1),
    "renew": lambda storage: storage.renew("bob", _EPOCH + 1),
    "store_positions": lambda storage: storage.store_positions({"bob": Position(1, 2)}),
}

_LOOKS: dict[str, Callable[[QueueStorage], object]] = {
    "read": lambda storage: storage.read("bob", 0, _EVERYTHING, _EVERYTHING),
    "expired": lambda storage: storage.expired("bob", 0, _NOW, _EVERYTHING),
    "streams": lambda storage: storage.streams(),
    "positions": lambda storage: storage.positions(),
}


def message(seq: int, data: bytes = b"data", ttl: float | None = None, queued_at: float | None = None) -> StoredMessage:
    """A message whose other values follow from its seq."""
    return StoredMessage(seq, seq.to_bytes(16), data, _NOW + seq if queued_at is None else queued_at, ttl)


def messages(*seqs: int) -> list[StoredMessage]:
    """Messages with these seqs."""
    return [message(seq) for seq in seqs]


def seqs(found: Sequence[StoredMessage]) -> list[int]:
    """The seqs of messages."""
    return [message.seq for message in found]


def read_all(storage: QueueStorage, ident: str, from_seq: int = 0) -> list[StoredMessage]:
    """Every message of a stream at or above a seq."""
    return storage.read(ident, from_seq, _EVERYTHING, 2**40)


def summaries(storage: QueueStorage) -> dict[str, StoredStream]:
    """What a storage says of its streams, by receiver."""
    found = storage.streams()
    by_ident = {stream.ident: stream for stream in found}
    assert len(by_ident) == len(found)
    return by_ident


def stream(storage: QueueStorage, ident: str) -> StoredStream:
    """What a storage says of one stream."""
    return summaries(storage)[ident]


class Torn(Sequence[StoredMessage]):
    """Messages that can't be had to their end: the fault that every storage can be given."""

    def __init__(self, whole: list[StoredMessage]) -> None:
        self._whole = whole

    def __len__(self) -> int:
        return len(self._whole) + 1

    @overload
    def __getitem__(self, index: int) -> StoredMessage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[StoredMessage]: ...
    def __getitem__(self, index: int | slice) -> StoredMessage | Sequence[StoredMessage]:
        if isinstance(index, int) and index < len(self._whole):
            return self._whole[index]
        raise StorageError("torn")


def needs_place(test: _Test) -> _Test:
    """Mark a test that opens its storage again, twice or for a look."""
    test.needs_place = True  # type: ignore[attr-defined]
    return test


class QueueStorageContract:
    """The tests. A subclass is named `Test…`, so that pytest finds it, and has `open_storage`.

    It may have a fixture `place` of its own, of any type: each test gets one, and hands it to `open_storage`. It must
    be new for each test, and the same whenever that test opens the storage again. By default it is pytest's `tmp_path`.

    has_place: False for a storage that does not outlive its object; the tests that open it again, or twice, are left
        out then.
    """

    has_place = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.has_place:
            for name in dir(cls):
                if getattr(getattr(cls, name), "needs_place", False):
                    setattr(cls, name, None)  # pytest does not take it for a test then

    def open_storage(self, place: Any, read_only: bool = False) -> QueueStorage:
        """Open the storage at a place, as `QueueStorage.from_url` does, and make it where there is none."""
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Any:
        """Where the storage of one test is."""
        return tmp_path

    @pytest.fixture
    def opens(self, place: Any) -> Iterator[Open]:
        """Opens the storage at the test's place; whatever is still open in the end is closed."""
        opened: list[QueueStorage] = []

        def opens(read_only: bool = False) -> QueueStorage:
            opened.append(self.open_storage(place, read_only))
            return opened[-1]

        yield opens
        for storage in reversed(opened):
            storage.close()

    @pytest.fixture
    def storage(self, opens: Open) -> QueueStorage:
        """The storage, empty."""
        return opens()

    # -- Appending and reading --------------------------------------------------------------------------------

    def test_a_new_storage_is_empty(self, storage: QueueStorage) -> None:
        assert storage.streams() == []
        assert storage.positions() == {}

    def test_what_was_appended_is_read_in_order(self, storage: QueueStorage) -> None:
        appended = [message(seq, b"%d" % seq) for seq in range(300)]
        storage.append([Append("bob", _EPOCH, appended[:1])])
        storage.append([Append("bob", _EPOCH, appended[1:200])])
        storage.append([Append("bob", _EPOCH, appended[200:])])
        assert read_all(storage, "bob") == appended

    def test_reading_begins_at_a_seq(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(*range(20)))])
        assert seqs(read_all(storage, "bob", 17)) == [17, 18, 19]
        assert read_all(storage, "bob", 20) == []

    def test_seqs_may_leave_gaps_and_be_large(self, storage: QueueStorage) -> None:
        appended = messages(3, 4, 1000, 2**40, 2**62)
        storage.append([Append("bob", _EPOCH, appended[:2])])
        storage.append([Append("bob", _EPOCH, appended[2:4])])
        storage.append([Append("bob", _EPOCH, appended[4:])])
        assert read_all(storage, "bob") == appended
        assert seqs(read_all(storage, "bob", 5)) == [1000, 2**40, 2**62]
        assert stream(storage, "bob").next_seq > 2**62

    def test_max_count_limits_a_read(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(*range(10)))])
        assert seqs(storage.read("bob", 0, 1, _EVERYTHING)) == [0]
        assert seqs(storage.read("bob", 2, 3, _EVERYTHING)) == [2, 3, 4]
        assert seqs(storage.read("bob", 8, 3, _EVERYTHING)) == [8, 9]

    def test_a_read_ends_once_the_payloads_reach_max_bytes(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, [message(seq, b"x" * 100) for seq in range(5)])])
        counts = {0: 1, 1: 1, 100: 1, 101: 2, 200: 2, 250: 3, 10**6: 5}
        found = {max_bytes: len(storage.read("bob", 0, _EVERYTHING, max_bytes)) for max_bytes in counts}
        assert found == counts

    def test_a_message_larger_than_max_bytes_is_read_alone(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, [message(0), message(1, b"x" * 10_000), message(2)])])
        assert seqs(storage.read("bob", 1, _EVERYTHING, 100)) == [1]

    def test_empty_payloads_do_not_count_for_max_bytes(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, [message(seq, b"") for seq in range(5)])])
        assert seqs(storage.read("bob", 0, _EVERYTHING, 1)) == [0, 1, 2, 3, 4]

    def test_a_stream_that_does_not_exist_is_empty(self, storage: QueueStorage) -> None:
        storage.delete_below("nobody", 5)
        storage.delete("nobody", [1, 2])
        assert storage.read("nobody", 0, 10, 10) == []
        assert storage.expired("nobody", 0, _NOW, 10) == ([], None)
        assert storage.streams() == []

    @pytest.mark.parametrize("data", _PAYLOADS.values(), ids=_PAYLOADS)
    def test_payloads_are_kept_as_they_are(self, storage: QueueStorage, data: bytes) -> None:
        storage.append([Append("bob", _EPOCH, [message(0, data), message(1, b"after")])])
        assert [found.data for found in read_all(storage, "bob")] == [data, b"after"]
        assert stream(storage, "bob").size == len(data) + 5

    def test_all_of_a_message_is_kept(self, storage: QueueStorage) -> None:
        appended = [
            StoredMessage(0, bytes(16), b"", 0.0, None),
            StoredMessage(1, b"\xff" * 16, b"x", 1_700_000_000.123456, 0.0),
            StoredMessage(2, bytes(range(16)), b"y", 0.1, 0.1),
            StoredMessage(3, bytes(range(240, 256)), b"z", 1e10, 1e9),
        ]
        storage.append([Append("bob", _EPOCH, appended)])
        assert read_all(storage, "bob") == appended

    def test_envelopes_are_kept_as_they_are(self, storage: QueueStorage) -> None:
        if not storage.keeps_envelopes:
            return  # it is given none
        envelopes = [b"", b"\0", bytes(range(256)), b"", b"x" * 70_000, b""]
        appended = [message(seq, b"%d" % seq)._replace(envelope=envelope) for seq, envelope in enumerate(envelopes)]
        appended[3] = appended[3]._replace(data=b"")
        appended[4] = appended[4]._replace(data=b"", ttl=1.0)
        for one in appended[:3]:
            storage.append([Append("bob", _EPOCH, [one])])
        storage.append([Append("bob", _EPOCH, appended[3:])])
        assert read_all(storage, "bob") == appended
        assert storage.expired("bob", 0, 2 * _NOW, _EVERYTHING)[0] == appended[4:5]

    def test_envelopes_count_like_payloads(self, storage: QueueStorage) -> None:
        if not storage.keeps_envelopes:
            return  # it is given none
        one = message(0, b"x" * 60)._replace(envelope=b"y" * 40)
        storage.append([Append("bob", _EPOCH, [one])])
        storage.append([Append("bob", _EPOCH, [one._replace(seq=seq) for seq in range(1, 5)])])
        counts = {1: 1, 100: 1, 101: 2, 200: 2, 250: 3, 10**6: 5}
        assert {limit: len(storage.read("bob", 0, _EVERYTHING, limit)) for limit in counts} == counts
        assert stream(storage, "bob").size == 500
        storage.delete("bob", [2])
        assert stream(storage, "bob").size == 400

    def test_idents_are_kept_as_they_are(self, storage: QueueStorage) -> None:
        for ident in _IDENTS:
            storage.append([Append(ident, _EPOCH, messages(0, 1, 2))])
            storage.store_positions({ident: Position(3, 4)})
            storage.delete(ident, [1])
            storage.mark_sent(ident, 2)
        assert [seqs(read_all(storage, ident)) for ident in _IDENTS] == [[0, 2]] * len(_IDENTS)
        assert {ident: (found.count, found.sent_below) for ident, found in summaries(storage).items()} == dict.fromkeys(
            _IDENTS, (2, 2)
        )
        assert storage.positions() == dict.fromkeys(_IDENTS, Position(3, 4))

    def test_idents_that_are_alike_are_not_mixed_up(self, storage: QueueStorage) -> None:
        for number, ident in enumerate(_ALIKE):
            storage.append([Append(ident, number, [message(number, ident.encode())])])
            storage.store_positions({ident: Position(number, number)})
        assert {ident: found.epoch for ident, found in summaries(storage).items()} == {
            ident: number for number, ident in enumerate(_ALIKE)
        }
        assert [read_all(storage, ident) for ident in _ALIKE] == [
            [message(number, ident.encode())] for number, ident in enumerate(_ALIKE)
        ]
        assert storage.positions() == {ident: Position(number, number) for number, ident in enumerate(_ALIKE)}

    def test_a_batch_stores_to_all_its_streams(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", 1, messages(0))])
        storage.append([Append("bob", 1, messages(1, 2)), Append("eve", 2, messages(5)), Append("kim", 3, [])])
        assert seqs(read_all(storage, "bob")) == [0, 1, 2]
        assert seqs(read_all(storage, "eve")) == [5]
        assert read_all(storage, "kim") == []
        assert {(found.ident, found.epoch, found.count) for found in storage.streams()} == {
            ("bob", 1, 3),
            ("eve", 2, 1),
            ("kim", 3, 0),
        }

    def test_a_batch_that_fails_stores_nothing(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(0)), Append("eve", _EPOCH, messages(0))])
        before = summaries(storage)
        torn = [
            Append("bob", _EPOCH, messages(1, 2)),
            Append("new", _EPOCH, messages(0)),
            Append("eve", _EPOCH, Torn(messages(1, 2))),
        ]
        with pytest.raises(StorageError):
            storage.append(torn)
        assert summaries(storage) == before
        assert [seqs(read_all(storage, ident)) for ident in ("bob", "eve", "new")] == [[0], [0], []]
        # The same seqs, and others, may be used now.
        storage.append([Append("bob", _EPOCH, [message(1, b"again")]), Append("eve", _EPOCH, messages(7))])
        assert read_all(storage, "bob", 1) == [message(1, b"again")]
        assert seqs(read_all(storage, "eve")) == [0, 7]

    def test_an_empty_batch_changes_nothing(self, storage: QueueStorage) -> None:
        storage.append([])
        assert storage.streams() == []

    # -- Streams ----------------------------------------------------------------------------------------------

    def test_epochs_reach_up_to_63_bits(self, storage: QueueStorage) -> None:
        epochs = [0, 1, 2**32, 2**62, 2**63 - 2, 2**63 - 1]
        storage.append([Append(f"{epoch}", epoch, messages(0)) for epoch in epochs])
        assert sorted(found.epoch for found in storage.streams()) == epochs
        for epoch in epochs:
            storage.renew(f"{epoch}", 2**63 - 1 - epoch)
        assert {ident: found.epoch for ident, found in summaries(storage).items()} == {
            f"{epoch}": 2**63 - 1 - epoch for epoch in epochs
        }

    def test_a_stream_that_exists_keeps_its_epoch(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", 1, messages(0))])
        storage.append([Append("bob", 2, messages(1))])
        storage.append([Append("bob", 3, [])])
        assert stream(storage, "bob").epoch == 1
        assert stream(storage, "bob").next_seq == 2
        assert seqs(read_all(storage, "bob")) == [0, 1]

    def test_a_stream_begins_with_an_append_of_nothing(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, [])])
        assert storage.streams() == [StoredStream("bob", _EPOCH, 0, 0, 0, 0, None, None, None)]

    def test_streams_are_summed_up(self, storage: QueueStorage) -> None:
        storage.append(
            [
                Append(
                    "bob",
                    1,
                    [
                        message(3, b"abc", ttl=None, queued_at=100.5),
                        message(4, b"", ttl=50.0, queued_at=101.0),
                        message(5, b"defgh", ttl=10.0, queued_at=102.0),
                        message(6, b"i", ttl=20.0, queued_at=103.0),
                    ],
                ),
                Append("eve", 2, [message(0, b"x", queued_at=200.0)]),
            ]
        )
        assert stream(storage, "bob") == StoredStream("bob", 1, 7, 0, 4, 9, 100.5, 112.0, 103.0)
        assert stream(storage, "eve") == StoredStream("eve", 2, 1, 0, 1, 1, 200.0, None, 200.0)
        storage.delete("bob", [3, 5])
        assert stream(storage, "bob") == StoredStream("bob", 1, 7, 0, 2, 1, 101.0, 123.0, 103.0)
        storage.delete("bob", [4, 6])
        assert stream(storage, "bob") == StoredStream("bob", 1, 7, 0, 0, 0, None, None, None)
        assert stream(storage, "eve") == StoredStream("eve", 2, 1, 0, 1, 1, 200.0, None, 200.0)

    def test_renewing_keeps_messages_and_counter(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", 1, messages(0, 1)), Append("eve", 1, messages(0))])
        storage.renew("bob", 2)
        assert (stream(storage, "bob").epoch, stream(storage, "bob").next_seq) == (2, 2)
        assert stream(storage, "eve").epoch == 1
        storage.append([Append("bob", 2, messages(2))])
        assert read_all(storage, "bob") == messages(0, 1, 2)

    def test_what_was_marked_as_sent_is_remembered(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(0, 1, 2)), Append("eve", _EPOCH, messages(0))])
        storage.mark_sent("bob", 2)
        assert stream(storage, "bob").sent_below == 2
        storage.append([Append("bob", _EPOCH, messages(3))])
        storage.mark_sent("bob", 4)
        assert stream(storage, "bob").sent_below == 4
        assert stream(storage, "eve").sent_below == 0
        assert stream(storage, "bob").next_seq == 4

    # -- Deleting ---------------------------------------------------------------------------------------------

    def test_delete_below_leaves_the_rest(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(*range(10))), Append("eve", _EPOCH, messages(*range(10)))])
        storage.delete_below("bob", 4)
        storage.delete_below("bob", 2)
        assert seqs(read_all(storage, "bob", 4)) == [4, 5, 6, 7, 8, 9]
        assert seqs(read_all(storage, "eve")) == list(range(10))

    def test_delete_below_leaves_what_is_appended_later(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(0, 1))])
        storage.delete_below("bob", 100)
        storage.append([Append("bob", _EPOCH, messages(2, 3))])
        assert seqs(read_all(storage, "bob", 2)) == [2, 3]

    def test_single_messages_are_deleted(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(*range(10))), Append("eve", _EPOCH, messages(*range(10)))])
        storage.delete("bob", [0, 5, 9])
        assert seqs(read_all(storage, "bob")) == [1, 2, 3, 4, 6, 7, 8]
        assert seqs(read_all(storage, "eve")) == list(range(10))
        assert stream(storage, "bob").count == 7
        assert stream(storage, "bob").next_seq == 10

    def test_deleting_what_is_not_there_does_nothing(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(0, 1, 5))])
        storage.delete("bob", [1])
        before = summaries(storage)
        storage.delete("bob", [])
        storage.delete("bob", [1, 3, 5000, 2**40])
        storage.delete("bob", [1, 1])
        assert summaries(storage) == before
        assert seqs(read_all(storage, "bob")) == [0, 5]

    def test_many_messages_are_deleted_at_once(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(*range(3000)))])
        storage.delete("bob", range(0, 3000, 2))
        assert seqs(read_all(storage, "bob")) == list(range(1, 3000, 2))
        assert stream(storage, "bob").count == 1500

    # -- Expiry -----------------------------------------------------------------------------------------------

    @pytest.fixture
    def mortals(self, storage: QueueStorage) -> QueueStorage:
        """A storage whose messages expire at 130, never, 110, 120, 140, and at once."""
        ttls = [30.0, None, 10.0, 20.0, 40.0, 0.0]
        mortals = [message(seq, ttl=ttl, queued_at=100.0) for seq, ttl in enumerate(ttls)]
        storage.append([Append("bob", _EPOCH, mortals), Append("eve", _EPOCH, [message(0, ttl=1.0, queued_at=100.0)])])
        return storage

    def test_messages_expire_at_their_time(self, mortals: QueueStorage) -> None:
        everything = {message.seq: message for message in read_all(mortals, "bob")}
        for now, over, next_expiry in [
            (99.0, [], 100.0),
            (100.0, [5], 110.0),
            (109.5, [5], 110.0),
            (110.0, [2, 5], 120.0),
            (125.0, [2, 3, 5], 130.0),
            (140.0, [0, 2, 3, 4, 5], None),
        ]:
            found, following = mortals.expired("bob", 0, now, _EVERYTHING)
            assert (now, sorted(seqs(found)), following) == (now, over, next_expiry)
            assert all(message == everything[message.seq] for message in found)

    def test_expired_messages_are_found_from_a_seq_on(self, mortals: QueueStorage) -> None:
        found, following = mortals.expired("bob", 3, 125.0, _EVERYTHING)
        assert sorted(seqs(found)) == [3, 5]
        assert following == 140.0
        assert mortals.expired("bob", 6, 125.0, _EVERYTHING) == ([], None)

    def test_max_count_limits_what_is_found_expired(self, mortals: QueueStorage) -> None:
        found, following = mortals.expired("bob", 0, 125.0, 2)
        assert len(found) == 2
        assert set(seqs(found)) < {2, 3, 5}
        assert following == 130.0

    def test_what_is_deleted_does_not_expire(self, mortals: QueueStorage) -> None:
        mortals.delete("bob", [2, 3])
        found, following = mortals.expired("bob", 0, 110.0, _EVERYTHING)
        assert seqs(found) == [5]
        assert following == 130.0

    # -- Positions --------------------------------------------------------------------------------------------

    def test_positions_reach_up_to_64_bits(self, storage: QueueStorage) -> None:
        numbers = [0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
        positions = {f"{number}": Position(number, 2**64 - 1 - number) for number in numbers}
        storage.store_positions(positions)
        assert storage.positions() == positions

    def test_a_position_takes_the_place_of_the_earlier_one(self, storage: QueueStorage) -> None:
        storage.store_positions({"bob": Position(1, 10), "eve": Position(2, 20)})
        storage.store_positions({"bob": Position(3, 5), "kim": Position(4, 40)})
        storage.store_positions({})
        assert storage.positions() == {"bob": Position(3, 5), "eve": Position(2, 20), "kim": Position(4, 40)}

    def test_positions_of_many_senders_are_kept(self, storage: QueueStorage) -> None:
        positions = {f"sender {number}": Position(number, number) for number in range(100)}
        storage.store_positions(positions)
        for number in range(40):
            positions[f"sender {number}"] = Position(number, number + 1)
            storage.store_positions({f"sender {number}": Position(number, number + 1)})
        assert storage.positions() == positions

    def test_streams_to_many_receivers_are_kept(self, storage: QueueStorage) -> None:
        for number in range(60):
            storage.append([Append(f"receiver {number}", number, messages(0, 1))])
            storage.mark_sent(f"receiver {number // 2}", number)
        assert {(found.ident, found.epoch, found.sent_below, found.count) for found in storage.streams()} == {
            (f"receiver {number}", number, 2 * number + 1 if number < 30 else 0, 2) for number in range(60)
        }
        assert all(read_all(storage, f"receiver {number}") == messages(0, 1) for number in range(60))

    # -- Threads ----------------------------------------------------------------------------------------------

    def test_threads_append_and_read_at_once(self, storage: QueueStorage) -> None:
        barrier = threading.Barrier(_THREADS)
        numbering = threading.Lock()
        shared: list[StoredMessage] = []
        failures: list[BaseException] = []

        def work(number: int) -> None:
            own = f"own {number}"
            try:
                barrier.wait(_DEADLINE_S)
                for seq in range(_APPENDS):
                    storage.append([Append(own, number, [message(seq, b"%d" % number)])])
                    with numbering:  # the seqs of a stream must rise
                        shared.append(message(len(shared), b"%d" % number))
                        storage.append([Append("shared", 99, shared[-1:])])
                    assert seqs(read_all(storage, own)) == list(range(seq + 1))
                    storage.store_positions({own: Position(number, seq)})
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_DEADLINE_S)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        assert read_all(storage, "shared") == shared
        assert len(shared) == _THREADS * _APPENDS
        for number in range(_THREADS):
            assert read_all(storage, f"own {number}") == [message(seq, b"%d" % number) for seq in range(_APPENDS)]
        assert storage.positions() == {f"own {number}": Position(number, _APPENDS - 1) for number in range(_THREADS)}

    # -- Identity and life ------------------------------------------------------------------------------------

    def test_a_storage_has_a_name(self, storage: QueueStorage) -> None:
        assert len(storage.store_id) == 16
        assert storage.store_id != bytes(16)
        assert storage.incarnation >= 1

    def test_closing_again_does_nothing(self, storage: QueueStorage) -> None:
        storage.close()
        storage.close()

    def test_a_with_statement_closes(self, storage: QueueStorage) -> None:
        with storage as entered:
            assert entered is storage
        with pytest.raises(StorageError):
            storage.streams()

    def test_a_closed_storage_is_not_usable(self, storage: QueueStorage) -> None:
        storage.append([Append("bob", _EPOCH, messages(0))])
        storage.close()
        raised = set()
        for name, use in (_CHANGES | _LOOKS).items():
            try:
                use(storage)
            except StorageError:
                raised.add(name)
        assert raised == _CHANGES.keys() | _LOOKS.keys()

    @needs_place
    def test_everything_is_there_when_it_is_opened_again(self, storage: QueueStorage, opens: Open) -> None:
        appended = [
            message(0, b""),
            message(1, bytes(range(256)), ttl=1.5),
            message(2, _PAYLOADS["5 MB"]),
            message(8, b"x"),
        ]
        storage.append([Append("bob", 2**63 - 1, appended), Append("žluťoučký.$kůň/", 5, messages(0))])
        storage.append([Append("empty", 6, [])])
        storage.store_positions({"bob": Position(2**64 - 1, 2**63), "名前": Position(0, 1)})
        storage.mark_sent("bob", 2)
        storage.delete("bob", [8])
        before = summaries(storage)
        storage.close()
        again = opens()
        assert summaries(again) == before
        assert read_all(again, "bob") == appended[:3]
        assert read_all(again, "žluťoučký.$kůň/") == messages(0)
        assert again.expired("bob", 0, 2 * _NOW, _EVERYTHING) == ([appended[1]], None)
        assert again.positions() == {"bob": Position(2**64 - 1, 2**63), "名前": Position(0, 1)}

    @needs_place
    def test_the_counter_outlives_the_messages(self, storage: QueueStorage, opens: Open) -> None:
        storage.append([Append("bob", _EPOCH, messages(*range(50))), Append("eve", _EPOCH, messages(*range(50)))])
        storage.delete_below("bob", 50)
        storage.delete("eve", range(50))
        storage.close()
        for _ in range(2):
            again = opens()
            assert {ident: (found.next_seq, found.count, found.size) for ident, found in summaries(again).items()} == {
                "bob": (50, 0, 0),
                "eve": (50, 0, 0),
            }
            assert read_all(again, "bob") == read_all(again, "eve") == []
            again.close()
        again = opens()
        again.append([Append("bob", _EPOCH, messages(50))])
        assert seqs(read_all(again, "bob")) == [50]
        assert stream(again, "bob").next_seq == 51

    @needs_place
    def test_a_deletion_is_done_when_close_returns(self, storage: QueueStorage, opens: Open) -> None:
        storage.append([Append("bob", _EPOCH, messages(*range(10)))])
        storage.delete("bob", [1, 6])
        storage.delete_below("bob", 4)
        storage.append([Append("bob", _EPOCH, messages(10))])
        storage.close()
        again = opens()
        assert seqs(read_all(again, "bob")) == [4, 5, 7, 8, 9, 10]
        assert stream(again, "bob") == StoredStream("bob", _EPOCH, 11, 0, 6, 24, _NOW + 4, None, _NOW + 10)

    @needs_place
    def test_a_renewed_stream_stays_renewed(self, storage: QueueStorage, opens: Open) -> None:
        storage.append([Append("bob", 1, messages(0, 1))])
        storage.mark_sent("bob", 2)
        storage.renew("bob", 2**63 - 1)
        storage.close()
        again = opens()
        assert (stream(again, "bob").epoch, stream(again, "bob").next_seq) == (2**63 - 1, 2)
        assert read_all(again, "bob") == messages(0, 1)

    @needs_place
    def test_the_name_stays_and_the_incarnation_rises(self, storage: QueueStorage, opens: Open) -> None:
        store_id, incarnation = storage.store_id, storage.incarnation
        for _ in range(3):
            storage.close()
            opens(read_only=True).close()
            storage = opens()
            assert storage.store_id == store_id
            assert storage.incarnation > incarnation
            incarnation = storage.incarnation

    @needs_place
    def test_a_second_owner_is_locked_out(self, storage: QueueStorage, opens: Open) -> None:
        storage.append([Append("bob", _EPOCH, messages(0))])
        incarnation = storage.incarnation
        for _ in range(2):
            with pytest.raises(StorageLocked):
                opens()
        storage.append([Append("bob", _EPOCH, messages(1))])
        assert seqs(read_all(storage, "bob")) == [0, 1]
        storage.close()
        again = opens()
        assert again.incarnation > incarnation
        assert seqs(read_all(again, "bob")) == [0, 1]

    @needs_place
    def test_a_look_is_possible_while_it_is_owned(self, storage: QueueStorage, opens: Open) -> None:
        storage.append([Append("bob", _EPOCH, [message(0, ttl=1.0), message(1)])])
        storage.store_positions({"eve": Position(1, 2)})
        look = opens(read_only=True)
        assert (look.store_id, look.incarnation) == (storage.store_id, storage.incarnation)
        assert summaries(look) == summaries(storage)
        assert read_all(look, "bob") == read_all(storage, "bob")
        assert seqs(look.read("bob", 0, 1, 1)) == [0]
        assert look.expired("bob", 0, _NOW + 1, _EVERYTHING) == ([message(0, ttl=1.0)], None)
        assert look.positions() == {"eve": Position(1, 2)}
        storage.append([Append("bob", _EPOCH, messages(2)), Append("kim", 3, messages(0))])
        storage.delete("bob", [0])
        storage.store_positions({"eve": Position(1, 3)})
        assert seqs(read_all(look, "bob")) == [1, 2]
        assert seqs(read_all(look, "kim")) == [0]
        assert summaries(look) == summaries(storage)
        assert look.positions() == {"eve": Position(1, 3)}
        look.close()
        storage.append([Append("bob", _EPOCH, messages(3))])
        with pytest.raises(StorageLocked):
            opens()

    @needs_place
    def test_a_look_changes_nothing(self, storage: QueueStorage, opens: Open) -> None:
        storage.append([Append("bob", _EPOCH, messages(0, 1))])
        before = summaries(storage)
        raised = set()
        with opens(read_only=True) as look:
            for name, change in _CHANGES.items():
                try:
                    change(look)
                except StorageError:
                    raised.add(name)
        assert raised == _CHANGES.keys()
        assert summaries(storage) == before
        assert storage.positions() == {}
        storage.close()
        again = opens()
        assert summaries(again) == before
        assert read_all(again, "bob") == messages(0, 1)

    @needs_place
    def test_a_look_is_possible_while_nobody_owns_it(self, storage: QueueStorage, opens: Open) -> None:
        storage.append([Append("bob", _EPOCH, messages(0))])
        storage.close()
        look = opens(read_only=True)
        assert seqs(read_all(look, "bob")) == [0]
        owner = opens()
        owner.append([Append("bob", _EPOCH, messages(1))])
        assert seqs(read_all(look, "bob")) == [0, 1]

    if hasattr(os, "fork"):

        @needs_place
        def test_a_forked_child_takes_nothing_from_its_parent(self, storage: QueueStorage, opens: Open) -> None:
            storage.append([Append("bob", _EPOCH, messages(0))])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: that is what is tested
                child = os.fork()
            if child == 0:
                status = 1
                try:
                    storage.abandon()
                    storage.close()
                    status = 2
                    storage.append([Append("bob", _EPOCH, messages(1))])
                except StorageError:
                    status = 0 if status == 2 else 3
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with pytest.raises(StorageLocked):
                opens()
            storage.append([Append("bob", _EPOCH, messages(1))])
            storage.close()
            assert seqs(read_all(opens(), "bob")) == [0, 1]
