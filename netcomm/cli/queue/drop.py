"""`netcomm queue drop`: takes messages out of a storage."""

import sys
from collections.abc import Iterable

import click

from netcomm.cli.output import fail
from netcomm.cli.queue.backlog import find_stream, opened
from netcomm.protocol.decode import printable
from netcomm.storage import QueueStorage, StoredStream


@click.command("drop")
@click.argument("url")
@click.argument("ident")
@click.option("--seq", "seqs", type=click.IntRange(min=0), multiple=True, help="Drop this message; may be repeated.")
@click.option("--all", "drop_all", is_flag=True, help="Drop every message.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def command(url: str, ident: str, seqs: tuple[int, ...], drop_all: bool, yes: bool) -> None:
    """Drop messages: nobody will get them.

    IDENT is the receiver that they wait for. No peer may use the storage meanwhile.
    """
    if bool(seqs) == drop_all:
        raise click.UsageError("say what to drop: either --seq, or --all")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: --yes says that you mean it")
    with opened(url) as storage:  # for a look: an owner would make a storage that does not exist
        find_stream(storage, ident)
    with opened(url, own=True) as storage:
        stream = find_stream(storage, ident)
        found = stream.count if drop_all else len(_check_seqs(storage, stream, seqs))
        if not found:
            click.echo(f"No messages wait for {printable(ident)}.")
            return
        messages = "1 message" if found == 1 else f"{found:,} messages"
        if not yes:
            click.confirm(f"Drop {messages} for {printable(ident)}?", abort=True)
        if drop_all:
            storage.delete_below(ident, stream.next_seq)
        else:
            storage.delete(ident, sorted(set(seqs)))
    # Only now, since a storage may put off what it was asked for until it is closed.
    click.echo(f"dropped {messages} for {printable(ident)}")


def _check_seqs(storage: QueueStorage, stream: StoredStream, seqs: Iterable[int]) -> list[int]:
    """The seqs, each once; ends the command where one of them is not there."""
    wanted = sorted(set(seqs))
    for seq in wanted:
        if not any(message.seq == seq for message in storage.read(stream.ident, seq, 1, 1)):
            fail(f"no message with seq {seq} waits for {stream.ident}; nothing was dropped")
    return wanted
