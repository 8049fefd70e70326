"""`netcomm.leadership`: the worker leads, and the deputy where the worker is kept."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import Empty

import pytest

from netcomm.leadership import MOST_PATIENCE_S, PATIENCE_S, Leadership

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


class Looks:
    """In place of the alarm: each wait is over at once, and meanwhile the worker has been at work."""

    def __init__(self, leadership: Leadership, works: list[Callable[[], object]]) -> None:
        self.waits: list[float | None] = []
        self._leadership = leadership
        self._works = iter(works)

    def get(self, timeout: float | None) -> bool:
        self.waits.append(timeout)
        next(self._works, self._leadership.stop)()
        raise Empty

    def put(self, urgent: bool) -> None:
        """Nobody sleeps who would have to be woken."""


def test_the_deputy_looks_less_often_while_work_is_short_and_as_often_as_ever_when_it_has_been_long() -> None:
    leadership = Leadership(lambda: None)

    def short() -> None:
        assert leadership.acquire()
        leadership.release()
        leadership.begin_work()

    def long() -> None:
        """The worker has not led since the last look."""

    looks = leadership._alarm = Looks(leadership, [short] * 5 + [long, short, short, long])  # type: ignore[assignment]
    assert leadership.deputize()
    leadership.release()
    assert looks.waits == [PATIENCE_S, 2 * PATIENCE_S, 4 * PATIENCE_S, 8 * PATIENCE_S] + 2 * [MOST_PATIENCE_S]
    looks.waits.clear()
    assert leadership.deputize()
    assert looks.waits == [PATIENCE_S, 2 * PATIENCE_S, 4 * PATIENCE_S]


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
