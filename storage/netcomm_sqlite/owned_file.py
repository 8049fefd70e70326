"""The file as its owner has it open: changes in transactions, and the streams in memory.

A change is promised when the file, and its log FILE-wal, still are at their names after it.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal

from netcomm.errors import StorageError
from netcomm_sqlite import schema
from netcomm_sqlite.disk_space import DiskSpace
from netcomm_sqlite.failures import FAILURES, Damage, full_disk, is_full
from netcomm_sqlite.file_watch import FileWatch
from netcomm_sqlite.forks import files
from netcomm_sqlite.loading import load_streams
from netcomm_sqlite.names import Names
from netcomm_sqlite.open_file import Connection, OpenFile
from netcomm_sqlite.owner_lock import OwnerLock
from netcomm_sqlite.stream_table import Stream, StreamKey, update_stream

Durability = Literal["power", "process"]

# SQLite's synchronous, and after how many pages the WAL is begun anew. To sync what is written over costs half as much
# as to sync what makes the file longer; where nothing is synced before the WAL begins anew, that is to be seldom.
SETTINGS: dict[str, tuple[str, int]] = {"power": ("FULL", 250), "process": ("NORMAL", 1000)}

Step = Callable[["OwnedFile"], Mapping[StreamKey, Stream | None] | None]
"""What changes the file in one transaction.

It uses `db`, `streams` and `space` of the file, and returns the streams that it has changed, if it has changed any,
with None for those that it has dropped: `streams` changes when the file has. It is run again where there was no space,
and some could be made.
"""


class OwnedFile(OpenFile):
    """A file that this storage owns.

    streams: all streams, as the file has them; to be used in steps, and while reading.
    space: sees to blocks for appends; to be used in steps.
    """

    def __init__(self, names: Names, durability: Durability) -> None:
        """Open the file, and make it where it does not exist. Raises StorageError."""
        super().__init__(names)
        self.streams: dict[StreamKey, Stream] = {}
        self._is_current = True  # `streams` is what the file has
        with self._failures.translated():
            names.check_length()
        self._owner = OwnerLock(names)
        try:
            self._open(durability)
            files.add(self)
        except BaseException:
            self._owner.release()
            raise

    def _open(self, durability: Durability) -> None:
        names = self._names
        with self._failures.translated():
            if names.is_empty() and self._owner.has_been_filled:
                raise Damage("it is empty")
            self._owner.take_file()
            names.check_log()
            self._owner.give_reserve_up()  # the log and its index need blocks
            self._connection = Connection(names, expected=self._owner.file_key)
            self.db = self._connection.db
            try:
                version = schema.version_of(self.db, names.path, may_be_new=True)
                self._begin_log(durability)
                self._load(version)
                self._owner.note_filled()
                self._owner.note_open()
            except BaseException:
                self._connection.close()
                raise

    def _begin_log(self, durability: Durability) -> None:
        db = self.db
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StorageError(f"{self._names.path} can't have a write-ahead log: SQLite has chosen {mode!r} for it")
        synchronous, pages = SETTINGS[durability]
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        # Some builds of SQLite fill the pages of each message that leaves with zeros: each takes a place in the log.
        db.execute("PRAGMA secure_delete = FAST").fetchone()
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # makes the log
        self._watch = FileWatch(self._names, self._connection.key)
        self.space = DiskSpace(db, self._names, self._owner, self._watch)
        self._watch.check()

    def _load(self, version: int) -> None:
        if schema.is_older(version):
            self.change(lambda file: schema.migrate(file.db, version))
        self.store_id, incarnation = schema.load_identity(self.db)
        self.incarnation = incarnation + 1
        self.change(lambda file: schema.store_incarnation(file.db, self.store_id, self.incarnation))
        self.streams = load_streams(self.db)
        with suppress(sqlite3.Error):
            self.space.ensure_pages()

    # -- Use --------------------------------------------------------------------------------------------------

    def change(self, step: Step, one_statement: bool = False, is_append: bool = False) -> None:
        """Run a step in one transaction under the lock: committed as a whole, or undone.

        one_statement: the step writes by one at most, which is a transaction by itself.
        is_append: the step may not use the reserve.

        It may be interrupted (by Ctrl-C), also when the file has changed and the memory has not: then the memory is
        read anew before it is used. There is as little around the step as can be: after a wait for the disk, code
        takes three times as long.

        Raises StorageError.
        """
        self.check_process()
        with self.lock:
            watch = self._watch
            try:
                if watch.lost is not None:
                    raise StorageError(watch.lost)
                if self._closed or not self._is_current:
                    self._make_usable()
                try:
                    self._run(step, one_statement, is_append)
                except sqlite3.Error as error:
                    if not is_full(error):
                        raise
                    self.space.make_room(is_append)
                    try:
                        self._run(step, one_statement, is_append)
                    except sqlite3.Error as again:
                        if is_append and is_full(again):
                            self.space.make_room(is_append)  # what the append itself has taken
                        raise
                # What was stored in a file that nobody will find was not stored.
                watch.check()
                if watch.lost is not None:
                    raise StorageError(watch.lost)
            except FAILURES as error:
                raise self._failures.translate(error) from error

    def _run(self, step: Step, one_statement: bool, is_append: bool) -> None:
        """With the lock held: run a step of `change` once."""
        db = self.db
        if is_append and not self.space.has_reserve:
            self.space.take_reserve()
            if not self.space.has_reserve:
                raise full_disk()
        self._is_current = False
        try:
            if one_statement:
                changed = step(self)
            else:
                db.execute("BEGIN IMMEDIATE")
                changed = step(self)
                db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:  # SQLite ends it by itself after some errors
                db.execute("ROLLBACK")
            self._is_current = isinstance(error, sqlite3.Error)
            raise
        if changed is not None:
            for key, stream in changed.items():
                if stream is None:
                    self.streams.pop(key, None)
                else:
                    self.streams[key] = stream
        self._is_current = True

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        self.check_process()
        with self.lock, self._failures.translated():
            if self._closed or not self._is_current:
                self._make_usable()
            yield self.db

    def stream(self, db: sqlite3.Connection, key: StreamKey) -> Stream | None:
        return self.streams.get(key)

    def all_streams(self, db: sqlite3.Connection) -> Mapping[StreamKey, Stream]:
        return self.streams

    def _make_usable(self) -> None:
        """With the lock held: see to it that the file is open, and undo what an interrupted change has left."""
        self._check_open()
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        self.streams = load_streams(self.db)
        self._is_current = True

    # -- The end ----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        try:
            try:
                with suppress(OSError):
                    self._watch.check()
                if self._watch.lost is None:
                    self._count_tails()
            finally:
                self._disconnect()  # also undoes what was interrupted
        finally:
            self._owner.release()

    def _count_tails(self) -> None:
        """Let the rows of streams tell of all messages, so that no message need count itself.

        Where that fails, they go on counting themselves; so it does not wait for another program that writes.
        """
        if self._is_current and not self.db.in_transaction:
            with suppress(sqlite3.Error):
                self.db.execute("PRAGMA busy_timeout = 0")
                self.db.execute("BEGIN IMMEDIATE")
                for stream in self.streams.values():
                    if stream.uncounted:
                        update_stream(self.db, stream)
                self.db.execute("COMMIT")

    def _disconnect(self) -> None:
        """End the connection; where a stranger's log is at the log's name, without SQLite, which would remove it.

        SQLite itself leaves everything alone when the file is not at its name. And a log that was deleted is still what
        it has open: then closing moves into the file what was accepted.
        """
        if self._watch.lost is not None and self._watch.has_strange_log():
            self._connection.leave_open()
            return
        self._connection.close()
        self._owner.note_closed()

    def _let_go(self) -> None:
        self._owner.let_go()
        self._connection.leave_open()
