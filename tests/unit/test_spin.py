"""How the loop waits: asleep, or awake for a moment where answers come at once. The clock is made of paper."""

import pytest

from netcomm.transport import spin

SPIN_S = 0.0003
SOON, LATE = 0.0001, 0.01


class Selector:
    """Something comes `delay` seconds after each wait has begun; a question costs 10 µs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spin, "monotonic", lambda: self.now)
        monkeypatch.setattr(spin, "_SPIN_S", SPIN_S)
        self.now = 0.0
        self.asked: list[float | None] = []
        self._comes_at = 0.0

    def select(self, timeout: float | None = None) -> list[str]:
        self.asked.append(timeout)
        self.now = self.now + 0.00001 if timeout == 0 else max(self.now, self._comes_at)
        return ["ready"] if self.now >= self._comes_at else []

    def slept(
        self, patience: spin.AdaptiveSpin, delay: float, eager: bool = True, timeout: float | None = None
    ) -> bool:
        """Whether a wait of `delay` seconds was spent asleep, from its beginning or in the end."""
        self.asked.clear()
        self._comes_at = self.now + delay
        assert patience.wait(timeout, eager) == ["ready"]
        return self.asked[-1] != 0


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> tuple[Selector, spin.AdaptiveSpin]:
    selector = Selector(monkeypatch)
    return selector, spin.AdaptiveSpin(selector)  # type: ignore[arg-type]


def test_after_one_short_wait_the_next_ones_are_spent_awake(scene: tuple[Selector, spin.AdaptiveSpin]) -> None:
    selector, patience = scene
    assert [selector.slept(patience, SOON) for _ in range(5)] == [True, False, False, False, False]


def test_long_waits_are_spent_asleep_from_their_beginning(scene: tuple[Selector, spin.AdaptiveSpin]) -> None:
    selector, patience = scene
    for _ in range(5):
        assert selector.slept(patience, LATE)
        assert selector.asked == [None]


def test_who_expects_nothing_at_once_sleeps(scene: tuple[Selector, spin.AdaptiveSpin]) -> None:
    selector, patience = scene
    for _ in range(5):
        assert selector.slept(patience, SOON, eager=False, timeout=5.0)
        assert selector.asked == [5.0]


def test_a_deadline_that_is_near_is_kept(scene: tuple[Selector, spin.AdaptiveSpin]) -> None:
    selector, patience = scene
    selector.slept(patience, SOON)
    assert selector.slept(patience, SOON, timeout=SPIN_S / 2)
    assert selector.asked == [SPIN_S / 2]


def test_each_time_that_it_was_in_vain_it_takes_more_to_try_again(scene: tuple[Selector, spin.AdaptiveSpin]) -> None:
    selector, patience = scene
    for needed in (1, 2, 4, 8, 16, 32, 64, 64):
        assert [selector.slept(patience, SOON) for _ in range(needed)] == [True] * needed
        assert selector.slept(patience, LATE)
        assert selector.asked[0] == 0  # awake for a moment, and in vain
    for _ in range(64):
        assert selector.slept(patience, SOON)
    assert not selector.slept(patience, SOON)  # worth it again
    assert selector.slept(patience, LATE)
    assert [selector.slept(patience, SOON) for _ in range(3)] == [True, True, False]


def test_a_long_wait_between_short_ones_starts_the_count_again(scene: tuple[Selector, spin.AdaptiveSpin]) -> None:
    selector, patience = scene
    selector.slept(patience, SOON)
    selector.slept(patience, LATE)  # in vain: two short ones are needed now
    assert selector.slept(patience, SOON)
    assert selector.slept(patience, LATE)
    assert selector.slept(patience, SOON)
    assert selector.slept(patience, SOON)
    assert not selector.slept(patience, SOON)
