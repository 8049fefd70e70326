"""`OpenRun`: the run that waits last in a queue, while more messages may join it, one by one, from any thread."""

from itertools import accumulate, pairwise

from netcomm.message import QUEUED
from netcomm.protocol.batch import MAX_BATCH_COUNT, BatchDelivery, Run

MAX_JOINING_BYTES = 4 * 1024
"""The most data of a message that joins a run."""

_PLACES = list(range(MAX_BATCH_COUNT - 1, -1, -1))
"""All places of a batch, the first one last."""


class OpenRun:
    """The last run of a batch, with places reserved behind its last message: messages may join it.

    That takes no lock: a thread takes a place out of a list, and puts its message there. The thread that closes the run
    says so first, and looks then which place is the next. A message that was in its place while the run was open is
    part of it; of one that came later, `accepted` tells, once the run is closed.

    It holds without the interpreter's lock as well. Each list has a lock of its own, under which `pop` and slices run.
    So a thread that takes a place after the look sees that the run is closed; and so does one that puts its message
    into its place after `close` has read the messages.

    `close` gives back the places that no message has taken:

    | | `run.stop` | `len(batch.data)` |
    |---|---|---|
    | open | where it was opened | the end of the places |
    | closed | its end, before the first gap | the end of the places that were taken |

    run: the run; it is not to be split while messages may join it.
    is_open: whether messages may join it.
    """

    __slots__ = ("_batch", "_end", "_gaps", "_max_joining", "_opened_at", "_places", "is_open", "run")

    def __init__(self, run: Run, max_count: int, max_joining: int) -> None:
        """Let so many messages join a run, of at most so many bytes of data each."""
        self.run = run
        self._batch = run.batch
        self._max_joining = max_joining
        self._opened_at = run.stop
        self._end: int | None = None  # of the places that were taken before the run was closed
        self._gaps: frozenset[int] = frozenset()  # that were taken, and empty when the run was closed
        run.batch.data += [None] * max_count
        # Those that have not been taken, the first one last.
        self._places = _PLACES[MAX_BATCH_COUNT - run.stop - max_count : MAX_BATCH_COUNT - run.stop]
        self.is_open = True

    @classmethod
    def of(cls, run: Run, max_count: int, max_joining: int) -> "OpenRun | None":
        """Open a run for so many messages at the most, of at most so many bytes of data each; None where none may join.

        They may not where they would have to expire or get an envelope, and where others of the batch come in between.
        """
        batch = run.batch
        room = min(MAX_BATCH_COUNT - len(batch.data), max_count)
        is_plain = batch.expires_at is None and batch.envelope is None
        if room <= 0 or not is_plain or run.stop != len(batch.data):
            return None
        return cls(run, room, max_joining)

    def join(self, data: bytes) -> BatchDelivery | None:
        """Put a message into a place of its own; None where there is no room for it.

        It has joined if `is_open` is still True afterwards, or if `accepted` says so. May be called from any thread.
        """
        if len(data) > self._max_joining:
            return None
        batch = self._batch
        try:
            place = self._places.pop()
            batch.data[place] = data
        except IndexError:  # all are taken, or the run was closed
            return None
        delivery = BatchDelivery()
        delivery._batch = batch
        delivery._index = place
        return delivery

    @property
    def taken(self) -> int:
        """How many places were taken, while the run is open; 0 once it is closed."""
        return len(self._batch.data) - self._opened_at - len(self._places) if self.is_open else 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another message to join, while the run is open."""
        return self.is_open and not self._places

    def close(self) -> list[Run]:
        """Let no more messages join, and make those that have joined part of the run.

        A thread that has taken a place, and has not put its message there yet, leaves a gap. Returns the runs behind
        gaps. Where this was interrupted (by Ctrl-C), it is to be called again.
        """
        self.is_open = False
        run, batch, start = self.run, self._batch, self._opened_at
        if self._end is None:
            next_place = self._places[-1:]  # and not the length, which is read without the list's lock
            self._end = next_place[0] if next_place else len(batch.data)
        end = self._end
        del batch.data[end:]
        batch.states[start:] = [QUEUED] * (end - start)
        joined = batch.data[start:]
        gaps: list[int] = []
        try:
            sizes = list(map(len, joined))  # type: ignore[arg-type]
        except TypeError:  # one of them is None
            gaps = [place for place, data in enumerate(joined, start) if data is None]
            sizes = [len(data or b"") for data in joined]
        self._gaps = frozenset(gaps)
        batch.ends[start:] = accumulate(sizes, initial=batch.ends[start])
        run.stop = gaps[0] if gaps else end
        run.size = batch.size(run.start, run.stop, batch.overhead)
        return [Run(batch, gap + 1, stop) for gap, stop in pairwise([*gaps, end]) if gap + 1 < stop]

    @property
    def joined(self) -> int:
        """How many messages have become part of the run, once it is closed."""
        return self.run.stop - self._opened_at

    @property
    def joined_bytes(self) -> int:
        """The size of these messages on the wire."""
        return self._batch.size(self._opened_at, self.run.stop, self._batch.overhead)

    def accepted(self, delivery: BatchDelivery) -> bool:
        """Whether a message was in its place in time, once the run is closed.

        If it was not, it is let go. To be called by the thread that has put it there.
        """
        place = delivery._index
        if self._end is None or place in self._gaps:  # without an end, `close` was interrupted, and finds a gap here
            self._batch.data[place] = None
            return False
        return place < self._end
