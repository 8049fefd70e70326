"""A slow line: what takes long to cross it arrives all the same, and where nothing passes any more, that is noticed."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from netcomm import Limits
from netcomm.connections import Opened
from netcomm.message import Stream
from netcomm.protocol import encode, frames
from netcomm.testing import FaultProxy
from netcomm.transport.link import Link
from tests.integration.helpers import (
    DEADLINE_S,
    SnakemqConnector,
    SnakemqListener,
    dial,
    hello,
    in_thread,
    listen_at,
    packet,
    record,
    wait_until,
)

IDLE_S, WAIT_S = 0.4, 0.6
LIMITS = Limits(keepalive_idle_s=IDLE_S, keepalive_wait_s=WAIT_S, reconnect_min_s=0.02, reconnect_max_s=0.1)
BYTES_PER_S = 200_000
LARGE = bytes(1_000_000)  # the kernel would take it at once


class Scene:
    """A listener "niess", and a connector "bob" whose line to it is slow."""

    def __init__(self) -> None:
        self.niess = SnakemqListener("niess", "tcp:127.0.0.1", 0, limits=LIMITS)
        self.received = record(self.niess.on_recv)
        self.proxy = FaultProxy(self.niess.address, bytes_per_s=BYTES_PER_S)
        host, port = self.proxy.address
        self.bob = SnakemqConnector("bob", f"tcp:{host}", port, limits=LIMITS)
        self.gone = record(self.bob.on_disconnect)

    def __enter__(self) -> "Scene":
        self.niess.start()
        self.proxy.start()
        self.bob.start()
        assert self.bob.wait_connected("niess", DEADLINE_S)
        assert self.niess.wait_connected("bob", DEADLINE_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bob.terminate(0)
        self.niess.terminate(0)
        self.proxy.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as made:
        yield made


def test_a_message_that_crosses_for_several_times_idle_and_wait_arrives_and_so_does_what_is_behind_it(
    scene: Scene,
) -> None:
    started = time.monotonic()
    deliveries = [scene.bob.send("niess", LARGE), scene.bob.send("niess", b"behind")]
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    assert time.monotonic() - started > 4 * (IDLE_S + WAIT_S)
    assert [len(data) for _, data in scene.received.calls] == [len(LARGE), 6]
    for peer, ident in ((scene.bob, "niess"), (scene.niess, "bob")):
        assert peer.stats().peers[ident].reconnects == 0
    assert scene.gone.calls == []


def test_large_messages_cross_in_both_directions_at_once(scene: Scene) -> None:
    deliveries = [scene.bob.send("niess", LARGE), scene.niess.send("bob", LARGE)]
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    assert scene.bob.stats().peers["niess"].reconnects == 0
    assert scene.gone.calls == []


def test_a_line_on_which_nothing_passes_any_more_is_given_up_in_time_though_the_kernel_takes_output(
    scene: Scene,
) -> None:
    delivery = scene.bob.send("niess", LARGE)
    wait_until(lambda: scene.proxy.forwarded_bytes > len(LARGE) // 3, "a part of the message")
    assert scene.gone.calls == []
    scene.proxy.stall()
    stalled_at = time.monotonic()
    while not scene.gone.calls:
        # The kernel has room for it, and says so.
        scene.bob.send("niess", b"later output")
        assert time.monotonic() - stalled_at < 2 * WAIT_S + 1.0
        time.sleep(0.01)
    assert time.monotonic() - stalled_at > WAIT_S / 2  # the other system takes what it takes in steps
    scene.proxy.resume()
    scene.proxy.bytes_per_s = None
    assert delivery.wait(DEADLINE_S)


def test_a_peer_that_reads_a_little_now_and_then_and_says_nothing_is_not_taken_for_dead(tmp_path: Path) -> None:
    """On a Unix socket, where the system counts in another way."""
    place = f"unix:{tmp_path / 'niess'}"
    with (
        SnakemqListener("niess", place, 0, limits=LIMITS) as niess,
        closing(socket.socket(socket.AF_UNIX)) as sock,
    ):
        gone = record(niess.on_disconnect)
        sock.settimeout(DEADLINE_S)
        sock.connect(str(tmp_path / "niess"))
        sock.sendall(encode.version() + hello(max_frame_bytes=1 << 26, window_bytes=1 << 26) + encode.ident("bob"))
        sock.sendall(encode.begin(frames.Begin(Stream.VOLATILE, 7, 0, 0)))
        begin = _read_begin(sock)
        sock.sendall(packet(0x83, begin[:9] + bytes(16)))
        delivery = niess.send("bob", bytes(8_000_000))
        started = time.monotonic()
        while time.monotonic() - started < 4 * (IDLE_S + WAIT_S):
            assert sock.recv(256 * 1024)
            time.sleep(WAIT_S / 3)  # it reads slowly
            assert gone.calls == []
        reading = in_thread(lambda: _read_to_end(sock))
        sock.sendall(packet(0x83, begin[:9] + (1).to_bytes(8) * 2))
        assert delivery.wait(DEADLINE_S)
        assert gone.calls == []
        niess.terminate(0)
        reading()


def _read_begin(sock: socket.socket) -> bytes:
    """The payload of the BEGIN behind the handshake."""
    with sock.makefile("rb", 0) as stream:
        while True:
            head = stream.read(5)
            payload = stream.read(int.from_bytes(head[:4]) - 1)
            if head[4] == frames.FrameType.BEGIN:
                return payload


def _read_to_end(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_link_tells_how_much_of_its_output_the_other_side_has_taken(kind: str, tmp_path: Path) -> None:
    link = Link(Limits())
    try:
        if kind == "tcp":
            address = listen_at(link, "tcp:127.0.0.1")
            assert isinstance(address, tuple)
            sock = dial(address)
        else:
            listen_at(link, f"unix:{tmp_path / 'place'}")
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(DEADLINE_S)
            sock.connect(str(tmp_path / "place"))
        with sock:
            number = _accept(link)
            assert link.progress(number) == (0, 0)
            size = 20_000_000  # more than the kernels hold
            link.write(number, [bytes(size)])
            written, taken = link.progress(number)
            assert written == size
            # A TCP receiver's system takes what it has room for, though its program reads nothing.
            assert taken < size // 2
            _read(sock, size // 2, link, number)
            assert taken < link.progress(number)[1] <= size
            _read(sock, size - size // 2, link, number)
            wait_until(lambda: link.progress(number) == (size, size), "the last acknowledgement")
            assert link.progress(number + 1) == (0, 0)
    finally:
        link.close_now()


def _accept(link: Link) -> int:
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        for event in link.poll(0.1):
            if isinstance(event, Opened):
                return event.connection
    raise AssertionError("nobody has connected")


def _read(sock: socket.socket, size: int, link: Link, number: int) -> None:
    """Read so many bytes, and let the link write on."""
    while size:
        link.flush(number)
        size -= len(sock.recv(size))
