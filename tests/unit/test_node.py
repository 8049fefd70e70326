"""`protocol.node`: what it does with what it is told; that it works, the simulator shows, and all that drives it."""

import pytest

from netcomm.connections import Unreachable
from netcomm.errors import NetcommError
from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.protocol import events
from netcomm.protocol.frames import Messages
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.sessions import Sessions
from tests.unit import helpers
from tests.unit.helpers import Host, Net


def pair(net: Net) -> tuple[Host, Host]:
    one, other = net.host("a"), net.host("b")
    net.connect(one, other)
    net.settle()
    return one, other


def test_where_nothing_has_happened_there_is_nothing_to_do() -> None:
    net = Net()
    one, _ = pair(net)
    work = one.node.process_pending(net.now)
    assert (list(work.dispatch), list(work.storage), work.awaited) == ([], [], False)


def test_events_for_the_callbacks_come_in_their_order_and_apart_from_requests_to_the_storage() -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    end = net.raw(host)
    host.holding = True
    handshake = helpers.netcomm_handshake("b") + helpers.begin(stream=1)
    end.feed(handshake + helpers.data(0, b"x", flags=1) + helpers.data(1, b"y", flags=1))
    work = host.node.process_pending(net.now)
    assert [type(event) for event in work.dispatch] == [events.Connected, events.Received]
    assert work.storage == []
    received = work.dispatch[1]
    assert isinstance(received, events.Received)
    assert host.node.on_handled(received, 1, net.now)
    (request,) = host.node.process_pending(net.now).storage
    assert isinstance(request, events.StorePosition)
    assert request.position.next_seq == 1


def test_callbacks_that_were_told_of_are_not_news() -> None:
    net = Net()
    one, other = pair(net)
    other.holding = True
    delivery = one.send("b", b"x")
    net.settle()
    (received,) = other.queue
    assert other.node.on_handled(received, 1, net.now)
    assert not other.node.on_handled(received, 1, net.now)
    assert not other.node.on_handled(received, 0, net.now)
    net.settle()
    assert delivery.done


def test_a_caller_may_write_what_it_has_queued_and_nothing_else_is_done() -> None:
    net = Net()
    one, other = pair(net)
    one.send("b", b"x")
    one.node.write_to("b", net.now)
    (end,) = one.ends.values()
    assert [kind for kind, _ in helpers.packets(bytes(end.out))] == [helpers.DATA]
    assert not one.messaging.has_pending_work
    one.node.write_to("nobody", net.now)
    net.settle()
    assert other.payloads() == [b"x"]


def test_a_connection_whose_writing_was_interrupted_ends_and_the_message_goes_out_on_the_next() -> None:
    net = Net()
    one, other = pair(net)
    delivery = one.send("b", b"x")
    one.node.abort("b")
    one.node.abort("nobody")
    net.settle()
    assert not one.ends
    net.connect(one, other)
    net.settle()
    assert delivery.done
    assert other.payloads() == [b"x"]


def test_a_connector_that_can_not_connect_is_reported() -> None:
    net = Net()
    host = net.host("a")
    error = ConnectionRefusedError("nobody listens")
    host.tell(Unreachable(error))
    (event,) = host.node.process_pending(net.now).dispatch
    assert event == events.ErrorReported(error)


def test_events_that_could_not_be_acted_on_are_acted_on_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    end.feed(helpers.netcomm_handshake("b") + helpers.begin() + helpers.data(0, b"x"))
    with monkeypatch.context() as planted:
        planted.setattr(host, "established", lambda number: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            host.node.process_pending(net.now)
    work = host.node.process_pending(net.now)
    assert [type(event) for event in work.dispatch] == [events.Connected, events.Received]


def test_a_fault_with_frames_that_had_to_wait_for_callbacks_is_their_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    host = net.host("a", Limits(window_bytes=100))
    host.has_faults = host.holding = True
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake("b"), helpers.message(bytes(200)), helpers.message(b"y"))
    handlers = {**host.messaging.sessions._handlers, Messages: lambda *arguments: 1 / 0}
    with monkeypatch.context() as planted:
        planted.setattr(host.messaging.sessions, "_handlers", handlers)
        host.hand_over(1)
    net.settle()
    assert end.gone
    assert [type(event.error) for event in host.events if isinstance(event, events.ErrorReported)] == [NetcommError]


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (Sessions, "buffer_updated"),
        (Messaging, "output"),
        (Sessions, "connection_opened"),
        (Sessions, "connection_lost"),
    ],
)
def test_a_fault_ends_its_own_connection_and_is_reported_with_its_cause(
    owner: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    one, other = pair(net)
    third = net.host("c")
    net.connect(one, third)
    net.settle()
    one.has_faults = True
    real = getattr(owner, method)
    faults = []

    def fail(self: object, number: int, *arguments: object) -> object:
        if self in (one.messaging, one.messaging.sessions) and number not in kept and not faults:
            faults.append(number)
            raise ZeroDivisionError(method)
        return real(self, number, *arguments)

    kept = [number for number, end in one.ends.items() if end is net.wires[1].one]
    monkeypatch.setattr(owner, method, fail)
    net.max_chunk = 50_000  # so that a part of the message comes into a buffer of its own
    before = other.send("a", bytes(200_000))
    if method == "connection_opened":
        net.wires[0].cut()
        net.connect(one, other)
    net.settle()
    if method == "connection_lost":
        net.wires[0].cut()
    net.settle()
    assert faults
    assert faults[0] not in one.ends
    (error,) = [event.error for event in one.events if isinstance(event, events.ErrorReported)] or [None]
    if method != "connection_lost":  # it has ended all the same
        assert isinstance(error, NetcommError)
        assert "ZeroDivisionError" in str(error)
    one.send("c", b"still there")
    net.connect(one, other)
    net.settle()
    assert third.payloads() == [b"still there"]
    assert before.done
    assert one.payloads() == [bytes(200_000)]
