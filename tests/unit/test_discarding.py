"""GOODBYE, idents that were made up, and messages that are given up: `protocol.discarding`, and what it rests on."""

import logging

import pytest

from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import Delivery, DeliveryState
from netcomm.protocol import events, frames
from netcomm.protocol.batch import Batch
from tests.unit import helpers
from tests.unit.helpers import OVERHEAD, Host, Net, Wire, established_raw, kinds, not_waited_for, packets, warnings

DELIVERED = DeliveryState.DELIVERED
DISCARDED = DeliveryState.DISCARDED
QUEUED = DeliveryState.QUEUED
AWAY_S = 60.0


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "netcomm")


def server_and_client(
    net: Net, limits: Limits | None = None, made_up: bool = True, storage: MemoryQueueStorage | None = None
) -> tuple[Host, Host, Wire]:
    server, client = net.host("server", limits, storage), net.host("client", made_up=made_up)
    wire = net.connect(client, server)
    net.settle()
    return server, client, wire


def dropped(host: Host) -> list[Delivery]:
    return [delivery for event in host.happened(events.Dropped) for delivery in event.deliveries]  # type: ignore[attr-defined]


def queued(host: Host, ident: str = "client") -> int:
    return host.messaging.peers[ident].outbox.queued


# -- HELLO and GOODBYE --------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-80", "positive")
@pytest.mark.requirement("P-81", "positive")
@pytest.mark.requirement("P-81", "negative")
@pytest.mark.parametrize("made_up", [False, True])
def test_hello_says_whether_the_ident_was_made_up(made_up: bool) -> None:
    net = Net()
    host = net.host("a", made_up=made_up)
    said = net.exchange(net.raw(host))
    assert [payload[46:] for kind, payload in said if kind == helpers.HELLO] == [bytes([made_up])]


@pytest.mark.requirement("P-80", "negative")
def test_other_flags_of_hello_have_no_meaning() -> None:
    net = Net()
    host = net.host("a")
    for name, flags, made_up in (("b", 0xFE, False), ("c", 0xFF, True)):
        net.exchange(net.raw(host), helpers.netcomm_handshake(name, flags=flags) + helpers.begin())
        assert host.messaging.peers[name].made_up is made_up


@pytest.mark.requirement("P-82", "positive")
def test_goodbye_is_the_last_frame_to_each_netcomm_peer() -> None:
    net = Net()
    host = net.host("a")
    ends = [established_raw(net, host, name) for name in "bc"]
    net.exchange(ends[0], helpers.data(0, b"x"))
    host.send("c", b"never answered")
    host.end()
    net.settle()
    assert [kinds(packets(bytes(end.out)))[-1] for end in ends] == [helpers.GOODBYE] * 2
    assert all(end.closing for end in ends)


def test_acknowledgements_that_are_due_go_before_goodbye() -> None:
    net = Net()
    server, client, _ = server_and_client(net)
    client.holding = True
    deliveries = [server.send("client", b"%d" % number) for number in range(2)]
    net.settle()
    client.hand_over(1)
    client.messaging.sessions.close_all("terminated", net.now)  # and there was no room to write anything before
    net.settle()
    assert [delivery.state for delivery in deliveries] == [DELIVERED, DISCARDED]


@pytest.mark.requirement("P-82", "negative")
def test_goodbye_is_not_said_where_a_connection_is_closed_for_another_reason() -> None:
    net = Net()
    host = net.host("a")
    legacy = net.raw(host)
    net.exchange(legacy, helpers.legacy_handshake("snake"))
    net.advance(0.1)
    waits = net.raw(host)  # has not identified itself
    admitted = net.raw(host)
    net.exchange(admitted, helpers.netcomm_handshake("d"))  # without BEGIN: not established
    replaced = established_raw(net, host, "b")
    established_raw(net, host, "b")
    broken = established_raw(net, host, "c")
    said = [net.exchange(replaced), net.exchange(broken, helpers.data(5))]
    host.end()
    net.settle()
    said += [packets(bytes(end.out)) for end in (legacy, waits, admitted)]
    assert helpers.GOODBYE not in [kind for answer in said for kind in kinds(answer)]
    silent = established_raw(net, host, "e")
    net.advance(60)
    assert helpers.GOODBYE not in kinds(packets(bytes(silent.out)))


@pytest.mark.requirement("P-83", "positive")
@pytest.mark.requirement("P-83", "negative")
def test_goodbye_closes_the_connection_and_what_follows_it_is_ignored() -> None:
    net = Net()
    host = net.host("a")
    end = established_raw(net, host)
    behind = helpers.data(0, b"x") + helpers.packet(helpers.PING) + bytes(4)
    answer = net.exchange(end, helpers.goodbye() + behind, behind)
    assert answer == []
    assert end.closing
    assert host.received == []
    assert len(host.happened(events.Disconnected)) == 1
    assert host.happened(events.ErrorReported) == []


@pytest.mark.requirement("P-84", "positive")
@pytest.mark.requirement("P-84", "negative")
def test_a_process_that_has_said_goodbye_is_not_admitted_again_but_its_successor_is() -> None:
    net = Net()
    host = net.host("a")
    net.exchange(established_raw(net, host, boot=b"1" * 16), helpers.goodbye())
    late = net.raw(host)
    answer = net.exchange(late, helpers.netcomm_handshake("b", boot=b"1" * 16) + helpers.begin())
    assert kinds(answer) == [helpers.VERSION, helpers.HELLO, helpers.IDENT]
    assert late.closing
    established_raw(net, host, boot=b"2" * 16)
    assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-84", "positive")
def test_a_connection_of_the_process_that_waited_for_the_ident_is_closed_with_goodbye() -> None:
    net = Net()
    host = net.host("a")
    first = established_raw(net, host, connector=1)
    waiting = net.raw(host)
    net.exchange(waiting, helpers.netcomm_handshake("b", boot=b"1" * 16, connector=2))
    net.exchange(first, helpers.goodbye())
    assert first.closing
    assert waiting.closing
    assert not host.messaging.peers.is_connected("b")


def test_another_process_that_waited_for_the_ident_is_refused_and_gets_it_when_it_comes_again() -> None:
    net = Net()
    host = net.host("a")
    first = established_raw(net, host, boot=b"1" * 16)
    waiting = net.raw(host)
    net.exchange(waiting, helpers.netcomm_handshake("b", boot=b"2" * 16) + helpers.begin())
    net.exchange(first, helpers.goodbye())
    assert waiting.closing  # as with anything that comes in from the first one
    established_raw(net, host, boot=b"2" * 16)
    assert host.messaging.peers.is_connected("b")


def test_two_that_end_at_once_hear_of_it_once() -> None:
    net = Net()
    server, client, _ = server_and_client(net)
    server.end()
    client.end()
    net.settle()
    assert [len(host.happened(events.Disconnected)) for host in (server, client)] == [1, 1]


# -- Idents that were made up -------------------------------------------------------------------------------------


@pytest.mark.requirement("P-85", "positive")
def test_what_waits_for_a_made_up_ident_ends_with_its_goodbye(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    server, client, _ = server_and_client(net)
    client.holding = True
    deliveries = [server.send("client", b"%d" % number) for number in range(5)]
    net.settle()
    client.hand_over(2)
    client.end()
    net.settle()
    assert [delivery.state for delivery in deliveries] == [DELIVERED] * 2 + [DISCARDED] * 3
    assert dropped(server) == deliveries[2:]
    assert all(delivery.data is not None for delivery in deliveries[2:])
    assert queued(server) == 0
    later = [server.send("client", b"late"), server.send("client", b"later", ttl=5)]
    assert [delivery.state for delivery in later] == [DISCARDED] * 2
    net.settle()
    assert dropped(server) == deliveries[2:] + later
    assert server.messaging.peers["client"].stats().dropped == 5
    (warning,) = warnings(caplog)
    assert "3 messages for 'client' are discarded" in warning
    assert any("the other side has ended" in record.getMessage() for record in caplog.records)


@pytest.mark.requirement("P-85", "negative")
def test_what_waits_for_another_ident_waits_for_its_next_process(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    server, client, _ = server_and_client(net, made_up=False)
    client.holding = True
    deliveries = [server.send("client", b"x")]
    net.settle()
    client.end()
    net.settle()
    deliveries.append(server.send("client", b"y"))
    net.advance(10 * AWAY_S)
    assert not any(delivery.done for delivery in deliveries)
    net.hosts.remove(client)
    successor = net.host("client")
    net.connect(successor, server)
    net.settle()
    assert [delivery.state for delivery in deliveries] == [DELIVERED] * 2
    assert warnings(caplog) == []


def test_the_first_message_to_one_that_has_ended_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    server, client, _ = server_and_client(net)
    client.end()
    net.settle()
    assert warnings(caplog) == []
    for _ in range(3):
        server.send("client", b"x")
    assert len(warnings(caplog, "1 messages for 'client' are discarded: it has ended")) == 1
    assert len(warnings(caplog)) == 1


def test_a_run_to_one_that_has_ended_is_discarded_message_by_message() -> None:
    net = Net()
    server, client, _ = server_and_client(net)
    client.end()
    net.settle()
    batch = Batch("client", bytes(8), 0, [b"a", b"b", b"c"], OVERHEAD, None, not_waited_for)
    assert server.messaging.send("client", batch.run(), net.now) == 3
    net.settle()
    assert dropped(server) == [batch.delivery(place) for place in range(3)]
    assert server.messaging.open_runs == {}


def test_one_that_was_killed_is_given_up_when_it_has_been_away_for_long(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    server, client, wire = server_and_client(net)
    client.holding = True
    deliveries = [server.send("client", b"x")]
    net.settle()
    net.hosts.remove(client)
    wire.silent = True
    wire.other.lose()
    deliveries.append(server.send("client", b"y"))
    net.advance(AWAY_S - 1)
    assert [delivery.done for delivery in deliveries] == [False] * 2
    net.advance(2)
    assert [delivery.state for delivery in deliveries] == [DISCARDED] * 2
    assert dropped(server) == deliveries
    assert server.send("client", b"z").state is DISCARDED
    (warning,) = warnings(caplog)
    assert "2 messages for 'client' are discarded: it has been away for 60 s" in warning


def test_one_that_was_away_for_long_is_welcome_and_gets_what_is_sent_from_then_on() -> None:
    net = Net()
    server, client, wire = server_and_client(net, Limits(window_bytes=2 * (OVERHEAD + 1)))
    client.holding = True
    early = [server.send("client", b"%d" % number) for number in range(4)]
    net.settle()
    wire.cut()
    net.advance(AWAY_S + 1)
    assert {delivery.state for delivery in early} == {DISCARDED}
    net.connect(client, server)
    net.settle()
    late = [server.send("client", b"a"), server.send("client", b"b")]
    net.settle()
    assert [delivery.state for delivery in late] == [QUEUED] * 2  # the callbacks have not got done with the first ones
    client.holding = False
    net.settle()
    assert client.payloads() == [b"0", b"1", b"a", b"b"]
    assert [delivery.state for delivery in late] == [DELIVERED] * 2
    assert server.messaging.peers["client"].outbox.volatile.in_flight_bytes == 0
    wire = net.connect(client, server)
    net.settle()


def test_one_that_comes_and_goes_is_away_since_its_latest_connection() -> None:
    net = Net()
    server, client, wire = server_and_client(net)
    wire.cut()
    net.advance(AWAY_S - 1)
    wire = net.connect(client, server)
    net.advance(10)
    wire.cut()
    delivery = server.send("client", b"x")
    net.advance(AWAY_S - 1)
    assert not delivery.done
    net.connect(client, server)
    net.advance(10)
    assert delivery.state is DELIVERED


def test_persistent_messages_for_one_that_has_ended_leave_the_storage() -> None:
    net = Net()
    storage = MemoryQueueStorage()
    server, client, _ = server_and_client(net, storage=storage)
    client.holding = True
    deliveries = [server.send_persistent("client", b"%d" % number) for number in range(3)]
    net.settle()
    client.end()
    net.settle()
    later = server.send_persistent("client", b"late")
    net.settle()
    assert {delivery.state for delivery in [*deliveries, later]} == {DISCARDED}
    assert dropped(server) == [*deliveries, later]
    assert [stream.count for stream in storage.streams()] == [0]


def test_those_that_were_given_up_are_forgotten_first_and_then_messages_wait_as_for_any_ident() -> None:
    net = Net()
    server, client, _ = server_and_client(net, Limits(max_idle_peers=2))
    established_raw(net, server, "older").lose()
    client.end()
    net.settle()
    for name in ("x", "y", "z"):
        server.messaging.peers.get_or_add(name)
    assert server.messaging.peers.get("client") is None
    assert server.messaging.peers.get("older") is None
    assert server.messaging.peers.get("z") is not None
    assert not server.send("client", b"x").done


def test_a_peer_that_was_given_up_is_forgotten_though_a_storage_has_its_position() -> None:
    net = Net()
    storage = MemoryQueueStorage()
    server = net.host("server", Limits(max_idle_peers=1), storage)
    end = established_raw(net, server, "named")
    net.exchange(end, helpers.begin(9, stream=1), helpers.data(0, b"x", flags=1))
    end.lose()
    end = net.raw(server)
    net.exchange(end, helpers.netcomm_handshake("client", flags=1) + helpers.begin())
    net.exchange(end, helpers.begin(9, stream=1))
    server.storing = False
    net.exchange(end, helpers.data(0, b"x", flags=1))
    net.exchange(end, helpers.goodbye())
    for name in "abc":
        server.messaging.peers.get_or_add(name)
    assert server.messaging.peers.get("client") is None
    assert server.messaging.peers.get("named") is not None
    server.storing = True
    net.settle()  # its position is stored now
    assert server.messaging.storage_sync.all_stored


def test_peers_that_began_a_durable_stream_and_sent_nothing_are_forgotten_like_others() -> None:
    net = Net()
    server = net.host("server", Limits(max_idle_peers=10), MemoryQueueStorage())
    for number in range(100):
        end = established_raw(net, server, f"b{number}")
        net.exchange(end, helpers.begin(9, stream=1))
        end.lose()
    assert len(list(server.messaging.peers)) <= 12


# -- Giving up as the user says -----------------------------------------------------------------------------------


def test_discard_ends_what_waits_and_what_is_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    server, client, _ = server_and_client(net, Limits(window_bytes=2 * (OVERHEAD + 1)))
    client.holding = True
    deliveries = [server.send("client", b"%d" % number) for number in range(4)]
    net.settle()
    assert server.messaging.discard("client") == 4
    assert server.messaging.discard("client") == 0
    assert server.messaging.discard("nobody") == 0
    net.settle()
    assert {delivery.state for delivery in deliveries} == {DISCARDED}
    assert dropped(server) == deliveries
    assert server.messaging.peers.idle
    stats = server.messaging.peers["client"].stats()
    assert (stats.queued, stats.in_flight, stats.dropped, stats.delivered) == (0, 0, 4, 0)


@pytest.mark.requirement("P-41", "positive")
@pytest.mark.requirement("P-86", "positive")
@pytest.mark.requirement("P-86", "negative")
def test_what_was_discarded_in_flight_counts_in_the_window_and_is_not_sent_again() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=2 * (OVERHEAD + 1)))
    end = established_raw(net, host)
    net.exchange(end, helpers.ack(0))
    for number in range(4):
        host.send("b", b"%d" % number)
    assert [payload[-1:] for _, payload in net.exchange(end)] == [b"0", b"1"]
    host.messaging.discard("b")
    late = host.send("b", b"x")
    assert net.exchange(end) == []
    assert net.exchange(end, helpers.ack(1)) == []  # the last of them counts for all
    assert net.exchange(end, helpers.ack(2)) == packets(helpers.skip(4) + helpers.data(4, b"x"))
    host.messaging.discard("b")
    end.lose()
    end = established_raw(net, host)
    assert host.messaging.peers["b"].outbox.volatile.in_flight_bytes == OVERHEAD + 1
    net.exchange(end, helpers.ack(2, received=4))  # it never came
    assert host.messaging.peers["b"].outbox.volatile.in_flight_bytes == 0
    assert late.state is DISCARDED
    assert net.exchange(end) == []


def test_what_was_discarded_in_flight_and_has_not_all_arrived_counts_as_far_as_it_has() -> None:
    net = Net()
    for answer, counted in (({"next_seq": 1}, 0), ({"next_seq": 0, "received": 1}, 2 * OVERHEAD)):
        host = net.host("a")
        end = established_raw(net, host)
        net.exchange(end, helpers.ack(0, epoch=host.boot * helpers.FIRST_EPOCH))
        host.send("b", b"")
        host.send("b", b"")
        net.exchange(end)
        host.messaging.discard("b")
        end.lose()
        end = established_raw(net, host)
        net.exchange(end, helpers.ack(epoch=host.boot * helpers.FIRST_EPOCH, **answer))  # type: ignore[arg-type]
        assert host.messaging.peers["b"].outbox.volatile.in_flight_bytes == counted
        net.exchange(end, helpers.ack(1, epoch=host.boot * helpers.FIRST_EPOCH))
        assert host.messaging.peers["b"].outbox.volatile.in_flight_bytes == 0


def test_what_was_discarded_in_flight_and_handled_before_the_next_connection_does_not_count_any_more() -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=2 * (OVERHEAD + 1)))
    end = established_raw(net, host)
    net.exchange(end, helpers.ack(0))
    for number in range(2):
        host.send("b", b"%d" % number)
    net.exchange(end)
    host.messaging.discard("b")
    end.lose()
    end = established_raw(net, host)
    net.exchange(end, helpers.ack(1))  # the first one has come, and was handled; the second one never came
    assert host.messaging.peers["b"].outbox.volatile.in_flight_bytes == 0
    for number in range(2, 4):
        host.send("b", b"%d" % number)
    assert [payload[-1:] for _, payload in net.exchange(end)][-2:] == [b"2", b"3"]


def test_messages_that_are_sent_after_a_discard_follow_at_once_where_the_window_allows_it() -> None:
    net = Net()
    server, client, _ = server_and_client(net)
    client.holding = True
    server.send("client", b"early")
    net.settle()
    server.messaging.discard("client")
    late = server.send("client", b"late")
    net.settle()
    client.holding = False
    net.settle()
    assert client.payloads() == [b"early", b"late"]
    assert late.state is DELIVERED
    assert server.messaging.peers["client"].stats().delivered == 1


def test_discard_while_a_legacy_peer_has_messages_in_flight() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake("snake"))
    net.advance(0.1)
    host.send("snake", b"x")
    net.exchange(end)
    assert host.messaging.discard("snake") == 1
    outbox = host.messaging.peers["snake"].outbox
    assert outbox.volatile.in_flight_bytes == OVERHEAD + 1
    late = host.send("snake", b"y")
    net.exchange(end, helpers.packet(helpers.PONG))
    assert outbox.volatile.in_flight_bytes == OVERHEAD + 1  # that of the second one
    end.lose()
    assert outbox.volatile.in_flight_bytes == 0
    assert not late.done


class Stored:
    """A server whose durable stream is mostly in the storage alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 9, load: int = 2) -> None:
        monkeypatch.setattr("netcomm.protocol.durable_out_stream._MAX_LOADED", 2)
        monkeypatch.setattr("netcomm.protocol.durable_out_stream._LOAD_COUNT", load)
        self.net = Net()
        self.storage = MemoryQueueStorage()
        self.server = self.net.host("server", None, self.storage)
        self.deliveries = [self.server.send_persistent("client", b"%d" % number) for number in range(count)]

    def kept(self) -> int:
        (stream,) = self.storage.streams()
        return stream.count


def test_discard_ends_what_is_in_the_storage_alone_and_tells_of_it_once_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = Stored(monkeypatch)
    server, net = stored.server, stored.net
    server.storing = False
    assert server.messaging.discard("client") == 9
    assert {delivery.state for delivery in stored.deliveries} == {DISCARDED}
    assert server.messaging.peers.idle
    net.settle()
    assert dropped(server) == stored.deliveries[:2]
    late = server.send_persistent("client", b"late")
    server.storing = True
    net.settle()
    assert dropped(server) == stored.deliveries
    assert [delivery.data for delivery in dropped(server)] == [b"%d" % number for number in range(9)]
    assert stored.kept() == 1
    client = net.host("client")
    net.connect(client, server)
    net.settle()
    assert client.payloads() == [b"late"]
    assert late.state is DELIVERED
    assert stored.kept() == 0
    assert server.messaging.peers["client"].stats().dropped == 9


def late_one_delivered(stored: Stored) -> Delivery:
    """All is discarded; a message that is sent later is delivered before the storage has read what was discarded."""
    server, net = stored.server, stored.net
    client = net.host("client")
    server.storing = False
    server.messaging.discard("client")
    late = server.send_persistent("client", b"late")
    net.settle()
    net.connect(client, server)
    net.settle()
    while client.payloads() != [b"late"]:
        later = [request for request in server.requests if isinstance(request, events.LoadDiscarded)]
        server.requests = type(server.requests)(r for r in server.requests if r not in later)
        assert server.answer(), "it waits for what was discarded"
        server.requests.extend(later)
        net.settle()
    return late


def test_an_acknowledgement_deletes_nothing_that_was_discarded_and_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(monkeypatch)
    server, net = stored.server, stored.net
    late_one_delivered(stored)
    below = [event.seq for event in server.happened(events.DeleteBelow)]  # type: ignore[attr-defined]
    assert max(below) <= 2
    server.storing = True
    net.settle()
    assert dropped(server) == stored.deliveries


def test_what_was_acknowledged_before_discarded_messages_were_read_leaves_the_storage_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = Stored(monkeypatch)
    late = late_one_delivered(stored)
    assert late.state is DELIVERED
    stored.server.storing = True
    stored.net.settle()  # no other ACK comes
    assert stored.kept() == 0


def test_two_discards_in_the_storage_tell_of_each_message_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(monkeypatch)
    server, net = stored.server, stored.net
    server.storing = False
    server.messaging.discard("client")
    more = [server.send_persistent("client", b"more %d" % number) for number in range(5)]
    assert server.messaging.discard("client") == 5
    server.storing = True
    net.settle()
    told = dropped(server)
    assert len(told) == 14
    assert set(told) == {*stored.deliveries, *more}
    assert stored.kept() == 0


def test_a_load_that_was_under_way_brings_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(monkeypatch)
    server, net = stored.server, stored.net
    client = net.host("client")
    client.holding = True
    server.storing = False
    net.connect(client, server)
    net.settle()
    for _ in range(3):
        server.answer(1)
        net.settle()
    server.messaging.discard("client")
    server.storing = True
    client.holding = False
    net.settle()
    assert all(delivery.done for delivery in stored.deliveries)
    assert {delivery.state for delivery in dropped(server)} <= {DISCARDED}
    ended = [delivery for delivery in stored.deliveries if delivery.state is DELIVERED]
    assert len(ended) + len(dropped(server)) == 9
    assert stored.kept() == 0
    assert server.happened(events.ErrorReported) == []


def test_expired_messages_are_not_told_of_again_where_they_are_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(monkeypatch, count=3, load=50)
    server, net = stored.server, stored.net
    mortal = [server.send_persistent("client", b"mortal", ttl=1) for _ in range(3)]
    net.advance(2)
    assert dropped(server) == mortal
    server.messaging.discard("client")
    net.settle()
    assert dropped(server) == [*mortal, *stored.deliveries]
    assert stored.kept() == 0


def test_a_peer_that_ends_deletes_what_was_discarded_and_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(monkeypatch)
    server, net = stored.server, stored.net
    server.storing = False
    server.messaging.discard("client")
    net.settle()
    kept = server.send_persistent("client", b"kept")
    server.end()
    server.messaging.discard_all()
    net.settle()
    server.answer()
    assert stored.kept() == 1
    assert not kept.done


def test_a_line_that_names_the_connected_has_its_bounds(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    server = net.host("server", Limits(keepalive_idle_s=1000))
    for number in range(100):
        established_raw(net, server, f"client-{number:03}")
    server.send("clinet", b"x")
    net.advance(6)
    (warning,) = warnings(caplog)
    assert "'client-004' and 95 others" in warning
    assert len(warning) < 300


def test_frames_tell_whether_an_ident_was_made_up() -> None:
    assert [frames.Hello(1, b"", b"", 0, 33, 1, flags).made_up for flags in (0, 1, 2, 3)] == [False, True, False, True]
