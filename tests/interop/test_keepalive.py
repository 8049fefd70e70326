import pytest

from netcomm import Limits
from tests.interop.helpers import WAIT_S, connected_pair

PINGS = 6


def test_idle_snakemq_answers_pings_and_stays_connected(role: str) -> None:
    # An answer may take longer than the whole test; the silence that a ping ends is short all the same.
    limits = Limits(keepalive_idle_s=0.1, keepalive_wait_s=3 * WAIT_S)
    with connected_pair(role, limits=limits, report_frames=True) as pair:
        # A second ping goes out only after the first has been answered.
        pair.snake.wait_for("ping", PINGS)
        assert pair.snake.of("pong") == []
        assert pair.peer.peers == ["snake"]
        pair.assert_undisturbed()


def test_pings_of_snakemq_are_answered_and_it_stays_connected(role: str) -> None:
    with connected_pair(role, keepalive_interval=0.1, keepalive_wait=2, report_frames=True) as pair:
        pair.snake.wait_for("pong", PINGS)
        assert pair.snake.of("ping") == []
        assert pair.peer.peers == ["snake"]
        pair.assert_undisturbed()


def test_both_sides_ping_and_stay_connected(role: str) -> None:
    limits = Limits(keepalive_idle_s=0.1, keepalive_wait_s=2)
    settings = {"keepalive_interval": 0.1, "keepalive_wait": 2, "report_frames": True}
    with connected_pair(role, limits=limits, **settings) as pair:
        # Whoever is the first to ping saves the other one the trouble.
        pair.snake.events.wait(
            lambda events: sum(event["event"] in ("ping", "pong") for event in events) >= 2 * PINGS, "pings and pongs"
        )
        assert pair.peer.peers == ["snake"]
        pair.assert_undisturbed()


def test_pings_of_snakemq_are_answered_while_a_callback_of_netcomm_takes_its_time(role: str) -> None:
    with connected_pair(role, keepalive_interval=0.1, keepalive_wait=2, report_frames=True) as pair:
        # The callback returns once enough pongs have come; it raises, and the test fails, if they do not.
        pair.peer.on_recv.add(lambda ident, data: pair.snake.wait_for("pong", PINGS))
        pair.snake.send("net")
        assert pair.snake.wait_for("pong", PINGS)
        pair.assert_undisturbed()


@pytest.mark.parametrize("sends_meanwhile", [False, True])
def test_stopped_snakemq_is_reported_and_comes_back(sends_meanwhile: bool, role: str) -> None:
    limits = Limits(
        keepalive_idle_s=0.2, keepalive_wait_s=0.8, handshake_s=0.5, reconnect_min_s=0.02, reconnect_max_s=0.1
    )
    with connected_pair(role, limits=limits) as pair:
        pair.snake.suspend()
        deliveries = [pair.peer.send("snake", b"sent to a stopped process")] if sends_meanwhile else []
        assert pair.watch.disconnects.wait_for_count(1) == ["snake"]
        deliveries.append(pair.peer.send("snake", b"sent while it is away"))

        pair.snake.resume()
        assert all(delivery.wait(WAIT_S) for delivery in deliveries)
        assert set(pair.watch.connects.wait_for_count(2)) == {"snake"}
        queued = pair.snake.send("net", size=1000)
        pair.watch.messages.wait_for_count(1)
        assert pair.watch.received(sender="snake") == [(event["uuid"], event["sha256"]) for event in queued]
