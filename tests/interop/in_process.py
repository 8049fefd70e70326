"""The two receivers that the differential test compares: snakeMQ's own code, and netcomm's, each with one connection.

snakeMQ's is the real thing from the socket on: `Link`, `Packeter` and `Messaging`, with one end of a socket pair in
place of an accepted connection. netcomm's is a `Node`, without a socket, as everywhere in its core.
"""

import contextlib
import socket
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Self

from netcomm.protocol import events
from tests.unit.helpers import Net

with warnings.catch_warnings():
    # snakeMQ says `count is not 0`, and compilers have come to warn of that.
    warnings.simplefilter("ignore", SyntaxWarning)
    from snakemq.link import Link, LinkSocket
    from snakemq.message import Message
    from snakemq.messaging import Messaging
    from snakemq.packeter import Packeter

NAME = "receiver"
_HELLO = 0x80
_INFINITE = 0xFFFFFFFF


@dataclass(frozen=True)
class Received:
    """A message as its receiver recognised it."""

    sender: str
    uuid: bytes
    ttl: float | None
    flags: int
    data: bytes


@dataclass(frozen=True)
class Outcome:
    """What a receiver has made of what came.

    closed: whether it has closed the connection.
    answers: what it has sent, but for a HELLO; None where it has closed: the end of that may be lost.
    died: whether an exception came out of its loop.
    """

    messages: list[Received]
    closed: bool
    answers: bytes | None
    died: bool = False


@dataclass(frozen=True)
class Packet:
    """A packet, or the beginning of one.

    start, end: where it stands among all the bytes; `end` is where it would end if it were complete.
    kind: the type of its frame; None where the packet is empty or not complete.
    """

    start: int
    end: int
    kind: int | None
    payload: bytes

    @property
    def size(self) -> int:
        return self.end - self.start - 4


def split(data: bytes) -> Iterator[Packet]:
    """The packets of a stream of bytes, up to the last whose size is there."""
    start = 0
    while len(data) - start >= 4:
        end = start + 4 + struct.unpack_from(">I", data, start)[0]
        is_complete = start + 4 < end <= len(data)
        yield Packet(start, end, data[start + 4] if is_complete else None, data[start + 5 : end])
        start = end


class SnakemqReceiver:
    """A snakeMQ peer, and the other end of its one connection; `with` closes it."""

    def __init__(self, ident: str = NAME) -> None:
        self._written = b""
        self._received: list[Received] = []
        self._closed = False
        self._died = False
        self._link = Link()
        self.messaging = Messaging(ident, "", Packeter(self._link))
        self.messaging.on_message_recv.add(self._receive)
        self._link.on_connect.add(self._connect)
        self._link.on_disconnect.add(self._disconnect)
        self._end, accepted = socket.socketpair()
        self._end.setblocking(False)
        accepted.setblocking(False)
        self._link.handle_accept(SimpleNamespace(accept=lambda: (LinkSocket(accepted), "the other end")))
        self.run()

    def _connect(self, conn_id: str) -> None:
        self.conn_id = conn_id

    def _disconnect(self, conn_id: str) -> None:
        self._closed = True

    def _receive(self, conn_id: str, ident: str, message: Message) -> None:
        self._received.append(Received(ident, message.uuid, message.ttl, message.flags, message.data))

    def feed(self, chunk: bytes) -> None:
        """Let bytes come in, in one read, unless the connection is closed."""
        if chunk and not self._closed:
            assert self._end.send(chunk) == len(chunk)
            self.run()

    def run(self) -> None:
        """Let its loop do what there is to be done."""
        try:
            while self._link.poll(0) or self._read():
                pass
        except KeyError:  # what its link raises for a connection that is gone
            self._died = True

    def _read(self) -> bool:
        """Take what it has written; returns whether that was anything."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            chunk = self._end.recv(1 << 20)
            self._written += chunk
            return bool(chunk)
        return False

    def outcome(self) -> Outcome:
        return Outcome(self._received, self._closed, None if self._closed else self._written, self._died)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end.close()
        self._link.cleanup()
        if hasattr(self._link.poller, "close"):  # an epoll, which snakeMQ leaves to the garbage collector
            self._link.poller.close()


class NetcommReceiver:
    """netcomm's `Node` with one connection; callbacks return at once."""

    def __init__(self) -> None:
        self._net = Net()
        self._host = self._net.host(NAME)
        self._end = self._net.raw(self._host)
        self._net.settle()

    def feed(self, chunk: bytes) -> None:
        """Let bytes come in, in one read, unless the connection is closed."""
        self._end.feed(chunk)
        self._net.settle()

    def outcome(self) -> Outcome:
        received = [
            Received(event.ident, uuid, None if ttl == _INFINITE else ttl, flags, data)
            for event in self._host.happened(events.Received)
            if isinstance(event, events.Received)
            for _, uuid, ttl, flags, data, _ in event.items
        ]
        written = bytes(self._end.out)
        answers = b"".join(written[packet.start : packet.end] for packet in split(written) if packet.kind != _HELLO)
        return Outcome(received, self._end.gone, None if self._end.gone else answers)


def snakemq(chunks: Iterable[bytes]) -> Outcome:
    """What snakeMQ makes of bytes, read in these portions."""
    with SnakemqReceiver() as receiver:
        for chunk in chunks:
            receiver.feed(chunk)
        return receiver.outcome()


def netcomm(chunks: Iterable[bytes]) -> Outcome:
    """What netcomm makes of bytes, read in these portions."""
    receiver = NetcommReceiver()
    for chunk in chunks:
        receiver.feed(chunk)
    return receiver.outcome()
