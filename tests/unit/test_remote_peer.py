"""`protocol.remote_peer`: what is counted for each peer, and which peers are forgotten."""

import pytest

from netcomm.limits import Limits
from netcomm.message import Stream
from tests.unit import helpers
from tests.unit.helpers import Host, Net, established_raw, kinds, packets, pair, peer_stats


def test_stats_count_everything() -> None:
    net = Net()
    one, other, wire_ = pair(net)
    for _ in range(3):
        one.send("b", b"x" * 10)
    other.send("a", b"yy")
    net.settle()
    one.send("b", b"", ttl=0)
    net.settle()
    wire_.cut()
    one.send("b", b"", ttl=0)
    net.connect(one, other)
    net.settle()
    other.holding = True
    one.send("b", b"z")
    net.settle()
    stats = peer_stats(one, "b")
    assert stats.connected
    assert (stats.queued, stats.in_flight, stats.delivered, stats.dropped) == (1, 1, 4, 1)
    assert (stats.received, stats.reconnects) == (1, 1)
    assert stats.bytes_sent > 3 * 47 + 37 + 38
    assert stats.bytes_received > 39
    back = peer_stats(other, "a")
    assert (back.received, back.delivered, back.queued) == (5, 1, 0)
    # Up to the identification nobody knows whose bytes they are; the rest is counted on both sides alike.
    assert 0 <= stats.bytes_sent - back.bytes_received < 250
    wire_ = net.wires[-1]
    wire_.cut()
    assert not peer_stats(one, "b").connected
    assert peer_stats(one, "b").queued == 1


def test_stats_are_a_snapshot() -> None:
    net = Net()
    one, _, _ = pair(net)
    before = one.messaging.peers.stats()
    one.send("b", b"x")
    net.settle()
    assert before["b"].delivered == 0
    assert one.messaging.peers.stats()["b"].delivered == 1


def test_stats_tell_who_is_waited_for() -> None:
    net = Net()
    host = net.host("a")
    host.send("nobody", b"x")
    stats = peer_stats(host, "nobody")
    assert (stats.connected, stats.queued, stats.in_flight, stats.reconnects) == (False, 1, 0, 0)


def test_strangers_idents_do_not_fill_the_memory() -> None:
    net = Net()
    host = net.host("a", Limits(max_idle_peers=20))
    host.send("waited-for", b"x")
    staying = established_raw(net, host, "staying")
    host.holding = True
    busy = established_raw(net, host, "busy")
    net.exchange(busy, helpers.data(0, b"x"))
    busy.lose()
    for number in range(500):
        established_raw(net, host, f"stranger-{number}").lose()
        assert len(host.messaging.peers.stats()) <= 22
    assert {"waited-for", "staying", "busy"} <= set(host.messaging.peers.stats())
    assert "stranger-499" in host.messaging.peers.stats()
    assert not staying.gone
    host.hand_over()
    net.settle()
    assert host.payloads() == [b"x"]
    assert len(host.messaging._deadlines._heap) < 200


@pytest.mark.parametrize("stream", Stream)
def test_strangers_that_begin_a_stream_do_not_fill_the_memory(stream: Stream) -> None:
    net = Net()
    host = net.host("a", Limits(max_idle_peers=20))
    for number in range(100):
        end = net.raw(host)
        net.exchange(end, helpers.netcomm_handshake(f"stranger-{number}") + helpers.begin(stream=stream))
        end.lose()
        assert len(host.messaging.peers.stats()) <= 21


def test_a_peer_whose_connection_is_being_replaced_is_not_forgotten() -> None:
    net = Net()
    host = net.host("a", Limits(max_idle_peers=2))
    first = established_raw(net, host, "b")
    for number in range(2):
        established_raw(net, host, f"other-{number}")
    newer = established_raw(net, host, "b")
    assert first.gone
    assert not newer.gone
    assert host.messaging.peers.is_connected("b")
    net.exchange(newer, helpers.ack(0))
    host.send("b", b"x")
    assert helpers.DATA in kinds(net.exchange(newer))
    net.exchange(newer, helpers.data(0, b"y"))
    assert host.payloads() == [b"y"]


def test_a_forgotten_peer_starts_anew() -> None:
    net = Net()
    host = net.host("a", Limits(max_idle_peers=1))
    first = established_raw(net, host, "b")
    net.exchange(first, helpers.data(0, b"x"))
    first.lose()
    for number in range(3):
        established_raw(net, host, f"other-{number}").lose()
    assert "b" not in host.messaging.peers.stats()
    end = net.raw(host)
    answer = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin(7, 1, 1))
    assert answer[-1] == packets(helpers.ack(1, epoch=7))[0]
    net.exchange(end, helpers.data(1, b"y"))
    assert host.payloads() == [b"x", b"y"]


@pytest.mark.requirement("P-25", "negative")
def test_an_epoch_is_never_used_twice_for_one_ident() -> None:
    net = Net()
    host = net.host("a", Limits(max_idle_peers=1))
    epochs = []
    for _ in range(20):
        end = net.raw(host)
        answer = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
        epochs += [payload[1:9] for kind, payload in answer if kind == helpers.BEGIN]
        end.lose()
        for number in range(3):
            established_raw(net, host, f"other-{number}").lose()
        assert "b" not in host.messaging.peers.stats()
    assert len(set(epochs)) == 20


def test_epochs_wrap_around() -> None:
    host = Host(Net(), "a", Limits(), 1)
    host.messaging.peers._next_epoch = 2**63 - 1
    for ident in ("b", "c"):
        host.send(ident, b"")
    epochs = [peer.outbox.volatile.epoch for peer in host.messaging.peers]
    assert epochs == [2**63 - 1, 0]
