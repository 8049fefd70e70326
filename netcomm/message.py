"""What users send and receive: `Message`, `Delivery`, and the `Limits` of a peer."""

import dataclasses
import enum
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

from netcomm.errors import ConfigurationError

FLAG_PERSISTENT = 0x1
"""The message is kept in a storage until it has arrived (snakeMQ's flag of the same name and value)."""

MAX_BATCH_COUNT = 1000
MAX_BATCH_BYTES = 256 * 1024
"""The most messages that a batch has, and the size that it does not exceed by more than its last message."""

MAX_IDENT_BYTES = 255
"""The longest ident, in bytes of UTF-8."""


class Stream(enum.IntEnum):
    """The two streams of messages that run from one peer to another; each keeps its order."""

    VOLATILE = 0
    DURABLE = 1


class DeliveryState(enum.Enum):
    """What has become of a message. Each message ends in exactly one of the last four."""

    QUEUED = "queued"
    """It waits to be sent."""
    SENT = "sent"
    """The connection has it; the receiver has not acknowledged it."""
    DELIVERED = "delivered"
    """The receiver's callbacks have returned."""
    EXPIRED = "expired"
    """Its time to live ran out before it was sent."""
    REJECTED = "rejected"
    """The receiver can't take it: it is larger than the frames the receiver accepts."""
    DISCARDED = "discarded"
    """The sender was terminated before the message, a transient one, was acknowledged."""


# By themselves, for what is done for each message: Python 3.11 takes 0.07 us to look a member up in its Enum.
VOLATILE, DURABLE = Stream.VOLATILE, Stream.DURABLE
QUEUED, SENT, DELIVERED = DeliveryState.QUEUED, DeliveryState.SENT, DeliveryState.DELIVERED

_OPEN_STATES = (QUEUED, SENT)


@dataclass(frozen=True, slots=True)
class Message:
    """A received message, as `on_message` callbacks get it.

    data: the payload.
    uuid: 16 bytes that name the message; the sender chose them.
    ttl: the seconds that it had left to live when it was sent, or None for no limit.
    flags: FLAG_PERSISTENT or 0.
    redelivered: an earlier process of this receiver may have handed it over before it died.
    """

    data: bytes
    uuid: bytes
    ttl: int | None
    flags: int
    redelivered: bool

    @property
    def persistent(self) -> bool:
        """Whether the sender keeps it in a storage until it has arrived."""
        return bool(self.flags & FLAG_PERSISTENT)


class Delivery:
    """One message on its way out: an entry of the queue, and the sender's view of it.

    ident: the receiver's name.
    uuid: 16 bytes that name the message.
    data: the payload; None once it was delivered, so that a kept Delivery does not keep the payload.
    state: see `DeliveryState`.
    persistent: whether a storage keeps it.

    Attributes may be read from any thread. Only netcomm makes and changes Deliveries.
    """

    __slots__ = (
        "__weakref__",
        "_wait",
        "data",
        "expires_at",
        "ident",
        "persistent",
        "seq",
        "size",
        "state",
        "uuid",
    )

    def __init__(
        self,
        ident: str,
        uuid: bytes,
        data: bytes,
        size: int,
        expires_at: float | None,
        persistent: bool,
        wait: "Callable[[Delivery, float | None], bool]",
    ) -> None:
        self.ident = ident
        self.uuid = uuid
        self.data: bytes | None = data
        self.size = size  # bytes that it takes on the wire
        self.expires_at = expires_at  # on the clock of the outbox, in seconds
        self.persistent = persistent
        self.seq = -1  # its place in its stream
        self.state = QUEUED
        self._wait = wait

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the message has ended, at most `timeout` seconds (None: as long as it takes).

        Returns whether it was delivered: the receiver's callbacks have returned. False says that it
        ended otherwise, or that the time ran out first; `state` tells which.

        May be called from any thread, and from a callback.
        """
        return self._wait(self, timeout)

    @property
    def done(self) -> bool:
        """Whether the message has ended, one way or another."""
        return self.state not in _OPEN_STATES

    def __repr__(self) -> str:
        return f"<Delivery {self.uuid.hex()} to {self.ident!r}: {self.state.value}>"

    # -- As an entry of the queue -----------------------------------------------------------------------------

    count = 1

    @property
    def largest(self) -> int:
        """The size of the largest message, as `size` has it."""
        return self.size

    @property
    def first_size(self) -> int:
        """The size of the first message, as `size` has it."""
        return self.size

    def deliveries(self) -> "Sequence[Delivery]":
        """One for each message."""
        return (self,)


class Batch:
    """Transient messages for one receiver that were sent together: what they have in common, and their payloads.

    number: the low half of the first uuid, which the others count on from; `uuid_prefix` is the high half.
    data: their payloads, None of those that were delivered.
    states: what has become of them.
    overhead: what each takes on the wire beside its payload, in bytes.
    """

    __slots__ = ("data", "expires_at", "ident", "number", "overhead", "states", "uuid_prefix", "wait")

    def __init__(
        self,
        ident: str,
        uuid_prefix: bytes,
        number: int,
        data: list[bytes],
        overhead: int,
        expires_at: float | None,
        wait: "Callable[[Delivery, float | None], bool]",
    ) -> None:
        self.ident = ident
        self.uuid_prefix = uuid_prefix
        self.number = number
        self.data: list[bytes | None] = list(data)
        self.states = [QUEUED] * len(data)
        self.overhead = overhead
        self.expires_at = expires_at
        self.wait = wait

    def run(self) -> "Run":
        """All of it, to be queued."""
        return Run(self, 0, len(self.data))


class Run:
    """Consecutive messages of a batch that share their state: an entry of the queue.

    start, stop: their place in the batch.
    seq: the place of the first of them in the stream.
    size: the bytes that they take on the wire, each by itself; of an open run, with those that have joined it.
    resent: whether they were sent before, and the connection broke.
    """

    __slots__ = (
        "_max_size",
        "_max_stop",
        "_size_when_opened",
        "_state",
        "batch",
        "resent",
        "seq",
        "size",
        "start",
        "stop",
    )

    persistent = False

    def __init__(self, batch: Batch, start: int, stop: int) -> None:
        self.batch = batch
        self.start = start
        self.stop = stop
        self.seq = -1
        self.resent = False
        self.size = sum(map(len, self.payloads())) + (stop - start) * batch.overhead
        self._state = batch.states[start]
        self._max_stop = self._max_size = self._size_when_opened = 0

    @property
    def state(self) -> DeliveryState:
        """What has become of them."""
        return self._state

    @state.setter
    def state(self, state: DeliveryState) -> None:
        self._state = state
        self.batch.states[self.start : self.stop] = [state] * (self.stop - self.start)

    @property
    def count(self) -> int:
        """How many messages these are."""
        return self.stop - self.start

    @property
    def largest(self) -> int:
        """The size on the wire of the largest message."""
        return max(map(len, self.payloads())) + self.batch.overhead

    @property
    def first_size(self) -> int:
        """The size on the wire of the first message."""
        return len(self.batch.data[self.start] or b"") + self.batch.overhead

    @property
    def uuid_prefix(self) -> bytes:
        """The high half of all uuids."""
        return self.batch.uuid_prefix

    @property
    def number(self) -> int:
        """The low half of the first uuid."""
        return self.batch.number + self.start

    def open(self, max_count: int, max_bytes: int) -> bool:
        """Let so many more messages join, and so many bytes on the wire; returns whether they may.

        They may not where they would have to expire, and where others of the batch come in between.
        """
        if self.batch.expires_at is not None or self.stop != len(self.batch.data):
            return False
        self._max_stop = min(MAX_BATCH_COUNT, self.stop + max_count)
        self._max_size = min(MAX_BATCH_BYTES, self.size + max_bytes)
        self._size_when_opened = self.size
        return True

    def join(self, data: bytes, size: int) -> "BatchDelivery | None":
        """Append a message of `size` bytes of data; None where the run is not open, or has no room for it.

        `stop` follows when the run is closed: once for all that have joined.
        """
        batch = self.batch
        index = len(batch.data)
        size += self.size + batch.overhead
        if index >= self._max_stop or size > self._max_size:
            return None
        # In this order: wherever Ctrl-C comes in between, what is there fits.
        batch.states.append(QUEUED)
        batch.data.append(data)
        self.size = size
        return BatchDelivery(batch, index)

    @property
    def joined(self) -> int:
        """How many messages have joined since the run was opened, while it is."""
        return len(self.batch.data) - self.stop if self._max_stop else 0

    def close(self) -> tuple[int, int]:
        """Let no more messages join; returns how many have, and their size on the wire."""
        count = self.joined
        self.stop += count
        self._max_stop = 0
        return count, self.size - self._size_when_opened

    def payloads(self) -> list[bytes]:
        """The payloads of messages that have not been delivered."""
        return self.batch.data[self.start : self.stop]  # type: ignore[return-value]

    @property
    def expires_at(self) -> float | None:
        """When the messages expire, on the clock of the outbox, in seconds."""
        return self.batch.expires_at

    @property
    def data(self) -> list[bytes] | None:
        """The payloads, None once they are forgotten; may be set to None."""
        return self.payloads()

    @data.setter
    def data(self, nothing: None) -> None:
        self.batch.data[self.start : self.stop] = [None] * (self.stop - self.start)

    @property
    def done(self) -> bool:
        """Whether the messages have ended, one way or another."""
        return self._state not in _OPEN_STATES

    def fitting(self, max_bytes: int) -> int:
        """How many of these messages, from the first on, take no more than so many bytes on the wire."""
        if self.size <= max_bytes:
            return self.stop - self.start
        overhead = self.batch.overhead
        ends = list(accumulate([len(payload) + overhead for payload in self.payloads()]))
        return bisect_right(ends, max_bytes)

    def split(self, count: int) -> "Run":
        """Cut off the first `count` messages, fewer than all, none of which has been delivered; returns them."""
        head = Run(self.batch, self.start, self.start + count)
        head.seq = self.seq
        head.resent = self.resent
        self.start += count
        self.seq += count
        self.size -= head.size
        return head

    def deliveries(self) -> "Sequence[Delivery]":
        """One for each message."""
        return [BatchDelivery(self.batch, index) for index in range(self.start, self.stop)]


class BatchDelivery(Delivery):
    """The sender's view of one message of a batch. Two views of one message are equal."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    @property
    def ident(self) -> str:  # type: ignore[override]
        """The receiver's name."""
        return self._batch.ident

    @property
    def uuid(self) -> bytes:  # type: ignore[override]
        """16 bytes that name the message."""
        return self._batch.uuid_prefix + (self._batch.number + self._index).to_bytes(8)

    @property
    def data(self) -> bytes | None:  # type: ignore[override]
        """The payload; None once it was delivered."""
        return self._batch.data[self._index]

    @property
    def persistent(self) -> bool:  # type: ignore[override]
        """Whether a storage keeps it."""
        return False

    @property
    def state(self) -> DeliveryState:  # type: ignore[override]
        """See `DeliveryState`."""
        return self._batch.states[self._index]

    def wait(self, timeout: float | None = None) -> bool:
        """See `Delivery.wait`."""
        return self._batch.wait(self, timeout)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BatchDelivery):
            return NotImplemented
        return (self._batch, self._index) == (other._batch, other._index)

    def __hash__(self) -> int:
        return hash((self._batch, self._index))


class Deliveries(Sequence[Delivery]):
    """The Deliveries of the messages of one call, each made when it is asked for."""

    __slots__ = ("_batches", "_ends")

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self._ends: list[int] = []  # how many messages there are up to the end of each batch

    def add(self, batch: Batch) -> None:
        """Append the messages of a batch."""
        self._batches.append(batch)
        self._ends.append(len(self) + len(batch.data))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Delivery: ...
    @overload
    def __getitem__(self, index: slice) -> list[Delivery]: ...
    def __getitem__(self, index: int | slice) -> Delivery | list[Delivery]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = bisect_right(self._ends, place)
        return BatchDelivery(self._batches[number], place - (self._ends[number - 1] if number else 0))

    def __repr__(self) -> str:
        return f"<Deliveries of {len(self)} messages>"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer allows itself and others. Sizes are in bytes, times in seconds.

    max_frame_bytes: the largest frame it accepts and sends. A message takes 33 bytes more than its data.
    max_handshake_frame_bytes: the same, until the other side has identified itself.
    window_bytes: how much may be sent and not yet acknowledged; one larger message may go alone.
    handshake_s: how long connecting, and then identifying, may take.
    keepalive_idle_s: a ping goes out after so long a silence.
    keepalive_wait_s: the connection is closed when nothing arrived for so long after the ping.
    reconnect_min_s, reconnect_max_s: the delay before connecting again doubles from one to the other.
    reconnect_refused_s: the longest delay, if that is more than reconnect_min_s, while the other machine answers that
        nobody listens there: such an attempt costs little, and a program that restarts is not kept waiting.
    max_queued_messages, max_queued_bytes: how much may wait in memory for one receiver.
    max_connections: how many connections may be open at once.
    max_idle_peers: how many peers that are not connected, and for which nothing waits, are remembered.
    diagnose_after_s: a warning tells of messages that have waited so long for an ident that is not connected,
        while others are.
    """

    max_frame_bytes: int = 64 * 1024 * 1024
    max_handshake_frame_bytes: int = 4 * 1024
    window_bytes: int = 8 * 1024 * 1024
    handshake_s: float = 10.0
    keepalive_idle_s: float = 15.0
    keepalive_wait_s: float = 10.0
    reconnect_min_s: float = 0.1
    reconnect_max_s: float = 30.0
    reconnect_refused_s: float = 0.4
    max_queued_messages: int = 100_000
    max_queued_bytes: int = 256 * 1024 * 1024
    max_connections: int = 1024
    max_idle_peers: int = 10_000
    diagnose_after_s: float = 5.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigurationError(f"{field.name} must be a positive number, not {value!r}")
        for name in ("max_frame_bytes", "window_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 33 <= value <= 0xFFFFFFFF:  # an empty message's frame has 33
                raise ConfigurationError(f"{name} must be a whole number from 33 to 2**32 - 1, not {value!r}")
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ConfigurationError("reconnect_min_s must not exceed reconnect_max_s")


def check_ident(ident: object) -> str:
    """Return `ident` if a peer can have it as its name.

    Raises ConfigurationError where it is not a str of 1 to 255 bytes of UTF-8.
    """
    if isinstance(ident, str) and ident.isascii() and 1 <= len(ident) <= MAX_IDENT_BYTES:
        return ident
    if not isinstance(ident, str):
        raise ConfigurationError(f"an ident must be a str, not {type(ident).__name__}")
    try:
        size = len(ident.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"an ident must be encodable as UTF-8: {error}") from None
    if not 1 <= size <= MAX_IDENT_BYTES:
        raise ConfigurationError(f"an ident must have 1 to {MAX_IDENT_BYTES} bytes of UTF-8, not {size}")
    return ident
