"""The table `position`: a row for each sender, with how far its stream was handed over."""

import sqlite3
from collections.abc import Mapping
from struct import Struct
from zlib import crc32

from netcomm.storage import Position
from netcomm_sqlite.failures import Damage, is_intact

_STORE = """
    INSERT INTO position (ident, epoch, next_seq, checksum) VALUES (?, ?, ?, ?)
    ON CONFLICT (ident) DO UPDATE
    SET epoch = excluded.epoch, next_seq = excluded.next_seq, checksum = excluded.checksum
"""
_SIGNED = Struct(">qq")
_UNSIGNED = Struct(">QQ")


def load(db: sqlite3.Connection) -> dict[str, Position]:
    """All positions by the idents of the senders. Raises Damage."""
    found = {}
    for ident, epoch, next_seq, checksum in db.execute("SELECT ident, epoch, next_seq, checksum FROM position"):
        if not is_intact(checksum, _checksum, ident, epoch, next_seq):
            raise Damage(f"the position of {ident!r} is not what was stored")
        found[ident] = Position(*_UNSIGNED.unpack(_SIGNED.pack(epoch, next_seq)))
    return found


def store(db: sqlite3.Connection, positions: Mapping[str, Position]) -> None:
    """Store positions in place of those that the same senders had."""
    rows = []
    for ident, position in positions.items():
        # SQLite's integers have a sign, the protocol's don't.
        epoch, next_seq = _SIGNED.unpack(_UNSIGNED.pack(*position))
        rows.append((ident, epoch, next_seq, _checksum(ident, epoch, next_seq)))
    db.executemany(_STORE, rows)


def _checksum(ident: str, epoch: int, next_seq: int) -> int:
    return crc32(ident.encode(), crc32(_SIGNED.pack(epoch, next_seq)))
