"""`protocol.session` and `protocol.messaging` and any bytes: what comes out, what is said, and what it costs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netcomm.errors import LocalProtocolError, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.protocol import encode
from netcomm.protocol.session import Session
from tests.fuzz import strategies
from tests.fuzz.conversation import OWN_HELLO, check_session
from tests.fuzz.legacy import check_legacy
from tests.fuzz.measures import finds
from tests.fuzz.planted import DEFECTS
from tests.fuzz.world import FRAMES, HEAL, Step, check_world
from tests.unit import helpers
from tests.unit.helpers import Net, calls

BYTE = st.integers(0, 255)


@st.composite
def steps(draw: st.DrawFn) -> bytes:
    """One step of a world."""
    step = draw(st.sampled_from(Step))
    if step is Step.STRANGER_SAYS_RAW:
        said = draw(strategies.PACKET | st.binary(max_size=40))[:255]
        return bytes([step, len(said)]) + said
    how = draw(st.integers(0, len(FRAMES) - 1) if step is Step.STRANGER_SAYS else BYTE)
    return bytes([step, how]) + (bytes([draw(BYTE)]) if step is Step.CHANGE else b"")


@st.composite
def scripts(draw: st.DrawFn) -> bytes:
    """A world that may begin connected, or with a message that waits for the extension, and is healed in the end."""
    exchange = bytes([Step.EXCHANGE, 0] * 3)
    connected = bytes([Step.CONNECT, 0]) + exchange
    held = connected + bytes([Step.USE, 1, Step.SEND_B, 1]) + exchange
    beginning = draw(st.sampled_from([b"", connected, held]))
    return bytes([HEAL]) + beginning + b"".join(draw(st.lists(steps(), max_size=40)))


@given(chunks=strategies.chunks(), barriers=st.integers(0, 3))
def test_any_bytes_are_a_conversation_as_the_protocol_says_however_they_are_cut(
    chunks: list[bytes], barriers: int
) -> None:
    check_session(chunks, barriers)


@given(chunks=strategies.chunks(), barriers=st.integers(0, 3))
def test_the_same_with_the_limits_that_users_have(chunks: list[bytes], barriers: int) -> None:
    check_session(chunks, barriers, Limits())


@given(
    packets=st.lists(
        st.sampled_from([encode.PING, encode.PONG, encode.PONG, helpers.packet(0x8F, b"later")])
        | st.builds(helpers.message, strategies.PAYLOAD, strategies.U32, strategies.FLAGS)
        | st.binary(max_size=6),
        max_size=20,
    ),
    places=st.data(),
    queued=st.integers(0, 4),
)
def test_a_snakemq_peer_is_heard_whatever_it_says(packets: list[bytes], places: st.DataObject, queued: int) -> None:
    check_legacy(places.draw(strategies.chunks(st.just(b"".join(packets)))), queued)


@settings(max_examples=300)
@given(script=scripts())
def test_two_peers_and_a_stranger_come_to_a_good_end(script: bytes) -> None:
    check_world(script)


@given(chunks=strategies.chunks())
def test_a_caller_who_admits_at_the_wrong_time_is_told_so(chunks: list[bytes]) -> None:
    session = Session("a", OWN_HELLO, Limits(), helpers.SCRATCH, 0.0)
    for chunk in chunks:
        helpers.receive(session, chunk, 0.0)
        if session.remote_ident is None:
            with pytest.raises(LocalProtocolError):
                session.admit()


# -- What it costs ------------------------------------------------------------------------------------------------


@given(packets=st.integers(1, 3000))
def test_what_waits_to_be_said_is_bounded_by_what_was_read(packets: int) -> None:
    session = Session("a", OWN_HELLO, Limits(), helpers.SCRATCH, 0.0)
    helpers.receive(session, helpers.legacy_handshake("b"), 0.0)
    session.next_event()
    session.admit()
    session.take_output()
    answered = 0
    for _ in range(packets):
        helpers.receive(session, encode.PING, 0.0)  # and nobody reads the answers
        try:
            session.next_event()
        except RemoteProtocolError:
            break
        answered += 1
    assert len(session.take_output()) == answered == min(packets, 1001)


@given(payloads=st.lists(strategies.PAYLOAD, min_size=1, max_size=8), piece=st.integers(1, 200), legacy=st.booleans())
def test_eight_times_the_messages_are_eight_times_the_work(payloads: list[bytes], piece: int, legacy: bool) -> None:
    def work(times: int) -> int:
        host = Net(0).host("a")
        end = host.open()
        end.feed(helpers.legacy_handshake("b") if legacy else helpers.netcomm_handshake("b") + helpers.begin())
        stream = b"".join(
            helpers.message(payload) if legacy else helpers.data(seq, payload)
            for seq, payload in enumerate(payloads * times)
        )
        chunks = [stream[start : start + piece] for start in range(0, len(stream), piece)]
        return calls(lambda: [end.feed(chunk) for chunk in chunks])

    # Where the chunks cut the packets differs from one time to the next: with few of them, by much.
    assert work(32) <= 9 * work(4) + 100


# -- Does it find anything? ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["everybody-is-a-netcomm-peer", "struct-error-leaks"])
def test_a_planted_defect_of_a_session_is_found(name: str) -> None:
    with DEFECTS[name].planted():
        assert finds(check_session, chunks=strategies.chunks())


@pytest.mark.parametrize("name", ["begin-forgets-the-position", "extension-told-twice", "held-messages-dropped"])
def test_a_planted_defect_between_two_peers_is_found(name: str) -> None:
    with DEFECTS[name].planted():
        assert finds(check_world, script=scripts())
