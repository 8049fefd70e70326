"""Time, chance and the network of a simulation: everything that happens is an event at a virtual time.

Nothing here reads a clock or a random source but the one that the seed made, so that a seed names one course of events.
"""

import heapq
import random
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Protocol

READ_BYTES = 600
KERNEL_BYTES = 1500
# Over a slow line, so many bytes come, so often: a message takes longer than the keep-alive waits for a sign of life.
_SLOW_BYTES = 10
_SLOW_PAUSE_S = 0.2
# Several times what any schedule takes: somebody is busy with nothing.
_MAX_STEPS = 20_000


# Neither is an Exception: a node would take it for a fault of the connection that it is serving.


class Violation(BaseException):
    """Something that netcomm promises was not so."""


class Died(BaseException):
    """A process was killed in the midst of a step."""


class Host(Protocol):
    """A process, as the network sees it."""

    alive: bool

    def opened(self, end: "End") -> None: ...
    def received(self, end: "End", chunk: bytes) -> None: ...
    def lost(self, end: "End", reason: str) -> None: ...
    def writable(self, end: "End") -> None: ...


class World:
    """What happens when."""

    def __init__(self, seed: int, tracing: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.dribble_until = 0.0
        self.connections: list[Connection] = []
        self.partitions: dict[frozenset[str], float] = {}
        self.slow: dict[tuple[str, str], float] = {}  # by reader and writer: until when the line is slow
        self.lines: list[str] | None = [] if tracing else None
        self._heap: list[tuple[float, int, Any, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def trace(self, text: str) -> None:
        if self.lines is not None:
            self.lines.append(f"{self.now:9.4f} {text}")

    def trace_hash(self) -> str:
        assert self.lines is not None
        return sha256("\n".join(self.lines).encode()).hexdigest()[:16]

    def after(self, delay: float, owner: Any, action: Callable[..., None], *args: Any) -> None:
        """Let something happen later, unless its owner, if it has one, is dead by then."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, owner, action, args))

    def run(self, until: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, owner, action, args = heapq.heappop(heap)
            self.steps += 1
            if self.steps > _MAX_STEPS:
                raise Violation(f"no rest after {self.steps} steps")
            if owner is None or owner.alive:
                try:
                    action(*args)
                except Died:
                    pass
        self.now = until

    def parted(self, one: str, other: str) -> float:
        """Until when nothing passes between two nodes."""
        return self.partitions.get(frozenset((one, other)), 0.0)


class Pipe:
    """One direction of a connection: what was written and not read, in the kernels and on the way."""

    def __init__(self, connection: "Connection") -> None:
        self.world = connection.world
        self.connection = connection
        self.buffer = bytearray()
        self.reader: End
        self.writer: End
        self.hole_until = 0.0
        self.written = self.taken = 0  # bytes, since the beginning: by the writer, and by the reader's system
        self.taken_at = 0.0  # when that was more the last time
        self._slow_until = 0.0  # nothing comes before, since the line is slow
        self.eof = False  # nothing comes behind what is in the buffer
        self.dead = False  # nothing arrives any more, and nobody is told
        self._scheduled = False

    def write(self, data: bytes) -> None:
        self.written += len(data)
        if self.dead or self.eof:
            return
        self.buffer += data
        self.schedule()

    def end(self) -> None:
        self.eof = True
        self.schedule()

    def schedule(self, delay: float | None = None) -> None:
        if not self._scheduled and not self.dead:
            self._scheduled = True
            if delay is None:
                delay = self.connection.delay * (0.5 + self.world.rng.random())
            self.world.after(delay, None, self._arrive)

    def _arrive(self) -> None:
        self._scheduled = False
        world = self.world
        if self.dead:
            return
        hole_until = max(self.hole_until, world.parted(self.reader.node, self.writer.node))
        if world.now < hole_until:
            self.schedule(hole_until - world.now + 0.001)
            return
        if world.now < self._slow_until:
            self.schedule(self._slow_until - world.now)
            return
        reader = self.reader
        if reader.closed:
            if self.buffer and not self.writer.closed:  # the kernel answers with a reset
                self.buffer.clear()
                world.after(self.connection.delay, None, self.writer.lost, "reset")
            return
        if reader.paused or not reader.open:
            return
        if self.buffer:
            count = min(len(self.buffer), READ_BYTES)
            if world.now < world.slow.get((reader.node, self.writer.node), 0.0):
                count = min(count, _SLOW_BYTES)
                self._slow_until = world.now + _SLOW_PAUSE_S
            elif world.now < world.dribble_until:
                count = min(count, world.rng.choice((1, 3, 10, 50)))
            elif world.rng.random() < 0.3:
                count = world.rng.randint(1, count)
            chunk = bytes(self.buffer[:count])
            del self.buffer[:count]
            self.taken += count
            self.taken_at = world.now
            if self.buffer or self.eof:
                self.schedule(0.001)
            reader.ping_behind = None
            reader.host.received(reader, chunk)
            if len(self.buffer) < KERNEL_BYTES and not self.writer.closed:
                self.writer.unblock()
        elif self.eof:
            reader.lost("closed by the other side")


class End:
    """One side of a connection."""

    def __init__(self, host: Any, node: str, connector: int, target: Any, incoming: Pipe, outgoing: Pipe) -> None:
        self.host = host
        self.node = node
        self.connector = connector
        self.target = target  # what the connector dials
        self.incoming = incoming
        self.outgoing = outgoing
        incoming.reader = self
        outgoing.writer = self
        self.number = 0
        self.open = False
        self.closed = False
        self.paused = False
        self.blocked = False
        self.buffer: memoryview | None = None  # for the next bytes
        self.established = False
        self.ping_behind: int | None = None  # how many bytes lie ahead of the first ping since something came in

    @property
    def room(self) -> bool:
        self.blocked = len(self.outgoing.buffer) >= KERNEL_BYTES
        return not self.closed and not self.blocked

    def unblock(self) -> None:
        if self.blocked and self.host.alive:
            self.blocked = False
            self.host.writable(self)

    def pause(self, paused: bool) -> None:
        self.paused = paused
        if not paused:
            self.incoming.schedule()

    def lost(self, reason: str) -> None:
        if not self.closed and self.host.alive and self.open:
            self.closed = True
            self.outgoing.end()
            self.host.lost(self, reason)

    def close(self, farewell: bytes = b"") -> None:
        """Say what is left, and close; what still comes in goes unheard."""
        if not self.closed:
            self.closed = True
            self.outgoing.write(farewell)
            self.outgoing.end()


class Connection:
    """Two ends, and what is between them."""

    def __init__(self, world: World, dialler: Any, connector: int, target: Any, acceptor: Any) -> None:
        self.world = world
        rng = world.rng
        self.delay = rng.choice((0.001, 0.005, 0.02, 0.02, 0.1))
        there, back = Pipe(self), Pipe(self)
        self.ends = (
            End(dialler, dialler.node.name, connector, target, back, there),
            End(acceptor, acceptor.node.name, 0, None, there, back),
        )
        world.connections.append(self)
        if len(world.connections) > 40:
            world.connections[:] = [connection for connection in world.connections if not connection.over]
        self._open(self.ends[0])
        # Now and then a connection is accepted behind one that was made later.
        delay = self.delay if rng.random() < 0.9 else 1.0
        world.after(delay * rng.random(), acceptor, self._open, self.ends[1])

    @property
    def over(self) -> bool:
        return all(end.closed for end in self.ends)

    def _open(self, end: End) -> None:
        if not end.closed:
            end.open = True
            end.host.opened(end)
            end.incoming.schedule()

    def cut(self) -> None:
        """Lose what is in flight, from somewhere on; the two sides hear of it at different times, or by their pings."""
        rng = self.world.rng
        for end in self.ends:
            pipe = end.incoming
            del pipe.buffer[rng.randint(0, len(pipe.buffer)) if rng.random() < 0.5 else 0 :]
            pipe.eof = True
            if rng.random() < 0.2:
                pipe.dead = True  # silence
            else:
                pipe.schedule(rng.choice((0.0, 0.01, 0.1, 1.0)) * rng.random())
