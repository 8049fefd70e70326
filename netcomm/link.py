"""`Link`: the loop's sockets: selector, waker, listeners, connectors, reconnecting, buffers, lingering.

It moves bytes and knows nothing of what they mean. `poll` is the loop's one step: it waits, and yields what happened,
for the owner to act on before it goes on. What the owner has to say goes through `write`, `close` and `pause`.

Threads: one at a time may call `poll`, and none may after `shut`. `write`, `flush`, `progress`, `close`, `give_up`,
`receive_into`, `pause`, `has_room` and `established` may be called from any thread that holds the owner's lock; they
never touch the selector, but leave that to the next `poll`. The rest may be called from any thread.
"""

import contextlib
import errno
import logging
import os
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from time import monotonic

from netcomm import descriptors, places
from netcomm.connections import Chunk, Closed, ConnectionEvent, Filled, Opened, Unreachable, Writable
from netcomm.deadlines import Deadlines
from netcomm.errors import BindError
from netcomm.logs import Log
from netcomm.message import Limits

if sys.platform == "linux":
    import fcntl
    import termios

log = Log("netcomm.link")

_READ_BYTES = 256 * 1024
# Large enough for the kernel to be kept busy while the loop looks elsewhere, small against the window.
_OUTPUT_HIGH_BYTES = 1024 * 1024
_BUFFERS_PER_SEND = 64
_LINGER_S = 1.0
_ACCEPT_PAUSE_S = 1.0
_ACCEPTS_PER_PASS = 64
_READS_PER_PASS = 4
# To put a processor to sleep and to wake it takes longer than many an answer.
_SPIN_S = 0.0003 if (os.cpu_count() or 1) > 1 else 0.0
_MOST_CAUTIOUS = 64
_SO_NWRITE = 0x1024  # of macOS; the module `socket` does not name it
# Whoever is to answer may have been woken on this very processor, where the system expected nobody to stay awake.
_let_others_run: Callable[[], None] = getattr(os, "sched_yield", lambda: None)

# To write to a connection that is gone raises SIGPIPE, and the default action of that signal ends the process. Python
# ignores the signal; but the program may have set the default action. So every call that sends passes these flags, and
# every socket that is sent on goes through `prevent_sigpipe`.
SEND_FLAGS: int = getattr(socket, "MSG_NOSIGNAL", 0)
_SO_NOSIGPIPE = 0x1022  # of macOS, which has no such flag; the module `socket` does not name it


def prevent_sigpipe(sock: socket.socket) -> None:
    """Let no write to a socket raise SIGPIPE, where `SEND_FLAGS` does not say so. Raises OSError."""
    if sys.platform == "darwin":
        sock.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)


class _Waker:
    """Ends a wait of the selector, from any thread, without ever blocking.

    At most one byte is pending. Ringing and closing share a lock, so that a late ring can't write into a descriptor
    that has come to belong to somebody else.
    """

    def __init__(self) -> None:
        with descriptors.no_fork:
            self.receiver, self._sender = map(descriptors.note, socket.socketpair())
        self.receiver.setblocking(False)
        self._sender.setblocking(False)
        prevent_sigpipe(self._sender)
        self._lock = threading.Lock()
        self._rung = False
        self._closed = False

    def ring(self) -> None:
        if self._rung:
            return
        with self._lock:
            if not self._rung and not self._closed:
                self._rung = True
                self._sender.send(b"\0", SEND_FLAGS)

    def silence(self) -> None:
        with self._lock:
            self._rung = False
            self.receiver.recv(16)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            descriptors.close(self.receiver)
            descriptors.close(self._sender)


class _Patience:
    """Waits for a selector: asleep, or, where that has proved worth it, awake for the first moment.

    It is worth it where what is waited for mostly comes within that moment. Each time that it does not, more short
    waits in a row have to pass asleep before it is tried again: somebody else may need the processor.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._select = selector.select
        self._short_waits = 0
        self._caution = 1

    def wait(self, timeout: float | None, eager: bool) -> list[tuple[selectors.SelectorKey, int]]:
        """As `select`; eager: what is waited for may well come at once."""
        if not eager or (timeout is not None and timeout < _SPIN_S):
            return self._select(timeout)
        started = monotonic()
        if self._short_waits >= self._caution:
            while monotonic() - started < _SPIN_S:
                if ready := self._select(0):
                    self._caution = 1
                    return ready
                _let_others_run()
            self._short_waits = 0
            self._caution = min(2 * self._caution, _MOST_CAUTIOUS)
        ready = self._select(timeout)
        self._short_waits = self._short_waits + 1 if monotonic() - started < _SPIN_S else 0
        return ready


class _Listener:
    def __init__(self, sock: socket.socket, path: str | None) -> None:
        self.sock = sock
        self.path = path  # of a Unix socket, to be unlinked


class _Connector:
    """Keeps one connection to one place, as long as it lives."""

    def __init__(self, number: int, host: str, port: int, delay_s: float) -> None:
        self.number = number
        self.host = host
        self.port = port
        self.where = places.name(host, port)
        self.delay_s = delay_s
        self.candidates: deque[places.Candidate] = deque()  # still to be tried
        self.attempt_s = 0.0  # how long each of them may take
        self.sock: socket.socket | None = None  # while it connects
        self.local = False  # whether that is a local socket
        self.failing = False  # whether the log has told of the failure


class _Connection:
    """One socket and what is still to be written to it."""

    def __init__(self, number: int, sock: socket.socket, where: str, connector: _Connector | None) -> None:
        self.number = number
        self.sock = sock
        self.where = where
        self.connector = connector
        self.output: deque[bytes | memoryview] = deque()
        self.output_bytes = 0
        self.sent_bytes = 0  # that the kernel has taken
        self.buffer: memoryview | None = None  # for the next bytes
        self.events = 0  # what the selector watches
        self.paused = False
        self.lingering = False
        self.broken: str | None = None  # why a write failed


class Link:
    """The sockets of one peer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        with descriptors.no_fork:
            self._selector = descriptors.note(selectors.DefaultSelector())
        self._patience = _Patience(self._selector)
        self._waker = _Waker()
        self.waiting = False  # `poll` waits for the sockets, or is about to
        self._selector.register(self._waker.receiver, selectors.EVENT_READ, self._waker)
        self._thunks: deque[Callable[[], None]] = deque()
        self._stale: deque[_Connection] = deque()  # the selector has to be told
        self._events: deque[ConnectionEvent] = deque()  # found outside of the sockets' turns
        self._deadlines: Deadlines[_Connector | _Connection | _Listener] = Deadlines()
        self._listeners: list[_Listener] = []
        self._connectors: list[_Connector] = []
        self._connections: dict[int, _Connection] = {}
        self._lingering: set[_Connection] = set()
        self._last_number = 0
        self._overfull = False
        self._scratch = memoryview(bytearray(_READ_BYTES))  # a new buffer for each read would cost more than the copy

    # -- Any thread -------------------------------------------------------------------------------------------

    def add_listener(self, host: str, port: int) -> str | places.Address:
        """Listen at a place; returns the bound address. Port 0 picks one.

        Raises BindError where the address can't be had.
        """
        try:
            sockets, path, address = places.listen(host, port)
        except UnicodeError as error:
            raise BindError(errno.EINVAL, f"can't listen on {host}:{port}: not a host name: {error}") from error
        except OSError as error:
            text = f"can't listen on {places.name(host, port)}: {error.strerror or error}"
            raise BindError(error.errno, text) from error
        listeners = [_Listener(sock, path) for sock in sockets]
        self._listeners += listeners
        for listener in listeners:
            self._call_soon(partial(self._watch_listener, listener))
        return address

    def add_connector(self, host: str, port: int) -> None:
        """Connect as soon as `poll` runs, and again whenever the connection is lost."""
        connector = _Connector(len(self._connectors) + 1, host, port, self._limits.reconnect_min_s)
        self._connectors.append(connector)
        self._call_soon(partial(self._resolve, connector))

    def will_wait(self) -> None:
        """From now on, `ring` ends the wait of the next `poll`.

        Call it before looking at what decides for how long to wait, so that no change goes unnoticed.
        """
        self.waiting = True

    def ring(self) -> None:
        """Let `poll` return soon, if it waits."""
        if self.waiting:
            self._waker.ring()

    def _call_soon(self, thunk: Callable[[], None]) -> None:
        self._thunks.append(thunk)
        self.ring()

    # -- Any thread that holds the owner's lock ---------------------------------------------------------------

    def has_room(self, number: int) -> bool:
        """Whether a connection wants more output; a number that is not known does not."""
        connection = self._connections.get(number)
        return connection is not None and connection.output_bytes < _OUTPUT_HIGH_BYTES

    def write(self, number: int, buffers: list[bytes]) -> None:
        """Send buffers, one after the other, as soon as the kernel takes them. An unknown number is passed over."""
        connection = self._connections.get(number)
        if connection is not None:
            self._enqueue(connection, buffers)
            self._flush(connection)

    def flush(self, number: int) -> None:
        """Send what was written and not taken yet."""
        connection = self._connections.get(number)
        if connection is not None:
            self._flush(connection)

    def progress(self, number: int) -> tuple[int, int]:
        """How many bytes were written to a connection, and how many of them the other side's system has taken.

        What this system's kernel still holds, or waits for the other side to acknowledge, is not taken. Only Linux and
        macOS say how much that is; on other systems, what the kernel holds counts as taken. Of a Unix socket, Linux
        says what memory it takes: a little more.

        (0, 0) for a number that is not known.
        """
        connection = self._connections.get(number)
        if connection is None:
            return 0, 0
        sent = connection.sent_bytes
        return sent + connection.output_bytes, sent - _held_by_kernel(connection.sock)

    def close(self, number: int, farewell: list[bytes]) -> None:
        """Send what was written, then `farewell`, then close; in the background, for a second at the most."""
        connection = self._connections.pop(number, None)
        if connection is None:
            return
        self._enqueue(connection, farewell)
        connection.lingering = True
        self._lingering.add(connection)
        self._mark_stale(connection)

    def give_up(self, number: int, reason: str) -> None:
        """What a connection was to write may not have been written: lose it, as soon as `poll` runs."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.broken = reason
            self._mark_stale(connection)

    def receive_into(self, number: int, buffer: memoryview) -> None:
        """Let the next bytes of a connection go into a buffer, once, in place of coming as a Chunk."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.buffer = buffer

    def pause(self, number: int, paused: bool) -> None:
        """Read nothing from a connection, or go on reading."""
        connection = self._connections.get(number)
        if connection is not None and connection.paused != paused:
            connection.paused = paused
            self._mark_stale(connection)

    def established(self, number: int) -> None:
        """A connection has proved good: after it, reconnecting starts with the shortest delay again."""
        connection = self._connections.get(number)
        if connection is not None and connection.connector is not None:
            connection.connector.delay_s = self._limits.reconnect_min_s
            connection.connector.failing = False

    @staticmethod
    def _enqueue(connection: _Connection, buffers: list[bytes]) -> None:
        connection.output += buffers
        connection.output_bytes += sum(map(len, buffers))

    def _flush(self, connection: _Connection) -> None:
        output = connection.output
        while output and connection.broken is None:
            try:
                if len(output) == 1:
                    sent = connection.sock.send(output[0], SEND_FLAGS)
                else:
                    sent = connection.sock.sendmsg(list(islice(output, _BUFFERS_PER_SEND)), (), SEND_FLAGS)
            except BlockingIOError:
                break
            except OSError as error:
                connection.broken = _reason(error)
                break
            connection.output_bytes -= sent
            connection.sent_bytes += sent
            while output and sent >= len(output[0]):  # an empty one, too
                sent -= len(output.popleft())
            if sent:
                output[0] = memoryview(output[0])[sent:]
        if connection.broken is not None or bool(output) != bool(connection.events & selectors.EVENT_WRITE):
            self._mark_stale(connection)

    def _mark_stale(self, connection: _Connection) -> None:
        self._stale.append(connection)
        self.ring()

    # -- The loop ---------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None, eager: bool = False) -> Iterator[ConnectionEvent]:
        """Wait for something to happen, at most `timeout` seconds (None: as long as it takes); yields what did.

        eager: something may well happen at once, and is to be noticed as soon as can be.

        The owner acts on each event before it asks for the next.
        """
        self.will_wait()
        self._catch_up()
        if self._events:
            timeout = 0
        due = self._deadlines.next()
        if due is not None:
            left = max(0.0, due - monotonic())
            timeout = left if timeout is None else min(timeout, left)
        ready = self._patience.wait(timeout, eager)
        self.waiting = False
        for key, events in ready:
            target = key.data
            if isinstance(target, _Connection):
                if target.lingering:
                    self._linger(target)
                    continue
                if events & selectors.EVENT_READ:
                    yield from self._receive(target)
                if events & selectors.EVENT_WRITE and not target.lingering:
                    yield Writable(target.number)
            elif isinstance(target, _Listener):
                yield from self._accept(target)
            elif isinstance(target, _Connector):
                self._connected(target)
            else:
                target.silence()
        if due is not None and (now := monotonic()) >= due:
            self._act_on_deadlines(now)
        while self._events:
            yield self._events.popleft()

    def _act_on_deadlines(self, now: float) -> None:
        for item in self._deadlines.pop_due(now):
            if isinstance(item, _Connection):
                self._drop(item)
            elif isinstance(item, _Listener):
                self._watch_listener(item)
            elif item.sock is not None:
                self._attempt_failed(item, TimeoutError(errno.ETIMEDOUT, "timed out"))
            else:
                self._resolve(item)

    @property
    def quiet(self) -> bool:
        """Whether no closed connection has anything left to send."""
        return not self._lingering and not self._stale

    def stop_accepting(self) -> None:
        """Close the listeners and give up the connectors; connections stay."""
        for listener in self._listeners:
            self._unregister(listener.sock)
            descriptors.close(listener.sock)
            if listener.path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(listener.path)
        self._listeners.clear()
        for connector in self._connectors:
            if connector.sock is not None:
                self._unregister(connector.sock)
                descriptors.close(connector.sock)
                connector.sock = None
        self._connectors.clear()
        self._deadlines = Deadlines()

    def shut(self) -> None:
        """Close everything, at once. `poll` must not be called after it; the rest does nothing then."""
        self.stop_accepting()
        for connection in (*self._connections.values(), *self._lingering):
            descriptors.close(connection.sock)
        self._connections.clear()
        self._lingering.clear()
        self._stale.clear()
        descriptors.close(self._selector)
        self._waker.close()  # last: whoever rings until now must not reach a stranger's descriptor

    def _catch_up(self) -> None:
        """Do what other threads have asked for."""
        while self._thunks:
            self._thunks.popleft()()
        while self._stale:
            connection = self._stale.popleft()
            if connection.lingering:
                self._begin_to_linger(connection)
            elif connection.broken is not None:
                self._lose(connection, connection.broken)
            else:
                self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        if connection.sock.fileno() < 0:
            return
        events = 0 if connection.paused else selectors.EVENT_READ
        if connection.output:
            events |= selectors.EVENT_WRITE
        if events == connection.events:
            return
        if not connection.events:
            try:
                self._selector.register(connection.sock, events, connection)
            except OSError as error:  # the system watches no more sockets for this user
                if connection.lingering:
                    self._drop(connection)
                else:
                    self._lose(connection, _reason(error))
                return
        elif not events:
            self._selector.unregister(connection.sock)
        else:
            self._selector.modify(connection.sock, events, connection)
        connection.events = events
        if connection.output and not events & selectors.EVENT_WRITE:  # somebody has written meanwhile
            self._stale.append(connection)

    def _unregister(self, sock: socket.socket) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    # Connections

    def _open(self, sock: socket.socket, where: str, connector: _Connector | None) -> None:
        with contextlib.suppress(OSError):  # reset already: reading will tell
            prevent_sigpipe(sock)
            places.tune(sock)
        self._last_number += 1
        connection = _Connection(self._last_number, sock, where, connector)
        self._connections[connection.number] = connection
        self._stale.append(connection)  # the next pass watches it: should that fail, its end comes behind its beginning
        self._events.append(Opened(connection.number, where, connector.number if connector else 0))

    def _receive(self, connection: _Connection) -> Iterator[ConnectionEvent]:
        """Read once; or, while the owner says where to, until there is nothing more, but not for ever."""
        for _ in range(_READS_PER_PASS):
            event = self._read(connection)
            if event is None:
                return
            yield event
            if connection.buffer is None or connection.paused or connection.lingering:
                return

    def _read(self, connection: _Connection) -> Chunk | Filled | None:
        buffer = connection.buffer
        try:
            count = connection.sock.recv_into(self._scratch if buffer is None else buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            self._lose(connection, _reason(error))
            return None
        if not count:
            self._lose(connection, "closed by the other side")
            return None
        if buffer is None:
            return Chunk(connection.number, self._scratch[:count])
        connection.buffer = None
        return Filled(connection.number, count)

    def _lose(self, connection: _Connection, reason: str) -> None:
        """A connection has died by itself."""
        if self._connections.pop(connection.number, None) is not None:
            self._events.append(Closed(connection.number, reason))
            self._drop(connection)
            self._reconnect(connection)

    def _drop(self, connection: _Connection) -> None:
        self._lingering.discard(connection)
        self._deadlines.discard(connection)
        if connection.sock.fileno() >= 0:
            if connection.events:
                self._selector.unregister(connection.sock)
                connection.events = 0
            descriptors.close(connection.sock)

    def _begin_to_linger(self, connection: _Connection) -> None:
        if connection in self._lingering and connection not in self._deadlines:
            connection.paused = False
            self._deadlines.set(connection, monotonic() + _LINGER_S)
            self._reconnect(connection)
            self._linger(connection)

    def _linger(self, connection: _Connection) -> None:
        """Write the rest, say that it was the last, and read on, unheard, until the other side has seen it.

        Closing with unread input would make the kernel reset the connection, and the farewell might never be read.
        """
        if connection not in self._lingering:
            return
        try:
            while connection.output:
                sent = connection.sock.send(connection.output[0], SEND_FLAGS)
                if sent < len(connection.output[0]):
                    connection.output[0] = memoryview(connection.output[0])[sent:]
                else:
                    connection.output.popleft()
            connection.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        try:
            for _ in range(4):  # no stranger's flood keeps the loop here
                if not connection.sock.recv(_READ_BYTES):
                    self._drop(connection)
                    return
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        self._watch(connection)

    # Listeners

    def _watch_listener(self, listener: _Listener) -> None:
        if listener.sock.fileno() >= 0:
            try:
                self._selector.register(listener.sock, selectors.EVENT_READ, listener)
            except OSError as error:  # the system watches no more sockets for this user
                self._accept_later(listener, error)

    def _accept_later(self, listener: _Listener, error: OSError) -> None:
        """The system is short of something: try again in a while, and leave what there is to the others meanwhile."""
        log.error("can't accept for %g s: %s", _ACCEPT_PAUSE_S, _reason(error))
        self._deadlines.set(listener, monotonic() + _ACCEPT_PAUSE_S)

    def _accept(self, listener: _Listener) -> Iterator[ConnectionEvent]:
        for _ in range(_ACCEPTS_PER_PASS):
            try:
                with descriptors.no_fork:
                    sock, address = listener.sock.accept()
                    descriptors.note(sock)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._selector.unregister(listener.sock)
                    self._accept_later(listener, error)
                    return
                continue  # that one connection has died before it was accepted
            if len(self._connections) + len(self._lingering) >= self._limits.max_connections:
                log.log(
                    logging.DEBUG if self._overfull else logging.WARNING,
                    "closing the connection from %s: %d are open, which is the limit",
                    places.origin(sock, address),
                    self._limits.max_connections,
                )
                self._overfull = True
                descriptors.close(sock)
                continue
            self._overfull = False
            sock.setblocking(False)
            self._open(sock, places.origin(sock, address), None)
            yield self._events.pop()

    # Connectors

    def _resolve(self, connector: _Connector) -> None:
        """Begin an attempt to connect, with the name resolved afresh."""
        if connector not in self._connectors:
            return
        if not places.needs_lookup(connector.host):
            self._resolved(connector, _candidates(connector))
            return
        # A name server may take its time, and there is no way to ask it without waiting.
        resolver = threading.Thread(target=self._resolve_name, args=(connector,), name="netcomm-resolver", daemon=True)
        try:
            resolver.start()
        except RuntimeError as error:  # no thread to be had
            self._attempt_failed(connector, OSError(errno.EAGAIN, str(error)))

    def _resolve_name(self, connector: _Connector) -> None:
        self._call_soon(partial(self._resolved, connector, _candidates(connector)))

    def _resolved(self, connector: _Connector, result: list[places.Candidate] | OSError) -> None:
        if connector not in self._connectors:
            return
        if isinstance(result, OSError):
            self._attempt_failed(connector, result)
            return
        connector.candidates = deque(result)
        slow = sum(not candidate.local for candidate in result)  # a local socket answers at once
        connector.attempt_s = max(1.0, self._limits.handshake_s / slow)
        self._try_next(connector)

    def _try_next(self, connector: _Connector) -> None:
        family, address, connector.local = connector.candidates.popleft()
        try:
            with descriptors.no_fork:
                sock = connector.sock = descriptors.note(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            try:
                sock.connect(address)
            except BlockingIOError:
                if family == socket.AF_UNIX:  # its backlog is full: nothing is on its way
                    raise
            self._selector.register(sock, selectors.EVENT_WRITE, connector)
        except OSError as error:
            self._attempt_failed(connector, error)
            return
        self._deadlines.set(connector, monotonic() + connector.attempt_s)

    def _connected(self, connector: _Connector) -> None:
        sock = connector.sock
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            if not code and sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
                # A client port of this machine may happen to be the one that nobody listens on: TCP then connects it
                # to itself.
                code = errno.ECONNREFUSED
            elif not code and connector.local and not places.is_trusted(sock):
                code = errno.EACCES
        except OSError as error:  # reset meanwhile
            code = error.errno or errno.ENOTCONN
        if code:
            self._attempt_failed(connector, OSError(code, os.strerror(code)))
            return
        self._selector.unregister(sock)
        self._deadlines.discard(connector)
        connector.sock = None
        connector.candidates.clear()
        self._open(sock, connector.where, connector)

    def _attempt_failed(self, connector: _Connector, error: OSError) -> None:
        if connector.sock is not None:
            self._unregister(connector.sock)
            descriptors.close(connector.sock)
            connector.sock = None
        if connector.candidates:
            self._try_next(connector)
            return
        text = f"can't connect to {connector.where}: {_reason(error)}"
        log.log(logging.DEBUG if connector.failing else logging.WARNING, "%s; trying again", text)
        if not connector.failing:
            self._events.append(Unreachable(type(error)(error.errno, text)))
        connector.failing = True
        # On a Unix socket, nobody listens where there is no file either.
        refused = isinstance(error, ConnectionRefusedError | FileNotFoundError)
        self._try_later(connector, self._limits.reconnect_refused_s if refused else self._limits.reconnect_max_s)

    def _reconnect(self, connection: _Connection) -> None:
        if connection.connector is not None and connection.connector in self._connectors:
            self._try_later(connection.connector, self._limits.reconnect_max_s)

    def _try_later(self, connector: _Connector, longest_s: float) -> None:
        delay_s = min(connector.delay_s, max(longest_s, self._limits.reconnect_min_s))
        # Jitter keeps many peers from coming back at the same moment.
        self._deadlines.set(connector, monotonic() + delay_s * (0.5 + int.from_bytes(os.urandom(2)) / 2**17))
        connector.delay_s = min(delay_s * 2, self._limits.reconnect_max_s)


def _candidates(connector: _Connector) -> list[places.Candidate] | OSError:
    """The ways to a connector's place, or why there is none."""
    try:
        return places.candidates(connector.host, connector.port)
    except OSError as error:
        return error
    except UnicodeError as error:  # a label that is too long, or empty
        return OSError(errno.EINVAL, f"not a host name: {error}")


def _held_by_kernel(sock: socket.socket) -> int:
    """How many bytes of what was sent the other side has not acknowledged; 0 where the system does not say."""
    try:
        if sys.platform == "linux":
            return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        if sys.platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
    except (OSError, ValueError):  # it was closed meanwhile
        pass
    return 0


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
