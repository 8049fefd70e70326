"""What commands print: tables, durations, and the one line that says why a command has failed."""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from netcomm.protocol.decode import printable

if TYPE_CHECKING:
    from rich.console import Console


def fail(text: str, code: int = 1) -> NoReturn:
    """End the command with one line on the standard error.

    code: the exit code: 1 if the command has failed, 2 if it can't be understood.
    """
    click.echo(f"netcomm: {printable(' '.join(text.split()))}", err=True)
    sys.exit(code)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on a terminal, and aligned text elsewhere; columns whose names end with ">" are right-aligned."""
    from rich.console import Console  # slow to import, and a command that prints no table does without

    names = [name.removesuffix(" >") for name in columns]
    to_right = [name.endswith(" >") for name in columns]
    clean = [[printable(cell) for cell in row] for row in rows]
    console = Console(highlight=False)
    if console.is_terminal:
        _print_with_frame(console, names, to_right, clean)
    else:
        _print_aligned(names, to_right, clean)


def _print_with_frame(
    console: "Console", names: Sequence[str], to_right: Sequence[bool], rows: Iterable[Sequence[str]]
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ROUNDED)
    for name, right in zip(names, to_right, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as they are: an ident may look like markup
    console.print(table)


def _print_aligned(names: Sequence[str], to_right: Sequence[bool], rows: Iterable[Sequence[str]]) -> None:
    lines = [names, *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, to_right, strict=True)
        click.echo(
            "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()
        )


def age(then: float | None, now: float) -> str:
    """How long ago a time was, in words; both are in seconds since 1970."""
    return "-" if then is None else _duration(max(0.0, now - then))


def time_left(then: float | None, now: float) -> str:
    """How long it is until a time, in words; both are in seconds since 1970."""
    if then is None:
        return "-"
    return _duration(then - now) if then > now else "expired"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
