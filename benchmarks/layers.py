"""`python -m benchmarks.layers [BYTES]`: what a message costs in each layer, in µs of one core; no socket, no thread.

The core is driven by its `Node`, as in a peer, in batches of 1,000, as `send_many` makes them. What is printed is the
least of several rounds, since everything that disturbs makes it more.
"""

import sys
from collections.abc import Callable
from time import process_time

from netcomm.connections import BufferUpdated, Opened
from netcomm.limits import Limits
from netcomm.message import Delivery, DeliveryState
from netcomm.protocol.batch import Batch
from netcomm.protocol.decode import READ_BYTES
from netcomm.protocol.events import Received
from netcomm.protocol.frames import OVERHEAD_BYTES
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.node import Node

COUNT = 20_000
BATCH = 1000
ROUNDS = 15


class _Owner:
    def wait_for_delivery(self, delivery: Delivery, timeout: float | None) -> bool:
        raise AssertionError

    def watch_delivery(self, delivery: Delivery, function: Callable[[Delivery], object]) -> None:
        raise AssertionError


class Side:
    """One of two peers: its node, and one connection, numbered 1, that takes whatever is written."""

    def __init__(self, ident: str, limits: Limits, connector: int) -> None:
        ids = ident[:1].encode() * 16
        self.messaging = Messaging(ident, limits, peer_id=ids, boot_id=ids, first_epoch=1, owner=_Owner())
        self.node = Node(self.messaging, self, READ_BYTES)
        self._written: list[bytes] = []
        self._received: list[Received] = []
        self._buffer = memoryview(b"")
        self.node.on_link(Opened(1, "there", connector), 0.0)

    def receive(self, packets: bytes) -> None:
        """Let bytes come in."""
        view = memoryview(packets)
        while view:
            buffer = self._buffer
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            view = view[count:]
            self.node.on_link(BufferUpdated(1, count), 0.0)
        self._act()

    def _act(self) -> None:
        for event in self.node.process_pending(0.0).dispatch:
            if isinstance(event, Received):
                self._received.append(event)

    def output(self) -> bytes:
        """Let the node do what there is to do; returns what it has written."""
        self._act()
        written, self._written = self._written, []
        return b"".join(written)

    def hand_over(self) -> None:
        """Let the callbacks of all that has come in return."""
        for received in self._received:
            self.node.on_handled(received, len(received.payloads), 0.0)
        self._received.clear()

    # What the node asks of its connection

    def has_room(self, number: int) -> bool:
        return True

    def write(self, number: int, buffers: list[bytes]) -> None:
        self._written += buffers

    def receive_into(self, number: int, buffer: memoryview) -> None:
        self._buffer = buffer

    def established(self, number: int) -> None:
        pass

    def _never(self, number: int, *_: object) -> None:
        raise AssertionError("nothing of this happens here")

    flush = close = abort = pause = _never


class Pair:
    """Two connected peers, and the bytes between them."""

    def __init__(self, limits: Limits) -> None:
        self.bob, self.niess = Side("bob", limits, 1), Side("niess", limits, 0)
        for _ in range(3):
            self.niess.receive(self.bob.output())
            self.bob.receive(self.niess.output())


def _round(size: int, time: Callable[[str, Callable[[], object]], None]) -> None:
    pair = Pair(Limits(max_queued_messages=10 * COUNT, window_bytes=2**31, max_queued_bytes=2**40))
    data = bytes(size)
    payloads = [data] * BATCH
    batches: list[Batch] = []
    packets = acknowledgement = b""

    def make() -> None:
        for number in range(COUNT // BATCH):
            batches.append(Batch("niess", b"p" * 8, number << 10, payloads, OVERHEAD_BYTES, None, _Owner()))

    def queue() -> None:
        for batch in batches:
            pair.bob.messaging.send("niess", batch.run(), 0.0)

    def write() -> None:
        nonlocal packets
        packets = pair.bob.output()

    def read() -> None:
        pair.niess.receive(packets)

    def acknowledge() -> None:
        pair.bob.receive(acknowledgement)

    time("sender: make the batch", make)
    time("sender: number and queue", queue)
    time("sender: window, packets, join", write)
    time("receiver: parse, look for duplicates", read)
    time("receiver: count as handed over", pair.niess.hand_over)
    acknowledgement = pair.niess.output()
    time("sender: take the acknowledgement", acknowledge)
    assert all(state is DeliveryState.DELIVERED for batch in batches for state in batch.states)


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    least: dict[str, float] = {}

    def time(what: str, act: Callable[[], object]) -> None:
        started = process_time()
        act()
        least[what] = min(least.get(what, float("inf")), (process_time() - started) / COUNT * 1e6)

    for _ in range(ROUNDS):
        _round(size, time)
    for what, microseconds in least.items():
        print(f"{what:38} {microseconds:6.2f} µs")


if __name__ == "__main__":
    main()
