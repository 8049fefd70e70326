"""Bytes to frames.

`Reader` checks what can be checked without knowing the connection's state: sizes, lengths, encodings. Whether a
frame may come now is for `netcomm.protocol.session` to say.
"""

import struct
from collections.abc import Callable
from io import BytesIO

from netcomm.errors import RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import MAX_IDENT_BYTES, Stream
from netcomm.protocol import envelope
from netcomm.protocol.envelope import Envelope
from netcomm.protocol.frames import (
    ACK,
    BATCH_HEAD,
    BATCH_TYPE,
    BEGIN,
    DATA_HEAD,
    DATA_OVERHEAD,
    DATA_TYPE,
    FLAG_ENVELOPE,
    FLAG_ENVELOPES,
    HEAD,
    HELLO,
    IDENT_TYPE,
    ITEM_SIZE_SIZE,
    MAX_REFUSE_TEXT_BYTES,
    MESSAGE,
    MESSAGE_TYPE,
    REFUSE,
    SIZE_SIZE,
    SKIP,
    STREAM_FLAGS,
    VERSION,
    Ack,
    Begin,
    Data,
    Frame,
    FrameType,
    Goodbye,
    Hello,
    Ident,
    Incompatible,
    MessageRun,
    Messages,
    Ping,
    Pong,
    Refuse,
    Skip,
    Version,
    uuid_behind,
)

_ENVELOPE_FLAGS = FLAG_ENVELOPE | FLAG_ENVELOPES
_FLAGS_SIZE = 4  # of DATA, at the end of its head

READ_BYTES = 256 * 1024
"""So much is read at once, where it is not for a large message."""

# Larger messages are received into buffers of their own. Below, to copy once more is cheaper than to read once more.
_LARGE_BYTES = 128 * 1024
# So much memory is reserved for each byte of a large message that has arrived; and no less than so much in all.
_LARGE_GROWTH = 8
_LARGE_STEP_BYTES = 64 * 1024
# Behind a large message, so much is read for a start: if it is another one, the rest of it goes to its final place.
_START_BYTES = 2 * 1024


class _LargeData:
    """A DATA packet that arrives in many pieces: each goes to its final place."""

    __slots__ = ("_arrived", "_head", "_least", "_payload", "_view", "size")

    def __init__(self, start: memoryview, packet_size: int, least: int) -> None:
        """Begin a packet.

        start: what has arrived of it, the head and the envelope at least: see `_data_head_size`.
        least: how much memory may be reserved at once.
        """
        self._view: memoryview | None = None
        head_size = _data_head_size(start)
        self._head = bytes(start[:head_size])
        self.size = packet_size - head_size
        self._least = least
        self._payload = BytesIO()  # its value is taken without being copied
        piece = start[head_size:]
        self._reserve(len(piece))
        self._payload.seek(0)
        self._arrived = self._payload.write(piece)

    def buffer(self) -> memoryview:
        """Where the next bytes go."""
        self._reserve(self._arrived)
        self._view = self._payload.getbuffer()[self._arrived :]
        return self._view

    def _reserve(self, arrived: int) -> None:
        # In proportion to what has arrived, and not to what was announced.
        end = min(self.size, max(arrived * _LARGE_GROWTH, self._least))
        if self._payload.getbuffer().nbytes < end:
            self._payload.seek(end - 1)
            self._payload.write(b"\0")

    def buffer_updated(self, count: int) -> None:
        """So many bytes have been received into `buffer`."""
        self._arrived += count
        if self._view is not None:
            self._view.release()  # what is being looked at can't grow
            self._view = None

    def __del__(self) -> None:
        # The collector of garbage may clear the memory before the view of it, and Python 3.13 complains of that.
        if self._view is not None:
            self._view.release()

    def parts(self) -> tuple[bytes, bytes] | None:
        """The head, with the envelope; and the payload; once all is complete."""
        return (self._head, self._payload.getvalue()) if self._arrived >= self.size else None


def _data_head_size(start: memoryview) -> int:
    """How many bytes of a DATA packet are no payload: the head, and the envelope; as far as that has arrived."""
    flags = int.from_bytes(start[DATA_HEAD.size - _FLAGS_SIZE : DATA_HEAD.size])
    return DATA_HEAD.size + (envelope.size_at(start, DATA_HEAD.size) if flags & FLAG_ENVELOPE else 0)


class Reader:
    """Cuts the bytes of one connection into frames.

    buffer: where the next bytes are to be received; `buffer_updated` is to be called then, and names another one,
        perhaps. Mostly it is the scratch memory, which many readers share: they hold it from a read to the end of
        `buffer_updated`. A large message has a buffer of its own.

    A size is believed only as far as the limit, and memory grows with what has arrived: what was announced
    is reserved at once only as far as a payload of that size has arrived before. The small limit holds until
    an IDENT has been read, the large one after it.
    """

    __slots__ = (
        "_begun",
        "_envelope",
        "_large",
        "_largest",
        "_limit",
        "_max_frame_bytes",
        "_needed",
        "_raw_envelope",
        "_scratch",
        "buffer",
    )

    def __init__(self, limits: Limits, scratch: memoryview) -> None:
        """Make it; scratch: memory of at least 2 KiB, best of READ_BYTES."""
        self.buffer = self._scratch = scratch
        self._begun = bytearray()  # the beginning of a packet whose end has not arrived
        self._needed = SIZE_SIZE  # bytes without which the beginning need not be looked at
        self._large: _LargeData | None = None  # in place of the beginning
        self._largest = 0  # the size of the largest payload that has arrived so
        self._limit = limits.max_handshake_frame_bytes
        self._max_frame_bytes = limits.max_frame_bytes
        self._raw_envelope = b""  # that of the last message that had one; the next one has often the same
        self._envelope: Envelope | None = None

    def buffer_updated(self, count: int) -> tuple[list[Frame], RemoteProtocolError | None]:
        """Read the next bytes: so many have been received into `buffer`.

        Returns the frames that are complete, and what was wrong with the bytes behind them, if anything was; after
        that, the reader is not to be used again.
        """
        frames: list[Frame] = []
        if self._large is not None:
            self._large.buffer_updated(count)
            try:
                self._finish_large(self._large, frames)
            except RemoteProtocolError as error:
                return frames, error
            return frames, None
        view = self.buffer[:count]
        self.buffer = self._scratch
        try:
            start = self._complete(view, frames) if self._begun else 0
            end = self._parse(view, start, frames) if start < count else start
        except RemoteProtocolError as error:
            return frames, error
        if end < count:
            self._keep(view[end:])
        return frames, None

    def _complete(self, chunk: memoryview, frames: list[Frame]) -> int:
        """Bring the packet that has begun to its end; returns how much of the chunk that took."""
        start = 0
        begun = self._begun
        while begun:
            stop = start + self._needed - len(begun)
            begun += chunk[start:stop]
            start = min(stop, len(chunk))
            if len(begun) < self._needed:
                break
            if self._parse(memoryview(bytes(begun)), 0, frames):
                begun.clear()
        return start

    def _finish_large(self, large: _LargeData, frames: list[Frame]) -> None:
        """Append the large message, if it is complete."""
        parts = large.parts()
        if parts is None:
            self.buffer = large.buffer()
            return
        self._add_data(*parts, frames)
        self._largest = max(self._largest, large.size)
        self._large = None
        self.buffer = self._scratch[:_START_BYTES]

    def _add_data(self, head: bytes, payload: bytes, frames: list[Frame]) -> None:
        """Append a message, whose head has the envelope with it."""
        _, _, seq, uuid, ttl, flags = DATA_HEAD.unpack_from(head)
        if flags & FLAG_ENVELOPES:
            raise RemoteProtocolError("DATA with a flag of BATCH: an envelope for each message")
        its_envelope = self._to_envelope(head[DATA_HEAD.size :]) if flags & FLAG_ENVELOPE else None
        data = _last_data(frames, flags)
        data.runs.append((seq, 1, uuid, ttl, flags, its_envelope))
        data.payloads.append(payload)
        if its_envelope is not None:
            data.envelope_bytes += its_envelope.wire_size

    def _to_envelope(self, raw: bytes) -> Envelope:
        """The envelope that these bytes are. Raises RemoteProtocolError."""
        known = self._envelope
        if known is None or raw != self._raw_envelope:
            known = self._envelope = envelope.decode(raw)
            self._raw_envelope = raw
        return known

    def _keep(self, rest: memoryview) -> None:
        """Keep the beginning of a packet."""
        is_data = len(rest) >= DATA_HEAD.size and rest[SIZE_SIZE] == DATA_TYPE
        if self._needed >= _LARGE_BYTES and is_data and len(rest) >= _data_head_size(rest):
            self._large = _LargeData(rest, self._needed, max(self._largest, _LARGE_STEP_BYTES))
            self.buffer = self._large.buffer()
        else:
            self._begun += rest

    def _parse(self, chunk: memoryview, start: int, frames: list[Frame]) -> int:
        """Append the complete frames of `chunk` from `start` on; returns where the first incomplete one starts."""
        available = len(chunk)
        plain_flags = -1  # of the plain messages that are being appended; this is none
        append_run: Callable[[MessageRun], None]
        append_payload: Callable[[bytes], None]
        unpack_data = DATA_HEAD.unpack_from
        data_head_size, size_size = DATA_HEAD.size, SIZE_SIZE
        data_type, checked_flags, data_overhead = DATA_TYPE, STREAM_FLAGS | _ENVELOPE_FLAGS, DATA_OVERHEAD
        limit = self._limit
        while True:
            if available - start >= data_head_size:
                # As if it were DATA, which it mostly is.
                size, frame_type, seq, uuid, ttl, flags = unpack_data(chunk, start)
            elif available - start >= HEAD.size:
                size, frame_type = HEAD.unpack_from(chunk, start)
            else:
                self._needed = SIZE_SIZE
                if available - start >= SIZE_SIZE:
                    self._check_size(int.from_bytes(chunk[start : start + SIZE_SIZE]))
                    self._needed = HEAD.size
                return start
            if not 0 < size <= limit:
                self._check_size(size)
            end = start + size_size + size
            if end > available:
                self._needed = end - start
                return start
            if frame_type == data_type and size >= data_overhead:
                if flags & checked_flags != plain_flags:
                    plain_flags = flags & checked_flags
                    if plain_flags & _ENVELOPE_FLAGS:
                        plain_flags = -1
                        self._parse_enveloped(chunk, start, end, frames)
                        start = end
                        continue
                    data = _last_data(frames, flags)
                    append_run, append_payload = data.runs.append, data.payloads.append
                append_run((seq, 1, uuid, ttl, flags, None))
                append_payload(bytes(chunk[start + data_head_size : end]))
            else:
                plain_flags = -1
                self._parse_other(frame_type, chunk, start + HEAD.size, end, frames)
                limit = self._limit
            start = end

    def _parse_enveloped(self, chunk: memoryview, start: int, end: int, frames: list[Frame]) -> None:
        """Append the message of one DATA packet that has an envelope, or the flags of one."""
        head_end = start + _data_head_size(chunk[start:end])
        if head_end > end:
            raise RemoteProtocolError("DATA with an envelope that is longer than the packet")
        self._add_data(bytes(chunk[start:head_end]), bytes(chunk[head_end:end]), frames)

    def _check_size(self, size: int) -> None:
        if size == 0:
            raise RemoteProtocolError("empty packet")
        if size > self._limit:
            raise RemoteProtocolError(f"packet of {size} bytes announced, {self._limit} are allowed")

    def _parse_other(self, frame_type: int, chunk: memoryview, start: int, end: int, frames: list[Frame]) -> None:
        """Append the frame of one packet that is not DATA."""
        if frame_type == BATCH_TYPE:
            self._parse_batch(chunk, start, end, frames)
            return
        if frame_type == MESSAGE_TYPE:
            if end - start < MESSAGE.size:
                raise RemoteProtocolError(f"MESSAGE of {end - start} bytes")
            item = (*MESSAGE.unpack_from(chunk, start), bytes(chunk[start + MESSAGE.size : end]))
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
        if frame_type == IDENT_TYPE:
            self._limit = self._max_frame_bytes

    def _parse_batch(self, chunk: memoryview, start: int, end: int, frames: list[Frame]) -> None:
        """Append the messages of one BATCH packet, whose payload begins at `start`."""
        start -= HEAD.size
        sizes_start = start + BATCH_HEAD.size
        if end < sizes_start:
            raise RemoteProtocolError(f"BATCH of {end - start - HEAD.size} bytes")
        _, _, seq, uuid, ttl, flags, count = BATCH_HEAD.unpack_from(chunk, start)
        start = sizes_start + count * ITEM_SIZE_SIZE
        if not count or start > end:
            raise RemoteProtocolError(f"BATCH of {count} messages in {end - sizes_start} bytes")
        if seq + count > 2**64:
            raise RemoteProtocolError(f"BATCH of {count} messages from seq {seq} on")
        sizes = struct.unpack_from(f">{count}I", chunk, sizes_start)
        shared = None
        if flags & _ENVELOPE_FLAGS:
            if flags & _ENVELOPE_FLAGS == _ENVELOPE_FLAGS:
                raise RemoteProtocolError("BATCH with two flags: an envelope for all, and one for each")
            if flags & FLAG_ENVELOPE:
                envelope_start = start
                start += envelope.size_at(chunk[:end], start)
                if start > end:
                    raise RemoteProtocolError("BATCH with an envelope that is longer than the packet")
                shared = self._to_envelope(bytes(chunk[envelope_start:start]))
        if start + sum(sizes) != end:
            raise RemoteProtocolError(f"BATCH of messages of {sum(sizes)} bytes in all, which has {end - start}")
        joined = bytes(chunk[start:end])  # to cut bytes takes half as long as to cut a view, and to copy each
        start = 0
        payloads = [joined[start : (start := start + size)] for size in sizes]
        if flags & FLAG_ENVELOPES:
            self._add_enveloped(seq, uuid, ttl, flags, payloads, frames)
            return
        data = _last_data(frames, flags)
        data.runs.append((seq, count, uuid, ttl, flags, shared))
        data.payloads += payloads
        if shared is not None:
            data.envelope_bytes += count * shared.wire_size

    def _add_enveloped(
        self, seq: int, uuid: bytes, ttl: int, flags: int, payloads: list[bytes], frames: list[Frame]
    ) -> None:
        """Append messages that follow each other, each of which has an envelope before its payload: a run each."""
        runs: list[MessageRun] = []
        envelope_bytes = 0
        for index, payload in enumerate(payloads):
            size = envelope.size_at(payload, 0)
            its_envelope = self._to_envelope(payload[:size])
            runs.append((seq + index, 1, uuid_behind(uuid, index), ttl, flags, its_envelope))
            payloads[index] = payload[size:]
            envelope_bytes += size
        data = _last_data(frames, flags)
        data.runs += runs
        data.payloads += payloads
        data.envelope_bytes += envelope_bytes


def _last_data(frames: list[Frame], flags: int) -> Data:
    """The frame that messages with these flags go into: the last one, if it is of their stream, or a new one."""
    number = flags & STREAM_FLAGS
    stream = _STREAMS.get(number)
    if stream is None:
        stream = _parse_stream(number)  # which refuses it
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
    frame = Hello(*HELLO.unpack(payload[: HELLO.size]))
    if frame.version < 1:
        raise RemoteProtocolError(f"HELLO of extension version {frame.version}")
    if frame.max_frame_bytes < DATA_OVERHEAD or frame.window_bytes == 0:
        raise RemoteProtocolError("HELLO leaves no room for messages")
    return frame


_STREAMS = {int(stream): stream for stream in Stream}  # a call of Stream costs five times as much


def _parse_stream(number: int) -> Stream:
    stream = _STREAMS.get(number)
    if stream is None:
        raise RemoteProtocolError(f"unknown stream {number}")
    return stream


def _parse_begin(payload: bytes) -> Begin:
    stream, epoch, first_seq, sent_below = BEGIN.unpack(payload)
    if sent_below < first_seq:
        raise RemoteProtocolError(f"BEGIN with sent_below {sent_below} under first seq {first_seq}")
    return Begin(_parse_stream(stream), epoch, first_seq, sent_below)


def _parse_ack(payload: bytes) -> Ack:
    stream, epoch, next_seq, received_seq = ACK.unpack(payload)
    if received_seq < next_seq:
        raise RemoteProtocolError(f"ACK of more than has arrived: {next_seq} of {received_seq}")
    return Ack(_parse_stream(stream), epoch, next_seq, received_seq)


def _parse_skip(payload: bytes) -> Skip:
    stream, next_seq = SKIP.unpack(payload)
    return Skip(_parse_stream(stream), next_seq)


def printable(text: str) -> str:
    """The text without what would end a line, or steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _parse_refuse(payload: bytes) -> Refuse:
    (code,) = REFUSE.unpack(payload[: REFUSE.size])
    text = payload[REFUSE.size :][:MAX_REFUSE_TEXT_BYTES].decode(errors="replace")
    # It goes to a log: what a stranger sends must not end lines or steer a terminal there.
    return Refuse(code, printable(text))


def _parse_version(payload: bytes) -> Version:
    return Version(*VERSION.unpack(payload))


def _parse_short_data(payload: bytes) -> Data:
    # Reader parses what is long enough.
    raise RemoteProtocolError(f"DATA of {len(payload)} bytes")


_PING_FRAME = Ping()
_PONG_FRAME = Pong()
_GOODBYE_FRAME = Goodbye()
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
    FrameType.GOODBYE: lambda payload: _GOODBYE_FRAME,
}
