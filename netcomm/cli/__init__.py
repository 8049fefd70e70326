"""The command `netcomm`.

click and rich, the extra `cli`, are imported here and in `netcomm.cli.queue`, when the command runs, and nowhere else.
"""

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import netcomm
from netcomm.cli import demo
from netcomm.protocol.wire import printable

if TYPE_CHECKING:
    import click
    from rich.console import Console
    from rich.table import Table

_SHOWN_NAMES = 5
_WIDE = 100  # columns
_INTERRUPTED = 130  # what a shell says of a command that Ctrl-C has ended


def main() -> None:
    """Run the command."""
    try:
        command = _command()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        print("netcomm: this command needs click and rich: pip install 'netcomm[cli]'", file=sys.stderr)
        sys.exit(2)
    command(prog_name="netcomm")


def _command() -> "click.Group":
    import click
    import rich.console
    import rich.progress

    from netcomm.cli import queue

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(netcomm.__version__, prog_name="netcomm")
    def group() -> None:
        """Brokerless, reliable messaging between Python processes."""

    @group.command("demo")
    @click.argument("path", required=False, type=click.Path(exists=True, readable=True, path_type=Path))
    def demo_command(path: Path | None) -> None:
        """Send files between two processes, and break whatever can break.

        PATH is a file or a folder; without it, the sources of Python's own standard library are sent. A listener and a
        connector are started as processes of their own, on this machine, with a queue storage each. Meanwhile the
        connection is cut, the listener is killed and started anew, and the connector too. The listener checks what
        arrives against what was sent. The exit code is 0 if nothing was lost, nothing was handed over again without
        being marked as redelivered, and every hash is right; and 1 if not.
        """
        console = rich.console.Console(highlight=False)
        if not console.is_terminal:  # a file has no width of its own, and the table needs so much
            console.width = max(console.width, _WIDE)
        try:
            pieces = demo.plan(path)
        except demo.NothingToSend as error:
            raise click.BadParameter(str(error), param_hint="PATH") from error
        try:
            with _Stage(console, pieces, path) as stage:
                report = demo.run(pieces, stage)
                stage.progress(report.bytes)
        except KeyboardInterrupt:
            console.print("interrupted; the processes have been ended")
            sys.exit(_INTERRUPTED)
        except demo.DemoError as error:
            raise click.ClickException(str(error)) from error
        _print_report(console, report)
        sys.exit(0 if report.good else 1)

    group.add_command(queue.queue)
    return group


class _Stage:
    """Shows how the demo goes: a bar on a terminal, with lines above it; lines only elsewhere."""

    def __init__(self, console: "Console", pieces: list[demo.Piece], path: Path | None) -> None:
        from rich import progress
        from rich.filesize import decimal

        self._console = console
        size = sum(piece.size for piece in pieces)
        count = len({piece.name for piece in pieces})
        place = f"Python's standard library, {demo.standard_library()}" if path is None else str(path)
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


def _print_report(console: "Console", report: demo.Report) -> None:
    console.print(_table(report, narrow=console.width < _WIDE))
    for what, names in (("lost", report.lost), ("duplicated", report.duplicated), ("wrong hash", report.wrong)):
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


def _table(report: demo.Report, narrow: bool) -> "Table":
    from rich import box
    from rich.table import Table

    cells = {
        "files": (f"{report.files:,}", ""),
        "bytes": (f"{report.bytes:,}", ""),
        "seconds": (f"{report.seconds:.2f}", ""),
        "reconnects": (f"{report.reconnects:,}", ""),
        "redelivered": (f"{report.redelivered:,}", ""),
    }
    for what, names in (("lost", report.lost), ("duplicated", report.duplicated), ("wrong hash", report.wrong)):
        cells[what] = (f"{len(names):,}", "bold red" if names else "green")
    table = Table(box=box.ROUNDED, padding=0 if narrow else (0, 1))
    for what in cells:
        table.add_column(what, justify="right", no_wrap=True)
    table.add_row(*(f"[{style}]{text}[/]" if style else text for text, style in cells.values()))
    return table
