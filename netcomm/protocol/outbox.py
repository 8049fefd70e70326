"""`Outbox`: one peer's outgoing queue: order, time to live, in flight, acknowledged, over a storage.

A message is *waiting* until it is handed to a connection, then *in flight* until it is acknowledged. When the
connection breaks, a netcomm peer may or may not have what was in flight: it stays in flight, and can't
expire, until the peer has said on the next connection where it goes on. A legacy peer can't say; what was in
flight to it goes back to waiting, and is sent again.

Of the durable stream, only the beginning is in memory; what lies behind it is *stored* alone, and is loaded as the
beginning moves on. The outbox does no I/O: it says what it wants of the storage (`wants`), and is told of the results.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from weakref import WeakValueDictionary

from netcomm.errors import RemoteProtocolError
from netcomm.message import DELIVERED, DURABLE, QUEUED, SENT, VOLATILE, Delivery, DeliveryState, Limits, Stream
from netcomm.protocol.batch import MAX_JOINING_BYTES, Run
from netcomm.protocol.events import Load, Mark, Renew, StorageRequest
from netcomm.protocol.frames import OVERHEAD_BYTES, Ack, Begin, max_data_size, packet_size
from netcomm.storage import StoredStream

Entry = Delivery | Run
"""What stands in a queue: one message, or consecutive ones of a batch."""

# How much of a durable stream is kept in memory; a single larger message is loaded all the same.
_MAX_LOADED = 20_000
_MAX_LOADED_BYTES = 8 * 1024 * 1024
_LOAD_COUNT = 5_000
# How far ahead of what was appended the storage is told that messages may be sent: once for so many.
_MARK_AHEAD = 10_000


class OutStream:
    """The sending end of one stream.

    epoch, next_seq: name the next message.
    added_below: every message below has been added, or never will be.
    sent_below: what is below may have been on the wire.
    untold_below: a process of the receiver that has died since may have handed over what is below: none of it expires.
    receiver_next: the seq that the receiver expects next on this connection, or None until it is known.
    empty_places: how many of `waiting` have expired; they keep their places, since closing each at once costs more.
    queued, queued_bytes: how many messages have not ended, and their size on the wire.
    """

    __slots__ = (
        "added_below",
        "empty_places",
        "epoch",
        "in_flight",
        "next_seq",
        "queued",
        "queued_bytes",
        "receiver_next",
        "sent_below",
        "stream",
        "untold_below",
        "waiting",
    )

    def __init__(self, stream: Stream, epoch: int) -> None:
        self.stream = stream
        self.epoch = epoch
        self.next_seq = 0
        self.added_below = 0
        self.sent_below = 0
        self.untold_below = 0
        self.receiver_next: int | None = None
        self.empty_places = 0
        self.queued = 0
        self.queued_bytes = 0
        self.waiting: deque[Entry] = deque()
        self.in_flight: deque[Entry] = deque()

    def first_seq(self) -> int:
        """The seq of the first message that has not ended; where all have, that of the next to be added."""
        if self.in_flight:
            return self.in_flight[0].seq
        return self.waiting[0].seq if self.waiting else self.added_below

    def begin(self) -> Begin:
        """The BEGIN that opens this stream on a new connection."""
        first = self.begins_at()
        self.sent_below = max(self.sent_below, first)
        return Begin(self.stream, self.epoch, first, self.sent_below)

    def begins_at(self) -> int:
        """The first seq to be named in BEGIN."""
        return self.first_seq()

    def may_send_below(self) -> int:
        """Messages below this seq may go on the wire already."""
        return self.next_seq

    def acknowledge(self, next_seq: int) -> list[Entry]:
        """The receiver has handed over all below `next_seq`; returns the messages that have ended so.

        Memory may run out at each step: then the messages that have not ended are in flight still.
        """
        delivered: list[Entry] = []
        in_flight = self.in_flight
        count = size = 0
        try:
            while in_flight and (entry := in_flight[0]).seq < next_seq:
                if isinstance(entry, Run) and entry.seq + entry.count > next_seq:
                    entry = self._split_first(entry, next_seq - entry.seq)
                delivered.append(entry)
                ended, ended_size = entry.count, entry.size
                entry.state = DELIVERED
                entry.data = None
                in_flight.popleft()
                count += ended
                size += ended_size
        finally:
            self._count_ended(count, size)
        return delivered

    def _split_first(self, run: Run, count: int) -> Run:
        """Cut off the first messages of the run that was sent first."""
        self.in_flight.appendleft(run)  # a place for them
        try:
            head = run.split(count)
        except BaseException:
            self.in_flight.popleft()
            raise
        self.in_flight[0] = head
        return head

    def _count_ended(self, count: int, size: int) -> None:
        self.queued -= count
        self.queued_bytes -= size

    def settle(self, entries: Sequence[Entry], state: DeliveryState) -> int:
        """End messages, which the caller has taken out of the queue; returns their size."""
        count = size = 0
        for entry in entries:
            size += entry.size
            count += entry.count
            entry.state = state
            if state is DELIVERED:
                entry.data = None
        self._count_ended(count, size)
        return size

    def requeue(self, from_seq: int = 0) -> list[Entry]:
        """Put what is in flight, from a seq on, back in front of what waits; returns it, the last first."""
        returned: list[Entry] = []
        in_flight = self.in_flight
        while in_flight and in_flight[-1].seq + in_flight[-1].count > from_seq:
            entry = in_flight.pop()
            if isinstance(entry, Run):
                if entry.seq < from_seq:
                    in_flight.append(entry.split(from_seq - entry.seq))
                entry.resent = True
            entry.state = QUEUED
            returned.append(entry)
        self.waiting.extendleft(returned)
        return returned

    def leave_place(self) -> None:
        """A waiting message has expired; close the empty places once they are half of what waits."""
        self.empty_places += 1
        if self.empty_places > len(self.waiting) // 2:
            self.waiting = deque([entry for entry in self.waiting if entry.state is QUEUED])
            self.empty_places = 0


class VolatileOutStream(OutStream):
    """The sending end of the volatile stream: bounded, and all of it in memory.

    open_run: the run that waits last, while messages may join it; those are counted when it is closed.
    """

    __slots__ = ("_counted", "_counted_bytes", "open_run")

    def __init__(self, epoch: int) -> None:
        super().__init__(VOLATILE, epoch)
        self.open_run: Run | None = None
        self._counted = self._counted_bytes = 0  # of the open run

    def has_room(self, size: int, limits: Limits) -> bool:
        """Whether a message of `size` bytes on the wire may be appended; if none is there, one always may.

        What has joined is counted first.
        """
        self.close_run()
        return not self.queued or (
            self.queued < limits.max_queued_messages and self.queued_bytes + size <= limits.max_queued_bytes
        )

    def append(self, entry: Entry, limits: Limits) -> Entry | None:
        """Number and append messages, as far as there is room for them; returns what was appended, cut off `entry`."""
        if self.open_run is not None:
            self.close_run()
        room = limits.max_queued_messages - self.queued
        room_bytes = limits.max_queued_bytes - self.queued_bytes
        fits = entry.count <= room and entry.size <= room_bytes
        if not fits:
            fitting = 0 if isinstance(entry, Delivery) else min(room, entry.fitting(room_bytes))
            if fitting <= 0:
                if self.queued:
                    return None
                fitting = 1
            if isinstance(entry, Run) and fitting < entry.count:
                entry = entry.split(fitting)
        count, size, seq = entry.count, entry.size, self.next_seq
        # As in `close_run`: no call before the last step.
        entry.seq = seq
        self.next_seq = self.added_below = seq + count
        self.queued += count
        self.queued_bytes += size
        self.waiting.append(entry)
        if fits and isinstance(entry, Run):
            largest = min(MAX_JOINING_BYTES, max_data_size(limits.max_frame_bytes))
            room = min(room - count, (room_bytes - size) // packet_size(largest))
            # Where these are larger, so are those that follow, as a rule.
            if size <= count * packet_size(largest) and entry.open(room, largest):
                self._counted, self._counted_bytes = count, size
                self.open_run = entry
        return entry

    def close_run(self) -> None:
        """Number and count the messages that have joined the open run; no more do."""
        run = self.open_run
        if run is None:
            return
        behind = run.close()
        next_seq = self.next_seq + run.count - self._counted
        size = run.size - self._counted_bytes
        for other in behind:
            other.seq = next_seq
            next_seq += other.count
            size += other.size
        # Here no call is in between, and so no Ctrl-C, since CPython looks for signals where calls begin and end, and
        # where loops go back. Before this, it is all done again; behind it, it is done.
        self.queued += next_seq - self.next_seq
        self.queued_bytes += size
        self.next_seq = self.added_below = next_seq
        self.open_run = None
        self.waiting.extend(behind)


class DurableOutStream(OutStream):
    """The sending end of the durable stream: its beginning in memory, all of it in a storage.

    load_from: messages from this seq on are in the storage alone; `stored` is how many those are.
    marked_below: what is above must not be sent before the storage knows.
    in_doubt_below: an earlier process may have sent what is below, and the receiver has not yet said what it has.
    acknowledged_below: the receiver has handed over what is below.
    arrived_below: the receiver has what is below, though an earlier process may have sent it.
    expires_at: when the first of those that are in the storage alone may expire.
    renewing: whether the stream waits for a new epoch, since the storage was restored from a backup.
    """

    __slots__ = (
        "_asked_for",
        "_gone",
        "_known",
        "_loading",
        "_marking",
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

    def __init__(self, epoch: int) -> None:
        super().__init__(DURABLE, epoch)
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
        self._marking = False
        self._renewal_asked = False
        self._renewal_below = 0  # what the storage certainly had when it was asked to renew the stream
        # Deliveries that users still hold while the message is in the storage alone.
        self._known: WeakValueDictionary[int, Delivery] = WeakValueDictionary()

    @classmethod
    def restore(cls, state: StoredStream, expires_at: float | None) -> "DurableOutStream":
        """Take over what a storage has kept; `expires_at` is its first expiry, on the outbox's clock."""
        stream = cls(state.epoch)
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
            else:
                self.waiting.append(delivery)
        self.settle(delivered, DELIVERED)
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
        for delivery in deliveries:
            self._known.pop(delivery.seq, None)
            self._gone.add(delivery.seq)
        self.stored -= len(deliveries)
        self._asked_for = max(0, self._asked_for - len(deliveries))
        self.loaded_bytes += sum(delivery.size for delivery in deliveries)
        self.settle(deliveries, DeliveryState.EXPIRED)

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
        """The storage may forget what is below: it has arrived, and has been accounted for."""
        return min(self.acknowledged_below, self.load_from)

    def wants(self, ident: str, new_epoch: Callable[[], int]) -> list[StorageRequest]:
        """What the storage has to do before messages can go on, and was not `asked` for.

        ident: the receiver.
        new_epoch: makes an epoch that the stream never had.
        """
        wanted: list[StorageRequest] = []
        if self.renewing:
            if not self._renewal_asked:
                self._renewal_below = self.added_below
                wanted.append(Renew(ident, new_epoch()))
            return wanted
        if self.receiver_next is None:
            return wanted
        if not self._marking and self.queued and self.marked_below - self._next_to_send() < _MARK_AHEAD // 2:
            wanted.append(Mark(ident, self.next_seq + _MARK_AHEAD))
        if not self._loading and self.stored and min(self._room(2)) > 0:
            self._asked_for = self.stored
            wanted.append(Load(ident, self.load_from, _LOAD_COUNT, _MAX_LOADED_BYTES // 2))
        return wanted

    def asked(self, request: StorageRequest, is_asked: bool = True) -> None:
        """The storage is being asked for what was wanted, and will answer; or, after all, it is not."""
        match request:
            case Load():
                self._loading = is_asked
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


class Outbox:
    """The messages that one peer has not acknowledged.

    in_flight_bytes: the size of the messages in flight, on the wire, so that even empty messages count.
    durable: the durable stream, None until a message was sent on it.
    """

    __slots__ = (
        "_connected",
        "_connected_only",
        "_expiries",
        "_legacy",
        "_limits",
        "_max_packet_bytes",
        "_order",
        "_receiver_boot",
        "_streams",
        "_turn",
        "_window_bytes",
        "durable",
        "in_flight_bytes",
        "volatile",
    )

    def __init__(self, limits: Limits, epoch: int) -> None:
        """Make an empty outbox; `epoch` names its volatile stream, and must be new."""
        self._limits = limits
        self.volatile = VolatileOutStream(epoch)
        self.durable: DurableOutStream | None = None
        self._streams: list[OutStream] = [self.volatile]
        self._turn = 0
        self._connected = False
        self._connected_only: set[Entry] = set()  # of ttl 0: they expire with the connection, and not before
        self._legacy = False
        self._window_bytes = 0
        self._max_packet_bytes = 0
        self._receiver_boot: bytes | None = None  # of the process that answered BEGIN last
        self._expiries: list[tuple[float, int, Entry]] = []
        self._order = count()  # entries are not comparable
        self.in_flight_bytes = 0

    @property
    def queued(self) -> int:
        """How many messages have not ended."""
        open_run = self.volatile.open_run
        return sum([stream.queued for stream in self._streams]) + (0 if open_run is None else open_run.joined)

    @property
    def in_flight(self) -> int:
        """How many messages are in flight."""
        return sum(entry.count for stream in self._streams for entry in stream.in_flight)

    def has_room(self, size: int) -> bool:
        """Whether a transient message of `size` bytes on the wire may be appended."""
        return self.volatile.has_room(size, self._limits)

    @property
    def has_waiting(self) -> bool:
        """Whether a message in memory waits to be sent, or for its end."""
        return bool(self.volatile.waiting) or (self.durable is not None and bool(self.durable.waiting))

    @property
    def idle(self) -> bool:
        """Whether no message is queued."""
        return not self.volatile.queued and (self.durable is None or not self.durable.queued)

    def append(self, entry: Entry, now: float) -> int:
        """Queue transient messages at the end of their stream; returns how many there was room for.

        What there was no room for is left in `entry`, if that is a Run. Messages whose time is up already (ttl 0) end
        at once, unless the peer is connected: then they wait for their turn, and expire only with the connection.
        """
        expires_at = entry.expires_at
        if expires_at is not None and expires_at <= now and not self._connected:
            entry.state = DeliveryState.EXPIRED
            return entry.count
        taken = self.volatile.append(entry, self._limits)
        if taken is None:
            return 0
        if expires_at is not None:
            if expires_at <= now:
                self._connected_only.add(taken)
            else:
                self._watch([taken])
        return taken.count

    def add_stored(self, deliveries: list[Delivery]) -> None:
        """Queue persistent messages, which are numbered and stored already, at the end of their stream.

        They all have the same time to live.
        """
        assert self.durable is not None
        self.durable.add(deliveries)
        if deliveries[0].expires_at is not None:
            self._watch([delivery for delivery in deliveries if delivery.data is not None])

    def _watch(self, entries: Sequence[Entry]) -> None:
        """Let messages in memory expire in their time, those that have one."""
        for entry in entries:
            if entry.expires_at is not None:
                heapq.heappush(self._expiries, (entry.expires_at, next(self._order), entry))
        # Most messages leave the queue in other ways; their entries are swept before they outnumber the rest.
        if len(self._expiries) > 2 * self.queued + 64:
            self._watch_expiries()

    def connect(self, window_bytes: int, max_packet_bytes: int, boot_id: bytes) -> list[Begin]:
        """A netcomm peer is connected; returns how its streams begin."""
        if self._receiver_boot not in (None, boot_id):
            # An earlier process may have handed over what was sent, and has taken the knowledge with it.
            for stream in self._streams:
                stream.untold_below = stream.sent_below
        self._receiver_boot = boot_id
        self._connected = True
        self._legacy = False
        self._window_bytes = min(window_bytes, self._limits.window_bytes)
        self._max_packet_bytes = max_packet_bytes
        return [stream.begin() for stream in self._streams]

    def connect_legacy(self, max_packet_bytes: int) -> None:
        """A legacy peer is connected: what was in flight is sent again."""
        self._connected = True
        self._window_bytes = self._limits.window_bytes
        self._max_packet_bytes = max_packet_bytes
        for stream in self._streams:
            self._requeue(stream)
            stream.receiver_next = 0
        if self.durable is not None:
            self.durable.receiver_next = self.durable.first_seq()
            self.durable.arrived_below = 0
            self.durable.resolve_doubt()
        self._legacy = True

    def set_durable(self, durable: DurableOutStream) -> None:
        """Have a durable stream from now on."""
        self.durable = durable
        self._streams = [durable, self.volatile]

    def open_durable(self, epoch: int) -> Begin | None:
        """Make the durable stream; returns how it begins, where it has to begin now."""
        durable = DurableOutStream(epoch)
        self.set_durable(durable)
        if not self._connected:
            return None
        if self._legacy:
            durable.receiver_next = 0
            return None
        return durable.begin()

    def disconnect(self) -> None:
        """The connection is gone, if it was there: a legacy peer may refuse before it counts as connected."""
        self._connected = False
        self._connected_only.clear()
        for stream in self._streams:
            stream.receiver_next = None
            if self._legacy:
                self._requeue(stream)
        self._legacy = False
        self._watch_expiries()

    def acknowledge(self, ack: Ack) -> list[Entry]:
        """The receiver says how far a stream has come; returns what that settles.

        Raises RemoteProtocolError where that was never sent.
        """
        state = self.durable if ack.stream is DURABLE else self.volatile
        if state is None:
            raise RemoteProtocolError(f"ACK of the {ack.stream.name} stream, which was not begun")
        if ack.epoch != state.epoch:
            return []  # it was on its way when a new epoch began
        first_answer = state.receiver_next is None
        if ack.received_seq > state.sent_below:
            if not first_answer or not isinstance(state, DurableOutStream):
                raise RemoteProtocolError(f"ACK of seq {ack.received_seq - 1}, which was never sent")
            # The receiver is ahead of all that this storage knows of: it was restored from a backup.
            state.renewing = True
            return []
        delivered = state.acknowledge(ack.next_seq)
        self.in_flight_bytes -= sum([entry.size for entry in delivered])
        if first_answer:
            # The rest of what was in flight has not arrived, so it is sent again.
            self._requeue(state, ack.received_seq)
            state.receiver_next = ack.received_seq
            if isinstance(state, DurableOutStream):
                state.arrived_below = ack.received_seq
                state.resolve_doubt()
        return delivered

    def take(self, budget: int) -> tuple[Stream, int, int, list[Entry], list[Entry]] | None:
        """Move waiting messages of one stream to in flight: about `budget` bytes, as far as the window allows.

        Returns the stream, its epoch, the seq that the receiver expects next, the messages to be sent, and those that
        were rejected because the receiver accepts no frame of their size; None where there is nothing.
        Streams take turns.
        """
        if self.volatile.open_run is not None:
            self.volatile.close_run()
        streams = self._streams
        for offset in range(len(streams)):
            stream = streams[(self._turn + offset) % len(streams)]
            if stream.receiver_next is None or not stream.waiting:
                continue
            next_seq = stream.receiver_next
            batch, rejected = self._take_from(stream, budget)
            if batch or rejected:
                self._turn += offset + 1
                return stream.stream, stream.epoch, next_seq, batch, rejected
        return None

    def _take_from(self, stream: OutStream, budget: int) -> tuple[list[Entry], list[Entry]]:
        batch: list[Entry] = []
        rejected: list[Entry] = []
        waiting, in_flight = stream.waiting, stream.in_flight
        in_flight_bytes = self.in_flight_bytes
        window = self._window_bytes
        may_send_below = stream.may_send_below()
        end = in_flight_bytes + budget
        limit = min(window, end)
        largest = self._max_packet_bytes
        while waiting and in_flight_bytes < end:
            entry = waiting[0]
            if entry.state is not QUEUED:
                stream.empty_places -= 1
                waiting.popleft()
                continue
            size = entry.size
            if (size > largest or in_flight_bytes + size > limit) and isinstance(entry, Run):
                count = 1 if entry.largest > largest else max(1, entry.fitting(limit - in_flight_bytes))
                if count < entry.count:
                    entry = self._split(stream, entry, count)
                    size = entry.size
            if size > largest and entry.count == 1:
                stream.settle([entry], DeliveryState.REJECTED)
                rejected.append(entry)
                waiting.popleft()
                continue
            if (in_flight_bytes and in_flight_bytes + size > window) or entry.seq >= may_send_below:
                break
            # What `take_back` finds, wherever this is interrupted.
            entry.state = SENT
            in_flight.append(entry)
            waiting.popleft()
            in_flight_bytes += size
            batch.append(entry)
        self.in_flight_bytes = in_flight_bytes
        if batch:
            if self._connected_only:
                self._connected_only.difference_update(batch)
            last = batch[-1]
            stream.receiver_next = last.seq + last.count
            stream.sent_below = max(stream.sent_below, stream.receiver_next)
        return batch, rejected

    def _split(self, stream: OutStream, run: Run, count: int) -> Run:
        """Cut off the first messages of the run that waits first; both parts expire as the whole would have."""
        head = run.split(count)
        stream.waiting.appendleft(head)
        if run in self._connected_only:
            self._connected_only.add(head)
        elif head.expires_at is not None and head.seq >= stream.untold_below:
            heapq.heappush(self._expiries, (head.expires_at, next(self._order), head))
        return head

    def take_back(self) -> None:
        """`take` was interrupted (by Ctrl-C), or what it returned was not written: the connection is to be closed.

        What is on its way from waiting to in flight goes to one of the two.
        """
        for stream in self._streams:
            waiting, in_flight = stream.waiting, stream.in_flight
            if waiting and waiting[0].state is SENT:
                if in_flight and in_flight[-1] is waiting[0]:
                    waiting.popleft()
                else:
                    waiting[0].state = QUEUED
        self.in_flight_bytes = sum(entry.size for stream in self._streams for entry in stream.in_flight)

    @property
    def may_expire(self) -> bool:
        """Whether there is any message that has a time to live, as far as is known without a search."""
        return bool(self._expiries) or self.durable is not None

    def next_expiry(self) -> float | None:
        """When `expire` is due, or None; of messages in the storage alone, see `DurableOutStream.expires_at`."""
        heap = self._expiries
        while heap and heap[0][2].state is not QUEUED:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def expire(self, now: float) -> list[Entry]:
        """End the waiting messages in memory whose time has run out; returns them."""
        expired = []
        while (when := self.next_expiry()) is not None and when <= now:
            _, _, entry = heapq.heappop(self._expiries)
            stream = self.durable if entry.persistent else self.volatile
            assert stream is not None
            stream.settle([entry], DeliveryState.EXPIRED)
            stream.leave_place()
            expired.append(entry)
        return expired

    def load(self, deliveries: list[Delivery]) -> tuple[list[Delivery], int]:
        """See `DurableOutStream.load`."""
        assert self.durable is not None
        before = len(self.durable.in_flight)
        result = self.durable.load(deliveries)
        self.in_flight_bytes += sum([entry.size for entry in islice(self.durable.in_flight, before, None)])
        self._watch_expiries()
        return result

    def renew(self, epoch: int) -> Begin | None:
        """The durable stream has another epoch; returns how it begins, where it has to begin now."""
        assert self.durable is not None
        self.durable.renew(epoch)
        self._requeue(self.durable)
        return self.durable.begin() if self._connected and not self._legacy else None

    def discard(self) -> list[Entry]:
        """End every transient message that has not ended; returns them. Persistent ones stay in their storage."""
        stream = self.volatile
        stream.close_run()
        discarded = [entry for entry in (*stream.in_flight, *stream.waiting) if not entry.done]
        self.in_flight_bytes -= sum(entry.size for entry in stream.in_flight)
        stream.settle(discarded, DeliveryState.DISCARDED)
        stream.in_flight.clear()
        stream.waiting.clear()
        stream.empty_places = 0
        return discarded

    def _requeue(self, stream: OutStream, from_seq: int = 0) -> None:
        returned = stream.requeue(from_seq)
        if returned:
            self.in_flight_bytes -= sum([entry.size for entry in returned])
            self._watch_expiries()

    def _watch_expiries(self) -> None:
        """Make the heap of expiries anew, of what waits."""
        self._expiries = [
            (entry.expires_at, next(self._order), entry)
            for stream in self._streams
            for entry in stream.waiting
            if entry.expires_at is not None
            and entry.state is QUEUED
            and entry.seq >= stream.untold_below
            and entry not in self._connected_only
        ]
        heapq.heapify(self._expiries)
