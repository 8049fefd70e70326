"""`Reading`: which connections are read: not those that bring more than callbacks get done with."""

from collections.abc import Iterable

from netcomm.limits import Limits
from netcomm.message import Stream
from netcomm.protocol.events import PauseReading
from netcomm.protocol.remote_peer import Connection, Emit


class Reading:
    """Decides whether a connection is read. `Connection.paused` is set here alone."""

    __slots__ = ("_emit", "_limits", "_stopped")

    def __init__(self, limits: Limits, emit: Emit) -> None:
        self._limits = limits
        self._emit = emit
        self._stopped = False

    def is_full(self, connection: Connection, stream: Stream | None) -> bool:
        """Whether more bytes of a stream wait to be handed over than an admitted connection may add to.

        stream: None for the messages of a snakeMQ peer.
        """
        return connection.owner.inbox.pending_bytes[stream] > self._most_pending(connection)

    def _most_pending(self, connection: Connection) -> int:
        """So many bytes of a stream may wait to be handed over, for more to be taken from a connection."""
        # A netcomm peer keeps to the window by itself, but for one large message, and for what an earlier process sent:
        # as long as it does, it is read, so that its pings are answered.
        if connection.session.legacy:
            return self._limits.window_bytes
        return self._limits.window_bytes + self._limits.max_frame_bytes

    def has_room(self, connection: Connection) -> bool:
        """Whether so few bytes wait to be handed over that a connection that was paused may be read again.

        Other streams than the one that it was paused for may have a full window, for as long as they like.
        """
        most = self._limits.window_bytes // 2 if connection.session.legacy else self._limits.window_bytes
        return all(size <= most for size in connection.owner.inbox.pending_bytes.values())

    def pause(self, connection: Connection) -> None:
        """Read nothing from a connection."""
        self._set(connection, True)

    def pause_if_full(self, connection: Connection, stream: Stream | None) -> None:
        """Messages of a stream have come on an admitted connection."""
        if self.is_full(connection, stream):
            self.pause(connection)

    def resume(self, connection: Connection) -> None:
        """Read a connection, a new one or one that was paused, unless none is read any more."""
        self._set(connection, self._stopped)

    def stop(self, connections: Iterable[Connection]) -> None:
        """Read nothing any more, from these connections and from those to come."""
        self._stopped = True
        for connection in connections:
            self.pause(connection)

    def _set(self, connection: Connection, paused: bool) -> None:
        if connection.paused != paused:
            connection.paused = paused
            self._emit(PauseReading(connection.number, paused))
