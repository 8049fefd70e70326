"""At least once, and in order: what netcomm has accepted reaches snakeMQ, whatever dies on the way."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from netcomm import DeliveryState, Limits, Peer, SnakemqConnector, SnakemqListener
from netcomm.testing.proxy import FaultProxy
from tests.interop.helpers import (
    LISTENS,
    LOCALHOST,
    WAIT_S,
    Address,
    Producer,
    SnakemqProcess,
    Watch,
    connected_pair,
    digest,
    first_arrivals,
    payload,
    reserved_port,
)

KILLS = 5
MESSAGES_BETWEEN_KILLS = 1000
ROUNDS = 200


@contextlib.contextmanager
def _peer_and_place(role: str, limits: Limits) -> Iterator[tuple[Peer, dict[str, Any]]]:
    """A netcomm peer that is not started, and where snakeMQ listens or connects to, again and again."""
    with contextlib.ExitStack() as stack:
        if role == LISTENS:
            port = stack.enter_context(reserved_port())
            peer: Peer = SnakemqConnector("net", LOCALHOST, port, limits=limits)
            place = {"listen": [LOCALHOST, port]}
        else:
            peer = listener = SnakemqListener("net", LOCALHOST, 0, limits=limits)
            place = {"connect": listener.address}
        stack.callback(peer.terminate, 0)
        yield peer, place


def test_nothing_is_lost_when_snakemq_is_killed_again_and_again(role: str) -> None:
    # A small window and queue, so that every kill finds messages in flight, waiting, and about to be sent.
    limits = Limits(window_bytes=16 * 1024, max_queued_messages=2000, reconnect_min_s=0.01, reconnect_max_s=0.05)
    arrivals = []
    with _peer_and_place(role, limits) as (peer, place):
        peer.start()
        with Producer(peer, "snake") as producer:
            for _ in range(KILLS):
                with SnakemqProcess("snake", **place) as snake:
                    snake.wait_for("message", MESSAGES_BETWEEN_KILLS)
                    snake.kill()
                    arrivals.append(snake.received())
                    producer.wait_for_backlog()
            with SnakemqProcess("snake", **place) as snake:
                producer.stop()
                snake.stop()
                arrivals.append(snake.received())
        assert first_arrivals(*arrivals) == producer.sent()


def test_nothing_is_lost_over_two_hundred_cut_connections(role: str) -> None:
    limits = Limits(reconnect_min_s=0.005, reconnect_max_s=0.05)
    chance = random.Random(7)
    deliveries = []
    hashes = []
    with contextlib.ExitStack() as stack:
        if role == LISTENS:
            snake = stack.enter_context(SnakemqProcess("snake", listen=[LOCALHOST, 0]))
            proxy = stack.enter_context(FaultProxy(snake.address, seed=1, chunk_bytes=5000))
            peer: Peer = SnakemqConnector("net", *proxy.address, limits=limits)
        else:
            peer = listener = SnakemqListener("net", LOCALHOST, 0, limits=limits)
            stack.callback(peer.terminate, 0)
            proxy = stack.enter_context(FaultProxy(_address(listener), seed=1, chunk_bytes=5000))
            snake = stack.enter_context(
                SnakemqProcess("snake", connect=proxy.address, reconnect_interval=0.01, poll_timeout=0.01)
            )
        watch = Watch(peer)
        stack.callback(peer.terminate, 0)
        peer.start()
        for number in range(ROUNDS):
            assert peer.wait_connected("snake", WAIT_S)
            sizes = [chance.randrange(2000) for _ in range(9)] + [chance.randrange(100_000)]
            data = [payload(10 * number + n, size) for n, size in enumerate(sizes)]
            sent = peer.send_many("snake", data)
            deliveries += sent
            hashes += [digest(item) for item in data]
            # The cut comes before anything of it has arrived, or amid of it, or when the connection is idle.
            if number % 3:
                assert sent[-1 if number % 3 == 1 else 3].wait(WAIT_S)
            proxy.cut(reset=chance.random() < 0.5)
            watch.disconnects.wait_for_count(number + 1)
        assert proxy.cuts >= ROUNDS
        assert peer.flush(WAIT_S)
        snake.stop()
    expected = [(delivery.uuid.hex(), sha256) for delivery, sha256 in zip(deliveries, hashes, strict=True)]
    assert first_arrivals(snake.received()) == expected
    assert all(delivery.wait(0) for delivery in deliveries)


def test_message_in_flight_to_a_snakemq_that_dies_still_expires(role: str) -> None:
    with connected_pair(role) as pair:
        pair.snake.tell("block")
        pair.snake.send("net")
        pair.watch.messages.wait_for_count(1)
        delivery = pair.peer.send("snake", b"", ttl=0.5)
        pair.snake.wait_for("blocked")
        pair.snake.kill()
        assert not delivery.wait(WAIT_S)
        assert delivery.state is DeliveryState.EXPIRED


def _address(listener: SnakemqListener) -> Address:
    assert isinstance(listener.address, tuple)
    return listener.address
