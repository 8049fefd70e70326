"""`netcomm queue export`: writes the messages that wait to a file."""

import json
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from netcomm.cli.output import fail
from netcomm.cli.queue.backlog import find_stream, opened, plain_streams, read_messages, said
from netcomm.errors import StorageError
from netcomm.storage import StoredMessage


@click.command("export")
@click.argument("url")
@click.argument("ident", required=False)
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    required=True,
    help="The file to write; - is the standard output.",
)
def command(url: str, ident: str | None, target: Path) -> None:
    """Write the messages that wait to a file.

    IDENT is the receiver; without it, those for all are written. Each line is a JSON object: ident, seq, uuid
    (hexadecimal), queued_at (in seconds since 1970), ttl (in seconds, or null), data (base64); and subject (or null)
    and headers, where the message has them. The messages stay in the storage. A file that exists is not overwritten.
    """
    total = _Total()
    with opened(url) as storage:
        streams = plain_streams(storage) if ident is None else [find_stream(storage, ident)]
        try:
            with _written(target) as file:
                for stream in streams:
                    for message in read_messages(storage, stream):
                        file.write(json.dumps(_export_entry(stream.ident, message)) + "\n")
                        total.count += 1
                        total.size += len(message.data)
        except BrokenPipeError:
            raise
        except OSError as error:
            fail(f"can't write {target}: {error.strerror}")
        except StorageError as error:
            fail(f"{error} ({total.count:,} messages were written before)")
    click.echo(f"{total.count:,} messages, {total.size:,} bytes", err=True)


@dataclass(slots=True)
class _Total:
    count: int = 0
    size: int = 0


@contextmanager
def _written(target: Path) -> Iterator[TextIO]:
    if str(target) == "-":
        yield sys.stdout
        sys.stdout.flush()
    else:
        # It could be the storage itself. Pipes and devices may exist.
        with target.open("w" if target.exists() and not target.is_file() else "x", encoding="ascii") as file:
            yield file


def _export_entry(ident: str, message: StoredMessage) -> dict[str, Any]:
    return {
        "ident": ident,
        "seq": message.seq,
        "uuid": message.uuid.hex(),
        "queued_at": message.queued_at,
        "ttl": message.ttl,
        "data": b64encode(message.data).decode(),
        **said(message),
    }
