"""`GroupCommit`: stores the persistent messages of all threads that send at the same time in one transaction.

The thread that gets the commit lock stores the messages of all, and queues them; the others find it done. Locks are
acquired in one order only: the commit lock, then the mutex or the storage's own, and neither of those two while the
other is held.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from netcomm import clocks
from netcomm.errors import ReentrantCall, StorageUnavailable
from netcomm.host_storage import HostStorage
from netcomm.message import Delivery, Stream
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.node import Node
from netcomm.runtime.lifecycle import RUNNING, Lifecycle
from netcomm.runtime.loop import Loop, reentrant
from netcomm.runtime.storage_worker import StorageWorker
from netcomm.storage import Append, QueueStorage, StoredMessage


@dataclass(slots=True)
class _Uncommitted:
    """Persistent messages of one call, which are of one stream.

    epoch: that of their stream, once they are numbered, and -1 before.
    at: when they were numbered, in seconds since the epoch.
    ended: whether they have been stored, or `error` tells what kept them from being stored.
    """

    ident: str
    ttl: float | None
    deliveries: list[Delivery]
    epoch: int = -1
    at: float = 0.0
    ended: bool = False
    error: BaseException | None = None


def _appends(batches: list[_Uncommitted]) -> list[Append]:
    """What is to be stored."""
    messages: list[StoredMessage]
    appends: dict[tuple[str, int, Stream], Append] = {}
    for batch in batches:
        key = batch.ident, batch.epoch, batch.deliveries[0].stream
        if key not in appends:
            ident, epoch, stream = key
            appends[key] = Append(ident, epoch, [], stream)
        messages = appends[key].messages  # type: ignore[assignment]
        for delivery in batch.deliveries:
            data: bytes = delivery.data  # type: ignore[assignment]
            envelope = delivery.envelope or b""
            messages.append(StoredMessage(delivery.seq, delivery.uuid, data, batch.at, batch.ttl, envelope))
    return list(appends.values())


class GroupCommit:
    """`commit` may be called from any thread."""

    def __init__(
        self,
        life: Lifecycle,
        messaging: Messaging,
        loop: Loop,
        node: Node,
        storage: QueueStorage,
        worker: StorageWorker,
    ) -> None:
        """Make it. worker: the other user of the storage."""
        self._life = life
        self._messaging = messaging
        self._node = node
        self._loop = loop
        self._storage = storage
        self._worker = worker
        self._lock = threading.RLock()  # a finalizer may interrupt the thread that has it, and come here
        self._owns_lock: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]  # as Condition asks
        self._is_committing = False  # the thread that has the lock
        self._uncommitted: deque[_Uncommitted] = deque()

    @property
    def keeps_envelopes(self) -> bool:
        """Whether the storage keeps the envelopes of messages."""
        return self._storage.keeps_envelopes

    @property
    def keeps_streams(self) -> bool:
        """Whether the storage keeps more than one stream for each receiver."""
        return isinstance(self._storage, HostStorage)

    def is_interrupting(self) -> bool:
        """Whether the caller's thread is in a call of the storage, or about to make one: a finalizer interrupts it."""
        worker = self._worker
        is_committing = self._is_committing and self._owns_lock()
        return is_committing or (worker.is_in_storage and worker.is_current())

    def commit(self, ident: str, deliveries: list[Delivery], ttl: float | None) -> None:
        """Store persistent messages, which are of one stream and have one time to live, and queue them.

        Raises what the storage raises; ReentrantCall where a finalizer or a signal handler interrupts the library.
        """
        if self._life.phase is not RUNNING:  # in a forked child, the commit lock may be held for ever
            self._life.check_running()
        in_use = self._is_committing or self._worker.is_in_storage  # the storage, by whichever thread
        if self._loop.is_interrupting() or (in_use and self.is_interrupting()):
            raise _reentrant()
        if not deliveries:
            return
        batch = _Uncommitted(ident, ttl, deliveries)
        self._uncommitted.append(batch)
        with self._lock:
            if not batch.ended:
                self._is_committing = True
                try:
                    self._commit_all(batch)
                finally:
                    self._is_committing = False
        if batch.error is not None:
            raise batch.error

    def _commit_all(self, own: _Uncommitted) -> None:
        """With the commit lock held: store what is uncommitted in one transaction, and queue it."""
        batches = list(self._uncommitted)
        error: BaseException | None = None
        try:
            with self._loop.mutex:
                if self._life.phase is not RUNNING:
                    self._life.check_running()
                at = self._messaging.storage_sync.stored_time(*clocks.read())
                for batch in batches:
                    batch.at = at
                    batch.epoch = self._messaging.storage_sync.number(batch.ident, batch.deliveries)
            self._storage.append(_appends(batches))
        # Whatever a plug-in raises, the callers must hear of it; and of an interruption of this thread, in another way.
        except BaseException as raised:
            error = raised
        try:
            self._end(batches, own, error)
        except BaseException:  # Ctrl-C
            self._end(batches, own, error)
            raise

    def _end(self, batches: list[_Uncommitted], own: _Uncommitted, error: BaseException | None) -> None:
        """With the commit lock held: queue what has been stored, or tell why it was not; may be called again."""
        loop = self._loop
        with loop.mutex:
            now = clocks.now()
            idents: dict[str, None] = {}
            for batch in batches:
                idents[batch.ident] = None
                if batch.ended:
                    continue
                if error is None:
                    loop.has_sent = True
                    self._messaging.send_stored(batch.ident, batch.deliveries, now)
                else:
                    is_for_all = batch is own or isinstance(error, Exception)
                    batch.error = error if is_for_all else StorageUnavailable("storing was interrupted; try again")
                    if batch.epoch >= 0:
                        self._messaging.storage_sync.not_stored(batch.ident, batch.deliveries)
                batch.ended = True
            while self._uncommitted and self._uncommitted[0].ended:
                self._uncommitted.popleft()
            for ident in idents:
                try:
                    self._node.write_to(ident, now)
                except BaseException:
                    loop.abort(ident)
                    raise
            loop.call()


def _reentrant() -> ReentrantCall:
    return reentrant("send of a persistent message")
