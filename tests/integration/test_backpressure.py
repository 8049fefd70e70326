"""A receiver that can't keep up: memory stays bounded, the connection lives, nothing is lost."""

import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from netcomm import ConfigurationError, Limits, MessageTooLarge, QueueFull, SnakemqConnector
from netcomm.protocol import encode, frames
from tests.integration.helpers import (
    DEADLINE_S,
    PeakMemory,
    Program,
    Recorder,
    SnakemqListener,
    dial,
    in_thread,
    packet,
    record,
    wait_until,
)

WINDOW_BYTES = 256 * 1024
SIZE = 10_000
SHORT = {"keepalive_idle_s": 0.1, "keepalive_wait_s": 0.2}


class Blocked:
    """A callback that blocks until it is released, and keeps what it got."""

    def __init__(self) -> None:
        self.received = Recorder()
        self._go = threading.Event()

    def __call__(self, ident: str, data: bytes) -> None:
        self._go.wait(3 * DEADLINE_S)
        self.received(data)

    def release(self) -> None:
        self._go.set()


class Scene:
    """A listener "niess" whose callback blocks, and a connector "bob" with a small queue."""

    def __init__(self, sender: Limits, receiver: Limits) -> None:
        self.blocked = Blocked()
        self.niess = SnakemqListener("niess", "127.0.0.1", 0, limits=receiver)
        self.niess.on_recv.add(self.blocked)
        self.bob = SnakemqConnector("bob", *self.niess.address, limits=sender)
        self.gone = [record(self.niess.on_disconnect), record(self.bob.on_disconnect)]
        self.number = 0

    def __enter__(self) -> "Scene":
        self.niess.start()
        self.bob.start()
        assert self.bob.wait_connected("niess", DEADLINE_S)
        assert self.niess.wait_connected("bob", DEADLINE_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.blocked.release()
        self.bob.terminate()
        self.niess.terminate()

    def next(self, size: int = SIZE) -> bytes:
        self.number += 1
        return b"%d".ljust(size, b"-") % self.number

    def fill(self) -> list[bytes]:
        """Send until the queue is full."""
        sent = []
        with pytest.raises(QueueFull):  # noqa: PT012
            while True:
                data = self.next()
                self.bob.send("niess", data, timeout=0)
                sent.append(data)
        return sent

    def wait_for_pings(self, count: int) -> None:
        """Wait until so many pings have been answered; a pong is five bytes."""
        stats = self.bob.stats
        before = stats().peers["niess"].bytes_received
        wait_until(lambda: stats().peers["niess"].bytes_received >= before + 5 * count, f"{count} pongs")


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene(
        Limits(max_queued_bytes=1024 * 1024, **SHORT),
        Limits(window_bytes=WINDOW_BYTES, **SHORT),
    ) as made:
        yield made


def test_no_more_than_the_window_is_in_flight(scene: Scene) -> None:
    most = WINDOW_BYTES // frames.packet_size(SIZE)
    scene.fill()
    wait_until(lambda: scene.niess.stats().peers["bob"].received >= most, "a full window")
    scene.wait_for_pings(5)
    assert scene.bob.stats().peers["niess"].in_flight == most
    assert scene.niess.stats().peers["bob"].received == most


def test_a_full_queue_raises_at_once_or_after_the_time_that_was_asked(scene: Scene) -> None:
    scene.fill()
    for timeout, least in ((0, 0), (0.2, 0.2)):
        before = scene.bob.stats().peers["niess"].queued
        for send in (
            lambda timeout=timeout: scene.bob.send("niess", scene.next(), timeout=timeout),
            lambda timeout=timeout: scene.bob.send_many("niess", [scene.next()], timeout=timeout),
        ):
            started = time.monotonic()
            with pytest.raises(QueueFull):
                send()
            assert least <= time.monotonic() - started < least + 3
        assert scene.bob.stats().peers["niess"].queued == before


def test_a_send_that_waits_goes_on_when_there_is_room_and_everything_arrives_in_order(scene: Scene) -> None:
    sent = scene.fill()
    waiting_data = scene.next()
    waiting = in_thread(lambda: scene.bob.send("niess", waiting_data))
    waited = threading.Event()
    many = [scene.next() for _ in range(200)]

    def send_many() -> list:
        waiting()
        waited.set()
        return scene.bob.send_many("niess", many)

    sending_many = in_thread(send_many)
    scene.wait_for_pings(5)
    assert not waited.is_set()
    scene.blocked.release()
    deliveries = sending_many()
    assert deliveries[-1].wait(DEADLINE_S)
    assert scene.blocked.received.wait(1) == [*sent, waiting_data, *many]


def test_the_connection_outlives_a_blocked_callback(scene: Scene) -> None:
    scene.fill()
    # Each ping goes out after an idle time, so this takes longer than both limits together, several times.
    scene.wait_for_pings(10)
    assert [gone.calls for gone in scene.gone] == [[], []]
    scene.blocked.release()
    assert scene.bob.flush(DEADLINE_S)
    assert scene.bob.stats().peers["niess"].reconnects == 0


def test_many_small_messages_are_limited_by_their_number() -> None:
    with Scene(Limits(max_queued_messages=100), Limits()) as scene:
        for _ in range(100):
            scene.bob.send("niess", b"", timeout=0)
        with pytest.raises(QueueFull):
            scene.bob.send("niess", b"", timeout=0)
        with pytest.raises(QueueFull):
            scene.bob.send_many("niess", [b""], timeout=0)


def test_send_many_keeps_what_was_queued_before_the_queue_was_full() -> None:
    with Scene(Limits(max_queued_messages=100), Limits()) as scene:
        items = [b"%d" % number for number in range(150)]
        with pytest.raises(QueueFull):
            scene.bob.send_many("niess", items, timeout=0)
        assert scene.bob.stats().peers["niess"].queued == 100
        scene.blocked.release()
        assert scene.blocked.received.wait(100) == items[:100]
        assert scene.bob.flush(DEADLINE_S)
        assert len(scene.blocked.received) == 100


def test_the_queue_to_a_peer_that_is_not_there_is_bounded_too() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0, limits=Limits(max_queued_messages=10)) as niess:
        deliveries = [niess.send("nobody", b"x", timeout=0) for _ in range(10)]
        with pytest.raises(QueueFull):
            niess.send("nobody", b"x", timeout=0)
        assert niess.send("somebody else", b"x", timeout=0)
        niess.terminate(0)
        assert all(delivery.done for delivery in deliveries)


def test_a_message_that_fits_no_frame_is_too_large() -> None:
    limits = Limits(max_frame_bytes=100_033)
    with Scene(limits, limits) as scene:
        with pytest.raises(MessageTooLarge):
            scene.bob.send("niess", bytes(100_001))
        scene.blocked.release()
        assert scene.bob.send("niess", bytes(100_000)).wait(DEADLINE_S)


def test_a_blocked_receiver_does_not_hold_up_another(scene: Scene) -> None:
    scene.fill()
    with SnakemqConnector("karl", *scene.bob.add_listener("127.0.0.1", 0)) as karl:
        received = record(karl.on_recv)
        assert scene.bob.wait_connected("karl", DEADLINE_S)
        deliveries = scene.bob.send_many("karl", [bytes(SIZE)] * 300)
        assert deliveries[-1].wait(DEADLINE_S)
        assert len(received.wait(300)) == 300
        assert scene.niess.stats().peers["bob"].received * SIZE <= WINDOW_BYTES
        # The other direction of the blocked connection is not blocked either.
        backwards = record(scene.bob.on_recv)
        assert scene.niess.send("bob", b"backwards").wait(DEADLINE_S)
        assert backwards.calls == [("niess", b"backwards")]


def test_a_message_larger_than_the_window_goes_alone_and_its_connection_outlives_a_blocked_callback() -> None:
    limits = Limits(window_bytes=WINDOW_BYTES, **SHORT)
    with Scene(limits, limits) as scene:
        large = scene.next(4 * WINDOW_BYTES)
        small = scene.next()
        deliveries = [scene.bob.send("niess", large), scene.bob.send("niess", small)]
        wait_until(lambda: scene.niess.stats().peers["bob"].received == 1)
        scene.wait_for_pings(5)
        assert scene.bob.stats().peers["niess"].in_flight == 1
        assert [gone.calls for gone in scene.gone] == [[], []]
        scene.blocked.release()
        assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        assert scene.blocked.received.calls == [large, small]


def test_a_snakemq_peer_that_is_not_read_from_is_not_taken_for_dead(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "netcomm")
    blocked = Blocked()
    limits = Limits(window_bytes=WINDOW_BYTES, **SHORT)
    with SnakemqListener("niess", "127.0.0.1", 0, limits=limits) as niess:
        niess.on_recv.add(blocked)
        with dial(niess.address) as sock:
            sock.sendall(encode.version() + encode.ident("legacy"))
            assert niess.wait_connected("legacy", DEADLINE_S)
            messages = [b"%d".ljust(SIZE, b"-") % number for number in range(1000)]
            sending = in_thread(lambda: _send_as_snakemq(sock, messages))
            try:
                wait_until(lambda: niess.stats().peers["legacy"].received * SIZE > WINDOW_BYTES)
                # Several times the limits; nobody announces that nothing happens.
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    assert niess.peers == ["legacy"]
                    time.sleep(0.01)
                # It does not read on, either.
                assert niess.stats().peers["legacy"].received * SIZE < 2 * WINDOW_BYTES + 256 * 1024
            finally:
                blocked.release()
            sending()
            assert blocked.received.wait(1000) == messages


def _send_as_snakemq(sock: socket.socket, messages: list[bytes]) -> None:
    for number, data in enumerate(messages):
        sock.sendall(packet(3, number.to_bytes(16) + b"\xff\xff\xff\xff" + bytes(4) + data))


BLOCKED_RECEIVER = """
import sys, threading, time
from netcomm import SnakemqListener
go = threading.Event()
count = 0
def block(ident, data):
    global count
    go.wait(60)
    count += 1
with SnakemqListener("niess", "127.0.0.1", 0) as niess:
    niess.on_recv.add(block)
    print(niess.address[1])
    window_messages = int(sys.stdin.readline())
    until = time.monotonic() + 20
    while niess.stats().peers["bob"].received < window_messages and time.monotonic() < until:
        time.sleep(0.01)
    print(niess.stats().peers["bob"].received)
    sys.stdin.readline()
    go.set()
    sys.stdin.readline()
    print(count)
"""


def test_the_memory_of_a_receiver_that_blocks_grows_by_its_window_only() -> None:
    window = Limits().window_bytes
    size = 64 * 1024 - frames.packet_size(0)
    with Program(BLOCKED_RECEIVER) as program, SnakemqConnector("bob", "127.0.0.1", int(program.line())) as bob:
        assert bob.wait_connected("niess", DEADLINE_S)
        memory = PeakMemory(program.pid)
        data = bytes(size)
        deliveries = bob.send_many("niess", [data] * 1000)
        program.tell(str(window // (64 * 1024)))
        assert int(program.line()) == bob.stats().peers["niess"].in_flight == window // (64 * 1024)
        assert window // 2 < memory.growth_bytes() < 2 * window
        program.tell("go on")
        assert deliveries[-1].wait(DEADLINE_S)
        program.tell("end")
        assert int(program.line()) == 1000
        assert program.wait() == 0


def test_send_many_takes_no_more_of_an_iterator_than_there_is_room_for() -> None:
    taken = 0

    def items() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(100_000)

    with SnakemqConnector("bob", "unix:/nobody/listens", 0, limits=Limits(max_queued_bytes=1_000_000)) as bob:
        with pytest.raises(QueueFull):
            bob.send_many("niess", items(), timeout=0)
        assert bob.stats().peers["niess"].queued == 9
        bob.terminate(0)
    assert taken < 9 + 5


def test_send_many_queues_what_comes_before_an_item_that_can_not_be_sent() -> None:
    with SnakemqConnector("bob", "unix:/nobody/listens", 0) as bob:
        with pytest.raises(ConfigurationError, match="int"):
            bob.send_many("niess", [b"0", b"1", 2, b"3"])
        assert bob.stats().peers["niess"].queued == 2
        bob.terminate(0)
