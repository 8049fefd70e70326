"""A file that is open: its connection, and the lock that each use of it holds.

Nothing else is acquired while that lock is held: so threads can't deadlock over it, and SQLite never sees two of them
at once.
"""

import ctypes
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from urllib.parse import quote

from netcomm.errors import StorageError
from netcomm_sqlite.failures import BUSY_S, Failures
from netcomm_sqlite.forks import enter, files, leave
from netcomm_sqlite.names import Key, Names
from netcomm_sqlite.stream_table import Stream, StreamKey


def connect(names: Names, read_only: bool) -> sqlite3.Connection:
    """Connect SQLite to a file, and let it look for damage where that costs nothing."""
    # Two slashes would begin the name of a host.
    real = "/" + names.real.lstrip("/") if names.real.startswith("/") else names.real
    db = sqlite3.connect(
        f"file:{quote(os.fsencode(real))}?mode={'ro' if read_only else 'rwc'}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    db.execute("PRAGMA cell_size_check = ON")
    return db


class Connection:
    """A connection of SQLite to a file, of which the process takes note: see `forks`."""

    def __init__(self, names: Names, read_only: bool = False, expected: Key | None = None) -> None:
        """Connect; expected: the file that should be at the name.

        Raises StorageError where another file is there, and SQLite's errors.
        """
        self.key = enter(names.real)
        try:
            if expected not in (None, self.key):
                raise StorageError(f"{names.path} was replaced by another file while it was being opened")
            self.db = connect(names, read_only)
        except BaseException:
            leave(self.key)
            raise

    def close(self) -> None:
        """End the connection. SQLite moves the log into the file, and removes it, if this is the last connection."""
        try:
            self.db.close()
        finally:
            leave(self.key)

    def leave_open(self) -> None:
        """Let the connection never be closed, not even by the end of the interpreter."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.db))


class OpenFile(ABC):
    """A queue's file that is open, as its owner has it or for a look.

    store_id, incarnation: as `QueueStorage` has them.
    lock: held by the thread that uses the connection.
    db: the connection; to be used with the lock held.
    """

    store_id: bytes
    incarnation: int
    db: sqlite3.Connection

    def __init__(self, names: Names) -> None:
        self.lock = threading.Lock()
        self._names = names
        self._failures = Failures(names.path)
        self._pid = os.getpid()
        self._closed = False
        self._is_abandoned = False

    @abstractmethod
    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """With the lock, and one state of the file for all statements of the block. Raises StorageError."""

    @abstractmethod
    def stream(self, db: sqlite3.Connection, key: StreamKey) -> Stream | None:
        """While reading: a stream, if it exists. Raises Damage."""

    @abstractmethod
    def all_streams(self, db: sqlite3.Connection) -> Mapping[StreamKey, Stream]:
        """While reading: all streams. Raises Damage."""

    def check_process(self) -> None:
        """Raise StorageError in a forked child."""
        # Before any lock: a thread that does not exist in a child may hold it.
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self._names.path} was opened before this process was forked, and is its parent's; let the child open"
                " a storage of its own"
            )

    def close(self) -> None:
        """Close the file; closing again does nothing, nor in a forked child. Raises StorageError."""
        if os.getpid() != self._pid:
            return  # `abandon` lets go of what a forked child has
        with self.lock:
            if self._closed:
                return
            self._closed = True
            try:
                with self._failures.translated():
                    self._end()
            finally:
                files.discard(self)

    @abstractmethod
    def _end(self) -> None:
        """With the lock held, once: end the connection, and give up what goes with it."""

    def abandon(self) -> None:
        """In a forked child: let go of everything; it is the parent's."""
        if self._is_abandoned:
            return
        self._closed = self._is_abandoned = True
        self.lock = threading.Lock()  # a thread that does not exist here may hold the old one
        self._let_go()

    @abstractmethod
    def _let_go(self) -> None:
        """In a forked child: close the descriptors of locks, and leave the connection open.

        To close it would end the parent's locks on the file, and perhaps write to it.
        """

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self._names.path} has been closed")
