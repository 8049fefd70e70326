"""`Sessions`: the connections of one peer: opened, identified, let in or refused, kept alive, closed.

What a connection says of messages goes on to `handlers`; who is connected is told to the peer concerned, and in events.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from netcomm.deadlines import Action, Deadlines
from netcomm.errors import ConnectionRefusedByPeer, NetcommError, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.logs import Log
from netcomm.protocol import frames
from netcomm.protocol.admission import Decision, decide
from netcomm.protocol.complaints import Complaints
from netcomm.protocol.decode import READ_BYTES
from netcomm.protocol.events import DELIVERIES_ENDED, Close, Connected, Disconnected, ErrorReported
from netcomm.protocol.reading import Reading
from netcomm.protocol.remote_peer import Connection, Emit, RemotePeer, RemotePeers
from netcomm.protocol.session import Ahead, Identified, Session

log = Log("netcomm.messaging")

Handler = Callable[[Connection, Any, float], None]
"""Takes a frame of a connection, and the time. Raises RemoteProtocolError."""

# Frames with messages, which wait for callbacks, and are left unread where too much does.
_MESSAGES = frozenset({frames.Data, frames.Messages})


class Sessions:
    """The connections of one peer, by their numbers.

    reading: which of them are read.
    writable: an ordered set of the numbers of those that may have something to send.
    """

    def __init__(
        self,
        ident: str,
        limits: Limits,
        *,
        peer_id: bytes,
        boot_id: bytes,
        made_up: bool,
        peers: RemotePeers,
        deadlines: Deadlines[Action],
        emit: Emit,
        progress: Callable[[int], tuple[int, int]],
        handlers: Mapping[type, Handler],
        on_connected: Callable[[RemotePeer, float], None],
        on_disconnected: Callable[[RemotePeer, float], None],
    ) -> None:
        """Make it, without connections. For the arguments that are not told of here, see `Messaging`.

        handlers: by the type of the frame, take what admitted connections say of messages.
        on_connected: called when messages may flow to a peer.
        on_disconnected: called when a peer has lost the connection that had its ident, before another one gets it.
        """
        self._ident = ident
        self._limits = limits
        self._peer_id = peer_id
        self._boot_id = boot_id
        self._hello_flags = frames.IDENT_MADE_UP if made_up else 0
        self._peers = peers
        self._deadlines = deadlines
        self._emit = emit
        self._progress = progress
        self._handlers: Mapping[type, Handler] = {
            Identified: self._identify,
            frames.Begin: self._begin,
            frames.Skip: self._skip,
            frames.Goodbye: self._end_process,
            **handlers,
        }
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._complaints = Complaints(emit)
        self._scratch = memoryview(bytearray(READ_BYTES))  # of all connections: only one is read at a time
        self._by_number: dict[int, Connection] = {}
        self.get = self._by_number.get
        self.reading = Reading(limits, emit)
        self.writable: dict[int, None] = {}

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._by_number.values())

    # -- What has happened to a connection --------------------------------------------------------------------

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
            self._hello_flags,
        )
        watch = partial(self._deadlines.set, (self._check, number))
        session = Session(self._ident, hello, self._limits, self._scratch, now, watch)
        connection = self._by_number[number] = Connection(number, session, where, connector, self.writable)
        connection.mark_writable()
        self.reading.resume(connection)
        return session.get_buffer()

    def connection_lost(self, number: int, reason: str, now: float) -> None:
        """A connection has been lost; a number that is not known is passed over."""
        connection = self._by_number.get(number)
        if connection is None:
            return
        if connection.session.legacy and not connection.session.established:
            text = (
                f"{connection.name} closed the connection right after the identification; a snakeMQ peer does so while"
                f" another connection with the ident {self._ident!r} is open there"
            )
            error = ConnectionRefusedByPeer(text, frames.RefuseCode.DUPLICATE_IDENT)
            self._complaints.log_connection_error(connection, text, error)
        elif connection.connector and connection.session.remote_ident is None:
            text = f"{connection.name} closed the connection before it had identified itself"
            self._complaints.log_connection_error(connection, text, RemoteProtocolError(text))
        self._forget(connection, reason, now)

    def connection_failed(self, number: int, error: Exception, now: float) -> None:
        """Something was being done for a connection, and has raised; the connection is lost for it: see `Node`."""
        connection = self._by_number.get(number)
        if connection is None:
            text = f"a connection that is not open failed: {error!r}"
            log.warning("%s", text, exc_info=error)
            self._emit(ErrorReported(NetcommError(text)))
            return
        self._note_fault(connection, error)
        self._forget(connection, "failed", now)

    def unreachable(self, error: Exception) -> None:
        """A connector has found nobody to connect with."""
        self._emit(ErrorReported(error))

    def buffer_updated(self, number: int, count: int, now: float) -> memoryview | None:
        """So many bytes, one at least, have come in on a connection, into the buffer that it was given last.

        Returns the buffer for the next bytes; None for a number that is not known.
        """
        connection = self._by_number.get(number)
        if connection is None:
            return None
        session, peer = connection.session, connection.peer
        session.buffer_updated(count, now)
        if peer is not None:
            peer.bytes_received += count
            if peer.challenger is not None and peer.connection is connection:
                self._refuse_duplicate(peer.challenger, peer, now)
        self._process(connection, now)
        return session.get_buffer()

    def _process(self, connection: Connection, now: float) -> None:
        """Act on what the bytes that have come in say."""
        session = connection.session
        try:
            while (event := session.next_event()) is not None:
                if session.legacy and not session.established:
                    self._establish(connection, now)
                kind = type(event)
                if kind in _MESSAGES and self.reading.is_full(connection, event.stream):  # type: ignore[union-attr]
                    session.put_back(event)  # until the callbacks of enough messages have returned
                    self.reading.pause(connection)
                    break
                self._handlers[kind](connection, event, now)
        except ConnectionRefusedByPeer as error:
            text = f"{connection.name} refused the connection: {error}"
            self._complaints.log_connection_error(connection, text, ConnectionRefusedByPeer(text, error.code))
            self._close(connection, "refused by the other side", now)
        except RemoteProtocolError as error:
            session.refuse(frames.RefuseCode.PROTOCOL_ERROR, str(error))
            text = f"protocol error of {connection.name}: {error}"
            self._complaints.log_connection_error(connection, text, RemoteProtocolError(text))
            self._close(connection, "protocol error", now)
        except Exception as error:
            self._note_fault(connection, error)
            self._close(connection, "failed", now)
        else:
            if connection.has_output:
                connection.mark_writable()

    def resume(self, connection: Connection, now: float) -> None:
        """Callbacks have returned: read a connection that was paused again, if few enough bytes wait for others."""
        if self.reading.has_room(connection):
            connection.session.excuse(now)
            self.reading.resume(connection)
            if not connection.paused:
                self._process(connection, now)  # what was put back

    def _check(self, number: int, now: float) -> None:
        """Do what the time asks for of a session."""
        connection = self._by_number.get(number)
        if connection is None:  # closed by what fell due just before
            return
        try:
            self._check_session(connection, now)
        except Exception as error:
            self._emit(Close(number, []))
            self.connection_failed(number, error, now)

    def _check_session(self, connection: Connection, now: float) -> None:
        session = connection.session
        if session.legacy and not session.established:
            self._establish(connection, now)
            return
        if connection.paused and session.established:
            session.excuse(now)
        reason = session.check(now, partial(self._progress, connection.number))
        if reason is None:
            connection.mark_writable()
            return
        self._complaints.log_connection_error(connection, f"{connection.name}: {reason}")
        self._close(connection, reason, now)

    # -- Identification ---------------------------------------------------------------------------------------

    def _identify(self, connection: Connection, event: Identified, now: float) -> None:
        """Carry out what `admission` decides of a connection that has said its ident."""
        ident = event.ident
        known = self._peers.get(ident)
        decision = decide(
            connection.contender,
            None if known is None else known.present,
            is_own_ident=ident == self._ident,
            own_boot_id=self._boot_id,
            ended_boot_id=None if known is None else known.ended_boot_id,
        )
        match decision:
            case Decision.REFUSE_OWN:
                self._refuse(connection, f"ident {ident!r} is that of this peer itself", now)
            case Decision.REFUSE_TAKEN:
                self._refuse_duplicate(connection, self._peers[ident], now)
            case Decision.REFUSE_ENDED:
                self._close(connection, "its process has ended", now)
            case Decision.ADMIT:
                self._peers.get_or_add(ident).admit(connection, self._limits, now)
            case Decision.REPLACE:
                self._replace(connection, self._peers[ident], now)
            case Decision.CHALLENGE:
                self._challenge(connection, self._peers[ident], now)

    def _replace(self, connection: Connection, peer: RemotePeer, now: float) -> None:
        present = peer.connection
        assert present is not None
        if peer.challenger is not None:
            self._refuse_duplicate(peer.challenger, peer, now)
        self._close(present, "replaced by a newer connection", now)
        peer.admit(connection, self._limits, now)

    def _challenge(self, challenger: Connection, peer: RemotePeer, now: float) -> None:
        """Ask the connection that has an ident for a sign of life; the one that says the ident again waits for it."""
        present = peer.connection
        assert present is not None
        peer.challenge(challenger, Ahead(partial(self._progress, present.number)))
        self.reading.pause(challenger)
        # A snakeMQ peer may still refuse the ident of this side, and would crash on a ping: it is asked later.
        if present.session.established or not present.session.legacy:
            present.session.probe(now, partial(self._progress, present.number))
            present.mark_writable()
        # The challenger's handshake must outlive the probe.
        probe_s = min(self._limits.keepalive_wait_s, self._limits.handshake_s / 2)
        self._deadlines.set((self._end_challenge, peer.ident), now + probe_s)

    def _end_challenge(self, ident: str, now: float) -> None:
        """Nothing has come in from the first connection of an ident since it was asked.

        Where the ping still waits behind output that is being taken, that connection lives.
        """
        peer = self._peers.get(ident)
        if peer is None or peer.challenger is None:  # admitted by what fell due just before
            return
        present, ahead = peer.connection, peer.ahead
        assert present is not None
        assert ahead is not None
        if ahead.has_moved() and not ahead.passed:
            self._refuse_duplicate(peer.challenger, peer, now)
        else:
            self._close(present, "no answer to a ping, and its ident came again", now)

    def _refuse_duplicate(self, connection: Connection, peer: RemotePeer, now: float) -> None:
        present = peer.connection
        assert present is not None
        text = f"ident {peer.ident!r} is connected already, from {present.where}"
        self._refuse(connection, text, now, peer.note_refusal())

    def _refuse(self, connection: Connection, text: str, now: float, repeated: bool = False) -> None:
        log.log(
            logging.DEBUG if repeated else logging.WARNING,
            "refusing the connection with %s: %s",
            connection.where,
            text,
        )
        connection.session.refuse(frames.RefuseCode.DUPLICATE_IDENT, text)
        self._close(connection, "duplicate ident", now)

    def _begin(self, connection: Connection, frame: frames.Begin, now: float) -> None:
        connection.owner.inbox.begin(frame)
        if not connection.session.established:
            self._establish(connection, now)

    def _skip(self, connection: Connection, frame: frames.Skip, now: float) -> None:
        connection.owner.inbox.skip(frame.stream, frame.next_seq)

    def _establish(self, connection: Connection, now: float) -> None:
        """The other side of an admitted connection has accepted it: messages may flow."""
        peer, session = connection.owner, connection.session
        peer.establish(self._limits)
        if session.legacy and peer.challenger is not None:
            session.probe(now, partial(self._progress, connection.number))
        self._on_connected(peer, now)
        kind = "snakeMQ peer " if session.legacy else ""
        log.info("connected to %s%r at %s", kind, peer.ident, connection.where)
        self._emit(Connected(peer.ident, connection.number))
        self._complaints.forget(connection.connector)

    def _end_process(self, connection: Connection, frame: frames.Goodbye, now: float) -> None:
        """The process at the other side ends: it says nothing more, and makes no other connection."""
        peer, remote = connection.owner, connection.session.remote
        assert remote is not None
        peer.ended_boot_id = remote.boot_id
        self._close(connection, "the other side has ended", now)

    # -- Ends -------------------------------------------------------------------------------------------------

    def stop_receiving(self) -> None:
        """Read no more from any connection: the peer is being terminated."""
        self.reading.stop(self)

    def close_all(self, reason: str, now: float) -> None:
        """Close every connection: this process ends, and says so."""
        for connection in list(self):
            # To close one admits its challenger, and what that has said may close it, too.
            if connection.number in self._by_number:
                peer = connection.peer
                if peer is not None and peer.connection is connection:
                    # Where there was no room to write them; what is not acknowledged may be given up at GOODBYE.
                    for ack in peer.inbox.due_acks():
                        connection.session.acknowledge(ack)
                connection.session.say_goodbye()
                self._close(connection, reason, now)

    def _note_fault(self, connection: Connection, error: Exception) -> None:
        """Something that was done for a connection has raised, and the connection is about to be closed."""
        text = f"{connection.name}: failed: {error!r}"
        self._complaints.log_connection_error(connection, text, NetcommError(text), cause=error)
        peer = connection.peer
        if peer is not None and peer.connection is connection:
            peer.outbox.take_back()
            self._emit(DELIVERIES_ENDED)  # some may have ended before it failed

    def _close(self, connection: Connection, reason: str, now: float) -> None:
        """Forget a connection; what its session still has to say goes out before it is closed."""
        self._emit(Close(connection.number, connection.session.take_output()))
        self._forget(connection, reason, now)

    def _forget(self, connection: Connection, reason: str, now: float) -> None:
        number = connection.number
        del self._by_number[number]
        self._deadlines.discard((self._check, number))
        self.writable.pop(number, None)
        peer = connection.peer
        if peer is None:
            log.debug("connection with %s ended before identification: %s", connection.where, reason)
        elif peer.challenger is connection:
            peer.take_challenger()
            self._deadlines.discard((self._end_challenge, peer.ident))
        else:
            self._disconnect(peer, connection, reason, now)

    def _disconnect(self, peer: RemotePeer, connection: Connection, reason: str, now: float) -> None:
        peer.disconnect()
        if connection.session.established:
            log.info("disconnected from %r at %s: %s", peer.ident, connection.where, reason)
            self._emit(Disconnected(peer.ident))
        self._on_disconnected(peer, now)
        challenger = peer.take_challenger()
        if challenger is None:
            return
        self._deadlines.discard((self._end_challenge, peer.ident))
        peer.admit(challenger, self._limits, now)
        self.reading.resume(challenger)
        self._process(challenger, now)
