"""`python -m benchmarks.layers [BYTES]`: what a message costs in each layer, in µs of one core; no socket, no thread.

The core is driven like `netcomm.peer` does it, in batches of 1,000, as `send_many` makes them. What is printed is the
least of several rounds, since everything that disturbs makes it more.
"""

import sys
from collections.abc import Callable
from time import process_time

from netcomm.batch import Batch
from netcomm.message import Delivery, DeliveryState, Limits
from netcomm.messaging import Messaging, Received
from netcomm.wire import OVERHEAD_BYTES

COUNT = 20_000
BATCH = 1000
ROUNDS = 15
_READ_BYTES = 256 * 1024


def _not_waited_for(delivery: Delivery, timeout: float | None) -> bool:
    raise AssertionError


class Pair:
    """Two connected cores, and the bytes between them."""

    def __init__(self, limits: Limits) -> None:
        self.bob, self.niess = self._make("bob", limits), self._make("niess", limits)
        self.bob.connection_opened(1, "there", 1, 0.0)
        self.niess.connection_opened(1, "here", 0, 0.0)
        for _ in range(3):
            self.niess.data_received(1, self.output(self.bob), 0.0)
            self.bob.data_received(1, self.output(self.niess), 0.0)
        self.niess.next_events()

    @staticmethod
    def _make(ident: str, limits: Limits) -> Messaging:
        ids = ident[:1].encode() * 16
        return Messaging(ident, limits, peer_id=ids, boot_id=ids, first_epoch=1, wait=_not_waited_for)

    @staticmethod
    def output(messaging: Messaging) -> bytes:
        packets = []
        more = True
        while more:
            buffers, more = messaging.output(1, _READ_BYTES, 0.0)
            packets += buffers
        return b"".join(packets)

    def hand_over(self) -> None:
        for event in self.niess.next_events():
            if isinstance(event, Received):
                self.niess.hand_over(event, 0, len(event.payloads), 0.0)


def _round(size: int, time: Callable[[str, Callable[[], object]], None]) -> None:
    pair = Pair(Limits(max_queued_messages=10 * COUNT, window_bytes=2**31, max_queued_bytes=2**40))
    data = bytes(size)
    payloads = [data] * BATCH
    batches: list[Batch] = []
    packets = acknowledgement = b""

    def make() -> None:
        for number in range(COUNT // BATCH):
            batches.append(Batch("niess", b"p" * 8, number << 10, payloads, OVERHEAD_BYTES, None, _not_waited_for))

    def queue() -> None:
        for batch in batches:
            pair.bob.send("niess", batch.run(), 0.0)

    def write() -> None:
        nonlocal packets
        packets = pair.output(pair.bob)

    def read() -> None:
        for start in range(0, len(packets), _READ_BYTES):
            pair.niess.data_received(1, packets[start : start + _READ_BYTES], 0.0)

    def acknowledge() -> None:
        pair.bob.data_received(1, acknowledgement, 0.0)

    time("sender: make the batch", make)
    time("sender: number and queue", queue)
    time("sender: window, packets, join", write)
    time("receiver: parse, look for duplicates", read)
    time("receiver: count as handed over", pair.hand_over)
    acknowledgement = pair.output(pair.niess)
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
