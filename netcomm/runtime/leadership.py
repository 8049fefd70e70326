"""`Leadership`: which of two threads waits for the sockets.

The pattern is "Leader/Followers" (Schmidt et al., Pattern-Oriented Software Architecture, volume 2): whoever leads
waits for what happens, and then works on it itself, so that no other thread has to be woken for it. Here one thread,
the *worker*, leads whenever it has no other work. Should its work keep it, the *deputy* leads until the worker is back.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import get_ident

# So long may the worker's work leave nobody to lead: the longer, the more often it has been short when looked at. Each
# look takes the interpreter from the worker for a moment, which an answer may be waited for in.
PATIENCE_S = 0.005
MOST_PATIENCE_S = 0.04


class Leadership:
    """Held by one thread at a time.

    The worker calls `acquire`, `release`, `begin_work` and `await_deputy`; the deputy calls `deputize` and `release`,
    and in the end `acquire_last`; anybody may call `stop`.
    """

    __slots__ = (
        "_alarm",
        "_begun",
        "_held",
        "_leader",
        "_resting",
        "_ring",
        "_stopped",
        "_turns",
        "_wanted",
        "_working",
    )

    def __init__(self, ring: Callable[[], None]) -> None:
        """ring: ends the waiting of the thread that leads; may be called from any thread."""
        self._ring = ring
        self._held = threading.Lock()
        self._alarm: SimpleQueue[bool] = SimpleQueue()  # to the deputy; True: do not be patient
        self._resting = False  # the deputy waits for the alarm alone
        self._wanted = False
        self._stopped = False
        self._working = False  # the worker has begun something, and has not led since
        self._begun = 0  # how often it has
        self._turns = 0  # how often it has led
        self._leader = 0  # the thread that leads; 0 for none

    @property
    def wanted(self) -> bool:
        """Whether who leads has to give it up, as soon as it can."""
        return self._wanted or self._stopped

    @property
    def vacant(self) -> bool:
        """Whether nobody leads now."""
        return not self._held.locked()

    def stop(self) -> None:
        """Let nobody lead any more."""
        self._stopped = True
        self._ring()
        self._alarm.put(False)

    def is_current(self) -> bool:
        """Whether the caller's thread leads."""
        return self._leader == get_ident()

    def release(self) -> None:
        """Give up what `acquire`, `deputize` or `acquire_last` has given."""
        self._leader = 0
        self._held.release()

    def acquire(self) -> bool:
        """Let the worker lead, as soon as the deputy has given it up; returns False after `stop`."""
        if not self._held.acquire(blocking=False):
            self._wanted = True
            self._ring()
            self._held.acquire()
            self._wanted = False
        if self._stopped:
            self._held.release()
            return False
        self._leader = get_ident()
        self._turns += 1
        self._working = False
        return True

    def begin_work(self) -> None:
        """The worker, which does not lead now, begins something that may take long."""
        self._begun += 1
        self._working = True
        if self._resting:
            self._resting = False
            self._alarm.put(False)

    def await_deputy(self) -> None:
        """The worker is going to wait for something that only who leads can bring about."""
        if self.vacant:
            self._alarm.put(True)

    def retire(self) -> None:
        """Instead of a worker that leads: let the deputy lead from its start on, until `stop`."""
        self.begin_work()
        self.await_deputy()

    def deputize(self) -> bool:
        """Wait until the deputy has to lead, which it then does; returns False after `stop`.

        While the worker has no work, this sleeps; while there is some, it looks now and then.
        """
        last_begun = -1
        patience_s = PATIENCE_S
        while not self._stopped:
            begun, turns = self._begun, self._turns
            self._resting = begun == last_begun and not self._working
            # Looked at once more: work may have begun before it could be seen that the deputy rests.
            asleep = self._resting and not self._working
            try:
                kept = self._alarm.get(timeout=None if asleep else patience_s)
                patience_s = PATIENCE_S
            except Empty:
                kept = turns == self._turns
                patience_s = min(2 * patience_s, MOST_PATIENCE_S)
            self._resting = False
            if kept and self._working and self._held.acquire(blocking=False):
                self._leader = get_ident()
                return True
            last_begun = begun
        return False

    def acquire_last(self) -> None:
        """After `stop`: lead for the last time, once nobody else does."""
        self._held.acquire()
        self._leader = get_ident()
