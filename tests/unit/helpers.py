"""What the unit tests share: packets made by hand, deliveries, hosts joined by byte queues and a fake clock; costs."""

import logging
import random
import struct
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pytest

from netcomm.connections import BufferUpdated, Closed, ConnectionEvent, Opened, Writable
from netcomm.errors import NetcommError, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import DURABLE, VOLATILE, Delivery, Stream
from netcomm.protocol import decode, events, frames
from netcomm.protocol.frames import Data, MessageRun
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.node import Node
from netcomm.protocol.remote_peer import PeerStats
from netcomm.protocol.session import Session
from netcomm.storage import Append, StoredMessage

# The frame types, written out here so that a changed number in netcomm.protocol.frames is noticed.
VERSION, INCOMPATIBLE, IDENT, MESSAGE, PING, PONG = range(6)
HELLO, BEGIN, DATA, ACK, SKIP, REFUSE, BATCH, GOODBYE = range(0x80, 0x88)

UUID = bytes(range(16))
INFINITE = 0xFFFFFFFF
# What names the volatile stream of a net's first host to the first peer that it gets to know.
FIRST_EPOCH = 1 << 32
# What a message takes on the wire beside its data: size, type, seq, uuid, ttl and flags.
OVERHEAD = 4 + 1 + 8 + 16 + 4 + 4
# What the readers of tests share, as those of a peer do.
SCRATCH = memoryview(bytearray(decode.READ_BYTES))


def calls(action: Callable[[], object]) -> int:
    """How many functions an action calls, those in C as well."""
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def packet(frame_type: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IB", 1 + len(payload), frame_type) + payload


def packets(data: bytes) -> list[tuple[int, bytes]]:
    """The (type, payload) pairs of whole packets."""
    found = []
    while data:
        (size,) = struct.unpack_from(">I", data)
        assert len(data) >= 4 + size, "an incomplete packet"
        found.append((data[4], data[5 : 4 + size]))
        data = data[4 + size :]
    return found


def version(number: int = 1) -> bytes:
    return packet(VERSION, struct.pack(">I", number))


def ident(name: str) -> bytes:
    return packet(IDENT, name.encode())


def hello(
    boot: bytes = b"B" * 16,
    connector: int = 0,
    max_frame_bytes: int = 1 << 26,
    window_bytes: int = 1 << 23,
    flags: int = 0,
) -> bytes:
    sizes = connector, max_frame_bytes, window_bytes
    return packet(HELLO, struct.pack(">H16s16sIIIB", 1, b"P" * 16, boot, *sizes, flags))


def goodbye() -> bytes:
    return packet(GOODBYE)


def begin(epoch: int = 7, first: int = 0, sent_below: int = 0, stream: int = 0) -> bytes:
    return packet(BEGIN, struct.pack(">BQQQ", stream, epoch, first, sent_below))


def data(seq: int, payload: bytes = b"", flags: int = 0, ttl: int = INFINITE) -> bytes:
    return packet(DATA, struct.pack(">Q16sII", seq, UUID, ttl, flags) + payload)


def batch(
    seq: int, *payloads: bytes, flags: int = 0, ttl: int = INFINITE, uuid: bytes = UUID, shared: bytes = b""
) -> bytes:
    """shared: an envelope for all."""
    sizes = struct.pack(f">{len(payloads)}I", *map(len, payloads))
    head = struct.pack(">Q16sIIH", seq, uuid, ttl, flags, len(payloads))
    return packet(BATCH, head + sizes + shared + b"".join(payloads))


def data_frame(stream: Stream, *items: tuple[int, bytes, int, int, bytes]) -> Data:
    """The frame of plain messages that each came by itself."""
    runs: list[MessageRun] = [(seq, 1, uuid, ttl, flags, None) for seq, uuid, ttl, flags, _ in items]
    return Data(stream, runs, [item[4] for item in items])


def ack(next_seq: int, stream: int = 0, *, epoch: int = FIRST_EPOCH, received: int | None = None) -> bytes:
    """An ACK; everything that has arrived is handed over, where `received` says nothing else."""
    return packet(ACK, struct.pack(">BQQQ", stream, epoch, next_seq, next_seq if received is None else received))


def skip(next_seq: int, stream: int = 0) -> bytes:
    return packet(SKIP, struct.pack(">BQ", stream, next_seq))


def refuse(code: int, text: str) -> bytes:
    return packet(REFUSE, struct.pack(">H", code) + text.encode())


def message(payload: bytes = b"", ttl: int = INFINITE, flags: int = 0) -> bytes:
    return packet(MESSAGE, struct.pack(">16sII", UUID, ttl, flags) + payload)


def legacy_handshake(name: str) -> bytes:
    return version() + ident(name)


def netcomm_handshake(name: str, **fields: int | bytes) -> bytes:
    return version() + hello(**fields) + ident(name)  # type: ignore[arg-type]


class NotWaitedFor:
    def wait_for_delivery(self, delivery: Delivery, timeout: float | None) -> bool:
        raise AssertionError("no unit test of the core waits")

    def watch_delivery(self, delivery: Delivery, function: Callable[[Delivery], object]) -> None:
        raise AssertionError("unit tests of the core ask `RemotePeers` to watch")


not_waited_for = NotWaitedFor()


def make_delivery(
    to: str = "b", payload: bytes = b"", ttl: float | None = None, now: float = 0.0, persistent: bool = False
) -> Delivery:
    return Delivery(
        to,
        UUID,
        payload,
        OVERHEAD + len(payload),
        None if ttl is None else now + ttl,
        DURABLE if persistent else VOLATILE,
        not_waited_for,
    )


def put(view: memoryview, buffer: memoryview) -> int:
    """Let bytes come into a buffer, as many as it takes; returns how many."""
    count = min(len(buffer), len(view))
    buffer[:count] = view[:count]
    return count


class Reader(decode.Reader):
    """A reader that bytes can be fed to."""

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits if limits is not None else Limits(), SCRATCH)

    def feed(self, chunk: bytes) -> tuple[list[frames.Frame], RemoteProtocolError | None]:
        """Let bytes come in, in as many reads as it takes; returns what comes out, up to the first error."""
        view = memoryview(chunk)
        parsed: list[frames.Frame] = []
        error = None
        while view and error is None:
            count = put(view, self.buffer)
            view = view[count:]
            more, error = self.buffer_updated(count)
            parsed += more
        return parsed, error


def receive(session: Session, chunk: bytes, now: float) -> None:
    """Let bytes come in to a session."""
    view = memoryview(chunk)
    while view:
        count = put(view, session.get_buffer())
        view = view[count:]
        session.buffer_updated(count, now)


def receive_on(messaging: Messaging, number: int, chunk: bytes, now: float) -> None:
    """Let bytes come in on a connection, in one read."""
    count = put(memoryview(chunk), messaging.sessions.get(number).session.get_buffer())
    assert count == len(chunk)
    messaging.sessions.buffer_updated(number, count, now)


@dataclass(eq=False)
class End:
    """One host's end of a connection.

    out: what the host has said and the other side has not got.
    written: how many bytes the host has said.
    closing: the host has closed it; the rest of `out` still goes out.
    gone: the host knows nothing of it any more.
    """

    host: "Host"
    number: int
    out: bytearray = field(default_factory=bytearray)
    written: int = 0
    paused: bool = False
    closing: bool = False
    gone: bool = False
    buffer: memoryview | None = None

    def write(self, data: bytes) -> None:
        self.out += data
        self.written += len(data)

    def feed(self, chunk: bytes) -> None:
        """Let bytes come in, unless the host has closed the connection."""
        view = memoryview(chunk)
        while view and self.buffer is not None and not self.gone:
            count = put(view, self.buffer)
            view = view[count:]
            self.host.tell(BufferUpdated(self.number, count))

    def lose(self, reason: str = "cut") -> None:
        """Let the host notice that the connection is gone."""
        if not self.gone:
            self.gone = True
            self.out.clear()
            del self.host.ends[self.number]
            self.host.tell(Closed(self.number, reason))


class Host:
    """A `Node`, its connections, and as much of a peer around it as it takes to do its work."""

    def __init__(
        self,
        net: "Net",
        name: str,
        limits: Limits,
        boot: int,
        storage: MemoryQueueStorage | None = None,
        made_up: bool = False,
    ) -> None:
        self.net = net
        self.name = name
        self.limits = limits
        self.boot = boot
        self.ends: dict[int, End] = {}
        self.events: list[events.Event] = []  # all that the node has handed out
        self.given_up: deque[tuple[int, str]] = deque()  # connections that the node has given up, and why
        self.has_faults = False  # the test plays faults of the node's own, such as no memory
        self.awaited = 0  # how often a thread that waits was to look
        self.received: list[tuple[str, bytes, bool]] = []  # what callbacks got: ident, data, redelivered
        self.holding = False  # the callbacks take for ever
        self.queue: deque[events.Received] = deque()  # of the dispatcher
        self.messaging = Messaging(
            name,
            limits,
            peer_id=name.encode().ljust(16, b"p"),
            boot_id=boot.to_bytes(16),
            first_epoch=boot * FIRST_EPOCH,
            owner=not_waited_for,
            progress=self._progress,
            stores_positions=storage is not None,
            made_up=made_up,
        )
        self.node = Node(self.messaging, self, net.budget)
        self.storage = storage
        self.storing = True  # the storage answers at once
        self.requests: deque[events.StorageRequest] = deque()  # what it has not answered
        if storage is not None:
            for request in self.node.restore(
                storage.streams(),
                {(sender, DURABLE): position for sender, position in storage.positions().items()},
                net.now,
                net.wall_now,
            ):
                request.carry_out(storage)

    def tell(self, event: ConnectionEvent) -> None:
        """Something happens to a connection."""
        self.node.on_link(event, self.net.now)

    def open(self, connector: int = 0) -> End:
        end = End(self, self.net.new_number())
        self.ends[end.number] = end
        self.tell(Opened(end.number, f"place-{end.number}", connector))
        return end

    def _progress(self, number: int) -> tuple[int, int]:
        end = self.ends[number]
        return end.written, end.written - len(end.out)

    def send(self, to: str, payload: bytes, ttl: float | None = None, stream: Stream = VOLATILE) -> Delivery:
        delivery = make_delivery(to, payload, ttl, self.net.now)
        delivery.stream = stream
        self.messaging.send(delivery.ident, delivery, self.net.now)
        return delivery

    def send_persistent(self, to: str, payload: bytes, ttl: float | None = None, stream: Stream = DURABLE) -> Delivery:
        delivery = self.number(to, payload, ttl, stream)
        self.store(delivery, ttl)
        return delivery

    def number(self, to: str, payload: bytes, ttl: float | None = None, stream: Stream = DURABLE) -> Delivery:
        """The first half of sending persistently."""
        delivery = make_delivery(to, payload, ttl, self.net.now, persistent=True)
        delivery.stream = stream
        self._epoch = self.messaging.storage_sync.number(to, [delivery])
        return delivery

    def store(self, delivery: Delivery, ttl: float | None = None) -> None:
        """The second half."""
        assert self.storage is not None
        assert delivery.data is not None
        stored_at = self.messaging.storage_sync.stored_time(self.net.now, self.net.wall_now)
        message = StoredMessage(delivery.seq, delivery.uuid, delivery.data, stored_at, ttl)
        self.storage.append([Append(delivery.ident, self._epoch, [message], delivery.stream)])
        self.messaging.send_stored(delivery.ident, [delivery], self.net.now)

    def end(self) -> None:
        """End the process in order."""
        self.act()
        self.messaging.sessions.close_all("terminated", self.net.now)

    def answer(self, count: int = 1 << 30) -> bool:
        """Let the storage carry out, and answer, its next requests; returns whether there were any."""
        done = False
        while self.requests and count > 0:
            self._carry_out(self.requests.popleft())
            count -= 1
            done = True
        return done

    def _carry_out(self, request: events.StorageRequest) -> None:
        assert self.storage is not None
        self.node.on_storage(request, request.carry_out(self.storage), self.net.now, self.net.wall_now)

    def act(self) -> bool:
        """Let the node do what there is to do, and do the rest; returns whether there was anything."""
        if not (self.messaging.has_pending_work or self.given_up or self.requests or self.queue):
            return False
        self.moved = False
        while self.given_up:
            number, reason = self.given_up.popleft()
            if number in self.ends:
                self.ends[number].closing = True
                self.ends[number].lose(reason)
        work = self.node.process_pending(self.net.now)
        self.awaited += work.awaited
        for event in work.dispatch:
            # The node has ended a connection for a fault of its own: a defect, where the test does not play one.
            if isinstance(event, events.ErrorReported) and type(event.error) is NetcommError and not self.has_faults:
                raise AssertionError(event.error)
        self.events += work.dispatch
        self.events += work.storage
        self.requests += work.storage
        self.queue += [event for event in work.dispatch if isinstance(event, events.Received)]
        moved = self.moved or work.awaited or bool(work.dispatch or work.storage)
        if self.storing and self.answer():
            moved = True
        if self.queue and not self.holding:
            moved = True
            self.hand_over()
        return moved

    def hand_over(self, count: int = 1 << 30) -> None:
        """Let the callbacks of the next `count` messages return."""
        while self.queue and count > 0:
            first = self.queue[0]
            start, stop = first.handled, min(len(first.items), first.handled + count)
            for seq, _, _, _, payload, _ in first.items[start:stop]:
                redelivered = first.stream is not None and seq < first.redelivered_below
                self.received.append((first.ident, payload, redelivered))
            self.node.on_handled(first, stop, self.net.now)
            count -= stop - start
            if stop == len(first.items):
                self.queue.popleft()

    # -- What the node asks of its connections

    def has_room(self, number: int) -> bool:
        end = self.ends.get(number)
        return end is not None and len(end.out) < self.net.high

    def write(self, number: int, buffers: list[bytes]) -> None:
        self.moved = True
        self.ends[number].write(b"".join(buffers))

    def flush(self, number: int) -> None:
        pass  # `out` takes everything

    def close(self, number: int, farewell: list[bytes]) -> None:
        self.moved = True
        end = self.ends.pop(number, None)
        if end is not None:
            end.write(b"".join(farewell))
            end.closing = end.gone = True

    def abort(self, number: int, reason: str) -> None:
        self.moved = True
        self.given_up.append((number, reason))

    def receive_into(self, number: int, buffer: memoryview) -> None:
        self.ends[number].buffer = buffer

    def pause(self, number: int, paused: bool) -> None:
        self.moved = True
        if number in self.ends:
            self.ends[number].paused = paused

    def established(self, number: int) -> None:
        pass  # it concerns connectors

    # -- What has happened

    def happened(self, kind: type) -> list[events.Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.received]


class Wire:
    """Two ends, and the bytes on their way."""

    def __init__(self, one: End, other: End) -> None:
        self.one = one
        self.other = other
        self.silent = False  # nothing arrives, and nobody notices

    def step(self) -> bool:
        moved = self.move(self.one, self.other)
        return self.move(self.other, self.one) or moved

    def move(self, source: End, target: End) -> bool:
        """Let a chunk of what one end has said arrive at the other; returns whether anything happened."""
        if self.silent:
            return False
        if source.out:
            if target.paused and not target.gone:
                return False
            size = source.host.net.chunk_size()
            chunk = bytes(source.out[:size])
            del source.out[:size]
            target.feed(chunk)
            if not source.gone:
                source.host.tell(Writable(source.number))
            return True
        if source.closing and not target.gone:
            target.lose("closed by the other side")
            return True
        return False

    def cut(self) -> None:
        """Lose the bytes on their way, and let both ends notice."""
        self.silent = True
        self.one.lose()
        self.other.lose()


class Net:
    """Hosts, wires, and the time."""

    def __init__(self, seed: int | None = None, max_chunk: int = 1 << 20) -> None:
        self.now = 1000.0
        self.wall_offset = 1.7e9
        self.random = random.Random(seed)
        self.max_chunk = max_chunk
        self.high = 64 * 1024
        self.budget = 16 * 1024
        self.hosts: list[Host] = []
        self.wires: list[Wire] = []
        self._last_number = 0
        self._last_boot = 0

    def new_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def chunk_size(self) -> int:
        return self.random.randint(1, self.max_chunk)

    @property
    def wall_now(self) -> float:
        return self.now + self.wall_offset

    def host(
        self,
        name: str,
        limits: Limits | None = None,
        storage: MemoryQueueStorage | None = None,
        made_up: bool = False,
    ) -> Host:
        self._last_boot += 1
        host = Host(self, name, limits if limits is not None else Limits(), self._last_boot, storage, made_up)
        self.hosts.append(host)
        return host

    def restart(self, host: Host) -> Host:
        """Let a host's process die, and start it again: only its storage is left, and its connections are cut."""
        self.hosts.remove(host)
        for wire in self.wires:
            for end, far in ((wire.one, wire.other), (wire.other, wire.one)):
                if end.host is host:
                    wire.silent = True
                    end.gone = True
                    far.lose("reset")
        return self.host(host.name, host.limits, host.storage)

    def connect(self, one: Host, other: Host, connector: int = 1) -> Wire:
        wire = Wire(one.open(connector), other.open())
        self.wires.append(wire)
        return wire

    def raw(self, host: Host, connector: int = 0) -> End:
        """A connection whose other side is played by the test, which feeds it packets."""
        return host.open(connector)

    def exchange(self, end: End, *chunks: bytes) -> list[tuple[int, bytes]]:
        """Feed chunks to a raw connection; returns the packets that came back."""
        for chunk in chunks:
            end.feed(chunk)
        answer = b""
        self.settle()
        while end.out:
            answer += bytes(end.out)
            end.out.clear()
            end.host.tell(Writable(end.number))
            self.settle()
        return packets(answer)

    def step(self) -> bool:
        """Let every host act and every wire move a chunk; returns whether anything happened."""
        moved = False
        for host in self.hosts:
            moved = host.act() or moved
        for wire in self.wires:
            moved = wire.step() or moved
        return moved

    def settle(self) -> None:
        """Go on until nothing happens any more."""
        for _ in range(100_000):
            if not self.step():
                return
        raise AssertionError("it never ends")

    def advance(self, seconds: float) -> None:
        """Let the time pass, and everything happen that falls due meanwhile."""
        until = self.now + seconds
        for _ in range(100_000):
            self.settle()
            due = [when for host in self.hosts if (when := host.messaging.deadline()) is not None]
            when = min(due, default=until)
            self.now = max(self.now, min(when, until))
            if when > until or not due:
                return
            for host in self.hosts:
                if (its := host.messaging.deadline()) is not None and its <= self.now:
                    host.node.tick(self.now)
        raise AssertionError("time does not get on")


def pair(net: Net, limits: Limits | None = None, other_limits: Limits | None = None) -> tuple[Host, Host, Wire]:
    one, other = net.host("a", limits), net.host("b", other_limits if other_limits is not None else limits)
    wire_ = net.connect(one, other)
    net.settle()
    return one, other, wire_


def kinds(answer: list[tuple[int, bytes]]) -> list[int]:
    return [kind for kind, _ in answer]


def established_raw(net: Net, host: Host, name: str = "b", boot: bytes = b"1" * 16, connector: int = 1) -> End:
    end = net.raw(host)
    net.exchange(end, netcomm_handshake(name, boot=boot, connector=connector) + begin())
    return end


def warnings(caplog: pytest.LogCaptureFixture, part: str = "", level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level and part in record.getMessage()]


def peer_stats(host: Host, ident: str) -> PeerStats:
    return host.messaging.peers.stats()[ident]
