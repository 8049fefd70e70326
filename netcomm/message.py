"""What users send and receive: `Message` and `Delivery`."""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from netcomm.errors import ConfigurationError

FLAG_PERSISTENT = 0x1
"""The message is kept in a storage until it has arrived (snakeMQ's flag of the same name and value)."""

MAX_IDENT_BYTES = 255
"""The longest ident, in bytes of UTF-8."""


class Stream(enum.IntEnum):
    """The streams of messages that run from one peer to another; each keeps its order, and has a window of its own.

    A message that is held back in one of them holds up none in another. The lowest bit says whether a storage keeps the
    messages until they have arrived.
    """

    VOLATILE = 0
    """Messages that `send` keeps in memory."""
    DURABLE = 1
    """Messages that `send` keeps in a storage until they have arrived."""
    BULK = 2
    """Pieces of large things, kept in memory, which go out when nothing else waits."""
    BUS_VOLATILE = 4
    """What topics, queues and services say, kept in memory."""
    BUS_DURABLE = 5
    """What topics and queues say, kept in a storage until it has arrived."""

    @property
    def durable(self) -> bool:
        """Whether a storage keeps its messages."""
        return bool(self & FLAG_PERSISTENT)


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
    """The sender has given it up before it was acknowledged: the sender was terminated, and it was a transient message;
    or `Peer.discard` was called; or the receiver's ident was made up, and the receiver is gone."""


# By themselves, for what is done for each message: Python 3.11 takes 0.07 us to look a member up in its Enum.
VOLATILE, DURABLE, BULK = Stream.VOLATILE, Stream.DURABLE, Stream.BULK
QUEUED, SENT, DELIVERED = DeliveryState.QUEUED, DeliveryState.SENT, DeliveryState.DELIVERED

OPEN_STATES = (QUEUED, SENT)


class Headers(Mapping[str, str]):
    """The headers of a received message: a mapping that can't be changed, and can be hashed, copied and pickled."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, str]) -> None:
        """Make it; it keeps the dict."""
        self._values = values

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


NO_HEADERS = Headers({})


@dataclass(frozen=True, slots=True)
class Message:
    """A received message, as `on_message` callbacks get it.

    data: the payload.
    uuid: 16 bytes that name the message; the sender chose them.
    ttl: the seconds that it had left to live when it was sent, or None for no limit.
    flags: FLAG_PERSISTENT or 0.
    redelivered: an earlier process of this receiver may have handed it over before it died.
    subject: what the sender says that it is about, or None.
    headers: what the sender has said of it by name; empty where it has said nothing. They can't be changed.
    """

    data: bytes
    uuid: bytes
    ttl: int | None
    flags: int
    redelivered: bool
    subject: str | None = None
    headers: Mapping[str, str] = NO_HEADERS

    @property
    def persistent(self) -> bool:
        """Whether the sender keeps it in a storage until it has arrived."""
        return bool(self.flags & FLAG_PERSISTENT)


class DeliveryOwner(Protocol):
    """What a Delivery asks of the peer that it belongs to."""

    def wait_for_delivery(self, delivery: "Delivery", timeout: float | None) -> bool:
        """See `Delivery.wait`."""

    def watch_delivery(self, delivery: "Delivery", function: "Callable[[Delivery], object]") -> None:
        """See `Delivery.add_done_callback`."""


class Delivery:
    """One message on its way out: an entry of the queue, and the sender's view of it.

    ident: the receiver's name.
    uuid: 16 bytes that name the message.
    data: the payload; None once it was delivered, so that a kept Delivery does not keep the payload.
    state: see `DeliveryState`.
    stream: which of the streams to the receiver it is in.

    Attributes may be read from any thread. Only netcomm makes and changes Deliveries.
    """

    __slots__ = (
        "__weakref__",
        "_owner",
        "data",
        "envelope",
        "expires_at",
        "ident",
        "seq",
        "size",
        "state",
        "stream",
        "uuid",
    )

    def __init__(
        self,
        ident: str,
        uuid: bytes,
        data: bytes,
        size: int,
        expires_at: float | None,
        stream: Stream,
        owner: DeliveryOwner,
        envelope: bytes | None = None,
    ) -> None:
        self.ident = ident
        self.uuid = uuid
        self.data: bytes | None = data
        self.envelope = envelope  # as on the wire
        self.size = size  # bytes that it takes on the wire, with its envelope
        self.expires_at = expires_at  # on the clock of the outbox, in seconds
        self.stream = stream
        self.seq = -1  # its place in its stream
        self.state = QUEUED
        self._owner = owner

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the message has ended, at most `timeout` seconds (None: as long as it takes).

        Returns whether it was delivered: the receiver's callbacks have returned. False says that it
        ended otherwise, or that the time ran out first; `state` tells which.

        May be called from any thread, and from a callback.
        """
        return self._owner.wait_for_delivery(self, timeout)

    def add_done_callback(self, function: "Callable[[Delivery], object]") -> None:
        """Let a function be called with this Delivery once the message has ended, one way or another.

        It is called on the thread that runs the peer's callbacks, once; at once and on the caller's thread where the
        message has ended already. An exception that it raises is logged, and goes to `on_error`. Several functions are
        called in the order in which they were added. A persistent message that the peer leaves in its storage when it
        is terminated has not ended: nothing is called.

        Raises LifecycleError in a forked child. May be called from any thread, and from a callback.
        """
        self._owner.watch_delivery(self, function)

    @property
    def persistent(self) -> bool:
        """Whether a storage keeps it."""
        return self.stream.durable

    @property
    def done(self) -> bool:
        """Whether the message has ended, one way or another."""
        return self.state not in OPEN_STATES

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
