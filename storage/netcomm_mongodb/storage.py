"""`MongoQueueStorage`: the contract of `QueueStorage`, with the other rooms behind it."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

from netcomm.errors import ConfigurationError, StorageError, StorageLocked, StorageUnavailable
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream
from netcomm_mongodb.connection import DATABASE, PREFIX, Connection, arguments_of
from netcomm_mongodb.documents import HeadRecord, PositionRecord, Stream
from netcomm_mongodb.errors import translated
from netcomm_mongodb.garbage import GarbageCollector
from netcomm_mongodb.head import Head, find_head, head_exists, load_positions, load_streams, make_head
from netcomm_mongodb.lease import Lease
from netcomm_mongodb.message_reader import MessageReader
from netcomm_mongodb.messages import Messages

_LEASE_S = 10.0
_POSITIONS_SLICE = 1000


class MongoQueueStorage(QueueStorage):
    """A queue storage in a MongoDB database, of a single server, a replica set or a sharded cluster."""

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
        self._lock = threading.Lock()
        self._closed = False
        self._connection = Connection(uri, database, prefix)
        self._name = self._connection.name
        self._reader = MessageReader(self._connection)
        self._head = Head(self._connection, float(lease_s))
        self._messages = Messages(self._connection, self._head)
        self._garbage = GarbageCollector(self._name, self._head, self._messages)
        self._lease = Lease(self._connection, self._head, self._collect_garbage)
        try:
            with translated(self._name):
                if read_only:
                    self._set_identity(find_head(self._connection))
                else:
                    self._take()
                    self._load_or_leave()
        except BaseException:
            self._connection.close()
            raise
        if not read_only:
            self._lease.start()

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
            self._messages.append(batch)
            self._garbage.compact_when_long()

    def read(self, ident: str, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        with self._reading():
            stream = self._stream(ident)
            if stream is None:
                return []
            start = max(from_seq, self._garbage.acknowledged.get(ident, 0))
            return self._reader.read(stream, start, max_count, max_bytes)

    def delete_below(self, ident: str, seq: int) -> None:
        with self._writing():
            self._garbage.delete_below(ident, seq)

    def delete(self, ident: str, seqs: Sequence[int]) -> None:
        with self._writing():
            self._garbage.delete(ident, seqs)

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        with self._reading():
            stream = self._stream(ident)
            if stream is None:
                return [], None
            start = max(from_seq, self._garbage.acknowledged.get(ident, 0))
            return self._reader.expired(stream, start, now, max_count)

    # -- Streams and positions --------------------------------------------------------------------------------

    def streams(self) -> list[StoredStream]:
        if self._read_only:
            with self._reading():
                found = load_streams(self._connection, find_head(self._connection))
                return [self._reader.summary(stream, 0) for stream in found.values()]
        with self._writing():
            self._garbage.delete_acknowledged()
            streams = list(self._head.streams.values())
        with self._reading():
            return [self._reader.summary(stream, self._garbage.acknowledged.get(stream.ident, 0)) for stream in streams]

    def mark_sent(self, ident: str, below: int) -> None:
        self._change_stream(ident, lambda stream: replace(stream, sent_below=below))

    def renew(self, ident: str, epoch: int) -> None:
        self._change_stream(ident, lambda stream: replace(stream, epoch=epoch, sent_below=stream.next_seq))

    def _change_stream(self, ident: str, change: Callable[[Stream], Stream]) -> None:
        with self._writing():
            stream = self._head.streams.get(ident)
            if stream is not None:
                self._head.commit([change(stream)])
                self._garbage.compact_when_long()

    def positions(self) -> dict[str, Position]:
        with self._reading():
            return load_positions(self._connection)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        new = [PositionRecord(ident, position) for ident, position in positions.items()]
        with self._writing():
            for start in range(0, len(new), _POSITIONS_SLICE):
                self._head.commit(positions=new[start : start + _POSITIONS_SLICE])
                self._garbage.compact_when_long()

    def _stream(self, ident: str) -> Stream | None:
        # The owner knows what is there; a reader looks each time.
        if not self._read_only:
            return self._head.streams.get(ident)
        return load_streams(self._connection, find_head(self._connection), {"_id": ident}).get(ident)

    # -- Life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._lease.stop()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if not self._read_only and self._head.lost is None:
                    with translated(self._name):
                        self._release()
            except StorageUnavailable as error:
                raise StorageUnavailable(f"{error}; it stays locked for up to {self._head.lease_s:g} s more") from error
            finally:
                self._connection.close()

    def abandon(self) -> None:
        # The thread that held the lock in the parent does not exist here.
        self._lock = threading.Lock()
        self._lease.abandon()
        self._closed = True
        self._connection.abandon()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def _take(self) -> None:
        """Become the owner."""
        while True:
            if not head_exists(self._connection):
                self._messages.make_index()
                make_head(self._connection)
            found = find_head(self._connection)
            self._lease.check(found)
            if self._head.take(found):
                self._lease.renew()
                return

    def _load_or_leave(self) -> None:
        try:
            found = self._head.load()
            self._set_identity(found)
            self._garbage.load()
            self._messages.load(found.incarnation)
        except BaseException:
            self._head.leave()
            raise

    def _set_identity(self, found: HeadRecord) -> None:
        self._store_id = found.store_id
        self._incarnation = found.incarnation

    def _release(self) -> None:
        """Put everything in its place, and let the next owner in."""
        self._garbage.delete_acknowledged()
        self._garbage.compact()
        self._head.release()

    def _collect_garbage(self) -> bool:
        """Remove messages of one stream that are gone; returns whether there are more. The lease's thread calls it."""
        # A thread that has much to append must not keep the lease from being renewed.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return self._garbage.collect()
        finally:
            self._lock.release()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._read_only:
            raise StorageError(f"{self._name} was opened for reading only")
        with self._lock, self._reading():
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if self._closed:
            raise StorageError(f"{self._name} has been closed")
        if self._head.lost is not None:
            raise StorageLocked(self._head.lost)
        with translated(self._name):
            yield
