"""`protocol.inbox`: what counts as new, what is acknowledged, and what may have been handed over before."""

import random

import pytest

from netcomm.errors import RemoteProtocolError
from netcomm.message import Stream
from netcomm.protocol.envelope import Envelope
from netcomm.protocol.frames import Ack, Begin, Data
from netcomm.protocol.inbox import Inbox
from netcomm.storage import Position
from tests.unit.helpers import INFINITE, UUID, data_frame

VOLATILE = Stream.VOLATILE
DURABLE = Stream.DURABLE


def messages(*seqs: int, stream: Stream = VOLATILE) -> Data:
    return data_frame(stream, *[(seq, UUID, INFINITE, 0, b"") for seq in seqs])


def begun(first: int = 0, sent_below: int = 0, epoch: int = 7) -> Inbox:
    inbox = Inbox(False)
    inbox.begin(Begin(VOLATILE, epoch, first, sent_below))
    return inbox


def told(inbox: Inbox) -> list[tuple[int, int]]:
    """What is to be told of the one stream: what is handed over, and what has arrived."""
    acks = inbox.due_acks()
    assert {(ack.stream, ack.epoch) for ack in acks} <= {(VOLATILE, 7)}
    return [(ack.next_seq, ack.received_seq) for ack in acks]


def accept(inbox: Inbox, *seqs: int, stream: Stream = VOLATILE) -> list[int]:
    """The seqs that are new among these."""
    return [item[0] for item in inbox.accept(messages(*seqs, stream=stream))[1].items]


@pytest.mark.requirement("P-27", "positive")
def test_a_begin_is_answered_by_an_acknowledgement_of_the_first_seq() -> None:
    inbox = begun(first=5)
    assert told(inbox) == [(5, 5)]
    assert inbox.due_acks() == []


@pytest.mark.requirement("P-31", "positive")
def test_messages_are_taken_in_order() -> None:
    inbox = begun()
    assert accept(inbox, 0, 1, 2) == [0, 1, 2]
    assert accept(inbox, 3) == [3]
    assert accept(inbox) == []


@pytest.mark.requirement("P-36", "positive")
@pytest.mark.requirement("P-36", "negative")
def test_taking_is_not_acknowledging() -> None:
    inbox = begun()
    inbox.due_acks()
    accept(inbox, 0, 1, 2)
    assert inbox.due_acks() == []
    inbox.mark_handled(VOLATILE, 7, 2)
    assert told(inbox) == [(2, 3)]
    assert inbox.due_acks() == []
    inbox.mark_handled(VOLATILE, 7, 3)
    assert told(inbox) == [(3, 3)]


@pytest.mark.requirement("P-30", "negative")
@pytest.mark.parametrize("seqs", [(0, 1), (1,), (0, 0), (1, 2), (0, 1, 2, 3)])
def test_duplicates_are_dropped_and_what_is_new_among_them_is_taken(seqs: tuple[int, ...]) -> None:
    inbox = begun()
    accept(inbox, 0, 1)
    assert accept(inbox, *seqs) == [seq for seq in seqs if seq > 1]
    assert accept(inbox, 2, *range(3, 6)) == [seq for seq in (2, 3, 4, 5) if seq not in seqs]


def test_a_duplicate_within_one_chunk_is_dropped() -> None:
    inbox = begun()
    assert accept(inbox, 0, 1, 1, 0, 2, 2, 3) == [0, 1, 2, 3]
    assert accept(inbox, 4) == [4]


@pytest.mark.requirement("P-30", "positive")
def test_a_duplicate_is_acknowledged_again() -> None:
    inbox = begun()
    accept(inbox, 0, 1)
    inbox.mark_handled(VOLATILE, 7, 2)
    inbox.due_acks()
    accept(inbox, 1)
    assert told(inbox) == [(2, 2)]


@pytest.mark.requirement("P-30", "negative")
@pytest.mark.requirement("P-36", "negative")
def test_a_duplicate_of_what_is_still_pending_acknowledges_only_what_was_handed_over() -> None:
    inbox = begun()
    accept(inbox, 0, 1, 2)
    inbox.mark_handled(VOLATILE, 7, 1)
    inbox.due_acks()
    accept(inbox, 2)
    assert told(inbox) == [(1, 3)]


@pytest.mark.requirement("P-31", "negative")
@pytest.mark.parametrize("seqs", [(1,), (0, 2), (0, 1, 5), (2**64 - 1,), (0, 0, 2)])
def test_a_gap_is_an_error(seqs: tuple[int, ...]) -> None:
    with pytest.raises(RemoteProtocolError, match=f"seq {seqs[-1]}"):
        accept(begun(), *seqs)


@pytest.mark.requirement("P-65", "positive")
@pytest.mark.requirement("P-65", "negative")
def test_a_seq_that_none_could_follow_is_an_error() -> None:
    last = 2**64 - 1
    assert accept(begun(first=last - 1, sent_below=last), last - 1) == [last - 1]
    with pytest.raises(RemoteProtocolError, match=f"seq {last}"):
        accept(begun(first=last, sent_below=last), last)


@pytest.mark.requirement("P-31", "negative")
def test_a_gap_behind_a_duplicate_is_an_error() -> None:
    inbox = begun()
    accept(inbox, 0, 1)
    with pytest.raises(RemoteProtocolError):
        accept(inbox, 0, 3)


def test_what_the_caller_has_is_not_changed() -> None:
    inbox = begun()
    accept(inbox, 0)
    given = messages(0, 1, 2)
    inbox.accept(given)
    assert given == messages(0, 1, 2)


def a_batch(seq: int, *payloads: bytes) -> Data:
    return Data(VOLATILE, [(seq, len(payloads), UUID, INFINITE, 0, None)], list(payloads))


@pytest.mark.requirement("P-59", "negative")
@pytest.mark.parametrize("first", [0, 1, 2, 3, 4, 5])
def test_of_a_batch_what_came_before_is_dropped(first: int) -> None:
    inbox = begun()
    accept(inbox, *range(4))
    inbox.due_acks()
    batch = a_batch(first, b"0", b"1", b"2", b"3")
    if first > 4:
        with pytest.raises(RemoteProtocolError, match="seq 5 where 4 was expected"):
            inbox.accept(batch)
        return
    _, fresh = inbox.accept(batch)
    assert fresh.items == batch.items[4 - first :]
    assert told(inbox) == ([(0, 4 + first)] if first < 4 else [])
    assert accept(inbox, 4 + first) == [4 + first]


def test_batches_and_single_messages_follow_each_other() -> None:
    inbox = begun()
    batch = a_batch(1, b"1", b"2")
    data = Data(VOLATILE, messages(0).runs + batch.runs + messages(3, 3).runs, [b"0", *batch.payloads, b"3", b"again"])
    _, fresh = inbox.accept(data)
    assert [(item[0], item[4]) for item in fresh.items] == [(0, b"0"), (1, b"1"), (2, b"2"), (3, b"3")]


# -- SKIP ---------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-31", "positive")
@pytest.mark.requirement("P-42", "positive")
def test_what_is_skipped_is_not_a_gap() -> None:
    inbox = begun()
    inbox.skip(VOLATILE, 5)
    assert accept(inbox, 5, 6) == [5, 6]


@pytest.mark.requirement("P-42", "negative")
def test_a_skip_back_changes_nothing() -> None:
    inbox = begun()
    accept(inbox, 0, 1, 2)
    inbox.skip(VOLATILE, 1)
    assert accept(inbox, 1, 2, 3) == [3]


def test_what_was_skipped_counts_as_handed_over_once_all_before_it_is() -> None:
    inbox = begun()
    inbox.due_acks()
    accept(inbox, 0)
    inbox.skip(VOLATILE, 5)
    accept(inbox, 5)
    inbox.mark_handled(VOLATILE, 7, 1)
    assert told(inbox) == [(5, 6)]
    inbox.mark_handled(VOLATILE, 7, 6)
    assert told(inbox) == [(6, 6)]


def test_what_was_skipped_last_counts_as_handed_over_though_nothing_follows() -> None:
    inbox = begun()
    accept(inbox, 0)
    inbox.skip(VOLATILE, 2)
    accept(inbox, 2)
    inbox.skip(VOLATILE, 4)
    inbox.skip(VOLATILE, 5)
    inbox.mark_handled(VOLATILE, 7, 1)
    assert told(inbox) == [(2, 5)]
    inbox.mark_handled(VOLATILE, 7, 3)
    assert told(inbox) == [(5, 5)]


def test_no_more_skips_are_remembered_than_messages() -> None:
    inbox = begun()
    next_seq = 0
    for _ in range(3):
        accept(inbox, next_seq)
        for _ in range(1000):
            next_seq += 1
            inbox.skip(VOLATILE, next_seq + 1)
        next_seq += 1
    assert len(inbox._streams[VOLATILE].skips) == 3
    inbox.mark_handled(VOLATILE, 7, 1)
    assert told(inbox) == [(1001, next_seq)]
    inbox.mark_handled(VOLATILE, 7, next_seq)
    assert told(inbox) == [(next_seq, next_seq)]


def test_an_epoch_that_was_left_and_comes_back_is_to_be_renewed() -> None:
    inbox = Inbox(False)
    inbox.begin(Begin(DURABLE, 7, 0, 0))
    accept(inbox, *range(10), stream=DURABLE)
    inbox.disconnect()
    inbox.begin(Begin(DURABLE, 8, 5, 5))
    inbox.disconnect()
    for sent_below, received in ((5, 6), (20, 21), (3, 21)):
        inbox.begin(Begin(DURABLE, 7, 3, sent_below))
        assert inbox.due_acks()[0].received_seq == received > sent_below
        inbox.disconnect()
    # The callbacks of its first time return late: they must not count for more than has come.
    inbox.begin(Begin(DURABLE, 7, 3, 3))
    inbox.mark_handled(DURABLE, 7, 30)
    (ack,) = inbox.due_acks()
    assert ack.next_seq <= ack.received_seq


def test_a_skip_with_nothing_pending_moves_the_position() -> None:
    inbox = begun()
    inbox.skip(VOLATILE, 5)
    inbox.disconnect()
    inbox.due_acks()
    inbox.begin(Begin(VOLATILE, 7, 5, 5))
    assert told(inbox) == [(5, 5)]


@pytest.mark.requirement("P-36", "negative")
def test_a_skip_over_what_is_pending_does_not_acknowledge_it() -> None:
    inbox = begun()
    accept(inbox, 0, 1)
    inbox.skip(VOLATILE, 9)
    inbox.disconnect()
    inbox.begin(Begin(VOLATILE, 7, 0, 2))
    assert told(inbox) == [(0, 9)]


# -- Streams, epochs, connections ---------------------------------------------------------------------------------


@pytest.mark.requirement("P-32", "negative")
def test_a_stream_has_to_begin_before_it_is_used() -> None:
    inbox = begun()
    with pytest.raises(RemoteProtocolError, match="DURABLE"):
        accept(inbox, 0, stream=DURABLE)
    with pytest.raises(RemoteProtocolError, match="DURABLE"):
        inbox.skip(DURABLE, 1)
    with pytest.raises(RemoteProtocolError):
        accept(Inbox(False), 0)


@pytest.mark.requirement("P-26", "positive")
@pytest.mark.requirement("P-32", "positive")
@pytest.mark.requirement("P-32", "negative")
def test_a_stream_has_to_begin_again_on_each_connection() -> None:
    inbox = begun()
    accept(inbox, 0)
    inbox.disconnect()
    with pytest.raises(RemoteProtocolError):
        accept(inbox, 1)
    inbox.begin(Begin(VOLATILE, 7, 0, 1))
    assert accept(inbox, 0, 1) == [1]


@pytest.mark.requirement("P-26", "negative")
def test_a_stream_begins_once_on_a_connection() -> None:
    inbox = begun()
    with pytest.raises(RemoteProtocolError, match="second BEGIN"):
        inbox.begin(Begin(VOLATILE, 7, 0, 0))


@pytest.mark.requirement("P-32", "positive")
def test_streams_are_independent() -> None:
    inbox = begun()
    inbox.begin(Begin(DURABLE, 99, 50, 50))
    assert accept(inbox, 0, 1) == [0, 1]
    assert accept(inbox, 50, stream=DURABLE) == [50]
    inbox.mark_handled(DURABLE, 99, 51)
    assert sorted(inbox.due_acks(), key=lambda ack: ack.stream) == [Ack(VOLATILE, 7, 0, 2), Ack(DURABLE, 99, 51, 51)]


@pytest.mark.requirement("P-27", "positive")
def test_after_a_reconnect_the_position_is_told_and_duplicates_are_recognised() -> None:
    inbox = begun()
    accept(inbox, 0, 1, 2, 3)
    inbox.mark_handled(VOLATILE, 7, 2)
    inbox.disconnect()
    assert inbox.due_acks() == []  # there is nobody to tell
    inbox.begin(Begin(VOLATILE, 7, 0, 4))
    assert told(inbox) == [(2, 4)]
    assert accept(inbox, 2, 3, 4) == [4]


def test_what_is_handed_over_while_disconnected_is_told_at_the_next_begin() -> None:
    inbox = begun()
    accept(inbox, 0, 1)
    inbox.disconnect()
    inbox.mark_handled(VOLATILE, 7, 2)
    assert inbox.due_acks() == []
    inbox.begin(Begin(VOLATILE, 7, 0, 2))
    assert told(inbox) == [(2, 2)]


def test_a_new_epoch_starts_afresh() -> None:
    inbox = begun()
    accept(inbox, 0, 1, 2)
    inbox.disconnect()
    inbox.begin(Begin(VOLATILE, 8, 0, 0))
    assert inbox.due_acks() == [Ack(VOLATILE, 8, 0, 0)]
    assert accept(inbox, 0, 1) == [0, 1]


def test_the_callbacks_of_an_old_epoch_acknowledge_nothing_of_the_new_one() -> None:
    inbox = begun()
    accept(inbox, 0, 1, 2)
    inbox.disconnect()
    inbox.begin(Begin(VOLATILE, 8, 0, 0))
    inbox.due_acks()
    accept(inbox, 0, 1, 2)
    inbox.mark_handled(VOLATILE, 7, 3)
    assert inbox.due_acks() == []
    inbox.mark_handled(VOLATILE, 8, 1)
    assert inbox.due_acks() == [Ack(VOLATILE, 8, 1, 3)]


def test_the_position_never_goes_back() -> None:
    inbox = begun()
    accept(inbox, 0, 1, 2)
    inbox.mark_handled(VOLATILE, 7, 3)
    inbox.due_acks()
    inbox.mark_handled(VOLATILE, 7, 2)
    inbox.mark_handled(VOLATILE, 7, 3)
    assert inbox.due_acks() == []


def test_handing_over_a_stream_that_is_not_known_is_passed_over() -> None:
    inbox = Inbox(False)
    inbox.mark_handled(VOLATILE, 7, 3)
    assert inbox.due_acks() == []


@pytest.mark.requirement("P-26", "positive")
@pytest.mark.requirement("P-26", "negative")
def test_a_new_epoch_may_begin_on_an_open_connection() -> None:
    # The sender's storage was restored from a backup, and renumbers its messages.
    inbox = begun()
    inbox.begin(Begin(DURABLE, 99, 50, 52))
    accept(inbox, 50, 51, stream=DURABLE)
    inbox.begin(Begin(DURABLE, 100, 10, 12))
    inbox.mark_handled(DURABLE, 99, 52)  # the callbacks of the old one return late
    assert Ack(DURABLE, 100, 10, 10) in inbox.due_acks()
    state, fresh = inbox.accept(messages(10, 11, stream=DURABLE))
    assert (state.epoch, state.redelivered_below) == (100, 12)
    assert fresh == messages(10, 11, stream=DURABLE)
    assert inbox.due_acks() == []
    with pytest.raises(RemoteProtocolError, match="second BEGIN"):
        inbox.begin(Begin(DURABLE, 100, 10, 12))


@pytest.mark.requirement("P-27", "negative")
def test_a_sender_that_has_forgotten_more_than_was_taken_moves_the_position() -> None:
    # It knows, by its own user, that what is below will never come.
    inbox = begun()
    accept(inbox, 0, 1)
    inbox.mark_handled(VOLATILE, 7, 1)
    inbox.disconnect()
    inbox.begin(Begin(VOLATILE, 7, 9, 9))
    assert told(inbox) == [(9, 9)]
    assert accept(inbox, 9) == [9]
    inbox.mark_handled(VOLATILE, 7, 2)
    assert told(inbox) == []


# -- Stored positions ---------------------------------------------------------------------------------------------


def test_without_stored_positions_nothing_has_to_be_stored() -> None:
    inbox = begun()
    inbox.begin(Begin(DURABLE, 99, 0, 0))
    accept(inbox, 0, stream=DURABLE)
    assert inbox.mark_handled(DURABLE, 99, 1) is None
    assert inbox.mark_handled(VOLATILE, 7, 1) is None


@pytest.mark.requirement("P-36", "positive")
@pytest.mark.requirement("P-36", "negative")
def test_a_durable_position_is_stored_before_it_is_acknowledged() -> None:
    inbox = Inbox(True)
    inbox.begin(Begin(DURABLE, 99, 5, 5))
    assert inbox.due_acks() == [Ack(DURABLE, 99, 5, 5)]
    accept(inbox, 5, 6, 7, stream=DURABLE)
    assert inbox.mark_handled(DURABLE, 99, 7) == Position(99, 7)
    assert inbox.due_acks() == []
    inbox.acknowledge(DURABLE, 99, 7)
    assert inbox.due_acks() == [Ack(DURABLE, 99, 7, 8)]
    inbox.acknowledge(DURABLE, 99, 7)
    assert inbox.due_acks() == []


@pytest.mark.requirement("P-36", "negative")
def test_what_is_handed_over_and_not_stored_is_not_acknowledged_on_the_next_connection_either() -> None:
    inbox = Inbox(True)
    inbox.begin(Begin(DURABLE, 99, 0, 0))
    accept(inbox, 0, 1, stream=DURABLE)
    inbox.mark_handled(DURABLE, 99, 2)
    inbox.disconnect()
    inbox.begin(Begin(DURABLE, 99, 0, 2))
    assert inbox.due_acks() == [Ack(DURABLE, 99, 0, 2)]
    assert accept(inbox, 1, 2, stream=DURABLE) == [2]
    inbox.acknowledge(DURABLE, 99, 2)
    assert inbox.due_acks() == [Ack(DURABLE, 99, 2, 3)]


def test_transient_messages_are_acknowledged_without_a_storage() -> None:
    inbox = Inbox(True)
    inbox.begin(Begin(VOLATILE, 7, 0, 0))
    inbox.due_acks()
    accept(inbox, 0)
    assert inbox.mark_handled(VOLATILE, 7, 1) is None
    assert told(inbox) == [(1, 1)]


def test_a_stored_position_of_an_epoch_that_has_ended_acknowledges_nothing() -> None:
    inbox = Inbox(True)
    inbox.begin(Begin(DURABLE, 99, 0, 0))
    accept(inbox, 0, stream=DURABLE)
    position = inbox.mark_handled(DURABLE, 99, 1)
    assert position == Position(99, 1)
    inbox.begin(Begin(DURABLE, 100, 0, 1))
    inbox.due_acks()
    inbox.acknowledge(DURABLE, *position)
    assert inbox.due_acks() == []


def restored(position: Position) -> Inbox:
    inbox = Inbox(True)
    inbox.restore(DURABLE, position)
    return inbox


@pytest.mark.requirement("P-27", "positive")
@pytest.mark.requirement("P-35", "positive")
def test_a_restored_position_is_the_answer_to_begin() -> None:
    inbox = restored(Position(99, 40))
    assert inbox.has_position
    assert inbox.due_acks() == []  # nobody is connected
    with pytest.raises(RemoteProtocolError, match="DURABLE"):
        accept(inbox, 40, stream=DURABLE)
    inbox.begin(Begin(DURABLE, 99, 30, 45))
    assert inbox.due_acks() == [Ack(DURABLE, 99, 40, 40)]
    assert accept(inbox, 40, stream=DURABLE) == [40]


@pytest.mark.requirement("P-35", "positive")
def test_behind_a_restored_position_what_may_have_been_sent_is_marked() -> None:
    # The earlier process may have handed it over, and died before the position was stored.
    inbox = restored(Position(99, 40))
    inbox.begin(Begin(DURABLE, 99, 30, 45))
    state, _ = inbox.accept(messages(40, stream=DURABLE))
    assert state.redelivered_below == 45


@pytest.mark.requirement("P-35", "negative")
def test_only_the_first_begin_after_a_restart_marks() -> None:
    inbox = restored(Position(99, 40))
    inbox.begin(Begin(DURABLE, 99, 40, 42))
    accept(inbox, *range(40, 50), stream=DURABLE)
    inbox.disconnect()
    inbox.begin(Begin(DURABLE, 99, 40, 50))
    state, _ = inbox.accept(messages(50, stream=DURABLE))
    assert state.redelivered_below == 42


@pytest.mark.requirement("P-27", "negative")
@pytest.mark.requirement("P-34", "positive")
def test_a_restored_position_of_another_epoch_is_of_no_use() -> None:
    inbox = restored(Position(98, 40))
    inbox.begin(Begin(DURABLE, 99, 3, 6))
    assert inbox.due_acks() == [Ack(DURABLE, 99, 3, 3)]
    state, fresh = inbox.accept(messages(3, stream=DURABLE))
    assert (state.redelivered_below, fresh) == (6, messages(3, stream=DURABLE))


def test_a_receivers_storage_that_was_restored_from_a_backup_goes_on_at_the_first_message_there_is() -> None:
    # What lies between was acknowledged once, and is gone.
    inbox = restored(Position(99, 40))
    inbox.begin(Begin(DURABLE, 99, 60, 65))
    assert inbox.due_acks() == [Ack(DURABLE, 99, 60, 60)]
    state, fresh = inbox.accept(messages(60, 61, stream=DURABLE))
    assert fresh == messages(60, 61, stream=DURABLE)
    assert state.redelivered_below == 65
    assert inbox.mark_handled(DURABLE, 99, 61) == Position(99, 61)
    inbox.acknowledge(DURABLE, 99, 61)
    assert inbox.due_acks() == [Ack(DURABLE, 99, 61, 62)]


def test_a_durable_stream_has_a_position_once_a_message_of_it_was_handed_over() -> None:
    inbox = Inbox(True)
    inbox.begin(Begin(DURABLE, 99, 3, 6))
    accept(inbox, 3, stream=DURABLE)
    assert not inbox.has_position
    inbox.mark_handled(DURABLE, 99, 4)
    assert inbox.has_position


def test_an_inbox_that_stores_no_positions_has_none() -> None:
    inbox = Inbox(False)
    inbox.begin(Begin(DURABLE, 99, 3, 6))
    accept(inbox, 3, stream=DURABLE)
    inbox.mark_handled(DURABLE, 99, 4)
    assert not inbox.has_position


# -- redelivered --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("P-34", "positive")
def test_what_was_sent_to_an_earlier_process_may_be_redelivered() -> None:
    state, _ = begun(first=3, sent_below=6).accept(messages(3, 4))
    assert state.redelivered_below == 6


@pytest.mark.requirement("P-35", "negative")
def test_what_one_process_takes_twice_is_not_redelivered() -> None:
    inbox = begun()
    accept(inbox, 0, 1)
    inbox.disconnect()
    inbox.begin(Begin(VOLATILE, 7, 0, 2))
    state, _ = inbox.accept(messages(2))
    assert state.redelivered_below == 0


@pytest.mark.requirement("P-34", "negative")
def test_a_new_epoch_has_its_own_mark() -> None:
    inbox = begun(first=3, sent_below=6)
    inbox.disconnect()
    inbox.begin(Begin(VOLATILE, 8, 0, 0))
    state, _ = inbox.accept(messages(0))
    assert (state.epoch, state.redelivered_below) == (8, 0)


# -- Everything together ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_random_traffic_is_taken_once_and_in_order(seed: int) -> None:
    """A sender that repeats, skips, reconnects and restarts, against a model that remembers every seq."""
    chance = random.Random(seed)
    inbox = begun()
    epoch, top = 7, 0  # the sender's: next new seq
    taken: list[int] = []
    handed = 0  # of taken
    skipped: set[int] = set()
    for _ in range(3000):
        match chance.randrange(8):
            case 0 | 1 | 2:
                first = chance.randint(max(0, top - 5), top)
                batch = [seq for seq in range(first, top + chance.randint(0, 4)) if seq not in skipped]
                fresh = accept(inbox, *batch)
                assert fresh == [seq for seq in batch if seq >= top]
                taken += fresh
                top = max(top, *batch, -1) + 1 if fresh else top
            case 3:
                count = chance.randint(0, 2)
                skipped |= set(range(top, top + count))
                top += count
                inbox.skip(VOLATILE, top)
            case 4 | 5:
                if handed < len(taken):
                    handed = chance.randint(handed + 1, len(taken))
                    inbox.mark_handled(VOLATILE, epoch, taken[handed - 1] + 1)
            case 6:
                inbox.disconnect()
                assert inbox.due_acks() == []
                inbox.begin(Begin(VOLATILE, epoch, 0, top))
                (ack,) = inbox.due_acks()
                position = ack.next_seq
                assert (ack.stream, ack.epoch, ack.received_seq) == (VOLATILE, epoch, top)
                # All below it was handed over or skipped, nothing above it was handed over.
                assert handed == len([seq for seq in taken if seq < position])
                assert all(seq < position for seq in taken[:handed])
            case 7:
                if chance.random() < 0.1:
                    epoch += 1
                    inbox.disconnect()
                    inbox.begin(Begin(VOLATILE, epoch, 0, 0))
                    top, taken, handed, skipped = 0, [], 0, set()
    assert taken == sorted(set(taken))


def test_behind_duplicates_the_envelopes_are_those_of_the_messages_that_are_new() -> None:
    inbox = begun()
    accept(inbox, 0, 1)
    shared = Envelope(subject="s", id=2**64 - 2, wire_size=16)
    batch = Data(VOLATILE, [(0, 5, UUID, INFINITE, 8, shared)], [b"%d" % seq for seq in range(5)], 5 * 16)
    _, fresh = inbox.accept(batch)
    assert [(item[0], item[5]) for item in fresh.items] == [(seq, shared.behind(seq)) for seq in (2, 3, 4)]
    assert [item[5].id for item in fresh.items if item[5] is not None] == [0, 1, 2]
    assert fresh.envelope_bytes == 3 * 16
