"""Log handlers that use the peer whose records they get, or block: everything goes on. Real peers."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from netcomm import Delivery, logs
from tests.integration.helpers import DEADLINE_S, Peer, Recorder, SnakemqConnector, SnakemqListener, record


class Handler(logging.Handler):
    """Does something with each record of the library."""

    def __init__(self, action: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self._action = action

    def emit(self, record: logging.LogRecord) -> None:
        self._action(record)


@pytest.fixture
def handle() -> Iterator[Callable[[Callable[[logging.LogRecord], object]], None]]:
    """Adds a handler to the library's logger, for everything from INFO on."""
    logger = logging.getLogger("netcomm")
    before = logger.level
    logger.setLevel(logging.INFO)
    handlers: list[Handler] = []

    def add(action: Callable[[logging.LogRecord], object]) -> None:
        handlers.append(Handler(action))
        logger.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        logger.removeHandler(handler)
    logger.setLevel(before)


Handle = Callable[[Callable[[logging.LogRecord], object]], None]


class Pair:
    """A listener "niess", whose callback raises at b"raise", and a connector "bob"."""

    def __init__(self) -> None:
        self.niess = SnakemqListener("niess", "127.0.0.1", 0)
        self.bob = SnakemqConnector("bob", *self.niess.address)
        self.received: Recorder = record(self.niess.on_recv)
        self.niess.on_recv.add(self._raise)

    @staticmethod
    def _raise(ident: str, data: bytes) -> None:
        if data == b"raise":
            raise ValueError("as the test wants")

    def payloads(self) -> list[bytes]:
        return [data for _, data in self.received.calls]

    def __enter__(self) -> "Pair":
        self.niess.start()
        self.bob.start()
        assert self.bob.wait_connected("niess", DEADLINE_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bob.terminate(0.3)
        self.niess.terminate(0.3)


@pytest.mark.parametrize("sender", ["bob", "niess"])
def test_a_handler_may_send_with_the_peer_whose_records_it_gets(handle: Handle, sender: str) -> None:
    with Pair() as pair:
        peer, ident = (pair.bob, "niess") if sender == "bob" else (pair.niess, "bob")
        taken: Recorder = record(pair.bob.on_recv)
        deliveries: list[Delivery] = []
        handle(lambda record: deliveries.append(peer.send(ident, b"log: " + record.getMessage().encode())))
        raising = [pair.bob.send("niess", b"raise") for _ in range(100)]
        assert all(delivery.wait(DEADLINE_S) for delivery in raising)
        assert logs.flush(DEADLINE_S)
        assert all(delivery.wait(DEADLINE_S) for delivery in list(deliveries))
        found = pair.payloads() if sender == "bob" else [data for _, data in taken.calls]
        logged = [data for data in found if data.startswith(b"log: on_recv: ")]
        assert len(logged) == 100


def test_a_handler_may_wait_for_the_delivery_of_what_it_sends(handle: Handle) -> None:
    with Pair() as pair:
        delivered: list[bool] = []
        handle(lambda record: delivered.append(pair.bob.send("niess", b"log").wait(DEADLINE_S)))
        raising = [pair.bob.send("niess", b"raise") for _ in range(20)]
        assert all(delivery.wait(DEADLINE_S) for delivery in raising)
        assert logs.flush(DEADLINE_S)
        assert len(delivered) >= 20
        assert all(delivered)
        assert pair.payloads().count(b"log") == len(delivered)


def test_a_handler_that_blocks_for_ever_holds_nothing_up_but_the_log(handle: Handle) -> None:
    blocked, go_on = threading.Event(), threading.Event()
    handle(lambda record: (blocked.set(), go_on.wait(DEADLINE_S)))
    try:
        with Pair() as pair:
            deliveries = [pair.bob.send("niess", data) for _ in range(50) for data in (b"raise", b"x")]
            assert blocked.wait(DEADLINE_S)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            assert pair.bob.flush(DEADLINE_S)
            other = SnakemqConnector("other", *pair.niess.address)
            other.start()  # connecting is logged
            assert other.send("niess", b"from another").wait(DEADLINE_S)
            for peer in (other, pair.bob, pair.niess):
                ends_in_time(peer, 0.3)
    finally:
        go_on.set()
    assert pair.payloads() == [b"raise", b"x"] * 50 + [b"from another"]


@pytest.mark.parametrize("timeout", [0, 0.5])
def test_terminate_keeps_to_its_time_while_a_handler_blocks(handle: Handle, timeout: float) -> None:
    blocked, go_on = threading.Event(), threading.Event()
    handle(lambda record: (blocked.set(), go_on.wait(DEADLINE_S)))
    try:
        with Pair() as pair:
            assert blocked.wait(DEADLINE_S)
            for peer in (pair.bob, pair.niess):
                ends_in_time(peer, timeout)
    finally:
        go_on.set()


def ends_in_time(peer: Peer, timeout: float) -> None:
    """Terminate a peer; the log's handlers get a quarter of a second at the least."""
    started = time.monotonic()
    peer.terminate(timeout)
    assert time.monotonic() - started < timeout + 3
    assert not peer.is_alive()


def test_a_handler_may_terminate_the_peer_whose_records_it_gets(handle: Handle) -> None:
    ended = threading.Event()
    with Pair() as pair:

        def end(record: logging.LogRecord) -> None:
            if "as the test wants" in str(record.exc_info and record.exc_info[1]):
                pair.niess.terminate(DEADLINE_S)
                ended.set()

        handle(end)
        pair.bob.send("niess", b"raise")
        assert ended.wait(DEADLINE_S)
        assert "has been terminated" in repr(pair.niess)
