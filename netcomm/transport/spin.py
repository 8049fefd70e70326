"""`AdaptiveSpin`: waits for a selector, asleep, or awake for the first moment where that has proved worth it."""

import os
import selectors
from collections.abc import Callable
from time import monotonic

# To put a processor to sleep and to wake it takes longer than many an answer.
_SPIN_S = 0.0003 if (os.cpu_count() or 1) > 1 else 0.0
_MOST_CAUTIOUS = 64
# The thread that is to answer may have been woken on this very processor, where the system expected nobody to stay
# awake.
_let_others_run: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


class AdaptiveSpin:
    """Waits for a selector: asleep, or, where that has proved worth it, awake for the first moment.

    It is worth it where what is waited for mostly comes within that moment. Each time that it does not, more short
    waits in a row have to pass asleep before it is tried again: another program may need the processor.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._select = selector.select
        self._short_waits = 0
        self._caution = 1

    def wait(self, timeout: float | None, eager: bool) -> list[tuple[selectors.SelectorKey, int]]:
        """As `select`; eager: what is waited for may well come at once."""
        if not eager or (timeout is not None and timeout < _SPIN_S):
            return self._select(timeout)
        started = monotonic()
        if self._short_waits >= self._caution:
            while monotonic() - started < _SPIN_S:
                if ready := self._select(0):
                    self._caution = 1
                    return ready
                _let_others_run()
            self._short_waits = 0
            self._caution = min(2 * self._caution, _MOST_CAUTIOUS)
        ready = self._select(timeout)
        self._short_waits = self._short_waits + 1 if monotonic() - started < _SPIN_S else 0
        return ready
