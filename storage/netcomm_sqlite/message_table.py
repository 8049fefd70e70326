"""The table `message`: its rows, their checksums, and what is asked of them.

Its column `place` has the tail number of a message, or 0 where the row of its stream tells of it. `stream_table` says
what ids and tails are.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from math import inf
from struct import Struct
from typing import Any, TypeVar
from zlib import crc32

from netcomm.message import Stream as Kind
from netcomm.storage import StoredMessage, StoredStream
from netcomm_sqlite.failures import Damage
from netcomm_sqlite.stream_table import PART_BITS, Part, Stream


def inserts(always: list[str], *further: list[str]) -> dict[int, str]:
    """The statements that insert rows into `message`, by the length of the row.

    always, further: the columns of each row, and those of fewer and fewer ones. To bind a value that is NULL takes
    Python 0.4 us, a tenth of all that a row takes.
    """
    statements = {}
    columns = always
    for more in ([], *further):
        columns = [*columns, *more]
        statements[len(columns)] = (
            f"INSERT INTO message ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        )
    return statements


INSERTS = inserts(["id", "place", "size", "uuid", "queued_at", "data", "checksum"], ["ttl", "expires_at"], ["envelope"])
COUNT = "SELECT count(*), coalesce(sum(size), 0) FROM message WHERE id >= ? AND id < ?"
_COLUMNS = "id, place, size, uuid, data, queued_at, ttl, envelope, checksum"
_READ = f"SELECT {_COLUMNS} FROM message WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
_EXPIRING = f"FROM message WHERE id >> {PART_BITS} = ? AND id >= ? AND expires_at"
# In the order of the index: in another one, SQLite would sort all that have expired, however few are asked for.
_READ_EXPIRED = f"SELECT {_COLUMNS} {_EXPIRING} <= ? ORDER BY expires_at LIMIT ?"
_NEXT_EXPIRY = f"SELECT min(expires_at) {_EXPIRING} > ?"

_MESSAGE_KEY = Struct(">qqd?d")

_Item = TypeVar("_Item")


def message_checksum(stream: int, message: StoredMessage, tail_number: int = 0) -> int:
    """The checksum of a row of `message`; stream: its number."""
    seq, uuid, data, queued_at, ttl, envelope = message
    checksum = crc32(uuid, crc32(_MESSAGE_KEY.pack(stream, seq, queued_at, ttl is None, ttl or 0.0), tail_number))
    checksum = crc32(data, checksum)
    return crc32(envelope, checksum) if envelope else checksum


def message_row(stream: int, part: Part, message: StoredMessage, tail_number: int) -> tuple[Any, ...]:
    """A row for `INSERTS`, with the size as its third value.

    tail_number: 0 where the row of the stream is updated with it.
    """
    seq, uuid, data, queued_at, ttl, envelope = message
    number = part.first_id + seq - part.first_seq
    checksum = message_checksum(stream, message, tail_number)
    if envelope:
        size = len(data) + len(envelope)
        return number, tail_number, size, uuid, queued_at, data, checksum, ttl, message.expires_at, envelope
    if ttl is not None:
        return number, tail_number, len(data), uuid, queued_at, data, checksum, ttl, message.expires_at
    return number, tail_number, len(data), uuid, queued_at, data, checksum


def insert(db: sqlite3.Connection, statements: Mapping[int, str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, each by the statement for its length."""
    for length in {len(row) for row in rows}:
        db.executemany(statements[length], [row for row in rows if len(row) == length])


def read(db: sqlite3.Connection, stream: Stream, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
    """The messages from a seq on, as `QueueStorage.read` asks for them. Raises Damage."""
    return read_first(db, _READ, _message, stream, from_seq, max_count, max_bytes)


def read_first(
    db: sqlite3.Connection,
    query: str,
    checked: Callable[[int, int, Any], _Item],
    stream: Stream,
    from_seq: int,
    max_count: int,
    max_bytes: int,
) -> list[_Item]:
    """What the first rows at or above a seq have, at most so many, and no more once their sizes reach `max_bytes`.

    query: for ids from one to below another, and how many rows; `id` is its first column, `size` its third one.
    checked: what a row has, from the stream's id, what is to be added to the row's id, and the row.

    Raises Damage.
    """
    found: list[_Item] = []
    for low, high, shift in stream.ids(from_seq):
        for row in db.execute(query, (low, high, max_count - len(found))):
            if row[0] < low:
                raise Damage(f"message {row[0] + shift!r} is not in its place")
            low = row[0] + 1
            found.append(checked(stream.id, shift, row))
            max_bytes -= row[2]
            if max_bytes <= 0:
                return found
    return found


def expired(
    db: sqlite3.Connection, stream: Stream, from_seq: int, now: float, max_count: int
) -> tuple[list[StoredMessage], float | None]:
    """Expired messages, and when the next one expires, as `QueueStorage.expired` asks for them. Raises Damage."""
    found: list[StoredMessage] = []
    expiries = []
    for low, _, shift in stream.ids(from_seq):
        part = low >> PART_BITS
        rows = db.execute(_READ_EXPIRED, (part, low, now, max_count - len(found)))
        found += [_message(stream.id, shift, row) for row in rows]
        expiries += db.execute(_NEXT_EXPIRY, (part, low, now)).fetchone()
    return found, min((when for when in expiries if when is not None), default=None)


def delete(
    db: sqlite3.Connection, stream: Stream, ranges: Sequence[tuple[int, int]], max_count: int | None
) -> tuple[Stream, bool]:
    """Delete the messages in ranges of seqs; returns the stream without them, and whether none is left in the ranges.

    max_count: delete no more than so many, the first ones; None for all.
    """
    ids = [(low, high) for pair in ranges for low, high, _ in stream.ids(*pair)]
    is_complete = max_count is None
    if max_count is not None:
        ids, is_complete = _first_ids(db, ids, max_count)
    for pair in ids:
        count, size = db.execute(COUNT, pair).fetchone()
        stream = stream._replace(stored=stream.stored - count, size=stream.size - size)
    db.executemany("DELETE FROM message WHERE id >= ? AND id < ?", ids)
    return stream, is_complete


def summary(db: sqlite3.Connection, stream: Stream) -> StoredStream:
    """What `QueueStorage.streams` tells of a stream."""
    expiries: list[float] = []
    ends: list[float] = []
    for low, high, _ in stream.ids():
        expiries += db.execute(_NEXT_EXPIRY, (low >> PART_BITS, low, -inf)).fetchone()
        for order in ("ASC", "DESC"):
            ends += (
                db.execute(
                    f"SELECT queued_at FROM message WHERE id >= ? AND id < ? ORDER BY id {order} LIMIT 1", (low, high)
                ).fetchone()
                or ()
            )
    return StoredStream(
        stream.ident,
        stream.epoch,
        stream.next_seq,
        stream.sent_below,
        stream.stored,
        stream.size,
        ends[0] if ends else None,
        min((when for when in expiries if when is not None), default=None),
        ends[-1] if ends else None,
        Kind(stream.kind),
    )


def _message(
    stream: int, shift: int, row: tuple[int, int, int, bytes, bytes, float, float | None, bytes | None, int]
) -> StoredMessage:
    number, tail_number, size, uuid, data, queued_at, ttl, envelope, checksum = row
    message = StoredMessage(number + shift, uuid, data, queued_at, ttl, envelope or b"")
    try:
        intact = checksum == message_checksum(stream, message, tail_number) and size == len(data) + len(
            message.envelope
        )
    except Exception:  # damage has made a value one of another type
        intact = False
    if not intact:
        raise Damage(f"message {message.seq!r} is not what was stored")
    return message


def _first_ids(
    db: sqlite3.Connection, ranges: Sequence[tuple[int, int]], count: int
) -> tuple[list[tuple[int, int]], bool]:
    """The part of some ranges of ids that has the first `count` messages, and whether it has all."""
    found: list[tuple[int, int]] = []
    for low, high in ranges:
        ids = db.execute("SELECT id FROM message WHERE id >= ? AND id < ? ORDER BY id LIMIT ?", (low, high, count))
        numbers = [number for (number,) in ids]
        if len(numbers) == count:
            return [*found, (low, numbers[-1] + 1)], False
        found.append((low, high))
        count -= len(numbers)
    return found, True
