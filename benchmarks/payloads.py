"""Messages that can be checked: their first 8 bytes are their number."""

import threading

_NUMBER_BYTES = 8


def make(count: int, size: int, first: int = 0) -> list[bytes]:
    """So many messages of `size` bytes, numbered on from `first`. One that has no room for it keeps its low end."""
    width = min(size, _NUMBER_BYTES)
    filler = bytes(size - width)
    return [number.to_bytes(_NUMBER_BYTES)[_NUMBER_BYTES - width :] + filler for number in range(first, first + count)]


class Check:
    """Counts received messages, and looks at the size and the number of each.

    It takes the same time for every contender.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size
        self.taken = 0
        self.wrong = 0
        self.complete = threading.Event()
        self._width = min(size, _NUMBER_BYTES)
        self._mask = (1 << 8 * self._width) - 1

    def take(self, data: bytes | memoryview) -> None:
        width = self._width
        if len(data) != self.size or data[:width] != (self.taken & self._mask).to_bytes(width):
            self.wrong += 1
        self.taken += 1
        if self.taken == self.count:
            self.complete.set()


class StreamsCheck(Check):
    """The same for messages that come from several at once: each sends an equal part of the numbers, in order."""

    def __init__(self, count: int, size: int, streams: int) -> None:
        super().__init__(count, size)
        self._part = count // streams
        self._expected = [stream * self._part for stream in range(streams)]

    def take(self, data: bytes | memoryview) -> None:
        number = int.from_bytes(data[:_NUMBER_BYTES])
        stream = number // self._part
        if len(data) != self.size or stream >= len(self._expected) or number != self._expected[stream]:
            self.wrong += 1
        else:
            self._expected[stream] += 1
        self.taken += 1
        if self.taken == self.count:
            self.complete.set()
