"""What may go wrong with the file: damage, and failures of SQLite and of the system, in the terms of netcomm."""

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netcomm.errors import StorageCorrupt, StorageError, StorageUnavailable

BUSY_S = 5.0
"""So many seconds SQLite waits for another program that has locked the file."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IOERR_SHMSIZE = sqlite3.SQLITE_IOERR | 19 << 8


class Damage(Exception):
    """The content of the file is not what was stored; the text says in what."""


FAILURES = (sqlite3.Error, UnicodeDecodeError, OSError, Damage)
"""The errors that `Failures.translate` knows."""


def is_intact(stored: Any, checksum: Callable[..., int], *values: Any) -> bool:
    """Whether values from the file have the checksum that is stored with them."""
    try:
        return bool(stored == checksum(*values))
    except Exception:  # damage has made them values of another type
        return False


def is_full(error: BaseException | None) -> bool:
    """Whether SQLite, or the system, has failed for want of space."""
    code = getattr(error, "sqlite_errorcode", None)
    return code in (sqlite3.SQLITE_FULL, _IOERR_SHMSIZE) or getattr(error, "errno", None) in NO_SPACE


def full_disk() -> sqlite3.Error:
    """The error that SQLite raises for a full disk."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


class Failures:
    """Translates failures into the errors that users of one file see: with its path, and what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise StorageError where the block raises one of `FAILURES`."""
        try:
            yield
        except FAILURES as error:
            raise self.translate(error) from error

    def translate(self, error: Exception) -> StorageError:
        """The error to raise for one of `FAILURES`."""
        kept = "what was accepted before is kept"
        if isinstance(error, Damage):
            return self._corrupt(str(error))
        if is_full(error):
            return StorageUnavailable(f"no space left for {self._path}: free some; {kept}")
        if isinstance(error, OSError):
            return StorageError(f"{self._path} can't be used: {error.strerror or error}")
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            return StorageUnavailable(f"{self._path} is locked by another program for over {BUSY_S:g} s; {kept}")
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

    def _corrupt(self, what: str) -> StorageCorrupt:
        return StorageCorrupt(
            f"{self._path} is damaged: {what}. What can be read is salvaged by `sqlite3 FILE .recover`; to start with"
            " an empty queue, move the file away, together with FILE-wal and FILE-shm"
        )
