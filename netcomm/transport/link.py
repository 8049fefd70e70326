"""`Link`: the loop's step: what its sockets are ready for, what has fallen due, what other threads have asked for.

It moves bytes and knows nothing of what they mean. `poll` is the loop's one step: it waits, and yields what happened,
for the owner to act on before it goes on. What the owner has to say goes through `write`, `close` and `pause`.

Threads: one at a time may call `poll`, and none may after `close_now`. The methods of `ConnectionPort`, and `progress`,
may be called from any thread that holds the owner's lock; they never touch the selector, but leave that to the next
`poll`. Each of the rest says who may call it.
"""

import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic

from netcomm import descriptors
from netcomm.connections import BufferUpdated, Closed, ConnectionEvent, Opened, Unreachable, Writable
from netcomm.deadlines import Deadlines
from netcomm.limits import Limits
from netcomm.transport.acceptor import Acceptor, Listener, Listening
from netcomm.transport.byte_stream import ByteStream, reason
from netcomm.transport.connection import Connection
from netcomm.transport.dialer import Connector, Dialer
from netcomm.transport.lingering import Lingering
from netcomm.transport.spin import AdaptiveSpin
from netcomm.transport.waker import Waker

# Large enough for the kernel to be kept busy while the loop looks elsewhere, small against the window.
_OUTPUT_HIGH_BYTES = 1024 * 1024
_READS_PER_PASS = 4


class Link:
    """The connections of one peer."""

    def __init__(self, limits: Limits) -> None:
        with descriptors.no_fork:
            self._selector = descriptors.note(selectors.DefaultSelector())
        self._spin = AdaptiveSpin(self._selector)
        self._waker = Waker()
        self.waiting = False  # `poll` waits for the sockets, or is about to
        self._selector.register(self._waker.receiver, selectors.EVENT_READ, self._waker)
        self._thunks: deque[Callable[[], None]] = deque()
        self._stale: deque[Connection] = deque()  # the selector has to be told
        self._events: deque[ConnectionEvent] = deque()  # found outside of the sockets' turns
        self._deadlines: Deadlines[Connector | Connection | Listener] = Deadlines()
        self._connections: dict[int, Connection] = {}
        self._last_number = 0
        self._lingering = Lingering(self._deadlines)
        self._acceptor = Acceptor(
            self._selector,
            self._deadlines,
            self._call_soon,
            limits.max_connections,
            lambda: len(self._connections) + len(self._lingering),
        )
        self._dialer = Dialer(
            limits,
            self._selector,
            self._deadlines,
            self._call_soon,
            lambda sock, connector: self._open(sock, connector.where, connector),
            lambda error: self._events.append(Unreachable(error)),
        )

    # -- Any thread -------------------------------------------------------------------------------------------

    def add_listener(self, listening: Listening) -> None:
        """Take over what `acceptor.listen` has returned: accept connections by it, as soon as `poll` runs."""
        self._acceptor.add(listening)

    def add_connector(self, host: str, port: int) -> None:
        """Connect as soon as `poll` runs, and again whenever the connection is lost."""
        self._dialer.add(host, port)

    def will_wait(self) -> None:
        """From now on, `ring` ends the wait of the next `poll`.

        Call it before looking at what decides for how long to wait, so that no change goes unnoticed.
        """
        self.waiting = True

    def ring(self) -> None:
        """Let `poll` return soon, if it waits. A finalizer may call it, too."""
        if self.waiting:
            self._waker.ring()

    def _call_soon(self, thunk: Callable[[], None]) -> None:
        self._thunks.append(thunk)
        self.ring()

    # -- Any thread that holds the owner's lock ---------------------------------------------------------------

    def has_room(self, number: int) -> bool:
        """Whether a connection wants more output; a number that is not known does not."""
        connection = self._connections.get(number)
        return connection is not None and connection.output_bytes < _OUTPUT_HIGH_BYTES

    def write(self, number: int, buffers: list[bytes]) -> None:
        """Send buffers, one after the other, as soon as the kernel takes them. An unknown number is passed over."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.enqueue(buffers)
            if connection.flush():
                self._mark_stale(connection)

    def flush(self, number: int) -> None:
        """Send what was written and not taken yet."""
        connection = self._connections.get(number)
        if connection is not None and connection.flush():
            self._mark_stale(connection)

    def progress(self, number: int) -> tuple[int, int]:
        """How many bytes were written to a connection, and how many of them the other side's system has taken.

        What this system's kernel still holds, or waits for the other side to acknowledge, is not taken, as far as the
        system tells: see `ByteStream.unacknowledged`.

        (0, 0) for a number that is not known.
        """
        connection = self._connections.get(number)
        if connection is None:
            return 0, 0
        sent = connection.sent_bytes
        return sent + connection.output_bytes, sent - connection.stream.unacknowledged()

    def close(self, number: int, farewell: list[bytes]) -> None:
        """Send what was written, then `farewell`, then close; in the background, for a second at the most."""
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.enqueue(farewell)
            self._lingering.add(connection)
            self._mark_stale(connection)

    def abort(self, number: int, reason: str) -> None:
        """What a connection was to write may not have been written: lose it, as soon as `poll` runs."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.broken = reason
            self._mark_stale(connection)

    def receive_into(self, number: int, buffer: memoryview) -> None:
        """Let the bytes of a connection go into a buffer from now on; nothing is read before it has one."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.buffer = buffer

    def pause(self, number: int, paused: bool) -> None:
        """Read nothing from a connection, or go on reading."""
        connection = self._connections.get(number)
        if connection is not None and connection.paused != paused:
            connection.paused = paused
            self._mark_stale(connection)

    def established(self, number: int) -> None:
        """A connection has proved good: after it, reconnecting starts with the shortest delay again."""
        connection = self._connections.get(number)
        if connection is not None and connection.connector is not None:
            self._dialer.proven(connection.connector)

    def _mark_stale(self, connection: Connection) -> None:
        self._stale.append(connection)
        self.ring()

    # -- The loop ---------------------------------------------------------------------------------------------

    def poll(self, timeout: float | None, eager: bool = False) -> Iterator[ConnectionEvent]:
        """Wait for something to happen, at most `timeout` seconds (None: as long as it takes); yields what did.

        eager: something may well happen at once, and is to be noticed as soon as can be.

        The owner acts on each event before it asks for the next.
        """
        self.will_wait()
        self._catch_up()
        if self._events:
            timeout = 0
        due = self._deadlines.next()
        if due is not None:
            left = max(0.0, due - monotonic())
            timeout = left if timeout is None else min(timeout, left)
        ready = self._spin.wait(timeout, eager)
        self.waiting = False
        for key, events in ready:
            target = key.data
            if isinstance(target, Connection):
                if target.lingering:
                    self._lingering.go_on(target)
                    continue
                if events & target.stream.reads_on:
                    yield from self._receive(target)
                if events & target.stream.writes_on and not target.lingering:
                    yield Writable(target.number)
            elif isinstance(target, Listener):
                for sock, where in self._acceptor.accept(target):
                    self._open(sock, where, None)
                    yield self._events.pop()
            elif isinstance(target, Connector):
                self._dialer.go_on(target)
            else:
                target.clear()
        if due is not None and (now := monotonic()) >= due:
            self._act_on_deadlines(now)
        while self._events:
            yield self._events.popleft()

    def _act_on_deadlines(self, now: float) -> None:
        for item in self._deadlines.pop_due(now):
            if isinstance(item, Connection):
                self._lingering.drop(item)
            elif isinstance(item, Listener):
                self._acceptor.watch(item)
            else:
                self._dialer.on_time(item)

    @property
    def quiet(self) -> bool:
        """Whether no closed connection has anything left to send."""
        return not self._lingering and not self._stale

    def stop_accepting(self) -> None:
        """Close the listeners, remove the files of Unix sockets, and give up the connectors; connections stay.

        For the thread that polls. It needs no lock of the owner, and is best called without one, for it touches the
        file system. Call it when the owner admits no more `add_listener` and `add_connector`: a place that is added
        later stays, until `close_now`.
        """
        self._acceptor.stop()
        self._dialer.stop()

    def close_now(self) -> None:
        """Close everything, at once. `poll` must not be called after it; the rest does nothing then.

        Any thread may call it, once no other thread polls, and none can add a listener or a connector any more.
        """
        self.stop_accepting()
        for connection in self._connections.values():
            connection.stream.close()
        self._connections.clear()
        self._lingering.close_now()
        self._stale.clear()
        descriptors.close(self._selector)
        self._waker.close()  # last: whoever rings until now must not reach a stranger's descriptor

    def _catch_up(self) -> None:
        """Do what other threads have asked for."""
        while self._thunks:
            self._thunks.popleft()()
        while self._stale:
            connection = self._stale.popleft()
            if connection.lingering:
                if self._lingering.begin(connection):
                    self._reconnect(connection)
            elif connection.broken is not None:
                self._lose(connection, connection.broken)
            else:
                self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        try:
            connection.watch()
        except OSError as error:
            self._lose(connection, reason(error))

    def _open(self, sock: socket.socket, where: str, connector: Connector | None) -> None:
        self._last_number += 1
        connection = Connection(self._last_number, ByteStream(sock), where, connector, self._selector)
        self._connections[connection.number] = connection
        self._stale.append(connection)  # the next pass watches it: should that fail, its end comes behind its beginning
        self._events.append(Opened(connection.number, where, connector.number if connector else 0))

    def _receive(self, connection: Connection) -> Iterator[ConnectionEvent]:
        """Read once; or, while the owner names another buffer, until there is nothing more, but not for ever."""
        for _ in range(_READS_PER_PASS):
            buffer, stream = connection.buffer, connection.stream
            assert buffer is not None  # else it would not be watched
            try:
                count = stream.receive_into(buffer)
            except OSError as error:
                self._lose(connection, reason(error))
                return
            if not stream.reads_on & connection.watched:  # it waits for something else now
                self._watch(connection)
            if count is None:
                return
            if not count:
                self._lose(connection, "closed by the other side")
                return
            yield BufferUpdated(connection.number, count)
            if connection.buffer is buffer or connection.paused or connection.lingering:
                return

    def _lose(self, connection: Connection, reason: str) -> None:
        """A connection has died by itself."""
        if self._connections.pop(connection.number, None) is not None:
            self._events.append(Closed(connection.number, reason))
            connection.close()
            self._reconnect(connection)

    def _reconnect(self, connection: Connection) -> None:
        if connection.connector is not None:
            self._dialer.reconnect(connection.connector)
