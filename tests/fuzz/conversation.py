"""What must hold of `protocol.session.Session` for any bytes, however they are cut: it is held beside the reference."""

import struct
from collections.abc import Sequence

from netcomm.errors import ConnectionRefusedByPeer, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import Stream
from netcomm.protocol import encode, frames
from netcomm.protocol.session import Identified, Session
from tests.fuzz import reference
from tests.fuzz.codec import LIMITS, as_read, packets_of
from tests.fuzz.reference import Packet
from tests.unit import helpers

OWN_HELLO = frames.Hello(1, b"P" * 16, b"O" * 16, 2, LIMITS.max_frame_bytes, LIMITS.window_bytes)

_BROKEN = RemoteProtocolError.__name__
_REFUSED = ConnectionRefusedByPeer.__name__


def converse(chunks: Sequence[bytes], barriers: int = 0, limits: Limits = LIMITS) -> tuple[list[Packet], bytes, str]:
    """What comes out of a new session that admits whoever identifies itself, what it says, and how it ends.

    barriers: how many of them it sends to a legacy peer once that is admitted.
    """
    session = Session("a", OWN_HELLO, limits, helpers.SCRATCH, 0.0)
    events: list[object] = []
    said = session.take_output()
    ending = ""
    for chunk in chunks:
        helpers.receive(session, chunk, 0.0)
        try:
            while (event := session.next_event()) is not None:
                events.append(event)
                if isinstance(event, Identified):
                    session.admit()
                    for number in range(barriers if session.legacy else 0):
                        session.barrier(frames.Ack(Stream.VOLATILE, 1, number, number))
        except (RemoteProtocolError, ConnectionRefusedByPeer) as error:
            ending = type(error).__name__
            break
        finally:
            said += session.take_output()
    return packets_of(events), b"".join(said), ending


def check_session(chunks: Sequence[bytes], barriers: int = 0, limits: Limits = LIMITS) -> None:
    """A session lets through what the reference lets through, answers as it must, and ends where it must."""
    stream = b"".join(chunks)
    conversation = converse([stream], barriers, limits)
    assert conversation == _expected(stream, barriers, limits)
    assert converse(chunks, barriers, limits) == conversation, "another split, another conversation"


def _expected(stream: bytes, barriers: int, limits: Limits) -> tuple[list[Packet], bytes, str]:
    reading = reference.read(stream, limits.max_handshake_frame_bytes, limits.max_frame_bytes)
    heard = list(reference.spoken(as_read(reading.packets)))
    legacy = all(kind != reference.HELLO for kind, _ in heard)
    events: list[Packet] = []
    said = encode.version() + encode.hello(OWN_HELLO) + encode.ident("a")
    ending = _BROKEN if reading.broken else ""
    pongs = 0
    for kind, payload in heard:
        if kind in (reference.IDENT, reference.BEGIN, reference.DATA, reference.MESSAGE, reference.ACK, reference.SKIP):
            events.append((kind, payload))
        elif kind == reference.PING:
            said += encode.PONG
        elif kind == reference.PONG:
            if legacy and pongs < barriers:
                events.append((reference.ACK, struct.pack(">BQQQ", Stream.VOLATILE, 1, pongs, pongs)))
            pongs += 1
        elif kind in (reference.INCOMPATIBLE, reference.REFUSE):
            ending = _REFUSED
        elif kind == reference.GOODBYE:
            events.append((kind, payload))
            ending = ""  # what follows it has no meaning
        elif kind == reference.UNEXPECTED:
            ending = _BROKEN
    wrong_version = len(heard) > 1 and heard[-1][0] == reference.UNEXPECTED and heard[-2][0] == reference.VERSION
    if wrong_version and heard[-2][1] != b"\0\0\0\1":
        said += encode.INCOMPATIBLE
    return events, said, ending
