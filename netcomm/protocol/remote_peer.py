"""What is known of other peers, by their idents: queues, connections, counters; and the registry of all of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from netcomm.limits import Limits
from netcomm.logs import Log
from netcomm.message import Delivery, Stream
from netcomm.protocol import frames
from netcomm.protocol.admission import Contender, Present
from netcomm.protocol.batch import Entry
from netcomm.protocol.events import DELIVERIES_ENDED, Call, Delete, DeleteBelow, Dropped, Event, Received
from netcomm.protocol.inbox import Inbox
from netcomm.protocol.outbox import Outbox
from netcomm.protocol.session import Ahead, Session
from netcomm.storage import Position

log = Log("netcomm.messaging")

Emit = Callable[[Event], None]
"""Takes an event for the owner of the protocol. It is one call of C: an event comes, or it does not."""

# With fewer messages that are not acknowledged, two peers converse, and each message goes out by itself: an answer
# often comes before the acknowledgement of what it answers. With more, it is a stream, and messages go out together.
CONVERSATION = 4


@dataclass(frozen=True, slots=True)
class PeerStats:
    """What one peer has sent to another, and got from it, since it started. A snapshot.

    connected: whether messages can flow now.
    queued: messages that wait or are in flight; in_flight: those of them that are sent and not acknowledged.
    delivered, dropped: messages that have ended.
    received: messages that came from it.
    reconnects: how often it connected, after the first time.
    bytes_sent, bytes_received: over all its connections, from the identification on.
    """

    connected: bool
    queued: int
    in_flight: int
    delivered: int
    dropped: int
    received: int
    reconnects: int
    bytes_sent: int
    bytes_received: int


class Connection:
    """One connection: its session, and where it leads.

    number: names it.
    where: its other end, for the log.
    connector: which connector made it, from 1; 0 where it was accepted.
    peer: the peer that it belongs to, or waits to belong to; None until it was let in so far.
    paused: whether nothing may be read from it now. This is the decision, which `Reading` makes; the link's connection
        carries it out, a moment later.
    """

    __slots__ = ("_writable", "connector", "number", "paused", "peer", "session", "where")

    def __init__(self, number: int, session: Session, where: str, connector: int, writable: dict[int, None]) -> None:
        """writable: an ordered set of the numbers of connections that may have something to send."""
        self.number = number
        self.session = session
        self.where = where
        self.connector = connector
        self.peer: RemotePeer | None = None
        self.paused = False
        self._writable = writable

    @property
    def name(self) -> str:
        """What the log calls it."""
        ident = self.session.remote_ident
        return self.where if ident is None else f"{ident!r} at {self.where}"

    @property
    def owner(self) -> "RemotePeer":
        """The peer, of a connection that was admitted: its session lets no message through before."""
        assert self.peer is not None
        return self.peer

    @property
    def contender(self) -> Contender:
        """What counts of it when another connection has the same ident."""
        remote = self.session.remote
        if remote is None:
            return Contender(bool(self.connector), None, 0)
        return Contender(bool(self.connector), remote.boot_id, remote.connector)

    @property
    def has_output(self) -> bool:
        """Whether there may be something to send on it."""
        if self.session.has_output:
            return True
        peer = self.peer
        return peer is not None and peer.connection is self and (peer.outbox.has_waiting or peer.inbox.ack_due)

    def mark_writable(self) -> None:
        """There may be something to send on it."""
        self._writable[self.number] = None


class RemotePeer:
    """Another peer: what goes to it and comes from it, and over which connection.

    It keeps the queues in step with the connection, counts messages, and says what becomes of them.

    connection: the one that has the ident, None where none has.
    challenger: a second connection that says the same ident; it waits until the first one has shown that it lives.
    ahead: what the ping on the first one waits behind, which asks for that; None without a challenger.
    made_up: whether its ident was made up, as its latest HELLO says: no other process ever has it.
    ended_boot_id: that of the process that was connected last, once this has said that it ends; else None.
    given_up: why no message waits for it any more; None while messages do.
    bytes_sent, bytes_received: counted by the rooms that send and receive.
    """

    __slots__ = (
        "_connects",
        "_delivered",
        "_dropped",
        "_emit",
        "_received",
        "_refused",
        "_told_of_left_out",
        "_watched",
        "ahead",
        "bytes_received",
        "bytes_sent",
        "challenger",
        "connection",
        "ended_boot_id",
        "given_up",
        "ident",
        "inbox",
        "made_up",
        "outbox",
    )

    def __init__(self, ident: str, outbox: Outbox, inbox: Inbox, emit: Emit) -> None:
        self.ident = ident
        self.outbox = outbox
        self.inbox = inbox
        self._emit = emit
        self.connection: Connection | None = None
        self.challenger: Connection | None = None
        self.ahead: Ahead | None = None
        self.made_up = False
        self.ended_boot_id: bytes | None = None
        self.given_up: str | None = None
        self._refused = False
        self._told_of_left_out = False  # that it gets no envelopes
        self._watched: dict[Delivery, list[Callable[[Delivery], object]]] = {}
        self._delivered = self._dropped = self._received = self._connects = 0
        self.bytes_sent = self.bytes_received = 0

    @property
    def connected(self) -> bool:
        """Whether messages can flow."""
        return self.connection is not None and self.connection.session.established

    @property
    def has_small_backlog(self) -> bool:
        """Whether so few messages are queued that each should go out by itself."""
        return self.outbox.volatile.queued < CONVERSATION

    @property
    def may_be_forgotten(self) -> bool:
        """Whether nothing would be lost with it, but what recognises volatile messages that are sent again."""
        return (
            self.connection is None
            and self.outbox.idle
            and self.inbox.is_empty
            # From a process that is gone, nothing comes that a position could be missed for.
            and (not self.inbox.has_position or self.given_up is not None)
            and not self.outbox.durables
        )

    def next_expiry(self) -> float | None:
        """When a message to it may expire, in memory or in the storage, or None."""
        when = self.outbox.next_expiry()
        for durable in self.outbox.durables.values():
            if durable.expires_at is not None:
                when = durable.expires_at if when is None else min(when, durable.expires_at)
        return when

    def stats(self) -> PeerStats:
        """A snapshot."""
        return PeerStats(
            connected=self.connected,
            queued=self.outbox.queued,
            in_flight=self.outbox.in_flight,
            delivered=self._delivered,
            dropped=self._dropped,
            received=self._received,
            reconnects=max(0, self._connects - 1),
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
        )

    # -- Its connection ---------------------------------------------------------------------------------------

    @property
    def present(self) -> Present | None:
        """What counts of its connection when another one has the same ident; None where it has none."""
        if self.connection is None:
            return None
        return Present(self.connection.contender, self.connection.paused, self.challenger is not None)

    def admit(self, connection: Connection, limits: Limits, now: float) -> None:
        """A connection gets the ident, which no other has now."""
        connection.peer = self
        self.connection = connection
        self._refused = False
        self.ended_boot_id = self.given_up = None
        session = connection.session
        session.admit()
        self.made_up = session.remote is not None and session.remote.made_up
        if session.remote is None:
            # Established once it has kept the connection for a moment, or has sent something. A snakeMQ peer that
            # refuses an ident closes without a word, and crashes on whatever comes behind it.
            session.wait_for_refusal(now)
        else:
            max_packet_bytes = frames.max_packet_size(min(session.remote.max_frame_bytes, limits.max_frame_bytes))
            for frame in self.outbox.connect(session.remote.window_bytes, max_packet_bytes, session.remote.boot_id):
                session.begin(frame)
        connection.mark_writable()

    def establish(self, limits: Limits) -> None:
        """The other side has accepted its connection: messages may flow."""
        connection = self.connection
        assert connection is not None
        connection.session.establish()
        if connection.session.legacy:
            self.outbox.connect_legacy(frames.max_packet_size(limits.max_frame_bytes))
        connection.mark_writable()
        self._connects += 1

    def disconnect(self) -> None:
        """Its connection is gone."""
        self.connection = None
        self.outbox.disconnect()
        self.inbox.disconnect()

    def challenge(self, challenger: Connection, ahead: Ahead) -> None:
        """A second connection waits until the first one has shown that it lives."""
        challenger.peer = self
        self.challenger = challenger
        self.ahead = ahead

    def take_challenger(self) -> Connection | None:
        """No connection waits any more; returns the one that did."""
        challenger, self.challenger, self.ahead = self.challenger, None, None
        return challenger

    def note_refusal(self) -> bool:
        """A connection with its ident is refused; returns whether one was before, since one was admitted."""
        before, self._refused = self._refused, True
        return before

    def begin(self, frame: frames.Begin | None) -> None:
        """Tell it where a stream begins, if it is to be told now."""
        if frame is not None:
            assert self.connection is not None
            self.connection.session.begin(frame)
            self.connection.mark_writable()

    def mark_writable(self) -> None:
        """There may be something to send to it, where it has a connection."""
        if self.connection is not None:
            self.connection.mark_writable()

    # -- Messages from it -------------------------------------------------------------------------------------

    def receive(self, data: frames.Data) -> None:
        """Messages have come from it. Raises RemoteProtocolError."""
        state, fresh = self.inbox.accept(data)
        runs, payloads = fresh.runs, fresh.payloads
        if not payloads:
            return
        try:
            size = _size(payloads) + fresh.envelope_bytes
            received = Received(self.ident, fresh.stream, state.epoch, state.redelivered_below, runs, payloads, size)
            received.envelope_bytes = fresh.envelope_bytes
            self._note_received(received)
        except BaseException:  # no memory, perhaps: they have not come
            state.next_seq -= len(payloads)
            raise

    def receive_legacy(self, frame: frames.Messages) -> None:
        """Messages have come from it, as a snakeMQ peer sends them."""
        items = frame.items
        runs: list[frames.MessageRun] = [(0, 1, uuid, ttl, flags, None) for uuid, ttl, flags, _ in items]
        payloads = [item[3] for item in items]
        self._note_received(Received(self.ident, None, 0, 0, runs, payloads, _size(payloads)))

    def _note_received(self, received: Received) -> None:
        pending_bytes, stream = self.inbox.pending_bytes, received.stream
        count, pending = len(received.payloads), pending_bytes[stream] + received.size
        self._emit(received)
        # No call is behind that, which could fail: all of it has happened, or nothing.
        self._received += count
        pending_bytes[stream] = pending

    def mark_handled(self, received: Received, start: int, stop: int) -> Position | None:
        """The callbacks of messages `start` to `stop` of these have returned.

        Returns the position that has to be stored before the peer may be told, if one has to be.
        """
        payloads = received.payloads
        whole = stop - start == len(payloads)
        self.inbox.pending_bytes[received.stream] -= received.size if whole else _size(payloads[start:stop])
        if received.envelope_bytes and not whole:
            self.inbox.pending_bytes[received.stream] -= frames.envelope_bytes(received.runs, start, stop)
        if received.stream is None:
            return None
        return self.inbox.mark_handled(received.stream, received.epoch, received.runs[0][0] + stop)

    def let_go(self, stream: Stream, messages: Sequence[Received]) -> bool:
        """It has left, and these messages of a stream, all that were not handed over, are to be forgotten.

        Returns False where it is back, and has begun the stream again.
        """
        if not self.inbox.let_go(stream):
            return False
        self.inbox.pending_bytes[stream] -= sum(received.size for received in messages)
        return True

    # -- Messages to it ---------------------------------------------------------------------------------------

    def note_left_out(self, batch: Sequence[Entry]) -> None:
        """Messages go to it as a snakeMQ peer: the first time that one has an envelope, say that it is left out."""
        if not self._told_of_left_out and any(entry.envelope is not None for entry in batch):
            self._told_of_left_out = True
            log.warning(
                "%r is a snakeMQ peer: the subject and the headers of messages for it are left out. Put what it needs"
                " into the data, or let it use netcomm",
                self.ident,
            )

    def deliver(self, delivered: Sequence[Entry]) -> None:
        """Messages of a stream have ended: it has handled them."""
        if not delivered:
            return
        for entry in delivered:
            self._delivered += entry.count
        self._emit(DELIVERIES_ENDED)
        if self._watched:
            self._call_watchers([delivery for entry in delivered for delivery in entry.deliveries()])
        stream = delivered[0].stream
        if stream in self.outbox.durables:
            self._emit(DeleteBelow(self.ident, self.outbox.durables[stream].deletable_below(), stream))

    def watch(self, delivery: Delivery, function: Callable[[Delivery], object]) -> None:
        """Let a function be called with a Delivery once the message, which has not ended, has."""
        self._watched.setdefault(delivery, []).append(function)

    def call_watchers(self) -> None:
        """Messages have ended that `drop` is told of later: those in the storage alone."""
        self._call_watchers([delivery for delivery in self._watched if delivery.done])

    def _call_watchers(self, ended: Sequence[Delivery]) -> None:
        for delivery in ended:
            for function in self._watched.pop(delivery, ()):
                self._emit(Call(function, delivery))

    def reject(self, rejected: Sequence[Entry], limits: Limits) -> bool:
        """Messages have ended: they are larger than it accepts; returns whether the storage has some of them.

        limits: of this side, which hold for a snakeMQ peer, too.
        """
        assert self.connection is not None
        remote = self.connection.session.remote
        stream = rejected[0].stream
        if remote is None and stream > Stream.DURABLE:
            log.warning(
                "%d messages for %r rejected: it speaks snakeMQ's protocol, which has nothing but plain messages",
                len(rejected),
                self.ident,
            )
        else:
            log.warning(
                "%d messages for %r rejected: larger than it accepts (frames of %d bytes)",
                len(rejected),
                self.ident,
                limits.max_frame_bytes if remote is None else remote.max_frame_bytes,
            )
        return self.drop(rejected)

    def drop(self, entries: Sequence[Entry]) -> bool:
        """Messages have ended without being delivered; returns whether the storage has some of them."""
        if not entries:
            return False
        deliveries: list[Delivery] = [delivery for entry in entries for delivery in entry.deliveries()]
        self._dropped += len(deliveries)
        self._emit(Dropped(deliveries))
        if self._watched:
            self._call_watchers(deliveries)
        stored: dict[Stream, list[int]] = {}
        for delivery in deliveries:
            if delivery.persistent:
                stored.setdefault(delivery.stream, []).append(delivery.seq)
        for stream, seqs in stored.items():
            self._emit(Delete(self.ident, seqs, stream))
        return bool(stored)


class RemotePeers:
    """All peers that are known, by ident.

    get: called with an ident, returns the peer, or None where it is not known.
    """

    __slots__ = ("_by_ident", "_emit", "_forgotten", "_limits", "_next_epoch", "_stores_positions", "get")

    def __init__(
        self,
        limits: Limits,
        first_epoch: int,
        stores_positions: bool,
        emit: Emit,
        forgotten: Callable[[str], object],
    ) -> None:
        """Make it, without peers.

        first_epoch: a 63-bit number that no other process of this ident has used.
        stores_positions: whether there is a storage that takes positions.
        emit: takes what becomes of messages.
        forgotten: called with the ident of a peer that is known no more.
        """
        self._limits = limits
        self._next_epoch = first_epoch
        self._stores_positions = stores_positions
        self._emit = emit
        self._forgotten = forgotten
        self._by_ident: dict[str, RemotePeer] = {}
        self.get = self._by_ident.get

    def __getitem__(self, ident: str) -> RemotePeer:
        return self._by_ident[ident]

    def __iter__(self) -> Iterator[RemotePeer]:
        return iter(self._by_ident.values())

    def get_or_add(self, ident: str) -> RemotePeer:
        """The peer of an ident."""
        peer = self._by_ident.get(ident)
        if peer is None:
            self._forget_idle_peers()
            inbox = Inbox(self._stores_positions)
            peer = self._by_ident[ident] = RemotePeer(ident, Outbox(self._limits, self.new_epoch()), inbox, self._emit)
        return peer

    def open_stream(self, peer: RemotePeer, stream: Stream) -> None:
        """Let messages of a stream go to a peer, if they could not before."""
        outbox = peer.outbox
        if stream not in outbox.volatiles and stream not in outbox.durables:
            peer.begin(peer.outbox.open(stream, self.new_epoch()))

    def new_epoch(self) -> int:
        """An epoch that no stream has had."""
        epoch = self._next_epoch
        self._next_epoch = (epoch + 1) % 2**63
        return epoch

    def _forget_idle_peers(self) -> None:
        """Keep strangers' idents from filling the memory: the oldest of too many idle peers are forgotten.

        Those that were given up come first, for they don't come back, as a rule.
        To a forgotten peer, and from it, volatile streams begin anew: what it sends again is not recognised.
        """
        excess = len(self._by_ident) - self._limits.max_idle_peers
        if excess <= 0:
            return
        excess += self._limits.max_idle_peers // 10  # so that not every new peer makes it search
        idle = [peer for peer in self if peer.may_be_forgotten]
        idle.sort(key=lambda peer: peer.given_up is None)  # and among equals, the oldest first
        for ident in [peer.ident for peer in idle[:excess]]:
            del self._by_ident[ident]
            self._forgotten(ident)

    def watch(self, delivery: Delivery, function: Callable[[Delivery], object]) -> bool:
        """Let a function be called with a Delivery once the message has ended: see `Messaging.call_soon`.

        Returns False where it has ended already.
        """
        if delivery.done:
            return False
        self.get_or_add(delivery.ident).watch(delivery, function)
        return True

    # -- What the peer's users ask ----------------------------------------------------------------------------

    def has_room(self, ident: str, stream: Stream, size: int) -> bool:
        """Whether a transient message of `size` bytes on the wire may be queued in a stream to `ident` now."""
        peer = self._by_ident.get(ident)
        return peer is None or peer.outbox.has_room(stream, size)

    def has_small_backlog(self, ident: str) -> bool:
        """Whether so few messages are queued for `ident` that each should go out by itself."""
        peer = self._by_ident.get(ident)
        return peer is None or peer.has_small_backlog

    @property
    def idle(self) -> bool:
        """Whether nothing is queued for anybody."""
        return all(peer.outbox.idle for peer in self)

    @property
    def may_end(self) -> bool:
        """Whether ending now would neither discard a message, nor leave one behind that can be delivered now."""
        return not any(peer.outbox.queued if peer.connected else peer.outbox.transient for peer in self)

    def connected_idents(self) -> list[str]:
        """The peers that messages can flow to, in the order of their names."""
        return sorted(peer.ident for peer in self if peer.connected)

    def is_connected(self, ident: str) -> bool:
        """Whether messages can flow to a peer."""
        peer = self._by_ident.get(ident)
        return peer is not None and peer.connected

    def stats(self) -> dict[str, PeerStats]:
        """A snapshot, by ident."""
        return {peer.ident: peer.stats() for peer in self}


def _size(payloads: list[bytes]) -> int:
    return sum(map(len, payloads)) + frames.OVERHEAD_BYTES * len(payloads)
