"""A group of commands that are modules of one package; a command is imported when it runs, or shows its help."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class CommandGroup(click.Group):
    """A group whose help imports none of its commands."""

    def __init__(self, *args: Any, package: str, summaries: Mapping[str, str], **more: Any) -> None:
        """Make the group; the other arguments are those of `click.Group`.

        package: its module NAME has the command NAME, in the variable `command`.
        summaries: the line that the group's help has for each command, by the command's name.
        """
        super().__init__(*args, **more)
        self._package = package
        self._summaries = summaries

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in alphabetical order."""
        return sorted(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported; None if there is none."""
        if cmd_name not in self._summaries:
            return None
        command: click.Command = import_module(f"{self._package}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summaries[name]) for name in self.list_commands(ctx)])
