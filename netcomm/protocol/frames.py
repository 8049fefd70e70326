"""Frames: what stands on the wire. Every number of the protocol stands here, and nowhere else.

A packet is `[u32 size][u8 frame type][payload]`, big-endian; the size counts the type and the payload. Types 0
to 5 are snakeMQ's (the docstring of its `messaging` module documents them), 0x80 to 0x87 are netcomm's, which a
snakeMQ peer passes over as unknown. docs/protocol.md states all of it in words.

`netcomm.protocol.encode` makes bytes of frames, `netcomm.protocol.decode` frames of bytes.
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from netcomm.message import Stream
from netcomm.protocol.envelope import Envelope

PROTOCOL_VERSION = 1
MAX_BULK_BYTES = 64 * 1024
"""The most data of a message in the stream BULK: a small message need not wait for more."""
STREAM_FLAGS = 0x7
"""The bits of a message's flags that are the number of its stream."""
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
    GOODBYE = 0x87


# By themselves, since each look through the Enum takes time, see `netcomm.message`.
DATA_TYPE, BATCH_TYPE, ACK_TYPE = int(FrameType.DATA), int(FrameType.BATCH), int(FrameType.ACK)
MESSAGE_TYPE, IDENT_TYPE = int(FrameType.MESSAGE), int(FrameType.IDENT)

# Of the flags of DATA and BATCH.
FLAG_ENVELOPE = 0x08
"""There is an envelope: in DATA before the payload, in BATCH one for all messages before the payloads."""
FLAG_ENVELOPES = 0x10
"""Each message of a BATCH has an envelope before its payload."""


class RefuseCode(enum.IntEnum):
    """Why a connection is about to be closed."""

    DUPLICATE_IDENT = 1
    INCOMPATIBLE = 2
    PROTOCOL_ERROR = 3


HEAD = struct.Struct(">IB")
VERSION = struct.Struct(">I")
MESSAGE = struct.Struct(">16sII")
HELLO = struct.Struct(">H16s16sIIIB")
BEGIN = struct.Struct(">BQQQ")
ACK = struct.Struct(">BQQQ")
ACK_PACKET = struct.Struct(">IBBQQQ")
SKIP = struct.Struct(">BQ")
REFUSE = struct.Struct(">H")
DATA_HEAD = struct.Struct(">IBQ16sII")
NUMBERED_DATA_HEAD = struct.Struct(">IBQ8sQII")  # the same, for a uuid in two halves
BATCH_HEAD = struct.Struct(">IBQ16sIIH")
MESSAGE_HEAD = struct.Struct(">IB16sII")

TYPE_SIZE = 1
SIZE_SIZE = HEAD.size - TYPE_SIZE
DATA_OVERHEAD = DATA_HEAD.size - SIZE_SIZE
OVERHEAD_BYTES = DATA_HEAD.size
"""What a message takes on the wire beside its data, as DATA."""
BATCH_OVERHEAD = BATCH_HEAD.size - SIZE_SIZE
ITEM_SIZE_SIZE = 4
MAX_REFUSE_TEXT_BYTES = 1024
IDENT_MADE_UP = 0x1
"""A flag of HELLO."""


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
    """Consecutive snakeMQ messages; each item is `(uuid, ttl, flags, data)`. They are in no stream."""

    items: list[tuple[bytes, int, int, bytes]]
    stream: ClassVar[None] = None


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
    flags: IDENT_MADE_UP or 0; other bits have no meaning.
    """

    version: int
    peer_id: bytes
    boot_id: bytes
    connector: int
    max_frame_bytes: int
    window_bytes: int
    flags: int = 0

    @property
    def made_up(self) -> bool:
        """Whether the sender's ident was made up: no other process ever has it."""
        return bool(self.flags & IDENT_MADE_UP)


@dataclass(slots=True)
class Begin:
    """A stream begins on this connection, at `first_seq`.

    Messages below `sent_below` may have been on the wire before, on an earlier connection.
    """

    stream: Stream
    epoch: int
    first_seq: int
    sent_below: int


MessageRun: TypeAlias = tuple[int, int, bytes, int, int, Envelope | None]
"""`(seq, count, uuid, ttl, flags, envelope)`: so many messages, whose seqs and uuids count on from those of the first.

The envelope is that of the first; those of the others count on. Plain messages have None."""
Item: TypeAlias = tuple[int, bytes, int, int, bytes, Envelope | None]
"""One message: `(seq, uuid, ttl, flags, data, envelope)`."""


@dataclass(slots=True)
class Data:
    """Consecutive DATA and BATCH frames of one stream.

    runs: what is known of the messages beside their payloads.
    payloads: of all of them.
    envelope_bytes: the size of their envelopes, as if each had its own.
    """

    stream: Stream
    runs: list[MessageRun]
    payloads: list[bytes]
    envelope_bytes: int = 0

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


@dataclass(slots=True)
class Goodbye:
    """The sender's process ends: no connection with its boot id comes any more."""


Frame: TypeAlias = (
    Version | Incompatible | Ident | Messages | Ping | Pong | Hello | Begin | Data | Ack | Skip | Refuse | Goodbye
)


def packet_size(data_size: int) -> int:
    """The bytes that a message of `data_size` bytes takes on the wire, as DATA."""
    return OVERHEAD_BYTES + data_size


def max_packet_size(max_frame_bytes: int) -> int:
    """The bytes on the wire of the largest packet that a frame limit lets through."""
    return SIZE_SIZE + max_frame_bytes


def max_data_size(max_frame_bytes: int) -> int:
    """The largest message, in bytes, that a frame limit lets through."""
    return max_frame_bytes - DATA_OVERHEAD


def uuid_behind(uuid: bytes, index: int) -> bytes:
    """The uuid of a message that comes so many places behind one in its run: the last 8 bytes count on."""
    return uuid[:8] + ((int.from_bytes(uuid[8:]) + index) & 0xFFFFFFFFFFFFFFFF).to_bytes(8)


def items(runs: Sequence[MessageRun], payloads: Sequence[bytes]) -> list[Item]:
    """Each of these messages by itself."""
    left = iter(payloads)
    return [
        (
            seq + index,
            uuid_behind(uuid, index) if index else uuid,
            ttl,
            flags,
            next(left),
            None if envelope is None else envelope.behind(index),
        )
        for seq, count, uuid, ttl, flags, envelope in runs
        for index in range(count)
    ]


def envelope_bytes(runs: Sequence[MessageRun], start: int, stop: int) -> int:
    """The size of the envelopes of messages `start` to `stop` of these, as if each had its own."""
    size = place = 0
    for _, count, *_, envelope in runs:
        if envelope is not None:
            size += envelope.wire_size * max(0, min(stop, place + count) - max(start, place))
        place += count
    return size
