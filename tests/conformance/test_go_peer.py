"""A peer in another language, written from docs/protocol.md alone: the vectors, and real conversations with netcomm."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netcomm import Limits, Message, Peer
from netcomm.testing import FaultProxy, conformance
from tests.conformance.go_peer import GoPeer, Received
from tests.integration.helpers import DEADLINE_S

GO, NETCOMM = "gopher 🐹", "Žofie"
COUNT = 5000
CUTS = 20
WINDOW = 64 * 1024  # small, so that there is always something that has to go on behind a cut
NUMBERS = [b"%d" % number for number in range(COUNT)]
QUICK = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05, window_bytes=WINDOW)

each_stream = pytest.mark.parametrize("stream", ["volatile", "durable"])
each_size_of_batch = pytest.mark.parametrize("batch", [1, 100], ids=["single", "batches"])


class Log:
    """What a netcomm peer was handed. It stops at numbers of messages, until it may go on."""

    def __init__(self, peer: Peer, stops: range = range(0)) -> None:
        self.messages: list[Message] = []
        self._stops = stops
        self._changed = threading.Condition()
        self._allowed = 0
        peer.on_message.add(self._take)

    def _take(self, ident: str, message: Message) -> None:
        assert ident == GO
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()
            if len(self.messages) in self._stops:
                self._changed.wait_for(lambda: self._allowed >= len(self.messages), DEADLINE_S)

    def wait(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, DEADLINE_S), len(self.messages)

    def go_on(self) -> None:
        with self._changed:
            self._allowed = len(self.messages)
            self._changed.notify_all()

    @property
    def data(self) -> list[bytes]:
        return [message.data for message in self.messages]


def send(peer: Peer, stream: str, batch: int) -> None:
    """Send the numbers."""
    for first in range(0, COUNT, batch):
        if batch == 1:
            peer.send(GO, NUMBERS[first], persistent=stream == "durable")
        else:
            peer.send_many(GO, NUMBERS[first : first + batch], persistent=stream == "durable")


@contextmanager
def netcomm_peer(tmp_path: Path, stream: str) -> Iterator[Peer]:
    """A peer that is not started; it has a storage for the durable stream."""
    storage = f"sqlite:///{tmp_path}/netcomm.db?durability=process" if stream == "durable" else None
    peer = Peer(NETCOMM, limits=QUICK, storage=storage)
    try:
        yield peer
    finally:
        peer.terminate(0)


def cut_often(log: Log, proxy: FaultProxy, gopher: GoPeer) -> None:
    """Cut the connection each time when the log has stopped, which leaves messages on their way."""
    for cuts, number in enumerate(STOPS):
        log.wait(number)
        gopher.wait("connected", cuts + 1)
        assert proxy.cut() == 1
        log.go_on()


STOPS = range(COUNT // CUTS // 2, COUNT, COUNT // CUTS)


def assert_all_came_once(received: list[Received], stream: str) -> None:
    assert [message.data for message in received] == NUMBERS
    assert {(message.ident, message.stream, message.redelivered) for message in received} == {(NETCOMM, stream, False)}


# -- The vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--echo",)], ids=["silent", "echo"])
def test_the_peer_in_go_answers_all_vectors(
    program: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with GoPeer(program, "-listen", "127.0.0.1:0", f"-echo={'--echo' in options}".lower()) as gopher:
        host, port = gopher.address
        result = conformance.main([f"{host}:{port}", "--wait", f"{DEADLINE_S:g}", *options])
    assert result == 0, capsys.readouterr().out


# -- Conversations ------------------------------------------------------------------------------------------------


@each_stream
@each_size_of_batch
def test_nothing_is_lost_doubled_or_reordered_between_a_netcomm_connector_and_a_listener_in_go(
    program: Path, tmp_path: Path, stream: str, batch: int
) -> None:
    arguments = ["-ident", GO, "-listen", "127.0.0.1:0", "-echo", "-window", str(WINDOW)]
    with (
        GoPeer(program, *arguments) as gopher,
        FaultProxy(gopher.address, seed=1) as proxy,
        netcomm_peer(tmp_path, stream) as bob,
    ):
        log = Log(bob, STOPS)
        bob.add_connector(*proxy.address)
        bob.start()
        send(bob, stream, batch)
        cut_often(log, proxy, gopher)
        log.wait(COUNT)
        assert bob.flush(DEADLINE_S)
        gopher.wait("delivered", COUNT)
        assert proxy.cuts == CUTS
        gopher.kill()
        assert_all_came_once(gopher.received, stream)
    assert log.data == NUMBERS
    assert len({message.uuid for message in log.messages}) == COUNT
    assert {(message.persistent, message.redelivered) for message in log.messages} == {(stream == "durable", False)}


@each_stream
@each_size_of_batch
def test_nothing_is_lost_doubled_or_reordered_between_a_connector_in_go_and_a_netcomm_listener(
    program: Path, tmp_path: Path, stream: str, batch: int
) -> None:
    with netcomm_peer(tmp_path, stream) as niess:
        log = Log(niess, STOPS)
        place = niess.add_listener("127.0.0.1", 0)
        assert isinstance(place, tuple)
        niess.start()
        send(niess, stream, batch)
        with FaultProxy(place, seed=1) as proxy:
            arguments = ["-ident", GO, "-connect", "{}:{}".format(*proxy.address), "-window", str(WINDOW)]
            arguments += ["-to", NETCOMM, "-send", str(COUNT), "-batch", str(batch), f"-durable={stream == 'durable'}"]
            with GoPeer(program, *arguments) as gopher:
                cut_often(log, proxy, gopher)
                log.wait(COUNT)
                assert niess.flush(DEADLINE_S)
                gopher.wait("delivered", COUNT)
                assert proxy.cuts == CUTS
                gopher.kill()
                assert_all_came_once(gopher.received, stream)
    assert log.data == NUMBERS
    assert {(message.persistent, message.redelivered) for message in log.messages} == {(stream == "durable", False)}


# -- Killed processes ---------------------------------------------------------------------------------------------


@each_stream
@each_size_of_batch
def test_what_a_killed_listener_in_go_has_not_acknowledged_comes_again_marked(
    program: Path, tmp_path: Path, stream: str, batch: int
) -> None:
    arguments = ["-ident", GO, "-listen", "127.0.0.1:0", "-window", "16384"]
    held = COUNT // 3
    with (
        netcomm_peer(tmp_path, stream) as bob,
        GoPeer(program, *arguments, "-hold", str(held)) as gopher,
        FaultProxy(gopher.address) as proxy,
        GoPeer(program, *arguments) as heir,
    ):
        bob.add_connector(*proxy.address)
        bob.start()
        send(bob, stream, batch)
        gopher.wait("received", held + 1)
        gopher.kill()
        proxy.target = heir.address
        assert bob.flush(DEADLINE_S)
        heir.kill()
    before, after = gopher.received, heir.received
    assert [message.data for message in before] == NUMBERS[: held + 1]
    assert [message.data for message in after] == NUMBERS[COUNT - len(after) :]
    assert len(after) >= COUNT - held  # the last one before was never acknowledged
    marks = [message.redelivered for message in after]
    sent_before = marks.index(False)
    assert not any(marks[sent_before:])
    assert COUNT - len(after) + sent_before > held


@each_stream
@each_size_of_batch
def test_a_killed_connector_in_go_that_starts_again_is_taken_for_a_new_sender(
    program: Path, tmp_path: Path, stream: str, batch: int
) -> None:
    with netcomm_peer(tmp_path, stream) as niess:
        log = Log(niess, range(COUNT // 3, COUNT // 3 + 1))
        place = niess.add_listener("127.0.0.1", 0)
        assert isinstance(place, tuple)
        niess.start()
        arguments = ["-ident", GO, "-connect", "{}:{}".format(*place), "-to", NETCOMM, "-batch", str(batch)]
        arguments += ["-send", str(COUNT), f"-durable={stream == 'durable'}"]
        with GoPeer(program, *arguments) as gopher:
            log.wait(COUNT // 3)
        log.go_on()
        first = len(gopher.events("delivered"))
        with GoPeer(program, *arguments) as gopher:
            gopher.wait("delivered", COUNT)
    before, after = log.data[:-COUNT], log.data[-COUNT:]
    assert after == NUMBERS
    assert before == NUMBERS[: len(before)]
    assert first <= COUNT // 3 <= len(before)
    assert not any(message.redelivered for message in log.messages)
