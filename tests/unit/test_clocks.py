"""The clocks: what they count, and that both are read at one moment."""

import time

import pytest

from netcomm import clocks


def test_now_counts_the_time_that_the_machine_sleeps() -> None:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        assert clocks.now() <= time.monotonic()
        return
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= clocks.now() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_both_are_read_at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is stopped between the two at first, so that they do not belong together."""
    ticks = iter([0.0, 7.0, 7.001, 7.002])
    monkeypatch.setattr(clocks, "now", lambda: next(ticks))
    walls = iter([100.0, 107.001])
    monkeypatch.setattr(time, "time", lambda: next(walls))
    assert clocks.read() == (7.001, 107.001)
