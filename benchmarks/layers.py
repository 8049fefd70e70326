"""`python -m benchmarks.layers [BYTES]`: what a message costs in each layer, in µs of one core; no socket, no thread.

The core is driven like `netcomm.peer` does it, in batches of 1,000, as `send_many` makes them. What is printed is the
least of several rounds, since everything that disturbs makes it more.
"""

import sys
from collections.abc import Callable
from time import process_time

from netcomm.message import Batch, Delivery, DeliveryState, Limits
from netcomm.messaging import Messaging, Received
from netcomm.wire import packet_size

COUNT = 20_000
BATCH = 1000
ROUNDS = 15
_READ_BYTES = 256 * 1024


def _not_waited_for(delivery: Delivery, timeout: float | None) -> bool:
    raise AssertionError


def _messaging(ident: str, letter: bytes) -> Messaging:
    limits = Limits(max_queued_messages=10 * COUNT, window_bytes=2**31, max_queued_bytes=2**40)
    ids = letter * 16
    return Messaging(ident, limits, peer_id=ids, boot_id=ids, first_epoch=1, wait=_not_waited_for)


def _output(messaging: Messaging) -> bytes:
    packets = []
    more = True
    while more:
        buffers, more = messaging.output(1, _READ_BYTES, 0.0)
        packets += buffers
    return b"".join(packets)


def _round(size: int, time: Callable[[str, Callable[[], object]], None]) -> None:
    bob, niess = _messaging("bob", b"b"), _messaging("niess", b"n")
    bob.connection_opened(1, "there", 1, 0.0)
    niess.connection_opened(1, "here", 0, 0.0)
    for _ in range(3):
        niess.data_received(1, _output(bob), 0.0)
        bob.data_received(1, _output(niess), 0.0)
    data = bytes(size)
    payloads = [data] * BATCH
    batches: list[Batch] = []
    packets = acknowledgement = b""

    def make() -> None:
        for number in range(COUNT // BATCH):
            batches.append(Batch("niess", b"p" * 8, number << 10, payloads, packet_size(0), None, _not_waited_for))

    def queue() -> None:
        for batch in batches:
            bob.send("niess", batch.run(), 0.0)

    def write() -> None:
        nonlocal packets
        packets = _output(bob)

    def read() -> None:
        for start in range(0, len(packets), _READ_BYTES):
            niess.data_received(1, packets[start : start + _READ_BYTES], 0.0)

    def hand_over() -> None:
        for event in niess.next_events():
            if isinstance(event, Received):
                niess.hand_over(event, 0, len(event.items), 0.0)

    def acknowledge() -> None:
        bob.data_received(1, acknowledgement, 0.0)

    time("sender: make the batch", make)
    time("sender: number and queue", queue)
    time("sender: window, packets, join", write)
    time("receiver: parse, look for duplicates", read)
    time("receiver: count as handed over", hand_over)
    acknowledgement = _output(niess)
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
