"""A look at a queue, also while it has an owner: nothing is changed, and nothing is kept in memory."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from netcomm.errors import StorageError, StorageUnavailable
from netcomm_sqlite import schema
from netcomm_sqlite.failures import Damage, is_full
from netcomm_sqlite.forks import files
from netcomm_sqlite.loading import load_stream, load_streams
from netcomm_sqlite.names import Names
from netcomm_sqlite.open_file import Connection, OpenFile
from netcomm_sqlite.owner_lock import OwnerLock
from netcomm_sqlite.stream_table import Stream, StreamKey


class Look(OpenFile):
    """A file that is open for reading only."""

    def __init__(self, names: Names) -> None:
        """Open the file. Raises StorageError."""
        super().__init__(names)
        self._has_borrowed = False
        with self._failures.translated():
            names.check_length()
            if not names.path.exists():
                raise StorageError(f"there is no queue storage at {names.path}")
            if names.is_empty():
                raise Damage("it is empty")
            names.check_log()
        try:
            self._open()
        except StorageUnavailable as error:
            if not (is_full(error.__cause__) and self._borrow_reserve()):
                raise
            self._open()
        files.add(self)

    def _open(self) -> None:
        path = self._names.path
        with self._failures.translated():
            self._connection = Connection(self._names, read_only=True)
            self.db = self._connection.db
            try:
                if schema.is_older(schema.version_of(self.db, path, may_be_new=False)):
                    raise StorageError(
                        f"{path} has an older schema; opened once as its owner, it is brought up to date"
                    )
                self.store_id, self.incarnation = schema.load_identity(self.db)
                with self.reading() as db:
                    load_streams(db)  # finds what is missing
            except BaseException:
                self._connection.close()
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        self.check_process()
        with self.lock, self._failures.translated():
            self._check_open()
            # The owner goes on meanwhile: several statements see one state only within a transaction.
            self.db.execute("BEGIN")
            try:
                yield self.db
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    def stream(self, db: sqlite3.Connection, key: StreamKey) -> Stream | None:
        return load_stream(db, key)

    def all_streams(self, db: sqlite3.Connection) -> Mapping[StreamKey, Stream]:
        return load_streams(db)

    def change(self, step: object, one_statement: bool = False, is_append: bool = False) -> None:
        """Raise StorageError: a look changes nothing."""
        self.check_process()
        raise StorageError(f"{self._names.path} was opened for reading only")

    def _end(self) -> None:
        try:
            self._connection.close()
        finally:
            if self._has_borrowed:
                self._give_reserve_back()

    def _let_go(self) -> None:
        self._connection.leave_open()

    def _borrow_reserve(self) -> bool:
        """Where the file has no owner: let SQLite have the reserve; returns whether there was one."""
        with suppress(StorageError):
            lock = OwnerLock(self._names)
            self._has_borrowed = lock.give_reserve_up()
            lock.release(keep_reserve=False)
        return self._has_borrowed

    def _give_reserve_back(self) -> None:
        with suppress(StorageError):
            OwnerLock(self._names).release()
