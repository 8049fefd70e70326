"""`protocol.outbox`: order, window, time to live, what is in flight, and that each message ends exactly once."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from netcomm.errors import RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import Delivery, DeliveryState, Stream
from netcomm.protocol.batch import Batch, Entry, Run
from netcomm.protocol.frames import Ack, Begin
from netcomm.protocol.outbox import Outbox
from tests.unit.helpers import OVERHEAD, make_delivery, not_waited_for

VOLATILE = Stream.VOLATILE
QUEUED = DeliveryState.QUEUED
SENT = DeliveryState.SENT
DELIVERED = DeliveryState.DELIVERED
EXPIRED = DeliveryState.EXPIRED
REJECTED = DeliveryState.REJECTED
DISCARDED = DeliveryState.DISCARDED

NO_BUDGET_LIMIT = 1 << 40
LARGE = 1 << 30

RECEIVER_BOOT = b"r" * 16
NEXT_BOOT = b"s" * 16


def new_outbox(window: int = LARGE, **limits: int) -> Outbox:
    return Outbox(Limits(window_bytes=window, **limits), 7)


def connect(outbox: Outbox, window: int = LARGE, max_packet: int = LARGE, position: int | None = None) -> Begin:
    """A netcomm peer connects, and answers BEGIN with `position`, or with the first seq that it names."""
    (begin,) = outbox.connect(window, max_packet, RECEIVER_BOOT)
    acknowledge(outbox, begin.first_seq if position is None else position)
    return begin


def acknowledge(outbox: Outbox, next_seq: int, received_seq: int | None = None, epoch: int = 7) -> list[Delivery]:
    """The receiver has handed over what is below `next_seq`; nothing else has arrived, where that is not said."""
    return outbox.acknowledge(Ack(VOLATILE, epoch, next_seq, next_seq if received_seq is None else received_seq))


def connected(window: int = LARGE, max_packet: int = LARGE, **limits: int) -> Outbox:
    outbox = new_outbox(**limits)
    connect(outbox, window, max_packet)
    return outbox


def append(outbox: Outbox, *sizes: int, ttl: float | None = None, now: float = 0.0) -> list[Delivery]:
    """Queue messages of so many bytes on the wire."""
    deliveries = [make_delivery(payload=bytes(size - OVERHEAD), ttl=ttl, now=now) for size in sizes]
    assert [outbox.append(delivery, now) for delivery in deliveries] == [1] * len(deliveries)
    return deliveries


def append_run(outbox: Outbox, *sizes: int, ttl: float) -> Run:
    """Queue messages of one call."""
    payloads = [bytes(size - OVERHEAD) for size in sizes]
    run = Batch("b", b"prefix-8", 0, payloads, OVERHEAD, ttl, not_waited_for).run()
    assert outbox.append(run, 0.0) == len(sizes)
    return run


def take(outbox: Outbox, budget: int = NO_BUDGET_LIMIT) -> list[Delivery]:
    taken = outbox.take(budget)
    return [] if taken is None else taken[3]


def counters(outbox: Outbox) -> tuple[int, int, int, int]:
    return outbox.queued, outbox.volatile.queued_bytes, outbox.in_flight, outbox.volatile.in_flight_bytes


def states(deliveries: list[Delivery]) -> list[DeliveryState]:
    return [delivery.state for delivery in deliveries]


# -- Order --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-29", "positive")
def test_messages_are_numbered_and_taken_in_order() -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 60, 70)
    assert [delivery.seq for delivery in deliveries] == [0, 1, 2]
    assert states(deliveries) == [QUEUED] * 3
    assert counters(outbox) == (3, 180, 0, 0)
    assert outbox.take(NO_BUDGET_LIMIT) == (VOLATILE, 7, 0, deliveries, [])
    assert states(deliveries) == [SENT] * 3
    assert counters(outbox) == (3, 180, 3, 180)
    assert outbox.take(NO_BUDGET_LIMIT) is None


@pytest.mark.requirement("P-38", "positive")
def test_acknowledgements_are_cumulative() -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 60, 70)
    take(outbox)
    assert acknowledge(outbox, 2) == deliveries[:2]
    assert states(deliveries) == [DELIVERED, DELIVERED, SENT]
    assert counters(outbox) == (1, 70, 1, 70)
    assert acknowledge(outbox, 2) == []
    assert acknowledge(outbox, 1) == []
    assert acknowledge(outbox, 3) == deliveries[2:]
    assert counters(outbox) == (0, 0, 0, 0)


def test_what_is_delivered_holds_its_payload_no_more() -> None:
    outbox = connected()
    (delivery,) = append(outbox, 50)
    take(outbox)
    assert delivery.data is not None
    acknowledge(outbox, 1)
    assert delivery.data is None


@pytest.mark.requirement("P-38", "negative")
@pytest.mark.parametrize("position", [1, 2, 2**64 - 1])
def test_acknowledging_what_was_never_sent_is_an_error(position: int) -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 50)
    with pytest.raises(RemoteProtocolError, match="never sent"):
        acknowledge(outbox, position)
    assert states(deliveries) == [QUEUED] * 2
    assert counters(outbox) == (2, 100, 0, 0)


@pytest.mark.requirement("P-32", "negative")
def test_acknowledging_a_stream_that_was_not_begun_is_an_error() -> None:
    with pytest.raises(RemoteProtocolError, match="DURABLE"):
        connected().acknowledge(Ack(Stream.DURABLE, 7, 0, 0))


# -- Begin and its answer -----------------------------------------------------------------------------------------


def test_an_empty_stream_begins_where_the_next_message_will_be() -> None:
    outbox = new_outbox()
    assert connect(outbox) == Begin(VOLATILE, 7, 0, 0)
    append(outbox, 50, 50)
    take(outbox)
    acknowledge(outbox, 2)
    outbox.disconnect()
    assert connect(outbox) == Begin(VOLATILE, 7, 2, 2)


@pytest.mark.requirement("P-33", "positive")
def test_begin_names_the_first_message_and_what_was_on_the_wire() -> None:
    outbox = connected(window=100)
    append(outbox, 50, 50, 50)
    assert len(take(outbox)) == 2
    outbox.disconnect()
    assert connect(outbox) == Begin(VOLATILE, 7, 0, 2)


@pytest.mark.requirement("P-28", "negative")
def test_nothing_is_taken_before_the_answer_to_begin() -> None:
    outbox = new_outbox()
    deliveries = append(outbox, 50)
    assert outbox.take(NO_BUDGET_LIMIT) is None
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert outbox.take(NO_BUDGET_LIMIT) is None
    acknowledge(outbox, 0)
    assert take(outbox) == deliveries


def test_nothing_is_taken_after_a_disconnect() -> None:
    for legacy in (True, False):
        outbox = connected()
        if legacy:
            outbox.disconnect()
            outbox.connect_legacy(LARGE)
        outbox.disconnect()
        append(outbox, 50)
        assert outbox.take(NO_BUDGET_LIMIT) is None


def test_a_legacy_peer_that_refuses_leaves_in_doubt_what_a_netcomm_peer_may_have() -> None:
    outbox = connected()
    deliveries = append(outbox, 50)
    assert take(outbox) == deliveries
    outbox.disconnect()
    outbox.disconnect()  # of a legacy connection, which was closed before it counted as one
    assert [delivery.state for delivery in deliveries] == [DeliveryState.SENT]


@pytest.mark.requirement("P-28", "positive")
@pytest.mark.requirement("P-37", "positive")
@pytest.mark.parametrize("position", range(4))
def test_the_answer_to_begin_says_what_arrived_and_the_rest_is_sent_again(position: int) -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 60, 70)
    take(outbox)
    late = append(outbox, 80)
    outbox.disconnect()
    assert states(deliveries) == [SENT] * 3
    assert counters(outbox) == (4, 260, 3, 180)
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert acknowledge(outbox, position) == deliveries[:position]
    assert states(deliveries[position:]) == [QUEUED] * (3 - position)
    assert counters(outbox)[2:] == (0, 0)
    assert outbox.take(NO_BUDGET_LIMIT) == (VOLATILE, 7, position, deliveries[position:] + late, [])


@pytest.mark.requirement("P-28", "negative")
@pytest.mark.requirement("P-43", "negative")
@pytest.mark.parametrize(("handed", "arrived"), [(0, 2), (1, 2), (1, 3), (0, 3), (2, 2)])
def test_what_has_arrived_and_waits_for_callbacks_is_not_sent_again_and_can_not_expire(
    handed: int, arrived: int
) -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 60, 70, ttl=5)
    take(outbox)
    outbox.disconnect()
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert acknowledge(outbox, handed, arrived) == deliveries[:handed]
    assert states(deliveries) == [DELIVERED] * handed + [SENT] * (arrived - handed) + [QUEUED] * (3 - arrived)
    assert outbox.volatile.in_flight_bytes == sum(delivery.size for delivery in deliveries[handed:arrived])
    assert outbox.expire(100) == deliveries[arrived:]
    late = append(outbox, 80)
    assert outbox.take(NO_BUDGET_LIMIT) == (VOLATILE, 7, arrived, late, [])
    assert acknowledge(outbox, arrived) == deliveries[handed:arrived]
    assert acknowledge(outbox, 4) == late
    assert counters(outbox) == (0, 0, 0, 0)


@pytest.mark.requirement("P-45", "negative")
def test_what_has_arrived_takes_its_part_of_the_window() -> None:
    outbox = connected(window=100)
    deliveries = append(outbox, 50, 50, 50)
    take(outbox)
    outbox.disconnect()
    outbox.connect(100, LARGE, RECEIVER_BOOT)
    acknowledge(outbox, 0, 1)
    assert take(outbox) == deliveries[1:2]
    assert outbox.volatile.in_flight_bytes == 100
    assert take(outbox) == []
    acknowledge(outbox, 1)
    assert take(outbox) == deliveries[2:]


def test_what_has_arrived_later_than_the_answer_to_begin_changes_nothing() -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 50, 50)
    take(outbox)
    assert acknowledge(outbox, 0, 3) == []
    assert acknowledge(outbox, 1, 1) == deliveries[:1]
    assert states(deliveries[1:]) == [SENT] * 2


@pytest.mark.requirement("P-38", "negative")
def test_more_that_has_arrived_than_was_sent_is_an_error() -> None:
    outbox = connected()
    append(outbox, 50, 50)
    take(outbox, 1)
    with pytest.raises(RemoteProtocolError, match="seq 1, which was never sent"):
        acknowledge(outbox, 1, 2)
    outbox.disconnect()
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    with pytest.raises(RemoteProtocolError, match="seq 1, which was never sent"):
        acknowledge(outbox, 0, 2)


@pytest.mark.requirement("P-39", "positive")
def test_the_acknowledgement_of_another_epoch_is_passed_over() -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 50)
    take(outbox)
    assert acknowledge(outbox, 2, epoch=8) == []
    assert acknowledge(outbox, 2**63, epoch=8) == []
    assert states(deliveries) == [SENT] * 2
    outbox.disconnect()
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert acknowledge(outbox, 0, epoch=8) == []
    assert outbox.take(NO_BUDGET_LIMIT) is None  # it was no answer to BEGIN
    assert acknowledge(outbox, 0) == []
    assert take(outbox) == deliveries


def test_an_answer_ahead_of_what_was_sent_is_an_error() -> None:
    outbox = connected()
    append(outbox, 50, 50)
    take(outbox, 1)
    outbox.disconnect()
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    with pytest.raises(RemoteProtocolError):
        acknowledge(outbox, 2)


def test_the_receivers_position_tells_the_wire_of_gaps() -> None:
    outbox = new_outbox()
    append(outbox, 50, ttl=1)
    kept = append(outbox, 50)
    outbox.expire(1)
    connect(outbox, position=0)
    assert outbox.take(NO_BUDGET_LIMIT) == (VOLATILE, 7, 0, kept, [])
    assert kept[0].seq == 1
    more = append(outbox, 50)
    assert outbox.take(NO_BUDGET_LIMIT) == (VOLATILE, 7, 2, more, [])


def test_no_message_is_lost_where_memory_runs_out_while_the_answer_puts_messages_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    outbox = connected()
    append_run(outbox, 50, 50, 50, ttl=1000)
    append(outbox, 60)
    take(outbox)
    outbox.disconnect()
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "split", no_memory)
        with pytest.raises(MemoryError):
            acknowledge(outbox, 0, 2)
    outbox.take_back()
    outbox.disconnect()
    connect(outbox, position=0)
    assert [(entry.seq, entry.count) for entry in take(outbox)] == [(0, 3), (3, 1)]
    assert counters(outbox) == (4, 210, 4, 210)


def test_no_message_is_lost_where_memory_runs_out_while_a_run_is_split() -> None:
    class FullDeque(deque[Entry]):
        def appendleft(self, entry: Entry) -> None:
            raise MemoryError

    outbox = connected(window=100)
    append_run(outbox, 50, 50, 50, ttl=1000)
    outbox.volatile.waiting = FullDeque(outbox.volatile.waiting)
    with pytest.raises(MemoryError):
        take(outbox)
    outbox.take_back()
    outbox.volatile.waiting = deque(outbox.volatile.waiting)
    outbox.disconnect()
    connect(outbox)
    assert [(entry.seq, entry.count) for entry in take(outbox)] == [(0, 3)]


# -- The window and the budget ------------------------------------------------------------------------------------


@pytest.mark.requirement("P-45", "positive")
@pytest.mark.requirement("P-45", "negative")
def test_no_more_is_in_flight_than_the_window() -> None:
    outbox = connected(window=150)
    deliveries = append(outbox, 50, 50, 50, 50)
    assert take(outbox) == deliveries[:3]
    assert take(outbox) == []
    acknowledge(outbox, 1)
    assert take(outbox) == deliveries[3:]


def test_the_smaller_window_of_the_two_sides_counts() -> None:
    for own, other in ((100, 1000), (1000, 100)):
        outbox = new_outbox(own)
        connect(outbox, other)
        append(outbox, 50, 50, 50)
        assert len(take(outbox)) == 2


@pytest.mark.requirement("P-45", "positive")
def test_one_message_larger_than_the_window_goes_alone() -> None:
    outbox = connected(window=150)
    small, large, last = append(outbox, 50, 500, 50)
    assert take(outbox) == [small]
    assert take(outbox) == []
    acknowledge(outbox, 1)
    assert take(outbox) == [large]
    assert take(outbox) == []
    acknowledge(outbox, 2)
    assert take(outbox) == [last]


def test_a_small_message_does_not_overtake_a_large_one() -> None:
    outbox = connected(window=150)
    append(outbox, 50, 140, 50)
    assert len(take(outbox)) == 1
    assert take(outbox) == []


def test_the_window_is_free_again_when_the_answer_has_put_everything_back() -> None:
    outbox = connected(window=100)
    deliveries = append(outbox, 50, 50, 50)
    take(outbox)
    outbox.disconnect()
    connect(outbox, window=100)
    assert take(outbox) == deliveries[:2]
    assert outbox.volatile.in_flight_bytes == 100


def test_a_take_stops_behind_the_message_that_uses_up_the_budget() -> None:
    outbox = connected()
    deliveries = append(outbox, *[50] * 10)
    assert take(outbox, 1) == deliveries[:1]
    assert take(outbox, 100) == deliveries[1:3]
    assert take(outbox, 101) == deliveries[3:6]
    assert outbox.take(0) is None
    assert take(outbox) == deliveries[6:]


# -- Time to live -------------------------------------------------------------------------------------------------


def test_ttl_0_ends_at_once_while_not_connected() -> None:
    outbox = new_outbox()
    (delivery,) = append(outbox, 50, ttl=0)
    assert delivery.state is EXPIRED
    assert counters(outbox) == (0, 0, 0, 0)
    assert outbox.next_expiry() is None
    # It has taken no number: nothing needs to be skipped.
    assert append(outbox, 50)[0].seq == 0


def test_ttl_0_is_sent_while_connected() -> None:
    for legacy in (True, False):
        outbox = new_outbox()
        if legacy:
            outbox.connect_legacy(LARGE)
        else:
            connect(outbox)
        (delivery,) = append(outbox, 50, ttl=0)
        assert outbox.next_expiry() is None
        assert outbox.expire(100) == []
        assert take(outbox) == [delivery]


def test_ttl_0_waits_for_the_window_and_expires_with_the_connection() -> None:
    outbox = connected(window=50)
    first, second = append(outbox, 50, 50, ttl=0)
    assert take(outbox) == [first]
    assert outbox.expire(100) == []
    outbox.disconnect()
    assert outbox.next_expiry() == 0
    assert outbox.expire(100) == [second]
    assert states([first, second]) == [SENT, EXPIRED]


def test_ttl_0_outlives_the_sweep_of_the_expiries_while_connected() -> None:
    outbox = connected(window=1000)
    append(outbox, *[50] * 70, ttl=100)
    while batch := take(outbox):
        acknowledge(outbox, batch[-1].seq + 1)
    append(outbox, 1000)
    take(outbox)
    (delivery,) = append(outbox, 50, ttl=0)
    append(outbox, *[50] * 10, ttl=100)
    assert outbox.expire(1) == []
    assert delivery.state is QUEUED


def test_ttl_0_outlives_the_answer_to_begin() -> None:
    outbox = connected(window=50)
    append(outbox, 50)
    take(outbox)
    outbox.disconnect()
    outbox.connect(50, LARGE, RECEIVER_BOOT)
    (delivery,) = append(outbox, 50, ttl=0)
    acknowledge(outbox, 0)
    assert outbox.expire(1) == []
    assert delivery.state is QUEUED


@pytest.mark.requirement("P-44", "positive")
def test_waiting_messages_expire_when_their_time_is_up() -> None:
    outbox = new_outbox()
    first = append(outbox, 50, ttl=10)
    second = append(outbox, 60, ttl=5)
    third = append(outbox, 70)
    assert outbox.next_expiry() == 5
    assert outbox.expire(4.9) == []
    assert outbox.expire(5) == second
    assert outbox.next_expiry() == 10
    assert counters(outbox) == (2, 120, 0, 0)
    assert outbox.expire(1000) == first
    assert outbox.next_expiry() is None
    assert states(first + second + third) == [EXPIRED, EXPIRED, QUEUED]
    connect(outbox)
    assert take(outbox) == third


def test_messages_that_wait_behind_a_full_window_expire_too() -> None:
    outbox = connected(window=50)
    sent, waiting = append(outbox, 50, 50, ttl=5)
    take(outbox)
    assert outbox.next_expiry() == 5
    assert outbox.expire(6) == [waiting]
    assert states([sent, waiting]) == [SENT, EXPIRED]


def test_messages_of_a_batch_that_wait_behind_a_full_window_all_expire() -> None:
    # Numbered from what a process of the receiver that has died may have got: that is the message before them.
    outbox = connected()
    append(outbox, 50)
    take(outbox)
    outbox.disconnect()
    outbox.connect(80, LARGE, NEXT_BOOT)
    acknowledge(outbox, 0)
    append_run(outbox, 50, 50, 50, ttl=5)
    assert [entry.seq for entry in take(outbox)] == [0]
    assert sorted(entry.seq for entry in outbox.expire(5)) == [1, 2]
    assert counters(outbox) == (1, 50, 1, 50)


def test_messages_of_a_batch_that_wait_behind_a_full_window_expire_in_their_order() -> None:
    outbox = connected(window=100)
    append(outbox, 60)
    deliveries = append_run(outbox, 50, 50, 50, ttl=5).deliveries()
    assert [entry.seq for entry in take(outbox)] == [0]
    assert [delivery for entry in outbox.expire(5) for delivery in entry.deliveries()] == deliveries


def test_messages_of_a_batch_that_a_process_which_has_died_may_have_got_do_not_expire() -> None:
    outbox = connected()
    run = append_run(outbox, 50, 50, 50, ttl=5)
    take(outbox)
    outbox.disconnect()
    outbox.connect(80, LARGE, NEXT_BOOT)
    acknowledge(outbox, 0)
    assert [entry.seq for entry in take(outbox)] == [0]
    assert outbox.expire(1000) == []
    assert outbox.next_expiry() is None
    assert acknowledge(outbox, 1)
    assert [entry.seq for entry in take(outbox)] == [1]
    assert outbox.expire(1000) == []
    assert run.state is QUEUED


@pytest.mark.requirement("P-43", "positive")
@pytest.mark.requirement("P-43", "negative")
def test_what_is_in_flight_does_not_expire_until_the_answer_to_begin() -> None:
    outbox = connected()
    first, second, third = append(outbox, 50, 50, 50, ttl=5)
    take(outbox)
    assert outbox.next_expiry() is None
    assert outbox.expire(100) == []
    outbox.disconnect()
    assert outbox.next_expiry() is None
    assert outbox.expire(100) == []
    outbox.connect(LARGE, LARGE, RECEIVER_BOOT)
    assert outbox.expire(100) == []
    acknowledge(outbox, 1)
    assert outbox.next_expiry() == 5
    assert outbox.expire(100) == [second, third]
    assert states([first, second, third]) == [DELIVERED, EXPIRED, EXPIRED]
    assert counters(outbox) == (0, 0, 0, 0)


def test_what_was_in_flight_to_a_legacy_peer_expires_once_it_is_disconnected() -> None:
    outbox = new_outbox()
    outbox.connect_legacy(LARGE)
    deliveries = append(outbox, 50, ttl=5)
    take(outbox)
    assert outbox.next_expiry() is None
    outbox.disconnect()
    assert outbox.next_expiry() == 5
    assert outbox.expire(5) == deliveries


def test_expired_messages_in_the_middle_leave_the_order_alone() -> None:
    outbox = new_outbox()
    deliveries = []
    for number in range(100):
        deliveries += append(outbox, 50, ttl=1 if number % 3 else None)
    outbox.expire(1)
    connect(outbox)
    assert [delivery.seq for delivery in take(outbox)] == list(range(0, 100, 3))


def test_expired_messages_are_not_held() -> None:
    outbox = new_outbox()
    keep = append(outbox, 50)
    for number in range(2000):
        append(outbox, 50, ttl=1, now=number)
        outbox.expire(number + 1)
    assert outbox.queued == 1
    assert len(outbox.volatile.waiting) < 10
    connect(outbox)
    assert take(outbox) == keep


def test_delivered_messages_with_a_ttl_are_not_held() -> None:
    outbox = connected()
    for seq in range(2000):
        append(outbox, 50, ttl=1000)
        take(outbox)
        acknowledge(outbox, seq + 1)
    assert len(outbox._expiry._heap) < 100
    assert outbox.next_expiry() is None


# -- Disconnecting ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-56", "positive")
def test_what_was_in_flight_to_a_legacy_peer_is_put_back_in_order() -> None:
    outbox = new_outbox()
    outbox.connect_legacy(LARGE)
    deliveries = append(outbox, 50, 60, 70)
    take(outbox, 100)
    outbox.disconnect()
    assert states(deliveries) == [QUEUED] * 3
    assert counters(outbox) == (3, 180, 0, 0)
    outbox.connect_legacy(LARGE)
    assert take(outbox) == deliveries


def test_a_legacy_peers_acknowledgement_settles() -> None:
    outbox = new_outbox()
    outbox.connect_legacy(LARGE)
    deliveries = append(outbox, 50, 60, 70)
    take(outbox, 100)
    assert acknowledge(outbox, 2) == deliveries[:2]
    assert outbox.in_flight == 0
    assert take(outbox) == deliveries[2:]


def test_a_peer_that_comes_back_as_legacy_gets_everything_again() -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 60)
    take(outbox)
    outbox.disconnect()
    outbox.connect_legacy(LARGE)
    assert counters(outbox) == (2, 110, 0, 0)
    assert take(outbox) == deliveries


def test_a_peer_that_comes_back_as_netcomm_gets_what_it_says() -> None:
    outbox = new_outbox()
    outbox.connect_legacy(LARGE)
    deliveries = append(outbox, 50, 60)
    take(outbox)
    outbox.disconnect()
    assert connect(outbox) == Begin(VOLATILE, 7, 0, 2)
    assert take(outbox) == deliveries


# -- Rejecting, discarding, room ----------------------------------------------------------------------------------


def test_what_is_larger_than_the_receiver_takes_is_rejected_and_the_rest_goes_on() -> None:
    outbox = connected(max_packet=100)
    one, large, two, huge = append(outbox, 100, 101, 50, 500)
    taken = outbox.take(NO_BUDGET_LIMIT)
    assert taken == (VOLATILE, 7, 0, [one, two], [large, huge])
    assert states([one, large, two, huge]) == [SENT, REJECTED, SENT, REJECTED]
    assert counters(outbox) == (2, 150, 2, 150)
    acknowledge(outbox, 3)
    assert counters(outbox) == (0, 0, 0, 0)


def test_what_is_too_large_is_rejected_even_if_there_is_nothing_else() -> None:
    outbox = connected(max_packet=100)
    deliveries = append(outbox, 500)
    assert outbox.take(NO_BUDGET_LIMIT) == (VOLATILE, 7, 0, [], deliveries)
    assert outbox.take(NO_BUDGET_LIMIT) is None
    assert counters(outbox) == (0, 0, 0, 0)


def test_a_full_window_does_not_keep_what_is_too_large_in_front() -> None:
    outbox = connected(window=100, max_packet=100)
    append(outbox, 100)
    take(outbox)
    (large,) = append(outbox, 500)
    assert outbox.take(NO_BUDGET_LIMIT) == (VOLATILE, 7, 1, [], [large])


def test_a_legacy_peer_rejects_too() -> None:
    outbox = new_outbox()
    outbox.connect_legacy(100)
    (large,) = append(outbox, 101)
    taken = outbox.take(NO_BUDGET_LIMIT)
    assert taken is not None
    assert taken[3:] == ([], [large])


def test_discard_ends_everything_that_has_not_ended_in_order() -> None:
    outbox = connected()
    deliveries = append(outbox, 50, 60, 70, ttl=5)
    take(outbox, 100)
    acknowledge(outbox, 1)
    more = append(outbox, 80)
    outbox.expire(5)
    assert outbox.discard() == [deliveries[1], *more]
    assert states(deliveries + more) == [DELIVERED, DISCARDED, EXPIRED, DISCARDED]
    assert counters(outbox) == (0, 0, 0, 60)  # the receiver has the one that was in flight
    acknowledge(outbox, 2)
    assert counters(outbox) == (0, 0, 0, 0)
    assert outbox.discard() == []
    assert outbox.next_expiry() is None


def test_a_discarded_outbox_takes_nothing_and_expects_nothing() -> None:
    outbox = connected()
    append(outbox, 50, 50)
    take(outbox, 1)
    outbox.discard()
    assert outbox.take(NO_BUDGET_LIMIT) is None
    assert acknowledge(outbox, 1) == []
    outbox.disconnect()
    assert counters(outbox) == (0, 0, 0, 0)


def test_an_empty_outbox_has_room_for_one_message_of_any_size() -> None:
    outbox = new_outbox(max_queued_bytes=100)
    assert outbox.has_room(VOLATILE, LARGE)
    append(outbox, 50)
    assert outbox.has_room(VOLATILE, 50)
    assert not outbox.has_room(VOLATILE, 51)


def test_room_is_bounded_by_number() -> None:
    outbox = new_outbox(max_queued_messages=3)
    append(outbox, 50, 50)
    assert outbox.has_room(VOLATILE, 50)
    append(outbox, 50)
    assert not outbox.has_room(VOLATILE, 37)


def test_what_is_in_flight_takes_room_until_it_is_acknowledged() -> None:
    outbox = connected(max_queued_messages=2)
    append(outbox, 50, 50)
    take(outbox)
    assert not outbox.has_room(VOLATILE, 50)
    acknowledge(outbox, 1)
    assert outbox.has_room(VOLATILE, 50)


# -- Everything together ------------------------------------------------------------------------------------------


@dataclass
class Model:
    """An outbox as one would write it who has all the time in the world."""

    window: int = 0
    max_packet: int = 0
    kind: str = ""  # "", "asked" (BEGIN was not answered), "netcomm", "legacy"
    waiting: list[Delivery] = field(default_factory=list)
    flying: list[Delivery] = field(default_factory=list)
    ended: dict[int, DeliveryState] = field(default_factory=dict)  # by id, of those below
    all: list[Delivery] = field(default_factory=list)

    def end(self, delivery: Delivery, state: DeliveryState) -> None:
        assert id(delivery) not in self.ended, "ended twice"
        self.ended[id(delivery)] = state

    def take(self, budget: int) -> tuple[list[Delivery], list[Delivery]]:
        batch: list[Delivery] = []
        rejected: list[Delivery] = []
        while self.waiting and budget > 0:
            first = self.waiting[0]
            flying = sum(delivery.size for delivery in self.flying)
            if first.size > self.max_packet:
                self.end(first, REJECTED)
                rejected.append(first)
            elif flying and flying + first.size > self.window:
                break
            else:
                self.flying.append(first)
                batch.append(first)
                budget -= first.size
            del self.waiting[0]
        return batch, rejected

    def acknowledge(self, position: int) -> list[Delivery]:
        settled = [delivery for delivery in self.flying if delivery.seq < position]
        self.flying = self.flying[len(settled) :]
        for delivery in settled:
            self.end(delivery, DELIVERED)
        return settled

    def put_back(self, from_seq: int = 0) -> None:
        self.waiting = [delivery for delivery in self.flying if delivery.seq >= from_seq] + self.waiting
        self.flying = [delivery for delivery in self.flying if delivery.seq < from_seq]

    def expire(self, now: float) -> list[Delivery]:
        over = [delivery for delivery in self.waiting if delivery.expires_at is not None and delivery.expires_at <= now]
        for delivery in over:
            self.end(delivery, EXPIRED)
            self.waiting.remove(delivery)
        return over

    def check(self, outbox: Outbox) -> None:
        assert outbox.queued == len(self.waiting) + len(self.flying)
        assert outbox.volatile.queued_bytes == sum(delivery.size for delivery in self.waiting + self.flying)
        assert outbox.in_flight == len(self.flying)
        assert outbox.volatile.in_flight_bytes == sum(delivery.size for delivery in self.flying)
        assert all(delivery.state is QUEUED for delivery in self.waiting)
        assert all(delivery.state is SENT for delivery in self.flying)
        stream = outbox.volatile
        assert [delivery for delivery in stream.waiting if not delivery.done] == self.waiting
        assert stream.empty_places == len(stream.waiting) - len(self.waiting)


@pytest.mark.parametrize("seed", range(12))
def test_random_use_agrees_with_a_simple_model(seed: int) -> None:
    chance = random.Random(seed)
    outbox = new_outbox(window=400)
    model = Model()
    now = 0.0
    for _ in range(4000):
        now += chance.random()
        operation = chance.choices(
            ("append", "take", "acknowledge", "expire", "connect", "disconnect"), (30, 20, 20, 8, 6, 3)
        )[0]
        match operation:
            case "append":
                # One of ttl 0 waits only behind a full window; tests of its own follow it there.
                connected_now = model.kind != ""
                ttl = chance.choice((None, None, chance.uniform(0.1, 60), *(() if connected_now else (0,))))
                (delivery,) = append(outbox, chance.choice((37, 50, 120, 390, 700, 2000)), ttl=ttl, now=now)
                model.all.append(delivery)
                if ttl == 0:
                    model.end(delivery, EXPIRED)
                else:
                    model.waiting.append(delivery)
            case "take":
                budget = chance.choice((1, 100, 500, NO_BUDGET_LIMIT))
                taken = outbox.take(budget)
                batch, rejected = model.take(budget) if model.kind in ("netcomm", "legacy") else ([], [])
                assert (taken is None) == (not batch and not rejected)
                if taken is not None:
                    assert taken[3:] == (batch, rejected)
            case "acknowledge" if model.kind:
                first = model.flying[0].seq if model.flying else 0
                last = model.flying[-1].seq + 1 if model.flying else 0
                position = chance.randint(first, last)
                arrived = chance.randint(position, last)
                assert acknowledge(outbox, position, arrived) == model.acknowledge(position)
                if model.kind == "asked":
                    model.put_back(arrived)
                    model.kind = "netcomm"
            case "expire":
                expired = outbox.expire(now)
                times = [delivery.expires_at for delivery in expired if delivery.expires_at is not None]
                assert times == sorted(times)
                assert sorted(delivery.seq for delivery in expired) == [delivery.seq for delivery in model.expire(now)]
                pending = outbox.next_expiry()
                assert pending is None or pending > now
            case "connect" if not model.kind:
                model.window = min(400, window := chance.choice((100, 1000)))
                model.max_packet = chance.choice((600, 1000, LARGE))
                if chance.random() < 0.4:
                    outbox.connect_legacy(model.max_packet)
                    model.window = 400
                    model.put_back()
                    model.kind = "legacy"
                else:
                    (begin,) = outbox.connect(window, model.max_packet, RECEIVER_BOOT)
                    seqs = [delivery.seq for delivery in model.flying + model.waiting]
                    assert not seqs or begin.first_seq <= seqs[0]
                    assert all(delivery.seq < begin.sent_below for delivery in model.flying)
                    model.kind = "asked"
            case "disconnect" if model.kind:
                outbox.disconnect()
                if model.kind == "legacy":
                    model.put_back()
                model.kind = ""
        model.check(outbox)
    # Everything ends: whatever is left is delivered, or discarded, or too old.
    if seed % 2:
        assert outbox.discard() == model.flying + model.waiting
        for delivery in model.flying + model.waiting:
            model.end(delivery, DISCARDED)
        assert outbox.volatile.in_flight_bytes == sum(delivery.size for delivery in model.flying)
        if model.kind:
            outbox.disconnect()
        outbox.connect_legacy(LARGE)  # which has nothing of it
    else:
        if model.kind:
            outbox.disconnect()
        outbox.connect_legacy(LARGE)
        while batch := take(outbox):
            for delivery in acknowledge(outbox, batch[-1].seq + 1):
                model.end(delivery, DELIVERED)
    assert counters(outbox) == (0, 0, 0, 0)
    assert states(model.all) == [model.ended[id(delivery)] for delivery in model.all]
    assert len(set(model.ended.values())) >= 3
