"""`FaultProxy`: a TCP proxy that cuts, stalls, splits and delays, for testing programs against a bad network.

It runs in the test's own process, on loopback, so that a test decides when the network fails:

    with SnakemqListener("niess", "localhost", 0) as niess, FaultProxy(niess.address) as proxy:
        with SnakemqConnector("bob", *proxy.address) as bob:
            bob.wait_connected("niess")
            proxy.cut(reset=True)
            assert bob.send("niess", b"hello").wait(5)

Threads: everything about sockets happens on the proxy's own thread. Callers hand it a function, ring, and wait for
its result.
"""

import math
import os
import random
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from netcomm.errors import ConfigurationError, LifecycleError
from netcomm.transport.byte_stream import SEND_FLAGS, prevent_sigpipe

_READ_BYTES = 64 * 1024
# Held in one direction; the sending side has to wait when one of them is reached.
_HELD_BYTES = 1024 * 1024
_HELD_PIECES = 1024
_SLOW_S = 0.05  # on a slow line, what passes in this time is one piece, and not much more is held
_SLOW_KERNEL_S = 0.2  # and the kernel holds what passes in this; with less, it would stop and go
_LEAST_KERNEL_BYTES = 4096
_LINGER_S = 1.0
_HARD_CLOSE = b"\1\0\0\0\0\0\0\0" if os.name != "nt" else b"\1\0\0\0"  # struct linger: on, for no time
_END = b""  # in place of a piece: the sending side has said that it was the last

T = TypeVar("T")


class _End:
    """One of the two sockets of a connection, and what is still to be written to it."""

    def __init__(self, connection: "_Connection", sock: socket.socket) -> None:
        self.connection = connection
        self.sock = sock
        self.events = 0  # what the selector watches
        self.pieces: deque[tuple[float, bytes]] = deque()  # (when it may go on, what)
        self.held_bytes = 0
        self.free_at = 0.0  # when the slow line has passed on what came before
        self.blocked = False  # the kernel takes no more
        self.finished_reading = False
        self.finished_writing = False


class _Connection:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = _End(self, client)
        self.server = _End(self, server)
        self.connecting = True  # to the target
        self.linger_until: float | None = None  # cut gently, and not yet closed

    @property
    def ends(self) -> tuple[_End, _End]:
        return self.client, self.server

    def other(self, end: _End) -> _End:
        return self.server if end is self.client else self.client


class FaultProxy:
    """A TCP proxy in front of one place, that fails when it is told to, or by chance.

    It is started with `start` and ended with `close`; `with` does both. A half close is passed on as such, and a
    reset as a reset.

    Attributes that may be changed at any time, from any thread:

    - `cut_every`: the mean number of forwarded bytes between two random cuts, or None for no random cuts. The
      distances are distributed exponentially; each cut hits the connection that was just being served, within a
      packet as likely as between two, and is a FIN or an RST by chance.
    - `chunk_bytes`: bytes are forwarded in pieces of random size, from 1 to this; None for as they come. One piece
      goes out in each pass of the loop, so that the receiver has a chance to see them apart.
    - `delay`: the seconds that each piece is held. Order is kept, and several pieces may be held at once.
    - `bytes_per_s`: so many bytes pass in a second, in each direction of each connection; None for as many as come. The
      sender feels it, as on a slow line: the proxy holds what passes in a moment, and so does its kernel, on
      connections that are made while this is set, but for a few kilobytes.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        seed: int = 0,
        cut_every: float | None = None,
        chunk_bytes: int | None = None,
        delay: float = 0.0,
        bytes_per_s: float | None = None,
    ) -> None:
        """Make a proxy that has its `address`, and forwards nothing before `start`.

        target: (host, port) of the place that connections are passed on to; it need not listen yet.
        seed: of the random choices. The same seed makes the same choices; which bytes they hit depends on timing.
        cut_every, chunk_bytes, delay, bytes_per_s: in bytes, bytes, seconds and bytes a second; see the class.

        Raises ConfigurationError for a number that can't be used, OSError where no port can be had or the target's
        name has no address.
        """
        if cut_every is not None and not cut_every > 0:
            raise ConfigurationError(f"cut_every must be None or a positive number of bytes, not {cut_every!r}")
        if chunk_bytes is not None and not chunk_bytes >= 1:
            raise ConfigurationError(f"chunk_bytes must be None or at least 1, not {chunk_bytes!r}")
        if not 0 <= delay < math.inf:
            raise ConfigurationError(f"delay must be a number of seconds from 0 on, not {delay!r}")
        if bytes_per_s is not None and not 0 < bytes_per_s < math.inf:
            raise ConfigurationError(f"bytes_per_s must be None or a positive number, not {bytes_per_s!r}")
        self._target = target
        self._place = _resolve(target)
        self.cut_every = cut_every
        self.chunk_bytes = chunk_bytes
        self.delay = delay
        self.bytes_per_s = bytes_per_s
        self._connections = 0
        self._cuts = 0
        self._forwarded_bytes = 0

        self._random = random.Random(seed)
        self._until_cut: int | None = None  # bytes
        self._stalled = False
        self._refusing = False
        self._open: dict[_Connection, None] = {}  # an ordered set, so that a seed means the same in every run
        self._busy: dict[_End, None] = {}  # those with pieces
        self._lock = threading.Lock()  # guards the life of the loop: `_calls`, `_running`, `_closed`
        self._calls: deque[Callable[[], None]] = deque()
        self._running = False
        self._closed = False

        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._address: tuple[str, int] = self._listener.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_rope = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_rope.setblocking(False)
        prevent_sigpipe(self._bell_rope)
        self._selector.register(self._bell, selectors.EVENT_READ, self._bell)
        self._listening = False
        self._thread = threading.Thread(target=self._run, name=f"fault-proxy-{self._address[1]}", daemon=True)

    # -- Life -------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to connect to instead of the target."""
        return self._address

    @property
    def target(self) -> tuple[str, int]:
        """(host, port) of the place that connections are passed on to.

        It may be set; connections that are open stay where they are. Raises OSError where the name has no address.
        """
        return self._target

    @target.setter
    def target(self, target: tuple[str, int]) -> None:
        self._place = _resolve(target)
        self._target = target

    def start(self) -> None:
        """Start to forward. Raises LifecycleError where the proxy was started or closed before."""
        with self._lock:
            if self._running or self._closed:
                raise LifecycleError("a FaultProxy is started once")
            self._thread.start()
            self._running = True

    def close(self) -> None:
        """Close everything, and end the thread. It may be called several times."""
        with self._lock:
            first = not self._closed
            self._closed = True
            running = self._running
            if running:
                self._ring()
            elif first:
                self._shut()
        if running:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FaultProxy {self._address} to {self._target}: {self._connections} connections, {self._cuts} cuts>"

    # -- Counters ---------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many connections were accepted and not refused, since the start."""
        return self._call(lambda: self._connections)

    @property
    def cuts(self) -> int:
        """How many connections were cut, by `cut` or by chance."""
        return self._call(lambda: self._cuts)

    @property
    def forwarded_bytes(self) -> int:
        """How many bytes were passed on, in both directions together; whatever a side has got is among them."""
        return self._call(lambda: self._forwarded_bytes)

    # -- Faults -----------------------------------------------------------------------------------------------

    def cut(self, reset: bool = False) -> int:
        """Cut all connections; returns how many. New ones are accepted as before.

        reset: send an RST to both sides, which discards what they have not read; otherwise a FIN goes behind what was
            forwarded before. What the proxy holds is lost either way.
        """
        return self._call(partial(self._cut_all, reset))

    def stall(self) -> None:
        """Forward nothing more, in either direction, and keep everything open: the network has become a black hole.

        Neither side hears of what the other does, also not that it closes. New connections are made by the kernel,
        and go no further.
        """
        self._call(partial(self._set_stalled, True))

    def resume(self) -> None:
        """Forward again, beginning with what was held back."""
        self._call(partial(self._set_stalled, False))

    def refuse(self) -> None:
        """Close new connections at once; those that are open stay."""
        self._call(partial(self._set_refusing, True))

    def accept(self) -> None:
        """Accept new connections again."""
        self._call(partial(self._set_refusing, False))

    def _call(self, function: Callable[[], T]) -> T:
        """Run a function on the loop's thread, and wait for its result."""
        future: Future[T] = Future()
        with self._lock:
            if not self._running:
                return function()
            self._calls.append(partial(_fulfil, future, function))
            self._ring()
        return future.result()

    def _ring(self) -> None:
        try:
            self._bell_rope.send(b"\0", SEND_FLAGS)
        except BlockingIOError:  # it has been rung often enough to be heard
            pass

    # -- The proxy's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._watch_listener()
            while not self._closed:
                self._pass()
        finally:
            with self._lock:
                self._closed = True
                self._running = False
                self._shut()
                while self._calls:  # somebody waits for each of them
                    self._calls.popleft()()

    def _pass(self) -> None:
        for key, events in self._selector.select(self._timeout()):
            target = key.data
            if isinstance(target, _End):
                self._serve(target, events)
            elif target is self._listener:
                self._accept()
            else:
                self._bell.recv(4096)
        while True:
            with self._lock:
                if not self._calls:
                    break
                call = self._calls.popleft()
            call()
        now = monotonic()
        if not self._stalled:
            for end in list(self._busy):
                if end in self._busy:  # its connection may have been cut meanwhile
                    self._write(end, now)
        for connection in list(self._open):
            if connection.linger_until is not None and connection.linger_until <= now:
                self._close(connection)

    def _timeout(self) -> float | None:
        times = [connection.linger_until for connection in self._open if connection.linger_until is not None]
        if not self._stalled:
            times += [end.pieces[0][0] for end in self._busy if not end.blocked and not end.connection.connecting]
        return max(0.0, min(times) - monotonic()) if times else None

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it died while it waited
            return
        if self._refusing:
            client.close()
            return
        family, place = self._place
        server = socket.socket(family, socket.SOCK_STREAM)
        connection = _Connection(client, server)
        self._connections += 1
        self._open[connection] = None
        try:
            for sock in (client, server):
                sock.setblocking(False)
                prevent_sigpipe(sock)
                if (rate := self.bytes_per_s) is not None:
                    held = max(_LEAST_KERNEL_BYTES, int(min(rate * _SLOW_KERNEL_S, _READ_BYTES)))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, held)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what was split has to stay so
            server.connect(place)
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection, reset=True)
            return
        self._watch(connection)

    def _serve(self, end: _End, events: int) -> None:
        connection = end.connection
        if connection not in self._open:  # closed earlier in this pass
            return
        if events & selectors.EVENT_WRITE:
            end.blocked = False
            if connection.connecting:
                if end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._close(connection, reset=True)
                    return
                connection.connecting = False
        if events & selectors.EVENT_READ:
            self._read(end)
        if connection in self._open:
            self._watch(connection)

    def _read(self, end: _End) -> None:
        connection = end.connection
        rate = self.bytes_per_s
        try:
            # Not more pieces than may be held: 64 KiB of single bytes would take a second to go out.
            most = min(_READ_BYTES, (self.chunk_bytes or _READ_BYTES) * _HELD_PIECES // 2)
            chunk = end.sock.recv(most if rate is None else min(most, max(1, int(rate * _SLOW_S))))
        except BlockingIOError:
            return
        except OSError:
            self._close(connection, reset=True)
            return
        if not chunk:
            end.finished_reading = True
        if connection.linger_until is not None:
            if connection.client.finished_reading and connection.server.finished_reading:
                self._close(connection)
            return
        other = connection.other(end)
        due = monotonic()
        if rate is not None:
            due = other.free_at = max(due, other.free_at) + len(chunk) / rate
        due += self.delay
        if other.pieces:
            due = max(due, other.pieces[-1][0])  # `delay` may have been made shorter
        for piece in self._split(chunk) if chunk else [_END]:
            other.pieces.append((due, piece))
        other.held_bytes += len(chunk)
        self._busy[other] = None

    def _split(self, chunk: bytes) -> list[bytes]:
        chunk_bytes = self.chunk_bytes
        if chunk_bytes is None:
            return [chunk]
        pieces = []
        start = 0
        while start < len(chunk):
            size = self._random.randint(1, chunk_bytes)
            pieces.append(chunk[start : start + size])
            start += size
        return pieces

    def _write(self, end: _End, now: float) -> None:
        """Pass on what is due, to one end."""
        connection = end.connection
        if connection.connecting:
            return
        in_pieces = self.chunk_bytes is not None
        while end.pieces and not end.blocked and end.pieces[0][0] <= now:
            due, piece = end.pieces[0]
            try:
                if piece == _END:
                    end.sock.shutdown(socket.SHUT_WR)
                    end.finished_writing = True
                    sent = 0
                else:
                    sent = end.sock.send(piece[: self._draw_cut()], SEND_FLAGS)
            except BlockingIOError:
                end.blocked = True
                break
            except OSError:
                self._close(connection, reset=True)
                return
            end.held_bytes -= sent
            self._forwarded_bytes += sent
            if sent < len(piece):
                end.pieces[0] = (due, piece[sent:])
            else:
                end.pieces.popleft()
            if self._until_cut is not None:
                self._until_cut -= sent
                if self._until_cut <= 0:
                    self._until_cut = None
                    self._cut(connection, reset=self._random.random() < 0.5)
                    return
            if in_pieces:
                break
        if not end.pieces:
            self._busy.pop(end, None)
        if connection.client.finished_writing and connection.server.finished_writing:
            self._close(connection)
        else:
            self._watch(connection)

    def _draw_cut(self) -> int | None:
        """How many bytes may go before the next random cut; None where there is to be none."""
        cut_every = self.cut_every
        if cut_every is None:
            self._until_cut = None
        elif self._until_cut is None:
            self._until_cut = max(1, round(self._random.expovariate(1 / cut_every)))
        return self._until_cut

    # Faults

    def _cut_all(self, reset: bool) -> int:
        connections = [connection for connection in self._open if connection.linger_until is None]
        for connection in connections:
            self._cut(connection, reset)
        return len(connections)

    def _cut(self, connection: _Connection, reset: bool) -> None:
        self._cuts += 1
        if reset or connection.connecting:
            self._close(connection, reset)
            return
        # Closing with unread input would make the kernel send an RST; so the rest is read, and thrown away, until
        # both sides have seen the end.
        connection.linger_until = monotonic() + _LINGER_S
        for end in connection.ends:
            end.pieces.clear()
            end.held_bytes = 0
            end.blocked = False
            self._busy.pop(end, None)
            try:
                end.sock.shutdown(socket.SHUT_WR)
            except OSError:  # it has gone by itself
                end.finished_reading = True
        self._watch(connection)

    def _set_stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        self._watch_listener()
        for connection in self._open:
            self._watch(connection)

    def _set_refusing(self, refusing: bool) -> None:
        self._refusing = refusing
        self._watch_listener()

    # Sockets

    def _watch_listener(self) -> None:
        listening = self._thread.ident is not None and not self._closed and (self._refusing or not self._stalled)
        if listening and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ, self._listener)
        elif self._listening and not listening:
            self._selector.unregister(self._listener)
        self._listening = listening

    def _watch(self, connection: _Connection) -> None:
        """Let the selector watch for what is wanted now, and for nothing else: an unwanted event would spin."""
        for end in connection.ends:
            events = 0
            if not end.finished_reading and self._wants(connection, end):
                events |= selectors.EVENT_READ
            if (connection.connecting and end is connection.server) or (end.blocked and not self._stalled):
                events |= selectors.EVENT_WRITE
            if events == end.events:
                continue
            if not end.events:
                self._selector.register(end.sock, events, end)
            elif not events:
                self._selector.unregister(end.sock)
            else:
                self._selector.modify(end.sock, events, end)
            end.events = events

    def _wants(self, connection: _Connection, end: _End) -> bool:
        if connection.linger_until is not None:
            return True
        other = connection.other(end)
        rate = self.bytes_per_s
        most = _HELD_BYTES if rate is None else min(_HELD_BYTES, rate * (_SLOW_S + self.delay))
        has_room = other.held_bytes < most and len(other.pieces) < _HELD_PIECES
        return has_room and not self._stalled and not connection.connecting

    def _close(self, connection: _Connection, reset: bool = False) -> None:
        del self._open[connection]
        for end in connection.ends:
            self._busy.pop(end, None)
            if end.events:
                self._selector.unregister(end.sock)
            if reset:
                try:
                    end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD_CLOSE)
                except OSError:  # some systems refuse it where the other side has reset first
                    pass
            end.sock.close()

    def _shut(self) -> None:
        """Close what is open, the bell last."""
        self._watch_listener()
        self._listener.close()
        for connection in list(self._open):
            self._close(connection)
        self._selector.close()
        self._bell.close()
        self._bell_rope.close()


def _resolve(target: tuple[str, int]) -> tuple[int, Any]:
    family, _, _, _, place = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)[0]
    return family, place


def _fulfil(future: "Future[T]", function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
