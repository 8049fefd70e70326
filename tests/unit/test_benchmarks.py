"""The benchmarks: that the harness reckons rightly, and that each workload runs, small, with netcomm alone."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from benchmarks import layers
from benchmarks.harness import Contender, Measured, Result, Scale, Spread, Unit, Workload, run
from benchmarks.payloads import Check, StreamsCheck, make
from benchmarks.processes import Child, Control, Failed, Missing
from benchmarks.targets import Target
from benchmarks.workloads import ALL

_TINY = Scale(1e-5)


@dataclass
class _Told:
    """A contender that measures what it was told to, and writes down when it had its turn."""

    name: str
    figures: list[float | Exception]
    turns: list[str] = field(default_factory=list)
    missing: str | None = None

    def open(self, stack: ExitStack) -> None:
        if self.missing is not None:
            raise Missing(self.missing)
        stack.callback(self.turns.append, f"end {self.name}")

    def measure(self) -> Measured:
        self.turns.append(self.name)
        figure = self.figures.pop(0)
        if isinstance(figure, Exception):
            raise figure
        return {"": figure}


def _run(*contenders: Contender, more_is_better: bool = True, rounds: int = 3) -> Result:
    workload = Workload("told", "", lambda scale: contenders, unit=Unit("", more_is_better))
    return run(workload, rounds, Scale())


def test_contenders_take_turns_there_and_back() -> None:
    turns: list[str] = []
    _run(_Told("a", [1, 1, 1], turns), _Told("b", [1, 1, 1], turns), rounds=3)
    assert turns == ["a", "b", "b", "a", "a", "b", "end b", "end a"]


def test_ratios_are_taken_within_a_round_and_then_their_median() -> None:
    own, other = _run(_Told("own", [10, 40, 90]), _Told("other", [5, 40, 30])).rows
    assert own.figure == Spread(40, 10, 90)
    assert own.ratio is None
    assert other.figure == Spread(30, 5, 40)
    assert other.ratio == Spread(2.0, 1.0, 3.0)  # and not 40 / 30


def test_where_less_is_better_the_ratio_is_turned_round() -> None:
    rows = _run(_Told("own", [2, 2, 2]), _Told("other", [1, 4, 6]), more_is_better=False).rows
    assert rows[1].ratio == Spread(2.0, 0.5, 3.0)


def test_a_figure_of_nothing_has_no_ratio() -> None:
    rows = _run(_Told("own", [0, 0, 0]), _Told("other", [0, 0, 0]), more_is_better=False).rows
    assert rows[1].ratio is None


def test_who_is_missing_or_fails_is_named_with_the_reason_and_the_others_go_on() -> None:
    contenders = _Told("own", [1, 2, 3]), _Told("away", [], missing="no such module"), _Told("ill", [1, Failed("ouch")])
    result = _run(*contenders)
    assert result.absent == {"away": "no such module", "ill": "ouch"}
    assert [(row.contender, list(row.values)) for row in result.rows] == [("own", [1, 2, 3])]


@pytest.mark.parametrize(
    ("target", "verdict"),
    [
        (Target("told", "other", least=2.0), "met"),
        (Target("told", "other", least=2.1), "missed"),
        (Target("told", "other", of="figure", most=30), "met"),
        (Target("told", "other", of="figure", most=29), "missed"),
    ],
)
def test_a_target_is_met_by_the_median(target: Target, verdict: str) -> None:
    result = _run(_Told("own", [10, 40, 90]), _Told("other", [5, 40, 30]))
    assert target.judge(result, result.rows[1])[1] == verdict


@pytest.mark.parametrize("size", [1, 7, 8, 100])
def test_a_check_accepts_what_was_made_and_counts_what_is_wrong(size: int) -> None:
    messages = make(300, size)
    assert {len(message) for message in messages} == {size}
    check = Check(300, size)
    for message in messages:
        assert not check.complete.is_set()
        check.take(message)
    assert (check.taken, check.wrong, check.complete.is_set()) == (300, 0, True)

    check = Check(2, size)
    check.take(messages[1])
    check.take(messages[1] + b"x")
    assert check.wrong == 2


def test_a_check_of_streams_wants_each_in_order() -> None:
    messages = make(6, 10)
    check = StreamsCheck(6, 10, 2)
    for number in (3, 0, 4, 1, 2, 5):
        check.take(messages[number])
    assert (check.wrong, check.complete.is_set()) == (0, True)
    check = StreamsCheck(6, 10, 2)
    for number in (0, 2, 3, 3):
        check.take(messages[number])
    assert check.wrong == 2


def _misbehave(control: Control, how: str) -> None:
    if how == "raise":
        raise ValueError("oops")
    if how == "import":
        import there_is_no_such_module  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [("raise", Failed, "oops"), ("import", Missing, "there_is_no_such_module"), ("end", Failed, "has died")],
)
def test_what_goes_wrong_in_a_process_is_told(how: str, error: type[Exception], text: str) -> None:
    with Child(_misbehave, how=how) as child, pytest.raises(error, match=text):
        child.hear(60)


@pytest.mark.parametrize("workload", ALL.values(), ids=ALL)
def test_each_workload_runs_with_netcomm(workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    contenders = [contender for contender in workload.contenders(_TINY) if contender.name.startswith("netcomm")]
    result = run(replace(workload, contenders=lambda scale: contenders, rounds=int), 1, _TINY)
    assert result.absent == {}
    assert {row.contender for row in result.rows} == {contender.name for contender in contenders}
    for row in result.rows:
        assert row.figure.median > 0 or workload.name == "idle"
    assert list(tmp_path.iterdir()) == []


def test_the_cost_of_the_layers_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "COUNT", 20)
    monkeypatch.setattr(layers, "ROUNDS", 1)
    monkeypatch.setattr("sys.argv", ["layers", "10"])
    layers.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.endswith(" µs") for line in lines)
