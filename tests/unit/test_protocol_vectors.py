"""The test vectors of docs/protocol.md, checked against netcomm both ways."""

import re
from pathlib import Path
from typing import Any

import pytest

from netcomm.limits import Limits
from netcomm.message import Delivery, Stream
from netcomm.protocol import encode, frames
from netcomm.protocol.batch import Batch
from netcomm.protocol.events import Received
from netcomm.protocol.messaging import Messaging
from tests.unit import helpers

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
IDENT = encode.ident("x")


def block(name: str) -> str:
    (found,) = re.findall(rf"^```{name}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def vectors(name: str) -> list[tuple[str, bytes]]:
    """A line that is not indented, and the hex of the indented ones that follow."""
    found = re.findall(r"^(\S.*)\n((?:[ ]+.*\n)+)", block(name), re.MULTILINE)
    return [(head, bytes.fromhex("".join(body.split()))) for head, body in found]


def fields(head: str) -> tuple[str, dict[str, Any]]:
    name, *words = re.findall(r'\S+="[^"]*"(?:,"[^"]*")*|\S+', head)
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if value.startswith('"'):
            texts = [text[1:-1] for text in value.split(",")]
            data = [text.encode() for text in texts]
            found[key] = texts[0] if key != "data" else data if name == "BATCH" else data[0]
        elif key in ("uuid", "peer_id", "boot_id"):
            found[key] = bytes.fromhex(value)
        elif key == "stream":
            found[key] = Stream(int(value))
        else:
            found[key] = int(value, 0)
    return name, found


def frame_of(head: str) -> frames.Frame | None:
    if head.startswith("("):
        return None
    name, values = fields(head)
    if name == "MESSAGE":
        return frames.Messages([(values["uuid"], values["ttl"], values["flags"], values["data"])])
    if name == "DATA":
        stream = Stream(values["flags"] & 1)
        item = values["seq"], values["uuid"], values["ttl"], values["flags"], values["data"]
        return helpers.data_frame(stream, item)
    if name == "BATCH":
        payloads = values["data"]
        run = values["seq"], len(payloads), values["uuid"], values["ttl"], values["flags"]
        return frames.Data(Stream(values["flags"] & 1), [run], payloads)
    kind: type[frames.Frame] = getattr(frames, name.capitalize())
    return kind(**values)


def delivery_of(uuid: bytes, ttl: int, flags: int, data: bytes, seq: int = 0) -> Delivery:
    expires_at = None if ttl == frames.INFINITE_TTL else float(ttl)
    delivery = Delivery("x", uuid, data, frames.packet_size(len(data)), expires_at, bool(flags), lambda *_: False)
    delivery.seq = seq
    return delivery


def packet_of(frame: frames.Frame | None) -> bytes:
    match frame:
        case frames.Version(number):
            return encode.version(number)
        case frames.Incompatible():
            return encode.INCOMPATIBLE
        case frames.Ident(ident):
            return encode.ident(ident)
        case frames.Messages([(uuid, ttl, flags, data)]):
            return b"".join(encode.messages([delivery_of(uuid, ttl, flags, data)], 0.0))
        case frames.Ping():
            return encode.PING
        case frames.Pong():
            return encode.PONG
        case frames.Hello():
            return encode.hello(frame)
        case frames.Begin():
            return encode.begin(frame)
        case frames.Data(_, [(seq, 1, uuid, ttl, flags)], [data]):
            return b"".join(encode.data([delivery_of(uuid, ttl, flags, data, seq)], seq, 0.0))
        case frames.Data(_, [(seq, _, uuid, ttl, 0)], payloads):
            run = Batch("x", uuid[:8], int.from_bytes(uuid[8:]), payloads, 0, float(ttl), helpers.not_waited_for).run()
            run.seq = seq
            return b"".join(encode.data([run], seq, 0.0))
        case frames.Ack():
            return encode.ack(frame)
        case frames.Skip(stream, next_seq):
            return encode.skip(stream, next_seq)
        case frames.Refuse(code, text):
            return encode.refuse(frames.RefuseCode(code), text)
    raise AssertionError(frame)


def _never(delivery: Delivery, timeout: float | None) -> bool:
    raise AssertionError("nobody waits here")


def read(packet: bytes, *, identified: bool) -> tuple[list[frames.Frame], Exception | None]:
    reader = helpers.Reader()
    if identified:
        reader.feed(IDENT)
    return reader.feed(packet)


@pytest.mark.requirement("P-01", "positive")
@pytest.mark.requirement("P-06", "positive")
@pytest.mark.requirement("P-59", "positive")
@pytest.mark.requirement("P-60", "positive")
@pytest.mark.parametrize(("head", "packet"), vectors("vectors"))
def test_a_vector_is_read_as_its_frame_and_written_as_its_packet(head: str, packet: bytes) -> None:
    frame = frame_of(head)
    assert read(packet, identified=True) == ([frame], None)
    assert packet_of(frame) == packet


@pytest.mark.requirement("P-11", "positive")
@pytest.mark.requirement("P-12", "positive")
@pytest.mark.requirement("P-13", "positive")
@pytest.mark.parametrize(("head", "packet"), vectors("vectors-read-only"))
def test_a_read_only_vector_is_read_as_its_frame(head: str, packet: bytes) -> None:
    frame = frame_of(head)
    assert read(packet, identified=True) == ([] if frame is None else [frame], None)


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
        "bob": Messaging("bob", limits, peer_id=b"\x0b" * 16, boot_id=b"\xb0" * 16, first_epoch=7, wait=_never),
        "niess": Messaging("niess", limits, peer_id=b"\x0e" * 16, boot_id=b"\xe0" * 16, first_epoch=9, wait=_never),
    }
    peers["bob"].sessions.connection_opened(1, "niess's place", 1, 0.0)
    peers["niess"].sessions.connection_opened(1, "bob's place", 0, 0.0)
    message = delivery_of(bytes(range(16)), frames.INFINITE_TTL, 0, b"hello")
    message.ident = "niess"
    peers["bob"].send("niess", message, 0.0)

    portions: list[tuple[str, bytes]] = []
    for line in block("conversation").splitlines():
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


@pytest.mark.parametrize("name", ["vectors-close", "vectors-close-before-ident"])
def test_a_closing_vector_names_its_requirement(name: str) -> None:
    for head, _ in vectors(name):
        requirement = re.match(r"\[P-\d\d\] ", head)
        assert requirement is not None, head
        assert f"**{requirement[0].strip()}**" in PAGE
