"""`netcomm.runtime.dispatcher`: one thread, one item after the other."""

import logging
import threading

import pytest

from netcomm.runtime.dispatcher import ThreadDispatcher

DEADLINE_S = 10


def test_items_are_handled_in_order_on_a_thread_of_its_own() -> None:
    handled: list[tuple[int, threading.Thread]] = []
    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    for item in range(50):
        dispatcher.put(item)
    dispatcher.start(lambda item: handled.append((item, threading.current_thread())), lambda: False)
    for item in range(50, 100):
        dispatcher.put(item)
    dispatcher.stop()
    dispatcher.join(DEADLINE_S)
    assert [item for item, _ in handled] == list(range(100))
    threads = {thread for _, thread in handled}
    assert len(threads) == 1
    assert threads != {threading.current_thread()}
    assert {thread.name for thread in threads} == {"d"}


def test_no_thread_runs_before_start() -> None:
    before = threading.active_count()
    handled: list[int] = []
    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    dispatcher.put(1)
    assert threading.active_count() == before
    assert handled == []


def test_stop_lets_what_was_put_before_be_handled_and_nothing_after() -> None:
    handled: list[int] = []
    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    dispatcher.put(1)
    dispatcher.put(2)
    dispatcher.stop()
    dispatcher.put(3)
    dispatcher.start(handled.append, lambda: False)
    dispatcher.join(DEADLINE_S)
    assert handled == [1, 2]


def test_stop_may_be_called_twice() -> None:
    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    dispatcher.start(lambda item: None, lambda: False)
    dispatcher.stop()
    dispatcher.stop()
    dispatcher.join(DEADLINE_S)


def test_an_item_that_fails_is_logged_and_the_next_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    handled: list[int] = []

    def handle(item: int) -> None:
        if item == 1:
            raise ValueError("boom")
        handled.append(item)

    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    dispatcher.start(handle, lambda: False)
    for item in range(3):
        dispatcher.put(item)
    dispatcher.stop()
    dispatcher.join(DEADLINE_S)
    assert handled == [0, 2]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("netcomm.runtime.dispatcher", logging.ERROR)
    assert record.exc_info is not None


def test_it_knows_its_thread_and_joining_it_there_returns_at_once() -> None:
    known: list[bool] = []
    handled = threading.Event()

    def handle(item: int) -> None:
        known.append(dispatcher.is_current())
        dispatcher.join(DEADLINE_S)
        handled.set()

    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    assert not dispatcher.is_current()
    dispatcher.start(handle, lambda: False)
    dispatcher.put(1)
    assert handled.wait(DEADLINE_S)
    dispatcher.stop()
    dispatcher.join(DEADLINE_S)
    assert known == [True]


def test_join_returns_before_start_and_after_its_time() -> None:
    release = threading.Event()
    started = threading.Event()

    def handle(item: int) -> None:
        started.set()
        release.wait(DEADLINE_S)

    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    dispatcher.join(DEADLINE_S)
    dispatcher.start(handle, lambda: False)
    dispatcher.put(1)
    assert started.wait(DEADLINE_S)
    dispatcher.stop()
    dispatcher.join(0.01)
    assert not release.is_set()
    release.set()
    dispatcher.join(DEADLINE_S)


def test_put_may_be_called_from_any_thread() -> None:
    handled: list[tuple[int, int]] = []
    dispatcher: ThreadDispatcher[tuple[int, int]] = ThreadDispatcher("d", lambda: None)
    dispatcher.start(handled.append, lambda: False)

    def put(part: int) -> None:
        for number in range(500):
            dispatcher.put((part, number))

    threads = [threading.Thread(target=put, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    dispatcher.stop()
    dispatcher.join(DEADLINE_S)
    for part in range(4):
        assert [number for who, number in handled if who == part] == list(range(500))


def test_while_there_is_no_item_the_dispatcher_idles() -> None:
    handled: list[int] = []
    bell = threading.Event()
    idled = threading.Event()

    def idle() -> bool:
        idled.set()
        assert bell.wait(DEADLINE_S)
        bell.clear()
        return True

    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", bell.set)
    dispatcher.start(handled.append, idle)
    assert idled.wait(DEADLINE_S)
    for item in range(10):
        dispatcher.put(item)
    dispatcher.stop()
    dispatcher.join(DEADLINE_S)
    assert handled == list(range(10))


def test_where_it_can_not_idle_it_waits_for_items() -> None:
    handled: list[int] = []
    asked: list[None] = []

    def idle() -> bool:
        asked.append(None)
        return False

    dispatcher: ThreadDispatcher[int] = ThreadDispatcher("d", lambda: None)
    dispatcher.start(handled.append, idle)
    dispatcher.put(1)
    dispatcher.stop()
    dispatcher.join(DEADLINE_S)
    assert handled == [1]
    assert len(asked) <= 2
