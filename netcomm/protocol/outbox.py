"""`Outbox`: one peer's outgoing queue: order, time to live, in flight, acknowledged, over a storage.

A message is *waiting* until it is handed to a connection, then *in flight* until it is acknowledged. When the
connection breaks, a netcomm peer may or may not have what was in flight: it stays in flight, and can't
expire, until the peer has said on the next connection where it goes on. A legacy peer can't say; what was in
flight to it goes back to waiting, and is sent again.

Of the durable stream, only the beginning is in memory; what lies behind it is *stored* alone, and is loaded as the
beginning moves on. The outbox does no I/O: it says what it wants of the storage (`wants`), and is told of the results.
"""

from collections.abc import Sequence

from netcomm.errors import RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import DURABLE, Delivery, DeliveryState, Stream
from netcomm.protocol.batch import Entry
from netcomm.protocol.durable_out_stream import DurableOutStream
from netcomm.protocol.expiry import Expiry
from netcomm.protocol.frames import Ack, Begin
from netcomm.protocol.out_stream import OutStream, Receiver, VolatileOutStream


class Outbox:
    """The messages that one peer has not acknowledged.

    volatile: the volatile stream.
    durable: the durable stream, None until a message was sent on it.
    """

    __slots__ = (
        "_expiry",
        "_limits",
        "_receiver",
        "_receiver_boot",
        "_streams",
        "_turn",
        "durable",
        "volatile",
    )

    def __init__(self, limits: Limits, epoch: int) -> None:
        """Make an empty outbox; `epoch` names its volatile stream, and must be new."""
        self._limits = limits
        self.volatile = VolatileOutStream(epoch)
        self.durable: DurableOutStream | None = None
        self._streams: list[OutStream] = [self.volatile]
        self._turn = 0
        self._receiver: Receiver | None = None  # while it is connected
        self._receiver_boot: bytes | None = None  # of the process that answered BEGIN last
        self._expiry = Expiry()

    @property
    def queued(self) -> int:
        """How many messages have not ended."""
        open_run = self.volatile.open_run
        return sum([stream.queued for stream in self._streams]) + (0 if open_run is None else open_run.taken)

    @property
    def in_flight(self) -> int:
        """How many messages are in flight."""
        return sum(entry.count for stream in self._streams for entry in stream.in_flight)

    @property
    def in_flight_bytes(self) -> int:
        """The size of the messages in flight, on the wire."""
        return self.volatile.in_flight_bytes + (0 if self.durable is None else self.durable.in_flight_bytes)

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
        if expires_at is not None and expires_at <= now and self._receiver is None:
            entry.state = DeliveryState.EXPIRED
            return entry.count
        taken = self.volatile.append(entry, self._limits)
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

        They all have the same time to live.
        """
        assert self.durable is not None
        self.durable.add(deliveries)
        if deliveries[0].expires_at is not None:
            self._watch([delivery for delivery in deliveries if delivery.data is not None])

    def _watch(self, entries: Sequence[Entry]) -> None:
        """Let messages in memory expire in their time, those that have one."""
        self._expiry.watch(entries)
        # Most messages leave the queue in other ways; they are swept out before they outnumber the rest.
        if self._expiry.is_overgrown(self.queued):
            self._watch_anew()

    def _watch_anew(self) -> None:
        self._expiry.watch_anew([entry for stream in self._streams for entry in stream.expirable()])

    def connect(self, window_bytes: int, max_packet_bytes: int, boot_id: bytes) -> list[Begin]:
        """A netcomm peer is connected; returns how its streams begin."""
        if self._receiver_boot not in (None, boot_id):
            # An earlier process may have handed over what was sent, and has taken the knowledge with it.
            for stream in self._streams:
                stream.untold_below = stream.sent_below
        self._receiver_boot = boot_id
        self._receiver = Receiver(min(window_bytes, self._limits.window_bytes), max_packet_bytes, legacy=False)
        return [stream.begin() for stream in self._streams]

    def connect_legacy(self, max_packet_bytes: int) -> None:
        """A legacy peer is connected: what was in flight is sent again."""
        for stream in self._streams:
            self._requeue(stream)
            stream.receiver_next = 0
        if self.durable is not None:
            self.durable.receiver_next = self.durable.first_seq()
            self.durable.arrived_below = 0
            self.durable.resolve_doubt()
        self._receiver = Receiver(self._limits.window_bytes, max_packet_bytes, legacy=True)

    def set_durable(self, durable: DurableOutStream) -> None:
        """Have a durable stream from now on."""
        self.durable = durable
        self._streams = [durable, self.volatile]

    def open_durable(self, epoch: int) -> Begin | None:
        """Make the durable stream; returns how it begins, where it has to begin now."""
        durable = DurableOutStream(epoch)
        self.set_durable(durable)
        if self._receiver is None:
            return None
        if self._receiver.legacy:
            durable.receiver_next = 0
            return None
        return durable.begin()

    def disconnect(self) -> None:
        """The connection is gone, if it was there: a legacy peer may refuse before it counts as connected."""
        was_legacy = self._receiver is not None and self._receiver.legacy
        self._receiver = None
        self._expiry.unbind()
        for stream in self._streams:
            stream.receiver_next = None
            if was_legacy:
                stream.requeue()
        self._watch_anew()

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
        if first_answer:
            # The rest of what was in flight has not arrived, so it is sent again.
            self._requeue(state, ack.received_seq)
            state.free_discarded(ack.next_seq)
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
        receiver, streams = self._receiver, self._streams
        if receiver is None:
            return None
        in_flight_bytes = self.in_flight_bytes
        for offset in range(len(streams)):
            stream = streams[(self._turn + offset) % len(streams)]
            if stream.receiver_next is None or not stream.waiting:
                continue
            next_seq = stream.receiver_next
            other_bytes = in_flight_bytes - stream.in_flight_bytes
            batch, rejected = stream.take(budget, receiver, other_bytes, self._expiry)
            self._expiry.sent(batch)
            if batch or rejected:
                self._turn += offset + 1
                return stream.stream, stream.epoch, next_seq, batch, rejected
        return None

    def take_back(self) -> None:
        """`take` was interrupted (by Ctrl-C), or what it returned was not written: the connection is to be closed."""
        for stream in self._streams:
            stream.take_back()

    @property
    def may_expire(self) -> bool:
        """Whether there is any message that has a time to live, as far as is known without a search."""
        return self.durable is not None or bool(self._expiry)

    def next_expiry(self) -> float | None:
        """When `expire` is due, or None; of messages in the storage alone, see `DurableOutStream.expires_at`."""
        return self._expiry.next_at()

    def expire(self, now: float) -> list[Entry]:
        """End the waiting messages in memory whose time has run out; returns them."""
        expired = []
        while (entry := self._expiry.pop_due(now)) is not None:
            stream = self.durable if entry.persistent else self.volatile
            assert stream is not None
            stream.finish([entry], DeliveryState.EXPIRED)
            stream.leave_place()
            expired.append(entry)
        return expired

    def load(self, deliveries: list[Delivery]) -> tuple[list[Delivery], int]:
        """See `DurableOutStream.load`."""
        stream = self.durable
        assert stream is not None
        before = len(stream.waiting)
        result = stream.load(deliveries)
        if expirable := stream.expirable(before):
            self._watch(expirable)
        return result

    def renew(self, epoch: int) -> Begin | None:
        """The durable stream has another epoch; returns how it begins, where it has to begin now."""
        assert self.durable is not None
        self.durable.renew(epoch)
        self._requeue(self.durable)
        if self._receiver is None or self._receiver.legacy:
            return None
        return self.durable.begin()

    def discard(self) -> list[Entry]:
        """End every transient message that has not ended; returns them. Persistent ones stay in their storage."""
        return self.volatile.discard()

    def give_up(self) -> tuple[list[Entry], int]:
        """End every message that has not ended; returns those in memory, and how many are in the storage alone."""
        stored = 0 if self.durable is None else self.durable.stored
        return [entry for stream in self._streams for entry in stream.discard()], stored

    def _requeue(self, stream: OutStream, from_seq: int = 0) -> None:
        if stream.requeue(from_seq):
            self._watch_anew()
