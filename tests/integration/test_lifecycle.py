"""How peers begin and end: from any thread, at any moment, in a program that forgets, and across a fork."""

import contextlib
import errno
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netcomm import (
    BindError,
    ConfigurationError,
    DeliveryState,
    LifecycleError,
    Limits,
    Peer,
    SnakemqConnector,
)
from netcomm.transport.acceptor import Listening, listen
from tests.integration.helpers import (
    DEADLINE_S,
    FAST,
    Program,
    Recorder,
    SnakemqListener,
    in_thread,
    leaves_nothing,
    legacy_handshake,
    raw_listener,
    read_to_end,
    record,
    refusing_place,
    silent_place,
    terminate_in_time,
    threads_of,
    wait_until,
)


@contextlib.contextmanager
def pair(listener_limits: Limits | None = None) -> Iterator[tuple[SnakemqListener, SnakemqConnector]]:
    """A listener "niess" and a connector "bob", connected."""
    with (
        SnakemqListener("niess", "127.0.0.1", 0, limits=listener_limits) as niess,
        SnakemqConnector("bob", *niess.address) as bob,
    ):
        assert bob.wait_connected("niess", DEADLINE_S)
        assert niess.wait_connected("bob", DEADLINE_S)
        try:
            yield niess, bob
        finally:  # with messages that can't be delivered any more, the default would take its time
            bob.terminate(0.3)
            niess.terminate(0.3)


# Before start, and twice


def test_terminate_before_start_leaves_nothing() -> None:
    with leaves_nothing():
        for peer in (Peer("a"), SnakemqConnector("b", "127.0.0.1", 9), SnakemqListener("c", "127.0.0.1", 0)):
            terminate_in_time(peer, 1)


def test_terminate_before_start_may_be_called_twice() -> None:
    peer = Peer("a")
    terminate_in_time(peer, 1)
    terminate_in_time(peer, 1)


def test_start_after_terminate_raises() -> None:
    peer = Peer("a")
    peer.terminate()
    with pytest.raises(LifecycleError):
        peer.start()


class InterruptedLock:
    """A lock; the thread that releases it first is interrupted just then, as by Ctrl-C."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._interrupts = True

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        if self._interrupts:
            self._interrupts = False
            raise KeyboardInterrupt


def test_terminate_before_start_that_is_interrupted_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with leaves_nothing():
        peer = SnakemqListener("a", "127.0.0.1", 0)
        loop = peer._runtime._loop
        with monkeypatch.context() as planted:
            planted.setattr(loop, "mutex", InterruptedLock(loop.mutex))
            with pytest.raises(KeyboardInterrupt):
                peer.terminate(1)
        peer.terminate(1)


def test_a_peer_that_can_not_start_all_of_its_threads_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leading = threading.Event()

    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with leaves_nothing():
        peer = SnakemqListener("a", "127.0.0.1", 0)
        runtime = peer._runtime
        poll, stop_accepting = runtime._link.poll, runtime._link.stop_accepting
        monkeypatch.setattr(runtime._link, "poll", lambda *args: (leading.set(), poll(*args))[1])
        # There is time for the dispatcher, which was started, to wait for the sockets.
        monkeypatch.setattr(runtime._link, "stop_accepting", lambda: (leading.wait(0.1), stop_accepting())[1])
        with monkeypatch.context() as planted:
            planted.setattr(threading.Thread, "start", _all_but(peer, fail))
            with pytest.raises(RuntimeError):
                peer.start()
        peer.terminate(1)
    assert not leading.is_set()
    assert peer._runtime._life.failure is None


def _all_but(peer: threading.Thread, other: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """`Thread.start`, but for one thread."""
    start = threading.Thread.start
    return lambda thread: other(thread) if thread is peer else start(thread)


def test_start_twice_raises_and_the_peer_goes_on() -> None:
    with pair() as (_, bob):
        with pytest.raises(LifecycleError):
            bob.start()
        assert bob.send("niess", b"still there").wait(DEADLINE_S)


def test_start_after_the_end_raises() -> None:
    peer = Peer("a")
    peer.start()
    peer.terminate()
    with pytest.raises(LifecycleError):
        peer.start()


USES: dict[str, Callable[[Peer], object]] = {
    "send": lambda peer: peer.send("x", b""),
    "sendMsg": lambda peer: peer.sendMsg("x", b""),
    "send_many": lambda peer: peer.send_many("x", [b""]),
    "flush": lambda peer: peer.flush(0),
    "wait_connected": lambda peer: peer.wait_connected(timeout=0),
}


@pytest.mark.parametrize("name", USES)
def test_using_a_peer_before_start_and_after_terminate_raises(name: str) -> None:
    peer = Peer("a")
    with pytest.raises(LifecycleError):
        USES[name](peer)
    peer.start()
    peer.terminate()
    with pytest.raises(LifecycleError):
        USES[name](peer)


def test_adding_places_after_terminate_raises() -> None:
    peer = Peer("a")
    peer.terminate()
    with leaves_nothing():
        with pytest.raises(LifecycleError):
            peer.add_connector("127.0.0.1", 9)
        with pytest.raises(LifecycleError):
            peer.add_listener("127.0.0.1", 0)


def test_a_listener_of_a_peer_that_ends_while_it_is_made_is_closed_and_its_file_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = Peer("a")
    peer.start()
    path = tmp_path / "place"

    def listen_and_end(host: str, port: int) -> Listening:
        listening = listen(host, port)
        assert path.exists()
        peer.terminate()
        return listening

    monkeypatch.setattr("netcomm.runtime.runtime.listen", listen_and_end)
    with leaves_nothing(), pytest.raises(LifecycleError):
        peer.add_listener(f"unix:{path}", 0)
    assert not path.exists()


def test_a_terminated_peer_can_still_be_looked_at() -> None:
    with pair() as (_, bob):
        assert bob.send("niess", b"x").wait(DEADLINE_S)
        bob.terminate()
        assert bob.peers == []
        assert bob.stats().peers["niess"].delivered == 1
        assert not bob.stats().peers["niess"].connected


# Terminate, at any moment


def test_terminate_twice_leaves_nothing() -> None:
    with leaves_nothing():
        peer = SnakemqListener("a", "127.0.0.1", 0)
        peer.start()
        terminate_in_time(peer, 1)
        terminate_in_time(peer, 1)


def test_terminate_while_connecting_is_refused_leaves_nothing() -> None:
    with refusing_place() as place, leaves_nothing():
        peer = SnakemqConnector("a", *place, limits=FAST)
        errors = record(peer.on_error)
        peer.start()
        errors.wait(1)
        terminate_in_time(peer, 1)


def test_terminate_while_connecting_hangs_leaves_nothing() -> None:
    with silent_place() as place, leaves_nothing():
        peer = SnakemqConnector("a", *place)
        peer.start()
        wait_until(lambda: len(_connecting_to(place)) == 1, "an attempt to connect")
        terminate_in_time(peer, 1)


def _connecting_to(place: tuple[str, int]) -> list[str]:
    """The sockets of this process that have sent their SYN there, have no answer, and are not the fillers."""
    port = f":{place[1]:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    waiting = [row for row in rows if row[2].endswith(port) and row[3] == "02"]
    return waiting[_FILLERS_WAITING:] if len(waiting) > _FILLERS_WAITING else []


# A program that forks many times, while its other threads are busy, has so long for it.
MANY_FORKS_S = 90.0

# Of the four sockets that fill a backlog of 0, one is accepted by the kernel, and three wait.
_FILLERS_WAITING = 3


def test_terminate_in_the_middle_of_the_handshake_leaves_nothing() -> None:
    with raw_listener() as server, leaves_nothing():
        peer = SnakemqConnector("a", *server.getsockname())
        peer.start()
        silent, _ = server.accept()
        with silent:
            assert silent.recv(1)
            terminate_in_time(peer, 1)


@pytest.mark.parametrize("timeout", [0, 0.3, 2])
def test_terminate_while_others_send_ends_every_message_once(timeout: float) -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_message)
        with leaves_nothing():
            bob = SnakemqConnector("bob", *niess.address)
            dropped = record(bob.on_drop)
            bob.start()
            assert bob.wait_connected("niess", DEADLINE_S)

            def send_until_the_end() -> list:
                deliveries = []
                while True:
                    try:
                        deliveries.append(bob.send("niess", b"x" * 1000))
                    except LifecycleError:
                        return deliveries

            results = [in_thread(send_until_the_end) for _ in range(3)]
            received.wait(100)
            terminate_in_time(bob, timeout)
            deliveries = [delivery for result in results for delivery in result()]

        states = [delivery.state for delivery in deliveries]
        assert set(states) <= {DeliveryState.DELIVERED, DeliveryState.DISCARDED}
        discarded = {delivery.uuid for delivery in deliveries if delivery.state is DeliveryState.DISCARDED}
        assert sorted(delivery.uuid for _, delivery in dropped.calls) == sorted(discarded)
        uuids = [message.uuid for _, message in received.calls]
        assert len(uuids) == len(set(uuids))
        assert {delivery.uuid for delivery in deliveries} - discarded <= set(uuids)


def test_terminate_delivers_what_was_sent_if_the_time_allows() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        bob = SnakemqConnector("bob", *niess.address)
        bob.start()
        deliveries = bob.send_many("niess", [b"%d" % i for i in range(5000)])
        terminate_in_time(bob, DEADLINE_S)
        assert all(delivery.state is DeliveryState.DELIVERED for delivery in deliveries)
        assert [data for _, data in received.calls] == [b"%d" % i for i in range(5000)]


def test_terminate_hands_over_what_was_received_if_the_time_allows() -> None:
    with pair() as (niess, bob):
        go = threading.Event()
        received = Recorder()
        niess.on_recv.add(lambda ident, data: go.wait(DEADLINE_S))
        niess.on_recv.add(received)
        deliveries = bob.send_many("niess", [b"x"] * 100)
        wait_until(lambda: niess.stats().peers["bob"].received == 100)
        ended = in_thread(lambda: terminate_in_time(niess, DEADLINE_S))
        go.set()
        ended()
        assert len(received) == 100
        assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)


def test_what_is_not_delivered_ends_discarded_and_on_drop_is_called() -> None:
    with refusing_place() as place, leaves_nothing():
        peer = SnakemqConnector("a", *place, limits=FAST)
        dropped = record(peer.on_drop)
        peer.start()
        deliveries = peer.send_many("nobody", [b"1", b"2", b"3"])
        waiting = in_thread(lambda: deliveries[0].wait(DEADLINE_S))
        flushing = in_thread(lambda: peer.flush(DEADLINE_S))
        terminate_in_time(peer, 0.5)
        assert waiting() is False
        with contextlib.suppress(LifecycleError):  # it may have begun after the end
            assert flushing() is True
        assert [delivery.state for delivery in deliveries] == [DeliveryState.DISCARDED] * 3
        assert dropped.calls == [("nobody", delivery) for delivery in deliveries]


def test_who_waits_for_a_message_while_the_peer_ends_returns_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with leaves_nothing():
        peer = Peer("a")
        peer.start()
        runtime = peer._runtime
        delivery = peer.send("nobody", b"x")
        states: list[DeliveryState] = []
        waiting: list[Callable[[], object]] = []

        def wait() -> None:
            delivery.wait(DEADLINE_S)
            states.append(delivery.state)

        def stop_accepting() -> None:  # it may take its time, for it removes files
            waiting.append(in_thread(wait))
            wait_until(lambda: runtime._loop._waiters == len(waiting) or bool(states))
            stop()

        stop = runtime._link.stop_accepting
        monkeypatch.setattr(runtime._link, "stop_accepting", stop_accepting)
        peer.terminate(0)
        for result in waiting:
            result()
        assert states == [DeliveryState.DISCARDED] * len(waiting)


def test_a_send_that_waits_for_room_ends_with_the_peer() -> None:
    with leaves_nothing():
        peer = Peer("a", limits=Limits(max_queued_messages=1))
        peer.start()
        peer.send("nobody", b"1")
        waiting = in_thread(lambda: peer.send("nobody", b"2"))
        terminate_in_time(peer, 0.5)
        with pytest.raises(LifecycleError):
            waiting()


def test_three_threads_terminate_at_once() -> None:
    with refusing_place() as place, leaves_nothing():
        peer = SnakemqConnector("a", *place, limits=FAST)
        peer.start()
        delivery = peer.send("nobody", b"x")
        together = threading.Barrier(3)

        def end() -> None:
            together.wait(DEADLINE_S)
            terminate_in_time(peer, 1)

        for result in [in_thread(end) for _ in range(3)]:
            result()
        assert delivery.state is DeliveryState.DISCARDED


def test_terminate_that_meets_start_ends_the_peer() -> None:
    for _ in range(50):
        with leaves_nothing():
            peer = Peer("a")
            together = threading.Barrier(2)

            def start(peer: Peer = peer, together: threading.Barrier = together) -> None:
                together.wait(DEADLINE_S)
                with contextlib.suppress(LifecycleError):  # the end came first
                    peer.start()

            starting = in_thread(start)
            together.wait(DEADLINE_S)
            try:
                peer.terminate(1)
            finally:
                starting()
                wait_until(lambda peer=peer: not threads_of(peer), "the end of its threads")


@pytest.mark.parametrize("timeout", [0, 1])
def test_terminate_with_a_peer_that_never_reads_leaves_nothing(timeout: float) -> None:
    with raw_listener() as server, leaves_nothing():
        peer = SnakemqConnector("a", *server.getsockname())
        dropped = record(peer.on_drop)
        peer.start()
        stubborn, _ = server.accept()
        with stubborn:
            stubborn.sendall(legacy_handshake("stubborn"))
            assert peer.wait_connected("stubborn", DEADLINE_S)
            deliveries = peer.send_many("stubborn", [bytes(1_000_000)] * 30)
            terminate_in_time(peer, timeout)
        assert {delivery.state for delivery in deliveries} == {DeliveryState.DISCARDED}
        assert len(dropped.wait(30)) == 30


@pytest.mark.parametrize("timeout", [0, 1])
def test_terminate_with_a_stuck_callback_returns_in_time(timeout: float) -> None:
    with pair() as (niess, bob):
        release = threading.Event()
        entered = threading.Event()
        received = Recorder()

        def get_stuck(ident: str, data: bytes) -> None:
            entered.set()
            release.wait(DEADLINE_S)

        niess.on_recv.add(get_stuck)
        niess.on_recv.add(received)
        deliveries = bob.send_many("niess", [b"1", b"2", b"3"])
        assert entered.wait(DEADLINE_S)
        try:
            terminate_in_time(niess, timeout)
        finally:
            release.set()
        wait_until(lambda: not threads_of(niess), "the end of the dispatcher")
        # What the callbacks have not seen is not reported delivered.
        assert [data for _, data in received.calls] == [b"1"]
        bob.terminate(0.5)
        assert DeliveryState.DELIVERED not in [delivery.state for delivery in deliveries[1:]]


# From a callback


def test_terminate_from_on_recv_counts_the_message_as_delivered() -> None:
    with pair() as (niess, bob):
        ended = Recorder()

        @niess.on_recv.add
        def end(ident: str, data: bytes) -> None:
            terminate_in_time(niess, 1)
            ended(data)

        errors = record(niess.on_error)
        first, second = bob.send_many("niess", [b"last words", b"too late"])
        assert ended.wait(1) == [b"last words"]
        assert first.wait(DEADLINE_S)
        assert not second.done
        assert errors.calls == []


@pytest.mark.parametrize("name", ["on_connect", "on_disconnect", "on_drop", "on_error", "on_message"])
def test_terminate_from_any_callback_returns_in_time(name: str) -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess, leaves_nothing():
        bob = SnakemqConnector("bob", *niess.address, limits=FAST)
        ended = Recorder()

        @getattr(bob, name).add
        def end(*args: object) -> None:
            try:
                terminate_in_time(bob, 1)
            except AssertionError as error:
                ended(error)
            else:
                ended("in time")

        bob.start()
        if name != "on_connect":
            assert bob.wait_connected("niess", DEADLINE_S)
        if name == "on_disconnect":
            niess.terminate(1)
        elif name == "on_drop":
            bob.send("nobody", b"x", ttl=0)
        elif name == "on_error":
            # A listener that is gone can't be connected to.
            niess.terminate(1)
        elif name == "on_message":
            niess.send("bob", b"x")
        assert ended.wait(1) == ["in time"]


def test_terminate_from_a_callback_that_another_thread_waits_for_counts_as_returned() -> None:
    with pair() as (niess, bob):
        entered = threading.Event()
        other_has_begun = threading.Event()
        outcome = Recorder()

        @niess.on_recv.add
        def end(ident: str, data: bytes) -> None:
            entered.set()
            other_has_begun.wait(DEADLINE_S)
            niess.terminate(2)
            outcome("ended")

        delivery = bob.send("niess", b"x")
        assert entered.wait(DEADLINE_S)
        other = in_thread(lambda: terminate_in_time(niess, 2))
        wait_until(lambda: "is being terminated" in repr(niess))
        other_has_begun.set()
        other()
        outcome.wait(1)
        assert delivery.wait(0.5)


# A program that forgets, a program that is interrupted


FORGETFUL = """
import sys, threading
from netcomm import Limits, Peer, SnakemqConnector, SnakemqListener
kind, port = sys.argv[1], int(sys.argv[2])
limits = Limits(reconnect_min_s=0.02, reconnect_max_s=0.1)
peer = SnakemqConnector("bob", "127.0.0.1", port, limits=limits)
stuck = threading.Event()
if kind == "stuck callback":
    peer.on_connect.add(lambda ident: threading.Event().wait())
peer.start()
if kind == "never started":
    Peer("other").add_listener("127.0.0.1", 0)
if kind in ("never connected", "hanging"):
    peer.send("niess", b"x")
else:
    assert peer.wait_connected("niess", 20)
    peer.send_many("niess", [b"%d" % number for number in range(1000)])
if kind == "one for nobody":
    peer.send("nobody", b"x")
print("sent")
if kind == "raises":
    raise SystemExit(3)
"""


def _run_forgetful(kind: str, port: int) -> int:
    with Program(FORGETFUL, kind, port) as program:
        assert program.line() == "sent"
        started = time.monotonic()
        code = program.wait()
        assert time.monotonic() - started < 5
        assert program.errors == ""
    return code


@pytest.mark.parametrize("kind", ["plain", "never started", "stuck callback", "one for nobody", "raises"])
def test_a_program_that_forgets_to_terminate_ends_by_itself_and_delivers(kind: str) -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        code = _run_forgetful(kind, niess.address[1])
        assert code == (3 if kind == "raises" else 0)
        assert [data for _, data in received.wait(1000)] == [b"%d" % number for number in range(1000)]


def test_a_program_that_forgets_to_terminate_ends_while_nobody_answers() -> None:
    with refusing_place() as place:
        assert _run_forgetful("never connected", place[1]) == 0


def test_a_program_that_forgets_to_terminate_ends_while_connecting_hangs() -> None:
    with silent_place() as place:
        assert _run_forgetful("hanging", place[1]) == 0


INTERRUPTED = """
import signal, sys, threading, time
from netcomm import SnakemqConnector
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
where, port = sys.argv[1], int(sys.argv[2])

def tell_when_terminating():
    while "is being terminated" not in repr(bob):
        time.sleep(0.001)
    print("now")

try:
    with SnakemqConnector("bob", "127.0.0.1", port) as bob:
        assert bob.wait_connected("niess", 20)
        if where == "in the body":
            print("now")
            threading.Event().wait(20)
        lost = bob.send("nobody", b"x", ttl=0.3)
        if where == "waiting":
            print("now")
            lost.wait(20)
        if where == "flushing":
            print("now")
            bob.flush(20)
        if where == "terminating":
            threading.Thread(target=tell_when_terminating).start()
            bob.terminate(20)
except KeyboardInterrupt:
    print("interrupted")
started = time.monotonic()
bob.terminate(1)
assert time.monotonic() - started < 4
threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("netcomm-bob")]
print("alive" if bob.is_alive() else "ended", threads)
"""


@pytest.mark.parametrize("where", ["in the body", "waiting", "flushing", "terminating"])
def test_an_interrupt_ends_the_with_block_and_the_peer(where: str) -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        gone = record(niess.on_disconnect)
        with Program(INTERRUPTED, where, niess.address[1]) as program:
            assert program.line() == "now"
            program.process.send_signal(signal.SIGINT)
            assert program.line() == "interrupted"
            assert program.line() == "ended []"
            assert program.wait() == 0
        assert gone.wait(1) == ["bob"]


# Fork


SOCKETS = """
import os

def sockets():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink("/proc/self/fd/" + name))
        except OSError:  # the one that listdir itself used
            pass
    return [name for name in found if "socket" in name or "eventpoll" in name]
"""


FORK_USES = """
import os, signal, sys
from netcomm import LifecycleError, SnakemqConnector
peer = SnakemqConnector("bob", "127.0.0.1", int(sys.argv[1]))
peer.start()
assert peer.wait_connected("niess", 20)
earlier = peer.send("nobody", b"x")
for _ in range(10):
    peer.send("nobody", b"x")  # what comes next joins these
child = os.fork()
if child == 0:
    signal.alarm(10)
    assert not sockets(), sockets()
    uses = {
        "send": lambda: peer.send("niess", b"x"),
        "send that joins": lambda: peer.send("nobody", b"x"),
        "send_many": lambda: peer.send_many("niess", [b"x"]),
        "flush": lambda: peer.flush(1),
        "wait_connected": lambda: peer.wait_connected("niess", 1),
        "add_connector": lambda: peer.add_connector("127.0.0.1", 9),
        "add_listener": lambda: peer.add_listener("127.0.0.1", 0),
        "stats": lambda: peer.stats(),
        "peers": lambda: peer.peers,
        "start": lambda: peer.start(),
        "Delivery.wait": lambda: earlier.wait(1),
        "on_recv.add": lambda: peer.on_recv.add(print),
        "on_connect.add": lambda: peer.on_connect.add(print),
        "on_error.remove": lambda: peer.on_error.remove(print),
    }
    for name, use in uses.items():
        try:
            use()
        except LifecycleError as error:
            assert "parent" in str(error), error
        else:
            raise AssertionError(name + " did not raise")
    peer.terminate()
    peer.terminate(1)
    repr(peer)
    sys.exit(7)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status))
print("parent", peer.send("niess", b"from the parent").wait(20), peer.stats().peers["niess"].reconnects)
peer.terminate(0.5)
"""


def test_a_forked_child_can_not_use_the_peer_and_the_parent_goes_on() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        gone = record(niess.on_disconnect)
        with Program(SOCKETS + FORK_USES, niess.address[1]) as program:
            assert program.line() == "child 7", program.errors
            assert gone.calls == []
            assert program.line() == "parent True 0"
            assert program.wait() == 0
            assert program.errors == ""
        assert received.calls == [("bob", b"from the parent")]


FORK_BUSY = """
import os, signal, sys, threading
from netcomm import LifecycleError, SnakemqConnector
storage = sys.argv[2] if len(sys.argv) > 2 else None
peer = SnakemqConnector("bob", "127.0.0.1", int(sys.argv[1]), storage is not None, storage=storage)
peer.start()
assert peer.wait_connected("niess", 20)
uses = [
    lambda: peer.send("niess", b"x"),
    lambda: peer.send_many("niess", [b"x"]),
    lambda: peer.on_recv.add(print),
    lambda: peer.flush(1),
    lambda: peer.wait_connected("niess", 1),
    lambda: peer.add_connector("127.0.0.1", 9),
    lambda: peer.stats(),
    lambda: peer.peers,
]
stop = threading.Event()

def send():
    while not stop.is_set():
        peer.send("niess", bytes(20000))

threads = [threading.Thread(target=send) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for number in range(60):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 10)
        try:
            uses[number % len(uses)]()
        except LifecycleError:
            peer.terminate()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    codes.append(os.waitstatus_to_exitcode(status))
    if codes[-1]:
        break
stop.set()
for thread in threads:
    thread.join()
print(set(codes))
print("parent", peer.send("niess", b"last").wait(20), peer.stats().peers["niess"].reconnects)
peer.terminate()
"""


@pytest.mark.parametrize("persistent", [False, True])
def test_a_child_forked_while_other_threads_send_is_not_blocked(persistent: bool, tmp_path: Path) -> None:
    storage = [f"sqlite:///{tmp_path}/bob.db"] if persistent else []
    with SnakemqListener("niess", "127.0.0.1", 0) as niess, Program(FORK_BUSY, niess.address[1], *storage) as program:
        assert program.line(MANY_FORKS_S) == "{0}"
        assert program.line() == "parent True 0"
        assert program.wait() == 0


FORK_IN_A_CALLBACK = """
import os, sys
from netcomm import SnakemqConnector
peer = SnakemqConnector("bob", "127.0.0.1", int(sys.argv[1]))

@peer.on_recv.add
def fork(ident, data):
    if data == b"1" and os.fork() == 0:
        print("child", flush=True)
        if sys.argv[2] == "exits":
            sys.exit(3)
        if sys.argv[2] == "raises":
            raise ValueError("in the child")
    elif data == b"1":
        _, status = os.wait()
        print("status", os.waitstatus_to_exitcode(status), flush=True)

@peer.on_recv.add
def note(ident, data):
    print(os.getpid() == parent, data.decode(), flush=True)

parent = os.getpid()
peer.on_error.add(lambda error: print("on_error", os.getpid() == parent, flush=True))
peer.start()
sys.stdin.readline()
peer.terminate(1)
"""


@pytest.mark.parametrize(("end", "status"), [("exits", 3), ("raises", 1), ("returns", 0)])
def test_a_child_that_a_callback_forks_ends_as_the_callback_does_and_handles_no_further_message(
    end: str, status: int
) -> None:
    with (
        SnakemqListener("niess", "127.0.0.1", 0) as niess,
        Program(FORK_IN_A_CALLBACK, niess.address[1], end) as program,
    ):
        assert niess.wait_connected("bob", DEADLINE_S)
        deliveries = niess.send_many("bob", [b"1", b"2", b"3"])
        assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        program.tell("end")
        assert program.wait() == 0
        lines = [line for line in program.rest() if line]
        in_child = ["False 1"] if end == "returns" else []  # the functions behind it are called for the same message
        assert [line for line in lines if line not in in_child] == [
            "child",
            f"status {status}",
            "True 1",
            "True 2",
            "True 3",
        ]
        assert ("in the child" in program.errors) == (end == "raises")


FORK_OF_AN_ENDED_PEER = """
import os, threading
from netcomm import LifecycleError, Peer
from netcomm.peer import Peer
peer = Peer("bob")
peer.start()
peer.terminate(1)
peer._runtime._loop.mutex.acquire()  # as a thread of the parent has it, at that moment
child = os.fork()
if child == 0:
    peer.terminate()
    try:
        peer.stats()
    except LifecycleError:
        os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_may_use_a_peer_that_has_ended_before() -> None:
    with Program(FORK_OF_AN_ENDED_PEER) as program:
        assert program.line() == "7"


FORK_WHILE_MADE = """
import os, sys, threading
import netcomm.runtime.runtime
from netcomm import LifecycleError, Peer
from netcomm.memory_storage import MemoryQueueStorage

reached, go_on = threading.Event(), threading.Event()

class Slow(MemoryQueueStorage):
    @classmethod
    def from_url(cls, url, read_only=False):
        reached.set()
        go_on.wait(20)
        return cls()

netcomm.runtime.runtime.open_storage = Slow.from_url
made = []
thread = threading.Thread(target=lambda: made.append(Peer("bob", storage="slow:")))
thread.start()
reached.wait(20)
child = os.fork()
if child == 0:
    os._exit(1 if sockets() else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go_on.set()
thread.join()
made[0].start()
made[0].terminate(1)
print("made")
"""


def test_a_child_forked_while_a_peer_is_being_made_holds_nothing_of_it() -> None:
    with Program(SOCKETS + FORK_WHILE_MADE) as program:
        assert program.line() == "7"
        assert program.line() == "made"
        assert program.wait() == 0
        assert program.errors == ""


FORK_WHILE_SOCKETS_ARE_MADE = """
import os, sys, threading
from netcomm import Limits, SnakemqConnector, SnakemqListener
stop = threading.Event()
limits = Limits(reconnect_min_s=0.001, reconnect_max_s=0.002)

def come_and_go():
    while not stop.is_set():
        with SnakemqListener("niess", "127.0.0.1", 0, limits=limits) as niess:
            niess.on_recv.add(lambda ident, data: None)
            with SnakemqConnector("bob", *niess.address, limits=limits) as bob:
                bob.send("niess", b"x").wait(20)
                bob.terminate(0)
            niess.terminate(0)

threads = [threading.Thread(target=come_and_go) for _ in range(2)]
for thread in threads:
    thread.start()
kept = 0
for _ in range(200):
    child = os.fork()
    if child == 0:
        os._exit(bool(sockets()))
    kept += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
print("kept", kept)
"""


def test_a_child_forked_while_peers_come_and_go_holds_no_socket_of_theirs() -> None:
    with Program(SOCKETS + FORK_WHILE_SOCKETS_ARE_MADE) as program:
        assert program.line(MANY_FORKS_S) == "kept 0"
        assert program.wait() == 0


FORK_OUTLIVES = """
import os, sys
from netcomm import SnakemqConnector
peer = SnakemqConnector("bob", "127.0.0.1", int(sys.argv[1]))
address = peer.add_listener("127.0.0.1", 0)
peer.start()
assert peer.wait_connected("niess", 20)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(writer)
    os.read(reader, 1)  # it lives as long as the parent lets it
    sys.exit(0)
print(address[1])
sys.stdin.readline()
peer.terminate(1)
print("terminated")
sys.stdin.readline()
os.close(writer)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status))
"""


def test_the_parents_connection_closes_while_the_child_lives() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        gone = record(niess.on_disconnect)
        with Program(FORK_OUTLIVES, niess.address[1]) as program:
            port = int(program.line())
            with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as stranger:
                program.tell("terminate")
                assert program.line() == "terminated"
                assert gone.wait(1) == ["bob"]
                read_to_end(stranger)
            with SnakemqListener("other", "127.0.0.1", port):
                pass
            program.tell("let the child end")
            assert program.line() == "child 0"
            assert program.wait() == 0


# Places that can't be had


@pytest.mark.parametrize("other", ["a raw socket", "a peer"])
def test_a_port_in_use_raises_in_the_constructor_and_leaks_nothing(other: str) -> None:
    with contextlib.ExitStack() as stack:
        if other == "a peer":
            address = stack.enter_context(SnakemqListener("first", "127.0.0.1", 0)).address
        else:
            address = stack.enter_context(raw_listener()).getsockname()
        with leaves_nothing():
            with pytest.raises(BindError) as caught:
                SnakemqListener("second", *address)
            assert caught.value.errno == errno.EADDRINUSE
            assert str(address[1]) in str(caught.value)


def test_add_listener_on_a_port_in_use_raises_and_the_peer_goes_on() -> None:
    with raw_listener() as server, pair() as (niess, bob):
        with pytest.raises(BindError):
            niess.add_listener(*server.getsockname())
        assert bob.send("niess", b"x").wait(DEADLINE_S)


@pytest.mark.parametrize("arguments", [("x" * 256,), ("",), (1,), ("a", 1), ("a", "h", -1), ("a", "h", 65536)])
def test_a_bad_argument_raises_in_the_constructor_and_leaks_nothing(arguments: tuple) -> None:
    with leaves_nothing():
        for kind in (SnakemqConnector, SnakemqListener):
            with pytest.raises(ConfigurationError):
                kind(*arguments)


@pytest.mark.parametrize(
    ("host", "port"),
    [("nowhere.invalid", 9), ("label-too-long-" * 5, 9), ("224.0.0.1", 9), ("unix:/no/such/file", 0)],
    ids=["unresolvable", "not a name", "unreachable", "no such file"],
)
def test_a_connector_that_can_not_connect_warns_once_and_goes_on(
    host: str, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "netcomm")
    peer = SnakemqConnector("a", host, port, limits=FAST)
    errors = record(peer.on_error)
    with peer:
        wait_until(lambda: len(_attempts(caplog)) >= 4, "four attempts")
        levels = _attempts(caplog)
        assert levels[0] == logging.WARNING
        assert set(levels[1:]) == {logging.DEBUG}
        assert len(errors.wait(1)) == 1
        assert isinstance(errors.calls[0], OSError)
        assert host in str(errors.calls[0])


def _attempts(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [record.levelno for record in caplog.records if "can't connect" in record.getMessage()]


def test_a_refused_connector_connects_once_the_other_side_is_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "netcomm")
    with refusing_place() as place, contextlib.ExitStack() as stack:
        bob = SnakemqConnector("bob", *place, limits=FAST)
        errors = record(bob.on_error)
        stack.enter_context(bob)
        delivery = bob.send("niess", b"patient")
        for round_ in (1, 2):  # each loss of the connection is worth one warning and one error
            wait_until(lambda round_=round_: _attempts(caplog).count(logging.WARNING) == round_, "the warning")
            before = len(_attempts(caplog))
            wait_until(lambda before=before: len(_attempts(caplog)) >= before + 4, "four more attempts")
            assert _attempts(caplog).count(logging.WARNING) == round_
            assert len(errors.wait(round_)) == round_
            with SnakemqListener("niess", *place) as niess:
                assert bob.wait_connected("niess", DEADLINE_S)
                assert niess.wait_connected("bob", DEADLINE_S)
                assert delivery.wait(DEADLINE_S)
                delivery = bob.send("niess", b"patient again")
                assert delivery.wait(DEADLINE_S)
            wait_until(lambda: bob.peers == [], "the loss of the connection")
