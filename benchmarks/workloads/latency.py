"""Round trips: a message goes to another process, is checked there, and comes back; one at a time."""

from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from statistics import quantiles
from typing import Any

from benchmarks import payloads
from benchmarks.harness import Contender, Measured, Scale, Unit, Workload
from benchmarks.payloads import Check
from benchmarks.peers import Address
from benchmarks.processes import Child, Control
from benchmarks.workloads.throughput import expect_all

_SIZE = 100


class PingPong:
    """A caller and an echo, each in a process of its own."""

    def __init__(self, name: str, peer: str, count: int, **to_echo: Any) -> None:
        """to_echo: what the echo is made with."""
        self.name = name
        self._peer = peer
        self._count = count
        self._to_echo = to_echo

    def open(self, stack: ExitStack) -> None:
        self._echo = stack.enter_context(Child(serve, peer=self._peer, options=self._to_echo))
        address = self._echo.hear()["address"]
        self._caller = stack.enter_context(Child(call, peer=self._peer, address=address))
        self._caller.hear()
        self.measure()

    def measure(self) -> Measured:
        self._echo.ask(count=self._count, size=_SIZE)
        times = self._caller.ask(count=self._count, size=_SIZE)
        expect_all(self._echo, self._count)
        return times


def serve(control: Control, peer: str, options: dict[str, Any]) -> None:
    echo = import_module(f"benchmarks.peers.{peer}").Echo(**options)
    control.tell(address=echo.address)
    for order in control:
        check = Check(**order)
        echo.expect(check)
        control.tell(ready=True)
        echo.finish()
        control.tell(taken=check.taken, wrong=check.wrong)


def call(control: Control, peer: str, address: Address) -> None:
    caller = import_module(f"benchmarks.peers.{peer}").Caller(address)
    control.tell(connected=True)
    for order in control:
        cuts = quantiles(caller.round_trips(payloads.make(**order)), n=100)
        control.tell(p50=cuts[49] * 1e6, p99=cuts[98] * 1e6)


def _contenders(scale: Scale) -> Sequence[Contender]:
    count = scale.count(2000)
    return [
        PingPong("netcomm", "netcomm_peer", count),
        PingPong("netcomm, TCP", "netcomm_peer", count, host="tcp:127.0.0.1"),
        PingPong("pyzmq", "zeromq", count),
        PingPong("pyzmq, ipc", "zeromq", count, address="ipc://*"),
        PingPong("snakeMQ", "snakemq_peer", count),
        PingPong("plain sockets", "sockets", count),
        PingPong("rpyc", "rpyc_peer", count),
        PingPong("Pyro5", "pyro", count),
    ]


WORKLOADS = [
    Workload(
        "latency-100",
        f"round trips of {_SIZE} bytes, one at a time",
        _contenders,
        unit=Unit("µs", more_is_better=False),
        notes=(
            "netcomm, snakeMQ: a callback on either side, which answers with a message",
            "netcomm: by default over a Unix socket; all others over TCP, but for pyzmq, ipc",
            "pyzmq: REQ and REP; rpyc, Pyro5: a remote call with the message as argument and as result",
        ),
    )
]
