"""`Dispatcher`: decides which thread user code runs on; `ThreadDispatcher` has one of its own."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from netcomm.errors import ConfigurationError
from netcomm.logs import Log

log = Log("netcomm.runtime.dispatcher")

T = TypeVar("T")


class Dispatcher(ABC, Generic[T]):
    """Handles items one by one, in the order they were put.

    owns_thread: whether the thread is the library's. It leads when it has nothing else to do, no signal interrupts it,
        and it survives whatever a callback raises. A thread of the program does none of that.
    overdue_at: when the loop is to call `warn`, as `netcomm.clocks` counts, or None.

    All methods may be called from any thread.
    """

    owns_thread: bool
    overdue_at: float | None = None

    def __init__(self) -> None:
        """Make it; nothing is handled before `start`."""
        self._thread_id: int | None = None

    @abstractmethod
    def start(self, handle: Callable[[T], int], idle: Callable[[], bool]) -> None:
        """Begin to handle items.

        handle: called with each item; returns how many messages and events it has handed over.
        idle: called on a thread that the dispatcher owns while there is no item. It may wait for something else than
            items; then it returns True, and is called again. Once it returns False, the thread waits for an item.
        """

    @abstractmethod
    def put(self, item: T) -> None:
        """Queue an item."""

    @abstractmethod
    def stop(self) -> None:
        """Handle what was put before, and nothing more."""

    @property
    @abstractmethod
    def empty(self) -> bool:
        """Whether no item waits."""

    def is_current(self) -> bool:
        """Whether the caller runs in a call of `handle`, or on the thread that the dispatcher owns."""
        return threading.get_ident() == self._thread_id

    @abstractmethod
    def goes_on_meanwhile(self) -> bool:
        """Whether items are handled while the caller's thread waits, as far as can be told."""

    def join(self, timeout: float) -> None:
        """Wait for the end of a thread that the dispatcher owns, at most `timeout` seconds; not on that thread."""

    def close(self) -> None:
        """After the end: let go of what it has open."""

    def abandon(self) -> None:
        """In a forked child: handle nothing more, and touch nothing that is the parent's."""

    def warn(self, now: float) -> None:
        """On the thread that leads, once `overdue_at` has come: tell where items wait for the program."""

    def hush(self) -> None:
        """The program is told of the end: its descriptor need not be readable any more."""

    # -- For the program --------------------------------------------------------------------------------------

    def dispatch(self, timeout: float | None) -> int:
        """See `Peer.dispatch`."""
        raise _owned()

    def fileno(self) -> int:
        """See `Peer.fileno`."""
        raise _owned()


def _owned() -> ConfigurationError:
    return ConfigurationError(
        'the peer runs its callbacks on a thread of its own: it was not made with dispatch="manual"'
    )


class ThreadDispatcher(Dispatcher[T]):
    """Handles items on a thread of its own."""

    owns_thread = True

    def __init__(self, name: str, awaken: Callable[[], None]) -> None:
        """Make it; no thread runs before `start`.

        awaken: called when there is an item, from any thread, so that what the thread does meanwhile returns.
        """
        super().__init__()
        self._name = name
        self._awaken = awaken
        self._items: SimpleQueue[T | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, handle: Callable[[T], int], idle: Callable[[], bool]) -> None:
        """Start the thread."""
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

    @property
    def empty(self) -> bool:
        """Whether no item waits."""
        return self._items.empty()

    def goes_on_meanwhile(self) -> bool:
        """Whether the caller runs on another thread."""
        return not self.is_current()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, at most `timeout` seconds; returns at once on the thread itself."""
        if self._thread is not None and self._thread.is_alive() and not self.is_current():
            self._thread.join(timeout)

    def _run(self, handle: Callable[[T], int], idle: Callable[[], bool]) -> None:
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
                tell_of_failure(item)


def tell_of_failure(item: object) -> None:
    """While an exception of `handle` is handled: log it.

    It is a defect of ours: user code is isolated by Callback. Where messages may have been lost by it, the peer hands
    over no more of them; what else comes is no worse for it.
    """
    log.exception("a %s could not be handled", type(item).__name__)
