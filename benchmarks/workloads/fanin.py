"""Many connections into one listener: what it receives in all, and what an idle connection takes."""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter, process_time

from benchmarks import payloads
from benchmarks.harness import Contender, Measured, Scale, Unit, Workload
from benchmarks.peers import Address
from benchmarks.processes import Child, Control
from benchmarks.workloads.throughput import expect_all, receive

_SIZE = 100
_CONNECTIONS = (1, 10, 50, 200)
_MESSAGES = 1_600_000
# Where programs have several connections each: how many programs, and what a connection sends before the next one does.
_PROGRAMS = 4
_BURST = 10
_IDLE_S = 2.0


@dataclass
class FanIn:
    """netcomm with so and so many connections into one listener, on which messages come at the same time.

    programs: in how many processes the connectors are, which let them take turns; without it, each has its own process.
    many: whether with `send_many`.
    cpu: whether to tell what CPU the listener took for each message, too.
    """

    name: str
    points: Sequence[int]
    count: int
    programs: int | None = None
    many: bool = False
    cpu: bool = False

    def open(self, stack: ExitStack) -> None:
        """Each point starts its own processes."""

    def measure(self) -> Measured:
        figures = {}
        for connections in self.points:
            rate, microseconds = self._measure(connections)
            figures[str(connections)] = rate
            if self.cpu:
                figures[f"{connections} CPU"] = microseconds
        return figures

    def _measure(self, connections: int) -> tuple[float, float]:
        """Messages a second in all, and the microseconds of CPU that each took of the listener."""
        processors = sorted(os.sched_getaffinity(0))
        with ExitStack() as stack:
            with _on(processors[:1]):
                receiver = stack.enter_context(Child(receive, peer="netcomm_peer", options={}))
            address = receiver.hear()["address"]
            programs = min(connections, self.programs or connections)
            with _on(processors[1:] or processors):
                senders = stack.enter_context(
                    Child(send, address=address, connections=connections, programs=programs, many=self.many)
                )
            senders.hear()
            each = max(1, self.count // connections)
            total = each * connections
            for _ in ("warm up", "measure"):
                receiver.ask(count=total, size=_SIZE, streams=connections)
                seconds = senders.ask(count=each)["seconds"]
                cpu = expect_all(receiver, total)
        return total / seconds, 1e6 * cpu / total


@contextmanager
def _on(processors: Sequence[int]) -> Iterator[None]:
    """What is started meanwhile runs on these processors alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def send(control: Control, address: Address, connections: int, programs: int, many: bool) -> None:
    """Start the programs, as forks of this process; give them their orders, and tell how long all took."""
    fork = get_context("fork")
    pipes = []
    for number in range(programs):
        pipe, theirs = fork.Pipe()
        numbers = range(connections * number // programs, connections * (number + 1) // programs)
        pipes.append(pipe)
        fork.Process(target=send_in_turns, args=(theirs, pipes, address, numbers, many)).start()
        theirs.close()
    for pipe in pipes:
        pipe.recv()
    control.tell(connected=True)
    for order in control:
        for _ in ("get ready", "go"):
            started = perf_counter()
            for pipe in pipes:
                pipe.send(order["count"])
            for pipe in pipes:
                pipe.recv()
        control.tell(seconds=perf_counter() - started)


def send_in_turns(
    pipe: Connection, inherited: Sequence[Connection], address: Address, numbers: Sequence[int], many: bool
) -> None:
    """One program: a connector for each of `numbers`. It ends when its pipe has no other end any more."""
    for end in inherited:
        end.close()
    peer = import_module("benchmarks.peers.netcomm_peer")
    senders = [peer.Sender(address, f"sender-{number}", many) for number in numbers]
    pipe.send(None)
    with suppress(EOFError):  # no more orders
        while True:
            count = pipe.recv()
            parts = [payloads.make(count, _SIZE, first=number * count) for number in numbers]
            pipe.send(None)
            pipe.recv()
            burst = count if len(senders) == 1 else _BURST
            for done in range(0, count, burst):
                for sender, part in zip(senders, parts, strict=True):
                    sender.post(part[done : done + burst])
            for sender in senders:
                sender.flush()
            pipe.send(None)


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
        FanIn("netcomm send_many", points, count, many=True, cpu=True),
        FanIn("netcomm in bursts", points, count // 16, programs=_PROGRAMS, cpu=True),
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
            "each connection is from a process of its own; they share all processors but one, which the listener has",
            "netcomm: send() one by one",
            f"in bursts: the connectors are in {_PROGRAMS} processes, and take turns there, in bursts of {_BURST}",
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
