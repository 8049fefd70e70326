"""The command `netcomm`: the group of all commands, each of which is a module of this package.

click and rich, the extra `cli`, are imported when a command runs, and in this package alone.
"""

import sys
from importlib.util import find_spec

import netcomm

_NEEDED = ("click", "rich")
_SUMMARIES = {
    "demo": "Send files between two processes, and break whatever can break.",
    "queue": "Look into a queue storage: what waits, for whom, how old, how large.",
}


def main() -> None:
    """Run the command."""
    if not all(find_spec(name) for name in _NEEDED):
        print("netcomm: this command needs click and rich: pip install 'netcomm[cli]'", file=sys.stderr)
        sys.exit(2)

    import click

    from netcomm.cli.group import CommandGroup

    @click.group(
        cls=CommandGroup,
        package=__name__,
        summaries=_SUMMARIES,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    @click.version_option(netcomm.__version__, prog_name="netcomm")
    def group() -> None:
        """Brokerless, reliable messaging between Python processes."""

    group(prog_name="netcomm")
