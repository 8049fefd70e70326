"""A snakeMQ peer that sends faster than netcomm's callbacks take it."""

import contextlib
import threading
from collections.abc import Iterator

from netcomm import Limits
from tests.interop.helpers import (
    LOCALHOST,
    PING,
    VERSION,
    WAIT_S,
    Pair,
    RawConnection,
    connected_pair,
    ident_packet,
    packet,
)

KIB = 1024
WINDOW_BYTES = 1024 * KIB
MESSAGE_BYTES = 256 * KIB
MESSAGES = 128
READ_BYTES = 256 * KIB  # by the loop at once
ROUNDS = 100


@contextlib.contextmanager
def _flood(role: str, limits: Limits) -> Iterator[tuple[Pair, RawConnection, threading.Event]]:
    """A pair, with a callback that waits for the event, behind more than the window; and a raw peer beside it."""
    released = threading.Event()
    with connected_pair(role, limits=limits) as pair:
        address = pair.peer.add_listener(LOCALHOST, 0)
        assert isinstance(address, tuple)
        with RawConnection.to(address) as raw:
            raw.write(VERSION + ident_packet("raw"))
            assert raw.read_until(2) == b"net"
            entered = threading.Event()

            @pair.peer.on_recv.add
            def hold_up(ident: str, data: bytes) -> None:
                entered.set()
                assert released.wait(4 * WAIT_S)

            try:
                pair.snake.tell("send", to="net", size=MESSAGE_BYTES, count=MESSAGES)
                assert entered.wait(WAIT_S)
                yield pair, raw, released
            finally:
                released.set()


def _everything_arrives(pair: Pair) -> None:
    queued = pair.snake.wait_for("queued", MESSAGES)
    pair.watch.messages.wait_for_count(MESSAGES)
    assert pair.watch.received(sender="snake") == [(event["uuid"], event["sha256"]) for event in queued]
    pair.assert_undisturbed()


def test_netcomm_stops_reading_a_snakemq_flood_and_goes_on_answering_others(role: str) -> None:
    with _flood(role, Limits(window_bytes=WINDOW_BYTES)) as (pair, raw, released):

        def bytes_of_flood() -> int:
            # A ping and its pong are at least one pass of the loop, which reads whatever it wants to read.
            raw.write(PING)
            raw.read_until(5)
            return pair.peer.stats().peers["snake"].bytes_received

        while bytes_of_flood() <= WINDOW_BYTES:
            pass
        for _ in range(ROUNDS):
            received = bytes_of_flood()
        assert received <= WINDOW_BYTES + MESSAGE_BYTES + 2 * READ_BYTES
        assert pair.peer.stats().peers["snake"].reconnects == 0

        released.set()
        _everything_arrives(pair)


def test_snakemq_sender_that_netcomm_does_not_read_is_not_taken_for_dead(role: str) -> None:
    limits = Limits(window_bytes=WINDOW_BYTES, keepalive_idle_s=0.2, keepalive_wait_s=0.5)
    with _flood(role, limits) as (pair, raw, released):
        for _ in range(8):  # longer than idle and wait together
            raw.read_until(4)
            raw.write(packet(5))
        snake = pair.peer.stats().peers["snake"]
        assert snake.connected
        assert snake.reconnects == 0

        released.set()
        _everything_arrives(pair)
