"""`Keeper`: the thread that does a storage's background work.

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
from netcomm.messaging import (
    Delete,
    DeleteBelow,
    FindExpired,
    Load,
    Mark,
    Renew,
    StorageRequest,
    StorePosition,
)
from netcomm.storage import Position, QueueStorage

log = Log("netcomm.keeper")

# What has arrived may be forgotten a little later, together with what arrives meanwhile: if it never is, because the
# process dies, it is sent again and recognised.
_DELETE_DELAY_S = 0.1
_RETRY_MIN_S = 0.1
_RETRY_MAX_S = 5.0

Answer = Callable[[StorageRequest, Any], None]


class Keeper:
    """Owns a storage's background work, and in the end closes the storage.

    A request that fails is tried again, until it succeeds or `stop` is called. `start`, `put`, `stop` and `join` may be
    called from any thread.
    """

    def __init__(
        self,
        name: str,
        storage: QueueStorage,
        answer: Answer,
        report: Callable[[Exception], None],
    ) -> None:
        """Make it; no thread runs before `start`.

        answer: called on the keeper's thread with each request that was carried out, and its result.
        report: called on the keeper's thread with the first of several failures in a row. It must not wait.
        """
        self._storage = storage
        self._answer = answer
        self._report = report
        self._requests: SimpleQueue[StorageRequest | None] = SimpleQueue()
        self._todo: list[StorageRequest] = []
        self._positions: dict[str, Position] = {}
        self._deletes: dict[str, int] = {}
        self._delete_at = 0.0
        self._retry_s = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, request: StorageRequest) -> None:
        """Queue a request."""
        self._requests.put(request)

    def stop(self) -> None:
        """Let the thread end: it tries once more what is left to be done, and closes the storage."""
        if self._thread.ident is None:  # never started: there is nothing to be done
            self._close()
        else:
            self._requests.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, at most `timeout` seconds."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        running = True
        while running:
            running = self._gather()
            self._work(last=not running)
        self._close()

    def _close(self) -> None:
        try:
            self._storage.close()
        except Exception as error:
            log.error("the storage could not be closed: %s", error)

    def _gather(self) -> bool:
        """Wait for requests, and take all there are; returns whether there will be more."""
        timeout = None
        if self._todo or self._positions:
            timeout = self._retry_s
        elif self._deletes:
            timeout = max(self._retry_s, self._delete_at - monotonic(), 0.0)
        try:
            request = self._requests.get(timeout=timeout)
            while request is not None:
                self._sort(request)
                request = self._requests.get_nowait()
        except Empty:
            return True
        return False

    def _sort(self, request: StorageRequest) -> None:
        match request:
            case StorePosition(ident, position):
                self._positions[ident] = position
            case DeleteBelow(ident, seq):
                if not self._deletes:
                    self._delete_at = monotonic() + _DELETE_DELAY_S
                self._deletes[ident] = max(seq, self._deletes.get(ident, 0))
            case _:
                self._todo.append(request)

    def _work(self, last: bool) -> None:
        """Do what there is to do, the most urgent first; what fails stays."""
        failure: Exception | None = None
        if self._positions:
            try:
                self._storage.store_positions(self._positions)
            except Exception as error:  # a plug-in may raise anything, and this thread has to go on
                failure = error
            else:
                for ident, position in self._positions.items():
                    self._answer(StorePosition(ident, position), None)
                self._positions.clear()
        todo, self._todo = self._todo, []
        for request in todo:
            try:
                result = self._carry_out(request)
            except Exception as error:
                failure = error
                self._todo.append(request)
            else:
                self._answer(request, result)
        if last or monotonic() >= self._delete_at:
            for ident, seq in list(self._deletes.items()):
                try:
                    self._storage.delete_below(ident, seq)
                except Exception as error:
                    failure = error
                else:
                    del self._deletes[ident]
        self._note(failure)

    def _note(self, failure: Exception | None) -> None:
        if failure is None:
            self._retry_s = 0.0
            return
        if not self._retry_s:
            log.error("the storage fails; trying again: %s", failure)
            self._report(failure)
        self._retry_s = min(max(_RETRY_MIN_S, self._retry_s * 2), _RETRY_MAX_S)

    def _carry_out(self, request: StorageRequest) -> Any:
        match request:
            case Load(ident, from_seq, max_count, max_bytes):
                return self._storage.read(ident, from_seq, max_count, max_bytes)
            case FindExpired(ident, from_seq, wall_now, max_count):
                return self._storage.expired(ident, from_seq, wall_now, max_count)
            case Mark(ident, below):
                return self._storage.mark_sent(ident, below)
            case Renew(ident, epoch):
                return self._storage.renew(ident, epoch)
            case Delete(ident, seqs):
                return self._storage.delete(ident, seqs)
