"""Echoes for the vectors of docs/protocol.md: what sends each message back by its stream, with its envelope."""

from netcomm.message import Stream
from netcomm.protocol import envelope, frames
from netcomm.protocol.batch import Batch
from netcomm.protocol.events import Received
from netcomm.protocol.extension import Extension, NodePort
from tests.unit import helpers


def send_back(node: NodePort, received: Received, now: float) -> None:
    """Send messages back: those that need no storage, and are not too large for their stream."""
    stream = received.stream
    if stream is None or stream.durable:
        return
    for _, uuid, _, _, payload, its_envelope in received.items:
        if stream is Stream.BULK and len(payload) > frames.MAX_BULK_BYTES:
            continue
        raw = None if its_envelope is None else envelope.encode(its_envelope)
        overhead = helpers.OVERHEAD + len(raw or b"")
        number = int.from_bytes(uuid[8:])
        batch = Batch(received.ident, uuid[:8], number, [payload], overhead, None, helpers.not_waited_for, raw, stream)
        node.messaging.send(received.ident, batch.run(), now)


class TakeAll(Extension):
    """Takes what comes in the streams that callbacks do not take, and sends it back if it is an echo."""

    streams = (Stream.BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)

    def __init__(self, echoes: bool = False) -> None:
        self._echoes = echoes

    def attached(self, node: NodePort, now: float) -> None:
        self._node = node

    def receive(self, received: Received, now: float) -> None:
        self._node.on_handled(received, len(received.payloads), now)
        if self._echoes:
            send_back(self._node, received, now)
