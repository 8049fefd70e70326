"""`Dispatcher`: the thread that user code runs on."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

log = logging.getLogger("netcomm.dispatcher")

T = TypeVar("T")


class Dispatcher(Generic[T]):
    """Handles items one by one, in the order they were put, on a thread of its own.

    All methods may be called from any thread.
    """

    def __init__(self, name: str, handle: Callable[[T], None]) -> None:
        """Make it; no thread runs before `start`.

        handle: called with each item.
        """
        self._handle = handle
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue an item."""
        self._items.put(item)

    def stop(self) -> None:
        """Let the thread end, once it has handled what was put before."""
        self._items.put(None)

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, at most `timeout` seconds; returns at once on the thread itself."""
        if self._thread.is_alive() and not self.is_current():
            self._thread.join(timeout)

    def is_current(self) -> bool:
        """Whether the caller runs on this thread."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._handle(item)
            except Exception:
                # A defect of ours: user code is isolated by Callback. The next item is no worse for it.
                log.exception("a %s could not be handled", type(item).__name__)
