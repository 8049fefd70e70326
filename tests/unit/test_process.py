"""`netcomm.runtime.process`: what the end of the process, and a fork, do to peers: members that only take notes."""

import threading
import weakref
from collections.abc import Callable
from time import monotonic

import pytest

from netcomm.runtime import process
from netcomm.runtime.process import EXIT_S


class Member:
    """Notes how it is ended. ending: what it does then."""

    def __init__(self, ending: Callable[[], object] = lambda: None) -> None:
        self.timeouts: list[float] = []
        self.abandoned = 0
        self.ending = ending

    def terminate(self, timeout: float) -> None:
        self.timeouts.append(timeout)
        self.ending()

    def abandon(self) -> None:
        self.abandoned += 1
        self.ending()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only the test sets; nobody but the test's members is there."""
    now = [monotonic()]
    monkeypatch.setattr(process, "monotonic", lambda: now[0])
    monkeypatch.setattr(process, "_members", weakref.WeakSet())
    monkeypatch.setattr(process, "_is_finalized", True)
    monkeypatch.setattr(process, "_mark_is_inherited", False)
    return now


def test_all_members_together_have_the_time_that_a_process_is_kept(clock: list[float]) -> None:
    def take_long() -> None:
        clock[0] += 0.75 * EXIT_S

    members = [Member(take_long) for _ in range(3)]
    for member in members:
        process.enter(member)
    process._terminate_all()
    timeouts = sorted(timeout for member in members for timeout in member.timeouts)
    assert timeouts == pytest.approx([0.0, 0.25 * EXIT_S, EXIT_S])


@pytest.mark.parametrize("act", [process._terminate_all, process._abandon_all])
def test_a_member_that_raises_keeps_nobody_from_being_ended(
    clock: list[float], act: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    members = [Member(lambda: 1 // 0) for _ in range(3)]
    for member in members:
        process.enter(member)
    act()
    assert [len(member.timeouts) + member.abandoned for member in members] == [1, 1, 1]
    assert len(caplog.records) == 3


def test_who_has_left_is_not_ended(clock: list[float]) -> None:
    member = Member()
    process.enter(member)
    process.leave(member)
    process._terminate_all()
    process._abandon_all()
    assert (member.timeouts, member.abandoned) == ([], 0)


def test_a_forked_child_ends_nobody_of_its_parents(clock: list[float]) -> None:
    member = Member()
    process.enter(member)
    process._abandon_all()
    process._terminate_all()
    assert (member.timeouts, member.abandoned) == ([], 1)


def test_a_child_that_is_forked_while_its_parent_ends_is_not_ending(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not process.is_ending()
    monkeypatch.setattr(threading, "_SHUTTING_DOWN", True, raising=False)
    assert process.is_ending()
    process._abandon_all()
    assert not process.is_ending()
