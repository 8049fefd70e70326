"""`ByteStream`: one connected socket: bytes in, bytes out. Connections talk to it, and never to the socket below it.

To encrypt a connection, put another class with these methods in its place.

To write to a connection that is gone raises SIGPIPE, and the default action of that signal ends the process. Python
ignores the signal; but the program may have set the default action. So every call that sends passes `SEND_FLAGS`, and
every socket that is sent on goes through `prevent_sigpipe`.
"""

import contextlib
import selectors
import socket
import sys
from collections.abc import Sequence
from itertools import islice

from netcomm import descriptors

if sys.platform == "linux":
    import fcntl
    import termios

SEND_FLAGS: int = getattr(socket, "MSG_NOSIGNAL", 0)
_SO_NOSIGPIPE = 0x1022  # of macOS, which has no such flag; the module `socket` does not name it
_SO_NWRITE = 0x1024  # of macOS; the module `socket` does not name it
_BUFFERS_PER_SEND = 64
# Of Unix sockets, unless the system allows less: so much may lie in between, so that both sides are at work at once.
_UNIX_SEND_BYTES = 4 * 1024 * 1024


def reason(error: OSError) -> str:
    """What the log calls an error of the system."""
    return error.strerror or str(error)


def prevent_sigpipe(sock: socket.socket) -> None:
    """Let no write to a socket raise SIGPIPE, where `SEND_FLAGS` does not say so. Raises OSError."""
    if sys.platform == "darwin":
        sock.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)


class ByteStream:
    """A connected socket, which belongs to it; `netcomm.descriptors` has noted it.

    reads_on, writes_on: the events of the selector on which the stream can go on to receive, and to send. They may
        change with each call that returns None: an encrypted stream may have to send before it can receive.

    No method waits. One thread at a time may call `receive_into`, and one at a time `send` and `end_sending`; they may
    be two. Any thread may call `unacknowledged` and `close`.
    """

    reads_on = selectors.EVENT_READ
    writes_on = selectors.EVENT_WRITE

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno = sock.fileno  # for the selector; -1 once it is closed
        sock.setblocking(False)
        with contextlib.suppress(OSError):  # reset already: reading will tell
            prevent_sigpipe(sock)
            if sock.family == socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_SEND_BYTES)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive_into(self, buffer: memoryview) -> int | None:
        """Receive some bytes; returns how many, 0 at the end of the stream, None where there are none yet.

        Raises OSError where the connection is broken.
        """
        try:
            return self._sock.recv_into(buffer)
        except BlockingIOError:
            return None

    def send(self, buffers: Sequence[bytes | memoryview]) -> int | None:
        """Send the first of the buffers, or a part of them; returns how many bytes the system has taken.

        None where it takes none now. Raises OSError where the connection is broken.
        """
        try:
            if len(buffers) == 1:
                return self._sock.send(buffers[0], SEND_FLAGS)
            return self._sock.sendmsg(list(islice(buffers, _BUFFERS_PER_SEND)), (), SEND_FLAGS)
        except BlockingIOError:
            return None

    def unacknowledged(self) -> int:
        """How many of the sent bytes this system holds, or the other side's system has not acknowledged.

        Only Linux and macOS tell; on other systems it is 0. Of a Unix socket, Linux tells what memory they take: a
        little more.
        """
        try:
            if sys.platform == "linux":
                return int.from_bytes(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
            if sys.platform == "darwin":
                return self._sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        except (OSError, ValueError):  # it was closed meanwhile
            pass
        return 0

    def end_sending(self) -> None:
        """Tell the other side that nothing more will be sent; may be called again. Raises OSError."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket. Closing again does nothing."""
        descriptors.close(self._sock)
