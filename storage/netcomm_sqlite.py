"""Queue storage in one SQLite file.

The schema is made, and brought up to date, through sqlite-utils; `SqliteQueueStorage.database` is its `Database`, for
those who want to look in. The hot path runs prepared statements on the same connection. There is one connection and
one lock, and nothing else is acquired while the lock is held: so threads can't deadlock over it, and SQLite never sees
two of them at once.

Tables: `stream` (a row a receiver: epoch, counter, totals), `message`, `part` (what ids the messages of a stream have),
`position` (a row a sender) and `meta`. Rows carry a CRC-32 of their content, since SQLite itself does not notice a
flipped bit in a value.

Each page that a transaction changes costs time, so a message that is stored by itself changes one: that with the last
messages of its stream. They have their place in the file by their ids, without another index; and the row of their
stream, with its counter and totals, follows later. Until then such messages count themselves.

The owner holds a lock on FILE-lock beside the file, which ends with the process, however it ends. SQLite's own locks
would shut out readers too.
"""

import os
import secrets
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from struct import Struct
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from zlib import crc32

from sqlite_utils import Database

from netcomm.errors import ConfigurationError, StorageCorrupt, StorageError, StorageLocked, StorageUnavailable
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream

Durability = Literal["power", "process"]

_APPLICATION_ID = 0x6E636F6D  # "ncom"
_BUSY_S = 5.0
# SQLite's synchronous, and after how many pages the WAL is begun anew. To sync what is written over costs half as much
# as to sync what makes the file longer; where nothing is synced before the WAL begins anew, that is to be seldom.
_SETTINGS: dict[str, tuple[str, int]] = {"power": ("FULL", 250), "process": ("NORMAL", 1000)}

# The messages of a stream have ids one behind the other, as their seqs are, in parts of so many: hardly any stream will
# ever have a second one.
_PART_BITS = 40
_PART_SIZE = 1 << _PART_BITS
# So many messages that were stored by themselves may be behind what the row of their stream tells.
_MOST_AHEAD = 256

_INSERT = """
    INSERT INTO message (id, place, size, uuid, queued_at, ttl, expires_at, data, checksum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_COLUMNS = "id, place, size, uuid, data, queued_at, ttl, checksum"
_READ = f"SELECT {_COLUMNS} FROM message WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
_EXPIRING = f"FROM message WHERE id >> {_PART_BITS} = ? AND id >= ? AND expires_at"
# In the order of the index: in another one, SQLite would sort all that have expired, however few are asked for.
_READ_EXPIRED = f"SELECT {_COLUMNS} {_EXPIRING} <= ? ORDER BY expires_at LIMIT ?"
_NEXT_EXPIRY = f"SELECT min(expires_at) {_EXPIRING} > ?"
_COUNT = "SELECT count(*), coalesce(sum(size), 0) FROM message WHERE id >= ? AND id < ?"
_FIND_ANY = "SELECT id FROM message WHERE id BETWEEN ? AND ? LIMIT 1"
_LOAD_STREAMS = "SELECT id, ident, epoch, next_seq, sent_below, count, size, checksum FROM stream"
_LOAD_PARTS = "SELECT id, stream, first_seq, checksum FROM part ORDER BY id"
_UPDATE_STREAM = """
    UPDATE stream SET epoch = ?, next_seq = ?, sent_below = ?, count = ?, size = ?, checksum = ? WHERE id = ?
"""
_STORE_POSITION = """
    INSERT INTO position (ident, epoch, next_seq, checksum) VALUES (?, ?, ?, ?)
    ON CONFLICT (ident) DO UPDATE
    SET epoch = excluded.epoch, next_seq = excluded.next_seq, checksum = excluded.checksum
"""

_FAILURES = (sqlite3.Error, UnicodeDecodeError, OSError)

_MESSAGE_KEY = Struct(">qqd?d")
_STREAM_VALUES = Struct(">qqqqq")
_PART_VALUES = Struct(">qqq")
_POSITION_VALUES = Struct(">qq")


class _Part(NamedTuple):
    """A row of `part`: the message with `first_seq` has `first_id`, and those behind it theirs accordingly."""

    first_id: int
    first_seq: int


class _Stream(NamedTuple):
    """A row of `stream` (`stored` is its column `count`), brought up to date by the messages that are ahead of it.

    parts: in order.
    ahead: how many messages the row in the file does not tell of.
    """

    id: int
    ident: str
    epoch: int
    next_seq: int
    sent_below: int
    stored: int
    size: int
    parts: tuple[_Part, ...] = ()
    ahead: int = 0

    def checksum(self) -> int:
        values = (self.epoch, self.next_seq, self.sent_below, self.stored, self.size)
        return crc32(self.ident.encode(), crc32(_STREAM_VALUES.pack(*values)))

    def ids(self, from_seq: int = 0, below_seq: int = 2**63) -> Iterator[tuple[int, int, int]]:
        """The ids of messages with these seqs, from one to below another, for each part that has any.

        The third number is what has to be added to an id to have the seq.
        """
        for first_id, first_seq in self.parts:
            low, high = max(0, from_seq - first_seq), min(_PART_SIZE, below_seq - first_seq)
            if low < high:
                yield first_id + low, first_id + high, first_seq - first_id


class SqliteQueueStorage(QueueStorage):
    """A queue storage in one SQLite file, in WAL mode."""

    def __init__(
        self, path: str | os.PathLike[str], *, durability: Durability = "power", read_only: bool = False
    ) -> None:
        """Open the file, and make it where it does not exist.

        durability: "power": what was stored survives a power cut; "process": it survives the death of the process,
            but a power cut may take the last moments.
        read_only: open it for a look, also while it has an owner.

        Raises StorageLocked where another owner has it, in this process or another; StorageCorrupt where its content
        is damaged; StorageError; ConfigurationError.
        """
        if durability not in _SETTINGS:
            raise ConfigurationError(f"durability must be 'power' or 'process', not {durability!r}")
        self._path = Path(path)
        self._read_only = read_only
        self._lock = threading.Lock()
        self._closed = False
        self._streams: dict[str, _Stream] = {}
        self._is_current = True  # `_streams` is what the file has
        self._owner = None if read_only else _OwnerLock(self._path)
        try:
            with self._errors():
                self._check_file()
                self._db = self._connect()
            try:
                with self._errors():
                    self._open(durability)
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            if self._owner is not None:
                self._owner.release()
            raise

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `sqlite:///relative/path` or `sqlite:////absolute/path`, percent-encoded; `?durability=process`."""
        parts = urlsplit(url)
        path = unquote(parts.path)[1:]
        if parts.netloc or not path:
            raise ConfigurationError(
                f"an SQLite URL is sqlite:///relative/path or sqlite:////absolute/path, not {url!r}"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        durability: Any = options.pop("durability", "power")
        if options:
            raise ConfigurationError(f"unknown options in {url!r}: {', '.join(options)}; there is 'durability'")
        return cls(path, durability=durability, read_only=read_only)

    @property
    def database(self) -> Database:
        """The file as a sqlite-utils `Database`, on the storage's own connection; look, and don't write."""
        return Database(self._db)

    @property
    def store_id(self) -> bytes:
        return self._store_id

    @property
    def incarnation(self) -> int:
        return self._incarnation

    # -- Messages ---------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        if len(batch) == 1 and len(batch[0].messages) == 1 and self._append_ahead(batch[0].ident, batch[0].messages[0]):
            return

        def step(db: sqlite3.Connection) -> dict[str, _Stream]:
            changed: dict[str, _Stream] = {}
            for ident, epoch, messages in batch:
                stream = changed.get(ident) or self._streams.get(ident) or self._add_stream(db, ident, epoch)
                number, _, epoch, next_seq, sent_below, stored, size, parts, _ = stream
                rows = []
                for message in messages:
                    if not parts or message.seq >= parts[-1].first_seq + _PART_SIZE:
                        parts = (*parts, self._add_part(db, number, message.seq))
                    row = _row(number, parts[-1], message, 0)
                    rows.append(row)
                    size += row[2]
                    next_seq = max(next_seq, message.seq + 1)
                db.executemany(_INSERT, rows)
                stored += len(rows)
                changed[ident] = self._update_stream(
                    db, _Stream(number, ident, epoch, next_seq, sent_below, stored, size, parts)
                )
            return changed

        self._change(step)

    def _append_ahead(self, ident: str, message: StoredMessage) -> bool:
        """Store a message ahead of the row of its stream; returns False where that can't be."""
        done = False

        def step(db: sqlite3.Connection) -> dict[str, _Stream]:
            nonlocal done
            stream = self._streams.get(ident)
            if stream is None or not stream.parts or stream.ahead >= _MOST_AHEAD:
                return {}
            number, _, epoch, next_seq, sent_below, stored, size, parts, ahead = stream
            if message.seq < next_seq or message.seq >= parts[-1].first_seq + _PART_SIZE:
                return {}
            row = _row(number, parts[-1], message, ahead + 1)
            db.execute(_INSERT, row)
            done = True
            return {
                ident: _Stream(
                    number, ident, epoch, message.seq + 1, sent_below, stored + 1, size + row[2], parts, ahead + 1
                )
            }

        self._change(step, one_statement=True)
        return done

    def read(self, ident: str, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        with self._reading() as db:
            stream = self._stream(db, ident)
            if stream is None:
                return []
            found: list[StoredMessage] = []
            for low, high, shift in stream.ids(from_seq):
                for row in db.execute(_READ, (low, high, max_count - len(found))):
                    if row[0] < low:
                        raise self._corrupt(f"message {row[0] + shift!r} is not in its place")
                    low = row[0] + 1
                    message = self._message(stream.id, shift, row)
                    found.append(message)
                    max_bytes -= len(message.data)
                    if max_bytes <= 0:
                        return found
            return found

    def delete_below(self, ident: str, seq: int) -> None:
        self._delete(ident, [(0, seq)])

    def delete(self, ident: str, seqs: Sequence[int]) -> None:
        self._delete(ident, [(seq, seq + 1) for seq in sorted(set(seqs))])  # one that is named twice is counted once

    def _delete(self, ident: str, ranges: Sequence[tuple[int, int]]) -> None:
        def delete(db: sqlite3.Connection, stream: _Stream) -> _Stream:
            ids = [(low, high) for pair in ranges for low, high, _ in stream.ids(*pair)]
            for pair in ids:
                count, size = db.execute(_COUNT, pair).fetchone()
                stream = stream._replace(stored=stream.stored - count, size=stream.size - size)
            db.executemany("DELETE FROM message WHERE id >= ? AND id < ?", ids)
            return stream

        self._change_stream(ident, delete)

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        with self._reading() as db:
            stream = self._stream(db, ident)
            if stream is None:
                return [], None
            found: list[StoredMessage] = []
            expiries = []
            for low, _, shift in stream.ids(from_seq):
                part = low >> _PART_BITS
                rows = db.execute(_READ_EXPIRED, (part, low, now, max_count - len(found)))
                found += [self._message(stream.id, shift, row) for row in rows]
                expiries += db.execute(_NEXT_EXPIRY, (part, low, now)).fetchone()
            return found, min((when for when in expiries if when is not None), default=None)

    # -- Streams and positions --------------------------------------------------------------------------------

    def streams(self) -> list[StoredStream]:
        with self._reading() as db:
            streams = self._load_streams(db) if self._read_only else self._streams
            return [self._summary(db, stream) for stream in streams.values()]

    @staticmethod
    def _summary(db: sqlite3.Connection, stream: _Stream) -> StoredStream:
        expiries: list[float] = []
        ends: list[float] = []
        for low, high, _ in stream.ids():
            expiries += db.execute(_NEXT_EXPIRY, (low >> _PART_BITS, low, -inf)).fetchone()
            for order in ("ASC", "DESC"):
                ends += (
                    db.execute(
                        f"SELECT queued_at FROM message WHERE id >= ? AND id < ? ORDER BY id {order} LIMIT 1",
                        (low, high),
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
        )

    def mark_sent(self, ident: str, below: int) -> None:
        self._change_stream(ident, lambda db, stream: stream._replace(sent_below=below))

    def renew(self, ident: str, epoch: int) -> None:
        self._change_stream(ident, lambda db, stream: stream._replace(epoch=epoch, sent_below=stream.next_seq))

    def _change_stream(self, ident: str, change: Callable[[sqlite3.Connection, _Stream], _Stream]) -> None:
        def step(db: sqlite3.Connection) -> dict[str, _Stream]:
            stream = self._streams.get(ident)
            return {} if stream is None else {ident: self._update_stream(db, change(db, stream))}

        self._change(step)

    def positions(self) -> dict[str, Position]:
        with self._reading() as db:
            found = {}
            for ident, epoch, next_seq, checksum in db.execute("SELECT ident, epoch, next_seq, checksum FROM position"):
                if not _is_intact(checksum, _position_checksum, ident, epoch, next_seq):
                    raise self._corrupt(f"the position of {ident!r} is not what was stored")
                found[ident] = Position(_unsigned(epoch), _unsigned(next_seq))
            return found

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        rows = []
        for ident, position in positions.items():
            epoch, next_seq = _signed(position.epoch), _signed(position.next_seq)
            rows.append((ident, epoch, next_seq, _position_checksum(ident, epoch, next_seq)))

        def step(db: sqlite3.Connection) -> None:
            db.executemany(_STORE_POSITION, rows)

        self._change(step)

    # -- Life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                try:
                    self._catch_up()
                finally:
                    self._db.close()  # also undoes what was interrupted
            except sqlite3.Error as error:
                raise self._mapped(error) from error
            finally:
                if self._owner is not None:
                    self._owner.release()

    def _catch_up(self) -> None:
        """With the lock held: let the rows of streams tell of all messages, so that those need not count themselves.

        Where that fails, they go on counting themselves; so it does not wait for another program that writes.
        """
        if self._is_current and not self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA busy_timeout = 0")
                self._db.execute("BEGIN IMMEDIATE")
                for stream in self._streams.values():
                    if stream.ahead:
                        self._update_stream(self._db, stream)
                self._db.execute("COMMIT")

    def abandon(self) -> None:
        self._closed = True
        self._lock = threading.Lock()  # a thread that does not exist here may hold the old one
        if self._owner is not None:
            self._owner.release()
        # Kept, and not even closed: closing would end the parent's locks on the file, and perhaps write to it.
        _abandoned.append(self._db)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self._path)!r}>"

    def _check_file(self) -> None:
        """Refuse what SQLite would take for a new file, and is not one."""
        if self._path.exists():
            if not self._path.is_file():
                raise StorageError(f"{self._path} is not a file")
            is_empty = self._path.stat().st_size == 0 and not Path(f"{self._path}-wal").exists()
            if is_empty and (self._owner is None or self._owner.has_been_filled):
                raise self._corrupt("it is empty")
        elif self._read_only:
            raise StorageError(f"there is no queue storage at {self._path}")

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rwc"
        return sqlite3.connect(
            f"file:{quote(str(self._path))}?mode={mode}",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )

    def _open(self, durability: Durability) -> None:
        db = self._db
        db.execute("PRAGMA cell_size_check = ON")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        is_new = not self._read_only and (version, application, tables) == (0, 0, 0)
        if not is_new and application != _APPLICATION_ID:
            raise self._corrupt("it is not a netcomm queue storage")
        if not 0 <= version <= len(_MIGRATIONS):
            raise StorageError(
                f"{self._path} has schema version {version}, and this netcomm knows {len(_MIGRATIONS)}: it needs the"
                " newer netcomm that made it"
            )
        if not self._read_only:
            db.execute("PRAGMA journal_mode = WAL")
            synchronous, pages = _SETTINGS[durability]
            db.execute(f"PRAGMA synchronous = {synchronous}")
            db.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            self._migrate(version)
        elif version < len(_MIGRATIONS):
            raise StorageError(f"{self._path} has an older schema; opened once as its owner, it is brought up to date")
        self._load_identity()
        with self._reading():
            self._streams = self._load_streams(db)
        if self._owner is not None:
            self._owner.note_filled()

    def _migrate(self, version: int) -> None:
        if version == len(_MIGRATIONS):
            return

        def migrate(db: sqlite3.Connection) -> None:
            for step in _MIGRATIONS[version:]:
                step(Database(db))
            db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")

        self._change(migrate)

    def _load_identity(self) -> None:
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        store_id, incarnation = meta.get("store_id"), meta.get("incarnation")
        if not _is_intact(meta.get("checksum"), _meta_checksum, store_id, incarnation):
            raise self._corrupt("its identity is not what was stored")
        assert isinstance(store_id, bytes)
        assert isinstance(incarnation, int)
        if not self._read_only:
            incarnation += 1
            changed = {"incarnation": incarnation, "checksum": _meta_checksum(store_id, incarnation)}

            def step(db: sqlite3.Connection) -> None:
                db.executemany(
                    "UPDATE meta SET value = ? WHERE key = ?", [(value, key) for key, value in changed.items()]
                )

            self._change(step)
        self._store_id = store_id
        self._incarnation = incarnation

    def _load_streams(self, db: sqlite3.Connection) -> dict[str, _Stream]:
        streams = {}
        ranges: list[tuple[int, int]] = []
        parts = self._load_parts(db)
        for row in db.execute(_LOAD_STREAMS).fetchall():
            stream = self._checked_stream(db, row, parts.pop(row[0], ()))
            # Part by part, as they are read: what is out of its place is not found so.
            ids = [(low, high) for low, high, _ in stream.ids()]
            found = [db.execute(_COUNT, pair).fetchone() for pair in ids]
            if (stream.stored, stream.size) != (sum(count for count, _ in found), sum(size for _, size in found)):
                raise self._corrupt(f"messages of the stream to {stream.ident!r} are missing")
            streams[stream.ident] = stream
            ranges += ids
        ranges.sort()
        gaps = zip([-(2**63), *(high for _, high in ranges)], [*(low for low, _ in ranges), 2**63], strict=True)
        if parts or any(low < high and db.execute(_FIND_ANY, (low, high - 1)).fetchone() for low, high in gaps):
            raise self._corrupt("it has messages of streams that it does not have")
        return streams

    def _load_parts(self, db: sqlite3.Connection) -> dict[int, tuple[_Part, ...]]:
        """The parts by their streams."""
        parts: dict[int, tuple[_Part, ...]] = {}
        for number, of, first_seq, checksum in db.execute(_LOAD_PARTS):
            if not _is_intact(checksum, _part_checksum, number, of, first_seq):
                raise self._corrupt("it is not known which messages belong to which stream")
            parts[of] = (*parts.get(of, ()), _Part(number << _PART_BITS, first_seq))
        return parts

    # -- Inside -----------------------------------------------------------------------------------------------

    def _stream(self, db: sqlite3.Connection, ident: str) -> _Stream | None:
        # The owner knows what is in the file; a reader looks each time. Not through an index: a damaged one would say
        # that there is nothing.
        if not self._read_only:
            return self._streams.get(ident)
        for row in db.execute(_LOAD_STREAMS).fetchall():
            if row[1] == ident:
                return self._checked_stream(db, row, self._load_parts(db).get(row[0], ()))
        return None

    def _checked_stream(self, db: sqlite3.Connection, row: tuple[Any, ...], parts: tuple[_Part, ...]) -> _Stream:
        *values, checksum = row
        stream = _Stream(*values)._replace(parts=parts)
        if not _is_intact(checksum, stream.checksum):
            raise self._corrupt(f"the stream to {stream.ident!r} is not what was stored")
        for low, high, shift in stream.ids(stream.next_seq):
            for message, place, size in db.execute(
                "SELECT id, place, size FROM message WHERE id >= ? AND id < ? ORDER BY id", (low, high)
            ):
                if place != stream.ahead + 1:
                    raise self._corrupt(f"messages of the stream to {stream.ident!r} are missing")
                stream = stream._replace(
                    next_seq=message + shift + 1, stored=stream.stored + 1, size=stream.size + size, ahead=place
                )
        return stream

    @staticmethod
    def _add_stream(db: sqlite3.Connection, ident: str, epoch: int) -> _Stream:
        new = _Stream(0, ident, epoch, 0, 0, 0, 0)
        cursor = db.execute(
            "INSERT INTO stream (ident, epoch, next_seq, sent_below, count, size, checksum)"
            " VALUES (?, ?, 0, 0, 0, 0, ?)",
            (new.ident, new.epoch, new.checksum()),
        )
        assert cursor.lastrowid is not None
        return new._replace(id=cursor.lastrowid)

    @staticmethod
    def _add_part(db: sqlite3.Connection, stream: int, first_seq: int) -> _Part:
        (number,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM part").fetchone()
        db.execute(
            "INSERT INTO part (id, stream, first_seq, checksum) VALUES (?, ?, ?, ?)",
            (number, stream, first_seq, _part_checksum(number, stream, first_seq)),
        )
        return _Part(number << _PART_BITS, first_seq)

    @staticmethod
    def _update_stream(db: sqlite3.Connection, stream: _Stream) -> _Stream:
        """Let the row of a stream tell of all its messages."""
        number, ident, epoch, next_seq, sent_below, stored, size, parts, _ = stream
        db.execute(_UPDATE_STREAM, (epoch, next_seq, sent_below, stored, size, stream.checksum(), number))
        return _Stream(number, ident, epoch, next_seq, sent_below, stored, size, parts)

    def _message(
        self, stream: int, shift: int, row: tuple[int, int, int, bytes, bytes, float, float | None, int]
    ) -> StoredMessage:
        number, place, size, uuid, data, queued_at, ttl, checksum = row
        message = StoredMessage(number + shift, uuid, data, queued_at, ttl)
        try:
            intact = checksum == _message_checksum(stream, message, place) and size == len(data)
        except Exception:  # damage has made a value one of another type
            intact = False
        if not intact:
            raise self._corrupt(f"message {message.seq!r} is not what was stored")
        return message

    def _change(
        self, step: Callable[[sqlite3.Connection], Mapping[str, _Stream] | None], one_statement: bool = False
    ) -> None:
        """Run a step in one transaction under the lock: committed as a whole, or undone.

        step: returns the streams that it has changed, by ident, if it has changed any: what is kept in memory of them
            changes when the file has.
        one_statement: the step runs one at most, which is a transaction by itself.

        It may be interrupted (by Ctrl-C), also when the file has changed and the memory has not: then the memory is
        read anew before it is used. There is as little around the step as can be: after a wait for the disk, code
        takes three times as long.
        """
        if self._read_only:
            raise StorageError(f"{self._path} was opened for reading only")
        db = self._db
        with self._lock:
            try:
                if self._closed or not self._is_current:
                    self._make_usable()
                self._is_current = False
                try:
                    if one_statement:
                        changed = step(db)
                    else:
                        db.execute("BEGIN IMMEDIATE")
                        changed = step(db)
                        db.execute("COMMIT")
                except BaseException as error:
                    if db.in_transaction:  # SQLite ends it by itself after some errors
                        db.execute("ROLLBACK")
                    self._is_current = isinstance(error, sqlite3.Error)
                    raise
                if changed is not None:
                    self._streams.update(changed)
                self._is_current = True
            except _FAILURES as error:
                raise self._mapped(error) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._make_usable()
            if not self._read_only:
                yield self._db
                return
            # The owner goes on meanwhile: several statements see one state only within a transaction.
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _make_usable(self) -> None:
        """With the lock held: see to it that it is open, and undo what an interrupted change has left."""
        if self._closed:
            raise StorageError(f"{self._path} has been closed")
        if not self._is_current:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._streams = self._load_streams(self._db)
            self._is_current = True

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            raise self._mapped(error) from error

    def _corrupt(self, what: str) -> StorageCorrupt:
        return StorageCorrupt(
            f"{self._path} is damaged: {what}. What can be read is salvaged by `sqlite3 FILE .recover`; to start with"
            " an empty queue, move the file away, together with FILE-wal and FILE-shm"
        )

    def _mapped(self, error: Exception) -> StorageError:
        """The error to raise for one of `_FAILURES`."""
        if isinstance(error, OSError):
            return StorageError(f"{self._path} can't be used: {error.strerror or error}")
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        kept = "what was accepted before is kept"
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            return StorageUnavailable(f"{self._path} is locked by another program for over {_BUSY_S:g} s; {kept}")
        if code == sqlite3.SQLITE_FULL:
            return StorageUnavailable(f"no space left for {self._path}: free some; {kept}")
        if code == sqlite3.SQLITE_IOERR:
            return StorageUnavailable(f"the disk fails at {self._path}: {error}; {kept}")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return StorageError(f"{self._path} or its folder can't be written: change its permissions; {kept}")
        if code == sqlite3.SQLITE_CANTOPEN:
            return StorageError(f"{self._path} can't be opened: does its folder exist, and may it be used? ({error})")
        # Our statements are right for our schema: where SQLite can't run them, the schema is not ours any more.
        return self._corrupt(str(error))


def _row(stream: int, part: _Part, message: StoredMessage, place: int) -> tuple[Any, ...]:
    """A row of `message`; place: how many messages, with this one, are ahead of the row of their stream."""
    seq, uuid, data, queued_at, ttl = message
    number = part.first_id + seq - part.first_seq
    expires_at = None if ttl is None else message.expires_at
    checksum = _message_checksum(stream, message, place)
    return number, place, len(data), uuid, queued_at, ttl, expires_at, data, checksum


def _message_checksum(stream: int, message: StoredMessage, place: int = 0) -> int:
    seq, uuid, data, queued_at, ttl = message
    checksum = crc32(uuid, crc32(_MESSAGE_KEY.pack(stream, seq, queued_at, ttl is None, ttl or 0.0), place))
    return crc32(data, checksum)


def _part_checksum(number: int, stream: int, first_seq: int) -> int:
    return crc32(_PART_VALUES.pack(number, stream, first_seq))


def _position_checksum(ident: str, epoch: int, next_seq: int) -> int:
    return crc32(ident.encode(), crc32(_POSITION_VALUES.pack(epoch, next_seq)))


def _meta_checksum(store_id: bytes, incarnation: int) -> int:
    return crc32(store_id, crc32(incarnation.to_bytes(8)))


def _is_intact(stored: Any, checksum: Callable[..., int], *values: Any) -> bool:
    """Whether values from the file have the checksum that is stored with them."""
    try:
        return bool(stored == checksum(*values))
    except Exception:  # damage has made them values of another type
        return False


def _signed(number: int) -> int:
    """SQLite's integers have a sign, the protocol's don't."""
    return number - 2**64 if number >= 2**63 else number


def _unsigned(number: int) -> int:
    return number % 2**64


# -- Schema ---------------------------------------------------------------------------------------------------


def _create(db: Database) -> None:
    store_id = secrets.token_bytes(16)
    db.table("meta").create({"key": str, "value": bytes}, pk="key")
    meta: dict[str, Any] = {"store_id": store_id, "incarnation": 0, "checksum": _meta_checksum(store_id, 0)}
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
            below = first_seq + _PART_SIZE
            part = SqliteQueueStorage._add_part(db.conn, stream, first_seq)
            db.execute(
                "INSERT INTO message SELECT ? + seq - ?, 0, size, uuid, queued_at, ttl, expires_at, data, checksum"
                " FROM message_2 WHERE stream = ? AND seq >= ? AND seq < ? ORDER BY seq",
                (part.first_id, first_seq, stream, first_seq, below),
            )
    db.execute("DROP TABLE message_2")
    db.execute(
        f"CREATE INDEX message_by_expiry ON message (id >> {_PART_BITS}, expires_at) WHERE expires_at IS NOT NULL"
    )


# Each brings the schema from one version to the next.
_MIGRATIONS: tuple[Callable[[Database], None], ...] = (_create, _add_expiry, _cluster)


# -- Ownership ------------------------------------------------------------------------------------------------

_abandoned: list[sqlite3.Connection] = []

if sys.platform == "win32":
    import msvcrt

    def _lock_file(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class _OwnerLock:
    """Held by one owner of a file at a time; the operating system releases it when the process dies.

    It notes, too, that the file has had content. An empty file without that note is one whose maker died at once.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Through links: they name the same file, so they must share the lock. Not buffered: what a full disk
            # refuses must not be tried again, and fail again, in `release`.
            self._file = open(f"{os.path.realpath(path)}-lock", "a+b", buffering=0)  # noqa: SIM115 - held until release
        except OSError as error:
            raise StorageError(f"{path} can't be opened: {error}") from error
        try:
            _lock_file(self._file.fileno())
        except (BlockingIOError, PermissionError):  # the latter on Windows
            self._file.close()
            raise StorageLocked(f"{path} is open already, in this process or another") from None
        except OSError as error:
            self._file.close()
            raise StorageError(
                f"{path} can't be locked: {error.strerror or error}; does its disk allow locks?"
            ) from error

    @property
    def has_been_filled(self) -> bool:
        return os.fstat(self._file.fileno()).st_size > 0

    def note_filled(self) -> None:
        if not self.has_been_filled:
            self._file.write(b"netcomm\n")

    def release(self) -> None:
        self._file.close()
