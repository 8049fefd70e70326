"""`Deadlines`: what falls due when."""

import heapq
from collections.abc import Callable, Hashable
from itertools import count
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

Action = tuple[Callable[[Any, float], None], Hashable]
"""A key that says what is to be done: a function, and its first argument; the second one is the time."""


class Deadlines(Generic[K]):
    """Keys with a time each, found again in the order of their times.

    It knows no clock: times are the caller's numbers, in seconds. Setting and discarding leave stale
    entries in the heap; they are passed over, and swept before they outnumber the live ones.
    """

    __slots__ = ("_heap", "_order", "_when")

    def __init__(self) -> None:
        self._when: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = count()  # keys need not be comparable

    def set(self, key: K, when: float) -> None:
        """Let `key` fall due at `when`, in place of any earlier time of its own."""
        if self._when.get(key) == when:
            return
        self._when[key] = when
        heapq.heappush(self._heap, (when, next(self._order), key))
        if len(self._heap) > 2 * len(self._when) + 64:
            self._heap = [(when, next(self._order), key) for key, when in self._when.items()]
            heapq.heapify(self._heap)

    def discard(self, key: K) -> None:
        """Forget `key`, if it is there."""
        self._when.pop(key, None)

    def __contains__(self, key: K) -> bool:
        return key in self._when

    def next(self) -> float | None:
        """The earliest time, or None where nothing is set."""
        while self._heap:
            when, _, key = self._heap[0]
            if self._when.get(key) == when:
                return when
            heapq.heappop(self._heap)
        return None

    def pop_due(self, now: float) -> list[K]:
        """Take out the keys whose time has come, the earliest first."""
        due = []
        while (when := self.next()) is not None and when <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._when[key]
            due.append(key)
        return due
