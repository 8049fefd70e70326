"""Memory runs out at any call that a node makes for a connection: that connection ends, and every message arrives once.

A MemoryError may come wherever something is allocated: where functions in C are called, most of them, and where objects
are made. A profile function raises one there, at one place after the other, while a node takes what a connection has
said, or writes to it.
"""

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from netcomm.errors import NetcommError
from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import DeliveryState
from netcomm.protocol.events import ErrorReported
from netcomm.protocol.node import Node
from tests.trials import trials
from tests.unit.helpers import Host, Net

LIMITS = Limits(window_bytes=2000, max_frame_bytes=1000)
PLACES = {"in": Node._on_link, "out": Node._write}
ALLOCATES_NOTHING = ("popleft", "len", "isinstance")


class Shortage:
    """Raises MemoryError once, at a place by its number, in the code of the protocol below a function of the node."""

    def __init__(self, node: Node, below: Callable[..., Any], place: int) -> None:
        self.node = node
        self.below = below.__code__
        self.left = place
        self.came = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            allocates = frame.f_code.co_name == "__init__"
        else:
            allocates = event == "c_call" and argument.__name__ not in ALLOCATES_NOTHING
        if self.came or not allocates:
            return
        if not frame.f_globals["__name__"].startswith("netcomm.protocol") or not self._is_below(frame):
            return
        self.left -= 1
        if self.left < 0:
            self.came = True
            raise MemoryError

    def _is_below(self, frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_code is self.below:
                return frame.f_locals["self"] is self.node
            frame = frame.f_back
        return False


def connect(net: Net, one: Host, other: Host) -> None:
    """Dial again, as a connector does, where the connection is gone."""
    if not net.wires or net.wires[-1].one.gone or net.wires[-1].other.gone:
        net.connect(one, other)


def converse(below: Callable[..., Any], place: int) -> tuple[bool, list[BaseException]]:
    """Let two hosts talk, and memory run out for one of them."""
    net = Net(seed=1, max_chunk=700)
    one, other = net.host("one", LIMITS, MemoryQueueStorage()), net.host("other", LIMITS, MemoryQueueStorage())
    one.has_faults = True
    shortage = Shortage(one.node, below, place)
    deliveries = []
    expected: dict[Host, list[bytes]] = {one: [], other: []}
    before = sys.getprofile()
    connect(net, one, other)
    sys.setprofile(shortage)
    try:
        for number in range(6):
            for host, to in ((one, "other"), (other, "one")):
                payload = b"%d " % number + bytes(300)
                deliveries.append(host.send(to, payload, ttl=None if number % 2 else 60.0))
                deliveries.append(host.send_persistent(to, b"stored " + payload))
                expected[other if host is one else one] += [payload, b"stored " + payload]
            net.settle()
            connect(net, one, other)
        for _ in range(3):
            net.advance(1.0)
            connect(net, one, other)
    finally:
        sys.setprofile(before)
    for host in (one, other):
        received = host.payloads()
        for kind in (True, False):
            wanted = [payload for payload in expected[host] if payload.startswith(b"stored") is kind]
            assert [payload for payload in received if payload.startswith(b"stored") is kind] == wanted
        assert host.messaging.peers.idle
        assert host.messaging.all_handed_over
    assert {delivery.state for delivery in deliveries} == {DeliveryState.DELIVERED}
    return shortage.came, [event.error for event in one.events if isinstance(event, ErrorReported)]


@pytest.mark.parametrize("below", PLACES)
def test_wherever_memory_runs_out_the_connection_ends_and_each_message_arrives_once(below: str) -> None:
    with trials(f"memory runs out, on the way {below}") as tried:
        for place in itertools.count():
            came, errors = converse(PLACES[below], place)
            if not came:
                break
            assert [type(error) for error in errors] == [NetcommError], place
            assert "MemoryError" in str(errors[0])
            tried.count += 1
        assert place > 300
