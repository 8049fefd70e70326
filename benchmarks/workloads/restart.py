"""The listener's process is killed, and another one listens later: how long the first message takes then."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter

from benchmarks.harness import Contender, Measured, Scale, Unit, Workload
from benchmarks.payloads import Check
from benchmarks.peers import Address
from benchmarks.processes import Child, Control
from benchmarks.workloads.throughput import send

_SIZE = 100
_ROUNDS = 3
# So long after one pair's listener is killed, the next one's is: those that come back do not disturb each other.
_STAGGER_S = 0.4


@dataclass
class Restarting:
    """A listener and a connector for each downtime and round, all at once: they do nothing but wait."""

    name: str
    peer: str
    downtimes: Sequence[float]
    rounds: int
    _measured: list[Measured] = field(default_factory=list)

    def open(self, stack: ExitStack) -> None:
        """Measuring starts its own processes."""

    def measure(self) -> Measured:
        if not self._measured:
            self._measured = self._all_rounds()
        return self._measured.pop()

    def _all_rounds(self) -> list[Measured]:
        turns = [(number, down) for number in range(self.rounds) for down in self.downtimes]
        with ExitStack() as stack:
            pairs = [stack.enter_context(_Pair(self.peer)) for _ in turns]
            pool = stack.enter_context(ThreadPoolExecutor(len(turns)))
            delays = [
                pool.submit(pair.delay, number * _STAGGER_S, down)
                for pair, (number, down) in zip(pairs, turns, strict=True)
            ]
            measured: list[dict[str, float]] = [{} for _ in range(self.rounds)]
            for (number, down), delay in zip(turns, delays, strict=True):
                measured[number][f"{down:g} s"] = delay.result()
            return list(measured)


class _Pair(ExitStack):
    """A listener and a sender that are connected."""

    def __init__(self, peer: str) -> None:
        super().__init__()
        self._peer = peer
        self._listener = self.enter_context(Child(listen, peer=peer, address=None))
        self._address = self._listener.hear()["address"]
        self._sender = self.enter_context(Child(send, peer=peer, name="Sender", address=self._address, options={}))
        self._sender.hear()
        self._sender.ask(count=1, size=_SIZE)

    def delay(self, after_s: float, down_s: float) -> float:
        time.sleep(after_s)
        self._listener.kill()
        self._sender.tell(count=1, size=_SIZE)
        time.sleep(down_s)
        with Child(listen, peer=self._peer, address=self._address) as again:
            again.hear()
            seconds: float = again.hear()["seconds"]
            return seconds


def listen(control: Control, peer: str, address: Address) -> None:
    check = Check(1, _SIZE)
    where = {} if address is None else {"address": address}
    receiver = import_module(f"benchmarks.peers.{peer}").Receiver(check=check, **where)
    started = perf_counter()
    control.tell(address=receiver.address)
    receiver.finish()
    control.tell(seconds=perf_counter() - started)
    for _ in control:  # until it is ended
        pass


def _contenders(scale: Scale) -> Sequence[Contender]:
    downtimes, rounds = ([1, 5, 30], _ROUNDS) if scale.factor >= 1 else ([0.1], 1)
    return [
        Restarting("netcomm", "netcomm_peer", downtimes, rounds),
        Restarting("pyzmq", "zeromq", downtimes, rounds),
        Restarting("snakeMQ", "snakemq_peer", downtimes, rounds),
    ]


WORKLOADS = [
    Workload(
        "restart",
        "from when the listener listens again to the first message, by how long it was down",
        _contenders,
        unit=Unit("s", more_is_better=False),
        notes=("each with its defaults: snakeMQ tries to connect every 3 s",),
        rounds=lambda asked: min(asked, _ROUNDS),
    )
]
