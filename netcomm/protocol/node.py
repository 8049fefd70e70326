"""`Node`: one peer's protocol, driven over its connections and its storage: events in, work out.

The owner tells a node whatever happens to the peer: what its connections have said (`on_link`), what its storage has
answered (`on_storage`), which callbacks have returned (`on_handled`), that its time has come (`tick`). Callers queue
messages in `messaging`, and may let the node write them at once (`write_to`). After any of these, `process_pending`
writes what can be written, does to the connections what has to be done, and returns the rest of the work: events for
the callbacks, and requests to the storage. `messaging.has_pending_work` tells whether there is anything to do.

It has no socket, no thread, no clock and no random source. A `ConnectionPort` stands for the connections; the owner
hands in the time, in seconds of a clock that is never set. It is not thread-safe: `netcomm.runtime.loop` holds a lock
around it.

A fault ends with the connection that was being served: no memory for a large message, for instance, or a defect. Where
it happened is not known, and so not what was written: on the next connection the receiver says what it has.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netcomm.connections import (
    BufferUpdated,
    Closed,
    ConnectionEvent,
    ConnectionPort,
    Opened,
    Unreachable,
    Writable,
)
from netcomm.message import Stream
from netcomm.protocol.events import (
    Close,
    Connected,
    DeliveriesEnded,
    Disconnected,
    Event,
    Mark,
    PauseReading,
    Received,
    StorageRequest,
)
from netcomm.protocol.extension import Extension
from netcomm.protocol.extensions import Extensions
from netcomm.protocol.messaging import Messaging
from netcomm.storage import Position, StoredStream

_OUTPUT_BUDGET_BYTES = 256 * 1024


@dataclass(slots=True)
class Work:
    """What is left for the owner of a node to do.

    dispatch: events for the callbacks, in order.
    storage: requests to the storage, in order; `Node.on_storage` is to be told of each that was carried out.
    awaited: whether something has happened that a thread may wait for.
    """

    dispatch: Sequence[Event] = ()
    storage: Sequence[StorageRequest] = ()
    awaited: bool = False


_NO_WORK = Work()


class Node:
    """The protocol of one peer, with what drives it.

    messaging: sessions and queues. Others may queue messages in it, and look at it; what it has to say is taken from it
        by the node alone.
    deadline: called without arguments, returns when `tick` is due, or None.
    """

    def __init__(self, messaging: Messaging, link: ConnectionPort, budget: int = _OUTPUT_BUDGET_BYTES) -> None:
        """Make it, without connections.

        budget: about so many bytes are written to a connection at once.
        """
        self.messaging = messaging
        self.deadline = messaging.deadline
        self._link = link
        self._budget = budget
        self._extensions = Extensions(messaging.peers)

    def restore(
        self,
        streams: Iterable[StoredStream],
        positions: Mapping[tuple[str, Stream], Position],
        now: float,
        wall_now: float,
    ) -> list[Mark]:
        """Take over what a storage has kept.

        positions: by sender and stream.
        wall_now: the system's time in seconds since the epoch.

        Returns what the storage has to do before anything is sent or stored.
        """
        streams = list(streams)
        self.messaging.restore(streams, positions, now, wall_now)
        # What will be appended from here on has not been sent, whatever was allowed ahead of it.
        return [
            Mark(stream.ident, stream.next_seq, stream.stream)
            for stream in streams
            if stream.sent_below > stream.next_seq
        ]

    def attach(self, extension: Extension, now: float) -> None:
        """Let an extension take part. Raises ConfigurationError where one of its streams has another one already."""
        self._extensions.check(extension)
        extension.attached(self, now)
        self._extensions.add(extension, now)

    @property
    def all_handed_over(self) -> bool:
        """Whether nothing that was received waits for callbacks, or for an extension that is there."""
        untaken = self._extensions.untaken
        return all(peer.inbox.is_empty_but_for(untaken) for peer in self.messaging.peers)

    # -- Events in --------------------------------------------------------------------------------------------

    def on_link(self, event: ConnectionEvent, now: float) -> None:
        """Something has happened to a connection."""
        try:
            self._on_link(event, now)
        except Exception as error:
            if isinstance(event, Unreachable):
                raise
            self._fail(event.connection, error, now)

    def _on_link(self, event: ConnectionEvent, now: float) -> None:
        messaging = self.messaging
        match event:
            case BufferUpdated(connection, count):
                buffer = messaging.sessions.buffer_updated(connection, count, now)
                if buffer is not None:
                    self._link.receive_into(connection, buffer)
            case Writable(connection):
                self._link.flush(connection)
                self._write(connection, now)
            case Opened(connection, where, connector):
                buffer = messaging.sessions.connection_opened(connection, where, connector, now)
                self._link.receive_into(connection, buffer)
            case Closed(connection, reason):
                messaging.sessions.connection_lost(connection, reason, now)
            case Unreachable(error):
                messaging.sessions.unreachable(error)

    def on_storage(self, request: StorageRequest, result: Any, now: float, wall_now: float) -> None:
        """The storage has carried out a request. `wall_now` is the system's time in seconds since the epoch."""
        self.messaging.answered(request, result, now, wall_now)

    def on_handled(self, received: Received, count: int, now: float) -> bool:
        """The callbacks of the first `count` of these messages, in all, have returned; returns whether that is news."""
        handled = received.handled
        if count <= handled:
            return False
        received.handled = count
        self.messaging.mark_handled(received, handled, count, now)
        return True

    def tick(self, now: float) -> None:
        """The time has come that `deadline` has named."""
        self.messaging.tick(now)

    # -- Writing ----------------------------------------------------------------------------------------------

    def write_to(self, ident: str, now: float) -> None:
        """Write what waits for a receiver, as far as its connection takes it."""
        number = self.messaging.take_writable_to(ident)
        if number is not None:
            self._write(number, now)

    def abort(self, ident: str) -> None:
        """The thread that queued or wrote messages for a receiver was interrupted: the connection ends."""
        number = self.messaging.interrupted(ident)
        if number is not None:
            self._link.abort(number, "sending was interrupted")

    def _write(self, number: int, now: float) -> None:
        link, output, budget = self._link, self.messaging.output, self._budget
        try:
            more = True
            while more and link.has_room(number):
                buffers, more = output(number, budget, now)
                if buffers:
                    link.write(number, buffers)
        except Exception as error:
            self._fail(number, error, now)

    def _fail(self, number: int, error: Exception, now: float) -> None:
        self._link.abort(number, f"failed: {error!r}")
        self.messaging.sessions.connection_failed(number, error, now)

    # -- Work out ---------------------------------------------------------------------------------------------

    def process_pending(self, now: float) -> Work:
        """Write what can be written, do to the connections what is to be done; returns what is left to do."""
        messaging = self.messaging
        if not messaging.has_pending_work:
            return _NO_WORK
        for number in messaging.take_writable():
            self._write(number, now)
        events = messaging.next_events()
        if not events:
            return _NO_WORK
        try:
            work, for_extensions = self._act_on(events)
        except BaseException:
            messaging.put_back(events)  # to act on them twice does no harm
            raise
        if for_extensions:
            self._extensions.tell(for_extensions, now)
            if messaging.has_pending_work:  # what they have sent
                more = self.process_pending(now)
                return Work(
                    [*work.dispatch, *more.dispatch], [*work.storage, *more.storage], work.awaited or more.awaited
                )
        return work

    def _act_on(self, events: list[Event]) -> tuple[Work, list[Received | Connected | Disconnected]]:
        """Returns what is left to do, and what extensions are to be told of."""
        dispatch: list[Event] = []
        storage: list[StorageRequest] = []
        awaited = False
        extensions = self._extensions
        for_extensions: list[Any] = []
        for event in events:
            match event:
                case Received():
                    (for_extensions if extensions.claims(event) else dispatch).append(event)
                case DeliveriesEnded():
                    awaited = True
                case Close(connection, farewell):
                    self._link.close(connection, farewell)
                case PauseReading(connection, paused):
                    self._link.pause(connection, paused)
                case _ if isinstance(event, StorageRequest):
                    storage.append(event)
                case _:
                    if isinstance(event, Connected):
                        self._link.established(event.connection)
                    if isinstance(event, Connected | Disconnected):
                        for_extensions.append(event)
                    dispatch.append(event)
                    awaited = True
        return Work(dispatch, storage, awaited), for_extensions
