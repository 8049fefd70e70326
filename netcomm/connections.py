"""What a transport and the protocol say to each other: both know this module, and neither knows the other.

A transport has connections, which it numbers. It says what happens to them by events, and does to them what the
protocol asks for through a `ConnectionPort`.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class Opened:
    """A connection was made: by connector number `connector`, or accepted where that is 0."""

    connection: int
    where: str
    connector: int


@dataclass(slots=True)
class BufferUpdated:
    """So many bytes came in, into the buffer that `ConnectionPort.receive_into` has named.

    They are there until the next event is asked for: connections may share a buffer.
    """

    connection: int
    count: int


@dataclass(slots=True)
class Writable:
    """The connection takes bytes again."""

    connection: int


@dataclass(slots=True)
class Closed:
    """A connection is gone."""

    connection: int
    reason: str


@dataclass(slots=True)
class Unreachable:
    """A connector failed, for the first time since it was last connected. It goes on trying."""

    error: OSError


ConnectionEvent = Opened | BufferUpdated | Writable | Closed | Unreachable


class ConnectionPort(Protocol):
    """What the protocol asks of a transport. A number that is not known, or not any more, is passed over."""

    def has_room(self, number: int) -> bool:
        """Whether a connection wants more output; one that is not known does not."""

    def write(self, number: int, buffers: list[bytes]) -> None:
        """Send buffers, one after the other, as soon as the connection takes them."""

    def flush(self, number: int) -> None:
        """Send what was written and not taken yet."""

    def close(self, number: int, farewell: list[bytes]) -> None:
        """Send what was written, then `farewell`, then close."""

    def abort(self, number: int, reason: str) -> None:
        """What a connection was to write may not have been written: lose it soon."""

    def receive_into(self, number: int, buffer: memoryview) -> None:
        """Let the bytes of a connection go into a buffer from now on.

        Nothing is read before a connection has one. Name it while you act on `Opened`, and another one only while you
        act on `BufferUpdated`: at any other time, bytes may be on their way into it.
        """

    def pause(self, number: int, paused: bool) -> None:
        """Read nothing from a connection, or go on reading."""

    def established(self, number: int) -> None:
        """A connection has proved good."""
