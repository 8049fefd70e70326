"""What must hold of a `Node` for any bytes of a snakeMQ peer, while messages wait for it."""

from collections.abc import Sequence

from netcomm.message import DeliveryState
from tests.fuzz import reference
from tests.fuzz.codec import LIMITS, as_read
from tests.unit import helpers
from tests.unit.helpers import Net, legacy_handshake


def check_legacy(chunks: Sequence[bytes], queued: int) -> None:
    """All that the peer says behind its handshake is taken as it comes, and its pongs acknowledge what is before them.

    queued: how many messages wait for it; each goes out with a barrier of its own.
    """
    net = Net()
    net.budget, net.high = 1, 1 << 30
    host = net.host("a", LIMITS)
    deliveries = [host.send("b", bytes([number])) for number in range(queued)]
    end = net.raw(host)
    for chunk in (legacy_handshake("b"), *chunks):
        end.feed(chunk)
        net.settle()

    stream = legacy_handshake("b") + b"".join(chunks)
    reading = reference.read(stream, LIMITS.max_handshake_frame_bytes, LIMITS.max_frame_bytes)
    heard = list(reference.spoken(as_read(reading.packets)))
    kinds = [kind for kind, _ in heard]
    assert host.payloads() == [payload[24:] for kind, payload in heard if kind == reference.MESSAGE]
    ended = reading.broken or kinds[-1] in (reference.UNEXPECTED, reference.INCOMPATIBLE)
    assert end.gone == ended
    answers = [kind for kind, _ in helpers.packets(bytes(end.out))]
    assert answers.count(reference.PONG) == kinds.count(reference.PING)
    assert answers.count(reference.REFUSE) == 0, "a snakeMQ peer is not told why"

    delivered = [delivery.state is DeliveryState.DELIVERED for delivery in deliveries]
    assert delivered == sorted(delivered, reverse=True), "acknowledged out of order"
    assert sum(delivered) <= kinds.count(reference.PONG)
    end.lose("gone")
    stats = host.messaging.peers.stats()["b"]
    assert (stats.queued, stats.in_flight) == (queued - sum(delivered), 0)
    assert all(delivery.state is DeliveryState.QUEUED for delivery in deliveries[sum(delivered) :])
