"""docs/protocol.md once more, in as few lines as it takes, and with no code of netcomm: what bytes mean.

It is given all bytes at once, so that it has no state between chunks that could go wrong.
"""

from collections.abc import Iterator
from typing import NamedTuple

VERSION, INCOMPATIBLE, IDENT, MESSAGE, PING, PONG = range(6)
HELLO, BEGIN, DATA, ACK, SKIP, REFUSE, BATCH, GOODBYE = range(0x80, 0x88)
# Stands in place of a packet that the state of the connection does not allow.
UNEXPECTED = -1

Packet = tuple[int, bytes]

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
            packets += _messages(payload) if kind == BATCH else [(kind, payload)]
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
    if kind == BATCH:
        sizes, left = _sizes(payload)
        return (
            0 < len(sizes) <= (len(payload) - 34) // 4
            and sum(sizes) == len(left)
            and int.from_bytes(payload[:8]) + len(sizes) <= 2**64
        )
    if kind in (BEGIN, ACK) and payload[17:25] < payload[9:17]:  # sent below, first seq; received seq, next seq
        return False
    return kind not in (BEGIN, ACK, SKIP) or payload[0] < 2


def _messages(payload: bytes) -> Iterator[Packet]:
    """The DATA packets that a BATCH stands for."""
    sizes, left = _sizes(payload)
    seq, prefix, number = int.from_bytes(payload[:8]), payload[8:16], int.from_bytes(payload[16:24])
    for place, size in enumerate(sizes):
        uuid = prefix + ((number + place) % 2**64).to_bytes(8)
        yield DATA, (seq + place).to_bytes(8) + uuid + payload[24:32] + left[:size]
        left = left[size:]


def _sizes(payload: bytes) -> tuple[list[int], bytes]:
    """The sizes of the messages of a BATCH, and what comes behind them."""
    end = 34 + 4 * int.from_bytes(payload[32:34])
    return [int.from_bytes(payload[place : place + 4]) for place in range(34, end, 4)], payload[end:]


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
