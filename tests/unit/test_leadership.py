"""`netcomm.leadership`: the worker leads, and the deputy where the worker is kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from netcomm.leadership import PATIENCE_S, Leadership

DEADLINE_S = 10


class Deputy:
    """A deputy's thread, which tells when it begins to lead, and leads until it is told to stop, or is wanted."""

    def __init__(self, leadership: Leadership) -> None:
        self._leadership = leadership
        self.led = 0
        self.leads = threading.Event()
        self.rung = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while self._leadership.deputize():
            self.led += 1
            self.leads.set()
            while not self._leadership.wanted:
                assert self.rung.wait(DEADLINE_S)
                self.rung.clear()
            self.leads.clear()
            self._leadership.release()


@pytest.fixture
def scene() -> Iterator[tuple[Leadership, Deputy]]:
    bell: list[Callable[[], None]] = []
    leadership = Leadership(lambda: bell[0]())
    deputy = Deputy(leadership)
    bell.append(deputy.rung.set)
    with ExitStack() as stack:
        stack.callback(deputy.thread.join, DEADLINE_S)
        stack.callback(leadership.stop)
        yield leadership, deputy


def test_the_deputy_leads_while_the_worker_is_kept(scene: tuple[Leadership, Deputy]) -> None:
    leadership, deputy = scene
    deputy.thread.start()
    assert leadership.acquire()
    leadership.release()
    leadership.begin_work()
    assert deputy.leads.wait(DEADLINE_S)
    assert not leadership.vacant


def test_the_deputy_gives_way_to_the_worker(scene: tuple[Leadership, Deputy]) -> None:
    leadership, deputy = scene
    deputy.thread.start()
    leadership.begin_work()
    assert deputy.leads.wait(DEADLINE_S)
    assert leadership.acquire()
    assert not deputy.leads.is_set()
    assert not leadership.vacant
    leadership.release()
    assert leadership.vacant


def test_the_deputy_does_not_lead_while_the_worker_does(scene: tuple[Leadership, Deputy]) -> None:
    leadership, deputy = scene
    assert leadership.acquire()
    deputy.thread.start()
    assert not deputy.leads.wait(20 * PATIENCE_S)
    leadership.release()
    assert not deputy.leads.wait(20 * PATIENCE_S)
    leadership.begin_work()
    assert deputy.leads.wait(DEADLINE_S)


def test_a_worker_that_waits_is_stood_in_for_at_once(
    scene: tuple[Leadership, Deputy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netcomm.leadership.PATIENCE_S", DEADLINE_S)
    leadership, deputy = scene
    deputy.thread.start()
    leadership.begin_work()
    leadership.await_deputy()
    assert deputy.leads.wait(DEADLINE_S / 2)


def test_nobody_leads_after_stop(scene: tuple[Leadership, Deputy]) -> None:
    leadership, deputy = scene
    deputy.thread.start()
    leadership.stop()
    deputy.thread.join(DEADLINE_S)
    assert not deputy.thread.is_alive()
    assert leadership.wanted
    assert not leadership.acquire()
    assert leadership.vacant
    leadership.acquire_last()
    assert not leadership.vacant
    leadership.release()


def test_stop_ends_the_leading_of_the_deputy(scene: tuple[Leadership, Deputy]) -> None:
    leadership, deputy = scene
    deputy.thread.start()
    leadership.begin_work()
    assert deputy.leads.wait(DEADLINE_S)
    leadership.stop()
    deputy.thread.join(DEADLINE_S)
    assert not deputy.thread.is_alive()
    assert leadership.vacant
