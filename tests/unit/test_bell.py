"""`Bell`: readable while it is rung, wherever a signal's handler raises."""

import select
import sys
from types import FrameType

import pytest

from netcomm.transport.bell import Bell


class Interruption:
    """Raises KeyboardInterrupt at a place where Python looks for signals: where calls begin, and where they end."""

    def __init__(self, place: int) -> None:
        self._left = place
        self.came = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        watches = frame.f_globals["__name__"].startswith("tests.")  # the system call that is made in this frame
        is_ours = not watches or getattr(argument, "__name__", "") == "recv"
        if event in ("call", "c_return") and is_ours:
            self._left -= 1
            if self._left < 0 and not self.came:
                self.came = True
                raise KeyboardInterrupt

    def clear(self, bell: Bell) -> None:
        try:
            sys.setprofile(self)
            bell.clear()
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)


def is_rung(bell: Bell) -> bool:
    return bool(select.select([bell.receiver], [], [], 0)[0])


@pytest.mark.plain_locks  # they are left as they were by themselves, not by Python's code around them
@pytest.mark.parametrize("rings_next", [False, True])
def test_clearing_may_be_interrupted_anywhere(rings_next: bool) -> None:
    place, came = 0, True
    while came:
        bell = Bell()
        bell.ring()
        interruption = Interruption(place)
        interruption.clear(bell)
        if rings_next:
            bell.ring()
            assert is_rung(bell), f"it can't be rung after an interruption at place {place}"
        bell.clear()
        assert not is_rung(bell), f"it rings for ever after an interruption at place {place}"
        bell.ring()
        assert is_rung(bell), place
        bell.close()
        came = interruption.came
        place += 1
    assert place > 3


def test_clearing_what_is_not_rung_or_closed_does_nothing() -> None:
    bell = Bell()
    bell.clear()
    bell.ring()
    assert is_rung(bell)
    bell.close()
    bell.clear()
    assert not bell.wait(None)
