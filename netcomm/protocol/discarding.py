"""`Discarding`: messages are given up: their user says so, or their receiver never comes back.

An ident that was made up never has another process. Once its process has said GOODBYE, it is gone. Where its connection
broke instead, and it has been away for long, it counts as gone, until it connects again.
"""

from netcomm.deadlines import Action, Deadlines
from netcomm.limits import Limits
from netcomm.logs import Log
from netcomm.message import Delivery, DeliveryState
from netcomm.protocol.batch import Entry
from netcomm.protocol.events import DELIVERIES_ENDED
from netcomm.protocol.open_run import OpenRun
from netcomm.protocol.remote_peer import Emit, RemotePeer, RemotePeers
from netcomm.protocol.storage_sync import StorageSync

log = Log("netcomm.messaging")


class Discarding:
    """Ends messages as DISCARDED, on all streams to a receiver."""

    __slots__ = ("_away_s", "_deadlines", "_emit", "_open_runs", "_peers", "_storage_sync", "_told")

    def __init__(
        self,
        limits: Limits,
        peers: RemotePeers,
        storage_sync: StorageSync,
        deadlines: Deadlines[Action],
        open_runs: dict[str, OpenRun],
        emit: Emit,
    ) -> None:
        """open_runs: by ident, what messages may join without being queued."""
        self._away_s = limits.made_up_ident_away_s
        self._peers = peers
        self._storage_sync = storage_sync
        self._deadlines = deadlines
        self._open_runs = open_runs
        self._emit = emit
        self._told: set[str] = set()  # receivers that are given up, and that the log has told of

    def discard(self, peer: RemotePeer) -> int:
        """End every message to a peer that has not ended; returns how many.

        Callbacks are told of those in the storage alone once the storage has read them.
        """
        self._open_runs.pop(peer.ident, None)
        entries, stored = peer.outbox.give_up()
        peer.drop(entries)
        if stored:
            peer.call_watchers()
            self._emit(DELIVERIES_ENDED)  # callbacks are told later; a thread that waits for one may look now
        self._storage_sync.ask(peer)
        return sum(entry.count for entry in entries) + stored

    # -- Idents that were made up -----------------------------------------------------------------------------

    def disconnected(self, peer: RemotePeer, now: float) -> None:
        """A peer has lost its connection: if its ident was made up, it may be gone."""
        if not peer.made_up:
            return
        if peer.ended_boot_id is None:
            self._deadlines.set((self._look, peer.ident), now + self._away_s)
        else:
            self._give_up(peer, "it has ended")

    def forget(self, ident: str) -> None:
        """A peer is known no more."""
        self._deadlines.discard((self._look, ident))
        self._told.discard(ident)

    def _look(self, ident: str, _: float) -> None:
        peer = self._peers.get(ident)
        if peer is not None and peer.connection is None and peer.given_up is None:
            self._give_up(peer, f"it has been away for {self._away_s:g} s")

    def _give_up(self, peer: RemotePeer, why: str) -> None:
        peer.given_up = why
        self._told.discard(peer.ident)
        count = self.discard(peer)
        if count:
            self._tell(peer, count)
        else:
            log.info("no message waits for %r any more: %s, and its ident was made up", peer.ident, why)

    def refuse(self, peer: RemotePeer, entry: Entry) -> None:
        """End transient messages that are sent to a peer that was given up."""
        if entry.done:  # the caller was interrupted, and comes again
            return
        entry.state = DeliveryState.DISCARDED
        peer.drop([entry])
        self._tell(peer, entry.count)

    def refuse_stored(self, peer: RemotePeer, deliveries: list[Delivery]) -> None:
        """End persistent messages that are sent to a peer that was given up; they are queued and stored."""
        self.discard(peer)
        self._tell(peer, len(deliveries))

    def _tell(self, peer: RemotePeer, count: int) -> None:
        """Log that messages are discarded: once, and not for each message that follows."""
        if peer.ident not in self._told:
            self._told.add(peer.ident)
            log.warning(
                "%d messages for %r are discarded: %s, and its ident was made up, so no other process has it. Messages"
                " that are sent to it from now on are discarded, too",
                count,
                peer.ident,
                peer.given_up,
            )
