"""The clocks: `now`, by which everything waits and expires, and `read`, with the wall clock beside it."""

import sys
import time
from collections.abc import Callable
from functools import partial

# While a machine is suspended, time.monotonic() stands still on Linux and macOS. A message's time to live goes on.
if hasattr(time, "CLOCK_BOOTTIME"):
    now: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
elif sys.platform == "darwin":
    now = partial(time.clock_gettime, time.CLOCK_MONOTONIC)  # counts sleep there: clock_gettime(3)
else:
    now = time.monotonic
"""Seconds of a clock that is never set, and that counts the machine's sleep where the system can tell."""

_MOST_APART_S = 0.05


def read() -> tuple[float, float]:
    """`now()`, and the wall clock in seconds since the epoch, at the same moment."""
    while True:
        before, wall, after = now(), time.time(), now()
        if after - before < _MOST_APART_S:  # else this thread, or the whole machine, was stopped in between
            return before, wall
