"""The test vectors of docs/protocol.md, checked against netcomm both ways."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netcomm.limits import Limits
from netcomm.message import Delivery, Stream
from netcomm.protocol import encode, frames
from netcomm.protocol.batch import Batch
from netcomm.protocol.envelope import Envelope, pack_headers
from netcomm.protocol.envelope import encode as encode_envelope
from netcomm.protocol.events import Received
from netcomm.protocol.messaging import Messaging
from netcomm.testing import vectors as page_vectors
from tests.fuzz import codec, reference
from tests.unit import helpers

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
IDENT = encode.ident("x")


def vectors(name: str) -> list[tuple[str, bytes]]:
    return page_vectors.frames(PAGE, name)


def fields(head: str) -> tuple[str, dict[str, Any]]:
    head = re.sub(r'"(.)"\*(\d+)', lambda found: f'"{found[1] * int(found[2])}"', head)
    name, *words = re.findall(r'\S+="[^"]*"(?:,"[^"]*")*|\S+', head)
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if value.startswith('"'):
            texts = [text[1:-1] for text in value.split(",")]
            data = [text.encode() for text in texts]
            several = key == "envelope.headers" or len(texts) > 1
            found[key] = (texts if several else texts[0]) if key != "data" else data if name == "BATCH" else data[0]
        elif key in ("uuid", "peer_id", "boot_id"):
            found[key] = bytes.fromhex(value)
        elif key == "stream":
            found[key] = Stream(int(value))
        else:
            found[key] = int(value, 0)
    return name, found


def envelopes(values: dict[str, Any]) -> list[Envelope | None]:
    """The envelope of the message, or of all, or those of each."""
    said = {key.removeprefix("envelope."): value for key, value in values.items() if key.startswith("envelope.")}
    if not values["flags"] & 0x18:
        assert not said
        return [None]
    headers = dict(text.split(":") for text in said.pop("headers", []))
    if values["flags"] & 0x10:
        return [Envelope(**{key: value[place] for key, value in said.items()}) for place in range(len(values["data"]))]
    return [Envelope(**said, packed_headers=pack_headers(headers))]


def frame_of(head: str) -> frames.Frame | None:
    if head.startswith("("):
        return None
    name, values = fields(head)
    if name == "MESSAGE":
        return frames.Messages([(values["uuid"], values["ttl"], values["flags"], values["data"])])
    if name == "DATA":
        (its,) = envelopes(values)
        run = values["seq"], 1, values["uuid"], values["ttl"], values["flags"], its
        return frames.Data(Stream(values["flags"] & 7), [run], [values["data"]])
    if name == "BATCH":
        payloads = values["data"]
        seq, uuid, ttl, flags = values["seq"], values["uuid"], values["ttl"], values["flags"]
        all_of_them = envelopes(values)
        count = len(payloads) // len(all_of_them)  # in each run
        runs = [
            (seq + place, count, frames.uuid_behind(uuid, place), ttl, flags, its)
            for place, its in enumerate(all_of_them)
        ]
        return frames.Data(Stream(flags & 7), runs, payloads)
    kind: type[frames.Frame] = getattr(frames, name.capitalize())
    return kind(**values)


def packet_of(frame: frames.Frame | None) -> bytes:
    assert frame is not None
    match frame:
        case frames.Data(_, [(seq, count, uuid, ttl, _, its)], payloads) if count > 1:  # which `write` takes one by one
            raw = None if its is None else encode_envelope(its)
            expires_at = None if ttl == helpers.INFINITE else float(ttl)
            number = int.from_bytes(uuid[8:])
            run = Batch("x", uuid[:8], number, payloads, 0, expires_at, helpers.not_waited_for, raw).run()
            run.seq = seq
            return b"".join(encode.data(run.stream, [run], seq, 0.0))
    return codec.write(frame)


def _never(delivery: Delivery, timeout: float | None) -> bool:
    raise AssertionError("nobody waits here")


def read(packet: bytes, *, identified: bool) -> tuple[list[frames.Frame], Exception | None]:
    reader = helpers.Reader()
    if identified:
        reader.feed(IDENT)
    return reader.feed(packet)


def as_told(read_frames: list[frames.Frame], error: Exception | None) -> tuple[list[frames.Frame], Exception | None]:
    """What was read, without the sizes of envelopes, of which the page's words say nothing."""
    for frame in read_frames:
        if isinstance(frame, frames.Data):
            assert frame.envelope_bytes == frames.envelope_bytes(frame.runs, 0, len(frame.payloads))
            frame.envelope_bytes = 0
    return read_frames, error


@pytest.mark.requirement("P-01", "positive")
@pytest.mark.requirement("P-06", "positive")
@pytest.mark.requirement("P-59", "positive")
@pytest.mark.requirement("P-60", "positive")
@pytest.mark.requirement("P-69", "positive")
@pytest.mark.requirement("P-70", "positive")
@pytest.mark.requirement("P-71", "positive")
@pytest.mark.requirement("P-72", "positive")
@pytest.mark.requirement("P-73", "positive")
@pytest.mark.requirement("P-75", "positive")
@pytest.mark.parametrize(("head", "packet"), vectors("vectors"))
def test_a_vector_is_read_as_its_frame_and_written_as_its_packet(head: str, packet: bytes) -> None:
    frame = frame_of(head)
    assert as_told(*read(packet, identified=True)) == ([frame], None)
    assert packet_of(frame) == packet


@pytest.mark.requirement("P-11", "positive")
@pytest.mark.requirement("P-12", "positive")
@pytest.mark.requirement("P-13", "positive")
@pytest.mark.requirement("P-74", "positive")
@pytest.mark.requirement("P-76", "positive")
@pytest.mark.parametrize(("head", "packet"), vectors("vectors-read-only"))
def test_a_read_only_vector_is_read_as_its_frame(head: str, packet: bytes) -> None:
    frame = frame_of(head)
    assert as_told(*read(packet, identified=True)) == ([] if frame is None else [frame], None)


def test_every_frame_type_has_a_vector() -> None:
    assert {fields(head)[0] for head, _ in vectors("vectors")} == {frame_type.name for frame_type in frames.FrameType}


@pytest.mark.requirement("P-02", "negative")
@pytest.mark.requirement("P-03", "negative")
@pytest.mark.requirement("P-06", "negative")
@pytest.mark.requirement("P-08", "negative")
@pytest.mark.requirement("P-09", "negative")
@pytest.mark.requirement("P-12", "negative")
@pytest.mark.requirement("P-13", "negative")
@pytest.mark.requirement("P-33", "negative")
@pytest.mark.requirement("P-39", "negative")
@pytest.mark.requirement("P-60", "negative")
@pytest.mark.requirement("P-70", "negative")
@pytest.mark.requirement("P-71", "negative")
@pytest.mark.requirement("P-72", "negative")
@pytest.mark.requirement("P-73", "negative")
@pytest.mark.parametrize("identified", [False, True])
@pytest.mark.parametrize(("head", "packet"), vectors("vectors-close"))
def test_a_closing_vector_is_an_error_before_and_after_ident(head: str, packet: bytes, identified: bool) -> None:
    frames, error = read(packet, identified=identified)
    assert frames == []
    assert error is not None


@pytest.mark.requirement("P-04", "positive")
@pytest.mark.requirement("P-04", "negative")
@pytest.mark.parametrize(("head", "packet"), vectors("vectors-close-before-ident"))
def test_an_early_closing_vector_is_an_error_only_before_ident(head: str, packet: bytes) -> None:
    assert read(packet, identified=False)[1] is not None
    assert read(packet, identified=True) == ([], None)


@pytest.mark.requirement("P-18", "positive")
@pytest.mark.requirement("P-23", "positive")
@pytest.mark.requirement("P-27", "positive")
@pytest.mark.requirement("P-28", "positive")
def test_the_conversation_is_what_two_peers_say() -> None:
    limits = Limits()
    peers = {
        "bob": Messaging(
            "bob", limits, peer_id=b"\x0b" * 16, boot_id=b"\xb0" * 16, first_epoch=7, owner=helpers.not_waited_for
        ),
        "niess": Messaging(
            "niess", limits, peer_id=b"\x0e" * 16, boot_id=b"\xe0" * 16, first_epoch=9, owner=helpers.not_waited_for
        ),
    }
    peers["bob"].sessions.connection_opened(1, "niess's place", 1, 0.0)
    peers["niess"].sessions.connection_opened(1, "bob's place", 0, 0.0)
    message = helpers.make_delivery("x", b"hello", None, 0.0)
    message.uuid = bytes(range(16))
    message.ident = "niess"
    peers["bob"].send("niess", message, 0.0)

    portions: list[tuple[str, bytes]] = []
    for line in page_vectors.block(PAGE, "conversation").splitlines():
        speaker, _, packet = line.partition(":")
        if portions and portions[-1][0] == speaker:
            speaker, said = portions.pop()
        else:
            said = b""
        portions.append((speaker, said + bytes.fromhex(packet)))

    for speaker, portion in portions:
        said = b""
        while buffers := peers[speaker].output(1, 1 << 20, 0.0)[0]:
            said += b"".join(buffers)
        assert said.hex() == portion.hex()
        (hearer,) = peers.keys() - {speaker}
        helpers.receive_on(peers[hearer], 1, portion, 0.0)
        for event in peers[hearer].next_events():
            if isinstance(event, Received):
                peers[hearer].mark_handled(event, 0, len(event.items), 0.0)

    assert message.state.value == "delivered"
    assert [peer.output(1, 1 << 20, 0.0)[0] for peer in peers.values()] == [[], []]


# -- The conversation with interruptions ---------------------------------------------------------------------------


class Talk:
    """bob and niess, and what happens to them beside the packets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.peers = {"bob": self.process("bob", 0x0B, 0xB0, 7), "niess": self.process("niess", 0x0E, 0xE0, 9)}
        self.number = 0  # of the connection
        self.received: list[Received] = []  # by niess, and not handed over

    @staticmethod
    def process(name: str, peer_id: int, boot_id: int, epoch: int) -> Messaging:
        ids = {"peer_id": bytes([peer_id]) * 16, "boot_id": bytes([boot_id]) * 16}
        return Messaging(name, Limits(), **ids, first_epoch=epoch, owner=helpers.not_waited_for)

    def other(self, name: str) -> Messaging:
        (peer,) = (peer for ident, peer in self.peers.items() if ident != name)
        return peer

    def happens(self, what: str) -> None:
        """What stands in parentheses."""
        if what == "bob connects":
            self.number += 1
            self.peers["bob"].sessions.connection_opened(self.number, "niess's place", 1, self.now)
            self.peers["niess"].sessions.connection_opened(self.number, "bob's place", 0, self.now)
        elif what == "the connection is cut":
            for peer in self.peers.values():
                peer.sessions.connection_lost(self.number, what, self.now)
        elif what == "niess's process dies, and another one starts":
            self.received.clear()
            self.peers["niess"] = self.process("niess", 0x0E, 0xE1, 10)
            self.peers["bob"].sessions.connection_lost(self.number, what, self.now)
        elif found := re.fullmatch(r"(\d+) s pass(?:es)?", what):
            self.now += int(found[1])
            for peer in self.peers.values():
                peer.tick(self.now)
        elif found := re.fullmatch(r"bob sends (\S+)(?: in one call)?, with uuid (\w+)(?:, and ttl (\d+))?", what):
            self.send(re.findall(r'"(\w+)"', found[1]), bytes.fromhex(found[2]), found[3])
        else:
            assert what.startswith("niess hands over "), what
            for text, mark in re.findall(r'"(\w+)"( as redelivered)?', what):
                self.hand_over(text.encode(), bool(mark))

    def send(self, texts: list[str], uuid: bytes, ttl: str | None) -> None:
        expires_at = None if ttl is None else self.now + int(ttl)
        payloads = [text.encode() for text in texts]
        number = int.from_bytes(uuid[8:])
        run = Batch("niess", uuid[:8], number, payloads, helpers.OVERHEAD, expires_at, helpers.not_waited_for).run()
        self.peers["bob"].send("niess", run, self.now)

    def hand_over(self, payload: bytes, redelivered: bool) -> None:
        first = self.received[0]
        place = first.handled
        seq, _, _, _, data, _ = first.items[place]
        assert (data, seq < first.redelivered_below) == (payload, redelivered)
        self.peers["niess"].mark_handled(first, place, place + 1, self.now)
        first.handled += 1
        if first.handled == len(first.items):
            self.received.pop(0)

    def says(self, name: str) -> bytes:
        said = b""
        while buffers := self.peers[name].output(self.number, 1 << 20, self.now)[0]:
            said += b"".join(buffers)
        return said

    def hears(self, name: str, portion: bytes) -> None:
        helpers.receive_on(self.peers[name], self.number, portion, self.now)
        events = self.peers[name].next_events()
        self.received += [event for event in events if isinstance(event, Received)]


def interrupted_conversation() -> str | None:
    """Let bob and niess have it; returns where what is said is not what the page says."""
    talk = Talk()
    lines = page_vectors.block(PAGE, "conversation-with-interruptions").splitlines()
    for speaker, group in itertools.groupby(lines, lambda line: line.partition(":")[0] if line[0] != "(" else ""):
        if not speaker:
            for line in group:
                talk.happens(line[1:-1])
            continue
        portion = b"".join(bytes.fromhex(line.partition(":")[2]) for line in group)
        if (said := talk.says(speaker)) != portion:
            return f"{speaker} says {said.hex()} and not {portion.hex()}"
        talk.hears("bob" if speaker == "niess" else "niess", portion)
    left = [talk.says(name) for name in talk.peers]
    return None if left == [b"", b""] and not talk.received and talk.peers["bob"].peers.idle else "something is left"


@pytest.mark.requirement("P-28", "positive")
@pytest.mark.requirement("P-34", "positive")
@pytest.mark.requirement("P-41", "positive")
@pytest.mark.requirement("P-59", "positive")
@pytest.mark.requirement("P-61", "negative")
@pytest.mark.requirement("P-63", "positive")
def test_the_conversation_with_interruptions_is_what_two_peers_say() -> None:
    assert interrupted_conversation() is None


# -- Vectors and the reference parser ------------------------------------------------------------------------------


def heard_by_reference(said: bytes) -> reference.Reading:
    return reference.read(said, Limits().max_handshake_frame_bytes, Limits().max_frame_bytes)


@pytest.mark.parametrize("name", ["vectors", "vectors-read-only", "vectors-close", "vectors-close-before-ident"])
def test_the_reference_parser_of_the_fuzzers_reads_each_frame_as_the_page_says(name: str) -> None:
    for head, packet in vectors(name):
        assert heard_by_reference(packet).broken is name.startswith("vectors-close"), head
        assert heard_by_reference(IDENT + packet).broken is (name == "vectors-close"), head


def connections(vector: page_vectors.Vector) -> Iterator[tuple[bytes, bool]]:
    """What the tester says on each connection, and whether the implementation closes it."""
    words = {
        "VERSION": encode.version(),
        "HELLO": helpers.hello(connector=1),
        "IDENT": IDENT,
        "OWN-IDENT": encode.ident("own"),
        "EPOCH": bytes(8),
    }
    said = b""
    for step in vector.steps:
        if step.kind == "says":
            said += b"".join(words[word] if word in words else page_vectors.unhex(word) for word in step.words)
        elif step.kind in ("cut", "again"):
            yield said, False
            said = b""
    yield said, vector.steps[-1].kind == "closed"


@pytest.mark.parametrize("vector", page_vectors.behaviour(PAGE), ids=lambda vector: vector.name)
def test_the_reference_parser_breaks_off_no_conversation_that_goes_on(vector: page_vectors.Vector) -> None:
    for said, closed in connections(vector):
        reading = heard_by_reference(said)
        unexpected = reference.UNEXPECTED in [kind for kind, _ in reference.spoken(reading.packets)]
        # The reference knows of packets and states; of streams, it does not.
        number = re.match(r"\[(P-\d\d)\]", vector.name)
        assert number is not None
        knows = closed and number[1] in ("P-04", "P-08", "P-19", "P-20", "P-21", "P-54")
        if knows or not closed:
            assert (reading.broken or unexpected) is closed


@pytest.mark.parametrize("name", ["vectors-close", "vectors-close-before-ident"])
def test_a_closing_vector_names_its_requirement(name: str) -> None:
    for head, _ in vectors(name):
        requirement = re.match(r"\[P-\d\d\] ", head)
        assert requirement is not None, head
        assert f"**{requirement[0].strip()}**" in PAGE
