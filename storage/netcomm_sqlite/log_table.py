"""The rows of a host's logs, which are rows of `message`: their checksums, their changes, and what is asked of them.

Such a row has no uuid and no time to live; its `queued_at` is when it was stored. What is not there is NULL.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Any
from zlib import crc32

from netcomm.errors import ConfigurationError
from netcomm.host_changes import LogChanges
from netcomm.host_storage import HostLog, HostRow
from netcomm_sqlite import message_table
from netcomm_sqlite.failures import Damage
from netcomm_sqlite.stream_table import (
    LOG,
    PART_SIZE,
    Part,
    Stream,
    StreamKey,
    add_part,
    add_stream,
    drop_stream,
    update_stream,
)

_INSERTS = message_table.inserts(["id", "place", "size", "queued_at", "data", "checksum"], ["envelope"], ["state"])
_READ = """
    SELECT id, place, size, data, envelope, queued_at, state, checksum FROM message WHERE id >= ? AND id < ?
    ORDER BY id LIMIT ?
"""
_END = "SELECT id, queued_at FROM message WHERE id >= ? AND id < ? ORDER BY id {} LIMIT 1"

_ROW_KEY = Struct(">qqdII")


def change(
    db: sqlite3.Connection, streams: Mapping[StreamKey, Stream], logs: Mapping[str, LogChanges]
) -> dict[StreamKey, Stream | None]:
    """Change logs; returns those that have changed, with None for those that are dropped. Raises Damage."""
    changed: dict[StreamKey, Stream | None] = {}
    for name, changes in logs.items():
        key = name, LOG
        stream = streams.get(key)
        if changes.dropped and stream is not None:
            drop_stream(db, stream)
            stream = changed[key] = None
        if stream is None and changes.next_number is not None:
            stream = add_stream(db, key, 0)
        if stream is not None:
            changed[key] = update_stream(db, _changed(db, stream, changes))
    return changed


def _changed(db: sqlite3.Connection, stream: Stream, changes: LogChanges) -> Stream:
    appended = changes.appended
    ranges = changes.deleted
    if appended and next(iter(appended)) < stream.next_seq:  # some of them may be committed again
        ranges = [*ranges, *((number, number + 1) for number in appended if number < stream.next_seq)]
    if ranges:
        stream, _ = message_table.delete(db, stream, ranges, None)
    if appended:
        stream = _append(db, stream, appended.values())
    for number, state in changes.changed.items():
        _change_state(db, stream, number, state)
    return stream._replace(next_seq=max(stream.next_seq, changes.next_number or 0))


def _append(db: sqlite3.Connection, stream: Stream, appended: Iterable[HostRow]) -> Stream:
    number, parts, size = stream.id, stream.parts, stream.size
    first_id = first_seq = end = 0
    rows: list[tuple[Any, ...]] = []
    for row in appended:
        _, data, envelope, stored_at, state = row
        seq = row.number
        if not first_seq <= seq < end:
            parts = _with_part(db, number, parts, seq)
            first_id, first_seq = next(part for part in reversed(parts) if part.first_seq <= seq)
            end = first_seq + PART_SIZE
        length = len(data) + len(envelope)
        size += length
        values = first_id + seq - first_seq, 0, length, stored_at, data, _checksum(number, row)
        if state:
            rows.append((*values, envelope or None, state))
        else:
            rows.append((*values, envelope) if envelope else values)
    message_table.insert(db, _INSERTS, rows)
    return stream._replace(stored=stream.stored + len(rows), size=size, parts=parts)


def _with_part(db: sqlite3.Connection, stream: int, parts: tuple[Part, ...], number: int) -> tuple[Part, ...]:
    """The parts of a log, with one that has a place for this number. Raises ConfigurationError."""
    if any(part.first_seq <= number < part.first_seq + PART_SIZE for part in parts):
        return parts
    if parts and number < parts[-1].first_seq:
        raise ConfigurationError(f"the number {number} lies below those that the log has, and never was there")
    return (*parts, add_part(db, stream, number))


def _change_state(db: sqlite3.Connection, stream: Stream, number: int, state: bytes) -> None:
    for low, high, shift in stream.ids(number, number + 1):
        for found in db.execute(_READ, (low, high, 1)).fetchall():
            row = _checked(stream.id, shift, found)._replace(state=state)
            db.execute(
                "UPDATE message SET state = ?, checksum = ? WHERE id = ?",
                (state or None, _checksum(stream.id, row), low),
            )


def read(db: sqlite3.Connection, stream: Stream, from_number: int, max_count: int, max_bytes: int) -> list[HostRow]:
    """The rows from a number on, as `HostStorage.rows` asks for them. Raises Damage."""
    return message_table.read_first(db, _READ, _checked, stream, from_number, max_count, max_bytes)


def summary(db: sqlite3.Connection, stream: Stream) -> HostLog:
    """What `HostStorage.logs` tells of a log."""
    ends: list[tuple[int, float]] = []
    for low, high, shift in stream.ids():
        for order in ("ASC", "DESC"):
            found = db.execute(_END.format(order), (low, high)).fetchone()
            if found is not None:
                ends.append((found[0] + shift, found[1]))
    (first_number, oldest_at), (_, newest_at) = (ends[0], ends[-1]) if ends else ((None, None), (None, None))
    return HostLog(stream.next_seq, stream.stored, stream.size, first_number, oldest_at, newest_at)


def _checked(
    stream: int, shift: int, row: tuple[int, int, int, bytes, bytes | None, float, bytes | None, int]
) -> HostRow:
    number, _, size, data, envelope, stored_at, state, checksum = row
    found = HostRow(number + shift, data, envelope or b"", stored_at, state or b"")
    try:
        intact = checksum == _checksum(stream, found) and size == len(data) + len(found.envelope)
    except Exception:  # damage has made a value one of another type
        intact = False
    if not intact:
        raise Damage(f"row {found.number!r} of a log is not what was stored")
    return found


def _checksum(stream: int, row: HostRow) -> int:
    number, data, envelope, stored_at, state = row
    checksum = crc32(data, crc32(_ROW_KEY.pack(stream, number, stored_at, len(envelope), len(state))))
    if envelope:
        checksum = crc32(envelope, checksum)
    return crc32(state, checksum) if state else checksum
