"""Watches the library's locks: nobody's code runs with one held, and nothing that can block.

Importing this, before netcomm, lets every lock that netcomm and its storages make note the threads that hold it. These
are violations, with one held, and each is kept with its stack:

- a callback, or a log handler or filter, runs;
- a name is looked up, a file is touched, a process is started, a thread sleeps, or a socket is waited for.

`take` returns what was found; conftest.py fails the test in which it was.
"""

import logging
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

assert "netcomm" not in sys.modules, "its locks are watched from the first one on"

_PACKAGES = ("netcomm", "netcomm_sqlite", "netcomm_mongodb")
# Tools for tests, and tests themselves, hold locks of their own while they use the library.
_TOOLS = ("netcomm.testing",)
# Under the commit lock, and under a storage's own, only the storage works: it may use files and servers.
_STORING = ("netcomm.runtime.group_commit", "netcomm.storage", "netcomm_sqlite", "netcomm_mongodb")
# These are roles and not locks. The thread that leads waits for the sockets, and nobody waits for it but the other
# thread that may lead. The thread that writes the log calls handlers, and nobody waits for it but one that replaces it,
# and, for a moment, one that forks.
_ROLES = ("netcomm.runtime.leadership", "netcomm.logs")

_BLOCKING = frozenset(
    {
        "open",
        "os.chmod",
        "os.listdir",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.scandir",
        "os.system",
        "os.truncate",
        "fcntl.flock",
        "fcntl.lockf",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "sqlite3.connect",
        "subprocess.Popen",
        "time.sleep",
    }
)

_make_lock, _make_rlock = threading.Lock, threading.RLock
_threads = threading.local()
_violations: list[tuple[str, traceback.StackSummary]] = []
_watches = True


class _Watched:
    """A lock, with what `threading.Condition` asks of one."""

    def __init__(self, lock: Any, maker: str) -> None:
        self._lock = lock
        self.maker = maker
        self.is_role = _is_of(maker, _ROLES)
        self.stores = _is_of(maker, _STORING)
        if hasattr(lock, "_is_owned"):
            self._is_owned = lock._is_owned
            self._release_save = self._save
            self._acquire_restore = self._restore

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        acquired: bool = self._lock.acquire(blocking, timeout)
        if acquired:
            held().append(self)
        return acquired

    def release(self) -> None:
        self._lock.release()
        self._forget()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def locked(self) -> bool:
        locked: bool = self._lock.locked()
        return locked

    def _forget(self) -> None:
        mine = held()
        if self in mine:  # else another thread has acquired it, as a plain lock allows
            mine.remove(self)

    def _save(self) -> tuple[Any, int]:
        state = self._lock._release_save()
        count = held().count(self)
        for _ in range(count):
            self._forget()
        return state, count

    def _restore(self, saved: tuple[Any, int]) -> None:
        state, count = saved
        self._lock._acquire_restore(state)
        held().extend([self] * count)

    def __repr__(self) -> str:
        return f"<lock of {self.maker}>"


def held() -> list[_Watched]:
    """The watched locks that the caller's thread holds."""
    try:
        locks: list[_Watched] = _threads.locks
    except AttributeError:
        locks = _threads.locks = []
    return locks


def take() -> list[str]:
    """What was found since the last call."""
    found = _violations[:]
    _violations.clear()
    return [f"{text}{''.join(reversed(stack.format()))}" for text, stack in found]


@contextmanager
def unwatched() -> Iterator[None]:
    """Let locks that are made meanwhile be plain ones, where calls are counted."""
    global _watches
    _watches = False
    try:
        yield
    finally:
        _watches = True


def _is_of(maker: str, modules: tuple[str, ...]) -> bool:
    return any(maker == module or maker.startswith(module + ".") for module in modules)


def _check(what: str, storage_may: bool) -> None:
    locks = getattr(_threads, "locks", None)
    if not locks:
        return
    wrong = [lock for lock in locks if not (lock.is_role or (storage_may and lock.stores))]
    if wrong:
        # Not formatted here, which would read the sources: files.
        stack = traceback.StackSummary.extract(traceback.walk_stack(None), limit=25, lookup_lines=False)
        _violations.append((f"{what} with {wrong} held:\n", stack))


def _maker_of(make: Callable[[], Any]) -> Callable[[], Any]:
    def make_watched() -> Any:
        maker = sys._getframe(1).f_globals.get("__name__", "")
        is_watched = _watches and _is_of(maker, _PACKAGES) and not _is_of(maker, _TOOLS)
        return _Watched(make(), maker) if is_watched else make()

    return make_watched


def _audit(event: str, args: tuple[object, ...]) -> None:
    if event in _BLOCKING and getattr(_threads, "locks", None):
        _check(event, storage_may=True)


def _checking(name: str) -> Callable[..., Any]:
    call = getattr(socket.socket, name)

    @wraps(call)
    def checked(self: socket.socket, *args: Any, **options: Any) -> Any:
        if getattr(_threads, "locks", None) and self.gettimeout() != 0:
            _check(f"socket.{name} of a socket that blocks", storage_may=True)
        return call(self, *args, **options)

    return checked


class _Function:
    """A function of a callback list, which notices the locks that it is called with."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        _check(f"the callback {self._function!r}", storage_may=False)
        self._function(*args)

    def __eq__(self, other: object) -> bool:
        return self._function == (other._function if isinstance(other, _Function) else other)

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return repr(self._function)


def _install() -> None:
    threading.Lock = _maker_of(_make_lock)  # type: ignore[assignment, misc]
    threading.RLock = _maker_of(_make_rlock)  # type: ignore[assignment, misc]
    sys.addaudithook(_audit)
    for name in ("accept", "connect", "recv", "recv_into", "send", "sendall", "sendmsg"):
        setattr(socket.socket, name, _checking(name))

    handle = logging.Logger.handle

    @wraps(handle)
    def checked_handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if _is_of(self.name, _PACKAGES):
            _check("a log handler", storage_may=False)
        handle(self, record)

    logging.Logger.handle = checked_handle  # type: ignore[method-assign]

    from netcomm.callbacks import Callback

    add = Callback.add

    @wraps(add)
    def checked_add(self: Callback, function: Any) -> Any:
        add(self, _Function(function) if _watches else function)
        return function

    Callback.add = checked_add  # type: ignore[method-assign]


_install()
