"""`ManualDispatcher`: lets the program run user code on a thread of its own, when it calls `dispatch`.

A signal's handler may raise on that thread, between any two steps. So an item stays at the head of the queue until it
has been handled, and is handled once more where that was interrupted; and each step leaves the queue, the bell and the
mark of the thread that dispatches in agreement.
"""

import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import TypeVar

from netcomm import clocks
from netcomm.errors import AlreadyDispatching, LifecycleError
from netcomm.logs import Log
from netcomm.runtime.dispatcher import Dispatcher, tell_of_failure
from netcomm.transport.bell import Bell

log = Log("netcomm.runtime.manual_dispatcher")

T = TypeVar("T")

OVERDUE_S = 5.0
"""A warning tells of what has waited for so many seconds, in which `dispatch` was not called."""


class ManualDispatcher(Dispatcher[T]):
    """Handles items on the threads that call `dispatch`, one of them at a time."""

    owns_thread = False

    def __init__(self, name: str, weigh: Callable[[T], int]) -> None:
        """Make it.

        name: what the log calls the peer.
        weigh: tells how many messages and events an item holds that wait.
        """
        super().__init__()
        self._name = name
        self._weigh = weigh
        self._items: deque[T] = deque()
        self._bell = Bell()
        self._claiming = threading.RLock()
        self._handle: Callable[[T], int] = lambda item: 0
        self._last_thread: int | None = None  # that has called `dispatch`
        self._waiting_since = 0.0  # the last call of `dispatch`, or, if later, the first item behind it
        self._warned = False
        self._stopped = False
        self._closing = False
        self._abandoned = False

    def start(self, handle: Callable[[T], int], idle: Callable[[], bool]) -> None:
        """Let `dispatch` handle items."""
        self._handle = handle

    def put(self, item: T) -> None:
        """Queue an item."""
        if not self._items:
            self._waiting_since = clocks.now()
        if self.overdue_at is None and not self._warned:
            self.overdue_at = self._waiting_since + OVERDUE_S
        self._items.append(item)
        self._bell.ring()

    def stop(self) -> None:
        """End the waiting of `dispatch`, now and later."""
        self._stopped = True
        self._bell.ring()

    @property
    def empty(self) -> bool:
        """Whether no item waits."""
        return not self._items

    def goes_on_meanwhile(self) -> bool:
        """Whether the thread that has dispatched last is another one: what waits, the caller's thread would handle."""
        return self._last_thread not in (None, get_ident())

    def close(self) -> None:
        """Close the descriptor. Where another thread is in `dispatch`, it does that when it leaves.

        It may be about to wait for the descriptor, whose number something else could have by then.
        """
        self._closing = True
        if self._thread_id in (None, get_ident()):
            self._bell.close()

    def hush(self) -> None:
        """Let the descriptor be readable no more. Where a thread is in `dispatch`, it may be what lets that return."""
        if self._thread_id is None:
            self._bell.clear()

    def abandon(self) -> None:
        """In a forked child: forget what waits. A thread of the parent may hold the bell's lock for ever."""
        self._abandoned = True
        self._items.clear()

    def warn(self, now: float) -> None:
        """Tell of what has waited for too long; or look again, when it will have."""
        if self.overdue_at is None or now < self.overdue_at:
            return
        self.overdue_at = None
        count = sum(map(self._weigh, tuple(self._items)))
        due = self._waiting_since + OVERDUE_S
        if not count or self._warned:
            return
        if now < due:
            self.overdue_at = due
        elif self._thread_id is not None:  # `dispatch` runs
            self.overdue_at = now + OVERDUE_S
        else:
            self._warned = True
            log.warning("%r: %d messages and events wait for dispatch() since %g s", self._name, count, OVERDUE_S)

    # -- For the program --------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """See `Peer.fileno`."""
        number = -1 if self._abandoned or self._closing else self._bell.receiver.fileno()
        if number < 0:
            raise LifecycleError(f"peer {self._name!r} has been terminated: its descriptor is closed")
        return number

    def dispatch(self, timeout: float | None) -> int:
        """See `Peer.dispatch`."""
        me, claimed = get_ident(), False
        try:
            with self._claiming:
                if self._thread_id is not None:
                    raise _already(self._thread_id == me)
                # No call between these steps and none before `try`: nothing interrupts them half-way.
                claimed, self._thread_id, self._last_thread = True, me, me
            self._note_call()
            until = None if timeout is None else monotonic() + timeout
            while not (count := self._handle_waiting()) and self._wait(until):
                pass
            return count
        finally:
            if claimed:
                self._thread_id = None
                if not self._abandoned:
                    self._leave()

    def _leave(self) -> None:
        if self._closing:
            self._bell.close()
        else:
            self._settle()

    def _note_call(self) -> None:
        self._warned = False
        self._waiting_since = clocks.now()

    def _wait(self, until: float | None) -> bool:
        """Wait for an item; returns whether there is one.

        until: on the clock of `time.monotonic`, None for as long as it takes.
        """
        while not self._items and not self._stopped and not self._abandoned:
            left = None if until is None else until - monotonic()
            self._settle()
            if (left is not None and left <= 0) or not self._bell.wait(left):
                break
        return bool(self._items)

    def _handle_waiting(self) -> int:
        """Handle the items that wait now; returns how many messages and events that were."""
        items, handle, count = self._items, self._handle, 0
        for _ in range(len(items)):
            item = items[0]
            try:
                count += handle(item)
            except Exception:
                tell_of_failure(item)
            if self._abandoned:
                break
            items.popleft()
        return count

    def _settle(self) -> None:
        """Let the descriptor be readable while something waits, and only then."""
        self._waiting_since = clocks.now()
        try:
            if not self._items:
                self._bell.clear()
        finally:
            if self._items or self._stopped:  # before, or in between, perhaps as a signal came
                self._bell.ring()


def _already(is_nested: bool) -> AlreadyDispatching:
    if is_nested:
        return AlreadyDispatching("dispatch was called in a callback, which dispatch runs")
    return AlreadyDispatching("another thread is in dispatch: callbacks run one at a time")
