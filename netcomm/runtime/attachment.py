"""`Attachment`: what an extension may do with the peer that it is attached to, from outside the protocol."""

from collections.abc import Sequence

from netcomm import clocks
from netcomm.message import Delivery, Stream
from netcomm.protocol.events import Received
from netcomm.protocol.node import Node
from netcomm.runtime.loop import Loop
from netcomm.runtime.sender import Sender


class Attachment:
    """One extension's hold on a peer.

    All methods may be called from any thread that does not hold the node's lock: not from an extension's own methods,
    which use the node itself.
    """

    __slots__ = ("_loop", "_node", "_sender")

    def __init__(self, node: Node, loop: Loop, sender: Sender) -> None:
        self._node = node
        self._loop = loop
        self._sender = sender

    def send(
        self,
        ident: str,
        stream: Stream,
        items: Sequence[bytes],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        envelope: bytes | None = None,
    ) -> Sequence[Delivery]:
        """Queue messages in a stream to a peer, in their order; in a durable one, they are stored when this returns.

        items: payloads; in the stream BULK, of at most MAX_BULK_BYTES each.
        ttl, timeout: in seconds, as for `Peer.send_many`.
        envelope: of all of them, see `netcomm.protocol.envelope.encode`; its id and ref count up from one to the next.

        Raises what `Peer.send_many` raises.
        """
        return self._sender.send_in(ident, stream, items, ttl, timeout, envelope)

    def handled(self, received: Received, count: int) -> None:
        """The first `count` of these messages, in all, are done with: they are acknowledged.

        So is all that came before them in their stream: name messages in the order in which they came.
        """
        with self._loop.mutex:
            now = clocks.now()
            if self._node.on_handled(received, count, now):
                self._loop.write_to(received.ident, now)
                self._loop.changed.notify_all()  # `terminate` waits for it
