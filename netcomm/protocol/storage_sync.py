"""`StorageSync`: the dialogue of the durable streams with the storage: what is asked of it, and what its answers mean.

It does no I/O: requests are events, and `answered` is told of the results.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netcomm.errors import StorageCorrupt, StorageError
from netcomm.logs import Log
from netcomm.message import DURABLE, Delivery, DeliveryOwner, DeliveryState, Stream
from netcomm.protocol import frames
from netcomm.protocol.durable_out_stream import DurableOutStream
from netcomm.protocol.events import (
    DELIVERIES_ENDED,
    Delete,
    DeleteBelow,
    ErrorReported,
    FindExpired,
    Load,
    LoadDiscarded,
    Mark,
    Renew,
    StorageRequest,
    StorePosition,
)
from netcomm.protocol.remote_peer import Emit, RemotePeer, RemotePeers
from netcomm.protocol.wall_clock import WallClock
from netcomm.storage import Position, StoredMessage, StoredStream

log = Log("netcomm.messaging")

# So many messages that have expired are asked for at once.
_FIND_COUNT = 1000
_LOOK_AGAIN_S = 1.0


class StorageSync:
    """What the storage of one peer knows, and what it is to do.

    stored_time: called with `now` and the system's time, returns the time that is stored with messages sent now.
    """

    def __init__(self, peers: RemotePeers, emit: Emit, owner: DeliveryOwner) -> None:
        """owner: of the Deliveries of messages that come from the storage."""
        self._peers = peers
        self._emit = emit
        self._owner = owner
        self._wall_clock = WallClock()
        self.stored_time = self._wall_clock.follow
        self._unstored: dict[str, Position] = {}  # by sender; what the storage has not confirmed

    def restore(
        self,
        streams: Iterable[StoredStream],
        positions: Mapping[tuple[str, Stream], Position],
        now: float,
        wall_now: float,
    ) -> list[RemotePeer]:
        """Take over what a storage has kept; returns the peers that messages in it go to.

        positions: by sender and stream.
        wall_now: the system's time in seconds since the epoch.
        """
        streams = list(streams)
        self._wall_clock.start(now, wall_now, max([0.0, *(stream.newest_at or 0.0 for stream in streams)]))
        wall_now = self._wall_clock.at(now)
        for (ident, stream), position in positions.items():
            self._peers.get_or_add(ident).inbox.restore(stream, position)
        receivers: dict[RemotePeer, None] = {}
        for state in streams:
            peer = self._peers.get_or_add(state.ident)
            expires_at = None if state.next_expiry is None else now + state.next_expiry - wall_now
            peer.outbox.add(DurableOutStream.restore(state, expires_at))
            receivers[peer] = None
        return list(receivers)

    # -- Messages that are being stored -----------------------------------------------------------------------

    def number(self, ident: str, deliveries: list[Delivery]) -> int:
        """Give persistent messages of one stream their places, before they are stored; returns the stream's epoch.

        When the storage has them, `Messaging.send_stored` is called, in the order of these calls; where they could not
        be stored, `not_stored`.
        """
        peer = self._peers.get(ident) or self._peers.get_or_add(ident)
        stream = deliveries[0].stream
        if stream not in peer.outbox.durables:
            self._peers.open_stream(peer, stream)
        durable = peer.outbox.durables[stream]
        durable.number(deliveries)
        return durable.epoch

    def not_stored(self, ident: str, deliveries: list[Delivery]) -> None:
        """Messages that were numbered could not be stored, as far as the storage can tell."""
        for delivery in deliveries:
            delivery.state = DeliveryState.DISCARDED
        stream = deliveries[0].stream
        gone = [delivery.seq for delivery in deliveries]
        self._peers[ident].outbox.durables[stream].lose(gone)
        self._emit(Delete(ident, gone, stream))

    # -- What the storage is asked for ------------------------------------------------------------------------

    def ask(self, peer: RemotePeer) -> None:
        """Ask for what messages to a peer need before they can go on."""
        for durable in peer.outbox.durables.values():
            wanted = durable.wants(peer.ident, self._peers.new_epoch)
            if wanted:
                self._request(peer, durable, wanted)

    def _request(self, peer: RemotePeer, durable: DurableOutStream, wanted: list[StorageRequest]) -> None:
        for request in wanted:
            if isinstance(request, Renew):
                text = (
                    f"{peer.ident!r} has more of the stream {durable.stream.name} than this storage has ever sent: it"
                    " was restored from a backup. What it holds is sent again"
                )
                log.warning("%s", text)
                self._emit(ErrorReported(StorageError(text)))
            # In this order: an interruption of the caller (Ctrl-C) comes where a call begins or ends.
            durable.asked(request)
            try:
                self._emit(request)
            except MemoryError:
                durable.asked(request, False)
                raise

    def find_expired(self, peer: RemotePeer, now: float) -> None:
        """Search for messages to a peer that have expired, if it is time."""
        for durable in peer.outbox.durables.values():
            if durable.expires_at is not None and durable.expires_at <= now:
                durable.expires_at = None  # until the answer says
                from_seq, wall_now = durable.expirable_from(), self._wall_clock.at(now)
                self._emit(FindExpired(peer.ident, from_seq, wall_now, _FIND_COUNT, durable.stream))

    def delete_discarded(self, peer: RemotePeer) -> None:
        """The peer ends: let the storage forget what was discarded in it, and was not read for the callbacks yet."""
        for durable in peer.outbox.durables.values():
            if (below := durable.unread_below()) is not None:
                self._emit(DeleteBelow(peer.ident, below, durable.stream))

    def store_position(self, peer: RemotePeer, position: Position) -> None:
        """Let the storage take a position, before the sender is told of it."""
        self._unstored[peer.ident] = position
        self._emit(StorePosition(peer.ident, position))

    @property
    def all_stored(self) -> bool:
        """Whether the storage has every position."""
        return not self._unstored

    # -- What it has answered ---------------------------------------------------------------------------------

    def answered(self, request: StorageRequest, result: Any, now: float, wall_now: float) -> RemotePeer | None:
        """The storage has carried out a request.

        wall_now: the system's time in seconds since the epoch.

        Returns the peer whose streams may go on now, if there is one.
        """
        self._wall_clock.follow(now, wall_now)
        match request:
            case StorePosition(ident, position):
                return self._position_stored(ident, position)
            case Load():
                self._loaded(request, result, now)
            case LoadDiscarded():
                self._discarded_loaded(request, result, now)
            case FindExpired():
                found, next_expiry = result
                self._expired_found(request, found, next_expiry, now)
            case Mark(ident, below, stream):
                self._peers[ident].outbox.durables[stream].marked(below)
            case Renew(ident, epoch, stream):
                peer = self._peers[ident]
                peer.begin(peer.outbox.renew(stream, epoch))
            case _:
                return None
        peer = self._peers[request.ident]
        self.ask(peer)
        return peer

    def _position_stored(self, ident: str, position: Position) -> RemotePeer | None:
        if self._unstored.get(ident) == position:
            del self._unstored[ident]
        peer = self._peers.get(ident)
        if peer is not None:  # else it was given up, and forgotten
            peer.inbox.acknowledge(DURABLE, *position)
        self._emit(DELIVERIES_ENDED)
        return peer

    def _loaded(self, request: Load, messages: list[StoredMessage], now: float) -> None:
        peer, stream = self._peers[request.ident], request.stream
        deliveries = self._deliveries_of(peer, stream, messages, now)
        delivered, missing = peer.outbox.load(stream, deliveries)
        peer.deliver(delivered)
        if missing:
            text = f"{missing} messages for {peer.ident!r} that were stored are not in the storage"
            log.error("%s", text)
            self._emit(ErrorReported(StorageCorrupt(text)))

    def _discarded_loaded(self, request: LoadDiscarded, messages: list[StoredMessage], now: float) -> None:
        peer, stream = self._peers[request.ident], request.stream
        durable = peer.outbox.durables[stream]
        discarded = self._deliveries_of(peer, stream, durable.read_discarded(messages), now)
        for delivery in discarded:
            delivery.state = DeliveryState.DISCARDED
        durable.forget_known(discarded)
        peer.drop(discarded)
        if durable.unread_below() is None:  # nothing keeps what was acknowledged meanwhile any longer
            self._emit(DeleteBelow(peer.ident, durable.deletable_below(), stream))

    def _expired_found(
        self, request: FindExpired, messages: list[StoredMessage], next_expiry: float | None, now: float
    ) -> None:
        """`next_expiry` is as the storage says it, in seconds since the epoch."""
        peer, stream = self._peers[request.ident], request.stream
        durable = peer.outbox.durables[stream]
        may_be_more = len(messages) >= request.max_count
        still_there = [message for message in messages if durable.is_stored(message.seq)]
        expired = []
        looks = [] if next_expiry is None else [now + max(0.0, next_expiry - self._wall_clock.at(now))]
        for delivery in self._deliveries_of(peer, stream, still_there, now):
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
        peer.drop(expired)

    def _deliveries_of(
        self, peer: RemotePeer, stream: Stream, messages: Sequence[StoredMessage], now: float
    ) -> list[Delivery]:
        """The Deliveries of stored messages, with the payloads in them: those that `send` returned, if they live."""
        known = peer.outbox.durables[stream].known()
        deliveries = []
        for seq, uuid, data, queued_at, ttl, envelope in messages:
            delivery = known.get(seq)
            if delivery is None:
                expires_at = None if ttl is None else now + ttl - self._wall_clock.age(queued_at, now)
                size = len(data) + len(envelope) + frames.OVERHEAD_BYTES
                delivery = Delivery(peer.ident, uuid, data, size, expires_at, stream, self._owner, envelope or None)
                delivery.seq = seq
            delivery.data = data
            deliveries.append(delivery)
        return deliveries
