"""The world's own queue storage: in memory, and able to fail, to forget what was not committed, and to go back."""

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Self

from netcomm.errors import StorageUnavailable
from netcomm.host_changes import merge
from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep, HostStorage, PositionKey
from netcomm.message import DURABLE, Stream
from netcomm.storage import Append, Position, StoredMessage, StoredStream

_Key = tuple[str, Stream]


class SimulatedStorage(HostStorage):
    """What is committed, and deletions that are not yet.

    down: whether it can't be reached. Of a batch that fails then, nothing is stored; or, where `lies` says so, all is,
    and only the answer is lost.
    """

    keeps_envelopes = True

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._id = rng.randbytes(16)
        self._streams: dict[_Key, StoredStream] = {}
        self._messages: dict[_Key, list[StoredMessage]] = {}
        self._positions: dict[str, Position] = {}
        self._rows: dict[int, HostRow] = {}  # of the only log
        self._host_positions: dict[PositionKey, HostPosition] = {}
        self._uncommitted: dict[_Key, int] = {}
        self.down = False
        self.lies = 0.0

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        raise NotImplementedError

    @property
    def store_id(self) -> bytes:
        return self._id

    @property
    def incarnation(self) -> int:
        return 1

    # -- Faults -----------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process is gone: what it had not committed is lost, or just made it."""
        if self._rng.random() < 0.3:
            self._commit()
        self._uncommitted.clear()

    def backup(self) -> Any:
        return deepcopy((self._streams, self._messages, self._positions, self._rows, self._host_positions))

    def restore(self, copy: Any) -> None:
        self._streams, self._messages, self._positions, self._rows, self._host_positions = deepcopy(copy)
        self._uncommitted.clear()

    @property
    def left(self) -> int:
        """How many messages it has, at rest."""
        self._commit()
        return sum(map(len, self._messages.values()))

    def _reach(self, write: bool = False) -> bool:
        """Raise where it is down; returns whether a write takes effect without its caller hearing of it."""
        if self.down:
            if write and self._rng.random() < self.lies:
                return True
            raise StorageUnavailable("the storage is down")
        return False

    def _commit(self) -> None:
        for key, seq in self._uncommitted.items():
            messages = self._messages.get(key, [])
            del messages[: bisect_left(messages, seq, key=_seq)]
        self._uncommitted.clear()

    def _written(self, lost: bool) -> None:
        self._commit()
        if lost:
            raise StorageUnavailable("the answer of the storage is lost")

    # -- Durable streams --------------------------------------------------------------------------------------

    def append(self, batch: Sequence[Append]) -> None:
        lost = self._reach(True)
        for append in batch:
            key = append.ident, append.stream
            stream = self._streams.get(key)
            if stream is None:
                stream = StoredStream(append.ident, append.epoch, 0, 0, 0, 0, None, None, None, append.stream)
                self._messages[key] = []
            last = append.messages[-1].seq
            assert last >= stream.next_seq, "a seq was used twice"
            self._streams[key] = replace(stream, next_seq=last + 1)
            self._messages[key] += append.messages
        self._written(lost)

    def read(
        self, ident: str, from_seq: int, max_count: int, max_bytes: int, stream: Stream = DURABLE
    ) -> list[StoredMessage]:
        self._reach()
        if self._rng.random() < 0.5:
            self._commit()
        messages = self._messages.get((ident, stream), [])
        start = bisect_left(messages, from_seq, key=_seq)
        found = []
        for message in messages[start : start + max_count]:
            found.append(message)
            max_bytes -= len(message.data) + len(message.envelope)
            if max_bytes <= 0:
                break
        return found

    def delete_below(self, ident: str, seq: int, stream: Stream = DURABLE) -> None:
        self._reach()
        self._uncommitted[ident, stream] = max(seq, self._uncommitted.get((ident, stream), 0))

    def delete(self, ident: str, seqs: Sequence[int], stream: Stream = DURABLE) -> None:
        lost = self._reach(True)
        gone = set(seqs)
        if (ident, stream) in self._messages:
            kept = [message for message in self._messages[ident, stream] if message.seq not in gone]
            self._messages[ident, stream] = kept
        self._written(lost)

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int, stream: Stream = DURABLE
    ) -> tuple[list[StoredMessage], float | None]:
        self._reach()
        mortal = [
            (message.expires_at, message)
            for message in self._messages.get((ident, stream), [])
            if message.seq >= from_seq and message.expires_at is not None
        ]
        over = [message for expires_at, message in mortal if expires_at <= now]
        return over[:max_count], min((expires_at for expires_at, _ in mortal if expires_at > now), default=None)

    def streams(self) -> list[StoredStream]:
        self._reach()
        found = []
        for key, stream in self._streams.items():
            messages = self._messages[key]
            expiries = [message.expires_at for message in messages if message.expires_at is not None]
            found.append(
                replace(
                    stream,
                    count=len(messages),
                    size=sum(len(message.data) + len(message.envelope) for message in messages),
                    oldest_at=min((message.queued_at for message in messages), default=None),
                    newest_at=max((message.queued_at for message in messages), default=None),
                    next_expiry=min(expiries, default=None),
                )
            )
        return found

    def mark_sent(self, ident: str, below: int, stream: Stream = DURABLE) -> None:
        lost = self._reach(True)
        self._streams[ident, stream] = replace(self._streams[ident, stream], sent_below=below)
        self._written(lost)

    def renew(self, ident: str, epoch: int, stream: Stream = DURABLE) -> None:
        lost = self._reach(True)
        state = self._streams[ident, stream]
        self._streams[ident, stream] = replace(state, epoch=epoch, sent_below=state.next_seq)
        self._written(lost)

    def positions(self) -> dict[str, Position]:
        self._reach()
        return dict(self._positions)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        lost = self._reach(True)
        self._positions.update(positions)
        self._written(lost)

    # -- What a host keeps ------------------------------------------------------------------------------------
    # One log of rows, and the positions. What else hosts keep is not played here.

    def commit(self, steps: Sequence[HostStep]) -> None:
        changes = merge(steps)
        lost = self._reach(True)
        (log,) = changes.logs.values()
        self._rows.update(log.appended)
        for key, position in changes.positions.items():
            assert position is not None
            self._host_positions[key] = position
        self._written(lost)

    def host_positions(self) -> dict[PositionKey, HostPosition]:
        self._reach()
        return dict(self._host_positions)

    @property
    def host_rows(self) -> list[HostRow]:
        """The rows that steps have stored."""
        return list(self._rows.values())

    @property
    def next_number(self) -> int:
        """Above the number of every row."""
        return max(self._rows, default=-1) + 1

    def logs(self) -> dict[str, HostLog]:
        raise NotImplementedError

    def rows(self, log: str, from_number: int, max_count: int, max_bytes: int) -> list[HostRow]:
        raise NotImplementedError

    def marks(self) -> dict[str, int]:
        raise NotImplementedError

    def documents(self) -> dict[str, bytes]:
        raise NotImplementedError

    def close(self) -> None:
        self._commit()


def _seq(message: StoredMessage) -> int:
    return message.seq
