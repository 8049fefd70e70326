"""What the process does to its peers: it ends, and it forks.

At the end of a program, Python first marks that it is shutting down, and then waits for the threads of pools
(`concurrent.futures`) and for all other threads that are not daemons. Only then `atexit` functions run. Peers live
until those: a program may go on for long in its other threads. But from the mark on pools take no more work, so
callbacks that use one can only fail.
"""

import atexit
import os
import threading
import weakref
from time import monotonic
from typing import Protocol

EXIT_S = 1.0
"""So many seconds a process that ends is kept: by its peers, and by calls that wait in the threads of pools."""


class Member(Protocol):
    """A peer, as far as the process has to know it."""

    def terminate(self, timeout: float) -> None:
        """End within so many seconds."""

    def _abandon(self) -> None:
        """In a forked child: let go of everything; it is the parent's."""


# Whatever holds descriptors. A program that forgets to terminate it still ends, and a forked child lets go of it.
_members: "weakref.WeakSet[Member]" = weakref.WeakSet()


def enter(member: Member) -> None:
    """From now on, end a member with the process, and abandon it in forked children."""
    _members.add(member)


def leave(member: Member) -> None:
    """A member holds nothing any more."""
    _members.discard(member)


def is_ending() -> bool:
    """Whether the main thread has come to its end, and Python is shutting down."""
    # There is no public way to tell. Without this attribute, the end is seen when the pools have ended.
    return getattr(threading, "_SHUTTING_DOWN", False) or not threading.main_thread().is_alive()


def keeps_the_process() -> bool:
    """Whether the caller's thread is one of a pool: the process can't end before what it does there has returned."""
    target = getattr(threading.current_thread(), "_target", None)
    return getattr(target, "__module__", None) == "concurrent.futures.thread"


def _terminate_all() -> None:
    until = monotonic() + EXIT_S
    for member in list(_members):
        member.terminate(max(0.0, until - monotonic()))


def _abandon_all() -> None:
    for member in list(_members):
        member._abandon()
    _members.clear()


atexit.register(_terminate_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
