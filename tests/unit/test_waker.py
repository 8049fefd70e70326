"""`Waker`: rings end a wait; and a finalizer may ring wherever its thread is."""

import select
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from netcomm.transport.waker import Waker

DEADLINE_S = 20


@pytest.fixture
def waker() -> Iterator[Waker]:
    made = Waker()
    yield made
    made.close()


def is_rung(waker: Waker) -> bool:
    return bool(select.select([waker.receiver], [], [], 0)[0])


def test_any_number_of_rings_ends_one_wait(waker: Waker) -> None:
    assert not is_rung(waker)
    for _ in range(3):
        waker.ring()
    assert is_rung(waker)
    waker.clear()
    assert not is_rung(waker)
    waker.ring()
    assert is_rung(waker)


def test_a_ring_after_the_end_does_nothing() -> None:
    waker = Waker()
    waker.close()
    waker.ring()
    waker.close()


class Interrupted:
    """Runs a method; at one of its steps, a finalizer on the same thread calls another one."""

    def __init__(self, method: Callable[[], None], step: int, finalizer: Callable[[], None]) -> None:
        self.reached = False  # whether the method has so many steps
        self._code = method.__func__.__code__  # type: ignore[attr-defined]
        self._left = step
        self._finalizer = finalizer
        # Where a lock is not re-entrant, the thread hangs.
        thread = threading.Thread(target=self._run, args=(method,), daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), f"a deadlock at step {step}"

    def _run(self, method: Callable[[], None]) -> None:
        sys._getframe().f_trace_opcodes = True  # on some frame before `settrace`: else Python 3.12 traces no opcodes
        sys.settrace(self._trace)
        method()
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not self._code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                self.reached = True
                self._finalizer()
        return self._trace


@pytest.mark.parametrize("rung_before", [False, True])
def test_a_finalizer_may_ring_at_any_step_of_a_ring(rung_before: bool) -> None:
    step, reached = 0, True
    while reached:
        step += 1
        waker = Waker()
        if rung_before:
            waker.ring()
        reached = Interrupted(waker.ring, step, waker.ring).reached
        assert is_rung(waker), step
        waker.clear()
        assert not is_rung(waker), step
        waker.ring()
        assert is_rung(waker), step
        waker.close()
    assert step > 3


def test_a_finalizer_may_ring_at_any_step_of_clearing() -> None:
    step, reached = 0, True
    while reached:
        step += 1
        waker = Waker()
        waker.ring()
        reached = Interrupted(waker.clear, step, waker.ring).reached
        if is_rung(waker):  # rung behind the last step that matters
            waker.clear()
        assert not is_rung(waker), step
        waker.ring()
        assert is_rung(waker), f"rings are lost after one at step {step}"
        waker.close()
    assert step > 5


def test_a_finalizer_may_ring_at_any_step_of_closing() -> None:
    step, reached = 0, True
    while reached:
        step += 1
        waker = Waker()
        reached = Interrupted(waker.close, step, waker.ring).reached
        waker.close()
    assert step > 5
