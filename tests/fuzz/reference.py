"""docs/protocol.md once more, in as few lines as it takes, and with no code of netcomm: what bytes mean.

It is given all bytes at once, so that it has no state between chunks that could go wrong.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

VERSION, INCOMPATIBLE, IDENT, MESSAGE, PING, PONG = range(6)
HELLO, BEGIN, DATA, ACK, SKIP, REFUSE, BATCH, GOODBYE = range(0x80, 0x88)
# Stands in place of a packet that the state of the connection does not allow.
UNEXPECTED = -1

# The numbers of streams; of DATA and BATCH, they are the lowest bits of the flags.
STREAMS = (0, 1, 2, 4, 5)
STREAM_BITS = 0x07
# Other flags of DATA and BATCH.
ENVELOPE, ENVELOPES = 0x08, 0x10

Packet = tuple[int, bytes]
Envelope = dict[str, Any]

# Bytes of payload, from and to; None where the limits alone are a bound.
LENGTHS: dict[int, tuple[int, int | None]] = {
    VERSION: (4, 4),
    INCOMPATIBLE: (0, None),
    IDENT: (1, 255),
    MESSAGE: (24, None),
    PING: (0, None),
    PONG: (0, None),
    HELLO: (47, None),
    BEGIN: (25, 25),
    DATA: (32, None),
    ACK: (25, 25),
    SKIP: (9, 9),
    REFUSE: (2, None),
    BATCH: (38, None),
    GOODBYE: (0, None),
}
_AWAIT_VERSION = {VERSION, INCOMPATIBLE, REFUSE}
_AWAIT_IDENT = {HELLO, IDENT, INCOMPATIBLE, REFUSE}
_LEGACY = {MESSAGE, PING, PONG, INCOMPATIBLE}
_EXTENDED = {BEGIN, DATA, ACK, SKIP, PING, PONG, REFUSE, GOODBYE}


class Reading(NamedTuple):
    """packets: without those of unknown types; broken: whether what comes behind them breaks a rule."""

    packets: list[Packet]
    broken: bool


def read(stream: bytes, handshake_limit: int, limit: int) -> Reading:
    """What a receiver reads that has these limits, in bytes, before and after the IDENT."""
    packets: list[Packet] = []
    start = 0
    allowed = handshake_limit
    while len(stream) - start >= 4:
        size = int.from_bytes(stream[start : start + 4])
        if not 0 < size <= allowed:
            return Reading(packets, True)
        end = start + 4 + size
        if end > len(stream):
            break
        kind, payload = stream[start + 4], stream[start + 5 : end]
        if kind in LENGTHS:
            if not _is_valid(kind, payload):
                return Reading(packets, True)
            if kind == BATCH:
                packets += _messages(payload)
            elif kind == DATA:
                packets.append((kind, _message(payload)))
            else:
                packets.append((kind, payload))
        if kind == IDENT:
            allowed = limit
        start = end
    return Reading(packets, False)


def _is_valid(kind: int, payload: bytes) -> bool:
    shortest, longest = LENGTHS[kind]
    if len(payload) < shortest or (longest is not None and len(payload) > longest):
        return False
    if kind == IDENT:
        try:
            payload.decode()
        except UnicodeDecodeError:
            return False
    if kind == HELLO:
        max_frame, window = int.from_bytes(payload[38:42]), int.from_bytes(payload[42:46])
        return payload[:2] != b"\0\0" and max_frame >= 33 and window > 0
    if kind == DATA:
        flags = payload[31]
        return (
            flags & STREAM_BITS in STREAMS
            and not flags & ENVELOPES
            and (not flags & ENVELOPE or envelope(payload[32:]) is not None)
        )
    if kind == BATCH:
        sizes, left = _sizes(payload)
        flags = payload[31]
        if flags & STREAM_BITS not in STREAMS:
            return False
        if flags & ENVELOPE:
            if flags & ENVELOPES or envelope(left) is None:
                return False
            left = _behind_envelope(left)
        if not (
            0 < len(sizes) <= (len(payload) - 34) // 4
            and sum(sizes) == len(left)
            and int.from_bytes(payload[:8]) + len(sizes) <= 2**64
        ):
            return False
        return not flags & ENVELOPES or None not in map(envelope, _cut(left, sizes))
    if kind in (BEGIN, ACK) and payload[17:25] < payload[9:17]:  # sent below, first seq; received seq, next seq
        return False
    return kind not in (BEGIN, ACK, SKIP) or payload[0] in STREAMS


def _messages(payload: bytes) -> Iterator[Packet]:
    """The DATA packets that a BATCH stands for, with their envelopes in words."""
    sizes, left = _sizes(payload)
    flags = payload[31]
    shared = envelope(left) if flags & ENVELOPE else None
    if shared is not None:
        left = _behind_envelope(left)
    seq, prefix, number = int.from_bytes(payload[:8]), payload[8:16], int.from_bytes(payload[16:24])
    for place, data in enumerate(_cut(left, sizes)):
        uuid = prefix + ((number + place) % 2**64).to_bytes(8)
        its = envelope(data) if flags & ENVELOPES else shared and _counted_on(shared, place)
        if flags & ENVELOPES:
            data = _behind_envelope(data)
        yield DATA, (seq + place).to_bytes(8) + uuid + payload[24:32] + in_words(its) + data


def _message(payload: bytes) -> bytes:
    """The payload of a DATA packet, with its envelope in words."""
    if not payload[31] & ENVELOPE:
        return payload
    return payload[:32] + in_words(envelope(payload[32:])) + _behind_envelope(payload[32:])


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data of each message of a BATCH."""
    ends = list(accumulate(sizes, initial=0))
    return [data[start:end] for start, end in pairwise(ends)]


def _sizes(payload: bytes) -> tuple[list[int], bytes]:
    """The sizes of the messages of a BATCH, and what comes behind them."""
    end = 34 + 4 * int.from_bytes(payload[32:34])
    return [int.from_bytes(payload[place : place + 4]) for place in range(34, end, 4)], payload[end:]


# -- Envelopes ----------------------------------------------------------------------------------------------------


def in_words(fields: Envelope | None) -> bytes:
    """An envelope in a form that two readers of one can compare; nothing where there is none."""
    return b"" if fields is None else repr(sorted(fields.items())).encode()


def envelope(data: bytes) -> Envelope | None:
    """The envelope that stands in front of data; None where none does that this page allows."""
    end = 2 + int.from_bytes(data[:2])
    if not 5 <= end <= len(data):
        return None
    fields: Envelope = {"kind": data[2]}
    bits, left = int.from_bytes(data[3:5]), data[5:end]
    try:
        for bit, (name, kind) in enumerate(_FIELDS.items()):
            if bits & 1 << bit:
                size = _SIZES[kind] if kind in _SIZES else int.from_bytes(left[: _LENGTHS[kind]]) + _LENGTHS[kind]
                if size > len(left) or not left:
                    return None
                if (value := _VALUES[kind](left[:size])) != []:  # no headers are the same as none
                    fields[name] = value
                left = left[size:]
    except ValueError:  # UnicodeDecodeError is one
        return None
    return None if left and bits < 1 << len(_FIELDS) else fields


def _number(value: bytes) -> int:
    return int.from_bytes(value)


def _text(value: bytes) -> str:
    if len(value) < 2:
        raise ValueError
    return value[1:].decode()


def _headers(value: bytes) -> list[tuple[str, str]]:
    if len(value) < 2:
        raise ValueError
    left = value[2:]
    found: dict[str, str] = {}
    while left:
        key_end = 1 + left[0]
        end = key_end + 2 + int.from_bytes(left[key_end : key_end + 2])
        key = _text(left[:key_end])
        if key_end + 2 > len(left) or end > len(left) or key in found:
            raise ValueError
        found[key] = left[key_end + 2 : end].decode()
        left = left[end:]
    return sorted(found.items())


_FIELDS = {
    "subject": "text",
    "exchange": "text",
    "id": "u64",
    "ref": "u64",
    "consumer": "u32",
    "ms left": "u32",
    "codec": "u8",
    "priority": "u8",
    "attempt": "u8",
    "headers": "headers",
}
_SIZES = {"u64": 8, "u32": 4, "u8": 1}
_LENGTHS = {"text": 1, "headers": 2}
_VALUES: dict[str, Callable[[bytes], Any]] = {
    "text": _text,
    "headers": _headers,
    "u64": _number,
    "u32": _number,
    "u8": _number,
}


def _behind_envelope(data: bytes) -> bytes:
    return data[2 + int.from_bytes(data[:2]) :]


def _counted_on(fields: Envelope, place: int) -> Envelope:
    """The envelope of a message so many places behind the one that it was made for."""
    return {name: (value + place) % 2**64 if name in ("id", "ref") else value for name, value in fields.items()}


def spoken(packets: list[Packet]) -> Iterator[Packet]:
    """The packets that the states of a connection let through; the last may be UNEXPECTED, a refusal, or GOODBYE."""
    allowed = _AWAIT_VERSION
    greeted = False
    for kind, payload in packets:
        if kind not in allowed or (kind == HELLO and greeted):
            yield UNEXPECTED, payload
            return
        yield kind, payload
        if kind == VERSION:
            if payload != b"\0\0\0\1":
                yield UNEXPECTED, payload
                return
            allowed = _AWAIT_IDENT
        elif kind == HELLO:
            greeted = True
        elif kind == IDENT:
            allowed = _EXTENDED if greeted else _LEGACY
        elif kind in (INCOMPATIBLE, REFUSE, GOODBYE):
            return
