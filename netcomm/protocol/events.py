"""What comes out of the protocol for its owner to act on: what has happened, and what a storage is to do.

A storage request is declared once, here, with what it asks of a `QueueStorage`. `Messaging.answered` takes the results.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from netcomm.message import DURABLE, Delivery, Stream
from netcomm.protocol import frames
from netcomm.storage import Position, QueueStorage, StoredMessage

# -- What has happened -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Connected:
    """A peer can be talked to; `connection` is established."""

    ident: str
    connection: int


@dataclass(slots=True)
class Disconnected:
    """A peer that was connected is not any more."""

    ident: str


@dataclass(slots=True)
class Received:
    """Messages came in; `Node.on_handled` is to be told when their callbacks have returned.

    stream, epoch: what they belong to; a legacy peer has no streams: None, and 0.
    redelivered_below: messages with a lower seq may have been handed over by an earlier process.
    runs, payloads: the messages, as in `frames.Data`; their seqs follow each other.
    size: the bytes that they count as.
    envelope_bytes: those of them that are envelopes.
    handled: how many of them, from the first on, the node has been told of.
    returned: how many it is to be told of, where they are noted first.
    """

    ident: str
    stream: Stream | None
    epoch: int
    redelivered_below: int
    runs: list[frames.MessageRun]
    payloads: list[bytes]
    size: int
    handled: int = field(default=0, compare=False)
    returned: int = field(default=0, compare=False)
    envelope_bytes: int = 0

    @property
    def items(self) -> list[frames.Item]:
        """Each message by itself."""
        return frames.items(self.runs, self.payloads)


@dataclass(slots=True)
class Dropped:
    """Messages have ended without being delivered.

    told: of how many of them, from the first on, callbacks have been told.
    """

    deliveries: list[Delivery]
    told: int = field(default=0, compare=False)


@dataclass(slots=True)
class DeliveriesEnded:
    """Messages have ended; a thread that waits for one may look."""


DELIVERIES_ENDED = DeliveriesEnded()


@dataclass(slots=True)
class ErrorReported:
    """An error for `on_error`."""

    error: BaseException


@dataclass(slots=True)
class Call:
    """A function is to be called with an argument, on the thread that dispatches, and with no lock held."""

    function: Callable[[Any], object]
    argument: Any


@dataclass(slots=True)
class Close:
    """A connection has to be closed, once `farewell`, in buffers, is sent."""

    connection: int
    farewell: list[bytes]


@dataclass(slots=True)
class PauseReading:
    """Nothing more may be read from a connection, or reading may go on."""

    connection: int
    paused: bool


# -- What a storage is to do -----------------------------------------------------------------------------------------
# `stream` is always the durable stream that is meant.


def _named(stream: Stream) -> dict[str, Stream]:
    """How a storage is told of a stream: a `QueueStorage` knows one, DURABLE; a `HostStorage` knows others."""
    return {} if stream is DURABLE else {"stream": stream}


@dataclass(slots=True)
class Load:
    """Read on in a stream; see `QueueStorage.read`."""

    ident: str
    from_seq: int
    max_count: int
    max_bytes: int
    stream: Stream = DURABLE

    def carry_out(self, storage: QueueStorage) -> list[StoredMessage]:
        """Ask the storage. Raises StorageError."""
        return storage.read(self.ident, self.from_seq, self.max_count, self.max_bytes, **_named(self.stream))


@dataclass(slots=True)
class LoadDiscarded:
    """Read messages that were discarded, so that callbacks are told of them; see `QueueStorage.read`."""

    ident: str
    from_seq: int
    max_count: int
    max_bytes: int
    stream: Stream = DURABLE

    def carry_out(self, storage: QueueStorage) -> list[StoredMessage]:
        """Ask the storage. Raises StorageError."""
        return storage.read(self.ident, self.from_seq, self.max_count, self.max_bytes, **_named(self.stream))


@dataclass(slots=True)
class FindExpired:
    """Search a stream from a seq on for what has expired; see `QueueStorage.expired`.

    wall_now: the time, as the storage knows it, in seconds since the epoch.
    max_count: how many messages are wanted at the most. Where there are as many, there may be more.
    """

    ident: str
    from_seq: int
    wall_now: float
    max_count: int
    stream: Stream = DURABLE

    def carry_out(self, storage: QueueStorage) -> tuple[list[StoredMessage], float | None]:
        """Ask the storage. Raises StorageError."""
        return storage.expired(self.ident, self.from_seq, self.wall_now, self.max_count, **_named(self.stream))


@dataclass(slots=True)
class Mark:
    """Remember up to where a stream may be sent; see `QueueStorage.mark_sent`."""

    ident: str
    below: int
    stream: Stream = DURABLE

    def carry_out(self, storage: QueueStorage) -> None:
        """Ask the storage. Raises StorageError."""
        storage.mark_sent(self.ident, self.below, **_named(self.stream))


@dataclass(slots=True)
class Renew:
    """Give a stream another epoch; see `QueueStorage.renew`."""

    ident: str
    epoch: int
    stream: Stream = DURABLE

    def carry_out(self, storage: QueueStorage) -> None:
        """Ask the storage. Raises StorageError."""
        storage.renew(self.ident, self.epoch, **_named(self.stream))


@dataclass(slots=True)
class StorePosition:
    """Take a position, or a later one of the same sender; see `QueueStorage.store_positions`."""

    ident: str
    position: Position

    def carry_out(self, storage: QueueStorage) -> None:
        """Ask the storage. Raises StorageError."""
        storage.store_positions({self.ident: self.position})


@dataclass(slots=True)
class DeleteBelow:
    """Forget the messages of a stream below a seq, or below a later one; see `QueueStorage.delete_below`."""

    ident: str
    seq: int
    stream: Stream = DURABLE

    def carry_out(self, storage: QueueStorage) -> None:
        """Ask the storage. Raises StorageError."""
        storage.delete_below(self.ident, self.seq, **_named(self.stream))


@dataclass(slots=True)
class Delete:
    """Forget messages of a stream; see `QueueStorage.delete`."""

    ident: str
    seqs: list[int]
    stream: Stream = DURABLE

    def carry_out(self, storage: QueueStorage) -> None:
        """Ask the storage. Raises StorageError."""
        storage.delete(self.ident, self.seqs, **_named(self.stream))


StorageRequest = Load | LoadDiscarded | FindExpired | Mark | Renew | StorePosition | DeleteBelow | Delete
Event = (
    Connected
    | Disconnected
    | Received
    | Dropped
    | DeliveriesEnded
    | ErrorReported
    | Call
    | Close
    | PauseReading
    | StorageRequest
)
