"""`protocol.messaging` with a storage, whose answers come when the test lets them."""

import copy
import logging
from collections.abc import Iterator

import pytest

from netcomm.errors import StorageCorrupt, StorageError
from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import DURABLE, DeliveryState, Stream
from netcomm.protocol import durable_out_stream, events, storage_sync
from netcomm.protocol.events import Delete, DeleteBelow, FindExpired, Load, Mark, Renew, StorePosition
from netcomm.storage import Append, Position, StoredMessage
from tests.unit import helpers
from tests.unit.helpers import Host, Net, Wire

DELIVERED = DeliveryState.DELIVERED
EXPIRED = DeliveryState.EXPIRED
QUEUED = DeliveryState.QUEUED
SENT = DeliveryState.SENT
AHEAD = 10_000


def pair(net: Net, limits: Limits | None = None) -> tuple[Host, Host, Wire]:
    """A sender and a receiver with a storage each, connected."""
    one = net.host("a", limits, MemoryQueueStorage())
    other = net.host("b", limits, MemoryQueueStorage())
    wire_ = net.connect(one, other)
    net.settle()
    return one, other, wire_


def stored(host: Host, ident: str = "b") -> list[bytes]:
    assert host.storage is not None
    return [message.data for message in host.storage.read(ident, 0, 1 << 30, 1 << 60)]


def filled(net: Net, *payloads: bytes, ttl: float | None = None) -> MemoryQueueStorage:
    """A storage with messages for "b" that an earlier process has left."""
    storage = MemoryQueueStorage()
    messages = [StoredMessage(seq, helpers.UUID, payload, net.wall_now, ttl) for seq, payload in enumerate(payloads)]
    storage.append([Append("b", 99, messages)])
    return storage


def backup(storage: MemoryQueueStorage | None) -> MemoryQueueStorage:
    assert storage is not None
    again = MemoryQueueStorage()
    again._streams = copy.deepcopy(storage._streams)
    again._positions = dict(storage._positions)
    return again


def restart_with(net: Net, host: Host, storage: MemoryQueueStorage) -> Host:
    host.storage = storage
    return net.restart(host)


def kinds_of(requests: object) -> list[type]:
    return [type(request) for request in requests]  # type: ignore[attr-defined]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Eight messages in memory, four read at a time."""
    monkeypatch.setattr(durable_out_stream, "_MAX_LOADED", 8)
    monkeypatch.setattr(durable_out_stream, "_LOAD_COUNT", 4)
    return iter(())


# -- Exchange -----------------------------------------------------------------------------------------------------


def test_persistent_messages_arrive_in_order_and_leave_the_storage() -> None:
    net = Net()
    one, other, _ = pair(net)
    deliveries = [one.send_persistent("b", b"%d" % number) for number in range(50)]
    assert len(stored(one)) == 50
    net.settle()
    assert other.received == [("a", b"%d" % number, False) for number in range(50)]
    assert {delivery.state for delivery in deliveries} == {DELIVERED}
    assert stored(one) == []
    assert other.storage is not None
    assert other.storage.positions()["a"].next_seq == 50
    assert one.messaging.peers.idle
    assert other.messaging.all_handed_over


def test_the_two_streams_are_independent() -> None:
    net = Net()
    one, other, _ = pair(net)
    one.storing = False  # nothing durable may be sent yet
    persistent = one.send_persistent("b", b"persistent")
    transient = one.send("b", b"transient")
    net.settle()
    assert other.payloads() == [b"transient"]
    assert (persistent.state, transient.state) == (QUEUED, DELIVERED)
    one.storing = True
    net.settle()
    assert other.payloads() == [b"transient", b"persistent"]


def test_a_message_is_on_the_wire_only_when_the_storage_has_the_mark() -> None:
    net = Net()
    one, other, _ = pair(net)
    one.storing = False
    one.send_persistent("b", b"x")
    net.settle()
    assert list(one.requests) == [Mark("b", 1 + AHEAD)]
    assert other.payloads() == []
    one.answer()
    net.settle()
    assert other.payloads() == [b"x"]


@pytest.mark.requirement("P-36", "positive")
@pytest.mark.requirement("P-36", "negative")
def test_the_receiver_acknowledges_when_its_position_is_stored() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.storing = False
    before = other.awaited
    deliveries = [one.send_persistent("b", b"%d" % number) for number in range(3)]
    net.settle()
    assert other.payloads() == [b"0", b"1", b"2"]
    assert kinds_of(other.requests) == [StorePosition]
    assert not any(delivery.done for delivery in deliveries)
    assert not other.messaging.storage_sync.all_stored
    assert not other.messaging.all_handed_over
    assert other.awaited == before
    other.answer()
    net.settle()
    assert {delivery.state for delivery in deliveries} == {DELIVERED}
    assert other.messaging.storage_sync.all_stored
    assert other.awaited > before  # the thread that terminates the peer may look


def test_only_the_last_position_counts_as_stored() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.storing = False
    for number in range(2):
        one.send_persistent("b", b"%d" % number)
        net.settle()
    assert kinds_of(other.requests) == [StorePosition, StorePosition]
    other.answer(1)
    assert not other.messaging.storage_sync.all_stored
    other.answer(1)
    assert other.messaging.storage_sync.all_stored


def test_a_position_stored_after_the_connection_broke_is_told_on_the_next() -> None:
    net = Net()
    one, other, wire_ = pair(net)
    other.storing = False
    delivery = one.send_persistent("b", b"x")
    net.settle()
    wire_.cut()
    other.answer()
    net.settle()
    assert not delivery.done
    net.connect(one, other)
    net.settle()
    assert delivery.state is DELIVERED
    assert other.payloads() == [b"x"]


def test_without_a_storage_durable_messages_are_acknowledged_when_they_are_handed_over() -> None:
    net = Net()
    one, other = net.host("a", storage=MemoryQueueStorage()), net.host("b")
    net.connect(one, other)
    net.settle()
    assert one.send_persistent("b", b"x").state is QUEUED
    net.settle()
    assert one.messaging.peers.idle
    assert kinds_of(other.happened(StorePosition)) == []


def test_what_is_dropped_is_deleted() -> None:
    net = Net()
    one = net.host("a", Limits(max_frame_bytes=10_000), MemoryQueueStorage())
    other = net.host("b", Limits(max_frame_bytes=200), MemoryQueueStorage())
    net.connect(one, other)
    net.settle()
    large, small = one.send_persistent("b", bytes(1000)), one.send_persistent("b", b"x")
    net.settle()
    assert (large.state, small.state) == (DeliveryState.REJECTED, DELIVERED)
    assert one.happened(Delete) == [Delete("b", [large.seq])]
    assert stored(one) == []


@pytest.mark.requirement("P-29", "negative")
def test_a_message_that_could_not_be_stored_leaves_a_gap_that_nobody_minds() -> None:
    net = Net()
    one, other, _ = pair(net)
    failed = one.number("b", b"failed")
    second = one.number("b", b"second")
    one.store(second)
    net.settle()
    third = one.send_persistent("b", b"third")
    net.settle()
    assert (failed.seq, second.seq, third.seq) == (0, 1, 2)
    assert other.payloads() == [b"second", b"third"]
    assert second.state is third.state is DELIVERED


def test_a_connection_that_comes_between_numbering_and_storing_skips_nothing() -> None:
    net = Net()
    one = net.host("a", storage=MemoryQueueStorage())
    other = net.host("b", storage=MemoryQueueStorage())
    early = one.number("b", b"early")
    net.connect(one, other)
    net.settle()
    late = one.number("b", b"late")
    one.store(early)
    one.store(late)
    net.settle()
    assert other.payloads() == [b"early", b"late"]


def test_ending_waits_for_what_can_be_delivered_and_for_what_would_be_discarded() -> None:
    net = Net()
    one, other, wire_ = pair(net)
    other.holding = True
    one.send_persistent("b", b"x")
    net.settle()
    assert not one.messaging.peers.may_end
    wire_.cut()
    net.settle()
    assert one.messaging.peers.may_end  # it is in the storage
    assert not one.messaging.peers.idle
    one.send("b", b"transient")
    assert not one.messaging.peers.may_end


def test_discarding_leaves_persistent_messages_alone() -> None:
    net = Net()
    one = net.host("a", storage=MemoryQueueStorage())
    persistent, transient = one.send_persistent("b", b"x"), one.send("b", b"y")
    one.messaging.discard_all()
    net.settle()
    assert (persistent.state, transient.state) == (QUEUED, DeliveryState.DISCARDED)
    assert one.happened(events.Dropped) == [events.Dropped([transient])]
    assert stored(one) == [b"x"]


# -- Restoring ----------------------------------------------------------------------------------------------------


def test_what_an_earlier_process_has_left_is_sent() -> None:
    net = Net()
    one = net.host("a", storage=filled(net, b"0", b"1"))
    other = net.host("b", storage=MemoryQueueStorage())
    assert one.messaging.peers.stats()["b"].queued == 2
    late = one.send_persistent("b", b"2")
    net.connect(one, other)
    net.settle()
    assert other.received == [("a", b"%d" % number, False) for number in range(3)]
    assert late.state is DELIVERED
    assert stored(one) == []
    assert one.messaging.peers.stats()["b"].delivered == 3


def test_the_senders_death_loses_and_repeats_nothing() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    for number in range(10):
        one.send_persistent("b", b"%d" % number)
    net.settle()
    other.hand_over(4)
    net.settle()
    again = net.restart(one)
    again.send_persistent("b", b"10")
    net.connect(again, other)
    other.holding = False
    net.settle()
    assert other.received == [("a", b"%d" % number, False) for number in range(11)]
    assert stored(again) == []


@pytest.mark.requirement("P-35", "positive")
@pytest.mark.requirement("P-35", "negative")
def test_the_receivers_death_repeats_only_what_it_had_not_stored_and_marks_it() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.storing = False
    for number in range(4):
        one.send_persistent("b", b"%d" % number)
        net.settle()
    assert len(other.received) == 4
    other.answer(2)  # the position behind 1
    again = net.restart(other)
    one.send_persistent("b", b"4")
    net.connect(one, again)
    net.settle()
    assert again.received == [("a", b"2", True), ("a", b"3", True), ("a", b"4", False)]
    assert stored(one) == []


def test_both_sides_may_die_at_once() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.storing = False
    for number in range(3):
        one.send_persistent("b", b"%d" % number)
        net.settle()
    other.answer(1)
    one, other = net.restart(one), net.restart(other)
    net.connect(one, other)
    net.settle()
    assert other.received == [("a", b"1", True), ("a", b"2", True)]
    assert stored(one) == []


def test_positions_outlive_their_senders_absence_and_a_flood_of_strangers() -> None:
    net = Net()
    storage = MemoryQueueStorage()
    storage.store_positions({"b": Position(99, 7)})
    host = net.host("a", Limits(max_idle_peers=2), storage)
    for number in range(20):
        end = net.raw(host)
        net.exchange(end, helpers.netcomm_handshake(f"stranger-{number}") + helpers.begin())
        end.lose()
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin(99, 5, 9, stream=1))
    assert said[-1] == helpers.packets(helpers.ack(7, 1, epoch=99))[0]


@pytest.mark.requirement("P-44", "negative")
def test_the_wall_clock_set_back_lets_no_message_live_longer_than_it_was_given() -> None:
    net = Net()
    storage = filled(net, b"x", ttl=10)
    net.wall_offset -= 1000
    one = net.host("a", storage=storage)
    end = net.raw(one)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    said = net.exchange(end, helpers.ack(0, 1, epoch=99))
    (payload,) = [payload for kind, payload in said if kind == helpers.DATA]
    assert int.from_bytes(payload[24:28]) == 10


def test_a_stored_message_that_is_missing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    storage = filled(net, b"0", b"1")
    one = net.host("a", storage=storage)
    storage.delete("b", [0, 1])
    net.connect(one, net.host("b"))
    net.settle()
    (failed,) = one.happened(events.ErrorReported)
    assert isinstance(failed, events.ErrorReported)
    assert isinstance(failed.error, StorageCorrupt)
    assert "2 messages for 'b'" in str(failed.error)
    assert one.messaging.peers.idle


@pytest.mark.usefixtures("small")
def test_a_backlog_passes_through_memory_in_parts() -> None:
    net = Net()
    one = net.host("a", storage=filled(net, *[b"%d" % number for number in range(100)]))
    other = net.host("b", storage=MemoryQueueStorage())
    net.connect(one, other)
    while not one.messaging.peers.idle:
        assert net.step()
        durable = one.messaging.peers["b"].outbox.durables[DURABLE]
        assert durable is not None
        assert len(durable.waiting) + len(durable.in_flight) <= 8
    net.settle()
    assert other.payloads() == [b"%d" % number for number in range(100)]
    assert len(one.happened(Load)) >= 13
    assert stored(one) == []


@pytest.mark.usefixtures("small")
def test_the_delivery_of_a_message_that_was_in_the_storage_alone_is_the_users() -> None:
    net = Net()
    one = net.host("a", storage=MemoryQueueStorage())
    deliveries = [one.send_persistent("b", b"%d" % number) for number in range(30)]
    net.connect(one, net.host("b"))
    net.settle()
    assert {delivery.state for delivery in deliveries} == {DELIVERED}


# -- Time to live -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_expired_messages_that_the_storage_can_not_delete_are_not_looked_for_without_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_sync, "_FIND_COUNT", 3)
    net = Net()
    one = net.host("a", storage=MemoryQueueStorage())
    monkeypatch.setattr(one.storage, "delete", lambda ident, seqs: None)  # as if it failed, and were tried again later
    for _ in range(20):
        one.send_persistent("b", b"x", ttl=10)
    net.advance(10.5)
    assert len(one.happened(FindExpired)) <= 10
    net.advance(5)
    assert len(one.happened(FindExpired)) <= 20


@pytest.mark.usefixtures("small")
def test_stored_messages_expire_at_their_time_without_a_connection() -> None:
    net = Net()
    one = net.host("a", storage=MemoryQueueStorage())
    kept = [one.send_persistent("b", b"kept") for _ in range(8)]
    first = one.send_persistent("b", b"first", ttl=10)
    second = one.send_persistent("b", b"second", ttl=20)
    net.advance(9.9)
    assert not first.done
    net.advance(0.2)
    assert (first.state, second.state) == (EXPIRED, QUEUED)
    assert one.happened(events.Dropped) == [events.Dropped([first])]
    net.advance(10)
    assert second.state is EXPIRED
    assert stored(one) == [b"kept"] * 8
    assert {delivery.state for delivery in kept} == {QUEUED}
    assert one.messaging.deadline() is None


@pytest.mark.requirement("P-44", "positive")
def test_messages_of_an_earlier_process_expire_before_they_are_read() -> None:
    net = Net()
    storage = filled(net, b"0", b"1", ttl=10)
    net.advance(5)
    one = net.host("a", storage=storage)
    net.advance(4.9)
    assert len(stored(one)) == 2
    net.advance(0.2)
    assert stored(one) == []
    (dropped,) = one.happened(events.Dropped)
    assert isinstance(dropped, events.Dropped)
    assert [(delivery.seq, delivery.state, delivery.data) for delivery in dropped.deliveries] == [
        (0, EXPIRED, b"0"),
        (1, EXPIRED, b"1"),
    ]
    assert one.messaging.peers.idle


@pytest.mark.requirement("P-43", "positive")
@pytest.mark.requirement("P-43", "negative")
def test_messages_in_doubt_expire_only_when_the_receiver_has_said_that_it_has_not_got_them() -> None:
    net = Net()
    storage = filled(net, b"0", b"1", b"2", b"3", ttl=10)
    storage.mark_sent("b", 3)
    net.advance(100)
    one = net.host("a", storage=storage)
    net.advance(100)
    assert stored(one) == [b"0", b"1", b"2"]  # 3 was certainly not sent
    end = net.raw(one)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    net.exchange(end, helpers.ack(1, 1, epoch=99, received=1))
    net.advance(1)
    assert stored(one) == []
    assert one.messaging.peers.stats()["b"].delivered == 1
    assert one.messaging.peers.stats()["b"].dropped == 3
    assert one.messaging.peers.idle
    assert net.exchange(end) == []


@pytest.mark.usefixtures("small")
def test_a_stored_message_that_has_expired_while_it_was_being_read_ends_once() -> None:
    # Both requests were under way when the first was answered; the message is deleted only after the second.
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    deliveries = [one.send_persistent("b", b"%d" % number, ttl=None if number < 8 else 10) for number in range(12)]
    net.settle()
    one.storing = False
    net.advance(10)
    other.hand_over()
    net.settle()
    assert kinds_of(one.requests)[:1] == [FindExpired]
    assert Load in kinds_of(one.requests)
    one.storing = True
    other.holding = False
    net.settle()
    net.advance(1)
    assert [delivery.state for delivery in deliveries] == [DELIVERED] * 8 + [EXPIRED] * 4
    dropped = [delivery for event in one.happened(events.Dropped) for delivery in event.deliveries]
    assert sorted(delivery.seq for delivery in dropped) == [8, 9, 10, 11]
    assert one.messaging.peers.stats()["b"].queued == 0
    late = one.send_persistent("b", b"late")
    net.settle()
    assert late.state is DELIVERED
    assert one.happened(events.ErrorReported) == []


@pytest.mark.usefixtures("small")
def test_stored_messages_that_have_expired_are_not_missed_by_a_reading_that_was_late() -> None:
    # Reading failed at first, and was tried again after they had been deleted.
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    for number in range(12):
        one.send_persistent("b", b"%d" % number, ttl=None if number < 8 else 10)
    net.settle()
    one.storing = False
    net.advance(10)
    other.hand_over()
    net.settle()
    late = [request for request in one.requests if isinstance(request, Load)]
    one.requests = type(one.requests)(request for request in one.requests if not isinstance(request, Load))
    one.answer()
    net.settle()
    one.answer()
    one.requests.extend(late)
    one.storing = True
    net.settle()
    assert one.messaging.peers.stats()["b"].queued == 0
    assert one.happened(events.ErrorReported) == []


@pytest.mark.usefixtures("small")
def test_a_stored_message_expires_once_even_where_it_can_not_be_deleted() -> None:
    # A full disk can be read, and nothing on it can be deleted.
    net = Net()
    one = net.host("a", storage=MemoryQueueStorage())
    for _ in range(8):
        one.send_persistent("b", b"kept")
    deliveries = [one.send_persistent("b", b"%d" % ttl, ttl=ttl) for ttl in (10, 20, 30)]
    one.storing = False
    for _ in range(4):
        net.advance(10)
        one.requests = type(one.requests)(request for request in one.requests if not isinstance(request, Delete))
        one.answer()
        net.settle()
    dropped = [delivery for event in one.happened(events.Dropped) for delivery in event.deliveries]
    assert [delivery.seq for delivery in dropped] == [8, 9, 10]
    assert {delivery.state for delivery in deliveries} == {EXPIRED}
    assert one.messaging.peers.stats()["b"].queued == 8
    assert one.messaging.peers.stats()["b"].dropped == 3


# -- Deleting -----------------------------------------------------------------------------------------------------


def test_deleting_is_asked_for_by_what_was_acknowledged() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    for number in range(5):
        one.send_persistent("b", b"%d" % number)
    net.settle()
    other.hand_over(3)
    net.settle()
    assert one.happened(DeleteBelow) == [DeleteBelow("b", 3)]
    assert stored(one) == [b"3", b"4"]


# -- Backups ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-40", "positive")
@pytest.mark.requirement("P-25", "negative")
def test_a_sender_restored_from_a_backup_takes_a_new_epoch_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Net()
    one, other, _ = pair(net)
    one.send_persistent("b", b"old")
    other.holding = True
    net.settle()
    old = backup(one.storage)
    other.holding = False
    for number in range(5):
        one.send_persistent("b", b"%d" % number)
    net.settle()
    again = restart_with(net, one, old)
    for number in range(3):
        again.send_persistent("b", b"new-%d" % number)
    again.storing = False
    net.connect(again, other)
    net.settle()
    assert kinds_of(again.requests) == [Renew]
    (failed,) = again.happened(events.ErrorReported)
    assert isinstance(failed, events.ErrorReported)
    assert isinstance(failed.error, StorageError)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert other.payloads()[6:] == []
    again.storing = True
    net.settle()
    # What is in the backup is sent once more; of none of it the sender knows whether it was sent before.
    assert other.received[6:] == [("a", payload, True) for payload in (b"old", b"new-0", b"new-1", b"new-2")]
    assert stored(again) == []
    assert again.messaging.peers.idle
    assert len(again.happened(events.ErrorReported)) == 1


def test_a_renewal_that_is_late_begins_the_stream_on_the_connection_of_its_time() -> None:
    net = Net()
    one, other, _ = pair(net)
    old = backup(one.storage)
    for number in range(5):
        one.send_persistent("b", b"%d" % number)
    net.settle()
    # The backup knows nothing of the stream: give it one message, so that it has the epoch.
    assert one.storage is not None
    (state,) = one.storage.streams()
    old.append([Append("b", state.epoch, [StoredMessage(0, helpers.UUID, b"0", net.wall_now, None)])])
    again = restart_with(net, one, old)
    again.storing = False
    first = net.connect(again, other)
    net.settle()
    assert kinds_of(again.requests) == [Renew]
    first.cut()
    net.settle()
    net.connect(again, other)
    net.settle()
    assert kinds_of(again.requests) == [Renew]
    again.storing = True
    net.settle()
    assert other.received[5:] == [("a", b"0", True)]
    assert again.messaging.peers.idle


def test_a_receiver_restored_from_a_backup_goes_on_and_marks() -> None:
    net = Net()
    one, other, _ = pair(net)
    one.send_persistent("b", b"0")
    net.settle()
    old = backup(other.storage)
    for number in range(1, 5):
        one.send_persistent("b", b"%d" % number)
    net.settle()
    again = restart_with(net, other, old)
    net.connect(one, again)
    net.settle()
    one.send_persistent("b", b"5")
    net.settle()
    # 1 to 4 were acknowledged, and are gone at the sender.
    assert again.received == [("a", b"5", False)]
    assert again.storage is not None
    assert again.storage.positions()["a"].next_seq == 6


# -- Everything together ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(6))
def test_random_cuts_and_deaths_lose_no_persistent_message(seed: int) -> None:
    net = Net(seed, max_chunk=200)
    net.high, net.budget = 1000, 300
    chance = net.random
    one = net.host("a", storage=MemoryQueueStorage())
    other = net.host("b", storage=MemoryQueueStorage())
    wire_ = net.connect(one, other)
    handed: list[tuple[bytes, bool]] = []
    mortal: set[bytes] = set()
    dropped: list[bytes] = []
    deaths = cuts = 0

    def note_drops() -> None:
        for event in one.happened(events.Dropped):
            assert isinstance(event, events.Dropped)
            dropped.extend(delivery.data or b"?" for delivery in event.deliveries)

    for number in range(800):
        ttl = chance.choice((None, None, 0.3))
        payload = b"%d" % number
        if ttl is not None:
            mortal.add(payload)
        one.send_persistent("b", payload, ttl)
        for host in (one, other):
            host.storing = chance.random() < 0.6
            host.answer(chance.randint(0, 2))
        other.holding = chance.random() < 0.5
        if other.holding:
            other.hand_over(chance.randint(0, 5))
        for _ in range(chance.randint(0, 6)):
            net.step()
        net.now += chance.random() / 50
        one.messaging.tick(net.now)
        fate = chance.random()
        if fate < 0.02:
            handed += [item[1:] for item in other.received]
            other = net.restart(other)
            deaths += 1
        elif fate < 0.04:
            note_drops()
            one = net.restart(one)
            deaths += 1
        elif fate < 0.08:
            wire_.cut()
            cuts += 1
        else:
            continue
        net.wires = [wire_ := net.connect(one, other)]
    one.storing = other.storing = True
    other.holding = False
    net.settle()
    net.advance(2)
    handed += [item[1:] for item in other.received]
    note_drops()
    seen: set[bytes] = set()
    for payload, redelivered in handed:
        assert redelivered or payload not in seen, f"{payload!r} again, and not marked"
        seen.add(payload)
    everything = {b"%d" % number for number in range(800)}
    assert seen | set(dropped) == everything
    assert set(dropped) <= mortal
    assert seen.isdisjoint(dropped), "handed over, and reported as expired"
    fresh = [int(payload) for payload, redelivered in handed if not redelivered]
    assert fresh == sorted(fresh)
    assert deaths > 10
    assert cuts > 10
    assert stored(one) == []
    assert one.messaging.peers.idle
    assert other.messaging.all_handed_over
    for host in (one, other):
        failures = [event.error for event in host.events if isinstance(event, events.ErrorReported)]
        assert not any(isinstance(error, StorageError) for error in failures)
    durable = one.messaging.peers["b"].outbox.durables[DURABLE]
    assert durable is not None
    assert (durable.queued, durable.queued_bytes, durable.stored, durable.loaded_bytes) == (0, 0, 0, 0)
    assert Stream.DURABLE in other.messaging.peers["a"].inbox._streams
