"""`Connection`: one stream, what is still to be written to it, and what the selector watches it for."""

import selectors
from collections import deque

from netcomm.transport.byte_stream import ByteStream, reason
from netcomm.transport.dialer import Connector

_DISCARD_BYTES = 256 * 1024
_DISCARDS_PER_PASS = 4


class Connection:
    """One connection of a link.

    output: what is still to be written; output_bytes: its size.
    sent_bytes: how many bytes the stream has taken.
    broken: why a write has failed, or why the owner wants the connection lost; None while it is well.
    watched: the events of the selector that it is watched for.
    buffer: where the next bytes are to go; nothing is read before there is one.
    lingering: it is being closed, and reads on until the other side has closed, too.

    `enqueue` and `flush` are for threads that hold the owner's lock, the rest for the thread that polls.
    """

    def __init__(
        self, number: int, stream: ByteStream, where: str, connector: Connector | None, selector: selectors.BaseSelector
    ) -> None:
        self.number = number
        self.stream = stream
        self.where = where
        self.connector = connector
        self._selector = selector
        self.output: deque[bytes | memoryview] = deque()
        self.output_bytes = 0
        self.sent_bytes = 0
        self.buffer: memoryview | None = None
        self.watched = 0
        self.paused = False
        self.lingering = False
        self.broken: str | None = None

    def enqueue(self, buffers: list[bytes]) -> None:
        """Append to the output."""
        self.output += buffers
        self.output_bytes += sum(map(len, buffers))

    def flush(self) -> bool:
        """Send what the stream takes of the output; returns whether the thread that polls has to look at it."""
        output, stream = self.output, self.stream
        while output and self.broken is None:
            try:
                sent = stream.send(output)
            except OSError as error:
                self.broken = reason(error)
                break
            if sent is None:
                break
            self.output_bytes -= sent
            self.sent_bytes += sent
            while output and sent >= len(output[0]):  # an empty one, too
                sent -= len(output.popleft())
            if sent:
                output[0] = memoryview(output[0])[sent:]
        return self.broken is not None or bool(output) != bool(self.watched & stream.writes_on)

    def watch(self) -> None:
        """Let the selector watch for what the stream needs. Raises OSError where the system watches no more sockets."""
        stream = self.stream
        if stream.fileno() < 0:
            return
        while True:  # another thread may write meanwhile
            reads = self.lingering or (self.buffer is not None and not self.paused)
            events = stream.reads_on if reads else 0
            if self.output:
                events |= stream.writes_on
            if events == self.watched:
                return
            if not self.watched:
                self._selector.register(stream, events, self)
            elif not events:
                self._selector.unregister(stream)
            else:
                self._selector.modify(stream, events, self)
            self.watched = events

    def finish(self) -> bool:
        """Write the rest, say that it was the last, and read on, unheard; returns False once there is no more to do.

        It reads until the other side has seen the end. To close with unread input would make the kernel reset the
        connection, and the other side might never read the last bytes.
        """
        self.flush()
        if self.broken is not None:
            return False
        buffer = memoryview(bytearray(_DISCARD_BYTES))
        try:
            if not self.output:
                self.stream.end_sending()
            for _ in range(_DISCARDS_PER_PASS):  # no stranger's flood keeps the loop here
                count = self.stream.receive_into(buffer)
                if count is None:
                    break
                if not count:
                    return False
            self.watch()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the stream; closing again does nothing."""
        if self.watched:
            self._selector.unregister(self.stream)
            self.watched = 0
        self.stream.close()
