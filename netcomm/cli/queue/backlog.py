"""Opens the storage that a command names, finds a receiver's stream in it, and reads the messages that wait there."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from netcomm.cli.output import fail
from netcomm.errors import ConfigurationError, RemoteProtocolError, StorageCorrupt, StorageError, StorageLocked
from netcomm.message import DURABLE
from netcomm.protocol.envelope import decode
from netcomm.storage import QueueStorage, StoredMessage, StoredStream
from netcomm.storage_url import open_storage

# A backlog is read in chunks of this size at most, so that memory holds only a part of it.
_CHUNK_COUNT = 1000
_CHUNK_BYTES = 4 * 1024 * 1024


@contextmanager
def opened(url: str, own: bool = False) -> Iterator[QueueStorage]:
    """Open a storage; close it at the end of `with`. An error of the storage ends the command with one line.

    url: a storage's URL, or the path of an SQLite file.
    own: open it as its owner, who may write; otherwise for a look.
    """
    try:
        if Path(url).is_file():
            url = f"sqlite:///{quote(os.fsencode(url))}"  # a file's name may be no UTF-8
        elif ":" not in url:
            raise ConfigurationError(f"{url!r} is neither a file, nor a URL such as sqlite:///queue.db")
        with closing(open_storage(url, read_only=not own)) as storage:
            yield storage
    except StorageLocked as error:
        fail(f"{error}; end the peer that uses it first" if own else str(error))
    except StorageError as error:
        fail(str(error))
    except ConfigurationError as error:
        fail(str(error), code=2)


def plain_streams(storage: QueueStorage) -> list[StoredStream]:
    """The streams of what `send` has sent, by receiver; those of the bus are none of the commands' business."""
    return sorted((each for each in storage.streams() if each.stream is DURABLE), key=lambda each: each.ident)


def find_stream(storage: QueueStorage, ident: str) -> StoredStream:
    """The stream to a receiver; ends the command if the storage has none."""
    streams = {stream.ident: stream for stream in plain_streams(storage)}
    if ident not in streams:
        known = f"receivers are: {', '.join(sorted(streams))}" if streams else "it has no receivers"
        fail(f"the storage has never had a message for {ident!r}; {known}")
    return streams[ident]


def read_messages(
    storage: QueueStorage, stream: StoredStream, from_seq: int = 0, max_count: int | None = None
) -> Iterator[StoredMessage]:
    """The messages of a stream, read chunk by chunk; not those that its owner appends meanwhile.

    from_seq: the first seq to read; max_count: how many messages to read, all where it is None.

    Raises StorageError, after all messages before the damaged one if a message is damaged.
    """
    left = stream.count if max_count is None else max_count
    at_once = _CHUNK_COUNT
    while left > 0:
        try:
            chunk = storage.read(stream.ident, from_seq, min(left, at_once), _CHUNK_BYTES)
        except StorageCorrupt:
            if at_once == 1:
                raise
            at_once = 1  # so that the messages before the damaged one can be read
            continue
        chunk = [message for message in chunk if message.seq < stream.next_seq]
        if not chunk:
            return
        yield from chunk
        left -= len(chunk)
        from_seq = chunk[-1].seq + 1


def said(message: StoredMessage) -> dict[str, Any]:
    """The subject and the headers of a message, by these names; nothing where it has no envelope."""
    if not message.envelope:
        return {}
    try:
        envelope = decode(message.envelope)
    except RemoteProtocolError as error:
        return {"envelope": f"damaged: {error}"}
    return {"subject": envelope.subject, "headers": dict(envelope.headers)}
