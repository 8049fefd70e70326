"""Tells what came out: as a table, as JSON, as a picture."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Result, Row, Spread
from benchmarks.targets import target_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PACKAGES = (
    "netcomm", "snakeMQ", "pyzmq", "pynng", "nats-py", "pika", "rpyc", "Pyro5", "litequeue", "persist-queue"
)  # fmt: skip
_WIDE = 150  # columns, where there is no terminal to say how many there are
_COLUMNS = 3  # of the picture


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


# -- The table ------------------------------------------------------------------------------------------------


def console() -> Console:
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, _WIDE)
    return made


def print_result(out: Console, result: Result) -> None:
    """A table of one workload, with what a reader should know below it."""
    workload = result.workload
    first = result.rows[0].contender if result.rows else "netcomm"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    if any(row.case for row in result.rows):
        table.add_column(workload.parameter or "")
    for heading in ("median", "from", "to"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column(f"{first} is better by", justify="right")
    table.add_column("target")
    for row in result.rows:
        figure = row.figure
        cells = [row.contender, *([row.case] if any(row.case for row in result.rows) else [])]
        cells += [_number(value) for value in (figure.median, figure.least, figure.most)]
        table.add_row(*cells, workload.unit_of(row.case).name, _ratio(row.ratio), _target(result, row))
    out.print(f"[bold]{workload.name}[/]: {workload.title}")
    out.print(table)
    for name, reason in result.absent.items():
        out.print(f"  [yellow]without {name}:[/] {reason.strip()}")
    for note in workload.notes:
        out.print(f"  [dim]{note}[/]")
    out.print()


def print_targets(out: Console, results: Sequence[Result]) -> None:
    """How many targets are met, and which are missed."""
    verdicts = [
        (f"{result.workload.name} {row.contender} {row.case}".strip(), target[1])
        for result in results
        for row in result.rows
        if (target := target_of(result, row)) is not None
    ]
    missed = [name for name, verdict in verdicts if verdict == "missed"]
    out.print(f"{len(verdicts) - len(missed)} of {len(verdicts)} targets are met")
    if missed:
        out.print("missed: " + ", ".join(missed))


def _target(result: Result, row: Row) -> str:
    target = target_of(result, row)
    if target is None:
        return ""
    text, verdict = target
    return f"{text}  [{'green' if verdict == 'met' else 'red'}]{verdict}[/]"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{_number(spread.median)} x ({_number(spread.least)}..{_number(spread.most)})"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# -- JSON -----------------------------------------------------------------------------------------------------


def write_json(path: Path, results: Sequence[Result]) -> None:
    content = {
        **environment(),
        "workloads": {result.workload.name: _as_json(result) for result in results},
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _as_json(result: Result) -> dict[str, Any]:
    workload = result.workload
    return {
        "title": workload.title,
        "parameter": workload.parameter,
        "notes": list(workload.notes),
        "absent": result.absent,
        "rows": [
            {
                "contender": row.contender,
                "case": row.case,
                "unit": workload.unit_of(row.case).name,
                "values": list(row.values),
                "figure": asdict(row.figure),
                "ratio": None if row.ratio is None else asdict(row.ratio),
                "target": target_of(result, row),
            }
            for row in result.rows
        ],
    }


# -- The picture ----------------------------------------------------------------------------------------------


def write_plot(path: Path, results: Sequence[Result]) -> None:
    """A panel for each workload: bars, or curves where something grows. The kind is that of the file's name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [result for result in results if result.rows]
    figure, grid = pyplot.subplots(
        ceil(len(shown) / _COLUMNS),
        _COLUMNS,
        figsize=(6 * _COLUMNS, 3.2 * ceil(len(shown) / _COLUMNS)),
        squeeze=False,
        layout="constrained",
    )
    panels = list(grid.flat)
    for axes, result in zip(panels, shown, strict=False):
        axes.set_title(result.workload.name, fontsize="medium", loc="left")
        (_bars if result.workload.parameter is None else _curves)(axes, result)
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.savefig(path)
    pyplot.close(figure)


def _bars(axes: "Axes", result: Result) -> None:
    unit = result.workload.unit
    rows = [row for row in reversed(result.rows) if result.workload.unit_of(row.case) == unit]  # the first one on top
    names = [f"{row.contender} {row.case}".strip() for row in rows]
    medians = [row.figure.median for row in rows]
    below = [row.figure.median - row.figure.least for row in rows]
    above = [row.figure.most - row.figure.median for row in rows]
    own = result.rows[0].contender
    colors = ["tab:blue" if row.contender.startswith(own) else "tab:gray" for row in rows]
    bars = axes.barh(names, medians, xerr=(below, above), color=colors, ecolor="black", capsize=2)
    axes.bar_label(bars, [f" {_number(median)}" for median in medians], fontsize="small")
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit.name)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelsize="small")


def _curves(axes: "Axes", result: Result) -> None:
    for contender in dict.fromkeys(row.contender for row in result.rows):
        rows = [row for row in result.rows if row.contender == contender]
        points = [float(row.case) for row in rows]
        axes.plot(points, [row.figure.median for row in rows], marker="o", markersize=3, label=contender)
        axes.fill_between(
            points, [row.figure.least for row in rows], [row.figure.most for row in rows], alpha=0.2, linewidth=0
        )
    axes.set(xscale="log", yscale="log", xlabel=result.workload.parameter, ylabel=result.workload.unit.name)
    axes.tick_params(labelsize="small")
    axes.legend(fontsize="small")
