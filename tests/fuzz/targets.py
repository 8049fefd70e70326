"""What the fuzzer runs: the first byte of an input picks one of four targets, the rest is the input of that."""

from collections.abc import Callable

from netcomm.protocol import encode
from tests.fuzz.codec import check_reader, cut
from tests.fuzz.conversation import check_session
from tests.fuzz.legacy import check_legacy
from tests.fuzz.world import check_world
from tests.unit import helpers

_SIZES = 3
# A world takes longer than anything else.
_MAX_SCRIPT_BYTES = 41
_HANDSHAKES = (b"", helpers.netcomm_handshake("b"), helpers.legacy_handshake("b"), helpers.version())


def _sizes(header: bytes) -> list[int]:
    """Sizes of chunks: mostly small ones, and sometimes larger ones than any input."""
    return [1 + (byte if byte < 0x40 else byte * 4 if byte & 1 else byte & 7) for byte in header]


def run_reader(data: bytes) -> None:
    """Any bytes, behind an IDENT or not, cut into chunks."""
    prefix = helpers.ident("b") if data[:1] > b"\x80" else b""
    check_reader(cut(prefix + data[_SIZES:], _sizes(data[:_SIZES])))


def run_session(data: bytes) -> None:
    """Any bytes, behind a handshake or not, cut into chunks."""
    check_session(cut(_HANDSHAKES[data[0] & 3] + data[_SIZES:], _sizes(data[:_SIZES])), data[0] >> 2 & 3)


def run_legacy(data: bytes) -> None:
    """What a snakeMQ peer says: packets by their type, length and payload, so that few are broken."""
    stream = b""
    position = _SIZES
    while position + 1 < len(data):
        kind, size = data[position], data[position + 1] & 0x1F
        position += 2
        body = data[position : position + size]
        position += size
        match kind & 7:
            case 0 | 1 | 2:
                stream += helpers.message(body, flags=kind >> 3)
            case 3:
                stream += encode.PING
            case 4:
                stream += encode.PONG
            case 5:
                stream += helpers.packet(kind, body)
            case 6:
                stream += helpers.packet(helpers.MESSAGE, body)
            case 7:
                stream += body
    check_legacy(cut(stream, [8 + size for size in _sizes(data[:_SIZES])]), data[0] & 3)


def run_world(data: bytes) -> None:
    """A script for two peers and a stranger."""
    check_world(data[:_MAX_SCRIPT_BYTES])


TARGETS: tuple[Callable[[bytes], None], ...] = (run_reader, run_session, run_legacy, run_world)


def run_input(data: bytes) -> None:
    """Run one input; raises AssertionError, or what has come out of netcomm and should not, for a defect."""
    if len(data) > _SIZES:
        TARGETS[data[0] & 3](data[1:])
