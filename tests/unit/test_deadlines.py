"""`netcomm.deadlines`: keys fall due in the order of their times."""

import random

from netcomm.deadlines import Deadlines


def test_nothing_is_due_where_nothing_is_set() -> None:
    deadlines: Deadlines[str] = Deadlines()
    assert deadlines.next() is None
    assert deadlines.pop_due(1e9) == []


def test_keys_fall_due_in_the_order_of_their_times() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, when in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        deadlines.set(key, when)
    assert deadlines.next() == 1.0
    assert deadlines.pop_due(2.0) == ["a", "b"]
    assert deadlines.next() == 3.0
    assert "c" in deadlines
    assert "a" not in deadlines


def test_a_key_is_due_at_its_time_and_not_before() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    assert deadlines.pop_due(0.999) == []
    assert deadlines.pop_due(1.0) == ["a"]
    assert deadlines.pop_due(1.0) == []


def test_equal_times_keep_their_order_and_keys_need_no_order() -> None:
    deadlines: Deadlines[object] = Deadlines()
    keys = [object() for _ in range(10)]
    for key in keys:
        deadlines.set(key, 1.0)
    assert deadlines.pop_due(1.0) == keys


def test_setting_again_replaces_the_time_earlier_and_later() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 5.0)
    deadlines.set("a", 2.0)
    assert deadlines.next() == 2.0
    deadlines.set("a", 9.0)
    assert deadlines.next() == 9.0
    assert deadlines.pop_due(8.0) == []
    assert deadlines.pop_due(9.0) == ["a"]


def test_a_time_that_is_set_back_and_forth_is_due_once() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for when in (1.0, 2.0, 1.0, 2.0, 1.0):
        deadlines.set("a", when)
    assert deadlines.pop_due(5.0) == ["a"]
    assert deadlines.next() is None


def test_a_discarded_key_is_never_due_and_may_be_set_again() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.discard("a")
    deadlines.discard("never set")
    assert "a" not in deadlines
    assert deadlines.next() is None
    deadlines.set("a", 1.0)
    assert deadlines.pop_due(1.0) == ["a"]


def test_stale_entries_do_not_pile_up() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for when in range(10_000):
        deadlines.set(when % 3, float(when))
    assert len(deadlines._heap) < 200
    for key in range(10_000):
        deadlines.set(key + 10, 1.0)
        deadlines.discard(key + 10)
    assert len(deadlines._heap) < 200
    assert deadlines.pop_due(1e9) == [1, 2, 0]


def test_random_use_agrees_with_a_dict() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        deadlines: Deadlines[int] = Deadlines()
        model: dict[int, float] = {}
        now = 0.0
        for _ in range(2000):
            key = chance.randrange(30)
            match chance.randrange(4):
                case 0 | 1:
                    model[key] = now + chance.randrange(50)
                    deadlines.set(key, model[key])
                case 2:
                    model.pop(key, None)
                    deadlines.discard(key)
                case 3:
                    now += chance.randrange(10)
                    due = deadlines.pop_due(now)
                    assert [model[key] for key in due] == sorted(model[key] for key in due)
                    assert set(due) == {key for key, when in model.items() if when <= now}
                    assert len(due) == len(set(due))
                    for key in due:
                        del model[key]
            assert deadlines.next() == min(model.values(), default=None)
            assert all((key in deadlines) == (key in model) for key in range(30))
