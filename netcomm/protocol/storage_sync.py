"""`StorageSync`: the dialogue of the durable streams with the storage: what is asked of it, and what its answers mean.

It does no I/O: requests are events, and `answered` is told of the results.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from netcomm.errors import StorageCorrupt, StorageError
from netcomm.logs import Log
from netcomm.message import DURABLE, Delivery, DeliveryState
from netcomm.protocol import frames
from netcomm.protocol.durable_out_stream import DurableOutStream
from netcomm.protocol.events import (
    DELIVERIES_ENDED,
    Delete,
    ErrorReported,
    FindExpired,
    Load,
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

    def __init__(self, peers: RemotePeers, emit: Emit, wait: Callable[[Delivery, float | None], bool]) -> None:
        """wait: what `Delivery.wait` calls, for messages that come from the storage."""
        self._peers = peers
        self._emit = emit
        self._wait = wait
        self._wall_clock = WallClock()
        self.stored_time = self._wall_clock.follow
        self._unstored: dict[str, Position] = {}  # by sender; what the storage has not confirmed

    def restore(
        self, streams: Iterable[StoredStream], positions: Mapping[str, Position], now: float, wall_now: float
    ) -> list[RemotePeer]:
        """Take over what a storage has kept; returns the peers that messages in it go to.

        wall_now: the system's time in seconds since the epoch.
        """
        streams = list(streams)
        self._wall_clock.start(now, wall_now, max([0.0, *(stream.newest_at or 0.0 for stream in streams)]))
        wall_now = self._wall_clock.at(now)
        for ident, position in positions.items():
            self._peers.get_or_add(ident, position)
        receivers = []
        for state in streams:
            peer = self._peers.get_or_add(state.ident)
            expires_at = None if state.next_expiry is None else now + state.next_expiry - wall_now
            peer.outbox.set_durable(DurableOutStream.restore(state, expires_at))
            receivers.append(peer)
        return receivers

    # -- Messages that are being stored -----------------------------------------------------------------------

    def number(self, ident: str, deliveries: list[Delivery]) -> int:
        """Give persistent messages their places, before they are stored; returns the epoch of their stream.

        When the storage has them, `Messaging.send_stored` is called, in the order of these calls; where they could not
        be stored, `not_stored`.
        """
        peer = self._peers.get(ident) or self._peers.get_or_add(ident)
        if peer.outbox.durable is None:
            peer.begin(peer.outbox.open_durable(self._peers.new_epoch()))
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
        self._emit(Delete(ident, gone))

    # -- What the storage is asked for ------------------------------------------------------------------------

    def ask(self, peer: RemotePeer) -> None:
        """Ask for what messages to a peer need before they can go on."""
        durable = peer.outbox.durable
        if durable is None:
            return
        for request in durable.wants(peer.ident, self._peers.new_epoch):
            if isinstance(request, Renew):
                text = (
                    f"{peer.ident!r} has more of the durable stream than this storage has ever sent: it was"
                    " restored from a backup. What it holds is sent again"
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
        durable = peer.outbox.durable
        if durable is not None and durable.expires_at is not None and durable.expires_at <= now:
            durable.expires_at = None  # until the answer says
            from_seq = durable.expirable_from()
            self._emit(FindExpired(peer.ident, from_seq, self._wall_clock.at(now), _FIND_COUNT))

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
                return self._position_stored(self._peers[ident], position)
            case Load(ident):
                self._loaded(self._peers[ident], result, now)
            case FindExpired(ident, _, _, max_count):
                found, next_expiry = result
                self._expired_found(self._peers[ident], found, next_expiry, len(found) >= max_count, now)
            case Mark(ident, below):
                self._marked(self._peers[ident], below)
            case Renew(ident, epoch):
                self._renewed(self._peers[ident], epoch)
            case _:
                return None
        peer = self._peers[request.ident]
        self.ask(peer)
        return peer

    def _position_stored(self, peer: RemotePeer, position: Position) -> RemotePeer:
        if self._unstored.get(peer.ident) == position:
            del self._unstored[peer.ident]
        peer.inbox.acknowledge(DURABLE, *position)
        self._emit(DELIVERIES_ENDED)
        return peer

    def _loaded(self, peer: RemotePeer, messages: list[StoredMessage], now: float) -> None:
        deliveries = self._deliveries_of(peer, messages, now)
        delivered, missing = peer.outbox.load(deliveries)
        peer.deliver(delivered)
        if missing:
            text = f"{missing} messages for {peer.ident!r} that were stored are not in the storage"
            log.error("%s", text)
            self._emit(ErrorReported(StorageCorrupt(text)))

    def _expired_found(
        self, peer: RemotePeer, messages: list[StoredMessage], next_expiry: float | None, may_be_more: bool, now: float
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
        peer.drop(expired)

    def _marked(self, peer: RemotePeer, below: int) -> None:
        assert peer.outbox.durable is not None
        peer.outbox.durable.marked(below)

    def _renewed(self, peer: RemotePeer, epoch: int) -> None:
        peer.begin(peer.outbox.renew(epoch))

    def _deliveries_of(self, peer: RemotePeer, messages: Sequence[StoredMessage], now: float) -> list[Delivery]:
        """The Deliveries of stored messages, with the payloads in them: those that `send` returned, if they live."""
        assert peer.outbox.durable is not None
        known = peer.outbox.durable.known()
        deliveries = []
        for seq, uuid, data, queued_at, ttl, _ in messages:
            delivery = known.get(seq)
            if delivery is None:
                expires_at = None if ttl is None else now + ttl - self._wall_clock.age(queued_at, now)
                size = len(data) + frames.OVERHEAD_BYTES
                delivery = Delivery(peer.ident, uuid, data, size, expires_at, True, self._wait)
                delivery.seq = seq
            delivery.data = data
            deliveries.append(delivery)
        return deliveries
