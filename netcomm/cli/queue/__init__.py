"""The commands `netcomm queue …`: look into a queue storage, take messages out, save them to a file.

They know storages through `QueueStorage` alone, so they work with every plug-in.
"""

import sys
from io import TextIOWrapper

import click

from netcomm.cli.group import CommandGroup

_SUMMARIES = {
    "drop": "Drop messages: nobody will get them.",
    "export": "Write the messages that wait to a file.",
    "list": "List the receivers, and what waits for each.",
    "show": "Show the messages that wait for one receiver.",
}


@click.group("queue", cls=CommandGroup, package=__name__, summaries=_SUMMARIES)
def command() -> None:
    """Look into a queue storage: what waits, for whom, how old, how large.

    URL names the storage, as for a peer: sqlite:///queue.db, mongodb://localhost:27017/netcomm, and what other plug-ins
    are installed; or it is the path of an SQLite file. Looking is possible while a peer uses the storage; dropping
    is not. The exit code is 1 if the storage fails, and 2 if the command can't be understood.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # an ident has any letters, and the output's encoding may not
        sys.stdout.reconfigure(errors="backslashreplace")
