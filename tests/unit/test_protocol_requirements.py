"""Requirements of docs/protocol.md as one reads them there, where no other test shows them: one peer, bytes by hand."""

import sys
import unicodedata

import pytest

from netcomm.errors import ConnectionRefusedByPeer
from netcomm.limits import Limits
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import DeliveryState, Stream
from netcomm.protocol import decode, encode, events, frames
from netcomm.protocol.frames import Begin
from netcomm.protocol.outbox import Outbox
from tests.unit import helpers
from tests.unit.helpers import End, Host, Net, packets

DELIVERED = DeliveryState.DELIVERED
EXPIRED = DeliveryState.EXPIRED
PING = helpers.packet(helpers.PING)
PONG = helpers.packet(helpers.PONG)


def kinds(said: list[tuple[int, bytes]]) -> list[int]:
    return [kind for kind, _ in said]


def established(net: Net, host: Host, name: str = "b", **fields: int | bytes) -> End:
    """A connection to a netcomm peer, who has answered the BEGIN of the volatile stream."""
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake(name, **fields) + helpers.begin())
    epoch = next(int.from_bytes(payload[1:9]) for kind, payload in said if kind == helpers.BEGIN)
    net.exchange(end, helpers.ack(0, epoch=epoch))
    return end


def legacy(net: Net, host: Host, name: str = "b") -> End:
    """A connection to a legacy peer, established."""
    end = net.raw(host)
    net.exchange(end, helpers.legacy_handshake(name))
    net.advance(0.1)
    return end


# -- Packets and frames -------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-01", "negative")
def test_a_size_that_counts_itself_or_no_type_is_not_understood() -> None:
    version = helpers.version()
    for change, parsed in ((4, []), (0, [frames.Version(1)])):
        size = len(version) - 4 + change
        assert helpers.Reader().feed(size.to_bytes(4) + version[4:]) == (parsed, None)
    assert helpers.Reader().feed((len(version) - 5).to_bytes(4) + version[4:])[1] is not None


@pytest.mark.requirement("P-04", "positive")
@pytest.mark.requirement("P-04", "negative")
def test_the_limit_is_the_max_frame_of_the_own_hello() -> None:
    net = Net()
    host = net.host("a", Limits(max_frame_bytes=200))
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    (hello,) = [payload for kind, payload in said if kind == helpers.HELLO]
    assert int.from_bytes(hello[38:42]) == 200
    net.exchange(end, helpers.data(0, bytes(200 - 33)))
    assert not end.gone
    net.exchange(end, helpers.data(1, bytes(200 - 32)))
    assert end.gone
    assert [len(payload) for payload in host.payloads()] == [200 - 33]


@pytest.mark.requirement("P-05", "positive")
@pytest.mark.requirement("P-22", "positive")
def test_an_unknown_frame_behind_the_identification_is_passed_over_too() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    unknown = helpers.packet(0x88, b"a later version") + helpers.packet(0x7F)
    said = net.exchange(end, helpers.netcomm_handshake("b") + unknown + helpers.begin() + unknown + helpers.data(0))
    assert kinds(said)[3:] == [helpers.BEGIN, helpers.ACK, helpers.ACK]
    assert not end.gone


@pytest.mark.requirement("P-07", "negative")
@pytest.mark.parametrize(("flags", "stream"), [(0xFFFFFFE0, Stream.VOLATILE), (0xFFFFFFE1, Stream.DURABLE)])
def test_flags_that_nobody_has_defined_have_no_meaning(flags: int, stream: Stream) -> None:
    net = Net()
    host = net.host("a")
    end = established(net, host)
    net.exchange(end, helpers.begin(9, stream=1))
    net.exchange(end, helpers.data(0, b"x", flags=flags) + helpers.data(1, b"y", flags=int(stream)))
    assert not end.gone
    assert host.payloads() == [b"x", b"y"]
    assert {event.stream for event in host.happened(events.Received)} == {stream}  # type: ignore[attr-defined]
    net.exchange(legacy(net, host, "c"), helpers.message(b"z", flags=flags | 0xFFFFFFFE))
    assert host.payloads() == [b"x", b"y", b"z"]


@pytest.mark.requirement("P-09", "positive")
def test_both_streams_may_be_used_on_one_connection() -> None:
    net = Net()
    host = net.host("a")
    end = established(net, host)
    net.exchange(end, helpers.begin(9, 3, 3, stream=1), helpers.skip(4, stream=1), helpers.data(4, flags=1))
    assert net.exchange(end, helpers.data(0) + helpers.data(5, flags=1)) == packets(
        helpers.ack(1, 0, epoch=7) + helpers.ack(6, 1, epoch=9)
    )


# -- HELLO and REFUSE ---------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-11", "negative")
@pytest.mark.requirement("P-12", "positive")
@pytest.mark.parametrize("version", [1, 2, 0xFFFF])
@pytest.mark.parametrize("more", [b"", bytes(1), b"\xff" * 12, bytes(46), b"\xff" * (4096 - 48)])
def test_a_later_hello_makes_the_same_connection_as_one_of_version_1(version: int, more: bytes) -> None:
    net = Net()
    host = net.host("a")
    delivery = host.send("b", b"x")
    end = net.raw(host)
    hello = helpers.packet(helpers.HELLO, version.to_bytes(2) + helpers.hello()[7:] + more)
    said = net.exchange(end, helpers.version() + hello + helpers.ident("b") + helpers.begin())
    assert kinds(said)[3:] == [helpers.BEGIN, helpers.ACK]
    assert kinds(net.exchange(end, helpers.ack(0))) == [helpers.DATA]
    net.exchange(end, helpers.ack(1))
    assert delivery.state is DELIVERED


@pytest.mark.requirement("P-13", "positive")
def test_the_smallest_frame_and_window_let_an_empty_message_pass() -> None:
    net = Net()
    host = net.host("a")
    deliveries = [host.send("b", b""), host.send("b", b"x"), host.send("b", b"")]
    end = established(net, host, max_frame_bytes=33, window_bytes=1)
    assert [delivery.state for delivery in deliveries] == [
        DeliveryState.SENT,
        DeliveryState.REJECTED,
        DeliveryState.QUEUED,
    ]
    assert kinds(net.exchange(end, helpers.ack(1))) == [helpers.SKIP, helpers.DATA]
    net.exchange(end, helpers.ack(3))
    assert deliveries[2].state is DELIVERED


@pytest.mark.requirement("P-14", "positive")
@pytest.mark.requirement("P-14", "negative")
@pytest.mark.parametrize("max_frame_bytes", [33, 34, 1000])
def test_no_message_is_sent_in_a_packet_over_the_other_sides_max_frame(max_frame_bytes: int) -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    largest = max_frame_bytes - 33
    fitting = [host.send("b", bytes(largest)), host.send_persistent("b", bytes(largest))]
    too_large = [host.send("b", bytes(largest + 1)), host.send_persistent("b", bytes(largest + 1))]
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b", max_frame_bytes=max_frame_bytes) + helpers.begin())
    for kind, payload in said:
        if kind == helpers.BEGIN:
            said = said + net.exchange(end, helpers.ack(0, payload[0], epoch=int.from_bytes(payload[1:9])))
    sizes = [1 + len(payload) for kind, payload in said if kind == helpers.DATA]
    assert sizes == [max_frame_bytes, max_frame_bytes]
    assert {delivery.state for delivery in fitting} == {DeliveryState.SENT}
    assert {delivery.state for delivery in too_large} == {DeliveryState.REJECTED}


@pytest.mark.requirement("P-14", "negative")
@pytest.mark.parametrize("max_frame_bytes", [33, 39, 40])
def test_no_refusal_is_larger_than_the_other_sides_max_frame(max_frame_bytes: int) -> None:
    net = Net()
    end = net.raw(net.host("a"))
    said = net.exchange(end, helpers.netcomm_handshake("b", max_frame_bytes=max_frame_bytes) + helpers.data(0))
    assert end.gone
    text = b"VOLATILE stream used before its BEGIN"
    assert said[-1] == (helpers.REFUSE, b"\0\3" + text[: max_frame_bytes - 3])


@pytest.mark.requirement("P-15", "positive")
@pytest.mark.requirement("P-15", "negative")
@pytest.mark.requirement("P-62", "positive")
@pytest.mark.parametrize(("before", "told"), [(b"", False), (helpers.version(), False), (helpers.hello(), True)])
def test_who_has_said_hello_is_told_of_a_protocol_error_and_nobody_else(before: bytes, told: bool) -> None:
    net = Net()
    end = net.raw(net.host("a"))
    handshake = before if before in (b"", helpers.version()) else helpers.version() + before
    said = net.exchange(end, handshake + bytes(4))
    assert end.gone
    assert kinds(said) == [helpers.VERSION, helpers.HELLO, helpers.IDENT] + [helpers.REFUSE] * told


@pytest.mark.requirement("P-62", "negative")
@pytest.mark.parametrize("seconds", [10.1, 25.1])
def test_who_has_only_let_time_pass_is_not_refused(seconds: float) -> None:
    net = Net()
    end = net.raw(net.host("a"))
    handshake = helpers.netcomm_handshake("b")
    said = net.exchange(end, handshake[:-1] if seconds < 15 else handshake + helpers.begin())
    net.advance(seconds)
    assert end.gone
    assert helpers.REFUSE not in kinds(said + packets(bytes(end.out)))


@pytest.mark.parametrize("category", ["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs", "Mn", "So", "Lo", "Po"])
def test_what_is_not_printable_is_what_unicode_calls_other_or_a_separator(category: str) -> None:
    chars = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) == category]
    for char in chars[:50]:
        assert decode.printable(char) == ("?" if category[0] in "CZ" and char != " " else char)


@pytest.mark.requirement("P-16", "positive")
@pytest.mark.requirement("P-16", "negative")
@pytest.mark.parametrize("size", [0, 1023, 1024, 1025, 5000])
def test_no_text_of_a_refusal_is_longer_than_1024_bytes(size: int) -> None:
    ((_, payload),) = packets(encode.refuse(frames.RefuseCode.PROTOCOL_ERROR, "x" * size))
    assert payload[2:] == b"x" * min(size, 1024)
    reader = helpers.Reader()
    reader.feed(helpers.ident("b"))
    assert reader.feed(helpers.refuse(3, "x" * size)) == ([frames.Refuse(3, "x" * min(size, 1024))], None)


@pytest.mark.requirement("P-17", "positive")
@pytest.mark.requirement("P-17", "negative")
@pytest.mark.requirement("P-58", "positive")
@pytest.mark.parametrize("code", [0, 1, 4, 0xFFFF])
def test_a_refusal_of_any_code_is_logged_told_and_ends_the_connection(
    code: int, caplog: pytest.LogCaptureFixture
) -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.refuse(code, "full moon"))
    assert end.gone
    (failed,) = host.happened(events.ErrorReported)
    assert isinstance(failed, events.ErrorReported)
    assert isinstance(failed.error, ConnectionRefusedByPeer)
    assert failed.error.code == code
    assert "full moon" in str(failed.error)
    assert "full moon" in caplog.text
    # It is no protocol error, and is not answered like one.
    assert helpers.REFUSE not in kinds(said)


# -- Connections --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-18", "negative")
@pytest.mark.requirement("P-23", "positive")
@pytest.mark.requirement("P-23", "negative")
def test_nothing_goes_out_between_the_own_ident_and_the_begins() -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    host.send("b", b"x")
    host.send_persistent("b", b"y")
    end = net.raw(host, connector=1)
    assert kinds(net.exchange(end)) == [helpers.VERSION, helpers.HELLO, helpers.IDENT]
    for byte in helpers.netcomm_handshake("b")[:-1]:
        assert net.exchange(end, bytes([byte])) == []
    net.advance(9)
    assert net.exchange(end) == []
    # What comes with the rest of the IDENT has to be answered, but not before the streams are begun.
    said = net.exchange(end, b"b" + PING + helpers.begin())
    assert kinds(said) == [helpers.BEGIN, helpers.BEGIN, helpers.PONG, helpers.ACK]
    assert {payload[0] for kind, payload in said if kind == helpers.BEGIN} == {0, 1}


@pytest.mark.requirement("P-23", "negative")
@pytest.mark.requirement("P-24", "negative")
def test_who_pings_and_acknowledges_before_the_first_begin_is_answered_and_not_established() -> None:
    net = Net()
    host = net.host("a")
    delivery = host.send("b", b"x")
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + PING + helpers.ack(0))
    assert kinds(said)[3:] == [helpers.BEGIN, helpers.PONG, helpers.DATA]
    net.exchange(end, helpers.ack(1))
    assert delivery.state is DELIVERED
    assert not host.messaging.peers.is_connected("b")
    net.advance(10)
    assert end.gone


@pytest.mark.requirement("P-19", "positive")
def test_version_1_is_no_reason_to_be_incompatible() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    assert helpers.INCOMPATIBLE not in kinds(net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin()))
    assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-21", "negative")
def test_a_hello_behind_the_ident_comes_too_late() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    said = net.exchange(end, helpers.legacy_handshake("b") + helpers.hello() + helpers.begin())
    assert end.gone
    assert kinds(said) == [helpers.VERSION, helpers.HELLO, helpers.IDENT]


@pytest.mark.requirement("P-22", "positive")
@pytest.mark.requirement("P-22", "negative")
def test_what_a_waiting_connection_says_is_acted_on_once_it_is_admitted_and_not_before() -> None:
    net = Net()
    host = net.host("a")
    old = established(net, host)
    delivery = host.send("b", b"x")
    net.exchange(old)
    waiting = net.raw(host)
    behind = helpers.begin(8) + helpers.data(0, b"y") + PING + helpers.ack(1)
    said = net.exchange(waiting, helpers.netcomm_handshake("b", boot=b"2" * 16) + behind)
    assert kinds(said) == [helpers.VERSION, helpers.HELLO, helpers.IDENT]
    net.advance(4.9)
    assert net.exchange(waiting) == []
    assert host.received == []
    assert not delivery.done
    net.advance(0.2)
    assert old.gone
    assert kinds(net.exchange(waiting)) == [helpers.BEGIN, helpers.PONG, helpers.ACK, helpers.ACK]
    assert host.payloads() == [b"y"]
    assert delivery.state is DELIVERED


@pytest.mark.requirement("P-24", "positive")
def test_an_established_connection_outlives_the_time_for_the_handshake() -> None:
    for open_it in (established, legacy):
        net = Net()
        host = net.host("a")
        end = open_it(net, host)
        net.advance(14)
        assert not end.gone
        assert host.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-20", "negative")
@pytest.mark.requirement("P-51", "positive")
def test_another_ident_than_the_own_is_no_reason_to_be_refused() -> None:
    net = Net()
    host = net.host("a")
    for name in ("A", "aa", "a "):
        assert not established(net, host, name).gone
    end = established(net, host)
    net.exchange(end, helpers.ident("a"))
    assert end.gone


# -- Streams ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-25", "positive")
@pytest.mark.requirement("P-25", "negative")
def test_a_process_keeps_its_durable_epoch_and_no_other() -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    epochs: dict[int, list[bytes]] = {0: [], 1: []}
    for process in range(3):
        if process:
            host = net.restart(host)
        for ident in ("b", "c"):
            host.send_persistent(ident, b"x")
            said = net.exchange(net.raw(host), helpers.netcomm_handshake(ident) + helpers.begin())
            for kind, payload in said:
                if kind == helpers.BEGIN:
                    epochs[payload[0]].append(payload[1:9])
    assert len(epochs[0]) == len(epochs[1]) == 6
    assert epochs[1] == epochs[1][:2] * 3
    assert len({*epochs[0], *epochs[1]}) == 6 + 2


@pytest.mark.requirement("P-27", "positive")
@pytest.mark.requirement("P-27", "negative")
@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize(
    ("epoch", "first", "position"),
    [(7, 0, 3), (7, 3, 3), (7, 5, 5), (8, 0, 0), (8, 2, 2)],
    ids=["known", "known, all of it", "known, but behind", "not known", "not known, from 2 on"],
)
def test_each_begin_is_answered_with_the_position_in_its_epoch(
    epoch: int, first: int, position: int, stream: int
) -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin(7, stream=stream))
    net.exchange(end, b"".join(helpers.data(seq, flags=stream) for seq in range(3)))
    for _ in range(2):  # nothing but the BEGIN is a reason to say anything
        end.lose()
        end = net.raw(host)
        net.exchange(end, helpers.netcomm_handshake("b"))
        answer = net.exchange(end, helpers.begin(epoch, first, max(3, first), stream))
        assert answer == packets(helpers.ack(position, stream, epoch=epoch))


@pytest.mark.requirement("P-66", "positive")
@pytest.mark.requirement("P-66", "negative")
@pytest.mark.parametrize("stream", [0, 1])
def test_what_has_arrived_of_the_epoch_before_is_handed_over_first_and_not_acknowledged(stream: int) -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    host.holding = True
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin(7, 0, 1, stream))
    net.exchange(end, helpers.data(0, b"old 0", flags=stream) + helpers.data(1, b"old 1", flags=stream))
    said = net.exchange(end, helpers.begin(8, 5, 5, stream) + helpers.data(5, b"new", flags=stream))
    host.holding = False
    said += net.exchange(end)
    assert host.received == [("b", b"old 0", True), ("b", b"old 1", False), ("b", b"new", False)]
    acks = [payload[1:] for kind, payload in said if kind == helpers.ACK]
    assert {ack[:8] for ack in acks} == {(8).to_bytes(8)}
    assert acks[-1][8:] == (6).to_bytes(8) * 2


@pytest.mark.requirement("P-65", "positive")
@pytest.mark.requirement("P-65", "negative")
def test_the_last_seq_but_one_is_acknowledged_and_the_last_closes_the_connection() -> None:
    last = 2**64 - 1
    for packet in (helpers.data(last), helpers.batch(last, b"")):
        net = Net()
        host = net.host("a")
        end = established(net, host)
        net.exchange(end, helpers.skip(last - 1))
        assert net.exchange(end, helpers.data(last - 1)) == packets(helpers.ack(last, epoch=7))
        assert net.exchange(end, packet)[0][0] == helpers.REFUSE
        assert end.gone


@pytest.mark.requirement("P-32", "positive")
@pytest.mark.requirement("P-32", "negative")
@pytest.mark.parametrize(
    "frame",
    [helpers.data(0), helpers.data(0, flags=1), helpers.skip(1), helpers.skip(1, stream=1)],
    ids=["DATA volatile", "DATA durable", "SKIP volatile", "SKIP durable"],
)
def test_what_was_begun_on_the_last_connection_is_not_begun_on_this_one(frame: bytes) -> None:
    net = Net()
    host = net.host("a")
    both = helpers.begin(9, stream=1) + helpers.begin(7)
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + both, frame)
    assert not end.gone
    end.lose()
    end = net.raw(host)
    only_the_other = helpers.begin(9, stream=1) if frame in (helpers.data(0), helpers.skip(1)) else helpers.begin(7)
    net.exchange(end, helpers.netcomm_handshake("b") + only_the_other)
    assert not end.gone
    net.exchange(end, frame)
    assert end.gone


@pytest.mark.requirement("P-33", "positive")
@pytest.mark.requirement("P-33", "negative")
def test_where_the_first_messages_have_expired_unsent_begin_says_that_they_might_have_been_sent() -> None:
    outbox = Outbox(Limits(), 7)
    for ttl in (1, 1, None):
        outbox.append(helpers.make_delivery(ttl=ttl), 0)
    outbox.expire(1)
    assert outbox.connect(1000, 1000, b"r" * 16) == [Begin(Stream.VOLATILE, 7, 2, 2)]


@pytest.mark.requirement("P-38", "positive")
@pytest.mark.requirement("P-38", "negative")
@pytest.mark.parametrize(("received", "gone"), [(0, False), (2, False), (3, True)])
def test_an_ack_may_name_what_was_sent_and_no_more(received: int, gone: bool) -> None:
    net = Net()
    host = net.host("a")
    end = established(net, host)
    for _ in range(2):
        host.send("b", b"x")
    net.exchange(end)
    net.exchange(end, helpers.ack(0, received=received))
    assert end.gone is gone


@pytest.mark.requirement("P-64", "positive")
@pytest.mark.requirement("P-64", "negative")
def test_an_ack_that_goes_back_settles_nothing_and_closes_nothing() -> None:
    net = Net()
    host = net.host("a")
    deliveries = [host.send("b", b"x") for _ in range(3)]
    end = established(net, host)
    net.exchange(end, helpers.ack(2, received=3))
    for ack in (helpers.ack(1, received=3), helpers.ack(2, received=2), helpers.ack(0)):
        assert net.exchange(end, ack) == []
    assert [delivery.done for delivery in deliveries] == [True, True, False]
    end.lose()
    # On the next connection, an answer below the first seq: the receiver may be an old backup of itself.
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    assert (helpers.BEGIN, b"\0" + helpers.FIRST_EPOCH.to_bytes(8) + (2).to_bytes(8) + (3).to_bytes(8)) in said
    assert net.exchange(end, helpers.ack(1)) == packets(helpers.skip(2) + helpers.data(2, b"x"))
    net.exchange(end, helpers.ack(3))
    assert deliveries[2].done
    assert not end.gone


@pytest.mark.requirement("P-39", "negative")
@pytest.mark.parametrize("epoch", [helpers.FIRST_EPOCH, helpers.FIRST_EPOCH + 1])
def test_an_ack_of_more_than_has_arrived_closes_the_connection_whatever_its_epoch(epoch: int) -> None:
    net = Net()
    end = established(net, net.host("a"))
    net.exchange(end, helpers.ack(1, received=0, epoch=epoch))
    assert end.gone


@pytest.mark.requirement("P-39", "positive")
@pytest.mark.requirement("P-39", "negative")
def test_an_ack_of_another_epoch_settles_nothing_and_is_no_answer_to_begin() -> None:
    net = Net()
    host = net.host("a")
    delivery = host.send("b", b"x")
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    other = helpers.FIRST_EPOCH + 1
    assert net.exchange(end, helpers.ack(0, epoch=other), helpers.ack(9, epoch=other)) == []
    assert kinds(net.exchange(end, helpers.ack(0))) == [helpers.DATA]
    net.exchange(end, helpers.ack(1, epoch=other))
    assert not delivery.done
    assert not end.gone


@pytest.mark.requirement("P-40", "positive")
@pytest.mark.requirement("P-40", "negative")
def test_nothing_durable_is_sent_between_an_answer_that_is_ahead_and_the_new_epoch() -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    host.send_persistent("b", b"0")

    def connect() -> tuple[End, int]:
        end = net.raw(host)
        said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
        return end, next(int.from_bytes(its[1:9]) for kind, its in said if kind == helpers.BEGIN and its[0] == 1)

    end, old = connect()
    assert kinds(net.exchange(end, helpers.ack(0, 1, epoch=old))) == [helpers.DATA]
    end.lose()
    host.storing = False
    host.send_persistent("b", b"1")
    end, again = connect()
    assert again == old
    assert net.exchange(end, helpers.ack(9, 1, epoch=old)) == []
    host.storing = True
    ((kind, begin),) = net.exchange(end)
    new = int.from_bytes(begin[1:9])
    assert (kind, begin[0], begin[9:]) == (helpers.BEGIN, 1, (0).to_bytes(8) + (2).to_bytes(8))
    assert new != old
    said = net.exchange(end, helpers.ack(0, 1, epoch=new))
    assert [(kind, payload[32:]) for kind, payload in said] == [(helpers.DATA, b"0"), (helpers.DATA, b"1")]


@pytest.mark.requirement("P-29", "negative")
@pytest.mark.requirement("P-41", "positive")
@pytest.mark.requirement("P-41", "negative")
def test_a_skip_goes_before_what_follows_a_message_that_is_rejected_or_has_expired_and_nothing_else() -> None:
    net = Net()
    host = net.host("a")
    end = net.raw(host)
    host.send("b", b"0")
    host.send("b", bytes(100))  # rejected
    host.send("b", b"2")
    host.send("b", b"3")
    host.send("b", b"4", ttl=1)
    host.send("b", b"5")
    net.advance(2)
    net.exchange(end, helpers.netcomm_handshake("b", max_frame_bytes=50) + helpers.begin())
    said = net.exchange(end, helpers.ack(0))
    places = [(kind, int.from_bytes(payload[1:9] if kind == helpers.SKIP else payload[:8])) for kind, payload in said]
    data, skip = helpers.DATA, helpers.SKIP
    assert places == [(data, 0), (skip, 2), (data, 2), (data, 3), (skip, 5), (data, 5)]


@pytest.mark.requirement("P-63", "positive")
@pytest.mark.requirement("P-63", "negative")
@pytest.mark.parametrize("arrived", [0, 2, 3])
def test_what_was_skipped_counts_as_sent_where_the_connection_breaks_behind_the_skip(arrived: int) -> None:
    net = Net()
    host = net.host("a")
    expired = [host.send("b", b"0", ttl=1), host.send("b", b"1", ttl=1)]
    delivery = host.send("b", b"2")
    net.advance(2)
    end = net.raw(host)
    net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    assert net.exchange(end, helpers.ack(0)) == packets(helpers.skip(2) + helpers.data(2, b"2"))
    end.lose()
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    (begin,) = [payload for kind, payload in said if kind == helpers.BEGIN]
    assert int.from_bytes(begin[17:]) >= 2
    said = net.exchange(end, helpers.ack(arrived))
    assert not end.gone
    assert [payload[32:] for kind, payload in said if kind == helpers.DATA] == ([] if arrived == 3 else [b"2"])
    net.exchange(end, helpers.ack(3))
    assert delivery.state is DELIVERED
    assert {each.state for each in expired} == {EXPIRED}


@pytest.mark.requirement("P-42", "positive")
@pytest.mark.requirement("P-42", "negative")
def test_a_skip_moves_the_receiver_ahead_and_never_back() -> None:
    net = Net()
    host = net.host("a")
    end = established(net, host)
    net.exchange(end, helpers.skip(5), helpers.data(5, b"5"))
    for seq in (0, 5, 6):
        net.exchange(end, helpers.skip(seq), helpers.data(5, b"again"))
    net.exchange(end, helpers.data(6, b"6"))
    assert not end.gone
    assert host.payloads() == [b"5", b"6"]


@pytest.mark.requirement("P-44", "positive")
@pytest.mark.requirement("P-44", "negative")
@pytest.mark.parametrize("restart", [False, True])
def test_the_ttl_that_is_told_is_what_downtime_has_left_of_it(restart: bool) -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    host.send_persistent("b", b"short", ttl=4)
    host.send_persistent("b", b"long", ttl=10)
    net.advance(3)
    if restart:
        host = net.restart(host)
    net.advance(3.5)
    end = net.raw(host)
    said = net.exchange(end, helpers.netcomm_handshake("b") + helpers.begin())
    (begin,) = [payload for kind, payload in said if kind == helpers.BEGIN and payload[0] == 1]
    said = net.exchange(end, helpers.ack(0, 1, epoch=int.from_bytes(begin[1:9])))
    told = [(payload[32:], int.from_bytes(payload[24:28])) for kind, payload in said if kind == helpers.DATA]
    assert told == [(b"long", 4)]  # 3.5 s, rounded up


@pytest.mark.requirement("P-45", "positive")
@pytest.mark.requirement("P-45", "negative")
@pytest.mark.parametrize("data_size", [0, 63])
def test_each_stream_has_the_receivers_window_for_itself(data_size: int) -> None:
    net = Net()
    host, other = net.host("a", storage=MemoryQueueStorage()), net.host("b", Limits(window_bytes=1000))
    other.holding = True
    for _ in range(40):
        host.send("b", bytes(data_size))
        host.send_persistent("b", bytes(data_size))
    net.connect(host, other)
    net.settle()
    fitting = 1000 // (37 + data_size)
    assert host.messaging.peers.stats()["b"].in_flight == 2 * fitting
    other.hand_over(1)
    net.settle()
    assert host.messaging.peers.stats()["b"].in_flight == 2 * fitting
    assert host.messaging.peers.stats()["b"].queued == 80 - 1


# -- Who replaces whom --------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-48", "positive")
@pytest.mark.requirement("P-48", "negative")
def test_who_is_replaced_by_its_own_connector_is_not_refused_and_who_waits_is() -> None:
    net = Net()
    host = net.host("a")
    first = established(net, host, boot=b"1" * 16, connector=1)
    waiting, newer = net.raw(host), net.raw(host)
    net.exchange(waiting, helpers.netcomm_handshake("b", boot=b"2" * 16, connector=1))
    net.exchange(first)
    net.exchange(newer, helpers.netcomm_handshake("b", boot=b"1" * 16, connector=1) + helpers.begin())
    assert first.gone
    assert waiting.gone
    assert not newer.gone
    assert helpers.REFUSE not in kinds(packets(bytes(first.out)))
    assert kinds(packets(bytes(waiting.out))) == [helpers.REFUSE]


@pytest.mark.requirement("P-49", "positive")
@pytest.mark.requirement("P-49", "negative")
@pytest.mark.parametrize("sign", [PONG, helpers.message(b"x"), b"\0"], ids=["PONG", "MESSAGE", "a part of a packet"])
@pytest.mark.parametrize("legacy_first", [True, False])
def test_a_legacy_connection_replaces_none_that_lives(sign: bytes, legacy_first: bool) -> None:
    net = Net()
    host = net.host("a")
    first = legacy(net, host) if legacy_first else established(net, host)
    second = net.raw(host)
    net.exchange(second, helpers.legacy_handshake("b"))
    assert kinds(net.exchange(first)) == [helpers.PING]
    net.advance(4.9)
    assert not first.gone
    assert not second.gone
    net.exchange(first, sign)
    assert second.gone


@pytest.mark.requirement("P-49", "positive")
@pytest.mark.requirement("P-53", "positive")
@pytest.mark.requirement("P-53", "negative")
def test_a_legacy_peer_that_may_still_refuse_is_probed_only_when_it_has_not() -> None:
    net = Net()
    host = net.host("a")
    first, second = net.raw(host, connector=1), net.raw(host, connector=2)
    net.exchange(first, helpers.legacy_handshake("b"))
    net.exchange(second, helpers.legacy_handshake("b"))
    net.advance(0.09)
    assert net.exchange(first) == []
    net.advance(0.02)
    assert net.exchange(first) == [(helpers.PING, b"")]
    assert not second.gone
    net.advance(4.8)
    assert not first.gone
    net.advance(0.1)
    assert first.gone
    assert not second.gone


@pytest.mark.requirement("P-49", "positive")
@pytest.mark.requirement("P-50", "positive")
def test_who_has_lost_by_its_boot_id_is_refused_each_time_and_never_established() -> None:
    net = Net()
    lower, higher = net.host("a"), net.host("b")
    kept = net.connect(higher, lower)
    net.settle()
    for _ in range(3):
        again = net.connect(lower, higher)
        net.settle()
        assert again.one.gone
        assert again.other.gone
    assert not kept.one.gone
    for host in (lower, higher):
        assert len(host.happened(events.Connected)) == 1  # else the connector's delay would begin anew
    kept.cut()
    net.connect(lower, higher)
    net.settle()
    assert lower.messaging.peers.is_connected("b")


@pytest.mark.requirement("P-52", "positive")
@pytest.mark.requirement("P-52", "negative")
def test_a_third_connection_is_refused_even_if_the_second_is_from_its_own_connector() -> None:
    net = Net()
    host = net.host("a")
    established(net, host, boot=b"1" * 16)
    second, third = net.raw(host), net.raw(host)
    net.exchange(second, helpers.netcomm_handshake("b", boot=b"2" * 16, connector=1))
    said = net.exchange(third, helpers.netcomm_handshake("b", boot=b"2" * 16, connector=1))
    assert third.gone
    assert said[-1][0] == helpers.REFUSE
    assert said[-1][1][:2] == b"\0\1"
    assert not second.gone


# -- Legacy peers -------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-54", "positive")
@pytest.mark.requirement("P-54", "negative")
@pytest.mark.requirement("P-55", "positive")
def test_messages_of_both_streams_go_to_a_legacy_peer_as_it_knows_them() -> None:
    net = Net()
    host = net.host("a", storage=MemoryQueueStorage())
    deliveries = [host.send("b", b"x"), host.send_persistent("b", b"y")]
    said = net.exchange(legacy(net, host))
    assert [kind for kind in kinds(said) if kind != helpers.PING] == [helpers.MESSAGE] * 2
    assert kinds(said)[-1] == helpers.PING
    assert {payload[24:] for kind, payload in said if kind == helpers.MESSAGE} == {b"x", b"y"}
    assert not any(delivery.done for delivery in deliveries)


@pytest.mark.requirement("P-56", "positive")
@pytest.mark.requirement("P-56", "negative")
def test_what_a_legacy_peer_has_not_acknowledged_is_sent_again_unless_it_has_expired() -> None:
    net = Net()
    host = net.host("a")
    end = legacy(net, host)
    mortal, lasting = host.send("b", b"mortal", ttl=5), host.send("b", b"lasting")
    net.exchange(end)
    end.lose()
    net.advance(4)
    end = legacy(net, host)
    assert kinds(net.exchange(end)) == [helpers.MESSAGE, helpers.MESSAGE, helpers.PING]
    end.lose()
    net.advance(1)
    assert mortal.state is EXPIRED
    end = legacy(net, host)
    said = net.exchange(end)
    assert [payload[24:] for kind, payload in said if kind == helpers.MESSAGE] == [b"lasting"]
    net.exchange(end, PONG)
    assert lasting.state is DELIVERED
