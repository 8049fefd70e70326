"""A peer with `dispatch="manual"` whose program does not dispatch: nothing is called or lost, all else goes on."""

import select
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import netcomm
from netcomm import AlreadyDispatching, DeliveryState, Limits
from netcomm.runtime import manual_dispatcher
from netcomm.testing.proxy import FaultProxy
from tests.integration.helpers import DEADLINE_S, FAST, SnakemqConnector, in_thread, record, wait_until

HASTY = Limits(reconnect_min_s=0.02, reconnect_max_s=0.1, keepalive_idle_s=0.05, keepalive_wait_s=0.2)


class Notes:
    """What the callbacks of a peer were called with, and on which threads."""

    def __init__(self, peer: netcomm.Peer) -> None:
        self.peer = peer
        self.events: list[Any] = []
        self.threads: set[int] = set()
        peer.on_recv.add(lambda ident, data: self._note(data))
        peer.on_connect.add(lambda ident: self._note(f"+{ident}"))
        peer.on_disconnect.add(lambda ident: self._note(f"-{ident}"))
        peer.on_drop.add(lambda ident, delivery: self._note(("dropped", delivery.data)))
        peer.on_error.add(lambda error: self._note(type(error)))

    def _note(self, event: Any) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    def dispatch_until(self, true: Callable[[], bool]) -> None:
        """Dispatch as the main loop of a program does, until a condition comes true."""
        while not true():
            assert select.select([self.peer], [], [], DEADLINE_S)[0], f"it sleeps for ever, after {self.events}"
            self.peer.dispatch()


def listener(**options: Any) -> netcomm.SnakemqListener:
    return netcomm.SnakemqListener("niess", "127.0.0.1", 0, dispatch="manual", **options)


def test_a_program_that_forgets_is_told_so_its_senders_wait_and_no_thread_calls_anything(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manual_dispatcher, "OVERDUE_S", 0.1)
    niess = listener()
    notes = Notes(niess)
    with niess, SnakemqConnector("bob", *niess.address) as bob:
        deliveries = bob.send_many("niess", [b"1", b"2", b"3"])
        niess.send("nobody", b"dropped", ttl=0)

        def warnings() -> list[str]:
            return [record.getMessage() for record in caplog.records if "wait for dispatch()" in record.getMessage()]

        wait_until(lambda: bool(warnings()))
        assert "'niess'" in warnings()[0]
        assert not bob.flush(0.1)
        assert {delivery.state for delivery in deliveries} == {DeliveryState.SENT}
        assert notes.events == []
        assert not notes.threads
        notes.dispatch_until(lambda: len(notes.events) == 5)
        assert sorted(map(str, notes.events)) == sorted(map(str, [b"1", b"2", b"3", "+bob", ("dropped", b"dropped")]))
        assert notes.threads == {threading.get_ident()}
        assert bob.flush(DEADLINE_S)


def test_keep_alive_and_acknowledgements_go_on() -> None:
    niess = listener(limits=HASTY)
    notes = Notes(niess)
    bob = SnakemqConnector("bob", *niess.address, limits=HASTY)
    gone = record(bob.on_disconnect)
    with niess, bob:
        waiting = bob.send("niess", b"waits")
        assert niess.wait_connected("bob", DEADLINE_S)
        until = time.monotonic() + 3 * (HASTY.keepalive_idle_s + HASTY.keepalive_wait_s)
        while time.monotonic() < until:  # long enough for both to give each other up, if nobody answered
            assert niess.send("bob", b"is acknowledged").wait(DEADLINE_S)
            time.sleep(2 * HASTY.keepalive_idle_s)  # pings are sent in it
        assert len(gone) == 0
        assert niess.peers == ["bob"]
        assert not waiting.done
        notes.dispatch_until(lambda: b"waits" in notes.events)
        assert waiting.wait(DEADLINE_S)
        assert notes.events == ["+bob", b"waits"]


def test_connections_are_cut_and_made_meanwhile_and_what_was_received_before_comes_once() -> None:
    niess = listener(limits=FAST)
    notes = Notes(niess)
    with FaultProxy(niess.address) as proxy, niess, SnakemqConnector("bob", *proxy.address, limits=FAST) as bob:
        gone = record(bob.on_disconnect)
        sent = []
        for count in (1, 2, 3):
            assert bob.wait_connected("niess", DEADLINE_S)
            assert niess.wait_connected("bob", DEADLINE_S)
            sent += bob.send_many("niess", [b"%d before cut %d" % (number, count) for number in range(3)])
            # One that is answered behind them: they have come.
            assert niess.send("bob", b"hello").wait(DEADLINE_S)
            proxy.cut()
            gone.wait(count)
        assert notes.events == []
        assert not any(delivery.done for delivery in sent)
        messages = [b"%d before cut %d" % (number, count) for count in (1, 2, 3) for number in range(3)]

        def received() -> list[Any]:
            return [event for event in notes.events if isinstance(event, bytes)]

        notes.dispatch_until(lambda: len(received()) >= len(messages))
        assert all(delivery.wait(DEADLINE_S) for delivery in sent)
        niess.dispatch(0.05)
        assert received() == messages
        comings = [event for event in notes.events if event in ("+bob", "-bob")]
        assert comings[:6] == ["+bob", "-bob"] * 3


def test_what_waits_at_the_end_is_sent_again_to_the_next_process() -> None:
    first = listener(limits=FAST)
    forgotten = Notes(first)
    port = first.address[1]
    messages = [b"%d" % number for number in range(100)]
    with SnakemqConnector("bob", "127.0.0.1", port, limits=FAST) as bob:
        with first:
            deliveries = bob.send_many("niess", messages)
            assert select.select([first], [], [], DEADLINE_S)[0]
            wait_until(lambda: deliveries[-1].state is DeliveryState.SENT)
            started = time.monotonic()
        assert time.monotonic() - started < 2  # nobody dispatches: it does not wait for that
        assert forgotten.events == []
        assert not any(delivery.done for delivery in deliveries)
        second = netcomm.SnakemqListener("niess", "127.0.0.1", port, dispatch="manual")
        notes = Notes(second)
        with second:
            notes.dispatch_until(lambda: messages[-1] in notes.events)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        assert [event for event in notes.events if isinstance(event, bytes)] == messages


def test_a_callback_that_dispatches_gets_an_error_that_it_can_catch_and_nothing_is_lost() -> None:
    niess = listener()
    refused: list[str] = []
    got: list[bytes] = []

    @niess.on_recv.add
    def nest(ident: str, data: bytes) -> None:
        got.append(data)
        with pytest.raises(AlreadyDispatching, match="in a callback") as caught:
            niess.dispatch()
        refused.append(str(caught.value))

    with niess, SnakemqConnector("bob", *niess.address) as bob:
        deliveries = bob.send_many("niess", [b"1", b"2", b"3"])
        while len(got) < 3:
            niess.dispatch(DEADLINE_S)
        assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        assert niess.dispatch() == 0  # it is as usable as before
    assert got == [b"1", b"2", b"3"]
    assert len(refused) == 3


@pytest.mark.parametrize("count", range(10))
def test_the_end_lets_a_thread_return_that_waits_in_dispatch_or_is_about_to(count: int) -> None:
    niess = listener()
    Notes(niess)

    def dispatch_on() -> None:
        while True:
            niess.dispatch(None)

    with niess, SnakemqConnector("bob", *niess.address) as bob:
        dispatching = in_thread(dispatch_on)
        for number in range(count):
            bob.send("niess", b"%d" % number)
        niess.terminate(DEADLINE_S)
        with pytest.raises(netcomm.LifecycleError):
            dispatching()
        bob.terminate(0)  # it would wait for the messages that niess has not taken


def test_no_message_is_left_while_the_main_loop_sleeps() -> None:
    """Two senders, one message at a time, so that the main loop goes to sleep and is woken all the time."""
    count = 1500
    niess = listener()
    notes = Notes(niess)

    def talk(peer: netcomm.Peer) -> None:
        for number in range(count):
            delivery = peer.send("niess", b"%d" % number)
            if number % 3 == 0:
                assert delivery.wait(DEADLINE_S)

    with (
        niess,
        SnakemqConnector("bob", *niess.address) as bob,
        SnakemqConnector("carol", *niess.address) as carol,
    ):
        talking = [in_thread(lambda: talk(bob)), in_thread(lambda: talk(carol))]
        notes.dispatch_until(lambda: sum(isinstance(event, bytes) for event in notes.events) == 2 * count)
        for result in talking:
            result()
        assert notes.threads == {threading.get_ident()}
        assert bob.flush(DEADLINE_S)
        assert carol.flush(DEADLINE_S)
        niess.dispatch()
        assert not select.select([niess], [], [], 0)[0]
