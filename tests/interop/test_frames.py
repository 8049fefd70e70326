"""Frames that the other side does not know disturb nobody."""

import contextlib
import random
from collections.abc import Iterator

from netcomm import Peer, SnakemqConnector, SnakemqListener
from netcomm.message import Stream
from netcomm.protocol import encode, frames
from tests.interop.helpers import (
    CONNECTS,
    LISTENS,
    LOCALHOST,
    PING,
    VERSION,
    WAIT_S,
    RawConnection,
    RawListener,
    SnakemqProcess,
    Watch,
    ident_packet,
    message_packet,
    packet,
)
from tests.unit import helpers

UNKNOWN_TO_NETCOMM = [*range(6, 0x80), *range(0x88, 0x100)]
UNKNOWN_TO_SNAKEMQ = range(6, 0x100)
PAYLOAD_SIZES = (0, 1, 8, 300)

EXTENSION_PACKETS = [
    encode.hello(frames.Hello(1, bytes(16), bytes(range(16)), 1, 2**26, 2**23)),
    encode.begin(frames.Begin(Stream.VOLATILE, 2**63, 5, 7)),
    packet(0x82, bytes(8) + message_packet(bytes(16), b"not for snakeMQ")[5:]),
    encode.ack(frames.Ack(Stream.DURABLE, 7, 3, 3)),
    encode.skip(Stream.VOLATILE, 9),
    encode.refuse(frames.RefuseCode.DUPLICATE_IDENT, "somebody else has it"),
    helpers.batch(0, b"nor this", b"for snakeMQ"),
    encode.GOODBYE,
]


@contextlib.contextmanager
def _netcomm_and_raw(role: str) -> Iterator[tuple[Peer, Watch, RawConnection]]:
    """A netcomm peer, and a raw connection with it that has said nothing yet."""
    with contextlib.ExitStack() as stack:
        if role == LISTENS:
            place = stack.enter_context(RawListener())
            peer: Peer = SnakemqConnector("net", *place.address)
        else:
            peer = listener = SnakemqListener("net", LOCALHOST, 0)
        stack.callback(peer.terminate, 0)
        watch = Watch(peer)
        peer.start()
        if role == LISTENS:
            raw = place.accept()
        else:
            assert isinstance(listener.address, tuple)
            raw = RawConnection.to(listener.address)
        yield peer, watch, stack.enter_context(raw)


@contextlib.contextmanager
def _snakemq_and_raw(role: str) -> Iterator[tuple[SnakemqProcess, RawConnection]]:
    with contextlib.ExitStack() as stack:
        if role == CONNECTS:
            place = stack.enter_context(RawListener())
            snake = stack.enter_context(SnakemqProcess("snake", connect=place.address))
            raw = place.accept()
        else:
            snake = stack.enter_context(SnakemqProcess("snake", listen=[LOCALHOST, 0]))
            raw = RawConnection.to(snake.address)
        yield snake, stack.enter_context(raw)


def test_netcomm_passes_over_unknown_frames_of_a_snakemq_peer(role: str) -> None:
    chance = random.Random(1)
    uuids = []
    with _netcomm_and_raw(role) as (peer, watch, raw):
        raw.write(VERSION + ident_packet("snake"))
        assert raw.read_until(2) == b"net"
        for frame_type in UNKNOWN_TO_NETCOMM:
            unknown = b"".join(packet(frame_type, chance.randbytes(size)) for size in PAYLOAD_SIZES)
            uuids.append(chance.randbytes(16))
            raw.write(unknown + message_packet(uuids[-1], b"%d" % frame_type))
        raw.write(packet(100, bytes(3_000_000)))
        uuids.append(chance.randbytes(16))
        raw.write(message_packet(uuids[-1], b"last"))

        messages = [message for _, message in watch.messages.wait_for_count(len(uuids))]
        assert [message.uuid for message in messages] == uuids
        assert [message.data for message in messages] == [*(b"%d" % number for number in UNKNOWN_TO_NETCOMM), b"last"]
        delivery = peer.send("snake", b"and back")
        assert raw.read_until(3).endswith(b"and back")
        raw.read_until(4)
        raw.write(packet(5))
        assert delivery.wait(WAIT_S)
        assert watch.disconnects.items() == []
        assert watch.errors.items() == []


def test_netcomm_passes_over_unknown_frames_before_the_identification(role: str) -> None:
    with _netcomm_and_raw(role) as (peer, watch, raw):
        unknown = b"".join(packet(frame_type, b"what is this?") for frame_type in UNKNOWN_TO_NETCOMM)
        raw.write(VERSION + unknown + ident_packet("snake") + unknown + message_packet(bytes(16), b"hello"))
        ((ident, message),) = watch.messages.wait_for_count(1)
        assert (ident, message.data) == ("snake", b"hello")
        assert peer.peers == ["snake"]
        assert watch.errors.items() == []


def test_snakemq_is_not_disturbed_by_extension_frames(role: str) -> None:
    chance = random.Random(2)
    extension = b"".join(EXTENSION_PACKETS)
    unknown = b"".join(packet(frame_type, chance.randbytes(40)) for frame_type in UNKNOWN_TO_SNAKEMQ)
    with _snakemq_and_raw(role) as (snake, raw):
        raw.write(VERSION + extension + unknown + ident_packet("raw") + extension + unknown)
        raw.write(message_packet(bytes(16), b"behind them") + PING)
        assert raw.read_until(2) == b"snake"
        assert raw.read_until(5) == b""
        (event,) = snake.wait_for("message")
        assert (event["ident"], event["uuid"], event["size"]) == ("raw", "00" * 16, len(b"behind them"))
        for kind in ("disconnect", "error", "crash"):
            assert snake.of(kind) == []


def test_netcomm_sends_a_snakemq_peer_nothing_of_the_extension_but_hello(role: str) -> None:
    with _netcomm_and_raw(role) as (peer, _, raw):
        raw.write(VERSION + ident_packet("snake"))
        deliveries = [peer.send("snake", b"%d" % number, ttl=60) for number in range(3)]
        raw.write(message_packet(bytes(16), b"one that other peers would acknowledge") + PING)
        found = []
        while not all(delivery.done for delivery in deliveries) or 5 not in found:
            frame_type, _ = raw.read_packet()
            found.append(frame_type)
            if frame_type == 4:
                raw.write(packet(5))
                peer.flush(0.1)
        assert found[:3] == [0, 0x80, 2]
        assert set(found[3:]) == {3, 4, 5}
        assert found.count(3) == len(deliveries)
