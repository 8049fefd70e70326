"""`DurableOutStream`: the sending end of a durable stream: its beginning in memory, all of it in a storage.

Messages behind those in memory are *stored* alone, and are loaded as the beginning moves on. The stream does no I/O: it
says what it wants of the storage (`wants`), and is told of the results.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from netcomm.message import DELIVERED, SENT, Delivery, DeliveryState, Stream
from netcomm.protocol.batch import Entry
from netcomm.protocol.events import Load, LoadDiscarded, Mark, Renew, StorageRequest
from netcomm.protocol.frames import OVERHEAD_BYTES
from netcomm.protocol.out_stream import OutStream
from netcomm.storage import StoredMessage, StoredStream

# How much of a durable stream is kept in memory; a single larger message is loaded all the same.
_MAX_LOADED = 20_000
_MAX_LOADED_BYTES = 8 * 1024 * 1024
_LOAD_COUNT = 5_000
# How far ahead of what was appended the storage is told that messages may be sent: once for so many.
_MARK_AHEAD = 10_000


@dataclass(slots=True)
class Discarded:
    """Messages that were in the storage alone when they were discarded, and that were not read since.

    from_seq, below: where they lie.
    gone: seqs among them of messages that had ended before.
    """

    from_seq: int
    below: int
    gone: frozenset[int]


class DurableOutStream(OutStream):
    """The sending end of a durable stream: its beginning in memory, all of it in a storage.

    Where the seqs lie, while a connection stands and messages flow:

        handed over | in flight | waiting, in memory | in the storage alone | being stored |
        ------------+-----------+--------------------+----------------------+--------------+---------->  seq
                    |           |                    |                      |              |
                    |           receiver_next,       load_from              added_below    next_seq
                    |           sent_below
                    first_seq(), acknowledged_below

    `marked_below` lies at `receiver_next` or above, mostly ahead of `next_seq`: messages from it on must not be sent.

    After a restart nothing is in memory: `load_from` is 0, and `sent_below` and `in_doubt_below` are where the storage
    was marked. The receiver's first answer sets `acknowledged_below` and `arrived_below`, which may both lie above
    `load_from`. Messages below the first have ended once they are loaded, those below the second are in flight then.

    A renewal sets `sent_below` to `next_seq`: in the new epoch, everything is sent as if it had been sent before.

    load_from: messages from this seq on are in the storage alone; `stored` is how many those are.
    marked_below: messages from this seq on must not be sent before the storage knows.
    in_doubt_below: an earlier process may have sent messages below this seq, and the receiver has not yet said what it
        has.
    acknowledged_below: the receiver has handed over the messages below this seq.
    arrived_below: the receiver has the messages below this seq, though an earlier process may have sent them.
    expires_at: when the first of those that are in the storage alone may expire.
    renewing: whether the stream waits for a new epoch, since the storage was restored from a backup.

    What is discarded in the storage alone has ended at once, and is read afterwards, for callbacks to be told.
    """

    __slots__ = (
        "_asked_for",
        "_discarded_in_storage",
        "_gone",
        "_known",
        "_loading",
        "_marking",
        "_reading_discarded",
        "_renewal_asked",
        "_renewal_below",
        "acknowledged_below",
        "arrived_below",
        "expires_at",
        "in_doubt_below",
        "load_from",
        "loaded_bytes",
        "marked_below",
        "renewing",
        "stored",
    )

    def __init__(self, stream: Stream, epoch: int) -> None:
        super().__init__(stream, epoch)
        self.load_from = 0
        self.loaded_bytes = 0
        self.stored = 0
        self.marked_below = 0
        self.in_doubt_below = 0
        self.acknowledged_below = 0
        self.arrived_below = 0
        self.expires_at: float | None = None
        self.renewing = False
        self._loading = False
        self._asked_for = 0  # how many were in the storage alone when it was last asked for them
        # Seqs that have ended, or could not be stored, and that the storage may still name.
        self._gone: set[int] = set()
        self._discarded_in_storage: deque[Discarded] = deque()
        self._reading_discarded = False
        self._marking = False
        self._renewal_asked = False
        self._renewal_below = 0  # what the storage certainly had when it was asked to renew the stream
        # Deliveries that users still hold while the message is in the storage alone.
        self._known: WeakValueDictionary[int, Delivery] = WeakValueDictionary()

    @classmethod
    def restore(cls, state: StoredStream, expires_at: float | None) -> "DurableOutStream":
        """Take over what a storage has kept; `expires_at` is its first expiry, on the outbox's clock."""
        stream = cls(state.stream, state.epoch)
        stream.next_seq = stream.added_below = state.next_seq
        stream.marked_below = stream.sent_below = stream.in_doubt_below = min(state.sent_below, state.next_seq)
        stream.stored = stream.queued = state.count
        stream.queued_bytes = state.size + OVERHEAD_BYTES * state.count
        stream.expires_at = expires_at
        return stream

    def first_seq(self) -> int:
        if self.in_flight or self.waiting or not self.stored:
            return super().first_seq()
        return self.load_from

    def begins_at(self) -> int:
        # Where the first messages have expired, the receiver must not be told of more than the storage has allowed: the
        # next process would take the receiver for one that is ahead of it. A SKIP tells, in time.
        return min(self.first_seq(), self.marked_below)

    def number(self, deliveries: list[Delivery]) -> None:
        """Give messages their places at the end of the stream, before they are stored."""
        for seq, delivery in enumerate(deliveries, self.next_seq):
            delivery.seq = seq
        self.next_seq += len(deliveries)

    def add(self, deliveries: list[Delivery]) -> None:
        """Append messages that the storage has; those that were appended before are passed over."""
        below = deliveries[-1].seq + 1
        if below <= self.added_below:
            return
        room, room_bytes = self._room() if self.stored == 0 and not self._loading else (0, 0)
        size = kept_size = 0
        kept = 0  # up to the one that reaches the limit
        for delivery in deliveries:
            if kept < room and kept_size < room_bytes:
                kept += 1
                kept_size += delivery.size
            size += delivery.size
        left = deliveries[kept:]
        expires_at = self.expires_at
        for delivery in left:  # which are in the storage alone
            if delivery.expires_at is not None:
                expires_at = delivery.expires_at if expires_at is None else min(delivery.expires_at, expires_at)
            delivery.data = None
            self._known[delivery.seq] = delivery
        if kept:
            self._gone.clear()
            load_from = deliveries[kept - 1].seq + 1
        else:
            load_from = self.load_from if self.stored else left[0].seq
        count, stored, loaded = len(deliveries), len(left), deliveries[:kept]
        # As in `VolatileOutStream.close_run`: no call before the last step.
        self.added_below = below
        self.queued += count
        self.queued_bytes += size
        self.load_from = load_from
        self.loaded_bytes += kept_size
        self.stored += stored
        self.expires_at = expires_at
        self.waiting.extend(loaded)

    def known(self) -> Mapping[int, Delivery]:
        """By their seqs, the Deliveries of stored messages that users still hold."""
        return self._known if self._known else {}

    def is_stored(self, seq: int) -> bool:
        """Whether a message that the storage names as expired is there alone, has not ended, and can't have arrived."""
        return self.expirable_from() <= seq < self.added_below and seq not in self._gone

    def expirable_from(self) -> int:
        """The first seq, of those in the storage alone, that can't have arrived."""
        return max(self.load_from, self.in_doubt_below, self.arrived_below, self.untold_below)

    def load(self, deliveries: list[Delivery]) -> tuple[list[Delivery], int]:
        """Take over what was read from the storage.

        Returns what turns out to be delivered already, and how many messages should be there and are not.
        """
        self._loading = False
        delivered = []
        known = self._known if self._known else None
        for delivery in deliveries:
            if delivery.seq < self.load_from:
                continue
            if delivery.seq >= self.added_below:
                break  # stored, but its caller has not told so yet
            if delivery.seq in self._gone:
                self.load_from = delivery.seq + 1
                continue
            if known is not None:
                known.pop(delivery.seq, None)
            self.load_from = delivery.seq + 1
            self.stored -= 1
            self.loaded_bytes += delivery.size
            if delivery.seq < self.acknowledged_below:
                delivered.append(delivery)
            elif delivery.seq < self.arrived_below:
                delivery.state = SENT
                self.in_flight.append(delivery)
                self.in_flight_bytes += delivery.size
            else:
                self.waiting.append(delivery)
        self.finish(delivered, DELIVERED)
        if deliveries:
            self._gone = {seq for seq in self._gone if seq >= self.load_from}
            return delivered, 0
        missing = min(self._asked_for, self.stored)
        self.stored -= missing
        self.queued -= missing
        return [], missing

    def lose(self, seqs: list[int]) -> None:
        """Messages that were numbered could not be stored; if some were all the same, they are passed over."""
        self._gone.update(seqs)

    def expire_stored(self, deliveries: list[Delivery]) -> None:
        """Messages that are in the storage alone have expired."""
        self.forget_known(deliveries)
        self._gone.update([delivery.seq for delivery in deliveries])
        self.stored -= len(deliveries)
        self._asked_for = max(0, self._asked_for - len(deliveries))
        self.loaded_bytes += sum(delivery.size for delivery in deliveries)
        self.finish(deliveries, DeliveryState.EXPIRED)

    def discard(self) -> list[Entry]:
        discarded = super().discard()
        if self.stored:
            self._discarded_in_storage.append(Discarded(self.load_from, self.added_below, frozenset(self._gone)))
            for delivery in self._known.values():
                delivery.state = DeliveryState.DISCARDED
            self.queued = self.queued_bytes = self.stored = self._asked_for = 0
            self.expires_at = None
        self.load_from = self.added_below
        return discarded

    def read_discarded(self, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
        """The storage has read on in what was discarded; returns the messages of which callbacks are to be told."""
        self._reading_discarded = False
        part = self._discarded_in_storage[0]
        if messages and messages[-1].seq + 1 < part.below:
            part.from_seq = messages[-1].seq + 1
        else:
            self._discarded_in_storage.popleft()
        return [message for message in messages if message.seq < part.below and message.seq not in part.gone]

    def forget_known(self, deliveries: Sequence[Delivery]) -> None:
        """Messages have ended that were in the storage alone."""
        for delivery in deliveries:
            self._known.pop(delivery.seq, None)

    def unread_below(self) -> int | None:
        """All messages below this seq have ended, and some of them are in the storage still; None where none is."""
        return self._discarded_in_storage[-1].below if self._discarded_in_storage else None

    def _count_ended(self, count: int, size: int) -> None:
        super()._count_ended(count, size)
        self.loaded_bytes -= size

    def may_send_below(self) -> int:
        return self.marked_below

    def acknowledge(self, next_seq: int) -> list[Entry]:
        delivered = super().acknowledge(next_seq)
        self.acknowledged_below = max(self.acknowledged_below, next_seq)
        return delivered

    def resolve_doubt(self) -> None:
        """The receiver has said what it has, or can't: what an earlier process may have sent can expire again."""
        if self.in_doubt_below:
            self.in_doubt_below = 0
            if self.expires_at is not None or self.stored:
                self.expires_at = 0.0  # look again, at once

    def deletable_below(self) -> int:
        """The storage may forget messages below this seq: they have arrived, and have been accounted for."""
        unread = self._discarded_in_storage
        return min(self.acknowledged_below, unread[0].from_seq if unread else self.load_from)

    def wants(self, ident: str, new_epoch: Callable[[], int]) -> list[StorageRequest]:
        """What the storage has to do before messages can go on, and was not `asked` for.

        ident: the receiver.
        new_epoch: makes an epoch that the stream never had.
        """
        wanted: list[StorageRequest] = []
        if self._discarded_in_storage and not self._reading_discarded:
            from_seq = self._discarded_in_storage[0].from_seq
            wanted.append(LoadDiscarded(ident, from_seq, _LOAD_COUNT, _MAX_LOADED_BYTES // 2, self.stream))
        if self.renewing:
            if not self._renewal_asked:
                self._renewal_below = self.added_below
                wanted.append(Renew(ident, new_epoch(), self.stream))
            return wanted
        if self.receiver_next is None:
            return wanted
        if not self._marking and self.queued and self.marked_below - self._next_to_send() < _MARK_AHEAD // 2:
            wanted.append(Mark(ident, self.next_seq + _MARK_AHEAD, self.stream))
        if not self._loading and self.stored and min(self._room(2)) > 0:
            self._asked_for = self.stored
            wanted.append(Load(ident, self.load_from, _LOAD_COUNT, _MAX_LOADED_BYTES // 2, self.stream))
        return wanted

    def asked(self, request: StorageRequest, is_asked: bool = True) -> None:
        """The storage is being asked for what was wanted, and will answer; or, after all, it is not."""
        match request:
            case Load():
                self._loading = is_asked
            case LoadDiscarded():
                self._reading_discarded = is_asked
            case Mark():
                self._marking = is_asked
            case Renew():
                self._renewal_asked = is_asked

    def _next_to_send(self) -> int:
        if self.waiting:
            return self.waiting[0].seq
        return self.load_from if self.stored else self.added_below

    def marked(self, below: int) -> None:
        """The storage remembers."""
        self._marking = False
        self.marked_below = max(self.marked_below, below)

    def renew(self, epoch: int) -> None:
        """The stream has another epoch: everything is sent again, as if for the first time."""
        self.renewing = self._renewal_asked = False
        self.epoch = epoch
        self.marked_below = self._renewal_below  # what was appended since may have come behind the renewal
        self.sent_below = self.next_seq
        self.in_doubt_below = 0
        self.acknowledged_below = 0
        self.arrived_below = 0
        self.receiver_next = None

    def _room(self, share: int = 1) -> tuple[int, int]:
        """How many messages, and bytes, memory takes until it is full, or full to a share."""
        loaded = len(self.waiting) + len(self.in_flight)
        return _MAX_LOADED // share - loaded, _MAX_LOADED_BYTES // share - self.loaded_bytes
