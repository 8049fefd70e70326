"""What must hold of `protocol.decode.Reader` for any bytes, however they are cut: it is held beside the reference."""

import struct
import sys
from collections.abc import Sequence
from unittest.mock import patch

from netcomm.errors import RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import Delivery, Stream
from netcomm.protocol import decode, encode, envelope, frames
from netcomm.protocol.session import Identified
from tests.fuzz import reference
from tests.fuzz.reference import Packet
from tests.unit import helpers
from tests.unit.helpers import not_waited_for

# Small ones, so that few bytes are enough to break them.
LIMITS = Limits(max_frame_bytes=160, max_handshake_frame_bytes=64, window_bytes=300, max_idle_peers=4)

# What an empty bytearray takes, and how much larger than its content one may grow.
_EMPTY_BYTES = sys.getsizeof(bytearray()) + 16
_GROWTH = 9 / 8


def cut(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The stream in chunks of these sizes, over and over."""
    chunks = []
    start = turn = 0
    while start < len(stream):
        size = sizes[turn % len(sizes)]
        chunks.append(stream[start : start + size])
        start += size
        turn += 1
    return chunks


# -- Frames as packets --------------------------------------------------------------------------------------------


def packets_of(parsed: Sequence[object]) -> list[Packet]:
    """What was read, field by field as it must have been on the wire; REFUSE and HELLO as far as they are read."""
    found: list[Packet] = []
    for frame in parsed:
        match frame:
            case frames.Data(stream):
                for item in frame.items:
                    assert stream == item[3] & reference.STREAM_BITS, "a message in the wrong stream"
                    assert bool(item[3] & (reference.ENVELOPE | reference.ENVELOPES)) == (item[5] is not None)
                    body = struct.pack(">Q16sII", *item[:4]) + reference.in_words(fields_of(item[5])) + item[4]
                    found.append((reference.DATA, body))
                sizes = [len(envelope.encode(item[5])) for item in frame.items if item[5] is not None]
                assert sum(sizes) <= frame.envelope_bytes
                assert frame.envelope_bytes == frames.envelope_bytes(frame.runs, 0, len(frame.payloads))
            case frames.Messages(items):
                found += [(reference.MESSAGE, struct.pack(">16sII", *item[:3]) + item[3]) for item in items]
            case frames.Version(number):
                found.append((reference.VERSION, struct.pack(">I", number)))
            case frames.Incompatible():
                found.append((reference.INCOMPATIBLE, b""))
            case frames.Ident(name) | Identified(name):
                found.append((reference.IDENT, name.encode()))
            case frames.Ping():
                found.append((reference.PING, b""))
            case frames.Pong():
                found.append((reference.PONG, b""))
            case frames.Hello(version, peer_id, boot_id, connector, max_frame, window, flags):
                fields = struct.pack(">H16s16sIIIB", version, peer_id, boot_id, connector, max_frame, window, flags)
                found.append((reference.HELLO, fields))
            case frames.Begin(stream, epoch, first, last) | frames.Ack(stream, epoch, first, last):
                kind = reference.BEGIN if isinstance(frame, frames.Begin) else reference.ACK
                found.append((kind, struct.pack(">BQQQ", stream, epoch, first, last)))
            case frames.Skip(stream, next_seq):
                found.append((reference.SKIP, struct.pack(">BQ", stream, next_seq)))
            case frames.Refuse(code, text):
                assert text.isprintable()
                found.append((reference.REFUSE, struct.pack(">H", code)))
            case frames.Goodbye():
                found.append((reference.GOODBYE, b""))
            case _:
                raise AssertionError(f"a frame of an unknown kind: {frame!r}")
    return found


def fields_of(read: envelope.Envelope | None) -> reference.Envelope | None:
    """An envelope as the reference has it: only what is there."""
    if read is None:
        return None
    fields = {
        "subject": read.subject,
        "exchange": read.exchange,
        "id": read.id,
        "ref": read.ref,
        "consumer": read.consumer,
        "ms left": read.ms_left,
        "codec": read.codec,
        "priority": read.priority,
        "attempt": read.attempt,
        "headers": sorted(read.headers.items()) or None,
    }
    return {"kind": read.kind, **{name: value for name, value in fields.items() if value is not None}}


def as_read(packets: Sequence[Packet]) -> list[Packet]:
    """Packets of the reference without what netcomm need not keep of them."""
    kept = {
        reference.INCOMPATIBLE: 0,
        reference.PING: 0,
        reference.PONG: 0,
        reference.HELLO: 47,
        reference.REFUSE: 2,
        reference.GOODBYE: 0,
    }
    return [(kind, payload[: kept[kind]] if kind in kept else payload) for kind, payload in packets]


# -- Reader -------------------------------------------------------------------------------------------------------


def read(chunks: Sequence[bytes], limits: Limits = LIMITS) -> tuple[list[frames.Frame], str | None]:
    """The frames, and the error, that come out of a new reader; it never holds more than one packet."""
    reader = helpers.Reader(limits)
    parsed: list[frames.Frame] = []
    most = 4 + max(limits.max_frame_bytes, limits.max_handshake_frame_bytes)
    for chunk in chunks:
        more, error = reader.feed(chunk)
        parsed += more
        if error is not None:
            assert type(error) is RemoteProtocolError
            return parsed, str(error)
        held = sys.getsizeof(reader._begun)
        assert held <= _EMPTY_BYTES + _GROWTH * most, f"a reader holds {held} bytes"
    return parsed, None


def check_reader(chunks: Sequence[bytes], limits: Limits = LIMITS) -> None:
    """A reader reads what the reference reads, in these chunks as well as in one; and its frames can be written."""
    stream = b"".join(chunks)
    parsed, error = read([stream], limits)
    packets = packets_of(parsed)
    expected = reference.read(stream, limits.max_handshake_frame_bytes, limits.max_frame_bytes)
    assert packets == as_read(expected.packets)
    assert (error is not None) == expected.broken, error

    split_frames, split_error = read(chunks, limits)
    assert packets_of(split_frames) == packets, "another split, other frames"
    assert split_error == error, "another split, another error"
    with patch.multiple(decode, _LARGE_BYTES=48, _LARGE_STEP_BYTES=4):  # so that few bytes are a large message
        large_frames, large_error = read(chunks, limits)
    assert packets_of(large_frames) == packets, "large messages are read otherwise"
    assert large_error == error, "with large messages, another error"
    for frame in parsed:
        _check_writing(frame)


def _check_writing(frame: frames.Frame) -> None:
    written = write(frame)
    back, error = helpers.Reader(Limits(max_handshake_frame_bytes=1 << 20)).feed(written)
    assert error is None, error
    match frame:
        case frames.Refuse(code, text):
            (again,) = back
            assert isinstance(again, frames.Refuse)
            assert again.code == code
            assert text.startswith(again.text)  # a replacement may be longer than what it replaces
        case frames.Data():
            (again,) = back
            assert isinstance(again, frames.Data)
            envelope_flags = [0 if item[5] is None else frames.FLAG_ENVELOPE for item in frame.items]
            assert again.items == [
                (*item[:3], item[3] & reference.STREAM_BITS | flag, *item[4:])
                for item, flag in zip(frame.items, envelope_flags, strict=True)
            ]
        case frames.Messages(items):
            assert back == [frames.Messages([(*item[:2], item[2] & 1, item[3]) for item in items])]
        case _:
            assert back == [frame]


def write(frame: frames.Frame) -> bytes:
    """The frame as netcomm writes it."""
    match frame:
        case frames.Version(number):
            return encode.version(number)
        case frames.Incompatible():
            return encode.INCOMPATIBLE
        case frames.Ident(name):
            return encode.ident(name)
        case frames.Messages(items):
            return b"".join(
                b"".join(encode.messages(Stream(flags & 1), [_delivery((0, uuid, ttl, flags & 1, data, None))], 0.0))
                for uuid, ttl, flags, data in items
            )
        case frames.Ping():
            return encode.PING
        case frames.Pong():
            return encode.PONG
        case frames.Hello():
            return encode.hello(frame)
        case frames.Begin():
            return encode.begin(frame)
        case frames.Data():
            # One by one: a SKIP would come between those that do not follow each other.
            return b"".join(
                b"".join(encode.data(frame.stream, [_delivery(item)], item[0], 0.0)) for item in frame.items
            )
        case frames.Ack():
            return encode.ack(frame)
        case frames.Skip(stream, next_seq):
            return encode.skip(stream, next_seq)
        case frames.Refuse(code, text):
            return encode.refuse(code, text)  # type: ignore[arg-type] # unknown codes are read, so they can be written
        case frames.Goodbye():
            return encode.GOODBYE


def _delivery(item: frames.Item) -> Delivery:
    seq, uuid, ttl, flags, data, its_envelope = item
    raw = None if its_envelope is None else envelope.encode(its_envelope)
    size = frames.packet_size(len(data) + len(raw or b""))
    expires_at = None if ttl == frames.INFINITE_TTL else float(ttl)
    stream = Stream(flags & frames.STREAM_FLAGS)
    delivery = Delivery("x", uuid, data, size, expires_at, stream, not_waited_for, raw)
    delivery.seq = seq
    return delivery
