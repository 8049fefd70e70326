"""What takes the streams of the bus in a process: an extension that handles messages at once, late, or not for a while.

With a storage, it keeps each message of the streams BUS_VOLATILE and BUS_DURABLE as a row, in one step with the
position in the stream, before it says that the message is handled: as one who hosts topics and queues has to.
"""

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

from netcomm.errors import StorageError
from netcomm.host_storage import HostPosition, HostRow, HostStep, PositionKey
from netcomm.message import BULK, Stream
from netcomm.protocol.events import Received
from netcomm.protocol.extension import Extension, NodePort
from tests.simulation.world import Violation

STREAMS = (Stream.BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)
# Names of what a node may hold back: one of these streams, or what callbacks take.
CALLBACKS = "callbacks"
# So often a stream that is held back is looked at.
_LOOK_S = 0.5

_Part = tuple[Received, int]


class SimulatedHost(Extension):
    """The extension of one process; what it does when is up to chance, and to what its node holds back."""

    streams = STREAMS

    def __init__(self, process: Any, rng: random.Random) -> None:
        self._process = process
        self._rng = rng
        self._at_once = rng.choice((0.0, 0.5, 1.0))  # how likely messages are handled where they are told of
        self._node: NodePort | None = None
        self._connected: set[str] = set()
        self._seen: list[Received] = []  # no object comes twice; they are kept, so that their ids stay theirs
        self._seen_ids: set[int] = set()
        self._waiting: dict[tuple[str, Stream], deque[Received]] = {}
        self._working: set[tuple[str, Stream]] = set()
        self._committing: list[_Part] = []

    def position_in(self) -> Mapping[PositionKey, HostPosition]:
        """The positions that the storage has."""
        storage = self._process.storage
        return {} if storage is None else storage.host_positions()

    # -- What the node tells ----------------------------------------------------------------------------------

    def attached(self, node: NodePort, now: float) -> None:
        if self._node is not None:
            raise Violation("an extension is attached twice")
        self._node = node

    def connected(self, ident: str, now: float) -> None:
        self._check_attached()
        if ident in self._connected:
            raise Violation(f"{self._process.node.name}: the extension hears twice that {ident} is connected")
        self._connected.add(ident)

    def disconnected(self, ident: str, now: float) -> None:
        self._check_attached()
        if ident not in self._connected:
            raise Violation(f"{self._process.node.name}: the extension hears that {ident} leaves, which was not there")
        self._connected.remove(ident)

    def receive(self, received: Received, now: float) -> None:
        self._check_attached()
        stream = received.stream
        assert stream is not None
        if id(received) in self._seen_ids or received.handled:
            raise Violation(f"{self._process.node.name}: the extension gets messages twice")
        if received.ident not in self._connected and not self._process.is_attaching:
            raise Violation(
                f"{self._process.node.name}: the extension gets messages of {received.ident} before it comes"
            )
        self._seen_ids.add(id(received))
        self._seen.append(received)
        self._process.note_received(received)
        key = received.ident, stream
        waiting = self._waiting.setdefault(key, deque())
        waiting.append(received)
        is_next = len(waiting) == 1 and not self._is_held(stream) and not self._stores(stream)
        if is_next and self._rng.random() < self._at_once:
            self._handle(waiting)
        self._work_later(key)

    def _check_attached(self) -> None:
        if self._node is None or not self._process.alive:
            raise Violation("an extension is told of something before it is attached, or when all is over")

    def check_connected(self, idents: list[str]) -> None:
        """It has heard of everybody who is connected."""
        if self._connected != set(idents):
            raise Violation(f"{self._process.node.name}: the extension knows {self._connected}, connected are {idents}")

    # -- Its work ---------------------------------------------------------------------------------------------

    def _is_held(self, stream: Stream) -> bool:
        return bool(self._process.node.is_held(stream.name))

    def _stores(self, stream: Stream) -> bool:
        return stream is not BULK and self._process.storage is not None

    def _work_later(self, key: tuple[str, Stream]) -> None:
        if self._waiting[key] and key not in self._working:
            self._working.add(key)
            delay = _LOOK_S if self._is_held(key[1]) else self._process.callback_delay()
            self._process.after(delay, self._work, key)

    def _work(self, key: tuple[str, Stream]) -> None:
        self._working.discard(key)
        if not self._is_held(key[1]):
            if not self._stores(key[1]):
                self._handle(self._waiting[key])
                self._process.settle()
            elif not self._committing:
                self._prepare()
        self._work_later(key)

    def _handle(self, waiting: deque[Received]) -> None:
        """Be done with some of the first messages."""
        part = self._take(waiting)
        self._handled([part])

    def _take(self, waiting: deque[Received]) -> _Part:
        received = waiting[0]
        left = len(received.payloads) - received.handled
        return received, received.handled + (left if self._rng.random() < 0.7 else self._rng.randint(1, left))

    def _handled(self, parts: list[_Part]) -> None:
        assert self._node is not None
        process = self._process
        for received, count in parts:
            assert received.stream is not None
            if not self._stores(received.stream):
                self._hand_over(received, count)
            process.handled(received, count)
            if not self._node.on_handled(received, count, process.now):
                raise Violation("messages that are done with are no news")
            waiting = self._waiting[received.ident, received.stream]
            if count == len(received.payloads):
                waiting.popleft()
            process.check_handed_over(received.ident)

    def _hand_over(self, received: Received, count: int) -> None:
        for item in received.items[received.handled : count]:
            is_marked = item[0] < received.redelivered_below
            self._process.oracle.handed_over(self._process, received.ident, item, is_marked, received.stream)

    # -- Its storage ------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make a step of some of the messages of each stream that is kept."""
        process = self._process
        number = process.storage.next_number
        steps = []
        for (ident, stream), waiting in self._waiting.items():
            if not waiting or self._is_held(stream) or not self._stores(stream):
                continue
            received, count = part = self._take(waiting)
            self._hand_over(received, count)
            self._committing.append(part)
            items = received.items[received.handled : count]
            rows = [HostRow(number + place, item[1], b"", process.wall) for place, item in enumerate(items)]
            number += len(rows)
            position = HostPosition(received.epoch, received.runs[0][0] + count, process.wall)
            steps.append(HostStep(appended={"rows": rows}, positions={(ident, stream): position}))
        if not steps:
            return
        process.pass_point("taken")
        process.after(process.keeper_delay(), self._commit, steps)

    def _commit(self, steps: list[HostStep]) -> None:
        process = self._process
        try:
            process.storage.commit(steps)
        except StorageError:
            process.after(0.2 + process.keeper_delay(), self._commit, steps)
            return
        process.pass_point("stepped")
        process.after(process.keeper_delay(), self._committed)

    def _committed(self) -> None:
        parts, self._committing = self._committing, []
        self._handled(parts)
        self._process.settle()
        for key in self._waiting:
            self._work_later(key)
