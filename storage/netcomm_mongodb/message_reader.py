"""Reading `messages` and `parts`: the messages that are there, without debris, for the owner and for readers."""

import math
from collections.abc import Iterator
from functools import partial

from pymongo import ASCENDING, DESCENDING

from netcomm.storage import StoredMessage, StoredStream
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import BY_EXPIRY, Document, Stream, decoded, seq_of, stored_message
from netcomm_mongodb.parts import is_whole

_MAX_LIMIT = 2**31 - 1
_READ_AHEAD = 10_000


class MessageReader:
    """Reads messages of a stream, which the caller names as the head has it. Any thread may call it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, stream: Stream, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        """The first messages at or above `from_seq`, as `QueueStorage.read` returns them."""
        average = stream.size // max(stream.count, 1) + 1
        batch_size = max(1, min(max_count, max_bytes // average + 1, _READ_AHEAD))
        found = []
        for document in self._find(stream, from_seq, max_count, batch_size=batch_size):
            message = self._message(stream, document)
            if message is None:
                continue
            found.append(message)
            max_bytes -= len(message.data) + len(message.envelope)
            if max_bytes <= 0:
                break
        return found

    def expired(
        self, stream: Stream, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        """The messages that expire at or before `now`, and when the next one does, as `QueueStorage.expired` does."""
        # First the ids: the server would have to sort whole messages otherwise.
        over = {"stream": stream.key, "expires_at": {"$lte": now}}
        ids = [document["_id"] for document in self._find(stream, from_seq, max_count, {"_id": 1}, over, BY_EXPIRY)]
        documents = self._connection.messages.find({"_id": {"$in": ids}}, sort=[("_id", ASCENDING)])
        found = [message for document in documents if (message := self._message(stream, document)) is not None]
        return found, self._first_expiry(stream, from_seq, {"$gt": now})

    def summary(self, stream: Stream, from_seq: int) -> StoredStream:
        """What `QueueStorage.streams` says of a stream; from_seq: of its first message that was not acknowledged."""
        oldest_at = newest_at = next_expiry = None
        if stream.count:
            oldest_at = self._first(stream, from_seq, "_id", {}, "queued_at", ASCENDING)
            newest_at = self._first(stream, from_seq, "_id", {}, "queued_at", DESCENDING)
            next_expiry = self._first_expiry(stream, from_seq, {"$gte": -math.inf})
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
            stream=stream.number,
        )

    def _find(
        self,
        stream: Stream,
        from_seq: int,
        max_count: int,
        projection: Document | None = None,
        which: Document | None = None,
        hint: str | None = None,
        batch_size: int = 0,
    ) -> Iterator[Document]:
        """The documents of a stream's messages at or above a seq that are there, in order."""
        start = max(from_seq, stream.floor)
        while max_count > 0:
            limit = min(max_count, _MAX_LIMIT)
            seen = 0
            with self._connection.messages.find(
                {"_id": {"$gte": stream.id(start), "$lt": stream.id(stream.next_seq)}, **(which or {})},
                projection,
                sort=[("_id", ASCENDING)],
                limit=limit,
                hint=hint,
                batch_size=batch_size,
            ) as cursor:
                for document in cursor:
                    seen += 1
                    start = seq_of(document) + 1
                    if stream.has(start - 1):
                        max_count -= 1
                        yield document
            if seen < limit:
                return
            # Debris was among them, in whose place there may be others.

    def _message(self, stream: Stream, document: Document) -> StoredMessage | None:
        """The message of a document; None if it has been deleted in the meantime."""
        if not is_whole(self._connection.messages, self._connection.parts, document):
            return None
        return decoded(partial(stored_message, stream), document)

    def _first_expiry(self, stream: Stream, from_seq: int, when: Document) -> float | None:
        mortal = {"stream": stream.key, "expires_at": when}
        return self._first(stream, from_seq, "expires_at", mortal, "expires_at", ASCENDING, BY_EXPIRY)

    def _first(
        self,
        stream: Stream,
        from_seq: int,
        order_by: str,
        which: Document,
        value: str,
        direction: int,
        hint: str | None = None,
    ) -> float | None:
        """A value of the first message that is there, in the order of another value."""
        start = max(from_seq, stream.floor)
        with self._connection.messages.find(
            {"_id": {"$gte": stream.id(start), "$lt": stream.id(stream.next_seq)}, **which},
            {value: 1},
            sort=[(order_by, direction)],
            hint=hint,
            batch_size=10,  # more than one, for there may be debris
        ) as cursor:
            found = next((found for found in cursor if stream.has(seq_of(found))), None)
            return None if found is None else decoded(lambda document: float(document[value]), found)
