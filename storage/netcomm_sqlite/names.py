"""The names of a file: its own, those of the files beside it, and the one by which it is open.

A file may have several names, by hard links or a mount of the file alone. The log lies beside the name by which the
file was opened. So the owner notes that name at the file itself, in an extended attribute, which all names share.
"""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

from netcomm.errors import StorageError

ATTRIBUTE = "user.netcomm.open"

Key = tuple[int, int]
"""What tells a file from others, whatever its names are: its device and its number there."""


def key_of(info: os.stat_result) -> Key:
    """The key of a file."""
    return info.st_dev, info.st_ino


class Names:
    """The names of one file, as they were when it was opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.absolute = os.path.abspath(path)  # the program may change its folder
        # SQLite follows links too, and makes the log beside the file that they lead to.
        self.real = os.path.realpath(path)
        self.folder = os.path.dirname(self.real)
        self.log = f"{self.real}-wal"
        self.lock = f"{self.real}-lock"

    def check_length(self) -> None:
        """Refuse a name that leaves no room for those of the files beside it."""
        try:
            os.lstat(f"{self.real}-journal")
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise StorageError(
                    f"{self.path} has too long a name: those of the files beside it, such as FILE-journal, are longer"
                    " by 8 bytes, and most disks allow 255 in all; choose a shorter one"
                ) from None

    def is_empty(self) -> bool:
        """Whether there is a file that SQLite would take for a new one. Raises StorageError where it is not a file."""
        if not self.path.exists():
            return False
        if not self.path.is_file():
            raise StorageError(f"{self.path} is not a file")
        return self.path.stat().st_size == 0 and not Path(self.log).exists()

    def check_log(self) -> None:
        """Refuse a file that was left open by a name whose log is not the one beside this name."""
        try:
            info = os.stat(self.real)
        except FileNotFoundError:
            return
        has_others = self._has_others(info)
        note = self._noted()
        if note is None:
            if has_others:
                raise StorageError(
                    f"{self.path} has several names, by hard links or a mount of the file alone, and its disk can't"
                    " note by which one it was open: let it have one name, and mount its folder"
                )
            return
        if note and (has_others or note.startswith(b"+")):
            try:
                is_there = os.stat(self.log).st_size > 0
            except FileNotFoundError:
                is_there = False
            if not is_there:
                name = os.fsdecode(note[1:])
                raise StorageError(
                    f"{self.path} is open, or was left open, as {name}, which names the same file: messages may be in"
                    f" the log {name}-wal, and that is not beside this name. Open it as {name}; or, to go on without"
                    f" that log, run `setfattr -x {ATTRIBUTE} FILE`"
                )

    def note_open(self, descriptor: int) -> None:
        """Note at the file by which name it is open, until `note_closed`; descriptor: one of the file."""
        if sys.platform == "linux":
            has_others = self._has_others(os.fstat(descriptor))
            with suppress(OSError):  # `check_log` has seen whether that is needed
                os.setxattr(descriptor, ATTRIBUTE, (b"+" if has_others else b"-") + os.fsencode(self.real))
                if has_others:
                    os.fsync(descriptor)

    def note_closed(self, descriptor: int) -> None:
        """Take the note of `note_open` away, if the log has been moved into the file."""
        if sys.platform == "linux" and not os.path.exists(self.log):
            with suppress(OSError):
                os.removexattr(descriptor, ATTRIBUTE)

    def _noted(self) -> bytes | None:
        """What is noted at the file, b"" for nothing, or None where the disk can't note anything."""
        if sys.platform != "linux":
            return None
        try:
            return os.getxattr(self.real, ATTRIBUTE)
        except OSError as error:
            return b"" if error.errno == errno.ENODATA else None

    def _has_others(self, info: os.stat_result) -> bool:
        """Whether the file may have other names: hard links, or that of a mount of the file alone."""
        if info.st_nlink > 1:
            return True
        try:
            with open("/proc/self/mountinfo", "rb") as mounts:
                points = [line.split()[4] for line in mounts]
        except OSError:
            return False
        name = os.fsencode(self.real)
        for char in b"\\ \t\n":
            name = name.replace(bytes([char]), b"\\%03o" % char)
        return name in points
