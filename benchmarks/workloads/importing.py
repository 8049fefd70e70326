"""What `import netcomm` takes, beside the modules of the standard library that such a library needs."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter

from benchmarks.harness import Contender, Measured, Scale, Unit, Workload


@dataclass
class Importing:
    """A Python that imports something, and ends."""

    name: str
    statement: str

    def open(self, stack: ExitStack) -> None:
        self.measure()

    def measure(self) -> Measured:
        started = perf_counter()
        subprocess.run([sys.executable, "-c", self.statement], check=True, env=_environment())
        seconds = perf_counter() - started
        command = [sys.executable, "-X", "importtime", "-c", self.statement]
        told = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True, env=_environment()).stderr
        return {"process": 1000 * seconds, "import": _imports_ms(told, self.statement)}


def _environment() -> dict[str, str]:
    """Where an installed package is imported, it has been compiled before."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _imports_ms(told: str, statement: str) -> float:
    """What the modules that the statement names took, each with what it imports, by Python's own account."""
    wanted = statement.removeprefix("import ").split(", ")
    total = 0.0
    for line in told.splitlines():
        _, cumulative, module = line.split("|")
        if module.startswith(" ") and module[1:] in wanted:
            total += float(cumulative) / 1000
    return total


def _contenders(scale: Scale) -> Sequence[Contender]:
    return [
        Importing("netcomm", "import netcomm"),
        Importing("socket, selectors, threading", "import socket, selectors, threading"),
    ]


WORKLOADS = [
    Workload(
        "import",
        "a Python that imports it, and ends; and the import alone",
        _contenders,
        unit=Unit("ms", more_is_better=False),
        rounds=lambda asked: 4 * asked,
    )
]
