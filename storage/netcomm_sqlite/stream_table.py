"""The tables `stream` and `part`: a row for each durable stream and each log, and which ids its messages have.

A log of a host is a stream of the kind LOG: its rows have their places, and are counted, as messages are.

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

from netcomm.message import DURABLE

PART_BITS = 40
PART_SIZE = 1 << PART_BITS
MAX_UNCOUNTED = 256
LOG = 8  # above the numbers of all streams of messages
_MOST_PARTS = 1 << 63 - PART_BITS  # their ids lie below

StreamKey = tuple[str, int]
"""The receiver and the number of the stream; the name of a log and LOG."""

LOAD_STREAMS = "SELECT id, ident, epoch, next_seq, sent_below, count, size, kind, checksum FROM stream"
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
    kind: the number of the stream, or LOG.
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
    kind: int = DURABLE

    @property
    def title(self) -> str:
        """What it is called in an error."""
        return f"log {self.ident!r}" if self.kind == LOG else f"stream to {self.ident!r}"

    def checksum(self) -> int:
        """The checksum that the row of the stream has once it is up to date."""
        values = (self.epoch, self.next_seq, self.sent_below, self.stored, self.size)
        # Version 3 knew durable streams only, and its checksums stay right.
        return crc32(self.ident.encode(), crc32(_STREAM_VALUES.pack(*values), self.kind ^ DURABLE))

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


def add_stream(db: sqlite3.Connection, key: StreamKey, epoch: int) -> Stream:
    """Add a stream without messages."""
    ident, kind = key
    new = Stream(0, ident, epoch, 0, 0, 0, 0, kind=int(kind))
    cursor = db.execute(
        "INSERT INTO stream (ident, kind, epoch, next_seq, sent_below, count, size, checksum)"
        " VALUES (?, ?, ?, 0, 0, 0, 0, ?)",
        (new.ident, new.kind, new.epoch, new.checksum()),
    )
    assert cursor.lastrowid is not None
    return new._replace(id=cursor.lastrowid)


def add_part(db: sqlite3.Connection, stream: int, first_seq: int) -> Part:
    """Add a part to a stream, behind its other ones."""
    (number,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM part").fetchone()
    if number == _MOST_PARTS:  # ids of logs that were dropped are free
        (number,) = db.execute(
            "SELECT min(id) + 1 FROM part WHERE NOT EXISTS (SELECT 1 FROM part AS next WHERE next.id = part.id + 1)"
        ).fetchone()
    db.execute(
        "INSERT INTO part (id, stream, first_seq, checksum) VALUES (?, ?, ?, ?)",
        (number, stream, first_seq, part_checksum(number, stream, first_seq)),
    )
    return Part(number << PART_BITS, first_seq)


def update_stream(db: sqlite3.Connection, stream: Stream) -> Stream:
    """Let the row of a stream tell of all its messages: the tail is empty then."""
    number, ident, epoch, next_seq, sent_below, stored, size, parts, _, kind = stream
    db.execute(_UPDATE_STREAM, (epoch, next_seq, sent_below, stored, size, stream.checksum(), number))
    return Stream(number, ident, epoch, next_seq, sent_below, stored, size, parts, 0, kind)


def drop_stream(db: sqlite3.Connection, stream: Stream) -> None:
    """Forget a stream, with its messages and its parts."""
    db.executemany("DELETE FROM message WHERE id >= ? AND id < ?", [(low, high) for low, high, _ in stream.ids()])
    db.execute("DELETE FROM part WHERE stream = ?", (stream.id,))
    db.execute("DELETE FROM stream WHERE id = ?", (stream.id,))
