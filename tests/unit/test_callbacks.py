"""`netcomm.callbacks`: an ordered list that survives its own functions."""

import logging
import threading

import pytest

from netcomm import Callback


def test_functions_are_called_in_order_with_the_same_arguments() -> None:
    calls: list[tuple[int, object]] = []
    callback = Callback()
    for number in range(3):
        callback.add(lambda *args, number=number: calls.append((number, args)))
    callback("a", 1)
    assert calls == [(0, ("a", 1)), (1, ("a", 1)), (2, ("a", 1))]


def test_an_empty_list_does_nothing_and_is_false() -> None:
    callback = Callback()
    callback(1, 2)
    assert not callback
    callback.add(print)
    assert callback


def test_add_serves_as_a_decorator() -> None:
    callback = Callback()

    @callback.add
    def function() -> int:
        return 5

    assert function() == 5
    assert list(callback) == [function]


def test_a_function_added_twice_is_called_twice_and_removed_once() -> None:
    calls: list[int] = []
    callback = Callback()
    callback.add(calls.append)
    callback.add(calls.append)
    callback(1)
    callback.remove(calls.append)
    callback(2)
    assert calls == [1, 1, 2]
    assert len(callback) == 1


def test_the_first_occurrence_is_removed() -> None:
    callback = Callback()
    for function in (print, len, print):
        callback.add(function)
    callback.remove(print)
    assert list(callback) == [len, print]


def test_removing_what_is_not_there_raises_and_changes_nothing() -> None:
    callback = Callback()
    callback.add(print)
    with pytest.raises(ValueError, match="is not in callback"):
        callback.remove(len)
    assert list(callback) == [print]


def test_a_function_that_removes_itself_does_not_make_its_neighbour_be_skipped() -> None:
    calls: list[str] = []
    callback = Callback()

    def first() -> None:
        calls.append("first")
        callback.remove(first)

    callback.add(first)
    callback.add(lambda: calls.append("second"))
    callback()
    callback()
    assert calls == ["first", "second", "second"]


def test_a_function_that_is_added_meanwhile_is_called_from_the_next_time_on() -> None:
    calls: list[str] = []
    callback = Callback()

    def grow() -> None:
        calls.append("grow")
        callback.add(lambda: calls.append("new"))

    callback.add(grow)
    callback()
    assert calls == ["grow"]
    callback.remove(grow)
    callback()
    assert calls == ["grow", "new"]


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3), KeyboardInterrupt()])
def test_an_exception_is_logged_with_its_traceback_reported_and_kept_from_the_others(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[BaseException] = []
    calls: list[bytes] = []

    def fail(data: bytes) -> None:
        raise error

    callback = Callback("on_recv", reported.append)
    callback.add(fail)
    callback.add(calls.append)
    with caplog.at_level(logging.DEBUG, "netcomm"):
        try:
            callback(b"secret payload")
        except BaseException as escaped:  # pytest itself would end over some of them
            pytest.fail(f"{escaped!r} got out")
    assert calls == [b"secret payload"]
    assert reported == [error]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.name == "netcomm.callbacks"
    assert "on_recv" in record.getMessage()
    assert "fail" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert "secret" not in record.getMessage()


def test_an_exception_needs_no_report(caplog: pytest.LogCaptureFixture) -> None:
    callback = Callback()
    callback.add(lambda: 1 // 0)
    callback()
    assert len(caplog.records) == 1


def test_what_is_called_may_use_the_list_in_another_thread() -> None:
    # A lock held during the call would make this wait for ever.
    callback = Callback()

    def change_elsewhere() -> None:
        thread = threading.Thread(target=callback.add, args=(print,))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    callback.add(change_elsewhere)
    callback()
    assert len(callback) == 2


def test_nothing_is_lost_when_many_threads_change_the_list() -> None:
    callback = Callback()
    kept = [lambda: None for _ in range(400)]
    gone = [lambda: None for _ in range(400)]
    for function in gone:
        callback.add(function)
    barrier = threading.Barrier(4)

    def change(part: int) -> None:
        barrier.wait(10)
        for index in range(part, 400, 4):
            callback.add(kept[index])
            callback.remove(gone[index])
            callback()

    threads = [threading.Thread(target=change, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert set(callback) == set(kept)
    assert len(callback) == 400


def test_whoever_wants_to_know_of_added_functions_is_told_behind_each() -> None:
    lengths: list[int] = []
    callback = Callback("on_recv", added=lambda: lengths.append(len(callback)))
    callback.add(print)
    callback.add(repr)
    callback.remove(print)
    callback("x")
    assert lengths == [1, 2]


def test_it_may_be_used_while_it_tells_of_an_addition() -> None:
    # A lock held meanwhile would make this wait for ever.
    callback = Callback(added=lambda: callback.remove(print))
    assert callback.add(print) is print
    assert len(callback) == 0


def test_its_repr_tells_its_name_and_length() -> None:
    callback = Callback("on_drop")
    callback.add(print)
    assert repr(callback) == "<Callback on_drop: 1 functions>"
