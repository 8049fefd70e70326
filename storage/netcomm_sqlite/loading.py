"""Reads the streams of a file, and sees whether any of their messages is missing or out of its place."""

import sqlite3
from typing import Any

from netcomm_sqlite.failures import Damage, is_intact
from netcomm_sqlite.message_table import COUNT
from netcomm_sqlite.stream_table import LOAD_PARTS, LOAD_STREAMS, PART_BITS, Part, Stream, StreamKey, part_checksum

_TAIL = "SELECT id, place, size FROM message WHERE id >= ? AND id < ? ORDER BY id"
_FIND_ANY = "SELECT id FROM message WHERE id BETWEEN ? AND ? LIMIT 1"


def load_streams(db: sqlite3.Connection) -> dict[StreamKey, Stream]:
    """All streams; every message is counted. Raises Damage."""
    streams = {}
    ranges: list[tuple[int, int]] = []
    parts = _load_parts(db)
    for row in db.execute(LOAD_STREAMS).fetchall():
        stream = _checked_stream(db, row, parts.pop(row[0], ()))
        # Part by part, as they are read: what is out of its place is not found so.
        ids = [(low, high) for low, high, _ in stream.ids()]
        found = [db.execute(COUNT, pair).fetchone() for pair in ids]
        if (stream.stored, stream.size) != (sum(count for count, _ in found), sum(size for _, size in found)):
            raise Damage(f"messages of the {stream.title} are missing")
        streams[stream.ident, stream.kind] = stream
        ranges += ids
    ranges.sort()
    gaps = zip([-(2**63), *(high for _, high in ranges)], [*(low for low, _ in ranges), 2**63], strict=True)
    if parts or any(low < high and db.execute(_FIND_ANY, (low, high - 1)).fetchone() for low, high in gaps):
        raise Damage("it has messages of streams that it does not have")
    return streams


def load_stream(db: sqlite3.Connection, key: StreamKey) -> Stream | None:
    """One stream, if it exists; only the messages of its tail are looked at. Raises Damage."""
    # Not through an index: a damaged one would say that there is nothing.
    for row in db.execute(LOAD_STREAMS).fetchall():
        if (row[1], row[7]) == key:
            return _checked_stream(db, row, _load_parts(db).get(row[0], ()))
    return None


def _load_parts(db: sqlite3.Connection) -> dict[int, tuple[Part, ...]]:
    """The parts by their streams."""
    parts: dict[int, tuple[Part, ...]] = {}
    for number, of, first_seq, checksum in db.execute(LOAD_PARTS):
        if not is_intact(checksum, part_checksum, number, of, first_seq):
            raise Damage("it is not known which messages belong to which stream")
        parts[of] = (*parts.get(of, ()), Part(number << PART_BITS, first_seq))
    return parts


def _checked_stream(db: sqlite3.Connection, row: tuple[Any, ...], parts: tuple[Part, ...]) -> Stream:
    """A row of `stream`, brought up to date by the messages of its tail."""
    *values, kind, checksum = row
    stream = Stream(*values)._replace(parts=parts, kind=kind)
    if not is_intact(checksum, stream.checksum):
        raise Damage(f"the {stream.title} is not what was stored")
    for low, high, shift in stream.ids(stream.next_seq):
        for message, tail_number, size in db.execute(_TAIL, (low, high)):
            if tail_number != stream.uncounted + 1:
                raise Damage(f"messages of the {stream.title} are missing")
            stream = stream._replace(
                next_seq=message + shift + 1,
                stored=stream.stored + 1,
                size=stream.size + size,
                uncounted=tail_number,
            )
    return stream
