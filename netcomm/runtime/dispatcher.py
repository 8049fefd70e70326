"""`Dispatcher`: the thread that user code runs on."""

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from netcomm.logs import Log

log = Log("netcomm.runtime.dispatcher")

T = TypeVar("T")


class Dispatcher(Generic[T]):
    """Handles items one by one, in the order they were put, on a thread of its own.

    All methods may be called from any thread.
    """

    def __init__(self, name: str, awaken: Callable[[], None]) -> None:
        """Make it; no thread runs before `start`.

        awaken: called when there is an item, from any thread, so that what the thread does meanwhile returns.
        """
        self._name = name
        self._awaken = awaken
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._thread_id: int | None = None

    def start(self, handle: Callable[[T], None], idle: Callable[[], bool]) -> None:
        """Start the thread.

        handle: called with each item.
        idle: called while there is none. It may wait for something else than items; then it returns True, and is
            called again. Once it returns False, the thread waits for an item.
        """
        self._thread = threading.Thread(target=self._run, args=(handle, idle), name=self._name, daemon=True)
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
        if self._thread is not None and self._thread.is_alive() and not self.is_current():
            self._thread.join(timeout)

    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return threading.get_ident() == self._thread_id

    @property
    def empty(self) -> bool:
        """Whether no item waits."""
        return self._items.empty()

    def _run(self, handle: Callable[[T], None], idle: Callable[[], bool]) -> None:
        self._thread_id = threading.get_ident()
        items = self._items
        while True:
            while items.empty() and idle():
                pass
            item = items.get()
            if item is None:
                return
            try:
                handle(item)
            except Exception:
                # A defect of ours: user code is isolated by Callback. Where messages may have been lost by it, the peer
                # hands over no more of them; what else comes is no worse for it.
                log.exception("a %s could not be handled", type(item).__name__)
