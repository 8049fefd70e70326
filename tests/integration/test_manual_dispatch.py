"""Callbacks on a thread of the program: `dispatch="manual"`, in the loops that programs have."""

import asyncio
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import netcomm
from netcomm import AlreadyDispatching, ConfigurationError, DeliveryState, LifecycleError, Limits
from netcomm.runtime import manual_dispatcher
from tests.integration import helpers
from tests.integration.helpers import DEADLINE_S, FAST, SnakemqConnector, in_thread, wait_until


class Pair(helpers.Pair):
    """A listener "niess" that dispatches by hand, and a connector "bob"."""

    def __init__(self, **options: Any) -> None:
        self.niess = netcomm.SnakemqListener("niess", "127.0.0.1", 0, dispatch="manual", **options)
        self.bob = SnakemqConnector("bob", *self.niess.address, limits=FAST)
        self.got: list[bytes] = []
        self.threads: set[int] = set()

    def take(self, ident: str, data: bytes) -> None:
        self.got.append(data)
        self.threads.add(threading.get_ident())

    def dispatch_until(self, count: int) -> int:
        """Dispatch until so many messages have come; returns what `dispatch` has counted."""
        counted = 0
        until = time.monotonic() + DEADLINE_S
        while len(self.got) < count:
            assert time.monotonic() < until
            counted += self.niess.dispatch(1)
        return counted

    def dispatch_on(self) -> None:
        """Dispatch until that raises something."""
        while True:
            self.niess.dispatch(DEADLINE_S)

    def wait_readable(self) -> None:
        assert select.select([self.niess], [], [], DEADLINE_S)[0]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        made.niess.on_recv.add(made.take)
        made.niess.dispatch(DEADLINE_S)  # on_connect
        made.niess.dispatch()
        yield made


def test_messages_are_delivered_where_the_program_dispatches_and_not_before(pair: Pair) -> None:
    delivery = pair.bob.send("niess", b"hello")
    pair.wait_readable()
    assert pair.got == []
    assert not delivery.wait(0.05)
    assert pair.niess.dispatch() == 1
    assert delivery.wait(DEADLINE_S)
    assert pair.got == [b"hello"]
    assert pair.threads == {threading.get_ident()}
    assert not select.select([pair.niess], [], [], 0)[0]
    assert pair.niess.dispatch(0.01) == 0


def test_order_is_kept_and_each_message_counts_once(pair: Pair) -> None:
    messages = [b"%d" % number for number in range(20_000)]
    pair.niess.on_message.add(lambda ident, message: None)
    pair.bob.send_many("niess", messages)
    assert pair.dispatch_until(len(messages)) == len(messages)
    assert pair.got == messages
    assert pair.bob.flush(DEADLINE_S)
    assert pair.threads == {threading.get_ident()}


def test_events_count_and_come_in_their_order(pair: Pair) -> None:
    seen: list[str] = []
    pair.niess.on_disconnect.add(lambda ident: seen.append(f"-{ident}"))
    pair.niess.on_recv.add(lambda ident, data: seen.append(data.decode()))
    pair.bob.send("niess", b"last").wait(0)
    pair.wait_readable()
    pair.bob.terminate(0)
    wait_until(lambda: not pair.niess.peers)
    count = 0
    while len(seen) < 2:
        count += pair.niess.dispatch(DEADLINE_S)
    assert (count, seen) == (2, ["last", "-bob"])


def test_earlier_messages_are_acknowledged_while_a_later_callback_runs(pair: Pair) -> None:
    deliveries = pair.bob.send_many("niess", [b"1", b"2"])
    waited: list[bool] = []
    pair.niess.on_recv.add(lambda ident, data: waited.append(data == b"2" and deliveries[0].wait(DEADLINE_S)))
    pair.dispatch_until(2)
    assert waited == [False, True]
    assert deliveries[1].wait(DEADLINE_S)


def test_callbacks_may_send_and_wait(pair: Pair) -> None:
    results: list[bool] = []

    @pair.niess.on_recv.add
    def answer(ident: str, data: bytes) -> None:
        results.append(pair.niess.send(ident, b"answer").wait(DEADLINE_S))
        results.append(pair.niess.flush(DEADLINE_S))
        results.append(pair.niess.wait_connected("bob", DEADLINE_S))

    assert pair.bob.send("niess", b"question").wait(0) is False
    pair.dispatch_until(1)
    assert results == [True, True, True]
    assert pair.niess.send("bob", b"from the thread that dispatches").wait(DEADLINE_S)


def test_the_peer_has_one_thread_and_no_dispatcher(pair: Pair) -> None:
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("netcomm-niess")}
    assert names == {"netcomm-niess"}


def test_an_idle_peer_uses_no_processor(pair: Pair) -> None:
    pair.bob.send("niess", b"hello")
    pair.dispatch_until(1)
    pair.bob.flush(DEADLINE_S)
    before = time.process_time()
    assert pair.niess.dispatch(0.5) == 0
    assert time.process_time() - before < 0.05


def test_the_window_stops_senders_of_a_program_that_does_not_dispatch() -> None:
    with Pair(limits=Limits(window_bytes=10_000)) as pair:
        pair.niess.on_recv.add(pair.take)
        deliveries = pair.bob.send_many("niess", [bytes(1000)] * 100)
        pair.wait_readable()
        assert not pair.bob.flush(0.1)
        sent = sum(delivery.state is DeliveryState.SENT for delivery in deliveries)
        assert 0 < sent <= 10
        pair.dispatch_until(100)
        assert pair.bob.flush(DEADLINE_S)


def test_messages_without_a_function_are_held_back_and_do_not_count(pair: Pair) -> None:
    pair.niess.on_recv.remove(pair.take)
    delivery = pair.bob.send("niess", b"hello")
    pair.wait_readable()
    assert pair.niess.dispatch() == 0
    assert not delivery.done
    pair.niess.on_recv.add(pair.take)
    assert pair.niess.dispatch() == 1
    assert delivery.wait(DEADLINE_S)


def test_a_callback_that_raises_harms_no_other(pair: Pair) -> None:
    errors: list[BaseException] = []

    def broken(ident: str, data: bytes) -> None:
        raise ZeroDivisionError("oops")

    pair.niess.on_recv.add(broken)
    pair.niess.on_recv.add(pair.take)
    pair.niess.on_error.add(errors.append)
    delivery = pair.bob.send("niess", b"hello")
    pair.dispatch_until(2)
    assert delivery.wait(DEADLINE_S)
    assert [type(error) for error in errors] == [ZeroDivisionError]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_message_whose_callback_was_interrupted_comes_again_and_no_other_does(
    pair: Pair, kind: type[BaseException]
) -> None:
    marks: list[tuple[bytes, bool]] = []

    @pair.niess.on_message.add
    def take(ident: str, message: netcomm.Message) -> None:
        marks.append((message.data, message.redelivered))
        if message.data == b"2" and len(marks) == 2:
            raise kind

    deliveries = pair.bob.send_many("niess", [b"1", b"2", b"3"])
    with pytest.raises(kind):
        pair.dispatch_until(3)
    assert deliveries[0].wait(DEADLINE_S)
    assert not deliveries[1].done
    pair.wait_readable()
    assert pair.niess.dispatch() == 2
    assert marks == [(b"1", False), (b"2", False), (b"2", True), (b"3", False)]
    assert pair.bob.flush(DEADLINE_S)


def test_a_message_whose_callback_was_interrupted_is_not_acknowledged_at_the_end() -> None:
    with Pair() as pair:

        @pair.niess.on_recv.add
        def take(ident: str, data: bytes) -> None:
            if data == b"2":
                raise KeyboardInterrupt

        deliveries = pair.bob.send_many("niess", [b"1", b"2", b"3"])
        with pytest.raises(KeyboardInterrupt):
            pair.dispatch_on()
        pair.niess.terminate(1)
        assert deliveries[0].wait(DEADLINE_S)
        assert not deliveries[1].done


def test_events_that_were_interrupted_come_again_from_where_they_were(pair: Pair) -> None:
    dropped: list[bytes] = []

    @pair.niess.on_drop.add
    def drop(ident: str, delivery: netcomm.Delivery) -> None:
        dropped.append(delivery.data)
        if len(dropped) == 2:
            raise KeyboardInterrupt

    pair.niess.send_many("nobody", [b"1", b"2", b"3"], ttl=0)
    with pytest.raises(KeyboardInterrupt):
        pair.dispatch_on()
    while len(dropped) < 4:
        pair.niess.dispatch(DEADLINE_S)
    assert dropped == [b"1", b"2", b"2", b"3"]


# -- What is refused --------------------------------------------------------------------------------------------------


def test_dispatch_in_a_callback_is_refused(pair: Pair) -> None:
    errors: list[BaseException] = []
    pair.niess.on_error.add(errors.append)
    pair.niess.on_recv.add(lambda ident, data: pair.niess.dispatch())
    pair.bob.send("niess", b"hello")
    pair.dispatch_until(1)
    pair.niess.dispatch(1)
    assert [type(error) for error in errors] == [AlreadyDispatching]


def test_two_threads_do_not_dispatch_at_once(pair: Pair) -> None:
    waiting = threading.Event()
    release = threading.Event()

    @pair.niess.on_recv.add
    def block(ident: str, data: bytes) -> None:
        waiting.set()
        release.wait(DEADLINE_S)

    pair.bob.send("niess", b"hello")
    result = in_thread(lambda: pair.niess.dispatch(DEADLINE_S))
    assert waiting.wait(DEADLINE_S)
    with pytest.raises(AlreadyDispatching):
        pair.niess.dispatch()
    release.set()
    assert result() == 1


def test_a_peer_with_a_thread_of_its_own_has_neither_dispatch_nor_fileno(pair: Pair) -> None:
    with pytest.raises(ConfigurationError, match="manual"):
        pair.bob.dispatch()
    with pytest.raises(ConfigurationError, match="manual"):
        pair.bob.fileno()


def test_the_argument_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="dispatch"):
        netcomm.Peer("bob", dispatch="main")  # type: ignore[arg-type]


def test_before_the_start_and_after_the_end_dispatch_is_refused() -> None:
    peer = netcomm.Peer("bob", dispatch="manual")
    peer.on_recv.add(lambda ident, data: None)
    assert peer.fileno() >= 0
    with pytest.raises(LifecycleError):
        peer.dispatch()
    with peer:
        peer.dispatch()
    with pytest.raises(LifecycleError):
        peer.dispatch()
    with pytest.raises(LifecycleError):
        peer.fileno()


# -- The end ----------------------------------------------------------------------------------------------------------


def test_the_thread_that_dispatches_does_not_wait_for_itself(pair: Pair) -> None:
    pair.bob.send("niess", b"1")
    pair.dispatch_until(1)
    delivery = pair.bob.send("niess", b"2")
    pair.wait_readable()
    started = time.monotonic()
    pair.niess.terminate(DEADLINE_S)
    assert time.monotonic() - started < DEADLINE_S / 2
    assert pair.got == [b"1"]
    assert not delivery.done


def test_a_callback_that_terminates_the_peer_is_the_last_one_and_counts_as_returned(pair: Pair) -> None:
    pair.niess.on_recv.add(lambda ident, data: pair.niess.terminate(DEADLINE_S))
    deliveries = pair.bob.send_many("niess", [b"1", b"2"])
    started = time.monotonic()
    assert pair.dispatch_until(1) == 1
    assert time.monotonic() - started < DEADLINE_S / 2
    assert deliveries[0].wait(DEADLINE_S)
    assert not deliveries[1].done
    assert pair.got == [b"1"]


def test_another_thread_that_terminates_the_peer_lets_it_dispatch_what_waits(pair: Pair) -> None:
    pair.niess.dispatch()  # this is the thread that does
    deliveries = pair.bob.send_many("niess", [b"1", b"2", b"3"])
    pair.wait_readable()
    ended = in_thread(lambda: pair.niess.terminate(DEADLINE_S))
    wait_until(lambda: "being terminated" in repr(pair.niess))
    with pytest.raises(LifecycleError):
        pair.dispatch_on()
    ended()
    assert pair.got == [b"1", b"2", b"3"]
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)


def test_events_of_the_end_can_be_dispatched_behind_it(pair: Pair) -> None:
    dropped: list[bytes] = []
    pair.niess.on_drop.add(lambda ident, delivery: dropped.append(delivery.data))
    pair.niess.send("nobody", b"hello")
    pair.niess.terminate(0)
    assert dropped == []
    pair.niess.dispatch()
    assert dropped == [b"hello"]
    with pytest.raises(LifecycleError):
        pair.niess.dispatch()


def test_a_main_loop_hears_once_of_a_peer_that_has_failed(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[BaseException] = []
    pair.niess.on_error.add(errors.append)
    pair.niess._runtime._loop.fail(ValueError("boom"))
    pair.niess.join(DEADLINE_S)
    pair.wait_readable()
    with pytest.raises(LifecycleError, match="boom"):
        pair.dispatch_on()
    assert len(errors) == 1
    assert not select.select([pair.niess], [], [], 0)[0]


# -- A program that forgets -------------------------------------------------------------------------------------------


def test_a_program_that_does_not_dispatch_is_warned_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manual_dispatcher, "OVERDUE_S", 0.1)
    with Pair() as pair:
        pair.niess.on_recv.add(pair.take)
        pair.bob.send("niess", b"hello")

        def warnings() -> list[str]:
            records = [record for record in caplog.records if record.name.endswith("manual_dispatcher")]
            assert {record.levelno for record in records} <= {logging.WARNING}
            return [record.getMessage() for record in records]

        wait_until(lambda: bool(warnings()))
        pair.bob.send("niess", b"hello")
        time.sleep(0.3)  # no second one comes
        assert len(warnings()) == 1
        assert "wait for dispatch() since 0.1 s" in warnings()[0]
        pair.dispatch_until(2)
        pair.bob.send("niess", b"hello")
        wait_until(lambda: len(warnings()) == 2)


# -- Loops of programs ------------------------------------------------------------------------------------------------


def test_a_loop_with_select(pair: Pair) -> None:
    messages = [b"%d" % number for number in range(300)]
    deliveries = [pair.bob.send("niess", data) for data in messages]
    while len(pair.got) < len(messages):
        pair.wait_readable()
        pair.niess.dispatch()
    assert pair.got == messages
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)


def test_a_loop_of_asyncio() -> None:
    async def talk() -> list[bytes]:
        with Pair() as pair:
            loop = asyncio.get_running_loop()
            arrived: asyncio.Queue[bytes] = asyncio.Queue()
            pair.niess.on_recv.add(lambda ident, data: arrived.put_nowait(data))
            loop.add_reader(pair.niess.fileno(), pair.niess.dispatch)
            pair.bob.send_many("niess", [b"%d" % number for number in range(100)])
            got = [await asyncio.wait_for(arrived.get(), DEADLINE_S) for _ in range(100)]
            loop.remove_reader(pair.niess.fileno())
            return got

    assert asyncio.run(talk()) == [b"%d" % number for number in range(100)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_a_callback_forks_goes_on_without_the_peer(pair: Pair) -> None:
    parent = os.getpid()
    children: list[int] = []

    @pair.niess.on_recv.add
    def fork(ident: str, data: bytes) -> None:
        if data == b"fork":
            children.append(os.fork())

    pair.bob.send("niess", b"fork")
    code = 1
    try:
        pair.dispatch_until(1)
    except LifecycleError:
        code = 7
    finally:
        if os.getpid() != parent:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7
    pair.bob.send("niess", b"the parent goes on")
    pair.dispatch_until(2)


def test_positions_in_persistent_messages_are_stored_when_callbacks_have_returned(tmp_path: Path) -> None:
    with Pair(storage=f"sqlite:///{tmp_path / 'niess.db'}") as pair:
        carol = netcomm.SnakemqConnector(
            "carol", *pair.niess.address, persistent=True, storage=f"sqlite:///{tmp_path / 'carol.db'}"
        )
        pair.niess.on_recv.add(pair.take)
        with carol:
            deliveries = carol.send_many("niess", [b"%d" % number for number in range(50)])
            pair.wait_readable()
            assert not deliveries[0].done
            pair.dispatch_until(50)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    assert pair.got == [b"%d" % number for number in range(50)]
