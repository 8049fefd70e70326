"""What the figures are to be: each target stands beside the row that it is about."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from benchmarks.harness import Result, Row

Verdict = Literal["met", "missed"]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of a row.

    workload, contender, case: name the row; without a case, each of the contender's.
    of: what is bounded: the figure; how much better netcomm is than the row's contender; or what is kept, in percent,
        of the figure of the contender's first case.
    least, most: the bound; one of them.
    """

    workload: str
    contender: str
    case: str | None = None
    of: Literal["figure", "ratio", "kept"] = "ratio"
    least: float = -inf
    most: float = inf

    def is_about(self, workload: str, row: Row) -> bool:
        return (self.workload, self.contender) == (workload, row.contender) and self.case in (None, row.case)

    def judge(self, result: Result, row: Row) -> tuple[str, Verdict]:
        """What the target says, and whether it is met."""
        value = _value(self.of, result, row)
        bound = f"≥ {_short(self.least)}" if self.least > -inf else f"≤ {_short(self.most)}"
        match self.of:
            case "figure":
                text = f"{bound} {result.workload.unit_of(row.case).name}"
            case "ratio":
                text = f"{bound} x"
            case "kept":
                text = f"{bound} % kept: {value:.0f} %"
        return text, "met" if self.least <= value <= self.most else "missed"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _value(of: str, result: Result, row: Row) -> float:
    if of == "kept":
        first = next(other for other in result.rows if other.contender == row.contender)
        return 100 * row.figure.median / first.figure.median
    spread = row.figure if of == "figure" else row.ratio
    return spread.median if spread is not None else 0.0


TARGETS = [
    Target("throughput-100", "pyzmq", least=1.0),
    Target("throughput-100", "snakeMQ", least=25.0),
    Target("throughput-1k", "pyzmq", least=1.0),
    Target("throughput-64k", "pyzmq", least=1.0),
    Target("throughput-1m", "pyzmq", least=1.5),
    Target("latency-100", "pyzmq", least=1.3),
    Target("latency-beside-bulk", "netcomm, full BULK beside", "p99", of="figure", most=5_000.0),
    Target("latency-beside-bulk", "netcomm, TCP, full BULK beside", "p99", of="figure", most=5_000.0),
    Target("store-one", "snakeMQ", least=12.0),
    Target("store-one", "persist-queue", least=1.0),
    Target("store-one", "persist-queue, ack", least=1.0),
    Target("store-one", "litequeue (not synced)", least=1.0),
    Target("store-one-process", "litequeue", least=1.0),
    Target("persistent-many", "netcomm send_many", of="figure", least=50_000),
    Target("persistent-many", "snakeMQ", least=100.0),
    Target("drain-200k", "snakeMQ", least=100.0),
    Target("fan-in", "netcomm", "200", of="kept", least=70.0),
    Target("fan-in", "netcomm send_many", "200", of="kept", least=70.0),
    Target("idle", "netcomm", "memory", of="figure", most=24.0),
    Target("idle", "netcomm", "CPU", of="figure", most=1.0),
    Target("restart", "netcomm", of="figure", most=0.5),
    # netcomm takes at most three times as long: it is at least 0.33 times as good.
    Target("import", "socket, selectors, threading", "process", least=1 / 3),
]


def target_of(result: Result, row: Row) -> tuple[str, Verdict] | None:
    """What the target of a row says, and whether it is met; None where it has none."""
    for target in TARGETS:
        if target.is_about(result.workload.name, row):
            return target.judge(result, row)
    return None
