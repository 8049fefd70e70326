"""`python -m netcomm.testing.conformance HOST:PORT`: the vectors of docs/protocol.md, played with an implementation.

It connects to whatever listens there, says what each vector says, and tells of each whether the answer is right. The
page is the one beside the package, in a checkout, or the one that `--page` names.
"""

import argparse
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from netcomm.protocol import encode, envelope
from netcomm.protocol.frames import FLAG_ENVELOPE, FLAG_ENVELOPES, STREAM_FLAGS, FrameType
from netcomm.testing import vectors
from netcomm.testing.vectors import Step, Vector

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
_KINDS = set(FrameType)
_BEGIN_PACKET = vectors.unhex("0000001a 81 00 0000000000000007 0000000000000028 0000000000000028")

Packet = tuple[int, bytes]


class Wrong(Exception):
    """The implementation has not answered as the vector says."""


class Line(Protocol):
    """One connection to the implementation."""

    def say(self, data: bytes) -> None:
        """Send bytes. Where the other side has closed, nothing happens."""

    def hear(self) -> Packet | None:
        """The next packet; None where the other side has closed. Raises Wrong where nothing comes."""

    def close(self) -> None:
        """End it."""


class SocketLine:
    """A connection to the implementation over a socket."""

    def __init__(self, address: tuple[str, int], wait_s: float) -> None:
        """Connect. wait_s: so long may each answer take, in seconds. Raises OSError."""
        self._sock = socket.create_connection(address, wait_s)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heard = b""

    def say(self, data: bytes) -> None:
        """See `Line`."""
        try:
            self._sock.sendall(data)
        except OSError:
            pass  # what comes next, or does not, tells

    def hear(self) -> Packet | None:
        """See `Line`."""
        while (size := int.from_bytes(self._heard[:4])) + 4 > len(self._heard) or len(self._heard) < 5:
            try:
                chunk = self._sock.recv(65536)
            except TimeoutError:
                raise Wrong("nothing comes") from None
            except ConnectionError:
                raise Wrong("the connection was reset: not all that was said may have been read") from None
            if not chunk:
                return None
            self._heard += chunk
        packet, self._heard = self._heard[4 : 4 + size], self._heard[4 + size :]
        return packet[0], packet[1:]

    def close(self) -> None:
        """See `Line`."""
        self._sock.close()


class Player:
    """Plays one vector with one implementation."""

    def __init__(
        self, dial: Callable[[], Line], random: Callable[[int], bytes] = os.urandom, echoes: bool = False
    ) -> None:
        """Make it, and dial.

        dial: connects to the implementation.
        random: makes so many bytes; its ident and ids come from it.
        echoes: the implementation sends each message back. Where the echo is looked for, an ACK may come as well.
        """
        self._dial = dial
        self._echoes = echoes
        ident = b"tester-" + random(6).hex().encode()
        hello = b"\0\1" + random(16) + random(16) + vectors.unhex("00000001 04000000 00800000 00")
        self._said = {
            "VERSION": encode.version(),
            "HELLO": _packet(FrameType.HELLO, hello),
            "IDENT": _packet(FrameType.IDENT, ident),
        }
        self._talks: list[_Talk] = []
        self._connect()

    def _connect(self) -> None:
        self._talk = _Talk(self._dial(), self._echoes)
        self._talks.append(self._talk)

    def play(self, steps: Sequence[Step]) -> None:
        """Go through the steps. Raises Wrong at the first answer that is not the one expected, and OSError."""
        for number, step in enumerate(steps, 1):
            try:
                self._play(step)
            except Wrong as error:
                raise Wrong(f"step {number}, {step.kind} {' '.join(step.words)}: {error}") from None

    def close(self) -> None:
        """End all connections."""
        for talk in self._talks:
            talk.line.close()

    def _play(self, step: Step) -> None:
        match step.kind:
            case "says":
                self._talk.line.say(vectors.unhex(self._hex(step.words)))
            case "hears" if step.words[0] == "REFUSE":
                self._talk.expect_refusal(int(step.words[1]))
            case "hears":
                self._talk.expect(self._hex(step.words))
            case "open":
                self._talk.line.say(encode.PING)
                self._talk.expect(encode.PONG.hex())
            case "probed":
                self._talk.expect_ping()
            case "closed":
                self._talk.expect_end()
            case "first":
                self._talk = self._talks[0]
            case "last":
                self._talk = self._talks[-1]
            case kind:
                if kind == "cut":
                    self._talk.line.close()
                self._connect()

    def _hex(self, words: Sequence[str]) -> str:
        """What these words stand for, in hex."""
        return " ".join(self._named(word) if word[0].isupper() else word for word in words)

    def _named(self, word: str) -> str:
        if word == "OWN-IDENT":
            return _packet(FrameType.IDENT, self._talk.ident()).hex()
        if word in self._said:
            return self._said[word].hex()
        name, _, more = word.partition("+")
        name, _, stream = name.partition("/")
        begin = self._first_begin(int(stream or 0))
        if name == "EPOCH":
            return begin[1:9].hex()
        return (int.from_bytes(begin[9:17]) + int(more or 0)).to_bytes(8).hex()

    def _first_begin(self, stream: int) -> bytes:
        """The payload of the first BEGIN of a stream of the implementation's, on whichever connection."""
        heard = (talk for talk in self._talks if stream in talk.begins)
        return next(heard, self._talk).begin(stream)


class _Talk:
    """What is heard on one connection."""

    def __init__(self, line: Line, echoes: bool) -> None:
        self.line = line
        self._passes_acks = echoes
        self._greeting: list[Packet] = []
        self.begins: dict[int, bytes] = {}  # the payload of the first BEGIN of each of the implementation's streams
        self._pings = 0  # that came, and were not expected yet
        self._pongs = True  # a PING has its answer at once
        self._waiting: deque[Packet | None] = deque()  # what was heard while something else was looked for
        self._last_ack: Packet | None = None  # that was expected

    def begin(self, stream: int) -> bytes:
        """The payload of the first BEGIN of a stream of the implementation's."""
        while stream not in self.begins:
            self._read(f"its BEGIN of stream {stream}")
        return self.begins[stream]

    def ident(self) -> bytes:
        """The ident of the implementation."""
        while len(self._greeting) < 3:
            self._read("its IDENT")
        return self._greeting[2][1]

    def expect(self, digits: str) -> None:
        """Look for a packet; `??` is any byte. What may come before it is passed over."""
        likeness = vectors.pattern(digits)
        packet = vectors.unhex(digits.replace("?", "0"))
        expected = packet[4], packet[5:]
        if expected[0] == FrameType.BEGIN:
            begin = self.begin(expected[1][0])
            if not likeness.fullmatch(_packet(FrameType.BEGIN, begin)):
                raise Wrong(f"BEGIN {begin.hex()} instead of {_describe(expected)}")
            return
        while (found := self._hear()) is None or not likeness.fullmatch(_packet(*found)):
            if found is None:
                raise Wrong("the connection is closed")
            passed_over = self._passes_acks and found[0] == FrameType.ACK != expected[0]
            if found != self._last_ack and not _lags(found, expected) and not passed_over:
                raise Wrong(f"{_describe(found)} instead of {_describe(expected)}")
        if expected[0] == FrameType.ACK:
            self._last_ack = expected

    def expect_refusal(self, code: int) -> None:
        """Look for a REFUSE with this code, and any text."""
        packet = self._hear_but_acks()
        if packet is None or packet[0] != FrameType.REFUSE or packet[1][:2] != code.to_bytes(2):
            raise Wrong(f"{_describe(packet)} instead of REFUSE {code}")

    def expect_ping(self) -> None:
        """Look for a PING, and leave it without an answer."""
        self._pongs = False
        while not self._pings:
            self._read("a PING")
        self._pings -= 1
        self._pongs = True

    def expect_end(self) -> None:
        """Look for the end of the connection."""
        packet = self._hear_but_acks()
        if packet is not None:
            raise Wrong(f"{_describe(packet)} where the connection should be closed")

    def _hear_but_acks(self) -> Packet | None:
        """The next packet, but for ACKs like the last that was expected: an ACK may come once more."""
        while (packet := self._hear()) is not None and packet == self._last_ack:
            pass
        return packet

    def _hear(self) -> Packet | None:
        """The next packet that may be expected; None where the other side has closed."""
        while not self._waiting:
            self._read()
        return self._waiting.popleft()

    def _read(self, wanted: str | None = None) -> None:
        """Read one packet. The greeting, BEGINs, PINGs, and types that are not known need not be expected.

        wanted: what must come before the end, if anything must.
        """
        packet = self.line.hear()
        if packet is None:
            if wanted is not None:
                raise Wrong(f"the connection is closed before {wanted}")
            self._waiting.append(None)
            return
        kind, payload = packet
        if len(self._greeting) < 3 and kind in (FrameType.VERSION, FrameType.HELLO, FrameType.IDENT):
            self._greet(packet)
        elif kind == FrameType.BEGIN and len(payload) == 25:
            self.begins.setdefault(payload[0], payload)
        elif kind == FrameType.PING:
            self._pings += 1
            if self._pongs:
                self.line.say(encode.PONG)
        elif kind == FrameType.BATCH:
            self._take_apart(packet)
        elif kind in _KINDS:
            self._waiting.append(packet)

    def _take_apart(self, packet: Packet) -> None:
        """Take a BATCH for the DATA that it stands for."""
        payload = packet[1]
        flags, count = payload[31], int.from_bytes(payload[32:34])
        seq, number = int.from_bytes(payload[:8]), int.from_bytes(payload[16:24])
        sizes = [int.from_bytes(payload[34 + 4 * place :][:4]) for place in range(count)]
        at = 34 + 4 * count
        of_all = payload[at : envelope.size_at(payload, at) + at] if flags & FLAG_ENVELOPE else b""
        at += len(of_all)
        if not sizes or at + sum(sizes) != len(payload):
            raise Wrong(f"{_describe(packet)}: the sizes do not add up")
        if seq < int.from_bytes(self.begin(flags & STREAM_FLAGS)[17:]):
            raise Wrong(f"{_describe(packet)}: it was sent before, on an earlier connection")
        if flags & FLAG_ENVELOPES:
            flags ^= FLAG_ENVELOPES | FLAG_ENVELOPE
        for place, size in enumerate(sizes):
            following = ((number + place) % (1 << 64)).to_bytes(8)
            head = (seq + place).to_bytes(8) + payload[8:16] + following + payload[24:31] + bytes([flags])
            its = envelope.behind(of_all, place) if of_all else b""
            self._waiting.append((FrameType.DATA, head + its + payload[at : at + size]))
            at += size

    def _greet(self, packet: Packet) -> None:
        expected = (FrameType.VERSION, FrameType.HELLO, FrameType.IDENT)[len(self._greeting)]
        kind, payload = packet
        right = {
            FrameType.VERSION: payload == b"\0\0\0\1",
            FrameType.HELLO: _is_hello_of_a_listener(payload),
            FrameType.IDENT: 1 <= len(payload) <= 255,
        }
        if kind != expected or not right[expected]:
            raise Wrong(f"greeted with {_describe(packet)}")
        self._greeting.append(packet)


def _is_hello_of_a_listener(payload: bytes) -> bool:
    version, connector = payload[:2], payload[34:38]
    max_frame_bytes, window_bytes = int.from_bytes(payload[38:42]), int.from_bytes(payload[42:46])
    return (
        len(payload) >= 47
        and version != b"\0\0"
        and connector == bytes(4)
        and max_frame_bytes >= 33
        and window_bytes > 0
    )


def _packet(kind: int, payload: bytes) -> bytes:
    return (len(payload) + 1).to_bytes(4) + bytes([kind]) + payload


def _lags(packet: Packet, expected: Packet) -> bool:
    """Whether both are ACKs of one stream and epoch, and this one says less: it may come before the other."""
    (kind, payload), (expected_kind, wanted) = packet, expected
    if kind != FrameType.ACK or expected_kind != FrameType.ACK or len(payload) != 25 or payload[:9] != wanted[:9]:
        return False
    return payload[9:17] <= wanted[9:17] and payload[17:] <= wanted[17:]


def _describe(packet: Packet | None) -> str:
    if packet is None:
        return "the end of the connection"
    kind, payload = packet
    if kind == FrameType.REFUSE:
        return f"REFUSE {int.from_bytes(payload[:2])} ({payload[2:].decode(errors='replace')!r})"
    return f"{FrameType(kind).name} {payload[:60].hex()}".strip()


def all_vectors(page: str) -> Iterator[Vector]:
    """The vectors of behaviour that need no echo, and the frames that close a connection, each as such a vector."""
    yield from vectors.behaviour(page)
    greeting = Step("says", ("VERSION", "HELLO"))
    ending = Step("hears", ("REFUSE", "3")), Step("closed", ())
    for name in ("vectors-close", "vectors-close-before-ident"):
        for head, packet in vectors.frames(page, name):
            closing = Step("says", (packet.hex(),))
            yield Vector(f"{head}, before the IDENT", (greeting, closing, *ending))
            if name == "vectors-close":
                identified = Step("says", ("IDENT", _BEGIN_PACKET.hex()))
                answer = Step("hears", (_BEGIN_PACKET.hex().replace("81", "83", 1),))
                yield Vector(f"{head}, behind the IDENT", (greeting, identified, answer, closing, *ending))


def echo_vectors(page: str) -> list[Vector]:
    """The vectors of behaviour for an implementation that sends each message back to its sender."""
    return vectors.behaviour(page, "vectors-echo")


def judge(vector: Vector, dial: Callable[[], Line], echoes: bool = False) -> str | None:
    """Play a vector; returns what is wrong with the answers, or None. Raises OSError where nobody listens."""
    player = Player(dial, echoes=echoes)
    try:
        player.play(vector.steps)
    except Wrong as error:
        return str(error)
    finally:
        player.close()
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the vectors of docs/protocol.md with an implementation; 1 if an answer is wrong, 2 if nobody listens."""
    parser = argparse.ArgumentParser(prog="python -m netcomm.testing.conformance", description=main.__doc__)
    parser.add_argument("place", metavar="HOST:PORT", help="where the implementation listens")
    parser.add_argument("--echo", action="store_true", help="it sends messages back: play the vectors for that")
    parser.add_argument("--page", type=Path, default=PAGE, help="docs/protocol.md")
    parser.add_argument("--wait", type=float, default=5.0, metavar="S", help="so long may each answer take")
    options = parser.parse_args(arguments)
    host, _, port = options.place.rpartition(":")
    if not port.isdecimal():
        parser.error(f"not HOST:PORT: {options.place}")
    address = host.strip("[]"), int(port)
    try:
        page = options.page.read_text(encoding="utf-8")
    except OSError as error:
        parser.error(f"the page can't be read, name it with --page: {error}")
    wrong = count = 0
    for vector in echo_vectors(page) if options.echo else all_vectors(page):
        try:
            complaint = judge(vector, lambda: SocketLine(address, options.wait), options.echo)
        except OSError as error:
            print(f"can't connect to {options.place}: {error}", file=sys.stderr)
            return 2
        count += 1
        wrong += complaint is not None
        print(f"{'right' if complaint is None else 'WRONG'}  {vector.name}", flush=True)
        if complaint is not None:
            print(f"       {complaint}", flush=True)
    print(f"{count - wrong} of {count} vectors are answered as the page says")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
