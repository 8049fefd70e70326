"""`netcomm.testing.conformance`: the page's vectors of behaviour, played with netcomm as it is, and with defects in it.

Each defect is one way to get the protocol wrong. A vector has to find it: so the vectors find it in other
implementations, too.
"""

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest

from netcomm import Limits
from netcomm.protocol import decode, encode
from netcomm.testing import conformance, vectors
from netcomm.testing.conformance import Line, Packet, Player, Wrong
from netcomm.testing.vectors import Step, Vector
from tests.echoes import TakeAll, send_back
from tests.simulation.mutations import Mutation
from tests.unit import helpers
from tests.unit.helpers import End, Host, Net
from tests.unit.test_protocol_vectors import interrupted_conversation

PAGE = conformance.PAGE.read_text(encoding="utf-8")
VECTORS = list(conformance.all_vectors(PAGE))
ECHO_VECTORS = conformance.echo_vectors(PAGE)


class EndLine:
    """A connection to a host of the unit tests: it answers at once, or not at all."""

    def __init__(self, net: Net, end: End) -> None:
        self._net = net
        self._end = end
        self._heard: deque[Packet] = deque()

    def say(self, data: bytes) -> None:
        self._heard += self._net.exchange(self._end, data)

    def hear(self) -> Packet | None:
        self._heard += self._net.exchange(self._end)
        if self._heard:
            return self._heard.popleft()
        if self._end.gone:
            return None
        raise Wrong("nothing comes")

    def close(self) -> None:
        self._end.lose()


class Echo(Host):
    """Sends each message back to its sender."""

    def hand_over(self, count: int = 1 << 30) -> None:
        while self.queue:
            first = self.queue[0]
            super().hand_over(len(first.items) - first.handled)
            send_back(self.node, first, self.net.now)


def dial_netcomm(kind: type[Host]) -> Callable[[], Line]:
    net = Net()
    host = kind(net, "niess", Limits(), 1)
    host.node.attach(TakeAll(echoes=kind is Echo), net.now)
    net.hosts.append(host)
    host.has_faults = True
    return lambda: EndLine(net, net.raw(host))


def complaint(vector: Vector) -> str | None:
    """What is wrong with netcomm's answers; a defect may make it raise, too."""
    echoes = vector in ECHO_VECTORS
    player = Player(dial_netcomm(Echo if echoes else Host), random.Random(1).randbytes, echoes)
    try:
        player.play(vector.steps)
    except Exception as error:
        return str(error) or repr(error)
    return None


@pytest.mark.requirement("P-62", "positive")
@pytest.mark.requirement("P-62", "negative")
@pytest.mark.parametrize("vector", VECTORS + ECHO_VECTORS, ids=lambda vector: vector.name)
def test_netcomm_answers_each_vector_as_the_page_says(vector: Vector) -> None:
    assert complaint(vector) is None


def test_each_vector_names_a_requirement_and_has_an_end() -> None:
    vectors = VECTORS + ECHO_VECTORS
    assert len({vector.name for vector in vectors}) == len(vectors)
    for vector in vectors:
        number = vector.name[1:5]
        assert f"**[{number}]**" in PAGE, vector.name
        assert vector.steps[-1].kind in ("open", "closed"), vector.name


# -- Defects ------------------------------------------------------------------------------------------------------

_INBOX, _OUTBOX, _SESSION = "protocol.inbox:Inbox", "protocol.outbox:Outbox", "protocol.session:Session"
DEFECTS = [
    Mutation("a limit that is not kept", "protocol.decode:Reader._check_size", "size > self._limit", "False"),
    Mutation(
        "small frames for ever", "protocol.decode:Reader._parse_other", "self._limit = self._max_frame_bytes", "pass"
    ),
    Mutation(
        "4,096 bytes are too many",
        "protocol.decode:Reader.__init__",
        "handshake_frame_bytes",
        "handshake_frame_bytes - 1",
    ),
    Mutation("unknown types", "protocol.decode:Reader._parse_other", "return  # as", "raise RemoteProtocolError  # as"),
    Mutation("idents of 256 bytes", "protocol.decode:_parse_ident", "<= MAX_IDENT_BYTES:", "<= 256:"),
    Mutation("idents of 254 bytes", "protocol.decode:_parse_ident", "<= MAX_IDENT_BYTES:", "< MAX_IDENT_BYTES:"),
    Mutation("no later HELLO", "protocol.decode:_parse_hello", "frame.version < 1", "frame.version != 1"),
    Mutation("HELLO of 47 bytes", "protocol.decode:_parse_hello", "payload[: HELLO.size]", "payload"),
    Mutation("HELLO of version 0", "protocol.decode:_parse_hello", "frame.version < 1", "False"),
    Mutation("a max frame of 32", "protocol.decode:_parse_hello", "frame.max_frame_bytes < DATA_OVERHEAD", "False"),
    Mutation("33 bytes are too few", "protocol.decode:_parse_hello", "bytes < DATA_OVERHEAD", "bytes <= DATA_OVERHEAD"),
    Mutation("no window", "protocol.decode:_parse_hello", "frame.window_bytes == 0", "False"),
    Mutation("any stream", "protocol.decode:_parse_stream", "stream is None", "stream is None and number > 3"),
    Mutation("sent below first seq", "protocol.decode:_parse_begin", "sent_below < first_seq", "False"),
    Mutation("more acknowledged than came", "protocol.decode:_parse_ack", "received_seq < next_seq", "False"),
    Mutation("other flags", "protocol.decode:_last_data", "flags & STREAM_FLAGS", "flags"),
    Mutation("streams 0 and 1 alone", "protocol.decode:_last_data", "flags & STREAM_FLAGS", "flags & 1"),
    Mutation("a batch without end", "protocol.decode:Reader._parse_batch", "start + sum(sizes) != end", "False"),
    Mutation("an empty batch", "protocol.decode:Reader._parse_batch", "not count or", ""),
    Mutation("any VERSION", f"{_SESSION}._receive_version", "number != frames.PROTOCOL_VERSION", "False"),
    Mutation(
        "no word to another VERSION", f"{_SESSION}._receive_version", "self._output.append(encode.INCOMPATIBLE)", ""
    ),
    Mutation(
        "a process that comes again",
        "protocol.sessions:Sessions._identify",
        "None if known is None else known.ended_boot_id",
        "None",
    ),
    Mutation(
        "GOODBYE without an end",
        "protocol.sessions:Sessions._end_process",
        'self._close(connection, "the other side has ended", now)',
        "",
    ),
    Mutation("a second HELLO", f"{_SESSION}.next_event", "self.remote is not None", "False"),
    Mutation(
        "a second IDENT",
        f"{_SESSION}.next_event",
        "kind not in self._allowed",
        "kind not in self._allowed | {frames.Ident}",
    ),
    Mutation("any frame in any state", f"{_SESSION}.next_event", "kind not in self._allowed", "False"),
    Mutation("no PONG", f"{_SESSION}.next_event", "self._output.append(encode.PONG)", "pass"),
    Mutation("everybody is a netcomm peer", f"{_SESSION}.admit", "self.remote is None", "False"),
    Mutation("no REFUSE", f"{_SESSION}.refuse", "self.remote is not None", "False"),
    Mutation("REFUSE 2", f"{_SESSION}.refuse", "encode.refuse(code,", "encode.refuse(frames.RefuseCode(2),"),
    Mutation("REFUSE is passed over", f"{_SESSION}.next_event", "raise ConnectionRefusedByPeer(text, code)", "pass"),
    Mutation("every epoch begins at 0", f"{_INBOX}.begin", "frame.first_seq, frame.first_seq", "0, 0"),
    Mutation("what is received is forgotten", f"{_INBOX}.begin", "known.epoch != frame.epoch", "True"),
    Mutation("one epoch for ever", f"{_INBOX}.begin", "known.epoch != frame.epoch", "False"),
    Mutation("a second BEGIN", f"{_INBOX}.begin", "if known.begun:", "if False:"),
    Mutation("no answer to BEGIN", f"{_INBOX}.begin", "known.begun = known.ack_due = True", "known.begun = True"),
    Mutation("the position stays behind", f"{_INBOX}.begin", "known.next_seq < frame.first_seq", "False"),
    Mutation("used before BEGIN", f"{_INBOX}._begun", "state is None or not state.begun", "state is None"),
    Mutation("duplicates in silence", f"{_INBOX}._without_duplicates", "state.ack_due = True", "pass"),
    Mutation("duplicates taken", f"{_INBOX}.accept", "if seq != next_seq:", "if seq > next_seq:"),
    Mutation("gaps", f"{_INBOX}._without_duplicates", "if seq > next_seq:", "if False:"),
    Mutation("back by SKIP", f"{_INBOX}.skip", "next_seq <= state.next_seq", "False"),
    Mutation("SKIP without effect", f"{_INBOX}.skip", "next_seq <= state.next_seq", "True"),
    Mutation("the last seq", f"{_INBOX}.accept", "next_seq > _MAX_SEQ", "False"),
    Mutation("never acknowledged", f"{_INBOX}.acknowledge", "state.ack_due = True", "pass"),
    Mutation("an ACK of what was never sent", f"{_OUTBOX}.acknowledge", "ack.received_seq > state.sent_below", "False"),
    Mutation("an ACK of any epoch", f"{_OUTBOX}.acknowledge", "ack.epoch != state.epoch", "False"),
    Mutation("its own connector", "protocol.admission:_same_connector", "newcomer.connector == 0", "True"),
    Mutation(
        "the same side is the same connector", "protocol.admission:_same_connector", "or newcomer.connector == 0", ""
    ),
    Mutation(
        "the last one wins",
        "protocol.sessions:Sessions._identify",
        "self._challenge(connection,",
        "self._replace(connection,",
    ),
    Mutation(
        "the second of those that wait wins",
        "protocol.sessions:Sessions._identify",
        "self._refuse_duplicate(connection,",
        "self._challenge(connection,",
    ),
    Mutation("its own ident", "protocol.sessions:Sessions._identify", "ident == self._ident", "False"),
]
# In what is said first by netcomm: the conversation shows them.
SPOKEN_DEFECTS = [
    Mutation("resent in a BATCH", "protocol.encode:data", "0 if entry.resent else ", ""),
    Mutation("no SKIP", "protocol.encode:data", "if seq > next_seq:", "if False:"),
    Mutation("all sent again", f"{_OUTBOX}.acknowledge", "(state, ack.received_seq)", "(state)"),
    Mutation("sent below first seq", "protocol.out_stream:OutStream.begin", "first, self.sent_below", "first, first"),
    Mutation("nothing marked", f"{_INBOX}.begin", "frame.first_seq, frame.sent_below", "frame.first_seq, 0"),
    Mutation("each uuid is the first", "protocol.encode:_add_run", "batch.number + start", "batch.number"),
    Mutation("silence", f"{_SESSION}.check", "self.probe(now, progress)", "pass"),
    Mutation("received is handed over", f"{_INBOX}.due_acks", "state.handed_seq", "state.next_seq"),
]


# In what an echo shows.
ECHO_DEFECTS = [
    Mutation("no SKIP", "protocol.encode:data", "if seq > next_seq:", "if False:"),
    Mutation("all sent again", f"{_OUTBOX}.acknowledge", "(state, ack.received_seq)", "(state)"),
    Mutation("sent below first seq", "protocol.out_stream:OutStream.begin", "first, self.sent_below", "first, first"),
    Mutation("any ACK settles", f"{_OUTBOX}.acknowledge", "ack.epoch != state.epoch", "False"),
    Mutation("no window", f"{_OUTBOX}._make_receiver", "min(window_bytes, self._limits.window_bytes)", "1 << 30"),
    Mutation("any size", f"{_OUTBOX}.connect", "max_packet_bytes, legacy", "1 << 30, legacy"),
]


@contextlib.contextmanager
def planted(defect: Mutation) -> Iterator[None]:
    """Let netcomm be wrong for a while, the functions in the table of parsers included."""
    with defect.planted():
        parsers = {kind: vars(decode).get(parser.__name__, parser) for kind, parser in decode._PARSERS.items()}
        with patch.dict(decode._PARSERS, parsers):
            yield


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_vector_finds_each_defect(defect: Mutation) -> None:
    with planted(defect):
        assert any(complaint(vector) for vector in VECTORS)


@pytest.mark.parametrize("defect", ECHO_DEFECTS, ids=lambda defect: defect.name)
def test_an_echo_finds_each_defect(defect: Mutation) -> None:
    with planted(defect):
        assert any(complaint(vector) for vector in ECHO_VECTORS)


@pytest.mark.parametrize("defect", SPOKEN_DEFECTS, ids=lambda defect: defect.name)
def test_the_conversation_with_interruptions_finds_each_defect(defect: Mutation) -> None:
    with planted(defect):
        found = None
        with contextlib.suppress(AssertionError):
            found = interrupted_conversation() or "nothing"
        assert found != "nothing"


# -- The page -----------------------------------------------------------------------------------------------------


def test_a_line_that_is_no_step_is_an_error() -> None:
    for line in ("    shouts 00", "  says 00"):
        with pytest.raises(ValueError, match="not a step"):
            vectors.behaviour(f"```vectors-behaviour\n[P-01] one\n{line}\n```")
    with pytest.raises(ValueError, match="not a step"):
        vectors.behaviour("```vectors-behaviour\n    open\n```")


def test_steps_are_read_and_bytes_repeated() -> None:
    page = "```vectors-behaviour\n[P-01] one\n    says VERSION 61*3 62\n    closed\n```"
    steps = (Step("says", ("VERSION", "61*3", "62")), Step("closed", ()))
    assert vectors.behaviour(page) == [Vector("[P-01] one", steps)]
    assert vectors.unhex("61*3 62") == b"aaab"


def test_any_byte_may_stand_where_the_page_has_question_marks() -> None:
    pattern = vectors.pattern("61 ??*2 2e")
    assert [bool(pattern.fullmatch(packet)) for packet in (b"a\n\0.", b"a\n\0x", b"a\n.", b"b\n\0.")] == [True] + [
        False
    ] * 3


# -- The tester -----------------------------------------------------------------------------------------------------


class Script:
    """A connection to an implementation that says what the test has written down."""

    def __init__(self, *said: bytes) -> None:
        self._packets = helpers.packets(b"".join(said))

    def say(self, data: bytes) -> None:
        pass

    def hear(self) -> Packet | None:
        return self._packets.pop(0) if self._packets else None

    def close(self) -> None:
        pass


def hear_two_messages(*said: bytes) -> None:
    """Look for the messages "a" and "b" in what an implementation has said."""
    first = Step("hears", ("00000022", "82", "SEQ", "??*8", "ff*8", "ffffffff", "00000000", "61"))
    second = Step("hears", ("00000022", "82", "SEQ+1", "??*8", "00*8", "ffffffff", "00000000", "62"))
    Player(lambda: Script(*said), echoes=True).play([first, second])


def test_a_batch_that_is_heard_counts_as_its_messages() -> None:
    uuid = b"\x20" * 8 + b"\xff" * 8
    batch = helpers.batch(5, b"a", b"b", uuid=uuid)
    hear_two_messages(helpers.begin(first=5, sent_below=5), batch)
    with pytest.raises(Wrong, match="sent before, on an earlier connection"):
        hear_two_messages(helpers.begin(first=5, sent_below=6), batch)
    for wrong in (helpers.packet(0x86, batch[5:] + b"x"), helpers.batch(5, uuid=uuid)):
        with pytest.raises(Wrong, match="do not add up"):
            hear_two_messages(helpers.begin(first=5, sent_below=5), wrong)


def test_another_begin_than_the_one_expected_is_wrong() -> None:
    step = Step("hears", ("0000001a", "81", "00", "EPOCH", "SEQ", "0000000000000009"))
    Player(lambda: Script(helpers.begin(first=5, sent_below=9))).play([step])
    with pytest.raises(
        Wrong, match=r"^step 1, hears 0000001a 81 00 EPOCH SEQ 0000000000000009: BEGIN .* instead of BEGIN"
    ):
        Player(lambda: Script(helpers.begin(first=5, sent_below=8))).play([step])


def test_a_probe_that_does_not_come_is_wrong() -> None:
    Player(lambda: Script(encode.PING)).play([Step("probed", ())])
    with pytest.raises(Wrong, match="the connection is closed before a PING"):
        Player(lambda: Script(encode.PONG)).play([Step("probed", ())])
