"""The command `netcomm queue`: look into a queue storage, take messages out, save them to a file.

It knows storages through `QueueStorage` alone, so it works with every plug-in. Like `netcomm.cli`, which imports it
when the command runs, it needs click and rich.
"""

import json
import sys
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from time import time
from typing import Any, NoReturn, TextIO
from urllib.parse import quote

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from netcomm.errors import ConfigurationError, StorageCorrupt, StorageError, StorageLocked
from netcomm.protocol.wire import printable
from netcomm.storage import Position, QueueStorage, StoredMessage, StoredStream, open_storage

# A backlog is read in chunks of so much, so that its size does not matter.
_CHUNK_COUNT = 1000
_CHUNK_BYTES = 4 * 1024 * 1024
_PREVIEW_CHARS = 48
_NOT_SHOWN = "·"


@click.group("queue")
def queue() -> None:
    """Look into a queue storage: what waits, for whom, how old, how large.

    URL names the storage, as for a peer: sqlite:///queue.db, mongodb://localhost:27017/netcomm, and what other plug-ins
    are installed; or it is the path of an SQLite file. Looking is possible while a peer uses the storage; dropping
    is not. The exit code is 1 if the storage fails, and 2 if the command can't be understood.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # an ident has any letters, and the output's encoding may not
        sys.stdout.reconfigure(errors="backslashreplace")


# -- list -----------------------------------------------------------------------------------------------------


@queue.command("list")
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_command(url: str, as_json: bool) -> None:
    """List the receivers, and what waits for each.

    Then the positions in the streams of others: how far this side has got in what was sent to it.
    """
    with _opened(url) as storage:
        store_id, incarnation = storage.store_id, storage.incarnation
        streams = sorted(storage.streams(), key=lambda stream: stream.ident)
        positions = sorted(storage.positions().items())
    now = time()
    if as_json:
        document = {
            "store_id": store_id.hex(),
            "incarnation": incarnation,
            "receivers": [_stream_entry(stream, now) for stream in streams],
            "positions": [_position_entry(ident, position) for ident, position in positions],
        }
        click.echo(json.dumps(document, indent=2))
        return
    if streams:
        _print_table(
            ["receiver", "messages >", "bytes >", "oldest >", "expires in >", "epoch", "next seq >"],
            (_stream_row(stream, now) for stream in streams),
        )
    else:
        click.echo("It has no messages, and never had any.")
    if positions:
        click.echo()
        _print_table(
            ["sender", "epoch", "next seq >"],
            ([ident, _hex(position.epoch), str(position.next_seq)] for ident, position in positions),
        )


def _stream_entry(stream: StoredStream, now: float) -> dict[str, Any]:
    return {
        "ident": stream.ident,
        "messages": stream.count,
        "bytes": stream.size,
        "oldest_at": stream.oldest_at,
        "oldest_age_s": None if stream.oldest_at is None else now - stream.oldest_at,
        "next_expiry_at": stream.next_expiry,
        "next_expiry_in_s": None if stream.next_expiry is None else stream.next_expiry - now,
        "epoch": _hex(stream.epoch),
        "next_seq": stream.next_seq,
    }


def _stream_row(stream: StoredStream, now: float) -> list[str]:
    return [
        stream.ident,
        f"{stream.count:,}",
        f"{stream.size:,}",
        _age(stream.oldest_at, now),
        _time_left(stream.next_expiry, now),
        _hex(stream.epoch),
        str(stream.next_seq),
    ]


def _position_entry(ident: str, position: Position) -> dict[str, Any]:
    return {"ident": ident, "epoch": _hex(position.epoch), "next_seq": position.next_seq}


def _hex(epoch: int) -> str:
    # It is a name, and no quantity; and many readers of JSON can't hold 64 bits in a number.
    return f"{epoch:016x}"


# -- show -----------------------------------------------------------------------------------------------------


@queue.command("show")
@click.argument("url")
@click.argument("ident")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Show at most so many messages."
)
@click.option("--from", "from_seq", type=click.IntRange(min=0), default=0, help="Begin with this seq.")
@click.option("--no-preview", is_flag=True, help="Show nothing of the payloads.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each message.")
def show_command(url: str, ident: str, limit: int, from_seq: int, no_preview: bool, as_json: bool) -> None:
    """Show the messages that wait for one receiver.

    IDENT is the receiver. Of each payload there is the beginning, as text.
    """
    rows = []
    more_from = None
    with _opened(url) as storage:
        stream = _stream(storage, ident)
        now = time()
        for number, message in enumerate(_messages(storage, stream, from_seq, limit + 1)):
            if number == limit:
                more_from = message.seq
            elif as_json:
                entry = _message_entry(message, now)
                if not no_preview:
                    entry["preview"] = _preview(message.data)
                click.echo(json.dumps(entry))
            else:
                row = _message_row(message, now)
                rows.append(row if no_preview else [*row, _preview(message.data)])
    if as_json:
        return
    if not rows:
        click.echo(f"No messages wait for {printable(ident)}" + (f" from seq {from_seq} on." if from_seq else "."))
        return
    columns = ["seq >", "uuid", "bytes >", "age >", "expires in >"]
    _print_table(columns if no_preview else [*columns, "preview"], rows)
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
        _age(message.queued_at, now),
        _time_left(message.expires_at, now),
    ]


def _preview(data: bytes) -> str:
    """The beginning of a payload; what can't be shown, or would steer the terminal, is a dot."""
    text = data[: 4 * _PREVIEW_CHARS].decode(errors="replace").replace("\N{REPLACEMENT CHARACTER}", _NOT_SHOWN)
    is_cut = len(data) > 4 * _PREVIEW_CHARS or len(text) > _PREVIEW_CHARS
    shown = "".join(char if char.isprintable() else _NOT_SHOWN for char in text[:_PREVIEW_CHARS])
    return shown + "…" if is_cut else shown


# -- drop -----------------------------------------------------------------------------------------------------


@queue.command("drop")
@click.argument("url")
@click.argument("ident")
@click.option("--seq", "seqs", type=click.IntRange(min=0), multiple=True, help="Drop this message; may be repeated.")
@click.option("--all", "drop_all", is_flag=True, help="Drop every message.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def drop_command(url: str, ident: str, seqs: tuple[int, ...], drop_all: bool, yes: bool) -> None:
    """Drop messages: nobody will get them.

    IDENT is the receiver that they wait for. No peer may use the storage meanwhile.
    """
    if bool(seqs) == drop_all:
        raise click.UsageError("say what to drop: either --seq, or --all")
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on: --yes says that you mean it")
    with _opened(url) as storage:  # for a look: an owner would make a storage that does not exist
        _stream(storage, ident)
    with _opened(url, own=True) as storage:
        stream = _stream(storage, ident)
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
            _fail(f"no message with seq {seq} waits for {stream.ident}; nothing was dropped")
    return wanted


# -- export ---------------------------------------------------------------------------------------------------


@queue.command("export")
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
def export_command(url: str, ident: str | None, target: Path) -> None:
    """Write the messages that wait to a file.

    IDENT is the receiver; without it, those for all are written. Each line is a JSON object: ident, seq, uuid
    (hexadecimal), queued_at (in seconds since 1970), ttl (in seconds, or null), data (base64). The messages stay in the
    storage. A file that exists is not overwritten.
    """
    total = _Total()
    with _opened(url) as storage:
        streams = storage.streams() if ident is None else [_stream(storage, ident)]
        try:
            with _written(target) as file:
                for stream in sorted(streams, key=lambda stream: stream.ident):
                    for message in _messages(storage, stream):
                        file.write(json.dumps(_export_entry(stream.ident, message)) + "\n")
                        total.count += 1
                        total.size += len(message.data)
        except BrokenPipeError:
            raise
        except OSError as error:
            _fail(f"can't write {target}: {error.strerror}")
        except StorageError as error:
            _fail(f"{error} ({total.count:,} messages were written before)")
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
    }


# -- The storage ----------------------------------------------------------------------------------------------


@contextmanager
def _opened(url: str, own: bool = False) -> Iterator[QueueStorage]:
    """The storage that a URL or a path names, for a look, or as its owner; an error ends the command with one line."""
    try:
        if Path(url).is_file():
            url = f"sqlite:///{quote(url)}"
        elif ":" not in url:
            raise ConfigurationError(f"{url!r} is neither a file, nor a URL such as sqlite:///queue.db")
        with closing(open_storage(url, read_only=not own)) as storage:
            yield storage
    except StorageLocked as error:
        _fail(f"{error}; end the peer that uses it first" if own else str(error))
    except StorageError as error:
        _fail(str(error))
    except ConfigurationError as error:
        _fail(str(error), code=2)


def _fail(text: str, code: int = 1) -> NoReturn:
    click.echo(f"netcomm: {printable(' '.join(text.split()))}", err=True)
    sys.exit(code)


def _stream(storage: QueueStorage, ident: str) -> StoredStream:
    streams = {stream.ident: stream for stream in storage.streams()}
    if ident not in streams:
        known = f"receivers are: {', '.join(sorted(streams))}" if streams else "it has no receivers"
        _fail(f"the storage has never had a message for {ident!r}; {known}")
    return streams[ident]


def _messages(
    storage: QueueStorage, stream: StoredStream, from_seq: int = 0, max_count: int | None = None
) -> Iterator[StoredMessage]:
    """The messages of a stream, read chunk by chunk; not those that its owner appends meanwhile."""
    left = stream.count if max_count is None else max_count
    at_once = _CHUNK_COUNT
    while left > 0:
        try:
            chunk = storage.read(stream.ident, from_seq, min(left, at_once), _CHUNK_BYTES)
        except StorageCorrupt:
            if at_once == 1:
                raise
            at_once = 1  # so that what is before the damage can be had
            continue
        chunk = [message for message in chunk if message.seq < stream.next_seq]
        if not chunk:
            return
        yield from chunk
        left -= len(chunk)
        from_seq = chunk[-1].seq + 1


# -- What is printed ------------------------------------------------------------------------------------------


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal, and aligned text elsewhere; columns whose names end with ">" are right-aligned."""
    names = [name.removesuffix(" >") for name in columns]
    to_right = [name.endswith(" >") for name in columns]
    clean = [[printable(cell) for cell in row] for row in rows]
    console = Console(highlight=False)
    if console.is_terminal:
        table = Table(box=box.ROUNDED)
        for name, right in zip(names, to_right, strict=True):
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in clean:
            table.add_row(*map(Text, row))  # as they are: an ident may look like markup
        console.print(table)
        return
    lines = [names, *clean]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, to_right, strict=True)
        click.echo(
            "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()
        )


def _age(then: float | None, now: float) -> str:
    return "-" if then is None else _duration(max(0.0, now - then))


def _time_left(then: float | None, now: float) -> str:
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
