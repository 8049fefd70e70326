"""snakeMQ's own parser and netcomm's read the same from the same bytes, but for the differences listed here.

Sequences of packets, right and wrong ones, go to both. Where none of `DIFFERENCES` applies, both must recognise the
same messages, give the same answers, and close the connection or not, together. Where one applies, they must be of one
mind until then, and differ just there: netcomm closes, snakeMQ does not. So an entry that is no longer true fails, as
does one that never comes up.

Each sequence is made from a number, its seed, which a failure names.
"""

import logging
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import pytest

from netcomm.message import DURABLE, VOLATILE, Delivery
from netcomm.protocol import encode, frames
from tests.interop.helpers import packet as pack
from tests.interop.in_process import (
    NAME,
    Message,
    Packet,
    Received,
    SnakemqReceiver,
    netcomm,
    snakemq,
    split,
)
from tests.unit.helpers import not_waited_for

VERSION, INCOMPATIBLE, IDENT, MESSAGE, PING, PONG = range(6)
EXTENSION = range(0x80, 0x88)
UNKNOWN = [*range(6, 0x80), *range(0x88, 0x100)]
HANDSHAKE_LIMIT = 4096
LIMIT = 64 * 1024 * 1024
SEQUENCES = 5000
CONVERSATIONS = 300

Chance = random.Random


@pytest.fixture(autouse=True)
def _no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each wrong packet would be told of, some thousand times."""
    for name in ("snakemq", "netcomm"):
        caplog.set_level(logging.CRITICAL + 1, name)


# -- What differs -------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far the handshake has come before a packet, and whether anything comes behind the packet's size."""

    versioned: bool = False
    identified: bool = False
    followed: bool = False


def _is_ident(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return 1 <= len(payload) <= 255


def _is_out_of_turn(packet: Packet, progress: Progress) -> bool:
    match packet.kind:
        case 0:
            return progress.versioned and not _closes_both(packet, progress)
        case 2:
            return not progress.versioned or progress.identified
        case 4 | 5:
            return not progress.identified
    return False


# In what netcomm is stricter, by the requirement of docs/protocol.md that it follows. snakeMQ is nowhere stricter.
DIFFERENCES: dict[str, Callable[[Packet, Progress], bool]] = {
    # snakeMQ looks at a packet when anything is behind its size; where that is 0, it is too late by one byte.
    "P-02: an empty packet, and nothing behind it": lambda packet, progress: packet.size == 0 and not progress.followed,
    # snakeMQ has no limits: it waits for the rest, and keeps what comes.
    "P-03: over the limit": lambda packet, progress: packet.size > LIMIT,
    "P-04: over the limit before the IDENT": lambda packet, progress: (
        packet.size > HANDSHAKE_LIMIT and not progress.identified
    ),
    # snakeMQ passes over what it does not know. (Those that come here have a wrong length, or come at a wrong time.)
    "P-06, P-20: a frame of netcomm's": lambda packet, progress: packet.kind in EXTENSION,
    # snakeMQ takes an ident of any length, and replaces what is not UTF-8: two idents could become one.
    "P-08: a wrong ident": lambda packet, progress: packet.kind == IDENT and not _is_ident(packet.payload),
    # snakeMQ has no states: VERSION may come at any time, or never, and a second IDENT is passed over.
    "P-20: a frame out of turn": _is_out_of_turn,
    # snakeMQ talks to others of its own name.
    "P-51: the receiver's own ident": lambda packet, progress: packet.kind == IDENT and packet.payload == NAME.encode(),
    # snakeMQ notes it in its log, and goes on.
    "P-58: INCOMPATIBLE": lambda packet, progress: packet.kind == INCOMPATIBLE,
}

# What snakeMQ does with packets that it has read together with the one that it closes the connection for: it goes on
# with them, without a connection. If one of those is wrong, too, or asks for an answer, an exception ends its loop; and
# behind an IDENT it takes messages. netcomm does nothing more.
DIES_AFTERWARDS = "snakeMQ's loop dies of what lies behind the packet that it closes for"
TAKES_AFTERWARDS = "snakeMQ takes messages from a connection that it has closed"


def _closes_both(packet: Packet, progress: Progress) -> bool:
    """Whether both close: they agree on [P-02], [P-06] and [P-19], and that a message needs an IDENT before it."""
    match packet.kind:
        case 0:
            return packet.payload != struct.pack(">I", 1)
        case 3:
            return len(packet.payload) < 24 or not progress.identified
    return packet.size == 0 and progress.followed


@dataclass(frozen=True)
class Verdict:
    """What becomes of a connection.

    start: where the packet begins that closes it; at: it is closed when what lies before has been read.
    difference: the name of what makes netcomm alone close it; None where both do.
    """

    start: int
    at: int
    difference: str | None


def _judge(data: bytes) -> Verdict | None:
    """Find the packet that closes the connection; None where none does."""
    progress = Progress()
    for packet in split(data):
        behind_size = packet.start + 4
        progress.followed = len(data) > behind_size
        # A size over the limit closes by itself, whether the packet is complete or not.
        is_judged_by_size = packet.kind is None or (packet.size > HANDSHAKE_LIMIT and not progress.identified)
        for name, applies in DIFFERENCES.items():
            if applies(packet, progress):
                return Verdict(packet.start, behind_size if is_judged_by_size else packet.end, name)
        if _closes_both(packet, progress):
            # snakeMQ notices an empty packet by the next byte.
            return Verdict(packet.start, behind_size + 1 if packet.size == 0 else packet.end, None)
        progress.versioned |= packet.kind == VERSION
        progress.identified |= packet.kind == IDENT
    return None


# -- What comes ---------------------------------------------------------------------------------------------------


def _small(chance: Chance) -> bytes:
    return chance.randbytes(chance.choice([0, 0, 1, 4, chance.randrange(40)]))


def _number(chance: Chance) -> int:
    return chance.choice([0, 1, 2, 60, 2**31, 2**32 - 2, 2**32 - 1, chance.getrandbits(32)])


def _ident(chance: Chance) -> bytes:
    """An IDENT packet."""
    name = "".join(chance.choices("ab. \n\0ž名🐴", k=chance.randint(1, 20)))
    return pack(IDENT, chance.choices([name, NAME, "x" * 255, "x" * 256], [20, 1, 1, 1])[0].encode())


def _version(chance: Chance) -> bytes:
    return pack(VERSION, struct.pack(">I", chance.choices([1, _number(chance)], [20, 1])[0]))


def _message(chance: Chance) -> bytes:
    numbers = struct.pack(">II", _number(chance), _number(chance))
    data = bytes(5000) if chance.random() < 0.05 else _small(chance)
    return pack(MESSAGE, chance.randbytes(16) + numbers + data)


RIGHT: list[Callable[[Chance], bytes]] = [
    _message,
    _message,
    lambda chance: pack(chance.choice([PING, PONG]), _small(chance)),
    lambda chance: pack(chance.choice(UNKNOWN), _small(chance)),
]
# Some of these are right, too, at the right time.
WRONG: list[Callable[[Chance], bytes]] = [
    _version,
    lambda chance: pack(VERSION, _small(chance)),
    _ident,
    lambda chance: pack(IDENT, chance.choice([b"", b"\xff", _small(chance)])),
    lambda chance: pack(INCOMPATIBLE, _small(chance)),
    lambda chance: pack(MESSAGE, chance.randbytes(chance.randrange(24))),
    lambda chance: pack(chance.choice(EXTENSION), _small(chance)),
    lambda chance: pack(chance.choice(UNKNOWN), bytes(HANDSHAKE_LIMIT - chance.randrange(2))),
    lambda chance: bytes(4),
    lambda chance: struct.pack(">I", chance.choice([LIMIT, LIMIT + 1, 2**32 - 1])),
    _small,
]


def _read_in_portions(chance: Chance) -> list[bytes]:
    """Packets, of which the last may end early, in the portions in which they are read."""
    right = [_version(chance), _ident(chance)][: chance.choice([0, 1, 2, 2, 2, 2, 2, 2])]
    right += [chance.choice(RIGHT)(chance) for _ in range(chance.randrange(6))]
    mixed = [chance.choice(chance.choice([RIGHT, WRONG]))(chance) for _ in range(chance.randrange(6))]
    ending = chance.choice([[], [], [bytes(4)], [_ident(chance), _message(chance)]])
    data = b"".join(right + mixed + ending)
    data = data[: max(0, len(data) - chance.choice([0, 0, 0, chance.randrange(30)]))]
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.choice([0, 1, 5, chance.randrange(50)])))
    return [data[start:end] for start, end in pairwise([0, *cuts, len(data)])]


# -- The tests ----------------------------------------------------------------------------------------------------


@contextmanager
def _named(seed: int, what: object) -> Iterator[None]:
    """Let a failure name its seed."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"made with random.Random({seed}): {what}")
        raise


def test_both_read_the_same_but_for_what_is_listed() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SEQUENCES):
        portions = _read_in_portions(random.Random(seed))
        with _named(seed, portions):
            seen.update(_compare(portions))
    assert seen.keys() == {*DIFFERENCES, DIES_AFTERWARDS, TAKES_AFTERWARDS, "both stay open", "both close"}


def _compare(portions: list[bytes]) -> list[str]:
    """Let both read; returns what was to be seen."""
    data = b"".join(portions)
    verdict = _judge(data)
    ours = netcomm(portions)
    if verdict is None:
        assert ours == snakemq(portions)
        assert not ours.closed
        return ["both stay open"]
    # Nothing that lies behind matters to netcomm, nor where the portions end.
    assert ours == netcomm([data[: verdict.at]])
    assert ours.closed
    theirs = snakemq([data[: verdict.at]])
    if verdict.difference is None:
        assert ours == theirs
        return ["both close", *_afterwards(portions, verdict.at, theirs.messages)]
    before = netcomm([data[: verdict.start]])
    assert before == snakemq([data[: verdict.start]])
    assert not before.closed
    assert not theirs.closed
    assert ours.messages == theirs.messages == before.messages
    return [verdict.difference]


def _afterwards(portions: list[bytes], at: int, messages: list[Received]) -> list[str]:
    """What snakeMQ does after it has closed the connection, having taken these messages."""
    outcome = snakemq(portions)
    assert outcome.closed
    assert outcome.messages[: len(messages)] == messages
    seen = [DIES_AFTERWARDS] * outcome.died + [TAKES_AFTERWARDS] * (outcome.messages != messages)
    if seen:
        end = 0  # of the portion that closed it
        for portion in portions:
            if end < at:
                end += len(portion)
        ends = [packet.end for packet in split(b"".join(portions))]
        assert any(at < packet_end <= end for packet_end in ends)
    return seen


@dataclass(frozen=True)
class Sent:
    """A message to be written; `ttl` in whole seconds: netcomm rounds fractions up, and snakeMQ down."""

    uuid: bytes
    ttl: int | None
    persistent: bool
    data: bytes

    def written_by_netcomm(self) -> bytes:
        expires_at = None if self.ttl is None else float(self.ttl)
        delivery = Delivery(
            "bob", self.uuid, self.data, 0, expires_at, DURABLE if self.persistent else VOLATILE, not_waited_for
        )
        return b"".join(encode.messages(delivery.stream, [delivery], 0.0))


def _some_sent(chance: Chance) -> list[Sent]:
    return [
        Sent(
            chance.randbytes(16),
            chance.choice([None, 0, 1, 60, 2**32 - 2, chance.randrange(2**32 - 1)]),
            chance.random() < 0.5,
            chance.randbytes(chance.choice([0, 1, 40, 5000, 65536 - 29, 100_000])),
        )
        for _ in range(chance.randrange(8))
    ]


def test_snakemq_reads_what_netcomm_writes() -> None:
    hello = encode.hello(frames.Hello(1, bytes(16), bytes(range(16)), 1, LIMIT, 2**23))
    for seed in range(CONVERSATIONS):
        chance = random.Random(seed)
        ident, sent, pings = "ž" * chance.randint(1, 127), _some_sent(chance), chance.randrange(4)
        things = [*sent, *[encode.PING] * pings, encode.PONG]
        chance.shuffle(things)
        written = [thing.written_by_netcomm() if isinstance(thing, Sent) else thing for thing in things]
        data = encode.version() + hello + encode.ident(ident) + b"".join(written)
        size = chance.randint(1 + len(data) // 50, 200_000)
        with _named(seed, f"portions of {size}"):
            outcome = snakemq([data[start : start + size] for start in range(0, len(data), size)])
            assert not outcome.closed
            assert outcome.messages == [
                Received(ident, thing.uuid, thing.ttl, int(thing.persistent), thing.data)
                for thing in things
                if isinstance(thing, Sent)
            ]
            assert outcome.answers == encode.version() + encode.ident(NAME) + encode.PONG * pings


def test_snakemq_writes_what_netcomm_would_write() -> None:
    for seed in range(CONVERSATIONS):
        chance = random.Random(seed)
        ident, sent = "ž" * chance.randint(1, 50), _some_sent(chance)
        with _named(seed, ident), SnakemqReceiver(ident) as snake:
            snake.feed(
                encode.version() + encode.ident("bob")
            )  # without an ident there, its loop dies of a sent message
            expected = encode.version() + encode.ident(ident)
            for message in sent:
                snake.messaging.send_message_frame(
                    snake.conn_id, Message(message.data, message.ttl, int(message.persistent), message.uuid)
                )
                snake.messaging.send_ping(snake.conn_id)
                snake.messaging.send_pong(snake.conn_id)
                expected += message.written_by_netcomm() + encode.PING + encode.PONG
            snake.messaging.send_incompatible_protocol(snake.conn_id)
            snake.run()
            assert snake.outcome().answers == expected + encode.INCOMPATIBLE
            assert not snake.outcome().died
