"""`netcomm queue list`: the receivers and what waits for each, and the positions in the streams of others."""

import json
from time import time
from typing import Any

import click

from netcomm.cli.output import age, print_table, time_left
from netcomm.cli.queue.backlog import opened, plain_streams
from netcomm.message import DURABLE
from netcomm.storage import Position, StoredStream


@click.command("list")
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(url: str, as_json: bool) -> None:
    """List the receivers, and what waits for each.

    Then the positions in the streams of others: how far this side has got in what was sent to it.
    """
    with opened(url) as storage:
        store_id, incarnation = storage.store_id, storage.incarnation
        streams = plain_streams(storage)
        bus = {each.ident: each.count for each in storage.streams() if each.stream is not DURABLE and each.count}
        positions = sorted(storage.positions().items())
    now = time()
    if as_json:
        document = {
            "store_id": store_id.hex(),
            "incarnation": incarnation,
            "receivers": [_stream_entry(stream, now) for stream in streams],
            "positions": [_position_entry(ident, position) for ident, position in positions],
            "bus": bus,
        }
        click.echo(json.dumps(document, indent=2))
        return
    if streams:
        print_table(
            ["receiver", "messages >", "bytes >", "oldest >", "expires in >", "epoch", "next seq >"],
            (_stream_row(stream, now) for stream in streams),
        )
    else:
        click.echo("It has no messages, and never had any.")
    for ident, count in sorted(bus.items()):
        click.echo(f"{count:,} messages of topics and queues wait for {ident}.")
    if positions:
        click.echo()
        print_table(
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
        age(stream.oldest_at, now),
        time_left(stream.next_expiry, now),
        _hex(stream.epoch),
        str(stream.next_seq),
    ]


def _position_entry(ident: str, position: Position) -> dict[str, Any]:
    return {"ident": ident, "epoch": _hex(position.epoch), "next_seq": position.next_seq}


def _hex(epoch: int) -> str:
    # It is a name, and no quantity; and many readers of JSON can't hold 64 bits in a number.
    return f"{epoch:016x}"
