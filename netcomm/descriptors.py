"""What the library holds open, so that a forked child can let go of it.

A descriptor is made and noted with `no_fork` held. So no fork comes in between, and a child knows all that it has
inherited of the library's descriptors, whichever peer they belong to.
"""

import os
import threading
import weakref
from typing import Protocol, TypeVar


class Closable(Protocol):
    """What has a descriptor."""

    def close(self) -> None:
        """Close it. Closing again does nothing."""


C = TypeVar("C", bound=Closable)

no_fork = threading.RLock()
"""Held while a descriptor is made and noted, so that no fork comes in between; and for nothing that can wait."""
_noted: "weakref.WeakSet[Closable]" = weakref.WeakSet()


def note(made: C) -> C:
    """With `no_fork` held: let forked children close what was just made; returns it."""
    _noted.add(made)
    return made


def close(noted: Closable) -> None:
    """Close what was noted. A child that is forked half-way could not."""
    with no_fork:
        noted.close()


def _close_in_child() -> None:
    # Closed, and nothing else: the parent shares what an epoll instance watches, and may have held any lock.
    for made in list(_noted):
        made.close()
    _noted.clear()
    no_fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=_close_in_child)
