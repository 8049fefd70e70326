"""Rates by what grows: sizes, backlogs, connections, threads."""

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.harness import Contender, Measured, Scale, Workload
from benchmarks.workloads import fanin, persistent
from benchmarks.workloads.throughput import OneWay

_LARGEST = 64 * 1024 * 1024 - 1024  # a frame of 64 MiB is the most that netcomm takes by default
_BYTES = 48 * 1024 * 1024
_MESSAGES = 20_000


def _size(scale: Scale) -> Sequence[Contender]:
    points = scale.points(1, 32, 1024, 8 * 1024, 64 * 1024, 512 * 1024, 4 * 1024 * 1024, _LARGEST)
    sizes = {str(size): (scale.count(min(_MESSAGES, max(2, _BYTES // size)), least=2), size) for size in points}
    return [
        OneWay("netcomm", "netcomm_peer", sizes),
        OneWay("pyzmq", "zeromq", sizes),
        OneWay("plain sockets", "sockets", sizes),
    ]


class Threads:
    """netcomm with so and so many threads that send through one connector."""

    name = "netcomm"

    def __init__(self, scale: Scale) -> None:
        size = {"": (scale.count(_MESSAGES), 100)}
        self._ways = {
            str(number): OneWay(self.name, "netcomm_peer", size, to_sender={"threads": number}, streams=number)
            for number in scale.points(1, 2, 4, 8, 16)
        }

    def open(self, stack: ExitStack) -> None:
        for way in self._ways.values():
            way.open(stack)

    def measure(self) -> Measured:
        return {case: way.measure()[""] for case, way in self._ways.items()}


WORKLOADS = [
    Workload("growth-size", "one-way messages, by their size", _size, parameter="bytes"),
    persistent.GROWTH,
    fanin.GROWTH,
    Workload(
        "growth-threads",
        "one-way messages of 100 bytes, by the number of sending threads",
        lambda scale: [Threads(scale)],
        parameter="threads",
    ),
]
