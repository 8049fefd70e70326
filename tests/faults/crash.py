"""Crash points: `arm` makes this process kill itself at a named moment in the life of one message.

The library has no hooks for this; its methods are replaced at run time. Message number N has seq N - 1.
"""

import os
import signal
import sqlite3
from collections.abc import Callable
from typing import Any

from netcomm.message import Stream
from netcomm.protocol.events import Received
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.session import Session
from netcomm.runtime.callback_runner import CallbackRunner
from netcomm.transport.link import Link
from netcomm_sqlite import SqliteQueueStorage, open_file
from netcomm_sqlite.names import Names

SENDER_POINTS = [
    "before the store",
    "after the store",
    "after the socket write",
    "before the acknowledgement is processed",
    "after the acknowledgement is processed",
    "after the storage has deleted",
]
RECEIVER_POINTS = [
    "before the callback",
    "in the callback",
    "after the callback",
    "after the position is stored",
    "after the acknowledgement is sent",
]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _around(
    owner: type, name: str, before: Callable[..., bool] | None = None, after: Callable[..., bool] | None = None
) -> None:
    """Kill the process before or after a call of a method, where these say so of its arguments."""
    method = getattr(owner, name)

    def call(self: Any, *args: Any) -> Any:
        if before is not None and before(*args):
            die()
        result = method(self, *args)
        if after is not None and after(*args):
            die()
        return result

    setattr(owner, name, call)


def arm(point: str, number: int, data: bytes) -> None:
    """Kill this process at a point in the life of message `number`, whose payload is `data`."""
    acknowledged = False

    def has_it(batch: Any) -> bool:
        return any(message.data == data for append in batch for message in append.messages)

    def position_is_behind_it(positions: Any) -> bool:
        return any(position.next_seq >= number for position in positions.values())

    def acknowledges_it(ack: Any) -> bool:
        return ack.stream is Stream.DURABLE and ack.next_seq >= number

    def note_acknowledgement(ack: Any) -> bool:
        nonlocal acknowledged
        acknowledged = acknowledged or acknowledges_it(ack)
        return False

    match point:
        case "before the store":
            _around(SqliteQueueStorage, "append", before=has_it)
        case "after the store":
            _around(SqliteQueueStorage, "append", after=has_it)
        case "after the socket write":
            _around(Link, "write", after=lambda connection, buffers: data in b"".join(buffers))
        case "before the acknowledgement is processed":
            _around(Messaging, "_acknowledge", before=lambda connection, ack, now: acknowledges_it(ack))
        case "after the acknowledgement is processed":
            _around(SqliteQueueStorage, "delete_below", before=lambda ident, seq: seq >= number)
        case "after the storage has deleted":
            _around(SqliteQueueStorage, "delete_below", after=lambda ident, seq: seq >= number)
        case "before the callback":
            _around(
                CallbackRunner,
                "dispatch",
                before=lambda event: isinstance(event, Received) and data in event.payloads,
            )
        case "in the callback":
            pass  # the callback itself does it
        case "after the callback":
            _around(SqliteQueueStorage, "store_positions", before=position_is_behind_it)
        case "after the position is stored":
            _around(SqliteQueueStorage, "store_positions", after=position_is_behind_it)
        case "after the acknowledgement is sent":
            _around(Session, "acknowledge", before=note_acknowledgement)
            _around(Link, "write", after=lambda connection, buffers: acknowledged)
        case _:
            raise ValueError(point)


def main(config: dict[str, Any]) -> None:
    """Open `path`, and die at the `statement`-th statement that SQLite runs in the course of it."""
    count = 0

    def trace(sql: str) -> None:
        nonlocal count
        count += 1
        if count == config["statement"]:
            die()

    connect = open_file.connect

    def connect_traced(names: Names, read_only: bool) -> sqlite3.Connection:
        db = connect(names, read_only)
        db.set_trace_callback(trace)
        return db

    open_file.connect = connect_traced
    SqliteQueueStorage(config["path"]).close()
