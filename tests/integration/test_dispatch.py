"""Callbacks that raise, dawdle, change the lists, block, and use the peer: the link goes on."""

import contextlib
import gc
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from netcomm import ConfigurationError, DeliveryState, LifecycleError, Limits, Message
from netcomm.connections import ConnectionEvent
from netcomm.message import Stream
from netcomm.protocol import encode, frames
from netcomm.runtime import leadership
from netcomm.transport.link import Link
from tests.integration.helpers import (
    DEADLINE_S,
    FAST,
    Pair,
    Recorder,
    SnakemqConnector,
    SnakemqListener,
    dial,
    in_thread,
    netcomm_handshake,
    record,
    threads_of,
    wait_until,
)
from tests.unit.helpers import Reader


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as made:
        yield made


def test_callbacks_of_any_kind_never_stop_the_link(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    count = 100_000
    caplog.set_level(logging.CRITICAL, "netcomm")  # a thousand tracebacks say no more than the errors do
    niess, bob = pair.niess, pair.bob
    gone = [record(niess.on_disconnect), record(bob.on_disconnect)]
    numbers = iter(range(count))
    seen = []
    changed = []

    def raise_often(ident: str, data: bytes) -> None:
        if next(numbers) % 100 == 0:
            raise ValueError(data)

    def dawdle(ident: str, data: bytes) -> None:
        seen.append(data)
        if len(seen) % 10_000 == 0:
            time.sleep(0.02)

    def come_and_go(ident: str, data: bytes) -> None:
        changed.append(data)
        niess.on_recv.remove(come_and_go)
        niess.on_recv.add(come_and_go)

    errors = []
    niess.on_error.add(errors.append)
    niess.on_recv.add(come_and_go)
    niess.on_recv.add(raise_often)
    niess.on_recv.add(dawdle)
    messages = [b"%d" % number for number in range(count)]
    deliveries = bob.send_many("niess", messages)
    assert bob.flush(2 * DEADLINE_S)
    assert {delivery.state for delivery in deliveries} == {DeliveryState.DELIVERED}
    assert seen == messages
    assert changed == messages
    assert [error.args for error in errors] == [(data,) for data in messages[::100]]
    assert [recorder.calls for recorder in gone] == [[], []]


def test_an_exception_is_logged_with_its_traceback_and_reported(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    errors = record(pair.niess.on_error)
    received = Recorder()

    def fail(ident: str, data: bytes) -> None:
        raise RuntimeError("as the test wants")

    pair.niess.on_recv.add(fail)
    pair.niess.on_recv.add(received)
    assert pair.bob.send("niess", b"x" * 100).wait(DEADLINE_S)
    assert received.calls == [("bob", b"x" * 100)]
    assert [str(error) for error in errors.wait(1)] == ["as the test wants"]
    (logged,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert "on_recv" in logged.getMessage()
    assert logged.exc_info
    assert "xxxx" not in caplog.text  # payloads are never logged


@pytest.mark.parametrize("name", ["on_connect", "on_message", "on_recv", "on_disconnect", "on_drop", "on_error"])
def test_no_exception_in_any_callback_ends_the_dispatcher(name: str) -> None:
    made = Pair(limits=FAST)
    bob = made.bob
    raised = Recorder()

    def fail(*args: object) -> None:
        raised(args)
        raise SystemExit(1)

    getattr(bob, name).add(fail)
    with made:
        made.niess.send("bob", b"x")
        bob.send("nobody", b"x", ttl=0)
        if name == "on_disconnect":
            made.niess.terminate(1)
        if name == "on_error":
            bob.on_recv.add(lambda ident, data: 1 / 0)
            made.niess.send("bob", b"x")
        raised.wait(1)
        # The dispatcher is alive: it goes on with what comes after.
        dropped = record(bob.on_drop)
        bob.send("nobody", b"y", ttl=0)
        dropped.wait(1)


def test_what_a_callback_sends_does_not_wait_for_its_end(pair: Pair) -> None:
    answers = record(pair.bob.on_recv)
    go_on = threading.Event()

    @pair.niess.on_recv.add
    def answer_and_go_on(ident: str, data: bytes) -> None:
        pair.niess.send(ident, b"begun")
        go_on.wait(DEADLINE_S)

    delivery = pair.bob.send("niess", b"question")
    wait_until(lambda: answers.calls == [("niess", b"begun")], "the answer", timeout=5)
    assert not delivery.done
    go_on.set()
    assert delivery.wait(DEADLINE_S)


def test_what_a_callback_sends_does_not_wait_for_acknowledgements(pair: Pair) -> None:
    go_on = threading.Event()
    pair.niess.on_recv.add(lambda ident, data: go_on.wait(DEADLINE_S))
    pair.bob.on_drop.add(lambda ident, delivery: pair.bob.send("niess", b"late"))
    for _ in range(10):  # so many that the next one may gather with others
        pair.bob.send("niess", b"early")
    pair.bob.send("nobody", b"", ttl=0)
    wait_until(lambda: pair.niess.stats().peers["bob"].received == 11, "the last message", timeout=5)
    go_on.set()
    assert pair.bob.flush(DEADLINE_S)


def test_who_has_answered_a_ping_in_time_stays_connected_though_nobody_could_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netcomm.runtime.leadership.PATIENCE_S", DEADLINE_S)  # no deputy reads while a callback runs
    limits = Limits(keepalive_idle_s=0.1, keepalive_wait_s=0.3)
    begun, go_on = threading.Event(), threading.Event()
    with SnakemqListener("niess", "127.0.0.1", 0, limits=limits) as niess:
        niess.on_recv.add(lambda ident, data: begun.set() or go_on.wait(DEADLINE_S))
        disconnects = record(niess.on_disconnect)
        with (
            dial(niess.address) as quiet,
            SnakemqConnector("bob", *niess.address) as bob,
        ):
            quiet.sendall(netcomm_handshake("quiet") + encode.begin(frames.Begin(Stream.VOLATILE, 7, 0, 0)))
            read_until(quiet, encode.PING)
            bob.send("niess", b"")
            assert begun.wait(DEADLINE_S)
            quiet.sendall(encode.PONG)
            time.sleep(2 * limits.keepalive_wait_s)  # so that the answer would be late, if it had not come before
            go_on.set()
            read_until(quiet, encode.PING)  # the next one
            assert ("quiet",) not in disconnects.calls


def read_until(sock: socket.socket, end: bytes) -> None:
    received = b""
    while not received.endswith(end):
        chunk = sock.recv(65536)
        assert chunk, "the connection was closed"
        received += chunk


@pytest.mark.plain_locks  # they are left as they were by themselves, not by Python's code around them
def test_sends_that_are_interrupted_leave_no_lock_behind_and_lose_no_other_message(pair: Pair) -> None:
    received = record(pair.niess.on_recv)
    interrupts = sent = 0
    perhaps = set()

    def interrupt(*_: object) -> None:
        nonlocal interrupts
        interrupts += 1
        raise KeyboardInterrupt

    def send_until_interrupted() -> None:
        nonlocal sent
        until = interrupts + 1
        while interrupts < until:
            sent += 1
            pair.bob.send("niess", b"%d" % sent)

    before = signal.signal(signal.SIGVTALRM, interrupt)
    gc.disable()  # an interruption that meets a function that it calls, such as one of hypothesis, is lost
    try:
        for number in range(40):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.002 + 0.0001 * number)
                send_until_interrupted()
            perhaps.add(sent)
            assert pair.bob._runtime._loop.mutex.acquire(timeout=DEADLINE_S)
            pair.bob._runtime._loop.mutex.release()
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert pair.bob.flush(DEADLINE_S)
    found = [int(data) for _, data in received.calls]
    assert found == sorted(set(range(1, sent + 1)) - (perhaps - set(found)))


def test_only_who_answers_stays_awake_for_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_waits: list[bool] = []
    poll = Link.poll

    def note(link: Link, timeout: float | None, eager: bool = False) -> Iterator[ConnectionEvent]:
        if threading.current_thread().name.startswith("netcomm-niess"):
            eager_waits.append(eager)
        return poll(link, timeout, eager)

    monkeypatch.setattr(Link, "poll", note)
    received = record(pair.niess.on_recv)
    for number in range(20):
        assert pair.bob.send("niess", b"%d" % number).wait(DEADLINE_S)
    assert eager_waits
    assert not any(eager_waits)
    pair.niess.on_recv.add(lambda ident, data: pair.niess.send(ident, data))
    answers = record(pair.bob.on_recv)
    for number in range(20):
        pair.bob.send("niess", b"%d" % number)
        answers.wait(number + 1)
    assert any(eager_waits)
    assert len(received.calls) == 40


def test_an_answer_and_the_acknowledgement_go_out_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netcomm.runtime.leadership.PATIENCE_S", DEADLINE_S)
    count = 100
    packets: list[bytes] = []
    write = Link.write

    def note(link: Link, number: int, buffers: list[bytes]) -> None:
        if threading.current_thread().name.startswith("netcomm-niess"):
            packets.append(b"".join(buffers))
        write(link, number, buffers)

    pair.niess.on_recv.add(lambda ident, data: pair.niess.send(ident, data))
    answers = record(pair.bob.on_recv)
    monkeypatch.setattr(Link, "write", note)
    for number in range(count):
        pair.bob.send("niess", b"%d" % number)
        answers.wait(number + 1)
    assert pair.bob.flush(DEADLINE_S)
    both = [found for found in map(kinds, packets) if found == [frames.Ack, frames.Data]]
    # Where the callback has taken long, for this machine, the deputy has sent the answer before.
    assert len(both) > count * 0.8


def kinds(packets: bytes) -> list[type]:
    reader = Reader(Limits(max_handshake_frame_bytes=2**20))
    parsed, error = reader.feed(packets)
    assert error is None
    return [type(frame) for frame in parsed]


def test_callbacks_run_on_one_thread_whoever_reads(pair: Pair) -> None:
    threads = set()

    @pair.niess.on_recv.add
    def note(ident: str, data: bytes) -> None:
        threads.add(threading.current_thread().name)
        if int(data) % 20 == 0:
            time.sleep(0.02)  # the deputy reads meanwhile

    for number in range(100):
        pair.bob.send("niess", b"%d" % number)
        pair.bob.send("niess", b"%d" % (100 + number)).wait(0.001)
    assert pair.bob.flush(DEADLINE_S)
    assert threads == {"netcomm-niess-dispatcher"}


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_exception_is_caught_too(pair: Pair, error: BaseException) -> None:
    errors = record(pair.niess.on_error)

    @pair.niess.on_recv.add
    def fail(ident: str, data: bytes) -> None:
        raise error

    assert pair.bob.send("niess", b"1").wait(DEADLINE_S)
    assert pair.bob.send("niess", b"2").wait(DEADLINE_S)
    assert errors.wait(2) == [error, error]
    assert threads_of(pair.niess) == ["netcomm-niess", "netcomm-niess-dispatcher"]


# What a callback may do


def test_a_callback_may_send_and_wait_for_the_delivery(pair: Pair) -> None:
    outcome = Recorder()
    echoed = record(pair.bob.on_recv)

    @pair.niess.on_recv.add
    def answer(ident: str, data: bytes) -> None:
        outcome(pair.niess.send(ident, data.upper()).wait(DEADLINE_S))

    for number in range(3):
        assert pair.bob.send("niess", b"hello %d" % number).wait(DEADLINE_S)
    assert outcome.calls == [True] * 3
    assert echoed.calls == [("niess", b"HELLO %d" % number) for number in range(3)]


def test_a_callback_that_waits_does_not_wait_for_the_deputys_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "PATIENCE_S", 2 * DEADLINE_S)
    outcome = Recorder()
    with Pair() as pair:

        @pair.niess.on_recv.add
        def answer(ident: str, data: bytes) -> None:
            outcome(pair.niess.send(ident, data).wait(DEADLINE_S / 2))

        pair.bob.send("niess", b"x")
        assert outcome.wait(1) == [True]


def test_a_callback_may_flush(pair: Pair) -> None:
    outcome = Recorder()

    @pair.niess.on_recv.add
    def answer(ident: str, data: bytes) -> None:
        deliveries = pair.niess.send_many(ident, [data] * 100)
        outcome((pair.niess.flush(DEADLINE_S), all(delivery.done for delivery in deliveries)))

    assert pair.bob.send("niess", b"x").wait(DEADLINE_S)
    assert outcome.calls == [(True, True)]


def test_a_callback_may_wait_for_a_connection_look_and_add_places(pair: Pair) -> None:
    outcome = Recorder()

    @pair.niess.on_recv.add
    def look(ident: str, data: bytes) -> None:
        outcome(pair.niess.add_listener("127.0.0.1", 0))
        outcome(pair.niess.wait_connected("karl", DEADLINE_S))
        outcome(pair.niess.peers)
        outcome(pair.niess.stats().connected)

    delivery = pair.bob.send("niess", b"x")
    (place,) = outcome.wait(1)
    with SnakemqConnector("karl", *place):
        assert outcome.wait(4)[1:] == [True, ["bob", "karl"], ["bob", "karl"]]
        assert delivery.wait(DEADLINE_S)


def test_a_callback_may_terminate_its_peer(pair: Pair) -> None:
    outcome = Recorder()

    @pair.niess.on_recv.add
    def end(ident: str, data: bytes) -> None:
        pair.niess.terminate(2)
        outcome(pair.niess.is_alive())
        with pytest.raises(LifecycleError):
            pair.niess.send("bob", b"x")
        outcome("done")

    assert pair.bob.send("niess", b"x").wait(DEADLINE_S)
    assert outcome.wait(2) == [False, "done"]
    wait_until(lambda: not threads_of(pair.niess), "the end of the dispatcher")


def test_peers_whose_callbacks_answer_each_other_do_not_deadlock(pair: Pair) -> None:
    rounds = 500
    done = threading.Event()

    @pair.niess.on_recv.add
    def pong(ident: str, data: bytes) -> None:
        pair.niess.send(ident, data)

    @pair.bob.on_recv.add
    def ping(ident: str, data: bytes) -> None:
        if int(data) == rounds:
            done.set()
        else:
            pair.bob.send(ident, b"%d" % (int(data) + 1))

    pair.bob.send("niess", b"0")
    assert done.wait(DEADLINE_S)


def test_a_blocked_callback_blocks_neither_sending_nor_stats(pair: Pair) -> None:
    release = threading.Event()
    entered = threading.Event()

    @pair.niess.on_recv.add
    def block(ident: str, data: bytes) -> None:
        entered.set()
        release.wait(DEADLINE_S)

    pair.bob.send("niess", b"x")
    assert entered.wait(DEADLINE_S)
    assert pair.niess.send("bob", b"y").wait(DEADLINE_S)
    assert pair.niess.stats().peers["bob"].received == 1
    assert pair.niess.peers == ["bob"]
    release.set()


# Data


def test_with_an_encoding_text_goes_in_and_comes_out() -> None:
    with Pair(encoding="utf-8") as pair:
        received = record(pair.niess.on_recv)
        messages = record(pair.niess.on_message)
        texts = ["", "plain", "žluťoučký kůň", "\N{SNAKE}"]
        assert all(delivery.wait(DEADLINE_S) for delivery in pair.bob.send_many("niess", [*texts, b"bytes"]))
        assert received.calls == [("bob", text) for text in [*texts, "bytes"]]
        assert [message.data for _, message in messages.calls] == [text.encode() for text in [*texts, "bytes"]]
        with pytest.raises(ConfigurationError):
            pair.bob.send("niess", "\udc80")


def test_without_an_encoding_text_is_refused(pair: Pair) -> None:
    for data in ("text", 1, None, ["list"]):
        with pytest.raises(ConfigurationError):
            pair.bob.send("niess", data)
        with pytest.raises(ConfigurationError):
            pair.bob.send_many("niess", [data])


def test_bytes_that_can_not_be_decoded_are_reported_and_the_link_goes_on() -> None:
    with Pair(encoding="utf-8") as pair:
        received = record(pair.niess.on_recv)
        messages = record(pair.niess.on_message)
        errors = record(pair.niess.on_error)
        gone = record(pair.niess.on_disconnect)
        deliveries = pair.bob.send_many("niess", ["before", b"\xff\xfe", "after"])
        assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        assert received.calls == [("bob", "before"), ("bob", "after")]
        assert [type(error) for error in errors.wait(1)] == [UnicodeDecodeError]
        assert [message.data for _, message in messages.calls] == [b"before", b"\xff\xfe", b"after"]
        assert gone.calls == []


def test_on_message_tells_what_is_known_of_a_message(pair: Pair) -> None:
    messages = record(pair.niess.on_message)
    deliveries = [pair.bob.send("niess", b"x"), pair.bob.send("niess", bytearray(b"y"), ttl=60)]
    assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    (_, first), (_, second) = messages.calls
    assert first == Message(b"x", deliveries[0].uuid, None, 0, False)
    assert (second.data, second.uuid, second.redelivered) == (b"y", deliveries[1].uuid, False)
    assert 1 <= second.ttl <= 60


# Acknowledging in parts


def test_earlier_messages_are_acknowledged_while_a_later_callback_blocks(pair: Pair) -> None:
    release = threading.Event()

    @pair.niess.on_recv.add
    def block_on_the_last(ident: str, data: bytes) -> None:
        if data == b"9":
            release.wait(2 * DEADLINE_S)

    deliveries = pair.bob.send_many("niess", [b"%d" % number for number in range(10)])
    assert [delivery.wait(DEADLINE_S) for delivery in deliveries[:9]] == [True] * 9
    assert not deliveries[9].done
    release.set()
    assert deliveries[9].wait(DEADLINE_S)


def test_earlier_messages_of_a_batch_that_had_to_wait_are_acknowledged_while_a_later_callback_blocks() -> None:
    # The batch arrives while another callback is at work, so the time to acknowledge it is over when its turn comes.
    made = Pair()
    release = threading.Event()
    go = threading.Event()

    @made.niess.on_connect.add
    def take_time(ident: str) -> None:
        go.wait(DEADLINE_S)
        time.sleep(0.1)  # a slow callback: several times the delay of acknowledgements

    @made.niess.on_recv.add
    def block_on_the_last(ident: str, data: bytes) -> None:
        if data == b"9":
            release.wait(2 * DEADLINE_S)

    with made as pair:
        deliveries = pair.bob.send_many("niess", [b"%d" % number for number in range(10)])
        wait_until(lambda: pair.niess.stats().peers["bob"].received == 10)
        go.set()
        try:
            # In time: not only when a ping, much later, happens to wake the loop.
            assert deliveries[8].wait(2)
        finally:
            release.set()
        assert deliveries[9].wait(DEADLINE_S)


def test_every_message_behind_a_slow_one_is_acknowledged_before_the_batch_ends(pair: Pair) -> None:
    steps = [threading.Event() for _ in range(5)]

    @pair.niess.on_recv.add
    def step(ident: str, data: bytes) -> None:
        steps[int(data)].wait(2 * DEADLINE_S)

    deliveries = pair.bob.send_many("niess", [b"%d" % number for number in range(5)])
    for number, delivery in enumerate(deliveries):
        assert not delivery.done
        # The thread that leads has found that this callback takes long, and leaves it to the dispatcher to report it.
        wait_until(lambda: pair.niess._runtime._handover.report_at is None)
        steps[number].set()
        assert delivery.wait(DEADLINE_S)


# Order


def test_connecting_comes_before_messages_and_disconnecting_after_them() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        told = Recorder()
        niess.on_connect.add(lambda ident: told(("connect", ident)))
        niess.on_recv.add(lambda ident, data: told((data.decode(), ident)))
        niess.on_disconnect.add(lambda ident: told(("disconnect", ident)))
        for _ in range(5):
            with SnakemqConnector("bob", *niess.address) as bob:
                bob.send_many("niess", [b"1", b"2"])
        one = [("connect", "bob"), ("1", "bob"), ("2", "bob"), ("disconnect", "bob")]
        assert told.wait(20) == one * 5


def test_the_connecting_side_is_told_in_the_same_order() -> None:
    limits = Limits(reconnect_min_s=0.02, reconnect_max_s=0.05)
    told = Recorder()
    with contextlib.ExitStack() as stack:
        niess = stack.enter_context(SnakemqListener("niess", "127.0.0.1", 0))
        bob = SnakemqConnector("bob", *niess.address, limits=limits)
        bob.on_connect.add(lambda ident: told("connect"))
        bob.on_recv.add(lambda ident, data: told(data.decode()))
        bob.on_disconnect.add(lambda ident: told("disconnect"))
        bob.on_error.add(lambda error: told("error"))
        stack.enter_context(bob)
        assert niess.wait_connected("bob", DEADLINE_S)
        assert niess.send("bob", b"first").wait(DEADLINE_S)
        niess.terminate()
        assert told.wait(4) == ["connect", "first", "disconnect", "error"]
        with SnakemqListener("niess", *niess.address) as again:
            assert again.wait_connected("bob", DEADLINE_S)
            assert again.send("bob", b"second").wait(DEADLINE_S)
        assert told.wait(7)[4:7] == ["connect", "second", "disconnect"]


def test_a_callback_may_send_on_connect_and_the_other_side_gets_it_first() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        bob = SnakemqConnector("bob", *niess.address)
        bob.on_connect.add(lambda ident: bob.send(ident, b"hello"))
        with bob:
            assert received.wait(1) == [("bob", b"hello")]


def test_messages_behind_one_whose_callback_removes_itself_are_held_back(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    for function in list(pair.niess.on_recv):
        pair.niess.on_recv.remove(function)
    received = Recorder()

    def once(ident: str, data: bytes) -> None:
        pair.niess.on_recv.remove(once)
        received(data)

    for round_ in range(3):
        pair.niess.on_recv.add(once)
        if round_ == 0:
            deliveries = pair.bob.send_many("niess", [b"%d" % number for number in range(5)])
        assert deliveries[round_].wait(DEADLINE_S)
        assert received.calls == [b"%d" % number for number in range(round_ + 1)]
        assert not deliveries[round_ + 1].done
    pair.niess.on_recv.add(lambda ident, data: received(data))
    assert deliveries[4].wait(DEADLINE_S)
    assert received.calls == [b"0", b"1", b"2", b"3", b"4"]
    assert "holds messages back" in caplog.text


@pytest.mark.parametrize("encoding", ["undefined", "a\0b", "no such", "\ud800"])
def test_an_encoding_that_can_not_be_used_is_refused(encoding: str) -> None:
    with pytest.raises(ConfigurationError):
        SnakemqListener("niess", "127.0.0.1", 0, encoding=encoding)


def test_text_that_a_codec_refuses_in_its_own_way_is_refused() -> None:
    with Pair(encoding="idna") as pair, pytest.raises(ConfigurationError):
        pair.bob.send("niess", "a" * 64 + ".x")


def test_a_wait_may_be_infinite(pair: Pair) -> None:
    assert pair.bob.send("niess", b"x").wait(math.inf)
    assert pair.bob.flush(1e12)


def test_callbacks_may_be_added_and_removed_while_messages_come(pair: Pair) -> None:
    stop = threading.Event()
    always = record(pair.niess.on_recv)

    def change() -> int:
        rounds = 0
        while not stop.is_set():
            extra = pair.niess.on_recv.add(lambda ident, data: None)
            pair.niess.on_recv.remove(extra)
            rounds += 1
        return rounds

    changing = [in_thread(change) for _ in range(2)]
    try:
        pair.bob.send_many("niess", [b"x"] * 5000)
        assert pair.bob.flush(DEADLINE_S)
    finally:
        stop.set()
    assert all(result() > 0 for result in changing)
    assert len(always) == 5000
    assert always in pair.niess.on_recv
    assert len(pair.niess.on_recv) == 2  # and the one that every listener of these tests has
