"""The tables `mark`, `document` and `host_position`: a row for each that a host keeps beside its logs."""

import sqlite3
from struct import Struct
from zlib import crc32

from netcomm.host_changes import HostChanges
from netcomm.host_storage import HostPosition, PositionKey
from netcomm.message import Stream
from netcomm_sqlite.failures import Damage, is_intact

_RAISE_MARK = """
    INSERT INTO mark (name, value, checksum) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value, checksum = excluded.checksum
    WHERE excluded.value > mark.value
"""
_STORE_DOCUMENT = "INSERT OR REPLACE INTO document (name, content, checksum) VALUES (?, ?, ?)"
_STORE_POSITION = """
    INSERT OR REPLACE INTO host_position (ident, stream, epoch, next_seq, stored_at, checksum)
    VALUES (?, ?, ?, ?, ?, ?)
"""
_MARK = Struct(">q")
_SIGNED = Struct(">qq")
_UNSIGNED = Struct(">QQ")
_POSITION = Struct(">qqqd")


def change(db: sqlite3.Connection, changes: HostChanges) -> None:
    """Change the marks, documents and positions."""
    if changes.forgotten_marks:
        db.executemany("DELETE FROM mark WHERE name = ?", [(name,) for name in changes.forgotten_marks])
    for name, mark in changes.marks.items():
        db.execute(_RAISE_MARK, (name, mark, _mark_checksum(name, mark)))
    for name, content in changes.documents.items():
        if content is None:
            db.execute("DELETE FROM document WHERE name = ?", (name,))
        else:
            db.execute(_STORE_DOCUMENT, (name, content, _document_checksum(name, content)))
    for (ident, stream), position in changes.positions.items():
        if position is None:
            db.execute("DELETE FROM host_position WHERE ident = ? AND stream = ?", (ident, stream))
        else:
            # SQLite's integers have a sign, the protocol's don't.
            epoch, next_seq = _SIGNED.unpack(_UNSIGNED.pack(*position[:2]))
            values = ident, int(stream), epoch, next_seq, position.stored_at
            db.execute(_STORE_POSITION, (*values, _position_checksum(*values)))


def load_marks(db: sqlite3.Connection) -> dict[str, int]:
    """All marks by name. Raises Damage."""
    found = {}
    for name, value, checksum in db.execute("SELECT name, value, checksum FROM mark"):
        if not is_intact(checksum, _mark_checksum, name, value):
            raise Damage(f"the mark {name!r} is not what was stored")
        found[name] = value
    return found


def load_documents(db: sqlite3.Connection) -> dict[str, bytes]:
    """All documents by name. Raises Damage."""
    found = {}
    for name, content, checksum in db.execute("SELECT name, content, checksum FROM document"):
        if not is_intact(checksum, _document_checksum, name, content):
            raise Damage(f"the document {name!r} is not what was stored")
        found[name] = content
    return found


def load_positions(db: sqlite3.Connection) -> dict[PositionKey, HostPosition]:
    """All positions by sender and stream. Raises Damage."""
    found = {}
    for *values, checksum in db.execute(
        "SELECT ident, stream, epoch, next_seq, stored_at, checksum FROM host_position"
    ):
        if not is_intact(checksum, _position_checksum, *values):
            raise Damage(f"the position of {values[0]!r} in stream {values[1]!r} is not what was stored")
        ident, stream, epoch, next_seq, stored_at = values
        epoch, next_seq = _UNSIGNED.unpack(_SIGNED.pack(epoch, next_seq))
        found[ident, Stream(stream)] = HostPosition(epoch, next_seq, stored_at)
    return found


def _mark_checksum(name: str, value: int) -> int:
    return crc32(name.encode(), crc32(_MARK.pack(value)))


def _document_checksum(name: str, content: bytes) -> int:
    return crc32(content, crc32(name.encode()))


def _position_checksum(ident: str, stream: int, epoch: int, next_seq: int, stored_at: float) -> int:
    return crc32(ident.encode(), crc32(_POSITION.pack(stream, epoch, next_seq, stored_at)))
