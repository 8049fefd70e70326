"""What a host's documents look like: records, rows, checksums, and the way to documents and back.

Collections, with their prefix:

- `host`: the records. `_id` is "log:NAME", "mark:NAME", "document:NAME" or "position:STREAM:SENDER"; `version` and
  `checksum`, as in `streams`; and the values of each sort, or `gone` where it was forgotten.
- `rows`: the rows of logs; `_id` is "LOG.NUMBER", LOG a hash of the log's name and of the step that began it, NUMBER
  16 hexadecimal digits; `data`, `parts`, `envelope`, `stored_at`, `size`, `checksum`; `step`: which one stored it, with
  the index `by_step`; and the row's state: `state`, `state_version`, `state_checksum`. And the contents of documents;
  `_id` is "documents.STEP.INDEX".
- `row_parts`: the payloads that are too large for one document; `_id` is that of the row, and ".PART".

`head` has `host`, the journal: entries like the documents of the collection `host`; and `step`, `failed`, `removals`,
which `HostHead` tells of, with `host_checksum`. Version 1 had none of them.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from struct import Struct
from typing import ClassVar, Self, TypeVar
from zlib import crc32

from bson.int64 import Int64

from netcomm.host_storage import HostPosition, HostRow, PositionKey
from netcomm.message import Stream
from netcomm_mongodb.documents import Document, decoded, key_of, not_as_stored, signed, split, unsigned

_R = TypeVar("_R")

BY_STEP = "by_step"

_ROW_VALUES = Struct(">qd")
_STEPS_OF_AN_OWNER = 40  # bits
_CONTENTS = "documents"


def first_step(incarnation: int) -> int:
    """The number below all steps of an owner."""
    return incarnation << _STEPS_OF_AN_OWNER


@dataclass(frozen=True, slots=True)
class HostHead:
    """What the head says of the host, beside its journal.

    step: the last step that was made.
    failed: where each range of steps below it begins and ends that were not made, one after the other.
    removals: what the `_id`s of rows that are to be removed begin with.
    """

    step: int = 0
    failed: tuple[int, ...] = ()
    removals: tuple[str, ...] = ()

    def made(self, step: int) -> bool:
        """Whether a step was made: rows of others are debris."""
        return step <= self.step and not bisect_right(self.failed, step) % 2

    def after(self, step: int) -> Self:
        """The same after another step was made; those between were not."""
        failed = (*self.failed, self.step + 1, step) if step > self.step + 1 else self.failed
        return replace(self, step=step, failed=failed)

    def fields(self) -> Document:
        """The fields of the head."""
        return {
            "step": Int64(self.step),
            "failed": [Int64(step) for step in self.failed],
            "removals": list(self.removals),
            "host_checksum": self._checksum(),
        }

    @classmethod
    def from_head(cls, document: Document) -> Self:
        """What a head says. Raises Damaged, and what `decoded` makes Damaged of."""
        if "step" not in document:
            return cls()
        found = cls(
            int(document["step"]),
            tuple([int(step) for step in document["failed"]]),
            tuple([str(removal) for removal in document["removals"]]),
        )
        if document["host_checksum"] != found._checksum():
            raise not_as_stored("what the head says of the host")
        return found

    def _checksum(self) -> int:
        return _checksum(self.step, self.failed, self.removals)


@dataclass(frozen=True, slots=True)
class Gone:
    """What is left of a record that was forgotten, so that an earlier one that comes late changes nothing."""

    id: str
    version: int = 0

    def document(self) -> Document:
        """The record as the head and `host` have it."""
        return {"_id": self.id, "gone": True, "version": Int64(self.version), "checksum": self._checksum()}

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The record of a document."""
        found = cls(document["_id"], int(document["version"]))
        return _intact(found, found._checksum(), document)

    def _checksum(self) -> int:
        return _checksum(self.id, self.version)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A log.

    born: the step that began it. A log of the same name that was dropped before has other rows.
    count, size: of the rows that are there.
    holes: where each range of rows begins and ends that were deleted, and may not have been removed yet.
    states: by number, states that rows may not have got yet.
    version: the `n` of the update that made it so.
    """

    SORT: ClassVar[str] = "log:"

    name: str
    born: int
    next_number: int = 0
    count: int = 0
    size: int = 0
    holes: tuple[int, ...] = ()
    states: tuple[tuple[int, bytes], ...] = ()
    version: int = 0

    @property
    def id(self) -> str:
        """The `_id` of the record."""
        return self.SORT + self.name

    @property
    def key(self) -> str:
        """What the log's rows have in their `_id`, in front of the number."""
        return key_of(self.name, self.born.to_bytes(8))

    def has(self, number: int) -> bool:
        """Whether a row that is found in the collection is there, if its step was made."""
        return number < self.next_number and not bisect_right(self.holes, number) % 2

    def swept(self) -> Self:
        """The log once its rows are removed, and have their states."""
        return replace(self, holes=(), states=())

    def document(self) -> Document:
        """The record as the head and `host` have it."""
        return {
            "_id": self.id,
            "born": Int64(self.born),
            "next_number": signed(self.next_number),
            "count": Int64(self.count),
            "size": Int64(self.size),
            "holes": [signed(number) for number in self.holes],
            "changed": [Int64(number) for number, _ in self.states],
            "states": [state for _, state in self.states],
            "version": Int64(self.version),
            "checksum": self._checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The record of a document."""
        found = cls(
            document["_id"].removeprefix(cls.SORT),
            int(document["born"]),
            unsigned(document["next_number"]),
            int(document["count"]),
            int(document["size"]),
            tuple([unsigned(number) for number in document["holes"]]),
            tuple(zip(map(int, document["changed"]), map(bytes, document["states"]), strict=True)),
            int(document["version"]),
        )
        return _intact(found, found._checksum(), document)

    def _checksum(self) -> int:
        return _checksum(
            self.name, self.born, self.next_number, self.count, self.size, self.holes, self.states, self.version
        )


@dataclass(frozen=True, slots=True)
class MarkRecord:
    """A mark; version: the `n` of the update that made it so."""

    SORT: ClassVar[str] = "mark:"

    name: str
    number: int
    version: int = 0

    @property
    def id(self) -> str:
        """The `_id` of the record."""
        return self.SORT + self.name

    def document(self) -> Document:
        """The record as the head and `host` have it."""
        return {
            "_id": self.id,
            "number": Int64(self.number),
            "version": Int64(self.version),
            "checksum": self._checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The record of a document."""
        found = cls(document["_id"].removeprefix(cls.SORT), int(document["number"]), int(document["version"]))
        return _intact(found, found._checksum(), document)

    def _checksum(self) -> int:
        return _checksum(self.name, self.number, self.version)


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """Where in `rows` the content of a host's document is; version: the `n` of the update that made it so."""

    SORT: ClassVar[str] = "document:"

    name: str
    content: str
    version: int = 0

    @property
    def id(self) -> str:
        """The `_id` of the record."""
        return self.SORT + self.name

    def document(self) -> Document:
        """The record as the head and `host` have it."""
        return {
            "_id": self.id,
            "content": self.content,
            "version": Int64(self.version),
            "checksum": self._checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The record of a document."""
        found = cls(document["_id"].removeprefix(cls.SORT), str(document["content"]), int(document["version"]))
        return _intact(found, found._checksum(), document)

    def _checksum(self) -> int:
        return _checksum(self.name, self.content, self.version)


@dataclass(frozen=True, slots=True)
class HostPositionRecord:
    """A position in a stream of the bus; version: the `n` of the update that made it so."""

    SORT: ClassVar[str] = "position:"

    place: PositionKey
    position: HostPosition
    version: int = 0

    @property
    def id(self) -> str:
        """The `_id` of the record."""
        return self.id_of(self.place)

    @classmethod
    def id_of(cls, place: PositionKey) -> str:
        """The `_id` of the record of a sender's stream."""
        return f"{cls.SORT}{place[1]:d}:{place[0]}"

    def document(self) -> Document:
        """The record as the head and `host` have it."""
        return {
            "_id": self.id,
            "epoch": signed(self.position.epoch),
            "next_seq": signed(self.position.next_seq),
            "stored_at": float(self.position.stored_at),
            "version": Int64(self.version),
            "checksum": self._checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """The record of a document."""
        _, number, ident = document["_id"].split(":", 2)
        position = HostPosition(unsigned(document["epoch"]), unsigned(document["next_seq"]), document["stored_at"])
        found = cls((ident, Stream(int(number))), position, int(document["version"]))
        return _intact(found, found._checksum(), document)

    def _checksum(self) -> int:
        epoch, next_seq, stored_at = self.position
        return _checksum(self.id, epoch, next_seq, float(stored_at), self.version)


Record = LogRecord | MarkRecord | DocumentRecord | HostPositionRecord | Gone

_SORTS: dict[str, type[LogRecord | MarkRecord | DocumentRecord | HostPositionRecord]] = {
    sort.SORT: sort for sort in (LogRecord, MarkRecord, DocumentRecord, HostPositionRecord)
}


def record_of(document: Document) -> Record:
    """The record of a document. Raises Damaged, and what `decoded` makes Damaged of."""
    if document.get("gone"):
        return Gone.from_document(document)
    sort, colon, _ = document["_id"].partition(":")
    return _SORTS[sort + colon].from_document(document)


# -- Rows -----------------------------------------------------------------------------------------------------


def row_id(key: str, number: int) -> str:
    """The `_id` of a row of the log with that key."""
    return f"{key}.{number:016x}"


def number_of(document: Document) -> int:
    """The number of a row's document."""
    return int(document["_id"].partition(".")[2], 16)


def row_document(key: str, row: HostRow, step: int) -> tuple[Document, list[Document]]:
    """The document of a row in the log with that key, and those of its parts, where it is too large for one."""
    document: Document = {
        "_id": row_id(key, row.number),
        "stored_at": float(row.stored_at),
        "size": Int64(len(row.data) + len(row.envelope)),
        "envelope": row.envelope,
        "data": row.data,
        "parts": 0,
        "step": Int64(step),
        "checksum": _row_checksum(key, row),
        **state_fields(row.number, row.state, 0),
    }
    return document, split(document, {"step": Int64(step)})


def state_fields(number: int, state: bytes, version: int) -> Document:
    """The fields of a row that have its state; version: the `n` of the update that gave it, or 0."""
    return {
        "state": state,
        "state_version": Int64(version),
        "state_checksum": _checksum(number, state, version),
    }


def stored_row(log: LogRecord, document: Document) -> HostRow:
    """The row of a document, with the payload in it. Raises Damaged, and what `decoded` makes Damaged of."""
    number = number_of(document)
    state = bytes(document["state"])
    row = HostRow(number, document["data"], document["envelope"], document["stored_at"], state)
    if document["checksum"] != _row_checksum(log.key, row) or document["state_checksum"] != _checksum(
        number, state, int(document["state_version"])
    ):
        raise not_as_stored(f"row {number} of {log.name!r}")
    return row


def content_id(step: int, index: int) -> str:
    """The `_id` of a document's content: of which step, and which of its contents."""
    return f"{_CONTENTS}.{step:016x}.{index:08x}"


def is_content(removal: str) -> bool:
    """Whether something that is to be removed is a document's content, and no log."""
    return removal.startswith(f"{_CONTENTS}.")


def content_document(id: str, content: bytes, step: int) -> tuple[Document, list[Document]]:
    """The document that has the content of a host's document, and those of its parts."""
    document: Document = {
        "_id": id,
        "size": Int64(len(content)),
        "data": content,
        "parts": 0,
        "step": Int64(step),
        "checksum": crc32(content, crc32(id.encode())),
    }
    return document, split(document, {"step": Int64(step)})


def stored_content(document: Document) -> bytes:
    """The content that a document has, with the parts in it. Raises Damaged, and what `decoded` makes Damaged of."""
    content = bytes(document["data"])
    if document["checksum"] != crc32(content, crc32(document["_id"].encode())):
        raise not_as_stored(f"the content {document['_id']!r}")
    return content


def records_of(documents: Iterable[Document]) -> dict[str, Record]:
    """The records of documents, by `_id`. Raises Damaged."""
    return {document["_id"]: decoded(record_of, document) for document in documents}


def _intact(found: _R, checksum: int, document: Document) -> _R:
    if document["checksum"] != checksum:
        raise not_as_stored(f"the record {document['_id']!r}")
    return found


def _checksum(*values: object) -> int:
    return crc32(ascii(values).encode())


def _row_checksum(key: str, row: HostRow) -> int:
    start = crc32(_ROW_VALUES.pack(row.number, row.stored_at), crc32(key.encode()))
    return crc32(row.data, crc32(row.envelope, crc32(len(row.envelope).to_bytes(4), start)))
