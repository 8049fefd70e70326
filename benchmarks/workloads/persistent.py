"""Persistent messages end to end: stored, sent, handed over, acknowledged, and gone from the storage."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter
from typing import Any

from benchmarks import payloads
from benchmarks.harness import Contender, Measured, Scale, Workload
from benchmarks.payloads import Check
from benchmarks.processes import Child, Control
from benchmarks.workloads.throughput import OneWay, expect_all

_SIZE = 100


@dataclass
class Draining:
    """A process that has a backlog, and one that appears then to receive it; fresh ones for each measurement.

    sizes: by case, how many messages the backlog has.
    options: what both are made with.
    """

    name: str
    peer: str
    sizes: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)

    def open(self, stack: ExitStack) -> None:
        """Each measurement starts its own processes."""

    def measure(self) -> Measured:
        return {case: self._drain(count) for case, count in self.sizes.items()}

    def _drain(self, count: int) -> float:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir="."))
            common = {"peer": self.peer, "folder": folder, "options": self.options, "count": count}
            sender = stack.enter_context(Child(drain, **common))
            address = sender.hear()["address"]
            receiver = stack.enter_context(Child(receive, **common))
            receiver.hear()
            sender.ask(drain=True)
            receiver.tell(address=address)
            expect_all(receiver, count)
            seconds: float = sender.hear()["seconds"]
            return count / seconds


def drain(control: Control, peer: str, folder: str, options: dict[str, Any], count: int) -> None:
    backlog = import_module(f"benchmarks.peers.{peer}").Backlog(folder, **options)
    backlog.store(payloads.make(count, _SIZE))
    control.tell(address=backlog.address)
    for _ in control:
        started = perf_counter()
        control.tell(started=True)
        backlog.drain()
        control.tell(seconds=perf_counter() - started)


def receive(control: Control, peer: str, folder: str, options: dict[str, Any], count: int) -> None:
    receiver = import_module(f"benchmarks.peers.{peer}").BacklogReceiver(folder, **options)
    check = Check(count, _SIZE)
    receiver.expect(check)
    control.tell(ready=True)
    for order in control:
        receiver.connect(order["address"])
        receiver.finish()
        control.tell(taken=check.taken, wrong=check.wrong)


def _persistent_many(scale: Scale) -> Sequence[Contender]:
    return [
        OneWay(
            "netcomm send_many",
            "netcomm_peer",
            {"": (scale.count(50_000), _SIZE)},
            to_sender={"many": True, "persistent": True, "storage": "sqlite:///{folder}/sender.db"},
            to_receiver={"persistent": True, "storage": "sqlite:///{folder}/receiver.db"},
        ),
        OneWay(
            "snakeMQ",
            "snakemq_peer",
            {"": (scale.count(200), _SIZE)},
            sender="PersistentSender",
            to_sender={"folder": "{folder}"},
        ),
    ]


def _drain(scale: Scale) -> Sequence[Contender]:
    return [
        Draining("netcomm", "netcomm_peer", {"": scale.count(200_000)}),
        Draining("snakeMQ", "snakemq_peer", {"": scale.count(300)}),
    ]


def _growth(scale: Scale) -> Sequence[Contender]:
    sizes = {str(point): point for point in scale.points(*(10**power for power in range(7)))}
    return [
        Draining("netcomm, stored", "netcomm_peer", sizes),
        Draining("netcomm, transient", "netcomm_peer", sizes, {"persistent": False}),
    ]


WORKLOADS = [
    Workload(
        "persistent-many",
        f"persistent messages of {_SIZE} bytes, end to end",
        _persistent_many,
        notes=(
            "netcomm: send_many(); receiver and sender with SQLite, power cuts survived; until all are acknowledged",
            "snakeMQ: fewer messages, its storage at the sender (a receiver keeps nothing); until all are received",
        ),
    ),
    Workload(
        "drain-200k",
        f"a stored backlog of messages of {_SIZE} bytes, from when the receiver begins to connect",
        _drain,
        notes=("netcomm: 200,000 messages; snakeMQ: 300, since it is slow; the rates are compared",),
        rounds=lambda asked: min(asked, 3),
    ),
]

GROWTH = Workload(
    "growth-queue",
    f"a backlog of messages of {_SIZE} bytes is received, by its length",
    _growth,
    parameter="messages",
    rounds=lambda asked: 1,
)
