"""What makes a process the owner of a storage, what it does as one, and how it gives the storage up."""

import threading

from netcomm_mongodb.connection import Connection
from netcomm_mongodb.garbage import GarbageCollector
from netcomm_mongodb.head import Head, find_head, head_exists, make_head
from netcomm_mongodb.head_record import HeadRecord
from netcomm_mongodb.lease import Lease
from netcomm_mongodb.messages import Messages
from netcomm_mongodb.rows import Rows
from netcomm_mongodb.steps import Steps
from netcomm_mongodb.sweeper import Sweeper


class Owner:
    """The owner's side of a storage.

    head, messages, garbage, steps: what changes the storage; one thread at a time, which holds `lock`.
    lock: is free while nobody changes the storage.
    """

    def __init__(self, connection: Connection, lease_s: float) -> None:
        self.lock = threading.Lock()
        self.head = Head(connection, lease_s)
        self.messages = Messages(connection, self.head)
        self.garbage = GarbageCollector(connection.name, self.head, self.messages)
        rows = Rows(connection, self.head)
        self._sweeper = Sweeper(connection.name, connection, self.head, rows)
        self.steps = Steps(connection.name, self.head, rows, self._sweeper)
        self._connection = connection
        self._lease = Lease(connection, self.head, self._collect_garbage)

    def take(self) -> HeadRecord:
        """Become the owner, and load the storage, which is made where there is none; returns the head.

        Raises StorageLocked where it has an owner; StorageError.
        """
        while True:
            if not head_exists(self._connection):
                self.messages.make_index()
                make_head(self._connection)
            found = find_head(self._connection)
            self._lease.check(found)
            if self.head.take(found):
                self._lease.renew()
                return self._load_or_leave()

    def _load_or_leave(self) -> HeadRecord:
        try:
            found = self.head.load()
            self.garbage.load()
            self.messages.load(found.incarnation)
            self._sweeper.load()
            self.steps.load(found.incarnation)
        except BaseException:
            self.head.leave()
            raise
        return found

    def start(self) -> None:
        """Start the thread that renews the lease."""
        self._lease.start()

    def stop(self) -> None:
        """End the thread that renews the lease."""
        self._lease.stop()

    def release(self) -> None:
        """Put everything in its place, and let the next owner in."""
        self.garbage.delete_acknowledged()
        self.garbage.compact()
        self._sweeper.compact()
        self.head.release()

    def abandon(self) -> None:
        """In a forked child: forget the lock, which the parent may hold, and the thread, which is the parent's."""
        self.lock = threading.Lock()
        self._lease.abandon()

    def _collect_garbage(self) -> bool:
        """Remove a part of what is gone; returns whether there is more. The lease's thread calls it."""
        # A thread that has much to append must not keep the lease from being renewed.
        if not self.lock.acquire(blocking=False):
            return False
        try:
            more = self.garbage.collect()
            return more or self._sweeper.collect()
        finally:
            self.lock.release()
