"""The owner's changes to `messages` and `parts`: appending messages, and removing those that are gone.

An append first inserts the messages, whose `_id` is made of stream and seq, then raises `next_seq` in the head. Only
messages below `next_seq`, and not in the `gaps` of seqs that were passed over, are there. Others are debris of an
append that failed: never read nor counted, replaced where their seqs are used again, and removed once all messages
before them have been delivered.
"""

from collections.abc import Sequence
from dataclasses import replace

from pymongo import ASCENDING
from pymongo.errors import PyMongoError

from netcomm.errors import StorageError, StorageLocked
from netcomm.logs import Log
from netcomm.storage import Append
from netcomm_mongodb.bulk import remove_range, slices
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import BY_EXPIRY, Document, Stream, StreamKey, message_document, seq_of, total_size
from netcomm_mongodb.head import Head
from netcomm_mongodb.inserter import Inserter

_log = Log("netcomm.mongodb")

_DELETE_SLICE = 10_000
_MAX_GAPS = 100


class _Attempt:
    """The documents of one append.

    token: the owner's incarnation; number: which of its appends it is.
    """

    def __init__(self, token: int, number: int) -> None:
        self.token = token
        self.number = number
        self.messages: list[Document] = []
        self.parts: list[Document] = []

    def add(self, stream: Stream, append: Append) -> Stream:
        """Add messages; returns their stream as it will be. Raises StorageError where their seqs don't follow it."""
        key = stream.key
        next_seq, size = stream.next_seq, 0
        gaps = list(stream.gaps)
        for message in append.messages:
            if not next_seq <= message.seq < 2**63:
                raise StorageError(f"message {message.seq} to {append.ident!r} does not follow {next_seq - 1}")
            if message.seq > next_seq:
                gaps += (next_seq, message.seq)
            next_seq = message.seq + 1
            size += len(message.data) + len(message.envelope)
            document, parts = message_document(key, message, self.token, self.number)
            self.messages.append(document)
            self.parts += parts
        return replace(
            stream,
            next_seq=next_seq,
            gaps=tuple(gaps),
            count=stream.count + len(append.messages),
            size=stream.size + size,
        )


class Messages:
    """The messages as their owner changes them; one thread at a time."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self._inserter = Inserter(connection, head, "token", "attempt")
        self._token = 0
        self._attempts = 0
        self._has_parts = False

    def make_index(self) -> None:
        """Make the index of a new storage."""
        order = [("stream", ASCENDING), ("expires_at", ASCENDING)]
        self._connection.messages.create_index(order, name=BY_EXPIRY, sparse=True)

    def load(self, incarnation: int) -> None:
        """Note the owner's incarnation, and whether there are parts of large messages."""
        self._token = incarnation
        self._has_parts = self._connection.parts.find_one({}, {"_id": 1}) is not None

    # -- Appending --------------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        """Store messages, all of them or none. Raises StorageError."""
        if self._head.commit_in_doubt:
            self._head.commit()  # an append whose messages may be in the way must not be accepted any more
        self._attempts += 1
        attempt = _Attempt(self._token, self._attempts)
        changed: dict[StreamKey, Stream] = {}
        for append in batch:
            place = append.ident, append.stream
            stream = changed.get(place) or self._head.streams.get(place)
            if stream is None:
                stream = Stream(append.ident, append.epoch, number=append.stream)
            stream = attempt.add(stream, append)
            if attempt.parts:
                self._has_parts = True
            if len(stream.gaps) > 2 * _MAX_GAPS:
                stream = self._without_oldest_gaps(stream)
            changed[place] = stream
        try:
            for part in attempt.parts:
                self._inserter.insert(self._connection.parts, [part])
            if attempt.messages:
                self._inserter.insert(self._connection.messages, attempt.messages)
            self._head.commit(changed.values())
        except StorageLocked:
            self._withdraw(attempt)
            raise

    def _without_oldest_gaps(self, stream: Stream) -> Stream:
        # Debris in the oldest gaps is too old to come any more.
        gaps = stream.gaps
        while len(gaps) > 2 * _MAX_GAPS:
            self._remove(stream.id(gaps[0]), stream.id(gaps[1]))
            gaps = gaps[2:]
        return replace(stream, gaps=gaps)

    def _withdraw(self, attempt: _Attempt) -> None:
        """Remove what this owner, which no longer is one, has inserted and could not have accepted."""
        try:
            for collection, documents in (
                (self._connection.messages, attempt.messages),
                (self._connection.parts, attempt.parts),
            ):
                for some in slices([document["_id"] for document in documents]):
                    collection.delete_many({"_id": {"$in": some}, "token": attempt.token, "attempt": attempt.number})
        except PyMongoError as error:
            _log.debug("%s: debris is left: %s", self._connection.name, error)

    # -- Removing ---------------------------------------------------------------------------------------------

    def count_listed(self, stream: Stream, seqs: set[int]) -> tuple[list[int], int]:
        """Of the messages with these seqs, the seqs of those that are there, and their size in bytes."""
        ids = [stream.id(seq) for seq in seqs if stream.has(seq)]
        found = list(self._connection.messages.find({"_id": {"$in": ids}}, {"size": 1})) if ids else []
        return [seq_of(document) for document in found], total_size(found)

    def count_below(self, stream: Stream, below: int) -> tuple[int, int, int]:
        """The first messages below a seq, as many as are removed in one go.

        Returns the seq below which they lie; how many are there, and their size in bytes.
        """
        within = {"_id": {"$gte": stream.id(stream.floor), "$lt": stream.id(below)}}
        found = list(
            self._connection.messages.find(within, {"size": 1}, sort=[("_id", ASCENDING)], limit=_DELETE_SLICE)
        )
        counted = [document for document in found if stream.has(seq_of(document))]
        end = seq_of(found[-1]) + 1 if len(found) == _DELETE_SLICE else below
        return end, len(counted), total_size(counted)

    def remove_gone(self, stream: Stream) -> None:
        """Remove the single messages that a stream says are gone."""
        ids = [stream.id(seq) for seq in stream.gone]
        self._connection.messages.delete_many({"_id": {"$in": ids}})
        if self._has_parts:
            for id in ids:
                self._remove(f"{id}.", f"{id}/")

    def remove_below_floor(self, stream: Stream) -> None:
        """Remove the messages below a stream's floor."""
        self._remove(stream.id(0), stream.id(stream.floor))

    def _remove(self, start: str, end: str) -> None:
        """Remove the messages, and the parts, from an `_id` to below another."""
        remove_range(self._connection.messages, start, end)
        if self._has_parts:
            remove_range(self._connection.parts, start, end)
