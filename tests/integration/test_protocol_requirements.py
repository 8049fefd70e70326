"""Requirements of docs/protocol.md that only whole peers on real sockets show: how they close, what they are named."""

import random
import socket
from pathlib import Path

import pytest

from netcomm import DeliveryState
from netcomm.message import Stream
from netcomm.protocol import encode, frames
from tests.integration.helpers import (
    DEADLINE_S,
    SnakemqListener,
    dial,
    hello,
    netcomm_handshake,
    packet,
    record,
    wait_until,
)

BEGIN = encode.begin(frames.Begin(Stream.VOLATILE, 7, 0, 0))
# Several times what is read at once, and far more than the buffers of a connection hold that nobody reads from.
FLOOD = encode.PING * 400_000
BREACHES = {
    "another version": (encode.version(2), frames.FrameType.INCOMPATIBLE),
    "the own ident": (encode.version() + hello() + encode.ident("niess"), frames.FrameType.REFUSE),
    "an empty packet": (netcomm_handshake() + BEGIN + bytes(4), frames.FrameType.REFUSE),
}


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """The (type, payload) pairs of bytes; the last may be incomplete."""
    found = []
    while len(data) > 4:
        size = int.from_bytes(data[:4])
        found.append((data[4], data[5 : 4 + size]))
        data = data[4 + size :]
    return found


def read_frames(sock: socket.socket) -> list[tuple[int, bytes]]:
    """The (type, payload) pairs up to the end of what the other side sends; to be reset is an error."""
    chunks = []
    while chunk := sock.recv(1 << 20):
        chunks.append(chunk)
    return frames_of(b"".join(chunks))


@pytest.mark.requirement("P-57", "positive")
@pytest.mark.requirement("P-57", "negative")
@pytest.mark.parametrize("breach", BREACHES)
def test_a_refusal_can_be_read_by_who_goes_on_talking_and_what_that_says_is_not_acted_on(breach: str) -> None:
    said, last = BREACHES[breach]
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        with dial(niess.address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            sock.sendall(said + packet(0x82, bytes(32) + b"x") + FLOOD)
            found = read_frames(sock)
            sock.sendall(FLOOD)  # a connection that is closed already would be reset
        assert found[-1][0] == last
        assert frames.FrameType.PONG not in [kind for kind, _ in found]
        assert received.calls == []


@pytest.mark.requirement("P-57", "positive")
def test_a_refusal_comes_behind_what_was_still_to_be_sent() -> None:
    large = bytes(8 * 1024 * 1024)  # more than the kernel's buffers hold
    with SnakemqListener("niess", "127.0.0.1", 0) as niess, dial(niess.address) as sock:
        sock.sendall(
            encode.version() + hello(max_frame_bytes=1 << 26, window_bytes=1 << 26) + encode.ident("bob") + BEGIN
        )
        delivery = niess.send("bob", large)
        greeting = b""
        while not (begin := [payload for kind, payload in frames_of(greeting) if kind == frames.FrameType.BEGIN]):
            chunk = sock.recv(65536)
            assert chunk
            greeting += chunk
        sock.sendall(packet(0x83, begin[0][:9] + bytes(16)))
        wait_until(lambda: delivery.state is DeliveryState.SENT, "the sending")
        sock.sendall(bytes(4))
        *_, data, refusal = read_frames(sock)
        niess.terminate(0)
    assert data == (frames.FrameType.DATA, bytes(8) + delivery.uuid + b"\xff" * 4 + bytes(4) + large)
    assert refusal[0] == frames.FrameType.REFUSE


@pytest.mark.requirement("P-57", "negative")
@pytest.mark.parametrize("breach", BREACHES)
def test_who_is_refused_and_does_not_close_is_closed(breach: str) -> None:
    said, last = BREACHES[breach]

    def closed() -> bool:
        try:
            sock.sendall(b"x")
        except ConnectionError:
            return True
        return False

    with SnakemqListener("niess", "127.0.0.1", 0) as niess, dial(niess.address) as sock:
        sock.sendall(said)
        assert read_frames(sock)[-1][0] == last
        wait_until(closed, "the end of the connection", DEADLINE_S)


def greeting(storage: str | None = None) -> tuple[bytes, bytes, bytes]:
    """The peer id, the boot id and the epoch that a new peer names."""
    random.seed(1)
    with SnakemqListener("niess", "127.0.0.1", 0, storage=storage) as niess, dial(niess.address) as sock:
        sock.sendall(netcomm_handshake("bob") + BEGIN)
        sock.shutdown(socket.SHUT_WR)
        found = dict(read_frames(sock))
    their_hello, begin = found[frames.FrameType.HELLO], found[frames.FrameType.BEGIN]
    return their_hello[2:18], their_hello[18:34], begin[1:9]


@pytest.mark.requirement("P-10", "positive")
@pytest.mark.requirement("P-10", "negative")
@pytest.mark.requirement("P-25", "negative")
def test_no_peer_has_an_id_or_a_volatile_epoch_of_another_though_chance_repeats_itself() -> None:
    greetings = [greeting() for _ in range(10)]
    ids = [name for *names, _ in greetings for name in names]
    assert len(set(ids)) == 20
    assert len({epoch for *_, epoch in greetings}) == 10


@pytest.mark.requirement("P-10", "positive")
@pytest.mark.requirement("P-10", "negative")
@pytest.mark.requirement("P-25", "negative")
def test_a_storage_keeps_its_peer_id_and_has_one_of_its_own(tmp_path: Path) -> None:
    first, again, other = (greeting(f"sqlite:///{tmp_path / name}") for name in ("first", "first", "other"))
    assert first[0] == again[0] != other[0]
    assert len({first[1], again[1], other[1]}) == 3
    assert len({first[2], again[2], other[2]}) == 3
