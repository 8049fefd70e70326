"""`MongoQueueStorage`: the contract of `HostStorage`, with the other rooms behind it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

from netcomm.errors import ConfigurationError, StorageError, StorageLocked, StorageUnavailable
from netcomm.host_changes import merge
from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep, HostStorage, PositionKey
from netcomm.message import DURABLE
from netcomm.message import Stream as StreamNumber
from netcomm.storage import Append, Position, StoredMessage, StoredStream
from netcomm_mongodb.connection import DATABASE, PREFIX, Connection, arguments_of
from netcomm_mongodb.documents import PositionRecord, Stream, StreamKey, stream_id
from netcomm_mongodb.errors import Damaged, translated
from netcomm_mongodb.head import find_head, load_positions, load_streams
from netcomm_mongodb.host_documents import DocumentRecord, HostHead, HostPositionRecord, LogRecord, MarkRecord, Record
from netcomm_mongodb.host_part import load_log, load_records
from netcomm_mongodb.message_reader import MessageReader
from netcomm_mongodb.owner import Owner
from netcomm_mongodb.row_reader import RowReader

_LEASE_S = 10.0
_POSITIONS_SLICE = 1000
_LOOKS = 10


class MongoQueueStorage(HostStorage):
    """A queue storage in a MongoDB database, of a single server, a replica set or a sharded cluster."""

    keeps_envelopes = True

    def __init__(
        self,
        uri: str,
        *,
        database: str = DATABASE,
        prefix: str = PREFIX,
        lease_s: float = _LEASE_S,
        read_only: bool = False,
    ) -> None:
        """Open the storage, and make it where it does not exist.

        uri: MongoDB's connection string, with the options of pymongo. Where it names no time limits, a server is given
            2 s to be found, 5 s to accept a connection, and 20 s to answer.
        database, prefix: the place; what is in the database beside the collections with this prefix is left alone.
        lease_s: for how long the storage stays locked after its owner crashed.
        read_only: open it for a look, also while it has an owner.

        Raises StorageLocked where another owner has it, StorageUnavailable where the server can't be reached,
        StorageCorrupt where its content is damaged; StorageError; ConfigurationError.
        """
        if not (isinstance(lease_s, (int, float)) and 0.1 <= lease_s <= 86400):
            raise ConfigurationError(f"lease_s must be from 0.1 to 86400 seconds, not {lease_s!r}")
        self._read_only = read_only
        self._closed = False
        self._connection = Connection(uri, database, prefix)
        self._name = self._connection.name
        self._reader = MessageReader(self._connection)
        self._row_reader = RowReader(self._connection)
        self._owner = Owner(self._connection, float(lease_s))
        try:
            with translated(self._name):
                found = find_head(self._connection) if read_only else self._owner.take()
        except BaseException:
            self._connection.close()
            raise
        self._store_id = found.store_id
        self._incarnation = found.incarnation
        if not read_only:
            self._owner.start()

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `mongodb://HOST/DATABASE`, with any options of MongoDB's connection strings.

        The database is "netcomm" where the URL names none. `netcomm_prefix=` and `netcomm_lease_s=` among the options
        are `prefix` and `lease_s` of the constructor.
        """
        uri, arguments = arguments_of(url)
        return cls(uri, **arguments, read_only=read_only)

    @property
    def store_id(self) -> bytes:
        return self._store_id

    @property
    def incarnation(self) -> int:
        return self._incarnation

    # -- Messages ---------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        with self._writing():
            self._owner.messages.append(batch)
            self._owner.garbage.compact_when_long()

    def read(
        self, ident: str, from_seq: int, max_count: int, max_bytes: int, stream: StreamNumber = DURABLE
    ) -> list[StoredMessage]:
        with self._reading():
            found = self._stream((ident, stream))
            if found is None:
                return []
            return self._reader.read(found, self._start(found, from_seq), max_count, max_bytes)

    def delete_below(self, ident: str, seq: int, stream: StreamNumber = DURABLE) -> None:
        with self._writing():
            self._owner.garbage.delete_below((ident, stream), seq)

    def delete(self, ident: str, seqs: Sequence[int], stream: StreamNumber = DURABLE) -> None:
        with self._writing():
            self._owner.garbage.delete((ident, stream), seqs)

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int, stream: StreamNumber = DURABLE
    ) -> tuple[list[StoredMessage], float | None]:
        with self._reading():
            found = self._stream((ident, stream))
            if found is None:
                return [], None
            return self._reader.expired(found, self._start(found, from_seq), now, max_count)

    # -- Streams and positions --------------------------------------------------------------------------------

    def streams(self) -> list[StoredStream]:
        if self._read_only:
            with self._reading():
                found = load_streams(self._connection, find_head(self._connection))
                return [self._reader.summary(stream, 0) for stream in found.values()]
        with self._writing():
            self._owner.garbage.delete_acknowledged()
            streams = list(self._owner.head.streams.values())
        with self._reading():
            return [self._reader.summary(stream, self._start(stream, 0)) for stream in streams]

    def mark_sent(self, ident: str, below: int, stream: StreamNumber = DURABLE) -> None:
        self._change_stream((ident, stream), lambda found: replace(found, sent_below=below))

    def renew(self, ident: str, epoch: int, stream: StreamNumber = DURABLE) -> None:
        self._change_stream((ident, stream), lambda found: replace(found, epoch=epoch, sent_below=found.next_seq))

    def _change_stream(self, place: StreamKey, change: Callable[[Stream], Stream]) -> None:
        with self._writing():
            stream = self._owner.head.streams.get(place)
            if stream is not None:
                self._owner.head.commit([change(stream)])
                self._owner.garbage.compact_when_long()

    def positions(self) -> dict[str, Position]:
        with self._reading():
            return load_positions(self._connection)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        new = [PositionRecord(ident, position) for ident, position in positions.items()]
        with self._writing():
            for start in range(0, len(new), _POSITIONS_SLICE):
                self._owner.head.commit(positions=new[start : start + _POSITIONS_SLICE])
                self._owner.garbage.compact_when_long()

    def _stream(self, place: StreamKey) -> Stream | None:
        # The owner knows what is there; a reader looks each time.
        if not self._read_only:
            return self._owner.head.streams.get(place)
        return load_streams(self._connection, find_head(self._connection), {"_id": stream_id(place)}).get(place)

    def _start(self, stream: Stream, from_seq: int) -> int:
        """The first seq at or above another that was not acknowledged."""
        return max(from_seq, self._owner.garbage.acknowledged.get(stream.place, 0))

    # -- What a host keeps ------------------------------------------------------------------------------------

    def commit(self, steps: Sequence[HostStep]) -> None:
        changes = merge(steps)
        with self._writing():
            self._owner.steps.commit(changes)

    def logs(self) -> dict[str, HostLog]:
        with self._reading():
            records, said = self._host()
            logs = load_records(self._connection, records, LogRecord)
            return self._row_reader.summaries(logs, said)

    def rows(self, log: str, from_number: int, max_count: int, max_bytes: int) -> list[HostRow]:
        with self._reading():
            if self._read_only:
                head = find_head(self._connection)
                found, said = load_log(self._connection, head.records, log), head.host
            else:
                found, said = self._owner.head.host.logs.get(log), self._owner.head.host.said
            return [] if found is None else self._row_reader.rows(found, said, from_number, max_count, max_bytes)

    def marks(self) -> dict[str, int]:
        with self._reading():
            found = load_records(self._connection, self._host()[0], MarkRecord)
            return {mark.name: mark.number for mark in found}

    def documents(self) -> dict[str, bytes]:
        with self._reading():
            for _ in range(_LOOKS):
                records = load_records(self._connection, self._host()[0], DocumentRecord)
                found = self._row_reader.contents({record.name: record.content for record in records})
                if len(found) == len(records):
                    return found
                # Others have come in their place meanwhile.
            raise Damaged("contents of documents are missing")

    def host_positions(self) -> dict[PositionKey, HostPosition]:
        with self._reading():
            found = load_records(self._connection, self._host()[0], HostPositionRecord)
            return {record.place: record.position for record in found}

    def _host(self) -> tuple[Mapping[str, Record], HostHead]:
        """The records that the head has, as a step that is in doubt did not change them, and what it says besides."""
        if self._read_only:
            head = find_head(self._connection)
            return head.records, head.host
        with self._owner.lock:
            return dict(self._owner.head.host.journal), self._owner.head.host.said

    # -- Life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._owner.stop()
        with self._owner.lock:
            if self._closed:
                return
            self._closed = True
            try:
                if not self._read_only and self._owner.head.lost is None:
                    with translated(self._name):
                        self._owner.release()
            except StorageUnavailable as error:
                raise StorageUnavailable(
                    f"{error}; it stays locked for up to {self._owner.head.lease_s:g} s more"
                ) from error
            finally:
                self._connection.close()

    def abandon(self) -> None:
        self._owner.abandon()
        self._closed = True
        self._connection.abandon()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._read_only:
            raise StorageError(f"{self._name} was opened for reading only")
        with self._owner.lock, self._reading():
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if self._closed:
            raise StorageError(f"{self._name} has been closed")
        if self._owner.head.lost is not None:
            raise StorageLocked(self._owner.head.lost)
        with translated(self._name):
            yield
