"""A message counts as delivered when it has been handed over, whatever is raised on the way, by whom, and where."""

import codecs
import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netcomm import DeliveryState, LifecycleError, NetcommError, logs
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.remote_peer import RemotePeer
from netcomm.protocol.sessions import Sessions
from netcomm.runtime import callback_runner
from netcomm.transport.link import Link
from tests.integration.helpers import (
    DEADLINE_S,
    FAST,
    SnakemqConnector,
    SnakemqListener,
    record,
    wait_until,
)

PAYLOADS = [b"%d" % number for number in range(20)]


class Refuses(logging.Filter):
    """Raises for records of a level, as a filter does that wants a context that is not there."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level
        self.met = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == self.level:
            self.met += 1
            raise KeyError("request_id")
        return True


@contextlib.contextmanager
def refusing(level: int) -> Iterator[Refuses]:
    """Let each record of netcomm's of a level raise at the logging call."""
    refuses = Refuses(level)
    handler = logging.Handler()
    handler.addFilter(refuses)
    handler.emit = lambda record: None  # type: ignore[method-assign]
    logger = logging.getLogger("netcomm")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield refuses
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


def _decode_strangely(data: Any, errors: str = "strict") -> tuple[str, int]:
    text = bytes(data).decode("ascii")
    if text == "7":
        raise UnicodeError("not the error that decoders raise as a rule")
    if text == "11":
        raise ZeroDivisionError
    return text, len(data)


@pytest.fixture
def strange_codec() -> Iterator[str]:
    def find(name: str) -> codecs.CodecInfo | None:
        if name != "strange":
            return None
        return codecs.CodecInfo(lambda text, errors="strict": (text.encode(), len(text)), _decode_strangely)

    codecs.register(find)
    yield "strange"
    codecs.unregister(find)


def test_a_decoder_that_raises_anything_costs_its_own_message_alone(strange_codec: str) -> None:
    with SnakemqListener("niess", "127.0.0.1", 0, encoding=strange_codec) as niess:
        received = record(niess.on_recv)
        messages = record(niess.on_message)
        errors = record(niess.on_error)
        with SnakemqConnector("bob", *niess.address) as bob:
            deliveries = bob.send_many("niess", PAYLOADS)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            expected = [text for text in map(bytes.decode, PAYLOADS) if text not in ("7", "11")]
            assert [text for _, text in received.calls] == expected
            assert [message.data for _, message in messages.calls] == PAYLOADS
            assert [type(error) for error in errors.calls] == [UnicodeError, ZeroDivisionError]


def test_a_log_filter_that_raises_while_a_callback_is_reported_loses_no_message() -> None:
    with refusing(logging.ERROR) as refuses, SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        errors = record(niess.on_error)

        @niess.on_recv.add
        def fail_now_and_then(ident: str, data: bytes) -> None:
            if data in (b"3", b"4", b"19"):
                raise ValueError(data)

        with SnakemqConnector("bob", *niess.address) as bob:
            deliveries = bob.send_many("niess", PAYLOADS)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            assert received.calls == [("bob", data) for data in PAYLOADS]
            assert [error.args for error in errors.calls] == [(b"3",), (b"4",), (b"19",)]
            assert logs.flush(DEADLINE_S)
            assert refuses.met == 3
            assert niess.is_alive()


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR])
def test_a_log_filter_that_raises_ends_neither_the_loop_nor_a_thread(level: int) -> None:
    with (
        refusing(level) as refuses,
        SnakemqListener("niess", "127.0.0.1", 0) as niess,
        SnakemqConnector("bob", *niess.address, limits=FAST) as bob,
    ):
        assert bob.send("niess", b"x").wait(DEADLINE_S)
        with SnakemqConnector("bob", *niess.address, limits=FAST):  # which is refused, and both sides say so
            bob.add_connector("127.0.0.1", 9)  # where nobody listens
            niess.on_recv.add(lambda ident, data: 1 / 0)
            assert bob.send("niess", b"y").wait(DEADLINE_S)
            wait_until(lambda: refuses.met > 0, "a record of the level")
        assert bob.send("niess", b"z").wait(DEADLINE_S)
        assert niess.is_alive()
        assert bob.is_alive()


def test_after_a_defect_in_handing_over_nothing_more_is_acknowledged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which message was passed over is not known then, and an acknowledgement of a later one would cover it."""
    real = callback_runner._message

    def make_message(item: Any, redelivered_below: int) -> Any:
        if item[4] == b"5":
            raise MemoryError
        return real(item, redelivered_below)

    place = f"unix:{tmp_path}/socket"
    with SnakemqConnector("bob", place, 0, limits=FAST) as bob:
        first = SnakemqListener("niess", place, 0)
        messages = record(first.on_message)
        errors = record(first.on_error)
        with monkeypatch.context() as planted:
            planted.setattr(callback_runner, "_message", make_message)
            first.start()
            deliveries = bob.send_many("niess", PAYLOADS)
            first.join(DEADLINE_S)
        assert not first.is_alive()
        assert [message.data for _, message in messages.calls] == PAYLOADS[:5]
        (error,) = errors.wait(1)
        assert isinstance(error, NetcommError)
        assert "MemoryError" in str(error)
        assert all(delivery.state is not DeliveryState.DELIVERED for delivery in deliveries[5:])
        with SnakemqListener("niess", place, 0) as second:
            again = record(second.on_message)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            assert {message.data for _, message in again.calls} >= set(PAYLOADS[5:])


def test_who_uses_a_peer_that_has_failed_hears_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Link, *arguments: object) -> None:
        raise RuntimeError("the cause")

    bob = SnakemqConnector("bob", "127.0.0.1", 9)
    errors = record(bob.on_error)
    with monkeypatch.context() as planted:
        planted.setattr(Link, "poll", fail)
        bob.start()
        bob.join(DEADLINE_S)
    assert not bob.is_alive()
    for use in (lambda: bob.send("niess", b""), lambda: bob.flush(1), lambda: bob.wait_connected(timeout=1), bob.start):
        with pytest.raises(LifecycleError, match=r"has failed.*the cause") as caught:
            use()
        assert isinstance(caught.value.__cause__, RuntimeError)
    assert "the cause" in str(errors.wait(1)[0])
    bob.terminate()


# One connection's fault is that connection's


@pytest.mark.parametrize(("owner", "method"), [(Sessions, "buffer_updated"), (Messaging, "output")])
def test_a_fault_of_one_connection_ends_that_connection_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: type, method: str
) -> None:
    """No memory for a large message, for instance: what is queued goes out on the next connection, once."""
    real = getattr(owner, method)
    failing = threading.Event()

    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        errors = record(niess.on_error)
        with (
            SnakemqConnector("bob", *niess.address, limits=FAST) as bob,
            SnakemqConnector("eve", *niess.address, limits=FAST) as eve,
        ):
            gone = record(eve.on_disconnect)
            for one in (bob, eve):
                assert one.send("niess", b"before").wait(DEADLINE_S)
            messaging = niess._runtime._messaging
            unlucky = messaging.peers["bob"].connection

            def fail_once(self: Any, number: int, *arguments: Any) -> Any:
                is_its_own = self in (messaging, messaging.sessions)
                if is_its_own and number == unlucky.number and not failing.is_set():
                    failing.set()
                    raise MemoryError
                return real(self, number, *arguments)

            monkeypatch.setattr(owner, method, fail_once)
            deliveries = bob.send_many("niess", PAYLOADS)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            assert failing.is_set()
            assert [data for ident, data in received.calls if ident == "bob"] == [b"before", *PAYLOADS]
            wait_until(lambda: bob.stats().peers["niess"].reconnects == 1)
            (error,) = errors.wait(1)
            assert isinstance(error, NetcommError)
            assert "MemoryError" in str(error)
            assert "bob" in str(error)
            assert eve.send("niess", b"after").wait(DEADLINE_S)
            assert gone.calls == []
    assert any(record.exc_info for record in caplog.records if "MemoryError" in record.getMessage())


def test_messages_that_memory_runs_out_for_when_they_come_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver knows their numbers by then: it must not take them for messages that it has."""
    real = RemotePeer._note_received
    failing = threading.Event()

    def fail_once(self: RemotePeer, *arguments: Any) -> None:
        if not failing.is_set():
            failing.set()
            raise MemoryError
        real(self, *arguments)

    with (
        SnakemqListener("niess", "127.0.0.1", 0) as niess,
        SnakemqConnector("bob", *niess.address, limits=FAST) as bob,
    ):
        received = record(niess.on_recv)
        assert bob.wait_connected("niess", DEADLINE_S)
        monkeypatch.setattr(RemotePeer, "_note_received", fail_once)
        deliveries = bob.send_many("niess", PAYLOADS)
        assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        assert received.calls == [("bob", data) for data in PAYLOADS]
