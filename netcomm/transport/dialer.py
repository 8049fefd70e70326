"""`Dialer`: keeps one connection to each place that it was given: looks its name up, connects, tries again."""

import errno
import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from netcomm import descriptors
from netcomm.deadlines import Deadlines
from netcomm.limits import Limits
from netcomm.logs import Log
from netcomm.transport import addresses
from netcomm.transport.byte_stream import reason

log = Log("netcomm.transport.dialer")


class Connector:
    """Keeps one connection to one place, as long as it lives."""

    def __init__(self, number: int, host: str, port: int, delay_s: float) -> None:
        self.number = number
        self.host = host
        self.port = port
        self.where = addresses.name(host, port)
        self.delay_s = delay_s
        self.candidates: deque[addresses.Candidate] = deque()  # still to be tried
        self.attempt_s = 0.0  # how long each of them may take
        self.sock: socket.socket | None = None  # while it connects
        self.local = False  # whether that is a local socket
        self.failing = False  # whether the log has told of the failure


class Dialer:
    """The connectors of one link.

    Any thread may call `add`, and any thread that holds the owner's lock `proven`. The rest is for the thread that
    polls.
    """

    def __init__(
        self,
        limits: Limits,
        selector: selectors.BaseSelector,
        deadlines: Deadlines[Any],
        call_soon: Callable[[Callable[[], None]], None],
        connected: Callable[[socket.socket, Connector], None],
        unreachable: Callable[[OSError], None],
    ) -> None:
        """Make it, without connectors.

        selector: watches sockets that connect; `go_on` is to be called with a connector whose socket is ready.
        deadlines: `on_time` is to be called with a connector that falls due.
        call_soon: lets the thread that polls call something.
        connected: called with each connected socket, which belongs to the callee then.
        unreachable: called where a connector fails for the first time since it was last connected.
        """
        self._limits = limits
        self._selector = selector
        self._deadlines = deadlines
        self._call_soon = call_soon
        self._connected = connected
        self._unreachable = unreachable
        self._connectors: list[Connector] = []
        self._last_number = 0

    def add(self, host: str, port: int) -> None:
        """Connect to a place, and again when `reconnect` is called."""
        self._last_number += 1
        connector = Connector(self._last_number, host, port, self._limits.reconnect_min_s)
        self._connectors.append(connector)
        self._call_soon(partial(self._resolve, connector))

    def proven(self, connector: Connector) -> None:
        """Its connection has proved good: after it, reconnecting starts with the shortest delay again."""
        connector.delay_s = self._limits.reconnect_min_s
        connector.failing = False

    def reconnect(self, connector: Connector) -> None:
        """Its connection is gone: connect again in a while, unless the connector is gone, too."""
        if connector in self._connectors:
            self._try_later(connector, self._limits.reconnect_max_s)

    def on_time(self, connector: Connector) -> None:
        """A connector has fallen due: its attempt has taken too long, or it is to try again."""
        if connector.sock is not None:
            self._attempt_failed(connector, TimeoutError(errno.ETIMEDOUT, "timed out"))
        else:
            self._resolve(connector)

    def stop(self) -> None:
        """Give the connectors up; connections stay. Another thread may add one meanwhile: call it again then."""
        while self._connectors:
            connector = self._connectors.pop()
            self._deadlines.discard(connector)
            self._close_attempt(connector)

    def _close_attempt(self, connector: Connector) -> None:
        if connector.sock is not None:
            if connector.sock in self._selector.get_map():
                self._selector.unregister(connector.sock)
            descriptors.close(connector.sock)
            connector.sock = None

    def _resolve(self, connector: Connector) -> None:
        """Begin an attempt to connect, with the name resolved afresh."""
        if connector not in self._connectors:
            return
        if not addresses.needs_lookup(connector.host):
            self._resolved(connector, _candidates(connector))
            return
        # A name server may take its time, and there is no way to ask it without waiting.
        resolver = threading.Thread(target=self._resolve_name, args=(connector,), name="netcomm-resolver", daemon=True)
        try:
            resolver.start()
        except RuntimeError as error:  # no thread to be had
            self._attempt_failed(connector, OSError(errno.EAGAIN, str(error)))

    def _resolve_name(self, connector: Connector) -> None:
        self._call_soon(partial(self._resolved, connector, _candidates(connector)))

    def _resolved(self, connector: Connector, result: list[addresses.Candidate] | OSError) -> None:
        if connector not in self._connectors:
            return
        if isinstance(result, OSError):
            self._attempt_failed(connector, result)
            return
        connector.candidates = deque(result)
        slow = sum(not candidate.local for candidate in result)  # a local socket answers at once
        connector.attempt_s = max(1.0, self._limits.handshake_s / slow)
        self._try_next(connector)

    def _try_next(self, connector: Connector) -> None:
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

    def go_on(self, connector: Connector) -> None:
        """The socket of a connector is ready: it has connected, or failed to."""
        sock = connector.sock
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            if not code and sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername():
                # A client port of this machine may happen to be the one that nobody listens on: TCP then connects it
                # to itself.
                code = errno.ECONNREFUSED
            elif not code and connector.local and not addresses.is_trusted(sock):
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
        self._connected(sock, connector)

    def _attempt_failed(self, connector: Connector, error: OSError) -> None:
        self._close_attempt(connector)
        if connector.candidates:
            self._try_next(connector)
            return
        text = f"can't connect to {connector.where}: {reason(error)}"
        log.log(logging.DEBUG if connector.failing else logging.WARNING, "%s; trying again", text)
        if not connector.failing:
            self._unreachable(type(error)(error.errno, text))
        connector.failing = True
        # On a Unix socket, nobody listens where there is no file either.
        refused = isinstance(error, ConnectionRefusedError | FileNotFoundError)
        self._try_later(connector, self._limits.reconnect_refused_s if refused else self._limits.reconnect_max_s)

    def _try_later(self, connector: Connector, longest_s: float) -> None:
        delay_s = min(connector.delay_s, max(longest_s, self._limits.reconnect_min_s))
        # Jitter keeps many peers from coming back at the same moment.
        self._deadlines.set(connector, monotonic() + delay_s * (0.5 + int.from_bytes(os.urandom(2)) / 2**17))
        connector.delay_s = min(delay_s * 2, self._limits.reconnect_max_s)


def _candidates(connector: Connector) -> list[addresses.Candidate] | OSError:
    """The ways to a connector's place, or why there is none."""
    try:
        return addresses.candidates(connector.host, connector.port)
    except OSError as error:
        return error
    except UnicodeError as error:  # a label that is too long, or empty
        return OSError(errno.EINVAL, f"not a host name: {error}")
