"""Clients whose idents were made up come, ask and go: what a server still has for them ends, and nothing piles up."""

import logging
import time

import pytest

from netcomm import ConfigurationError, DeliveryState, LifecycleError, Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import Stream
from netcomm.protocol import encode, frames
from tests.integration.helpers import (
    DEADLINE_S,
    FAST,
    Peer,
    Program,
    Recorder,
    SnakemqConnector,
    SnakemqListener,
    dial,
    in_thread,
    netcomm_handshake,
    read_to_end,
    record,
    wait_until,
)

DELIVERED, DISCARDED = DeliveryState.DELIVERED, DeliveryState.DISCARDED
GOODBYE = encode.GOODBYE

CLIENT = """
import logging, sys
from netcomm import Limits, SnakemqConnector

client = SnakemqConnector(None, "127.0.0.1", int(sys.argv[1]))
client.on_recv.add(lambda ident, data: sys.stdin.readline())
client.start()
assert client.wait_connected("server", 20)
client.send("server", b"what is the time?")
print("asked", flush=True)
if sys.argv[2] == "waits":
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _log_warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "netcomm")


def make_server(**limits: float) -> tuple[SnakemqListener, int]:
    server = SnakemqListener("server", "127.0.0.1", 0, limits=Limits(**limits))  # type: ignore[arg-type]
    assert isinstance(server.address, tuple)
    return server, server.address[1]


def test_answers_to_clients_that_have_left_do_not_pile_up(caplog: pytest.LogCaptureFixture) -> None:
    server, port = make_server(max_idle_peers=5, max_queued_bytes=100_000, diagnose_after_s=0.2)
    answers = []
    asked, left = Recorder(), Recorder()
    drops = record(server.on_drop)
    server.on_message.add(lambda ident, message: asked(ident))
    server.on_disconnect.add(left)
    with server:
        for number in range(20):
            with SnakemqConnector(None, "127.0.0.1", port) as client:
                client.send("server", b"what is the time?").wait(DEADLINE_S)
                client.terminate(0)
            ident = left.wait(number + 1)[-1]
            assert asked.calls[-1] == ident
            answers += [server.send(ident, bytes(50_000)) for _ in range(5)]  # more than the queue has room for
            assert {answer.state for answer in answers[-5:]} == {DISCARDED}
        assert not any(answer.wait(0) for answer in answers)
        assert {delivery for _, delivery in drops.wait(100)} == set(answers)
        stats = server.stats()
        assert stats.waiting == []
        assert sum(peer.queued for peer in stats.peers.values()) == 0
        assert len(stats.peers) <= 7
        assert server.flush(0)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 20
    assert max(map(len, told)) < 400


@pytest.mark.parametrize("how", ["terminate(0)", "with", "exit"])
def test_a_peer_that_ends_in_order_says_goodbye(how: str) -> None:
    server, port = make_server()
    left = record(server.on_disconnect)
    with server:
        if how == "exit":
            with Program(CLIENT, port, "ends") as program:
                assert program.line() == "asked"
                assert program.wait() == 0, program.errors
        else:
            with SnakemqConnector(None, "127.0.0.1", port) as client:
                assert client.wait_connected("server", DEADLINE_S)
                if how == "terminate(0)":
                    client.terminate(0)
        (ident,) = left.wait(1)
        assert server.send(ident, b"late").state is DISCARDED


def test_goodbye_is_the_last_frame_before_the_end() -> None:
    server, port = make_server()
    with dial(("127.0.0.1", port)) as sock:
        with server:
            sock.sendall(netcomm_handshake("client") + encode.begin(frames.Begin(Stream.VOLATILE, 7, 0, 0)))
            assert server.wait_connected("client", DEADLINE_S)
            server.terminate(0)
        assert read_to_end(sock).endswith(GOODBYE)


def test_a_peer_that_is_terminated_in_a_callback_says_goodbye() -> None:
    server, port = make_server()
    left = record(server.on_disconnect)
    with server, SnakemqConnector(None, "127.0.0.1", port) as client:
        client.on_recv.add(lambda ident, data: client.terminate(0))
        assert server.wait_connected(client.local_ident, DEADLINE_S)
        server.send(client.local_ident, b"end")
        assert left.wait(1) == [client.local_ident]
        assert server.send(client.local_ident, b"late").state is DISCARDED


def test_what_waits_for_a_client_that_was_killed_ends_when_that_has_been_away_for_long() -> None:
    server, port = make_server(made_up_ident_away_s=0.3)
    drops, left = record(server.on_drop), record(server.on_disconnect)
    with server, Program(CLIENT, port, "waits") as program:
        assert program.line() == "asked"
        wait_until(lambda: server.peers)
        (ident,) = server.peers
        answer = server.send(ident, b"its callback never returns")
        program.process.kill()
        left.wait(1)
        later = server.send(ident, b"never sent")
        broken_at = time.monotonic()
        assert not later.wait(DEADLINE_S)
        assert later.state is answer.state is DISCARDED
        assert time.monotonic() - broken_at > 0.1
        assert [delivery for _, delivery in drops.wait(2)] == [answer, later]


def test_a_client_that_was_away_for_long_is_welcome() -> None:
    server, port = make_server(made_up_ident_away_s=0.1)
    drops, left = record(server.on_drop), record(server.on_disconnect)
    with server, Peer(None, limits=FAST) as client:
        with dial(("127.0.0.1", port)) as sock:
            hello = encode.hello(frames.Hello(1, bytes(16), bytes(16), 1, 1 << 20, 1 << 20, frames.IDENT_MADE_UP))
            ident = encode.ident(client.local_ident)
            begin = encode.begin(frames.Begin(Stream.VOLATILE, 7, 0, 0))
            sock.sendall(encode.version() + hello + ident + begin)
            assert server.wait_connected(client.local_ident, DEADLINE_S)
        left.wait(1)
        server.send(client.local_ident, b"early")
        drops.wait(1)
        got = record(client.on_recv)
        client.add_connector("127.0.0.1", port)
        assert server.wait_connected(client.local_ident, DEADLINE_S)
        assert server.send(client.local_ident, b"late").wait(DEADLINE_S)
        assert got.calls == [("server", b"late")]


def test_what_waits_for_a_named_peer_waits_on() -> None:
    server, port = make_server(made_up_ident_away_s=0.05)
    left = record(server.on_disconnect)
    with server:
        with SnakemqConnector("named", "127.0.0.1", port) as client:
            assert client.wait_connected("server", DEADLINE_S)
        left.wait(1)
        delivery = server.send("named", b"x")
        assert not delivery.wait(0.3)
        assert not delivery.done
        with SnakemqConnector("named", "127.0.0.1", port):
            assert delivery.wait(DEADLINE_S)


# -- Peer.discard -------------------------------------------------------------------------------------------------


def test_discard_ends_what_waits_for_a_peer_that_never_comes() -> None:
    storage = MemoryQueueStorage()
    with Peer("a", storage=storage) as peer:
        drops = record(peer.on_drop)
        transient = [peer.send("b", b"%d" % number) for number in range(3)]
        persistent = peer.send_many("b", [b"x"] * 25_000, persistent=True)
        other = peer.send("c", b"x")
        waits = in_thread(lambda: persistent[-1].wait(DEADLINE_S))
        assert peer.discard("b") == 25_003
        assert peer.discard("b") == 0
        assert peer.discard("nobody") == 0
        assert waits() is False
        assert {delivery.state for delivery in [*transient, *persistent]} == {DISCARDED}
        told = drops.wait(25_003)
        assert [delivery for _, delivery in told] == [*persistent[:20_000], *transient, *persistent[20_000:]]
        assert all(delivery.data for _, delivery in told)
        wait_until(lambda: [stream.count for stream in storage.streams()] == [0])
        assert not other.done
        peer.terminate(0)


def test_discard_lets_a_flush_and_a_sender_that_waits_for_room_go_on() -> None:
    with Peer("a", limits=Limits(max_queued_messages=2)) as peer:
        peer.send_many("b", [b"x", b"y"])
        sent = in_thread(lambda: peer.send("b", b"z"))
        flushed = in_thread(lambda: peer.flush(DEADLINE_S))
        wait_until(lambda: peer.stats().peers["b"].queued == 2)
        while not (delivery := peer.stats().peers["b"].queued == 0):
            peer.discard("b")
        assert delivery
        sent()
        peer.discard("b")
        assert flushed()


@pytest.mark.parametrize("dispatch", ["thread", "manual"])
def test_discard_in_a_callback(dispatch: str) -> None:
    with (
        SnakemqListener("server", "127.0.0.1", 0, dispatch=dispatch) as server,
        SnakemqConnector("client", *server.address) as client,
    ):
        counts = Recorder()
        server.on_recv.add(lambda ident, data: counts(server.discard("absent")))
        server.send("absent", b"x")
        client.send("server", b"discard it")
        if dispatch == "manual":
            wait_until(lambda: server.dispatch(1) and counts.calls)
        assert counts.wait(1) == [1]


def test_discard_while_messages_are_in_flight_and_later_ones_arrive() -> None:
    held, got = Recorder(), Recorder()
    with SnakemqListener("server", "127.0.0.1", 0) as server:
        client = SnakemqConnector("client", *server.address)
        go_on = in_thread(lambda: held.wait(2))  # the second call lets the callback return

        def hold(ident: str, data: bytes) -> None:
            held(data)
            if data == b"first":
                go_on()
            got(data)

        client.on_recv.add(hold)
        with client:
            assert server.wait_connected("client", DEADLINE_S)
            first = server.send("client", b"first")
            held.wait(1)
            assert server.discard("client") == 1
            assert first.state is DISCARDED
            late = server.send("client", b"late")
            assert not late.done
            held("let it return")
            assert late.wait(DEADLINE_S)
            assert first.state is DISCARDED
            assert got.calls == [b"first", b"late"]
            stats = server.stats().peers["client"]
            assert (stats.delivered, stats.dropped, stats.queued, stats.in_flight) == (1, 1, 0, 0)


def test_discard_checks_its_argument_and_the_life_of_the_peer() -> None:
    peer = Peer("a")
    with pytest.raises(LifecycleError):
        peer.discard("b")
    with peer:
        with pytest.raises(ConfigurationError):
            peer.discard("")
        peer.terminate(0)
    with pytest.raises(LifecycleError):
        peer.discard("b")


def test_discard_lets_terminate_end_sooner() -> None:
    with Peer("a") as peer:
        peer.send("b", b"x")
        ended = in_thread(lambda: peer.terminate(DEADLINE_S))
        begun_at = time.monotonic()
        wait_until(lambda: "terminated" in repr(peer))
        peer.discard("b")
        ended()
        assert time.monotonic() - begun_at < DEADLINE_S / 2
