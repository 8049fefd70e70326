"""Every test must leave things as it found them: no thread, no descriptor, no held lock, no warning.

Locks are watched.
"""

from tests import held_locks  # noqa: I001 - before netcomm makes its first lock

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from netcomm import logs
from tests.trials import table

_GRACE_S = 5.0


def pytest_collection_finish() -> None:
    """Take what there is before the first test out of the collector's sight, so that looking after each is cheap."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how often was tried what."""
    lines = table()
    if lines:
        terminalreporter.section("tries")
        terminalreporter.write_line("\n".join(lines))


def _descriptors() -> set[str]:
    """What this process holds open that a library could have left: sockets, pipes, epolls and files."""
    if not sys.platform.startswith("linux"):
        return set()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that listdir itself used
            continue
        found.add(f"{name} -> {target}")
    return found


class _Written:
    """`caplog`, in which the records that the library has queued so far are looked at only when they are written."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __getattr__(self, name: str) -> Any:
        assert logs.flush(_GRACE_S)
        return getattr(self._caplog, name)

    @contextmanager
    def at_level(self, level: int | str, logger: str | None = None) -> Iterator[None]:
        with self._caplog.at_level(level, logger):
            yield
            assert logs.flush(_GRACE_S)


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> _Written:
    return _Written(caplog)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    is_plain = request.node.get_closest_marker("plain_locks") is not None
    with held_locks.unwatched() if is_plain else nullcontext():
        yield from _leaves_nothing()


def _leaves_nothing() -> Iterator[None]:
    threads = set(threading.enumerate())
    descriptors = _descriptors()
    yield
    assert logs.flush(_GRACE_S)
    if found := held_locks.take():
        pytest.fail("\n".join(found[:3]))
    if held := held_locks.held():
        left = f"{len(held)} locks, such as {held[0]}"
        held.clear()  # else each later callback on this thread would be slower by a look at each of them
        pytest.fail(f"left held: {left}")
    deadline = time.monotonic() + _GRACE_S
    while True:
        gc.collect()
        # The thread that writes log records ends by itself, a while after the last one.
        left_threads = [
            thread
            for thread in threading.enumerate()
            if thread not in threads and thread.name != logs.WRITER and thread.is_alive()
        ]
        left_descriptors = _descriptors() - descriptors
        if not left_threads and not left_descriptors:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {left_threads}, descriptors {sorted(left_descriptors)}")
        time.sleep(0.01)
