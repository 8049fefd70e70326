"""Every test must leave things as it found them: no thread, no descriptor, no warning."""

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest

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


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    threads = set(threading.enumerate())
    descriptors = _descriptors()
    yield
    deadline = time.monotonic() + _GRACE_S
    while True:
        gc.collect()
        left_threads = [thread for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
        left_descriptors = _descriptors() - descriptors
        if not left_threads and not left_descriptors:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"left behind: threads {left_threads}, descriptors {sorted(left_descriptors)}")
        time.sleep(0.01)
