"""Who owns a file: locks that end with the process, however it ends.

There are two: one on FILE-lock beside the file, and one on the file itself, since names may be deleted and a file may
have several. SQLite's own locks would shut out readers too.
"""

import os
import sys
from contextlib import suppress

from netcomm.errors import StorageError, StorageLocked
from netcomm_sqlite.blocks import O_BINARY, RESERVE, extend, extend_as_far
from netcomm_sqlite.failures import NO_SPACE
from netcomm_sqlite.forks import close_descriptor, forking, locks
from netcomm_sqlite.names import Key, Names, key_of

_NOTE = b"netcomm\n"

if sys.platform == "win32":
    import msvcrt

    # The locks of Windows shut out readers, and a file that is open can't be moved or deleted there.
    _LOCKS_FILE = False

    def lock_file(descriptor: int) -> None:
        """Lock a file for this process. Raises OSError."""
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def unlock_file(descriptor: int) -> None:
        """Give up the lock of `lock_file`. Raises OSError."""
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

    def meets_locks_of_sqlite(descriptor: int) -> bool:
        """Whether the lock of `lock_file` shuts out SQLite's."""
        return True
else:
    import fcntl

    _LOCKS_FILE = True

    def lock_file(descriptor: int) -> None:
        """Lock a file for the owner of this descriptor. Raises OSError."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock_file(descriptor: int) -> None:
        """Give up the lock of `lock_file`. Raises OSError."""
        fcntl.flock(descriptor, fcntl.LOCK_UN)

    def meets_locks_of_sqlite(descriptor: int) -> bool:
        """Whether a lock that is held by flock shuts out those by fcntl, which SQLite uses: NFS makes one of both."""
        where = 2**62  # SQLite locks nothing there
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, where)
        except OSError:
            return True
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, where)
        return False


class OwnerLock:
    """Held by one owner of a file at a time.

    FILE-lock notes, too, that the file has had content: an empty file without that note is one whose maker died at
    once. And it has the reserve of a file that is closed.
    """

    def __init__(self, names: Names) -> None:
        """Lock FILE-lock; `take_file` locks the file.

        FILE-lock is beside the real path: all links to a file lead to the same lock.

        Raises StorageLocked and StorageError.
        """
        self._names = names
        self._lock: int | None = None
        self._file: int | None = None
        self.file_key: Key | None = None
        try:
            with forking:
                self._lock = os.open(names.lock, os.O_RDWR | os.O_CREAT | O_BINARY, 0o666)
                locks.add(self)
        except OSError as error:
            raise StorageError(f"{names.path} can't be opened: {error}") from error
        self._acquire(self._lock)

    def _acquire(self, descriptor: int) -> None:
        path = self._names.path
        try:
            lock_file(descriptor)
        except (BlockingIOError, PermissionError):  # the latter on Windows
            self._close()
            raise StorageLocked(f"{path} is open already, in this process or another") from None
        except OSError as error:
            self._close()
            raise StorageError(
                f"{path} can't be locked: {error.strerror or error}; does its disk allow locks?"
            ) from error

    def take_file(self) -> None:
        """Make the file where there is none, and lock it. Raises StorageLocked and StorageError."""
        real, path = self._names.real, self._names.path
        try:
            with forking:
                with suppress(FileNotFoundError):
                    if any(lock.file_key == key_of(os.stat(real)) for lock in locks):
                        # Not even opened: closing it would drop SQLite's locks, see `forks`.
                        raise StorageLocked(f"{path} is open already, in this process, by another name")
                self._file = os.open(real, os.O_RDWR | os.O_CREAT | O_BINARY, 0o644)  # as SQLite does
                self.file_key = key_of(os.fstat(self._file))
        except OSError as error:
            raise StorageError(f"{path} can't be opened: {error}") from error
        if _LOCKS_FILE:
            self._acquire(self._file)
            if meets_locks_of_sqlite(self._file):
                unlock_file(self._file)

    @property
    def has_been_filled(self) -> bool:
        """Whether FILE-lock notes that the file has had content."""
        assert self._lock is not None
        os.lseek(self._lock, 0, os.SEEK_SET)
        return os.read(self._lock, len(_NOTE)) == _NOTE

    def note_filled(self) -> None:
        """Note that the file has content."""
        if not self.has_been_filled:
            assert self._lock is not None
            os.lseek(self._lock, 0, os.SEEK_SET)
            try:
                os.write(self._lock, _NOTE)
            except OSError as error:
                if error.errno not in NO_SPACE:  # the next opening notes it
                    raise

    def note_open(self) -> None:
        """Note at the file by which name it is open, until `note_closed`."""
        assert self._file is not None
        self._names.note_open(self._file)

    def note_closed(self) -> None:
        """Note that the file is closed, and has taken its log in, if it has."""
        if self._file is not None:
            self._names.note_closed(self._file)

    def extend_file(self, start: int, end: int) -> bool:
        """Give the file of `start` bytes blocks up to `end`; returns whether it has them."""
        assert self._file is not None
        return extend(self._file, start, end)

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
        return extend_as_far(self._lock, max(len(_NOTE), os.fstat(self._lock).st_size), size)

    def release(self, keep_reserve: bool = True) -> None:
        """Give the file to the next owner, and take the reserve for it."""
        if self._lock is not None and keep_reserve and self.has_been_filled:
            with suppress(OSError):
                self.take_reserve(RESERVE)
        self._close()

    def _close(self) -> None:
        with forking:
            locks.discard(self)
            for descriptor in (self._file, self._lock):
                if descriptor is not None:
                    # A child that is being forked by something else may have it, too.
                    with suppress(OSError):
                        unlock_file(descriptor)
            if self._file is not None:
                assert self.file_key is not None
                close_descriptor(self.file_key, self._file)
            if self._lock is not None:
                os.close(self._lock)
            self._file = self._lock = self.file_key = None

    def let_go(self) -> None:
        """In a forked child: close its descriptors. The locks are the parent's: to unlock would take them from it."""
        for descriptor in (self._file, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._lock = self.file_key = None
