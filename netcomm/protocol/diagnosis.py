"""`Diagnosis`: messages that wait for an ident that nobody connects with: the log warns that it may be wrong."""

from netcomm.deadlines import Action, Deadlines
from netcomm.logs import Log
from netcomm.protocol.remote_peer import RemotePeer, RemotePeers

log = Log("netcomm.messaging")

# So many idents are named, and the others are counted: a line of the log has its bounds.
_MAX_NAMED = 5


class Diagnosis:
    """Looks, some time after messages began to wait for a peer that is not connected, whether they still do.

    It warns once, until the peer was connected; and not while no other peer is connected, since then it is not the
    ident that is wrong.

    watched: idents that are to be looked at, or that the log has warned of: it need not be told of more messages.
    """

    __slots__ = ("_after_s", "_deadlines", "_peers", "_undecided", "watched")

    def __init__(self, peers: RemotePeers, deadlines: Deadlines[Action], after_s: float) -> None:
        """after_s: how many seconds messages may wait before the log warns."""
        self._peers = peers
        self._deadlines = deadlines
        self._after_s = after_s
        self.watched: set[str] = set()
        # Those of them that messages waited for when they were looked at, while no other peer was connected.
        self._undecided: set[str] = set()

    def messages_wait(self, peer: RemotePeer, now: float) -> None:
        """Messages may wait for a peer: if they do, and it is not connected, look again later."""
        if peer.ident not in self.watched and not peer.connected and not peer.outbox.idle:
            self.watched.add(peer.ident)
            self._deadlines.set((self._look, peer.ident), now + self._after_s)

    def connected(self, peer: RemotePeer, now: float) -> None:
        """A peer is connected: those that wait for others may have the wrong ident."""
        self._deadlines.discard((self._look, peer.ident))
        self.watched.discard(peer.ident)
        self.watched -= self._undecided
        for ident in self._undecided:
            self.messages_wait(self._peers[ident], now)
        self._undecided.clear()

    def forget(self, ident: str) -> None:
        """A peer is known no more."""
        self._deadlines.discard((self._look, ident))
        self.watched.discard(ident)
        self._undecided.discard(ident)

    def _look(self, ident: str, _: float) -> None:
        peer = self._peers.get(ident)
        if peer is None:  # forgotten by what fell due just before
            return
        if peer.connected or not peer.outbox.queued:
            self.watched.discard(ident)
            return
        connected = self._peers.connected_idents()
        if not connected:
            self._undecided.add(ident)
            return
        log.warning(
            "%d messages wait for %r, which is not connected; connected are: %s. Is the ident right?",
            peer.outbox.queued,
            ident,
            _some_of(connected),
        )


def _some_of(idents: list[str]) -> str:
    """The first of the idents, and how many others there are."""
    named = ", ".join(map(repr, idents[:_MAX_NAMED]))
    others = len(idents) - _MAX_NAMED
    return f"{named} and {others} others" if others > 0 else named
