"""`Acceptor`: sockets that listen, and the connections that come in by them.

To listen at a place takes two steps. `listen` may ask a name server and touches the file system: it needs no lock of
the owner, and knows nothing of an acceptor. `Acceptor.add` takes over what `listen` has returned, and is quick.
"""

import contextlib
import errno
import logging
import os
import selectors
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Self

from netcomm import descriptors
from netcomm.deadlines import Deadlines
from netcomm.errors import BindError
from netcomm.logs import Log
from netcomm.transport import addresses
from netcomm.transport.byte_stream import reason

log = Log("netcomm.transport.acceptor")

_ACCEPT_PAUSE_S = 1.0
_ACCEPTS_PER_PASS = 64
_BACKLOG = 1024


class Listener:
    """One socket that listens; path: the file of a Unix socket, to be removed in the end."""

    def __init__(self, sock: socket.socket, path: str | None = None) -> None:
        self.sock = sock
        self.path = path

    def close(self) -> None:
        """Close the socket, and remove its file."""
        descriptors.close(self.sock)
        if self.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class Listening:
    """The sockets that listen at one place, until an acceptor takes them over.

    address: what others connect to: (host, port), or `unix:/path`.

    As a context manager, it closes in the end the sockets that nobody has taken over.
    """

    def __init__(self, listeners: list[Listener], address: str | addresses.Address) -> None:
        self._listeners = listeners
        self.address = address

    def take(self) -> list[Listener]:
        """The sockets, which belong to the caller from now on."""
        taken, self._listeners = self._listeners, []
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self.take():
            listener.close()


def listen(host: str, port: int) -> Listening:
    """Listen on every address of a host, and on their local sockets. Port 0 picks one.

    Raises BindError where the address can't be had. Any thread may call it. It may wait for a name server.
    """
    try:
        path = addresses.unix_path(host)
        return _listen_on_addresses(host, port) if path is None else _listen_on_file(host, path)
    except UnicodeError as error:
        raise BindError(errno.EINVAL, f"can't listen on {host}:{port}: not a host name: {error}") from error
    except OSError as error:
        raise BindError(error.errno, f"can't listen on {addresses.name(host, port)}: {reason(error)}") from error


def _listen_on_addresses(host: str, port: int) -> Listening:
    sockets: list[socket.socket] = []
    unusable: OSError | None = None
    try:
        for family, address in addresses.lookup(host, port, socket.AI_PASSIVE):
            if sockets and port == 0:
                # The addresses of one name share the port that the first one was given.
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                sockets.append(_bind(family, address))
            except OSError as error:
                # A name may have an address of a family that this machine does not have.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                unusable = error
        if unusable is not None and not sockets:
            raise unusable
        bound = [sock.getsockname()[:2] for sock in sockets]
        for name in addresses.local_names(host, bound):
            with contextlib.suppress(OSError):  # where a name is taken, TCP has to do
                sockets.append(_bind(socket.AF_UNIX, name))
    except BaseException:
        for sock in sockets:
            descriptors.close(sock)
        raise
    return Listening(list(map(Listener, sockets)), bound[0])


def _listen_on_file(host: str, path: str) -> Listening:
    try:
        sock = _bind(socket.AF_UNIX, path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
            raise
        os.unlink(path)
        sock = _bind(socket.AF_UNIX, path)
    # A name in the abstract namespace is no file.
    return Listening([Listener(sock, None if path.startswith("\0") else path)], host)


def _bind(family: int, address: Any) -> socket.socket:
    with descriptors.no_fork:
        sock = descriptors.note(socket.socket(family, socket.SOCK_STREAM))
    try:
        if os.name == "posix":  # elsewhere the option would let two programs share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except BaseException:
        descriptors.close(sock)
        raise
    return sock


def _is_left_behind(path: str) -> bool:
    """Whether a file is a Unix socket on which nobody listens: its process died without removing it."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except BlockingIOError:  # its backlog is full
            return False
    return False


class Acceptor:
    """The listeners of one link.

    Any thread may call `add`. The rest is for the thread that polls.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        deadlines: Deadlines[Any],
        call_soon: Callable[[Callable[[], None]], None],
        max_connections: int,
        count_connections: Callable[[], int],
    ) -> None:
        """Make it, without listeners.

        selector: watches the listeners; `accept` is to be called with one that is readable.
        deadlines: `watch` is to be called with a listener that falls due.
        call_soon: lets the thread that polls call something.
        count_connections: called for each connection that comes in, returns how many are open; more than
            `max_connections` are not accepted.
        """
        self._selector = selector
        self._deadlines = deadlines
        self._call_soon = call_soon
        self._max_connections = max_connections
        self._count_connections = count_connections
        self._listeners: list[Listener] = []
        self._overfull = False  # whether the log has told of it

    def add(self, listening: Listening) -> None:
        """Take over sockets, and accept connections by them."""
        listeners = listening.take()
        self._listeners += listeners
        for listener in listeners:
            self._call_soon(partial(self.watch, listener))

    def watch(self, listener: Listener) -> None:
        """Let the selector watch a listener, unless it was closed."""
        if listener.sock.fileno() >= 0:
            try:
                self._selector.register(listener.sock, selectors.EVENT_READ, listener)
            except OSError as error:  # the system watches no more sockets for this user
                self._accept_later(listener, error)

    def _accept_later(self, listener: Listener, error: OSError) -> None:
        """The system is short of something: try again in a while, and leave what there is to the others meanwhile."""
        log.error("can't accept for %g s: %s", _ACCEPT_PAUSE_S, reason(error))
        self._deadlines.set(listener, monotonic() + _ACCEPT_PAUSE_S)

    def accept(self, listener: Listener) -> Iterator[tuple[socket.socket, str]]:
        """Accept the connections that wait; yields their sockets, and where each of them comes from, for the log."""
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
            where = addresses.origin(sock, address)
            if self._count_connections() >= self._max_connections:
                log.log(
                    logging.DEBUG if self._overfull else logging.WARNING,
                    "closing the connection from %s: %d are open, which is the limit",
                    where,
                    self._max_connections,
                )
                self._overfull = True
                descriptors.close(sock)
                continue
            self._overfull = False
            yield sock, where

    def stop(self) -> None:
        """Close the listeners. Another thread may add one meanwhile: call it again once none can."""
        while self._listeners:
            listener = self._listeners.pop()
            self._deadlines.discard(listener)
            if listener.sock in self._selector.get_map():
                self._selector.unregister(listener.sock)
            listener.close()
