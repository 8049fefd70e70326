"""`MemoryQueueStorage`: a storage that lives as long as the object."""

import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from netcomm.errors import ConfigurationError, StorageError
from netcomm.host_changes import HostChanges, LogChanges, merge
from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep, HostStorage, PositionKey
from netcomm.message import DURABLE, Stream
from netcomm.storage import Append, Position, StoredMessage, StoredStream


class _MemoryStream:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.next_seq = 0
        self.sent_below = 0
        self.messages: list[StoredMessage] = []


class _MemoryLog:
    def __init__(self) -> None:
        self.next_number = 0
        self.rows: list[HostRow] = []

    def apply(self, changes: LogChanges) -> None:
        rows = self.rows
        self.next_number = max(self.next_number, changes.next_number or 0)
        for low, high in changes.deleted:
            del rows[bisect_left(rows, low, key=_number) : bisect_left(rows, high, key=_number)]
        if changes.appended:
            start = bisect_left(rows, next(iter(changes.appended)), key=_number)
            kept = [row for row in rows[start:] if row.number not in changes.appended]
            rows[start:] = sorted([*kept, *changes.appended.values()], key=_number)
        for number, state in changes.changed.items():
            place = bisect_left(rows, number, key=_number)
            if place < len(rows) and rows[place].number == number:
                rows[place] = rows[place]._replace(state=state)

    def summary(self) -> HostLog:
        rows = self.rows
        return HostLog(
            self.next_number,
            len(rows),
            sum(len(row.data) + len(row.envelope) for row in rows),
            rows[0].number if rows else None,
            rows[0].stored_at if rows else None,
            rows[-1].stored_at if rows else None,
        )


class MemoryQueueStorage(HostStorage):
    """A storage that lives as long as the object: for tests, and as the shortest example of one."""

    keeps_envelopes = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store_id = os.urandom(16)
        self._streams: dict[tuple[str, Stream], _MemoryStream] = {}
        self._positions: dict[str, Position] = {}
        self._logs: dict[str, _MemoryLog] = {}
        self._marks: dict[str, int] = {}
        self._documents: dict[str, bytes] = {}
        self._host_positions: dict[PositionKey, HostPosition] = {}
        self._closed = False

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `memory:`."""
        if url not in ("memory:", "memory://"):
            raise ConfigurationError(f"a memory storage has no place; {url!r} names one")
        return cls()

    @property
    def store_id(self) -> bytes:
        return self._store_id

    @property
    def incarnation(self) -> int:
        return 1

    # -- Durable streams --------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        with self._locked():
            complete = [
                (append, list(append.messages), [message.seq + 1 for message in append.messages]) for append in batch
            ]
            for append, messages, ends in complete:
                stream = self._streams.setdefault((append.ident, append.stream), _MemoryStream(append.epoch))
                stream.messages += messages
                stream.next_seq = max([stream.next_seq, *ends])

    def read(
        self, ident: str, from_seq: int, max_count: int, max_bytes: int, stream: Stream = DURABLE
    ) -> list[StoredMessage]:
        with self._locked():
            messages = self._messages(ident, stream)
            start = bisect_left(messages, from_seq, key=_seq)
            found = []
            for message in messages[start : start + max_count]:
                found.append(message)
                max_bytes -= len(message.data) + len(message.envelope)
                if max_bytes <= 0:
                    break
            return found

    def delete_below(self, ident: str, seq: int, stream: Stream = DURABLE) -> None:
        with self._locked():
            messages = self._messages(ident, stream)
            del messages[: bisect_left(messages, seq, key=_seq)]

    def delete(self, ident: str, seqs: Sequence[int], stream: Stream = DURABLE) -> None:
        gone = set(seqs)
        with self._locked():
            messages = self._messages(ident, stream)
            messages[:] = [message for message in messages if message.seq not in gone]

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int, stream: Stream = DURABLE
    ) -> tuple[list[StoredMessage], float | None]:
        with self._locked():
            mortal = [
                (message.expires_at, message)
                for message in self._messages(ident, stream)
                if message.seq >= from_seq and message.expires_at is not None
            ]
        over = [message for expires_at, message in mortal if expires_at <= now]
        return over[:max_count], min((expires_at for expires_at, _ in mortal if expires_at > now), default=None)

    def streams(self) -> list[StoredStream]:
        with self._locked():
            return [
                StoredStream(
                    ident,
                    stream.epoch,
                    stream.next_seq,
                    stream.sent_below,
                    len(stream.messages),
                    sum(len(message.data) + len(message.envelope) for message in stream.messages),
                    stream.messages[0].queued_at if stream.messages else None,
                    min(
                        (message.expires_at for message in stream.messages if message.expires_at is not None),
                        default=None,
                    ),
                    stream.messages[-1].queued_at if stream.messages else None,
                    number,
                )
                for (ident, number), stream in self._streams.items()
            ]

    def mark_sent(self, ident: str, below: int, stream: Stream = DURABLE) -> None:
        with self._locked():
            if (found := self._streams.get((ident, stream))) is not None:
                found.sent_below = below

    def renew(self, ident: str, epoch: int, stream: Stream = DURABLE) -> None:
        with self._locked():
            if (found := self._streams.get((ident, stream))) is not None:
                found.epoch, found.sent_below = epoch, found.next_seq

    def positions(self) -> dict[str, Position]:
        with self._locked():
            return dict(self._positions)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        with self._locked():
            self._positions.update(positions)

    def _messages(self, ident: str, number: Stream) -> list[StoredMessage]:
        stream = self._streams.get((ident, number))
        return [] if stream is None else stream.messages

    # -- What a host keeps ------------------------------------------------------------------------------------

    def commit(self, steps: Sequence[HostStep]) -> None:
        changes = merge(steps)  # nothing fails behind it
        with self._locked():
            self._apply(changes)

    def _apply(self, changes: HostChanges) -> None:
        for name, change in changes.logs.items():
            if change.dropped:
                self._logs.pop(name, None)
            if change.next_number is not None:
                self._logs.setdefault(name, _MemoryLog())
            if (log := self._logs.get(name)) is not None:
                log.apply(change)
        for name in changes.forgotten_marks:
            self._marks.pop(name, None)
        for name, mark in changes.marks.items():
            self._marks[name] = max(mark, self._marks.get(name, 0))
        self._documents |= {name: document for name, document in changes.documents.items() if document is not None}
        for name, document in changes.documents.items():
            if document is None:
                self._documents.pop(name, None)
        for key, position in changes.positions.items():
            if position is None:
                self._host_positions.pop(key, None)
            else:
                self._host_positions[key] = position

    def logs(self) -> dict[str, HostLog]:
        with self._locked():
            return {name: log.summary() for name, log in self._logs.items()}

    def rows(self, log: str, from_number: int, max_count: int, max_bytes: int) -> list[HostRow]:
        with self._locked():
            rows = self._logs[log].rows if log in self._logs else []
            start = bisect_left(rows, from_number, key=_number)
            found = []
            for row in rows[start : start + max_count]:
                found.append(row)
                max_bytes -= len(row.data) + len(row.envelope)
                if max_bytes <= 0:
                    break
            return found

    def marks(self) -> dict[str, int]:
        with self._locked():
            return dict(self._marks)

    def documents(self) -> dict[str, bytes]:
        with self._locked():
            return dict(self._documents)

    def host_positions(self) -> dict[PositionKey, HostPosition]:
        with self._locked():
            return dict(self._host_positions)

    # -- Life -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._closed = True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise StorageError("the storage has been closed")
            yield


def _seq(message: StoredMessage) -> int:
    return message.seq


def _number(row: HostRow) -> int:
    return row.number
