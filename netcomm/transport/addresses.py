"""Addresses: what the host and the port of a place stand for.

A place is a host, by its name or its IP address, and a port; or a Unix socket, `unix:/path`.

Programs on one machine need no TCP between them: a Unix socket carries more, and sooner. So, on Linux, a program that
listens at a loopback or wildcard address listens on a *local socket* as well, which the address and the port name; and
a program that connects to a loopback address tries those names first. Where nobody has such a socket, nobody uses it.
`tcp:` before a host keeps to TCP.

Local sockets are in the abstract namespace: no file is left behind, and a network namespace has its own, as it has
its own loopback addresses. Any user of the machine may take a name there. So one that is not held by this process's
user, or by root, is passed over; the kernel says who holds it (SO_PEERCRED, unix(7)).
"""

import contextlib
import os
import socket
import struct
import sys
from typing import Any, NamedTuple

from netcomm.errors import ConfigurationError

_UNIX_PREFIX = "unix:"
_TCP_PREFIX = "tcp:"
_LOCAL_PREFIX = "\0netcomm/"
_HAS_LOCAL = sys.platform == "linux"
_WILDCARDS: dict[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid

Address = tuple[str, int]


class Candidate(NamedTuple):
    """One way to a place; local: by its local socket."""

    family: int
    address: Any
    local: bool = False


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


def unix_path(host: str) -> str | None:
    """The path of a Unix socket, or None for a host of another kind."""
    return host.removeprefix(_UNIX_PREFIX) if host.startswith(_UNIX_PREFIX) else None


def lookup(host: str, port: int, flags: int = 0) -> list[tuple[int, Any]]:
    """The (family, address) pairs of a host, without repetitions. It may wait for a name server.

    flags: those of `getaddrinfo`.

    Raises OSError, or UnicodeError for what is no host name.
    """
    found = socket.getaddrinfo(host.removeprefix(_TCP_PREFIX) or None, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def candidates(host: str, port: int) -> list[Candidate]:
    """The ways to a place, the best first. It may wait for a name server.

    Raises OSError, or UnicodeError for what is no host name.
    """
    path = unix_path(host)
    if path is not None:
        return [Candidate(socket.AF_UNIX, path)]
    found = []
    for family, address in lookup(host, port):
        if _is_loopback(address[0]) and not host.startswith(_TCP_PREFIX):
            names = [_local_name(one, port) for one in (address[0], _WILDCARDS[family])]
            found += [Candidate(socket.AF_UNIX, name, local=True) for name in names]
        found.append(Candidate(family, address))
    return found


def local_names(host: str, bound: list[Address]) -> list[str]:
    """The names of the local sockets to listen on, beside TCP sockets that are bound to these addresses of a host."""
    if host.startswith(_TCP_PREFIX):
        return []
    return [
        _local_name(address, port)
        for address, port in bound
        if _is_loopback(address) or (_HAS_LOCAL and address in _WILDCARDS.values())
    ]


def is_trusted(sock: socket.socket) -> bool:
    """Whether the listener that a local socket is connected to belongs to this process's user, or to root."""
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return user in (0, os.geteuid())


def origin(sock: socket.socket, address: Any) -> str:
    """Where an accepted connection comes from, for the log; address: as `accept` has returned it."""
    if sock.family != socket.AF_UNIX:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if hasattr(socket, "SO_PEERCRED"):
        number, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return f"process {number} of this machine"
    return f"{_UNIX_PREFIX}{sock.getsockname()}"


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
