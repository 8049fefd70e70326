"""Whether an open file and its log are still at their names."""

import os
import time

from netcomm_sqlite.names import Key, Names, key_of

# Two changes of a folder that are closer to each other may have the same time; some disks count in seconds.
_RECENT_NS = 100_000_000
_RECENT_COARSE_NS = 2_000_000_000


class FileWatch:
    """Looks, after each change, whether the file and its log are where they were opened.

    What was stored in a file that nobody will find was not stored. Every method is called with the file's lock held.

    lost: why nothing is stored any more, or None.
    file_size: in bytes, as it was at the last look, or was made since.
    """

    def __init__(self, names: Names, file_key: Key) -> None:
        """Begin, when the file has a log. Raises OSError."""
        self._names = names
        self._file_key = file_key
        self._log_key = key_of(os.stat(names.log))
        self._folder_changed: int | None = None
        self.lost: str | None = None
        self.file_size = 0

    def check(self) -> None:
        """Look whether the file and its log are at their names, and how large the file is. Raises OSError."""
        if self.lost is not None:
            return
        try:
            file = os.stat(self._names.absolute)
            if (file.st_dev, file.st_ino) == self._file_key:
                self.file_size = file.st_size
                # To ask for the times of a file that is written all the time lets Linux store them with each write. So
                # the log is looked at when something has changed in the folder, or may have since it was looked at.
                changed = os.stat(self._names.folder).st_mtime_ns
                if changed == self._folder_changed:
                    return
                is_recent = abs(time.time_ns() - changed) < (_RECENT_NS if changed % 10**9 else _RECENT_COARSE_NS)
                if key_of(os.stat(self._names.log)) == self._log_key:
                    self._folder_changed = None if is_recent else changed
                    return
                what = "its log FILE-wal has been replaced"
            else:
                what = "another file has taken its name"
        except (FileNotFoundError, NotADirectoryError):
            what = "the file, or its log FILE-wal, has been deleted or moved"
        self.lost = (
            f"{self._names.path} is not there any more as it was opened: {what}. Nothing more is stored. What was"
            " accepted before is in the files that were there: end this program, put them back together if they still"
            " exist, and start it again"
        )

    def note_size(self, size: int) -> None:
        """Note that the file has been made so many bytes long."""
        self.file_size = size

    def is_log(self, info: os.stat_result) -> bool:
        """Whether a file is the log that the file was opened with."""
        return key_of(info) == self._log_key

    def has_strange_log(self) -> bool:
        """Whether a stranger's log is at the log's name, beside the file that was opened."""
        try:
            file, log = os.stat(self._names.real), os.stat(self._names.log)
        except OSError:
            return False
        # A look that finds no log makes an empty one.
        return key_of(file) == self._file_key and not self.is_log(log) and log.st_size > 0
