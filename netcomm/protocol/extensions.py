"""`Extensions`: which extension takes the messages of which stream; what waits for one that is not there yet."""

from collections import deque
from collections.abc import Iterable

from netcomm.errors import ConfigurationError
from netcomm.logs import Log
from netcomm.message import DURABLE, Stream
from netcomm.protocol.events import Connected, Disconnected, Received
from netcomm.protocol.extension import Extension

log = Log("netcomm.messaging")


class Extensions:
    """The extensions of one node.

    Messages of a stream that neither callbacks nor an extension take are held back. So the window stops their sender,
    and nothing is lost where an extension comes late.

    connected: the peers that extensions were told of. One that comes is told of these first: what is known in the
        protocol may be ahead of what was told.
    """

    __slots__ = ("_all", "_by_stream", "_held", "_untold", "connected")

    def __init__(self) -> None:
        self._all: list[Extension] = []
        self._by_stream: dict[Stream, Extension] = {}
        self._held: dict[Stream, list[Received]] = {}
        self._untold: deque[Received | Connected | Disconnected] = deque()
        self.connected: set[str] = set()

    def add(self, extension: Extension) -> None:
        """Have another extension from now on; what was held back for its streams is the first that it gets.

        Raises ConfigurationError where one of its streams has another one already.
        """
        for stream in extension.streams:
            if stream in self._by_stream:
                raise ConfigurationError(f"the stream {stream.name} has an extension already")
        self._all.append(extension)
        for stream in extension.streams:
            self._by_stream[stream] = extension
            self._untold += self._held.pop(stream, ())

    def claims(self, received: Received) -> bool:
        """Whether messages are not for the callbacks."""
        stream = received.stream
        return stream is not None and (stream > DURABLE or stream in self._by_stream)

    def tell(self, events: Iterable[Received | Connected | Disconnected], now: float) -> None:
        """Tell the extensions of events, behind those that they were not told of yet."""
        untold = self._untold
        untold += events
        while untold:
            match event := untold[0]:
                case Received():
                    self._receive(event, now)
                case Connected(ident):
                    self.connected.add(ident)
                    for extension in self._all:
                        extension.connected(ident, now)
                case Disconnected(ident):
                    self.connected.discard(ident)
                    for extension in self._all:
                        extension.disconnected(ident, now)
            untold.popleft()

    def _receive(self, received: Received, now: float) -> None:
        stream = received.stream
        assert stream is not None
        extension = self._by_stream.get(stream)
        if extension is not None:
            extension.receive(received, now)
            return
        if stream not in self._held:
            log.warning(
                "messages of the stream %s have come from %r, and are held back: nothing in this program takes them",
                stream.name,
                received.ident,
            )
        self._held.setdefault(stream, []).append(received)
