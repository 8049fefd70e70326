"""Messages that come while no function is there to take them, and the uuids of those that are sent: real peers."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from netcomm import Limits, Message, SnakemqConnector, SnakemqListener

DEADLINE_S = 20.0


class Recorder:
    """A callback that keeps what it was called with, and can be waited for."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self._changed = threading.Condition()

    def __call__(self, *args: object) -> None:
        with self._changed:
            self.calls.append(args)
            self._changed.notify_all()

    def wait(self, count: int) -> list[tuple[object, ...]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, DEADLINE_S), len(self.calls)
            return list(self.calls)


class Warned(logging.Handler):
    """Waits for a warning of the log."""

    def __init__(self, part: str) -> None:
        super().__init__(logging.WARNING)
        self._part = part
        self.count = 0
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._part in record.getMessage():
            self.count += 1
            self.seen.set()


@pytest.fixture
def warned() -> Iterator[Warned]:
    handler = Warned("holds messages back")
    logging.getLogger("netcomm").addHandler(handler)
    yield handler
    logging.getLogger("netcomm").removeHandler(handler)


Pair = tuple[SnakemqListener, SnakemqConnector]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A listener "niess" that has no callbacks, and a connector "bob"."""
    limits = Limits(window_bytes=2000)
    with SnakemqListener("niess", "127.0.0.1", 0, limits=limits) as niess:
        with SnakemqConnector("bob", *niess.address, limits=limits) as bob:
            assert bob.wait_connected("niess", DEADLINE_S)
            assert niess.wait_connected("bob", DEADLINE_S)
            yield niess, bob
            bob.terminate(0.3)
        niess.terminate(0.3)


@pytest.mark.parametrize("name", ["on_recv", "on_message"])
def test_messages_are_held_back_until_there_is_a_function_for_them(pair: Pair, warned: Warned, name: str) -> None:
    niess, bob = pair
    deliveries = [bob.send("niess", b"%d" % number) for number in range(5)]
    assert warned.seen.wait(DEADLINE_S)
    assert not any(delivery.done for delivery in deliveries)
    received = Recorder()
    getattr(niess, name).add(received)
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    payloads = [data.data if isinstance(data, Message) else data for _, data in received.calls]
    assert payloads == [b"%d" % number for number in range(5)]


def test_of_held_messages_the_log_tells_once(pair: Pair, warned: Warned) -> None:
    niess, bob = pair
    bob.send("niess", b"0")
    assert warned.seen.wait(DEADLINE_S)
    deliveries = [bob.send("niess", b"%d" % number) for number in range(1, 20)]
    received = Recorder()
    niess.on_recv.add(received)
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    assert warned.count == 1


def test_the_window_stops_the_sender_of_held_messages(pair: Pair, warned: Warned) -> None:
    niess, bob = pair
    deliveries = bob.send_many("niess", [bytes(100)] * 50)
    assert warned.seen.wait(DEADLINE_S)
    assert not bob.flush(0.05)
    assert not any(delivery.done for delivery in deliveries)
    assert bob.stats().peers["niess"].in_flight <= 2000 // 137
    received = Recorder()
    niess.on_recv.add(received)
    assert bob.flush(DEADLINE_S)
    assert len(received.calls) == 50


def test_other_callbacks_are_called_while_messages_are_held_back(pair: Pair, warned: Warned) -> None:
    niess, bob = pair
    gone = Recorder()
    niess.on_disconnect.add(gone)
    bob.send("niess", b"x")
    assert warned.seen.wait(DEADLINE_S)
    bob.terminate(0)
    assert gone.wait(1) == [("bob",)]
    # What has come from a peer that is gone is handed over all the same.
    received = Recorder()
    niess.on_recv.add(received)
    assert received.wait(1) == [("bob", b"x")]


def test_a_function_that_is_gone_again_lets_the_next_messages_be_held(pair: Pair, warned: Warned) -> None:
    niess, bob = pair
    received = Recorder()

    def once(ident: str, data: bytes) -> None:
        received(ident, data)
        niess.on_recv.remove(once)

    niess.on_recv.add(once)
    assert bob.send("niess", b"0").wait(DEADLINE_S)
    second = bob.send("niess", b"1")
    assert warned.seen.wait(DEADLINE_S)
    assert not second.done
    niess.on_recv.add(received)
    assert second.wait(DEADLINE_S)
    assert received.calls == [("bob", b"0"), ("bob", b"1")]


def test_what_has_come_in_behind_held_messages_is_handed_over_behind_them(pair: Pair, warned: Warned) -> None:
    niess, bob = pair
    busy, go_on = threading.Event(), threading.Event()
    niess.on_drop.add(lambda ident, delivery: busy.set() or go_on.wait(DEADLINE_S))
    deliveries = [bob.send("niess", b"0")]
    assert warned.seen.wait(DEADLINE_S)
    try:
        # While another callback keeps the dispatcher, a message comes in, and only then a function for it.
        niess.send("nobody", b"", ttl=0)
        assert busy.wait(DEADLINE_S)
        deliveries.append(bob.send("niess", b"1"))
        wait_until(lambda: niess.stats().peers["bob"].received == 2)
        received = Recorder()
        niess.on_recv.add(received)
    finally:
        go_on.set()
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    assert received.calls == [("bob", b"0"), ("bob", b"1")]


def test_a_batch_that_is_held_back_half_way_stays_before_those_that_came_after_it(pair: Pair, warned: Warned) -> None:
    niess, bob = pair
    bob.send_many("niess", [b"0", b"1"])
    assert warned.seen.wait(DEADLINE_S)
    bob.send_many("niess", [b"2", b"3"])
    wait_until(lambda: niess.stats().peers["bob"].received == 4)
    received = Recorder()

    def once(ident: str, data: bytes) -> None:
        niess.on_recv.remove(once)
        received(ident, data)

    for count in range(1, 4):
        niess.on_recv.add(once)
        assert len(received.wait(count)) == count
    niess.on_recv.add(received)
    assert bob.flush(DEADLINE_S)
    assert [data for _, data in received.calls] == [b"0", b"1", b"2", b"3"]


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    until = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_held_messages_do_not_keep_a_peer_from_ending_at_once(pair: Pair, warned: Warned) -> None:
    niess, bob = pair
    bob.send("niess", b"x")
    assert warned.seen.wait(DEADLINE_S)
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (niess.terminate(2 * DEADLINE_S), ended.set()))
    thread.start()
    assert ended.wait(DEADLINE_S), "it has waited for callbacks that are not there"
    thread.join(DEADLINE_S)


def test_no_two_messages_have_the_same_uuid_whichever_threads_send_them() -> None:
    count, threads = 2000, 4
    with SnakemqListener("niess", "127.0.0.1", 0) as niess, SnakemqListener("other", "127.0.0.1", 0) as other:
        barrier = threading.Barrier(threads)
        uuids: list[list[bytes]] = [[] for _ in range(threads)]

        def send(number: int) -> None:
            barrier.wait(DEADLINE_S)
            for _ in range(count):
                uuids[number].append(niess.send("nobody", b"").uuid)

        senders = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(DEADLINE_S)
        together = [uuid for some in uuids for uuid in some]
        assert len(set(together)) == threads * count
        assert {len(uuid) for uuid in together} == {16}
        assert all(some == sorted(some) for some in uuids)
        assert other.send("nobody", b"").uuid not in together
        assert len({other.send("nobody", b"").uuid[:8], together[0][:8]}) == 2  # by chance, of each peer
        niess.terminate(0.3)
        other.terminate(0.3)
