"""What this process has open: a forked child lets go of it, and a descriptor waits until SQLite has left its file."""

import os
import threading
import weakref
from collections import Counter
from typing import Protocol

from netcomm_sqlite.names import Key, key_of


class Abandoned(Protocol):
    """An open file."""

    def abandon(self) -> None:
        """In a forked child: let go of everything; it is the parent's."""


class Lock(Protocol):
    """A lock, as far as a fork has to know it."""

    file_key: Key | None

    def let_go(self) -> None:
        """In a forked child: close its descriptors. Closing again does nothing."""


forking = threading.RLock()
"""Held while a descriptor that a forked child has to close is made, or closed; and by a fork. A signal may fork."""
locks: set[Lock] = set()
files: "weakref.WeakSet[Abandoned]" = weakref.WeakSet()
# When a process closes any descriptor of a file, the system drops the locks that SQLite has on it in that process. So a
# descriptor of a file that this process has connections to is kept until there are none.
_connected: Counter[Key] = Counter()
_kept: dict[Key, list[int]] = {}


def enter(path: str) -> Key:
    """Note that a connection to a file begins."""
    with forking:
        key = key_of(os.stat(path))
        _connected[key] += 1
        return key


def leave(key: Key) -> None:
    """Note that a connection to a file has ended."""
    with forking:
        _connected[key] -= 1
        if not _connected[key]:
            del _connected[key]
            for descriptor in _kept.pop(key, ()):
                os.close(descriptor)


def close_descriptor(key: Key, descriptor: int) -> None:
    """Close a descriptor of a file when no connection to that file is left."""
    with forking:
        if _connected[key]:
            _kept.setdefault(key, []).append(descriptor)
        else:
            os.close(descriptor)


def _abandon_all() -> None:
    """In a forked child: let go of what the parent has open, also of what a thread of its is just opening."""
    for file in list(files):
        file.abandon()
    for lock in locks:
        lock.let_go()
    locks.clear()
    files.clear()
    _connected.clear()
    for descriptors in _kept.values():
        for descriptor in descriptors:
            os.close(descriptor)
    _kept.clear()
    forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=forking.acquire, after_in_parent=forking.release, after_in_child=_abandon_all)
