"""`ManualDispatcher`: what comes while `dispatch` runs, at whichever of its steps, wakes the program's main loop."""

import itertools
import os
import random
import select
import selectors
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from types import CodeType, FrameType
from typing import Any

import pytest

from netcomm import LifecycleError
from netcomm.runtime.manual_dispatcher import ManualDispatcher
from netcomm.transport import bell
from netcomm.transport.bell import Bell

DEADLINE_S = 20
BLOCKED_S = 0.02
"""A thread that takes longer waits for a lock; it goes on when that is free. If it was slow, a step is tried less."""

STEPS: tuple[CodeType, ...] = tuple(
    method.__code__
    for method in (
        ManualDispatcher.put,
        ManualDispatcher.dispatch,
        ManualDispatcher._wait,
        ManualDispatcher._handle_waiting,
        ManualDispatcher._settle,
        ManualDispatcher.hush,
        Bell.ring,
        Bell.clear,
        Bell.wait,
    )
)


class Scene:
    """A dispatcher of numbers, each of which counts as itself, and what was handled."""

    def __init__(self) -> None:
        self.handled: list[int] = []
        self.dispatcher: ManualDispatcher[int] = ManualDispatcher("d", lambda item: item)
        self.dispatcher.start(self.handle, lambda: False)

    def handle(self, item: int) -> int:
        self.handled.append(item)
        return item

    @property
    def readable(self) -> bool:
        return bool(select.select([self.dispatcher], [], [], 0)[0])


class Preempted:
    """Runs a function on a thread; at one of the steps of `STEPS`, by its number, another thread runs another one."""

    def __init__(self, function: Callable[[], object], step: int, other: Callable[[], object]) -> None:
        self.reached = False  # whether the function has so many steps
        self._function = function
        self._step = self._left = step
        self._other = threading.Thread(target=other, daemon=True)

    def run(self) -> bool:
        """Run both to their end; returns whether the other one was run."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), f"it waits for ever, after what has come at step {self._step}"
        if self.reached:
            self._other.join(DEADLINE_S)
            assert not self._other.is_alive(), f"what has come at step {self._step} waits for ever"
        return self.reached

    def _run(self) -> None:
        sys._getframe().f_trace_opcodes = True  # on some frame before `settrace`: else Python 3.12 traces no opcodes
        sys.settrace(self._trace)
        self._function()
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code not in STEPS:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                self.reached = True
                self._other.start()
                self._other.join(BLOCKED_S)
        return self._trace


def at_each_step(try_step: Callable[[Scene, int], bool]) -> None:
    """Call with a new scene and each number of a step, until that is behind the last one."""
    step, reached = 0, True
    while reached:
        step += 1
        scene = Scene()
        with closing(scene.dispatcher):
            reached = try_step(scene, step)
    assert step > 20


@pytest.mark.plain_locks  # those that are watched have steps of their own
def test_what_comes_at_any_step_of_dispatch_wakes_the_main_loop() -> None:
    def try_step(scene: Scene, step: int) -> bool:
        dispatcher = scene.dispatcher
        dispatcher.put(1)
        reached = Preempted(lambda: dispatcher.dispatch(0.0), step, lambda: dispatcher.put(2)).run()
        if reached and scene.handled == [1]:
            assert scene.readable, f"nothing tells of what has come at step {step}"
        while dispatcher.dispatch(0.0):
            pass
        assert scene.handled == ([1, 2] if reached else [1]), step
        assert not scene.readable, f"nothing waits, and it is readable for ever, after step {step}"
        return reached

    at_each_step(try_step)


@pytest.mark.plain_locks
@pytest.mark.parametrize("before", [[], [1]], ids=["unrung", "rung"])
def test_a_dispatch_at_any_step_of_what_comes_leaves_nothing_untold(before: list[int]) -> None:
    def try_step(scene: Scene, step: int) -> bool:
        dispatcher = scene.dispatcher
        for item in before:
            dispatcher.put(item)
        reached = Preempted(lambda: dispatcher.put(2), step, lambda: dispatcher.dispatch(0.0)).run()
        if 2 not in scene.handled:
            assert scene.readable, f"nothing tells of what has come, after a dispatch at step {step}"
        while dispatcher.dispatch(0.0):
            pass
        assert scene.handled == [*before, 2], step
        assert not scene.readable, step
        return reached

    at_each_step(try_step)


@pytest.mark.plain_locks
def test_the_end_at_any_step_of_dispatch_is_told_to_the_main_loop() -> None:
    def try_step(scene: Scene, step: int) -> bool:
        scene.dispatcher.put(1)
        reached = Preempted(lambda: scene.dispatcher.dispatch(0.0), step, scene.dispatcher.stop).run()
        assert scene.readable == reached, f"nothing tells of the end, which has come at step {step}"
        return reached

    at_each_step(try_step)


@pytest.mark.plain_locks
@pytest.mark.parametrize("what", ["an item", "the end"])
def test_what_comes_at_any_step_before_dispatch_waits_ends_its_waiting(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def try_step(scene: Scene, step: int) -> bool:
        dispatcher = scene.dispatcher
        dispatcher.put(0)  # it counts as nothing: dispatch goes on to wait
        counts: list[int] = []
        come = dispatcher.stop if what == "the end" else lambda: dispatcher.put(1)
        preempted = Preempted(lambda: counts.append(dispatcher.dispatch(None)), step, come)
        waits_in_vain = False

        class Selector(selectors.PollSelector):
            def select(self, timeout: float | None = None) -> Any:
                nonlocal waits_in_vain
                if not preempted.reached:  # all steps before it waits have been tried
                    waits_in_vain = True
                    dispatcher.put(100)
                return super().select(timeout)

        monkeypatch.setattr(bell, "_Selector", Selector)
        preempted.run()
        if not waits_in_vain:
            assert counts == [0 if what == "the end" else 1], step
        return not waits_in_vain

    at_each_step(try_step)


def test_a_descriptor_that_a_thread_is_about_to_wait_for_is_not_closed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = Scene().dispatcher
    about_to_wait, go_on = threading.Event(), threading.Event()

    class Selector(selectors.PollSelector):
        def select(self, timeout: float | None = None) -> Any:
            about_to_wait.set()
            assert go_on.wait(DEADLINE_S)
            return super().select(timeout)

    monkeypatch.setattr(bell, "_Selector", Selector)
    number = dispatcher.fileno()
    thread = threading.Thread(target=dispatcher.dispatch, args=(None,), daemon=True)
    thread.start()
    assert about_to_wait.wait(DEADLINE_S)
    dispatcher.stop()
    dispatcher.close()
    with pytest.raises(LifecycleError):
        dispatcher.fileno()
    with closing(os.fdopen(os.dup(0))) as other:  # takes the lowest number that is free
        assert other.fileno() != number
        go_on.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


def test_telling_of_the_end_takes_no_ring_from_a_thread_that_dispatches() -> None:
    scene = Scene()
    dispatcher = scene.dispatcher
    readable: list[bool] = []

    def handle(item: int) -> int:
        dispatcher.stop()
        dispatcher.hush()
        readable.append(scene.readable)
        return item

    dispatcher.start(handle, lambda: False)
    with closing(dispatcher):
        dispatcher.put(1)
        dispatcher.dispatch(0.0)
        assert readable == [True]
        dispatcher.hush()
        assert not scene.readable


# -- Many times, with the steps that chance picks ---------------------------------------------------------------------


def poll_loop(scene: Scene, wait: Callable[[], bool], count: int) -> None:
    """A program's main loop: sleep until the descriptor is readable, and dispatch; until so many items were handled."""
    while len(scene.handled) < count:
        assert wait(), f"it sleeps for ever: {len(scene.handled)} of {count} items were handled"
        scene.dispatcher.dispatch(0.0)


def with_select(number: int) -> Callable[[], bool]:
    return lambda: bool(select.select([number], [], [], DEADLINE_S)[0])


def with_poll(number: int) -> Callable[[], bool]:
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return lambda: bool(poll.poll(DEADLINE_S * 1000))


def with_epoll(epoll: select.epoll, number: int) -> Callable[[], bool]:
    epoll.register(number, select.EPOLLIN)
    return lambda: bool(epoll.poll(DEADLINE_S))


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads change as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("way", ["select", "poll", "epoll", "dispatch"])
def test_no_item_is_left_while_the_main_loop_sleeps(way: str) -> None:
    scene = Scene()
    dispatcher = scene.dispatcher
    handled = threading.Semaphore(0)

    def handle(item: int) -> int:
        handled.release()
        return scene.handle(item)

    dispatcher.start(handle, lambda: False)
    bursts = [random.Random(number).randint(1, 3) for number in range(4000)]
    count = sum(bursts)

    def produce() -> None:
        """Put some items, and wait until they are handled: no later one makes up for a lost ring."""
        numbers = itertools.count(1)
        for burst in bursts:
            for _ in range(burst):
                dispatcher.put(next(numbers))
            for _ in range(burst):
                handled.acquire(timeout=DEADLINE_S)

    producer = threading.Thread(target=produce)
    with closing(dispatcher), closing(select.epoll()) as epoll:
        number = dispatcher.fileno()
        waits: dict[str, Callable[[], bool]] = {
            "select": with_select(number),
            "poll": with_poll(number),
            "epoll": with_epoll(epoll, number),
            "dispatch": lambda: dispatcher.dispatch(DEADLINE_S) > 0 or len(scene.handled) == count,
        }
        producer.start()
        poll_loop(scene, waits[way], count)
        producer.join(DEADLINE_S)
        while dispatcher.dispatch(0.0):
            pass
        assert not scene.readable
    assert scene.handled == list(range(1, count + 1))
