import threading

import pytest

from netcomm import FLAG_PERSISTENT, DeliveryState
from tests.interop.helpers import WAIT_S, connected_pair, digest, payload

MIB = 1024 * 1024
SIZES = [0, 1, MIB, 20 * MIB, 0, 17]
ENDLESS = 0xFFFFFFFF  # the ttl on the wire that stands for no limit


def test_messages_of_all_sizes_go_to_snakemq(role: str) -> None:
    data = [payload(seed, size) for seed, size in enumerate(SIZES)]
    with connected_pair(role) as pair:
        deliveries = [pair.peer.send("snake", item) for item in data]
        received = pair.snake.wait_for("message", len(SIZES))
        assert [delivery.wait(WAIT_S) for delivery in deliveries] == [True] * len(SIZES)
        assert [event["size"] for event in received] == SIZES
        assert [event["sha256"] for event in received] == [digest(item) for item in data]
        assert [event["uuid"] for event in received] == [delivery.uuid.hex() for delivery in deliveries]
        assert {event["ident"] for event in received} == {"net"}
        pair.assert_undisturbed()


def test_messages_of_all_sizes_come_from_snakemq(role: str) -> None:
    with connected_pair(role) as pair:
        queued = []
        for seed, size in enumerate(SIZES):
            queued += pair.snake.send("net", size=size, seed=seed)
        received = pair.watch.messages.wait_for_count(len(SIZES))
        assert [len(message.data) for _, message in received] == SIZES
        assert pair.watch.received(sender="snake") == [(event["uuid"], event["sha256"]) for event in queued]
        assert {ident for ident, _ in received} == {"snake"}
        pair.assert_undisturbed()


def test_thousands_of_messages_cross_in_order(role: str) -> None:
    count = 3000
    with connected_pair(role) as pair:
        pair.snake.tell("send", to="net", size=50, count=count)
        deliveries = pair.peer.send_many("snake", (b"%d" % number for number in range(count)))
        pair.watch.messages.wait_for_count(count)
        queued = pair.snake.wait_for("queued", count)
        assert pair.watch.received(sender="snake") == [(event["uuid"], event["sha256"]) for event in queued]
        pair.snake.wait_for("message", count)
        assert [uuid for uuid, _ in pair.snake.received()] == [delivery.uuid.hex() for delivery in deliveries]
        assert all(delivery.wait(WAIT_S) for delivery in deliveries)
        pair.assert_undisturbed()


@pytest.mark.parametrize(
    ("ttl", "arrives_as"), [(None, None), (0, 0), (7, 7), (7.9, 7), (86400, 86400), (ENDLESS - 1, ENDLESS - 1)]
)
def test_snakemq_ttl_arrives_in_whole_seconds(ttl: float | None, arrives_as: int | None, role: str) -> None:
    with connected_pair(role) as pair:
        pair.snake.send("net", ttl=ttl)
        ((_, message),) = pair.watch.messages.wait_for_count(1)
        assert message.ttl == arrives_as
        assert arrives_as is None or isinstance(message.ttl, int)


def test_ttl_arrives_at_snakemq_as_what_is_left(role: str) -> None:
    with connected_pair(role) as pair:
        ttls = (None, 0, 3600, 3599.5)
        deliveries = [pair.peer.send("snake", b"", ttl=ttl) for ttl in ttls]
        endless, none_left, *left = [event["ttl"] for event in pair.snake.wait_for("message", len(ttls))]
        assert endless is None
        assert none_left == 0
        # Rounded up to whole seconds, less the time that this may have taken.
        assert all(3600 - WAIT_S <= ttl <= 3600 for ttl in left)
        assert all(delivery.wait(WAIT_S) for delivery in deliveries)


def test_flags_of_snakemq_arrive(role: str) -> None:
    with connected_pair(role) as pair:
        pair.snake.send("net", flags=0)
        pair.snake.send("net", flags=FLAG_PERSISTENT)
        received = [message for _, message in pair.watch.messages.wait_for_count(2)]
        assert [message.flags for message in received] == [0, FLAG_PERSISTENT]
        assert [message.persistent for message in received] == [False, True]
        assert not any(message.redelivered for message in received)


def test_messages_that_no_storage_keeps_arrive_without_flags(role: str) -> None:
    with connected_pair(role) as pair:
        pair.peer.send("snake", b"")
        assert pair.snake.wait_for("message")[0]["flags"] == 0


def test_delivered_means_that_the_callback_of_snakemq_has_run(role: str) -> None:
    with connected_pair(role) as pair:
        assert pair.peer.send("snake", b"before").wait(WAIT_S)
        pair.snake.tell("block")
        # A message that comes the other way proves that the command has been obeyed.
        pair.snake.send("net")
        pair.watch.messages.wait_for_count(1)

        blocked = pair.peer.send("snake", b"in its callback")
        behind = pair.peer.send("snake", b"behind it")
        assert pair.snake.wait_for("blocked")[0]["uuid"] == blocked.uuid.hex()
        assert not behind.wait(0.3)  # long enough for a pong, if one came
        assert not blocked.wait(0)
        assert blocked.state is DeliveryState.SENT
        assert len(pair.snake.of("message")) == 1

        pair.snake.tell("release")
        assert blocked.wait(WAIT_S)
        assert behind.wait(WAIT_S)
        pair.snake.wait_for("message", 3)
        pair.assert_undisturbed()


def test_message_is_delivered_only_after_the_callback_of_a_slow_snakemq(role: str) -> None:
    with connected_pair(role, delay=0.05) as pair:
        last = pair.peer.send_many("snake", [b""] * 6)[-1]
        assert last.wait(WAIT_S)
        pair.snake.stop()  # so that all that it has told is known
        assert len(pair.snake.of("message")) == 6


def test_callback_of_netcomm_may_wait_for_a_delivery_to_snakemq(role: str) -> None:
    with connected_pair(role) as pair:
        answered = threading.Event()

        @pair.peer.on_recv.add
        def answer(ident: str, data: bytes) -> None:
            if pair.peer.send(ident, data[::-1]).wait(WAIT_S):
                answered.set()

        pair.snake.send("net", size=100, seed=5)
        assert answered.wait(WAIT_S)
        assert pair.snake.wait_for("message")[0]["sha256"] == digest(payload(5, 100)[::-1])


def test_long_idents_are_known_to_both(role: str) -> None:
    name = "ž" * 127
    cut = "č" * 50  # snakeMQ cuts its own name, and nobody else's
    with connected_pair(role, idents=(name, "č" * 60)) as pair:
        assert pair.watch.connects.items() == [cut]
        assert pair.snake.wait_for("connect")[0]["ident"] == name
        pair.snake.send(name)
        assert pair.watch.messages.wait_for_count(1)[0][0] == cut
        assert pair.peer.send(cut, b"").wait(WAIT_S)


def test_snakemq_gets_messages_without_subject_and_headers_and_one_warning_says_so(
    role: str, caplog: pytest.LogCaptureFixture
) -> None:
    with connected_pair(role) as pair:
        deliveries = [pair.peer.send("snake", payload(1, 100), subject="weather", headers={"traceparent": "00-ab"})]
        deliveries += pair.peer.send_many("snake", [payload(2, 200_000), b""], headers={"traceparent": "00-cd"})
        received = pair.snake.wait_for("message", 3)
        assert [delivery.wait(WAIT_S) for delivery in deliveries] == [True] * 3
        assert [event["sha256"] for event in received] == [
            digest(item) for item in (payload(1, 100), payload(2, 200_000), b"")
        ]
        pair.assert_undisturbed()
    warnings = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("'snake' is a snakeMQ peer")
