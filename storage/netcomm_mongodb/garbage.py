"""Deleting messages, and work that is put off: removing them, and compacting the journal after that.

A delete is done once the head says so: the seqs of single messages are in `gone`, all others below `floor`, together
with the new totals. The messages themselves are removed after that. Messages that a crash leaves are not read, and are
removed later. An entry leaves the journal only after the messages that it says are gone have been removed: so the next
owner, which looks for such messages in the journal's streams alone, finds them all.
"""

from collections.abc import Sequence

from pymongo.errors import PyMongoError

from netcomm.logs import Log
from netcomm_mongodb.documents import StreamKey
from netcomm_mongodb.head import Head
from netcomm_mongodb.messages import Messages

_log = Log("netcomm.mongodb")

_JOURNAL_ENTRIES = 32
_LATE_DELETES = 1000
_SINGLE_DELETES = 1000


class GarbageCollector:
    """Knows which messages are no longer wanted, and which of them are still there; one thread at a time.

    name: what texts call the storage.
    acknowledged: by stream, the seq below which messages have arrived, where the floor has not been raised to it.
        Any thread may read it.
    """

    def __init__(self, name: str, head: Head, messages: Messages) -> None:
        self.acknowledged: dict[StreamKey, int] = {}
        self._name = name
        self._head = head
        self._messages = messages
        # Streams of which messages that are gone have not been removed.
        self._unswept: set[StreamKey] = set()

    def load(self) -> None:
        """Note what the owner before this one may have left, once the head is loaded."""
        self._unswept = set(self._head.journal_streams)

    def delete_below(self, place: StreamKey, seq: int) -> None:
        """Note that the messages of a stream below a seq have arrived; they are deleted once there are many."""
        stream = self._head.streams.get(place)
        if stream is None:
            return
        # Messages that are appended later are not meant.
        below = min(seq, stream.next_seq)
        if below > max(stream.floor, self.acknowledged.get(place, 0)):
            self.acknowledged[place] = below
            if below - stream.floor >= _LATE_DELETES:
                self._raise_floor(place)

    def delete(self, place: StreamKey, seqs: Sequence[int]) -> None:
        """Delete single messages of a stream."""
        for start in range(0, len(seqs), _SINGLE_DELETES):
            stream = self._head.streams.get(place)
            if stream is None:
                return
            found, size = self._messages.count_listed(stream, set(seqs[start : start + _SINGLE_DELETES]))
            if found:
                self._head.commit([stream.without(found, size)])
                self._unswept.add(place)
                self._sweep_if_possible(place)
        self.compact_when_long()

    def delete_acknowledged(self) -> None:
        """Delete all messages that have arrived."""
        for place in list(self.acknowledged):
            self._raise_floor(place)

    def collect(self) -> bool:
        """Remove messages of one stream that are gone; returns whether there are more."""
        if self.acknowledged:
            self._raise_floor(next(iter(self.acknowledged)))
        elif self._unswept:
            self._sweep(next(iter(self._unswept)))
        return bool(self.acknowledged or self._unswept)

    def compact_when_long(self) -> None:
        """Compact the journal once it is long; later, where the server fails now."""
        if len(self._head.journal_streams) + len(self._head.journal_positions) <= _JOURNAL_ENTRIES:
            return
        try:
            self.compact()
        except PyMongoError as error:
            _log.debug("%s: the journal stays long for now: %s", self._name, error)

    def compact(self) -> None:
        """Compact the journal."""
        for place in self._unswept & self._head.journal_streams:
            self._sweep(place)
        self._head.compact()

    def _raise_floor(self, place: StreamKey) -> None:
        below = self.acknowledged[place]
        while (stream := self._head.streams[place]).floor < below:
            floor, count, size = self._messages.count_below(stream, below)
            self._head.commit([stream.without_below(floor, count, size)])
            self._unswept.add(place)
            self._sweep_if_possible(place)
        del self.acknowledged[place]
        self.compact_when_long()

    def _sweep_if_possible(self, place: StreamKey) -> None:
        try:
            self._sweep(place)
        except PyMongoError as error:
            _log.debug("%s: messages that are gone stay for now: %s", self._name, error)

    def _sweep(self, place: StreamKey) -> None:
        """Remove the messages of a stream that the head says are gone."""
        stream = self._head.streams[place]
        if stream.gone:
            self._messages.remove_gone(stream)
            self._head.forget_gone(place)
        if stream.floor:
            self._messages.remove_below_floor(stream)
        self._unswept.discard(place)
