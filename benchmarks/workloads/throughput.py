"""Messages one way between processes, received and checked in another."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from time import perf_counter, process_time
from typing import Any

from benchmarks import payloads, servers
from benchmarks.harness import Contender, Measured, Scale, Workload
from benchmarks.payloads import Check, StreamsCheck
from benchmarks.peers import Address
from benchmarks.processes import Child, Control, Failed


@dataclass
class OneWay:
    """A sender and a receiver, each in a process of its own.

    peer: the module of `benchmarks.peers` that has them.
    sizes: by case, how many messages of how many bytes.
    sender: the name of its class; to_sender, to_receiver: what they are made with.
    folders: what of that is the temporary folder, on the disk where this runs, that each is to have.
    streams: how many threads of the sender send, an equal part each.
    server: starts what has to be between the two, in a folder, and gives its port.
    """

    name: str
    peer: str
    sizes: Mapping[str, tuple[int, int]]
    sender: str = "Sender"
    to_sender: Mapping[str, Any] = field(default_factory=dict)
    to_receiver: Mapping[str, Any] = field(default_factory=dict)
    streams: int = 1
    server: Callable[[str], AbstractContextManager[int]] | None = None

    def open(self, stack: ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="."))
        to_receiver, to_sender = (_fill_in(options, folder) for options in (self.to_receiver, self.to_sender))
        if self.server is not None:
            to_receiver["server"] = to_sender["server"] = stack.enter_context(self.server(folder))
        self._receiver = stack.enter_context(Child(receive, peer=self.peer, options=to_receiver))
        address = self._receiver.hear()["address"]
        self._sender = stack.enter_context(
            Child(send, peer=self.peer, name=self.sender, address=address, options=to_sender)
        )
        self._sender.hear()
        self.measure()  # once for nothing: memory that was never used before takes its time

    def measure(self) -> Measured:
        return {case: self._rate(count, size) for case, (count, size) in self.sizes.items()}

    def _rate(self, count: int, size: int) -> float:
        count -= count % self.streams
        streams = {"streams": self.streams} if self.streams > 1 else {}
        self._receiver.ask(count=count, size=size, **streams)
        seconds: float = self._sender.ask(count=count, size=size)["seconds"]
        expect_all(self._receiver, count)
        return count / seconds


def _fill_in(options: Mapping[str, Any], folder: str) -> dict[str, Any]:
    return {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in options.items()}


def expect_all(receiver: Child, count: int) -> float:
    """Hear from a receiver what has arrived; returns the seconds of CPU that it took, if it tells.

    Raises Failed where it is not what was sent.
    """
    received = receiver.hear()
    seconds: float = received.pop("cpu", 0.0)
    if received != {"taken": count, "wrong": 0}:
        raise Failed(f"of {count} messages, this has arrived: {received}")
    return seconds


def receive(control: Control, peer: str, options: dict[str, Any]) -> None:
    receiver = import_module(f"benchmarks.peers.{peer}").Receiver(**options)
    control.tell(address=receiver.address)
    for order in control:
        check = StreamsCheck(**order) if "streams" in order else Check(**order)
        receiver.expect(check)
        control.tell(ready=True)
        before = process_time()
        receiver.finish()
        control.tell(taken=check.taken, wrong=check.wrong, cpu=process_time() - before)


def send(control: Control, peer: str, name: str, address: Address, options: dict[str, Any]) -> None:
    sender = getattr(import_module(f"benchmarks.peers.{peer}"), name)(address, **options)
    control.tell(connected=True)
    for order in control:
        messages = payloads.make(**order)
        started = perf_counter()
        sender.send(messages)
        control.tell(seconds=perf_counter() - started)


def _contenders(count: int, size: int, snakemq_count: int, scale: Scale) -> Sequence[Contender]:
    sizes = {"": (scale.count(count), size)}
    return [
        OneWay("netcomm", "netcomm_peer", sizes),
        OneWay("netcomm send_many", "netcomm_peer", sizes, to_sender={"many": True}),
        OneWay("netcomm, TCP", "netcomm_peer", sizes, to_receiver={"host": "tcp:127.0.0.1"}),
        OneWay("pyzmq", "zeromq", sizes),
        OneWay("pyzmq, ipc", "zeromq", sizes, to_receiver={"address": ["ipc://*", "ipc://*"]}),
        OneWay("snakeMQ", "snakemq_peer", {"": (scale.count(snakemq_count), size)}),
        OneWay("plain sockets", "sockets", sizes),
        OneWay("pynng", "nng", {"": (scale.count(count // 5), size)}),
        OneWay("NATS", "nats_peer", {"": (scale.count(count // 5), size)}, server=servers.nats),
        OneWay("RabbitMQ", "rabbitmq", {"": (scale.count(count // 20), size)}, server=servers.rabbitmq),
    ]


_NOTES = (
    "netcomm: send() one by one; until every message is acknowledged, after the callback has returned",
    "netcomm: by default over a Unix socket; all others over TCP, but for pyzmq, ipc",
    "pyzmq, pynng: PUSH and PULL; until the receiver says over a second socket that it has got all",
    "plain sockets: batches of 64 KiB, and a loop that slices the messages; the limit, without any guarantee",
    "snakeMQ, pynng, NATS, RabbitMQ: fewer messages, since they are slower; the rates are compared",
)

WORKLOADS = [
    Workload(f"throughput-{name}", f"one-way messages of {size:,} bytes", partial(_contenders, *counts), notes=_NOTES)
    for name, size, counts in [
        ("100", 100, (100_000, 100, 20_000)),
        ("1k", 1024, (60_000, 1024, 12_000)),
        ("64k", 64 * 1024, (3000, 64 * 1024, 1500)),
        ("1m", 1024 * 1024, (200, 1024 * 1024, 50)),
    ]
]
