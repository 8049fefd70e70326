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

The owner holds two locks, which end with the process, however it ends: one on FILE-lock beside the file, and one on the
file itself, since a file may have several names. SQLite's own locks would shut out readers too. A change is promised
when the file, and its log FILE-wal, still are at their names after it.

A disk that is full must not keep messages from leaving. So there is a reserve of blocks that appends may not use: the
log has it while the file is open, and FILE-lock while it is closed. And an append is stored only where the file has
blocks for all its pages, those in the log included: then the log can always be moved into the file, and begun anew.
"""

import ctypes
import errno
import os
import secrets
import sqlite3
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from struct import Struct
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, quote, unquote_to_bytes
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

# The reserve in bytes: FILE-lock has it while the file is closed. While the file is open, the log has its share, the
# log's index FILE-shm takes some, and FILE-lock keeps the rest for pages that the file gets not by appends.
_RESERVE = 512 * 1024
_RESERVE_OF_LOG = 416 * 1024
_RESERVE_BESIDE = 64 * 1024
# The file gets blocks for so many pages at once, if the disk has them.
_PAGES_AHEAD = 256
# A message that is stored by itself changes no more pages than so many, beside those that it fills.
_PAGES_AROUND = 8
# Two changes of a folder that are closer to each other may have the same time; some disks count in seconds.
_RECENT_NS = 100_000_000
_RECENT_COARSE_NS = 2_000_000_000
# Where a deletion needs more of the log than there is, it is made in pieces of so many messages, or of fewer.
_PIECE = 1024

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
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IOERR_SHMSIZE = sqlite3.SQLITE_IOERR | 19 << 8

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

        Raises StorageLocked where another owner has it, in this process or another, by this name or another;
        StorageCorrupt where its content is damaged; StorageError; ConfigurationError.
        """
        if durability not in _SETTINGS:
            raise ConfigurationError(f"durability must be 'power' or 'process', not {durability!r}")
        if "\0" in os.fsdecode(path):
            raise ConfigurationError(f"a path has no NUL character: {path!r}")
        self._path = Path(path)
        self._place = os.path.abspath(path)  # the program may change its folder
        # SQLite follows links too, and makes the log beside the file that they lead to.
        self._real = os.path.realpath(path)
        self._folder = os.path.dirname(self._real)
        self._log = f"{self._real}-wal"
        self._read_only = read_only
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._is_abandoned = False
        self._lost: str | None = None  # why nothing is stored any more
        self._streams: dict[str, _Stream] = {}
        self._is_current = True  # `_streams` is what the file has
        # What is known of the file's blocks: its size, how many pages may be added within it, and whether the reserve
        # is there.
        self._file_size = 0
        self._headroom = 0
        self._has_reserve = True
        self._log_key: _Key | None = None
        self._folder_changed: int | None = None
        self._has_borrowed = False
        with self._errors():
            self._check_name()
        self._owner = None if read_only else _OwnerLock(self._path, self._real)
        try:
            with self._errors():
                self._check_file()
            try:
                self._connect_and_open(durability)
            except StorageUnavailable as error:
                if not (read_only and _is_full(error.__cause__) and self._borrow_reserve()):
                    raise
                self._connect_and_open(durability)
        except BaseException:
            if self._owner is not None:
                self._owner.release()
            raise

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `sqlite:///relative/path` or `sqlite:////absolute/path`, percent-encoded; `?durability=process`."""
        # By hand: urlsplit would cut a path at "#", and leave tabs and line ends out, so that two queues share a file.
        address, _, query = url.partition("?")
        slashes, path = address.partition(":")[2][:3], os.fsdecode(unquote_to_bytes(address.partition(":")[2][3:]))
        if slashes != "///" or not path:
            raise ConfigurationError(
                f"an SQLite URL is sqlite:///relative/path or sqlite:////absolute/path, not {url!r}"
            )
        options = dict(parse_qsl(query, keep_blank_values=True))
        durability: Any = options.pop("durability", "power")
        if options:
            raise ConfigurationError(f"unknown options in {url!r}: {', '.join(options)}; there is 'durability'")
        return cls(path, durability=durability, read_only=read_only)

    @property
    def database(self) -> Database:
        """The file as a sqlite-utils `Database`, on the storage's own connection; look, and don't write.

        Raises StorageError in a forked child.
        """
        self._check_process()
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
            self._ensure_pages(db.execute("PRAGMA page_count").fetchone()[0])
            return changed

        self._change(step, is_append=True)

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
            self._ensure_room(_PAGES_AROUND + row[2] // self._page_size)
            db.execute(_INSERT, row)
            done = True
            return {
                ident: _Stream(
                    number, ident, epoch, message.seq + 1, sent_below, stored + 1, size + row[2], parts, ahead + 1
                )
            }

        self._change(step, one_statement=True, is_append=True)
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
        most: int | None = None
        is_complete = False

        def delete(db: sqlite3.Connection, stream: _Stream) -> _Stream:
            nonlocal is_complete
            ids = [(low, high) for pair in ranges for low, high, _ in stream.ids(*pair)]
            is_complete = most is None
            if most is not None:
                ids, is_complete = _first_ids(db, ids, most)
            for pair in ids:
                count, size = db.execute(_COUNT, pair).fetchone()
                stream = stream._replace(stored=stream.stored - count, size=stream.size - size)
            db.executemany("DELETE FROM message WHERE id >= ? AND id < ?", ids)
            return stream

        while True:
            try:
                self._change_stream(ident, delete)
            except StorageUnavailable as error:
                # Each page that changes takes a place in the log: those of a large backlog, more than a full disk has.
                if most == 1 or not _is_full(error.__cause__):
                    raise
                most = _PIECE if most is None else max(1, most // 4)
            else:
                if is_complete or ident not in self._streams:
                    return

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
        if os.getpid() != self._pid:
            return  # `abandon` lets go of what a forked child has
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                try:
                    with suppress(OSError):
                        self._check_names()
                    if self._lost is None:
                        self._catch_up()
                finally:
                    self._disconnect()  # also undoes what was interrupted
            except _FAILURES as error:
                raise self._mapped(error) from error
            finally:
                if self._owner is not None:
                    self._owner.release()
                elif self._has_borrowed:
                    self._give_reserve_back()
                _storages.discard(self)

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

    def _disconnect(self) -> None:
        """End the connection; where a stranger's log is at the log's name, without SQLite, which would remove it.

        SQLite itself leaves everything alone when the file is not at its name. And a log that was deleted is still what
        it has open: then closing moves into the file what was accepted.
        """
        if self._lost is not None and self._has_strange_log():
            _leave_open(self._db)
            return
        try:
            self._db.close()
        finally:
            _leave(self._key)
        if self._owner is not None:
            self._owner.note_closed()

    def _has_strange_log(self) -> bool:
        try:
            file, log = os.stat(self._real), os.stat(self._log)
        except OSError:
            return False
        # A look that finds no log makes an empty one.
        return _key(file) == self._key and _key(log) != self._log_key and log.st_size > 0

    def abandon(self) -> None:
        if self._is_abandoned:
            return
        self._closed = self._is_abandoned = True
        self._lock = threading.Lock()  # a thread that does not exist here may hold the old one
        if self._owner is not None:
            self._owner.let_go()
        # Not even closed: closing would end the parent's locks on the file, and perhaps write to it.
        _leave_open(self._db)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self._path)!r}>"

    def _check_name(self) -> None:
        """Refuse a name that leaves no room for those of the files beside it."""
        try:
            os.lstat(f"{self._real}-journal")
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise StorageError(
                    f"{self._path} has too long a name: those of the files beside it, such as FILE-journal, are longer"
                    " by 8 bytes, and most disks allow 255 in all; choose a shorter one"
                ) from None

    def _check_file(self) -> None:
        """Refuse what SQLite would take for a new file, and is not one; and a file whose log lies elsewhere."""
        if self._path.exists():
            if not self._path.is_file():
                raise StorageError(f"{self._path} is not a file")
            is_empty = self._path.stat().st_size == 0 and not Path(self._log).exists()
            if is_empty and (self._owner is None or self._owner.has_been_filled):
                raise self._corrupt("it is empty")
        elif self._read_only:
            raise StorageError(f"there is no queue storage at {self._path}")
        if self._owner is not None:
            self._owner.take_file()
        _check_log(self._path, self._real)

    def _connect_and_open(self, durability: Durability) -> None:
        with self._errors():
            if self._owner is not None:
                self._owner.give_reserve_up()  # the log and its index need blocks
            self._key = _enter(self._real)
            try:
                if self._owner is not None and self._owner.file_key != self._key:
                    raise StorageError(f"{self._path} was replaced by another file while it was being opened")
                self._db = self._connect()
            except BaseException:
                _leave(self._key)
                raise
        try:
            with self._errors():
                self._open(durability)
        except BaseException:
            self._db.close()
            _leave(self._key)
            raise
        _storages.add(self)

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rwc"
        # Two slashes would begin the name of a host.
        place = quote(os.fsencode("/" + self._real.lstrip("/") if self._real.startswith("/") else self._real))
        return sqlite3.connect(
            f"file:{place}?mode={mode}",
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
        if self._owner is not None:
            self._begin_log(durability)
            self._migrate(version)
        elif version < len(_MIGRATIONS):
            raise StorageError(f"{self._path} has an older schema; opened once as its owner, it is brought up to date")
        self._load_identity()
        with self._reading():
            self._streams = self._load_streams(db)
        if self._owner is not None:
            with suppress(sqlite3.Error):
                self._ensure_pages(db.execute("PRAGMA page_count").fetchone()[0])
            self._owner.note_filled()
            self._owner.note_open()

    def _begin_log(self, durability: Durability) -> None:
        db = self._db
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(f"{self._path} can't have a write-ahead log: SQLite has chosen {mode!r} for it")
        synchronous, pages = _SETTINGS[durability]
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        # Some builds of SQLite fill the pages of each message that leaves with zeros: each takes a place in the log.
        db.execute("PRAGMA secure_delete = FAST").fetchone()
        self._page_size = db.execute("PRAGMA page_size").fetchone()[0]
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # makes the log
        self._log_key = _key(os.stat(self._log))
        self._take_reserve()
        self._check_names()

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
        self,
        step: Callable[[sqlite3.Connection], Mapping[str, _Stream] | None],
        one_statement: bool = False,
        is_append: bool = False,
    ) -> None:
        """Run a step in one transaction under the lock: committed as a whole, or undone.

        step: returns the streams that it has changed, by ident, if it has changed any: what is kept in memory of them
            changes when the file has. It is run again where there was no space, and some could be made.
        one_statement: the step writes by one at most, which is a transaction by itself.
        is_append: the step may not use the reserve.

        It may be interrupted (by Ctrl-C), also when the file has changed and the memory has not: then the memory is
        read anew before it is used. There is as little around the step as can be: after a wait for the disk, code
        takes three times as long.
        """
        self._check_process()
        if self._read_only:
            raise StorageError(f"{self._path} was opened for reading only")
        with self._lock:
            try:
                if self._lost is not None:
                    raise StorageError(self._lost)
                if self._closed or not self._is_current:
                    self._make_usable()
                try:
                    self._run(step, one_statement, is_append)
                except sqlite3.Error as error:
                    if not _is_full(error):
                        raise
                    self._make_room(is_append)
                    try:
                        self._run(step, one_statement, is_append)
                    except sqlite3.Error as again:
                        if is_append and _is_full(again):
                            self._make_room(is_append)  # what the append itself has taken
                        raise
                # What was stored in a file that nobody will find was not stored.
                self._check_names()
                if self._lost is not None:
                    raise StorageError(self._lost)
            except _FAILURES as error:
                raise self._mapped(error) from error

    def _run(
        self, step: Callable[[sqlite3.Connection], Mapping[str, _Stream] | None], one_statement: bool, is_append: bool
    ) -> None:
        """With the lock held: run a step of `_change` once."""
        db = self._db
        if is_append and not self._has_reserve:
            self._take_reserve()
            if not self._has_reserve:
                raise _full()
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

    # -- Blocks of the disk -----------------------------------------------------------------------------------

    def _ensure_room(self, pages: int) -> None:
        """See to it that the file has blocks for so many more pages. Raises SQLite's error of a full disk."""
        if pages > self._headroom:
            count = self._db.execute("PRAGMA page_count").fetchone()[0]
            free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
            self._ensure_pages(count + max(0, pages - free))
            self._headroom = self._file_size // self._page_size - count + free
        self._headroom -= pages

    def _ensure_pages(self, count: int) -> None:
        """See to it that the file has blocks for so many pages in all. Raises SQLite's error of a full disk."""
        if count * self._page_size <= self._file_size:
            return
        assert self._owner is not None
        # With some in advance. SQLite takes those back when it has moved the whole log into the file.
        for pages in (count + _PAGES_AHEAD, count):
            size = pages * self._page_size
            if self._owner.extend_file(self._file_size, size):
                self._file_size = size
                return
        raise _full()

    def _take_reserve(self) -> None:
        assert self._owner is not None
        has_log = self._reserve_log()
        self._has_reserve = self._owner.take_reserve(_RESERVE_BESIDE) and has_log

    def _reserve_log(self) -> bool:
        """Give the log the blocks that it may need; returns whether it has them."""
        descriptor = os.open(self._log, os.O_RDWR | _O_BINARY)
        try:
            info = os.fstat(descriptor)
            # What SQLite reads behind the end of the log is not valid, whether it is zeros or what an earlier log had.
            return _key(info) == self._log_key and _extend_as_far(descriptor, info.st_size, _RESERVE_OF_LOG)
        finally:
            os.close(descriptor)

    def _make_room(self, is_append: bool) -> None:
        """With the lock held: let the log begin anew, so that what it has of the disk can be used again.

        An append gives back what the log has of the disk beyond the reserve. What lets messages leave uses the reserve.
        """
        db = self._db
        is_large = is_append and os.stat(self._log).st_size > 2 * _RESERVE_OF_LOG
        assert self._owner is not None
        # A look that is under way keeps the log from beginning anew: that is not waited for.
        db.execute("PRAGMA busy_timeout = 0")
        try:
            for _ in range(2):
                try:
                    busy, _, _ = db.execute(
                        f"PRAGMA wal_checkpoint({'TRUNCATE' if is_large else 'RESTART'})"
                    ).fetchone()
                except sqlite3.Error as error:
                    if is_append or not _is_full(error):
                        raise
                else:
                    if is_append or not busy:
                        break
                self._has_reserve = False
                self._owner.give_reserve_up()
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
            self._headroom = 0
            self._check_names()
        if is_large:
            self._take_reserve()

    def _borrow_reserve(self) -> bool:
        """For a look at a file that has no owner: let SQLite have the reserve; returns whether there was one."""
        with suppress(StorageError):
            lock = _OwnerLock(self._path, self._real)
            self._has_borrowed = lock.give_reserve_up()
            lock.release(keep_reserve=False)
        return self._has_borrowed

    def _give_reserve_back(self) -> None:
        with suppress(StorageError):
            _OwnerLock(self._path, self._real).release()

    # -- What may go wrong ------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        # Before any lock: a thread that does not exist in a child may hold it.
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self._path} was opened before this process was forked, and is its parent's; let the child open a"
                " storage of its own"
            )

    def _check_names(self) -> None:
        """With the lock held: see whether the file and its log are at their names, and how large the file is."""
        if self._log_key is None or self._lost is not None:
            return
        try:
            file = os.stat(self._place)
            if (file.st_dev, file.st_ino) == self._key:
                if file.st_size != self._file_size:
                    self._file_size, self._headroom = file.st_size, 0
                # To ask for the times of a file that is written all the time lets Linux store them with each write. So
                # the log is looked at when something has changed in the folder, or may have since it was looked at.
                changed = os.stat(self._folder).st_mtime_ns
                if changed == self._folder_changed:
                    return
                is_recent = abs(time.time_ns() - changed) < (_RECENT_NS if changed % 10**9 else _RECENT_COARSE_NS)
                if _key(os.stat(self._log)) == self._log_key:
                    self._folder_changed = None if is_recent else changed
                    return
                what = "its log FILE-wal has been replaced"
            else:
                what = "another file has taken its name"
        except (FileNotFoundError, NotADirectoryError):
            what = "the file, or its log FILE-wal, has been deleted or moved"
        self._lost = (
            f"{self._path} is not there any more as it was opened: {what}. Nothing more is stored. What was accepted"
            " before is in the files that were there: end this program, put them back together if they still exist, and"
            " start it again"
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._check_process()
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
        kept = "what was accepted before is kept"
        if _is_full(error):
            return StorageUnavailable(f"no space left for {self._path}: free some; {kept}")
        if isinstance(error, OSError):
            return StorageError(f"{self._path} can't be used: {error.strerror or error}")
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            return StorageUnavailable(f"{self._path} is locked by another program for over {_BUSY_S:g} s; {kept}")
        if code == sqlite3.SQLITE_IOERR:
            return StorageUnavailable(f"the disk fails at {self._path}: {error}; {kept}")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return StorageError(f"{self._path} or its folder can't be written: change its permissions; {kept}")
        if code == sqlite3.SQLITE_CANTOPEN:
            return StorageError(
                f"{self._path} can't be opened: does its folder exist, may it be used, and has the path less than 500"
                f" bytes? ({error})"
            )
        # Our statements are right for our schema: where SQLite can't run them, the schema is not ours any more.
        return self._corrupt(str(error))


def _is_full(error: BaseException | None) -> bool:
    """Whether SQLite, or the system, has failed for want of space."""
    code = getattr(error, "sqlite_errorcode", None)
    return code in (sqlite3.SQLITE_FULL, _IOERR_SHMSIZE) or getattr(error, "errno", None) in _NO_SPACE


def _full() -> sqlite3.Error:
    """The error that SQLite raises for a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


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

_Key = tuple[int, int]
"""What tells a file from others, whatever its names are: its device and its number there."""

_O_BINARY = getattr(os, "O_BINARY", 0)
_NOTE = b"netcomm\n"
# What an owner notes at the file itself, so that it goes along with each of its names: that it is open, and as what.
_ATTRIBUTE = "user.netcomm.open"

if sys.platform == "win32":
    import msvcrt

    # The locks of Windows shut out readers, and a file that is open can't be moved or deleted there.
    _LOCKS_FILE = False

    def _lock_file(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock_file(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

    def _meets_locks_of_sqlite(descriptor: int) -> bool:
        return True
else:
    import fcntl

    _LOCKS_FILE = True

    def _lock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock_file(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _meets_locks_of_sqlite(descriptor: int) -> bool:
        """Whether a lock that is held by flock shuts out those by fcntl, which SQLite uses: NFS makes one of both."""
        where = 2**62  # SQLite locks nothing there
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, where)
        except OSError:
            return True
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, where)
        return False


# Held while a descriptor that a forked child has to close is made, or closed; and by a fork. A signal may fork.
_forking = threading.RLock()
_locks: set["_OwnerLock"] = set()
_storages: "weakref.WeakSet[SqliteQueueStorage]" = weakref.WeakSet()
# When a process closes any descriptor of a file, the system drops the locks that SQLite has on it in that process. So a
# descriptor of a file that storages of this process are connected to is kept until they are not.
_connected: Counter[_Key] = Counter()
_kept: dict[_Key, list[int]] = {}


def _key(info: os.stat_result) -> _Key:
    return info.st_dev, info.st_ino


def _enter(path: str) -> _Key:
    """Note that a storage connects to a file."""
    with _forking:
        key = _key(os.stat(path))
        _connected[key] += 1
        return key


def _leave(key: _Key) -> None:
    """Note that a storage has ended its connection to a file."""
    with _forking:
        _connected[key] -= 1
        if not _connected[key]:
            del _connected[key]
            for descriptor in _kept.pop(key, ()):
                os.close(descriptor)


def _leave_open(db: sqlite3.Connection) -> None:
    """Let a connection never be closed, not even by the end of the interpreter."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def _extend(descriptor: int, start: int, end: int) -> bool:
    """Give a file of `start` bytes blocks up to `end`, zeros; returns whether the disk has them."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, start, end - start)
        else:
            os.lseek(descriptor, start, os.SEEK_SET)
            os.write(descriptor, bytes(end - start))
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        return False
    return True


def _extend_as_far(descriptor: int, start: int, end: int) -> bool:
    """Give a file of `start` bytes blocks up to `end`, or as many as there are; returns whether it has all."""
    step = end - start
    while start < end:
        if _extend(descriptor, start, min(start + step, end)):
            start += step
        elif step <= 4096:
            return False
        else:
            step //= 2
    return True


def _check_log(path: Path, real: str) -> None:
    """Refuse a file that was left open by a name whose log is not the one beside this name."""
    try:
        info = os.stat(real)
    except FileNotFoundError:
        return
    has_names = _has_names(real, info)
    note = _noted(real)
    if note is None:
        if has_names:
            raise StorageError(
                f"{path} has several names, by hard links or a mount of the file alone, and its disk can't note by"
                " which one it was open: let it have one name, and mount its folder"
            )
        return
    if note and (has_names or note.startswith(b"+")):
        try:
            is_there = os.stat(f"{real}-wal").st_size > 0
        except FileNotFoundError:
            is_there = False
        if not is_there:
            name = os.fsdecode(note[1:])
            raise StorageError(
                f"{path} is open, or was left open, as {name}, which names the same file: messages may be in the log"
                f" {name}-wal, and that is not beside this name. Open it as {name}; or, to go on without that log, run"
                f" `setfattr -x {_ATTRIBUTE} FILE`"
            )


def _noted(real: str) -> bytes | None:
    """What is noted at a file, b"" for nothing, or None where the disk can't note anything."""
    if sys.platform != "linux":
        return None
    try:
        return os.getxattr(real, _ATTRIBUTE)
    except OSError as error:
        return b"" if error.errno == errno.ENODATA else None


def _has_names(real: str, info: os.stat_result) -> bool:
    """Whether a file may have other names: hard links, or that of a mount of the file alone."""
    if info.st_nlink > 1:
        return True
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            points = [line.split()[4] for line in mounts]
    except OSError:
        return False
    name = os.fsencode(real)
    for char in b"\\ \t\n":
        name = name.replace(bytes([char]), b"\\%03o" % char)
    return name in points


class _OwnerLock:
    """Held by one owner of a file at a time; the operating system releases it when the process dies.

    It is a lock on FILE-lock, and one on the file itself: names may be deleted, and a file may have several. FILE-lock
    notes, too, that the file has had content: an empty file without that note is one whose maker died at once. And it
    has the reserve of a file that is closed.
    """

    def __init__(self, path: Path, real: str) -> None:
        """Lock FILE-lock; `take_file` locks the file.

        real: the path through all links: they lead to the same file, so they must share the lock.
        """
        self._path = path
        self._real = real
        self._lock: int | None = None
        self._file: int | None = None
        self.file_key: _Key | None = None
        try:
            with _forking:
                self._lock = os.open(f"{real}-lock", os.O_RDWR | os.O_CREAT | _O_BINARY, 0o666)
                _locks.add(self)
        except OSError as error:
            raise StorageError(f"{path} can't be opened: {error}") from error
        self._acquire(self._lock)

    def _acquire(self, descriptor: int) -> None:
        try:
            _lock_file(descriptor)
        except (BlockingIOError, PermissionError):  # the latter on Windows
            self._close()
            raise StorageLocked(f"{self._path} is open already, in this process or another") from None
        except OSError as error:
            self._close()
            raise StorageError(
                f"{self._path} can't be locked: {error.strerror or error}; does its disk allow locks?"
            ) from error

    def take_file(self) -> None:
        """Make the file where there is none, and lock it."""
        try:
            with _forking:
                with suppress(FileNotFoundError):
                    if any(lock.file_key == _key(os.stat(self._real)) for lock in _locks):
                        # Not even opened: see `_kept`.
                        raise StorageLocked(f"{self._path} is open already, in this process, by another name")
                self._file = os.open(self._real, os.O_RDWR | os.O_CREAT | _O_BINARY, 0o644)  # as SQLite does
                self.file_key = _key(os.fstat(self._file))
        except OSError as error:
            raise StorageError(f"{self._path} can't be opened: {error}") from error
        if _LOCKS_FILE:
            self._acquire(self._file)
            if _meets_locks_of_sqlite(self._file):
                _unlock_file(self._file)

    @property
    def has_been_filled(self) -> bool:
        assert self._lock is not None
        os.lseek(self._lock, 0, os.SEEK_SET)
        return os.read(self._lock, len(_NOTE)) == _NOTE

    def note_filled(self) -> None:
        if not self.has_been_filled:
            assert self._lock is not None
            os.lseek(self._lock, 0, os.SEEK_SET)
            try:
                os.write(self._lock, _NOTE)
            except OSError as error:
                if error.errno not in _NO_SPACE:  # the next opening notes it
                    raise

    def note_open(self) -> None:
        """Note at the file by which name it is open, until `note_closed`."""
        assert self._file is not None
        if sys.platform == "linux":
            has_names = _has_names(self._real, os.fstat(self._file))
            with suppress(OSError):  # `_check_log` has seen whether that is needed
                os.setxattr(self._file, _ATTRIBUTE, (b"+" if has_names else b"-") + os.fsencode(self._real))
                if has_names:
                    os.fsync(self._file)

    def note_closed(self) -> None:
        if sys.platform == "linux" and self._file is not None and not os.path.exists(f"{self._real}-wal"):
            with suppress(OSError):
                os.removexattr(self._file, _ATTRIBUTE)

    def extend_file(self, start: int, end: int) -> bool:
        """Give the file of `start` bytes blocks up to `end`; returns whether it has them."""
        assert self._file is not None
        return _extend(self._file, start, end)

    def give_reserve_up(self) -> bool:
        """Give the blocks of the reserve to the disk; returns whether there were any."""
        assert self._lock is not None
        if os.fstat(self._lock).st_size <= len(_NOTE):
            return False
        os.ftruncate(self._lock, len(_NOTE))
        return True

    def take_reserve(self, size: int) -> bool:
        """Let FILE-lock have so many bytes of the disk, or as many as there are; returns whether it has them."""
        assert self._lock is not None
        return _extend_as_far(self._lock, max(len(_NOTE), os.fstat(self._lock).st_size), size)

    def release(self, keep_reserve: bool = True) -> None:
        """Give the file to the next owner, and take the reserve for it."""
        if self._lock is not None and keep_reserve and self.has_been_filled:
            with suppress(OSError):
                self.take_reserve(_RESERVE)
        self._close()

    def _close(self) -> None:
        with _forking:
            _locks.discard(self)
            for descriptor in (self._file, self._lock):
                if descriptor is not None:
                    # A child that is being forked by something else may have it, too.
                    with suppress(OSError):
                        _unlock_file(descriptor)
            if self._file is not None:
                assert self.file_key is not None
                if _connected[self.file_key]:
                    _kept.setdefault(self.file_key, []).append(self._file)
                else:
                    os.close(self._file)
            if self._lock is not None:
                os.close(self._lock)
            self._file = self._lock = self.file_key = None

    def let_go(self) -> None:
        """In a forked child: close its descriptors. The locks are the parent's: to unlock would take them from it."""
        for descriptor in (self._file, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._lock = self.file_key = None


def _abandon_all() -> None:
    """In a forked child: let go of what the parent has open, also of what a thread of its is just opening."""
    for storage in list(_storages):
        storage.abandon()
    for lock in _locks:
        lock.let_go()
    _locks.clear()
    _storages.clear()
    _connected.clear()
    for descriptors in _kept.values():
        for descriptor in descriptors:
            os.close(descriptor)
    _kept.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_abandon_all)
