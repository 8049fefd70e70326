"""Queue storage in a MongoDB database.

One database holds one storage for each prefix of collection names. In `PREFIXmeta`, the document `head` is the storage:
its identity, its owner, and, as a short journal, the streams and positions that changed last. Every change is one
update of the head, on the condition that the owner is still the one who makes it, and that nothing came in between
(`n` counts the updates). So a change happens as a whole or not at all, however many streams it concerns, without a
multi-document transaction; and an owner that was taken for dead can't change anything any more.

- `append` first inserts the messages, whose `_id` is made of stream and seq, then raises `next_seq` in the head. Only
  messages below `next_seq`, and not in the `gaps` of seqs that were passed over, are there. Others are debris of an
  append that failed: never read nor counted, replaced where their seqs are used again, and removed once all before
  them has been delivered.
- `delete_below` raises `floor`, and `delete` notes the seqs in `gone`, in the head, together with the new totals. The
  messages themselves are removed after that: what a crash leaves of them is not read, and removed later.
- An update of the head whose answer got lost has happened, or not, or is still to come. The next one settles it: it
  writes what is known to be accepted, and one that comes late does not find the `n` that it expects. So what raised
  is undone, unless the process ends before: then it may stand. Only where a seq of an append that failed is used again,
  which netcomm does not do, and that message is deleted by its seq, an insert that comes later still could undo it.
- Once the journal is long, its entries go to `PREFIXstreams` and `PREFIXpositions`, each under the condition that no
  later one is there, and leave the head with its next update. Who reads looks at the head first.

The owner renews a lease, the document `lease`, from a daemon thread that ends with `close`. The times are the server's,
so the clocks of clients need not agree. While the lease lives, others get StorageLocked at once; once it is over, as
after a crash, they may take the storage. An owner that can't renew in time keeps the storage if nobody has taken it;
otherwise all its methods raise StorageLocked. Safety does not rest on the lease, but on the condition of each update.

Collections, with their prefix ("netcomm_" by default):

- `meta`: `head`, `lease`, and `clock`, which tells the server's time.
- `streams`: `_id` the receiver; `epoch`, `next_seq`, `sent_below`, `floor`, `count`, `size`, `gone`, `gaps`, `version`,
  `checksum`.
- `positions`: `_id` the sender; `epoch`, `next_seq`, `version`, `checksum`.
- `messages`: `_id` is "STREAM.SEQ", STREAM a hash of the receiver, SEQ 16 hexadecimal digits; `uuid`, `queued_at`,
  `ttl`, `size`, `data`, `parts`, `checksum`; `token` and `attempt`: the owner's incarnation, and which of its appends
  it was. Those that expire have `stream` and `expires_at` too, with the sparse index `by_expiry` on both.
- `parts`: the payloads that are too large for one document; `_id` is "STREAM.SEQ.PART".

BSON's integers have a sign: `epoch` and `next_seq` from 2**63 on are stored as negative numbers.

Reads and writes go to the primary; writes wait until a majority has them in its journal, whatever the URL says.
The server must update a single document atomically, which every MongoDB does. FerretDB 1 does not: two owners that
take a storage from each other within the same millisecond could both succeed there. It will do for tests.
"""

import logging
import math
import os
import platform
import re
import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import Any, Self, TypeVar
from urllib.parse import unquote
from zlib import crc32

from bson.errors import InvalidBSON
from bson.int64 import Int64
from pymongo import ASCENDING, DESCENDING, MongoClient, ReadPreference, ReplaceOne, ReturnDocument, WriteConcern
from pymongo.collection import Collection as Documents
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    InvalidName,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
)
from pymongo.errors import ConfigurationError as PyMongoConfigurationError

from netcomm.errors import ConfigurationError, StorageCorrupt, StorageError, StorageLocked, StorageUnavailable
from netcomm.logs import Log
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream

Document = dict[str, Any]
_T = TypeVar("_T")

_log = Log("netcomm.mongodb")

_SCHEMA = 1
_HEAD, _LEASE, _CLOCK = "head", "lease", "clock"
_BY_EXPIRY = "by_expiry"
_DATABASE = "netcomm"
_PREFIX = "netcomm_"
_LEASE_S = 10.0
_OWN_OPTIONS = ("netcomm_prefix", "netcomm_lease_s")
_CLIENT_DEFAULTS: dict[str, Any] = {
    "appname": "netcomm",
    "serverSelectionTimeoutMS": 2000,
    "connectTimeoutMS": 5000,
    "socketTimeoutMS": 20000,  # without one, a server that vanishes without a word would hang its callers for ever
}
_MAJORITY_TIMEOUT_MS = 10000
_JOURNAL_ENTRIES = 32
_PART_BYTES = 8 * 2**20  # BSON documents end at 16 MiB
_LATE_DELETES = 1000
_DELETE_SLICE = 10_000
_SINGLE_DELETES = 1000
_MAX_LIMIT = 2**31 - 1
_MAX_GAPS = 100
_READ_AHEAD = 10_000
_POSITIONS_SLICE = 1000
_TRIES = 5

# The server's codes of errors that pass: no primary now, shutting down, interrupted, out of time or of disk space.
_PASSING_CODES = frozenset(
    [1, 6, 7, 50, 64, 89, 91, 112, 134, 189, 202, 262, 9001, 10107, 11600, 11602, 13435, 13436, 14031]
)
_ACCESS_CODES = frozenset([13, 18, 8000])
_DUPLICATE_KEY = 11000

_IDENTITY = Struct(">16sq")
_STREAM_VALUES = Struct(">qqqqqqq")
_POSITION_VALUES = Struct(">qqq")
_MESSAGE_KEY = Struct(">qd?d")


@dataclass(frozen=True, slots=True)
class _Stream:
    """A durable stream, as the head or `streams` has it.

    floor: messages below are gone; gone: and these.
    gaps: where each range begins and ends that was never stored, one after the other.
    count, size: of the messages that are there.
    version: the `n` of the update that made it so.
    """

    ident: str
    epoch: int
    next_seq: int = 0
    sent_below: int = 0
    floor: int = 0
    count: int = 0
    size: int = 0
    gone: tuple[int, ...] = ()
    gaps: tuple[int, ...] = ()
    version: int = 0

    @property
    def key(self) -> str:
        """What the stream's messages have in their `_id`, in front of the seq."""
        return blake2b(self.ident.encode(), digest_size=12).hexdigest()

    def id(self, seq: int) -> str:
        return f"{self.key}.{seq:016x}"

    def has(self, seq: int) -> bool:
        """Whether a message that is found in the collection is there, and no debris."""
        in_gap = bisect_right(self.gaps, seq) % 2
        return self.floor <= seq < self.next_seq and not in_gap and seq not in self.gone

    def document(self) -> Document:
        return {
            "_id": self.ident,
            "epoch": _signed(self.epoch),
            "next_seq": _signed(self.next_seq),
            "sent_below": _signed(self.sent_below),
            "floor": Int64(self.floor),
            "count": Int64(self.count),
            "size": Int64(self.size),
            "gone": [Int64(seq) for seq in self.gone],
            "gaps": [Int64(seq) for seq in self.gaps],
            "version": Int64(self.version),
            "checksum": self.checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        stream = cls(
            document["_id"],
            _unsigned(document["epoch"]),
            _unsigned(document["next_seq"]),
            _unsigned(document["sent_below"]),
            int(document["floor"]),
            int(document["count"]),
            int(document["size"]),
            tuple([int(seq) for seq in document["gone"]]),
            tuple([int(seq) for seq in document["gaps"]]),
            int(document["version"]),
        )
        if document["checksum"] != stream.checksum():
            raise _Damaged(f"the stream to {stream.ident!r}")
        return stream

    def checksum(self) -> int:
        values = _STREAM_VALUES.pack(
            _signed(self.epoch),
            _signed(self.next_seq),
            _signed(self.sent_below),
            self.floor,
            self.count,
            self.size,
            self.version,
        )
        lists = b"".join([seq.to_bytes(8) for seq in (len(self.gone), *self.gone, *self.gaps)])
        return crc32(lists, crc32(self.ident.encode(), crc32(values)))


@dataclass(frozen=True, slots=True)
class _Position:
    """A position, as the head or `positions` has it."""

    ident: str
    position: Position
    version: int = 0

    def document(self) -> Document:
        return {
            "_id": self.ident,
            "epoch": _signed(self.position.epoch),
            "next_seq": _signed(self.position.next_seq),
            "version": Int64(self.version),
            "checksum": self.checksum(),
        }

    @classmethod
    def from_document(cls, document: Document) -> Self:
        position = Position(_unsigned(document["epoch"]), _unsigned(document["next_seq"]))
        found = cls(document["_id"], position, int(document["version"]))
        if document["checksum"] != found.checksum():
            raise _Damaged(f"the position of {found.ident!r}")
        return found

    def checksum(self) -> int:
        values = _POSITION_VALUES.pack(_signed(self.position.epoch), _signed(self.position.next_seq), self.version)
        return crc32(self.ident.encode(), crc32(values))


@dataclass(frozen=True, slots=True)
class _Head:
    """The document `head`."""

    store_id: bytes
    incarnation: int
    owner: str | None
    owner_name: str
    lease_s: float
    taken_at: datetime
    n: int
    streams: tuple[_Stream, ...]
    positions: tuple[_Position, ...]

    @classmethod
    def from_document(cls, document: Document) -> Self:
        head = cls(
            bytes(document["store_id"]),
            int(document["incarnation"]),
            document["owner"],
            str(document.get("owner_name")),
            float(document.get("lease_s", 0.0)),
            document.get("taken_at", datetime.min),
            int(document["n"]),
            tuple([_Stream.from_document(entry) for entry in document["streams"]]),
            tuple([_Position.from_document(entry) for entry in document["positions"]]),
        )
        if document["checksum"] != crc32(_IDENTITY.pack(head.store_id, head.incarnation)):
            raise _Damaged("its identity")
        return head


class _Damaged(Exception):
    """Something is not what was stored; the text names it."""


def _decoded(decode: Callable[[Document], _T], document: Document) -> _T:
    """What a document says; damage may have made its values any others, of any type."""
    try:
        return decode(document)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, StructError) as error:
        raise _Damaged(f"the document {document.get('_id')!r}") from error


class MongoQueueStorage(QueueStorage):
    """A queue storage in a MongoDB database, of a single server, a replica set or a sharded cluster."""

    def __init__(
        self,
        uri: str,
        *,
        database: str = _DATABASE,
        prefix: str = _PREFIX,
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
        if not re.fullmatch(r"[A-Za-z0-9_.-]*", prefix) or prefix.startswith((".", "system.")):
            raise ConfigurationError(f"a prefix has letters, digits, '_', '-' and '.' inside, unlike {prefix!r}")
        if not (isinstance(lease_s, (int, float)) and 0.1 <= lease_s <= 86400):
            raise ConfigurationError(f"lease_s must be from 0.1 to 86400 seconds, not {lease_s!r}")
        self._name = f"{_without_login(uri)}/{database} ({prefix})"
        self._lease_s = float(lease_s)
        self._read_only = read_only
        self._lock = threading.Lock()
        self._closed = False
        self._lost: str | None = None
        self._owner = secrets.token_hex(16)
        self._n = 0
        self._unsure = False
        self._streams: dict[str, _Stream] = {}
        # What the head has in its journal.
        self._recent_streams: set[str] = set()
        self._recent_positions: dict[str, _Position] = {}
        # Up to where messages may be removed; removed in the head at leisure.
        self._acknowledged: dict[str, int] = {}
        # Streams of which messages that are gone have not been removed.
        self._unswept: set[str] = set()
        self._attempt = 0
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._client = _connect(uri)
        try:
            self._find_collections(database, prefix)
            with self._errors():
                if read_only:
                    self._set_identity(self._find_head())
                else:
                    self._take()
                    self._load_or_leave()
        except BaseException:
            self._client.close()
            raise
        if not read_only:
            self._keeper = threading.Thread(target=self._keep, name="netcomm-mongodb-lease", daemon=True)
            self._keeper.start()

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `mongodb://HOST/DATABASE`, with any options of MongoDB's connection strings.

        The database is "netcomm" where the URL names none. `netcomm_prefix=` and `netcomm_lease_s=` among the options
        are `prefix` and `lease_s` of the constructor.
        """
        scheme, _, rest = url.partition("://")
        place, _, query = rest.partition("?")
        path = place.partition("/")[2]
        own: dict[str, str] = {}
        passed = []
        for option in query.split("&") if query else []:
            name, _, value = option.partition("=")
            if not name.lower().startswith("netcomm_"):
                passed.append(option)
            elif name in _OWN_OPTIONS:
                own[name] = unquote(value)
            else:
                raise ConfigurationError(
                    f"unknown option {name!r} in a MongoDB URL; there are {', '.join(_OWN_OPTIONS)}"
                )
        arguments: dict[str, Any] = {"database": unquote(path) or _DATABASE, "read_only": read_only}
        if "netcomm_prefix" in own:
            arguments["prefix"] = own["netcomm_prefix"]
        if "netcomm_lease_s" in own:
            try:
                arguments["lease_s"] = float(own["netcomm_lease_s"])
            except ValueError:
                raise ConfigurationError(f"netcomm_lease_s must be a number, not {own['netcomm_lease_s']!r}") from None
        uri = f"{scheme}://{place if '/' in place else place + '/'}" + ("?" + "&".join(passed) if passed else "")
        return cls(uri, **arguments)

    @property
    def store_id(self) -> bytes:
        return self._store_id

    @property
    def incarnation(self) -> int:
        return self._incarnation

    # -- Messages ---------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        with self._writing():
            if self._unsure:
                self._commit()  # what the messages may be in the way of must not be accepted any more
            self._attempt += 1
            changed: dict[str, _Stream] = {}
            messages: list[Document] = []
            parts: list[Document] = []
            for append in batch:
                stream = changed.get(append.ident) or self._streams.get(append.ident)
                if stream is None:
                    stream = _Stream(append.ident, append.epoch)
                changed[append.ident] = self._prepare(stream, append, messages, parts)
            try:
                for part in parts:
                    self._insert(self._parts, [part])
                if messages:
                    self._insert(self._messages, messages)
                self._commit(list(changed.values()))
            except StorageLocked:
                self._withdraw(messages, parts)
                raise
            self._fold_when_long()

    def read(self, ident: str, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        with self._reading():
            stream = self._stream(ident)
            if stream is None:
                return []
            average = stream.size // max(stream.count, 1) + 1
            batch_size = max(1, min(max_count, max_bytes // average + 1, _READ_AHEAD))
            found = []
            for document in self._find(stream, from_seq, stream.next_seq, max_count, batch_size=batch_size):
                message = self._message(stream, document)
                if message is None:
                    continue
                found.append(message)
                max_bytes -= len(message.data)
                if max_bytes <= 0:
                    break
            return found

    def delete_below(self, ident: str, seq: int) -> None:
        with self._writing():
            stream = self._streams.get(ident)
            if stream is None:
                return
            # What is appended later is not meant.
            below = min(seq, stream.next_seq)
            if below > max(stream.floor, self._acknowledged.get(ident, 0)):
                self._acknowledged[ident] = below
                if below - stream.floor >= _LATE_DELETES:
                    self._raise_floor(ident)

    def delete(self, ident: str, seqs: Sequence[int]) -> None:
        with self._writing():
            for start in range(0, len(seqs), _SINGLE_DELETES):
                stream = self._streams.get(ident)
                if stream is None:
                    return
                ids = [stream.id(seq) for seq in set(seqs[start : start + _SINGLE_DELETES]) if stream.has(seq)]
                found = list(self._messages.find({"_id": {"$in": ids}}, {"size": 1})) if ids else []
                if not found:
                    continue
                self._commit(
                    [
                        replace(
                            stream,
                            gone=(*stream.gone, *(_seq(document) for document in found)),
                            count=stream.count - len(found),
                            size=stream.size - _size(found),
                        )
                    ]
                )
                self._unswept.add(ident)
                self._sweep_if_possible(ident)
            self._fold_when_long()

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        with self._reading():
            stream = self._stream(ident)
            if stream is None:
                return [], None
            # First the ids: the server would have to sort whole messages otherwise.
            over = {"stream": stream.key, "expires_at": {"$lte": now}}
            ids = [
                document["_id"]
                for document in self._find(stream, from_seq, stream.next_seq, max_count, {"_id": 1}, over, _BY_EXPIRY)
            ]
            documents = self._messages.find({"_id": {"$in": ids}}, sort=[("_id", ASCENDING)])
            found = [message for document in documents if (message := self._message(stream, document)) is not None]
            return found, self._first_expiry(stream, from_seq, {"$gt": now})

    # -- Streams and positions --------------------------------------------------------------------------------

    def streams(self) -> list[StoredStream]:
        if self._read_only:
            with self._reading():
                return [self._summary(stream) for stream in self._load_streams(self._find_head()).values()]
        with self._writing():
            for ident in list(self._acknowledged):
                self._raise_floor(ident)
            streams = list(self._streams.values())
        with self._reading():
            return [self._summary(stream) for stream in streams]

    def mark_sent(self, ident: str, below: int) -> None:
        self._change_stream(ident, lambda stream: replace(stream, sent_below=below))

    def renew(self, ident: str, epoch: int) -> None:
        self._change_stream(ident, lambda stream: replace(stream, epoch=epoch, sent_below=stream.next_seq))

    def _change_stream(self, ident: str, change: Callable[[_Stream], _Stream]) -> None:
        with self._writing():
            stream = self._streams.get(ident)
            if stream is not None:
                self._commit([change(stream)])
                self._fold_when_long()

    def positions(self) -> dict[str, Position]:
        with self._reading():
            head = self._find_head()
            found = {}
            for document in self._positions.find():
                position = _decoded(_Position.from_document, document)
                found[position.ident] = position
            for position in head.positions:
                if position.ident not in found or found[position.ident].version <= position.version:
                    found[position.ident] = position
            return {ident: position.position for ident, position in found.items()}

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        new = [_Position(ident, position) for ident, position in positions.items()]
        with self._writing():
            for start in range(0, len(new), _POSITIONS_SLICE):
                self._commit(positions=new[start : start + _POSITIONS_SLICE])
                self._fold_when_long()

    # -- Life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._stop.set()
        keeper = self._keeper
        if keeper is not None:
            keeper.join()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if not self._read_only and self._lost is None:
                    with self._errors():
                        self._release()
            except StorageUnavailable as error:
                raise StorageUnavailable(f"{error}; it stays locked for up to {self._lease_s:g} s more") from error
            finally:
                self._client.close()

    def abandon(self) -> None:
        # Whoever held the lock in the parent does not exist here.
        self._lock = threading.Lock()
        self._keeper = None
        self._closed = True
        # Kept, and not even closed: closing would end the parent's sessions on the server.
        _abandoned.append(self._client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    def _find_collections(self, database: str, prefix: str) -> None:
        timeout_ms = self._client.write_concern.document.get("wtimeout", _MAJORITY_TIMEOUT_MS)
        try:
            db = self._client.get_database(
                database,
                read_preference=ReadPreference.PRIMARY,
                write_concern=WriteConcern("majority", wtimeout=timeout_ms, j=True),
            )
            self._meta = db[f"{prefix}meta"]
            self._stream_documents = db[f"{prefix}streams"]
            self._positions = db[f"{prefix}positions"]
            self._messages = db[f"{prefix}messages"]
            self._parts = db[f"{prefix}parts"]
        except InvalidName as error:
            raise ConfigurationError(f"{database!r} can't be the name of a MongoDB database: {error}") from error

    def _take(self) -> None:
        """Become the owner."""
        while True:
            document = self._meta.find_one({"_id": _HEAD}, {"_id": 1})
            if document is None:
                self._make()
            head = self._find_head()
            self._check_lease(head)
            incarnation = head.incarnation + 1
            taken = self._meta.update_one(
                {"_id": _HEAD, "owner": head.owner, "n": Int64(head.n)},
                {
                    "$set": {
                        "owner": self._owner,
                        "owner_name": f"process {os.getpid()} on {platform.node()}",
                        "lease_s": self._lease_s,
                        "incarnation": Int64(incarnation),
                        "checksum": crc32(_IDENTITY.pack(head.store_id, incarnation)),
                        "n": Int64(head.n + 1),
                    },
                    "$currentDate": {"taken_at": True},
                },
            )
            if taken.matched_count:
                self._renew_lease()
                return

    def _make(self) -> None:
        store_id = secrets.token_bytes(16)
        self._messages.create_index([("stream", ASCENDING), ("expires_at", ASCENDING)], name=_BY_EXPIRY, sparse=True)
        try:
            self._meta.insert_one(
                {
                    "_id": _HEAD,
                    "schema": _SCHEMA,
                    "store_id": store_id,
                    "incarnation": Int64(0),
                    "checksum": crc32(_IDENTITY.pack(store_id, 0)),
                    "owner": None,
                    "n": Int64(0),
                    "streams": [],
                    "positions": [],
                }
            )
        except DuplicateKeyError:
            pass  # another was first

    def _check_lease(self, head: _Head) -> None:
        """Raise StorageLocked while the lease of the head's owner lives."""
        if head.owner is None:
            return
        lease = self._meta.find_one({"_id": _LEASE})
        since = head.taken_at
        if lease is not None and lease["owner"] == head.owner:
            since = max(since, lease["renewed_at"])
        clock = self._meta.find_one_and_update(
            {"_id": _CLOCK}, {"$currentDate": {"now": True}}, upsert=True, return_document=ReturnDocument.AFTER
        )
        assert clock is not None
        left_s = head.lease_s - (clock["now"] - since).total_seconds()
        if left_s > 0:
            raise StorageLocked(
                f"{self._name} is open already, in {head.owner_name}: give each peer a database or a netcomm_prefix of"
                f" its own. If that process is gone, the lock ends in {left_s:.1f} s"
            )

    def _load_or_leave(self) -> None:
        try:
            self._load()
        except BaseException:
            try:
                self._meta.update_one({"_id": _HEAD, "owner": self._owner}, {"$set": {"owner": None}})
            except PyMongoError:
                pass  # the lease ends by itself
            raise

    def _load(self) -> None:
        head = self._check_owner()
        self._set_identity(head)
        self._n = head.n
        self._streams = self._load_streams(head)
        self._recent_streams = {stream.ident for stream in head.streams}
        self._recent_positions = {position.ident: position for position in head.positions}
        # Entries leave the journal only after what they say is gone has been removed.
        self._unswept = set(self._recent_streams)
        self._has_parts = self._parts.find_one({}, {"_id": 1}) is not None

    def _set_identity(self, head: _Head) -> None:
        self._store_id = head.store_id
        self._incarnation = head.incarnation

    def _release(self) -> None:
        """Put everything in its place, and let the next owner in."""
        for ident in list(self._acknowledged):
            self._raise_floor(ident)
        self._fold()
        self._commit(release=True)

    # -- The lease --------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Renew the lease, and do what was put off, until the storage is closed or lost."""
        failed = False
        pause_s = self._lease_s / 3
        while not self._stop.wait(pause_s):
            try:
                with self._errors():
                    self._renew_lease()
                    # Removing much can take long, and the lease has to be renewed in between.
                    pause_s = 0.0 if self._tidy() else self._lease_s / 3
                failed = False
            except StorageLocked as error:
                _log.error("%s", error)
                return
            except StorageError as error:
                _log.log(logging.DEBUG if failed else logging.WARNING, "%s", error)
                failed = True
                pause_s = min(self._lease_s / 3, 1.0)

    def _renew_lease(self) -> None:
        change = {"$set": {"owner": self._owner}, "$currentDate": {"renewed_at": True}}
        renewed = self._meta.update_one({"_id": _LEASE, "owner": self._owner}, change)
        if not renewed.matched_count:
            self._check_owner()
            self._meta.update_one({"_id": _LEASE}, change, upsert=True)

    def _tidy(self) -> bool:
        """Remove messages of one stream that are gone; returns whether there are more."""
        # Whoever has much to append must not keep the lease from being renewed.
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._acknowledged:
                self._raise_floor(next(iter(self._acknowledged)))
            elif self._unswept:
                self._sweep(next(iter(self._unswept)))
            return bool(self._acknowledged or self._unswept)
        finally:
            self._lock.release()

    # -- The head ---------------------------------------------------------------------------------------------

    def _commit(
        self, streams: Collection[_Stream] = (), positions: Collection[_Position] = (), release: bool = False
    ) -> None:
        """Change streams and positions, all of them or none."""
        for _ in range(_TRIES):
            n = self._n + 1
            new = {stream.ident: replace(stream, version=n) for stream in streams}
            recent = self._recent_streams | new.keys()
            recent_positions = self._recent_positions | {
                position.ident: replace(position, version=n) for position in positions
            }
            change: Document = {
                "n": Int64(n),
                "streams": [(new.get(ident) or self._streams[ident]).document() for ident in recent],
                "positions": [position.document() for position in recent_positions.values()],
            }
            if release:
                change["owner"] = None
            self._unsure = True
            done = self._meta.update_one({"_id": _HEAD, "owner": self._owner, "n": Int64(self._n)}, {"$set": change})
            self._unsure = False
            if done.matched_count:
                self._n = n
                self._streams.update(new)
                self._recent_streams = recent
                self._recent_positions = recent_positions
                return
            # An earlier update, whose answer was lost, has happened: this one is to take its place.
            head = self._check_owner()
            if head.n < self._n:
                raise self._corrupt("it was put back to an earlier state while it was open")
            self._n = head.n
        raise StorageUnavailable(f"{self._name} is being changed by somebody else; what was accepted before is kept")

    def _check_owner(self) -> _Head:
        head = self._find_head()
        if head.owner != self._owner:
            self._lost = (
                f"{self._name} was taken over, by {head.owner_name}, after this owner had not renewed its lease for"
                f" {self._lease_s:g} s; open it again once it is free"
            )
            raise StorageLocked(self._lost)
        return head

    def _find_head(self) -> _Head:
        document = self._meta.find_one({"_id": _HEAD})
        if document is None:
            raise StorageError(f"there is no queue storage at {self._name}")
        schema = document.get("schema")
        if isinstance(schema, int) and schema > _SCHEMA:
            raise StorageError(
                f"{self._name} has schema version {schema}, and this netcomm knows {_SCHEMA}: it needs the newer"
                " netcomm that made it"
            )
        return _decoded(_Head.from_document, document)

    def _load_streams(self, head: _Head, which: Document | None = None) -> dict[str, _Stream]:
        """The streams of `streams`, or those that a filter chooses, and all of the head, which is read first."""
        found = {}
        for document in self._stream_documents.find(which):
            stream = _decoded(_Stream.from_document, document)
            found[stream.ident] = stream
        for stream in head.streams:
            if stream.ident not in found or found[stream.ident].version <= stream.version:
                found[stream.ident] = stream
        return found

    def _stream(self, ident: str) -> _Stream | None:
        # The owner knows what is there; a reader looks each time.
        if not self._read_only:
            return self._streams.get(ident)
        return self._load_streams(self._find_head(), {"_id": ident}).get(ident)

    def _fold_when_long(self) -> None:
        if len(self._recent_streams) + len(self._recent_positions) <= _JOURNAL_ENTRIES:
            return
        try:
            self._fold()
        except PyMongoError as error:
            _log.debug("%s: the journal stays long for now: %s", self._name, error)

    def _fold(self) -> None:
        """Bring the journal's entries to their collections; the next update of the head leaves them out."""
        for ident in self._unswept & self._recent_streams:
            self._sweep(ident)
        streams = [self._streams[ident].document() for ident in self._recent_streams]
        positions = [position.document() for position in self._recent_positions.values()]
        _replace_older(self._stream_documents, streams)
        _replace_older(self._positions, positions)
        self._recent_streams = set()
        self._recent_positions = {}

    # -- Messages, inside -------------------------------------------------------------------------------------

    def _prepare(self, stream: _Stream, append: Append, messages: list[Document], parts: list[Document]) -> _Stream:
        """Make the documents of an append; returns the stream as it will be."""
        next_seq, size = stream.next_seq, 0
        gaps = list(stream.gaps)
        for message in append.messages:
            if not next_seq <= message.seq < 2**63:
                raise StorageError(f"message {message.seq} to {append.ident!r} does not follow {next_seq - 1}")
            if message.seq > next_seq:
                gaps += (next_seq, message.seq)
            next_seq = message.seq + 1
            size += len(message.data)
            data = message.data
            id = stream.id(message.seq)
            document: Document = {
                "_id": id,
                "uuid": message.uuid,
                "queued_at": float(message.queued_at),
                "ttl": None if message.ttl is None else float(message.ttl),
                "size": Int64(len(data)),
                "data": data,
                "parts": 0,
                "token": Int64(self._incarnation),
                "attempt": Int64(self._attempt),
                "checksum": _message_checksum(stream, message),
            }
            if message.expires_at is not None:
                document["stream"] = stream.key
                document["expires_at"] = float(message.expires_at)
            if len(data) > _PART_BYTES:
                pieces = [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]
                document.update(data=b"", parts=len(pieces))
                parts += [
                    {
                        "_id": f"{id}.{index:04x}",
                        "data": piece,
                        "token": Int64(self._incarnation),
                        "attempt": Int64(self._attempt),
                    }
                    for index, piece in enumerate(pieces)
                ]
                self._has_parts = True
            messages.append(document)
        # Debris in the oldest gaps is too old to come any more.
        while len(gaps) > 2 * _MAX_GAPS:
            self._remove(stream.id(gaps[0]), stream.id(gaps[1]))
            del gaps[:2]
        return replace(
            stream,
            next_seq=next_seq,
            gaps=tuple(gaps),
            count=stream.count + len(append.messages),
            size=stream.size + size,
        )

    def _insert(self, collection: Documents[Document], documents: list[Document]) -> None:
        try:
            collection.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            if not _only_duplicates(error):
                raise
            # Debris of an append that failed, or the same document, sent twice by the driver.
            for failure in error.details["writeErrors"]:
                self._replace_debris(collection, documents[failure["index"]])

    def _replace_debris(self, collection: Documents[Document], document: Document) -> None:
        found = collection.find_one({"_id": document["_id"]}, {"token": 1, "attempt": 1})
        # Exactly that: an owner after this one may have replaced it meanwhile.
        if (
            found is not None
            and found["token"] <= self._incarnation
            and collection.replace_one(found, document).matched_count
        ):
            return
        self._check_owner()
        raise StorageUnavailable(f"{self._name}: a message was in the way; nothing was stored, trying again may help")

    def _withdraw(self, messages: list[Document], parts: list[Document]) -> None:
        """Remove what this owner, which no longer is one, has inserted and could not have accepted."""
        try:
            for collection, documents in ((self._messages, messages), (self._parts, parts)):
                for start in range(0, len(documents), _DELETE_SLICE):
                    ids = [document["_id"] for document in documents[start : start + _DELETE_SLICE]]
                    collection.delete_many({"_id": {"$in": ids}, "token": self._incarnation, "attempt": self._attempt})
        except PyMongoError as error:
            _log.debug("%s: debris is left: %s", self._name, error)

    def _find(
        self,
        stream: _Stream,
        from_seq: int,
        below: int,
        max_count: int,
        projection: Document | None = None,
        which: Document | None = None,
        hint: str | None = None,
        batch_size: int = 0,
    ) -> Iterator[Document]:
        """The documents of a stream's messages in a range that are there and were not acknowledged, in order."""
        start = max(from_seq, stream.floor, self._acknowledged.get(stream.ident, 0))
        while max_count > 0:
            limit = min(max_count, _MAX_LIMIT)
            seen = 0
            with self._messages.find(
                {"_id": {"$gte": stream.id(start), "$lt": stream.id(below)}, **(which or {})},
                projection,
                sort=[("_id", ASCENDING)],
                limit=limit,
                hint=hint,
                batch_size=batch_size,
            ) as cursor:
                for document in cursor:
                    seen += 1
                    start = _seq(document) + 1
                    if stream.has(start - 1):
                        max_count -= 1
                        yield document
            if seen < limit:
                return
            # Debris was among them, in whose place there may be others.

    def _message(self, stream: _Stream, document: Document) -> StoredMessage | None:
        """The message of a document; None if it has been deleted in the meantime."""
        if document.get("parts"):
            data = self._join_parts(document)
            if data is None:
                return None
            document["data"] = data
        return _decoded(lambda document: _stored_message(stream, document), document)

    def _join_parts(self, document: Document) -> bytes | None:
        id = document["_id"]
        # There may be more, as debris.
        own = {"_id": {"$gte": f"{id}.", "$lt": f"{id}.{document['parts']:04x}"}}
        pieces = self._parts.find(own, sort=[("_id", ASCENDING)])
        data = b"".join([piece["data"] for piece in pieces])
        # Messages go before their parts.
        if len(data) != document.get("size") and self._messages.find_one({"_id": id}, {"_id": 1}) is None:
            return None
        return data

    def _raise_floor(self, ident: str) -> None:
        """Delete what was acknowledged."""
        below = self._acknowledged[ident]
        while (stream := self._streams[ident]).floor < below:
            slice_ = {"_id": {"$gte": stream.id(stream.floor), "$lt": stream.id(below)}}
            found = list(self._messages.find(slice_, {"size": 1}, sort=[("_id", ASCENDING)], limit=_DELETE_SLICE))
            counted = [document for document in found if stream.has(_seq(document))]
            floor = _seq(found[-1]) + 1 if len(found) == _DELETE_SLICE else below
            self._commit(
                [
                    replace(
                        stream,
                        floor=floor,
                        gaps=tuple(chain(*(gap for gap in _pairs(stream.gaps) if gap[1] > floor))),
                        count=stream.count - len(counted),
                        size=stream.size - _size(counted),
                    )
                ]
            )
            self._unswept.add(ident)
            self._sweep_if_possible(ident)
        del self._acknowledged[ident]
        self._fold_when_long()

    def _sweep_if_possible(self, ident: str) -> None:
        try:
            self._sweep(ident)
        except PyMongoError as error:
            _log.debug("%s: messages that are gone stay for now: %s", self._name, error)

    def _sweep(self, ident: str) -> None:
        """Remove the messages that the head says are gone."""
        stream = self._streams[ident]
        if stream.gone:
            ids = [stream.id(seq) for seq in stream.gone]
            self._messages.delete_many({"_id": {"$in": ids}})
            if self._has_parts:
                for id in ids:
                    self._remove(f"{id}.", f"{id}/")
            self._streams[ident] = replace(stream, gone=())
        if stream.floor:
            self._remove(stream.id(0), stream.id(stream.floor))
        self._unswept.discard(ident)

    def _remove(self, start: str, end: str) -> None:
        """Remove the messages, and the parts, from an `_id` to below another; in slices, to leave others a turn."""
        for collection in (self._messages, self._parts) if self._has_parts else (self._messages,):
            full = True
            while full:
                within = {"_id": {"$gte": start, "$lt": end}}
                found = list(collection.find(within, {"_id": 1}, sort=[("_id", ASCENDING)], limit=_DELETE_SLICE))
                full = len(found) == _DELETE_SLICE
                if found:
                    collection.delete_many({"_id": {"$gte": start, "$lte": found[-1]["_id"]}})

    def _summary(self, stream: _Stream) -> StoredStream:
        oldest_at = newest_at = next_expiry = None
        if stream.count:
            oldest_at = self._first(stream, 0, "_id", {}, "queued_at", ASCENDING)
            newest_at = self._first(stream, 0, "_id", {}, "queued_at", DESCENDING)
            next_expiry = self._first_expiry(stream, 0, {"$gte": -math.inf})
        return StoredStream(
            ident=stream.ident,
            epoch=stream.epoch,
            next_seq=stream.next_seq,
            sent_below=stream.sent_below,
            count=stream.count,
            size=stream.size,
            oldest_at=oldest_at,
            next_expiry=next_expiry,
            newest_at=newest_at,
        )

    def _first_expiry(self, stream: _Stream, from_seq: int, when: Document) -> float | None:
        mortal = {"stream": stream.key, "expires_at": when}
        return self._first(stream, from_seq, "expires_at", mortal, "expires_at", ASCENDING, _BY_EXPIRY)

    def _first(
        self,
        stream: _Stream,
        from_seq: int,
        order_by: str,
        which: Document,
        value: str,
        direction: int,
        hint: str | None = None,
    ) -> float | None:
        """A value of the first message that is there, in the order of another value."""
        start = max(from_seq, stream.floor, self._acknowledged.get(stream.ident, 0))
        with self._messages.find(
            {"_id": {"$gte": stream.id(start), "$lt": stream.id(stream.next_seq)}, **which},
            {value: 1},
            sort=[(order_by, direction)],
            hint=hint,
            batch_size=10,  # more than one, for there may be debris
        ) as cursor:
            found = next((found for found in cursor if stream.has(_seq(found))), None)
            return None if found is None else _decoded(lambda document: float(document[value]), found)

    # -- Errors -----------------------------------------------------------------------------------------------

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
        if self._lost is not None:
            raise StorageLocked(self._lost)
        with self._errors():
            yield

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except PyMongoError as error:
            raise self._mapped(error) from error
        except (_Damaged, InvalidBSON) as error:
            raise self._corrupt(f"{error} is not what was stored") from error
        except DocumentTooLarge as error:
            raise StorageError(f"{self._name}: too much at once; nothing was stored ({error})") from error

    def _corrupt(self, what: str) -> StorageCorrupt:
        return StorageCorrupt(
            f"{self._name} is damaged: {what}. Restore the database from a backup; to start with an empty queue, use"
            " another database or netcomm_prefix"
        )

    def _mapped(self, error: PyMongoError) -> StorageError:
        """The error to raise for one of pymongo's."""
        kept = "what was accepted before is kept"
        if isinstance(error, InvalidOperation):
            return StorageError(f"{self._name} has been closed")
        if isinstance(error, ConnectionFailure) or error.timeout:
            return StorageUnavailable(
                f"{self._name} can't be reached: is the server running, and has it a primary? The next call tries"
                f" again; {kept} ({error})"
            )
        codes = _codes(error)
        if codes & _ACCESS_CODES:
            return StorageError(f"{self._name} refuses the user: may it read and write the database? ({error})")
        if codes & _PASSING_CODES:
            return StorageUnavailable(f"{self._name} can't do it now: trying again may help; {kept} ({error})")
        return StorageError(f"{self._name} can't do it: {error}; {kept}")


_abandoned: list[MongoClient[Document]] = []


def _connect(uri: str) -> MongoClient[Document]:
    given = {option.partition("=")[0].lower() for option in uri.partition("?")[2].split("&")}
    # Arguments would win over the URI.
    defaults = {name: value for name, value in _CLIENT_DEFAULTS.items() if name.lower() not in given}
    try:
        return MongoClient(uri, **defaults)
    except (PyMongoConfigurationError, ValueError, TypeError) as error:
        raise ConfigurationError(f"{_without_login(uri)} can't be used as a MongoDB URL: {error}") from error


def _without_login(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('?')[0].partition('/')[0].rpartition('@')[2]}"


def _codes(error: PyMongoError) -> set[int]:
    if isinstance(error, BulkWriteError):
        failures = [*error.details.get("writeErrors", ()), *error.details.get("writeConcernErrors", ())]
        return {failure.get("code", 0) for failure in failures}
    if isinstance(error, OperationFailure) and error.code is not None:
        return {error.code}
    return set()


def _only_duplicates(error: BulkWriteError) -> bool:
    return _codes(error) == {_DUPLICATE_KEY}


def _replace_older(collection: Documents[Document], documents: list[Document]) -> None:
    """Put documents in place of earlier versions of them; where they are already, or later ones, they are left."""
    ids = [document["_id"] for document in documents]
    there = {found["_id"] for found in collection.find({"_id": {"$in": ids}}, {"_id": 1})}
    new = [document for document in documents if document["_id"] not in there]
    old = [document for document in documents if document["_id"] in there]
    try:
        if new:
            collection.insert_many(new, ordered=False)
    except BulkWriteError as error:
        if not _only_duplicates(error):
            raise
        old = documents  # they were put there meanwhile
    if old:
        collection.bulk_write(
            [ReplaceOne({"_id": entry["_id"], "version": {"$lt": entry["version"]}}, entry) for entry in old],
            ordered=False,
        )


def _stored_message(stream: _Stream, document: Document) -> StoredMessage:
    message = StoredMessage(_seq(document), document["uuid"], document["data"], document["queued_at"], document["ttl"])
    if document["checksum"] != _message_checksum(stream, message):
        raise _Damaged(f"message {message.seq} to {stream.ident!r}")
    return message


def _message_checksum(stream: _Stream, message: StoredMessage) -> int:
    ttl = message.ttl
    key = _MESSAGE_KEY.pack(message.seq, message.queued_at, ttl is None, ttl or 0.0)
    return crc32(message.data, crc32(message.uuid, crc32(key, crc32(stream.key.encode()))))


def _size(documents: list[Document]) -> int:
    return sum([_decoded(lambda document: int(document["size"]), document) for document in documents])


def _seq(document: Document) -> int:
    return int(document["_id"].partition(".")[2], 16)


def _pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _signed(number: int) -> Int64:
    return Int64(number - 2**64 if number >= 2**63 else number)


def _unsigned(number: int) -> int:
    return number % 2**64
