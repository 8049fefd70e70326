"""A peer in another language, written from docs/protocol.md alone: the vectors, and real conversations with netcomm."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from netcomm import Delivery, DeliveryState, Limits, Message, Peer
from netcomm.message import Stream
from netcomm.peer import attach
from netcomm.protocol import envelope
from netcomm.protocol.envelope import Envelope, pack_headers
from netcomm.protocol.events import Received as ReceivedEvent
from netcomm.protocol.extension import Extension, NodePort
from netcomm.testing import FaultProxy, conformance
from tests.conformance.go_peer import GoPeer, Received
from tests.integration.helpers import DEADLINE_S

GO, NETCOMM = "gopher 🐹", "Žofie"
COUNT = 5000
CUTS = 20
WINDOW = 64 * 1024  # small, so that there is always something that has to go on behind a cut
NUMBERS = [b"%d" % number for number in range(COUNT)]
QUICK = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05, window_bytes=WINDOW)
SUBJECT = "počasí"

each_plain_stream = pytest.mark.parametrize("stream", ["volatile", "durable"])
each_stream = pytest.mark.parametrize("stream", ["volatile", "durable", "bulk", "bus volatile", "bus durable"])
each_size_of_batch = pytest.mark.parametrize("batch", [1, 100], ids=["single", "batches"])


def number_of(stream: str) -> Stream:
    return Stream[stream.upper().replace(" ", "_")]


class Log:
    """What a netcomm peer was handed. It stops at numbers of messages, until it may go on."""

    def __init__(self, peer: Peer, stops: range = range(0)) -> None:
        self.messages: list[Message] = []
        self._stops = stops
        self._changed = threading.Condition()
        self._allowed = 0
        peer.on_message.add(self.take)

    def take(self, ident: str, message: Message) -> None:
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


class Take(Extension):
    """Takes what comes in the streams that callbacks do not take, for a log. It sends in these streams, too."""

    streams = (Stream.BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)

    def __init__(self, peer: Peer, log: Log) -> None:
        self._log = log
        self.ids: list[int | None] = []
        self.hold = attach(peer, self)

    def attached(self, node: NodePort, now: float) -> None:
        self._node = node

    def receive(self, received: ReceivedEvent, now: float) -> None:
        self._node.messaging.call_soon(self._hand_over, received)

    def _hand_over(self, received: ReceivedEvent) -> None:
        for count, (seq, uuid, ttl, flags, data, its) in enumerate(received.items, 1):
            said = Envelope() if its is None else its
            self.ids.append(said.id)
            marked = seq < received.redelivered_below
            life = None if ttl == 0xFFFFFFFF else ttl
            message = Message(data, uuid, life, flags & 1, marked, said.subject, said.headers)
            self._log.take(received.ident, message)
            self.hold.handled(received, count)


class Side:
    """A netcomm peer in a conversation in one stream: what it sends, and what it was handed."""

    def __init__(self, peer: Peer, stream: str, stops: range = range(0)) -> None:
        self._peer = peer
        self._stream = number_of(stream)
        self.log = Log(peer, stops)
        self.take = Take(peer, self.log)

    def send(self, batch: int, enveloped: bool = False) -> None:
        """Send the numbers. Those of messages with envelopes are in a header of each, or in its id."""
        for first in range(0, COUNT, batch):
            numbers = NUMBERS[first : first + batch]
            headers = {"first": str(first)} if enveloped else None
            subject = SUBJECT if enveloped else None
            if self._stream not in (Stream.VOLATILE, Stream.DURABLE):
                its = Envelope(subject=SUBJECT, id=first, packed_headers=pack_headers(headers)) if headers else None
                raw = None if its is None else envelope.encode(its)
                self.take.hold.send(GO, self._stream, numbers, envelope=raw)
            elif batch == 1:
                self._peer.send(GO, numbers[0], persistent=self._stream.durable, subject=subject, headers=headers)
            else:
                self._peer.send_many(GO, numbers, persistent=self._stream.durable, subject=subject, headers=headers)

    def expected_headers(self, batch: int) -> list[Mapping[str, str]]:
        """The headers of what `send` sends with envelopes."""
        return [{"first": str(number - number % batch)} for number in range(COUNT)]


@contextmanager
def netcomm_peer(tmp_path: Path, stream: str) -> Iterator[Peer]:
    """A peer that is not started; it has a storage for a durable stream."""
    storage = f"sqlite:///{tmp_path}/netcomm.db?durability=process" if number_of(stream).durable else None
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


def assert_all_were_handed_over_once(log: Log, stream: str) -> None:
    assert log.data == NUMBERS
    marks = {(message.persistent, message.redelivered) for message in log.messages}
    assert marks == {(number_of(stream).durable, False)}


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
        side = Side(bob, stream, STOPS)
        bob.add_connector(*proxy.address)
        bob.start()
        side.send(batch)
        cut_often(side.log, proxy, gopher)
        side.log.wait(COUNT)
        assert bob.flush(DEADLINE_S)
        gopher.wait("delivered", COUNT)
        assert proxy.cuts == CUTS
        gopher.kill()
        assert_all_came_once(gopher.received, stream)
    assert_all_were_handed_over_once(side.log, stream)
    assert len({message.uuid for message in side.log.messages}) == COUNT


@each_stream
@each_size_of_batch
def test_nothing_is_lost_doubled_or_reordered_between_a_connector_in_go_and_a_netcomm_listener(
    program: Path, tmp_path: Path, stream: str, batch: int
) -> None:
    with netcomm_peer(tmp_path, stream) as niess:
        side = Side(niess, stream, STOPS)
        place = niess.add_listener("127.0.0.1", 0)
        assert isinstance(place, tuple)
        niess.start()
        side.send(batch)
        with FaultProxy(place, seed=1) as proxy:
            arguments = ["-ident", GO, "-connect", "{}:{}".format(*proxy.address), "-window", str(WINDOW)]
            arguments += ["-to", NETCOMM, "-send", str(COUNT), "-batch", str(batch), "-stream", stream]
            with GoPeer(program, *arguments) as gopher:
                cut_often(side.log, proxy, gopher)
                side.log.wait(COUNT)
                assert niess.flush(DEADLINE_S)
                gopher.wait("delivered", COUNT)
                assert proxy.cuts == CUTS
                gopher.kill()
                assert_all_came_once(gopher.received, stream)
    assert_all_were_handed_over_once(side.log, stream)


# -- Envelopes ----------------------------------------------------------------------------------------------------


@each_stream
@each_size_of_batch
def test_subject_and_headers_that_netcomm_sends_come_back_from_an_echo_in_go(
    program: Path, tmp_path: Path, stream: str, batch: int
) -> None:
    arguments = ["-ident", GO, "-listen", "127.0.0.1:0", "-echo", "-window", str(WINDOW)]
    with (
        GoPeer(program, *arguments) as gopher,
        FaultProxy(gopher.address, seed=1) as proxy,
        netcomm_peer(tmp_path, stream) as bob,
    ):
        side = Side(bob, stream, STOPS)
        bob.add_connector(*proxy.address)
        bob.start()
        side.send(batch, enveloped=True)
        cut_often(side.log, proxy, gopher)
        side.log.wait(COUNT)
        assert bob.flush(DEADLINE_S)
        gopher.wait("delivered", COUNT)
        gopher.kill()
        assert_all_came_once(gopher.received, stream)
    assert_all_were_handed_over_once(side.log, stream)
    headers = side.expected_headers(batch)
    assert {message.subject for message in gopher.received} == {SUBJECT}
    assert [dict(message.headers) for message in gopher.received] == headers
    assert {message.subject for message in side.log.messages} == {SUBJECT}
    assert [message.headers for message in side.log.messages] == headers
    if stream not in ("volatile", "durable"):
        assert side.take.ids == list(range(COUNT))


@each_stream
@pytest.mark.parametrize("headers", [False, True], ids=["one envelope for all", "an envelope for each"])
def test_netcomm_has_the_subject_and_the_headers_that_a_peer_in_go_sends_in_batches(
    program: Path, tmp_path: Path, stream: str, headers: bool
) -> None:
    with netcomm_peer(tmp_path, stream) as niess:
        side = Side(niess, stream, STOPS)
        place = niess.add_listener("127.0.0.1", 0)
        assert isinstance(place, tuple)
        niess.start()
        with FaultProxy(place, seed=1) as proxy:
            arguments = ["-ident", GO, "-connect", "{}:{}".format(*proxy.address), "-stream", stream]
            arguments += ["-to", NETCOMM, "-send", str(COUNT), "-batch", "100", "-subject", SUBJECT]
            with GoPeer(program, *arguments, f"-headers={headers}".lower()) as gopher:
                cut_often(side.log, proxy, gopher)
                side.log.wait(COUNT)
                gopher.wait("delivered", COUNT)
    assert_all_were_handed_over_once(side.log, stream)
    assert {message.subject for message in side.log.messages} == {SUBJECT}
    its = [{"number": str(number)} if headers else {} for number in range(COUNT)]
    assert [message.headers for message in side.log.messages] == its
    if stream not in ("volatile", "durable"):
        assert side.take.ids == list(range(1, COUNT + 1))


# -- Killed processes ---------------------------------------------------------------------------------------------


@each_plain_stream
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
        Side(bob, stream).send(batch)
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


@each_plain_stream
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
        arguments += ["-send", str(COUNT), "-stream", stream]
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


# -- GOODBYE ------------------------------------------------------------------------------------------------------


def wait_for_idents(peer: Peer) -> "SimpleQueue[str]":
    """Who connects to a peer."""
    idents: SimpleQueue[str] = SimpleQueue()
    peer.on_connect.add(idents.put)
    return idents


def states(deliveries: list[Delivery]) -> list[DeliveryState]:
    until = time.monotonic() + DEADLINE_S  # for all of them: what nobody discards ends after a minute
    for delivery in deliveries:
        delivery.wait(max(0.0, until - time.monotonic()))
    return [delivery.state for delivery in deliveries]


@pytest.mark.parametrize("cuts", [0, 3])
def test_when_a_listener_in_go_whose_ident_was_made_up_ends_what_waits_for_it_is_discarded(
    program: Path, cuts: int
) -> None:
    with (
        GoPeer(program, "-ident", "", "-listen", "127.0.0.1:0", "-hold", "2") as gopher,
        FaultProxy(gopher.address, seed=1) as proxy,
        Peer(NETCOMM, limits=QUICK) as bob,
    ):
        connected = wait_for_idents(bob)
        bob.add_connector(*proxy.address)
        ident = connected.get(timeout=DEADLINE_S)
        deliveries = [bob.send(ident, data) for data in NUMBERS[:5]]
        gopher.wait("received", 3)
        for _ in range(cuts):
            assert proxy.cut() == 1
            assert connected.get(timeout=DEADLINE_S) == ident
        assert deliveries[1].wait(DEADLINE_S)
        gopher.wait("connected", cuts + 1)  # it says GOODBYE on a connection that it has established
        gopher.terminate()
        ended = [DeliveryState.DELIVERED] * 2 + [DeliveryState.DISCARDED] * 3
        assert states(deliveries) == ended
        assert states([bob.send(ident, b"late")]) == [DeliveryState.DISCARDED]


@pytest.mark.parametrize("cuts", [0, 3])
def test_when_a_listener_in_go_ends_its_next_process_gets_what_waits_for_it(program: Path, cuts: int) -> None:
    arguments = ["-ident", GO, "-listen", "127.0.0.1:0"]
    with (
        GoPeer(program, *arguments, "-hold", "2") as gopher,
        FaultProxy(gopher.address, seed=1) as proxy,
        GoPeer(program, *arguments) as heir,
        Peer(NETCOMM, limits=QUICK) as bob,
    ):
        connected = wait_for_idents(bob)
        bob.add_connector(*proxy.address)
        deliveries = [bob.send(GO, data) for data in NUMBERS[:5]]
        gopher.wait("received", 3)
        for _ in range(cuts + 1):
            assert connected.get(timeout=DEADLINE_S) == GO
            if connected.empty() and proxy.cuts < cuts:
                assert proxy.cut() == 1
        assert deliveries[1].wait(DEADLINE_S)
        gopher.terminate()
        proxy.target = heir.address
        assert states(deliveries) == [DeliveryState.DELIVERED] * 5
        heir.kill()
    assert [(message.data, message.redelivered) for message in heir.received] == [
        (b"2", True),
        (b"3", True),
        (b"4", True),
    ]


@pytest.mark.parametrize("cuts", [0, 3])
def test_when_a_netcomm_peer_whose_ident_was_made_up_ends_a_peer_in_go_discards_what_waits_for_it(
    program: Path, cuts: int
) -> None:
    niess = Peer(None, limits=QUICK)
    try:
        log = Log(niess, range(3, 4))
        place = niess.add_listener("127.0.0.1", 0)
        assert isinstance(place, tuple)
        niess.start()
        with FaultProxy(place, seed=1) as proxy:
            arguments = ["-ident", GO, "-connect", "{}:{}".format(*proxy.address)]
            with GoPeer(program, *arguments, "-to", niess.local_ident, "-send", "5") as gopher:
                log.wait(3)
                for cut in range(cuts):
                    gopher.wait("connected", cut + 1)
                    assert proxy.cut() == 1
                gopher.wait("connected", cuts + 1)
                gopher.wait("delivered", 2)
                niess.terminate(0)
                log.go_on()
                gopher.wait("discarded", 3)
                gopher.terminate()
                assert len(gopher.events("delivered")) == 2
    finally:
        log.go_on()
        niess.terminate(0)


@pytest.mark.parametrize("cuts", [0, 3])
def test_when_a_netcomm_peer_ends_its_next_process_gets_what_waits_for_it_in_go(
    program: Path, tmp_path: Path, cuts: int
) -> None:
    with netcomm_peer(tmp_path, "volatile") as niess, netcomm_peer(tmp_path, "volatile") as heir:
        log, heirs = Log(niess, range(3, 4)), Log(heir)
        place, next_place = niess.add_listener("127.0.0.1", 0), heir.add_listener("127.0.0.1", 0)
        assert isinstance(place, tuple)
        assert isinstance(next_place, tuple)
        niess.start()
        heir.start()
        with FaultProxy(place, seed=1) as proxy:
            arguments = ["-ident", GO, "-connect", "{}:{}".format(*proxy.address)]
            with GoPeer(program, *arguments, "-to", NETCOMM, "-send", "5") as gopher:
                log.wait(3)
                for cut in range(cuts):
                    gopher.wait("connected", cut + 1)
                    assert proxy.cut() == 1
                gopher.wait("connected", cuts + 1)
                gopher.wait("delivered", 2)
                proxy.target = next_place
                niess.terminate(0)
                log.go_on()
                gopher.wait("delivered", 5)
                gopher.terminate()
                assert not gopher.events("discarded")
    assert heirs.data == [b"2", b"3", b"4"]
    assert all(message.redelivered for message in heirs.messages)
