"""The document `head`: who owns the storage, and the streams and positions that changed last.

Every change is one update of the head, on the condition that the owner is still the one who makes it, and that nothing
came in between (`n` counts the updates). So an owner that was taken for dead can't change anything any more.

- An update whose answer got lost has happened, or not, or is still to come. The next one settles it: it writes what is
  known to be accepted, and one that comes late does not find the `n` that it expects. So the change that raised is
  undone, unless the process ends before: then it may stand. Only where a seq of an append that failed is used again,
  which netcomm does not do, and that message is deleted by its seq, an insert that comes later still could undo it.
- The entries of streams and positions in the head are its journal. Once it is long, they go to `PREFIXstreams` and
  `PREFIXpositions`, each under the condition that no later one is there, and leave the head with its next update. So
  the head is read first, and those collections after it.
- What a host keeps has a part of the head, and a journal, of its own: `host_part`. Updates that don't concern the host
  leave it as it is.
"""

import os
import platform
import secrets
from collections.abc import Collection
from dataclasses import replace

from bson.int64 import Int64
from pymongo.errors import DuplicateKeyError, PyMongoError

from netcomm.errors import StorageError, StorageLocked, StorageUnavailable
from netcomm.storage import Position
from netcomm_mongodb.bulk import replace_older
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import HEAD, SCHEMA, Document, PositionRecord, Stream, StreamKey, decoded
from netcomm_mongodb.errors import Damaged
from netcomm_mongodb.head_record import HeadRecord, identity_checksum
from netcomm_mongodb.host_part import HostPart, HostUpdate

_TRIES = 5


class Head:
    """The head as its owner knows it: the owner alone changes it, so it need not be read again.

    Any thread may call `check_owner`; one thread at a time the other methods.

    owner: what this owner calls itself in the head.
    lease_s: for how long the storage stays locked after its owner crashed.
    lost: why this owner no longer is one; None while it is.
    streams: all streams.
    journal_streams, journal_positions: the streams, and the positions by sender, that the journal has.
    host: what the head has for a host.
    n: counts the updates of the head.
    commit_in_doubt: whether the last update may have happened or not; the next one undoes it.

    All but `owner` and `lease_s` is changed by the methods of this class alone; `lost` and `streams` may be read by any
    thread.
    """

    def __init__(self, connection: Connection, lease_s: float) -> None:
        self.owner = secrets.token_hex(16)
        self.lease_s = lease_s
        self.lost: str | None = None
        self.streams: dict[StreamKey, Stream] = {}
        self.journal_streams: set[StreamKey] = set()
        self.journal_positions: dict[str, PositionRecord] = {}
        self.host = HostPart()
        self.commit_in_doubt = False
        self._connection = connection
        self.n = 0

    def take(self, found: HeadRecord) -> bool:
        """Become the owner, unless the head has changed since it was found; returns whether it succeeded."""
        incarnation = found.incarnation + 1
        taken = self._connection.meta.update_one(
            {"_id": HEAD, "owner": found.owner, "n": Int64(found.n)},
            {
                "$set": {
                    "schema": SCHEMA,
                    "owner": self.owner,
                    "owner_name": f"process {os.getpid()} on {platform.node()}",
                    "lease_s": self.lease_s,
                    "incarnation": Int64(incarnation),
                    "checksum": identity_checksum(found.store_id, incarnation),
                    "n": Int64(found.n + 1),
                },
                "$currentDate": {"taken_at": True},
            },
        )
        return taken.matched_count > 0

    def load(self) -> HeadRecord:
        """Read the streams and the journal, as the owner; returns the head that was found."""
        found = self.check_owner()
        self.n = found.n
        self.streams = load_streams(self._connection, found)
        self.journal_streams = {stream.place for stream in found.streams}
        self.journal_positions = {position.ident: position for position in found.positions}
        self.host.load(self._connection, found.host, found.records)
        return found

    def leave(self) -> None:
        """Let the next owner in, where the storage could not be loaded."""
        try:
            self._connection.meta.update_one({"_id": HEAD, "owner": self.owner}, {"$set": {"owner": None}})
        except PyMongoError:
            pass  # the lease ends by itself

    def release(self) -> None:
        """Write the journal as it is, and let the next owner in."""
        self.commit(release=True)

    def check_owner(self) -> HeadRecord:
        """Read the head. Raises StorageLocked where another owner has the storage; `lost` says so from then on."""
        found = find_head(self._connection)
        if found.owner != self.owner:
            self.lost = (
                f"{self._connection.name} was taken over, by {found.owner_name}, after this owner had not renewed its"
                f" lease for {self.lease_s:g} s; open it again once it is free"
            )
            raise StorageLocked(self.lost)
        return found

    def commit(
        self,
        streams: Collection[Stream] = (),
        positions: Collection[PositionRecord] = (),
        host: HostUpdate | None = None,
        release: bool = False,
    ) -> None:
        """Change streams and positions, and what the host has, all of them or none."""
        for _ in range(_TRIES):
            n = self.n + 1
            new = {stream.place: replace(stream, version=n) for stream in streams}
            journal_streams = self.journal_streams | new.keys()
            journal_positions = self.journal_positions | {
                position.ident: replace(position, version=n) for position in positions
            }
            change: Document = {
                "n": Int64(n),
                "streams": [(new.get(place) or self.streams[place]).document() for place in journal_streams],
                "positions": [position.document() for position in journal_positions.values()],
            }
            host_change = self.host.change(n, host)
            change |= host_change.fields
            if release:
                change["owner"] = None
            self.commit_in_doubt = True
            done = self._connection.meta.update_one(
                {"_id": HEAD, "owner": self.owner, "n": Int64(self.n)}, {"$set": change}
            )
            self.commit_in_doubt = False
            if done.matched_count:
                self.n = n
                self.streams.update(new)
                self.journal_streams = journal_streams
                self.journal_positions = journal_positions
                self.host.changed(host_change)
                return
            # An earlier update, whose answer was lost, has happened: this one is to take its place.
            found = self.check_owner()
            if found.n < self.n:
                raise Damaged("it was put back to an earlier state while it was open")
            self.n = found.n
        raise StorageUnavailable(
            f"{self._connection.name} is being changed by somebody else; what was accepted before is kept"
        )

    def forget_gone(self, place: StreamKey) -> None:
        """Leave the seqs of single messages out of a stream, once the messages are removed."""
        self.streams[place] = replace(self.streams[place], gone=())

    def compact(self) -> None:
        """Bring the journal's entries to their collections; the next update of the head leaves them out.

        Messages that the entries say are gone must have been removed before.
        """
        streams = [self.streams[place].document() for place in self.journal_streams]
        positions = [position.document() for position in self.journal_positions.values()]
        replace_older(self._connection.streams, streams)
        replace_older(self._connection.positions, positions)
        self.journal_streams = set()
        self.journal_positions = {}


def head_exists(connection: Connection) -> bool:
    """Whether there is a storage."""
    return connection.meta.find_one({"_id": HEAD}, {"_id": 1}) is not None


def make_head(connection: Connection) -> None:
    """Make a storage without an owner, unless there is one."""
    store_id = secrets.token_bytes(16)
    try:
        connection.meta.insert_one(
            {
                "_id": HEAD,
                "schema": SCHEMA,
                "store_id": store_id,
                "incarnation": Int64(0),
                "checksum": identity_checksum(store_id, 0),
                "owner": None,
                "n": Int64(0),
                "streams": [],
                "positions": [],
            }
        )
    except DuplicateKeyError:
        pass  # another was first


def find_head(connection: Connection) -> HeadRecord:
    """Read the head. Raises StorageError where there is no storage, or one that a newer netcomm made."""
    document = connection.meta.find_one({"_id": HEAD})
    if document is None:
        raise StorageError(f"there is no queue storage at {connection.name}")
    schema = document.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise StorageError(
            f"{connection.name} has schema version {schema}, and this netcomm knows {SCHEMA}: it needs the newer"
            " netcomm that made it"
        )
    return decoded(HeadRecord.from_document, document)


def load_streams(connection: Connection, head: HeadRecord, which: Document | None = None) -> dict[StreamKey, Stream]:
    """The streams of `streams`, or those that a filter chooses, and all of the head, which was read before."""
    found = {}
    for document in connection.streams.find(which):
        stream = decoded(Stream.from_document, document)
        found[stream.place] = stream
    for stream in head.streams:
        if stream.place not in found or found[stream.place].version <= stream.version:
            found[stream.place] = stream
    return found


def load_positions(connection: Connection) -> dict[str, Position]:
    """The positions of the head and of `positions`, by sender."""
    head = find_head(connection)
    found = {}
    for document in connection.positions.find():
        position = decoded(PositionRecord.from_document, document)
        found[position.ident] = position
    for position in head.positions:
        if position.ident not in found or found[position.ident].version <= position.version:
            found[position.ident] = position
    return {ident: position.position for ident, position in found.items()}
