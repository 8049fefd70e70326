"""`protocol.session`: one connection: what may come when, who lives, and what a legacy peer's answers mean."""

import random

import pytest

from netcomm.errors import ConnectionRefusedByPeer, LocalProtocolError, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.message import Stream
from netcomm.protocol import encode, frames
from netcomm.protocol.session import Identified, Session
from tests.unit import helpers
from tests.unit.helpers import packets


# The acknowledgement that `helpers.ack(seq)` is, and the one that a legacy peer gives by its pong.
def ack(seq: int, epoch: int = helpers.FIRST_EPOCH) -> frames.Ack:
    return frames.Ack(Stream.VOLATILE, epoch, seq, seq)


OWN_HELLO = frames.Hello(1, b"P" * 16, b"O" * 16, 2, 1 << 26, 1 << 23)
LIMITS = Limits()


def new_session(limits: Limits = LIMITS, now: float = 0.0, watched: list[float] | None = None) -> Session:
    watch = [].append if watched is None else watched.append
    return Session("a", OWN_HELLO, limits, helpers.SCRATCH, now, watch)


def feed(session: Session, *chunks: bytes, now: float = 0.0) -> list[object]:
    """What comes out of a session after these chunks."""
    events: list[object] = []
    for chunk in chunks:
        helpers.receive(session, chunk, now)
        while (event := session.next_event()) is not None:
            events.append(event)
    return events


def nothing_ahead() -> tuple[int, int]:
    return 0, 0


class Line:
    """How far the output of a connection has come, and how often somebody has asked."""

    def __init__(self, written: int) -> None:
        self.written = written
        self.taken = 0
        self.asked = 0

    def progress(self) -> tuple[int, int]:
        self.asked += 1
        return self.written, self.taken


def said(session: Session) -> list[tuple[int, bytes]]:
    return packets(b"".join(session.take_output()))


def admitted(
    legacy: bool = False, established: bool = True, limits: Limits = LIMITS, watched: list[float] | None = None
) -> Session:
    session = new_session(limits, watched=watched)
    handshake = helpers.legacy_handshake("b") if legacy else helpers.netcomm_handshake("b")
    assert feed(session, handshake) == [Identified("b")]
    session.admit()
    if established:
        session.establish()
    session.take_output()
    return session


def in_state(name: str) -> Session:
    match name:
        case "AWAIT_VERSION":
            return new_session()
        case "AWAIT_IDENT":
            session = new_session()
            feed(session, helpers.version())
            return session
        case "AWAIT_IDENT after HELLO":
            session = new_session()
            feed(session, helpers.version() + helpers.hello())
            return session
        case "LEGACY":
            return admitted(legacy=True)
    return admitted()


FRAMES = {
    "VERSION": helpers.version(),
    "INCOMPATIBLE": helpers.packet(helpers.INCOMPATIBLE),
    "IDENT": helpers.ident("b"),
    "MESSAGE": helpers.message(b"m"),
    "PING": helpers.packet(helpers.PING),
    "PONG": helpers.packet(helpers.PONG),
    "HELLO": helpers.hello(),
    "BEGIN": helpers.begin(),
    "DATA": helpers.data(0, b"d"),
    "ACK": helpers.ack(0),
    "SKIP": helpers.skip(0),
    "REFUSE": helpers.refuse(1, "go away"),
}

ALLOWED = {
    "AWAIT_VERSION": {"VERSION", "INCOMPATIBLE", "REFUSE"},
    "AWAIT_IDENT": {"HELLO", "IDENT", "INCOMPATIBLE", "REFUSE"},
    "AWAIT_IDENT after HELLO": {"IDENT", "INCOMPATIBLE", "REFUSE"},
    "LEGACY": {"MESSAGE", "PING", "PONG", "INCOMPATIBLE"},
    "EXTENDED": {"BEGIN", "DATA", "ACK", "SKIP", "PING", "PONG", "REFUSE"},
}


# -- The handshake ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-18", "positive")
def test_version_hello_and_ident_are_said_at_once_in_this_order() -> None:
    session = new_session()
    assert b"".join(session.take_output()) == helpers.version() + encode.hello(OWN_HELLO) + helpers.ident("a")
    assert session.take_output() == []


@pytest.mark.requirement("P-20", "positive")
@pytest.mark.requirement("P-20", "negative")
@pytest.mark.parametrize("state", ALLOWED)
@pytest.mark.parametrize("frame", FRAMES)
def test_each_state_allows_its_frames_and_no_others(state: str, frame: str) -> None:
    session = in_state(state)
    if frame not in ALLOWED[state]:
        with pytest.raises(RemoteProtocolError):
            feed(session, FRAMES[frame])
    elif frame in ("INCOMPATIBLE", "REFUSE"):
        with pytest.raises(ConnectionRefusedByPeer):
            feed(session, FRAMES[frame])
    else:
        feed(session, FRAMES[frame])


@pytest.mark.requirement("P-05", "positive")
@pytest.mark.parametrize("state", ALLOWED)
def test_unknown_frames_are_passed_over_in_every_state(state: str) -> None:
    session = in_state(state)
    assert feed(session, helpers.packet(0x8F, b"new") + helpers.packet(0x77)) == []


@pytest.mark.requirement("P-21", "positive")
def test_a_legacy_peer_is_known_by_the_hello_that_is_missing() -> None:
    session = new_session()
    assert not session.legacy
    assert feed(session, helpers.version(), helpers.ident("b")) == [Identified("b")]
    assert session.remote is None
    assert session.remote_ident == "b"
    session.admit()
    assert session.legacy
    assert not session.extended


@pytest.mark.requirement("P-21", "negative")
def test_a_netcomm_peer_is_known_by_its_hello() -> None:
    session = new_session()
    hello = helpers.hello(b"X" * 16, connector=3, max_frame_bytes=1000, window_bytes=500)
    assert feed(session, helpers.version() + hello + helpers.ident("b")) == [Identified("b")]
    assert session.remote == frames.Hello(1, b"P" * 16, b"X" * 16, 3, 1000, 500)
    assert not session.extended
    session.admit()
    assert session.extended
    assert not session.legacy


@pytest.mark.requirement("P-19", "positive")
def test_the_handshake_may_come_byte_by_byte() -> None:
    chunks = [bytes([byte]) for byte in helpers.netcomm_handshake("b")]
    assert feed(new_session(), *chunks) == [Identified("b")]


@pytest.mark.requirement("P-22", "positive")
@pytest.mark.requirement("P-22", "negative")
def test_nothing_comes_out_between_identification_and_admission() -> None:
    session = new_session()
    behind = helpers.begin() + helpers.data(0, b"d") + helpers.packet(helpers.PING) + helpers.ack(0)
    assert feed(session, helpers.netcomm_handshake("b") + behind) == [Identified("b")]
    session.take_output()
    assert feed(session, helpers.data(1, b"e")) == []
    assert said(session) == []
    session.admit()
    kinds = [type(event) for event in feed(session, b"")]
    assert kinds == [frames.Begin, frames.Data, frames.Ack, frames.Data]
    assert said(session) == [(helpers.PONG, b"")]


@pytest.mark.requirement("P-22", "negative")
def test_what_is_wrong_behind_the_identification_is_told_after_admission() -> None:
    session = new_session()
    assert feed(session, helpers.netcomm_handshake("b") + bytes(4)) == [Identified("b")]
    session.admit()
    with pytest.raises(RemoteProtocolError, match="empty"):
        session.next_event()


def test_frames_before_an_error_come_out_before_it() -> None:
    session = admitted()
    helpers.receive(session, helpers.data(0, b"d") + helpers.ack(3) + bytes(4), 0)
    assert isinstance(session.next_event(), frames.Data)
    assert session.next_event() == ack(3)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            session.next_event()


def test_bytes_behind_an_error_are_not_read() -> None:
    session = admitted()
    helpers.receive(session, bytes(4), 0)
    helpers.receive(session, helpers.data(0, b"d"), 0)
    with pytest.raises(RemoteProtocolError):
        session.next_event()


@pytest.mark.parametrize("prepare", ["new", "admitted"])
def test_only_an_identified_session_can_be_admitted(prepare: str) -> None:
    session = new_session() if prepare == "new" else admitted()
    with pytest.raises(LocalProtocolError):
        session.admit()


@pytest.mark.requirement("P-19", "negative")
@pytest.mark.parametrize("number", [0, 2, 0xFFFFFFFF])
def test_to_another_version_incompatible_goes_out(number: int) -> None:
    session = new_session()
    session.take_output()
    with pytest.raises(RemoteProtocolError, match=str(number)):
        feed(session, helpers.version(number))
    assert said(session) == [(helpers.INCOMPATIBLE, b"")]


def test_a_message_before_the_identification_names_the_frame() -> None:
    session = new_session()
    with pytest.raises(RemoteProtocolError, match="MESSAGE"):
        feed(session, helpers.version() + helpers.message(b"m"))


# -- Refusing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["AWAIT_VERSION", "AWAIT_IDENT", "EXTENDED"])
def test_a_refusal_carries_its_code_and_text(state: str) -> None:
    with pytest.raises(ConnectionRefusedByPeer, match="go away") as caught:
        feed(in_state(state), FRAMES["REFUSE"])
    assert caught.value.code == frames.RefuseCode.DUPLICATE_IDENT


@pytest.mark.requirement("P-17", "positive")
def test_a_refusal_of_an_unknown_code_is_one() -> None:
    with pytest.raises(ConnectionRefusedByPeer) as caught:
        feed(in_state("EXTENDED"), helpers.refuse(999, "later"))
    assert caught.value.code == 999


@pytest.mark.parametrize("state", ["AWAIT_VERSION", "AWAIT_IDENT", "LEGACY"])
def test_incompatible_refuses(state: str) -> None:
    with pytest.raises(ConnectionRefusedByPeer) as caught:
        feed(in_state(state), FRAMES["INCOMPATIBLE"])
    assert caught.value.code == frames.RefuseCode.INCOMPATIBLE


@pytest.mark.requirement("P-15", "positive")
@pytest.mark.requirement("P-15", "negative")
def test_only_a_netcomm_peer_is_told_why() -> None:
    for state, told in (
        ("AWAIT_VERSION", []),
        ("AWAIT_IDENT", []),
        ("LEGACY", []),
        ("AWAIT_IDENT after HELLO", [(helpers.REFUSE, b"\0\1why")]),
        ("EXTENDED", [(helpers.REFUSE, b"\0\1why")]),
    ):
        session = in_state(state)
        session.take_output()
        session.refuse(frames.RefuseCode.DUPLICATE_IDENT, "why")
        assert said(session) == told, state


# -- What is said -------------------------------------------------------------------------------------------------


def test_begin_and_ack_go_out_as_packets_in_order() -> None:
    session = admitted()
    session.begin(frames.Begin(Stream.VOLATILE, 7, 1, 2))
    session.acknowledge(frames.Ack(Stream.VOLATILE, 7, 9, 12))
    assert b"".join(session.take_output()) == helpers.begin(7, 1, 2) + helpers.ack(9, epoch=7, received=12)


@pytest.mark.requirement("P-46", "positive")
@pytest.mark.requirement("P-46", "negative")
@pytest.mark.parametrize("legacy", [True, False])
def test_each_ping_is_answered_by_one_pong(legacy: bool) -> None:
    session = admitted(legacy)
    assert feed(session, helpers.packet(helpers.PING) * 3) == []
    assert said(session) == [(helpers.PONG, b"")] * 3


# -- Legacy acknowledgement ---------------------------------------------------------------------------------------

PONG = helpers.packet(helpers.PONG)


@pytest.mark.requirement("P-55", "positive")
def test_a_pong_acknowledges_what_was_before_its_ping() -> None:
    session = admitted(legacy=True)
    assert session.barrier(ack(3)) == helpers.packet(helpers.PING)
    assert session.take_output() == []  # the caller puts it behind its messages
    session.barrier(ack(5))
    assert feed(session, PONG) == [ack(3)]
    assert feed(session, PONG) == [ack(5)]


@pytest.mark.requirement("P-55", "negative")
def test_an_unexpected_pong_acknowledges_nothing() -> None:
    for legacy in (True, False):
        session = admitted(legacy)
        assert feed(session, PONG * 3) == []
        session.barrier(ack(3))
        assert feed(session, PONG) == [ack(3)]
        assert feed(session, PONG * 3) == []


@pytest.mark.requirement("P-55", "negative")
def test_the_pong_of_a_probe_acknowledges_nothing() -> None:
    session = admitted(legacy=True)
    session.barrier(ack(3))
    session.probe(0, nothing_ahead)
    session.barrier(ack(4))
    assert feed(session, PONG) == [ack(3)]
    assert feed(session, PONG) == []
    assert feed(session, PONG) == [ack(4)]


def test_pongs_are_counted_right_in_any_order_of_probes_and_barriers() -> None:
    chance = random.Random(3)
    session = admitted(legacy=True)
    outstanding: list[frames.Ack | None] = []
    for seq in range(2000):
        match chance.randrange(4):
            case 0:
                session.barrier(ack(seq))
                outstanding.append(ack(seq))
            case 1:
                session.probe(seq, nothing_ahead)
                outstanding.append(None)
            case _:
                count = chance.randint(1, 3)
                expected = [answer for answer in outstanding[:count] if answer is not None]
                del outstanding[:count]
                assert feed(session, PONG * count) == expected


# -- Time ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-24", "negative")
@pytest.mark.parametrize("state", ["AWAIT_VERSION", "AWAIT_IDENT", "IDENTIFIED", "admitted"])
def test_a_handshake_has_10_s_in_all(state: str) -> None:
    session = new_session(now=100)
    assert session.deadline() == 110
    if state != "AWAIT_VERSION":
        feed(session, helpers.version(), now=105)
    if state in ("IDENTIFIED", "admitted"):
        feed(session, helpers.hello() + helpers.ident("b"), now=109)
    if state == "admitted":
        session.admit()
    # Dripping bytes wins no time.
    assert session.deadline() == 110
    assert session.check(109.9, nothing_ahead) is None
    assert "10 s" in str(session.check(110, nothing_ahead))


@pytest.mark.requirement("P-47", "positive")
@pytest.mark.requirement("P-47", "negative")
def test_an_idle_connection_is_pinged_after_15_s_and_closed_10_s_later() -> None:
    session = admitted()
    assert session.deadline() == 15
    assert session.check(14.9, nothing_ahead) is None
    assert said(session) == []
    assert session.check(15, nothing_ahead) is None
    assert said(session) == [(helpers.PING, b"")]
    assert session.deadline() == 25
    assert session.check(24.9, nothing_ahead) is None
    assert said(session) == []
    assert "10 s" in str(session.check(25, nothing_ahead))


@pytest.mark.requirement("P-47", "positive")
def test_any_bytes_count_as_a_sign_of_life() -> None:
    session = admitted()
    session.check(15, nothing_ahead)
    feed(session, helpers.data(0, b"long")[:7], now=24)
    assert session.deadline() == 24 + 15
    assert session.check(25, nothing_ahead) is None


@pytest.mark.requirement("P-47", "positive")
def test_a_connection_lives_as_long_as_what_is_ahead_of_its_ping_is_taken() -> None:
    session, line = admitted(), Line(1000)
    assert session.check(15, line.progress) is None
    for now in range(25, 500, 10):
        assert session.deadline() == now
        line.taken += 1
        assert session.check(now, line.progress) is None
    assert said(session) == [(helpers.PING, b"")]
    helpers.receive(session, PONG, 500)
    assert session.deadline() == 515


@pytest.mark.requirement("P-47", "negative")
def test_a_connection_whose_output_is_no_longer_taken_is_closed_after_twice_the_wait() -> None:
    session, line = admitted(), Line(1000)
    session.check(15, line.progress)
    line.taken = 500  # right after the ping
    assert session.check(25, line.progress) is None
    assert session.deadline() == 35
    assert session.check(34.9, line.progress) is None
    assert "10 s" in str(session.check(35, line.progress))


@pytest.mark.requirement("P-47", "negative")
def test_a_connection_whose_output_is_never_taken_is_closed_after_25_s_whatever_is_written() -> None:
    session, line = admitted(), Line(1000)
    session.check(15, line.progress)
    line.written = 1_000_000
    assert session.check(25, line.progress) is not None


@pytest.mark.requirement("P-47", "negative")
def test_what_is_taken_before_the_ping_goes_out_wins_no_time() -> None:
    session, line = admitted(), Line(1000)
    line.taken = 500
    session.check(15, line.progress)
    assert session.check(25, line.progress) is not None


@pytest.mark.requirement("P-47", "negative")
@pytest.mark.parametrize("ahead", [0, 1000])
def test_once_the_ping_was_taken_it_is_answered_within_the_wait_though_later_output_is_taken(ahead: int) -> None:
    session, line = admitted(), Line(ahead)
    session.check(15, line.progress)
    now = 25
    if ahead:
        line.written, line.taken = 2000, 1000
        assert session.check(25, line.progress) is None
        now = 35
    # The system of a process that hangs takes what comes, as long as there is room.
    line.written, line.taken = 3000, 2500
    assert session.check(now, line.progress) is not None


def test_each_ping_has_its_own_output_ahead() -> None:
    session, line = admitted(), Line(1000)
    session.check(15, line.progress)
    helpers.receive(session, PONG, 20)
    line.written, line.taken = 2000, 1000
    assert session.check(35, line.progress) is None  # and the second ping goes out
    for now in (45, 55):
        line.taken += 1
        assert session.check(now, line.progress) is None
    assert session.check(65, line.progress) is not None


def test_nobody_asks_how_far_the_output_has_come_before_that_matters() -> None:
    session, line = admitted(), Line(1000)
    for now in range(1, 15):
        session.check(now, line.progress)
        session.begin(frames.Begin(Stream.VOLATILE, 7, 1, 2))
        session.take_output()
        session.deadline()
    assert line.asked == 0
    session.check(15, line.progress)
    session.check(24.9, line.progress)
    assert line.asked == 1


def test_a_connection_lives_as_long_as_its_pings_are_answered() -> None:
    session = admitted()
    pings = 0
    now = 0.0
    while now < 3600:
        now = session.deadline()
        assert session.check(now, nothing_ahead) is None
        for kind, _ in said(session):
            assert kind == helpers.PING
            pings += 1
            now += 9.9
            assert feed(session, PONG, now=now) == []
    assert 3600 / 25 - 1 < pings < 3600 / 24.8 + 1


def test_the_times_are_those_of_the_limits() -> None:
    limits = Limits(handshake_s=3, keepalive_idle_s=7, keepalive_wait_s=2)
    assert new_session(limits, now=1).deadline() == 4
    session = admitted(limits=limits)
    assert session.deadline() == 7
    session.check(7, nothing_ahead)
    assert session.deadline() == 9


def test_a_probe_is_answered_within_the_wait_or_the_connection_is_closed() -> None:
    session = admitted()
    session.probe(3, nothing_ahead)
    assert said(session) == [(helpers.PING, b"")]
    assert session.deadline() == 13
    session.probe(8, nothing_ahead)  # wins no time
    assert session.deadline() == 13
    assert session.check(13, nothing_ahead) is not None
    helpers.receive(session, PONG, 12)
    assert session.deadline() == 27


@pytest.mark.parametrize("legacy", [False, True])
def test_a_session_says_when_it_is_to_be_looked_at_sooner_than_it_has_said(legacy: bool) -> None:
    watched: list[float] = []
    session = admitted(legacy, established=False, watched=watched)
    assert watched.pop() == session.deadline() == 10
    session.wait_for_refusal(3)
    assert watched.pop() == session.deadline() == 3 + 0.1
    session.establish()
    assert watched.pop() == session.deadline() == 15
    helpers.receive(session, PONG, 4)  # what is later is found when the time has come
    assert watched == []
    session.check(15, nothing_ahead)
    assert watched.pop() == session.deadline() == 19
    session.check(19, nothing_ahead)
    assert watched.pop() == session.deadline() == 29
    helpers.receive(session, PONG, 20)
    assert watched.pop() == session.deadline() == 35
    session.probe(21, nothing_ahead)
    assert watched.pop() == session.deadline() == 31
    session.excuse(22)
    assert watched.pop() == session.deadline() == 37


def test_silence_that_is_excused_counts_from_then_on() -> None:
    # Nothing was read meanwhile.
    session = admitted()
    session.check(15, nothing_ahead)
    session.excuse(24)
    assert session.deadline() == 24 + 15
    assert session.check(25, nothing_ahead) is None
    assert session.check(39, nothing_ahead) is None
    assert session.deadline() == 39 + 10


def test_the_moment_in_which_a_legacy_peer_may_refuse_is_a_deadline_of_its_own() -> None:
    session = admitted(legacy=True, established=False)
    assert session.deadline() == 10
    session.wait_for_refusal(3)
    assert session.deadline() == 3 + 0.1
    session.establish()
    assert session.deadline() == 15
