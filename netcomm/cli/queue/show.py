"""`netcomm queue show`: the messages that wait for one receiver."""

import json
from time import time
from typing import Any

import click

from netcomm.cli.output import age, print_table, time_left
from netcomm.cli.queue.backlog import find_stream, opened, read_messages, said
from netcomm.protocol.decode import printable
from netcomm.storage import StoredMessage

_PREVIEW_CHARS = 48
_NOT_SHOWN = "·"


@click.command("show")
@click.argument("url")
@click.argument("ident")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show at most so many messages."
)
@click.option("--from", "from_seq", type=click.IntRange(min=0), default=0, help="Begin with this seq.")
@click.option("--no-preview", is_flag=True, help="Show nothing of the payloads.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each message.")
def command(url: str, ident: str, limit: int, from_seq: int, no_preview: bool, as_json: bool) -> None:
    """Show the messages that wait for one receiver.

    IDENT is the receiver. Of each payload there is the beginning, as text, behind the subject and the headers, where
    the message has them.
    """
    rows = []
    more_from = None
    with opened(url) as storage:
        stream = find_stream(storage, ident)
        now = time()
        for number, message in enumerate(read_messages(storage, stream, from_seq, limit + 1)):
            if number == limit:
                more_from = message.seq
            elif as_json:
                entry = _message_entry(message, now)
                if not no_preview:
                    entry |= said(message)
                    entry["preview"] = _preview(message.data)
                click.echo(json.dumps(entry))
            else:
                row = _message_row(message, now)
                rows.append(row if no_preview else [*row, _described(message) + _preview(message.data)])
    if as_json:
        return
    if not rows:
        click.echo(f"No messages wait for {printable(ident)}" + (f" from seq {from_seq} on." if from_seq else "."))
        return
    columns = ["seq >", "uuid", "bytes >", "age >", "expires in >"]
    print_table(columns if no_preview else [*columns, "preview"], rows)
    if more_from is not None:
        click.echo(f"There are more: --from {more_from}")


def _message_entry(message: StoredMessage, now: float) -> dict[str, Any]:
    return {
        "seq": message.seq,
        "uuid": message.uuid.hex(),
        "bytes": len(message.data),
        "queued_at": message.queued_at,
        "age_s": now - message.queued_at,
        "ttl": message.ttl,
        "ttl_left_s": None if message.expires_at is None else message.expires_at - now,
    }


def _message_row(message: StoredMessage, now: float) -> list[str]:
    return [
        str(message.seq),
        message.uuid.hex(),
        f"{len(message.data):,}",
        age(message.queued_at, now),
        time_left(message.expires_at, now),
    ]


def _described(message: StoredMessage) -> str:
    """The subject and the headers of a message, for a table."""
    found = said(message)
    parts = [] if found.get("subject") is None else [found["subject"]]
    parts += [f"{key}={value}" for key, value in found.get("headers", {}).items()]
    parts += [found["envelope"]] if "envelope" in found else []
    return f"[{_preview(' '.join(parts).encode())}] " if parts else ""


def _preview(data: bytes) -> str:
    """The beginning of a payload; what can't be shown, or would steer the terminal, is a dot."""
    text = data[: 4 * _PREVIEW_CHARS].decode(errors="replace").replace("\N{REPLACEMENT CHARACTER}", _NOT_SHOWN)
    is_cut = len(data) > 4 * _PREVIEW_CHARS or len(text) > _PREVIEW_CHARS
    shown = "".join(char if char.isprintable() else _NOT_SHOWN for char in text[:_PREVIEW_CHARS])
    return shown + "…" if is_cut else shown
