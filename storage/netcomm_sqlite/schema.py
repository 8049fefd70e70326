"""What makes a file a queue: its tables, the steps that bring an older file up to date, and its identity.

Tables: `stream` (a row for each durable stream and each log of a host: epoch, counter, totals), `message` (theirs),
`part` (which ids the messages of a stream have), `position` (a row for each sender), `host_position`, `mark` and
`document` (a row for each that a host keeps), and `meta` (the identity). Rows carry a CRC-32 of their content, since
SQLite itself does not notice a flipped bit in a value.
"""

import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

from sqlite_utils import Database

from netcomm.errors import StorageError
from netcomm.message import DURABLE
from netcomm_sqlite.failures import Damage, is_intact
from netcomm_sqlite.stream_table import PART_BITS, PART_SIZE, add_part

APPLICATION_ID = 0x6E636F6D  # "ncom"


def version_of(db: sqlite3.Connection, path: Path, may_be_new: bool) -> int:
    """The version of a file's schema, 0 where it has none yet.

    may_be_new: an empty database is taken for a new queue.

    Raises Damage where the file is no queue, and StorageError where a newer netcomm made it.
    """
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    is_new = may_be_new and (version, application, tables) == (0, 0, 0)
    if not is_new and application != APPLICATION_ID:
        raise Damage("it is not a netcomm queue storage")
    if not 0 <= version <= len(MIGRATIONS):
        raise StorageError(
            f"{path} has schema version {version}, and this netcomm knows {len(MIGRATIONS)}: it needs the newer netcomm"
            " that made it"
        )
    return version


def is_older(version: int) -> bool:
    """Whether a file with this version has to be brought up to date."""
    return version < len(MIGRATIONS)


def migrate(db: sqlite3.Connection, version: int) -> None:
    """In a transaction: bring a file with this version up to date."""
    for step in MIGRATIONS[version:]:
        step(Database(db))
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def load_identity(db: sqlite3.Connection) -> tuple[bytes, int]:
    """The store id of a queue and its incarnation. Raises Damage."""
    meta = dict(db.execute("SELECT key, value FROM meta"))
    store_id, incarnation = meta.get("store_id"), meta.get("incarnation")
    if not is_intact(meta.get("checksum"), _identity_checksum, store_id, incarnation):
        raise Damage("its identity is not what was stored")
    assert isinstance(store_id, bytes)
    assert isinstance(incarnation, int)
    return store_id, incarnation


def store_incarnation(db: sqlite3.Connection, store_id: bytes, incarnation: int) -> None:
    """Store the incarnation of the queue with this store id."""
    changed = {"incarnation": incarnation, "checksum": _identity_checksum(store_id, incarnation)}
    db.executemany("UPDATE meta SET value = ? WHERE key = ?", [(value, key) for key, value in changed.items()])


def _identity_checksum(store_id: bytes, incarnation: int) -> int:
    return crc32(store_id, crc32(incarnation.to_bytes(8)))


def _create(db: Database) -> None:
    store_id = secrets.token_bytes(16)
    db.table("meta").create({"key": str, "value": bytes}, pk="key")
    meta: dict[str, Any] = {"store_id": store_id, "incarnation": 0, "checksum": _identity_checksum(store_id, 0)}
    db.table("meta").insert_all([{"key": key, "value": value} for key, value in meta.items()])
    db.table("stream").create(
        {
            "id": int,
            "ident": str,
            "epoch": int,
            "next_seq": int,
            "sent_below": int,
            "count": int,
            "size": int,
            "checksum": int,
        },
        pk="id",
    )
    db.table("stream").create_index(["ident"], unique=True)
    db.table("message").create(
        {
            "stream": int,
            "seq": int,
            "size": int,
            "uuid": bytes,
            "queued_at": float,
            "ttl": float,
            "data": bytes,
            "checksum": int,
        }
    )
    # With the size in it, counting a backlog does not touch the messages.
    db.table("message").create_index(["stream", "seq", "size"])
    db.table("position").create({"ident": str, "epoch": int, "next_seq": int, "checksum": int}, pk="ident")


def _add_expiry(db: Database) -> None:
    """Let expired messages be found without reading all: version 1 had to."""
    db.execute("ALTER TABLE message ADD COLUMN expires_at REAL")
    db.execute("UPDATE message SET expires_at = queued_at + ttl WHERE ttl IS NOT NULL")
    db.execute("CREATE INDEX message_by_expiry ON message (stream, expires_at) WHERE expires_at IS NOT NULL")


def _cluster(db: Database) -> None:
    """Let messages have their place in the file by their streams and seqs: version 2 had another index for that."""
    db.table("part").create({"id": int, "stream": int, "first_seq": int, "checksum": int}, pk="id")
    db.execute("ALTER TABLE message RENAME TO message_2")
    db.table("message").create(
        {
            "id": int,
            "place": int,
            "size": int,
            "uuid": bytes,
            "queued_at": float,
            "ttl": float,
            "expires_at": float,
            "data": bytes,
            "checksum": int,
        },
        pk="id",
    )
    for (stream,) in db.execute("SELECT id FROM stream ORDER BY id").fetchall():
        below = 0
        while True:
            (first_seq,) = db.execute(
                "SELECT min(seq) FROM message_2 WHERE stream = ? AND seq >= ?", (stream, below)
            ).fetchone()
            if first_seq is None:
                break
            below = first_seq + PART_SIZE
            part = add_part(db.conn, stream, first_seq)
            db.execute(
                "INSERT INTO message SELECT ? + seq - ?, 0, size, uuid, queued_at, ttl, expires_at, data, checksum"
                " FROM message_2 WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq",
                (part.first_id, first_seq, stream, first_seq, below),
            )
    db.execute("DROP TABLE message_2")
    db.execute(
        f"CREATE INDEX message_by_expiry ON message (id >> {PART_BITS}, expires_at) WHERE expires_at IS NOT NULL"
    )


def _add_host(db: Database) -> None:
    """Let a host keep its logs, marks, documents and positions; and messages their envelopes: version 3 could not."""
    db.execute("ALTER TABLE message ADD COLUMN envelope BLOB")
    db.execute("ALTER TABLE message ADD COLUMN state BLOB")  # that of a log's row
    db.execute(f"ALTER TABLE stream ADD COLUMN kind INTEGER NOT NULL DEFAULT {int(DURABLE)}")
    db.execute("DROP INDEX idx_stream_ident")
    db.table("stream").create_index(["ident", "kind"], unique=True)
    db.table("host_position").create(
        {"ident": str, "stream": int, "epoch": int, "next_seq": int, "stored_at": float, "checksum": int},
        pk=("ident", "stream"),
    )
    db.table("mark").create({"name": str, "value": int, "checksum": int}, pk="name")
    db.table("document").create({"name": str, "content": bytes, "checksum": int}, pk="name")


# Each brings the schema from one version to the next.
MIGRATIONS: tuple[Callable[[Database], None], ...] = (_create, _add_expiry, _cluster, _add_host)
