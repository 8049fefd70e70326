"""`SqliteQueueStorage`: what `QueueStorage` asks for, as changes and reads of one file."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from urllib.parse import parse_qsl, unquote_to_bytes

from sqlite_utils import Database

from netcomm.errors import ConfigurationError, StorageUnavailable
from netcomm.host_changes import merge
from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep, HostStorage, PositionKey
from netcomm.message import DURABLE
from netcomm.message import Stream as Kind
from netcomm.storage import Append, Position, StoredMessage, StoredStream
from netcomm_sqlite import host_table, log_table, message_table, position_table
from netcomm_sqlite.failures import is_full
from netcomm_sqlite.look import Look
from netcomm_sqlite.message_table import INSERTS, message_row
from netcomm_sqlite.names import Names
from netcomm_sqlite.owned_file import SETTINGS, Durability, OwnedFile
from netcomm_sqlite.stream_table import (
    LOG,
    MAX_UNCOUNTED,
    PART_SIZE,
    Stream,
    StreamKey,
    add_part,
    add_stream,
    update_stream,
)

# Where a deletion needs more of the log than there is, it is made in pieces of so many messages, or of fewer.
_PIECE = 1024


class SqliteQueueStorage(HostStorage):
    """A queue storage in one SQLite file, in WAL mode."""

    keeps_envelopes = True

    def __init__(
        self, path: str | os.PathLike[str], *, durability: Durability = "power", read_only: bool = False
    ) -> None:
        """Open the file, and make it where it does not exist.

        durability: "power": what was stored survives a power cut; "process": it survives the death of the process,
            but a power cut may take the last moments.
        read_only: open it for a look, also while it has an owner.

        Raises StorageLocked where another owner has it, in this process or another, by this name or another;
        StorageCorrupt where its content is damaged; StorageError; ConfigurationError.
        """
        if durability not in SETTINGS:
            raise ConfigurationError(f"durability must be 'power' or 'process', not {durability!r}")
        if "\0" in os.fsdecode(path):
            raise ConfigurationError(f"a path has no NUL character: {path!r}")
        self._names = Names(path)
        self._file: OwnedFile | Look = Look(self._names) if read_only else OwnedFile(self._names, durability)

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `sqlite:///relative/path` or `sqlite:////absolute/path`, percent-encoded; `?durability=process`."""
        # By hand: urlsplit would cut a path at "#", and leave tabs and line ends out, so that two queues share a file.
        address, _, query = url.partition("?")
        slashes, path = address.partition(":")[2][:3], os.fsdecode(unquote_to_bytes(address.partition(":")[2][3:]))
        if slashes != "///" or not path:
            raise ConfigurationError(
                f"an SQLite URL is sqlite:///relative/path or sqlite:////absolute/path, not {url!r}"
            )
        options = dict(parse_qsl(query, keep_blank_values=True))
        durability: Any = options.pop("durability", "power")
        if options:
            raise ConfigurationError(f"unknown options in {url!r}: {', '.join(options)}; there is 'durability'")
        return cls(path, durability=durability, read_only=read_only)

    @property
    def database(self) -> Database:
        """The file as a sqlite-utils `Database`, on the storage's own connection; look, and don't write.

        Raises StorageError in a forked child.
        """
        self._file.check_process()
        return Database(self._file.db)

    @property
    def store_id(self) -> bytes:
        return self._file.store_id

    @property
    def incarnation(self) -> int:
        return self._file.incarnation

    # -- Messages ---------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        if len(batch) == 1 and len(batch[0].messages) == 1:
            ident, _, (message,), kind = batch[0]
            if self._append_to_tail((ident, kind), message):
                return

        def step(file: OwnedFile) -> dict[StreamKey, Stream]:
            db = file.db
            changed: dict[StreamKey, Stream] = {}
            for ident, epoch, messages, kind in batch:
                key = ident, kind
                stream = changed.get(key) or file.streams.get(key) or add_stream(db, key, epoch)
                number, _, epoch, next_seq, sent_below, stored, size, parts, _, _ = stream
                rows = []
                for message in messages:
                    if not parts or message.seq >= parts[-1].first_seq + PART_SIZE:
                        parts = (*parts, add_part(db, number, message.seq))
                    row = message_row(number, parts[-1], message, 0)
                    rows.append(row)
                    size += row[2]
                    next_seq = max(next_seq, message.seq + 1)
                message_table.insert(db, INSERTS, rows)
                stored += len(rows)
                changed[key] = update_stream(
                    db, Stream(number, ident, epoch, next_seq, sent_below, stored, size, parts, 0, kind)
                )
            file.space.ensure_pages()
            return changed

        self._file.change(step, is_append=True)

    def _append_to_tail(self, key: StreamKey, message: StoredMessage) -> bool:
        """Store a message without a change to the row of its stream; returns False where that can't be."""
        done = False

        def step(file: OwnedFile) -> dict[StreamKey, Stream]:
            nonlocal done
            stream = file.streams.get(key)
            if stream is None or not stream.parts or stream.uncounted >= MAX_UNCOUNTED:
                return {}
            number, ident, epoch, next_seq, sent_below, stored, size, parts, uncounted, kind = stream
            if message.seq < next_seq or message.seq >= parts[-1].first_seq + PART_SIZE:
                return {}
            tail_number = uncounted + 1
            row = message_row(number, parts[-1], message, tail_number)
            file.space.ensure_room(row[2])
            file.db.execute(INSERTS[len(row)], row)
            done = True
            return {
                key: Stream(
                    number,
                    ident,
                    epoch,
                    message.seq + 1,
                    sent_below,
                    stored + 1,
                    size + row[2],
                    parts,
                    tail_number,
                    kind,
                )
            }

        self._file.change(step, one_statement=True, is_append=True)
        return done

    def read(
        self, ident: str, from_seq: int, max_count: int, max_bytes: int, stream: Kind = DURABLE
    ) -> list[StoredMessage]:
        with self._file.reading() as db:
            found = self._file.stream(db, (ident, stream))
            return [] if found is None else message_table.read(db, found, from_seq, max_count, max_bytes)

    def delete_below(self, ident: str, seq: int, stream: Kind = DURABLE) -> None:
        self._delete((ident, stream), [(0, seq)])

    def delete(self, ident: str, seqs: Sequence[int], stream: Kind = DURABLE) -> None:
        # One that is named twice is counted once.
        self._delete((ident, stream), [(seq, seq + 1) for seq in sorted(set(seqs))])

    def _delete(self, key: StreamKey, ranges: Sequence[tuple[int, int]]) -> None:
        piece: int | None = None
        is_complete = False

        def step(file: OwnedFile) -> dict[StreamKey, Stream]:
            nonlocal is_complete
            stream = file.streams.get(key)
            if stream is None:
                is_complete = True
                return {}
            stream, is_complete = message_table.delete(file.db, stream, ranges, piece)
            return {key: update_stream(file.db, stream)}

        while not is_complete:
            try:
                self._file.change(step)
            except StorageUnavailable as error:
                # Each page that changes takes a place in the log: those of a large backlog, more than a full disk has.
                if piece == 1 or not is_full(error.__cause__):
                    raise
                is_complete = False
                piece = _PIECE if piece is None else max(1, piece // 4)

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int, stream: Kind = DURABLE
    ) -> tuple[list[StoredMessage], float | None]:
        with self._file.reading() as db:
            found = self._file.stream(db, (ident, stream))
            return ([], None) if found is None else message_table.expired(db, found, from_seq, now, max_count)

    # -- Streams and positions --------------------------------------------------------------------------------

    def streams(self) -> list[StoredStream]:
        with self._file.reading() as db:
            streams = self._file.all_streams(db).values()
            return [message_table.summary(db, stream) for stream in streams if stream.kind != LOG]

    def mark_sent(self, ident: str, below: int, stream: Kind = DURABLE) -> None:
        self._change_stream((ident, stream), lambda stream: stream._replace(sent_below=below))

    def renew(self, ident: str, epoch: int, stream: Kind = DURABLE) -> None:
        self._change_stream((ident, stream), lambda stream: stream._replace(epoch=epoch, sent_below=stream.next_seq))

    def _change_stream(self, key: StreamKey, change: Callable[[Stream], Stream]) -> None:
        def step(file: OwnedFile) -> dict[StreamKey, Stream]:
            stream = file.streams.get(key)
            return {} if stream is None else {key: update_stream(file.db, change(stream))}

        self._file.change(step)

    def positions(self) -> dict[str, Position]:
        with self._file.reading() as db:
            return position_table.load(db)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        self._file.change(lambda file: position_table.store(file.db, positions))

    # -- What a host keeps ------------------------------------------------------------------------------------

    def commit(self, steps: Sequence[HostStep]) -> None:
        changes = merge(steps)

        def step(file: OwnedFile) -> dict[StreamKey, Stream | None]:
            changed = log_table.change(file.db, file.streams, changes.logs)
            host_table.change(file.db, changes)
            if changes.takes_room:
                file.space.ensure_pages()
            return changed

        self._file.change(step, is_append=changes.takes_room)

    def logs(self) -> dict[str, HostLog]:
        with self._file.reading() as db:
            streams = self._file.all_streams(db).values()
            return {stream.ident: log_table.summary(db, stream) for stream in streams if stream.kind == LOG}

    def rows(self, log: str, from_number: int, max_count: int, max_bytes: int) -> list[HostRow]:
        with self._file.reading() as db:
            stream = self._file.stream(db, (log, LOG))
            return [] if stream is None else log_table.read(db, stream, from_number, max_count, max_bytes)

    def marks(self) -> dict[str, int]:
        with self._file.reading() as db:
            return host_table.load_marks(db)

    def documents(self) -> dict[str, bytes]:
        with self._file.reading() as db:
            return host_table.load_documents(db)

    def host_positions(self) -> dict[PositionKey, HostPosition]:
        with self._file.reading() as db:
            return host_table.load_positions(db)

    # -- Life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        self._file.abandon()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self._names.path)!r}>"
