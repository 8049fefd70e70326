"""`Waker`: ends a wait of the selector, from any thread."""

import socket
import threading

from netcomm import descriptors
from netcomm.transport.byte_stream import SEND_FLAGS, prevent_sigpipe


class Waker:
    """A pair of sockets: `ring` makes one of them readable, and the selector watches it.

    receiver: the socket to watch for reading; `clear` has to be called when it is readable.

    `ring` and `close` may be called from any thread; `clear` from the thread that waits. None of them blocks. They
    share a lock, so that a late ring can't write into a descriptor that has come to belong to somebody else.

    A finalizer may call `ring` at any point, also while its thread is inside of `ring`, `clear` or `close`. So the lock
    is re-entrant, and the steps under it have an order that allows for a ring between any two of them: the byte that is
    sent twice is read at once, and no byte is read without letting the next ring send one.
    """

    def __init__(self) -> None:
        with descriptors.no_fork:
            self.receiver, self._sender = map(descriptors.note, socket.socketpair())
        self.receiver.setblocking(False)
        self._sender.setblocking(False)
        prevent_sigpipe(self._sender)
        self._lock = threading.RLock()
        self._rung = False
        self._closed = False

    def ring(self) -> None:
        """Let the wait end, or the next one return at once."""
        if self._rung:
            return
        with self._lock:
            if not self._rung and not self._closed:
                self._rung = True
                self._sender.send(b"\0", SEND_FLAGS)

    def clear(self) -> None:
        """Let the next wait last, until it is rung again."""
        with self._lock:
            # In this order: a ring in between sends nothing, and it ends no wait, since the thread that waits is here.
            self.receiver.recv(16)
            self._rung = False

    def close(self) -> None:
        """Close the sockets; later rings do nothing."""
        with self._lock:
            self._closed = True
        # Without the lock: a thread that holds the other lock, which this takes, may be about to ring.
        descriptors.close(self.receiver)
        descriptors.close(self._sender)
