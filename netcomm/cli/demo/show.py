"""What the demo prints: a bar on a terminal with lines above it, lines elsewhere, and a table at the end."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box, progress
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from netcomm.cli.demo.judge import Report
from netcomm.cli.demo.plan import Piece, standard_library
from netcomm.protocol.decode import printable

_SHOWN_NAMES = 5
_WIDE = 100  # columns


def make_console() -> Console:
    """The terminal, or the file, that the demo prints to."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no width of its own, and the table needs so much
        console.width = max(console.width, _WIDE)
    return console


class Stage:
    """Shows how the demo goes: a bar on a terminal, with lines above it; lines only elsewhere."""

    def __init__(self, console: Console, pieces: list[Piece], path: Path | None) -> None:
        self._console = console
        size = sum(piece.size for piece in pieces)
        count = len({piece.name for piece in pieces})
        place = f"Python's standard library, {standard_library()}" if path is None else str(path)
        self._say(f"{count:,} {'file' if count == 1 else 'files'}, {decimal(size)}, from {place}", "bold")
        self._bar = progress.Progress(
            progress.TextColumn("{task.percentage:>3.0f} %"),
            progress.BarColumn(bar_width=None),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        # A bar of nothing at all would never be full: files may be empty.
        self._task = self._bar.add_task("", total=max(size, 1), completed=0 if size else 1)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._say(text, "dim")

    def fault(self, text: str) -> None:
        """Print a line that stands out: this is what it is about."""
        self._say(text, "yellow")

    def recovered(self, text: str) -> None:
        """Print a line that stands out."""
        self._say(text, "green")

    def progress(self, arrived_bytes: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=arrived_bytes)

    def _say(self, text: str, style: str) -> None:
        # File names may contain anything, also what would steer the terminal, or the markup.
        self._console.print(printable(text), style=style, markup=False, soft_wrap=True)


def print_report(console: Console, report: Report) -> None:
    """Print the table, the names of files with which something is wrong, and what to make of it."""
    console.print(_table(report, narrow=console.width < _WIDE))
    for what, names in _faulty_names(report):
        for name in names[:_SHOWN_NAMES]:
            console.print(f"{what}: {printable(name)}", style="red", markup=False, soft_wrap=True)
        if len(names) > _SHOWN_NAMES:
            console.print(f"{what}: and {len(names) - _SHOWN_NAMES:,} more", style="red", soft_wrap=True)
    if report.repeated:
        console.print(
            f"repeated by the sender: {report.repeated:,}; it was killed before it had noted that they were accepted",
            style="dim",
            soft_wrap=True,
        )
    if not report.good:
        return
    if report.redelivered or report.repeated:
        end = "Every file has arrived, unchanged; nothing was handed over again without being marked."
    else:
        end = "Every file has arrived, once and unchanged."
    console.print(end, style="green", soft_wrap=True)


def _faulty_names(report: Report) -> Iterable[tuple[str, list[str]]]:
    return ("lost", report.lost), ("duplicated", report.duplicated), ("wrong hash", report.wrong)


def _table(report: Report, narrow: bool) -> Table:
    cells = {
        "files": (f"{report.files:,}", ""),
        "bytes": (f"{report.bytes:,}", ""),
        "seconds": (f"{report.seconds:.2f}", ""),
        "reconnects": (f"{report.reconnects:,}", ""),
        "redelivered": (f"{report.redelivered:,}", ""),
    }
    for what, names in _faulty_names(report):
        cells[what] = (f"{len(names):,}", "bold red" if names else "green")
    table = Table(box=box.ROUNDED, padding=0 if narrow else (0, 1))
    for what in cells:
        table.add_column(what, justify="right", no_wrap=True)
    table.add_row(*(f"[{style}]{text}[/]" if style else text for text, style in cells.values()))
    return table
