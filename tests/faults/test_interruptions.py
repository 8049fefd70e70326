"""Ctrl-C, at every call that a use of a peer makes: no other message is lost, doubled or stuck.

CPython looks for signals where calls begin and end. So a profile function, which is called there, can do what the
handler of a signal does, and at one place of netcomm's code after the other. (Python's own waiting for a condition has
places where it would leave a lock as it should not.)
"""

import inspect
import itertools
import select
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from netcomm import LifecycleError, Limits, Peer
from netcomm_sqlite import SqliteQueueStorage
from tests.faults.helpers import DEADLINE_S

QUICK = Limits(reconnect_min_s=0.001, reconnect_max_s=0.01, window_bytes=2000)


class Interruption:
    """Interrupts the calling thread at a place, by its number, if an action comes that far."""

    def __init__(self, place: int) -> None:
        self.left = place
        self.came = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        in_generator = frame.f_code.co_flags & inspect.CO_GENERATOR  # which may be called to be closed: not to be seen
        ours = frame.f_globals["__name__"].startswith("netcomm") and not in_generator
        if ours and event in ("call", "c_return"):
            self.left -= 1
            if self.left < 0:
                self.came = True
                raise KeyboardInterrupt

    def run(self, action: Callable[[], object]) -> bool:
        """Returns whether the action came to its end."""
        try:
            sys.setprofile(self)
            action()
        except KeyboardInterrupt:
            return False
        finally:
            sys.setprofile(None)
        return True


def interruptions() -> Iterator[Interruption]:
    """One for each place of an action, and one behind its end."""
    place = 0
    while True:
        interruption = Interruption(place)
        yield interruption
        if not interruption.came:
            assert place > 10
            return
        place += 1


USES: dict[str, tuple[int, bytes, dict[str, Any]]] = {
    "one": (1, b"", {}),
    "one that is larger than the window": (1, bytes(200_000), {}),
    "more than the window": (30, bytes(100), {}),
    "more than the window, with a ttl": (30, bytes(100), {"ttl": 60.0}),
    "stored": (2, b"", {"persistent": True}),
    "stored, with a ttl": (2, b"", {"persistent": True, "ttl": 60.0}),
}
"""How many messages, what each ends with, and the other arguments."""


@pytest.mark.parametrize("use", USES)
def test_a_send_that_is_interrupted_harms_no_other_message(use: str, tmp_path: Path) -> None:
    count, end, arguments = USES[use]
    numbers = itertools.count()
    received: list[bytes] = []
    errors: list[BaseException] = []
    receiver = Peer("receiver", limits=QUICK)
    receiver.on_recv.add(lambda ident, data: received.append(data))
    host, port = receiver.add_listener("127.0.0.1", 0)
    storage = SqliteQueueStorage(tmp_path / "queue.db", durability="process")
    sender = Peer("sender", "persistent" in arguments, storage=storage, limits=QUICK)
    sender.add_connector(str(host), int(port))
    receiver.on_error.add(errors.append)
    sender.on_error.add(errors.append)
    expected: list[bytes] = []
    perhaps: set[bytes] = set()
    with receiver, sender:
        for interruption in interruptions():
            assert sender.wait_connected("receiver", DEADLINE_S)
            before, after, *payloads = [b"%d " % next(numbers) + end for _ in range(2 + count)]
            sender.send("receiver", before)
            if not interruption.run(partial(sender.send_many, "receiver", payloads, **arguments)):
                perhaps.update(payloads)
            sender.send("receiver", after)
            expected += [before, *payloads, after]
            assert sender.flush(DEADLINE_S)
    found = set(received)
    assert len(found) == len(received)
    assert [data for data in expected if data in found or data not in perhaps] == received
    assert not errors


def test_a_terminate_that_is_interrupted_can_be_called_again() -> None:
    for interruption in interruptions():
        peer = Peer("bob", limits=QUICK)
        peer.add_listener("127.0.0.1", 0)
        peer.start()
        for number in range(10):
            peer.send("nobody", b"%d" % number)
        interruption.run(partial(peer.terminate, 0.3))
        peer.terminate(0.3)
        for thread in threading.enumerate():
            if thread.name.startswith("netcomm-bob"):
                thread.join(DEADLINE_S)
                assert not thread.is_alive()
        with pytest.raises(LifecycleError):
            peer.send("nobody", b"")


@pytest.mark.parametrize("count", [1, 5])
def test_a_dispatch_that_is_interrupted_loses_nothing(count: int) -> None:
    numbers = itertools.count()
    received: list[bytes] = []
    marked: list[bytes] = []
    events: list[str] = []
    errors: list[BaseException] = []
    receiver = Peer("receiver", limits=QUICK, dispatch="manual")
    receiver.on_recv.add(lambda ident, data: received.append(data))
    receiver.on_message.add(lambda ident, message: marked.append(message.data) if message.redelivered else None)
    receiver.on_connect.add(lambda ident: events.append(ident))
    receiver.on_error.add(errors.append)
    host, port = receiver.add_listener("127.0.0.1", 0)
    sender = Peer("sender", limits=QUICK)
    sender.add_connector(str(host), int(port))
    expected: list[bytes] = []
    twice: list[list[bytes]] = []
    with receiver, sender:
        assert sender.wait_connected("receiver", DEADLINE_S)
        while not events:
            receiver.dispatch(DEADLINE_S)
        for interruption in interruptions():
            payloads = [b"%d" % next(numbers) for _ in range(count)]
            deliveries = sender.send_many("receiver", payloads)
            before = len(received)
            while not select.select([receiver], [], [], DEADLINE_S)[0]:
                pass
            interruption.run(partial(receiver.dispatch, 0.0))
            while len(set(received[before:])) < count or not sender.flush(0):
                receiver.dispatch(0.01)
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            expected += payloads
            twice.append([data for data in payloads if received.count(data) > 1])
            assert receiver.dispatch(0.0) == 0
    assert list(dict.fromkeys(received)) == expected
    assert max(map(len, twice)) == 1  # the message whose callbacks ran
    assert {data for several in twice for data in several} <= set(marked)
    assert all(received.count(data) <= 2 for data in expected)
    assert not errors
    assert events == ["sender"]
