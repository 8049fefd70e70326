"""What the documents of the collections look like: values, checksums, and the way to documents and back.

Collections, with their prefix ("netcomm_" by default):

- `meta`: `head`, `lease`, and `clock`, which tells the server's time.
- `streams`: `_id` the receiver, or receiver and number (`ident`, `stream`) for other streams than DURABLE; `epoch`,
  `next_seq`, `sent_below`, `floor`, `count`, `size`, `gone`, `gaps`, `version`, `checksum`.
- `positions`: `_id` the sender; `epoch`, `next_seq`, `version`, `checksum`.
- `messages`: `_id` is "STREAM.SEQ", STREAM a hash of the receiver and the stream's number, SEQ 16 hexadecimal digits;
  `uuid`, `queued_at`, `ttl`, `size`, `data`, `parts`, `checksum`; `token` and `attempt`: the owner's incarnation, and
  which of its appends it was; `envelope`, where there is one. Those that expire have `stream` and `expires_at` too,
  with the sparse index `by_expiry` on both.
- `parts`: the payloads that are too large for one document; `_id` is "STREAM.SEQ.PART".

`head` has `schema`, `store_id`, `incarnation`, `checksum`; `owner`, `owner_name`, `lease_s`, `taken_at`; `n`; and the
journal: `streams` and `positions`, whose entries are like the documents of those collections. `host_documents` tells
what a host has in the head, and its collections.

BSON's integers have a sign: `epoch` and `next_seq` from 2**63 on are stored as negative numbers.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import Any, Self, TypeVar
from zlib import crc32

from bson.int64 import Int64

from netcomm.message import DURABLE
from netcomm.message import Stream as StreamNumber
from netcomm.storage import Position, StoredMessage
from netcomm_mongodb.errors import Damaged

Document = dict[str, Any]
_T = TypeVar("_T")
StreamKey = tuple[str, StreamNumber]
"""The receiver, and which of the durable streams to it."""

SCHEMA = 2
"""Version 1 had no hosts, no envelopes, and no other streams than DURABLE."""
HEAD, LEASE, CLOCK = "head", "lease", "clock"
BY_EXPIRY = "by_expiry"

_PART_BYTES = 8 * 2**20  # BSON documents end at 16 MiB

_STREAM_VALUES = Struct(">qqqqqqq")
_POSITION_VALUES = Struct(">qqq")
_MESSAGE_KEY = Struct(">qd?d")


@dataclass(frozen=True, slots=True)
class Stream:
    """A durable stream, as the head or `streams` has it.

    floor: messages below are gone; gone: and these.
    gaps: where each range begins and ends that was never stored, one after the other.
    count, size: of the messages that are there.
    version: the `n` of the update that made it so.
    number: which of the streams to the receiver it is.
    """

    ident: str
    epoch: int
    next_seq: int = 0
    sent_below: int = 0
    floor: int = 0
    count: int = 0
    size: int = 0
    gone: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    version: int = 0
    number: StreamNumber = DURABLE

    @property
    def place(self) -> StreamKey:
        """The receiver, and which of the streams it is."""
        return self.ident, self.number

    @property
    def key(self) -> str:
        """What the stream's messages have in their `_id`, in front of the seq."""
        return key_of(self.ident, b"" if self.number == DURABLE else bytes([self.number]))

    def id(self, seq: int) -> str:
        """The `_id` of a message."""
        return f"{self.key}.{seq:016x}"

    def has(self, seq: int) -> bool:
        """Whether a message that is found in the collection is there, and no debris."""
        in_gap = bisect_right(self.gaps, seq) % 2
        return self.floor <= seq < self.next_seq and not in_gap and seq not in self.gone

    def without(self, seqs: Sequence[int], size: int) -> Self:
        """The stream after single messages are gone; size: of their payloads, in bytes."""
        return replace(self, gone=(*self.gone, *seqs), count=self.count - len(seqs), size=self.size - size)

    def without_below(self, floor: int, count: int, size: int) -> Self:
        """The stream after the messages below `floor` are gone; count, size: of those that were there."""
        return replace(
            self,
            floor=floor,
            gaps=tuple(chain(*(gap for gap in _pairs(self.gaps) if gap[1] > floor))),
            count=self.count - count,
            size=self.size - size,
        )

    def document(self) -> Document:
        """The stream as the head and `streams` have it."""
        return {
            "_id": stream_id(self.place),
            "epoch": signed(self.epoch),
            "next_seq": signed(self.next_seq),
            "sent_below": signed(self.sent_below),
            "floor": Int64(self.floor),
            "count": Int64(self.count),
            "size": Int64(self.size),
            "gone": [Int64(seq) for seq in self.gone],
            "gaps": [Int64(seq) for seq in self.gaps],
            "version": Int64(self.version),
            "checksum": self._checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The stream of a document. Raises Damaged, and what `decoded` makes Damaged of."""
        id = document["_id"]
        ident, number = (id, DURABLE) if isinstance(id, str) else (id["ident"], StreamNumber(id["stream"]))
        stream = cls(
            ident,
            unsigned(document["epoch"]),
            unsigned(document["next_seq"]),
            unsigned(document["sent_below"]),
            int(document["floor"]),
            int(document["count"]),
            int(document["size"]),
            tuple([int(seq) for seq in document["gone"]]),
            tuple([int(seq) for seq in document["gaps"]]),
            int(document["version"]),
            number,
        )
        if document["checksum"] != stream._checksum():
            raise not_as_stored(f"the stream to {stream.ident!r}")
        return stream

    def _checksum(self) -> int:
        values = _STREAM_VALUES.pack(
            signed(self.epoch),
            signed(self.next_seq),
            signed(self.sent_below),
            self.floor,
            self.count,
            self.size,
            self.version,
        )
        lists = b"".join([seq.to_bytes(8) for seq in (len(self.gone), *self.gone, *self.gaps)])
        number = b"" if self.number == DURABLE else bytes([self.number])
        return crc32(number, crc32(lists, crc32(self.ident.encode(), crc32(values))))


@dataclass(frozen=True, slots=True)
class PositionRecord:
    """A position, as the head or `positions` has it; version: the `n` of the update that made it so."""

    ident: str
    position: Position
    version: int = 0

    def document(self) -> Document:
        """The position as the head and `positions` have it."""
        return {
            "_id": self.ident,
            "epoch": signed(self.position.epoch),
            "next_seq": signed(self.position.next_seq),
            "version": Int64(self.version),
            "checksum": self._checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The position of a document. Raises Damaged, and what `decoded` makes Damaged of."""
        position = Position(unsigned(document["epoch"]), unsigned(document["next_seq"]))
        found = cls(document["_id"], position, int(document["version"]))
        if document["checksum"] != found._checksum():
            raise not_as_stored(f"the position of {found.ident!r}")
        return found

    def _checksum(self) -> int:
        values = _POSITION_VALUES.pack(signed(self.position.epoch), signed(self.position.next_seq), self.version)
        return crc32(self.ident.encode(), crc32(values))


def stream_id(place: StreamKey) -> str | Document:
    """The `_id` of a stream."""
    ident, number = place
    return ident if number == DURABLE else {"ident": ident, "stream": int(number)}


def key_of(name: str, kind: bytes) -> str:
    """What documents have in their `_id` in place of a name of a kind."""
    return blake2b(name.encode(), digest_size=12, person=kind).hexdigest()


def message_document(key: str, message: StoredMessage, token: int, attempt: int) -> tuple[Document, list[Document]]:
    """The document of a message in a stream with that key, and those of its parts, where it is too large for one."""
    data = message.data
    id = f"{key}.{message.seq:016x}"
    document: Document = {
        "_id": id,
        "uuid": message.uuid,
        "queued_at": float(message.queued_at),
        "ttl": None if message.ttl is None else float(message.ttl),
        "size": Int64(len(data) + len(message.envelope)),
        "data": data,
        "parts": 0,
        "token": Int64(token),
        "attempt": Int64(attempt),
        "checksum": _message_checksum(key, message),
    }
    if message.ttl is not None:
        document["stream"] = key
        document["expires_at"] = float(message.queued_at + message.ttl)
    if message.envelope:
        document["envelope"] = message.envelope
    if len(data) <= _PART_BYTES:
        return document, []
    return document, split(document, {"token": Int64(token), "attempt": Int64(attempt)})


def split(document: Document, marks: Document) -> list[Document]:
    """Move the payload of a document, if it is too large for one, to documents of its own, and return these.

    marks: what they have besides.
    """
    id, data = document["_id"], document["data"]
    if len(data) <= _PART_BYTES:
        return []
    pieces = [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]
    document.update(data=b"", parts=len(pieces))
    return [{"_id": f"{id}.{index:04x}", "data": piece, **marks} for index, piece in enumerate(pieces)]


def own_parts(document: Document) -> Document:
    """A filter for the documents that `split` made of this one. There may be more, as debris."""
    id = document["_id"]
    return {"_id": {"$gte": f"{id}.", "$lt": f"{id}.{document['parts']:04x}"}}


def stored_message(stream: Stream, document: Document) -> StoredMessage:
    """The message of a document, with the payload in it. Raises Damaged, and what `decoded` makes Damaged of."""
    message = StoredMessage(
        seq_of(document),
        document["uuid"],
        document["data"],
        document["queued_at"],
        document["ttl"],
        document.get("envelope", b""),
    )
    if document["checksum"] != _message_checksum(stream.key, message):
        raise not_as_stored(f"message {message.seq} to {stream.ident!r}")
    return message


def decoded(decode: Callable[[Document], _T], document: Document) -> _T:
    """What a document says. Raises Damaged: damage may have made its values any others, of any type."""
    try:
        return decode(document)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, StructError) as error:
        raise not_as_stored(f"the document {document.get('_id')!r}") from error


def seq_of(document: Document) -> int:
    """The seq of a message's document."""
    return int(document["_id"].partition(".")[2], 16)


def total_size(documents: list[Document]) -> int:
    """The size of the payloads of messages' documents, in bytes."""
    return sum([decoded(lambda document: int(document["size"]), document) for document in documents])


def not_as_stored(what: str) -> Damaged:
    """The error that says so."""
    return Damaged(f"{what} is not what was stored")


def _message_checksum(key: str, message: StoredMessage) -> int:
    ttl = message.ttl
    values = _MESSAGE_KEY.pack(message.seq, message.queued_at, ttl is None, ttl or 0.0)
    checksum = crc32(message.data, crc32(message.uuid, crc32(values, crc32(key.encode()))))
    return crc32(message.envelope, checksum)


def _pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def signed(number: int) -> Int64:
    """A number below 2**64 as BSON has it."""
    return Int64(number - 2**64 if number >= 2**63 else number)


def unsigned(number: int) -> int:
    """The number below 2**64 that BSON has so."""
    return number % 2**64
