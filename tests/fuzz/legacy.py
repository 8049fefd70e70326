"""What must hold of `netcomm.messaging.Messaging` for any bytes of a snakeMQ peer, while messages wait for it."""

from collections.abc import Sequence

from netcomm.message import DeliveryState
from netcomm.messaging import Close, Messaging, Received
from tests.fuzz import reference
from tests.fuzz.codec import LIMITS, as_read
from tests.unit import helpers
from tests.unit.helpers import legacy_handshake, make_delivery, not_waited_for


def check_legacy(chunks: Sequence[bytes], queued: int) -> None:
    """All that the peer says behind its handshake is taken as it comes, and its pongs acknowledge what is before them.

    queued: how many messages wait for it; each goes out with a barrier of its own.
    """
    messaging = Messaging(
        "a", LIMITS, peer_id=bytes(16), boot_id=b"A" * 16, first_epoch=1, wait=not_waited_for, stores_positions=False
    )
    deliveries = [make_delivery("b", bytes([number])) for number in range(queued)]
    for delivery in deliveries:
        messaging.send("b", delivery, 0.0)
    messaging.connection_opened(1, "place", 0, 0.0)
    said = b""
    received: list[bytes] = []
    closed = False
    for chunk in (legacy_handshake("b"), *chunks):
        messaging.data_received(1, chunk, 0.0)
        while buffers := messaging.output(1, 1, 0.0)[0]:
            said += b"".join(buffers)
        while events := messaging.next_events():
            for event in events:
                if isinstance(event, Received):
                    received += [item[4] for item in event.items]
                    messaging.hand_over(event, 0, len(event.items), 0.0)
                elif isinstance(event, Close):
                    closed = True
                    said += b"".join(event.farewell)
            said += b"".join(messaging.output(1, 1 << 20, 0.0)[0])

    stream = legacy_handshake("b") + b"".join(chunks)
    reading = reference.read(stream, LIMITS.max_handshake_frame_bytes, LIMITS.max_frame_bytes)
    heard = list(reference.spoken(as_read(reading.packets)))
    kinds = [kind for kind, _ in heard]
    assert received == [payload[24:] for kind, payload in heard if kind == reference.MESSAGE]
    ended = reading.broken or kinds[-1] in (reference.UNEXPECTED, reference.INCOMPATIBLE)
    assert closed == ended
    answers = [kind for kind, _ in helpers.packets(said)]
    assert answers.count(reference.PONG) == kinds.count(reference.PING)
    assert answers.count(reference.REFUSE) == 0, "a snakeMQ peer is not told why"

    delivered = [delivery.state is DeliveryState.DELIVERED for delivery in deliveries]
    assert delivered == sorted(delivered, reverse=True), "acknowledged out of order"
    assert sum(delivered) <= kinds.count(reference.PONG)
    messaging.connection_lost(1, "gone", 0.0)
    stats = messaging.stats()["b"]
    assert (stats.queued, stats.in_flight) == (queued - sum(delivered), 0)
    assert all(delivery.state is DeliveryState.QUEUED for delivery in deliveries[sum(delivered) :])
