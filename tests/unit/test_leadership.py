"""`netcomm.runtime.leadership`: the worker leads, and the deputy where the worker is kept."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import combinations
from queue import Empty
from typing import Any, TypeVar

import pytest

from netcomm.runtime.leadership import MOST_PATIENCE_S, PATIENCE_S, Leadership

DEADLINE_S = 10

T = TypeVar("T")


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
    monkeypatch.setattr("netcomm.runtime.leadership.PATIENCE_S", DEADLINE_S)
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
    leadership.release()
    assert looks.waits == [PATIENCE_S, 2 * PATIENCE_S, 4 * PATIENCE_S]


def test_the_deputy_sleeps_once_it_has_looked_and_there_was_no_work() -> None:
    leadership = Leadership(lambda: None)
    looks = leadership._alarm = Looks(leadership, [lambda: None, leadership.begin_work])  # type: ignore[assignment]
    assert leadership.deputize()
    leadership.release()
    assert looks.waits == [PATIENCE_S, None]


class Turns:
    """Lets two threads take their steps in a given order. A thread that has no more steps is passed over."""

    def __init__(self) -> None:
        self._order: deque[str] = deque()
        self._changed = threading.Condition()

    def begin(self, order: list[str]) -> None:
        with self._changed:
            self._order = deque(order)

    def step(self, name: str, action: Callable[[], T]) -> T:
        """Do something when it is this thread's turn."""
        with self._changed:
            assert self._changed.wait_for(lambda: not self._order or self._order[0] == name, DEADLINE_S)
            result = action()
            if self._order:
                self._order.popleft()
            self._changed.notify_all()
            return result

    def leave(self, name: str) -> None:
        """The thread takes no more steps."""
        with self._changed:
            self._order = deque([other for other in self._order if other != name])
            self._changed.notify_all()


class Interleaved(Leadership):
    """The deputy rests, and meanwhile work begins: each look at what the two threads share is a step of its own.

    The steps begin when the deputy has looked for the first time.
    """

    def __init__(self, order: list[str]) -> None:
        self._turns_of = Turns()
        self._order = order
        self._shared: dict[str, Any] = {}
        self._rings: list[bool] = []
        self._begin = threading.Event()
        self._worker = threading.Thread(target=self._work)
        self.overslept = False
        super().__init__(lambda: None)
        self._alarm = self  # type: ignore[assignment]

    def run(self) -> bool:
        """Whether the deputy comes to lead."""
        self._worker.start()
        leads = self.deputize()
        self._turns_of.leave("deputy")
        self._worker.join(DEADLINE_S)
        return leads

    def _work(self) -> None:
        assert self._begin.wait(DEADLINE_S)
        self.begin_work()
        self._turns_of.leave("worker")

    def _step(self, action: Callable[[], T]) -> T:
        name = "worker" if threading.current_thread() is self._worker else "deputy"
        return self._turns_of.step(name, action) if self._begin.is_set() else action()

    # The alarm

    def put(self, urgent: bool) -> None:
        self._step(lambda: self._rings.append(urgent))

    def get(self, timeout: float | None) -> bool:
        if not self._begin.is_set():
            self._turns_of.begin(self._order)
            self._begin.set()
            raise Empty
        if self._step(lambda: not self._rings and timeout is not None):
            raise Empty
        self._turns_of.leave("deputy")  # it sleeps
        self._worker.join(DEADLINE_S)
        if not self._rings:
            self.overslept = True
            self._stopped = True
            return False
        return self._rings.pop()


def _stepped(name: str) -> property:
    return property(
        lambda self: self._step(lambda: self._shared[name]),
        lambda self, value: self._step(lambda: self._shared.update({name: value})),
    )


for shared in ("_begun", "_resting", "_working"):
    setattr(Interleaved, shared, _stepped(shared))


def test_however_the_beginning_of_work_meets_that_of_a_rest_the_deputy_does_not_oversleep_it() -> None:
    # The deputy takes 8 steps until it sleeps or looks again, and the worker 6.
    for turns in combinations(range(14), 6):
        order = ["worker" if step in turns else "deputy" for step in range(14)]
        leadership = Interleaved(order)
        assert leadership.run(), order
        leadership.release()
        assert not leadership.overslept, order


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
