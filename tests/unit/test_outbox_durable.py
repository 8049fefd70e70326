"""The durable stream of an outbox: its beginning in memory, the rest in a storage that the test plays."""

import gc
import random
from dataclasses import dataclass, field

import pytest

from netcomm.errors import RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import VOLATILE, Delivery, DeliveryState, Stream
from netcomm.protocol import durable_out_stream
from netcomm.protocol.durable_out_stream import DurableOutStream
from netcomm.protocol.events import Load, Mark, Renew, StorageRequest
from netcomm.protocol.frames import Ack, Begin
from netcomm.protocol.outbox import Outbox
from netcomm.storage import StoredStream
from tests.unit.helpers import OVERHEAD, make_delivery

DURABLE = Stream.DURABLE
QUEUED = DeliveryState.QUEUED
SENT = DeliveryState.SENT
DELIVERED = DeliveryState.DELIVERED
EXPIRED = DeliveryState.EXPIRED
REJECTED = DeliveryState.REJECTED

LARGE = 1 << 30
EPOCH = 99
NEW_EPOCH = 77  # that a stream would get
AHEAD = 10_000  # how far ahead of the next message the mark is set

RECEIVER_BOOT = b"r" * 16


def wants(stream: DurableOutStream) -> list[StorageRequest]:
    """What a stream wants of the storage, which is asked for it."""
    wanted = stream.wants("b", lambda: NEW_EPOCH)
    for request in wanted:
        stream.asked(request)
    return wanted


def new_outbox(stream: DurableOutStream | None = None) -> Outbox:
    outbox = Outbox(Limits(window_bytes=LARGE), 7)
    if stream is None:
        outbox.open(DURABLE, EPOCH)
    else:
        outbox.add(stream)
    return outbox


def durable(outbox: Outbox) -> DurableOutStream:
    return outbox.durables[DURABLE]


def number(outbox: Outbox, *sizes: int, ttl: float | None = None, now: float = 0.0) -> list[Delivery]:
    """Numbered messages that the storage does not have yet."""
    deliveries = [make_delivery(payload=bytes(size), ttl=ttl, now=now, persistent=True) for size in sizes]
    durable(outbox).number(deliveries)
    return deliveries


def append(outbox: Outbox, *sizes: int, ttl: float | None = None, now: float = 0.0) -> list[Delivery]:
    """Messages of so many bytes that were numbered, stored and queued."""
    deliveries = number(outbox, *sizes, ttl=ttl, now=now)
    if deliveries:
        outbox.add_stored(deliveries)
    return deliveries


def acknowledge(
    outbox: Outbox, next_seq: int, received_seq: int | None = None, epoch: int | None = None
) -> list[Delivery]:
    stream_epoch = durable(outbox).epoch if epoch is None else epoch
    return outbox.acknowledge(Ack(DURABLE, stream_epoch, next_seq, next_seq if received_seq is None else received_seq))


def connect(outbox: Outbox, position: int | None = None, arrived: int | None = None) -> Begin:
    """A netcomm peer connects and answers the BEGIN of the durable stream; what it has to be asked is marked."""
    begin, _ = outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert begin.stream is DURABLE
    acknowledge(outbox, begin.first_seq if position is None else position, arrived)
    return begin


def mark(outbox: Outbox) -> None:
    """Let the storage remember what the stream wants it to, and nothing else."""
    for want in wants(durable(outbox)):
        assert isinstance(want, Mark), want
        durable(outbox).marked(want.below)


def connected() -> Outbox:
    outbox = new_outbox()
    connect(outbox)
    append(outbox, 0)
    mark(outbox)
    take(outbox)
    acknowledge(outbox, 1)
    return outbox


def take(outbox: Outbox, budget: int = 1 << 40) -> list[Delivery]:
    taken = outbox.take(budget)
    return [] if taken is None else taken[3]


def states(deliveries: list[Delivery]) -> list[DeliveryState]:
    return [delivery.state for delivery in deliveries]


def stored_stream(
    next_seq: int = 0, sent_below: int = 0, count: int = 0, size: int = 0, next_expiry: float | None = None
) -> StoredStream:
    return StoredStream(
        ident="b",
        epoch=EPOCH,
        next_seq=next_seq,
        sent_below=sent_below,
        count=count,
        size=size,
        oldest_at=None,
        newest_at=None,
        next_expiry=next_expiry,
    )


def read(*seqs: int, ttl: float | None = None, size: int = 0) -> list[Delivery]:
    """Deliveries as they are made of what was read from a storage."""
    deliveries = [make_delivery(payload=bytes(size), ttl=ttl, persistent=True) for _ in seqs]
    for delivery, seq in zip(deliveries, seqs, strict=True):
        delivery.seq = seq
    return deliveries


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four messages in memory, two read at a time."""
    monkeypatch.setattr(durable_out_stream, "_MAX_LOADED", 4)
    monkeypatch.setattr(durable_out_stream, "_LOAD_COUNT", 2)


# -- Numbering, storing, sending ----------------------------------------------------------------------------------


def test_the_two_streams_count_by_themselves_and_take_turns() -> None:
    outbox = connected()
    (persistent,) = append(outbox, 5)
    transient = make_delivery()
    outbox.append(transient, 0)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 0, 0))
    assert (persistent.seq, transient.seq) == (1, 0)
    assert (outbox.queued, outbox.volatile.queued, durable(outbox).queued) == (2, 1, 1)
    assert durable(outbox).queued_bytes == OVERHEAD + 5
    assert outbox.volatile.queued_bytes == OVERHEAD
    taken = [outbox.take(LARGE), outbox.take(LARGE)]
    assert {(item[0], item[1]) for item in taken if item is not None} == {(DURABLE, EPOCH), (Stream.VOLATILE, 7)}
    assert outbox.in_flight == 2
    assert outbox.take(LARGE) is None


def test_persistent_messages_take_no_room_in_the_queue_of_transient_ones() -> None:
    outbox = Outbox(Limits(max_queued_messages=1, max_queued_bytes=100), 7)
    outbox.open(DURABLE, EPOCH)
    append(outbox, *[1000] * 5)
    assert outbox.has_room(VOLATILE, 100)


def test_numbers_of_messages_that_could_not_be_stored_stay_unused() -> None:
    outbox = connected()
    first, failed, second, failed_too = number(outbox, 1, 2, 3, 4)
    for delivery in (first, second):
        outbox.add_stored([delivery])
    assert [first.seq, second.seq] == [1, 3]
    assert take(outbox) == [first, second]
    assert acknowledge(outbox, 4) == [first, second]
    assert outbox.queued == 0
    # The next number is not that of the failed one either: the storage may have it, for all one knows.
    (later,) = append(outbox, 1)
    assert later.seq == 5
    assert outbox.take(LARGE) == (DURABLE, EPOCH, 4, [later], [])
    assert {failed.state, failed_too.state} == {QUEUED}


def test_begin_does_not_promise_what_is_numbered_and_not_stored_yet() -> None:
    outbox = new_outbox()
    (early,) = number(outbox, 1)
    (late,) = number(outbox, 2)
    begin = connect(outbox)
    assert begin == Begin(DURABLE, EPOCH, 0, 0)
    for delivery in (early, late):
        outbox.add_stored([delivery])
    mark(outbox)
    assert outbox.take(LARGE) == (DURABLE, EPOCH, 0, [early, late], [])


@pytest.mark.requirement("P-26", "positive")
def test_a_stream_that_is_opened_on_a_connection_begins_there() -> None:
    outbox = Outbox(Limits(), 7)
    assert outbox.open(DURABLE, EPOCH) is None
    outbox = Outbox(Limits(), 7)
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert outbox.open(DURABLE, EPOCH) == Begin(DURABLE, EPOCH, 0, 0)
    outbox = Outbox(Limits(), 7)
    outbox.connect_legacy(LARGE)
    assert outbox.open(DURABLE, EPOCH) is None
    (delivery,) = append(outbox, 1)
    mark(outbox)
    assert take(outbox) == [delivery]


@pytest.mark.requirement("P-38", "negative")
@pytest.mark.requirement("P-40", "negative")
def test_an_acknowledgement_of_the_unsent_is_an_error_once_the_stream_is_begun() -> None:
    outbox = connected()
    append(outbox, 1)
    with pytest.raises(RemoteProtocolError, match="never sent"):
        acknowledge(outbox, 2)
    assert not durable(outbox).renewing


def test_messages_of_which_nobody_knows_whether_they_were_stored_are_passed_over() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=1, count=1), None)
    outbox = new_outbox(stream)
    connect(outbox)
    (lost,) = number(outbox, 1)
    stream.lose([lost.seq])
    (kept,) = append(outbox, 1)  # behind the first, in the storage alone
    kept.data = b"!"
    (first,) = read(0)
    assert isinstance(wants(stream)[-1], Load)
    assert outbox.load(DURABLE, [first, lost, kept]) == ([], 0)
    stream.marked(AHEAD)
    assert take(outbox) == [first, kept]
    assert (outbox.queued, stream.stored) == (2, 0)
    assert lost.state is QUEUED


# -- The mark -----------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_storage_knows_that_it_may_be() -> None:
    outbox = new_outbox()
    connect(outbox)
    deliveries = append(outbox, 1, 2)
    assert take(outbox) == []
    assert wants(durable(outbox)) == [Mark("b", 2 + AHEAD)]
    assert wants(durable(outbox)) == []  # it was asked for
    assert take(outbox) == []
    durable(outbox).marked(2 + AHEAD)
    assert take(outbox) == deliveries


def test_only_what_lies_below_the_mark_is_sent() -> None:
    outbox = new_outbox()
    connect(outbox)
    deliveries = append(outbox, 1, 2, 3)
    durable(outbox).marked(2)
    assert take(outbox) == deliveries[:2]
    assert take(outbox) == []
    durable(outbox).marked(1)  # never back
    durable(outbox).marked(3)
    assert take(outbox) == deliveries[2:]


def test_the_mark_is_set_anew_before_it_is_reached_and_for_many_messages_at_once() -> None:
    outbox = connected()
    marks = 0
    for _ in range(3 * AHEAD):
        append(outbox, 0)
        for want in wants(durable(outbox)):
            assert isinstance(want, Mark)
            marks += 1
            durable(outbox).marked(want.below)
        assert len(take(outbox)) == 1, "it has run into the mark"
        acknowledge(outbox, durable(outbox).next_seq)
    assert 2 <= marks <= 7


def test_nothing_is_marked_where_nothing_can_be_sent() -> None:
    outbox = new_outbox()
    append(outbox, 1)
    assert wants(durable(outbox)) == []
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert wants(durable(outbox)) == []  # BEGIN is not answered
    outbox = new_outbox()
    connect(outbox)
    assert wants(durable(outbox)) == []  # there is no message


# -- The window of messages in memory -----------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_only_the_beginning_of_the_stream_is_in_memory() -> None:
    outbox = new_outbox()
    deliveries = append(outbox, *[10] * 7)
    assert [delivery.data is not None for delivery in deliveries] == [True] * 4 + [False] * 3
    assert states(deliveries) == [QUEUED] * 7
    stream = durable(outbox)
    assert (len(stream.waiting), stream.stored, stream.load_from) == (4, 3, 4)
    assert (stream.queued, stream.queued_bytes) == (7, 7 * (OVERHEAD + 10))
    assert stream.loaded_bytes == 4 * (OVERHEAD + 10)


def test_the_beginning_in_memory_is_bounded_by_its_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_out_stream, "_MAX_LOADED_BYTES", 1000)
    outbox = new_outbox()
    append(outbox, *[400] * 9)
    assert len(durable(outbox).waiting) == 3
    large = new_outbox()
    append(large, 100_000, 1)
    assert (len(durable(large).waiting), durable(large).stored) == (1, 1)


@pytest.mark.usefixtures("small")
def test_what_is_appended_behind_stored_messages_is_stored_too() -> None:
    outbox = connected()
    deliveries = append(outbox, *[1] * 5)
    take(outbox)
    acknowledge(outbox, 5)
    # There is room in memory now, but one message still lies in the storage before it.
    deliveries += append(outbox, 1)
    assert durable(outbox).stored == 2
    assert not durable(outbox).waiting
    assert durable(outbox).first_seq() == 5


@pytest.mark.usefixtures("small")
def test_stored_messages_are_read_as_the_beginning_moves_on() -> None:
    outbox = connected()
    deliveries = append(outbox, *[1] * 8)
    assert wants(durable(outbox)) == []  # the memory is full
    assert take(outbox) == deliveries[:4]
    acknowledge(outbox, 3)
    assert wants(durable(outbox)) == []  # not for one message each
    acknowledge(outbox, 4)
    (want,) = wants(durable(outbox))
    assert isinstance(want, Load)
    assert (want.from_seq, want.max_count) == (5, 2)
    assert wants(durable(outbox)) == []
    for delivery in deliveries[4:6]:
        delivery.data = b"!"
    assert outbox.load(DURABLE, deliveries[4:6]) == ([], 0)
    assert take(outbox) == deliveries[4:6]
    assert (durable(outbox).stored, durable(outbox).load_from) == (2, 7)
    acknowledge(outbox, 7)
    assert wants(durable(outbox)) == [Load("b", 7, 2, durable_out_stream._MAX_LOADED_BYTES // 2)]
    outbox.load(DURABLE, deliveries[6:])
    assert take(outbox) == deliveries[6:]
    acknowledge(outbox, 9)
    assert (outbox.queued, durable(outbox).queued_bytes, durable(outbox).loaded_bytes) == (0, 0, 0)
    # Now the stream is in memory as a whole again.
    assert append(outbox, 1)[0].data is not None


@pytest.mark.usefixtures("small")
def test_the_delivery_that_a_user_holds_is_the_one_that_is_read() -> None:
    outbox = connected()
    deliveries = append(outbox, *[1] * 6)
    assert durable(outbox).known()[5] is deliveries[4]
    assert durable(outbox).known()[6] is deliveries[5]
    del deliveries[5]
    gc.collect()
    assert durable(outbox).known().get(6) is None
    assert durable(outbox).known().get(0) is None


@pytest.mark.usefixtures("small")
def test_messages_read_that_the_receiver_has_acknowledged_are_delivered() -> None:
    # It has them from an earlier process, and its answer to BEGIN said so before they were read.
    stream = DurableOutStream.restore(stored_stream(next_seq=9, sent_below=9, count=5, size=5), None)
    outbox = new_outbox(stream)
    assert connect(outbox, 7) == Begin(DURABLE, EPOCH, 0, 9)
    deliveries = read(4, 5, 6, 7, 8, size=1)
    assert wants(stream)[-1] == Load("b", 0, 2, durable_out_stream._MAX_LOADED_BYTES // 2)
    assert outbox.load(DURABLE, deliveries[:2]) == (deliveries[:2], 0)
    assert outbox.load(DURABLE, deliveries[2:4]) == (deliveries[2:3], 0)
    assert states(deliveries) == [DELIVERED] * 3 + [QUEUED] * 2
    assert deliveries[0].data is None
    stream.marked(9)
    assert outbox.take(LARGE) == (DURABLE, EPOCH, 7, deliveries[3:4], [])
    assert (outbox.queued, stream.queued_bytes, stream.stored) == (2, 2 * (OVERHEAD + 1), 1)


@pytest.mark.usefixtures("small")
def test_messages_that_should_be_in_the_storage_and_are_not_are_missed() -> None:
    outbox = connected()
    append(outbox, *[1] * 7)
    take(outbox)
    acknowledge(outbox, 5)
    assert isinstance(wants(durable(outbox))[0], Load)
    assert outbox.load(DURABLE, []) == ([], 3)
    assert (outbox.queued, durable(outbox).stored) == (0, 0)
    (next_one,) = append(outbox, 1)
    assert outbox.take(LARGE) == (DURABLE, EPOCH, 5, [next_one], [])


@pytest.mark.usefixtures("small")
def test_messages_appended_while_the_storage_finds_nothing_are_not_missed() -> None:
    outbox = connected()
    append(outbox, *[1] * 6)
    take(outbox)
    acknowledge(outbox, 5)
    assert isinstance(wants(durable(outbox))[0], Load)
    (late,) = append(outbox, 1)
    assert outbox.load(DURABLE, []) == ([], 2)
    assert (outbox.queued, durable(outbox).stored) == (1, 1)
    (want,) = wants(durable(outbox))
    assert isinstance(want, Load)
    late.data = b"!"
    assert outbox.load(DURABLE, [late]) == ([], 0)
    assert take(outbox) == [late]


@pytest.mark.usefixtures("small")
def test_what_has_expired_while_it_was_read_is_passed_over_and_not_missed() -> None:
    for read_all_the_same in (True, False):
        outbox = connected()
        append(outbox, *[1] * 4)
        deliveries = append(outbox, *[1] * 2, ttl=5)
        take(outbox)
        acknowledge(outbox, 5)
        assert isinstance(wants(durable(outbox))[0], Load)
        durable(outbox).expire_stored(deliveries)
        found = read(*[delivery.seq for delivery in deliveries]) if read_all_the_same else []
        assert outbox.load(DURABLE, found) == ([], 0)
        assert (outbox.queued, durable(outbox).stored, durable(outbox).queued_bytes) == (0, 0, 0)
        (late,) = append(outbox, 1)
        assert take(outbox) == [late]


@pytest.mark.usefixtures("small")
def test_what_has_expired_and_is_not_deleted_yet_is_read_once() -> None:
    outbox = connected()
    append(outbox, *[1] * 4)
    deliveries = append(outbox, *[1] * 2, ttl=5)
    append(outbox, 1)
    take(outbox)
    acknowledge(outbox, 5)
    wants(durable(outbox))
    durable(outbox).expire_stored(deliveries)
    outbox.load(DURABLE, read(*[delivery.seq for delivery in deliveries]))
    (want,) = wants(durable(outbox))
    assert isinstance(want, Load)
    assert want.from_seq == deliveries[-1].seq + 1


@pytest.mark.usefixtures("small")
def test_what_is_read_twice_is_taken_once() -> None:
    outbox = connected()
    deliveries = append(outbox, *[1] * 8)
    take(outbox)
    acknowledge(outbox, 5)
    wants(durable(outbox))
    outbox.load(DURABLE, deliveries[4:6])
    assert outbox.load(DURABLE, deliveries[5:8]) == ([], 0)
    assert [delivery.seq for delivery in durable(outbox).waiting] == [5, 6, 7, 8]
    assert durable(outbox).stored == 0


@pytest.mark.usefixtures("small")
def test_a_message_appended_while_the_storage_is_read_waits_there() -> None:
    # Else what is being read would come behind it.
    outbox = connected()
    append(outbox, *[1] * 5)
    take(outbox)
    acknowledge(outbox, 5)
    (want,) = wants(durable(outbox))
    assert isinstance(want, Load)
    durable(outbox).expire_stored(read(5))
    (late,) = append(outbox, 1)
    assert late.data is None
    assert durable(outbox).stored == 1


@pytest.mark.usefixtures("small")
def test_the_storage_may_forget_what_has_arrived_and_was_read() -> None:
    outbox = connected()
    assert durable(outbox).deletable_below() == 1
    append(outbox, *[1] * 4)
    take(outbox)
    assert durable(outbox).deletable_below() == 1
    acknowledge(outbox, 3, 5)
    assert durable(outbox).deletable_below() == 3


def test_the_storage_must_not_forget_what_has_arrived_and_was_not_read() -> None:
    # Its Deliveries are still to be settled, and its sizes to be accounted for.
    stream = DurableOutStream.restore(stored_stream(next_seq=9, sent_below=9, count=5), None)
    outbox = new_outbox(stream)
    connect(outbox, 7)
    assert stream.deletable_below() == 0
    outbox.load(DURABLE, read(4, 5))
    assert stream.deletable_below() == 6
    outbox.load(DURABLE, read(6, 7, 8))
    assert stream.deletable_below() == 7


# -- Restoring ----------------------------------------------------------------------------------------------------


def test_a_restored_stream_goes_on_where_the_storage_was() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=20, sent_below=15, count=8, size=80), 5.0)
    outbox = new_outbox(stream)
    assert (outbox.queued, stream.queued_bytes) == (8, 80 + 8 * OVERHEAD)
    assert (stream.epoch, stream.expires_at) == (EPOCH, 5.0)
    (delivery,) = append(outbox, 1)
    assert delivery.seq == 20
    assert delivery.data is None  # older ones lie before it
    assert connect(outbox) == Begin(DURABLE, EPOCH, 0, 15)


def test_what_was_allowed_ahead_of_a_restored_streams_messages_was_not_sent() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=20, sent_below=20 + AHEAD, count=1), None)
    outbox = new_outbox(stream)
    assert connect(outbox) == Begin(DURABLE, EPOCH, 0, 20)
    (late,) = append(outbox, 1)
    (old,) = read(19)
    outbox.load(DURABLE, [old])
    assert take(outbox) == [old]  # what was marked need not be marked again
    late.data = b"!"
    outbox.load(DURABLE, [late])
    assert take(outbox) == []
    assert wants(stream) == [Mark("b", 21 + AHEAD)]
    stream.marked(21 + AHEAD)
    assert take(outbox) == [late]


def test_a_restored_stream_without_messages_begins_at_the_next() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=20, sent_below=500), None)
    outbox = new_outbox(stream)
    assert outbox.queued == 0
    assert connect(outbox) == Begin(DURABLE, EPOCH, 20, 20)
    assert append(outbox, 1)[0].seq == 20


def test_restored_messages_are_read_only_when_they_can_be_sent() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=9, count=9), None)
    outbox = new_outbox(stream)
    assert wants(stream) == []
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert wants(stream) == []
    acknowledge(outbox, 0)
    assert [type(want) for want in wants(stream)] == [Mark, Load]


def test_what_a_restored_stream_has_sent_and_the_receiver_has_not_comes_from_the_storage() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=4, sent_below=4, count=4), None)
    outbox = new_outbox(stream)
    connect(outbox, 1, 3)  # 0 is handed over, 1 and 2 wait for callbacks
    deliveries = read(0, 1, 2, 3)
    assert outbox.load(DURABLE, deliveries) == (deliveries[:1], 0)
    assert [delivery.state for delivery in deliveries[1:3]] == [DeliveryState.SENT] * 2  # they wait for callbacks there
    assert take(outbox) == deliveries[3:]
    assert acknowledge(outbox, 4) == deliveries[1:]


# -- Time to live -------------------------------------------------------------------------------------------------


def test_messages_in_memory_expire_as_transient_ones_do() -> None:
    outbox = connected()
    first, second = append(outbox, 1, 2, ttl=5)
    assert outbox.next_expiry() == 5
    assert outbox.expire(5) == [first, second]
    assert (outbox.queued, durable(outbox).loaded_bytes) == (0, 0)
    (third,) = append(outbox, 3)
    assert outbox.take(LARGE) == (DURABLE, EPOCH, 1, [third], [])
    assert third.seq == 3


@pytest.mark.usefixtures("small")
def test_messages_in_the_storage_alone_expire_there() -> None:
    outbox = connected()
    append(outbox, *[1] * 4)
    assert durable(outbox).expires_at is None
    deliveries = append(outbox, 1, ttl=9) + append(outbox, 1, ttl=5) + append(outbox, 1)
    assert durable(outbox).expires_at == 5
    assert outbox.next_expiry() is None  # none of those in memory
    durable(outbox).expire_stored([deliveries[1]])
    assert states(deliveries) == [QUEUED, EXPIRED, QUEUED]
    assert (outbox.queued, durable(outbox).stored) == (6, 2)
    assert durable(outbox).loaded_bytes == 4 * (OVERHEAD + 1)
    assert durable(outbox).known().get(deliveries[1].seq) is None


def test_messages_read_from_the_storage_expire_in_memory() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=3, count=3), 5.0)
    outbox = new_outbox(stream)
    connect(outbox)
    deliveries = read(0, 1, 2, ttl=5)
    outbox.load(DURABLE, deliveries)
    assert outbox.next_expiry() == 5
    assert outbox.expire(5) == deliveries


@pytest.mark.requirement("P-43", "negative")
def test_messages_in_doubt_do_not_expire_until_the_receiver_has_answered() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=9, sent_below=6, count=9), 5.0)
    outbox = new_outbox(stream)
    assert stream.in_doubt_below == 6
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert stream.in_doubt_below == 6
    acknowledge(outbox, 2, 4)
    assert stream.in_doubt_below == 0
    assert stream.expires_at == 0.0  # what has expired meanwhile is looked for at once


def test_a_message_sent_meanwhile_does_not_put_off_the_look_for_what_has_expired() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=9, sent_below=6, count=9), 5.0)
    outbox = new_outbox(stream)
    connect(outbox, 2, 4)
    append(outbox, 1, ttl=1000)
    assert stream.expires_at == 0.0


def test_a_legacy_receiver_can_not_say_so_the_doubt_ends_with_its_connection() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=9, sent_below=6, count=9), 5.0)
    outbox = new_outbox(stream)
    outbox.connect_legacy(LARGE)
    assert (stream.in_doubt_below, stream.expires_at) == (0, 0.0)


def test_nothing_is_in_doubt_that_was_never_stored() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=9, sent_below=9 + AHEAD, count=2), None)
    assert stream.in_doubt_below == 9


def test_a_disconnect_puts_nothing_in_doubt_that_this_process_knows_of() -> None:
    outbox = connected()
    deliveries = append(outbox, 1, 2, ttl=5)
    take(outbox, 1)
    outbox.disconnect()
    assert states(deliveries) == [SENT, QUEUED]
    assert outbox.expire(100) == deliveries[1:]
    connect(outbox, 1)
    assert outbox.expire(100) == deliveries[:1]


# -- Legacy receivers ---------------------------------------------------------------------------------------------


def test_to_a_legacy_receiver_everything_unacknowledged_is_sent_again() -> None:
    stream = DurableOutStream.restore(stored_stream(next_seq=3, sent_below=3, count=3), None)
    outbox = new_outbox(stream)
    outbox.connect_legacy(LARGE)
    assert [type(want) for want in wants(stream)] == [Mark, Load]
    deliveries = read(0, 1, 2)
    outbox.load(DURABLE, deliveries)
    stream.marked(AHEAD)
    assert take(outbox) == deliveries
    assert acknowledge(outbox, 1) == deliveries[:1]
    outbox.disconnect()
    outbox.connect_legacy(LARGE)
    assert take(outbox) == deliveries[1:]


# -- A storage restored from a backup -----------------------------------------------------------------------------


def ahead() -> Outbox:
    """The receiver has got messages 0 to 39, of which the storage knows 0 to 19, and has 15 to 19."""
    outbox = new_outbox(DurableOutStream.restore(stored_stream(next_seq=20, sent_below=20, count=5), 5.0))
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert acknowledge(outbox, 38, 40) == []
    return outbox


@pytest.mark.requirement("P-40", "negative")
def test_a_receiver_that_is_ahead_of_the_storage_makes_the_stream_ask_for_a_new_epoch() -> None:
    outbox = ahead()
    assert durable(outbox).renewing
    assert wants(durable(outbox)) == [Renew("b", NEW_EPOCH)]
    assert wants(durable(outbox)) == []
    assert take(outbox) == []
    assert outbox.queued == 5
    assert durable(outbox).deletable_below() == 0
    # What is sent meanwhile waits for the new epoch too.
    append(outbox, 1)
    assert wants(durable(outbox)) == []
    assert take(outbox) == []


@pytest.mark.requirement("P-40", "positive")
def test_a_renewed_stream_begins_anew_and_everything_is_sent() -> None:
    outbox = ahead()
    wants(durable(outbox))
    (late,) = append(outbox, 1)
    assert outbox.renew(DURABLE, 100) == Begin(DURABLE, 100, 0, 21)
    assert wants(durable(outbox)) == []
    assert acknowledge(outbox, 40, epoch=EPOCH) == []  # of the old numbering, on its way since before
    assert take(outbox) == []
    acknowledge(outbox, 0)
    assert [type(want) for want in wants(durable(outbox))] == [Mark, Load]
    deliveries = [*read(15, 16, 17, 18, 19), late]
    late.data = b"!"
    assert outbox.load(DURABLE, deliveries) == ([], 0)
    durable(outbox).marked(AHEAD)
    assert outbox.take(LARGE) == (DURABLE, 100, 0, deliveries, [])
    assert acknowledge(outbox, 21) == deliveries
    assert durable(outbox).deletable_below() == 21


def test_what_was_appended_behind_the_renewal_waits_for_a_mark() -> None:
    # The storage has renewed the stream before it was given the last message, and does not know that it may be sent.
    outbox = ahead()
    wants(durable(outbox))
    (late,) = append(outbox, 1)
    outbox.renew(DURABLE, 100)
    acknowledge(outbox, 0)
    wants(durable(outbox))
    deliveries = [*read(15, 16, 17, 18, 19), late]
    late.data = b"!"
    outbox.load(DURABLE, deliveries)
    assert take(outbox) == deliveries[:-1]


def test_a_stream_that_is_renewed_after_the_connection_broke_begins_on_the_next_one() -> None:
    outbox = ahead()
    wants(durable(outbox))
    outbox.disconnect()
    assert outbox.renew(DURABLE, 100) is None
    assert connect(outbox) == Begin(DURABLE, 100, 0, 20)


def test_a_connection_that_comes_before_the_new_epoch_is_asked_for_again() -> None:
    # The answer to BEGIN is the same as before; the new epoch is still asked for once.
    outbox = ahead()
    assert wants(durable(outbox)) == [Renew("b", NEW_EPOCH)]
    outbox.disconnect()
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    acknowledge(outbox, 38, 40)
    assert wants(durable(outbox)) == []
    assert outbox.renew(DURABLE, 100) == Begin(DURABLE, 100, 0, 20)


@pytest.mark.requirement("P-38", "negative")
@pytest.mark.requirement("P-40", "negative")
def test_the_volatile_stream_is_never_renewed() -> None:
    outbox = Outbox(Limits(), 7)
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    with pytest.raises(RemoteProtocolError, match="never sent"):
        outbox.acknowledge(Ack(Stream.VOLATILE, 7, 5, 5))


def test_terminating_leaves_persistent_messages_in_their_storage() -> None:
    outbox = connected()
    (persistent,) = append(outbox, 1)
    transient = make_delivery()
    outbox.append(transient, 0)
    assert outbox.discard() == [transient]
    assert persistent.state is QUEUED


# -- Everything together ------------------------------------------------------------------------------------------


@dataclass
class PlayedStorage:
    """What a storage would hold, and how it answers; answers may be late."""

    messages: dict[int, Delivery] = field(default_factory=dict)
    asked: list[StorageRequest] = field(default_factory=list)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(8))
def test_random_use_delivers_every_stored_message_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    outbox = new_outbox()
    stream = durable(outbox)
    storage = PlayedStorage()
    appended: list[Delivery] = []
    pending: list[Delivery] = []  # numbered, and being stored
    on_wire: list[Delivery] = []  # in order; what the receiver got on the present connection comes from its front
    position = 0  # of the receiver, who has handed over all that has arrived below
    arrived: list[int] = []
    expired: set[int] = set()
    state = "away"
    for _ in range(6000):
        match chance.choices(
            ("send", "store", "ask", "answer", "take", "arrive", "ack", "cut", "expire"),
            (20, 20, 20, 20, 20, 25, 15, 2 if state == "connected" else 30, 2),
        )[0]:
            case "send" if stream.queued < 40:
                pending += number(outbox, chance.randint(0, 50))
            case "store" if pending:
                delivery = pending.pop(0)
                if chance.random() < 0.9:  # or else it could not be stored
                    assert delivery.data is not None
                    storage.messages[delivery.seq] = delivery
                    appended.append(delivery)
                    outbox.add_stored([delivery])
            case "ask":
                storage.asked += wants(stream)
            case "answer" if storage.asked:
                want = storage.asked.pop(0)
                match want:
                    case Mark(_, below):
                        stream.marked(below)
                    case Load(_, from_seq, max_count):
                        seqs = [seq for seq in sorted(storage.messages) if seq >= from_seq][:max_count]
                        found = [storage.messages[seq] for seq in seqs]
                        for delivery in found:
                            delivery.data = b"read"
                        _, missing = outbox.load(DURABLE, found)
                        assert missing == 0
            case "take" if state == "connected":
                budget = chance.choice((1, 100, 1000))
                taken = outbox.take(budget)
                if taken is not None:
                    assert taken[4] == []
                    on_wire += taken[3]
                    assert all(delivery.data is not None for delivery in taken[3])
                    assert all(delivery.seq < stream.marked_below for delivery in taken[3])
            case "arrive" if on_wire:
                delivery = on_wire.pop(0)
                assert not arrived or delivery.seq > arrived[-1], "again, or out of order"
                arrived.append(delivery.seq)
                position = delivery.seq + 1
            case "ack" if state == "connected" and position:
                for delivery in acknowledge(outbox, chance.choice((position, max(0, position - 3))), position):
                    assert delivery.seq < position
                for seq in [seq for seq in storage.messages if seq < stream.deletable_below()]:
                    del storage.messages[seq]
            case "cut":
                if state == "connected":
                    outbox.disconnect()
                    on_wire.clear()
                    state = "away"
                else:
                    begin, _ = outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
                    assert begin.sent_below >= position
                    acknowledge(outbox, max(begin.first_seq, position))
                    position = max(begin.first_seq, position)
                    state = "connected"
            case "expire" if stream.stored:
                # The storage finds one that lies in it alone.
                seqs = [seq for seq in storage.messages if seq >= stream.load_from]
                storage.asked += wants(stream)
                if seqs and not any(isinstance(want, Load) for want in storage.asked):
                    seq = chance.choice(seqs)
                    delivery = storage.messages.pop(seq)
                    stream.expire_stored([delivery])
                    expired.add(seq)
        loaded = [*stream.in_flight, *(delivery for delivery in stream.waiting)]
        assert len(loaded) <= 4 + 2
        assert stream.queued == len(loaded) + stream.stored
        assert stream.loaded_bytes == sum(delivery.size for delivery in loaded)
        assert stream.in_flight_bytes == sum(delivery.size for delivery in stream.in_flight)
    assert set(arrived).isdisjoint(expired)
    assert len(arrived) > 100
    assert expired
    done = [delivery for delivery in appended if delivery.state is DELIVERED]
    assert {delivery.seq for delivery in done} <= set(arrived)
    assert [seq for seq in sorted(delivery.seq for delivery in appended) if seq < position and seq not in expired] == (
        arrived
    )
