"""`Attachment`: what an extension may do with the peer that it is attached to, from outside the protocol."""

from collections.abc import Sequence

from netcomm import clocks
from netcomm.errors import ConfigurationError
from netcomm.message import Delivery, Stream
from netcomm.protocol.events import Received
from netcomm.protocol.node import Node
from netcomm.runtime.lifecycle import TERMINATED, Lifecycle
from netcomm.runtime.loop import Loop
from netcomm.runtime.sender import Sender


class Attachment:
    """One extension's hold on a peer.

    All methods may be called from any thread that does not hold the node's lock: not from an extension's own methods,
    which use the node itself.
    """

    __slots__ = ("_life", "_loop", "_node", "_sender")

    def __init__(self, life: Lifecycle, node: Node, loop: Loop, sender: Sender) -> None:
        self._life = life
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

        So is all that came before them in their stream: name messages in the order in which they came. It may be
        called again with the same arguments, where the caller was interrupted.

        Raises ConfigurationError for a count that is more than there are; LifecycleError in a forked child.
        """
        self._life.check_process()
        if count > len(received.payloads):
            raise ConfigurationError(f"{count} messages can't be done with: there are {len(received.payloads)}")
        if self._life.phase is not TERMINATED:
            self._loop.do_soon(lambda: self._handled(received, count))

    def _handled(self, received: Received, count: int) -> None:
        if self._node.on_handled(received, count, clocks.now()):
            self._loop.changed.notify_all()  # `terminate` waits for it
