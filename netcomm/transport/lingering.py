"""`Lingering`: the connections that are being closed: what was written still goes out, for a second at the most."""

from time import monotonic
from typing import Any

from netcomm.deadlines import Deadlines
from netcomm.transport.connection import Connection

_LINGER_S = 1.0


class Lingering:
    """Connections that their owner has closed, until they have written everything and the other side has seen the end.

    `add` is for threads that hold the owner's lock, the rest for the thread that polls.
    """

    def __init__(self, deadlines: Deadlines[Any]) -> None:
        """Make it, without connections; `drop` is to be called with a connection that falls due."""
        self._deadlines = deadlines
        self._connections: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        """Close a connection, as soon as `begin` is called."""
        connection.lingering = True
        self._connections.add(connection)

    def begin(self, connection: Connection) -> bool:
        """Begin to close a connection; returns whether it has not begun before."""
        if connection not in self._connections or connection in self._deadlines:
            return False
        self._deadlines.set(connection, monotonic() + _LINGER_S)
        self.go_on(connection)
        return True

    def go_on(self, connection: Connection) -> None:
        """Its stream is ready: write and read what can be."""
        if connection in self._connections and not connection.finish():
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close it now."""
        self._connections.discard(connection)
        self._deadlines.discard(connection)
        connection.close()

    def close_now(self) -> None:
        """Close all of them."""
        for connection in self._connections:
            connection.stream.close()
        self._connections.clear()
