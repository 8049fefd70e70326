"""`WallClock`: the time of stored messages, while the system's clock is set to and fro."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netcomm.protocol.wall_clock import WallClock


def started(now: float = 0.0, system: float = 1000.0, newest: float = 0.0) -> WallClock:
    clock = WallClock()
    clock.start(now, system, newest)
    return clock


def test_it_shows_the_systems_time() -> None:
    clock = started()
    assert clock.follow(5.0, 1005.0) == 1005.0
    assert clock.at(6.0) == 1006.0


def test_it_starts_behind_what_is_stored() -> None:
    clock = started(newest=5000.0)
    assert clock.at(0.0) == 5000.0
    assert clock.follow(10.0, 1010.0) == 5010.0


def test_it_goes_on_where_the_systems_clock_is_set_back() -> None:
    clock = started()
    assert clock.follow(10.0, 10.0) == 1010.0
    assert clock.age(1000.0, 10.0) == 10.0


def test_it_follows_where_the_systems_clock_is_set_forward_and_nothing_is_older_for_it() -> None:
    clock = started()
    assert clock.follow(10.0, 9010.0) == 9010.0
    assert clock.age(1000.0, 10.0) == 10.0  # stored when it was started
    assert clock.age(9010.0, 15.0) == 5.0  # stored since
    assert clock.age(900.0, 15.0) == 115.0  # stored by an earlier process


def test_jumps_add_up() -> None:
    clock = started()
    clock.follow(1.0, 2000.0)
    clock.follow(2.0, 5000.0)
    assert clock.age(1000.0, 3.0) == 3.0
    assert clock.age(2000.0, 3.0) == 2.0
    assert clock.age(5000.0, 3.0) == 1.0


def test_a_clock_that_gains_is_followed_and_nothing_is_older_for_it() -> None:
    clock = started()
    for second in range(1, 101):
        assert clock.follow(float(second), 1000.0 + second * 1.01) == pytest.approx(1000.0 + second * 1.01, abs=0.11)
    assert clock.age(1000.0, 100.0) == pytest.approx(100.0)


def test_what_is_still_to_come_has_no_age() -> None:
    assert started().age(2000.0, 5.0) == 0.0


moments = st.lists(st.tuples(st.floats(0.01, 1e4), st.floats(-1e6, 1e6)), min_size=1, max_size=20)


@given(moments)
def test_it_never_goes_back_and_ages_are_the_time_that_has_passed(steps: list[tuple[float, float]]) -> None:
    clock = started()
    now, stored = 0.0, [(0.0, 1000.0)]
    for elapsed, offset in steps:
        now += elapsed
        stored.append((now, clock.follow(now, 1e6 + now + offset)))
    times = [at for _, at in stored]
    assert times == sorted(times)
    for when, at in stored:
        assert clock.age(at, now) == pytest.approx(now - when, abs=1e-3)
