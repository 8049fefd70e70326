"""`Extensions`: which extension takes the messages of which stream; what waits for one that is not there yet."""

from collections import deque
from collections.abc import Iterable

from netcomm.errors import ConfigurationError
from netcomm.logs import Log
from netcomm.message import DURABLE, Stream
from netcomm.protocol.events import Connected, Disconnected, Received
from netcomm.protocol.extension import Extension
from netcomm.protocol.remote_peer import RemotePeers

log = Log("netcomm.messaging")


class Extensions:
    """The extensions of one node.

    Messages of a stream that neither callbacks nor an extension take are held back. So the window stops their sender,
    and nothing is lost where an extension comes late. They are held as long as their sender is connected: it keeps what
    is not acknowledged, and sends it again. So strangers that come and go fill no memory.
    """

    __slots__ = ("_all", "_by_stream", "_connected", "_held", "_peers", "_untold")

    def __init__(self, peers: RemotePeers) -> None:
        """Make it, without extensions. peers: what is known of other peers."""
        self._peers = peers
        self._all: list[Extension] = []
        self._by_stream: dict[Stream, Extension] = {}
        self._connected: dict[str, None] = {}  # an ordered set: who is, as far as extensions were told
        self._held: dict[Stream, dict[str, list[Received]]] = {}  # by stream and sender
        self._untold: deque[Received | Connected | Disconnected] = deque()

    def check(self, extension: Extension) -> None:
        """Raise ConfigurationError where one of an extension's streams has another one already."""
        for stream in extension.streams:
            if stream in self._by_stream:
                raise ConfigurationError(f"the stream {stream.name} has an extension already")

    def add(self, extension: Extension, now: float) -> None:
        """Have another extension from now on, which was checked.

        It is told who is connected, and then gets what was held back for its streams.
        """
        self._all.append(extension)
        for ident in self._connected:
            extension.connected(ident, now)
        for stream in extension.streams:
            self._by_stream[stream] = extension
            for held in self._held.pop(stream, {}).values():
                self._untold += held
        self.tell((), now)

    @property
    def untaken(self) -> list[Stream]:
        """The streams whose messages are held back."""
        return [stream for stream in Stream if stream > DURABLE and stream not in self._by_stream]

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
                    self._connected[ident] = None
                    for extension in self._all:
                        extension.connected(ident, now)
                case Disconnected(ident):
                    self._connected.pop(ident, None)
                    for extension in self._all:
                        extension.disconnected(ident, now)
                    self._let_go(ident)
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
        self._held.setdefault(stream, {}).setdefault(received.ident, []).append(received)

    def _let_go(self, ident: str) -> None:
        """Forget what is held back of a sender that has left."""
        for stream, by_sender in self._held.items():
            held = by_sender.get(ident)
            if held is not None and self._peers[ident].let_go(stream, held):
                del by_sender[ident]
