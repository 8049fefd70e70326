"""`Messaging`: all sessions and queues of one peer: bytes in, bytes and events out.

It has no socket, no thread, no clock and no random source: the caller hands in what the connections said, and the
time, in seconds of a clock that is never set. What is to be done comes back as events, which `Node` acts on:

- `next_events()`: what happened, in order.
- `take_writable()` and `output()`: which connections have something to send, and what.
- `deadline()`: when `tick()` is due, or None.

None of it is thread-safe; `netcomm.peer` holds a lock around it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from netcomm.deadlines import Deadlines
from netcomm.errors import ConnectionRefusedByPeer, NetcommError, RemoteProtocolError, StorageCorrupt, StorageError
from netcomm.logs import Log
from netcomm.message import DURABLE, Delivery, DeliveryState, Limits
from netcomm.protocol import encode, frames
from netcomm.protocol.batch import Run
from netcomm.protocol.decode import READ_BYTES
from netcomm.protocol.events import (
    Close,
    Connected,
    Delete,
    DeleteBelow,
    Disconnected,
    Dropped,
    Event,
    Failed,
    FindExpired,
    Load,
    Mark,
    PauseReading,
    Received,
    Renew,
    Settled,
    StorageRequest,
    StorePosition,
)
from netcomm.protocol.inbox import Inbox
from netcomm.protocol.outbox import DurableOutStream, Entry, Outbox
from netcomm.protocol.session import Ahead, Identified, Session
from netcomm.protocol.wall_clock import WallClock
from netcomm.storage import Position, StoredMessage, StoredStream

log = Log("netcomm.messaging")

_SETTLED = Settled()


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


@dataclass(slots=True)
class _Connection:
    number: int
    session: Session
    where: str
    connector: int
    peer: "_Peer | None" = None
    paused: bool = False

    @property
    def name(self) -> str:
        ident = self.session.remote_ident
        return self.where if ident is None else f"{ident!r} at {self.where}"


@dataclass(slots=True)
class _Peer:
    """What is known of another peer, by its ident.

    challenger: a second connection that says the same ident; it waits until the first one has shown that it lives.
    ahead: what the ping on the first one waits behind, which asks for that.
    refused: whether the log has told of refused connections with this ident.
    watched: whether it is to be looked soon if messages still wait for it, or the log has told that they do.
    """

    ident: str
    outbox: Outbox
    inbox: Inbox
    connection: _Connection | None = None
    challenger: _Connection | None = None
    ahead: Ahead | None = None
    refused: bool = False
    watched: bool = False
    delivered: int = 0
    dropped: int = 0
    received: int = 0
    connects: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def connected(self) -> bool:
        return self.connection is not None and self.connection.session.established

    @property
    def converses(self) -> bool:
        """Whether so few messages are queued that each should go out by itself."""
        return self.outbox.volatile.queued < CONVERSATION


# With fewer messages that are not acknowledged, two peers converse, and each message goes out by itself: an answer
# often comes before the acknowledgement of what it answers. With more, it is a stream, and what gathers goes together.
CONVERSATION = 4
# What is so large, in bytes, is worth a system call of its own.
PROMPT_BYTES = 128 * 1024

# So many messages that have expired are asked for at once.
_FIND_COUNT = 1000
_LOOK_AGAIN_S = 1.0

# What waits for callbacks, and is left unread where too much does.
_MESSAGES = frozenset({frames.Data, frames.Messages})

# A deadline belongs to a connection (its session's), or to a peer.
_SESSION, _EXPIRY, _CHALLENGE, _DIAGNOSIS = range(4)
_Key = tuple[int, int | str]


def _unknown(number: int) -> tuple[int, int]:
    return 0, 0


class Messaging:
    """The protocol of one peer, over any number of connections.

    prompt: whether, since the last `take_writable`, a message was queued that should not wait for others.
    stored_time: called with `now` and the system's time, returns the time that is stored with messages sent now.
    gathering: by ident, what further transient messages that never expire may join, without a lock: see `Run`. They
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
        wait: Callable[[Delivery, float | None], bool],
        progress: Callable[[int], tuple[int, int]] = _unknown,
        stores_positions: bool = False,
    ) -> None:
        """Make it, without connections.

        peer_id, boot_id: 16 bytes each, as in HELLO.
        first_epoch: a 63-bit number that no other process of this ident has used.
        wait: what `Delivery.wait` calls, for messages that come from the storage.
        progress: says of a connection how many bytes of its output were written, and how many of them the other side's
            system has taken. It is called when an answer to a ping is overdue, and before one is sent. By default,
            nobody knows, and only what arrives is a sign of life.
        stores_positions: whether there is a storage that takes positions.
        """
        self._ident = ident
        self._limits = limits
        self._peer_id = peer_id
        self._boot_id = boot_id
        self._next_epoch = first_epoch
        self._wait = wait
        self._progress = progress
        self._stores_positions = stores_positions
        self._wall_clock = WallClock()
        self.stored_time = self._wall_clock.follow
        self._unstored: dict[str, Position] = {}  # by sender; what the storage has not confirmed
        self._scratch = memoryview(bytearray(READ_BYTES))  # of all connections: only one is read at a time
        self._connections: dict[int, _Connection] = {}
        self._peers: dict[str, _Peer] = {}
        self._deadlines: Deadlines[_Key] = Deadlines()
        self.deadline = self._deadlines.next
        self._writable: dict[int, None] = {}  # an ordered set
        self._events: list[Event] = []
        self._complaints: dict[int, str] = {}  # by connector
        self.prompt = False
        self.gathering: dict[str, Run] = {}
        self._undiagnosed: set[str] = set()  # idents that messages wait for, while no other is connected
        self._handlers: Mapping[type, Callable[[_Connection, Any, float], None]] = {
            Identified: self._identify,
            frames.Begin: self._begin,
            frames.Data: self._receive,
            frames.Messages: self._receive_legacy,
            frames.Ack: self._acknowledge,
            frames.Skip: self._skip,
        }
        self._receiving = True

    def restore(
        self, streams: Iterable[StoredStream], positions: Mapping[str, Position], now: float, wall_now: float
    ) -> None:
        """Take over what a storage has kept. `wall_now` is the system's time in seconds since the epoch."""
        streams = list(streams)
        self._wall_clock.start(now, wall_now, max([0.0, *(stream.newest_at or 0.0 for stream in streams)]))
        wall_now = self._wall_clock.at(now)
        for ident, position in positions.items():
            self._peer(ident, position)
        for state in streams:
            peer = self._peer(state.ident)
            expires_at = None if state.next_expiry is None else now + state.next_expiry - wall_now
            peer.outbox.set_durable(DurableOutStream.restore(state, expires_at))
            self._watch_expiry(peer)
            self._diagnose_later(peer, now)

    # -- Connections ------------------------------------------------------------------------------------------

    def connection_opened(self, number: int, where: str, connector: int, now: float) -> memoryview:
        """A connection was made.

        number: names it from now on, and was never used before.
        where: its other end, for the log.
        connector: which connector made it, from 1; 0 where it was accepted.

        Returns the buffer for its first bytes.
        """
        hello = frames.Hello(
            frames.EXTENSION_VERSION,
            self._peer_id,
            self._boot_id,
            connector,
            self._limits.max_frame_bytes,
            self._limits.window_bytes,
        )
        session = Session(self._ident, hello, self._limits, self._scratch, now)
        connection = _Connection(number, session, where, connector)
        self._connections[number] = connection
        self._writable[number] = None
        self._deadlines.set((_SESSION, number), session.deadline())
        if not self._receiving:
            self._pause(connection, True)
        return session.get_buffer()

    def connection_lost(self, number: int, reason: str, now: float) -> None:
        """A connection has been lost; a number that is not known is passed over."""
        connection = self._connections.get(number)
        if connection is None:
            return
        if connection.session.legacy and not connection.session.established:
            text = (
                f"{connection.name} closed the connection right after the identification; a snakeMQ peer does so while"
                f" another connection with the ident {self._ident!r} is open there"
            )
            self._complain(connection, text, ConnectionRefusedByPeer(text, frames.RefuseCode.DUPLICATE_IDENT))
        elif connection.connector and connection.session.remote_ident is None:
            text = f"{connection.name} closed the connection before it had identified itself"
            self._complain(connection, text, RemoteProtocolError(text))
        self._forget(connection, reason, now)

    def report(self, error: Exception) -> None:
        """The user should hear of something that has failed."""
        self._events.append(Failed(error))

    def connection_failed(self, number: int, error: Exception, now: float) -> None:
        """Something was being done for a connection, and has raised; the connection is lost for it: see `Node`."""
        connection = self._connections.get(number)
        if connection is None:
            text = f"a connection that is not open failed: {error!r}"
            log.warning("%s", text, exc_info=error)
            self.report(NetcommError(text))
            return
        self._note_fault(connection, error)
        self._forget(connection, "failed", now)

    def _note_fault(self, connection: _Connection, error: Exception) -> None:
        """Whatever was being done for a connection has raised, and it is about to be closed."""
        text = f"{connection.name}: failed: {error!r}"
        self._complain(connection, text, NetcommError(text), cause=error)
        peer = connection.peer
        if peer is not None and peer.connection is connection:
            peer.outbox.take_back()
            self._events.append(_SETTLED)  # some may have ended before it failed

    def close_all(self, reason: str, now: float) -> None:
        """Close every connection."""
        for connection in list(self._connections.values()):
            # To close one admits its challenger, and what that has said may close it, too.
            if connection.number in self._connections:
                self._close(connection, reason, now)

    def _forget(self, connection: _Connection, reason: str, now: float) -> None:
        number = connection.number
        del self._connections[number]
        self._deadlines.discard((_SESSION, number))
        self._writable.pop(number, None)
        peer = connection.peer
        if peer is None:
            log.debug("connection with %s ended before identification: %s", connection.where, reason)
        elif peer.challenger is connection:
            peer.challenger = None
            self._deadlines.discard((_CHALLENGE, peer.ident))
        else:
            self._disconnect(peer, connection, reason, now)

    def buffer_updated(self, number: int, count: int, now: float) -> memoryview | None:
        """So many bytes, one at least, have come in on a connection, into the buffer that it was given last.

        Returns the buffer for the next bytes; None for a number that is not known.
        """
        connection = self._connections.get(number)
        if connection is None:
            return None
        session = connection.session
        answered = session.ping_outstanding
        session.buffer_updated(count, now)
        self._received(connection, count, answered, now)
        return session.get_buffer()

    def _received(self, connection: _Connection, count: int, answered: bool, now: float) -> None:
        if answered:  # the next look is due before the answer would have been
            self._deadlines.set((_SESSION, connection.number), connection.session.deadline())
        peer = connection.peer
        if peer is not None:
            peer.bytes_received += count
            if peer.challenger is not None and peer.connection is connection:
                self._refuse_duplicate(peer.challenger, peer, now)
        self._process(connection, now)

    def _process(self, connection: _Connection, now: float) -> None:
        session = connection.session
        try:
            while (event := session.next_event()) is not None:
                if session.legacy and not session.established:
                    self._establish(self._peer_of(connection), connection, now)
                kind = type(event)
                if kind in _MESSAGES and self._is_full(connection):
                    session.put_back(event)  # until enough is handed over
                    self._pause(connection, True)
                    break
                self._handlers[kind](connection, event, now)
        except ConnectionRefusedByPeer as error:
            text = f"{connection.name} refused the connection: {error}"
            self._complain(connection, text, ConnectionRefusedByPeer(text, error.code))
            self._close(connection, "refused by the other side", now)
        except RemoteProtocolError as error:
            session.refuse(frames.RefuseCode.PROTOCOL_ERROR, str(error))
            text = f"protocol error of {connection.name}: {error}"
            self._complain(connection, text, RemoteProtocolError(text))
            self._close(connection, "protocol error", now)
        except Exception as error:
            self._note_fault(connection, error)
            self._close(connection, "failed", now)
        else:
            if self._has_to_say(connection):
                self._writable[connection.number] = None

    @staticmethod
    def _has_to_say(connection: _Connection) -> bool:
        """Whether `output` may have something for a connection."""
        peer = connection.peer
        if connection.session.has_output:
            return True
        return peer is not None and peer.connection is connection and (peer.outbox.has_waiting or peer.inbox.ack_due)

    def _complain(
        self, connection: _Connection, text: str, error: Exception | None = None, cause: Exception | None = None
    ) -> None:
        """Tell why a connection is closed: loudly, but not again for each attempt of a connector."""
        repeated = connection.connector and self._complaints.get(connection.connector) == text
        log.log(logging.DEBUG if repeated else logging.WARNING, "%s; closing the connection", text, exc_info=cause)
        if error is not None and not repeated:
            self._events.append(Failed(error))
        if connection.connector:
            self._complaints[connection.connector] = text

    def _close(self, connection: _Connection, reason: str, now: float) -> None:
        """Forget a connection; what its session still has to say goes out before it is closed."""
        self._events.append(Close(connection.number, connection.session.take_output()))
        self._forget(connection, reason, now)

    # -- Identification ---------------------------------------------------------------------------------------

    def _identify(self, connection: _Connection, event: Identified, now: float) -> None:
        ident = event.ident
        if ident == self._ident:
            self._refuse(connection, f"ident {ident!r} is that of this peer itself", now)
            return
        peer = self._peer(ident)
        connection.peer = peer
        present = peer.connection
        if present is None:
            self._admit(peer, connection, now)
        elif _same_connector(present.session, connection.session) or self._goes_before(connection, present):
            # Either its owner has made a new connection, and so has given up the present one, even if we have not
            # heard; or both sides have dialled each other, and both keep the same one of the two.
            if peer.challenger is not None:
                self._refuse_duplicate(peer.challenger, peer, now)
            self._close(present, "replaced by a newer connection", now)
            self._admit(peer, connection, now)
        elif peer.challenger is not None or present.paused:
            # What is not read can't show that it lives.
            self._refuse_duplicate(connection, peer, now)
        else:
            peer.challenger = connection
            peer.ahead = Ahead(partial(self._progress, present.number))
            self._pause(connection, True)
            # A snakeMQ peer may still refuse the ident of this side, and would crash on a ping: it is asked later.
            if present.session.established or not present.session.legacy:
                present.session.probe(now, partial(self._progress, present.number))
                self._writable[present.number] = None
            self._deadlines.set((_CHALLENGE, ident), now + self._probe_s)

    @property
    def _probe_s(self) -> float:
        # The challenger's handshake must outlive the probe.
        return min(self._limits.keepalive_wait_s, self._limits.handshake_s / 2)

    def _goes_before(self, connection: _Connection, present: _Connection) -> bool:
        """Whether one of two connections with the same process is to be kept: that whose maker has the higher id."""
        remote, present_remote = connection.session.remote, present.session.remote
        if remote is None or present_remote is None or remote.boot_id != present_remote.boot_id:
            return False
        if bool(connection.connector) == bool(present.connector):
            return False
        return bool(connection.connector) == (self._boot_id > remote.boot_id)

    def _end_challenge(self, peer: _Peer, challenger: _Connection, now: float) -> None:
        """Nothing has come in from the first connection of an ident since it was asked.

        Where the ping still waits behind output that is being taken, that connection lives.
        """
        present, ahead = peer.connection, peer.ahead
        assert present is not None
        assert ahead is not None
        if ahead.has_moved() and not ahead.passed:
            self._refuse_duplicate(challenger, peer, now)
        else:
            self._close(present, "no answer to a ping, and its ident came again", now)

    def _refuse_duplicate(self, connection: _Connection, peer: _Peer, now: float) -> None:
        present = peer.connection
        assert present is not None
        if peer.challenger is not connection:
            connection.peer = None
        self._refuse(connection, f"ident {peer.ident!r} is connected already, from {present.where}", now, peer.refused)
        peer.refused = True

    def _refuse(self, connection: _Connection, text: str, now: float, repeated: bool = False) -> None:
        log.log(
            logging.DEBUG if repeated else logging.WARNING,
            "refusing the connection with %s: %s",
            connection.where,
            text,
        )
        connection.session.refuse(frames.RefuseCode.DUPLICATE_IDENT, text)
        self._close(connection, "duplicate ident", now)

    def _admit(self, peer: _Peer, connection: _Connection, now: float) -> None:
        peer.connection = connection
        peer.refused = False
        session = connection.session
        session.admit()
        if session.remote is None:
            # Established once it has kept the connection for a moment, or has sent something. A snakeMQ peer that
            # refuses an ident closes without a word, and crashes on whatever comes behind it.
            session.wait_for_refusal(now)
            self._deadlines.set((_SESSION, connection.number), session.deadline())
        else:
            max_packet_bytes = frames.max_packet_size(min(session.remote.max_frame_bytes, self._limits.max_frame_bytes))
            for frame in peer.outbox.connect(session.remote.window_bytes, max_packet_bytes, session.remote.boot_id):
                session.begin(frame)
        self._writable[connection.number] = None

    def _establish(self, peer: _Peer, connection: _Connection, now: float) -> None:
        session = connection.session
        session.established = True
        if session.legacy:
            peer.outbox.connect_legacy(frames.max_packet_size(self._limits.max_frame_bytes))
            if peer.challenger is not None:
                session.probe(now, partial(self._progress, connection.number))
        self._deadlines.set((_SESSION, connection.number), session.deadline())
        self._writable[connection.number] = None
        self._deadlines.discard((_DIAGNOSIS, peer.ident))
        self._ask_storage(peer)
        peer.watched = False
        peer.connects += 1
        kind = "snakeMQ peer " if session.legacy else ""
        log.info("connected to %s%r at %s", kind, peer.ident, connection.where)
        self._events.append(Connected(peer.ident, connection.number))
        self._complaints.pop(connection.connector, None)
        for ident in self._undiagnosed:
            undiagnosed = self._peer(ident)
            undiagnosed.watched = False
            self._diagnose_later(undiagnosed, now)
        self._undiagnosed.clear()

    def _disconnect(self, peer: _Peer, connection: _Connection, reason: str, now: float) -> None:
        session = connection.session
        was_established = session.established
        peer.connection = None
        peer.outbox.disconnect()
        peer.inbox.disconnect()
        self._watch_expiry(peer)
        if was_established:
            log.info("disconnected from %r at %s: %s", peer.ident, connection.where, reason)
            self._events.append(Disconnected(peer.ident))
        challenger = peer.challenger
        if challenger is not None:
            peer.challenger = None
            self._deadlines.discard((_CHALLENGE, peer.ident))
            self._admit(peer, challenger, now)
            self._pause(challenger, False)
            self._process(challenger, now)
        else:
            self._diagnose_later(peer, now)

    # -- Messages in ------------------------------------------------------------------------------------------

    def _begin(self, connection: _Connection, frame: frames.Begin, now: float) -> None:
        peer = self._peer_of(connection)
        peer.inbox.begin(frame)
        if not connection.session.established:
            self._establish(peer, connection, now)

    def _skip(self, connection: _Connection, frame: frames.Skip, now: float) -> None:
        self._peer_of(connection).inbox.skip(frame.stream, frame.next_seq)

    def _receive(self, connection: _Connection, data: frames.Data, now: float) -> None:
        peer = self._peer_of(connection)
        state, fresh = peer.inbox.accept(data)
        runs, payloads = fresh.runs, fresh.payloads
        if not payloads:
            return
        try:
            received = Received(
                peer.ident, fresh.stream, state.epoch, state.redelivered_below, runs, payloads, _size(payloads)
            )
            self._took(peer, connection, received)
        except BaseException:  # no memory, perhaps: they have not come
            state.next_seq -= len(payloads)
            raise

    def _receive_legacy(self, connection: _Connection, frame: frames.Messages, now: float) -> None:
        peer = self._peer_of(connection)
        items = frame.items
        runs = [(0, 1, uuid, ttl, flags) for uuid, ttl, flags, _ in items]
        payloads = [item[3] for item in items]
        self._took(peer, connection, Received(peer.ident, None, 0, 0, runs, payloads, _size(payloads)))

    def _took(self, peer: _Peer, connection: _Connection, received: Received) -> None:
        inbox = peer.inbox
        count, pending_bytes = len(received.payloads), inbox.pending_bytes + received.size
        if pending_bytes > self._most_pending(connection):
            self._pause(connection, True)
        self._events.append(received)
        # No call is behind that, which could fail: all of it has happened, or nothing.
        peer.received += count
        inbox.pending_bytes = pending_bytes

    def _is_full(self, connection: _Connection) -> bool:
        """Whether more waits for callbacks than this connection may add to."""
        return self._peer_of(connection).inbox.pending_bytes > self._most_pending(connection)

    def _most_pending(self, connection: _Connection) -> int:
        """So many bytes may wait for callbacks, for more to be taken from a connection."""
        # A netcomm peer keeps to the window by itself, but for one large message, and for what an earlier process sent:
        # as long as it does, it is read, so that its pings are answered.
        if connection.session.legacy:
            return self._limits.window_bytes
        return self._limits.window_bytes + self._limits.max_frame_bytes

    def hand_over(self, received: Received, start: int, stop: int, now: float) -> None:
        """The callbacks of messages `start` to `stop` of these have returned; all before have been named before."""
        peer = self._peers[received.ident]
        payloads = received.payloads
        whole = stop - start == len(payloads)
        peer.inbox.pending_bytes -= received.size if whole else _size(payloads[start:stop])
        if received.stream is not None:
            position = peer.inbox.hand_over(received.stream, received.epoch, received.runs[0][0] + stop)
            if position is not None:
                self._unstored[peer.ident] = position
                self._events.append(StorePosition(peer.ident, position))
        connection = peer.connection
        if connection is not None:
            self._writable[connection.number] = None
            if connection.paused and peer.inbox.pending_bytes <= self._limits.window_bytes // 2:
                connection.session.excuse(now)
                self._pause(connection, False)
                if not connection.paused:
                    self._process(connection, now)  # what was put back

    def _position_stored(self, peer: _Peer, position: Position) -> None:
        if self._unstored.get(peer.ident) == position:
            del self._unstored[peer.ident]
        peer.inbox.acknowledge(DURABLE, *position)
        if peer.connection is not None:
            self._writable[peer.connection.number] = None
        self._events.append(_SETTLED)

    def stop_receiving(self) -> None:
        """Read no more from any connection: the peer is being terminated."""
        self._receiving = False
        for connection in self._connections.values():
            self._pause(connection, True)

    def _pause(self, connection: _Connection, paused: bool) -> None:
        paused = paused or not self._receiving
        if connection.paused != paused:
            connection.paused = paused
            self._events.append(PauseReading(connection.number, paused))

    # -- Messages out -----------------------------------------------------------------------------------------

    def has_room(self, ident: str, size: int) -> bool:
        """Whether a transient message of `size` bytes on the wire may be queued for `ident` now."""
        peer = self._peers.get(ident)
        return peer is None or peer.outbox.has_room(size)

    def converses(self, ident: str) -> bool:
        """Whether so few messages are queued for `ident` that each should go out by itself."""
        peer = self._peers.get(ident)
        return peer is None or peer.converses

    def stop_gathering(self) -> None:
        """Let nothing join what waits any more."""
        for ident in list(self.gathering):
            self.gathering.pop(ident)
            self._peers[ident].outbox.volatile.close_run()

    def send(self, ident: str, entry: Entry, now: float) -> int:
        """Queue transient messages for `ident`; returns how many were taken: as many as there is room for.

        What was not taken is left in `entry`, if that is a Run.
        """
        peer = self._peers.get(ident) or self._peer(ident)
        self.prompt = self.prompt or peer.converses or entry.size >= PROMPT_BYTES
        taken = peer.outbox.append(entry, now)
        if peer.outbox.volatile.open_run is not None:
            self.gathering[ident] = peer.outbox.volatile.open_run
        if entry.expires_at is not None:
            if entry.state is DeliveryState.EXPIRED:
                self._drop(peer, [entry])
            else:
                self._watch_expiry(peer)
        self._after_queueing(peer, now)
        return taken

    def send_stored(self, ident: str, deliveries: list[Delivery], now: float) -> None:
        """Queue persistent messages for `ident`, which are numbered and stored, and all have the same time to live.

        It may be called again for the same ones, where it was interrupted.
        """
        peer = self._peers.get(ident) or self._peer(ident)
        self.prompt = self.prompt or peer.converses
        peer.outbox.add_stored(deliveries)
        if deliveries[0].expires_at is not None:
            self._watch_expiry(peer)
        self._after_queueing(peer, now)

    def _after_queueing(self, peer: _Peer, now: float) -> None:
        connection = peer.connection
        if connection is not None:
            self._writable[connection.number] = None
        if not peer.watched and (connection is None or not connection.session.established):
            self._diagnose_later(peer, now)

    def _acknowledge(self, connection: _Connection, ack: frames.Ack, now: float) -> None:
        peer = self._peer_of(connection)
        delivered = peer.outbox.acknowledge(ack)
        if peer.outbox.may_expire:
            self._watch_expiry(peer)
        self._deliver(peer, delivered)
        self._ask_storage(peer)

    def _deliver(self, peer: _Peer, delivered: Sequence[Entry]) -> None:
        if not delivered:
            return
        for entry in delivered:
            peer.delivered += entry.count
        self._events.append(_SETTLED)
        if delivered[0].persistent:
            assert peer.outbox.durable is not None
            self._events.append(DeleteBelow(peer.ident, peer.outbox.durable.deletable_below()))

    def _reject(self, peer: _Peer, session: Session, rejected: Sequence[Entry]) -> None:
        limits = self._limits if session.remote is None else session.remote
        log.warning(
            "%d messages for %r rejected: larger than it accepts (frames of %d bytes)",
            len(rejected),
            peer.ident,
            limits.max_frame_bytes,
        )
        self._drop(peer, rejected)

    def _drop(self, peer: _Peer, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        deliveries = [delivery for entry in entries for delivery in entry.deliveries()]
        peer.dropped += len(deliveries)
        self._events.append(Dropped(deliveries))
        stored = [delivery.seq for delivery in deliveries if delivery.persistent]
        if stored:
            self._events.append(Delete(peer.ident, stored))
            self._ask_storage(peer)

    # -- The durable streams ----------------------------------------------------------------------------------

    def number(self, ident: str, deliveries: list[Delivery]) -> int:
        """Give persistent messages their places, before they are stored; returns the epoch of their stream.

        When the storage has them, `send_stored` is called, in the order of these calls; never, where they could not be
        stored.
        """
        peer = self._peers.get(ident) or self._peer(ident)
        if peer.outbox.durable is None:
            begin = peer.outbox.open_durable(self._new_epoch())
            if begin is not None:
                assert peer.connection is not None
                peer.connection.session.begin(begin)
                self._writable[peer.connection.number] = None
        durable = peer.outbox.durable
        assert durable is not None
        durable.number(deliveries)
        return durable.epoch

    def not_stored(self, ident: str, deliveries: list[Delivery]) -> None:
        """Messages that were numbered could not be stored, as far as the storage can tell."""
        for delivery in deliveries:
            delivery.state = DeliveryState.DISCARDED
        durable = self._peers[ident].outbox.durable
        assert durable is not None
        gone = [delivery.seq for delivery in deliveries]
        durable.lose(gone)
        self._events.append(Delete(ident, gone))

    def _ask_storage(self, peer: _Peer) -> None:
        durable = peer.outbox.durable
        if durable is None:
            return
        for request in durable.wants(peer.ident, self._new_epoch):
            if isinstance(request, Renew):
                text = (
                    f"{peer.ident!r} has more of the durable stream than this storage has ever sent: it was"
                    " restored from a backup. What it holds is sent again"
                )
                log.warning("%s", text)
                self._events.append(Failed(StorageError(text)))
            # In this order: an interruption of the caller (Ctrl-C) comes where a call begins or ends.
            durable.asked(request)
            try:
                self._events.append(request)
            except MemoryError:
                durable.asked(request, False)
                raise

    def answered(self, request: StorageRequest, result: Any, now: float, wall_now: float) -> None:
        """The storage has carried out a request. `wall_now` is the system's time in seconds since the epoch."""
        self._wall_clock.follow(now, wall_now)
        match request:
            case Load(ident):
                self._loaded(self._peers[ident], result, now)
            case FindExpired(ident, _, _, max_count):
                found, next_expiry = result
                self._expired_found(self._peers[ident], found, next_expiry, len(found) >= max_count, now)
            case Mark(ident, below):
                self._marked(self._peers[ident], below)
            case Renew(ident, epoch):
                self._renewed(self._peers[ident], epoch)
            case StorePosition(ident, position):
                self._position_stored(self._peers[ident], position)

    def _loaded(self, peer: _Peer, messages: list[StoredMessage], now: float) -> None:
        deliveries = self._deliveries_of(peer, messages, now)
        delivered, missing = peer.outbox.load(deliveries)
        self._deliver(peer, delivered)
        if missing:
            text = f"{missing} messages for {peer.ident!r} that were stored are not in the storage"
            log.error("%s", text)
            self._events.append(Failed(StorageCorrupt(text)))
        self._after_storage(peer)

    def _expired_found(
        self, peer: _Peer, messages: list[StoredMessage], next_expiry: float | None, may_be_more: bool, now: float
    ) -> None:
        """`next_expiry` is as the storage says it, in seconds since the epoch."""
        durable = peer.outbox.durable
        assert durable is not None
        still_there = [message for message in messages if durable.is_stored(message.seq)]
        expired = []
        looks = [] if next_expiry is None else [now + max(0.0, next_expiry - self._wall_clock.at(now))]
        for delivery in self._deliveries_of(peer, still_there, now):
            assert delivery.expires_at is not None
            if delivery.expires_at <= now:
                expired.append(delivery)
            else:  # the clock was set forward since it was stored
                looks.append(delivery.expires_at)
        if may_be_more and expired:
            looks.append(now)
        elif may_be_more and not still_there:
            # All have ended, and the storage could not delete them yet: they would be found again at once.
            looks = [now + _LOOK_AGAIN_S]
        if looks:
            when = min(looks)
            durable.expires_at = when if durable.expires_at is None else min(when, durable.expires_at)
        durable.expire_stored(expired)
        self._drop(peer, expired)
        self._after_storage(peer)

    def _marked(self, peer: _Peer, below: int) -> None:
        assert peer.outbox.durable is not None
        peer.outbox.durable.marked(below)
        self._after_storage(peer)

    def _renewed(self, peer: _Peer, epoch: int) -> None:
        begin = peer.outbox.renew(epoch)
        if begin is not None:
            assert peer.connection is not None
            peer.connection.session.begin(begin)
        self._after_storage(peer)

    def _after_storage(self, peer: _Peer) -> None:
        self._watch_expiry(peer)
        self._ask_storage(peer)
        if peer.connection is not None:
            self._writable[peer.connection.number] = None

    def _deliveries_of(self, peer: _Peer, messages: Sequence[StoredMessage], now: float) -> list[Delivery]:
        """The Deliveries of stored messages, with the payloads in them: those that `send` returned, if they live."""
        assert peer.outbox.durable is not None
        known = peer.outbox.durable.known()
        deliveries = []
        for seq, uuid, data, queued_at, ttl in messages:
            delivery = known.get(seq)
            if delivery is None:
                expires_at = None if ttl is None else now + ttl - self._wall_clock.age(queued_at, now)
                size = len(data) + frames.OVERHEAD_BYTES
                delivery = Delivery(peer.ident, uuid, data, size, expires_at, True, self._wait)
                delivery.seq = seq
            delivery.data = data
            deliveries.append(delivery)
        return deliveries

    def discard_all(self) -> None:
        """End every message that has not ended: the peer is being terminated."""
        for peer in self._peers.values():
            self._drop(peer, peer.outbox.discard())

    @property
    def idle(self) -> bool:
        """Whether nothing is queued for anybody."""
        return all(peer.outbox.idle for peer in self._peers.values())

    @property
    def may_end(self) -> bool:
        """Whether ending now would neither discard a message, nor leave one behind that can be delivered now."""
        return not any(
            peer.outbox.queued if peer.connected else peer.outbox.volatile.queued for peer in self._peers.values()
        )

    @property
    def all_stored(self) -> bool:
        """Whether the storage has every position."""
        return not self._unstored

    @property
    def all_handed_over(self) -> bool:
        """Whether the callbacks of everything that was received have returned, and the storage knows."""
        return self.all_stored and not any(peer.inbox.pending_bytes for peer in self._peers.values())

    # -- What the caller acts on ------------------------------------------------------------------------------

    def next_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
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
        self.prompt = False
        writable = list(self._writable)
        self._writable.clear()
        return writable

    def take_writable_to(self, ident: str) -> int | None:
        """The connection to a peer, where there is one: it is in no `take_writable` then, until more is queued."""
        self.prompt = False
        peer = self._peers.get(ident)
        if peer is None or peer.connection is None:
            return None
        number = peer.connection.number
        self._writable.pop(number, None)
        return number

    def interrupted(self, ident: str) -> int | None:
        """Whatever was being done for messages to a peer was interrupted; returns the connection that is to be closed.

        On the next one, what was queued before is sent again, unless the peer says that it has it.
        """
        peer = self._peers.get(ident)
        if peer is None:
            return None
        peer.outbox.take_back()
        self._watch_expiry(peer)
        return None if peer.connection is None else peer.connection.number

    def output(self, number: int, budget: int, now: float) -> tuple[list[bytes], bool]:
        """About `budget` bytes to be sent on a connection, in buffers; and whether there may be more to be said now."""
        connection = self._connections.get(number)
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
            self._ask_storage(peer)  # what is first now may have to be marked
        if buffers:
            buffers = encode.joined(buffers)
            peer.bytes_sent += sum(map(len, buffers))
        return buffers, more

    def _take(self, peer: _Peer, session: Session, budget: int, now: float, buffers: list[bytes]) -> bool:
        """Add messages that wait, about `budget` bytes of one stream; returns whether there may be more."""
        self.gathering.pop(peer.ident, None)
        if peer.outbox.may_expire:
            self._drop(peer, peer.outbox.expire(now))
        while (taken := peer.outbox.take(budget)) is not None:
            stream, epoch, next_seq, batch, rejected = taken
            if rejected:
                self._reject(peer, session, rejected)
            if batch and session.legacy:
                buffers += encode.messages(batch, now)
                sent_below = batch[-1].seq + batch[-1].count
                buffers.append(session.barrier(frames.Ack(stream, epoch, sent_below, sent_below)))
            elif batch:
                assert session.remote is not None
                buffers += encode.data(batch, next_seq, now, session.remote.max_frame_bytes)
            if batch:
                return peer.outbox.has_waiting
        return False

    # -- Time -------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what the time asks for."""
        for kind, key in self._deadlines.pop_due(now):
            if kind == _SESSION:
                try:
                    self._check_session(int(key), now)
                except Exception as error:
                    self._events.append(Close(int(key), []))
                    self.connection_failed(int(key), error, now)
                continue
            peer = self._peers.get(str(key))
            if peer is None:
                continue
            if kind == _EXPIRY:
                self._drop(peer, peer.outbox.expire(now))
                self._expire_stored(peer, now)
                self._watch_expiry(peer)
            elif kind == _CHALLENGE and peer.challenger is not None:  # not admitted by what fell due just before
                self._end_challenge(peer, peer.challenger, now)
            elif kind == _DIAGNOSIS:
                self._diagnose(peer)

    def _check_session(self, number: int, now: float) -> None:
        connection = self._connections.get(number)
        if connection is None:  # closed by what fell due just before
            return
        session = connection.session
        if session.legacy and not session.established:
            self._establish(self._peer_of(connection), connection, now)
            return
        if connection.paused and session.established:
            session.excuse(now)
        reason = session.check(now, partial(self._progress, number))
        if reason is None:
            self._writable[connection.number] = None
            self._deadlines.set((_SESSION, connection.number), connection.session.deadline())
            return
        self._complain(connection, f"{connection.name}: {reason}")
        self._close(connection, reason, now)

    def _expire_stored(self, peer: _Peer, now: float) -> None:
        durable = peer.outbox.durable
        if durable is not None and durable.expires_at is not None and durable.expires_at <= now:
            durable.expires_at = None  # until the answer says
            from_seq = durable.expirable_from()
            self._events.append(FindExpired(peer.ident, from_seq, self._wall_clock.at(now), _FIND_COUNT))

    def _watch_expiry(self, peer: _Peer) -> None:
        when = peer.outbox.next_expiry()
        durable = peer.outbox.durable
        if durable is not None and durable.expires_at is not None:
            when = durable.expires_at if when is None else min(when, durable.expires_at)
        if when is None:
            self._deadlines.discard((_EXPIRY, peer.ident))
        else:
            self._deadlines.set((_EXPIRY, peer.ident), when)

    def _diagnose_later(self, peer: _Peer, now: float) -> None:
        if not peer.watched and not peer.connected and not peer.outbox.idle:
            peer.watched = True
            self._deadlines.set((_DIAGNOSIS, peer.ident), now + self._limits.diagnose_after_s)

    def _diagnose(self, peer: _Peer) -> None:
        if peer.connected or not peer.outbox.queued:
            peer.watched = False
            return
        connected = self.connected_idents()
        if not connected:
            self._undiagnosed.add(peer.ident)
            return
        log.warning(
            "%d messages wait for %r, which is not connected; connected are: %s. Is the ident right?",
            peer.outbox.queued,
            peer.ident,
            ", ".join(map(repr, connected)),
        )

    # -- Peers ------------------------------------------------------------------------------------------------

    def connected_idents(self) -> list[str]:
        """The peers that messages can flow to, in the order of their names."""
        return sorted(ident for ident, peer in self._peers.items() if peer.connected)

    def is_connected(self, ident: str) -> bool:
        """Whether messages can flow to a peer."""
        peer = self._peers.get(ident)
        return peer is not None and peer.connected

    def stats(self) -> dict[str, PeerStats]:
        """A snapshot, by ident."""
        return {
            ident: PeerStats(
                connected=peer.connected,
                queued=peer.outbox.queued,
                in_flight=peer.outbox.in_flight,
                delivered=peer.delivered,
                dropped=peer.dropped,
                received=peer.received,
                reconnects=max(0, peer.connects - 1),
                bytes_sent=peer.bytes_sent,
                bytes_received=peer.bytes_received,
            )
            for ident, peer in self._peers.items()
        }

    def _peer(self, ident: str, position: Position | None = None) -> _Peer:
        peer = self._peers.get(ident)
        if peer is None:
            self._forget_idle_peers()
            inbox = Inbox(self._stores_positions, position)
            peer = self._peers[ident] = _Peer(ident, Outbox(self._limits, self._new_epoch()), inbox)
        return peer

    def _new_epoch(self) -> int:
        epoch = self._next_epoch
        self._next_epoch = (epoch + 1) % 2**63
        return epoch

    @staticmethod
    def _peer_of(connection: _Connection) -> _Peer:
        assert connection.peer is not None  # the session lets nothing through before it
        return connection.peer

    def _forget_idle_peers(self) -> None:
        """Keep strangers' idents from filling the memory: the oldest of too many idle peers are forgotten.

        To a forgotten peer, and from it, volatile streams begin anew: what it sends again is not recognised.
        """
        excess = len(self._peers) - self._limits.max_idle_peers
        if excess <= 0:
            return
        excess += self._limits.max_idle_peers // 10  # so that not every new peer makes it search
        idle = (
            ident
            for ident, peer in self._peers.items()
            if peer.connection is None
            and peer.outbox.idle
            and not peer.inbox.pending_bytes
            and not peer.inbox.durable
            and peer.outbox.durable is None
        )
        for ident in list(islice(idle, excess)):
            del self._peers[ident]
            self.gathering.pop(ident, None)


def _size(payloads: list[bytes]) -> int:
    return sum(map(len, payloads)) + frames.OVERHEAD_BYTES * len(payloads)


def _same_connector(one: Session, other: Session) -> bool:
    """Whether both connections were made by one connector of one process."""
    if one.remote is None or other.remote is None or one.remote.connector == 0:
        return False
    return (one.remote.boot_id, one.remote.connector) == (other.remote.boot_id, other.remote.connector)
