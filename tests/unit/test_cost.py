"""What a message costs, in calls of functions: Python's own and those in C. Times are noisy, and these are not.

The bounds are what it costs, and a little more. Where a change goes beyond one, it has put work for each message on the
way that all of them take.
"""

from collections.abc import Callable, Iterator

import pytest

from benchmarks.layers import Pair
from netcomm import Limits, SnakemqConnector
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import DeliveryState
from netcomm.protocol.batch import Batch
from netcomm.protocol.events import Received
from tests.unit.helpers import OVERHEAD, calls, make_delivery, not_waited_for

COUNT = 1000
PAYLOAD = bytes(100)


def calls_per_message(act: Callable[[], object]) -> float:
    """How many calls it takes to do something with COUNT messages, for each of them."""
    return calls(act) / COUNT


def make_batch(count: int) -> Batch:
    return Batch("niess", b"p" * 8, 0, [PAYLOAD] * count, OVERHEAD, None, not_waited_for)


pytestmark = pytest.mark.plain_locks


@pytest.fixture
def unconnected() -> Iterator[SnakemqConnector]:
    peer = SnakemqConnector("bob", "unix:/nobody/listens/here", 0)
    peer.start()
    yield peer
    peer.terminate(0)  # nothing will be delivered


def test_the_cost_of_sending_a_batch(unconnected: SnakemqConnector) -> None:
    payloads = [PAYLOAD] * COUNT
    unconnected.send_many("niess", payloads[:1])
    # len, append
    assert calls_per_message(lambda: unconnected.send_many("niess", payloads)) < 2.3


def test_the_cost_of_sending_one_by_one(unconnected: SnakemqConnector) -> None:
    unconnected.send("niess", PAYLOAD)

    def send() -> None:
        for _ in range(COUNT):
            unconnected.send("niess", PAYLOAD)

    # send, get; join, and in it len, next
    assert calls_per_message(send) < 5.4


def test_the_cost_of_storing_one_by_one() -> None:
    with SnakemqConnector("bob", "unix:/nobody/listens/here", 0, True, storage=MemoryQueueStorage()) as bob:
        bob.send("niess", PAYLOAD)

        def send() -> None:
            for _ in range(COUNT):
                bob.send("niess", PAYLOAD)

        assert calls_per_message(send) < 76


def test_the_cost_of_handing_over(unconnected: SnakemqConnector) -> None:
    unconnected.send("niess", PAYLOAD)
    unconnected.on_recv.add(lambda ident, data: None)
    received = Received("niess", None, 0, 0, [(0, COUNT, bytes(16), 0, 0, None)], [PAYLOAD] * COUNT, 0)
    assert calls_per_message(lambda: unconnected._runtime.callbacks.run(received)) < 1.1  # the callback


def test_the_cost_of_the_core() -> None:
    pair = Pair(Limits())
    batch = make_batch(COUNT)
    run = batch.run()
    assert calls_per_message(lambda: pair.bob.messaging.send("niess", run, 0.0)) < 0.1
    packets = b""

    def output() -> None:
        nonlocal packets
        packets = pair.bob.output()

    assert calls_per_message(output) < 0.1
    assert calls_per_message(lambda: pair.niess.receive(packets)) < 0.1
    assert calls_per_message(pair.niess.hand_over) < 0.1
    acknowledgement = pair.niess.output()
    assert calls_per_message(lambda: pair.bob.receive(acknowledgement)) < 0.1
    assert set(batch.states) == {DeliveryState.DELIVERED}


def test_the_cost_of_single_messages_in_the_core() -> None:
    pair = Pair(Limits())
    deliveries = [make_delivery("niess", PAYLOAD, None, 0.0) for _ in range(COUNT)]

    def send() -> None:
        for delivery in deliveries:
            pair.bob.messaging.send("niess", delivery, 0.0)

    assert calls_per_message(send) < 9
    packets = b""

    def output() -> None:
        nonlocal packets
        packets = pair.bob.output()

    # popleft and append; pack, and two appends
    assert calls_per_message(output) < 6.3
    pair.niess.receive(packets)
    pair.niess.hand_over()
    acknowledgement = pair.niess.output()
    assert calls_per_message(lambda: pair.bob.receive(acknowledgement)) < 3.3  # popleft, append
    assert all(delivery.done for delivery in deliveries)


def test_the_cost_does_not_hide_in_the_number_of_batches() -> None:
    pair = Pair(Limits())
    for _ in range(10):
        pair.bob.messaging.send("niess", make_batch(COUNT // 10).run(), 0.0)
    assert calls_per_message(lambda: pair.bob.output()) < 0.5
