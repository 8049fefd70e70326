"""`Expiry`: when the messages that wait in memory expire.

A message with a time to live has a place in a heap, by its time. A message of ttl 0 is for a peer that is connected
now: it expires with the connection, and not before. A message on the wire does not expire.
"""

import heapq
from collections.abc import Sequence
from itertools import count

from netcomm.message import QUEUED
from netcomm.protocol.batch import Entry, Run


class Expiry:
    """The messages of one outbox that expire while they wait.

    Those that have left the queue in other ways stay in the heap until they are the first in it, or until it is made
    anew.
    """

    __slots__ = ("_heap", "_order", "_with_connection")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._order = count()  # entries are not comparable
        self._with_connection: set[Entry] = set()  # of ttl 0

    def __bool__(self) -> bool:
        """Whether any message may expire in its time, as far as is known without a search."""
        return bool(self._heap)

    def watch(self, entries: Sequence[Entry]) -> None:
        """Let messages expire in their time, those that have one."""
        for entry in entries:
            if entry.expires_at is not None:
                heapq.heappush(self._heap, (entry.expires_at, next(self._order), entry))

    def watch_anew(self, entries: Sequence[Entry]) -> None:
        """Let these messages, which all have a time to live, expire in their time, and no others.

        Those that expire with the connection still do.
        """
        self._heap = [
            (entry.expires_at, next(self._order), entry)  # type: ignore[misc]
            for entry in entries
            if entry not in self._with_connection
        ]
        heapq.heapify(self._heap)

    def is_overgrown(self, queued: int) -> bool:
        """Whether most messages in the heap have left the queue, which has so many: then `watch_anew` is due."""
        return len(self._heap) > 2 * queued + 64

    def split(self, run: Run, head: Run, *, may_expire: bool) -> None:
        """`head` was cut off the run that waits first in its stream; it expires as the whole would have.

        may_expire: whether the run expires in its time.
        """
        if run in self._with_connection:
            self._with_connection.add(head)
        elif may_expire and head.expires_at is not None:
            # Before the rest of the run, which has its place in the heap already.
            heapq.heappush(self._heap, (head.expires_at, -next(self._order), head))

    def bind_to_connection(self, entry: Entry) -> None:
        """Let messages expire with the connection, and not before."""
        self._with_connection.add(entry)

    def sent(self, entries: Sequence[Entry]) -> None:
        """Messages have gone on the wire."""
        if self._with_connection:
            self._with_connection.difference_update(entries)

    def unbind(self) -> None:
        """The connection is gone: messages that were to expire with it do so once `watch_anew` is told of them."""
        self._with_connection.clear()

    def next_at(self) -> float | None:
        """When the first message expires, or None."""
        heap = self._heap
        while heap and heap[0][2].state is not QUEUED:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> Entry | None:
        """Take out the first message whose time has run out, or the messages of a run; None where there is none."""
        when = self.next_at()
        if when is None or when > now:
            return None
        return heapq.heappop(self._heap)[2]
