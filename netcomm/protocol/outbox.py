"""`Outbox`: one peer's outgoing queue: order, time to live, in flight, acknowledged, over a storage.

A message is *waiting* until it is handed to a connection, then *in flight* until it is acknowledged. When the
connection breaks, a netcomm peer may or may not have what was in flight: it stays in flight, and can't
expire, until the peer has said on the next connection where it goes on. A legacy peer can't say; what was in
flight to it goes back to waiting, and is sent again.

Of a durable stream, only the beginning is in memory; what lies behind it is *stored* alone, and is loaded as the
beginning moves on. The outbox does no I/O: each durable stream says what it wants of the storage (`wants`), and is told
of the results.

Streams take turns, but for the stream BULK, whose messages go out where no other message can.
"""

from collections.abc import Iterator, Sequence

from netcomm.errors import RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import BULK, VOLATILE, Delivery, DeliveryState, Stream
from netcomm.protocol.batch import Entry
from netcomm.protocol.durable_out_stream import DurableOutStream
from netcomm.protocol.expiry import Expiry
from netcomm.protocol.frames import Ack, Begin
from netcomm.protocol.out_stream import OutStream, Receiver, VolatileOutStream

# Of the stream BULK, so much goes out before the next look whether another message waits.
_BULK_BUDGET_BYTES = 64 * 1024


class Outbox:
    """The messages that one peer has not acknowledged.

    volatile: the stream VOLATILE, which is always there.
    volatiles, durables: by stream, the sending ends of streams of either kind: those that a message was sent on, and
        VOLATILE.
    """

    __slots__ = (
        "_all",
        "_bulk",
        "_expiry",
        "_limits",
        "_receiver",
        "_receiver_boot",
        "_streams",
        "_turn",
        "durables",
        "volatile",
        "volatiles",
    )

    def __init__(self, limits: Limits, epoch: int) -> None:
        """Make an empty outbox; `epoch` names its stream VOLATILE, and must be new."""
        self._limits = limits
        self.volatile = VolatileOutStream(VOLATILE, epoch)
        self.volatiles = {VOLATILE: self.volatile}
        self.durables: dict[Stream, DurableOutStream] = {}
        self._streams: list[OutStream] = [self.volatile]  # those that take turns
        self._bulk: VolatileOutStream | None = None
        self._all: tuple[OutStream, ...] = (self.volatile,)
        self._turn = 0
        self._receiver: Receiver | None = None  # while it is connected
        self._receiver_boot: bytes | None = None  # of the process that answered BEGIN last
        self._expiry = Expiry()

    @property
    def queued(self) -> int:
        """How many messages have not ended."""
        open_run = self.volatile.open_run
        return sum([stream.queued for stream in self]) + (0 if open_run is None else open_run.taken)

    @property
    def in_flight(self) -> int:
        """How many messages are in flight."""
        return sum(entry.count for stream in self for entry in stream.in_flight)

    def has_room(self, stream: Stream, size: int) -> bool:
        """Whether a transient message of `size` bytes on the wire may be appended to a stream."""
        out = self.volatiles.get(stream)
        return out is None or out.has_room(size, self._limits)

    @property
    def has_waiting(self) -> bool:
        """Whether a message in memory waits to be sent, or for its end."""
        if self.volatile.waiting:
            return True
        return len(self._all) > 1 and any(stream.waiting for stream in self)

    @property
    def idle(self) -> bool:
        """Whether no message is queued."""
        if self.volatile.queued:
            return False
        return len(self._all) == 1 or not any(stream.queued for stream in self)

    @property
    def transient(self) -> int:
        """How many messages that no storage keeps have not ended, but for those that have joined an open run."""
        return sum([stream.queued for stream in self.volatiles.values()])

    def __iter__(self) -> Iterator[OutStream]:
        return iter(self._all)

    def append(self, entry: Entry, now: float) -> int:
        """Queue transient messages at the end of their stream, which is open; returns how many there was room for.

        What there was no room for is left in `entry`, if that is a Run. Messages whose time is up already (ttl 0) end
        at once, unless the peer is connected: then they wait for their turn, and expire only with the connection.
        """
        expires_at = entry.expires_at
        if expires_at is not None and expires_at <= now and self._receiver is None:
            entry.state = DeliveryState.EXPIRED
            return entry.count
        taken = self.volatiles[entry.stream].append(entry, self._limits)
        if taken is None:
            return 0
        if expires_at is not None:
            if expires_at <= now:
                self._expiry.bind_to_connection(taken)
            else:
                self._watch([taken])
        return taken.count

    def add_stored(self, deliveries: list[Delivery]) -> None:
        """Queue persistent messages, which are numbered and stored already, at the end of their stream.

        They all are of one stream, and have the same time to live.
        """
        self.durables[deliveries[0].stream].add(deliveries)
        if deliveries[0].expires_at is not None:
            self._watch([delivery for delivery in deliveries if delivery.data is not None])

    def _watch(self, entries: Sequence[Entry]) -> None:
        """Let messages in memory expire in their time, those that have one."""
        self._expiry.watch(entries)
        # Most messages leave the queue in other ways; they are swept out before they outnumber the rest.
        if self._expiry.is_overgrown(self.queued):
            self._watch_anew()

    def _watch_anew(self) -> None:
        self._expiry.watch_anew([entry for stream in self for entry in stream.expirable()])

    def connect(self, window_bytes: int, max_packet_bytes: int, boot_id: bytes) -> list[Begin]:
        """A netcomm peer is connected; returns how its streams begin."""
        if self._receiver_boot not in (None, boot_id):
            # An earlier process may have handed over what was sent, and has taken the knowledge with it.
            for stream in self:
                stream.untold_below = stream.sent_below
        self._receiver_boot = boot_id
        self._receiver = self._make_receiver(window_bytes, max_packet_bytes, legacy=False)
        return [stream.begin() for stream in self]

    def connect_legacy(self, max_packet_bytes: int) -> None:
        """A legacy peer is connected: what was in flight is sent again."""
        for stream in self:
            self._requeue(stream)
            stream.receiver_next = 0
        for durable in self.durables.values():
            durable.receiver_next = durable.first_seq()
            durable.arrived_below = 0
            durable.resolve_doubt()
        self._receiver = self._make_receiver(self._limits.window_bytes, max_packet_bytes, legacy=True)

    def _make_receiver(self, window_bytes: int, max_packet_bytes: int, *, legacy: bool) -> Receiver:
        window = min(window_bytes, self._limits.window_bytes)
        bulk_window = min(window, self._limits.bulk_window_bytes)
        return Receiver(window, bulk_window, max_packet_bytes, 0 if legacy else max_packet_bytes, legacy)

    def add(self, out: DurableOutStream | VolatileOutStream) -> None:
        """Have another stream from now on."""
        if isinstance(out, DurableOutStream):
            self.durables[out.stream] = out
        else:
            self.volatiles[out.stream] = out
        if isinstance(out, VolatileOutStream) and out.stream is BULK:
            self._bulk = out
        else:
            self._streams.insert(0, out)
        self._all = (*self._streams, self._bulk) if self._bulk is not None else tuple(self._streams)

    def open(self, stream: Stream, epoch: int) -> Begin | None:
        """Make a stream; returns how it begins, where it has to begin now."""
        out = DurableOutStream(stream, epoch) if stream.durable else VolatileOutStream(stream, epoch)
        self.add(out)
        if self._receiver is None:
            return None
        if self._receiver.legacy:
            out.receiver_next = 0
            return None
        return out.begin()

    def disconnect(self) -> None:
        """The connection is gone, if it was there: a legacy peer may refuse before it counts as connected."""
        was_legacy = self._receiver is not None and self._receiver.legacy
        self._receiver = None
        self._expiry.unbind()
        for stream in self:
            stream.receiver_next = None
            if was_legacy:
                stream.requeue()
        self._watch_anew()

    def acknowledge(self, ack: Ack) -> list[Entry]:
        """The receiver says how far a stream has come; returns what that settles.

        Raises RemoteProtocolError where that was never sent.
        """
        state = self.volatiles.get(ack.stream) or self.durables.get(ack.stream)
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
        if first_answer:
            # The rest of what was in flight has not arrived, so it is sent again. That comes first: of what was
            # discarded in flight, what has arrived may be acknowledged as well.
            self._requeue(state, ack.received_seq)
        delivered = state.acknowledge(ack.next_seq)
        if first_answer:
            state.receiver_next = ack.received_seq
            if isinstance(state, DurableOutStream):
                state.arrived_below = ack.received_seq
                state.resolve_doubt()
        return delivered

    def take(self, budget: int) -> tuple[Stream, int, int, list[Entry], list[Entry]] | None:
        """Move waiting messages of one stream to in flight: about `budget` bytes, as far as the window allows.

        Returns the stream, its epoch, the seq that the receiver expects next, the messages to be sent, and those that
        were rejected because the receiver accepts no frame of their size; None where there is nothing.
        """
        if self.volatile.open_run is not None:
            self.volatile.close_run()
        receiver, streams = self._receiver, self._streams
        if receiver is None:
            return None
        for offset in range(len(streams)):
            stream = streams[(self._turn + offset) % len(streams)]
            if stream.receiver_next is None or not stream.waiting:
                continue
            taken = self._take_of(stream, budget, receiver)
            if taken is not None:
                self._turn += offset + 1
                return taken
        bulk = self._bulk
        if bulk is None or bulk.receiver_next is None or not bulk.waiting:
            return None
        return self._take_of(bulk, _BULK_BUDGET_BYTES, receiver)

    def _take_of(
        self, stream: OutStream, budget: int, receiver: Receiver
    ) -> tuple[Stream, int, int, list[Entry], list[Entry]] | None:
        next_seq = stream.receiver_next
        assert next_seq is not None
        batch, rejected = stream.take(budget, receiver, self._expiry)
        self._expiry.sent(batch)
        if batch or rejected:
            return stream.stream, stream.epoch, next_seq, batch, rejected
        return None

    def take_back(self) -> None:
        """`take` was interrupted (by Ctrl-C), or what it returned was not written: the connection is to be closed."""
        for stream in self:
            stream.take_back()

    @property
    def may_expire(self) -> bool:
        """Whether there is any message that has a time to live, as far as is known without a search."""
        return bool(self.durables) or bool(self._expiry)

    def next_expiry(self) -> float | None:
        """When `expire` is due, or None; of messages in the storage alone, see `DurableOutStream.expires_at`."""
        return self._expiry.next_at()

    def expire(self, now: float) -> list[Entry]:
        """End the waiting messages in memory whose time has run out; returns them."""
        expired = []
        while (entry := self._expiry.pop_due(now)) is not None:
            stream = self.durables[entry.stream] if entry.stream.durable else self.volatiles[entry.stream]
            stream.finish([entry], DeliveryState.EXPIRED)
            stream.leave_place()
            expired.append(entry)
        return expired

    def load(self, stream: Stream, deliveries: list[Delivery]) -> tuple[list[Delivery], int]:
        """See `DurableOutStream.load`."""
        durable = self.durables[stream]
        before = len(durable.waiting)
        result = durable.load(deliveries)
        if expirable := durable.expirable(before):
            self._watch(expirable)
        return result

    def renew(self, stream: Stream, epoch: int) -> Begin | None:
        """A durable stream has another epoch; returns how it begins, where it has to begin now."""
        durable = self.durables[stream]
        durable.renew(epoch)
        self._requeue(durable)
        if self._receiver is None or self._receiver.legacy:
            return None
        return durable.begin()

    def discard(self) -> list[Entry]:
        """End every transient message that has not ended; returns them. Persistent ones stay in their storage."""
        return [entry for stream in self.volatiles.values() for entry in stream.discard()]

    def give_up(self) -> tuple[list[Entry], int]:
        """End every message that has not ended; returns those in memory, and how many are in the storage alone."""
        stored = sum([durable.stored for durable in self.durables.values()])
        return [entry for stream in self for entry in stream.discard()], stored

    def _requeue(self, stream: OutStream, from_seq: int = 0) -> None:
        if stream.requeue(from_seq):
            self._watch_anew()
