"""The tables `stream` and `part`: a row for each receiver, and which ids the messages of its stream have.

The messages of a stream have ids one behind the other, as their seqs are, in parts of 2**40 seqs: hardly any stream
will ever have a second part.

    row of the stream:  next_seq, count and size tell of the messages below its next_seq
    tail:               messages from there on, each stored by itself; they have the tail numbers 1, 2, 3 ...

A message that is stored by itself does not change the row of its stream. Until the row is updated, the messages of the
tail are `uncounted`. A tail number that is missing shows that a message is missing.
"""

import sqlite3
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple
from zlib import crc32

PART_BITS = 40
PART_SIZE = 1 << PART_BITS
MAX_UNCOUNTED = 256

LOAD_STREAMS = "SELECT id, ident, epoch, next_seq, sent_below, count, size, checksum FROM stream"
LOAD_PARTS = "SELECT id, stream, first_seq, checksum FROM part ORDER BY id"
_UPDATE_STREAM = """
    UPDATE stream SET epoch = ?, next_seq = ?, sent_below = ?, count = ?, size = ?, checksum = ? WHERE id = ?
"""

_STREAM_VALUES = Struct(">qqqqq")
_PART_VALUES = Struct(">qqq")


class Part(NamedTuple):
    """A row of `part`: the message with `first_seq` has `first_id`, and those behind it theirs accordingly."""

    first_id: int
    first_seq: int


class Stream(NamedTuple):
    """A row of `stream` (`stored` is its column `count`), brought up to date by the messages of its tail.

    parts: in order.
    uncounted: how many messages the tail has, of which the row in the file does not tell.
    """

    id: int
    ident: str
    epoch: int
    next_seq: int
    sent_below: int
    stored: int
    size: int
    parts: tuple[Part, ...] = ()
    uncounted: int = 0

    def checksum(self) -> int:
        """The checksum that the row of the stream has once it is up to date."""
        values = (self.epoch, self.next_seq, self.sent_below, self.stored, self.size)
        return crc32(self.ident.encode(), crc32(_STREAM_VALUES.pack(*values)))

    def ids(self, from_seq: int = 0, below_seq: int = 2**63) -> Iterator[tuple[int, int, int]]:
        """The ids of messages with these seqs, from one to below another, for each part that has any.

        The third number is what has to be added to an id to have the seq.
        """
        for first_id, first_seq in self.parts:
            low, high = max(0, from_seq - first_seq), min(PART_SIZE, below_seq - first_seq)
            if low < high:
                yield first_id + low, first_id + high, first_seq - first_id


def part_checksum(number: int, stream: int, first_seq: int) -> int:
    """The checksum of a row of `part`."""
    return crc32(_PART_VALUES.pack(number, stream, first_seq))


def add_stream(db: sqlite3.Connection, ident: str, epoch: int) -> Stream:
    """Add a stream without messages."""
    new = Stream(0, ident, epoch, 0, 0, 0, 0)
    cursor = db.execute(
        "INSERT INTO stream (ident, epoch, next_seq, sent_below, count, size, checksum) VALUES (?, ?, 0, 0, 0, 0, ?)",
        (new.ident, new.epoch, new.checksum()),
    )
    assert cursor.lastrowid is not None
    return new._replace(id=cursor.lastrowid)


def add_part(db: sqlite3.Connection, stream: int, first_seq: int) -> Part:
    """Add a part to a stream, behind its other ones."""
    (number,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM part").fetchone()
    db.execute(
        "INSERT INTO part (id, stream, first_seq, checksum) VALUES (?, ?, ?, ?)",
        (number, stream, first_seq, part_checksum(number, stream, first_seq)),
    )
    return Part(number << PART_BITS, first_seq)


def update_stream(db: sqlite3.Connection, stream: Stream) -> Stream:
    """Let the row of a stream tell of all its messages: the tail is empty then."""
    number, ident, epoch, next_seq, sent_below, stored, size, parts, _ = stream
    db.execute(_UPDATE_STREAM, (epoch, next_seq, sent_below, stored, size, stream.checksum(), number))
    return Stream(number, ident, epoch, next_seq, sent_below, stored, size, parts)
