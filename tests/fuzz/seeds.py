"""Inputs to begin with: the test vectors of the protocol, and conversations that go as they should, or nearly."""

import random
from collections.abc import Iterator

from tests.fuzz.codec import LIMITS
from tests.fuzz.world import FRAMES, HEAL, Step
from tests.unit import helpers
from tests.unit.test_protocol_vectors import vectors

READER, SESSION, LEGACY, WORLD = range(4)
_LISTS = ("vectors", "vectors-read-only", "vectors-close", "vectors-close-before-ident")

Act = tuple[Step, int]

_CONNECT: list[Act] = [(Step.CONNECT, 0), *[(Step.EXCHANGE, 0)] * 3]
_STORIES: list[list[Act]] = [
    # One message each way, and all kinds of messages.
    [*_CONNECT, (Step.SEND_A, 3), (Step.SEND_B, 4), (Step.EXCHANGE, 0)],
    [*_CONNECT, (Step.SEND_A, 0x83), (Step.SEND_A, 0x23), (Step.SEND_A, 0x43), (Step.SEND_A, 0xA3), (Step.EXCHANGE, 0)],
    # Sent before there is a connection; some expire.
    [(Step.SEND_A, 0x80), (Step.SEND_A, 0x21), (Step.SEND_B, 0x40), (Step.WAIT, 9), *_CONNECT],
    # Cut while messages are in flight, and while their acknowledgements are.
    [*_CONNECT, (Step.SEND_A, 9), (Step.SEND_A, 0x9F), (Step.MOVE_TO_B, 50), (Step.CUT, 0), *_CONNECT],
    [*_CONNECT, (Step.SEND_B, 9), (Step.MOVE_TO_A, 255), (Step.CUT, 0), (Step.WAIT, 80), (Step.CONNECT, 1)],
    # Callbacks that do not return, and a storage that does not answer.
    [
        (Step.HOLD, 7),
        *_CONNECT,
        *[(Step.SEND_B, 0x1F), (Step.SEND_A, 0x9F)] * 6,
        (Step.EXCHANGE, 0),
        (Step.HAND_OVER, 2),
    ],
    # Silence.
    [*_CONNECT, (Step.WAIT, 130), (Step.MOVE_TO_B, 5), (Step.WAIT, 200), (Step.WAIT, 200)],
    # Each frame from a stranger with each kind of handshake.
    *(
        [(Step.STRANGER_COMES, connector), (Step.STRANGER_SAYS, greeting), (Step.STRANGER_SAYS, frame)]
        for connector, greeting in ((0, 0), (0, 1), (0, 3))
        for frame in range(6, len(FRAMES))
    ),
    # A second connection with b's name, that is refused, replaces the first, or outlives it.
    [*_CONNECT, (Step.STRANGER_SAYS, 0), (Step.EXCHANGE, 0), (Step.STRANGER_SAYS, 20)],
    [*_CONNECT, (Step.STRANGER_SAYS, 2), (Step.WAIT, 60), (Step.STRANGER_SAYS, 22), (Step.WAIT, 1)],
    [(Step.STRANGER_SAYS, 0), (Step.STRANGER_SAYS, 6), (Step.SEND_A, 5), *_CONNECT, (Step.WAIT, 60)],
    # The last message that a stream can have.
    [(Step.STRANGER_SAYS, 1), (Step.STRANGER_SAYS, 8), (Step.STRANGER_SAYS, 12), (Step.STRANGER_SAYS, 12)],
    # All streams, with an extension that is there from the beginning, and with one that comes late or takes its time.
    [
        *_CONNECT,
        *[
            act
            for use in range(3)
            for act in ((Step.USE, use), (Step.SEND_A, 0x83), (Step.SEND_A, 4), (Step.SEND_B, 5))
        ],
        (Step.EXCHANGE, 0),
        (Step.ATTACH, 0),
        (Step.EXCHANGE, 0),
    ],
    [
        (Step.USE, 1),
        (Step.SEND_A, 0x9F),
        (Step.SEND_A, 0x1F),
        (Step.HOLD, 16),
        *_CONNECT,
        (Step.USE, 2),
        *[(Step.SEND_A, 0x1F), (Step.SEND_B, 0x1F)] * 3,
        (Step.MOVE_TO_B, 99),
        (Step.CUT, 0),
        *_CONNECT,
        (Step.USE, 0),
        (Step.SEND_A, 3),
        (Step.EXCHANGE, 0),
    ],
    # More strangers than are remembered.
    [(Step.STRANGER_COMES, 0), (Step.STRANGER_SAYS, 1), (Step.STRANGER_COMES, 0), (Step.STRANGER_SAYS, 5)] * 3,
]


def seeds() -> Iterator[bytes]:
    """The inputs, by target."""
    packets = [packet for name in _LISTS for _, packet in vectors(name)]
    for packet in packets:
        yield bytes([READER, 0xFF, 9, 0]) + packet
        yield bytes([SESSION, 1, 9, 0]) + packet
        if packet[4:5] == bytes([helpers.MESSAGE]):
            yield bytes([SESSION, 2, 9, 0]) + packet
    for limit in (LIMITS.max_handshake_frame_bytes, LIMITS.max_frame_bytes):
        for size in (limit, limit + 1):
            yield bytes([READER, 0 if limit < LIMITS.max_frame_bytes else 0xFF, 9, 0]) + size.to_bytes(4) + b"\x8f"
    chance = random.Random(1)
    for _ in range(40):
        yield bytes([chance.choice((READER, SESSION))]) + chance.randbytes(3) + b"".join(chance.choices(packets, k=3))
        kinds = [chance.randrange(8) for _ in range(8)]
        yield bytes([LEGACY]) + chance.randbytes(3) + b"".join(bytes([kind, 2, 7, kind]) for kind in kinds)
    for story in _STORIES:
        for first in (0, HEAL):
            yield bytes([WORLD, first]) + bytes(byte for act in story for byte in act)
