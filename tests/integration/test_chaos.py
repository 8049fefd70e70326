"""Nothing lost, nothing twice, in order: real peers with a failing network between them.

Faults come at random places. Where a test fails, its output names the seed; NETCOMM_CHAOS_SEED=<seed> makes the same
choices again, though the scheduler still has its say.
"""

import dataclasses
import hashlib
import logging
import os
import random
import select
import socket
import struct
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic

import pytest

from netcomm import (
    ConnectionRefusedByPeer,
    Delivery,
    DeliveryState,
    Limits,
    Message,
    Peer,
    SnakemqConnector,
    SnakemqListener,
)
from netcomm.testing import FaultProxy

DEADLINE_S = 30.0
CUTS = 300
QUICK = Limits(reconnect_min_s=0.002, reconnect_max_s=0.02, handshake_s=1.0, max_queued_bytes=4 * 1024 * 1024)


class Log:
    """What one peer has seen and done; may be changed and awaited from any thread."""

    def __init__(self, peer: Peer, handle: Callable[[Message], object] | None = None) -> None:
        """Watch a peer that was not started; `handle` is called with each message, before it is noted."""
        self.peer = peer
        self.sent: list[Delivery] = []
        self.payloads: list[bytes] = []  # the hashes of what was sent
        self.received: list[Message] = []
        self.drops: list[Delivery] = []
        self.errors: list[BaseException] = []
        self.connects: list[str] = []
        self.disconnects: list[str] = []
        self._handle = handle
        self._changed = threading.Condition()
        peer.on_message.add(self._on_message)
        peer.on_drop.add(lambda ident, delivery: self._note(self.drops, delivery))
        peer.on_connect.add(lambda ident: self._note(self.connects, ident))
        peer.on_disconnect.add(lambda ident: self._note(self.disconnects, ident))
        peer.on_error.add(lambda error: self._note(self.errors, error))

    def _on_message(self, ident: str, message: Message) -> None:
        if self._handle is not None:
            self._handle(message)
        self._note(self.received, message)

    def _note(self, where: list, what: object) -> None:
        with self._changed:
            where.append(what)
            self._changed.notify_all()

    def wait(self, true: Callable[[], object], timeout: float = DEADLINE_S) -> bool:
        """Wait until what the log says makes a condition true; returns whether it has become so."""
        with self._changed:
            return bool(self._changed.wait_for(true, timeout))

    def send(self, ident: str, data: bytes, **options: float | None) -> Delivery:
        delivery = self.peer.send(ident, data, timeout=DEADLINE_S, **options)
        self.sent.append(delivery)
        self.payloads.append(digest(data))
        return delivery

    @property
    def hashes(self) -> list[bytes]:
        return [digest(message.data) for message in self.received]

    @property
    def numbers(self) -> list[int]:
        """The numbers that `numbered` has put into what was received."""
        return [number_of(message.data) for message in self.received]


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def numbered(number: int, size: int = 0) -> bytes:
    return number.to_bytes(8) + bytes(size)


def number_of(data: bytes) -> int:
    return int.from_bytes(data[:8])


def assert_ended_once(log: Log) -> Counter[DeliveryState]:
    """Every Delivery has ended, and `on_drop` has told of each that was not delivered, once; returns how they ended.

    The peer has to be terminated: `on_drop` comes after the state has changed.
    """
    assert all(delivery.done for delivery in log.sent)
    dropped = [delivery for delivery in log.sent if delivery.state is not DeliveryState.DELIVERED]
    assert Counter(log.drops) == Counter(dropped)
    return Counter(delivery.state for delivery in log.sent)


def await_stats(peer: Peer, ident: str, true: Callable[..., bool]) -> None:
    """Wait until what a peer counts of another makes a condition true."""
    until = monotonic() + DEADLINE_S
    pause = threading.Event()
    while not (ident in (peers := peer.stats().peers) and true(peers[ident])):
        assert monotonic() < until, f"{peer.stats()}"
        pause.wait(0.001)  # nothing tells of what is received while a callback runs


@pytest.fixture
def seed() -> int:
    number = int(os.environ.get("NETCOMM_CHAOS_SEED", random.SystemRandom().randrange(2**32)))
    print(f"NETCOMM_CHAOS_SEED={number}")
    return number


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def random_size(rng: random.Random) -> int:
    """0 to 300 KB; mostly small, or the order would hardly be tested."""
    return rng.choice((0, rng.randint(0, 100), rng.randint(0, 100), rng.randint(0, 3_000), rng.randint(0, 300_000)))


class Traffic(threading.Thread):
    """Sends messages until it is told to stop; ends with an exception where `send` raises."""

    def __init__(self, log: Log, ident: str, make: Callable[[int], tuple[bytes, dict]]) -> None:
        super().__init__(name=f"traffic to {ident}")
        self._log, self._receiver, self._make = log, ident, make
        self._stop_asked = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            number = 0
            while not self._stop_asked.is_set():
                data, options = self._make(number)
                self._log.send(self._receiver, data, **options)
                number += 1
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        self._stop_asked.set()
        self.join(DEADLINE_S)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error


def dawdle(message: Message) -> None:
    """Let messages gather that were received and not handed over, so that cuts find the receiver in that state."""
    if zlib.crc32(message.uuid) % 64 == 0:
        threading.Event().wait(0.05)


def assert_nothing_is_delivered_before_its_callbacks(pairs: tuple[tuple[Log, Log], ...]) -> None:
    for log, other in pairs:
        peer = log.peer.stats().peers.get(other.peer.local_ident)
        assert peer is None or peer.delivered <= len(other.received)


def wreak_havoc(proxy: FaultProxy, rng: random.Random, cuts: int, check: Callable[[], None]) -> None:
    """Let everything happen to a proxy's connections, until it has cut `cuts` of them; leave it faultless.

    check: called between the faults; raises where something is wrong.
    """
    until = monotonic() + DEADLINE_S
    tick = threading.Event()  # never set: it only measures how long a fault lasts
    while proxy.cuts < cuts:
        assert monotonic() < until, f"{proxy} in {DEADLINE_S:g} s: connections do not come back"
        # From cuts within the handshake to cuts that let several megabytes through.
        proxy.cut_every = rng.choice((60.0, 500.0, 20_000.0, 500_000.0, None))
        proxy.chunk_bytes = rng.choice((1, 2, 50, 5_000, None))
        proxy.delay = rng.choice((0.0, 0.0, 0.001, 0.01))
        tick.wait(rng.uniform(0, 0.06))
        check()
        match rng.randrange(8):
            case 0 | 1:
                proxy.cut(reset=True)
            case 2 | 3:
                proxy.cut()
            case 4:
                proxy.stall()
                tick.wait(rng.uniform(0, 0.05))
                if rng.random() < 0.5:
                    proxy.cut(reset=rng.random() < 0.5)
                proxy.resume()
            case 5:
                proxy.refuse()
                proxy.cut(reset=True)
                tick.wait(rng.uniform(0, 0.02))
                proxy.accept()
    proxy.cut_every = proxy.chunk_bytes = None
    proxy.delay = 0.0


def talk(stack: ExitStack, seed: int) -> tuple[FaultProxy, tuple[tuple[Log, Log], ...]]:
    """Start niess, and bob behind a proxy; returns the proxy, and each of the two with the other."""
    niess = Log(SnakemqListener("niess", "127.0.0.1", 0, limits=QUICK), dawdle)
    proxy = stack.enter_context(FaultProxy(niess.peer.address, seed=seed))
    bob = Log(SnakemqConnector("bob", *proxy.address, limits=QUICK), dawdle)
    pairs = ((niess, bob), (bob, niess))
    for log, _ in pairs:
        stack.enter_context(log.peer)
    return proxy, pairs


def test_nothing_is_lost_nothing_comes_twice_and_order_is_kept(stack: ExitStack, seed: int) -> None:
    rng = random.Random(seed)
    proxy, pairs = talk(stack, seed)
    senders = []
    for log, other in pairs:
        own_rng = random.Random(rng.random())

        def make(number: int, rng: random.Random = own_rng) -> tuple[bytes, dict]:
            return rng.randbytes(random_size(rng)), {}

        senders.append(Traffic(log, other.peer.local_ident, make))
    for sender in senders:
        sender.start()
    try:
        wreak_havoc(proxy, rng, CUTS, lambda: assert_nothing_is_delivered_before_its_callbacks(pairs))
    finally:
        for sender in senders:
            sender.finish()
    for log, _ in pairs:
        assert log.peer.flush(DEADLINE_S), f"{log.peer.stats()}"
    for log, other in pairs:
        assert log.peer.stats().peers[other.peer.local_ident].delivered == len(log.sent)
        log.peer.terminate()
    for log, other in pairs:
        assert len(log.sent) > CUTS, "too little was sent for the cuts to hit anything"
        assert assert_ended_once(log) == {DeliveryState.DELIVERED: len(log.sent)}
        assert len(other.received) == len(log.sent)
        assert other.hashes == log.payloads
        assert [message.uuid for message in other.received] == [delivery.uuid for delivery in log.sent]
        assert not any(message.redelivered for message in other.received)


def test_a_message_either_expires_or_is_handed_over(stack: ExitStack, seed: int) -> None:
    rng = random.Random(seed)
    proxy, pairs = talk(stack, seed)
    senders = []
    for log, other in pairs:
        own_rng = random.Random(rng.random())

        def make(number: int, rng: random.Random = own_rng) -> tuple[bytes, dict]:
            ttl = rng.choice((None, 0, rng.uniform(0, 0.02), rng.uniform(0, 0.2), rng.uniform(0, 2)))
            return numbered(number, random_size(rng)), {"ttl": ttl}

        senders.append(Traffic(log, other.peer.local_ident, make))
    for sender in senders:
        sender.start()
    try:
        wreak_havoc(proxy, rng, 100, lambda: assert_nothing_is_delivered_before_its_callbacks(pairs))
    finally:
        for sender in senders:
            sender.finish()
    for log, _ in pairs:
        assert log.peer.flush(DEADLINE_S)
    for log, _ in pairs:
        log.peer.terminate()
    for log, other in pairs:
        ends = assert_ended_once(log)
        assert set(ends) == {DeliveryState.DELIVERED, DeliveryState.EXPIRED}
        delivered = [number for number, delivery in enumerate(log.sent) if delivery.state is DeliveryState.DELIVERED]
        handed = other.numbers
        assert handed == sorted(handed)
        assert sorted((Counter(handed) - Counter(delivered)).items()) == [], "handed over, and not DELIVERED once"
        assert sorted((Counter(delivered) - Counter(handed)).items()) == [], "DELIVERED, and not handed over"


def test_what_the_receiver_has_taken_does_not_expire_while_it_is_sent_again(stack: ExitStack) -> None:
    """The receiver holds everything, busy with the first; the connection is cut; the next one carries little."""
    released = threading.Event()
    niess = Log(SnakemqListener("niess", "127.0.0.1", 0), lambda message: released.wait(DEADLINE_S))
    stack.enter_context(niess.peer)
    stack.callback(released.set)
    proxy = stack.enter_context(FaultProxy(niess.peer.address))
    bob = Log(SnakemqConnector("bob", *proxy.address, limits=QUICK))
    stack.enter_context(bob.peer)
    assert bob.peer.wait_connected("niess", DEADLINE_S)
    ttl = 2.0
    for number in range(6):
        bob.send("niess", numbered(number, 300_000), ttl=ttl)
    expired_by = monotonic() + ttl
    await_stats(niess.peer, "bob", lambda peer: peer.received == 6)
    # Each connection from now on ends a little behind the handshake, which takes some 200 bytes a side.
    proxy.refuse()
    proxy.cut(reset=True)
    proxy.cut_every = 2_000.0
    proxy.accept()
    bob.wait(lambda: bob.drops, expired_by + 0.5 - monotonic())
    proxy.cut_every = None
    proxy.cut(reset=True)
    released.set()
    assert bob.peer.flush(DEADLINE_S)
    assert niess.wait(lambda: len(niess.received) == 6)
    assert niess.numbers == list(range(6))
    assert [delivery.state for delivery in bob.sent] == [DeliveryState.DELIVERED] * 6


def test_only_what_is_marked_comes_twice_when_the_receiver_is_replaced(stack: ExitStack, seed: int) -> None:
    rng = random.Random(seed)
    tick = threading.Event()
    proxy = stack.enter_context(FaultProxy(("127.0.0.1", 9), seed=seed, cut_every=300_000.0))
    # While niess is away, somebody else may be given its port, and even have its name: nothing may go there.
    proxy.refuse()
    few = dataclasses.replace(QUICK, max_queued_messages=500)
    bob = Log(SnakemqConnector("bob", *proxy.address, limits=few))
    stack.enter_context(bob.peer)
    to_niess = Traffic(bob, "niess", lambda number: (numbered(number, rng.randrange(2_000)), {}))
    to_niess.start()
    lives: list[Log] = []
    known_delivered = [0]  # when a life began: so many of bob's messages were DELIVERED
    try:
        for life in range(8):
            niess = Log(SnakemqListener("niess", "127.0.0.1", 0, limits=QUICK), dawdle)
            lives.append(niess)
            proxy.target = niess.peer.address
            proxy.accept()
            with niess.peer:
                to_bob = Traffic(niess, "bob", lambda number, life=life: (numbered(life << 32 | number), {}))
                to_bob.start()
                try:
                    assert niess.wait(lambda niess=niess: len(niess.received) > 20)
                    tick.wait(rng.uniform(0, 0.2))
                    if life == 7:
                        to_niess.finish()
                        assert bob.peer.flush(DEADLINE_S)
                finally:
                    to_bob.finish()
                proxy.refuse()
                niess.peer.terminate(rng.choice((0.0, 0.0, 1.0)))
            known_delivered.append(sum(delivery.state is DeliveryState.DELIVERED for delivery in bob.sent))
    finally:
        to_niess.finish()
    bob.peer.terminate()

    assert assert_ended_once(bob) == {DeliveryState.DELIVERED: len(bob.sent)}
    seen: set[int] = set()
    for niess, delivered in zip(lives, known_delivered, strict=False):
        numbers = niess.numbers
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "a gap, or a repetition, within one life"
        assert numbers[0] >= delivered, "handed over again after it was acknowledged"
        again = {number_of(message.data) for message in niess.received if not message.redelivered} & seen
        assert not again, "handed over again, and not marked"
        seen.update(numbers)
    assert seen == set(range(len(bob.sent)))

    got = Counter(bob.numbers)
    assert bob.numbers == sorted(bob.numbers)
    assert set(got.values()) == {1}
    for life, niess in enumerate(lives):
        assert set(assert_ended_once(niess)) <= {DeliveryState.DELIVERED, DeliveryState.DISCARDED}
        for number, delivery in enumerate(niess.sent):
            if delivery.state is DeliveryState.DELIVERED:
                assert got[life << 32 | number] == 1


def test_a_black_hole_is_noticed_and_nothing_is_lost_in_it(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(
        keepalive_idle_s=0.2, keepalive_wait_s=0.2, handshake_s=0.4, reconnect_min_s=0.01, reconnect_max_s=0.05
    )
    niess = Log(SnakemqListener("niess", "127.0.0.1", 0, limits=limits))
    stack.enter_context(niess.peer)
    proxy = stack.enter_context(FaultProxy(niess.peer.address))
    bob = Log(SnakemqConnector("bob", *proxy.address, limits=limits))
    stack.enter_context(bob.peer)
    assert bob.peer.wait_connected("niess", DEADLINE_S)
    pairs = ((niess, bob), (bob, niess))
    for log, other in pairs:
        for number in range(100):
            log.send(other.peer.local_ident, numbered(number, 10_000))
    assert niess.wait(lambda: niess.received)
    proxy.stall()
    for log, other in pairs:
        for number in range(100, 200):
            log.send(other.peer.local_ident, numbered(number, 10_000))
    for log, other in pairs:
        assert log.wait(lambda log=log: log.disconnects)
        assert other.peer.local_ident not in log.peer.peers
    assert caplog.text.count("no answer to a ping within 0.2 s; closing the connection") >= 2
    proxy.resume()
    for log, other in pairs:
        assert log.peer.flush(DEADLINE_S)
        assert other.numbers == list(range(200))
        assert all(delivery.state is DeliveryState.DELIVERED for delivery in log.sent)


def test_a_connector_that_comes_back_replaces_its_half_open_connection_at_once(stack: ExitStack) -> None:
    niess = Log(SnakemqListener("niess", "127.0.0.1", 0))  # it would wait 25 s, and a probe 5 s
    stack.enter_context(niess.peer)
    first = stack.enter_context(FaultProxy(niess.peer.address))
    second = stack.enter_context(FaultProxy(niess.peer.address))
    front = stack.enter_context(FaultProxy(first.address))
    bob = Log(SnakemqConnector("bob", *front.address, limits=QUICK))
    stack.enter_context(bob.peer)
    pairs = ((niess, bob), (bob, niess))
    assert bob.peer.wait_connected("niess", DEADLINE_S)
    for log, other in pairs:
        assert log.send(other.peer.local_ident, numbered(0)).wait(DEADLINE_S)
    first.stall()
    for log, other in pairs:
        for number in range(1, 10):
            log.send(other.peer.local_ident, numbered(number))
    front.target = second.address
    cut_at = monotonic()
    assert front.cut(reset=True) == 1
    for log, _ in pairs:
        assert log.sent[-1].wait(DEADLINE_S)
    assert monotonic() - cut_at < 3, "it has waited for a probe"
    assert not any(isinstance(error, ConnectionRefusedByPeer) for error in bob.errors)
    first.resume()  # what was held back arrives at a connection that is gone
    for log, other in pairs:
        assert log.send(other.peer.local_ident, numbered(10)).wait(DEADLINE_S)
        assert other.numbers == list(range(11))
    assert bob.peer.stats().peers["niess"].reconnects == 1


def test_another_process_takes_over_the_ident_of_one_that_is_gone_after_one_probe(stack: ExitStack) -> None:
    limits = Limits(keepalive_idle_s=60, keepalive_wait_s=0.3)  # only the probe can notice in time
    niess = Log(SnakemqListener("niess", "127.0.0.1", 0, limits=limits))
    stack.enter_context(niess.peer)
    proxy = stack.enter_context(FaultProxy(niess.peer.address))
    old = SnakemqConnector("bob", *proxy.address)
    stack.callback(old.terminate, 0)
    old.start()
    assert old.wait_connected("niess", DEADLINE_S)
    assert old.send("niess", numbered(0)).wait(DEADLINE_S)
    proxy.stall()
    fresh = Log(SnakemqConnector("bob", *niess.peer.address, limits=Limits(reconnect_min_s=30, reconnect_max_s=30)))
    stack.enter_context(fresh.peer)
    assert fresh.send("niess", numbered(1)).wait(10), "not admitted on its first connection"
    assert niess.peer.send("bob", numbered(2)).wait(10)
    assert niess.numbers == [0, 1]
    assert fresh.numbers == [2]
    assert not fresh.errors
    assert niess.connects == ["bob", "bob"]
    assert niess.disconnects == ["bob"]


def test_a_second_process_with_an_ident_is_refused_and_both_sides_say_why(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    niess = Log(SnakemqListener("niess", "127.0.0.1", 0))
    stack.enter_context(niess.peer)
    bob = Log(SnakemqConnector("bob", *niess.peer.address))
    stack.enter_context(bob.peer)
    assert bob.peer.wait_connected("niess", DEADLINE_S)
    double = Log(SnakemqConnector("bob", *niess.peer.address, limits=QUICK))
    stack.callback(double.peer.terminate, 0)
    double.peer.start()
    queued = double.send("niess", b"from the wrong bob")
    assert double.wait(lambda: double.errors), "nobody says why"
    double.peer.terminate(0)
    assert not double.connects
    assert all(isinstance(error, ConnectionRefusedByPeer) for error in double.errors)
    reason = "ident 'bob' is connected already, from "
    assert all(reason in str(error) for error in double.errors)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum(text.startswith("refusing the connection with ") and reason in text for text in said) == 1
    assert sum("'niess' at " in text and f"refused the connection: {reason}" in text for text in said) == 1
    assert queued.state is DeliveryState.DISCARDED
    assert bob.send("niess", numbered(1)).wait(DEADLINE_S)
    assert niess.numbers == [1]
    assert niess.connects == ["bob"]
    assert not niess.disconnects
    assert not bob.disconnects


def test_two_hundred_connectors_come_back_to_a_restarted_listener(stack: ExitStack) -> None:
    allow_descriptors(stack, 4096)
    limits = Limits(reconnect_min_s=0.05, reconnect_max_s=0.5)
    idents = [f"c{number:03}" for number in range(200)]
    hub = Log(SnakemqListener("hub", "127.0.0.1", 0, limits=limits))
    stack.callback(lambda: hub.peer.terminate(0))
    host, port = hub.peer.address
    hub.peer.start()
    connectors = [Log(SnakemqConnector(ident, host, port, limits=limits)) for ident in idents]
    for connector in connectors:
        stack.callback(connector.peer.terminate, 0)
        connector.peer.start()
    received: dict[str, list[int]] = {ident: [] for ident in idents}
    expected = 0

    def collect(ident: str, data: bytes) -> None:
        received[ident].append(number_of(data))

    hub.peer.on_recv.add(collect)
    for restart in range(3):
        for connector in connectors:
            for number in range(expected, expected + 3):
                connector.send("hub", numbered(number))
        expected += 3
        for ident in idents:
            hub.send(ident, numbered(restart))
        for connector in connectors:
            assert connector.wait(lambda connector=connector, restart=restart: connector.numbers[-1:] == [restart])
        # Some of what goes to the hub is under way, some is queued, some comes while nobody listens.
        hub.peer.terminate()
        assert assert_ended_once(hub) == {DeliveryState.DELIVERED: len(idents)}
        for connector in connectors:
            for number in range(expected, expected + 3):
                connector.send("hub", numbered(number))
        expected += 3
        hub = Log(SnakemqListener("hub", host, port, limits=limits))
        hub.peer.on_recv.add(collect)
        hub.peer.start()
    for connector in connectors:
        assert connector.peer.flush(DEADLINE_S)
        assert connector.numbers == list(range(3))
        assert connector.peer.stats().peers["hub"].reconnects == 3
    assert received == {ident: list(range(expected)) for ident in idents}
    for connector in connectors:
        connector.peer.terminate()
        assert assert_ended_once(connector) == {DeliveryState.DELIVERED: expected}
    hub.peer.terminate()


def allow_descriptors(stack: ExitStack, count: int) -> None:
    """Let this process open so many, until the end of the test; 200 peers need more than the usual 1024."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < count:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard < 0 else min(count, hard), hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_that_is_reset_while_it_is_looked_at_does_not_end_the_loop(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reset comes between the kernel's word that a connection was made and the first look at its addresses."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    server.settimeout(5)
    bob = Log(SnakemqConnector("bob", *server.getsockname(), limits=QUICK))
    stack.callback(bob.peer.terminate, 0)
    getsockname = socket.socket.getsockname
    reset = threading.Event()

    def getsockname_after_a_reset(sock: socket.socket) -> object:
        if threading.current_thread().name.startswith(bob.peer.name) and not reset.is_set():
            accepted, _ = server.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()
            poll = select.poll()
            poll.register(sock, 0)  # it tells of a hang-up without being asked
            assert poll.poll(DEADLINE_S * 1000)
            reset.set()
        return getsockname(sock)

    monkeypatch.setattr(socket.socket, "getsockname", getsockname_after_a_reset)
    bob.peer.start()
    assert reset.wait(DEADLINE_S)
    again, _ = server.accept()
    again.close()
    assert bob.peer.is_alive()
