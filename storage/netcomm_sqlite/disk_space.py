"""Space on the disk for an open file: the pages of appends, and the reserve with which messages leave a full disk.

An append is stored only where the file has blocks for all its pages, those in the log included: then the log can always
be moved into the file, and begun anew. What lets messages leave may use the reserve.
"""

import os
import sqlite3

from netcomm_sqlite.blocks import O_BINARY, RESERVE_BESIDE, RESERVE_OF_LOG, extend_as_far
from netcomm_sqlite.failures import BUSY_S, full_disk, is_full
from netcomm_sqlite.file_watch import FileWatch
from netcomm_sqlite.names import Names
from netcomm_sqlite.owner_lock import OwnerLock

# The file gets blocks for so many pages at once, if the disk has them.
_PAGES_AHEAD = 256
# A message that is stored by itself changes no more pages than so many, beside those that it fills.
_PAGES_AROUND = 8


class DiskSpace:
    """Knows how many pages fit into the blocks that a file has, and whether the reserve is there.

    Every method is called with the file's lock held.
    """

    def __init__(self, db: sqlite3.Connection, names: Names, owner: OwnerLock, watch: FileWatch) -> None:
        """Begin, when the file has a log, and give that the reserve."""
        self._db = db
        self._names = names
        self._owner = owner
        self._watch = watch
        self._page_size: int = db.execute("PRAGMA page_size").fetchone()[0]
        self._headroom = 0  # so many pages may be added within the blocks of a file of `_measured_size`
        self._measured_size = 0
        self.has_reserve = False
        self.take_reserve()

    def ensure_room(self, size: int) -> None:
        """See to it that the file has blocks for one more message of so many bytes.

        Raises SQLite's error of a full disk.
        """
        pages = _PAGES_AROUND + size // self._page_size
        if pages > self._headroom or self._watch.file_size != self._measured_size:
            free = self._db.execute("PRAGMA freelist_count").fetchone()[0]
            count = self.ensure_pages(max(0, pages - free))
            self._measured_size = self._watch.file_size
            self._headroom = self._measured_size // self._page_size - count + free
        self._headroom -= pages

    def ensure_pages(self, more: int = 0) -> int:
        """See to it that the file has blocks for all its pages, and for so many more; returns how many it has now.

        Raises SQLite's error of a full disk.
        """
        self._headroom = 0  # the caller has taken pages, or is about to
        count: int = self._db.execute("PRAGMA page_count").fetchone()[0]
        if (count + more) * self._page_size > self._watch.file_size:
            self._extend_to(count + more)
        return count

    def _extend_to(self, count: int) -> None:
        # With some in advance. SQLite takes those back when it has moved the whole log into the file.
        for pages in (count + _PAGES_AHEAD, count):
            size = pages * self._page_size
            if self._owner.extend_file(self._watch.file_size, size):
                self._watch.note_size(size)
                return
        raise full_disk()

    def take_reserve(self) -> None:
        """Take the reserve, as far as the disk has it; `has_reserve` says whether it is all there."""
        has_log = self._reserve_log()
        self.has_reserve = self._owner.take_reserve(RESERVE_BESIDE) and has_log

    def _reserve_log(self) -> bool:
        """Give the log the blocks that it may need; returns whether it has them."""
        descriptor = os.open(self._names.log, os.O_RDWR | O_BINARY)
        try:
            info = os.fstat(descriptor)
            # What SQLite reads behind the end of the log is not valid, whether it is zeros or what an earlier log had.
            return self._watch.is_log(info) and extend_as_far(descriptor, info.st_size, RESERVE_OF_LOG)
        finally:
            os.close(descriptor)

    def make_room(self, is_append: bool) -> None:
        """Let the log begin anew, so that what it has of the disk can be used again.

        An append gives back what the log has of the disk beyond the reserve. What lets messages leave uses the reserve.
        """
        db = self._db
        is_large = is_append and os.stat(self._names.log).st_size > 2 * RESERVE_OF_LOG
        # A look that is under way keeps the log from beginning anew: that is not waited for.
        db.execute("PRAGMA busy_timeout = 0")
        try:
            for _ in range(2):
                try:
                    busy, _, _ = db.execute(
                        f"PRAGMA wal_checkpoint({'TRUNCATE' if is_large else 'RESTART'})"
                    ).fetchone()
                except sqlite3.Error as error:
                    if is_append or not is_full(error):
                        raise
                else:
                    if is_append or not busy:
                        break
                self.has_reserve = False
                self._owner.give_reserve_up()
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
            self._headroom = 0
            self._watch.check()
        if is_large:
            self.take_reserve()
