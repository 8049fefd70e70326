"""`Complaints`: why connections are closed is told to the log and to the user, once for each connector."""

import logging

from netcomm.logs import Log
from netcomm.protocol.events import ErrorReported
from netcomm.protocol.remote_peer import Connection, Emit

log = Log("netcomm.messaging")


class Complaints:
    """What was told of each connector last: it dials again and again, and fails in the same way each time."""

    __slots__ = ("_emit", "_told")

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._told: dict[int, str] = {}  # by connector

    def log_connection_error(
        self, connection: Connection, text: str, error: Exception | None = None, cause: Exception | None = None
    ) -> None:
        """Tell why a connection is closed: loudly, but not again for each attempt of a connector.

        error: what `on_error` is to be called with, if it is.
        cause: what was raised, for the log.
        """
        connector = connection.connector
        repeated = connector and self._told.get(connector) == text
        log.log(logging.DEBUG if repeated else logging.WARNING, "%s; closing the connection", text, exc_info=cause)
        if error is not None and not repeated:
            self._emit(ErrorReported(error))
        if connector:
            self._told[connector] = text

    def forget(self, connector: int) -> None:
        """A connector has made a connection that proved good: what follows is told again."""
        self._told.pop(connector, None)
