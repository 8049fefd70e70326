"""One schedule: a world made by a seed, messages and faults in it, and the oracle's verdict."""

import logging
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

from netcomm.errors import StorageError
from netcomm.limits import Limits
from netcomm.message import BULK, DURABLE, VOLATILE, Stream
from netcomm.protocol import decode, durable_out_stream, encode, storage_sync
from netcomm.protocol.envelope import Envelope, pack_headers
from tests.simulation.host import CALLBACKS, STREAMS
from tests.simulation.legacy import LegacyProcess
from tests.simulation.oracle import Oracle, Sent
from tests.simulation.process import STARVING, STREAM_TRAPS, TRAPS, Process
from tests.simulation.stores import SimulatedStorage
from tests.simulation.world import Connection, End, Violation, World

MESSAGES = 125
# Of so many schedules after the other, none has streams of the bus; then of as many, each.
FIRST_WITH_STREAMS = 500
FAULTS = 28
_BUSY_S = 12.0
_HEALING_S = 60.0  # ten times what any schedule has taken
_AFTERMATH_S = 3.0  # then no fault has consequences that still are to come
_INDEPENDENT_S = 20.0  # many times what a few messages take where all is well
_BATCH_FRAME_BYTES = 200
_FIND_COUNT = 3


class Streams:
    """How the streams of the bus are used, in a world that uses them.

    Chance is another one here, so that other schedules stay as they are.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._plain_share = rng.choice((0.1, 0.3, 0.6))  # of the messages that are sent in the plain streams
        self._bulk_share = rng.choice((0.1, 0.5))  # of the other ones, where they are not persistent
        self._late_share = rng.choice((0.0, 0.0, 0.3))

    def choose(self, persistent: bool) -> Stream:
        """The stream of messages that are sent together."""
        if self.rng.random() < self._plain_share:
            return DURABLE if persistent else VOLATILE
        if persistent:
            return Stream.BUS_DURABLE
        return BULK if self.rng.random() < self._bulk_share else Stream.BUS_VOLATILE

    def attached_after(self) -> float:
        """So many seconds after its start, the extension of a process is attached."""
        return self.rng.uniform(0.01, 3.0) if self.rng.random() < self._late_share else 0.0


class Node:
    """A place where one process of an ident runs after the other, with a storage or without."""

    def __init__(
        self,
        schedule: "Schedule",
        name: str,
        ident: str,
        limits: Limits,
        storage: bool,
        legacy: bool,
        made_up: bool = False,
    ):
        self.name = name
        self.ident = ident
        self.limits = limits
        self.legacy = legacy
        self.made_up = made_up  # it has one process only
        self.impostor = name != ident
        self.world = schedule.world
        self.oracle = schedule.oracle
        self.world_nodes = schedule.nodes
        self.streams = schedule.streams
        self.held: dict[str, float] = {}  # streams by name, and what callbacks take: until when they are held back
        self.storage = SimulatedStorage(self.world.rng) if storage else None
        self.budget = self.world.rng.choice((100, 500, 3000))
        self.dials: list[Node] = []
        self.process: Any = None
        self.incarnation = 0
        self.wall_offset = 0.0
        self.dawdle_until = 0.0
        self.keeper_slow_until = 0.0
        self.storage_back_at = 0.0
        self.raises_until = 0.0
        self.first_trap: str | None = None  # for the process that comes next
        self.starves_at: str | None = None  # there is no memory for this step, once
        self.ends_when_challenged = False
        self.sends_when_renewed: Callable[[], None] | None = None
        self.forgets = False
        self.had_impostor = False
        self.clock_jumped = False
        self.gone = False  # for good
        self.said_goodbye = False
        self.discards: dict[str, int] = {}  # those of processes that have ended
        self.processes_seen: dict[int, Any] = {}  # so that their ids stay theirs
        self._backups: list[Any] = []
        self._rewinds: list[float] = []  # when a backup was restored

    @property
    def running(self) -> bool:
        return self.process is not None and bool(self.process.alive)

    def is_held(self, name: str) -> bool:
        """Whether messages are held back: of the stream of a name, or those that callbacks take."""
        return self.world.now < self.held.get(name, 0.0)

    def went_back_after(self, message: Sent) -> bool:
        """Whether the storage was restored from a backup since a message was sent."""
        return any(when >= message.sent_at for when in self._rewinds)

    @property
    def rewinds(self) -> int:
        return len(self._rewinds)

    @property
    def went_back(self) -> bool:
        return bool(self._rewinds)

    def start(self) -> None:
        if self.running or self.gone:
            return
        if self.storage is not None and self.storage.down:
            self.world.after(0.5, None, self.start)
            return
        self.incarnation += 1
        self.world.trace(f"{self.name}: starts, incarnation {self.incarnation}")
        self.process = (LegacyProcess if self.legacy else Process)(self, self.incarnation)
        for connector, target in enumerate(self.dials, 1):
            self.dial_later(self.process, connector, target)

    def kill(self, gently: bool = False, down_s: float | None = None) -> None:
        if not self.running:
            return
        self.world.trace(f"{self.name}: dies")
        self.gone = self.gone or self.made_up
        self.process.die(gently)
        rng = self.world.rng
        self.world.after(rng.choice((0.05, 0.5, 3.0)) * rng.random() if down_s is None else down_s, None, self.start)

    def storage_ready(self, seconds: float) -> bool:
        """Whether the storage has been well for so long."""
        assert self.storage is not None
        return not self.storage.down and self.world.now > max(self.storage_back_at, self.keeper_slow_until) + seconds

    def back_up(self) -> None:
        assert self.storage is not None
        self._backups.append(self.storage.backup())

    def restore(self, newest: bool = False) -> None:
        if self._backups and self.storage is not None:
            copy = self._backups[-1] if newest else self.world.rng.choice(self._backups)
            self.kill(down_s=0.2 * self.world.rng.random() if newest else None)
            self.storage.restore(copy)
            self._rewinds.append(self.world.now)

    def starves(self, step: str) -> bool:
        """Whether there is no memory for a step of the process, as the schedule says; so it is once."""
        if self.starves_at != step:
            return False
        self.starves_at = None
        return True

    def send_when_renewed(self) -> None:
        """A stream is being renewed; its user does not wait for that."""
        if self.sends_when_renewed is not None:
            self.world.after(0.0, None, self.sends_when_renewed)
            self.sends_when_renewed = None

    # Connectors

    def reconnect(self, process: Any, end: End) -> None:
        if end.connector and process.alive and not process.ending:
            self.dial_later(process, end.connector, end.target)

    def dial_later(self, process: Any, connector: int, target: "Node") -> None:
        delay = self.world.rng.choice((0.02, 0.1, 0.3)) * (0.5 + self.world.rng.random())
        self.world.after(delay, process, self._dial, process, connector, target)

    def _dial(self, process: Any, connector: int, target: "Node") -> None:
        if process.ending:
            return
        parted = self.world.parted(self.name, target.name) > self.world.now
        if parted or not target.running or target.process.ending:
            self.dial_later(process, connector, target)
        else:
            Connection(self.world, process, connector, target, target.process)


class Schedule:
    """What happens to whom when, made from a seed."""

    def __init__(self, seed: int, tracing: bool = False) -> None:
        self.seed = seed
        self.world = World(seed, tracing)
        self.rng = self.world.rng
        self.oracle = Oracle(self.world)
        self.nodes: dict[str, Node] = {}
        self.faults = 0
        self._impostors: list[Node] = []
        # Chance is another one here, too. In other schedules, those of remembered seeds among them, no message has an
        # envelope.
        self._envelope_rng = random.Random(f"envelopes {seed}")
        self._has_envelopes = seed % 7 == 5
        # Nor are there streams of the bus in schedules with low seeds.
        has_streams = seed % (2 * FIRST_WITH_STREAMS) >= FIRST_WITH_STREAMS
        self.streams = Streams(random.Random(f"streams {seed}")) if has_streams else None
        self._build()

    def _build(self) -> None:
        rng = self.rng
        count = rng.choice((2, 2, 3, 3, 4))
        forgets = rng.random() < 0.08
        names = [f"node{number}" for number in range(count)]
        legacy = rng.random() < 0.35
        if legacy:
            names.append("snake")
        for name in names:
            limits = Limits(
                max_frame_bytes=33 + (150 if name == "snake" else rng.choice((150, 300, 300))),
                window_bytes=rng.choice((150, 400, 1500, 6000)),
                handshake_s=3.0,
                keepalive_idle_s=rng.choice((1.0, 3.0)),
                keepalive_wait_s=1.0,
                max_idle_peers=1 if forgets else 10,
                max_queued_messages=rng.choice((5, 1000)),
                made_up_ident_away_s=2.0,
            )
            if self.streams is not None:
                limits = replace(limits, bulk_window_bytes=self.streams.rng.choice((150, 1000, 6000)))
            node = Node(self, name, name, limits, rng.random() < 0.75, name == "snake")
            node.forgets = forgets
            if node.legacy:
                node.storage = None
            self.nodes[name] = node
        nodes = list(self.nodes.values())
        # Each schedule has its own bent: what is rare over all of them is frequent in some.
        self._weights = [weight * rng.choice((0, 1, 1, 1, 6)) for weight in _FAULTS.values()]
        self.links: list[tuple[Node, Node]] = []
        for number, node in enumerate(nodes[1:], 1):
            others = nodes[:number]
            for other in {0: others[0], 1: rng.choice(others)}.values() if rng.random() < 0.5 else others[:1]:
                if (node, other) in self.links:
                    continue
                self.links.append((node, other))
                if rng.random() < 0.5:
                    node.dials.append(other)
                    if rng.random() < 0.2:
                        node.dials.append(other)  # a stand-by
                    if rng.random() < 0.25:
                        other.dials.append(node)
                else:
                    other.dials.append(node)
        self._slow_down()
        self._add_clients([node for node in nodes if not node.legacy])
        self.memory = (rng.choice((4, 10, 1000)), rng.choice((500, 5000)), rng.choice((2, 5)), rng.choice((2, 7, 50)))

    def _slow_down(self) -> None:
        """Let the line between two nodes be slow for a while, in some schedules, in one direction or both.

        Chance is another one here, so that other schedules stay as they are.
        """
        rng = random.Random(f"slow line {self.seed}")
        if rng.random() < 0.15:
            link = rng.choice(self.links)
            names = link[0].name, link[1].name
            directions = rng.choice(((names,), (names[::-1],), (names, names[::-1])))
            start, seconds = rng.uniform(0.0, 4.0), rng.choice((6.0, _BUSY_S))
            self.world.after(start, None, self._slow, directions, start + seconds)

    def _add_clients(self, servers: list[Node]) -> None:
        """Let peers come, in some schedules, whose idents were made up; some end, some are killed, some are long away.

        Chance is another one here, so that other schedules stay as they are.
        """
        rng = random.Random(f"clients {self.seed}")
        for number in range(rng.choice((0, 0, 1, 2, 3))):
            server = rng.choice(servers)
            limits = replace(server.limits, window_bytes=rng.choice((150, 400, 6000)))
            name = f"client{number}"
            client = Node(self, name, name, limits, rng.random() < 0.3, legacy=False, made_up=True)
            client.forgets = server.forgets
            client.dials += [server] * rng.choice((1, 1, 2))
            self.nodes[name] = client
            self.links += [(client, server)] * 2
            end_at = rng.uniform(2.0, 11.0)
            ends = (self._terminate_client, client.kill, self._take_away, self._take_away, None)
            if (end := rng.choice(ends)) == client.kill:
                self.world.after(end_at, None, client.kill)
            elif end is not None:
                self.world.after(end_at, None, end, client, server)

    def _terminate_client(self, client: Node, server: Node) -> None:
        if client.running:
            client.process.terminate()

    def _take_away(self, client: Node, server: Node) -> None:
        self.world.partitions[frozenset((client.name, server.name))] = self.world.now + 8.0

    def _slow(self, directions: Sequence[tuple[str, str]], until: float) -> None:
        self.world.trace(f"the line is slow: {directions}")
        for direction in directions:
            self.world.slow[direction] = until

    # -- Running ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Violation."""
        world, rng = self.world, self.rng
        with _small_sizes(*self.memory):
            for node in self.nodes.values():
                world.after(0.2 * rng.random(), None, node.start)
            left = MESSAGES
            while left > 0:
                size = min(left, rng.choice((1, 1, 2, 5, 12)))
                world.after(0.8 * _BUSY_S * rng.random(), None, self._send, size)
                left -= size
            self.faults = FAULTS + rng.randint(0, 10)
            for _ in range(self.faults):
                world.after(_BUSY_S * rng.random(), None, self._fault)
            if self.streams is not None:
                for _ in range(self.streams.rng.choice((0, 2, 4))):
                    world.after(_BUSY_S * self.streams.rng.random(), None, self._hold_back)
            world.after(1.0, None, self._check)
            world.run(_BUSY_S)
            self._heal()
            self._rest()
            if self.streams is not None and self.streams.rng.random() < 0.5:
                world.run(max(world.now, _BUSY_S + _AFTERMATH_S))
                self._rest()
                self._try_holding_back(self.streams)
                self._rest()
            self.oracle.at_rest(self.nodes)

    def _rest(self) -> None:
        """Run until nothing is left to be done."""
        until = self.world.now + _HEALING_S
        while not self._quiet():
            self._discard_for_strangers()
            if self.world.now >= until:
                raise Violation(f"stuck: {self._stuck()}")
            self.world.run(self.world.now + 0.5)

    def _try_holding_back(self, streams: Streams) -> None:
        """The world is well: a stream that is held back, with more in it than a window, holds up no other one."""
        rng, world = streams.rng, self.world
        links = [pair for link in self.links for pair in (link, link[::-1])]
        pairs = [
            (sender, receiver)
            for sender, receiver in links
            if not (sender.legacy or receiver.legacy or sender.gone or receiver.gone)
        ]
        if not pairs:
            return
        sender, receiver = rng.choice(pairs)
        all_streams = [stream for stream in Stream if sender.storage is not None or not stream.durable]
        held = rng.choice(all_streams)
        name = CALLBACKS if held <= DURABLE else held.name
        for node in self.nodes.values():  # a storage may have gone back after the world was healed
            if node.running:
                node.process.trap = None
        receiver.held[name] = world.now + 2 * _HEALING_S
        world.trace(f"{receiver.name}: holds back {name}")
        size = sender.limits.max_frame_bytes - 33
        count = min(sender.limits.window_bytes, receiver.limits.window_bytes) // size + 3
        behind = [self.oracle.new_message(receiver.ident, size, None, held) for _ in range(count)]
        sender.process.send(behind, release=0.0)
        world.run(world.now + 1.0)
        others = [stream for stream in all_streams if (stream <= DURABLE) != (held <= DURABLE) or stream > DURABLE]
        messages = [
            self.oracle.new_message(receiver.ident, 24, None, stream)
            for stream in others
            if stream is not held
            for _ in range(3)
        ]
        sender.process.send(messages, release=0.0)
        until = world.now + _INDEPENDENT_S
        while world.now < until and not all(message.delivered for message in messages):
            world.run(world.now + 0.5)
        for message in messages:
            if not message.delivered:
                raise Violation(f"{message} waits, and only {name} is held back")
        receiver.held.clear()

    def _hold_back(self) -> None:
        """A node holds a stream back for a while, all those of the bus, or what callbacks take."""
        assert self.streams is not None
        rng = self.streams.rng
        node = rng.choice(list(self.nodes.values()))
        names = [stream.name for stream in STREAMS]
        held = rng.choice(([CALLBACKS], names, names[:1], names[1:2], names[2:]))
        self.world.trace(f"{node.name}: holds back {held}")
        for name in held:
            node.held[name] = self.world.now + rng.choice((0.5, 2.0, 5.0))

    def _check(self) -> None:
        self.oracle.check_expiries()
        self.world.after(1.0, None, self._check)

    def _send(self, size: int) -> None:
        rng = self.rng
        link = rng.choice(self.links)
        node, other = link if rng.random() < 0.5 else link[::-1]
        if node.running and not node.process.ending:
            self._send_from(node, other, size, node.storage is not None and rng.random() < 0.6)
        else:
            self.world.after(0.5, None, self._send, size)

    def _send_from(self, node: Node, other: Node, size: int, persistent: bool) -> None:
        rng = self.rng
        ttl = rng.choice((None, None, None, 0.05, 1.0, 4.0))
        if not persistent and rng.random() < 0.1:
            ttl = 0.0
        room = node.limits.max_frame_bytes - 33
        stream = DURABLE if persistent else VOLATILE
        if self.streams is not None and not node.legacy:
            stream = self.streams.choose(persistent)
        messages = [
            self.oracle.new_message(
                other.ident, room if rng.random() < 0.05 else rng.choice((0, 5, 24, 104)), ttl, stream
            )
            for _ in range(size)
        ]
        if self._has_envelopes and self._envelope_rng.random() < 0.6:
            self._put_into_envelopes(messages, room)
        node.process.send(messages, release=rng.choice((0.0, 0.5)))

    def _put_into_envelopes(self, messages: list[Sent], room: int) -> None:
        """Let messages that are sent together share an envelope, whose numbers count on from one to the next.

        room: how many bytes of data and envelope a frame has.
        """
        rng = self._envelope_rng
        number = messages[0].number
        envelope = Envelope(
            subject=rng.choice((None, f"about {number}", "weather")),
            id=rng.choice((None, number, 2**64 - 3)),
            ref=rng.choice((None, 7 * number)),
            packed_headers=rng.choice((b"", pack_headers({"trace": f"{number}"}))),
        )
        for place, message in enumerate(messages):
            message.put_into(envelope.behind(place))
            message.data = message.data[: room - message.size + len(message.data)]

    def _quiet(self) -> bool:
        return all(node.gone or (node.running and node.process.quiet()) for node in self.nodes.values())

    def _discard_for_strangers(self) -> None:
        """Users give up what waits for clients that are gone, and that their processes have never met, or forgot."""
        for client in [node for node in self.nodes.values() if node.made_up and node.gone]:
            for node in self.nodes.values():
                if not node.running or node.legacy:
                    continue
                if node.forgets or client.ident not in node.process.met:
                    node.process.discard(client.ident)

    def _stuck(self) -> str:
        found = []
        for node in self.nodes.values():
            if node.gone:
                continue
            if not node.running:
                found.append(f"{node.name} does not run")
            elif not node.process.quiet():
                if node.legacy:
                    found.append(f"{node.name} is busy")
                    continue
                stats = node.process.messaging.peers.stats()
                waiting = {ident: (peer.connected, peer.queued) for ident, peer in stats.items() if peer.queued}
                found.append(f"{node.name} has (connected, queued) {waiting}")
        return "; ".join(found)

    def _heal(self) -> None:
        world = self.world
        world.trace("the world is healed")
        world.partitions.clear()
        world.slow.clear()
        world.dribble_until = 0.0
        for node in self._impostors:
            node.gone = True
            node.kill(gently=True)
        for node in self.nodes.values():
            node.dawdle_until = node.keeper_slow_until = node.raises_until = 0.0
            if node.storage is not None:
                self._storage_up(node)
            node.first_trap = node.starves_at = node.sends_when_renewed = None
            node.held.clear()
            node.ends_when_challenged = False
            if node.running:
                node.process.trap = None
            node.start()
        for connection in world.connections:
            for end in connection.ends:
                end.incoming.hole_until = 0.0

    # -- Faults -----------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        (fault,) = self.rng.choices(list(_FAULTS), self._weights)
        node = self.rng.choice(list(self.nodes.values()))
        self.world.trace(f"fault: {fault.__name__.removeprefix('_')} ({node.name})")
        fault(self, node)

    def _some_connection(self) -> Connection | None:
        living = [connection for connection in self.world.connections if not connection.over]
        return self.rng.choice(living) if living else None

    def _cut(self, node: Node) -> None:
        if (connection := self._some_connection()) is not None:
            connection.cut()

    def _half_close(self, node: Node) -> None:
        if (connection := self._some_connection()) is not None:
            self.rng.choice(connection.ends).incoming.end()

    def _blackhole(self, node: Node) -> None:
        if (connection := self._some_connection()) is not None:
            for end in self.rng.choice((connection.ends, connection.ends[:1], connection.ends[1:])):
                end.incoming.hole_until = self.world.now + self.rng.choice((0.2, 2.0, 8.0))

    def _part(self, node: Node) -> None:
        link = self.rng.choice(self.links)
        until = self.world.now + self.rng.choice((0.2, 1.0, 6.0))
        self.world.partitions[frozenset((link[0].name, link[1].name))] = until

    def _give_up(self, node: Node) -> None:
        """The owner of a connection leaves it, and dials again before the other side has noticed."""
        ends = [end for end in node.process.ends.values() if end.connector] if node.running else []
        if ends:
            node.process.abandon_connection(self.rng.choice(ends))
            if self.rng.random() < 0.3:  # and so with the next one, which is young then
                self.world.after(0.3 * self.rng.random(), None, self._give_up, node)

    def _dribble(self, node: Node) -> None:
        self.world.dribble_until = self.world.now + 0.3

    def _kill(self, node: Node) -> None:
        node.kill()

    def _kill_both(self, node: Node) -> None:
        for end in self.rng.choice(self.links):
            end.kill()

    def _trap(self, node: Node) -> None:
        if node.running:
            node.process.trap = self.rng.choice(TRAPS if self.streams is None else STREAM_TRAPS)

    def _terminate(self, node: Node) -> None:
        if self.rng.random() < 0.7:  # as soon as a second connection of an ident waits
            node.ends_when_challenged = True
        elif node.running:
            node.process.terminate()

    def _storage_down(self, node: Node) -> None:
        if node.storage is not None:
            node.storage.down = True
            node.storage.lies = self.rng.choice((0.0, 0.5))
            self.world.after(self.rng.choice((0.1, 0.5, 3.0)), None, self._storage_up, node)

    def _storage_up(self, node: Node) -> None:
        assert node.storage is not None
        node.storage.down = False
        node.storage_back_at = self.world.now

    def _storage_slow(self, node: Node) -> None:
        node.keeper_slow_until = self.world.now + self.rng.choice((1.0, 4.0))

    def _back_up(self, node: Node) -> None:
        if node.storage is not None:
            node.back_up()

    def _restore(self, node: Node) -> None:
        node.restore()

    def _rewind(self, node: Node) -> None:
        """The storage loses its last moments, while what was sent in them still waits for the receiver's callbacks."""
        link = self.rng.choice(self.links)
        node, other = link if self.rng.random() < 0.5 else link[::-1]
        if node.storage is not None and node.running and not node.process.ending:
            node.back_up()
            other.dawdle_until = self.world.now + 5.0
            self._send_from(node, other, self.rng.choice((3, 6, 12)), True)
            for _ in range(self.rng.choice((1, 2))):
                self.world.after(self.rng.choice((0.3, 1.0, 2.0)), None, self._rewound, node, other)

    def _rewound(self, node: Node, other: Node) -> None:
        node.restore(newest=True)
        node.first_trap = self.rng.choice((None, "written anew"))
        node.sends_when_renewed = partial(self._send_soon, node, other)
        for _ in range(self.rng.choice((0, 1, 2))):
            self._send_soon(node, other)

    def _send_soon(self, node: Node, other: Node) -> None:
        if node.running and not node.process.ending:
            self._send_from(node, other, self.rng.choice((2, 6)), True)
        elif self.world.now < _BUSY_S:
            self.world.after(0.1 * self.rng.random(), None, self._send_soon, node, other)

    def _clock_jump(self, node: Node) -> None:
        node.wall_offset += self.rng.choice((-3600.0, -3.0, -0.5, 0.5, 3.0, 3600.0))
        node.clock_jumped = True

    def _dawdle(self, node: Node) -> None:
        node.dawdle_until = self.world.now + self.rng.choice((0.5, 3.0))

    def _discard(self, node: Node) -> None:
        """A user gives up what waits for somebody."""
        node, other = self.rng.choice(self.links)
        if self.rng.random() < 0.5:
            node, other = other, node
        if node.running and not node.legacy and not node.process.ending:
            node.process.discard(other.ident)

    def _raise(self, node: Node) -> None:
        node.raises_until = self.world.now + 1.0

    def _starve(self, node: Node) -> None:
        node.starves_at = self.rng.choice(STARVING)

    def _impostor(self, node: Node) -> None:
        """Another process says the same ident, by mistake."""
        pairs = [pair for link in self.links for pair in (link, link[::-1])]
        victims = [pair for pair in pairs if not (pair[0].legacy or pair[0].made_up or pair[1].made_up)]
        if not victims or self._impostors or self.rng.random() < 0.6:
            return
        victim, other = self.rng.choice(victims)
        impostor = Node(self, f"impostor of {victim.name}", victim.ident, victim.limits, False, False)
        impostor.dials.append(other)
        victim.had_impostor = True
        self._impostors.append(impostor)
        impostor.start()
        self.world.after(2.0, None, self._unmask, impostor)

    def _unmask(self, impostor: Node) -> None:
        impostor.gone = True
        impostor.kill(gently=True)


_FAULTS: dict[Callable[[Schedule, Node], None], int] = {
    Schedule._cut: 8,
    Schedule._half_close: 2,
    Schedule._starve: 2,
    Schedule._blackhole: 3,
    Schedule._part: 2,
    Schedule._give_up: 3,
    Schedule._dribble: 2,
    Schedule._kill: 4,
    Schedule._kill_both: 1,
    Schedule._trap: 8,
    Schedule._terminate: 3,
    Schedule._storage_down: 2,
    Schedule._storage_slow: 2,
    Schedule._back_up: 3,
    Schedule._restore: 3,
    Schedule._rewind: 2,
    Schedule._clock_jump: 1,
    Schedule._dawdle: 3,
    Schedule._raise: 1,
    Schedule._discard: 2,
    Schedule._impostor: 1,
}


@contextmanager
def _small_sizes(messages: int, size: int, load: int, mark: int) -> Iterator[None]:
    """Let so little of a durable stream be in memory, and in a frame, that a short schedule fills it."""
    small = {"_MAX_LOADED": messages, "_MAX_LOADED_BYTES": size, "_LOAD_COUNT": load, "_MARK_AHEAD": mark}
    level = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)
        with (
            patch.multiple(durable_out_stream, **small),
            patch.object(storage_sync, "_FIND_COUNT", _FIND_COUNT),
            patch.object(encode, "_MAX_BATCH_FRAME_BYTES", _BATCH_FRAME_BYTES),
            patch.multiple(decode, _LARGE_BYTES=100, _LARGE_STEP_BYTES=8),
        ):
            yield
    finally:
        logging.disable(level)


@dataclass(frozen=True)
class Result:
    """What came of a schedule: `violation` is None where all was well."""

    seed: int
    violation: str | None
    steps: int
    messages: int
    faults: int
    lines: list[str] | None = None
    trace_hash: str | None = None


def run(seed: int, tracing: bool = False) -> Result:
    """Run one schedule. A defect of netcomm that raises is a violation, too."""
    schedule = Schedule(seed, tracing)
    violation = None
    try:
        schedule.run()
    except Violation as error:
        violation = str(error)
    except StorageError:
        raise
    except Exception as error:
        violation = f"{type(error).__name__}: {error}"
        schedule.world.trace(traceback.format_exc())
    world = schedule.world
    if tracing:
        world.trace(violation or "all is well")
    return Result(
        seed,
        violation,
        world.steps,
        len(schedule.oracle.messages),
        schedule.faults,
        world.lines,
        world.trace_hash() if tracing else None,
    )
