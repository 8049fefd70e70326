"""The lease: how others tell a crashed owner from one that is there.

The owner renews a lease, the document `lease`, from a daemon thread that ends with `close`. The times are the server's,
so the clocks of clients need not agree. While the lease lives, others get StorageLocked at once; once it is over, as
after a crash, they may take the storage. An owner that can't renew in time keeps the storage if nobody has taken it;
otherwise all its methods raise StorageLocked. Safety does not rest on the lease, but on the condition of each update
of the head.
"""

import logging
import threading
from collections.abc import Callable

from pymongo import ReturnDocument

from netcomm.errors import StorageError, StorageLocked
from netcomm.logs import Log
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import CLOCK, LEASE
from netcomm_mongodb.errors import translated
from netcomm_mongodb.head import Head
from netcomm_mongodb.head_record import HeadRecord

_log = Log("netcomm.mongodb")


class Lease:
    """The lease of one owner, and the thread that renews it.

    collect_garbage: is called by that thread, after each renewal; it returns whether there is more to do, and then is
        called again soon.

    The thread that opens the storage calls `check`, `renew` and `start`, any thread `stop`.
    """

    def __init__(self, connection: Connection, head: Head, collect_garbage: Callable[[], bool]) -> None:
        self._connection = connection
        self._head = head
        self._collect_garbage = collect_garbage
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self, found: HeadRecord) -> None:
        """Raise StorageLocked while the lease of the head's owner lives."""
        if found.owner is None:
            return
        lease = self._connection.meta.find_one({"_id": LEASE})
        since = found.taken_at
        if lease is not None and lease["owner"] == found.owner:
            since = max(since, lease["renewed_at"])
        clock = self._connection.meta.find_one_and_update(
            {"_id": CLOCK}, {"$currentDate": {"now": True}}, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert clock is not None
        left_s = found.lease_s - (clock["now"] - since).total_seconds()
        if left_s > 0:
            raise StorageLocked(
                f"{self._connection.name} is open already, in {found.owner_name}: give each peer a database or a"
                f" netcomm_prefix of its own. If that process is gone, the lock ends in {left_s:.1f} s"
            )

    def renew(self) -> None:
        """Renew the lease. Raises StorageLocked where another owner has the storage."""
        change = {"$set": {"owner": self._head.owner}, "$currentDate": {"renewed_at": True}}
        renewed = self._connection.meta.update_one({"_id": LEASE, "owner": self._head.owner}, change)
        if not renewed.matched_count:
            self._head.check_owner()
            self._connection.meta.update_one({"_id": LEASE}, change, upsert=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._keep, name="netcomm-mongodb-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until it has ended. The lease then ends by itself."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join()

    def abandon(self) -> None:
        """In a forked child: forget the thread, which is the parent's."""
        self._thread = None

    def _keep(self) -> None:
        """Renew the lease, and collect garbage, until the storage is closed or lost."""
        failed = False
        pause_s = self._head.lease_s / 3
        while not self._stop.wait(pause_s):
            try:
                with translated(self._connection.name):
                    self.renew()
                    # Removing much can take long, and the lease has to be renewed in between.
                    pause_s = 0.0 if self._collect_garbage() else self._head.lease_s / 3
                failed = False
            except StorageLocked as error:
                _log.error("%s", error)
                return
            except StorageError as error:
                _log.log(logging.DEBUG if failed else logging.WARNING, "%s", error)
                failed = True
                pause_s = min(self._head.lease_s / 3, 1.0)
