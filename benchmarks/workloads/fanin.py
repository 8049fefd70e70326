"""Many connections into one listener: what it receives in all, and what an idle connection takes."""

import gc
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from time import perf_counter, process_time

from benchmarks import payloads
from benchmarks.harness import Contender, Measured, Scale, Unit, Workload
from benchmarks.peers import Address
from benchmarks.processes import Child, Control
from benchmarks.workloads.throughput import expect_all, receive

_SIZE = 100
_CONNECTIONS = (1, 10, 50, 200)
_PROCESSES = 4
_MESSAGES = 40_000
# So many messages one connector sends before it is the next one's turn.
_BURST = 10
_LARGE_BURST = 100
_IDLE_S = 2.0


@dataclass
class FanIn:
    """netcomm with so and so many connectors, in a few processes, that send to one listener at the same time.

    many: whether with `send_many`, and in larger bursts.
    cpu: whether to tell what CPU the listener took for each message, too.
    """

    name: str
    points: Sequence[int]
    count: int
    many: bool = False
    cpu: bool = False

    def open(self, stack: ExitStack) -> None:
        self._runs = []
        for connections in self.points:
            receiver = stack.enter_context(Child(receive, peer="netcomm_peer", options={}))
            address = receiver.hear()["address"]
            processes = min(connections, _PROCESSES)
            cuts = [connections * number // processes for number in range(processes + 1)]
            senders = [
                stack.enter_context(Child(send, address=address, first=first, stop=stop, many=self.many))
                for first, stop in pairwise(cuts)
            ]
            for sender in senders:
                sender.hear()
            self._runs.append((connections, receiver, senders))
            self._rate(connections, receiver, senders, connections)

    def measure(self) -> Measured:
        figures = {}
        for connections, receiver, senders in self._runs:
            rate, microseconds = self._rate(connections, receiver, senders, self.count)
            figures[str(connections)] = rate
            if self.cpu:
                figures[f"{connections} CPU"] = microseconds
        return figures

    def _rate(self, connections: int, receiver: Child, senders: Sequence[Child], count: int) -> tuple[float, float]:
        """Messages a second in all, and the microseconds of CPU that each took of the listener."""
        each = max(1, count // connections)
        receiver.ask(count=each * connections, size=_SIZE, streams=connections)
        for sender in senders:
            sender.tell(count=each, connections=connections)
        times = [sender.hear() for sender in senders]
        cpu = expect_all(receiver, each * connections)
        # The clock is the same for all processes: from when the first of them began until the last one was done.
        seconds = max(time["ended"] for time in times) - min(time["started"] for time in times)
        return each * connections / seconds, 1e6 * cpu / (each * connections)


def send(control: Control, address: Address, first: int, stop: int, many: bool) -> None:
    peer = import_module("benchmarks.peers.netcomm_peer")
    senders = [peer.Sender(address, f"sender-{number}", many) for number in range(first, stop)]
    burst = _LARGE_BURST if many else _BURST
    control.tell(connected=True)
    for order in control:
        count, connections = order["count"], order["connections"]
        messages = payloads.make(count * connections, _SIZE)
        parts = [messages[number * count : (number + 1) * count] for number in range(first, stop)]
        started = perf_counter()
        for done in range(0, count, burst):
            for sender, part in zip(senders, parts, strict=True):
                sender.post(part[done : done + burst])
        for sender in senders:
            sender.flush()
        control.tell(started=started, ended=perf_counter())


@dataclass
class Idle:
    """A listener with connections on which nothing happens."""

    name: str
    peer: str
    connections: int
    seconds: float

    def open(self, stack: ExitStack) -> None:
        """Each measurement starts its own processes."""

    def measure(self) -> Measured:
        with ExitStack() as stack:
            listener = stack.enter_context(Child(listen, peer=self.peer, seconds=self.seconds))
            address = listener.hear()["address"]
            connectors = stack.enter_context(Child(connect, peer=self.peer, address=address))
            connectors.ask(connections=1)
            before = listener.ask(cpu=False)
            connectors.ask(connections=self.connections)
            after = listener.ask(cpu=True)
            memory = (after["kib"] - before["kib"]) / self.connections
            return {"memory": memory, "CPU": after["milliseconds"]}


def listen(control: Control, peer: str, seconds: float) -> None:
    receiver = import_module(f"benchmarks.peers.{peer}").Receiver()
    control.tell(address=receiver.address)
    for order in control:
        time.sleep(0.2)  # what follows upon connecting is no idling
        gc.collect()
        before = process_time()
        if order["cpu"]:
            time.sleep(seconds)
        used = process_time() - before
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        control.tell(kib=pages * os.sysconf("SC_PAGE_SIZE") / 1024, milliseconds=1000 * used)


def connect(control: Control, peer: str, address: Address) -> None:
    module = import_module(f"benchmarks.peers.{peer}")
    connected: list[object] = []
    for order in control:
        for _ in range(order["connections"]):
            connected.append(module.Sender(address, f"idle-{len(connected)}"))
        control.tell(connected=True)


def _fan_in(scale: Scale) -> Sequence[Contender]:
    points, count = scale.points(*_CONNECTIONS), scale.count(_MESSAGES)
    return [
        FanIn("netcomm", points, count, cpu=True),
        FanIn("netcomm send_many", points, 4 * count, many=True, cpu=True),
    ]


def _growth(scale: Scale) -> Sequence[Contender]:
    return [FanIn("netcomm", scale.points(1, 2, 5, 20, 100, 500), scale.count(_MESSAGES))]


def _idle(scale: Scale) -> Sequence[Contender]:
    connections, seconds = scale.count(200), _IDLE_S * scale.factor
    return [
        Idle("netcomm", "netcomm_peer", connections, seconds),
        Idle("pyzmq", "zeromq", connections, seconds),
        Idle("snakeMQ", "snakemq_peer", connections, seconds),
    ]


WORKLOADS = [
    Workload(
        "fan-in",
        f"messages of {_SIZE} bytes over so many connections into one listener, in all",
        _fan_in,
        units={f"{connections} CPU": Unit("µs/msg", more_is_better=False) for connections in _CONNECTIONS},
        notes=(
            f"the connectors are in {_PROCESSES} processes, where there are so many; they share the processors with the"
            " listener",
            f"netcomm: send() one by one, in bursts of {_BURST}; send_many: in bursts of {_LARGE_BURST}",
            "CPU: what the listener takes for each message",
        ),
    ),
    Workload(
        "idle",
        "what an idle connection takes of the listener's memory; what 200 take of its CPU",
        _idle,
        unit=Unit("KiB", more_is_better=False),
        units={"CPU": Unit("ms in 2 s", more_is_better=False)},
        rounds=lambda asked: min(asked, 3),
    ),
]

GROWTH = Workload(
    "growth-peers",
    f"messages of {_SIZE} bytes, by the number of connections into one listener",
    _growth,
    parameter="connections",
    rounds=lambda asked: min(asked, 3),
)
