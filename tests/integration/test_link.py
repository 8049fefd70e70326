"""The loop itself: threads, idleness, timers, bursts, large messages, and descriptors that run out."""

import contextlib
import hashlib
import logging
import os
import random
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from netcomm import Delivery, DeliveryState, LifecycleError, Limits, Peer
from netcomm.connections import BufferUpdated, Closed, ConnectionEvent, Opened, Unreachable, Writable
from netcomm.transport.byte_stream import ByteStream
from netcomm.transport.link import Link
from tests.integration.helpers import (
    DEADLINE_S,
    Program,
    SnakemqConnector,
    SnakemqListener,
    in_thread,
    listen_at,
    poll,
    raw_listener,
    read_to_end,
    record,
    status,
    threads_of,
    wait_until,
)

IDLE_PAIR = """
import sys
from tests.integration.helpers import SnakemqConnector, SnakemqListener
with SnakemqListener("niess", "127.0.0.1", 0) as niess, SnakemqConnector("bob", *niess.address) as bob:
    assert bob.wait_connected("niess", 20) and niess.wait_connected("bob", 20)
    assert bob.send("niess", b"x").wait(20) and niess.send("bob", b"x").wait(20)
    print("connected")
    sys.stdin.readline()
"""


def _switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep, or were sent to."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        for name in ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"):
            total += status(f"{pid}/task/{thread}", name)
    return total


def test_an_idle_pair_does_nothing() -> None:
    with Program(IDLE_PAIR) as program:
        assert program.line() == "connected"
        # What the last acknowledgements set off is over once nothing has happened for a while.
        before = _switches(program.pid)
        until = time.monotonic() + DEADLINE_S
        while True:
            time.sleep(0.2)
            now = _switches(program.pid)
            if now == before:
                break
            assert time.monotonic() < until, "it does not come to rest"
            before = now
        time.sleep(2)  # this is what is measured
        assert _switches(program.pid) - before <= 4
        program.tell("end")
        assert program.wait() == 0


def test_a_peer_has_two_threads_however_many_connections() -> None:
    with contextlib.ExitStack() as stack:
        niess = stack.enter_context(SnakemqListener("niess", "127.0.0.1", 0))
        connectors = [SnakemqConnector(f"bob-{number}", *niess.address) for number in range(5)]
        for connector in connectors:
            stack.enter_context(connector)
        for connector in connectors:
            assert niess.wait_connected(connector.local_ident, DEADLINE_S)
            assert connector.wait_connected("niess", DEADLINE_S)
        for peer in (niess, *connectors):
            assert threads_of(peer) == [peer.name, f"{peer.name}-dispatcher"]


def test_a_message_expires_on_time_though_nothing_else_happens() -> None:
    with Peer("a") as peer:
        dropped = record(peer.on_drop)
        delivery = peer.send("nobody", b"x", ttl=0.2)
        assert delivery.wait(2) is False
        assert delivery.state is DeliveryState.EXPIRED
        assert dropped.wait(1, 1) == [("nobody", delivery)]


def test_messages_of_send_many_expire_on_time_though_nothing_else_happens() -> None:
    with Peer("a") as peer:
        dropped = record(peer.on_drop)
        deliveries = peer.send_many("nobody", [b"x", b"y"], ttl=0.2)
        assert dropped.wait(2, 2) == [("nobody", delivery) for delivery in deliveries]


def test_an_earlier_expiry_overtakes_a_later_one() -> None:
    with Peer("a") as peer:
        late = peer.send("nobody", b"late", ttl=60)
        soon = peer.send("nobody", b"soon", ttl=0.2)
        assert soon.wait(2) is False
        assert soon.state is DeliveryState.EXPIRED
        assert not late.done
        peer.terminate(0)


def test_a_wrong_ident_is_named_on_time_though_nothing_else_happens(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(diagnose_after_s=0.2)
    with (
        SnakemqListener("niess", "127.0.0.1", 0) as niess,
        SnakemqConnector("bob", *niess.address, limits=limits) as bob,
    ):
        assert bob.wait_connected("niess", DEADLINE_S)
        bob.send("neiss", b"x")
        wait_until(lambda: "'neiss', which is not connected" in caplog.text, "the warning", 2)
        assert "'niess'" in caplog.text
        bob.terminate(0)


def test_large_messages_arrive_whole_in_both_directions() -> None:
    chance = random.Random(1)
    payloads = [chance.randbytes(size) for size in (0, 1, 16 * 1024 - 1, 16 * 1024, 300_000, 20_000_000, 5)]
    with SnakemqListener("niess", "127.0.0.1", 0) as niess, SnakemqConnector("bob", *niess.address) as bob:
        ways = ((niess, "bob", record(bob.on_recv)), (bob, "niess", record(niess.on_recv)))
        assert bob.wait_connected("niess", DEADLINE_S)
        assert niess.wait_connected("bob", DEADLINE_S)
        sending = [in_thread(lambda way=way: way[0].send_many(way[1], payloads)) for way in ways]
        deliveries = [delivery for result in sending for delivery in result()]
        assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        for _, _, received in ways:
            assert [_digest(data) for _, data in received.calls] == [_digest(data) for data in payloads]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_an_empty_message_behind_a_large_one_of_its_batch_arrives() -> None:
    payloads = [bytes(20_000), b"", b"", bytes(20_000), b""]  # what is large is not joined with what is next to it
    with (
        SnakemqListener("niess", "127.0.0.1", 0) as niess,
        SnakemqConnector("bob", *niess.address) as bob,
    ):
        received = record(niess.on_recv)
        assert bob.wait_connected("niess", DEADLINE_S)
        bob.send_many("niess", payloads)
        assert bob.flush(DEADLINE_S)
    assert [data for _, data in received.calls] == payloads


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as can be: one is stopped between any two steps, sooner or later."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("place", ["127.0.0.1", "tcp:127.0.0.1"])
def test_what_each_of_many_threads_sends_arrives_once_and_keeps_its_order(place: str) -> None:
    threads, each = 4, 3000
    with SnakemqListener("niess", place, 0) as niess, SnakemqConnector("bob", place, niess.address[1]) as bob:
        received = record(niess.on_recv)
        assert bob.wait_connected("niess", DEADLINE_S)
        together = threading.Barrier(threads)

        def send(sender: int) -> list[Delivery]:
            together.wait(DEADLINE_S)
            return [bob.send("niess", b"%d %d" % (sender, number)) for number in range(each)]

        sending = [in_thread(lambda sender=sender: send(sender)) for sender in range(threads)]
        deliveries = [result() for result in sending]
        assert bob.flush(DEADLINE_S)
        for sender in range(threads):
            mine = [data for _, data in received.calls if data.startswith(b"%d " % sender)]
            assert mine == [b"%d %d" % (sender, number) for number in range(each)]
            assert {delivery.state for delivery in deliveries[sender]} == {DeliveryState.DELIVERED}
        assert len({delivery.uuid for found in deliveries for delivery in found}) == threads * each
        assert niess.stats().peers["bob"].received == threads * each


@pytest.mark.usefixtures("quick_switches")
def test_what_threads_send_while_the_peer_is_terminated_has_an_end() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        for _ in range(20):
            bob = SnakemqConnector("bob", *niess.address)
            bob.start()
            assert bob.wait_connected("niess", DEADLINE_S)
            begun = threading.Event()

            def send(bob: SnakemqConnector = bob, begun: threading.Event = begun) -> list[Delivery]:
                sent: list[Delivery] = []
                while True:
                    try:
                        sent.append(bob.send("niess", b"x"))
                    except LifecycleError:
                        return sent
                    if len(sent) == 100:
                        begun.set()

            sending = [in_thread(send) for _ in range(2)]
            assert begun.wait(DEADLINE_S)
            bob.terminate()
            deliveries = [delivery for result in sending for delivery in result()]
            assert all(delivery.done for delivery in deliveries)
            delivered = sum(delivery.state is DeliveryState.DELIVERED for delivery in deliveries)
            assert len(received.calls) >= delivered
            received.calls.clear()


def test_nothing_joins_what_waits_once_the_peer_is_being_terminated() -> None:
    bob = SnakemqConnector("bob", "unix:/nobody/listens", 0)
    bob.start()
    deliveries = [bob.send("niess", b"x") for _ in range(20)]
    terminating = in_thread(lambda: bob.terminate(1))
    wait_until(lambda: "is being terminated" in repr(bob), "the beginning of the end")
    with pytest.raises(LifecycleError):
        bob.send("niess", b"late")
    terminating()
    assert {delivery.state for delivery in deliveries} == {DeliveryState.DISCARDED}


SHORT_OF_DESCRIPTORS = """
import logging, resource, sys
logging.basicConfig(level="WARNING")
from tests.integration.helpers import SnakemqListener
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
with SnakemqListener("niess", "127.0.0.1", 0) as niess:
    print(niess.address[1])
    sys.stdin.readline()
"""


def test_a_listener_that_runs_out_of_descriptors_serves_those_it_has_and_recovers() -> None:
    with Program(SHORT_OF_DESCRIPTORS) as program:
        port = int(program.line())
        with SnakemqConnector("bob", "127.0.0.1", port) as bob:
            assert bob.wait_connected("niess", DEADLINE_S)
            with contextlib.ExitStack() as stack:
                for _ in range(40):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE_S))
                wait_until(lambda: "can't accept" in program.errors, "the report")
                assert bob.send("niess", b"still served").wait(DEADLINE_S)
            with SnakemqConnector("late", "127.0.0.1", port) as late:
                assert late.wait_connected("niess", DEADLINE_S)
                assert late.send("niess", b"served too").wait(DEADLINE_S)
            assert bob.stats().peers["niess"].reconnects == 0
        program.tell("end")
        assert program.wait() == 0


def test_what_is_written_while_the_loop_looks_at_the_connection_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    much = bytes(20_000_000)
    link = Link(Limits())
    host, port = listen_at(link, "tcp:127.0.0.1")
    numbers: list[int] = []

    def step() -> bool:
        for event in poll(link, 0.01):
            if isinstance(event, Opened):
                numbers.append(event.connection)
            elif isinstance(event, Writable):
                link.flush(event.connection)
        return True

    def read(client: socket.socket) -> int:
        count = 0
        while count < 2 * len(much):
            count += len(client.recv(1_000_000))
        return count

    with socket.create_connection((host, port), timeout=DEADLINE_S) as client:
        wait_until(lambda: step() and bool(numbers))
        (number,) = numbers
        link.write(number, [much])
        received = in_thread(partial(read, client))
        modify = link._selector.modify
        written: list[int] = []

        def write_meanwhile(*arguments: Any) -> selectors.SelectorKey:
            key = modify(*arguments)
            if not link._connections[number].output and not written:  # it is not to be watched for room any more
                written.append(number)
                link.write(number, [much])
            return key

        monkeypatch.setattr(link._selector, "modify", write_meanwhile)
        wait_until(lambda: step() and bool(written))
        wait_until(lambda: step() and not link._connections[number].output)
        assert received() == 2 * len(much)
    link.close_now()


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link(Limits())
    yield made
    made.close_now()


def test_a_connector_that_has_connected_leaves_it_at_that(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_listener() as server, contextlib.ExitStack() as stack:
        link.add_connector("tcp:127.0.0.1", server.getsockname()[1])
        events: list[ConnectionEvent] = []
        wait_until(lambda: bool(events.extend(poll(link, 0.01)) or events))
        stack.enter_context(server.accept()[0])
        # However long an attempt may take, that is over now.
        monkeypatch.setattr("netcomm.transport.link.monotonic", lambda: time.monotonic() + 3600)
        events += [*link.poll(0), *link.poll(0)]
        assert events == [Opened(1, f"127.0.0.1:{server.getsockname()[1]}", 1)]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_connector_that_was_given_up_does_not_come_back(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_listener() as server:
        link.add_connector("tcp:127.0.0.1", server.getsockname()[1])
        events: list[ConnectionEvent] = []
        wait_until(lambda: bool(events.extend(poll(link, 0.01)) or events))
        link.stop_accepting()
        server.accept()[0].close()
        wait_until(lambda: bool(events.extend(poll(link, 0.01)) or len(events) == 2))
        assert [type(event) for event in events] == [Opened, Closed]
        monkeypatch.setattr("netcomm.transport.link.monotonic", lambda: time.monotonic() + 3600)
        assert [*link.poll(0), *link.poll(0)] == []
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


class _FromWhereItGoes(socket.socket):
    """Connects from the port that it connects to, as chance may have it."""

    def connect(self, address: Any) -> None:
        self.bind(address)
        super().connect(address)


def test_a_connector_that_has_reached_itself_has_found_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    link = Link(Limits(reconnect_min_s=1000, reconnect_refused_s=1000, reconnect_max_s=1000))
    with contextlib.ExitStack() as stack:
        stack.callback(link.close_now)
        monkeypatch.setattr(socket, "socket", _FromWhereItGoes)
        link.add_connector("tcp:127.0.0.1", port)
        events: list[ConnectionEvent] = []
        wait_until(lambda: bool(events.extend(poll(link, 0.01)) or events))
        (unreachable,) = events
        assert isinstance(unreachable, Unreachable)
        assert isinstance(unreachable.error, ConnectionRefusedError)


def _accepted(link: Link, stack: contextlib.ExitStack) -> tuple[socket.socket, int]:
    """A connection to a link: its other end, and its number."""
    place = listen_at(link, "tcp:127.0.0.1")
    assert isinstance(place, tuple)
    client = stack.enter_context(socket.create_connection(place, DEADLINE_S))
    events: list[ConnectionEvent] = []
    wait_until(lambda: bool(events.extend(poll(link, 0.01)) or events))
    (opened,) = events
    assert isinstance(opened, Opened)
    return client, opened.connection


def test_a_closed_connection_says_that_it_ends_and_is_gone_when_the_other_side_has_closed_too(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm.transport.lingering._LINGER_S", 3600)
    with contextlib.ExitStack() as stack:
        client, number = _accepted(link, stack)
        link.pause(number, True)  # whatever it was before
        assert [*link.poll(0)] == []
        link.close(number, [b"fare", b"well"])
        client.sendall(b"too late")
        assert [*link.poll(0)] == []
        assert client.recv(100) == b"farewell"
        assert client.recv(100) == b""
        assert [*link.poll(0)] == []
        assert not link.quiet
        client.close()
        wait_until(lambda: [*link.poll(0.01)] == [] and link.quiet)


def test_what_was_written_to_a_closed_connection_goes_out_though_the_kernel_takes_it_in_parts(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm.transport.lingering._LINGER_S", DEADLINE_S)
    much = bytes(20_000_000)
    with contextlib.ExitStack() as stack:
        client, number = _accepted(link, stack)
        link.write(number, [much])
        link.close(number, [b"farewell"])

        def read_and_close() -> bytes:
            with client:
                return read_to_end(client)

        received = in_thread(read_and_close)
        wait_until(lambda: [*link.poll(0.01)] == [] and link.quiet)
        data = received()
        assert len(data) == len(much) + len(b"farewell")
        assert data.endswith(b"farewell")


def test_a_closed_connection_is_gone_after_a_while_though_the_other_side_stays(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm.transport.lingering._LINGER_S", 0.05)
    with contextlib.ExitStack() as stack:
        _, number = _accepted(link, stack)
        link.close(number, [])
        wait_until(lambda: [*link.poll(1)] == [] and link.quiet)


def test_a_connection_that_is_given_up_is_lost_for_the_reason_given(link: Link) -> None:
    with contextlib.ExitStack() as stack:
        client, number = _accepted(link, stack)
        link.abort(number, "as the test wants")
        assert [*link.poll(0)] == [Closed(number, "as the test wants")]
        assert client.recv(1) == b""


def test_a_paused_connection_is_written_to_and_not_read_until_it_goes_on(link: Link) -> None:
    with contextlib.ExitStack() as stack:
        client, number = _accepted(link, stack)
        buffer = memoryview(bytearray(100))
        link.receive_into(number, buffer)
        link.pause(number, True)
        client.sendall(b"early")
        link.write(number, [b"x"])
        assert client.recv(1) == b"x"
        assert [*link.poll(0), *link.poll(0)] == []
        link.pause(number, False)
        (event,) = link.poll(DEADLINE_S)
        assert event == BufferUpdated(number, len(b"early"))
        assert buffer[: event.count] == b"early"


def _next_read(link: Link) -> BufferUpdated:
    reads: list[BufferUpdated] = []
    wait_until(lambda: bool(reads.extend(e for e in poll(link, 0.01) if isinstance(e, BufferUpdated)) or reads))
    (read,) = reads
    return read


class _SendsFirst(ByteStream):
    """Before it can receive, it has to be able to send, as encryption may want it."""

    def receive_into(self, buffer: memoryview) -> int | None:
        if self.reads_on == selectors.EVENT_READ:
            self.reads_on = selectors.EVENT_WRITE
            return None
        self.reads_on = selectors.EVENT_READ
        return super().receive_into(buffer)


def test_a_stream_says_what_it_waits_for_to_be_read(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netcomm.transport.link.ByteStream", _SendsFirst)
    with contextlib.ExitStack() as stack:
        client, number = _accepted(link, stack)
        for data in (b"x", b"yz"):
            client.sendall(data)
            assert _next_read(link) == BufferUpdated(number, len(data))


def test_the_limit_of_connections_is_warned_of_once_until_there_is_room_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "netcomm.transport.acceptor")
    link = Link(Limits(max_connections=1))

    def refused() -> list[int]:
        return [entry.levelno for entry in caplog.records if "which is the limit" in entry.getMessage()]

    with contextlib.ExitStack() as stack:
        stack.callback(link.close_now)
        client, number = _accepted(link, stack)
        place = client.getpeername()
        for _ in range(2):
            stack.enter_context(socket.create_connection(place, DEADLINE_S))
        wait_until(lambda: [*link.poll(0.01)] == [] and len(refused()) == 2)
        client.close()
        link.close(number, [])
        wait_until(lambda: [*link.poll(0.01)] == [] and link.quiet)
        for _ in range(2):
            stack.enter_context(socket.create_connection(place, DEADLINE_S))
        wait_until(lambda: len([*link.poll(0.01)]) >= 0 and len(refused()) == 3)
    assert refused() == [logging.WARNING, logging.DEBUG, logging.WARNING]


def test_a_crowd_that_comes_at_once_does_not_keep_the_others_waiting(link: Link) -> None:
    with contextlib.ExitStack() as stack:
        client, number = _accepted(link, stack)
        place = client.getpeername()
        for _ in range(100):
            stack.enter_context(socket.create_connection(place, DEADLINE_S))
        opened = list(poll(link, 0))
        assert 1 <= len(opened) < 100
        client.sendall(b"x")
        events: list[ConnectionEvent] = []
        wait_until(lambda: bool(events.extend(poll(link, 0.01)) or len(opened) + len(events) == 101))
        assert [event.connection for event in events if isinstance(event, BufferUpdated)] == [number]
