"""Finalizers and signal handlers that call a peer while their thread is inside the library: real peers."""

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from types import FrameType
from typing import Any

import pytest

from netcomm import Delivery, DeliveryState, LifecycleError, Limits, QueueFull, ReentrantCall
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.storage import Append, Position
from tests.integration import helpers
from tests.integration.helpers import (
    DEADLINE_S,
    Peer,
    Recorder,
    SnakemqConnector,
    SnakemqListener,
    in_thread,
    leaves_nothing,
    record,
    wait_until,
)

# What `Pair.fill` sends is larger than the receiver's window. Five of them leave room in the queue for small messages.
FILLING = bytes(50_000)
SENDER = Limits(max_queued_bytes=5 * len(FILLING) + 30_000)
RECEIVER = Limits(window_bytes=10_000)


class Pair(helpers.Pair):
    """A listener "niess" and a connector "bob", which sends; both have storages."""

    def __init__(self) -> None:
        self.storage, self.positions = Storage(), Storage()
        self.niess = SnakemqListener("niess", "127.0.0.1", 0, storage=self.positions, limits=RECEIVER)
        self.bob = SnakemqConnector("bob", *self.niess.address, storage=self.storage, limits=SENDER)
        self.received: Recorder = record(self.niess.on_recv)
        self._go_on = threading.Event()
        self._go_on.set()
        self.niess.on_recv.add(lambda ident, data: self._go_on.wait(DEADLINE_S))

    @property
    def mutex(self) -> Any:
        return self.bob._runtime._loop.mutex

    def fill(self) -> None:
        """Let the callbacks of "niess" wait, and fill the queue to it: a small message still fits."""
        self._go_on.clear()
        for _ in range(5):
            self.bob.send("niess", FILLING, timeout=0)

    def go_on(self) -> None:
        self._go_on.set()

    def payloads(self) -> list[bytes]:
        """What has arrived, without what `fill` has sent."""
        return [data for _, data in self.received.calls if data != FILLING]

    def __exit__(self, *exc_info: object) -> None:
        self.go_on()
        super().__exit__(*exc_info)


class Storage(MemoryQueueStorage):
    """A storage whose calls are interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupt: Callable[[], None] = lambda: None

    def append(self, appends: Sequence[Append]) -> None:
        self.interrupt()
        super().append(appends)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        self.interrupt()
        super().store_positions(positions)


class Lead:
    """Lets the thread that leads a peer's loop do something, with no lock held, as a finalizer on it may."""

    def __init__(self, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wake = peer._runtime._loop.wake
        self._poll = peer._runtime._link.poll
        self._actions: SimpleQueue[Callable[[], None]] = SimpleQueue()
        monkeypatch.setattr(peer._runtime._link, "poll", self._interrupted_poll)
        # The pass that is under way has the other one.
        peer._runtime._loop.wake()

    def _interrupted_poll(self, *args: Any) -> Iterator[Any]:
        yield from self._poll(*args)
        while not self._actions.empty():
            self._actions.get()()

    def run(self, action: Callable[[], None]) -> None:
        """Run an action on that thread; returns when it has returned."""
        done = threading.Event()
        self._actions.put(lambda: (action(), done.set()))  # type: ignore[arg-type, return-value, func-returns-value]
        wait_until(lambda: self._wake() or done.is_set(), "the action has returned")

    def stop(self) -> Callable[[], None]:
        """Keep that thread from going on; returns what lets it."""
        stopped, go_on = threading.Event(), threading.Event()
        self._actions.put(lambda: (stopped.set(), go_on.wait(DEADLINE_S)))  # type: ignore[arg-type, return-value]
        wait_until(lambda: self._wake() or stopped.is_set(), "the thread has stopped")
        return go_on.set


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def all_delivered(deliveries: Sequence[Delivery]) -> bool:
    return all(delivery.wait(DEADLINE_S) for delivery in deliveries)


# -- Sending ------------------------------------------------------------------------------------------------------


def test_what_is_sent_with_the_mutex_held_is_queued_and_arrives_in_order(pair: Pair) -> None:
    payloads = [b"%d" % number * size for number, size in enumerate([1, 1, 3000, 1, 20_000, 1, 1])]
    with pair.mutex:
        deliveries = [pair.bob.send("niess", payload) for payload in payloads[:-1]]
        deliveries.append(pair.bob.send("niess", payloads[-1], ttl=DEADLINE_S))
        assert {delivery.state for delivery in deliveries} == {DeliveryState.QUEUED}
        assert pair.bob._runtime._messaging.peers.stats()["niess"].queued == 0
    assert all_delivered(deliveries)
    assert pair.payloads() == payloads


def test_many_that_are_sent_with_the_mutex_held_arrive_in_order(pair: Pair) -> None:
    payloads = [b"%d" % number for number in range(3000)]
    with pair.mutex:
        many = pair.bob.send_many("niess", payloads[:2000])
        one = pair.bob.send("niess", payloads[2000])
        more = pair.bob.send_many("niess", payloads[2001:], ttl=DEADLINE_S)
    assert all_delivered([*many, one, *more])
    assert pair.payloads() == payloads


def test_where_the_queue_is_full_what_was_deferred_waits_for_room_in_its_order(pair: Pair) -> None:
    pair.fill()
    payloads = [b"%d" % number * 20_000 for number in range(10)]
    others = [b"other %d" % number * 10_000 for number in range(10)]
    with pair.mutex:
        deliveries = [pair.bob.send("niess", payload, timeout=0) for payload in payloads]
        deliveries += pair.bob.send_many("niess", others, timeout=0)
    assert not pair.bob.flush(0.05)
    assert not any(delivery.done for delivery in deliveries)
    pair.go_on()
    assert all_delivered(deliveries)
    assert pair.payloads() == payloads + others


def test_no_message_passes_one_that_was_deferred_and_waits_for_room(pair: Pair) -> None:
    pair.fill()
    assert not pair.bob.send("niess", b"first").done  # there is room for this, and others may join it
    with pair.mutex:
        large = pair.bob.send("niess", FILLING[:-1])
    for send in (
        lambda: pair.bob.send("niess", b"-", timeout=0),
        lambda: pair.bob.send_many("niess", [b"-"], timeout=0),
    ):
        with pytest.raises(QueueFull):
            send()
    assert pair.bob.send("nobody", b"", ttl=0).done  # the others' queues are their own
    behind = in_thread(lambda: pair.bob.send("niess", b"behind"))
    wait_until(lambda: pair.bob._runtime._loop._waiters == 1)
    pair.go_on()
    assert behind().wait(DEADLINE_S)
    assert large.state is DeliveryState.DELIVERED
    assert pair.payloads() == [b"first", FILLING[:-1], b"behind"]
    # Everything is as it was: messages join each other again.
    deliveries = [pair.bob.send("niess", b"%d" % number) for number in range(1000)]
    assert all_delivered(deliveries)
    assert pair.payloads()[3:] == [b"%d" % number for number in range(1000)]


def test_what_is_deferred_while_deferred_messages_are_looked_at_harms_nobody(pair: Pair) -> None:
    pair.fill()
    sent: list[Delivery] = []

    class Ident(str):
        """Interrupts the thread that compares it, as a finalizer may."""

        def __eq__(self, other: object) -> bool:
            if not sent and pair.bob._runtime._loop.is_interrupting():
                sent.append(pair.bob.send("niess", b"", timeout=0))
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    loop = pair.bob._runtime._loop
    with loop.mutex:
        deliveries = [pair.bob.send("niess", FILLING[:-1]) for _ in range(2)]
        assert not loop.defers(Ident("nobody"))
    pair.go_on()
    assert len(sent) == 1
    assert all_delivered([*deliveries, *sent])


def test_what_the_thread_sends_next_does_not_pass_what_was_deferred(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = Lead(pair.bob, monkeypatch).stop()
    try:
        with pair.mutex:
            pair.bob.send("niess", b"deferred")
        pair.bob.send("niess", b"sent")
    finally:
        go_on()
    assert pair.bob.flush(DEADLINE_S)
    assert pair.payloads() == [b"deferred", b"sent"]


def test_while_deferred_messages_wait_for_room_the_loop_sleeps(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = threading.Semaphore(0)
    poll = pair.bob._runtime._link.poll
    pair.fill()
    with pair.mutex:
        delivery = pair.bob.send("niess", FILLING)

    def counting_poll(*args: Any) -> Iterator[Any]:
        passes.release()
        return poll(*args)

    monkeypatch.setattr(pair.bob._runtime._link, "poll", counting_poll)
    pair.bob._runtime._loop.wake()
    assert passes.acquire(timeout=DEADLINE_S)
    count = 0
    while passes.acquire(timeout=0.1):
        count += 1
        assert count < 20, "it turns round and round"
    pair.go_on()
    assert delivery.wait(DEADLINE_S)


def test_flush_waits_for_what_was_deferred(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = Lead(pair.bob, monkeypatch).stop()
    try:
        with pair.mutex:
            delivery = pair.bob.send("niess", b"x")
        assert not pair.bob.flush(0.05)
        assert not delivery.done
    finally:
        go_on()
    assert pair.bob.flush(DEADLINE_S)
    assert delivery.done


def test_terminate_delivers_what_was_deferred(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = Lead(pair.bob, monkeypatch).stop()
    with pair.mutex:
        delivery = pair.bob.send("niess", b"x")
    ended = in_thread(lambda: pair.bob.terminate(DEADLINE_S))
    go_on()
    ended()
    assert delivery.state is DeliveryState.DELIVERED


def test_a_deferred_message_that_is_never_sent_ends_discarded() -> None:
    with Peer("bob", limits=Limits(max_queued_messages=1)) as bob:
        dropped: Recorder = record(bob.on_drop)
        deliveries = [bob.send("nobody", b"0")]
        with bob._runtime._loop.mutex:
            deliveries += [bob.send("nobody", b"1"), *bob.send_many("nobody", [b"2", b"3"]), bob.send("other", b"4")]
        assert not bob.flush(0.05)
        bob.terminate(0)
    assert [delivery.state for delivery in deliveries] == [DeliveryState.DISCARDED] * 5
    assert sorted(delivery.data for _, delivery in dropped.wait(5)) == [b"0", b"1", b"2", b"3", b"4"]
    assert len(dropped) == 5
    assert not deliveries[1].wait(0)


def test_a_peer_that_does_not_run_defers_nothing() -> None:
    bob = Peer("bob")
    with bob._runtime._loop.mutex, pytest.raises(LifecycleError):
        bob.send("niess", b"")
    bob.terminate(0)
    for send in (lambda: bob.send("niess", b""), lambda: bob.send_many("niess", [b""])):
        with bob._runtime._loop.mutex, pytest.raises(LifecycleError):
            send()


# -- What is refused ----------------------------------------------------------------------------------------------

WAITING: dict[str, Callable[[Peer, Delivery], object]] = {
    "flush": lambda bob, sent: bob.flush(),
    "flush for no time": lambda bob, sent: bob.flush(0),
    "wait_connected": lambda bob, sent: bob.wait_connected("nobody"),
    "terminate": lambda bob, sent: bob.terminate(),
    "Delivery.wait": lambda bob, sent: sent.wait(),
}
STORING: dict[str, Callable[[Peer, Delivery], object]] = {
    "a persistent send": lambda bob, sent: bob.send("niess", b"refused", persistent=True),
    "a persistent send_many": lambda bob, sent: bob.send_many("niess", [b"refused"], persistent=True),
}
LOOKING: dict[str, Callable[[Peer, Delivery], object]] = {
    "stats": lambda bob, sent: bob.stats(),
    "peers": lambda bob, sent: bob.peers,
    "add_connector": lambda bob, sent: bob.add_connector("127.0.0.1", 1),
    "add_listener": lambda bob, sent: bob.add_listener("127.0.0.1", 0),
    "start": lambda bob, sent: bob.start(),
}


@pytest.mark.parametrize("call", [*WAITING, *STORING, *LOOKING])
def test_with_the_mutex_held_what_waits_looks_or_stores_is_refused_and_changes_nothing(pair: Pair, call: str) -> None:
    pair.fill()
    bob, sent = pair.bob, pair.bob.send("niess", b"sent")
    before = repr(bob), bob.stats(), pair.storage.streams(), bob.peers
    with pair.mutex, pytest.raises(ReentrantCall):
        (WAITING | STORING | LOOKING)[call](bob, sent)
    assert (repr(bob), bob.stats(), pair.storage.streams(), bob.peers) == before
    pair.go_on()
    assert bob.flush(DEADLINE_S)
    assert pair.payloads() == [b"sent"]


def test_with_the_mutex_held_a_peer_is_not_started_and_can_be_started_after() -> None:
    bob = Peer("bob")
    with bob._runtime._loop.mutex, pytest.raises(ReentrantCall, match="start"):
        bob.start()
    assert not bob.is_alive()
    bob.start()
    bob.terminate(0)


def test_with_the_mutex_held_a_message_that_has_ended_can_be_asked_for(pair: Pair) -> None:
    delivery = pair.bob.send("niess", b"")
    assert delivery.wait(DEADLINE_S)
    with pair.mutex:
        assert delivery.wait()


def outcomes(bob: Peer, sent: Delivery) -> dict[str, BaseException | None]:
    """What each call raises that waits or stores."""
    found: dict[str, BaseException | None] = {}
    for name, call in (WAITING | STORING).items():
        try:
            call(bob, sent)
            found[name] = None
        except BaseException as error:
            found[name] = error
    return found


def is_refused(found: Mapping[str, BaseException | None]) -> bool:
    assert {name for name, error in found.items() if type(error) is not ReentrantCall} == set()
    return bool(found)


def test_within_a_call_of_the_storage_what_waits_or_stores_is_refused(pair: Pair) -> None:
    pair.fill()
    sent = pair.bob.send("niess", b"0")
    found: dict[str, BaseException | None] = {}

    def interrupt() -> None:
        pair.storage.interrupt = lambda: None
        found.update(outcomes(pair.bob, sent))
        pair.bob.send("niess", b"1")
        assert pair.bob.stats().connected == ["niess"]

    pair.storage.interrupt = interrupt
    stored = pair.bob.send("niess", b"2", persistent=True)
    assert is_refused(found)
    assert stored.data is not None
    assert [stream.count for stream in pair.storage.streams()] == [1]
    pair.go_on()
    assert pair.bob.flush(DEADLINE_S)
    assert sorted(pair.payloads()) == [b"0", b"1", b"2"]


def test_on_the_thread_of_the_storage_what_waits_or_stores_is_refused_while_it_is_in_a_call(pair: Pair) -> None:
    found: dict[str, BaseException | None] = {}
    sent = pair.niess.send("bob", b"", ttl=None)
    pending = pair.niess.send("nobody", b"")

    def interrupt() -> None:
        if not found:
            found.update(outcomes(pair.niess, pending))

    assert sent.wait(DEADLINE_S)
    pair.positions.interrupt = interrupt
    assert pair.bob.send("niess", b"x", persistent=True).wait(DEADLINE_S)
    assert is_refused(found)
    assert pair.payloads() == [b"x"]
    assert pair.positions.streams() == []


@pytest.mark.parametrize("leader", ["dispatcher", "deputy"])
def test_on_the_thread_that_leads_what_waits_is_refused(
    pair: Pair, leader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.fill()
    bob, sent = pair.bob, pair.bob.send("niess", b"0")
    lead = Lead(bob, monkeypatch)
    entered, leave = threading.Event(), threading.Event()
    if leader == "deputy":
        bob.on_drop.add(lambda ident, delivery: (entered.set(), leave.wait(DEADLINE_S)))
        bob.send("nobody", b"", ttl=0)
        assert entered.wait(DEADLINE_S)
    found: dict[str, BaseException | None] = {}
    threads: list[threading.Thread] = []

    def interrupt() -> None:
        threads.append(threading.current_thread())
        for name, call in WAITING.items():
            try:
                call(bob, sent)
            except ReentrantCall as error:
                found[name] = error
        try:
            bob.send("niess", FILLING)
        except ReentrantCall as error:
            found["a send to a queue that is full"] = error
        bob.send("niess", b"1")
        assert bob.stats().connected == bob.peers == ["niess"]

    try:
        lead.run(interrupt)
    finally:
        leave.set()
    assert (threads == [bob]) == (leader == "deputy")
    assert set(found) == {*WAITING, "a send to a queue that is full"}
    pair.go_on()
    assert bob.flush(DEADLINE_S)
    assert pair.payloads() == [b"0", b"1"]


class EndsItself(Peer):
    """A peer whose own thread, which is the deputy, is interrupted by a finalizer that terminates it."""

    def run(self) -> None:
        self.terminate(0.1)
        super().run()


def test_a_peer_may_be_terminated_on_its_own_thread() -> None:
    with leaves_nothing():
        bob = EndsItself("bob")
        bob.start()
        bob.join(DEADLINE_S)
        assert "has been terminated" in repr(bob)


def test_a_peer_may_be_terminated_on_the_thread_of_its_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, ended = Storage(), threading.Event()
    bob = Peer("bob", storage=storage)
    worker = bob._runtime._worker
    assert worker is not None
    gather = worker._gather

    def interrupted_gather() -> bool:
        if not ended.is_set():
            bob.terminate(0.1)
            ended.set()
        return gather()

    monkeypatch.setattr(worker, "_gather", interrupted_gather)
    with leaves_nothing():
        bob.start()
        assert ended.wait(DEADLINE_S)
        bob.terminate(DEADLINE_S)


# -- Real ones ----------------------------------------------------------------------------------------------------


class Finalized:
    """An object of a cycle, which calls something when it is collected."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self.itself = self

    def __del__(self) -> None:
        self._action()


def test_a_finalizer_that_the_collector_runs_with_the_mutex_held(pair: Pair) -> None:
    deliveries: list[Delivery] = []
    errors: list[BaseException] = []

    def finalize() -> None:
        deliveries.extend([pair.bob.send("niess", b"0"), *pair.bob.send_many("niess", [b"1", b"2"])])
        try:
            pair.bob.flush()
        except ReentrantCall as error:
            errors.append(error)

    with pair.mutex:
        Finalized(finalize)
        gc.collect()
        assert len(errors) == 1
    assert all_delivered(deliveries)
    assert pair.payloads() == [b"0", b"1", b"2"]


def test_a_signal_handler_that_interrupts_a_thread_with_the_mutex_held(pair: Pair) -> None:
    deliveries: list[Delivery] = []
    errors: list[BaseException] = []

    def handle(number: int, frame: FrameType | None) -> None:
        deliveries.append(pair.bob.send("niess", b"%d" % len(deliveries)))
        try:
            pair.bob.send("niess", b"", persistent=True)
        except ReentrantCall as error:
            errors.append(error)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with pair.mutex:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
            assert len(errors) == 2
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(errors) == 2
    assert all_delivered(deliveries)
    assert pair.bob.flush(DEADLINE_S)
    assert sorted(pair.payloads()) == [b"", b"0", b"1", b"2"]
    assert [data for data in pair.payloads() if data] == [b"0", b"1", b"2"]
