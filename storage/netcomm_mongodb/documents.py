"""What the documents of the collections look like: values, checksums, and the way to documents and back.

Collections, with their prefix ("netcomm_" by default):

- `meta`: `head`, `lease`, and `clock`, which tells the server's time.
- `streams`: `_id` the receiver; `epoch`, `next_seq`, `sent_below`, `floor`, `count`, `size`, `gone`, `gaps`, `version`,
  `checksum`.
- `positions`: `_id` the sender; `epoch`, `next_seq`, `version`, `checksum`.
- `messages`: `_id` is "STREAM.SEQ", STREAM a hash of the receiver, SEQ 16 hexadecimal digits; `uuid`, `queued_at`,
  `ttl`, `size`, `data`, `parts`, `checksum`; `token` and `attempt`: the owner's incarnation, and which of its appends
  it was. Those that expire have `stream` and `expires_at` too, with the sparse index `by_expiry` on both.
- `parts`: the payloads that are too large for one document; `_id` is "STREAM.SEQ.PART".

`head` has `schema`, `store_id`, `incarnation`, `checksum`; `owner`, `owner_name`, `lease_s`, `taken_at`; `n`; and the
journal: `streams` and `positions`, whose entries are like the documents of those collections.

BSON's integers have a sign: `epoch` and `next_seq` from 2**63 on are stored as negative numbers.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import Any, Self, TypeVar
from zlib import crc32

from bson.int64 import Int64

from netcomm.storage import Position, StoredMessage
from netcomm_mongodb.errors import Damaged

Document = dict[str, Any]
_T = TypeVar("_T")

SCHEMA = 1
HEAD, LEASE, CLOCK = "head", "lease", "clock"
BY_EXPIRY = "by_expiry"

_PART_BYTES = 8 * 2**20  # BSON documents end at 16 MiB

_IDENTITY = Struct(">16sq")
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

    @property
    def key(self) -> str:
        """What the stream's messages have in their `_id`, in front of the seq."""
        return blake2b(self.ident.encode(), digest_size=12).hexdigest()

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
            "_id": self.ident,
            "epoch": _signed(self.epoch),
            "next_seq": _signed(self.next_seq),
            "sent_below": _signed(self.sent_below),
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
        stream = cls(
            document["_id"],
            _unsigned(document["epoch"]),
            _unsigned(document["next_seq"]),
            _unsigned(document["sent_below"]),
            int(document["floor"]),
            int(document["count"]),
            int(document["size"]),
            tuple([int(seq) for seq in document["gone"]]),
            tuple([int(seq) for seq in document["gaps"]]),
            int(document["version"]),
        )
        if document["checksum"] != stream._checksum():
            raise _not_as_stored(f"the stream to {stream.ident!r}")
        return stream

    def _checksum(self) -> int:
        values = _STREAM_VALUES.pack(
            _signed(self.epoch),
            _signed(self.next_seq),
            _signed(self.sent_below),
            self.floor,
            self.count,
            self.size,
            self.version,
        )
        lists = b"".join([seq.to_bytes(8) for seq in (len(self.gone), *self.gone, *self.gaps)])
        return crc32(lists, crc32(self.ident.encode(), crc32(values)))


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
            "epoch": _signed(self.position.epoch),
            "next_seq": _signed(self.position.next_seq),
            "version": Int64(self.version),
            "checksum": self._checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The position of a document. Raises Damaged, and what `decoded` makes Damaged of."""
        position = Position(_unsigned(document["epoch"]), _unsigned(document["next_seq"]))
        found = cls(document["_id"], position, int(document["version"]))
        if document["checksum"] != found._checksum():
            raise _not_as_stored(f"the position of {found.ident!r}")
        return found

    def _checksum(self) -> int:
        values = _POSITION_VALUES.pack(_signed(self.position.epoch), _signed(self.position.next_seq), self.version)
        return crc32(self.ident.encode(), crc32(values))


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """The document `head`.

    owner: what the owner calls itself, None where there is none; owner_name: which process it is, for people.
    lease_s, taken_at: for how long the owner has the storage, and the server's time when it took it.
    n: counts the updates.
    streams, positions: the journal.
    """

    store_id: bytes
    incarnation: int
    owner: str | None
    owner_name: str
    lease_s: float
    taken_at: datetime
    n: int
    streams: tuple[Stream, ...]
    positions: tuple[PositionRecord, ...]

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The head of a document. Raises Damaged, and what `decoded` makes Damaged of."""
        head = cls(
            bytes(document["store_id"]),
            int(document["incarnation"]),
            document["owner"],
            str(document.get("owner_name")),
            float(document.get("lease_s", 0.0)),
            document.get("taken_at", datetime.min),
            int(document["n"]),
            tuple([Stream.from_document(entry) for entry in document["streams"]]),
            tuple([PositionRecord.from_document(entry) for entry in document["positions"]]),
        )
        if document["checksum"] != identity_checksum(head.store_id, head.incarnation):
            raise _not_as_stored("its identity")
        return head


def identity_checksum(store_id: bytes, incarnation: int) -> int:
    """The checksum of the head."""
    return crc32(_IDENTITY.pack(store_id, incarnation))


def message_document(key: str, message: StoredMessage, token: int, attempt: int) -> tuple[Document, list[Document]]:
    """The document of a message in a stream with that key, and those of its parts, where it is too large for one."""
    data = message.data
    id = f"{key}.{message.seq:016x}"
    document: Document = {
        "_id": id,
        "uuid": message.uuid,
        "queued_at": float(message.queued_at),
        "ttl": None if message.ttl is None else float(message.ttl),
        "size": Int64(len(data)),
        "data": data,
        "parts": 0,
        "token": Int64(token),
        "attempt": Int64(attempt),
        "checksum": _message_checksum(key, message),
    }
    if message.ttl is not None:
        document["stream"] = key
        document["expires_at"] = float(message.queued_at + message.ttl)
    if len(data) <= _PART_BYTES:
        return document, []
    pieces = [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]
    document.update(data=b"", parts=len(pieces))
    return document, [
        {"_id": f"{id}.{index:04x}", "data": piece, "token": Int64(token), "attempt": Int64(attempt)}
        for index, piece in enumerate(pieces)
    ]


def stored_message(stream: Stream, document: Document) -> StoredMessage:
    """The message of a document, with the payload in it. Raises Damaged, and what `decoded` makes Damaged of."""
    message = StoredMessage(
        seq_of(document), document["uuid"], document["data"], document["queued_at"], document["ttl"]
    )
    if document["checksum"] != _message_checksum(stream.key, message):
        raise _not_as_stored(f"message {message.seq} to {stream.ident!r}")
    return message


def decoded(decode: Callable[[Document], _T], document: Document) -> _T:
    """What a document says. Raises Damaged: damage may have made its values any others, of any type."""
    try:
        return decode(document)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, StructError) as error:
        raise _not_as_stored(f"the document {document.get('_id')!r}") from error


def seq_of(document: Document) -> int:
    """The seq of a message's document."""
    return int(document["_id"].partition(".")[2], 16)


def total_size(documents: list[Document]) -> int:
    """The size of the payloads of messages' documents, in bytes."""
    return sum([decoded(lambda document: int(document["size"]), document) for document in documents])


def _not_as_stored(what: str) -> Damaged:
    return Damaged(f"{what} is not what was stored")


def _message_checksum(key: str, message: StoredMessage) -> int:
    ttl = message.ttl
    values = _MESSAGE_KEY.pack(message.seq, message.queued_at, ttl is None, ttl or 0.0)
    return crc32(message.data, crc32(message.uuid, crc32(values, crc32(key.encode()))))


def _pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _signed(number: int) -> Int64:
    return Int64(number - 2**64 if number >= 2**63 else number)


def _unsigned(number: int) -> int:
    return number % 2**64
