"""Batches: messages of one call go the same way as the same messages one by one, and cost less."""

import gc
import random
import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from netcomm.limits import Limits
from netcomm.message import VOLATILE, Delivery, DeliveryState, Stream
from netcomm.protocol import encode, frames
from netcomm.protocol.batch import MAX_BATCH_COUNT, Batch, BatchDelivery, Deliveries, Entry, Run
from netcomm.protocol.frames import Ack
from netcomm.protocol.open_run import MAX_JOINING_BYTES, OpenRun
from netcomm.protocol.outbox import Outbox
from tests.simulation.mutations import Mutation
from tests.unit import helpers
from tests.unit.helpers import OVERHEAD, not_waited_for

PREFIX = b"prefix-8"
BOOT = b"B" * 16
LARGE = 1 << 30


def make_batch(*payloads: bytes, number: int = 0, expires_at: float | None = None, to: str = "b") -> Batch:
    return Batch(to, PREFIX, number, list(payloads), OVERHEAD, expires_at, not_waited_for)


def uuid_of(number: int) -> bytes:
    return PREFIX + number.to_bytes(8)


def deliveries_of(batch: Batch) -> Deliveries:
    deliveries = Deliveries()
    deliveries.add(batch)
    return deliveries


def split_in_three() -> tuple[Batch, Run, Run, Run]:
    batch = make_batch(*[b"%d" % number for number in range(10)])
    run = batch.run()
    run.seq = 100
    first = run.split(3)
    return batch, first, run.split(4), run


def test_a_batch_is_one_run_at_first() -> None:
    batch = make_batch(b"", b"xx", b"yyy", number=5)
    run = batch.run()
    assert (run.count, run.size, run.largest, run.first_size) == (3, 5 + 3 * OVERHEAD, 3 + OVERHEAD, OVERHEAD)
    assert (run.persistent, run.state, run.done, run.start) == (False, DeliveryState.QUEUED, False, 0)
    assert run.data == run.payloads() == [b"", b"xx", b"yyy"]


def test_a_run_that_is_split_stays_whole_in_all() -> None:
    _, *runs = split_in_three()
    assert [run.seq for run in runs] == [100, 103, 107]
    assert [run.count for run in runs] == [3, 4, 3]
    assert [payload for run in runs for payload in run.payloads()] == [b"%d" % number for number in range(10)]
    assert [run.start for run in runs] == [0, 3, 7]
    assert sum(run.size for run in runs) == 10 * (1 + OVERHEAD)


def test_each_message_has_the_state_of_its_run() -> None:
    batch, first, second, _ = split_in_three()
    deliveries = deliveries_of(batch)
    first.state, second.state = DeliveryState.DELIVERED, DeliveryState.SENT
    assert [delivery.state for delivery in deliveries[:3]] == [DeliveryState.DELIVERED] * 3
    assert [delivery.state for delivery in deliveries[3:7]] == [DeliveryState.SENT] * 4
    assert [delivery.state for delivery in deliveries[7:]] == [DeliveryState.QUEUED] * 3
    assert [delivery.done for delivery in deliveries] == [True] * 3 + [False] * 7


@pytest.mark.parametrize(("max_bytes", "fitting"), [(0, 0), (OVERHEAD, 1), (3 * OVERHEAD, 2), (10_000, 3)])
def test_how_many_fit(max_bytes: int, fitting: int) -> None:
    run = make_batch(b"", b"xx", b"yyy").run()
    assert run.fitting(max_bytes) == fitting


def test_deliveries_are_a_sequence() -> None:
    deliveries = Deliveries()
    assert list(deliveries) == []
    for number in (0, 1024, 2048):
        deliveries.add(make_batch(b"a", b"b", number=number))
    assert len(deliveries) == 6
    numbers = [0, 1, 1024, 1025, 2048, 2049]
    assert [delivery.uuid for delivery in deliveries] == [uuid_of(number) for number in numbers]
    assert [delivery.data for delivery in deliveries] == [b"a", b"b"] * 3
    assert {(delivery.ident, delivery.persistent) for delivery in deliveries} == {("b", False)}
    assert deliveries[-1].uuid == deliveries[5].uuid == uuid_of(2049)
    assert [delivery.uuid for delivery in deliveries[1:5:2]] == [uuid_of(1), uuid_of(1025)]
    for index in (6, -7):
        with pytest.raises(IndexError):
            deliveries[index]
    assert "6 messages" in repr(deliveries)
    assert uuid_of(0).hex() in repr(deliveries[0])


def test_views_of_one_message_are_equal_and_others_are_not() -> None:
    batch, other = make_batch(b"a", b"b"), make_batch(b"a", b"b")
    deliveries = deliveries_of(batch)
    assert deliveries[0] == batch.delivery(0)
    assert deliveries[0] != deliveries[1]
    assert deliveries[0] != other.delivery(0)
    assert deliveries[0] != "a"
    assert len({deliveries[0], deliveries[1], batch.delivery(0)}) == 2
    assert isinstance(deliveries[0], Delivery)


def test_a_batch_is_let_go_without_the_collector_of_garbage() -> None:
    def wait(delivery: Delivery, timeout: float | None) -> bool:
        return False

    alive = weakref.ref(wait)
    batch = Batch("b", PREFIX, 0, [b"x"] * 4, OVERHEAD, None, wait)
    run = batch.run()
    head = run.split(1)
    head.state = DeliveryState.DELIVERED
    gc.disable()
    try:
        del wait, batch, run, head
        assert alive() is None
    finally:
        gc.enable()


def test_waiting_for_a_message_of_a_batch_asks_for_that_message() -> None:
    asked = []

    class Owner(helpers.NotWaitedFor):
        def wait_for_delivery(self, delivery: Delivery, timeout: float | None) -> bool:
            asked.append((delivery.uuid, timeout))
            return True

    batch = Batch("b", PREFIX, 7, [b"a", b"b"], OVERHEAD, None, Owner())
    assert batch.delivery(1).wait(3)
    assert asked == [(uuid_of(8), 3)]


def test_what_was_delivered_keeps_no_payload() -> None:
    batch = make_batch(b"a", b"b", b"c")
    deliveries = deliveries_of(batch)
    outbox = new_outbox()
    outbox.append(batch.run(), 0.0)
    outbox.connect_legacy(LARGE)
    outbox.take(LARGE)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 2, 2))
    assert [delivery.data for delivery in deliveries] == [None, None, b"c"]


def open_reader() -> helpers.Reader:
    reader = helpers.Reader()
    reader.feed(helpers.ident("a"))
    return reader


def sent_as(outbox: Outbox) -> list[tuple[int, int]]:
    """The type and the first seq of each frame that goes out now."""
    taken = outbox.take(LARGE)
    assert taken is not None
    _, _, next_seq, batch, _ = taken
    return [
        (kind, int.from_bytes(body[:8]))
        for kind, body in helpers.packets(b"".join(encode.data(batch[0].stream, batch, next_seq, 0.0)))
    ]


def join(outbox: Outbox, data: bytes) -> BatchDelivery | None:
    run = outbox.volatile.open_run
    return None if run is None else run.join(data)


def test_a_message_joins_the_run_that_waits_last() -> None:
    outbox = new_outbox()
    batch = make_batch(b"0", b"1")
    outbox.append(batch.run(), 0.0)
    delivery = join(outbox, b"22")
    assert delivery == batch.delivery(2)
    assert (delivery.uuid, delivery.data, delivery.state) == (uuid_of(2), b"22", DeliveryState.QUEUED)
    assert outbox.queued == 3
    outbox.append(make_batch(b"3", number=1024).run(), 0.0)
    outbox.connect(LARGE, LARGE, BOOT)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 0, 0))
    assert sent_as(outbox) == [(helpers.BATCH, 0), (helpers.DATA, 3)]
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 3, 3))
    assert delivery.state is DeliveryState.DELIVERED
    assert delivery.data is None
    assert outbox.volatile.in_flight_bytes == 1 + OVERHEAD


def test_nothing_joins_what_has_been_sent() -> None:
    outbox = new_outbox()
    batch = make_batch(b"0", b"1", b"2")
    outbox.append(batch.run(), 0.0)
    run = outbox.volatile.open_run
    assert run is not None
    assert join(outbox, b"3") == batch.delivery(3)
    outbox.connect(LARGE, LARGE, BOOT)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 0, 0))
    outbox.take(2 * (1 + OVERHEAD))
    assert join(outbox, b"x") is None
    assert run.join(b"x") is None  # as one has found it who has not seen it taken
    assert sent_as(outbox) == [(helpers.BATCH, 2)]
    assert batch.states == [DeliveryState.SENT] * 4


def test_nothing_joins_where_others_of_the_batch_come_behind() -> None:
    first, second, third = split_in_three()[1:]
    assert [OpenRun.of(run, 10, 100) is not None for run in (first, second, third)] == [False, False, True]


def test_what_can_be_joined() -> None:
    outbox = new_outbox(max_queued_messages=1003)
    assert join(outbox, b"x") is None  # nothing waits
    outbox.append(make_batch(b"x", expires_at=5.0).run(), 0.0)
    assert join(outbox, b"x") is None  # it would have to expire
    outbox.append(make_batch(*[b""] * (MAX_BATCH_COUNT - 1)).run(), 0.0)
    assert join(outbox, b"x") is not None
    assert join(outbox, b"x") is None  # the batch is full
    outbox.append(make_batch(b"").run(), 0.0)
    assert join(outbox, b"x") is not None
    outbox.append(make_batch(b"").run(), 0.0)
    assert join(outbox, b"x") is None  # the queue is full
    outbox = new_outbox()
    outbox.append(make_batch(b"").run(), 0.0)
    run = outbox.volatile.open_run
    assert run is not None
    outbox.append(make_batch(b"", expires_at=5.0).run(), 0.0)
    assert join(outbox, b"x") is None
    assert run.join(b"x") is None  # another waits behind
    outbox = new_outbox()
    outbox.append(make_batch(b"").run(), 0.0)
    outbox.append(Delivery("b", uuid_of(0), b"", OVERHEAD, None, VOLATILE, not_waited_for), 0.0)
    assert join(outbox, b"x") is None  # a single message waits last


def test_only_small_messages_join_and_only_small_ones_are_joined() -> None:
    small, large = bytes(MAX_JOINING_BYTES), bytes(MAX_JOINING_BYTES + 1)
    outbox = new_outbox()
    outbox.append(make_batch(small).run(), 0.0)
    assert join(outbox, large) is None
    assert join(outbox, small) is not None
    outbox.append(make_batch(large).run(), 0.0)
    assert join(outbox, small) is None
    outbox = new_outbox(max_frame_bytes=100)
    outbox.append(make_batch(b"x").run(), 0.0)
    assert join(outbox, bytes(100 - 33 + 1)) is None  # it fits no frame
    assert join(outbox, bytes(100 - 33)) is not None


def test_as_many_join_as_there_would_be_room_for_if_they_were_large() -> None:
    outbox = new_outbox(max_queued_bytes=3 * (MAX_JOINING_BYTES + OVERHEAD))
    outbox.append(make_batch(b"").run(), 0.0)
    assert [join(outbox, b"") is not None for _ in range(3)] == [True, True, False]
    outbox.append(make_batch(b"").run(), 0.0)
    assert join(outbox, b"") is not None


def test_messages_that_have_joined_take_room_in_the_queue() -> None:
    outbox = new_outbox(max_queued_messages=3)
    outbox.append(make_batch(b"0").run(), 0.0)
    joined = [join(outbox, b"x") is not None for _ in range(3)]
    assert joined == [True, True, False]
    assert not outbox.has_room(VOLATILE, 1)
    assert outbox.append(make_batch(b"x").run(), 0.0) == 0
    assert [entry.count for entry in outbox.discard()] == [3]
    assert (outbox.queued, outbox.volatile.queued_bytes) == (0, 0)


class Interrupted(list[bytes | None]):
    """The places of a batch; while a message is put into one, before it is there or behind that, something happens."""

    before: Callable[[], object] | None = None
    behind: Callable[[], object] | None = None

    def __setitem__(self, place: Any, data: Any) -> None:
        before, self.before = self.before, None
        behind, self.behind = self.behind, None
        if before is not None:
            before()
        super().__setitem__(place, data)
        if behind is not None:
            behind()


def interrupted(*payloads: bytes) -> tuple[Outbox, Batch, Interrupted, OpenRun]:
    """An outbox with an open run."""
    outbox = new_outbox()
    batch = make_batch(*payloads)
    places = batch.data = Interrupted(batch.data)
    outbox.append(batch.run(), 0.0)
    run = outbox.volatile.open_run
    assert run is not None
    assert batch.data is places
    return outbox, batch, places, run


def test_what_is_in_its_place_when_the_run_is_closed_has_joined() -> None:
    outbox, _, places, run = interrupted(b"0")
    places.behind = outbox.volatile.close_run
    joined = run.join(b"1")
    assert joined is not None
    assert not run.is_open
    assert run.accepted(joined)
    assert (run.run.payloads(), outbox.queued) == ([b"0", b"1"], 2)
    assert joined.state is DeliveryState.QUEUED
    run.run.state = DeliveryState.SENT
    assert joined.state is DeliveryState.SENT


def test_what_is_not_in_its_place_when_the_run_is_closed_has_not_joined_and_is_let_go() -> None:
    outbox, batch, places, run = interrupted(b"0")
    places.before = outbox.volatile.close_run
    joined = run.join(b"1")
    assert joined is not None
    assert not run.is_open
    assert not run.accepted(joined)
    assert (run.run.payloads(), outbox.queued) == ([b"0"], 1)
    assert batch.data == [b"0", None]


def test_a_place_that_is_taken_when_the_run_is_closed_already_is_none() -> None:
    outbox, batch, _, run = interrupted(b"0")
    outbox.volatile.close_run()
    assert run.join(b"1") is None
    assert batch.data == [b"0"]


def test_what_others_have_put_behind_a_gap_has_joined() -> None:
    outbox, batch, places, run = interrupted(b"0")
    others: list[BatchDelivery | None] = []

    def others_join_and_it_is_closed() -> None:
        places.before = lambda: others.append(run.join(b"4"))
        others.append(run.join(b"2"))
        others.append(run.join(b"5"))
        outbox.volatile.close_run()

    # Places: 1 is a gap, 2 gets b"2" only behind 3, which gets b"4".
    places.before = others_join_and_it_is_closed
    late = run.join(b"1")
    assert late is not None
    assert not run.accepted(late)
    assert all(other is not None and run.accepted(other) for other in others)
    assert outbox.queued == 4
    assert [entry.payloads() for entry in outbox.volatile.waiting if isinstance(entry, Run)] == [
        [b"0"],
        [b"2", b"4", b"5"],
    ]
    assert [(entry.seq, entry.size) for entry in outbox.volatile.waiting] == [
        (0, 1 + OVERHEAD),
        (1, 3 * (1 + OVERHEAD)),
    ]
    outbox.connect(LARGE, LARGE, BOOT)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 0, 0))
    assert sent_as(outbox) == [(helpers.DATA, 0), (helpers.BATCH, 1)]
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 3, 3))
    states = [DeliveryState.DELIVERED, DeliveryState.DELIVERED, DeliveryState.SENT]
    assert [batch.delivery(place).state for place in (2, 3, 4)] == states
    assert outbox.volatile.in_flight_bytes == 1 + OVERHEAD


def test_several_gaps_leave_several_runs() -> None:
    outbox, batch, places, run = interrupted(b"0")
    late: list[BatchDelivery | None] = []

    def another_is_late() -> None:
        run.join(b"2")
        places.before = closing
        late.append(run.join(b"3"))

    def closing() -> None:
        run.join(b"4")
        outbox.volatile.close_run()

    places.before = another_is_late
    late.append(run.join(b"1"))
    assert [delivery is not None and run.accepted(delivery) for delivery in late] == [False, False]
    assert [entry.payloads() for entry in outbox.volatile.waiting if isinstance(entry, Run)] == [
        [b"0"],
        [b"2"],
        [b"4"],
    ]
    assert batch.data == [b"0", None, b"2", None, b"4"]
    assert outbox.volatile.queued_bytes == 3 * (1 + OVERHEAD)


class WatchedPlaces(list[int]):
    """The places that have not been taken; behind the first look at the next one, something happens."""

    behind: Callable[[], object] | None = None

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        behind, self.behind = self.behind, None
        if behind is not None:
            behind()
        return found


def test_a_place_that_is_taken_behind_the_look_at_the_next_one_is_not_part_of_the_run() -> None:
    outbox, batch, _, run = interrupted(b"0")
    assert run.join(b"1") is not None
    late: list[BatchDelivery | None] = []
    run._places = places = WatchedPlaces(run._places)
    places.behind = lambda: late.append(run.join(b"2"))
    outbox.volatile.close_run()
    (delivery,) = late
    assert delivery is not None
    assert not run.is_open
    assert not run.accepted(delivery)
    assert (batch.data, run.run.payloads(), outbox.queued) == ([b"0", b"1"], [b"0", b"1"], 2)


def test_a_finalizer_that_joins_while_its_thread_closes_the_run_is_told_the_truth() -> None:
    outbox, _, _, run = interrupted(b"0")
    assert run.join(b"1") is not None
    told: list[bool] = []

    def finalize() -> None:
        joined = run.join(b"2")
        told.append(joined is not None and (run.is_open or run.accepted(joined)))

    run._places = places = WatchedPlaces(run._places)
    places.behind = finalize
    outbox.volatile.close_run()
    assert told == [b"2" in run.run.payloads()]
    assert outbox.queued == len(run.run.payloads())


@pytest.mark.parametrize("step", ["look", "accumulate", "pairwise"])
def test_a_run_whose_closing_was_interrupted_is_closed_by_the_next_one(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, batch, _, run = interrupted(b"0")
    joined = [run.join(b"%d" % number) for number in range(1, 4)]

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "look":
            run._places = places = WatchedPlaces(run._places)
            places.behind = interrupt
        else:
            patch.setattr(f"netcomm.protocol.open_run.{step}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            outbox.volatile.close_run()
    assert not run.is_open
    late = run.join(b"4")
    is_late = late is None or not run.accepted(late)
    outbox.volatile.close_run()
    count = 4 if is_late else 5
    assert run.run.payloads() == [b"0", b"1", b"2", b"3", b"4"][:count]
    assert (outbox.queued, outbox.volatile.queued_bytes) == (count, count * (1 + OVERHEAD))
    assert outbox.volatile.next_seq == count
    assert all(delivery is not None and run.accepted(delivery) for delivery in joined)
    assert batch.states[:count] == [DeliveryState.QUEUED] * count


def test_what_joins_may_be_too_large_for_the_receiver_by_itself() -> None:
    outbox = new_outbox()
    batch = make_batch(b"0", b"1")
    outbox.append(batch.run(), 0.0)
    for payload in (bytes(500), b"3"):
        assert join(outbox, payload) is not None
    outbox.connect(LARGE, 200, BOOT)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 0, 0))
    while outbox.take(LARGE) is not None:
        pass
    sent, rejected = DeliveryState.SENT, DeliveryState.REJECTED
    assert batch.states == [sent, sent, rejected, sent]


@pytest.mark.requirement("P-61", "positive")
@pytest.mark.requirement("P-61", "negative")
def test_what_is_sent_again_is_sent_one_by_one() -> None:
    outbox = new_outbox()
    outbox.append(make_batch(b"0", b"1", b"2", b"3").run(), 0.0)
    outbox.connect(LARGE, LARGE, BOOT)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 0, 0))
    assert sent_as(outbox) == [(helpers.BATCH, 0)]
    outbox.disconnect()
    outbox.append(make_batch(b"4", b"5").run(), 0.0)
    outbox.connect(LARGE, LARGE, BOOT)
    outbox.acknowledge(Ack(Stream.VOLATILE, 7, 0, 1))  # one of them has arrived
    assert sent_as(outbox) == [(helpers.DATA, 1), (helpers.DATA, 2), (helpers.DATA, 3), (helpers.BATCH, 4)]


def new_outbox(**limits: int) -> Outbox:
    return Outbox(Limits(**limits), 7)


class Twin:
    """Two outboxes with the same messages: one by one in the first, in batches in the second."""

    def __init__(self, **limits: int) -> None:
        self.single, self.batched = new_outbox(**limits), new_outbox(**limits)
        self.singles: list[Delivery] = []
        self.views: list[Delivery] = []
        self._number = 0

    def append(self, payloads: Sequence[bytes], ttl: float | None, now: float) -> None:
        expires_at = None if ttl is None else now + ttl
        if ttl is None and len(payloads) == 1 and (joined := join(self.batched, payloads[0])) is not None:
            delivery = Delivery(
                "b", joined.uuid, payloads[0], OVERHEAD + len(payloads[0]), None, VOLATILE, not_waited_for
            )
            assert self.single.append(delivery, now)
            self.singles.append(delivery)
            self.views.append(joined)
            self._number += MAX_BATCH_COUNT  # so that uuids stay unique
            return
        taken = 0
        for place, payload in enumerate(payloads):
            uuid = uuid_of(self._number + place)
            delivery = Delivery("b", uuid, payload, OVERHEAD + len(payload), expires_at, VOLATILE, not_waited_for)
            if not self.single.append(delivery, now):
                break
            self.singles.append(delivery)
            taken += 1
        batch = make_batch(*payloads, number=self._number, expires_at=expires_at)
        run = batch.run()
        assert self.batched.append(run, now) == taken
        self.views += deliveries_of(batch)[:taken]
        if taken < len(payloads):
            assert run.payloads() == list(payloads[taken:])  # what there was no room for
        self._number += len(payloads)

    def both(self, act: str, *arguments: object) -> tuple[object, object]:
        return getattr(self.single, act)(*arguments), getattr(self.batched, act)(*arguments)

    def take(self, budget: int) -> None:
        """All that the window lets through."""
        assert self._sent(self.single, budget) == self._sent(self.batched, budget)

    @staticmethod
    def _sent(outbox: Outbox, budget: int) -> tuple[list[frames.Item], list[bytes]]:
        sent: list[frames.Item] = []
        rejected: list[bytes] = []
        while (taken := outbox.take(budget)) is not None:
            _, _, next_seq, batch, refused = taken
            rejected += uuids(refused)
            if batch:
                parsed, _ = open_reader().feed(b"".join(encode.data(batch[0].stream, batch, next_seq, 0.0)))
                sent += [item for frame in parsed if isinstance(frame, frames.Data) for item in frame.items]
                assert b"".join(encode.messages(batch[0].stream, batch, 0.0)).count(PREFIX) == sum(
                    entry.count for entry in batch
                )
        return sent, rejected

    def check(self) -> None:
        counted = self.batched.volatile.open_run is None  # what has joined it is counted later
        assert [delivery.state for delivery in self.views] == [delivery.state for delivery in self.singles]
        assert [delivery.data for delivery in self.views] == [delivery.data for delivery in self.singles]
        counters = [
            (
                outbox.queued,
                counted and outbox.volatile.queued_bytes,
                outbox.in_flight,
                outbox.volatile.in_flight_bytes,
                outbox.next_expiry(),
            )
            for outbox in (self.single, self.batched)
        ]
        assert counters[0] == counters[1]


def uuids(entries: Sequence[Entry]) -> list[bytes]:
    return [delivery.uuid for entry in entries for delivery in entry.deliveries()]


@pytest.mark.parametrize("seed", range(30))
def test_a_batch_goes_the_way_of_its_messages(seed: int) -> None:
    compare_with_single_messages(seed)


@pytest.mark.parametrize(
    "mutation",
    [
        Mutation(
            "put back whole, where part has arrived",
            "protocol.out_stream:OutStream.requeue",
            "entry.seq < from_seq",
            "False",
        ),
        Mutation(
            "joined what others wait behind", "protocol.out_stream:VolatileOutStream.append", "self.close_run()", "pass"
        ),
        Mutation("joined what was sent", "protocol.outbox:Outbox.take", "self.volatile.close_run()", "pass"),
        Mutation("not counted", "protocol.out_stream:VolatileOutStream.close_run", "self.queued_bytes += size", "pass"),
    ],
    ids=lambda mutation: mutation.name.replace(" ", "-"),
)
def test_the_comparison_finds_what_is_planted(mutation: Mutation) -> None:
    with mutation.planted():
        assert any(map(differs, range(30)))


def differs(seed: int) -> bool:
    try:
        compare_with_single_messages(seed)
    except (AssertionError, TypeError, struct.error):
        return True
    return False


def compare_with_single_messages(seed: int) -> None:
    chance = random.Random(seed)
    twin = Twin(window_bytes=1000, max_queued_messages=60, max_queued_bytes=8000)
    now = 0.0
    kind = ""
    ended = set()
    for _ in range(600):
        now += chance.random()
        match chance.choices(("append", "take", "acknowledge", "expire", "connect", "disconnect"), (6, 8, 8, 3, 3, 1))[
            0
        ]:
            case "append":
                sizes = chance.choice(([0, 1], [10, 50], [10, 50, 300], [900, 2000]))
                payloads = [bytes(chance.choice(sizes)) for _ in range(chance.choice((1, 1, 5, 30)))]
                ttl = chance.choice((None, None, 5.0, 0.0 if kind != "asked" else None))
                twin.append(payloads, ttl, now)
            case "take":
                twin.take(chance.choice((1, 100, 500, LARGE)))
            case "acknowledge" if kind:
                stream = twin.single.volatile
                sent_below = min(stream.sent_below, twin.batched.volatile.sent_below)
                first = stream.in_flight[0].seq if stream.in_flight else sent_below
                position = chance.randint(first, sent_below)
                arrived = chance.randint(position, sent_below)
                one, other = twin.both("acknowledge", Ack(Stream.VOLATILE, 7, position, arrived))
                assert uuids(one) == uuids(other)  # type: ignore[arg-type]
                kind = "netcomm" if kind == "asked" else kind
            case "expire":
                one, other = twin.both("expire", now)
                assert sorted(uuids(one)) == sorted(uuids(other))  # type: ignore[arg-type]
            case "connect" if not kind:
                if chance.random() < 0.3:
                    twin.both("connect_legacy", chance.choice((500, LARGE)))
                    kind = "legacy"
                else:
                    boot = chance.choice((BOOT, b"b" * 16))
                    twin.both("connect", chance.choice((200, 1000)), chance.choice((500, LARGE)), boot)
                    kind = "asked"
            case "disconnect" if kind:
                twin.both("disconnect")
                kind = ""
        twin.check()
        ended |= {delivery.state for delivery in twin.views if delivery.done}
    one, other = twin.both("discard")
    assert uuids(one) == uuids(other)  # type: ignore[arg-type]
    twin.check()
    assert ended == {DeliveryState.DELIVERED, DeliveryState.EXPIRED, DeliveryState.REJECTED}
