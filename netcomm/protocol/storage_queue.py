"""`StorageQueue`: what a storage is asked for, merged, and in the order in which it is to be done.

It has no thread and no clock: its owner takes the jobs out of it, carries them out one after the other, and puts back
those that have failed. Requests of a kind that supersede each other are merged: of the positions in one stream, the
last counts, and of the seqs that messages may be deleted below, the highest.
"""

from dataclasses import dataclass
from typing import Any

from netcomm.message import Stream
from netcomm.protocol.events import DeleteBelow, StorageRequest, StorePosition
from netcomm.storage import Position, QueueStorage


@dataclass(slots=True)
class Job:
    """One call of a storage, and the requests that it answers."""

    requests: list[StorageRequest]

    def carry_out(self, storage: QueueStorage) -> Any:
        """Call the storage; returns its result, which is that of each request. Raises what the storage raises."""
        return self.requests[0].carry_out(storage)


@dataclass(slots=True)
class _StorePositions(Job):
    """Positions in the streams of several senders go to the storage in one call."""

    positions: dict[str, Position]

    def carry_out(self, storage: QueueStorage) -> None:
        storage.store_positions(self.positions)


class StorageQueue:
    """The requests that are to be carried out."""

    __slots__ = ("_deletes", "_positions", "_todo")

    def __init__(self) -> None:
        self._todo: list[StorageRequest] = []
        self._positions: dict[str, Position] = {}
        self._deletes: dict[tuple[str, Stream], int] = {}

    def __bool__(self) -> bool:
        return bool(self._todo or self._positions or self._deletes)

    @property
    def may_wait(self) -> bool:
        """Whether there is nothing but deletions of what has arrived, which are cheaper when more of them gather."""
        return not (self._todo or self._positions)

    @property
    def has_deletes(self) -> bool:
        """Whether there are deletions of what has arrived."""
        return bool(self._deletes)

    def add(self, request: StorageRequest) -> None:
        """Queue a request."""
        match request:
            case StorePosition(ident, position):
                self._positions[ident] = position
            case DeleteBelow(ident, seq, stream):
                self._deletes[ident, stream] = max(seq, self._deletes.get((ident, stream), 0))
            case _:
                self._todo.append(request)

    def take(self, with_deletes: bool) -> list[Job]:
        """Take out what is to be done, the most urgent first; with_deletes: all of it, also what may wait."""
        jobs: list[Job] = []
        if self._positions:
            positions, self._positions = self._positions, {}
            requests: list[StorageRequest] = [StorePosition(*item) for item in positions.items()]
            jobs.append(_StorePositions(requests, positions))
        jobs += [Job([request]) for request in self._todo]
        self._todo = []
        if with_deletes:
            jobs += [Job([DeleteBelow(ident, seq, stream)]) for (ident, stream), seq in self._deletes.items()]
            self._deletes = {}
        return jobs

    def put_back(self, job: Job) -> None:
        """Queue the requests of a job that has failed, to be tried again; to be called before any others are added."""
        for request in job.requests:
            self.add(request)
