"""What hypothesis makes for these tests: packets, streams of them that may be broken, and places to cut them."""

import struct

from hypothesis import strategies as st

from netcomm.message import Stream
from netcomm.protocol import encode, frames
from netcomm.protocol.envelope import Envelope, pack_headers
from netcomm.protocol.envelope import encode as encode_envelope
from tests.fuzz import reference
from tests.fuzz.codec import LIMITS
from tests.unit import helpers

U32 = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**32 - 1])
U16 = st.integers(0, 0x3FF) | st.integers(0, 0xFFFF)
U64 = st.integers(0, 2**64 - 1) | st.integers(0, 5) | st.just(2**64 - 1)
ID = st.binary(min_size=16, max_size=16)
PAYLOAD = st.binary(max_size=60)
STREAM = st.sampled_from(Stream)
FLAGS = st.sampled_from(Stream) | st.integers(0, 0xFF)  # of streams that there are, mostly
IDENT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=80)

HELLO = st.builds(
    frames.Hello,
    version=st.integers(1, 0xFFFF),
    peer_id=ID,
    boot_id=ID,
    connector=U32,
    max_frame_bytes=st.integers(33, 2**32 - 1),
    window_bytes=st.integers(1, 2**32 - 1),
    flags=st.integers(0, 0xFF),
)
ORDERED = st.tuples(U64, U64).map(sorted)
BEGIN = st.builds(lambda stream, epoch, seqs: frames.Begin(stream, epoch, *seqs), STREAM, U64, ORDERED)
ACK = st.builds(lambda stream, epoch, seqs: frames.Ack(stream, epoch, *seqs), STREAM, U64, ORDERED)
SKIP = st.builds(frames.Skip, STREAM, U64)

U8 = st.integers(0, 255)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.just("x" * 255)
HEADERS = st.dictionaries(TEXT, st.text(st.characters(codec="utf-8"), max_size=20), max_size=4).map(pack_headers)
ENVELOPE = st.builds(
    Envelope,
    kind=U8,
    subject=st.none() | TEXT,
    exchange=st.none() | TEXT,
    id=st.none() | U64,
    ref=st.none() | U64,
    consumer=st.none() | U32,
    ms_left=st.none() | U32,
    codec=st.none() | U8,
    priority=st.none() | U8,
    attempt=st.none() | U8,
    packed_headers=st.just(b"") | HEADERS,
)
# Short ones that fit into the frames here; some are none.
RAW_ENVELOPE = st.one_of(
    st.builds(Envelope, kind=U8, subject=st.sampled_from([None, "s"]), id=st.none() | U64).map(encode_envelope),
    st.just(encode_envelope(Envelope(ref=2**64 - 1, packed_headers=pack_headers({"k": "v"})))),
    st.builds(
        lambda fields, values: struct.pack(">HBH", 3 + len(values), 0, fields) + values, U16, st.binary(max_size=12)
    ),
    st.binary(max_size=9),
)
# Of DATA and BATCH; with the bits that say of envelopes, which are not there then, mostly.
ENVELOPE_FLAGS = st.sampled_from([8, 8, 8, 9, 0xC, 0xD, 0xB, 0x10, 0x18])

# Of any type and with any payload; few of them are valid.
ANY_PACKET = st.builds(
    helpers.packet, st.sampled_from([*reference.LENGTHS, 0x8F]) | st.integers(0, 255), st.binary(max_size=70)
)
# As large as may be, and larger by one.
AT_LIMIT = st.sampled_from([LIMITS.max_handshake_frame_bytes, LIMITS.max_frame_bytes]).flatmap(
    lambda size: st.sampled_from([size - 1, size]).map(lambda size: helpers.packet(0x8F, bytes(size)))
)
PACKET = st.one_of(
    AT_LIMIT,
    st.binary(min_size=1, max_size=6).map(lambda name: helpers.packet(helpers.IDENT, name)),
    st.sampled_from(
        [encode.PING, encode.PONG, encode.INCOMPATIBLE, encode.GOODBYE, helpers.version(), helpers.refuse(1, "no")]
    ),
    IDENT.map(helpers.ident),
    HELLO.map(encode.hello),
    BEGIN.map(encode.begin),
    ACK.map(encode.ack),
    SKIP.map(lambda frame: encode.skip(frame.stream, frame.next_seq)),
    st.builds(helpers.data, U64, PAYLOAD, FLAGS, U32),
    st.builds(
        lambda seq, payloads, flags, ttl: helpers.batch(seq, *payloads, flags=flags, ttl=ttl),
        U64,
        st.lists(PAYLOAD, max_size=4),
        FLAGS,
        U32,
    ),
    st.builds(
        lambda seq, raw, data, flags: helpers.data(seq, raw + data, flags), U64, RAW_ENVELOPE, PAYLOAD, ENVELOPE_FLAGS
    ),
    st.builds(
        lambda seq, raw, payloads, flags: helpers.batch(seq, *payloads, flags=flags, shared=raw),
        U64,
        RAW_ENVELOPE,
        st.lists(PAYLOAD, max_size=3),
        ENVELOPE_FLAGS,
    ),
    st.builds(
        lambda seq, parts, flags: helpers.batch(seq, *map(b"".join, parts), flags=flags),
        U64,
        st.lists(st.tuples(RAW_ENVELOPE, PAYLOAD), max_size=3),
        st.sampled_from([0x10, 0x10, 0x11, 0x15, 8]),
    ),
    st.builds(helpers.message, PAYLOAD, U32, FLAGS),
    ANY_PACKET,
)
HANDSHAKE = st.sampled_from(
    [helpers.netcomm_handshake("b"), helpers.legacy_handshake("b"), helpers.version(), helpers.ident("b"), b""]
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Packets behind a handshake, or none; in some, a few bytes are changed, taken out or put in."""
    stream = bytearray(draw(HANDSHAKE) + b"".join(draw(st.lists(PACKET, max_size=12))))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        place = draw(st.integers(0, len(stream)))
        stream[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(stream)


ANY_STREAM = streams() | st.binary(max_size=300)


@st.composite
def chunks(draw: st.DrawFn, stream: st.SearchStrategy[bytes] = ANY_STREAM) -> list[bytes]:
    """A stream, cut anywhere; chunks may be empty."""
    whole = draw(stream)
    places = draw(st.lists(st.integers(0, len(whole)), max_size=20).map(sorted))
    return [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]


OVER_LIMIT = st.integers(LIMITS.max_frame_bytes + 1, 2**32 - 1)
