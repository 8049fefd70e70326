"""What users send and receive: `Message` and `Delivery`."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from netcomm.errors import ConfigurationError

FLAG_PERSISTENT = 0x1
"""The message is kept in a storage until it has arrived (snakeMQ's flag of the same name and value)."""

MAX_IDENT_BYTES = 255
"""The longest ident, in bytes of UTF-8."""


class Stream(enum.IntEnum):
    """The streams of messages that run from one peer to another; each keeps its order.

    The lowest bit says whether a storage keeps the messages until they have arrived.
    """

    VOLATILE = 0
    DURABLE = 1
    BULK = 2
    BUS_VOLATILE = 4
    BUS_DURABLE = 5


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

OPEN_STATES = (QUEUED, SENT)


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
