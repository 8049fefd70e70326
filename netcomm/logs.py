"""`Log`: the library's loggers, which run nobody's code on the thread that logs.

A program's log handlers and filters are code of others: one may wait for a disk or a server, send its records by
netcomm, or raise. In the library, the thread that logs may hold a lock, or be half-way through a step. So a record is
only queued there, and a thread of its own, the *log writer*, hands records to `logging`, in their order. There is one
for the process. It starts with the first record, and ends when there was none for a while.

A fork comes between two records: a handler may be within a stream's `write`, and then the child would inherit the
stream half-written and locked, by a thread that it does not have. A child could not even end, as that flushes the
stream. So the thread that forks waits for the handler, but not for long: the handler may wait for that thread.
"""

import atexit
import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic, time
from types import TracebackType
from typing import NamedTuple

# What runs before a fork runs in the reverse order of its registration. The one here is to wait for a log handler
# before descriptors.py lets no descriptor be made: the handler may make one.
from netcomm import descriptors  # noqa: F401

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | None

WRITER = "netcomm-log"
"""The name of the log writer's thread."""

# While a handler blocks, so many records wait for it at the most.
MAX_WAITING = 10_000
# A callback that raises is kept while more than so many wait, for so long at the most: each record of such a failure
# keeps the message that the callback was called with.
_MANY = 100
_KEEP_UP_S = 1.0
# The log writer ends when no record has come for so long.
_LINGER_S = 1.0
# At the end of the process, its records have so long to be written.
_EXIT_S = 1.0
# A thread that forks waits so long for the record that is being written.
_FORK_S = 1.0


class _Entry(NamedTuple):
    """A record that waits to be written. created: in seconds since the epoch."""

    logger: logging.Logger
    level: int
    text: str
    args: tuple[object, ...]
    exc_info: _ExcInfo
    created: float
    file: str
    line: int
    function: str
    thread: int
    thread_name: str


class _Queue:
    """The records that wait, and the thread that writes them.

    `put` takes no lock: a finalizer may interrupt it and call it, and Ctrl-C may end it between any two steps. Where
    two threads start a writer at once, the one that `_writer` names goes on. Another one may have taken a record before
    it was replaced: to be a writer is a role, which one thread has at a time, so that records keep their order.
    """

    def __init__(self) -> None:
        self._entries: SimpleQueue[_Entry | threading.Event] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._role = threading.Lock()
        self._active: threading.Thread | None = None  # the thread that has the role, or had it last
        # Held while a record is written. A signal's handler may fork in a fork, and a log handler may.
        self._writing = threading.RLock()
        self._next = threading.RLock()  # passed before each record; a thread that forks lets no other record begin
        self._writes: int | None = None  # the thread that writes a record
        self.dropped = 0

    def put(self, entry: "_Entry | threading.Event") -> None:
        """Let an entry be written, or an event be set behind those that were put before."""
        self._entries.put(entry)
        if not self._has_writer():
            writer = self._writer = threading.Thread(target=self._run, name=WRITER, daemon=True)
            with suppress(RuntimeError):  # no thread to be had: the next record, or the end of the process, tries again
                writer.start()

    @property
    def is_long(self) -> bool:
        """Whether so many records wait that who can had better wait, too."""
        return self._entries.qsize() > _MANY

    @property
    def is_full(self) -> bool:
        """Whether the handlers are so slow that no more records may wait for them."""
        return self._entries.qsize() >= MAX_WAITING

    def _has_writer(self) -> bool:
        writer = self._writer
        return writer is not None and writer.is_alive()

    def _run(self) -> None:
        current = threading.current_thread()
        with self._role:
            self._active = current
            while self._writer is current:
                try:
                    self._handle(self._entries.get(timeout=_LINGER_S))
                except Empty:
                    if self._writer is current:
                        self._writer = None
                        if not self._entries.empty():  # its thread has still seen this writer
                            self._writer = current

    def _handle(self, entry: "_Entry | threading.Event") -> None:
        if isinstance(entry, threading.Event):
            entry.set()
            return
        with self._next:
            self._writing.acquire()
        try:
            self._writes = threading.get_ident()
            _write(entry)
            if self.dropped and not self.is_full:
                dropped, self.dropped = self.dropped, 0
                text = "%d records were dropped here: %d waited for the log's handlers, or there was no memory for them"
                _write(entry._replace(level=logging.ERROR, text=text, args=(dropped, MAX_WAITING), exc_info=None))
        finally:
            self._writes = None
            self._writing.release()

    def pause(self, timeout: float) -> None:
        """On a thread that forks: wait for the record that is written, and let no other begin, until `go_on`.

        Waits at most `timeout` seconds, and not at all where the record's own handler forks.
        """
        if self._writes == threading.get_ident():
            return
        until = monotonic() + timeout
        if self._next.acquire(timeout=timeout):
            self._writing.acquire(timeout=max(0.0, until - monotonic()))

    def go_on(self) -> None:
        """In the parent of a forked child: let records be written again."""
        if self._writes == threading.get_ident():
            return
        for lock in (self._writing, self._next):
            with suppress(RuntimeError):  # `pause` did not get it
                lock.release()

    def forget(self) -> None:
        """In a forked child: write nothing more, where the handler of a record has forked, and goes on."""
        self._writer = None
        self._entries = SimpleQueue()

    def flush(self, timeout: float) -> bool:
        """See the function `flush`."""
        if threading.current_thread() is self._active:
            return False
        written = threading.Event()
        self.put(written)
        return written.wait(timeout if self._has_writer() else 0.0)

    def finish(self, timeout: float) -> None:
        """The process ends: write what is left within `timeout` seconds, on this thread where there is no other."""
        self.flush(timeout)
        while not self._has_writer() and not self._entries.empty():
            self._handle(self._entries.get())


def _write(entry: _Entry) -> None:
    """On the log writer's thread: let `logging` have a record."""
    logger = entry.logger
    try:
        if not logger.isEnabledFor(entry.level):
            return
        record = logger.makeRecord(
            logger.name,
            entry.level,
            entry.file,
            entry.line,
            entry.text,
            entry.args,
            entry.exc_info,
            entry.function,
        )
        record.relativeCreated += (entry.created - record.created) * 1000
        record.created = entry.created
        record.msecs = entry.created % 1 * 1000
        record.thread, record.threadName = entry.thread, entry.thread_name
        logger.handle(record)
    except BaseException:  # SystemExit, too: the thread belongs to the library, not to the handler
        _tell_of_failure()


def _tell_of_failure() -> None:
    """Tell of the exception that is being handled on stderr, where `logging` tells of its own failures."""
    if logging.raiseExceptions and sys.stderr is not None:
        try:
            sys.stderr.write(f"--- A log handler or filter raised ---\n{traceback.format_exc()}")
        except Exception:  # stderr is closed: nobody is left to be told
            pass


class Log:
    """A logger by its name, with the methods of `logging.Logger` that the library uses.

    All methods may be called from any thread, with locks held, and by finalizers. They raise nothing.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def log(self, level: int, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log a text, with its arguments, as `logging.Logger.log` does; `exc_info` adds the exception's traceback."""
        self._log(level, text, args, exc_info)

    def debug(self, text: str, *args: object) -> None:
        """Log what helps to find a fault."""
        self._log(logging.DEBUG, text, args)

    def info(self, text: str, *args: object) -> None:
        """Log what happens as it should."""
        self._log(logging.INFO, text, args)

    def warning(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log what somebody should look at."""
        self._log(logging.WARNING, text, args, exc_info)

    def error(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log what has failed."""
        self._log(logging.ERROR, text, args, exc_info)

    def exception(self, text: str, *args: object) -> None:
        """Log what has failed, with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, text, args, sys.exc_info()[1])

    def critical(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log what has ended a peer."""
        self._log(logging.CRITICAL, text, args, exc_info)

    def _log(self, level: int, text: str, args: tuple[object, ...], error: BaseException | None = None) -> None:
        logger, queue = self._logger, _queue
        if logger.manager.disable >= level:
            return
        if queue.is_full:
            queue.dropped += 1
            return
        code, line = (caller := sys._getframe(2)).f_code, caller.f_lineno
        thread = threading.current_thread()
        exc_info = None if error is None else (type(error), error, error.__traceback__)
        source = code.co_filename, line, code.co_name, threading.get_ident(), thread.name
        try:
            queue.put(_Entry(logger, level, text, args, exc_info, time(), *source))
        except MemoryError:
            queue.dropped += 1


_queue = _Queue()


def flush(timeout: float) -> bool:
    """Wait until the records of the library so far have been written, at most `timeout` seconds.

    Returns whether they have. From any thread; in a log handler or filter, it returns False at once.
    """
    return _queue.flush(timeout)


def keep_up() -> None:
    """Where many records wait, wait for their handlers, for a moment. To be called with no lock held."""
    if _queue.is_long:
        _queue.flush(_KEEP_UP_S)


def _finish() -> None:
    _queue.finish(_EXIT_S)


def _pause() -> None:
    _queue.pause(_FORK_S)


def _go_on() -> None:
    _queue.go_on()


def _forget() -> None:
    """In a forked child: the records that wait are the parent's."""
    global _queue
    _queue.forget()
    _queue = _Queue()


# Functions that were registered later, such as the one that ends the peers, run before it.
atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pause, after_in_parent=_go_on, after_in_child=_forget)
