"""Round trips of small messages beside a stream of large things that is never empty, in the same direction."""

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import quantiles
from typing import Any

from benchmarks import payloads
from benchmarks.harness import Contender, Measured, Scale, Unit, Workload
from benchmarks.payloads import Check
from benchmarks.peers import Address
from benchmarks.peers.netcomm_peer import BulkCaller, BulkEcho
from benchmarks.processes import Child, Control
from benchmarks.workloads.throughput import expect_all

_SIZE = 100


class BesideBulk:
    """A caller, which also fills the stream BULK, or does not; and an echo, which takes what comes in it."""

    def __init__(self, name: str, count: int, host: str, fills: bool) -> None:
        self.name = name
        self._count = count
        self._host = host
        self._fills = fills

    def open(self, stack: ExitStack) -> None:
        self._echo = stack.enter_context(Child(serve, host=self._host))
        address = self._echo.hear()["address"]
        self._caller = stack.enter_context(Child(call, address=address, fills=self._fills))
        self._caller.hear()
        self.measure()

    def measure(self) -> Measured:
        self._echo.ask(count=self._count, size=_SIZE)
        figures: dict[str, float] = self._caller.ask(count=self._count, size=_SIZE)
        expect_all(self._echo, self._count)
        if not self._fills:
            del figures["bulk"]
        return figures


def serve(control: Control, host: str) -> None:
    echo = BulkEcho(host)
    control.tell(address=echo.address)
    for order in control:
        check = Check(**order)
        echo.expect(check)
        control.tell(ready=True)
        echo.finish()
        control.tell(taken=check.taken, wrong=check.wrong)


def call(control: Control, address: Address, fills: bool) -> None:
    caller = BulkCaller(address)
    control.tell(connected=True)
    for order in control:
        times, rate = caller.beside(payloads.make(**order), fills)
        cuts = quantiles(times, n=100)
        figures: dict[str, Any] = {"p50": cuts[49] * 1e6, "p99": cuts[98] * 1e6, "bulk": rate / 1e6}
        control.tell(**figures)


def _contenders(scale: Scale) -> Sequence[Contender]:
    count = scale.count(2000)
    return [
        BesideBulk("netcomm, nothing beside", count, "127.0.0.1", fills=False),
        BesideBulk("netcomm, full BULK beside", count, "127.0.0.1", fills=True),
        BesideBulk("netcomm, TCP, nothing beside", count, "tcp:127.0.0.1", fills=False),
        BesideBulk("netcomm, TCP, full BULK beside", count, "tcp:127.0.0.1", fills=True),
    ]


WORKLOADS = [
    Workload(
        "latency-beside-bulk",
        f"round trips of {_SIZE} bytes while the stream BULK is full",
        _contenders,
        unit=Unit("µs", more_is_better=False),
        units={"bulk": Unit("MB/s")},
        notes=("the caller sends pieces of 64 KiB as fast as they are taken; its small messages go the same way",),
    )
]
