"""Frames to bytes."""

import math
import struct
from collections.abc import Sequence

from netcomm.message import FLAG_PERSISTENT, Stream
from netcomm.protocol import envelope
from netcomm.protocol.batch import Entry, Run
from netcomm.protocol.frames import (
    ACK_PACKET,
    ACK_TYPE,
    BATCH_HEAD,
    BATCH_OVERHEAD,
    BATCH_TYPE,
    BEGIN,
    DATA_HEAD,
    DATA_OVERHEAD,
    DATA_TYPE,
    FLAG_ENVELOPE,
    HEAD,
    HELLO,
    INFINITE_TTL,
    ITEM_SIZE_SIZE,
    MAX_REFUSE_TEXT_BYTES,
    MESSAGE_HEAD,
    MESSAGE_TYPE,
    NUMBERED_DATA_HEAD,
    PROTOCOL_VERSION,
    REFUSE,
    SIZE_SIZE,
    SKIP,
    TYPE_SIZE,
    VERSION,
    Ack,
    Begin,
    FrameType,
    Hello,
    RefuseCode,
)

# Of a BATCH: its messages are handed over when all of it has come.
_MAX_BATCH_FRAME_BYTES = 64 * 1024
_MAX_BATCH_COUNT = 0xFFFF
# Copying buffers below this size is cheaper than another element for the kernel to walk.
_JOIN_BELOW_BYTES = 16 * 1024


def _pack(frame_type: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(TYPE_SIZE + len(payload), frame_type) + payload


PING = _pack(FrameType.PING)
PONG = _pack(FrameType.PONG)
INCOMPATIBLE = _pack(FrameType.INCOMPATIBLE)
GOODBYE = _pack(FrameType.GOODBYE)


def version(number: int = PROTOCOL_VERSION) -> bytes:
    """A VERSION packet."""
    return _pack(FrameType.VERSION, VERSION.pack(number))


def ident(name: str) -> bytes:
    """An IDENT packet."""
    return _pack(FrameType.IDENT, name.encode())


def hello(frame: Hello) -> bytes:
    """A HELLO packet."""
    return _pack(
        FrameType.HELLO,
        HELLO.pack(
            frame.version,
            frame.peer_id,
            frame.boot_id,
            frame.connector,
            frame.max_frame_bytes,
            frame.window_bytes,
            frame.flags,
        ),
    )


def begin(frame: Begin) -> bytes:
    """A BEGIN packet."""
    return _pack(FrameType.BEGIN, BEGIN.pack(frame.stream, frame.epoch, frame.first_seq, frame.sent_below))


def ack(frame: Ack) -> bytes:
    """An ACK packet."""
    size = ACK_PACKET.size - SIZE_SIZE
    return ACK_PACKET.pack(size, ACK_TYPE, frame.stream, frame.epoch, frame.next_seq, frame.received_seq)


def skip(stream: Stream, next_seq: int) -> bytes:
    """A SKIP packet."""
    return _pack(FrameType.SKIP, SKIP.pack(stream, next_seq))


def refuse(code: RefuseCode, text: str, max_frame_bytes: int = 0xFFFFFFFF) -> bytes:
    """A REFUSE packet; a text that is longer than 1 KiB, or does not fit the frame, is cut."""
    size = min(MAX_REFUSE_TEXT_BYTES, max_frame_bytes - TYPE_SIZE - REFUSE.size)
    cut = text.encode()[:size].decode(errors="ignore")
    return _pack(FrameType.REFUSE, REFUSE.pack(code) + cut.encode())


def _remaining_ttl(expires_at: float | None, now: float) -> int:
    if expires_at is None:
        return INFINITE_TTL
    # Rounded up: a message on its way has not expired yet.
    return min(max(0, math.ceil(expires_at - now)), INFINITE_TTL - 1)


def data(
    stream: Stream, batch: Sequence[Entry], next_seq: int, now: float, max_frame_bytes: int = 0xFFFFFFFF
) -> list[bytes]:
    """The packets of messages of a stream, in buffers: headers and payloads, not joined.

    A SKIP goes before each message whose seq lies above the one that the receiver, told so far up to `next_seq`,
    expects. The messages of a run share frames, up to `max_frame_bytes`. Those that were sent before do not:
    connections that break soon, one after the other, are to bring them through as well.
    """
    buffers: list[bytes] = []
    pack = DATA_HEAD.pack
    overhead = DATA_OVERHEAD - DATA_HEAD.size
    flags = int(stream)
    for entry in batch:
        seq = entry.seq
        if seq > next_seq:
            buffers.append(skip(stream, seq))
        ttl = INFINITE_TTL if entry.expires_at is None else _remaining_ttl(entry.expires_at, now)
        if isinstance(entry, Run):
            max_batch_bytes = 0 if entry.resent else min(max_frame_bytes, _MAX_BATCH_FRAME_BYTES)
            _add_run(buffers, entry, ttl, flags, max_batch_bytes)
        else:
            # The payload is there: only what has ended has none.
            if entry.envelope is None:
                buffers += (pack(entry.size + overhead, DATA_TYPE, seq, entry.uuid, ttl, flags), entry.data)  # type: ignore[arg-type]
            else:
                head = pack(entry.size + overhead, DATA_TYPE, seq, entry.uuid, ttl, flags | FLAG_ENVELOPE)
                buffers += (head + entry.envelope, entry.data)  # type: ignore[arg-type]
        next_seq = seq + entry.count
    return buffers


def _add_run(buffers: list[bytes], run: Run, ttl: int, flags: int, max_batch_bytes: int) -> None:
    """Append the packets of a run: each of as many messages as fit into a BATCH, DATA where that is one."""
    batch = run.batch
    first_envelope, shared = batch.envelope, b""
    if first_envelope is not None:
        flags |= FLAG_ENVELOPE
        shared = first_envelope
    room = max_batch_bytes - BATCH_OVERHEAD - len(shared)
    start = run.start
    while start < run.stop:
        stop = batch.fitting(start, min(run.stop, start + _MAX_BATCH_COUNT), room, ITEM_SIZE_SIZE)
        count = max(1, stop - start)
        payloads: list[bytes] = batch.data[start : start + count]  # type: ignore[assignment]
        seq, number = run.seq + start - run.start, batch.number + start
        if first_envelope is not None:
            shared = envelope.behind(first_envelope, start)
        if count > 1:
            sizes = list(map(len, payloads))
            size = BATCH_OVERHEAD + len(shared) + batch.size(start, stop, ITEM_SIZE_SIZE)
            uuid = batch.uuid_prefix + number.to_bytes(8)
            head = BATCH_HEAD.pack(size, BATCH_TYPE, seq, uuid, ttl, flags, count)
            packet = [head + struct.pack(f">{count}I", *sizes) + shared, *payloads]
            if size < count * _JOIN_BELOW_BYTES:
                buffers.append(b"".join(packet))
            else:
                buffers += packet
        else:
            size = DATA_OVERHEAD + len(shared) + len(payloads[0])
            head = NUMBERED_DATA_HEAD.pack(size, DATA_TYPE, seq, batch.uuid_prefix, number, ttl, flags)
            buffers.append(head + shared)
            buffers += payloads
        start += count


def joined(buffers: list[bytes]) -> list[bytes]:
    """The same bytes in fewer buffers: small ones are joined, large ones are left alone."""
    if not buffers or max(map(len, buffers)) < _JOIN_BELOW_BYTES:
        return [b"".join(buffers)] if buffers else buffers
    result: list[bytes] = []
    small: list[bytes] = []
    for buffer in buffers:
        if len(buffer) < _JOIN_BELOW_BYTES:
            small.append(buffer)
            continue
        if small:
            result.append(b"".join(small))
            small.clear()
        result.append(buffer)
    if small:
        result.append(b"".join(small))
    return result


def messages(stream: Stream, batch: Sequence[Entry], now: float) -> list[bytes]:
    """The packets of a batch for a snakeMQ peer, in buffers: headers and payloads, not joined; without envelopes."""
    buffers: list[bytes] = []
    flags = stream & FLAG_PERSISTENT
    overhead = MESSAGE_HEAD.size - SIZE_SIZE
    for entry in batch:
        ttl = _remaining_ttl(entry.expires_at, now)
        for delivery in entry.deliveries():
            payload = delivery.data
            assert payload is not None
            head = MESSAGE_HEAD.pack(len(payload) + overhead, MESSAGE_TYPE, delivery.uuid, ttl, flags)
            buffers += (head, payload)
    return buffers
