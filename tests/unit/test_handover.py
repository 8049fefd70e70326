"""`netcomm.runtime.handover`: which callbacks of a batch are reported, and when."""

from itertools import islice
from typing import Any

import pytest

from netcomm.protocol.events import Received
from netcomm.runtime.handover import ACK_DELAY_S, Handover


class Node:
    """Takes reports, as the real one does, and keeps them."""

    def __init__(self) -> None:
        self.reports: list[int] = []

    def on_handled(self, received: Any, count: int, now: float) -> bool:
        if count <= received.handled:
            return False
        received.handled = count
        self.reports.append(count)
        return True


def make_batch(count: int, handled: int = 0) -> Received:
    payloads = [b"%d" % number for number in range(count)]
    return Received("b", None, 0, 0, [(0, count, bytes(16), 0, 0, None)], payloads, count, handled)


class Scene:
    """A Handover, its node and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("netcomm.runtime.handover.clocks.now", lambda: self.now)
        self.node = Node()
        self.handover = Handover(self.node)  # type: ignore[arg-type]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def begun(scene: Scene, batch: Received, given: int = 0) -> None:
    """Begin with a batch, and give so many of its messages to callbacks."""
    left = scene.handover.begin(batch)
    assert len(list(islice(left, given))) == given


def test_the_message_whose_callback_runs_is_not_reported(scene: Scene) -> None:
    begun(scene, make_batch(5), given=3)
    assert scene.handover.report()
    assert scene.node.reports == [2]
    assert not scene.handover.report()
    next(scene.handover.left)
    assert scene.handover.report()
    assert scene.node.reports == [2, 3]


def test_while_the_first_callback_runs_nothing_is_reported(scene: Scene) -> None:
    begun(scene, make_batch(5), given=1)
    assert not scene.handover.report()
    assert scene.node.reports == []


def test_at_the_end_of_a_batch_all_of_it_is_reported(scene: Scene) -> None:
    begun(scene, make_batch(5), given=5)
    scene.handover.report(running=0)
    assert scene.node.reports == [5]


def test_a_batch_that_was_held_back_goes_on_where_it_was_left(scene: Scene) -> None:
    left = scene.handover.begin(make_batch(5, handled=2))  # type: ignore[arg-type]
    assert next(left) == b"2"
    assert not scene.handover.report()
    assert next(left) == b"3"
    assert scene.handover.report()
    assert scene.node.reports == [3]


def test_behind_the_end_nothing_is_reported(scene: Scene) -> None:
    begun(scene, make_batch(5), given=3)
    scene.handover.end()
    assert scene.handover.report_at is None
    assert not scene.handover.report()
    scene.now += 1
    scene.handover.report_due(scene.now)
    assert not scene.handover.attention
    assert scene.node.reports == []


def test_callbacks_are_reported_when_their_time_has_come_and_again_a_while_later(scene: Scene) -> None:
    begun(scene, make_batch(5), given=3)
    assert scene.handover.report_at == scene.now + ACK_DELAY_S
    scene.handover.report_due(scene.now)
    assert scene.node.reports == []
    scene.now += ACK_DELAY_S
    scene.handover.report_due(scene.now)
    assert scene.node.reports == [2]
    assert not scene.handover.attention
    assert scene.handover.report_at == scene.now + ACK_DELAY_S


def test_where_no_callback_has_returned_by_then_the_dispatcher_is_to_report(scene: Scene) -> None:
    begun(scene, make_batch(5), given=1)
    scene.now += ACK_DELAY_S
    scene.handover.report_due(scene.now)
    assert scene.node.reports == []
    assert scene.handover.attention
    assert scene.handover.report_at is None


def test_where_it_is_muted_it_reports_for_the_last_time(scene: Scene) -> None:
    begun(scene, make_batch(5), given=3)
    scene.handover.mute()
    assert scene.node.reports == [2]
    assert scene.handover.attention
    next(scene.handover.left)
    assert not scene.handover.report(running=0)
    scene.handover.mute(running=0)
    assert scene.node.reports == [2]


def test_a_callback_that_ends_the_peer_counts_as_returned(scene: Scene) -> None:
    begun(scene, make_batch(5), given=3)
    scene.handover.mute(running=0)
    assert scene.node.reports == [3]


def test_without_a_batch_muting_reports_nothing(scene: Scene) -> None:
    scene.handover.mute()
    assert scene.handover.muted
    assert scene.node.reports == []
