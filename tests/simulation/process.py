"""One process of a netcomm peer: a real `Node` and `StorageQueue`, with the threads and sockets around them as events.

Each event stands for what one thread does while it holds the mutex, or for one call of the storage; chance says how
the threads take turns. A *trap* kills the process at a named point in the midst of it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from netcomm.callbacks import Callback
from netcomm.connections import BufferUpdated, Closed, Opened, Writable
from netcomm.errors import NetcommError, RemoteProtocolError, StorageCorrupt, StorageError
from netcomm.limits import Limits
from netcomm.message import DURABLE, VOLATILE, Delivery, Stream
from netcomm.protocol import decode, events
from netcomm.protocol.batch import Batch, Run
from netcomm.protocol.frames import Data, Frame, FrameType, Messages, Ping, packet_size
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.node import Node
from netcomm.protocol.storage_queue import Job, StorageQueue
from netcomm.storage import Append, Position, StoredMessage
from tests.simulation.host import CALLBACKS, SimulatedHost
from tests.simulation.oracle import Sent
from tests.simulation.world import KERNEL_BYTES, READ_BYTES, Died, End, Violation
from tests.unit.helpers import Reader, put

TRAPS = (
    "numbered",
    "appended",
    "loaded",
    "marked",
    "renewed",
    "position",
    "discarded",
    "deleted",
    "callback",
    "written",
    "written anew",
    "skipped",
    "received",
)
# Of worlds with streams of the bus: also before and behind the step of a host.
STREAM_TRAPS = (*TRAPS, "taken", "stepped")

_LIMITS = Limits()  # of those that only look
# Steps for which there may be no memory.
STARVING = ("write", "receive_into")
# Behind what the storage has done, by the kind of request.
_TRAPS_BEHIND = {
    events.Load: "loaded",
    events.LoadDiscarded: "discarded",
    events.Mark: "marked",
    events.Renew: "renewed",
    events.StorePosition: "position",
    events.Delete: "deleted",
    events.DeleteBelow: "deleted",
}


@dataclass
class _Batch:
    """Persistent messages of one call that are numbered."""

    receiver: str
    stream: Stream
    epoch: int
    ttl: float | None
    messages: list[Sent]
    deliveries: list[Delivery]


class _ClumsyUser(Exception):
    """What a callback raises."""


class Process:
    """It lives from `__init__` to `die`; the node starts the next one."""

    legacy = False

    def __init__(self, node: Any, incarnation: int) -> None:
        self.node = node
        self.world = node.world
        self.oracle = node.oracle
        self.rng = node.world.rng
        self.incarnation = incarnation
        self.alive = True
        self.ending = False
        self.untold_fault = False
        self.discards: dict[str, int] = {}  # by receiver: up to which accepted message its user has given them up
        self.discarded_at: dict[str, float] = {}  # by receiver: when its user did so last
        self.disconnected_at: dict[str, float] = {}
        self.back_at: dict[str, float] = {}  # by ident: when it came back last, of those that had been away for long
        self.pending: dict[tuple[str, Any], int] = {}  # by sender and stream: the bytes that wait for callbacks
        self.trap: str | None = node.first_trap
        node.first_trap = None
        self.storage = node.storage
        self.ends: dict[int, End] = {}
        self._clock_offset = self.rng.uniform(0, 1000)
        self._numbers = 0
        self._tick_at: float | None = None
        self._ticking = False  # what is done is due to the time
        self._events: deque[events.Event] = deque()
        self._dispatching = False
        self._uncommitted: list[_Batch] = []
        self._committing = False
        self._requests: list[events.StorageRequest] = []
        self._queue = StorageQueue()
        self._keeper_waits = False
        self._keeper_stops = False
        self._renewed: set[tuple[str, Stream]] = set()
        self.met: dict[str, tuple[float, int]] = {}  # by ident: when it was first connected, and its incarnation then
        self._on_message = Callback("on_message", self._report)
        self._on_message.add(self._stumble)
        self._on_message.add(self.oracle.handed_over)
        self.messaging = Messaging(
            node.ident,
            node.limits,
            peer_id=self.storage.store_id if self.storage is not None else self.rng.randbytes(16),
            boot_id=self.rng.randbytes(16),
            first_epoch=self.rng.getrandbits(63),
            owner=_NO_OWNER,
            progress=self._progress,
            stores_positions=self.storage is not None,
            made_up=node.made_up,
        )
        self.core = Node(self.messaging, self, node.budget)
        self._host: SimulatedHost | None = None  # while it is attached
        self.is_attaching = False
        streams = node.streams
        host = None if streams is None else SimulatedHost(self, streams.rng)
        if self.storage is not None:
            positions = {(sender, DURABLE): position for sender, position in self.storage.positions().items()}
            if host is not None:
                for key, (epoch, next_seq, _) in host.position_in().items():
                    positions[key] = Position(epoch, next_seq)
            for request in self.core.restore(self.storage.streams(), positions, self.now, self.wall):
                request.carry_out(self.storage)
            self._keeper = self._keep()
            self._resume_keeper()
        if host is not None:
            if (late := streams.attached_after()) > 0:
                self.after(late, self._attach, host)
            else:
                self._attach(host)
        self.settle()

    def _attach(self, host: SimulatedHost) -> None:
        self.world.trace(f"{self.node.name}: its extension is attached")
        self._host, self.is_attaching = host, True
        self.core.attach(host, self.now)
        self.is_attaching = False
        self.settle()

    @property
    def now(self) -> float:
        return self.world.now + self._clock_offset

    @property
    def wall(self) -> float:
        """What the system's clock shows."""
        return 1e9 + float(self.world.now + self.node.wall_offset)

    def pass_point(self, point: str) -> None:
        if self.trap == point:
            self.trap = None
            self.world.trace(f"{self.node.name}: trap {point!r}")
            self.node.kill()
            raise Died

    def after(self, delay: float, action: Any, *args: Any) -> None:
        self.world.after(delay, self, action, *args)

    # -- The network ------------------------------------------------------------------------------------------

    def opened(self, end: End) -> None:
        self._numbers += 1
        end.number = self._numbers
        self.ends[end.number] = end
        self.world.trace(f"{self.node.name}: connection {end.number} opened (connector {end.connector})")
        self.core.on_link(Opened(end.number, "there", end.connector), self.now)
        self.settle()

    def received(self, end: End, chunk: bytes) -> None:
        connection = self.messaging.sessions.get(end.number)
        if connection is not None and connection.paused:
            raise Violation(f"{self.node.name} reads from connection {end.number}, which it has paused")
        view = memoryview(chunk)
        while view and end.number in self.ends:
            assert end.buffer is not None
            count = put(view, end.buffer)
            view = view[count:]
            self.core.on_link(BufferUpdated(end.number, count), self.now)
        self.pass_point("received")
        self.settle()
        connection = self.messaging.sessions.get(end.number)
        if connection is not None and connection.peer is not None:
            pending = max(connection.peer.inbox.pending_bytes.values(), default=0)  # of one stream
            limits = self.node.limits
            if pending > limits.window_bytes + READ_BYTES + 2 * packet_size(limits.max_frame_bytes):
                raise Violation(f"{self.node.name} holds {pending} bytes that were not handed over")
            if self.node.ends_when_challenged and connection.peer.challenger is not None:
                self.node.ends_when_challenged = False
                self.terminate()

    def lost(self, end: End, reason: str) -> None:
        self.world.trace(f"{self.node.name}: connection {end.number} lost: {reason}")
        del self.ends[end.number]
        self.core.on_link(Closed(end.number, reason), self.now)
        self.settle()
        self.node.reconnect(self, end)

    def writable(self, end: End) -> None:
        self.core.on_link(Writable(end.number), self.now)
        self.settle()

    def _progress(self, number: int) -> tuple[int, int]:
        outgoing = self.ends[number].outgoing
        return outgoing.written, outgoing.taken

    # -- What the node asks of its connections ----------------------------------------------------------------

    def has_room(self, number: int) -> bool:
        end = self.ends.get(number)
        return end is not None and end.room

    def write(self, number: int, buffers: list[bytes]) -> None:
        end, packets = self.ends[number], b"".join(buffers)
        if len(end.outgoing.buffer) >= KERNEL_BYTES:
            raise Violation(f"{self.node.name} writes to connection {number}, which has no room")
        if self.node.starves("write"):
            # How much was written before, the node can't know.
            end.outgoing.write(packets[: self.rng.randint(0, len(packets))])
            self._note_written(_frames(packets))
            self._starve(end)
        self._write(number, end, packets)

    def flush(self, number: int) -> None:
        pass  # a pipe takes what is written

    def close(self, number: int, farewell: list[bytes]) -> None:
        end = self.ends.pop(number, None)
        if end is not None:
            self.world.trace(f"{self.node.name}: closes connection {number}")
            if self._ticking:
                self.oracle.check_patience(self, end)
            end.close(b"".join(farewell))
            self.node.reconnect(self, end)

    def abort(self, number: int, reason: str) -> None:
        end = self.ends.pop(number, None)
        if end is not None:
            self.world.trace(f"{self.node.name}: gives connection {number} up: {reason}")
            end.close()
            self.after(0.0, self._gave_up, number, reason)
            self.node.reconnect(self, end)

    def _gave_up(self, number: int, reason: str) -> None:
        self.core.on_link(Closed(number, reason), self.now)
        self.settle()

    def receive_into(self, number: int, buffer: memoryview) -> None:
        end = self.ends[number]
        # Scratch memory, which connections begin with, is there already.
        if len(buffer) != decode.READ_BYTES and self.node.starves("receive_into"):
            self._starve(end)
        end.buffer = buffer

    def _starve(self, end: End) -> None:
        self.untold_fault = not end.connector  # a connector tells of what repeats once
        raise MemoryError

    def pause(self, number: int, paused: bool) -> None:
        if number in self.ends:
            self.ends[number].pause(paused)

    def established(self, number: int) -> None:
        if number in self.ends:
            self.ends[number].established = True

    def _note_written(self, frames: list[Frame]) -> None:
        for frame in frames:
            if isinstance(frame, Data):
                self.oracle.written(self, [item[1] for item in frame.items], frame.stream)
            elif isinstance(frame, Messages):
                self.oracle.written(self, [item[0] for item in frame.items], None)

    def _write(self, number: int, end: End, packets: bytes) -> None:
        behind_skip = _behind_last_skip(packets)
        if behind_skip and self.trap == "skipped":
            packets = packets[:behind_skip]  # it dies before the rest is written
        ahead = end.outgoing.written
        end.outgoing.write(packets)
        anew = False
        frames = _frames(packets)
        self._note_written(frames)
        for frame in frames:
            if isinstance(frame, Ping) and end.ping_behind is None:
                end.ping_behind = ahead
            anew = anew or (bool(self._renewed) and isinstance(frame, Data | Messages))
            if self.world.lines is not None:
                self.world.trace(f"{self.node.name}: on connection {number} {_short(frame)}")
        connection = self.messaging.sessions.get(number)
        self.oracle.check_window(connection, self)
        self.oracle.check_turn(connection, self, {frame.stream for frame in frames if isinstance(frame, Data)})
        self.pass_point("written")
        if anew and self.rng.random() < 0.5:
            self.pass_point("written anew")
        if behind_skip:
            self.pass_point("skipped")

    def settle(self) -> None:
        """Let the node do what there is to do, and give the rest to the other threads."""
        work = self.core.process_pending(self.now)
        for number, end in list(self.ends.items()):
            if not end.blocked:
                self.oracle.check_progress(self.messaging.sessions.get(number), self)
        if self._host is not None:
            self._host.check_connected(self.messaging.peers.connected_idents())
        if work.awaited:
            self.oracle.look(self)
        for request in work.storage:
            self.world.trace(f"{self.node.name}: asks for {request}")
            self._requests.append(request)
            if self._keeper_waits:
                self._keeper_waits = False
                self.after(self.keeper_delay(), self._resume_keeper)
        for event in work.dispatch:
            match event:
                case events.Dropped(deliveries):
                    for delivery in deliveries:
                        self.oracle.dropped(delivery, self)
                    continue
                case events.ErrorReported(error):
                    self._failed(error)
                case events.Received():
                    self.note_received(event)
                case events.Disconnected(ident):
                    self.disconnected_at[ident] = self.world.now
                case events.Connected(ident):
                    other = self.node.world_nodes[ident]
                    if self.oracle.is_long_away(self, ident):
                        self.back_at[ident] = self.world.now
                    self.met.setdefault(ident, (self.world.now, other.incarnation))
            self._events.append(event)
            if not self._dispatching:
                self._dispatching = True
                self.after(self.callback_delay(), self._dispatch)
        if self.untold_fault:
            raise Violation(f"nobody was told that memory ran out for {self.node.name}")
        deadline = self.core.deadline()
        if deadline is not None and (self._tick_at is None or deadline < self._tick_at):
            self._tick_at = deadline
            self.after(max(0.0, deadline - self.now) + 1e-6, self._tick, deadline)

    def note_received(self, received: events.Received) -> None:
        """Messages wait for callbacks, or for the extension."""
        key = received.ident, received.stream
        self.pending[key] = self.pending.get(key, 0) + received.size
        self.oracle.check_pending(self, received.ident, self.pending[key])

    def check_handed_over(self, ident: str) -> None:
        """Where nothing waits, all that has come may be acknowledged."""
        self.oracle.check_handed_over(self, ident)

    def _failed(self, error: Exception) -> None:
        self.world.trace(f"{self.node.name}: {error!r}")
        if "MemoryError" in str(error):
            self.untold_fault = False
        broken = isinstance(error, RemoteProtocolError) and "protocol error" in str(error)
        false_alarm = "restored from a backup" in str(error) and not self.node.went_back
        defect = type(error) is NetcommError and "MemoryError" not in str(error)
        if broken or false_alarm or defect or isinstance(error, StorageCorrupt):
            raise Violation(f"{self.node.name} reports: {error}")

    def _tick(self, due: float) -> None:
        if self._tick_at == due:
            self._tick_at = None
            self._ticking = True
            self.core.tick(self.now)
            self.settle()
            self.oracle.check_told(self)
            self._ticking = False

    def discard(self, ident: str) -> None:
        """The user gives up what waits for a receiver."""
        self.world.trace(f"{self.node.name}: discards what waits for {ident}")
        self.discards[ident] = self.oracle.accepted_count
        self.discarded_at[ident] = self.world.now
        self.messaging.discard(ident)
        self.oracle.check_discarded(self, ident)
        self.settle()

    # -- Callers ----------------------------------------------------------------------------------------------

    def send(self, messages: list[Sent], release: float) -> None:
        """Send messages to one receiver; `release` is how likely the user is to keep no Delivery."""
        numbered = False
        alike = groupby(messages, lambda message: (message.stream, message.ttl, message.envelope is None))
        for (stream, ttl, _), group in alike:
            batch = list(group)
            receiver = batch[0].receiver
            if stream.durable:
                deliveries = [self._make_delivery(message, release) for message in batch]
                epoch = self.messaging.storage_sync.number(receiver, deliveries)
                self._uncommitted.append(_Batch(receiver, stream, epoch, ttl, batch, deliveries))
                numbered = True
            else:
                while batch and self._gathered(batch[0], release):
                    self._accepted(batch.pop(0))
                if not batch:
                    continue
                entry = self._make_delivery(batch[0], release) if len(batch) == 1 else self._make_run(batch, release)
                for message in batch[: self.messaging.send(receiver, entry, self.now)]:
                    self._accepted(message)
        if numbered:
            self.pass_point("numbered")
            if not self._committing:
                self._committing = True
                self.after(0.02 * self.rng.random(), self._commit)
        if not all(message.persistent for message in messages):
            self.settle()

    def _accepted(self, message: Sent) -> None:
        self.oracle.accepted(message, self)
        self._watch(message)

    def _watch(self, message: Sent) -> None:
        """Let some users wait for the end of a message with functions, one or more."""
        streams, delivery = self.node.streams, message.delivery
        if streams is None or delivery is None:
            return
        for _ in range(streams.rng.choice((0, 0, 1, 2))):
            message.watches += 1
            if not self.messaging.peers.watch(delivery, partial(self.oracle.called, message, process=self)):
                if not delivery.done:
                    raise Violation(f"{message} counts as ended, and has not")
                message.watches -= 1

    def _gathered(self, message: Sent, release: float) -> bool:
        """Whether a message has joined those that wait for its receiver; not, where its uuid would be another one."""
        open_run = self.messaging.open_runs.get(message.receiver)
        is_plain = message.stream is VOLATILE and message.ttl is None and message.envelope is None
        if not is_plain or open_run is None:
            return False
        batch, place = open_run.run.batch, open_run.run.stop + open_run.taken
        next_uuid = batch.uuid_prefix + (batch.number + place).to_bytes(8)
        if message.uuid != next_uuid:
            return False
        delivery = open_run.join(message.data)
        if delivery is None:
            return False
        assert delivery.uuid == message.uuid
        message.sender = self
        if self.rng.random() >= release:
            message.delivery = delivery
        return True

    def _make_delivery(self, message: Sent, release: float) -> Delivery:
        message.sender = self
        expires_at = None if message.ttl is None else self.now + message.ttl
        size, envelope = packet_size(message.size), message.packed_envelope
        delivery = Delivery(
            message.receiver,
            message.uuid,
            message.data,
            size,
            expires_at,
            message.stream,
            _NO_OWNER,
            envelope,
        )
        if self.rng.random() >= release:
            message.delivery = delivery
        return delivery

    def _make_run(self, messages: list[Sent], release: float) -> Run:
        first = messages[0]
        expires_at = None if first.ttl is None else self.now + first.ttl
        prefix, number = first.uuid[:8], int.from_bytes(first.uuid[8:])
        data = [message.data for message in messages]
        envelope = first.packed_envelope
        overhead = packet_size(len(envelope or b""))
        batch = Batch(first.receiver, prefix, number, data, overhead, expires_at, _NO_OWNER, envelope, first.stream)
        for index, message in enumerate(messages):
            message.sender = self
            if self.rng.random() >= release:
                message.delivery = batch.delivery(index)
        return batch.run()

    def _commit(self) -> None:
        batches, self._uncommitted = self._uncommitted, []
        at = self.messaging.storage_sync.stored_time(self.now, self.wall)
        streams: dict[tuple[str, Stream, int], list[StoredMessage]] = {}
        for batch in batches:
            streams.setdefault((batch.receiver, batch.stream, batch.epoch), []).extend(
                StoredMessage(delivery.seq, message.uuid, message.data, at, batch.ttl, message.packed_envelope or b"")
                for message, delivery in zip(batch.messages, batch.deliveries, strict=True)
            )
        error = None
        try:
            self.storage.append(
                [Append(ident, epoch, stored, stream) for (ident, stream, epoch), stored in streams.items()]
            )
        except StorageError as failure:
            error = failure
        self.pass_point("appended")
        self.after(self.rng.choice((0.01, 0.01, 0.1)) * self.rng.random(), self._committed, batches, error)

    def _committed(self, batches: list[_Batch], error: StorageError | None) -> None:
        for batch in batches:
            if error is None:
                for message in batch.messages:
                    self.oracle.accepted(message, self)
                self.messaging.send_stored(batch.receiver, batch.deliveries, self.now)
                for message in batch.messages:
                    self._watch(message)
            else:
                for message in batch.messages:
                    message.delivery = None
                self.messaging.storage_sync.not_stored(batch.receiver, batch.deliveries)
        batches.clear()
        self.settle()
        self.oracle.check_memory(self)
        self._committing = bool(self._uncommitted)
        if self._committing:
            self.after(0.02 * self.rng.random(), self._commit)

    # -- The dispatcher ---------------------------------------------------------------------------------------

    def callback_delay(self) -> float:
        slow = self.world.now < self.node.dawdle_until
        return float(self.rng.choice((0.1, 0.5, 2.0)) if slow else 0.004) * self.rng.random()

    def _dispatch(self, batch: events.Received | None = None) -> None:
        """Run the callbacks of the next event, or some of them, and tell the node now and then."""
        if batch is None:
            if not self._events:
                self._dispatching = False
                return
            event = self._events.popleft()
            if isinstance(event, events.Received):
                batch = event
            elif isinstance(event, events.Call):
                event.function(event.argument)
        if batch is not None and self.node.is_held(CALLBACKS):
            self.after(0.5, self._dispatch, batch)
        elif batch is not None:
            left = len(batch.items) - batch.handled
            at_once = self.rng.random() < (0.1 if self.world.now < self.node.dawdle_until else 0.6)
            returned = batch.handled + (left if at_once else self.rng.randint(1, left))
            for item in batch.items[batch.handled : returned]:
                self._on_message(self, batch.ident, item, item[0] < batch.redelivered_below, batch.stream)
                self.pass_point("callback")
            self.after(0.005 * self.rng.random(), self._told, batch, returned)
        else:
            self.after(self.callback_delay(), self._dispatch)

    def _stumble(self, *args: Any) -> None:
        """A function of the user's; the one behind it in the list, the oracle, must be called all the same."""
        if self.world.now < self.node.raises_until:
            raise _ClumsyUser

    def _report(self, error: BaseException) -> None:
        if not isinstance(error, _ClumsyUser):
            raise error

    def _told(self, batch: events.Received, returned: int) -> None:
        self.handled(batch, returned)
        self.core.on_handled(batch, returned, self.now)
        self.oracle.check_handed_over(self, batch.ident)
        self.settle()
        self.after(self.callback_delay(), self._dispatch, batch if returned < len(batch.items) else None)

    def handled(self, received: events.Received, count: int) -> None:
        """The first messages of these, so many in all, do not wait for anything any more."""
        for *_, data, envelope in received.items[received.handled : count]:
            envelope_bytes = 0 if envelope is None else envelope.wire_size
            self.pending[received.ident, received.stream] -= packet_size(len(data) + envelope_bytes)

    # -- The keeper -------------------------------------------------------------------------------------------

    def keeper_delay(self) -> float:
        slow = self.world.now < self.node.keeper_slow_until
        return float(1.0 if slow else 0.01) * self.rng.random()

    def _resume_keeper(self) -> None:
        delay = next(self._keeper, None)
        if delay is None:
            self._keeper_waits = True
        else:
            self.after(delay, self._resume_keeper)

    def _keep(self) -> Iterator[float | None]:
        """The thread of `Keeper`: it yields how long it takes to go on, or None where it waits for a request."""
        while True:
            self.keeper_idle = not (self._requests or self._queue)
            if self.keeper_idle:
                yield None
                self.keeper_idle = False
            last = self._keeper_stops
            requests, self._requests = self._requests, []
            for request in requests:
                self._queue.add(request)
            for job in self._queue.take(with_deletes=last or self.rng.random() < 0.3):
                yield self.keeper_delay()
                try:
                    result = self._carry_out(job)
                except StorageError:
                    self._queue.put_back(job)
                    continue
                yield min(1.0, self.keeper_delay() * self.rng.choice((1, 1, 8)))  # others have the mutex
                for request in job.requests:
                    if self.world.lines is not None:
                        self.world.trace(f"{self.node.name}: storage answers {request} {_seqs(result)}")
                    self.core.on_storage(request, result, self.now, self.wall)
                    self.oracle.check_memory(self)
                    if isinstance(request, events.StorePosition):
                        self.oracle.check_handed_over(self, request.ident)
                    self.settle()
            if last:
                return
            yield 0.1 * self.rng.random()

    def _carry_out(self, job: Job) -> Any:
        match request := job.requests[0]:
            case events.Renew(ident, _, stream):
                if (ident, stream) in self._renewed:
                    raise Violation(f"{self.node.name} renews its stream to {ident} again")
        result = job.carry_out(self.storage)
        if isinstance(request, events.Renew):
            self._renewed.add((request.ident, request.stream))
            self.node.send_when_renewed()
        if (trap := _TRAPS_BEHIND.get(type(request))) is not None:
            self.pass_point(trap)
        return result

    # -- Ends -------------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """End, without much patience: as `Peer.terminate` with a short timeout."""
        if not self.ending:
            self.ending = True
            self.messaging.sessions.stop_receiving()
            self.settle()
            self.after(0.3 * self.rng.random(), self._terminate)

    def _terminate(self) -> None:
        self.settle()
        self.node.said_goodbye = True
        self.messaging.sessions.close_all("terminated", self.now)
        self.settle()
        self.messaging.discard_all()
        self.settle()
        if self.storage is not None:  # the keeper tries once more what is left to be done
            self._keeper_stops = True
            for _ in self._keeper:
                pass
            if not self.storage.down:
                self.storage.close()
        self.node.kill(gently=True)

    def abandon_connection(self, end: End) -> None:
        """Give a connection up, without the other side hearing of it; what was written may still come, out of turn."""
        if self.rng.random() < 0.5:
            end.outgoing.dead = True
        else:
            end.outgoing.hole_until = self.world.now + self.rng.choice((0.0, 0.3, 1.0))
        end.closed = True
        self.lost(end, "given up")

    def die(self, gently: bool) -> None:
        self.alive = False
        for ident, count in self.discards.items():
            self.node.discards[ident] = max(count, self.node.discards.get(ident, 0))
        for event in self.messaging.next_events():
            if isinstance(event, events.Dropped):
                self.oracle.dropped_untold(event.deliveries)
        self.oracle.process_ended(self)
        silent = not gently and self.rng.random() < 0.3
        for end in self.ends.values():
            end.closed = True
            buffer = end.outgoing.buffer
            if not gently and self.rng.random() < 0.5:
                del buffer[self.rng.randint(0, len(buffer)) :]
            if silent:
                end.outgoing.dead = True
            else:
                end.outgoing.end()
        if self.storage is not None:
            self.storage.crash()

    def quiet(self) -> bool:
        """Whether nothing is left to be done."""
        if self._events or self._dispatching or self._committing or self._requests:
            return False
        if self.storage is not None and not self.keeper_idle:
            return False
        for peer in self.messaging.peers:
            # The receiver is about to say how much it has of what was discarded in flight.
            if peer.connected and any(stream._discarded for stream in peer.outbox):
                return False
        return self.messaging.peers.idle and self.messaging.all_handed_over


def _frames(packets: bytes) -> list[Frame]:
    return Reader(_LIMITS).feed(packets)[0]


def _behind_last_skip(packets: bytes) -> int:
    """Where the last SKIP ends, in whole packets; 0 where there is none."""
    start = found = 0
    while start < len(packets):
        end = start + 4 + int.from_bytes(packets[start : start + 4])
        if packets[start + 4] == FrameType.SKIP:
            found = end
        start = end
    return found


def _short(frame: Frame) -> str:
    match frame:
        case Data(stream):
            messages = ", ".join(f"{item[0]} is {int.from_bytes(item[1])}" for item in frame.items)
            return f"Data({stream.name}: {messages})"
        case Messages(items):
            return f"Messages({', '.join(str(int.from_bytes(item[0])) for item in items)})"
        case _:
            return str(frame)


def _seqs(result: Any) -> Any:
    messages = result[0] if isinstance(result, tuple) else result
    return messages and [message.seq for message in messages]


class _NoOwner:
    def wait_for_delivery(self, delivery: Delivery, timeout: float | None) -> bool:
        raise AssertionError("nobody waits here")

    def watch_delivery(self, delivery: Delivery, function: Callable[[Delivery], object]) -> None:
        raise AssertionError("`RemotePeers` is asked to watch here")


_NO_OWNER = _NoOwner()
