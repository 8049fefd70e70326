"""`protocol.messaging`: peers joined by byte queues: nothing is lost, nothing comes twice, everyone is heard of."""

import logging
import random
from collections.abc import Callable

import pytest

from netcomm.connections import Writable
from netcomm.errors import ConnectionRefusedByPeer, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import VOLATILE, DeliveryState, Stream
from netcomm.protocol import events, frames
from tests.unit import helpers
from tests.unit.helpers import Host, Net, Wire, established_raw, kinds, packets, pair, peer_stats, warnings

DELIVERED = DeliveryState.DELIVERED
EXPIRED = DeliveryState.EXPIRED
PING = helpers.packet(helpers.PING)
PONG = helpers.packet(helpers.PONG)


def assert_nothing_is_left(*hosts: Host) -> None:
    for host in hosts:
        assert host.messaging.peers.idle
        assert host.messaging.all_handed_over
        for peer in host.messaging.peers:
            outbox = peer.outbox
            assert (outbox.queued, outbox.in_flight) == (0, 0)
            assert not any(stream.in_flight_bytes or stream.queued_bytes for stream in outbox)
            assert peer.inbox.is_empty


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "netcomm")


# -- Exchange -----------------------------------------------------------------------------------------------------


def test_two_peers_get_to_know_each_other() -> None:
    one, other, _ = pair(Net())
    assert [event.ident for event in one.happened(events.Connected)] == ["b"]
    assert [event.ident for event in other.happened(events.Connected)] == ["a"]
    assert one.messaging.peers.connected_idents() == ["b"]
    assert one.messaging.peers.is_connected("b")
    assert not one.messaging.peers.is_connected("c")
    assert other.messaging.peers.connected_idents() == ["a"]


def test_messages_arrive_in_order_in_both_directions() -> None:
    net = Net()
    one, other, _ = pair(net)
    there = [one.send("b", b"%d" % number) for number in range(100)]
    back = [other.send("a", b"-%d" % number) for number in range(100)]
    assert not any(delivery.done for delivery in there)
    net.settle()
    assert other.received == [("a", b"%d" % number, False) for number in range(100)]
    assert one.received == [("b", b"-%d" % number, False) for number in range(100)]
    assert {delivery.state for delivery in there + back} == {DELIVERED}
    assert_nothing_is_left(one, other)


def test_messages_wait_for_the_connection() -> None:
    net = Net()
    one, other = net.host("a"), net.host("b")
    delivery = one.send("b", b"early")
    net.advance(100)
    assert not delivery.done
    net.connect(one, other)
    net.settle()
    assert delivery.state is DELIVERED
    assert other.payloads() == [b"early"]


@pytest.mark.requirement("P-36", "negative")
@pytest.mark.requirement("P-37", "negative")
def test_a_message_is_delivered_when_its_callbacks_have_returned_and_not_before() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    deliveries = [one.send("b", b"%d" % number) for number in range(3)]
    net.settle()
    assert [delivery.state for delivery in deliveries] == [DeliveryState.SENT] * 3
    assert not other.messaging.all_handed_over
    other.hand_over(2)
    net.settle()
    assert [delivery.state for delivery in deliveries] == [DELIVERED, DELIVERED, DeliveryState.SENT]
    other.hand_over(1)
    net.settle()
    assert deliveries[2].state is DELIVERED


def test_whoever_waits_for_a_message_is_told_that_it_has_ended() -> None:
    net = Net()
    one, _, _ = pair(net)
    before = one.awaited
    one.send("b", b"x")
    net.settle()
    assert one.awaited == before + 1


def test_received_messages_tell_where_they_belong() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin(9, 3, 5))
    net.exchange(end, helpers.data(3, b"x", ttl=60) + helpers.data(4, b"y"))
    (event,) = host.happened(events.Received)
    assert event == events.Received(
        "b",
        Stream.VOLATILE,
        9,
        5,
        [(3, 1, helpers.UUID, 60, 0, None), (4, 1, helpers.UUID, helpers.INFINITE, 0, None)],
        [b"x", b"y"],
        2 * (helpers.OVERHEAD + 1),
    )


@pytest.mark.requirement("P-18", "positive")
@pytest.mark.requirement("P-23", "positive")
@pytest.mark.requirement("P-27", "positive")
@pytest.mark.requirement("P-28", "negative")
def test_the_bytes_of_a_conversation_are_the_documented_ones() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host, connector=3)
    greeting = net.exchange(end)
    assert kinds(greeting) == [helpers.VERSION, helpers.HELLO, helpers.IDENT]
    assert greeting[1][1] == bytes.fromhex("0001") + b"a".ljust(16, b"p") + (1).to_bytes(16) + bytes.fromhex(
        "00000003 04000000 00800000 00"
    )
    host.send("b", b"hi")
    epoch = (1 << 32).to_bytes(8)
    assert net.exchange(end, helpers.netcomm_handshake("b")) == [(helpers.BEGIN, b"\0" + epoch + bytes(16))]
    assert net.exchange(end, helpers.begin(5, 2, 2)) == [
        (helpers.ACK, bytes.fromhex("00 0000000000000005 0000000000000002 0000000000000002"))
    ]
    assert net.exchange(end, helpers.ack(0)) == [
        (helpers.DATA, bytes(8) + helpers.UUID + bytes.fromhex("ffffffff 00000000") + b"hi")
    ]
    assert net.exchange(end, helpers.data(2, b"x")) == [
        (helpers.ACK, bytes.fromhex("00 0000000000000005 0000000000000003 0000000000000003"))
    ]
    assert net.exchange(end, helpers.ack(1)) == []
    assert net.exchange(end, PING) == [(helpers.PONG, b"")]


def test_acknowledgements_go_out_together() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    answer = net.exchange(end, b"".join(helpers.data(seq) for seq in range(500)))
    assert answer == packets(helpers.ack(500, epoch=7))


def test_a_peer_talks_to_several_others_each_in_its_order() -> None:
    net = Net()
    hub = net.host("hub")
    others = [net.host(f"peer-{number}") for number in range(5)]
    for other in others:
        net.connect(other, hub)
    net.settle()
    for number in range(50):
        for other in others:
            hub.send(other.name, b"%d" % number)
    net.settle()
    for other in others:
        assert other.received == [("hub", b"%d" % number, False) for number in range(50)]
    assert hub.messaging.peers.connected_idents() == [other.name for other in others]


@pytest.mark.requirement("P-14", "positive")
@pytest.mark.requirement("P-14", "negative")
def test_a_message_too_large_for_the_receiver_is_rejected_and_the_others_arrive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Net()
    one, other, _ = pair(net, Limits(max_frame_bytes=10_000), Limits(max_frame_bytes=200))
    fitting = frames.max_data_size(200)
    deliveries = [one.send("b", bytes(size)) for size in (1, fitting + 1, fitting)]
    net.settle()
    assert [delivery.state for delivery in deliveries] == [DELIVERED, DeliveryState.REJECTED, DELIVERED]
    assert [len(payload) for payload in other.payloads()] == [1, fitting]
    assert one.happened(events.Dropped) == [events.Dropped([deliveries[1]])]
    (warning,) = warnings(caplog)
    assert "'b'" in warning
    assert "200" in warning
    assert_nothing_is_left(one, other)


@pytest.mark.requirement("P-45", "positive")
@pytest.mark.requirement("P-45", "negative")
def test_the_window_of_the_receiver_bounds_what_is_in_flight() -> None:
    net = Net()
    one, other, _ = pair(net, Limits(), Limits(window_bytes=1000))
    other.holding = True
    for _ in range(50):
        one.send("b", bytes(100 - helpers.OVERHEAD))
    net.settle()
    assert peer_stats(one, "b").in_flight == 10
    other.hand_over(3)
    net.settle()
    assert peer_stats(one, "b").in_flight == 10
    assert peer_stats(one, "b").queued == 47
    other.holding = False
    net.settle()
    assert len(other.received) == 50


def test_numbers_that_are_not_known_are_passed_over() -> None:
    net = Net()
    host = net.host("a")
    assert host.messaging.sessions.buffer_updated(99, 1, net.now) is None
    host.messaging.sessions.connection_lost(99, "gone", net.now)
    assert host.messaging.output(99, 1000, net.now) == ([], False)
    assert host.messaging.next_events() == []


def test_room_is_asked_for_by_ident() -> None:
    net = Net()
    host = net.host("a", Limits(max_queued_messages=2))
    assert host.messaging.peers.has_room("b", VOLATILE, 1000)
    host.send("b", b"")
    host.send("b", b"")
    assert not host.messaging.peers.has_room("b", VOLATILE, 37)
    assert host.messaging.peers.has_room("c", VOLATILE, 37)


# -- Cutting ------------------------------------------------------------------------------------------------------


def test_a_cut_loses_nothing_and_repeats_nothing() -> None:
    net = Net()
    one, other, wire_ = pair(net)
    other.holding = True
    deliveries = [one.send("b", b"%d" % number) for number in range(10)]
    net.settle()
    other.hand_over(4)
    wire_.cut()
    net.settle()
    assert not deliveries[-1].done
    assert [event.ident for event in one.happened(events.Disconnected)] == ["b"]
    assert [event.ident for event in other.happened(events.Disconnected)] == ["a"]
    other.holding = False
    net.connect(one, other)
    net.settle()
    assert other.received == [("a", b"%d" % number, False) for number in range(10)]
    assert {delivery.state for delivery in deliveries} == {DELIVERED}
    assert_nothing_is_left(one, other)


@pytest.mark.requirement("P-28", "positive")
@pytest.mark.requirement("P-37", "positive")
@pytest.mark.parametrize("position", range(0, 420, 7))
def test_a_cut_at_any_byte_loses_nothing_and_repeats_nothing(position: int) -> None:
    net = Net()
    net.max_chunk = 1
    one, other = net.host("a"), net.host("b")
    deliveries = [one.send("b", b"%d" % number) for number in range(4)]
    back = [other.send("a", b"-%d" % number) for number in range(4)]
    first = net.connect(one, other)
    for _ in range(position):
        net.step()
    first.cut()
    net.max_chunk = 1000
    net.settle()
    net.connect(one, other)
    net.settle()
    assert other.received == [("a", b"%d" % number, False) for number in range(4)]
    assert one.received == [("b", b"-%d" % number, False) for number in range(4)]
    assert {delivery.state for delivery in deliveries + back} == {DELIVERED}
    assert_nothing_is_left(one, other)


def either_connects(net: Net, one: Host, other: Host) -> Wire:
    return net.connect(one, other) if net.random.random() < 0.5 else net.connect(other, one)


def one_connects(net: Net, one: Host, other: Host) -> Wire:
    return net.connect(one, other)


def both_notice(wire_: Wire) -> None:
    wire_.cut()


def the_connector_notices(wire_: Wire) -> None:
    wire_.silent = True
    wire_.one.lose()


def random_traffic(
    seed: int,
    limits: Limits,
    reconnect: Callable[[Net, Host, Host], Wire] = one_connects,
    cut: Callable[[Wire], None] = both_notice,
) -> None:
    """Thousands of messages each way over a connection that is cut at random points."""
    net = Net(seed, max_chunk=300)
    net.high, net.budget = 2000, 500
    chance = net.random
    one, other = net.host("a", limits), net.host("b", limits)
    sent: dict[str, list[bytes]] = {"a": [], "b": []}
    deliveries = []
    wire_ = reconnect(net, one, other)
    cuts = 60
    while cuts or min(map(len, sent.values())) < 1500:
        for host, to in ((one, "b"), (other, "a")):
            host.holding = chance.random() < 0.5
            if host.holding:
                host.hand_over(chance.randint(0, 20))
            for _ in range(chance.choice((0, 0, 1, 8))):
                payload = b"%d" % len(sent[host.name]) + bytes(chance.choice((0, 3, 40, 400)))
                sent[host.name].append(payload)
                deliveries.append(host.send(to, payload))
        for _ in range(chance.randint(1, 12)):
            net.step()
        net.now += chance.random() / 100
        if chance.random() < 0.06:
            cuts = max(0, cuts - 1)
            cut(wire_)
            for _ in range(chance.randint(0, 3)):
                net.step()
            wire_ = reconnect(net, one, other)
            net.wires = [wire_]
    one.holding = other.holding = False
    net.settle()
    assert other.received == [("a", payload, False) for payload in sent["a"]]
    assert one.received == [("b", payload, False) for payload in sent["b"]]
    assert {delivery.state for delivery in deliveries} == {DELIVERED}
    assert peer_stats(one, "b").delivered == len(sent["a"])
    assert peer_stats(other, "a").received == len(sent["a"])
    assert peer_stats(one, "b").reconnects > 10
    assert_nothing_is_left(one, other)


@pytest.mark.parametrize("seed", range(4))
def test_random_cuts_lose_nothing_and_repeat_nothing(seed: int) -> None:
    random_traffic(seed, Limits())


@pytest.mark.parametrize("seed", range(4))
def test_random_cuts_with_a_small_window_lose_nothing_and_repeat_nothing(seed: int) -> None:
    random_traffic(seed, Limits(window_bytes=700))


@pytest.mark.parametrize("seed", range(2))
def test_random_cuts_that_only_the_connector_notices_lose_nothing_and_repeat_nothing(seed: int) -> None:
    random_traffic(seed, Limits(), cut=the_connector_notices)


@pytest.mark.parametrize("seed", range(2))
def test_it_does_not_matter_who_connects_after_a_cut(seed: int) -> None:
    random_traffic(seed, Limits(), either_connects)


def test_messages_of_any_ttl_arrive_once_or_expire_over_random_cuts() -> None:
    for seed in range(3):
        net = Net(seed, max_chunk=500)
        net.budget = 300
        chance = net.random
        one, other = net.host("a"), net.host("b")
        wire_ = net.connect(one, other)
        deliveries = {}
        for number in range(1500):
            payload = b"%d" % number
            deliveries[payload] = one.send("b", payload, ttl=chance.choice((None, 0, 0.05, 1, 100)))
            for _ in range(chance.randint(0, 4)):
                net.step()
            net.now += chance.random() / 50
            one.messaging.tick(net.now)
            if chance.random() < 0.05:
                wire_.cut()
                net.advance(chance.random() * 2)
                wire_ = net.connect(one, other)
        net.advance(1)
        received = other.payloads()
        assert received == sorted(received, key=int)
        assert len(received) == len(set(received))
        ends = {payload: delivery.state for payload, delivery in deliveries.items()}
        assert set(ends.values()) == {DELIVERED, EXPIRED}
        # What counts as delivered has arrived; what has no limit always does.
        assert {payload for payload, state in ends.items() if state is DELIVERED} <= set(received)
        assert all(ends[payload] is DELIVERED for payload, delivery in deliveries.items() if not delivery.expires_at)
        dropped = [delivery for event in one.happened(events.Dropped) for delivery in event.deliveries]
        assert len(dropped) == len({id(delivery) for delivery in dropped})
        assert {id(delivery) for delivery in dropped} == {
            id(deliveries[payload]) for payload, state in ends.items() if state is EXPIRED
        }
        assert_nothing_is_left(one, other)


def test_a_connection_that_is_lost_during_the_handshake_connects_nobody() -> None:
    net = Net()
    host = net.host("a")
    for count in range(3):
        end = net.raw(host)
        net.exchange(end, *(helpers.version(), helpers.hello(), helpers.ident("b"))[:count])
        end.lose()
    net.settle()
    assert host.events == []
    assert host.messaging.peers.connected_idents() == []


@pytest.mark.requirement("P-24", "positive")
@pytest.mark.requirement("P-24", "negative")
def test_a_peer_is_connected_once_its_begin_has_come() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b"))
    assert not host.messaging.peers.is_connected("b")
    assert host.happened(events.Connected) == []
    net.exchange(end, helpers.begin())
    assert host.happened(events.Connected) == [events.Connected("b", end.number)]


def test_a_peer_is_connected_once_however_many_streams_begin() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b"), helpers.begin(7), helpers.begin(9, stream=1))
    assert len(host.happened(events.Connected)) == 1
    assert peer_stats(host, "b").reconnects == 0
    net.exchange(end, helpers.data(0, b"durable", flags=1), helpers.data(0, b"volatile"))
    assert host.payloads() == [b"durable", b"volatile"]


def test_what_has_arrived_is_not_sent_again_after_a_cut_and_does_not_expire() -> None:
    net = Net()
    one, other, wire_ = pair(net)
    other.holding = True
    deliveries = [one.send("b", b"%d" % number, ttl=5) for number in range(3)]
    net.settle()
    wire_.silent = True
    lost = one.send("b", b"lost", ttl=5)
    one.act()
    wire_.cut()
    net.advance(100)
    bytes_before = peer_stats(one, "b").bytes_sent
    net.connect(one, other)
    net.advance(100)
    assert [delivery.state for delivery in deliveries] == [DeliveryState.SENT] * 3
    assert lost.state is EXPIRED
    assert peer_stats(one, "b").in_flight == 3
    assert peer_stats(one, "b").bytes_sent - bytes_before < 150  # the handshake and pings, and no message
    other.hand_over()
    net.settle()
    assert [delivery.state for delivery in deliveries] == [DELIVERED] * 3
    assert other.payloads() == [b"0", b"1", b"2"]
    assert_nothing_is_left(one, other)


# -- Restarts -----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-34", "positive")
@pytest.mark.requirement("P-34", "negative")
@pytest.mark.requirement("P-37", "negative")
def test_when_the_receivers_process_dies_what_it_had_not_acknowledged_comes_again_marked() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    deliveries = [one.send("b", b"%d" % number) for number in range(10)]
    net.settle()
    other.hand_over(4)
    net.settle()
    again = net.restart(other)
    late = one.send("b", b"late")
    net.connect(one, again)
    net.settle()
    assert again.received == [("a", b"%d" % number, True) for number in range(4, 10)] + [("a", b"late", False)]
    assert {delivery.state for delivery in [*deliveries, late]} == {DELIVERED}


@pytest.mark.requirement("P-34", "negative")
def test_what_was_never_sent_to_the_dead_process_is_not_marked() -> None:
    net = Net()
    one, other, _ = pair(net, Limits(window_bytes=200))
    other.holding = True
    for number in range(6):
        one.send("b", b"%d" % number + bytes(50))
    net.settle()
    in_flight = peer_stats(one, "b").in_flight
    assert 0 < in_flight < 6
    again = net.restart(other)
    net.connect(one, again)
    net.settle()
    assert [redelivered for _, _, redelivered in again.received] == [True] * in_flight + [False] * (6 - in_flight)


def test_a_second_death_does_not_lose_the_mark() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    one.send("b", b"x")
    net.settle()
    for _ in range(3):
        other = net.restart(other)
        other.holding = True
        net.connect(one, other)
        net.settle()
    other.hand_over()
    assert other.received == [("a", b"x", True)]


def test_when_the_senders_process_dies_the_new_one_is_heard_from_the_start() -> None:
    net = Net()
    one, other, _ = pair(net)
    for number in range(5):
        one.send("b", b"%d" % number)
    net.settle()
    again = net.restart(one)
    for number in range(5, 8):
        again.send("b", b"%d" % number)
    net.connect(again, other)
    net.settle()
    assert other.received == [("a", b"%d" % number, False) for number in range(8)]
    assert_nothing_is_left(again, other)


def test_callbacks_that_return_after_the_senders_death_acknowledge_nothing_of_its_successor() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    for number in range(5):
        one.send("b", b"%d" % number)
    net.settle()
    again = net.restart(one)
    deliveries = [again.send("b", b"new-%d" % number) for number in range(5)]
    net.connect(again, other)
    net.settle()
    other.hand_over(5)
    net.settle()
    assert not any(delivery.done for delivery in deliveries)
    other.hand_over()
    net.settle()
    assert all(delivery.state is DELIVERED for delivery in deliveries)
    assert len(other.received) == 10


def test_random_restarts_of_the_receiver_lose_nothing() -> None:
    for seed in range(4):
        net = Net(seed, max_chunk=200)
        net.high, net.budget = 1000, 300
        one, other = net.host("a"), net.host("b")
        net.connect(one, other)
        handed: list[tuple[bytes, bool]] = []
        for number in range(1000):
            one.send("b", b"%d" % number)
            other.holding = net.random.random() < 0.5
            if other.holding:
                other.hand_over(net.random.randint(0, 5))
            for _ in range(net.random.randint(0, 5)):
                net.step()
            if net.random.random() < 0.03:
                handed += [item[1:] for item in other.received]
                other = net.restart(other)
                net.wires = [net.connect(one, other)]
        other.holding = False
        net.settle()
        handed += [item[1:] for item in other.received]
        seen: set[bytes] = set()
        for payload, redelivered in handed:
            assert redelivered or payload not in seen, "a repetition that is not marked"
            seen.add(payload)
        assert seen == {b"%d" % number for number in range(1000)}
        assert len(handed) > 1000
        assert_nothing_is_left(one, other)


# -- Time ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-47", "positive")
def test_an_idle_connection_is_kept_alive_for_hours() -> None:
    net = Net()
    one, other, _ = pair(net)
    net.advance(3 * 3600)
    for host in (one, other):
        assert host.happened(events.Disconnected) == []
    one.send("b", b"still there")
    net.settle()
    assert other.payloads() == [b"still there"]


@pytest.mark.requirement("P-47", "negative")
def test_a_silent_connection_is_closed_after_25_s(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    one, other, wire_ = pair(net)
    wire_.silent = True
    net.advance(24.9)
    assert one.messaging.peers.is_connected("b")
    net.advance(0.2)
    assert not one.messaging.peers.is_connected("b")
    assert not other.messaging.peers.is_connected("a")
    assert wire_.one.gone
    assert wire_.other.gone
    assert len(warnings(caplog, "no answer to a ping")) == 2


def crawl(net: Net, wire_: Wire, seconds: float, steps: int) -> None:
    """Let nothing arrive but a few bytes of what the first end says, now and then; the other side is not heard."""
    for _ in range(steps):
        wire_.silent = True
        net.advance(seconds)
        wire_.silent = False
        wire_.move(wire_.one, wire_.other)
    wire_.silent = True


@pytest.mark.requirement("P-47", "positive")
def test_a_message_that_crosses_a_slow_line_for_minutes_arrives() -> None:
    net = Net(seed=1)
    one, other, wire_ = pair(net)
    net.max_chunk = 2000
    deliveries = [one.send("b", bytes(50_000)), one.send("b", b"behind")]
    crawl(net, wire_, 9.0, 40)
    assert other.received == []
    assert wire_.one.out
    wire_.silent = False
    net.settle()
    assert [len(payload) for payload in other.payloads()] == [50_000, 6]
    assert all(delivery.state is DELIVERED for delivery in deliveries)
    for host in (one, other):
        assert host.happened(events.Disconnected) == []


@pytest.mark.requirement("P-47", "positive")
def test_a_message_that_crosses_a_slow_line_to_a_legacy_peer_is_sent_once() -> None:
    net = Net()
    host = net.host("a")
    end = legacy_peer(net, host)
    delivery = host.send("b", bytes(50_000))
    net.settle()
    got = b""
    while end.out:
        net.advance(9.0)
        got += bytes(end.out[:2000])
        del end.out[:2000]
        host.tell(Writable(end.number))
    assert kinds(packets(got)) == [helpers.MESSAGE, helpers.PING, helpers.PING]  # the barrier; are you alive?
    net.exchange(end, PONG)
    assert delivery.state is DELIVERED
    assert host.happened(events.Disconnected) == []


@pytest.mark.requirement("P-47", "negative")
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10])
def test_a_slow_line_on_which_nothing_comes_any_more_is_given_up_in_time(steps: int) -> None:
    net = Net(seed=1)
    one, _, wire_ = pair(net)
    net.max_chunk = 2000
    started = net.now
    one.send("b", bytes(50_000))
    crawl(net, wire_, 9.0, steps)
    silent_since = net.now
    while one.messaging.peers.is_connected("b"):
        one.send("b", b"later output")
        net.advance(0.5)
        assert net.now <= max(started + 25, silent_since + 20) + 0.5
    assert net.now >= max(started + 25, silent_since + (10 if steps else 0))


@pytest.mark.requirement("P-24", "negative")
def test_a_handshake_that_takes_too_long_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    chunks = [(), (helpers.version(),), (helpers.netcomm_handshake("b"),)]
    ends = [net.raw(host) for _ in chunks]
    for end, said in zip(ends, chunks, strict=True):
        net.exchange(end, *said)
    net.advance(9.9)
    assert not any(end.gone for end in ends)
    net.advance(0.2)
    assert all(end.gone for end in ends)
    assert len(warnings(caplog, "handshake")) == 3
    assert host.messaging.deadline() is None


@pytest.mark.requirement("P-24", "negative")
def test_dripping_bytes_wins_no_time_in_the_handshake() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    for byte in helpers.netcomm_handshake("b"):
        net.exchange(end, bytes([byte]))
        net.advance(0.5)
        if end.gone:
            break
    assert end.gone
    assert net.now - 1000 <= 10.5


def test_a_slow_callback_does_not_cost_the_connection() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    delivery = one.send("b", b"x")
    net.advance(600)
    assert one.messaging.peers.is_connected("b")
    assert other.messaging.peers.is_connected("a")
    other.hand_over()
    net.settle()
    assert delivery.state is DELIVERED


def test_a_slow_callback_on_a_message_larger_than_the_window_does_not_cost_the_connection() -> None:
    net = Net()
    one, other, _ = pair(net, Limits(window_bytes=1000))
    other.holding = True
    delivery = one.send("b", bytes(5000))
    net.advance(600)
    assert one.happened(events.Disconnected) == []
    assert other.happened(events.Disconnected) == []
    other.hand_over()
    net.settle()
    assert delivery.state is DELIVERED


def test_a_connection_that_this_side_does_not_read_is_not_closed_for_its_silence() -> None:
    # Closing it would lose what a snakeMQ peer has written and takes for sent.
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake("b"), helpers.message(bytes(2000)))
    assert end.paused
    net.advance(600)
    assert not end.gone
    assert host.messaging.peers.is_connected("b")


def test_keep_alive_goes_on_once_reading_does() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake("b"), helpers.message(bytes(2000)))
    net.advance(20)
    host.hand_over()
    net.settle()
    assert not end.paused
    net.advance(26)
    assert end.gone


@pytest.mark.requirement("P-44", "positive")
def test_a_waiting_message_expires_when_its_time_is_up() -> None:
    net = Net()
    host = net.host("a")
    delivery = host.send("b", b"x", ttl=10)
    net.advance(9.9)
    assert not delivery.done
    net.advance(0.2)
    assert delivery.state is EXPIRED
    assert host.happened(events.Dropped) == [events.Dropped([delivery])]
    assert host.messaging.peers.idle


def test_ttl_0_is_dropped_at_once_unless_connected() -> None:
    net = Net()
    one, other = net.host("a"), net.host("b")
    early = one.send("b", b"early", ttl=0)
    assert early.state is EXPIRED
    net.settle()
    assert one.happened(events.Dropped) == [events.Dropped([early])]
    net.connect(one, other)
    net.settle()
    now = one.send("b", b"now", ttl=0)
    net.settle()
    assert now.state is DELIVERED
    assert other.payloads() == [b"now"]


@pytest.mark.requirement("P-44", "negative")
def test_a_message_whose_time_is_up_is_not_sent_again_after_the_downtime() -> None:
    for ttl in (0, 5):
        net = Net()
        one, other, wire_ = pair(net)
        wire_.silent = True
        delivery = one.send("b", b"old", ttl=ttl)
        one.act()
        assert delivery.state is DeliveryState.SENT
        wire_.cut()
        net.advance(3600)
        net.connect(one, other)
        net.settle()
        net.advance(1)
        assert other.payloads() == []
        assert delivery.state is EXPIRED


@pytest.mark.requirement("P-29", "negative")
@pytest.mark.requirement("P-41", "positive")
def test_messages_that_expire_leave_no_gap_that_the_receiver_could_mind() -> None:
    net = Net()
    one, other, wire_ = pair(net)
    one.send("b", b"0")
    net.settle()
    wire_.cut()
    deliveries = [one.send("b", b"%d" % number, ttl=1 if number % 2 else None) for number in range(1, 8)]
    net.advance(2)
    net.connect(one, other)
    net.settle()
    assert other.payloads() == [b"0", b"2", b"4", b"6"]
    assert [delivery.state is EXPIRED for delivery in deliveries] == [True, False] * 3 + [True]
    assert_nothing_is_left(one, other)


def test_discarding_ends_everything() -> None:
    net = Net()
    one, other, _ = pair(net)
    other.holding = True
    deliveries = [one.send("b", b"x"), one.send("nobody", b"y")]
    net.settle()
    one.messaging.discard_all()
    net.settle()
    assert {delivery.state for delivery in deliveries} == {DeliveryState.DISCARDED}
    dropped = [delivery for event in one.happened(events.Dropped) for delivery in event.deliveries]
    assert sorted(map(id, dropped)) == sorted(map(id, deliveries))
    assert one.messaging.peers.idle


# -- Duplicate idents ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-49", "negative")
def test_a_second_peer_of_one_ident_is_refused_when_the_first_answers(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    hub, one = net.host("hub"), net.host("b")
    net.connect(one, hub)
    net.settle()
    other = net.host("b")
    net.connect(other, hub)
    net.settle()
    assert one.messaging.peers.is_connected("hub")
    assert not other.messaging.peers.is_connected("hub")
    assert one.happened(events.Disconnected) == []
    (failed,) = other.happened(events.ErrorReported)
    assert isinstance(failed.error, ConnectionRefusedByPeer)
    assert failed.error.code == frames.RefuseCode.DUPLICATE_IDENT
    assert "'b'" in str(failed.error)
    # Both sides log it.
    assert len(warnings(caplog, "refusing the connection")) == 1
    assert len(warnings(caplog, "refused the connection")) == 1
    hub.send("b", b"x")
    net.settle()
    assert one.payloads() == [b"x"]
    assert other.payloads() == []


@pytest.mark.requirement("P-49", "positive")
@pytest.mark.requirement("P-49", "negative")
def test_the_old_connection_is_asked_once_and_the_challenger_waits() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16))
    assert challenger.paused
    assert net.exchange(old) == [(helpers.PING, b"")]
    net.advance(4.9)
    assert not challenger.gone
    assert net.exchange(old) == []
    answer = net.exchange(old, PONG)
    assert answer == []
    assert challenger.gone
    (refusal,) = packets_of(challenger, helpers.REFUSE)
    assert refusal[:2] == b"\0\1"
    assert not old.gone
    net.advance(14)
    assert not old.gone


def packets_of(end: helpers.End, kind: int) -> list[bytes]:
    return [payload for its, payload in packets(bytes(end.out)) if its == kind]


@pytest.mark.requirement("P-49", "positive")
def test_the_challenger_is_admitted_when_the_old_connection_stays_silent() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    delivery = host.send("b", b"x")
    net.exchange(old, helpers.ack(0))
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    net.advance(5.1)
    assert old.gone
    assert not challenger.gone
    assert not challenger.paused
    assert kinds(packets(bytes(old.out))).count(helpers.PING) == 1
    assert host.messaging.peers.is_connected("b")
    assert [type(event) for event in host.events] == [
        events.Connected,
        events.Disconnected,
        events.Connected,
    ]
    answer = net.exchange(challenger, helpers.ack(0))
    assert helpers.DATA in kinds(answer)
    net.exchange(challenger, helpers.ack(1))
    assert delivery.state is DELIVERED


def test_the_probe_ends_before_the_challengers_handshake_does() -> None:
    for limits in (Limits(), Limits(handshake_s=4), Limits(keepalive_wait_s=1)):
        net = Net()
        host = net.host("a", limits)
        established_raw(net, host)
        challenger = net.raw(host)
        net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
        net.advance(min(limits.keepalive_wait_s, limits.handshake_s / 2) + 0.1)
        assert not challenger.gone
        assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-49", "positive")
def test_the_challenger_is_admitted_at_once_when_the_old_connection_is_lost() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    old.lose("reset")
    net.settle()
    assert host.messaging.peers.is_connected("b")
    assert not challenger.paused
    assert host.messaging.deadline() == net.now + 15  # keep-alive, and nothing of the challenge


@pytest.mark.requirement("P-49", "positive")
def test_the_challenger_stays_where_the_old_connection_ends_by_itself_when_its_time_is_up() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    net.advance(20)  # it was pinged 5 s ago, and has 5 s left
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    net.advance(5)
    assert old.gone
    assert not challenger.gone
    assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-49", "positive")
def test_a_legacy_challenger_is_admitted_when_the_old_connection_stays_silent() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.legacy_handshake("b"))
    net.advance(5.1)
    assert old.gone
    assert not challenger.gone
    assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-49", "negative")
def test_the_challenger_is_refused_while_the_output_of_the_old_connection_is_on_its_way() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    net.exchange(old, helpers.ack(0))
    host.send("b", bytes(50_000))
    net.settle()
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    net.advance(4.9)
    del old.out[:1]
    assert not challenger.gone
    net.advance(0.2)
    assert not old.gone
    assert challenger.gone
    assert [refusal[:2] for refusal in packets_of(challenger, helpers.REFUSE)] == [b"\0\1"]
    # With the next one, it is asked anew; what was taken before says nothing.
    del old.out[:100]
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    net.advance(5.1)
    assert old.gone
    assert host.messaging.peers.is_connected("b")
    assert not challenger.gone


@pytest.mark.requirement("P-49", "positive")
def test_the_challenger_is_admitted_where_the_ping_got_through_and_was_not_answered() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    net.exchange(old, helpers.ack(0))
    host.send("b", b"written just before")
    net.settle()
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    old.out.clear()
    net.advance(5.1)
    assert old.gone
    assert not challenger.gone


@pytest.mark.requirement("P-49", "positive")
def test_the_challenger_is_admitted_though_output_behind_the_ping_is_taken() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    net.exchange(old, helpers.ack(0))
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    host.send("b", bytes(50_000))
    net.settle()
    old.out.clear()
    net.advance(5.1)
    assert old.gone
    assert not challenger.gone


@pytest.mark.requirement("P-49", "negative")
def test_any_bytes_of_the_old_connection_refuse_the_challenger_even_wrong_ones() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    net.exchange(old, bytes(4))
    assert old.gone
    assert challenger.gone
    assert host.messaging.peers.connected_idents() == []


@pytest.mark.requirement("P-50", "positive")
def test_of_two_peers_that_connect_to_each_other_at_once_one_connection_stays() -> None:
    net = Net()
    one, other = net.host("a"), net.host("b")
    there, back = net.connect(one, other), net.connect(other, one)
    # The greetings cross: each side first hears the other's on the connection that it made itself.
    one.act()
    other.act()
    there.move(there.other, there.one)
    back.move(back.other, back.one)
    delivery = one.send("b", b"x")
    net.settle()
    # The later process has the higher boot id: the connection that it made is kept, by both, at once.
    assert there.one.gone
    assert there.other.gone
    assert not back.one.gone
    assert not back.other.gone
    net.advance(9)
    assert one.messaging.peers.is_connected("b")
    assert other.messaging.peers.is_connected("a")
    assert delivery.state is DELIVERED


@pytest.mark.requirement("P-50", "positive")
@pytest.mark.parametrize("seed", range(30))
def test_two_peers_that_dial_each_other_settle_on_one_connection_in_any_order(seed: int) -> None:
    net = Net(seed, max_chunk=40)
    one, other = net.host("a"), net.host("b")
    wires = [net.connect(one, other), net.connect(other, one)]
    deliveries = [one.send("b", b"x"), other.send("a", b"y")]
    for _ in range(60):
        # Every end is as slow as it likes.
        match net.random.randrange(4):
            case 0:
                one.act()
            case 1:
                other.act()
            case number:
                net.random.choice((wires[number - 2].step, lambda: None))()
    net.settle()
    assert [wire_.one.gone for wire_ in wires] == [True, False]
    assert [wire_.other.gone for wire_ in wires] == [True, False]
    assert {delivery.state for delivery in deliveries} == {DELIVERED}
    assert (one.payloads(), other.payloads()) == ([b"y"], [b"x"])


@pytest.mark.requirement("P-50", "positive")
@pytest.mark.requirement("P-50", "negative")
def test_the_connection_of_the_higher_process_replaces_that_of_the_lower_whichever_side_it_is() -> None:
    for own_is_higher in (True, False):
        net = Net()
        host = net.host("a")  # of boot id 1
        boot = bytes(16) if own_is_higher else b"\xff" * 16
        # This side has made the first connection, the other side the second.
        made = net.raw(host, connector=1)
        net.exchange(made, helpers.netcomm_handshake("b", boot=boot) + helpers.begin())
        accepted = net.raw(host)
        net.exchange(accepted, helpers.netcomm_handshake("b", boot=boot, connector=1))
        assert made.gone is not own_is_higher
        assert not accepted.gone
        assert accepted.paused is own_is_higher  # it has to wait for the probe


@pytest.mark.requirement("P-51", "negative")
@pytest.mark.parametrize(
    "handshake", [helpers.netcomm_handshake("a"), helpers.legacy_handshake("a")], ids=["netcomm", "legacy"]
)
def test_a_connection_that_says_this_peers_own_ident_is_refused(
    handshake: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    said = net.exchange(end, handshake)
    assert end.gone
    refusals = [payload[:2] for kind, payload in said if kind == helpers.REFUSE]
    assert refusals == ([b"\0\1"] if helpers.hello() in handshake else [])
    assert len(warnings(caplog, "'a' is that of this peer itself")) == 1
    assert host.messaging.peers.stats() == {}


@pytest.mark.requirement("P-51", "positive")
def test_a_peer_that_dials_itself_refuses_itself() -> None:
    net = Net()
    host = net.host("a")
    wire_ = net.connect(host, host)
    net.settle()
    assert wire_.one.gone
    assert wire_.other.gone
    assert host.messaging.peers.connected_idents() == []


def test_a_challenger_that_goes_away_leaves_the_old_connection_alone() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16))
    challenger.lose()
    net.advance(7)
    assert not old.gone
    assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-52", "negative")
def test_a_third_connection_is_refused_while_a_challenger_waits() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger, third = net.raw(host), net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin(8))
    answer = net.exchange(third, helpers.netcomm_handshake("b", boot=b"3" * 16))
    assert third.gone
    assert not challenger.gone
    assert kinds(answer)[-1] == helpers.REFUSE
    assert packets_of(old, helpers.PING) == [b""]
    net.advance(5.1)
    assert old.gone
    assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-48", "positive")
def test_a_new_connection_of_the_same_connector_replaces_the_old_one_at_once() -> None:
    net = Net()
    hub, one = net.host("hub"), net.host("b")
    first = net.connect(one, hub, connector=1)
    net.settle()
    one.holding = True
    deliveries = [hub.send("b", b"%d" % number) for number in range(3)]
    net.settle()
    # The connector has noticed the cut, the hub has not.
    first.silent = True
    first.one.lose()
    net.connect(one, hub, connector=1)
    net.settle()
    assert first.other.gone
    assert hub.messaging.peers.is_connected("b")
    assert one.messaging.peers.is_connected("hub")
    one.hand_over()
    one.holding = False
    net.settle()
    assert one.payloads() == [b"0", b"1", b"2"]
    assert {delivery.state for delivery in deliveries} == {DELIVERED}
    assert hub.happened(events.ErrorReported) == []


@pytest.mark.requirement("P-48", "negative")
@pytest.mark.parametrize(
    "other",
    [
        {"boot": b"2" * 16, "connector": 1},  # another process
        {"boot": b"1" * 16, "connector": 2},  # another connector
    ],
)
def test_another_connector_or_process_has_to_wait(other: dict[str, int | bytes]) -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host, boot=b"1" * 16, connector=1)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", **other))
    assert not old.gone
    assert challenger.paused


@pytest.mark.requirement("P-48", "negative")
def test_accepted_connections_are_of_no_connector() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host, connector=0)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"1" * 16, connector=0))
    assert not old.gone
    assert challenger.paused


@pytest.mark.requirement("P-48", "positive")
@pytest.mark.requirement("P-52", "positive")
def test_replacing_refuses_a_challenger_that_waits() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger, newer = net.raw(host), net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16))
    net.exchange(newer, helpers.netcomm_handshake("b", boot=b"1" * 16, connector=1) + helpers.begin())
    assert old.gone
    assert challenger.gone
    assert not newer.gone
    net.advance(10)
    assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-15", "negative")
@pytest.mark.requirement("P-49", "negative")
def test_a_legacy_duplicate_is_closed_without_a_word_it_would_not_understand() -> None:
    net = Net()
    host = net.host("a")
    established_raw(net, host)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.legacy_handshake("b"))
    challenger.out.clear()
    end = next(end for end in host.ends.values() if end is not challenger)
    net.exchange(end, PONG)
    assert challenger.gone
    assert bytes(challenger.out) == b""


def test_refused_duplicates_are_logged_loudly_once(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    for _ in range(5):
        challenger = net.raw(host)
        net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16))
        net.exchange(old, PONG)
        assert challenger.gone
    assert len(warnings(caplog, "refusing")) == 1
    assert len(warnings(caplog, "refusing", logging.DEBUG)) == 4


@pytest.mark.requirement("P-49", "negative")
def test_a_paused_old_connection_is_not_taken_for_dead() -> None:
    # Its answer to the probe is there, but this side does not read it.
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    old = net.raw(host)
    net.exchange(old, helpers.legacy_handshake("b"), helpers.message(bytes(2000)))
    assert old.paused
    challenger = net.raw(host)
    said = net.exchange(challenger, helpers.netcomm_handshake("b"))
    assert challenger.gone
    assert kinds(said)[-1] == helpers.REFUSE
    net.advance(6)
    assert not old.gone


# -- Refused, broken and other complaints -------------------------------------------------------------------------


def test_a_protocol_error_is_told_to_both_sides_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    host.events.clear()
    end.feed(helpers.data(5, b"gap"))
    net.settle()
    assert end.gone
    (refusal,) = packets_of(end, helpers.REFUSE)
    assert refusal[:2] == b"\0\3"
    assert b"seq 5" in refusal
    failed, disconnected = host.events
    assert isinstance(failed, events.ErrorReported)
    assert isinstance(failed.error, RemoteProtocolError)
    assert disconnected == events.Disconnected("b")
    (warning,) = warnings(caplog)
    assert "'b'" in warning
    assert f"place-{end.number}" in warning


@pytest.mark.requirement("P-20", "negative")
@pytest.mark.requirement("P-26", "negative")
@pytest.mark.requirement("P-31", "negative")
@pytest.mark.requirement("P-32", "negative")
@pytest.mark.requirement("P-38", "negative")
@pytest.mark.requirement("P-54", "negative")
@pytest.mark.parametrize(
    "packets",
    [
        helpers.data(0),
        helpers.skip(1),
        helpers.begin() + helpers.begin(),
        helpers.begin() + helpers.data(1),
        helpers.begin() + helpers.ack(1, epoch=helpers.FIRST_EPOCH + 1),
        helpers.ack(0, stream=1),
        helpers.begin() + helpers.data(0, flags=1),
        helpers.message(),
        helpers.hello(),
        helpers.ident("b"),
        bytes(4),
        helpers.packet(helpers.ACK, b"short"),
    ],
    ids=[
        "data before begin",
        "skip before begin",
        "two begins",
        "gap",
        "ack of the unsent",
        "ack of no stream",
        "data of no stream",
        "message",
        "hello",
        "ident",
        "empty",
        "short",
    ],
)
def test_what_a_netcomm_peer_may_not_say_closes_its_connection_and_no_other(packets: bytes) -> None:
    net = Net()
    host = net.host("a")
    witness = established_raw(net, host, "witness")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b"), packets)
    assert end.gone
    assert host.messaging.peers.connected_idents() == ["witness"]
    assert not witness.gone
    # And the peer may come again.
    established_raw(net, host)
    assert host.messaging.peers.connected_idents() == ["b", "witness"]


def test_messages_before_a_protocol_error_are_received() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin() + helpers.data(0, b"x") + bytes(4))
    assert end.gone
    assert host.payloads() == [b"x"]


@pytest.mark.requirement("P-19", "negative")
def test_another_version_is_answered_by_incompatible_before_the_close() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    end.feed(helpers.version(2))
    net.settle()
    assert end.gone
    assert kinds(packets(bytes(end.out)))[-1] == helpers.INCOMPATIBLE


def test_a_stranger_is_not_remembered() -> None:
    net = Net()
    host = net.host("a")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", bytes(100), b"\xff" * 100):
        end = net.raw(host)
        end.feed(garbage)
        net.settle()
        assert end.gone
    assert host.messaging.peers.stats() == {}
    assert host.messaging.deadline() is None


def test_the_same_complaint_about_a_connectors_place_is_loud_once(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")

    def attempt(connector: int, *chunks: bytes) -> None:
        end = host.open(connector)
        host.messaging.sessions._by_number[end.number].where = f"server-{connector}:4000"
        net.exchange(end, *chunks)
        net.settle()

    refusal = helpers.version() + helpers.refuse(1, "duplicate")
    for _ in range(4):
        attempt(1, refusal)
    assert len(warnings(caplog, "duplicate")) == 1
    assert len(warnings(caplog, "duplicate", logging.DEBUG)) == 3
    # Another reason is news, and so is another connector.
    attempt(1, helpers.version() + helpers.refuse(1, "other"))
    attempt(2, refusal)
    assert len(warnings(caplog, "other")) == 1
    assert len(warnings(caplog, "server-2")) == 1
    # After it was connected, the same reason is news again.
    attempt(2, helpers.netcomm_handshake("b") + helpers.begin())
    attempt(2, refusal)
    assert len(warnings(caplog, "server-2")) == 2


def test_the_same_refusal_of_a_connectors_place_is_reported_once() -> None:
    net = Net()
    host = net.host("a")
    for code, text in ((1, "taken"), (1, "taken"), (1, "other"), (1, "other"), (1, "taken")):
        end = host.open(1)
        host.messaging.sessions._by_number[end.number].where = "server:4000"
        net.exchange(end, helpers.version() + helpers.refuse(code, text))
    errors = [str(event.error).rpartition(" ")[2] for event in host.happened(events.ErrorReported)]
    assert errors == ["taken", "other", "taken"]


def test_closing_all_says_what_is_left_and_forgets_every_connection() -> None:
    net = Net()
    one, other, _ = pair(net)
    third = net.raw(one)
    one.send("b", b"x")
    one.act()
    one.messaging.sessions.close_all("as the test wants", net.now)
    net.settle()
    assert third.gone
    assert one.ends == {}
    assert other.payloads() == [b"x"]
    assert other.messaging.peers.connected_idents() == []
    assert one.happened(events.Disconnected) == [events.Disconnected("b")]
    net.advance(60)
    assert one.messaging.deadline() is None


def test_complaints_about_accepted_connections_are_always_loud(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    for _ in range(3):
        net.exchange(net.raw(host), helpers.version() + bytes(4))
    assert len(warnings(caplog, "empty")) == 3


def test_connecting_and_disconnecting_are_logged_once_each_at_info(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    end = established_raw(net, host)
    end.lose("reset by peer")
    lines = warnings(caplog, level=logging.INFO)
    assert len(lines) == 2
    assert all("'b'" in line and f"place-{end.number}" in line for line in lines)
    assert "reset by peer" in lines[1]


def test_payloads_are_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin() + helpers.data(7, b"secret"))
    net.exchange(net.raw(host), helpers.legacy_handshake("c") + helpers.message(b"secret") + bytes(4))
    net.exchange(net.raw(host), helpers.version() + helpers.message(b"secret"))
    assert len(caplog.records) > 3
    assert not any("secret" in record.getMessage() for record in caplog.records)


# -- Pausing ------------------------------------------------------------------------------------------------------


def test_a_legacy_sender_is_not_read_while_a_window_of_messages_waits_for_callbacks() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake("b"))
    size = 100 - helpers.OVERHEAD
    for number in range(10):
        net.exchange(end, helpers.message(bytes(size)))
        assert not end.paused, number
    net.exchange(end, helpers.message(bytes(size)))
    assert end.paused
    host.hand_over(5)
    net.settle()
    assert end.paused  # 600 bytes are more than half
    host.hand_over(1)
    net.settle()
    assert not end.paused
    host.hand_over()
    net.settle()
    assert len(host.received) == 11


def test_a_paused_sender_is_paused_and_resumed_once() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    end = net.raw(host)
    end.feed(helpers.legacy_handshake("b") + helpers.message(bytes(900)) * 5)
    end.feed(helpers.message(bytes(900)) * 5)
    host.hand_over(0)
    pauses = [event for event in host.messaging.next_events() if isinstance(event, events.PauseReading)]
    assert pauses == [events.PauseReading(end.number, True)]


def test_what_waits_for_callbacks_survives_the_connection() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake("b"), helpers.message(b"x" * 2000))
    end.lose()
    second = net.raw(host)
    net.exchange(second, helpers.legacy_handshake("b"), helpers.message(b"y"))
    assert second.paused
    host.holding = False
    net.settle()
    assert not second.paused
    assert host.payloads() == [b"x" * 2000, b"y"]


@pytest.mark.parametrize("legacy", [True, False])
def test_what_waits_for_callbacks_is_bounded_over_all_connections(legacy: bool) -> None:
    net = Net()
    host = net.host("a", Limits(max_frame_bytes=1000, window_bytes=1000))
    host.holding = True
    for epoch in range(20):
        end = net.raw(host)
        if legacy:
            net.exchange(end, helpers.legacy_handshake("b") + helpers.message(bytes(900)) * 5)
        else:
            messages = b"".join(helpers.data(seq, bytes(900)) for seq in range(5))
            net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin(epoch=epoch) + messages)
        assert end.paused
        end.lose()
    assert sum(len(event.items) for event in host.queue) == 5
    assert host.messaging.peers.stats()["b"].received == 5


def test_one_paused_peer_does_not_hold_up_the_others() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    paused, free = net.raw(host), net.raw(host)
    net.exchange(paused, helpers.legacy_handshake("b"), helpers.message(bytes(2000)))
    net.exchange(free, helpers.legacy_handshake("c"), helpers.message(b"x"))
    assert paused.paused
    assert not free.paused


def test_a_netcomm_sender_that_keeps_to_the_window_is_never_paused() -> None:
    net = Net()
    one, other, wire_ = pair(net, Limits(window_bytes=1000))
    other.holding = True
    for _ in range(100):
        one.send("b", bytes(63))
    net.settle()
    assert not wire_.other.paused
    assert peer_stats(one, "b").in_flight == 10


def test_after_stop_receiving_no_connection_is_read() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=1000))
    host.holding = True
    netcomm_end = established_raw(net, host)
    legacy = net.raw(host)
    net.exchange(legacy, helpers.legacy_handshake("c"), helpers.message(b"x"))
    host.messaging.sessions.stop_receiving()
    net.settle()
    assert netcomm_end.paused
    assert legacy.paused
    host.hand_over()
    net.settle()
    assert legacy.paused


def test_after_stop_receiving_a_new_connection_is_not_read_either() -> None:
    net = Net()
    host = net.host("a")
    host.messaging.sessions.stop_receiving()
    end = net.raw(host)
    net.settle()
    assert end.paused


def test_after_stop_receiving_a_challenger_that_is_admitted_is_not_read() -> None:
    net = Net()
    host = net.host("a")
    old = established_raw(net, host)
    challenger = net.raw(host)
    net.exchange(challenger, helpers.netcomm_handshake("b", boot=b"2" * 16))
    host.messaging.sessions.stop_receiving()
    net.settle()
    old.lose()
    net.settle()
    assert challenger.paused


# -- Legacy peers -------------------------------------------------------------------------------------------------


def legacy_peer(net: Net, host: Host, name: str = "b") -> helpers.End:
    """A connection to a legacy peer, established."""
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake(name))
    net.advance(0.1)
    return end


@pytest.mark.requirement("P-53", "positive")
@pytest.mark.requirement("P-53", "negative")
def test_a_legacy_peer_is_connected_once_it_has_not_refused_the_ident_for_a_moment() -> None:
    net = Net()
    host = net.host("a")
    delivery = host.send("b", b"x")
    end = net.raw(host)
    greeting = net.exchange(end, helpers.legacy_handshake("b"))
    # HELLO goes out before anything is known of the other side, who passes it over.
    assert kinds(greeting) == [helpers.VERSION, helpers.HELLO, helpers.IDENT]
    net.advance(0.09)
    # Anything behind the IDENT would crash a snakeMQ peer that refuses it.
    assert net.exchange(end) == []
    assert host.happened(events.Connected) == []
    assert not host.messaging.peers.is_connected("b")
    net.advance(0.02)
    assert host.happened(events.Connected) == [events.Connected("b", end.number)]
    assert kinds(net.exchange(end)) == [helpers.MESSAGE, helpers.PING]
    net.exchange(end, PONG)
    assert delivery.state is DELIVERED


@pytest.mark.requirement("P-53", "positive")
def test_a_legacy_peer_that_sends_a_message_is_connected_at_once() -> None:
    net = Net()
    host = net.host("a")
    host.send("b", b"x")
    end = net.raw(host)
    answer = net.exchange(end, helpers.legacy_handshake("b"), helpers.message(b"y"))
    assert kinds(answer)[3:] == [helpers.MESSAGE, helpers.PING]
    assert host.payloads() == [b"y"]
    net.advance(1)
    assert len(host.happened(events.Connected)) == 1


def test_a_legacy_peers_ping_is_answered_at_once_and_it_is_connected_a_moment_later() -> None:
    net = Net()
    host = net.host("a")
    host.send("b", b"x")
    end = net.raw(host)
    assert kinds(net.exchange(end, helpers.legacy_handshake("b"), PING)).count(helpers.PONG) == 1
    net.advance(0.1)
    assert host.messaging.peers.is_connected("b")
    assert kinds(net.exchange(end)) in ([], [helpers.MESSAGE, helpers.PING])


@pytest.mark.requirement("P-53", "negative")
@pytest.mark.parametrize("connector", [0, 1])
def test_a_legacy_peer_that_closes_at_once_has_refused_the_ident(
    connector: int, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net()
    host = net.host("a")
    for attempt in range(3):
        end = net.raw(host, connector)
        host.messaging.sessions._by_number[end.number].where = "server:4000"
        net.exchange(end, helpers.legacy_handshake("b"))
        net.advance(0.05)
        end.lose("closed by the other side")
        net.settle()
        # A connector that tries again and again is reported once.
        loud = attempt + 1 if connector == 0 else 1
        assert len(warnings(caplog, "another connection with the ident 'a'")) == loud
        failed = host.happened(events.ErrorReported)
        assert len(failed) == loud
    assert isinstance(failed[0], events.ErrorReported)
    assert isinstance(failed[0].error, ConnectionRefusedByPeer)
    assert failed[0].error.code == frames.RefuseCode.DUPLICATE_IDENT
    assert host.happened(events.Connected) == host.happened(events.Disconnected) == []


def test_a_legacy_peer_that_goes_away_later_has_not_refused_anything() -> None:
    net = Net()
    host = net.host("a")
    legacy_peer(net, host).lose()
    net.settle()
    assert host.happened(events.ErrorReported) == []
    assert len(host.happened(events.Disconnected)) == 1


@pytest.mark.requirement("P-54", "positive")
@pytest.mark.requirement("P-55", "positive")
def test_to_a_legacy_peer_messages_go_with_a_ping_behind_them() -> None:
    net = Net()
    host = net.host("a")
    end = legacy_peer(net, host)
    deliveries = [host.send("b", b"x"), host.send("b", b"yy", ttl=60)]
    assert net.exchange(end) == [
        (helpers.MESSAGE, helpers.UUID + bytes.fromhex("ffffffff 00000000") + b"x"),
        (helpers.MESSAGE, helpers.UUID + bytes.fromhex("0000003c 00000000") + b"yy"),
        (helpers.PING, b""),
    ]
    assert not any(delivery.done for delivery in deliveries)
    net.exchange(end, PONG)
    assert all(delivery.state is DELIVERED for delivery in deliveries)
    assert_nothing_is_left(host)


@pytest.mark.requirement("P-54", "negative")
def test_only_netcomm_frames_that_a_legacy_peer_passes_over_go_out_before_its_ident() -> None:
    net = Net()
    host = net.host("a")
    end = legacy_peer(net, host)
    host.send("b", b"x")
    said = net.exchange(end, helpers.message(b"y"), PING)
    assert set(kinds(said)) <= {helpers.MESSAGE, helpers.PING, helpers.PONG}


@pytest.mark.requirement("P-55", "negative")
def test_a_pong_too_many_acknowledges_nothing() -> None:
    net = Net()
    host = net.host("a")
    end = legacy_peer(net, host)
    net.exchange(end, PONG * 3)
    delivery = host.send("b", b"x")
    net.exchange(end)
    assert not delivery.done
    net.exchange(end, PONG)
    assert delivery.state is DELIVERED


@pytest.mark.requirement("P-55", "positive")
def test_each_pong_acknowledges_its_own_batch() -> None:
    net = Net()
    net.budget = 1
    host = net.host("a")
    end = legacy_peer(net, host)
    deliveries = [host.send("b", b"%d" % number) for number in range(4)]
    assert kinds(net.exchange(end)) == [helpers.MESSAGE, helpers.PING] * 4
    for count in range(4):
        assert [delivery.done for delivery in deliveries] == [number < count for number in range(4)]
        net.exchange(end, PONG)


@pytest.mark.requirement("P-55", "negative")
def test_a_keep_alive_ping_is_not_taken_for_a_barrier() -> None:
    net = Net()
    host = net.host("a")
    end = legacy_peer(net, host)
    net.advance(15)
    assert net.exchange(end) == [(helpers.PING, b"")]
    delivery = host.send("b", b"x")
    assert kinds(net.exchange(end)) == [helpers.MESSAGE, helpers.PING]
    net.exchange(end, PONG)
    assert not delivery.done
    net.exchange(end, PONG)
    assert delivery.state is DELIVERED


@pytest.mark.requirement("P-56", "positive")
def test_what_a_legacy_peer_has_not_acknowledged_is_sent_again_in_order() -> None:
    net = Net()
    host = net.host("a")
    end = legacy_peer(net, host)
    deliveries = [host.send("b", b"%d" % number) for number in range(2)]
    net.exchange(end)
    net.exchange(end, PONG)
    deliveries += [host.send("b", b"%d" % number) for number in range(2, 4)]
    net.exchange(end)
    end.lose()
    deliveries.append(host.send("b", b"4"))
    end = legacy_peer(net, host)
    said = net.exchange(end)
    assert [payload[24:] for kind, payload in said if kind == helpers.MESSAGE] == [b"2", b"3", b"4"]
    # The pongs of the lost connection are forgotten with it.
    net.exchange(end, PONG)
    assert all(delivery.state is DELIVERED for delivery in deliveries)


def test_from_a_legacy_peer_messages_come_as_they_are() -> None:
    net = Net()
    host = net.host("a")
    end = legacy_peer(net, host)
    assert net.exchange(end, helpers.message(b"x", ttl=5, flags=1), helpers.message(b"x", ttl=5, flags=1)) == []
    assert host.received == [("b", b"x", False)] * 2
    first = host.happened(events.Received)[0]
    assert first.stream is None
    assert first.items[0][1:] == (helpers.UUID, 5, 1, b"x", None)


@pytest.mark.requirement("P-46", "positive")
def test_a_legacy_peers_ping_is_answered_even_while_a_callback_takes_its_time() -> None:
    net = Net()
    host = net.host("a")
    host.holding = True
    end = legacy_peer(net, host)
    assert net.exchange(end, helpers.message(b"x") + PING) == [(helpers.PONG, b"")]


def test_a_legacy_peer_becomes_a_netcomm_peer_and_back() -> None:
    net = Net()
    host = net.host("a")
    first = host.send("b", b"0")
    end = legacy_peer(net, host)
    end.lose()
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin() + helpers.ack(0))
    assert kinds(said)[-1] == helpers.DATA
    second = host.send("b", b"1")
    net.exchange(end)
    end.lose()
    end = legacy_peer(net, host)
    said = net.exchange(end)
    assert [payload[24:] for kind, payload in said if kind == helpers.MESSAGE] == [b"0", b"1"]
    net.exchange(end, PONG)
    assert first.state is second.state is DELIVERED


@pytest.mark.requirement("P-20", "negative")
@pytest.mark.requirement("P-21", "negative")
def test_a_legacy_peer_may_say_nothing_of_netcomm() -> None:
    for packet in (helpers.begin(), helpers.data(0), helpers.ack(0), helpers.refuse(1, "x"), helpers.hello()):
        net = Net()
        host = net.host("a")
        end = legacy_peer(net, host)
        end.feed(packet)
        net.settle()
        assert end.gone
        # Nor is it told why: it would not understand.
        assert bytes(end.out) == b""


def test_random_cuts_to_a_legacy_peer_lose_nothing_and_keep_the_order() -> None:
    for seed in range(3):
        chance = random.Random(seed)
        net = Net()
        net.budget = 200
        host = net.host("a")
        deliveries = []
        got: list[int] = []
        pings = 0
        end = legacy_peer(net, host)
        for number in range(1000):
            deliveries.append(host.send("b", b"%d" % number))
            if chance.random() < 0.3:
                for kind, payload in net.exchange(end, PONG * chance.randint(0, pings)):
                    if kind == helpers.MESSAGE:
                        got.append(int(payload[24:]))
                pings = 0
            elif chance.random() < 0.05:
                end.lose()
                end = legacy_peer(net, host)
                said = net.exchange(end)
                again = [int(payload[24:]) for kind, payload in said if kind == helpers.MESSAGE]
                assert again == list(range(again[0], again[0] + len(again)))
                got += again
                pings = sum(kind == helpers.PING for kind, _ in said)
        while not host.messaging.peers.idle:
            said = net.exchange(end, PONG)
            got += [int(payload[24:]) for kind, payload in said if kind == helpers.MESSAGE]
        assert sorted(set(got)) == list(range(1000))
        assert list(dict.fromkeys(got)) == list(range(1000))
        assert {delivery.state for delivery in deliveries} == {DELIVERED}
        assert_nothing_is_left(host)
