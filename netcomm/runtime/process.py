"""What the process does to its peers: it ends, and it forks.

At the end of a program, Python first marks that it is shutting down, and then waits for the threads of pools
(`concurrent.futures`) and for all other threads that are not daemons. Only then `atexit` functions run. Peers live
until those: a program may go on for long in its other threads. But from the mark on pools take no more work, so
callbacks that use one can only fail.
"""

import atexit
import os
import sys
import threading
import weakref
from contextlib import suppress
from time import monotonic
from typing import NoReturn, Protocol

from netcomm import logs
from netcomm.logs import Log

log = Log("netcomm.runtime.process")

EXIT_S = 1.0
"""So many seconds a process that ends is kept: by the end of its peers, and by calls that wait in pools, each."""


class Member(Protocol):
    """A peer, as far as the process has to know it."""

    def terminate(self, timeout: float) -> None:
        """End within so many seconds."""

    def abandon(self) -> None:
        """In a forked child: let go of everything; it is the parent's."""


_mark_is_inherited = False  # this process was forked when its parent was ending
_is_finalized = False  # it is known whether `multiprocessing` has made this process

# A program that forgets to terminate a member still ends, and a forked child lets go of it.
_members: "weakref.WeakSet[Member]" = weakref.WeakSet()


def enter(member: Member) -> None:
    """From now on, end a member with the process, and abandon it in forked children."""
    global _is_finalized
    _members.add(member)
    if not _is_finalized and "multiprocessing.process" in sys.modules:
        _is_finalized = True
        _end_with_worker()


def _end_with_worker() -> None:
    """Processes that `multiprocessing` has forked call no `atexit` functions, but finalizers of its own."""
    from multiprocessing import parent_process, util

    if parent_process() is not None:
        util.Finalize(None, _terminate_all, exitpriority=0)


def leave(member: Member) -> None:
    """A member holds nothing any more."""
    _members.discard(member)


def is_ending() -> bool:
    """Whether the main thread has come to its end, and Python is shutting down."""
    # There is no public way to tell. Without this attribute, the end is seen when the pools have ended.
    is_marked = getattr(threading, "_SHUTTING_DOWN", False) and not _mark_is_inherited
    return is_marked or not threading.main_thread().is_alive()


def keeps_the_process() -> bool:
    """Whether the caller's thread is one of a pool: the process can't end before what it does there has returned."""
    target = getattr(threading.current_thread(), "_target", None)
    return getattr(target, "__module__", None) == "concurrent.futures.thread"


def end_child(error: BaseException | None) -> NoReturn:
    """End a forked child whose only thread was one of the library's in its parent, and has nothing left to do.

    error: what the function of the program has raised there, in which the process was forked.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else error.code is not None
    elif error is not None:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    logs.flush(EXIT_S)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def _terminate_all() -> None:
    until = monotonic() + EXIT_S
    for member in list(_members):
        try:
            member.terminate(max(0.0, until - monotonic()))
        except Exception:
            log.exception("%r could not be terminated", member)


def _abandon_all() -> None:
    global _mark_is_inherited, _is_finalized
    _mark_is_inherited = getattr(threading, "_SHUTTING_DOWN", False)
    _is_finalized = False
    for member in list(_members):
        try:
            member.abandon()
        except Exception:
            log.exception("a forked child could not let go of %r", member)
    _members.clear()


atexit.register(_terminate_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
