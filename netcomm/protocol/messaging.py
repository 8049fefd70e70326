"""`Messaging`: the messages of one peer, over all its connections: in and out, and what falls due.

It has no socket, no thread, no clock and no random source: the caller hands in what the connections said, and the
time, in seconds of a clock that is never set. What is to be done comes back as events, which `Node` acts on:

- `next_events()`: what happened, in order.
- `take_writable()` and `output()`: which connections have something to send, and what.
- `deadline()`: when `tick()` is due, or None.

None of it is thread-safe; `netcomm.runtime.loop` holds a lock around it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from netcomm.deadlines import Action, Deadlines
from netcomm.limits import Limits
from netcomm.message import VOLATILE, Delivery, DeliveryOwner, DeliveryState, Stream
from netcomm.protocol import encode, frames
from netcomm.protocol.batch import Entry
from netcomm.protocol.diagnosis import Diagnosis
from netcomm.protocol.discarding import Discarding
from netcomm.protocol.events import Call, Event, Received, StorageRequest
from netcomm.protocol.open_run import OpenRun
from netcomm.protocol.remote_peer import Connection, RemotePeer, RemotePeers
from netcomm.protocol.session import Session
from netcomm.protocol.sessions import Sessions
from netcomm.protocol.storage_sync import StorageSync
from netcomm.storage import Position, StoredStream

# A message of so many bytes is worth a system call of its own.
URGENT_BYTES = 128 * 1024


def _unknown(number: int) -> tuple[int, int]:
    return 0, 0


class Messaging:
    """The protocol of one peer, over any number of connections.

    sessions: the connections, from their beginning to their end.
    peers: what is known of other peers.
    storage_sync: what the storage knows, and is asked for.
    deadline: called without arguments, returns when `tick` is due, or None.
    urgent: whether, since the last `take_writable`, a message was queued that should not wait for others.
    open_runs: by ident, what further transient messages that never expire may join, without a lock: see `OpenRun`. They
        wait for what the loop does next, or for an acknowledgement, and go out with those that wait already.
    """

    def __init__(
        self,
        ident: str,
        limits: Limits,
        *,
        peer_id: bytes,
        boot_id: bytes,
        first_epoch: int,
        owner: DeliveryOwner,
        progress: Callable[[int], tuple[int, int]] = _unknown,
        stores_positions: bool = False,
        made_up: bool = False,
    ) -> None:
        """Make it, without connections.

        peer_id, boot_id: 16 bytes each, as in HELLO.
        first_epoch: a 63-bit number that no other process of this ident has used.
        owner: of the Deliveries of messages that come from the storage.
        progress: says of a connection how many bytes of its output were written, and how many of them the other side's
            system has taken. It is called when an answer to a ping is overdue, and before one is sent. By default,
            nobody knows, and only what arrives is a sign of life.
        stores_positions: whether there is a storage that takes positions.
        made_up: whether the ident was made up: no other process ever has it.
        """
        self._limits = limits
        self._events: list[Event] = []  # always this list: the rooms append to it
        emit = self._events.append
        self._deadlines: Deadlines[Action] = Deadlines()
        self.deadline = self._deadlines.next
        self.peers = RemotePeers(limits, first_epoch, stores_positions, emit, self._forgotten)
        self.storage_sync = StorageSync(self.peers, emit, owner)
        self._diagnosis = Diagnosis(self.peers, self._deadlines, limits.diagnose_after_s)
        self.sessions = Sessions(
            ident,
            limits,
            peer_id=peer_id,
            boot_id=boot_id,
            made_up=made_up,
            peers=self.peers,
            deadlines=self._deadlines,
            emit=emit,
            progress=progress,
            handlers={
                frames.Data: self._receive,
                frames.Messages: self._receive_legacy,
                frames.Ack: self._acknowledge,
            },
            on_connected=self._connected,
            on_disconnected=self._disconnected,
        )
        self._writable = self.sessions.writable
        self.urgent = False
        self.open_runs: dict[str, OpenRun] = {}
        self._discarding = Discarding(limits, self.peers, self.storage_sync, self._deadlines, self.open_runs, emit)

    def restore(
        self,
        streams: Iterable[StoredStream],
        positions: Mapping[tuple[str, Stream], Position],
        now: float,
        wall_now: float,
    ) -> None:
        """Take over what a storage has kept. `wall_now` is the system's time in seconds since the epoch."""
        for peer in self.storage_sync.restore(streams, positions, now, wall_now):
            self._watch_expiry(peer)
            self._diagnosis.messages_wait(peer, now)

    # -- Who is connected, and who is known -------------------------------------------------------------------

    def _connected(self, peer: RemotePeer, now: float) -> None:
        self.storage_sync.ask(peer)
        self._diagnosis.connected(peer, now)

    def _disconnected(self, peer: RemotePeer, now: float) -> None:
        self._watch_expiry(peer)
        self._discarding.disconnected(peer, now)
        if peer.challenger is None:  # which gets the ident next
            self._diagnosis.messages_wait(peer, now)

    def _forgotten(self, ident: str) -> None:
        self.open_runs.pop(ident, None)
        self._diagnosis.forget(ident)
        self._discarding.forget(ident)

    # -- Messages in ------------------------------------------------------------------------------------------

    def _receive(self, connection: Connection, data: frames.Data, now: float) -> None:
        connection.owner.receive(data)
        self.sessions.reading.pause_if_full(connection, data.stream)

    def _receive_legacy(self, connection: Connection, frame: frames.Messages, now: float) -> None:
        connection.owner.receive_legacy(frame)
        self.sessions.reading.pause_if_full(connection, None)

    def mark_handled(self, received: Received, start: int, stop: int, now: float) -> None:
        """The callbacks of messages `start` to `stop` of these have returned; all before have been named before."""
        peer = self.peers[received.ident]
        position = peer.mark_handled(received, start, stop)
        if position is not None:
            self.storage_sync.store_position(peer, position)
        connection = peer.connection
        if connection is not None:
            connection.mark_writable()
            if connection.paused:
                self.sessions.resume(connection, now)

    # -- Messages out -----------------------------------------------------------------------------------------

    def send(self, ident: str, entry: Entry, now: float) -> int:
        """Queue transient messages for `ident`; returns how many were taken: as many as there is room for.

        What was not taken is left in `entry`, if that is a Run.
        """
        peer = self.peers.get(ident) or self.peers.get_or_add(ident)
        if peer.given_up is not None:
            self._discarding.refuse(peer, entry)
            return entry.count
        self.urgent = self.urgent or peer.has_small_backlog or entry.size >= URGENT_BYTES
        if entry.stream is not VOLATILE:
            self.peers.open_stream(peer, entry.stream)
        taken = peer.outbox.append(entry, now)
        if peer.outbox.volatile.open_run is not None:
            self.open_runs[ident] = peer.outbox.volatile.open_run
        if entry.expires_at is not None:
            if entry.state is DeliveryState.EXPIRED:
                self._drop(peer, [entry])
            else:
                self._watch_expiry(peer)
        self._after_queueing(peer, now)
        return taken

    def send_stored(self, ident: str, deliveries: list[Delivery], now: float) -> None:
        """Queue persistent messages for `ident`, which are numbered and stored.

        They all are of one stream, and have the same time to live.

        It may be called again for the same ones, where it was interrupted.
        """
        peer = self.peers.get(ident) or self.peers.get_or_add(ident)
        self.urgent = self.urgent or peer.has_small_backlog
        peer.outbox.add_stored(deliveries)
        if peer.given_up is not None:
            self._discarding.refuse_stored(peer, deliveries)
        elif deliveries[0].expires_at is not None:
            self._watch_expiry(peer)
        self._after_queueing(peer, now)

    def _after_queueing(self, peer: RemotePeer, now: float) -> None:
        connection = peer.connection
        if connection is not None:
            self._writable[connection.number] = None
        if peer.ident not in self._diagnosis.watched and (connection is None or not connection.session.established):
            self._diagnosis.messages_wait(peer, now)

    def close_runs(self) -> None:
        """Let no message join those that wait any more."""
        for ident in list(self.open_runs):
            self.open_runs.pop(ident)
            self.peers[ident].outbox.volatile.close_run()

    def interrupted(self, ident: str) -> int | None:
        """A thread that queued or wrote messages for a peer was interrupted.

        Returns the connection that is to be closed. On the next one, messages that were queued before are sent again,
        unless the peer says that it has them.
        """
        peer = self.peers.get(ident)
        if peer is None:
            return None
        peer.outbox.take_back()
        self._watch_expiry(peer)
        return None if peer.connection is None else peer.connection.number

    def output(self, number: int, budget: int, now: float) -> tuple[list[bytes], bool]:
        """About `budget` bytes to be sent on a connection, in buffers; and whether there may be more to be said now."""
        connection = self.sessions.get(number)
        if connection is None:
            return [], False
        session = connection.session
        peer = connection.peer
        if peer is None or peer.connection is not connection:
            return session.take_output(), False
        for ack in peer.inbox.due_acks():
            session.acknowledge(ack)
        buffers = session.take_output()
        more = peer.outbox.has_waiting
        if more:
            more = self._take(peer, session, budget, now, buffers)
        if not more:
            self.storage_sync.ask(peer)  # what is first now may have to be marked
        if buffers:
            buffers = encode.joined(buffers)
            peer.bytes_sent += sum(map(len, buffers))
        return buffers, more

    def _take(self, peer: RemotePeer, session: Session, budget: int, now: float, buffers: list[bytes]) -> bool:
        """Add messages that wait, about `budget` bytes of one stream; returns whether there may be more."""
        self.open_runs.pop(peer.ident, None)
        if peer.outbox.may_expire:
            self._drop(peer, peer.outbox.expire(now))
        while (taken := peer.outbox.take(budget)) is not None:
            stream, epoch, next_seq, batch, rejected = taken
            if rejected and peer.reject(rejected, self._limits):
                self.storage_sync.ask(peer)
            if batch and session.legacy:
                peer.note_left_out(batch)
                buffers += encode.messages(stream, batch, now)
                sent_below = batch[-1].seq + batch[-1].count
                buffers.append(session.barrier(frames.Ack(stream, epoch, sent_below, sent_below)))
            elif batch:
                assert session.remote is not None
                buffers += encode.data(stream, batch, next_seq, now, session.remote.max_frame_bytes)
            if batch:
                return peer.outbox.has_waiting
        return False

    def call_soon(self, function: Callable[[Any], object], argument: Any) -> None:
        """Let a function be called with an argument, on the thread that dispatches, and with no lock held."""
        self._events.append(Call(function, argument))

    # -- Messages that have ended -----------------------------------------------------------------------------

    def _acknowledge(self, connection: Connection, ack: frames.Ack, now: float) -> None:
        peer = connection.owner
        delivered = peer.outbox.acknowledge(ack)
        if peer.outbox.may_expire:
            self._watch_expiry(peer)
        peer.deliver(delivered)
        self.storage_sync.ask(peer)

    def _drop(self, peer: RemotePeer, entries: Sequence[Entry]) -> None:
        if peer.drop(entries):
            self.storage_sync.ask(peer)

    def discard(self, ident: str) -> int:
        """End every message to `ident` that has not ended; returns how many: see `Discarding.discard`."""
        peer = self.peers.get(ident)
        return 0 if peer is None else self._discarding.discard(peer)

    def discard_all(self) -> None:
        """End every transient message that has not ended: the peer is being terminated."""
        for peer in self.peers:
            self._drop(peer, peer.outbox.discard())
            self.storage_sync.delete_discarded(peer)

    @property
    def all_handed_over(self) -> bool:
        """Whether the callbacks of all messages that were received have returned, and the storage knows."""
        return self.storage_sync.all_stored and all(peer.inbox.is_empty for peer in self.peers)

    # -- What the caller acts on ------------------------------------------------------------------------------

    def answered(self, request: StorageRequest, result: object, now: float, wall_now: float) -> None:
        """The storage has carried out a request. `wall_now` is the system's time in seconds since the epoch."""
        peer = self.storage_sync.answered(request, result, now, wall_now)
        if peer is not None:
            if peer.outbox.may_expire:
                self._watch_expiry(peer)
            peer.mark_writable()

    def next_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events = self._events[:]
        del self._events[:]
        return events

    def put_back(self, events: list[Event]) -> None:
        """Let `next_events` return events once more: they could not be acted on."""
        self._events[:0] = events

    @property
    def has_pending_work(self) -> bool:
        """Whether there is something in `next_events`, or in `take_writable`: see `Node.process_pending`."""
        return bool(self._events or self._writable)

    def take_writable(self) -> list[int]:
        """The connections that may have something to send, since the last call."""
        self.urgent = False
        writable = list(self._writable)
        self._writable.clear()
        return writable

    def take_writable_to(self, ident: str) -> int | None:
        """The connection to a peer, where there is one: it is in no `take_writable` then, until more is queued."""
        self.urgent = False
        peer = self.peers.get(ident)
        if peer is None or peer.connection is None:
            return None
        number = peer.connection.number
        self._writable.pop(number, None)
        return number

    # -- Time -------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what the time asks for."""
        for act, key in self._deadlines.pop_due(now):
            act(key, now)

    def _expire(self, ident: str, now: float) -> None:
        peer = self.peers.get(ident)
        if peer is not None:
            self._drop(peer, peer.outbox.expire(now))
            self.storage_sync.find_expired(peer, now)
            self._watch_expiry(peer)

    def _watch_expiry(self, peer: RemotePeer) -> None:
        when = peer.next_expiry()
        if when is None:
            self._deadlines.discard((self._expire, peer.ident))
        else:
            self._deadlines.set((self._expire, peer.ident), when)
