"""Places: what a host and a port stand for: addresses to connect to, and sockets that listen.

A place is a host, by its name or its IP address, and a port; or a Unix socket, `unix:/path`.

Programs on one machine need no TCP between them: a Unix socket carries more, and sooner. So, on Linux, who listens at a
loopback or wildcard address listens on a *local socket* as well, which the address and the port name; and who connects
to a loopback address tries those names first. Where nobody has such a socket, nobody uses it. `tcp:` before a host
keeps to TCP.

Local sockets are in the abstract namespace: no file is left behind, and a network namespace has its own, as it has
its own loopback addresses. Any user of the machine may take a name there. So one that is not held by this process's
user, or by root, is passed over; the kernel says who holds it (SO_PEERCRED, unix(7)).
"""

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from typing import Any, NamedTuple

from netcomm import descriptors
from netcomm.errors import ConfigurationError

_UNIX_PREFIX = "unix:"
_TCP_PREFIX = "tcp:"
_LOCAL_PREFIX = "\0netcomm/"
_HAS_LOCAL = sys.platform == "linux"
_WILDCARDS: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
# Of Unix sockets, unless the system allows less: so much may lie in between, so that both sides are at work at once.
_UNIX_SEND_BYTES = 4 * 1024 * 1024

Address = tuple[str, int]


class Candidate(NamedTuple):
    """One way to a place; local: by its local socket."""

    family: int
    address: Any
    local: bool = False


class Listening(NamedTuple):
    """Sockets that listen.

    path: the file of a Unix socket, to be removed in the end.
    address: what others connect to: (host, port), or `unix:/path`.
    """

    sockets: list[socket.socket]
    path: str | None
    address: str | Address


def check_place(host: object, port: object) -> tuple[str, int]:
    """Return `host` and `port` if they can name a place.

    Raises ConfigurationError where host is not a str, or port is not an int from 0 to 65535.
    """
    if not isinstance(host, str):
        raise ConfigurationError(f"a host must be a str, not {type(host).__name__}")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigurationError(f"a port must be an int from 0 to 65535, not {port!r}")
    return host, port


def name(host: str, port: int) -> str:
    """What the log calls a place."""
    return host if host.startswith(_UNIX_PREFIX) else f"{host.removeprefix(_TCP_PREFIX)}:{port}"


def needs_lookup(host: str) -> bool:
    """Whether a name server may have to be asked for a host, and may take its time."""
    return not host.startswith(_UNIX_PREFIX) and not _is_address(host.removeprefix(_TCP_PREFIX))


def candidates(host: str, port: int) -> list[Candidate]:
    """The ways to a place, the best first. Raises OSError, or UnicodeError for what is no host name."""
    if host.startswith(_UNIX_PREFIX):
        return [Candidate(socket.AF_UNIX, host.removeprefix(_UNIX_PREFIX))]
    found = []
    for family, address in _lookup(host.removeprefix(_TCP_PREFIX), port):
        if _is_loopback(address[0]) and not host.startswith(_TCP_PREFIX):
            names = [_local_name(one, port) for one in (address[0], _WILDCARDS[family])]
            found += [Candidate(socket.AF_UNIX, name, local=True) for name in names]
        found.append(Candidate(family, address))
    return found


def is_trusted(sock: socket.socket) -> bool:
    """Whether the listener that a local socket is connected to belongs to this process's user, or to root."""
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return user in (0, os.geteuid())


def tune(sock: socket.socket) -> None:
    """Set the options of a connected socket."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_SEND_BYTES)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def origin(sock: socket.socket, address: Any) -> str:
    """Where an accepted connection comes from, for the log; address: as `accept` has returned it."""
    if sock.family != socket.AF_UNIX:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if hasattr(socket, "SO_PEERCRED"):
        number, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return f"process {number} of this machine"
    return f"{_UNIX_PREFIX}{sock.getsockname()}"


def listen(host: str, port: int) -> Listening:
    """Listen on every address of a host, and on their local sockets. Raises OSError, UnicodeError."""
    if host.startswith(_UNIX_PREFIX):
        path = host.removeprefix(_UNIX_PREFIX)
        # A name in the abstract namespace is no file.
        return Listening([_listen_unix(path)], None if path.startswith("\0") else path, host)
    sockets: list[socket.socket] = []
    unusable: OSError | None = None
    try:
        for family, address in _lookup(host.removeprefix(_TCP_PREFIX), port, socket.AI_PASSIVE):
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
        if not host.startswith(_TCP_PREFIX):
            sockets += _local_sockets(bound)
    except BaseException:
        for sock in sockets:
            descriptors.close(sock)
        raise
    return Listening(sockets, None, bound[0])


def _local_sockets(addresses: list[Address]) -> list[socket.socket]:
    """What listens beside TCP sockets with these addresses. Where a name is taken, TCP has to do."""
    found = []
    for host, port in addresses:
        if _is_loopback(host) or host in _WILDCARDS.values():
            with contextlib.suppress(OSError):
                found.append(_bind(socket.AF_UNIX, _local_name(host, port)))
    return found


def _local_name(host: str, port: int) -> str:
    return f"{_LOCAL_PREFIX}{host}:{port}"


def _is_loopback(address: str) -> bool:
    return _HAS_LOCAL and (address.startswith("127.") or address == "::1")


def _is_address(host: str) -> bool:
    """Whether a host is given as an IP address, and not by a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False


def _lookup(host: str, port: int, flags: int = 0) -> list[tuple[int, Any]]:
    """The (family, address) pairs of a host, without repetitions."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


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
        sock.listen(1024)
    except BaseException:
        descriptors.close(sock)
        raise
    return sock


def _listen_unix(path: str) -> socket.socket:
    try:
        return _bind(socket.AF_UNIX, path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_left_behind(path):
            raise
    os.unlink(path)
    return _bind(socket.AF_UNIX, path)


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
