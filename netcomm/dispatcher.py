"""`Dispatcher`: the thread that user code runs on."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from netcomm.logs import Log

log = Log("netcomm.dispatcher")

T = TypeVar("T")


class Dispatcher(Generic[T]):
    """Handles items one by one, in the order they were put, on a thread of its own.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[T], None],
        idle: Callable[[], bool] = lambda: False,
        awaken: Callable[[], None] = lambda: None,
    ) -> None:
        """Make it; no thread runs before `start`.

        handle: called with each item.
        idle: called while there is none. It may wait for something else than items; then it returns True, and is
            called again. Once it returns False, the thread waits for an item.
        awaken: called when there is an item, from any thread, so that `idle` returns.
        """
        self._handle = handle
        self._idle = idle
        self._awaken = awaken
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread_id: int | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue an item."""
        self._items.put(item)
        self._awaken()

    def stop(self) -> None:
        """Let the thread end, once it has handled what was put before."""
        self._items.put(None)
        self._awaken()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, at most `timeout` seconds; returns at once on the thread itself."""
        if self._thread.is_alive() and not self.is_current():
            self._thread.join(timeout)

    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return threading.get_ident() == self._thread_id

    @property
    def empty(self) -> bool:
        """Whether no item waits."""
        return self._items.empty()

    def _next(self) -> T | None:
        while self._items.empty() and self._idle():
            pass
        return self._items.get()

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        while (item := self._next()) is not None:
            try:
                self._handle(item)
            except Exception:
                # A defect of ours: user code is isolated by Callback. Where messages may have been lost by it, the peer
                # hands over no more of them; what else comes is no worse for it.
                log.exception("a %s could not be handled", type(item).__name__)
