"""`protocol.decode` and any bytes: what is read, what it costs, and that what was encoded can be read."""

import struct
import tracemalloc

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from netcomm.limits import Limits
from netcomm.protocol import decode, encode, frames
from netcomm.protocol.batch import Batch
from tests.fuzz import strategies
from tests.fuzz.codec import LIMITS, check_reader, packets_of, read, write
from tests.fuzz.measures import finds
from tests.fuzz.planted import DEFECTS
from tests.unit import helpers
from tests.unit.helpers import calls, make_delivery

SIZES = st.lists(st.integers(0, 60), max_size=12)


@given(chunks=strategies.chunks())
def test_any_bytes_are_read_as_the_protocol_says_however_they_are_cut(chunks: list[bytes]) -> None:
    check_reader(chunks)


@given(chunks=strategies.chunks())
def test_the_same_with_the_limits_that_users_have(chunks: list[bytes]) -> None:
    check_reader(chunks, Limits())


@given(stream=strategies.ANY_STREAM)
def test_byte_by_byte_is_a_way_to_cut(stream: bytes) -> None:
    check_reader([stream[place : place + 1] for place in range(len(stream))])


@given(
    frame=strategies.HELLO
    | strategies.BEGIN
    | strategies.ACK
    | strategies.SKIP
    | strategies.IDENT.map(frames.Ident)
    | strategies.U32.map(frames.Version)
    | st.sampled_from([frames.Ping(), frames.Pong(), frames.Incompatible()])
)
def test_what_is_written_is_read(frame: frames.Frame) -> None:
    assert helpers.Reader().feed(write(frame)) == ([frame], None)


@given(payloads=st.lists(strategies.PAYLOAD, min_size=1), gaps=st.data(), first=st.integers(0, 2**63))
def test_a_batch_is_read_as_its_messages_and_the_gaps_between_them(
    payloads: list[bytes], gaps: st.DataObject, first: int
) -> None:
    batch = [make_delivery(payload=payload) for payload in payloads]
    seq = first
    expected: list[tuple[int, int]] = []
    for delivery in batch:
        gap = gaps.draw(st.integers(0, 2))
        seq += gap
        expected += [(helpers.SKIP, seq)] if gap else []
        expected.append((helpers.DATA, seq))
        delivery.seq = seq
        seq += 1
    frames, error = read([helpers.ident("b"), b"".join(encode.data(batch[0].stream, batch, first, 0.0))], Limits())
    assert error is None
    found = packets_of(frames[1:])
    assert [
        (kind, int.from_bytes(payload[:8] if kind == helpers.DATA else payload[1:])) for kind, payload in found
    ] == expected
    assert [payload[32:] for kind, payload in found if kind == helpers.DATA] == payloads


@given(
    payloads=st.lists(strategies.PAYLOAD, min_size=1, max_size=40),
    seq=st.integers(0, 2**63),
    prefix=st.binary(min_size=8, max_size=8),
    number=st.integers(0, 2**63),
    max_frame_bytes=st.integers(93, 2000),
)
def test_a_run_is_read_as_its_messages(
    payloads: list[bytes], seq: int, prefix: bytes, number: int, max_frame_bytes: int
) -> None:
    run = Batch("b", prefix, number, payloads, helpers.OVERHEAD, None, helpers.not_waited_for).run()
    run.seq = seq
    stream = b"".join(encode.data(run.stream, [run], seq, 0.0, max_frame_bytes))
    frames, error = read([helpers.ident("b"), stream], Limits(max_frame_bytes=max_frame_bytes))
    assert error is None
    assert packets_of(frames[1:]) == [
        (
            helpers.DATA,
            struct.pack(">Q8sQII", seq + index, prefix, number + index, helpers.INFINITE, 0) + payload,
        )
        for index, payload in enumerate(payloads)
    ]


@given(text=st.text(st.characters(codec="utf-8"), max_size=1500), code=st.sampled_from(frames.RefuseCode))
def test_a_refusal_of_any_text_is_read(text: str, code: frames.RefuseCode) -> None:
    ((frame,), error) = helpers.Reader().feed(encode.refuse(code, text))
    assert error is None
    assert isinstance(frame, frames.Refuse)
    assert frame.code == code
    assert decode.printable(text).startswith(frame.text)


# -- What it costs ------------------------------------------------------------------------------------------------


@given(size=strategies.OVER_LIMIT | st.integers(34, LIMITS.max_frame_bytes), kind=st.integers(0, 255))
def test_nothing_is_allocated_for_what_a_size_announces(size: int, kind: int) -> None:
    limits = Limits()
    tracemalloc.start()
    try:
        reader = helpers.Reader(limits)
        reader.feed(helpers.ident("b"))
        _, error = reader.feed(size.to_bytes(4) + bytes([kind]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (error is not None) == (size > limits.max_frame_bytes)
    assert peak < 8 * 1024


class CountingReader(helpers.Reader):
    """Counts the bytes that it looks at, each as often as it does."""

    looked_at = 0

    def _parse(self, chunk: bytes, start: int, frames: list[frames.Frame]) -> int:
        self.looked_at += len(chunk) - start
        return super()._parse(chunk, start, frames)


@given(sizes=SIZES, piece=st.integers(1, 40))
def test_bytes_are_looked_at_a_bounded_number_of_times(sizes: list[int], piece: int) -> None:
    stream = helpers.ident("b") + b"".join(helpers.data(0, bytes(size * size)) for size in sizes)
    reader = CountingReader()
    feeds = 0
    for start in range(0, len(stream), piece):
        assert reader.feed(stream[start : start + piece])[1] is None
        feeds += 1
    # Once with the size, once with the type, once with the rest; and what a chunk has of the next packet.
    assert reader.looked_at <= 2 * len(stream) + 5 * 2 * (1 + len(sizes)) + piece * feeds


@given(chunks=strategies.chunks(strategies.streams()))
def test_eight_times_the_bytes_are_eight_times_the_work(chunks: list[bytes]) -> None:
    def work(chunks: list[bytes]) -> int:
        reader = helpers.Reader()
        return calls(lambda: [reader.feed(chunk) for chunk in chunks])

    reader = helpers.Reader()
    assume(all(reader.feed(chunk)[1] is None for chunk in chunks) and not reader._begun)
    assert work(chunks * 8) <= 8 * work(chunks)


# -- Does it find anything? ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "size-over-limit",
        "struct-error-leaks",
        "split-forgets-bytes",
        "durable-is-volatile",
        "streams-of-the-bus-are-plain",
    ],
)
def test_a_planted_defect_is_found(name: str) -> None:
    with DEFECTS[name].planted():
        assert finds(check_reader, chunks=strategies.chunks())
