"""The envelope: what a message says of itself beside its data: a subject, headers, and what a bus needs of it.

    [u16 size][u8 kind][u16 fields]{the values of the fields that are there, in the order of their bits}

`size` counts the bytes that follow it. docs/protocol.md states all of it in words.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from netcomm.errors import ConfigurationError, RemoteProtocolError
from netcomm.message import NO_HEADERS, Headers

HEAD = struct.Struct(">HBH")
SIZE_SIZE = 2
MAX_ENVELOPE_BYTES = SIZE_SIZE + 0xFFFF
"""The largest envelope, with its size."""
MAX_TEXT_BYTES = 255
"""The longest subject, exchange, and key of a header, in bytes of UTF-8."""
MAX_VALUE_BYTES = 0xFFFF
"""The longest value of a header, in bytes of UTF-8."""

PLAIN = 0
"""The kind of what is no message of a bus."""

_SUBJECT, _EXCHANGE, _HEADERS = 1, 2, 1 << 9
_FIRST_NUMBER_BIT, _NUMBER_FORMATS = 2, "QQIIBBB"  # bits 2 to 8
_NUMBERS = 0x1FC
_COUNTED = 0xC  # id and ref
_LATER = 0xFC00  # bits that later versions may use
_MAX_NUMBER = 2**64


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a message says of itself beside its data. What is None, or empty, is not said.

    kind: what it is to a bus; PLAIN for any other message.
    subject, exchange: 1 to 255 bytes of UTF-8.
    id, ref: 64 bits; those of the messages in one frame count up.
    consumer, ms_left: 32 bits.
    codec, priority, attempt: 8 bits.
    packed_headers: as on the wire, without their size; `pack_headers` makes them. They take much more memory as
        objects, so `headers` unpacks them when they are looked at.
    wire_size: how many bytes it took on the wire, with its size, where it comes from there.
    """

    kind: int = PLAIN
    subject: str | None = None
    exchange: str | None = None
    id: int | None = None
    ref: int | None = None
    consumer: int | None = None
    ms_left: int | None = None
    codec: int | None = None
    priority: int | None = None
    attempt: int | None = None
    packed_headers: bytes = b""
    wire_size: int = field(default=0, compare=False)

    @property
    def headers(self) -> Headers:
        """The headers. Raises RemoteProtocolError for `packed_headers` that were not checked."""
        return unpack_headers(self.packed_headers) if self.packed_headers else NO_HEADERS

    def behind(self, index: int) -> "Envelope":
        """That of a message so many places behind this one, where both share an envelope: id and ref count on."""
        if not index or (self.id is None and self.ref is None):
            return self
        return replace(self, id=_counted_on(self.id, index), ref=_counted_on(self.ref, index))


def _counted_on(number: int | None, index: int) -> int | None:
    return None if number is None else (number + index) % _MAX_NUMBER


@cache
def _numbers(fields: int) -> tuple[struct.Struct, tuple[int, ...]]:
    """How those of the fields that are numbers are packed, and their places among all numbers."""
    places = tuple(place for place in range(len(_NUMBER_FORMATS)) if fields & 1 << (place + _FIRST_NUMBER_BIT))
    return struct.Struct(">" + "".join(_NUMBER_FORMATS[place] for place in places)), places


# -- To bytes -----------------------------------------------------------------------------------------------------


def encode(envelope: Envelope) -> bytes:
    """The envelope as it stands on the wire. Raises ConfigurationError where it is too large."""
    fields = 0
    values = b""
    if envelope.subject is not None:
        fields |= _SUBJECT
        values += _packed_text("the subject", envelope.subject)
    if envelope.exchange is not None:
        fields |= _EXCHANGE
        values += _packed_text("the exchange", envelope.exchange)
    numbers = [
        envelope.id,
        envelope.ref,
        envelope.consumer,
        envelope.ms_left,
        envelope.codec,
        envelope.priority,
        envelope.attempt,
    ]
    for place, number in enumerate(numbers, _FIRST_NUMBER_BIT):
        if number is not None:
            fields |= 1 << place
    if fields & _NUMBERS:
        values += _numbers(fields & _NUMBERS)[0].pack(*[number for number in numbers if number is not None])
    if envelope.packed_headers:
        fields |= _HEADERS
        values += len(envelope.packed_headers).to_bytes(2) + envelope.packed_headers
    size = HEAD.size - SIZE_SIZE + len(values)
    if size > 0xFFFF:
        raise ConfigurationError(f"the subject and the headers take {size} bytes in all, {0xFFFF} are allowed")
    return HEAD.pack(size, envelope.kind, fields) + values


def pack_headers(headers: Mapping[str, str]) -> bytes:
    """Headers as on the wire, without their size.

    Raises ConfigurationError for what can't be headers: keys of 1 to 255 bytes of UTF-8, values of up to 65,535 bytes,
    and all of them together no more than that.
    """
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"headers must be a Mapping of str to str, not {type(headers).__name__}")
    packed = bytearray()
    for key, value in headers.items():
        if not isinstance(value, str):
            raise ConfigurationError(f"the header {key!r:.100} must be a str, not {type(value).__name__}")
        data = _encoded(f"the header {key!r:.100}", value)
        if len(data) > MAX_VALUE_BYTES:
            raise ConfigurationError(f"the header {key!r:.100} has {len(data)} bytes, {MAX_VALUE_BYTES} are allowed")
        packed += _packed_text(f"the name of the header {key!r:.100}", key)
        packed += len(data).to_bytes(2) + data
        if len(packed) > 0xFFFF:
            raise ConfigurationError(
                f"the headers up to {key!r:.100} take {len(packed)} bytes, {0xFFFF} are allowed for all of them"
            )
    return bytes(packed)


def of_message(subject: str | None, headers: Mapping[str, str] | None) -> bytes | None:
    """The envelope of a message of the user's, as on the wire; None where it says nothing.

    Raises ConfigurationError for a subject or headers that can't be sent; it names the header and the limit.
    """
    packed = b"" if headers is None else pack_headers(headers)
    if subject is None and not packed:
        return None
    return encode(Envelope(subject=subject, packed_headers=packed))


def _packed_text(name: str, text: str) -> bytes:
    data = _encoded(name, text)
    if not 1 <= len(data) <= MAX_TEXT_BYTES:
        raise ConfigurationError(f"{name} must have 1 to {MAX_TEXT_BYTES} bytes of UTF-8, not {len(data)}")
    return bytes([len(data)]) + data


def _encoded(name: str, text: str) -> bytes:
    if not isinstance(text, str):
        raise ConfigurationError(f"{name} must be a str, not {type(text).__name__}")
    try:
        return str.encode(text)  # and not what a subclass makes of it
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{name} must be encodable as UTF-8: {error}") from None


def behind(raw: bytes, index: int) -> bytes:
    """An envelope as on the wire, for a message so many places behind its own: id and ref count on."""
    fields = HEAD.unpack_from(raw)[2]
    if not index or not fields & _COUNTED:
        return raw
    start = HEAD.size
    for bit in (_SUBJECT, _EXCHANGE):
        if fields & bit:
            start += 1 + raw[start]
    packing = _numbers(fields & _COUNTED)[0]
    numbers = [(number + index) % _MAX_NUMBER for number in packing.unpack_from(raw, start)]
    return raw[:start] + packing.pack(*numbers) + raw[start + packing.size :]


# -- From bytes ---------------------------------------------------------------------------------------------------


def size_at(chunk: bytes | memoryview, start: int) -> int:
    """How many bytes the envelope takes that begins there; more than there are, where its size has not come."""
    return SIZE_SIZE + int.from_bytes(chunk[start : start + SIZE_SIZE])


def decode(raw: bytes) -> Envelope:
    """The envelope that these bytes are, with their size in front. Raises RemoteProtocolError where they are none."""
    if len(raw) < HEAD.size:
        raise RemoteProtocolError(f"envelope of {len(raw)} bytes")
    size, kind, fields = HEAD.unpack_from(raw)
    if SIZE_SIZE + size != len(raw):
        raise RemoteProtocolError(f"envelope of {len(raw)} bytes, which says {SIZE_SIZE + size}")
    place = HEAD.size
    subject = exchange = None
    numbers: list[int | None] = [None] * len(_NUMBER_FORMATS)
    headers = b""
    try:
        if fields & _SUBJECT:
            subject, place = _text(raw, place)
        if fields & _EXCHANGE:
            exchange, place = _text(raw, place)
        if fields & _NUMBERS:
            packing, places = _numbers(fields & _NUMBERS)
            for index, value in zip(places, packing.unpack_from(raw, place), strict=True):
                numbers[index] = value
            place += packing.size
        if fields & _HEADERS:
            start = place + 2
            place = start + int.from_bytes(raw[place:start])
            headers = raw[start:place]
            if headers:
                unpack_headers(headers)
    except (struct.error, IndexError):
        place = len(raw) + 1
    if place > len(raw):
        raise RemoteProtocolError("envelope with a value that is longer than the envelope")
    if place < len(raw) and not fields & _LATER:
        raise RemoteProtocolError(f"envelope with {len(raw) - place} bytes behind its last value")
    number, ref, consumer, ms_left, codec, priority, attempt = numbers
    return Envelope(
        kind, subject, exchange, number, ref, consumer, ms_left, codec, priority, attempt, headers, len(raw)
    )


def _text(raw: bytes, place: int) -> tuple[str, int]:
    """A text with its length in front, and the place behind it. Raises IndexError where that is none."""
    start = place + 1
    end = start + raw[place]
    if end > len(raw):
        raise IndexError
    if end == start:
        raise RemoteProtocolError("envelope with an empty text")
    return _decoded(raw[start:end]), end


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"envelope with a text that is not UTF-8: {error.reason}") from None


@lru_cache(maxsize=4)
def unpack_headers(packed: bytes) -> Headers:
    """Headers from what they are on the wire, without their size; those that came last are remembered.

    Raises RemoteProtocolError where that is wrong, and where a key comes twice.
    """
    values: dict[str, str] = {}
    place = count = 0
    while place < len(packed):
        try:
            key, start = _text(packed, place)
        except IndexError:
            raise RemoteProtocolError("envelope with headers that are cut") from None
        start += 2
        place = start + int.from_bytes(packed[start - 2 : start])
        if start > len(packed) or place > len(packed):
            raise RemoteProtocolError("envelope with headers that are cut")
        values[key] = _decoded(packed[start:place])
        count += 1
    if len(values) < count:
        raise RemoteProtocolError("envelope with two headers of one name")
    return Headers(values)
