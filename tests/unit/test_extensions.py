"""`protocol.extension`, and the streams that extensions take: nothing in one stream waits for another."""

import logging

import pytest

from netcomm.connections import Closed
from netcomm.errors import ConfigurationError
from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import BULK, DURABLE, VOLATILE, Delivery, DeliveryState, Stream
from netcomm.protocol import events
from netcomm.protocol.batch import Batch
from netcomm.protocol.extension import Extension, NodePort
from netcomm.protocol.frames import MAX_BULK_BYTES
from netcomm.protocol.outbox import Outbox
from tests.unit import helpers
from tests.unit.helpers import OVERHEAD, Host, Net, make_delivery, not_waited_for

BUS = (Stream.BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)
LARGE = 1 << 30


class Recorder(Extension):
    """Notes what it is told of, and handles messages at once unless it is told to hold them."""

    streams = BUS

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.received: list[events.Received] = []
        self.holding = False

    def attached(self, node: NodePort, now: float) -> None:
        self.node = node

    def receive(self, received: events.Received, now: float) -> None:
        self.seen += received.payloads
        self.received.append(received)
        if not self.holding:
            self.node.on_handled(received, len(received.payloads), now)

    def connected(self, ident: str, now: float) -> None:
        self.seen.append(f"+{ident}")

    def disconnected(self, ident: str, now: float) -> None:
        self.seen.append(f"-{ident}")


def send(host: Host, stream: Stream, *payloads: bytes) -> Batch:
    batch = Batch("b", b"prefix-8", 0, list(payloads), OVERHEAD, None, not_waited_for, stream=stream)
    assert host.messaging.send("b", batch.run(), host.net.now) == len(payloads)
    return batch


def pair(net: Net, **limits: int) -> tuple[Host, Host, Recorder]:
    one, other = net.host("a"), net.host("b", Limits(**limits))
    recorder = Recorder()
    other.node.attach(recorder, net.now)
    return one, other, recorder


def test_messages_of_its_streams_go_to_the_extension_and_others_to_the_callbacks() -> None:
    net = Net()
    one, other, recorder = pair(net)
    net.connect(one, other)
    batches = [send(one, stream, stream.name.encode()) for stream in (VOLATILE, Stream.BULK, Stream.BUS_VOLATILE)]
    net.settle()
    assert recorder.seen[0] == "+a"
    assert sorted(recorder.seen[1:]) == [b"BULK", b"BUS_VOLATILE"]  # type: ignore[type-var]
    assert other.payloads() == [b"VOLATILE"]
    assert [batch.delivery(0).state for batch in batches] == [DeliveryState.DELIVERED] * 3


def test_an_extension_is_told_who_connects_and_who_leaves_in_the_order_of_the_messages() -> None:
    net = Net()
    one, other, recorder = pair(net)
    wire = net.connect(one, other)
    send(one, Stream.BUS_VOLATILE, b"1")
    net.settle()
    wire.one.lose()
    wire.other.lose()
    net.settle()
    net.connect(one, other)
    send(one, Stream.BUS_VOLATILE, b"2")
    net.settle()
    assert recorder.seen == ["+a", b"1", "-a", "+a", b"2"]


@pytest.mark.parametrize("held", [VOLATILE, Stream.BUS_VOLATILE])
def test_a_message_that_is_held_back_holds_up_nothing_in_another_stream(held: Stream) -> None:
    net = Net()
    one, other, recorder = pair(net, window_bytes=1000)
    net.connect(one, other)
    other.holding = held is VOLATILE
    recorder.holding = held is not VOLATILE
    free = Stream.BUS_VOLATILE if held is VOLATILE else VOLATILE
    first = send(one, held, *[b"held"] * 100)  # much more than a window
    for number in range(100):
        batch = send(one, free, b"%d" % number)
        net.settle()
        assert batch.delivery(0).state is DeliveryState.DELIVERED
    assert not first.delivery(0).done
    assert not any(end.paused for end in other.ends.values())


def test_each_stream_has_a_window_of_its_own_and_no_more() -> None:
    net = Net()
    one, other, recorder = pair(net, window_bytes=1000)
    net.connect(one, other)
    other.holding = recorder.holding = True
    for stream in (VOLATILE, Stream.BULK, Stream.BUS_VOLATILE):
        send(one, stream, *[bytes(63)] * 40)
    net.settle()
    outbox = one.messaging.peers["b"].outbox
    assert {out.stream: out.in_flight_bytes for out in outbox} == dict.fromkeys(outbox.volatiles, 1000)
    assert set(other.messaging.peers["a"].inbox.pending_bytes.values()) == {1000}


def test_messages_that_nothing_takes_are_held_back_until_an_extension_comes(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    one, other = net.host("a"), net.host("b")
    net.connect(one, other)
    batches = [send(one, Stream.BUS_VOLATILE, payload) for payload in (b"1", b"2")]
    net.settle()
    assert not any(batch.delivery(0).done for batch in batches)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "BUS_VOLATILE" in record.getMessage()
    assert "'a'" in record.getMessage()
    recorder = Recorder()
    other.node.attach(recorder, net.now)
    assert recorder.seen == ["+a", b"1", b"2"]
    net.settle()
    assert all(batch.delivery(0).done for batch in batches)


def test_an_extension_that_comes_while_somebody_leaves_hears_of_both() -> None:
    net = Net()
    one, other = net.host("a"), net.host("b")
    wire = net.connect(one, other)
    net.settle()
    other.tell(Closed(wire.other.number, "lost"))
    recorder = Recorder()
    other.node.attach(recorder, net.now)
    other.act()
    assert recorder.seen == ["+a", "-a"]


def test_an_extension_that_comes_while_somebody_else_comes_hears_of_it_once() -> None:
    net = Net()
    host = net.host("b")
    recorder = Recorder()
    end = net.raw(host)
    end.feed(helpers.netcomm_handshake("a") + helpers.begin())
    host.node.attach(recorder, net.now)
    net.settle()
    assert recorder.seen == ["+a"]


def held_bytes(host: Host) -> int:
    return sum(sum(peer.inbox.pending_bytes.values()) for peer in host.messaging.peers)


def test_what_is_held_back_of_a_sender_that_leaves_is_forgotten_and_sent_again() -> None:
    net = Net()
    one, other = net.host("a"), net.host("b")
    wire = net.connect(one, other)
    batches = [send(one, stream, b"1", b"2") for stream in (BULK, Stream.BUS_VOLATILE)]
    net.settle()
    assert held_bytes(other) > 0
    wire.cut()
    net.settle()
    assert held_bytes(other) == 0
    assert other.messaging.peers["a"].may_be_forgotten
    net.connect(one, other)
    net.settle()
    recorder = Recorder()
    other.node.attach(recorder, net.now)
    net.settle()
    assert sorted(recorder.seen[1:]) == [b"1", b"1", b"2", b"2"]  # type: ignore[type-var]
    assert all(batch.delivery(index).state is DeliveryState.DELIVERED for batch in batches for index in (0, 1))


def test_what_is_held_back_of_strangers_that_come_and_go_fills_no_memory() -> None:
    net = Net()
    host = net.host("a", Limits(max_idle_peers=10))
    stream = Stream.BUS_VOLATILE
    said = helpers.begin(stream=stream) + helpers.data(0, bytes(1000), flags=stream)
    for number in range(50):
        end = net.raw(host)
        net.exchange(end, helpers.netcomm_handshake(f"stranger-{number}") + said)
        end.lose()
        net.settle()
    assert held_bytes(host) == 0
    assert len(list(host.messaging.peers)) <= 11


def test_what_is_held_back_stays_where_the_sender_is_back_already() -> None:
    net = Net()
    host = net.host("a")
    stream, recorder = Stream.BUS_VOLATILE, Recorder()
    begin = helpers.netcomm_handshake("b", connector=1) + helpers.begin(stream=stream)
    first, second = net.raw(host), net.raw(host)
    net.exchange(first, begin + helpers.data(0, b"1", flags=stream))
    second.feed(begin)  # it takes the first one's place before the node has told of anything
    answer = net.exchange(second, helpers.data(1, b"2", flags=stream))  # which would be a gap, had the first one gone
    assert (helpers.ACK, helpers.ack(0, stream, epoch=7, received=2)[5:]) in answer
    host.node.attach(recorder, net.now)
    net.settle()
    assert recorder.seen == ["+b", b"1", b"2"]


def test_an_extension_that_comes_is_told_once_who_is_connected() -> None:
    net = Net()
    host, recorder = net.host("a"), Recorder()
    end = net.raw(host)
    end.feed(helpers.netcomm_handshake("b") + helpers.begin())
    host.node.attach(recorder, net.now)  # the node has not told anybody of the connection
    net.settle()
    assert recorder.seen == ["+b"]


def test_an_extension_that_raises_as_it_comes_is_not_there() -> None:
    class Broken(Recorder):
        def attached(self, node: NodePort, now: float) -> None:
            raise ValueError("broken")

    net = Net()
    host = net.host("a")
    with pytest.raises(ValueError, match="broken"):
        host.node.attach(Broken(), net.now)
    host.node.attach(Recorder(), net.now)


def test_a_stream_has_one_extension() -> None:
    net = Net()
    _, other, _ = pair(net)
    with pytest.raises(ConfigurationError, match="BULK"):
        other.node.attach(Recorder(), net.now)


def test_an_extension_may_take_plain_messages_and_callbacks_get_none() -> None:
    class Plain(Recorder):
        streams = (VOLATILE, DURABLE)

    net = Net()
    one, other = net.host("a"), net.host("b")
    plain = Plain()
    other.node.attach(plain, net.now)
    net.connect(one, other)
    delivery = one.send("b", b"x")
    net.settle()
    assert plain.seen == ["+a", b"x"]
    assert other.payloads() == []
    assert delivery.done


def test_an_extension_may_answer_where_it_is_told() -> None:
    class Echo(Recorder):
        def receive(self, received: events.Received, now: float) -> None:
            super().receive(received, now)
            batch = Batch(
                received.ident, b"prefix-9", 0, received.payloads, OVERHEAD, None, not_waited_for, stream=BUS[1]
            )
            self.node.messaging.send(received.ident, batch.run(), now)
            self.node.messaging.call_soon(self.seen.append, "called")

    net = Net()
    one, other = net.host("a"), net.host("b")
    echo, recorder = Echo(), Recorder()
    one.node.attach(recorder, net.now)
    other.node.attach(echo, net.now)
    net.connect(one, other)
    send(one, Stream.BUS_VOLATILE, b"x")
    net.settle()
    assert recorder.seen == ["+b", b"x"]
    calls = other.happened(events.Call)
    assert [(call.function, call.argument) for call in calls] == [(echo.seen.append, "called")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("cut_after", [40, 200, 1000, 5000])
def test_after_a_cut_each_stream_goes_on_where_it_was(cut_after: int) -> None:
    net = Net()
    one, other, recorder = pair(net)
    wire = net.connect(one, other)
    streams = (VOLATILE, Stream.BULK, Stream.BUS_VOLATILE)
    for number in range(50):
        for stream in streams:
            send(one, stream, b"%s %d" % (stream.name.encode(), number))
    for _ in range(cut_after // 40):
        net.step()
    wire.one.lose()
    wire.other.lose()
    net.settle()
    net.connect(one, other)
    net.settle()
    got = [payload for payload in recorder.seen if isinstance(payload, bytes)] + other.payloads()
    for stream in streams:
        name = stream.name.encode() + b" "
        assert [payload for payload in got if payload.startswith(name)] == [b"%s%d" % (name, n) for n in range(50)]


def test_a_snakemq_peer_gets_plain_messages_alone(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    bulk, plain = send(host, BULK, b"x", b"y"), send(host, VOLATILE, b"z")
    net.exchange(end, helpers.legacy_handshake("b"))
    net.advance(1.0)
    net.settle()
    assert {bulk.delivery(0).state, bulk.delivery(1).state} == {DeliveryState.REJECTED}
    assert plain.delivery(0).state is DeliveryState.SENT
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "snakeMQ" in record.getMessage()


# -- BULK ---------------------------------------------------------------------------------------------------------


def bulk_outbox(count: int) -> Outbox:
    outbox = Outbox(Limits(), 7)
    outbox.connect(LARGE, LARGE, b"r" * 16)
    outbox.open(BULK, 8)
    for out in outbox:
        out.receiver_next = 0
    data = [bytes(MAX_BULK_BYTES)] * count
    batch = Batch("b", b"prefix-8", 0, data, OVERHEAD, None, not_waited_for, stream=BULK)
    assert outbox.append(batch.run(), 0.0) == count
    return outbox


def streams_of(outbox: Outbox) -> list[tuple[Stream, int]]:
    taken = []
    while (found := outbox.take(LARGE)) is not None:
        taken.append((found[0], sum(entry.count for entry in found[3])))
    return taken


@pytest.mark.requirement("P-87", "positive")
def test_pieces_go_out_one_by_one() -> None:
    assert streams_of(bulk_outbox(3)) == [(BULK, 1)] * 3


def test_pieces_go_out_when_no_other_message_waits() -> None:
    outbox = bulk_outbox(3)
    assert outbox.take(LARGE)[0] is BULK  # type: ignore[index]
    outbox.append(make_delivery(), 0.0)
    assert streams_of(outbox) == [(VOLATILE, 1), (BULK, 1), (BULK, 1)]


def test_a_small_message_does_not_wait_behind_pieces_that_were_queued_before() -> None:
    net = Net()
    net.high = 1
    one, other, recorder = pair(net)
    recorder.holding = True
    net.connect(one, other)
    net.settle()
    pieces = [bytes([number]) * MAX_BULK_BYTES for number in range(7)]  # less than a window
    send(one, BULK, *pieces)
    while not recorder.received:
        assert net.step()
    delivery = one.send("b", b"small")
    while not delivery.done:
        assert net.step()
    assert len(recorder.received) < len(pieces)
    net.settle()
    assert [payload for payload in recorder.seen if isinstance(payload, bytes)] == pieces


def test_less_of_large_things_is_on_its_way_than_of_other_streams() -> None:
    net = Net()
    one, other, recorder = net.host("a", Limits(bulk_window_bytes=10_000)), net.host("b"), Recorder()
    other.node.attach(recorder, net.now)
    recorder.holding = True
    net.connect(one, other)
    for stream in (BULK, Stream.BUS_VOLATILE):
        send(one, stream, *[bytes(963)] * 50)
    net.settle()
    in_flight = {out.stream: out.in_flight_bytes for out in one.messaging.peers["b"].outbox}
    assert in_flight == {VOLATILE: 0, BULK: 10_000, Stream.BUS_VOLATILE: 50_000}
    for received in recorder.received:
        other.node.on_handled(received, len(received.payloads), net.now)
    recorder.holding = False
    net.settle()
    assert one.messaging.peers.idle


# -- add_done_callback --------------------------------------------------------------------------------------------


def ended(host: Host) -> list[Delivery]:
    calls = host.happened(events.Call)
    host.events = []
    for call in calls:
        call.function(call.argument)  # type: ignore[attr-defined]
    return [call.argument for call in calls]  # type: ignore[attr-defined]


def test_who_watches_a_message_is_told_of_its_end_once() -> None:
    net = Net()
    one, other = net.host("a"), net.host("b")
    batch = send(one, VOLATILE, *[b"%d" % number for number in range(10)])
    told: list[Delivery] = []
    watched = [batch.delivery(index) for index in (3, 7)]
    for delivery in watched:
        assert one.messaging.peers.watch(delivery, told.append)
    assert one.messaging.peers.watch(batch.delivery(3), told.append)
    net.connect(one, other)
    net.settle()
    assert ended(one) == [watched[0], watched[0], watched[1]]
    assert told == [watched[0], watched[0], watched[1]]
    assert not one.messaging.peers.watch(watched[0], told.append)


def test_who_watches_a_message_is_told_that_it_is_dropped() -> None:
    net = Net()
    one = net.host("a")
    expires, discarded = one.send("b", b"x", ttl=1.0), one.send("b", b"y")
    for delivery in (expires, discarded):
        assert one.messaging.peers.watch(delivery, lambda delivery: None)
    net.advance(2.0)
    net.settle()
    assert ended(one) == [expires]
    one.messaging.discard_all()
    net.settle()
    assert ended(one) == [discarded]
    assert [delivery.state for delivery in (expires, discarded)] == [DeliveryState.EXPIRED, DeliveryState.DISCARDED]


def test_who_watches_a_message_that_only_the_storage_has_is_told_that_it_is_discarded() -> None:
    net = Net()
    one = net.host("a", storage=MemoryQueueStorage())
    one.storing = False
    one.messaging.peers.get_or_add("b")
    deliveries = [one.send_persistent("b", bytes(1 << 20)) for _ in range(10)]
    assert deliveries[-1].data is None  # the storage alone has it
    for delivery in deliveries:
        assert one.messaging.peers.watch(delivery, lambda delivery: None)
    assert one.messaging.discard("b") == 10
    one.messaging.discard_all()  # the peer ends before the storage has answered
    net.settle()
    assert sorted(ended(one), key=id) == sorted(deliveries, key=id)
    assert {delivery.state for delivery in deliveries} == {DeliveryState.DISCARDED}
