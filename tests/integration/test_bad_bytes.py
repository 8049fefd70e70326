"""Strangers at a live listener: whatever they send, those who behave well notice nothing.

The listener is a program of its own, so that its memory can be looked at from outside; its log is its stderr. All the
while a well-behaved peer sends it messages and gets them back.
"""

import contextlib
import json
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from netcomm import Limits, SnakemqConnector
from netcomm.protocol import decode, encode, frames
from tests.integration.helpers import (
    DEADLINE_S,
    PeakMemory,
    Program,
    Recorder,
    allow_descriptors,
    dial,
    hello,
    legacy_handshake,
    netcomm_handshake,
    new_ident,
    packet,
    read_to_end,
    record,
    send_all,
    wait_until,
)

ECHO = """
import json, logging, sys
from netcomm import Limits, SnakemqListener
from tests.integration.helpers import allow_descriptors
allow_descriptors(4096)
logging.basicConfig(level="INFO", format="%(levelname)s %(name)s %(message)s")
with SnakemqListener("echo", "127.0.0.1", 0, limits=Limits(**json.loads(sys.argv[1]))) as echo:
    echo.on_recv.add(lambda ident, data: echo.send(ident, data) if ident == "good" else None)
    print(echo.address[1])
    sys.stdin.readline()
    print("alive" if echo.is_alive() else "dead")
"""

HANDSHAKE_S = 0.5
MAX_GROWTH_BYTES = 16 * 1024 * 1024


class Site:
    """A listener in a program of its own, with a well-behaved peer connected to it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.address = ("127.0.0.1", int(program.line()))
        self.good = SnakemqConnector("good", *self.address)
        self.echoed = record(self.good.on_recv)
        self.sent: list[bytes] = []
        self._order = threading.Lock()
        self._seen = 0

    def news(self) -> str:
        """What the listener has logged since this was asked for the last time."""
        log = self.program.errors
        news, self._seen = log[self._seen :], len(log)
        return news

    def wait_for_log(self, text: str, count: int = 1) -> str:
        """Wait for `count` lines with `text` in the news; returns the news."""
        start = self._seen
        wait_until(lambda: self.program.errors[start:].count(text) >= count, f"{count} times {text!r} in the log")
        return self.news()

    def exchange(self) -> None:
        """The well-behaved peer sends one message: it must be delivered."""
        with self._order:  # two threads may do this at once
            data = b"%d" % len(self.sent)
            self.sent.append(data)
            delivery = self.good.send("echo", data)
        assert delivery.wait(DEADLINE_S / 2)


@contextlib.contextmanager
def site(**limits: float) -> Iterator[Site]:
    with Program(ECHO, json.dumps({"handshake_s": HANDSHAKE_S, **limits})) as program:
        there = Site(program)
        gone = record(there.good.on_disconnect)
        with there.good:
            assert there.good.wait_connected("echo", DEADLINE_S)
            yield there
            assert gone.calls == []
        program.tell("end")
        assert program.line() == "alive"
        assert program.wait() == 0
        assert "Traceback" not in program.errors


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    with site() as there:
        yield there


@pytest.fixture
def echo(shared: Site) -> Iterator[Site]:
    """The listener; the well-behaved peer exchanges messages with it until the test has ended."""
    with undisturbed(shared):
        yield shared


@contextlib.contextmanager
def undisturbed(there: Site) -> Iterator[None]:
    """The well-behaved peer goes on meanwhile, and the listener's memory stays small."""
    for _ in range(20):
        there.exchange()
    there.news()
    memory = PeakMemory(there.program.pid)
    stop = threading.Event()
    failed = Recorder()

    def go_on() -> None:
        try:
            while not stop.is_set():
                there.exchange()
                stop.wait(0.01)
        except BaseException as error:
            failed(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
        growth = memory.growth_bytes()
    finally:
        stop.set()
        thread.join(DEADLINE_S)
    assert failed.calls == []
    there.exchange()
    assert [data for _, data in there.echoed.wait(len(there.sent))] == there.sent
    stats = there.good.stats().peers["echo"]
    assert (stats.connected, stats.reconnects, stats.queued) == (True, 0, 0)
    assert growth < MAX_GROWTH_BYTES


def closed_after(there: Site, data: bytes) -> bytes:
    """Send bytes on a new connection, which must be closed within the limits; returns what came back."""
    with dial(there.address) as sock:
        sock.settimeout(HANDSHAKE_S + 2)
        send_all(sock, data)
        return read_to_end(sock)


TLS_CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(189))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xff\xff\xff", "packet of 4294967295 bytes announced"),
        (b"\xff\xff\xff\xff\x00" + bytes(100), "packet of 4294967295 bytes announced"),
        (b"\x00\x00\x10\x01", "packet of 4097 bytes announced"),
        (b"\x00\x00\x00\x00", "empty packet"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "bytes announced"),
        (TLS_CLIENT_HELLO, "bytes announced"),
        (encode.version() + packet(2, b"x" * 10_000_000), "packet of 10000001 bytes announced"),
        (encode.version() + packet(2, b"x" * 256), "ident of 256 bytes"),
        (encode.version() + packet(2), "ident of 0 bytes"),
        (encode.version() + packet(2, b"\xff\xfe"), "ident is not UTF-8"),
        (encode.version() + packet(2, b"\xed\xa0\x80"), "ident is not UTF-8"),  # a surrogate
        (packet(3, bytes(24) + b"data"), "unexpected MESSAGES"),
        (encode.version() + packet(3, bytes(24) + b"data"), "unexpected MESSAGES"),
        (encode.version() + packet(0x82, bytes(32)), "unexpected DATA"),
        (packet(2, b"early"), "unexpected IDENT"),
        (encode.version() + packet(4), "unexpected PING"),
        (encode.version(2), "protocol version 2"),
        (encode.version(0xFFFFFFFF), "protocol version 4294967295"),
        (encode.version() + encode.version(), "unexpected VERSION"),
        (packet(1), "protocol version 1 is not spoken there"),
        (encode.version() + hello() + hello(), "second HELLO"),
        (encode.version() + hello(version=0), "extension version 0"),
        (encode.version() + hello(window_bytes=0), "no room"),
        (encode.version() + hello(max_frame_bytes=0), "no room"),
        (encode.refuse(frames.RefuseCode.DUPLICATE_IDENT, "\x1b[2Jgo away\n"), "?[2Jgo away?"),
    ],
)
def test_a_connection_that_breaks_the_handshake_is_closed_with_a_logged_reason(
    echo: Site, data: bytes, reason: str
) -> None:
    closed_after(echo, data)
    assert "closing the connection" in echo.wait_for_log(reason)


def _begin(stream: int = 0, epoch: int = 1, first_seq: int = 0, sent_below: int = 0) -> bytes:
    return packet(0x81, bytes([stream]) + b"".join(n.to_bytes(8) for n in (epoch, first_seq, sent_below)))


def _data(seq: int, flags: int = 0, data: bytes = b"x") -> bytes:
    return packet(0x82, seq.to_bytes(8) + bytes(16) + b"\xff" * 4 + flags.to_bytes(4) + data)


def _ack(next_seq: int, received_seq: int, stream: int = 0, epoch: int = 1) -> bytes:
    return packet(0x83, bytes([stream]) + b"".join(n.to_bytes(8) for n in (epoch, next_seq, received_seq)))


def _position(frame_type: int, next_seq: int, stream: int = 0) -> bytes:
    return packet(frame_type, bytes([stream]) + next_seq.to_bytes(8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_data(0), "used before its BEGIN"),
        (_data(0, flags=1), "used before its BEGIN"),
        (_begin() + _data(0, flags=1), "used before its BEGIN"),
        (_begin() + _data(1), "seq 1 where 0 was expected"),
        (_begin() + _data(0) + _data(2), "seq 2 where 1 was expected"),
        (_begin() + _begin(), "second BEGIN"),
        (_begin(stream=3), "unknown stream 3"),
        (_begin(first_seq=1), "sent_below 0 under first seq 1"),
        (_ack(2, 1), "ACK of more than has arrived"),
        (_ack(0, 0, stream=1), "not begun"),
        (_ack(0, 0, stream=255), "unknown stream 255"),
        (_position(0x84, 5), "used before its BEGIN"),
        (packet(0), "VERSION of 0 bytes"),
        (encode.version(), "unexpected VERSION"),
        (encode.ident("another"), "unexpected IDENT"),
        (hello(), "unexpected HELLO"),
        (packet(3, bytes(24)), "unexpected MESSAGES"),
        (packet(1), "unexpected INCOMPATIBLE"),
        (packet(0x85, b"\x00\x09why not"), "why not"),
        (b"\x04\x00\x00\x01", "packet of 67108865 bytes announced"),
        (b"\xff\xff\xff\xff", "packet of 4294967295 bytes announced"),
    ],
)
def test_a_netcomm_peer_that_breaks_the_protocol_is_told_why_and_closed(echo: Site, data: bytes, reason: str) -> None:
    answer = closed_after(echo, netcomm_handshake() + data)
    assert reason in echo.wait_for_log(reason)
    if data[4:5] != b"\x85":  # who refuses us is not told why
        assert reason.encode() in answer


LAST = 2**64 - 1


@pytest.mark.parametrize(
    "packets",
    [
        _begin(first_seq=LAST, sent_below=LAST) + _data(LAST),
        _begin(first_seq=LAST - 1, sent_below=LAST) + _data(LAST - 1) + _data(LAST),
        _begin() + _position(0x84, LAST) + _data(LAST),
        _begin(stream=1, first_seq=LAST, sent_below=LAST) + _data(LAST, flags=1),
        _begin(epoch=LAST, first_seq=LAST, sent_below=LAST) + _position(0x84, LAST),
    ],
    ids=["first", "last but one", "after a skip", "durable", "skipped only"],
)
def test_positions_at_the_end_of_their_range_hurt_nobody(packets: bytes) -> None:
    ident = new_ident()
    with site() as there, undisturbed(there):
        for _ in range(2):  # the second time, the listener knows positions of this ident
            with dial(there.address) as sock:
                send_all(sock, netcomm_handshake(ident) + packets)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                read_to_end(sock)
            for _ in range(5):
                there.exchange()


# How long the payload of each type must be at the least; shorter ones are truncated.
FIXED_SIZES = {0: 4, 2: 1, 3: 24, 0x80: 46, 0x81: 25, 0x82: 32, 0x83: 25, 0x84: 9, 0x85: 2, 0x86: 38}
EVERY_TYPE = [*range(6), *range(0x80, 0x87), 6, 0x7F, 0x87, 0xFF]
STAGES: dict[str, Callable[[], bytes]] = {
    "at once": lambda: b"",
    "after VERSION": encode.version,
    "after HELLO": lambda: encode.version() + hello(),
    "identified as snakeMQ": legacy_handshake,
    "identified as netcomm": netcomm_handshake,
    "with streams begun": lambda: netcomm_handshake() + _begin() + _begin(stream=1),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_truncated_payload_closes_the_connection(echo: Site, stage: str) -> None:
    count = 0
    for frame_type, size in FIXED_SIZES.items():
        for length in range(size):
            closed_after(echo, STAGES[stage]() + packet(frame_type, bytes(length)))
            count += 1
    echo.wait_for_log("closing the connection", count)


@pytest.mark.parametrize("stage", STAGES)
def test_a_packet_that_is_cut_off_leaves_nothing(echo: Site, stage: str) -> None:
    for frame_type in EVERY_TYPE:
        whole = packet(frame_type, bytes(50))
        for length in (1, 3, 4, 5, 6, 30, len(whole) - 1):
            with dial(echo.address) as sock:
                send_all(sock, STAGES[stage]() + whole[:length])
                sock.shutdown(socket.SHUT_WR)
                read_to_end(sock)


@pytest.mark.parametrize("frame_type", [6, 0x7F, 0x88, 0xFF])
def test_an_unknown_frame_is_passed_over(echo: Site, frame_type: int) -> None:
    ident = new_ident()
    unknown = b"".join(packet(frame_type, bytes(length)) for length in range(64))
    with dial(echo.address) as sock:
        sock.sendall(unknown + encode.version() + unknown + encode.ident(ident) + unknown + encode.PING)
        reader = wire_reader(sock)
        assert isinstance(next(frame for frame in reader if isinstance(frame, frames.Pong)), frames.Pong)


def wire_reader(sock: socket.socket) -> Iterator[frames.Frame]:
    """The frames that come from a connection."""
    reader = decode.Reader(Limits(), memoryview(bytearray(65536)))
    while count := sock.recv_into(reader.buffer):
        parsed, error = reader.buffer_updated(count)
        assert error is None
        yield from parsed


@pytest.mark.parametrize("stage", STAGES)
def test_random_garbage_hurts_nobody(echo: Site, stage: str) -> None:
    chance = random.Random(stage)
    for _ in range(60):
        size = int(2 ** chance.uniform(0, 17))
        with dial(echo.address) as sock:
            send_all(sock, STAGES[stage]() + chance.randbytes(size))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)


@pytest.mark.parametrize("stage", STAGES)
def test_random_frames_hurt_nobody(echo: Site, stage: str) -> None:
    chance = random.Random(stage)
    for _ in range(60):
        packets = [
            packet(chance.choice(EVERY_TYPE), _random_payload(chance)) for _ in range(chance.choice((1, 3, 10, 100)))
        ]
        with dial(echo.address) as sock:
            send_all(sock, STAGES[stage]() + b"".join(packets))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)


def _random_payload(chance: random.Random) -> bytes:
    """Bytes of a length that some frame may have; small numbers are more likely than with pure chance."""
    length = chance.choice((0, 1, 2, 4, 9, 24, 25, 32, 46, chance.randrange(200)))
    return bytes(chance.choice((0, 0, 0, 1, 255, chance.randrange(256))) for _ in range(length))


@pytest.mark.parametrize(
    "said",
    [b"", b"\x00\x00", encode.version() + hello()],
    ids=["nothing", "half a size", "no ident"],
)
def test_who_connects_and_says_too_little_is_closed_in_time(echo: Site, said: bytes) -> None:
    started = time.monotonic()
    closed_after(echo, said)
    assert time.monotonic() - started < HANDSHAKE_S + 3
    echo.wait_for_log(f"no complete handshake within {HANDSHAKE_S:g} s")


def test_an_identified_netcomm_peer_that_begins_no_stream_is_closed_in_time(echo: Site) -> None:
    started = time.monotonic()
    closed_after(echo, netcomm_handshake())
    assert time.monotonic() - started < HANDSHAKE_S + 3
    echo.wait_for_log(f"no complete handshake within {HANDSHAKE_S:g} s")


def test_a_stranger_with_the_ident_of_the_well_behaved_peer_is_refused(echo: Site) -> None:
    assert b"is connected already" in closed_after(echo, netcomm_handshake("good"))
    echo.wait_for_log("is connected already")
    closed_after(echo, legacy_handshake("good"))


def test_many_pings_and_an_ear_that_is_shut_cost_no_memory() -> None:
    pings = encode.PING * 50_000
    with site() as there, undisturbed(there), dial(there.address) as sock:
        sock.settimeout(1)
        sock.sendall(legacy_handshake())
        with contextlib.suppress(OSError):  # it may stop reading, or close
            for _ in range(80):
                sock.sendall(pings)
        for _ in range(5):
            there.exchange()


def test_a_thousand_connections_that_drip_are_closed_in_time() -> None:
    allow_descriptors(4096)
    drips = encode.version() + hello() + encode.ident("drip")
    with site(handshake_s=2.0) as there, undisturbed(there), contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        started = time.monotonic()
        for _ in range(1000):
            sock = stack.enter_context(dial(there.address))
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        all_there = time.monotonic()
        step = 0
        while selector.get_map():
            now = time.monotonic()
            assert now < all_there + 2 + 2, f"{len(selector.get_map())} are still open"
            if now >= started + step:  # a byte a second
                for key in list(selector.get_map().values()):
                    with contextlib.suppress(OSError):
                        key.fileobj.send(drips[step : step + 1])
                step += 1
            for key, _ in selector.select(0.05):
                if _has_ended(key.fileobj):
                    selector.unregister(key.fileobj)
        there.wait_for_log("no complete handshake within 2 s", 1000)


def _has_ended(sock: socket.socket) -> bool:
    try:
        return not sock.recv(65536)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_connections_over_the_limit_are_closed_and_there_is_room_again_later() -> None:
    with site(max_connections=10) as there:
        with undisturbed(there), contextlib.ExitStack() as stack:
            strangers = [stack.enter_context(dial(there.address)) for _ in range(30)]
            there.wait_for_log("10 are open, which is the limit")
            for stranger in strangers:  # over the limit: at once; the others: when their handshake takes too long
                stranger.settimeout(HANDSHAKE_S + 2)
                read_to_end(stranger)
        with SnakemqConnector("late", *there.address) as late:
            assert late.wait_connected("echo", DEADLINE_S)
            assert late.send("echo", b"x").wait(DEADLINE_S)
