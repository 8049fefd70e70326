"""Runs the contenders of a workload in turns, and makes medians and ratios of what they measure.

A *workload* is something to be done; a *contender* does it, each time that it is asked, and tells how it went: a figure
for each *case*, such as "p50" and "p99", or the sizes of a growth curve. In each *round* every contender has its turn,
so that whatever else the machine does meets all of them alike. Ratios are taken within a round.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from benchmarks.processes import Failed, Missing

Measured = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done: 1.0 is the real thing."""

    factor: float = 1.0

    def count(self, full: int, least: int = 10) -> int:
        return max(least, int(full * self.factor))

    def points(self, *full: int) -> list[int]:
        """Those of a growth curve's points that are not too large, and the first two at least."""
        return [point for number, point in enumerate(full) if number < 2 or point <= full[-1] * self.factor]


class Contender(Protocol):
    """One that does the work of a workload."""

    name: str

    def open(self, stack: ExitStack) -> None:
        """Start what is needed, to be ended with the stack. Raises Missing or Failed."""

    def measure(self) -> Measured:
        """Do the work once; returns a figure for each case. Raises Missing or Failed."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What figures are in."""

    name: str
    more_is_better: bool = True


RATE = Unit("msg/s")


@dataclass(frozen=True, slots=True)
class Workload:
    """Something to be done.

    contenders: makes them; the one to which the others are compared comes first.
    unit: what the figures are in; units: the same, of the cases that have another.
    parameter: what the cases of a growth curve are: "bytes", for instance. Its cases are numbers.
    notes: what a reader of the figures should know.
    rounds: makes of the number of rounds that is asked for how many there are.
    """

    name: str
    title: str
    contenders: Callable[[Scale], Sequence[Contender]]
    unit: Unit = RATE
    units: Mapping[str, Unit] = field(default_factory=dict)
    parameter: str | None = None
    notes: Sequence[str] = ()
    rounds: Callable[[int], int] = int

    def unit_of(self, case: str) -> Unit:
        return self.units.get(case, self.unit)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, and between what they lie."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one contender in one case; a value for each round."""

    contender: str
    case: str
    values: Sequence[float]
    ratios: Sequence[float]
    """How much better the first contender was, in each round: above 1.0 it was. Empty for itself."""

    @property
    def figure(self) -> Spread:
        return Spread.of(self.values)

    @property
    def ratio(self) -> Spread | None:
        return Spread.of(self.ratios) if self.ratios else None


@dataclass(slots=True)
class Result:
    """What came of one workload.

    absent: by the name of a contender, why there are no figures of it.
    """

    workload: Workload
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def run(workload: Workload, rounds: int, scale: Scale, tell: Callable[[str], None] = lambda text: None) -> Result:
    """Run a workload. A contender that is missing, or fails, is left out, and named."""
    result = Result(workload)
    contenders = list(workload.contenders(scale))
    measured: dict[str, list[Measured]] = {contender.name: [] for contender in contenders}
    first = contenders[0].name
    with ExitStack() as stack:
        for contender in list(contenders):
            tell(f"{workload.name}: starting {contender.name}")
            own = stack.enter_context(ExitStack())
            try:
                contender.open(own)
            except (Missing, Failed) as error:
                own.close()
                contenders.remove(contender)
                result.absent[contender.name] = str(error)
        rounds = workload.rounds(rounds)
        for number in range(rounds):
            # There and back: what the order of the turns does to one, it does to the others in the next round.
            for contender in contenders[:: -1 if number % 2 else 1]:
                tell(f"{workload.name}: round {number + 1} of {rounds}, {contender.name}")
                try:
                    measured[contender.name].append(contender.measure())
                except (Missing, Failed) as error:
                    contenders.remove(contender)
                    result.absent[contender.name] = str(error)
    for contender in contenders:
        result.rows += rows(workload, contender.name, measured[contender.name], measured[first])
    return result


def rows(workload: Workload, contender: str, measured: Sequence[Measured], first: Sequence[Measured]) -> list[Row]:
    """The rows of a contender, by what it and the first one have measured in the same rounds."""
    found = []
    for case in measured[0]:
        values = [figures[case] for figures in measured]
        ratios: list[float] = []
        if measured is not first:
            pairs = [(one[case], other) for one, other in zip(first, values, strict=False) if case in one]
            if not workload.unit_of(case).more_is_better:
                pairs = [(other, one) for one, other in pairs]
            ratios = [above / below for above, below in pairs if below]
        found.append(Row(contender, case, values, ratios))
    return found
