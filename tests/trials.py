"""How often the tests that try many times try, and what may be claimed then.

NETCOMM_SOAK in the environment multiplies all their numbers; it is 1 where it is not set, and 10 in `tox -e soak`.
A table at the end of the run says how often each thing was tried. Where nothing failed in N tries that are independent
of each other, the chance that a try fails is below 3/N, with a confidence of 95 % ("rule of three"; 1 - 0.05 ** (1/N)
is below 3/N for every N).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SOAK = int(os.environ.get("NETCOMM_SOAK", "1"))


@dataclass
class Trials:
    """What was tried: how often, and in how many tests that failed."""

    count: int = 0
    failed_tests: int = 0

    def row(self, what: str) -> str:
        bound = f"{3 / self.count:.1e}" if self.count and not self.failed_tests else "-"
        return f"{what:<44} {self.count:>12,} {self.failed_tests:>12} {bound:>10}"


_all: dict[str, Trials] = {}


@contextmanager
def trials(what: str) -> Iterator[Trials]:
    """Count tries in the table: `with trials("schedules") as tried: ...; tried.count += 1`."""
    tried = _all.setdefault(what, Trials())
    try:
        yield tried
    except BaseException:
        tried.failed_tests += 1
        raise


def table() -> list[str]:
    """The lines of the table; none where nothing was counted."""
    if not _all:
        return []
    head = f"{'what':<44} {'tries':>12} {'tests failed':>12} {'3/N':>10}"
    return [head, *(tried.row(what) for what, tried in _all.items())]
