"""Two peers, what is said between them, and a stranger: all that happens is told by a script of bytes.

Each step of a script is two bytes, what and how; some take more. `check_world` runs a script, and may then let
the network be well again. What must hold then:

- Every message has ended, unless bytes were changed on their way, or the stranger has spoken for one of the two.
- Where neither happened, and the stranger has not called itself like one of the two: each message was handed over
  once and in order, or has expired; and nobody but the stranger has broken the protocol.
- What waits for callbacks is bounded by the window, and one read; what waits for an extension is, too.

Both have an extension that takes the streams of the bus; that of the first peer comes late, where the script says so.
"""

from collections import deque
from enum import IntEnum, auto

from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import BULK, DURABLE, VOLATILE, Delivery, DeliveryState, Stream
from netcomm.protocol.events import ErrorReported, Received
from netcomm.protocol.extension import Extension, NodePort
from netcomm.protocol.frames import packet_size
from tests.fuzz.codec import LIMITS
from tests.unit import helpers
from tests.unit.helpers import End, Host, Net, Wire

# The bits of a script's first byte that ask for healing; rare ones, since it costs more than most scripts.
HEAL = 7
# What names b's streams to a: a stranger that knows one can make a pass over what b sends.
_EPOCHS_OF_B = [(2 * helpers.FIRST_EPOCH + number).to_bytes(8) for number in range(len(Stream))]
_ALL = 1 << 20

# Which streams `Step.USE` says.
_USES = ((VOLATILE, DURABLE), (Stream.BUS_VOLATILE, Stream.BUS_DURABLE), (BULK, Stream.BUS_DURABLE))

# What may wait for callbacks before nothing more is taken of a peer, and what one read can add to it: what is left of a
# packet, and the longest chunk. An empty message takes 4 bytes of a BATCH, and counts as a packet by itself.
_MAX_WAITING_BYTES = LIMITS.window_bytes + LIMITS.max_frame_bytes
_MAX_READ_BYTES = (4 + LIMITS.max_frame_bytes + 0x100) * packet_size(0) // 4

_SUBJECT = b"\0\x0d\0\0\5\1s" + bytes(8)  # and an id

# What a stranger can say with one step.
FRAMES = [
    helpers.netcomm_handshake("b"),
    helpers.netcomm_handshake("stranger", boot=b"S" * 16, connector=1),
    helpers.legacy_handshake("b"),
    helpers.legacy_handshake("stranger"),
    helpers.netcomm_handshake("a"),
    helpers.netcomm_handshake("other", max_frame_bytes=33, window_bytes=1),
    helpers.begin(),
    helpers.begin(epoch=7, first=2, sent_below=3, stream=1),
    helpers.begin(epoch=8, first=2**64 - 1, sent_below=2**64 - 1),
    helpers.data(0, b"x"),
    helpers.data(1, b"y" * 30),
    helpers.data(2, b"z", flags=1, ttl=1),
    helpers.data(2**64 - 1, b"last"),
    helpers.ack(0),
    helpers.ack(1),
    helpers.ack(0, received=3),
    helpers.ack(1, stream=1, epoch=helpers.FIRST_EPOCH + 1, received=2),
    helpers.ack(2**64 - 1, stream=1, epoch=helpers.FIRST_EPOCH + 1),
    helpers.skip(4),
    helpers.skip(2**64 - 1, stream=1),
    helpers.packet(helpers.PING),
    helpers.packet(helpers.PONG) * 3,
    helpers.message(b"legacy", flags=1),
    helpers.refuse(1, "go away"),
    helpers.packet(helpers.INCOMPATIBLE),
    helpers.packet(0x8F, b"later"),
    bytes(4),
    helpers.batch(0, b"x", b"", b"y" * 30),
    helpers.batch(2, b"z", b"last but one", flags=1, ttl=1),
    helpers.batch(2**64 - 2, b"last but one", b"last"),
    helpers.batch(5),
    helpers.netcomm_handshake("b", flags=1),
    helpers.netcomm_handshake("stranger", boot=b"G" * 16, flags=1),
    helpers.goodbye(),
    helpers.data(0, _SUBJECT + b"x", flags=8),
    helpers.data(1, _SUBJECT[:-1], flags=8),
    helpers.batch(0, b"x", b"y" * 30, flags=8, shared=_SUBJECT),
    helpers.batch(2, _SUBJECT + b"z", _SUBJECT, flags=0x11),
    helpers.begin(stream=4),
    helpers.begin(epoch=8, stream=2) + helpers.begin(epoch=9, first=3, sent_below=5, stream=5),
    helpers.data(0, b"bus", flags=4),
    helpers.data(3, b"bus", flags=5, ttl=1),
    helpers.data(0, b"piece", flags=2),
    helpers.batch(1, b"x", b"", flags=4),
    helpers.batch(4, _SUBJECT + b"z", _SUBJECT, flags=0x15),
    helpers.ack(1, stream=4, epoch=helpers.FIRST_EPOCH + 1),
    helpers.ack(0, stream=2, epoch=helpers.FIRST_EPOCH + 2, received=1),
    helpers.skip(5, stream=5),
    helpers.data(0, b"no such stream", flags=3),
]


class Step(IntEnum):
    """What a step's first byte says; its second byte is `how`."""

    SEND_A = 0  # lowest 5 bits: size; 0x20: it lives for a second; 0x40: not at all; 0x80: persistent
    SEND_B = auto()
    MOVE_TO_B = auto()  # how many bytes
    MOVE_TO_A = auto()
    CONNECT = auto()  # 1: b dials, else a
    CUT = auto()
    WAIT = auto()  # eighths of a second
    # 1: a's callbacks do not return; 2: b's; 4: a's storage does not answer; 8: a's extension takes its time; 16: b's
    HOLD = auto()
    HAND_OVER = auto()  # so many of a's callbacks return
    STRANGER_COMES = auto()  # 1: a has dialled it
    STRANGER_LEAVES = auto()
    STRANGER_SAYS = auto()  # which of FRAMES
    STRANGER_SAYS_RAW = auto()  # as many bytes of the script
    CHANGE = auto()  # 1: what is on its way to a, else to b: the next byte, by xor with the script's next
    EXCHANGE = auto()  # all that is on its way, to b and then to a
    USE = auto()  # from now on, messages are sent in the streams: 0: plain ones; 1: of the bus; 2: BULK, or of the bus
    ATTACH = auto()  # a's extension comes


class Taker(Extension):
    """Takes the streams of the bus, at once or when it is told to."""

    streams = (BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)

    def __init__(self) -> None:
        self.holding = False
        self.queue: deque[Received] = deque()
        self.received: list[tuple[str, bytes, bool]] = []  # as of a `Host`
        self.connected_idents: set[str] = set()
        self._node: NodePort | None = None

    def attached(self, node: NodePort, now: float) -> None:
        assert self._node is None
        self._node = node

    def connected(self, ident: str, now: float) -> None:
        assert ident not in self.connected_idents
        self.connected_idents.add(ident)

    def disconnected(self, ident: str, now: float) -> None:
        self.connected_idents.remove(ident)

    def receive(self, received: Received, now: float) -> None:
        assert received.stream in self.streams
        assert not received.handled
        self.queue.append(received)
        if not self.holding:
            self.hand_over(now)

    def hand_over(self, now: float) -> None:
        """Be done with all that waits."""
        while self.queue:
            assert self._node is not None
            received = self.queue.popleft()
            for seq, _, _, _, payload, _ in received.items:
                self.received.append((received.ident, payload, seq < received.redelivered_below))
            self._node.on_handled(received, len(received.payloads), now)


class World(Net):
    """The peers a, with a storage, and b, and what has become of them.

    tampered: bytes were changed; posed: the stranger has said b's name; guessed: and what names b's stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.piece = _ALL
        self.a = self.host("a", LIMITS, MemoryQueueStorage())
        self.b = self.host("b", LIMITS)
        self.link: Wire | None = None
        self.stranger: End | None = None
        self.strangers = 0
        self.tampered = self.posed = self.guessed = False
        self.heard = b""  # what the present stranger has said
        self.sent: dict[Host, list[tuple[Delivery, bytes]]] = {self.a: [], self.b: []}
        self.streams = (VOLATILE, DURABLE)  # for messages that are kept in memory, and for persistent ones
        self.takers = {self.a: Taker(), self.b: Taker()}
        self.attached = {self.b}
        self.b.node.attach(self.takers[self.b], self.now)

    def chunk_size(self) -> int:
        return self.piece

    def run(self, script: bytes) -> None:
        position = 0
        while position + 1 < len(script):
            step, how = script[position], script[position + 1]
            position += 2
            position += self._take(step % len(Step), how, script[position:])
            self.a.act()
            self.b.act()
        self._check_bounds()

    def _take(self, step: int, how: int, rest: bytes) -> int:
        """Do one step; returns how many bytes it took of the rest."""
        match step:
            case Step.SEND_A:
                self._send(self.a, "b", how)
            case Step.SEND_B:
                self._send(self.b, "a", how)
            case Step.MOVE_TO_B:
                self._move(self.b, how)
            case Step.MOVE_TO_A:
                self._move(self.a, how)
            case Step.CONNECT:
                if self.link is None or (self.link.one.gone and self.link.other.gone):
                    self._connect(bool(how & 1))
            case Step.CUT:
                if self.link is not None:
                    self.link.cut()
            case Step.WAIT:
                self.now += how / 8
                self.a.node.tick(self.now)
                self.b.node.tick(self.now)
            case Step.HOLD:
                self.a.holding, self.b.holding, self.a.storing = bool(how & 1), bool(how & 2), not how & 4
                self._check_bounds()
                self._hold_takers(bool(how & 8), bool(how & 16))
            case Step.HAND_OVER:
                self._check_bounds()
                self.a.hand_over(how)
            case Step.STRANGER_COMES:
                self._stranger_leaves()
                self._stranger_comes(how & 1)
            case Step.STRANGER_LEAVES:
                self._stranger_leaves()
            case Step.STRANGER_SAYS:
                self._stranger_says(FRAMES[how % len(FRAMES)])
            case Step.STRANGER_SAYS_RAW:
                self._stranger_says(rest[:how])
                return how
            case Step.CHANGE:
                self._change(self.a if how & 1 else self.b, rest)
                return 1
            case Step.EXCHANGE:
                self._move(self.b, _ALL)
                self.b.act()
                self._move(self.a, _ALL)
            case Step.USE:
                self.streams = _USES[how % len(_USES)]
            case Step.ATTACH:
                self._attach()
        return 0

    # -- The two --------------------------------------------------------------------------------------------------

    def _send(self, host: Host, to: str, how: int) -> None:
        payload = len(self.sent[host]).to_bytes(2) + bytes(how & 0x1F)
        ttl = 0.0 if how & 0x40 else 1.0 if how & 0x20 else None
        volatile, durable = self.streams
        if host.storage is not None and how & 0x80:
            delivery = host.send_persistent(to, payload, ttl, durable)
        elif host.messaging.peers.has_room(to, volatile, packet_size(len(payload))):
            delivery = host.send(to, payload, ttl, volatile)
        else:
            return
        self.sent[host].append((delivery, payload))

    def _hold_takers(self, a_holds: bool, b_holds: bool) -> None:
        for host, holds in ((self.a, a_holds), (self.b, b_holds)):
            taker = self.takers[host]
            taker.holding = holds
            if not holds:
                taker.hand_over(self.now)

    def _attach(self) -> None:
        if self.a not in self.attached:
            self.attached.add(self.a)
            self.a.node.attach(self.takers[self.a], self.now)

    def _connect(self, b_dials: bool) -> None:
        self.wires.clear()
        one, other = (self.b, self.a) if b_dials else (self.a, self.b)
        self.link = self.connect(one, other)

    def _ends(self, target: Host) -> tuple[End, End] | None:
        """The ends of the link from the other peer to this one, if there ever was one."""
        if self.link is None:
            return None
        one, other = self.link.one, self.link.other
        return (one, other) if other.host is target else (other, one)

    def _move(self, target: Host, count: int) -> None:
        ends = self._ends(target)
        if self.link is not None and ends is not None:
            self.piece = max(1, count)
            self.link.move(*ends)
            self.piece = _ALL

    def _change(self, target: Host, rest: bytes) -> None:
        ends = self._ends(target)
        if ends is not None and ends[0].out and rest and rest[0]:
            ends[0].out[0] ^= rest[0]
            self.tampered = True

    # -- The stranger ---------------------------------------------------------------------------------------------

    def _stranger_comes(self, connector: int) -> None:
        self.strangers += 1
        self.heard = b""
        self.stranger = self.raw(self.a, connector)

    def _stranger_leaves(self) -> None:
        if self.stranger is not None:
            self.stranger.lose()

    def _stranger_says(self, chunk: bytes) -> None:
        if self.stranger is None or self.stranger.gone:
            self._stranger_comes(0)
        end = self.stranger
        assert end is not None
        if end.paused:
            return
        self.heard += chunk
        self.posed = self.posed or helpers.ident("b") in self.heard
        self.guessed = self.guessed or any(epoch in self.heard for epoch in _EPOCHS_OF_B)
        end.feed(chunk)
        end.out.clear()

    # -- What must hold -------------------------------------------------------------------------------------------

    def _check_bounds(self) -> None:
        for host in (self.a, self.b):
            waiting: dict[tuple[str, Stream | None], int] = {}
            for received in (*host.queue, *self.takers[host].queue):
                size = sum(packet_size(len(payload)) for payload in received.payloads[received.handled :])
                key = received.ident, received.stream
                waiting[key] = waiting.get(key, 0) + size
            for (ident, stream), size in waiting.items():
                most = _MAX_WAITING_BYTES + _MAX_READ_BYTES
                assert size <= most, f"{size} bytes of {ident!r} wait in {stream} at {host.name!r}"

    def heal(self) -> None:
        """Let the network, the storage and the callbacks be well, and look at what has become of the messages."""
        self._stranger_leaves()
        if self.link is not None:
            self.link.cut()
        self.a.holding = self.b.holding = False
        self._attach()
        self._hold_takers(False, False)
        self.a.storing = True
        self.now += 1.0  # what has a time to live has outlived it
        self._connect(False)
        self.advance(0.0)
        for host, taker in self.takers.items():
            assert taker.connected_idents == set(host.messaging.peers.connected_idents())
        if self.tampered or self.guessed:
            return
        for host, name in ((self.a, "b"), (self.b, "a")):
            for delivery, _ in self.sent[host]:
                assert delivery.done, f"{delivery!r} never ends"
            stats = host.messaging.peers.stats()[name]
            assert (stats.connected, stats.queued, stats.in_flight) == (True, 0, 0)
        if self.posed or self.strangers > LIMITS.max_idle_peers - 2:  # b may have been forgotten
            return
        self._check_handed_over(self.a, self.b)
        self._check_handed_over(self.b, self.a)
        assert not [event for event in self.b.happened(ErrorReported) if "protocol error" in str(event)]

    def _check_handed_over(self, sender: Host, receiver: Host) -> None:
        streams = {payload: delivery.stream for delivery, payload in self.sent[sender]}
        for stream in Stream:
            expected = []
            for delivery, payload in self.sent[sender]:
                if delivery.stream is stream and delivery.state is not DeliveryState.EXPIRED:
                    assert delivery.state is DeliveryState.DELIVERED, delivery
                    expected.append(payload)
            received = receiver.received if stream <= DURABLE else self.takers[receiver].received
            got = [
                (payload, again)
                for ident, payload, again in received
                if ident == sender.name and streams.get(payload) is stream
            ]
            assert got == [(payload, False) for payload in expected], f"{got} of {expected} were handed over"


def check_world(script: bytes) -> None:
    """Run a script, and see what holds then and, where its first byte says so, in the end."""
    world = World()
    world.run(script[1:])
    if script[0] & HEAL == HEAL and (world.sent[world.a] or world.sent[world.b]):
        world.heal()
