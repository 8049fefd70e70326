"""`Batch`: transient messages that were sent together; `Run`, which stands for some of them in the queue.

Of messages that join a batch later, see `open_run`.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, overload

from netcomm.message import OPEN_STATES, QUEUED, VOLATILE, Delivery, DeliveryOwner, DeliveryState, Stream

MAX_BATCH_COUNT = 1000
MAX_BATCH_BYTES = 256 * 1024
"""The most messages that a batch has, and the size that it does not exceed by more than its last message. Those that
join it later are small instead: see `open_run.MAX_JOINING_BYTES`."""


class Batch:
    """Transient messages for one receiver that were sent together: what they have in common, and their payloads.

    stream: which of the streams to the receiver they are in.
    number: the low half of the first uuid, which the others count on from; `uuid_prefix` is the high half.
    data: their payloads, None of those that were delivered, and in places that no message is in.
    states: what has become of them, as far as they are not in an open run.
    ends: where each would begin, in bytes, if they were joined, and where the last one would end; as far as `states`.
    overhead: what each takes on the wire beside its payload, in bytes; the envelope counts for each.
    owner: what their Deliveries ask to wait.
    envelope: that of the first of them, as on the wire, None where they have none; those of the others count on.
    """

    __slots__ = (
        "data",
        "ends",
        "envelope",
        "expires_at",
        "ident",
        "number",
        "overhead",
        "owner",
        "states",
        "stream",
        "uuid_prefix",
    )

    def __init__(
        self,
        ident: str,
        uuid_prefix: bytes,
        number: int,
        data: list[bytes],
        overhead: int,
        expires_at: float | None,
        owner: DeliveryOwner,
        envelope: bytes | None = None,
        stream: Stream = VOLATILE,
    ) -> None:
        self.ident = ident
        self.stream = stream
        self.uuid_prefix = uuid_prefix
        self.number = number
        self.data: list[bytes | None] = list(data)
        self.states = [QUEUED] * len(data)
        self.ends = list(accumulate(map(len, data), initial=0))
        self.overhead = overhead
        self.expires_at = expires_at
        self.owner = owner
        self.envelope = envelope

    def run(self) -> "Run":
        """All of it, to be queued."""
        return Run(self, 0, len(self.data))

    def size(self, start: int, stop: int, overhead: int) -> int:
        """The size of the messages from one place to another, with so much for each beside its payload, in bytes."""
        return self.ends[stop] - self.ends[start] + (stop - start) * overhead

    def fitting(self, start: int, stop: int, max_bytes: int, overhead: int) -> int:
        """Up to where messages from `start` on, `stop` at the most, have a size of no more than so many bytes."""
        room = max_bytes + self.ends[start] + start * overhead
        if self.ends[stop] + stop * overhead <= room:
            return stop
        return bisect_right(range(stop), room, start + 1, key=lambda place: self.ends[place] + place * overhead) - 1

    def delivery(self, index: int) -> "BatchDelivery":
        """The sender's view of the message at a place."""
        delivery = BatchDelivery()
        delivery._batch = self
        delivery._index = index
        return delivery


class Run:
    """Consecutive messages of a batch that share their state: an entry of the queue.

    start, stop: their place in the batch.
    seq: the place of the first of them in the stream; -1 before they have one.
    size: the bytes that they take on the wire, each by itself.
    resent: whether they were sent before, and the connection broke.

    While messages may join the last run of a batch, `stop` and `size` are without them: see `open_run`.
    """

    __slots__ = ("_state", "batch", "resent", "seq", "size", "start", "stop")

    persistent = False

    def __init__(self, batch: Batch, start: int, stop: int) -> None:
        self.batch = batch
        self.start = start
        self.stop = stop
        self.seq = -1
        self.resent = False
        self.size = batch.size(start, stop, batch.overhead)
        self._state = batch.states[start]

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
        return self.batch.size(self.start, self.start + 1, self.batch.overhead)

    def payloads(self) -> list[bytes]:
        """The payloads of messages that have not been delivered."""
        return self.batch.data[self.start : self.stop]  # type: ignore[return-value]

    @property
    def stream(self) -> Stream:
        """Which of the streams to the receiver they are in."""
        return self.batch.stream

    @property
    def expires_at(self) -> float | None:
        """When the messages expire, on the clock of the outbox, in seconds."""
        return self.batch.expires_at

    @property
    def envelope(self) -> bytes | None:
        """The envelope of the batch; None where its messages have none."""
        return self.batch.envelope

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
        return self._state not in OPEN_STATES

    def fitting(self, max_bytes: int) -> int:
        """How many of these messages, from the first on, take no more than so many bytes on the wire."""
        return self.batch.fitting(self.start, self.stop, max_bytes, self.batch.overhead) - self.start

    def split(self, count: int) -> "Run":
        """Cut off the first `count` messages, fewer than all, none of which has been delivered; returns them."""
        head = Run(self.batch, self.start, self.start + count)
        head.seq = self.seq
        head.resent = self.resent
        # No call is in between, and so no Ctrl-C: nothing is cut off before it can be returned.
        self.start += count
        if self.seq >= 0:  # they are numbered
            self.seq += count
        self.size -= head.size
        return head

    def deliveries(self) -> "Sequence[Delivery]":
        """One for each message."""
        return [self.batch.delivery(index) for index in range(self.start, self.stop)]


Entry = Delivery | Run
"""What stands in a queue: one message, or consecutive ones of a batch."""


class BatchDelivery(Delivery):
    """The sender's view of one message of a batch. Two views of one message are equal."""

    __slots__ = ("_batch", "_index")
    _batch: Batch
    _index: int
    # Whoever makes one sets these two: a function that does would take longer than all the rest.
    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        __init__ = object.__init__

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
    def stream(self) -> Stream:  # type: ignore[override]
        """Which of the streams to the receiver it is in."""
        return self._batch.stream

    @property
    def state(self) -> DeliveryState:  # type: ignore[override]
        """See `DeliveryState`."""
        states = self._batch.states
        return states[self._index] if self._index < len(states) else QUEUED  # those of an open run follow

    def wait(self, timeout: float | None = None) -> bool:
        """See `Delivery.wait`."""
        return self._batch.owner.wait_for_delivery(self, timeout)

    def add_done_callback(self, function: Callable[[Delivery], object]) -> None:
        """See `Delivery.add_done_callback`."""
        self._batch.owner.watch_delivery(self, function)

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
        return self._batches[number].delivery(place - (self._ends[number - 1] if number else 0))

    def __repr__(self) -> str:
        return f"<Deliveries of {len(self)} messages>"
