"""`netcomm.runtime.handover.NotedHandover`: what its thread notes, the node is told of later, whatever interrupts."""

from itertools import islice

import pytest

from netcomm.protocol.events import Received
from netcomm.runtime.handover import NotedHandover


class Node:
    """Takes reports, as the real one does, and keeps them."""

    def __init__(self) -> None:
        self.reports: list[int] = []

    def on_handled(self, received: Received, count: int, now: float) -> bool:
        if count > received.handled:
            received.handled = count
            self.reports.append(count)
            return True
        return False


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def handover(node: Node) -> NotedHandover:
    return NotedHandover(node)  # type: ignore[arg-type]


def batch(count: int) -> Received:
    return Received("bob", None, 0, 0, [(10, count, bytes(16), 0, 0, None)], [b"%d" % n for n in range(count)], 0)


def begin(handover: NotedHandover, received: Received, given: int) -> list[bytes]:
    """Begin with a batch, and give so many of its messages to callbacks."""
    return list(islice(handover.begin(received), given))


def test_the_node_hears_of_callbacks_when_it_is_told(handover: NotedHandover, node: Node) -> None:
    begin(handover, batch(5), given=3)
    assert handover.report()
    assert not handover.report()
    assert handover.untold
    assert node.reports == []
    handover.tell(0.0)
    assert node.reports == [2]
    assert not handover.untold


def test_the_node_hears_of_batches_that_have_ended_meanwhile(handover: NotedHandover, node: Node) -> None:
    for count in (2, 3):
        begin(handover, batch(count), given=count)
        handover.report(running=0)
        handover.end()
    handover.tell(0.0)
    assert node.reports == [2, 3]


def test_a_message_that_was_interrupted_comes_again_and_is_marked(handover: NotedHandover, node: Node) -> None:
    received = batch(4)
    assert begin(handover, received, given=2) == [b"0", b"1"]
    assert begin(handover, received, given=4) == [b"1", b"2", b"3"]
    assert received.redelivered_below == 12
    handover.report(running=0)
    handover.end()
    handover.tell(0.0)
    assert node.reports == [4]


def test_nothing_of_a_batch_counts_before_it_was_given_to_callbacks(handover: NotedHandover, node: Node) -> None:
    begin(handover, batch(3), given=3)
    handover.report(running=0)
    handover.end()
    begin(handover, batch(3), given=0)
    assert not handover.report()


def test_a_batch_that_was_held_back_goes_on_behind_what_the_node_has_not_heard_of(handover: NotedHandover) -> None:
    received = batch(3)
    begin(handover, received, given=2)
    handover.report(running=0)
    handover.end()
    assert begin(handover, received, given=3) == [b"2"]
    assert received.redelivered_below == 0


def test_nothing_is_noted_once_it_is_muted(handover: NotedHandover, node: Node) -> None:
    begin(handover, batch(3), given=2)
    handover.mute()
    next(handover.left)
    assert not handover.report()
    handover.tell(0.0)
    assert node.reports == [1]
