"""`StorageWorker`: the thread that does a storage's background work.

Callers store what they send by themselves. What messaging asks of the storage goes through this thread, so that neither
the loop nor a callback ever waits for a disk or a server: reading on in a backlog, storing positions, forgetting what
has arrived. Requests of a kind that supersede each other are merged.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from netcomm.logs import Log
from netcomm.protocol.events import DeleteBelow, StorageRequest
from netcomm.protocol.storage_queue import StorageQueue
from netcomm.storage import QueueStorage

log = Log("netcomm.runtime.storage_worker")

# What has arrived may be forgotten a little later, together with what arrives meanwhile: if it never is, because the
# process dies, it is sent again and recognised.
_DELETE_DELAY_S = 0.1
_RETRY_MIN_S = 0.1
_RETRY_MAX_S = 5.0

Answer = Callable[[StorageRequest, Any], None]


class StorageWorker:
    """Owns a storage's background work, and in the end closes the storage.

    A request that fails is tried again, until it succeeds or `stop` is called. `start`, `put`, `stop` and `join` may be
    called from any thread.

    is_in_storage: whether the thread is in a call of the storage.
    """

    def __init__(self, name: str, storage: QueueStorage) -> None:
        """Make it; no thread runs before `start`."""
        self._name = name
        self._storage = storage
        self.is_in_storage = False
        self._requests: SimpleQueue[StorageRequest | None] = SimpleQueue()
        self._queue = StorageQueue()
        self._delete_at = 0.0
        self._retry_s = 0.0
        self._thread: threading.Thread | None = None

    def start(self, answer: Answer, report: Callable[[BaseException], None]) -> None:
        """Start the thread.

        answer: called on that thread with each request that was carried out, and its result.
        report: called on that thread with the first of several failures in a row. It must not wait.
        """
        self._thread = threading.Thread(target=self._run, args=(answer, report), name=self._name, daemon=True)
        self._thread.start()

    def put(self, request: StorageRequest) -> None:
        """Queue a request."""
        self._requests.put(request)

    def stop(self) -> None:
        """Let the thread end: it tries once more what is left to be done, and closes the storage."""
        self._requests.put(None)
        if self._thread is None or self._thread.ident is None:  # never started: there is nothing to be done
            self._close()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, at most `timeout` seconds; returns at once on the thread itself."""
        if self._thread is not None and self._thread.is_alive() and not self.is_current():
            self._thread.join(timeout)

    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return threading.current_thread() is self._thread

    def _run(self, answer: Answer, report: Callable[[BaseException], None]) -> None:
        running = True
        while running:
            running = self._gather()
            failure = self._work(answer, last=not running)
            if failure is None:
                self._retry_s = 0.0
                continue
            if not self._retry_s:
                log.error("the storage fails; trying again: %s", failure)
                report(failure)
            self._retry_s = min(max(_RETRY_MIN_S, self._retry_s * 2), _RETRY_MAX_S)
        self._close()

    def _close(self) -> None:
        try:
            self._storage.close()
        except BaseException as error:
            log.error("the storage could not be closed: %s", error)

    def _gather(self) -> bool:
        """Wait for requests, and take all there are; returns whether there will be more."""
        timeout = None
        if self._queue:
            delay_s = self._delete_at - monotonic() if self._queue.may_wait else 0.0
            timeout = max(self._retry_s, delay_s)
        try:
            request = self._requests.get(timeout=timeout)
            while request is not None:
                self._add(request)
                request = self._requests.get_nowait()
        except Empty:
            return True
        return False

    def _add(self, request: StorageRequest) -> None:
        if isinstance(request, DeleteBelow) and not self._queue.has_deletes:
            self._delete_at = monotonic() + _DELETE_DELAY_S
        self._queue.add(request)

    def _work(self, answer: Answer, last: bool) -> BaseException | None:
        """Do what there is to do, the most urgent first; returns why some of it, which is tried again, has failed."""
        failure: BaseException | None = None
        for job in self._queue.take(with_deletes=last or monotonic() >= self._delete_at):
            self.is_in_storage = True
            try:
                result = job.carry_out(self._storage)
            except BaseException as error:  # a plug-in may raise anything, and this thread has to go on
                self.is_in_storage = False
                failure = error
                self._queue.put_back(job)
            else:
                self.is_in_storage = False
                for request in job.requests:
                    answer(request, result)
        return failure
