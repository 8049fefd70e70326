"""`protocol.envelope`: to bytes and back; what can't be sent; and bytes that are no envelope."""

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netcomm.errors import ConfigurationError, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import DURABLE, VOLATILE, DeliveryState, Headers
from netcomm.protocol import encode, envelope, events, frames
from netcomm.protocol.batch import Batch, Run
from netcomm.protocol.envelope import Envelope, pack_headers
from netcomm.storage import Append, StoredMessage
from tests.fuzz import reference, strategies
from tests.fuzz.codec import fields_of
from tests.unit import helpers
from tests.unit.helpers import Host, Net, calls, packets, warnings
from tests.unit.test_protocol_requirements import established, legacy
from tests.unit.test_wire import flat, open_reader

FULL = Envelope(3, "weather", "news", 7, 2**64 - 1, 5, 30_000, 1, 9, 2, pack_headers({"traceparent": "00-ab", "ž": ""}))


def in_data(raw: bytes, payload: bytes = b"hello", flags: int = 8, seq: int = 0) -> bytes:
    return helpers.data(seq, raw + payload, flags=flags)


def only_frame(stream: bytes) -> frames.Data:
    (frame,), error = open_reader().feed(stream)
    assert error is None
    assert isinstance(frame, frames.Data)
    return frame


# -- To bytes and back --------------------------------------------------------------------------------------------


@given(said=strategies.ENVELOPE)
def test_what_is_encoded_is_decoded(said: Envelope) -> None:
    raw = envelope.encode(said)
    back = envelope.decode(raw)
    assert back == said
    assert back.wire_size == len(raw)
    assert envelope.size_at(raw + b"more", 0) == len(raw)
    assert reference.envelope(raw) == fields_of(back)


@given(said=strategies.ENVELOPE, index=st.integers(0, 70_000))
def test_bytes_and_objects_count_on_alike(said: Envelope, index: int) -> None:
    raw = envelope.behind(envelope.encode(said), index)
    assert envelope.decode(raw) == said.behind(index)
    for name in ("id", "ref"):
        before = getattr(said, name)
        assert getattr(said.behind(index), name) == (None if before is None else (before + index) % 2**64)


def broken(raw: bytes) -> Iterator[bytes]:
    """Every beginning of it, and it with every other byte in every place; each also with the size that it has then."""
    for place in range(len(raw)):
        changed = [raw[:place]] + [
            raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :] for mask in range(1, 256)
        ]
        for one in changed:
            yield one
            if len(one) >= 2:
                yield (len(one) - 2).to_bytes(2) + one[2:]


@pytest.mark.parametrize("said", [FULL, Envelope(), Envelope(subject="ž"), Envelope(exchange="e", ref=1)])
def test_any_change_is_read_or_is_an_error_of_the_other_side(said: Envelope) -> None:
    for raw in broken(envelope.encode(said)):
        expected = reference.envelope(raw)
        whole = len(raw) >= 2 and len(raw) == envelope.size_at(raw, 0)
        try:
            found = fields_of(envelope.decode(raw))
        except RemoteProtocolError:
            found = None
        assert found == (expected if whole else None)


@given(raw=st.binary(max_size=60), fields=st.integers(0, 0xFFFF), kind=st.integers(0, 255))
def test_any_bytes_are_read_as_the_reference_reads_them(raw: bytes, fields: int, kind: int) -> None:
    raw = struct.pack(">HBH", len(raw) + 3, kind, fields) + raw
    try:
        found = fields_of(envelope.decode(raw))
    except RemoteProtocolError:
        found = None
    assert found == reference.envelope(raw)


@pytest.mark.parametrize("size", [0, 1, 254, 255, 256, 32_767, 65_525, 65_526])
def test_headers_of_every_size_up_to_the_largest(size: int) -> None:
    said = {"k": "v" * size}
    raw = envelope.encode(Envelope(packed_headers=pack_headers(said)))
    assert len(raw) == 2 + 3 + 2 + 4 + size
    assert dict(envelope.decode(raw).headers) == said
    assert only_frame(in_data(raw, b"")).items[0][5].headers == said  # type: ignore[union-attr]


# -- What can't be sent -------------------------------------------------------------------------------------------


class Encoded(str):
    """A str that says something else where it is asked for its bytes."""

    def encode(self, *arguments: object) -> str:  # type: ignore[override]
        return "x"


@pytest.mark.parametrize(
    ("subject", "headers", "words"),
    [
        ("", None, "the subject must have 1 to 255 bytes of UTF-8, not 0"),
        ("ž" * 128, None, "the subject must have 1 to 255 bytes of UTF-8, not 256"),
        ("\ud800", None, "the subject must be encodable as UTF-8"),
        (b"bytes", None, "the subject must be a str, not bytes"),
        (Encoded("x" * 256), None, "the subject must have 1 to 255 bytes of UTF-8, not 256"),
        (None, [("a", "b")], "headers must be a Mapping of str to str, not list"),
        (None, {"": "x"}, "the name of the header '' must have 1 to 255 bytes of UTF-8, not 0"),
        (None, {"k" * 256: "x"}, "must have 1 to 255 bytes of UTF-8, not 256"),
        (None, {1: "x"}, "the name of the header 1 must be a str, not int"),
        (None, {"n": 1}, "the header 'n' must be a str, not int"),
        (None, {"n": "\ud800"}, "the header 'n' must be encodable as UTF-8"),
        (None, {"n": "x" * 65_536}, "the header 'n' has 65536 bytes, 65535 are allowed"),
        (None, {"a": "x" * 40_000, "b": "x" * 40_000}, "the headers up to 'b' take 80008 bytes, 65535 are allowed"),
        ("s", {"n": "x" * 65_527}, "the subject and the headers take 65538 bytes in all, 65535 are allowed"),
    ],
)
def test_what_can_not_be_sent_is_said_with_its_name_and_the_limit(subject: str, headers: object, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        envelope.of_message(subject, headers)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_what_is_said_of_a_header_does_not_repeat_all_of_a_long_name() -> None:
    with pytest.raises(ConfigurationError) as raised:
        envelope.of_message(None, {"n" * 100_000: "x"})
    assert len(str(raised.value)) < 300


def test_what_says_nothing_has_no_envelope() -> None:
    assert envelope.of_message(None, None) is None
    assert envelope.of_message(None, {}) is None


# -- In frames ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-69", "negative")
def test_data_without_the_flag_is_data_whatever_it_looks_like() -> None:
    raw = envelope.encode(FULL)
    frame = only_frame(in_data(raw, flags=0))
    assert frame.payloads == [raw + b"hello"]
    assert frame.items[0][5] is None


@pytest.mark.requirement("P-74", "negative")
def test_a_sender_of_version_1_sets_no_later_bit() -> None:
    assert int.from_bytes(envelope.encode(FULL)[3:5]) == 0x3FF


@pytest.mark.parametrize(
    "packet",
    [helpers.data(0, b"\0\x10\0\x80\1\1a", flags=8), helpers.batch(0, b"", flags=8, shared=b"\0\x10\0\x80\1\1a")],
)
def test_an_envelope_takes_nothing_from_the_packet_behind_it(packet: bytes) -> None:
    parsed, error = open_reader().feed(packet + encode.PING * 9)
    assert parsed == []
    assert "with an envelope that is longer than the packet" in str(error)


def test_plain_messages_and_others_come_together_in_their_order() -> None:
    a, b = envelope.encode(Envelope(subject="a")), envelope.encode(Envelope(subject="b"))
    stream = (
        helpers.data(0, b"0")
        + in_data(a, b"1", seq=1)
        + in_data(a, b"2", seq=2)
        + helpers.data(3, b"3")
        + in_data(b, b"4", seq=4)
        + helpers.data(5, b"5")
    )
    frame = only_frame(stream)
    assert [(item[0], item[4], item[5] and item[5].subject) for item in frame.items] == [
        (0, b"0", None),
        (1, b"1", "a"),
        (2, b"2", "a"),
        (3, b"3", None),
        (4, b"4", "b"),
        (5, b"5", None),
    ]
    assert frame.envelope_bytes == 3 * len(a)
    assert frame.runs[1][5] is frame.runs[2][5], "the same bytes were decoded twice"


def make_run(said: Envelope, *payloads: bytes, resent: bool = False) -> Run:
    raw = envelope.encode(said)
    overhead = helpers.OVERHEAD + len(raw)
    run = Batch("b", bytes(8), 0, list(payloads), overhead, None, helpers.not_waited_for, raw).run()
    run.seq, run.resent = 0, resent
    return run


@pytest.mark.requirement("P-75", "positive")
@pytest.mark.requirement("P-75", "negative")
@pytest.mark.requirement("P-79", "positive")
@pytest.mark.requirement("P-79", "negative")
@pytest.mark.parametrize("resent", [False, True])
@pytest.mark.parametrize("max_frame_bytes", [1 << 20, 175, 130, 115])
def test_each_message_of_a_run_has_its_own_envelope_whatever_frame_it_is_in(resent: bool, max_frame_bytes: int) -> None:
    run = make_run(FULL, *[b"%d" % place for place in range(7)], resent=resent)
    size = len(envelope.encode(FULL))
    stream = b"".join(encode.data(run.stream, [run], 0, 0.0, max_frame_bytes))
    counts = [int.from_bytes(body[32:34]) if kind == helpers.BATCH else 1 for kind, body in packets(stream)]
    assert sum(counts) == 7
    assert (max(counts) > 1) is (not resent and max_frame_bytes > 115)
    assert all(1 + len(body) <= max_frame_bytes for _, body in packets(stream))
    frame = only_frame(stream)
    assert [(item[4], item[5]) for item in frame.items] == [(b"%d" % place, FULL.behind(place)) for place in range(7)]
    assert [item[5].id for item in frame.items] == [7, 8, 9, 10, 11, 12, 13]  # type: ignore[union-attr]
    assert [item[5].ref for item in frame.items] == [2**64 - 1, *range(6)]  # type: ignore[union-attr]
    assert frame.envelope_bytes == 7 * size


@pytest.mark.requirement("P-77", "positive")
def test_a_run_counts_the_envelope_for_each_message() -> None:
    run = make_run(FULL, b"a", b"", b"ccc")
    each = helpers.OVERHEAD + len(envelope.encode(FULL))
    assert (run.size, run.first_size, run.largest) == (3 * each + 4, each + 1, each + 3)
    assert run.fitting(2 * each + 1) == 2


@pytest.mark.requirement("P-76", "negative")
def test_a_batch_with_an_envelope_for_each_gives_none_to_its_neighbour() -> None:
    a, b = Envelope(subject="a", id=5), Envelope(subject="b")
    parts = [envelope.encode(a) + b"1", envelope.encode(b), envelope.encode(a) + b"3"]
    frame = only_frame(helpers.batch(0, *parts, flags=16))
    assert [(item[0], item[4], item[5]) for item in frame.items] == [(0, b"1", a), (1, b"", b), (2, b"3", a)]


# -- Large ones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header_bytes", [0, 100, 60_000])
@pytest.mark.parametrize("first", [3, 36, 38, 39, 50, 200, 70_000])
def test_a_large_message_is_the_same_in_whatever_pieces_it_comes(header_bytes: int, first: int) -> None:
    said = Envelope(subject="large", packed_headers=pack_headers({"k": "v" * header_bytes}))
    stream = in_data(envelope.encode(said), b"x" * 400_000) + helpers.data(1, b"behind")
    reader = open_reader()
    parsed: list[frames.Frame] = []
    for piece in (stream[:first], stream[first : first + 1], stream[first + 1 : 300_000], stream[300_000:]):
        more, error = reader.feed(piece)
        assert error is None
        parsed += more
    found = [item for _, _, item in flat(parsed)]  # type: ignore[misc]
    assert [(item[4], item[5]) for item in found] == [(b"x" * 400_000, said), (b"behind", None)]


def test_a_large_message_with_an_envelope_goes_to_its_final_place() -> None:
    said = Envelope(subject="large")
    raw = envelope.encode(said)
    reader = open_reader()
    stream = in_data(raw, b"x" * 200_000)
    reader.feed(stream[:1000])
    assert reader.buffer is not helpers.SCRATCH
    (frame,), _ = reader.feed(stream[1000:])
    assert isinstance(frame, frames.Data)
    assert (frame.payloads, frame.envelope_bytes) == ([b"x" * 200_000], len(raw))


@pytest.mark.parametrize("raw", [b"\0\2\0\0\0", b"\0\5\0\0\1\1\xff"])
def test_what_is_wrong_with_the_envelope_of_a_large_message_is_told(raw: bytes) -> None:
    reader = open_reader()
    stream = in_data(raw, bytes(200_000))
    assert reader.feed(stream[:-1]) == ([], None)
    parsed, error = reader.feed(stream[-1:])
    assert parsed == []
    assert "envelope" in str(error)


def test_an_envelope_as_large_as_the_frame_allows() -> None:
    limits = Limits(max_frame_bytes=2000)
    raw = envelope.encode(Envelope(packed_headers=pack_headers({"k": "v" * 1000})))
    for extra in (0, 1):
        payload = bytes(2000 - 33 - len(raw) + extra)
        parsed, error = open_reader(limits).feed(in_data(raw, payload))
        assert (error is None, len(parsed)) == (not extra, 1 - extra)


def test_headers_take_their_memory_only_while_they_are_looked_at() -> None:
    raws = [
        envelope.encode(Envelope(id=n, packed_headers=pack_headers({f"{m:x}": "" for m in range(900)})))
        for n in range(50)
    ]
    stream = helpers.batch(0, *raws, flags=16)
    envelope.unpack_headers.cache_clear()
    tracemalloc.start()
    try:
        frame = only_frame(stream)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(frame.payloads) == 50
    assert kept < 3 * len(stream)
    assert peak < 6 * len(stream)


# -- What they cost -----------------------------------------------------------------------------------------------


def test_the_same_bytes_are_decoded_once() -> None:
    raw = envelope.encode(FULL)
    stream = b"".join(in_data(raw, b"x", seq=seq) for seq in range(100))
    with patch.object(envelope, "decode", side_effect=envelope.decode) as decode:
        only_frame(stream)
    assert decode.call_count == 1


def test_plain_messages_cost_as_many_calls_as_before() -> None:
    stream = b"".join(helpers.data(seq, b"x") for seq in range(1000))
    reader = open_reader()
    # unpack, bytes, two appends
    assert calls(lambda: reader.feed(stream)) < 4.1 * 1000


# -- Headers ------------------------------------------------------------------------------------------------------


def test_headers_are_a_mapping_that_can_not_be_changed() -> None:
    headers = FULL.headers
    assert headers == {"traceparent": "00-ab", "ž": ""}
    assert headers == Headers({"ž": "", "traceparent": "00-ab"})
    assert hash(headers) == hash(Headers({"ž": "", "traceparent": "00-ab"}))
    assert list(headers) == ["traceparent", "ž"]
    assert repr(headers) == "{'traceparent': '00-ab', 'ž': ''}"
    with pytest.raises(TypeError):
        headers["x"] = "y"  # type: ignore[index]
    with suppress(AttributeError):
        headers.other = 1  # type: ignore[attr-defined]
        raise AssertionError("an attribute can be added")


# -- Between peers ------------------------------------------------------------------------------------------------


def send_run(host: Host, said: Envelope, *payloads: bytes) -> None:
    host.messaging.send("b", make_run(said, *payloads), host.net.now)


@pytest.mark.requirement("P-77", "negative")
def test_what_shares_an_envelope_fills_the_window_as_if_each_had_its_own() -> None:
    net = Net()
    host = net.host("a")
    end = established(net, host, window_bytes=500)
    raw = envelope.encode(Envelope(packed_headers=pack_headers({"k": "v" * 100})))
    send_run(host, envelope.decode(raw), *[b"x" * 10] * 8)
    each = helpers.OVERHEAD + len(raw) + 10
    ((kind, body),) = net.exchange(end)
    assert (kind, int.from_bytes(body[32:34])) == (helpers.BATCH, 500 // each)


def test_what_waits_for_callbacks_counts_with_its_envelopes() -> None:
    net = Net()
    host = net.host("a")
    host.holding = True
    end = established(net, host)
    raw = envelope.encode(FULL)
    net.exchange(end, helpers.batch(0, *[b"xy"] * 5, flags=8, shared=raw) + helpers.data(5))
    inbox = host.messaging.peers["b"].inbox
    each = helpers.OVERHEAD + len(raw) + 2
    assert inbox.pending_bytes[VOLATILE] == 5 * each + helpers.OVERHEAD
    host.hand_over(2)
    assert inbox.pending_bytes[VOLATILE] == 3 * each + helpers.OVERHEAD
    host.hand_over()
    assert inbox.pending_bytes[VOLATILE] == 0


@pytest.mark.requirement("P-78", "positive")
@pytest.mark.requirement("P-78", "negative")
def test_a_snakemq_peer_gets_the_data_alone_and_one_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    host = net.host("a")
    end = legacy(net, host)
    host.send("b", b"plain")
    net.exchange(end)
    assert not warnings(caplog)
    send_run(host, FULL, b"one", b"two")
    send_run(host, FULL, b"three")
    said = net.exchange(end)
    assert [body[24:] for kind, body in said if kind == helpers.MESSAGE] == [b"one", b"two", b"three"]
    assert {body[20:24] for kind, body in said if kind == helpers.MESSAGE} == {bytes(4)}, "flags of envelopes"
    (warning,) = warnings(caplog)
    assert warning == (
        "'b' is a snakeMQ peer: the subject and the headers of messages for it are left out. Put what it needs into the"
        " data, or let it use netcomm"
    )


def test_a_message_that_is_too_large_with_its_envelope_alone_is_rejected() -> None:
    net = Net()
    host = net.host("a")
    end = established(net, host, max_frame_bytes=33 + 100)
    size = len(envelope.encode(FULL))
    send_run(host, FULL, bytes(100 - size))
    send_run(host, FULL, bytes(101 - size))
    ((_, body),) = net.exchange(end)
    assert len(body) == 33 + 100 - 1
    (dropped,) = host.happened(events.Dropped)
    (delivery,) = dropped.deliveries  # type: ignore[attr-defined]
    assert (delivery.state, len(delivery.data)) == (DeliveryState.REJECTED, 101 - size)


def test_messages_with_an_envelope_join_no_run_and_none_joins_theirs() -> None:
    net = Net()
    host = net.host("a")
    plain = Batch("b", bytes(8), 0, [b"0"], helpers.OVERHEAD, None, helpers.not_waited_for).run()
    host.messaging.send("b", plain, net.now)
    open_run = host.messaging.open_runs["b"]
    assert open_run.join(b"1") is not None
    send_run(host, FULL, b"2")
    assert not open_run.is_open
    assert host.messaging.peers["b"].outbox.volatile.open_run is None
    host.send("b", b"3")
    other = net.host("b")
    net.connect(host, other)
    net.settle()
    items = [item for event in other.happened(events.Received) for item in event.items]  # type: ignore[attr-defined]
    assert [(item[4], item[5]) for item in items] == [(b"0", None), (b"1", None), (b"2", FULL), (b"3", None)]


def test_a_stored_message_has_the_envelope_that_it_was_stored_with() -> None:
    net = Net()
    storage = MemoryQueueStorage()
    raw = envelope.encode(FULL)
    stored = [
        StoredMessage(0, helpers.UUID, b"old", net.wall_now, None, raw),
        StoredMessage(1, helpers.UUID, b"plain", net.wall_now, None),
    ]
    storage.append([Append("b", 5, stored)])
    assert storage.streams()[0].size == 8 + len(raw)
    host = net.host("a", storage=storage)
    end = established(net, host)
    net.exchange(end, helpers.ack(0, stream=1, epoch=5))
    assert DURABLE in host.messaging.peers["b"].outbox.durables
    net.exchange(end, helpers.ack(1, stream=1, epoch=5))
    net.exchange(end, helpers.ack(2, stream=1, epoch=5))
    assert host.messaging.peers["b"].outbox.durables[DURABLE].queued_bytes == 0
