"""Frames to bytes, and bytes to frames: every number of the protocol stands here, and nowhere else.

A packet is `[u32 size][u8 frame type][payload]`, big-endian; the size counts the type and the payload. Types 0
to 5 are snakeMQ's (the docstring of its `messaging` module documents them), 0x80 to 0x86 are netcomm's, which a
snakeMQ peer passes over as unknown. docs/protocol.md states all of it in words.

`Reader` checks what can be checked without knowing the connection's state: sizes, lengths, encodings. Whether a
frame may come now is for `netcomm.protocol.session` to say.
"""

import enum
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

from netcomm.errors import RemoteProtocolError
from netcomm.message import DURABLE, FLAG_PERSISTENT, MAX_IDENT_BYTES, VOLATILE, Delivery, Limits, Stream
from netcomm.protocol.batch import Run

PROTOCOL_VERSION = 1
EXTENSION_VERSION = 1
INFINITE_TTL = 0xFFFFFFFF


class FrameType(enum.IntEnum):
    """The byte behind the size."""

    VERSION = 0
    INCOMPATIBLE = 1
    IDENT = 2
    MESSAGE = 3
    PING = 4
    PONG = 5
    HELLO = 0x80
    BEGIN = 0x81
    DATA = 0x82
    ACK = 0x83
    SKIP = 0x84
    REFUSE = 0x85
    BATCH = 0x86


# By themselves, since each look through the Enum takes time, see `netcomm.message`.
_DATA_TYPE, _BATCH_TYPE, _ACK_TYPE = int(FrameType.DATA), int(FrameType.BATCH), int(FrameType.ACK)
_MESSAGE_TYPE, _IDENT_TYPE = int(FrameType.MESSAGE), int(FrameType.IDENT)


class RefuseCode(enum.IntEnum):
    """Why a connection is about to be closed."""

    DUPLICATE_IDENT = 1
    INCOMPATIBLE = 2
    PROTOCOL_ERROR = 3


_HEAD = struct.Struct(">IB")
_VERSION = struct.Struct(">I")
_MESSAGE = struct.Struct(">16sII")
_HELLO = struct.Struct(">H16s16sIII")
_BEGIN = struct.Struct(">BQQQ")
_ACK = struct.Struct(">BQQQ")
_ACK_PACKET = struct.Struct(">IBBQQQ")
_SKIP = struct.Struct(">BQ")
_REFUSE = struct.Struct(">H")
_DATA_HEAD = struct.Struct(">IBQ16sII")
_NUMBERED_DATA_HEAD = struct.Struct(">IBQ8sQII")  # the same, for a uuid in two halves
_BATCH_HEAD = struct.Struct(">IBQ16sIIH")
_MESSAGE_HEAD = struct.Struct(">IB16sII")

_TYPE_SIZE = 1
_SIZE_SIZE = _HEAD.size - _TYPE_SIZE
_DATA_OVERHEAD = _DATA_HEAD.size - _SIZE_SIZE
OVERHEAD_BYTES = _DATA_HEAD.size
"""What a message takes on the wire beside its data, as DATA."""
_BATCH_OVERHEAD = _BATCH_HEAD.size - _SIZE_SIZE
_ITEM_SIZE_SIZE = 4
# Of a BATCH: its messages are handed over when all of it has come.
_MAX_BATCH_FRAME_BYTES = 64 * 1024
_MAX_BATCH_COUNT = 0xFFFF
_MAX_REFUSE_TEXT_BYTES = 1024
# Copying buffers below this size is cheaper than another element for the kernel to walk.
_JOIN_BELOW_BYTES = 16 * 1024
# Larger messages are received into buffers of their own. Below, to copy once more is cheaper than to read once more.
_LARGE_BYTES = 128 * 1024
# So much memory is reserved for each byte of a large message that has arrived; and no less than so much in all.
_LARGE_GROWTH = 8
_LARGE_STEP_BYTES = 64 * 1024
# Behind a large message, so much is read for a start: if it is another one, the rest of it goes to its final place.
_START_BYTES = 2 * 1024


@dataclass(slots=True)
class Version:
    """The protocol that the sender speaks."""

    number: int


@dataclass(slots=True)
class Incompatible:
    """The receiver's protocol version is not the sender's."""


@dataclass(slots=True)
class Ident:
    """The sender's name."""

    ident: str


@dataclass(slots=True)
class Messages:
    """Consecutive snakeMQ messages; each item is `(uuid, ttl, flags, data)`."""

    items: list[tuple[bytes, int, int, bytes]]


@dataclass(slots=True)
class Ping:
    """Asks for a Pong."""


@dataclass(slots=True)
class Pong:
    """Answers a Ping."""


@dataclass(slots=True)
class Hello:
    """What makes the sender a netcomm peer.

    version: of the extension.
    peer_id: 16 bytes, kept as long as the sender's storage, or its process where it has none.
    boot_id: 16 bytes, new in every process.
    connector: which of the sender's connectors made the connection, counted from 1; 0 where it accepted it.
    max_frame_bytes: the largest frame that the sender of this HELLO accepts.
    window_bytes: the most that it will hold of messages that are not acknowledged.
    """

    version: int
    peer_id: bytes
    boot_id: bytes
    connector: int
    max_frame_bytes: int
    window_bytes: int


@dataclass(slots=True)
class Begin:
    """A stream begins on this connection, at `first_seq`.

    Messages below `sent_below` may have been on the wire before, on an earlier connection.
    """

    stream: Stream
    epoch: int
    first_seq: int
    sent_below: int


MessageRun: TypeAlias = tuple[int, int, bytes, int, int]
"""`(seq, count, uuid, ttl, flags)`: so many messages, whose seqs and uuids count on from those of the first."""
Item: TypeAlias = tuple[int, bytes, int, int, bytes]
"""One message: `(seq, uuid, ttl, flags, data)`."""


@dataclass(slots=True)
class Data:
    """Consecutive DATA and BATCH frames of one stream.

    runs: what is known of the messages beside their payloads.
    payloads: of all of them.
    """

    stream: Stream
    runs: list[MessageRun]
    payloads: list[bytes]

    @property
    def items(self) -> list[Item]:
        """Each message by itself."""
        return items(self.runs, self.payloads)


@dataclass(slots=True)
class Ack:
    """Every message of the stream below `next_seq` has been handed over, every one below `received_seq` has arrived."""

    stream: Stream
    epoch: int
    next_seq: int
    received_seq: int


@dataclass(slots=True)
class Skip:
    """No message of the stream below `next_seq` will come any more."""

    stream: Stream
    next_seq: int


@dataclass(slots=True)
class Refuse:
    """The sender is about to close the connection, and says why."""

    code: int
    text: str


Frame: TypeAlias = Version | Incompatible | Ident | Messages | Ping | Pong | Hello | Begin | Data | Ack | Skip | Refuse


def _pack(frame_type: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(_TYPE_SIZE + len(payload), frame_type) + payload


PING = _pack(FrameType.PING)
PONG = _pack(FrameType.PONG)
INCOMPATIBLE = _pack(FrameType.INCOMPATIBLE)


def version(number: int = PROTOCOL_VERSION) -> bytes:
    """A VERSION packet."""
    return _pack(FrameType.VERSION, _VERSION.pack(number))


def ident(name: str) -> bytes:
    """An IDENT packet."""
    return _pack(FrameType.IDENT, name.encode())


def hello(frame: Hello) -> bytes:
    """A HELLO packet."""
    return _pack(
        FrameType.HELLO,
        _HELLO.pack(
            frame.version,
            frame.peer_id,
            frame.boot_id,
            frame.connector,
            frame.max_frame_bytes,
            frame.window_bytes,
        ),
    )


def begin(frame: Begin) -> bytes:
    """A BEGIN packet."""
    return _pack(FrameType.BEGIN, _BEGIN.pack(frame.stream, frame.epoch, frame.first_seq, frame.sent_below))


def ack(frame: Ack) -> bytes:
    """An ACK packet."""
    size = _ACK_PACKET.size - _SIZE_SIZE
    return _ACK_PACKET.pack(size, _ACK_TYPE, frame.stream, frame.epoch, frame.next_seq, frame.received_seq)


def skip(stream: Stream, next_seq: int) -> bytes:
    """A SKIP packet."""
    return _pack(FrameType.SKIP, _SKIP.pack(stream, next_seq))


def refuse(code: RefuseCode, text: str, max_frame_bytes: int = 0xFFFFFFFF) -> bytes:
    """A REFUSE packet; a text that is longer than 1 KiB, or does not fit the frame, is cut."""
    size = min(_MAX_REFUSE_TEXT_BYTES, max_frame_bytes - _TYPE_SIZE - _REFUSE.size)
    cut = text.encode()[:size].decode(errors="ignore")
    return _pack(FrameType.REFUSE, _REFUSE.pack(code) + cut.encode())


def packet_size(data_size: int) -> int:
    """The bytes that a message of `data_size` bytes takes on the wire, as DATA."""
    return OVERHEAD_BYTES + data_size


def max_packet_size(max_frame_bytes: int) -> int:
    """The bytes on the wire of the largest packet that a frame limit lets through."""
    return _SIZE_SIZE + max_frame_bytes


def max_data_size(max_frame_bytes: int) -> int:
    """The largest message, in bytes, that a frame limit lets through."""
    return max_frame_bytes - _DATA_OVERHEAD


def uuid_behind(uuid: bytes, index: int) -> bytes:
    """The uuid of a message that comes so many places behind one in its run: the last 8 bytes count on."""
    return uuid[:8] + ((int.from_bytes(uuid[8:]) + index) & 0xFFFFFFFFFFFFFFFF).to_bytes(8)


def items(runs: Sequence[MessageRun], payloads: Sequence[bytes]) -> list[Item]:
    """Each of these messages by itself."""
    left = iter(payloads)
    return [
        (seq + index, uuid_behind(uuid, index) if index else uuid, ttl, flags, next(left))
        for seq, count, uuid, ttl, flags in runs
        for index in range(count)
    ]


def _remaining_ttl(expires_at: float | None, now: float) -> int:
    if expires_at is None:
        return INFINITE_TTL
    # Rounded up: a message on its way has not expired yet.
    return min(max(0, math.ceil(expires_at - now)), INFINITE_TTL - 1)


def data(batch: Sequence[Delivery | Run], next_seq: int, now: float, max_frame_bytes: int = 0xFFFFFFFF) -> list[bytes]:
    """The packets of messages of one stream, in buffers: headers and payloads, not joined.

    A SKIP goes before each message whose seq lies above the one that the receiver, told so far up to `next_seq`,
    expects. The messages of a run share frames, up to `max_frame_bytes`. Those that were sent before do not:
    connections that break soon, one after the other, are to bring them through as well.
    """
    buffers: list[bytes] = []
    pack = _DATA_HEAD.pack
    overhead = _DATA_OVERHEAD - _DATA_HEAD.size
    flags = FLAG_PERSISTENT if batch[0].persistent else 0
    for entry in batch:
        seq = entry.seq
        if seq > next_seq:
            buffers.append(skip(DURABLE if flags else VOLATILE, seq))
        ttl = INFINITE_TTL if entry.expires_at is None else _remaining_ttl(entry.expires_at, now)
        if isinstance(entry, Run):
            max_batch_bytes = 0 if entry.resent else min(max_frame_bytes, _MAX_BATCH_FRAME_BYTES)
            _add_run(buffers, entry, ttl, flags, max_batch_bytes)
        else:
            # The payload is there: only what has ended has none.
            buffers += (pack(entry.size + overhead, _DATA_TYPE, seq, entry.uuid, ttl, flags), entry.data)  # type: ignore[arg-type]
        next_seq = seq + entry.count
    return buffers


def _add_run(buffers: list[bytes], run: Run, ttl: int, flags: int, max_batch_bytes: int) -> None:
    """Append the packets of a run: each of as many messages as fit into a BATCH, DATA where that is one."""
    room = max_batch_bytes - _BATCH_OVERHEAD
    batch = run.batch
    start = run.start
    while start < run.stop:
        stop = batch.fitting(start, min(run.stop, start + _MAX_BATCH_COUNT), room, _ITEM_SIZE_SIZE)
        count = max(1, stop - start)
        payloads: list[bytes] = batch.data[start : start + count]  # type: ignore[assignment]
        seq, number = run.seq + start - run.start, batch.number + start
        if count > 1:
            sizes = list(map(len, payloads))
            size = _BATCH_OVERHEAD + batch.size(start, stop, _ITEM_SIZE_SIZE)
            uuid = batch.uuid_prefix + number.to_bytes(8)
            head = _BATCH_HEAD.pack(size, _BATCH_TYPE, seq, uuid, ttl, flags, count)
            packet = [head + struct.pack(f">{count}I", *sizes), *payloads]
            if size < count * _JOIN_BELOW_BYTES:
                buffers.append(b"".join(packet))
            else:
                buffers += packet
        else:
            size = _DATA_OVERHEAD + len(payloads[0])
            buffers.append(_NUMBERED_DATA_HEAD.pack(size, _DATA_TYPE, seq, batch.uuid_prefix, number, ttl, flags))
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


def messages(batch: Sequence[Delivery | Run], now: float) -> list[bytes]:
    """The packets of a batch for a snakeMQ peer, in buffers: headers and payloads, not joined."""
    buffers: list[bytes] = []
    overhead = _MESSAGE_HEAD.size - _SIZE_SIZE
    for entry in batch:
        ttl = _remaining_ttl(entry.expires_at, now)
        flags = FLAG_PERSISTENT if entry.persistent else 0
        for delivery in entry.deliveries():
            payload = delivery.data
            assert payload is not None
            head = _MESSAGE_HEAD.pack(len(payload) + overhead, _MESSAGE_TYPE, delivery.uuid, ttl, flags)
            buffers += (head, payload)
    return buffers


class _LargeData:
    """A DATA packet that arrives in many pieces: each goes to its final place."""

    __slots__ = ("_arrived", "_head", "_least", "_payload", "_view", "size")

    def __init__(self, start: memoryview, packet_size: int, least: int) -> None:
        """Begin a packet.

        start: what has arrived of it, the head at least.
        least: how much memory may be reserved at once.
        """
        self._head = bytes(start[: _DATA_HEAD.size])
        self.size = packet_size - _DATA_HEAD.size
        self._least = least
        self._arrived = 0
        self._payload = BytesIO()  # its value is taken without being copied
        self._view: memoryview | None = None
        piece = start[_DATA_HEAD.size :]
        self._reserve(len(piece))
        self.fill(piece)

    def fill(self, piece: memoryview) -> int:
        """Take the next bytes; returns how many of them belonged to the packet."""
        self._release()
        self._payload.seek(self._arrived)
        count = self._payload.write(piece[: self.size - self._arrived])
        self._arrived += count
        return count

    def buffer(self) -> memoryview:
        self._release()
        self._reserve(self._arrived)
        self._view = self._payload.getbuffer()[self._arrived :]
        return self._view

    def _reserve(self, arrived: int) -> None:
        # In proportion to what has arrived, and not to what was announced.
        end = min(self.size, max(arrived * _LARGE_GROWTH, self._least))
        if self._payload.getbuffer().nbytes < end:
            self._payload.seek(end - 1)
            self._payload.write(b"\0")

    def filled(self, count: int) -> None:
        """So many bytes have been received into `buffer`."""
        self._arrived += count
        self._release()

    def item(self) -> Item | None:
        """The message, once it is complete."""
        if self._arrived < self.size:
            return None
        _, _, seq, uuid, ttl, flags = _DATA_HEAD.unpack(self._head)
        return seq, uuid, ttl, flags, self._payload.getvalue()

    def _release(self) -> None:
        if self._view is not None:
            self._view.release()  # what is being looked at can't grow
            self._view = None


class Reader:
    """Cuts the bytes of one connection into frames.

    A size is believed only as far as the limit, and memory grows with what has arrived: what was announced
    is reserved at once only as far as a payload of that size has arrived before. The small limit holds until
    an IDENT has been read, the large one after it.
    """

    __slots__ = ("_buffer", "_large", "_largest", "_limit", "_max_frame_bytes", "_needed", "_start")

    def __init__(self, limits: Limits) -> None:
        self._buffer = bytearray()  # the beginning of a packet whose end has not arrived
        self._needed = _SIZE_SIZE  # bytes without which the buffer need not be looked at
        self._large: _LargeData | None = None  # in place of the buffer
        self._largest = 0  # the size of the largest payload that has arrived so
        self._start: memoryview | None = None  # for what comes behind a large packet, until it is there
        self._limit = limits.max_handshake_frame_bytes
        self._max_frame_bytes = limits.max_frame_bytes

    def feed(self, chunk: bytes | memoryview) -> tuple[list[Frame], RemoteProtocolError | None]:
        """Read the next bytes, as they came from the socket; they are not needed any more when it returns.

        Returns the frames that are complete, and what was wrong with the bytes behind them, if anything
        was; after that, the reader is not to be used again.
        """
        frames: list[Frame] = []
        view = memoryview(chunk)
        self._start = None
        try:
            start = self._complete(view, frames) if self._buffer or self._large else 0
            end = self._parse(view, start, frames) if start < len(view) else start
        except RemoteProtocolError as error:
            return frames, error
        if end < len(view):
            self._keep(view[end:])
        return frames, None

    def buffer(self) -> memoryview | None:
        """Where the next bytes are best received; None for no matter where.

        Where it is used, `filled` has to be called next, in place of `feed`.
        """
        return self._start if self._large is None else self._large.buffer()

    def filled(self, count: int) -> tuple[list[Frame], RemoteProtocolError | None]:
        """So many bytes have been received into `buffer`; returns what `feed` does."""
        if self._large is None:
            assert self._start is not None
            return self.feed(self._start[:count])
        self._large.filled(count)
        frames: list[Frame] = []
        self._finish_large(frames)
        return frames, None

    def _complete(self, chunk: memoryview, frames: list[Frame]) -> int:
        """Bring the packet that has begun to its end; returns how much of the chunk that took."""
        start = 0
        if self._large is not None:
            start = self._large.fill(chunk)
            self._finish_large(frames)
        buffer = self._buffer
        while buffer:
            stop = start + self._needed - len(buffer)
            buffer += chunk[start:stop]
            start = min(stop, len(chunk))
            if len(buffer) < self._needed:
                break
            if self._parse(memoryview(bytes(buffer)), 0, frames):
                buffer.clear()
        return start

    def _finish_large(self, frames: list[Frame]) -> None:
        assert self._large is not None
        item = self._large.item()
        if item is not None:
            seq, uuid, ttl, flags, payload = item
            data = _last_data(frames, flags)
            data.runs.append((seq, 1, uuid, ttl, flags))
            data.payloads.append(payload)
            self._largest = max(self._largest, self._large.size)
            self._large = None
            self._start = memoryview(bytearray(_START_BYTES))

    def _keep(self, rest: memoryview) -> None:
        """Keep the beginning of a packet."""
        if self._needed >= _LARGE_BYTES and len(rest) >= _DATA_HEAD.size and rest[_SIZE_SIZE] == _DATA_TYPE:
            self._large = _LargeData(rest, self._needed, max(self._largest, _LARGE_STEP_BYTES))
        else:
            self._buffer += rest

    def _parse(self, chunk: memoryview, start: int, frames: list[Frame]) -> int:
        """Append the complete frames of `chunk` from `start` on; returns where the first incomplete one starts."""
        available = len(chunk)
        persistent = -1  # of the messages that are being appended; this is none
        append_run: Callable[[MessageRun], None]
        append_payload: Callable[[bytes], None]
        unpack_data = _DATA_HEAD.unpack_from
        data_head_size, size_size = _DATA_HEAD.size, _SIZE_SIZE
        data_type, persistent_flag, data_overhead = _DATA_TYPE, FLAG_PERSISTENT, _DATA_OVERHEAD
        limit = self._limit
        while True:
            if available - start >= data_head_size:
                # As if it were DATA, which it mostly is.
                size, frame_type, seq, uuid, ttl, flags = unpack_data(chunk, start)
            elif available - start >= _HEAD.size:
                size, frame_type = _HEAD.unpack_from(chunk, start)
            else:
                self._needed = _SIZE_SIZE
                if available - start >= _SIZE_SIZE:
                    self._check_size(int.from_bytes(chunk[start : start + _SIZE_SIZE]))
                    self._needed = _HEAD.size
                return start
            if not 0 < size <= limit:
                self._check_size(size)
            end = start + size_size + size
            if end > available:
                self._needed = end - start
                return start
            if frame_type == data_type and size >= data_overhead:
                if flags & persistent_flag != persistent:
                    persistent = flags & persistent_flag
                    data = _last_data(frames, flags)
                    append_run, append_payload = data.runs.append, data.payloads.append
                append_run((seq, 1, uuid, ttl, flags))
                append_payload(bytes(chunk[start + data_head_size : end]))
            else:
                persistent = -1
                self._parse_other(frame_type, chunk, start + _HEAD.size, end, frames)
                limit = self._limit
            start = end

    def _check_size(self, size: int) -> None:
        if size == 0:
            raise RemoteProtocolError("empty packet")
        if size > self._limit:
            raise RemoteProtocolError(f"packet of {size} bytes announced, {self._limit} are allowed")

    def _parse_other(self, frame_type: int, chunk: memoryview, start: int, end: int, frames: list[Frame]) -> None:
        """Append the frame of one packet that is not DATA."""
        if frame_type == _BATCH_TYPE:
            _parse_batch(chunk, start, end, frames)
            return
        if frame_type == _MESSAGE_TYPE:
            if end - start < _MESSAGE.size:
                raise RemoteProtocolError(f"MESSAGE of {end - start} bytes")
            item = (*_MESSAGE.unpack_from(chunk, start), bytes(chunk[start + _MESSAGE.size : end]))
            if frames and isinstance(frames[-1], Messages):
                frames[-1].items.append(item)
            else:
                frames.append(Messages([item]))
            return
        parser = _PARSERS.get(frame_type)
        if parser is None:
            return  # as snakeMQ does, so that the protocol can grow
        try:
            frame = parser(bytes(chunk[start:end]))
        except struct.error:
            raise RemoteProtocolError(f"{FrameType(frame_type).name} of {end - start} bytes") from None
        frames.append(frame)
        if frame_type == _IDENT_TYPE:
            self._limit = self._max_frame_bytes


def _parse_batch(chunk: memoryview, start: int, end: int, frames: list[Frame]) -> None:
    start -= _HEAD.size
    sizes_start = start + _BATCH_HEAD.size
    if end < sizes_start:
        raise RemoteProtocolError(f"BATCH of {end - start - _HEAD.size} bytes")
    _, _, seq, uuid, ttl, flags, count = _BATCH_HEAD.unpack_from(chunk, start)
    start = sizes_start + count * _ITEM_SIZE_SIZE
    if not count or start > end:
        raise RemoteProtocolError(f"BATCH of {count} messages in {end - sizes_start} bytes")
    if seq + count > 2**64:
        raise RemoteProtocolError(f"BATCH of {count} messages from seq {seq} on")
    sizes = struct.unpack_from(f">{count}I", chunk, sizes_start)
    if start + sum(sizes) != end:
        raise RemoteProtocolError(f"BATCH of messages of {sum(sizes)} bytes in all, which has {end - start}")
    joined = bytes(chunk[start:end])  # to cut bytes takes half as long as to cut a view, and to copy each
    start = 0
    payloads = [joined[start : (start := start + size)] for size in sizes]
    data = _last_data(frames, flags)
    data.runs.append((seq, count, uuid, ttl, flags))
    data.payloads += payloads


def _last_data(frames: list[Frame], flags: int) -> Data:
    """The frame that messages with these flags go into: the last one, if it is of their stream, or a new one."""
    stream = DURABLE if flags & FLAG_PERSISTENT else VOLATILE
    if frames and isinstance(last := frames[-1], Data) and last.stream is stream:
        return last
    data = Data(stream, [], [])
    frames.append(data)
    return data


def _parse_ident(payload: bytes) -> Ident:
    if not 1 <= len(payload) <= MAX_IDENT_BYTES:
        raise RemoteProtocolError(f"ident of {len(payload)} bytes, 1 to {MAX_IDENT_BYTES} are allowed")
    try:
        return Ident(payload.decode())
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"ident is not UTF-8: {error.reason}") from None


def _parse_hello(payload: bytes) -> Hello:
    # A later version may append fields.
    frame = Hello(*_HELLO.unpack(payload[: _HELLO.size]))
    if frame.version < 1:
        raise RemoteProtocolError(f"HELLO of extension version {frame.version}")
    if frame.max_frame_bytes < _DATA_OVERHEAD or frame.window_bytes == 0:
        raise RemoteProtocolError("HELLO leaves no room for messages")
    return frame


_STREAMS = dict(enumerate(Stream))  # a call of Stream costs five times as much


def _parse_stream(number: int) -> Stream:
    stream = _STREAMS.get(number)
    if stream is None:
        raise RemoteProtocolError(f"unknown stream {number}")
    return stream


def _parse_begin(payload: bytes) -> Begin:
    stream, epoch, first_seq, sent_below = _BEGIN.unpack(payload)
    if sent_below < first_seq:
        raise RemoteProtocolError(f"BEGIN with sent_below {sent_below} under first seq {first_seq}")
    return Begin(_parse_stream(stream), epoch, first_seq, sent_below)


def _parse_ack(payload: bytes) -> Ack:
    stream, epoch, next_seq, received_seq = _ACK.unpack(payload)
    if received_seq < next_seq:
        raise RemoteProtocolError(f"ACK of more than has arrived: {next_seq} of {received_seq}")
    return Ack(_parse_stream(stream), epoch, next_seq, received_seq)


def _parse_skip(payload: bytes) -> Skip:
    stream, next_seq = _SKIP.unpack(payload)
    return Skip(_parse_stream(stream), next_seq)


def printable(text: str) -> str:
    """The text without what would end a line, or steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _parse_refuse(payload: bytes) -> Refuse:
    (code,) = _REFUSE.unpack(payload[: _REFUSE.size])
    text = payload[_REFUSE.size :][:_MAX_REFUSE_TEXT_BYTES].decode(errors="replace")
    # It goes to a log: what a stranger sends must not end lines or steer a terminal there.
    return Refuse(code, printable(text))


def _parse_version(payload: bytes) -> Version:
    return Version(*_VERSION.unpack(payload))


def _parse_short_data(payload: bytes) -> Data:
    # Reader parses what is long enough.
    raise RemoteProtocolError(f"DATA of {len(payload)} bytes")


_PING_FRAME = Ping()
_PONG_FRAME = Pong()
_PARSERS: dict[int, Callable[[bytes], Frame]] = {
    FrameType.VERSION: _parse_version,
    FrameType.INCOMPATIBLE: lambda payload: Incompatible(),
    FrameType.IDENT: _parse_ident,
    FrameType.PING: lambda payload: _PING_FRAME,
    FrameType.PONG: lambda payload: _PONG_FRAME,
    FrameType.HELLO: _parse_hello,
    FrameType.BEGIN: _parse_begin,
    FrameType.DATA: _parse_short_data,
    FrameType.ACK: _parse_ack,
    FrameType.SKIP: _parse_skip,
    FrameType.REFUSE: _parse_refuse,
}
