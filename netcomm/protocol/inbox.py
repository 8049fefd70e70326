"""`Inbox`: what has come from one peer, over all its connections: positions, duplicates, what was handed over."""

from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass, field

from netcomm.errors import RemoteProtocolError
from netcomm.message import BULK, DURABLE, VOLATILE, Stream
from netcomm.protocol.frames import Ack, Begin, Data, envelope_bytes, uuid_behind
from netcomm.storage import Position

_MAX_SEQ = 2**64 - 1
# So many epochs that the sender has left are remembered.
_LEFT_EPOCHS = 16


@dataclass(slots=True)
class InStream:
    """The receiving end of one stream.

    next_seq: the next seq to be taken from the wire; what is below was received or skipped.
    handed_seq: what is below was handed over, and may be acknowledged.
    redelivered_below: what is below may have been handed over by an earlier process of this receiver.
    restored: whether the position comes from a storage, and the sender has not begun the stream since.
    begun: whether the sender has begun the stream on the present connection.
    ack_due: whether the sender is to be told how far the stream has come.
    skips: where seqs were skipped behind messages that were not handed over yet: from where, to where.
    """

    epoch: int
    next_seq: int
    handed_seq: int
    redelivered_below: int
    restored: bool = False
    begun: bool = True
    ack_due: bool = True
    skips: deque[tuple[int, int]] = field(default_factory=deque)

    def handed(self, next_seq: int) -> None:
        """What is below `next_seq` was handed over, and so was what was skipped behind it."""
        while self.skips and self.skips[0][0] <= next_seq:
            next_seq = max(next_seq, self.skips.popleft()[1])
        self.handed_seq = next_seq


class Inbox:
    """The streams that come from one peer.

    pending_bytes: by stream, the size of the messages that were received and not handed over; None stands for those of
        a snakeMQ peer, which has no streams.
    has_position: whether a storage has a position in a stream, or is about to: it goes on from here.
    """

    __slots__ = ("_left", "_stores_positions", "_streams", "has_position", "pending_bytes")

    def __init__(self, stores_positions: bool) -> None:
        """Make an inbox without connection.

        stores_positions: whether positions in the stream DURABLE are stored before they are acknowledged.
        """
        self._stores_positions = stores_positions
        self._streams: dict[Stream, InStream] = {}
        self._left: deque[int] = deque(maxlen=_LEFT_EPOCHS)  # epochs of durable streams
        self.pending_bytes: defaultdict[Stream | None, int] = defaultdict(int)
        self.has_position = False

    def restore(self, stream: Stream, position: Position) -> None:
        """Take over the position in a stream that is stored."""
        seq = position.next_seq
        self._streams[stream] = InStream(position.epoch, seq, seq, seq, restored=True, begun=False)
        self.has_position = True

    @property
    def is_empty(self) -> bool:
        """Whether everything that was received was handed over."""
        return not any(self.pending_bytes.values())

    def is_empty_but_for(self, streams: Collection[Stream]) -> bool:
        """Whether everything that was received in other streams was handed over."""
        return not any(size for stream, size in self.pending_bytes.items() if stream not in streams)

    def begin(self, frame: Begin) -> None:
        """The sender begins a stream on a new connection; the answer is an acknowledgement."""
        known = self._streams.get(frame.stream)
        if known is None or known.epoch != frame.epoch:
            self._streams[frame.stream] = InStream(frame.epoch, frame.first_seq, frame.first_seq, frame.sent_below)
            if known is not None and frame.stream.durable:
                self._left.append(known.epoch)
        else:
            if known.begun:
                raise RemoteProtocolError(f"second BEGIN of the {frame.stream.name} stream")
            known.begun = known.ack_due = True
            if known.restored:
                known.restored = False
                known.redelivered_below = frame.sent_below
            if known.next_seq < frame.first_seq:  # a storage restored from a backup has forgotten how far it was
                known.next_seq = known.handed_seq = frame.first_seq
        if frame.epoch in self._left:
            # The sender's storage was restored twice. What had these seqs before may still wait for its callbacks, and
            # would count for what has them now. A receiver that is ahead of all that was sent makes the sender renew
            # the stream.
            state = self._streams[frame.stream]
            state.next_seq = max(state.next_seq, min(frame.sent_below + 1, _MAX_SEQ))

    def accept(self, data: Data) -> tuple[InStream, Data]:
        """Of these messages, in the order of the wire, those that are new.

        Raises RemoteProtocolError for a gap, and for a stream that was not begun.
        """
        state = self._begun(data.stream)
        next_seq = state.next_seq
        fresh = data
        for seq, count, *_ in data.runs:
            if seq != next_seq:
                fresh, next_seq = self._without_duplicates(state, data)
                break
            next_seq += count
        if next_seq > _MAX_SEQ:
            raise RemoteProtocolError(f"seq {next_seq - 1} leaves none to follow")
        state.next_seq = next_seq
        return state, fresh

    @staticmethod
    def _without_duplicates(state: InStream, data: Data) -> tuple[Data, int]:
        """What is new, and the seq behind it."""
        fresh = Data(data.stream, [], [])
        next_seq = state.next_seq
        start = 0
        for seq, count, uuid, ttl, flags, envelope in data.runs:
            if seq > next_seq:
                raise RemoteProtocolError(f"seq {seq} where {next_seq} was expected")
            known = min(next_seq - seq, count)
            if known:
                state.ack_due = True
            if known < count:
                its_envelope = None if envelope is None else envelope.behind(known)
                fresh.runs.append((next_seq, count - known, uuid_behind(uuid, known), ttl, flags, its_envelope))
                fresh.payloads += data.payloads[start + known : start + count]
                next_seq = seq + count
            start += count
        if data.envelope_bytes:
            fresh.envelope_bytes = envelope_bytes(fresh.runs, 0, len(fresh.payloads))
        return fresh, next_seq

    def skip(self, stream: Stream, next_seq: int) -> None:
        """What is below `next_seq` and has not come will not come any more."""
        state = self._begun(stream)
        if next_seq <= state.next_seq:
            return
        if state.handed_seq == state.next_seq:
            state.handed_seq = next_seq
        elif state.skips and state.skips[-1][1] == state.next_seq:  # so that there are no more of them than messages
            state.skips[-1] = state.skips[-1][0], next_seq
        else:
            state.skips.append((state.next_seq, next_seq))
        state.next_seq = next_seq

    def mark_handled(self, stream: Stream, epoch: int, next_seq: int) -> Position | None:
        """The callbacks of everything below `next_seq` have returned.

        Returns the position that has to be stored before the sender may be told, if it has to be.
        """
        if self._stores_positions and stream not in (VOLATILE, BULK):
            self.has_position = True
            if stream is DURABLE:
                return Position(epoch, next_seq)
        self.acknowledge(stream, epoch, next_seq)
        return None

    def acknowledge(self, stream: Stream, epoch: int, next_seq: int) -> None:
        """The sender may be told that everything below `next_seq` has been handed over."""
        state = self._streams.get(stream)
        # The sender may have begun another epoch meanwhile: it has nothing to hear of the old one.
        if state is not None and state.epoch == epoch and next_seq > state.handed_seq:
            state.handed(min(next_seq, state.next_seq))
            state.ack_due = True

    def let_go(self, stream: Stream) -> bool:
        """What has come in a stream, and was not handed over, counts as not come: the sender is to send it again.

        Returns False, and does nothing, where the sender has begun the stream: it was told what has come.
        """
        state = self._streams[stream]
        if state.begun:
            return False
        state.next_seq = state.handed_seq
        state.skips.clear()
        return True

    @property
    def ack_due(self) -> bool:
        """Whether there is something to be told to the sender on the present connection."""
        for state in self._streams.values():  # noqa: SIM110 - any() and its generator take three times as long
            if state.ack_due and state.begun:
                return True
        return False

    def due_acks(self) -> list[Ack]:
        """What is to be told to the sender on the present connection; it counts as told."""
        due = []
        for stream, state in self._streams.items():
            if state.ack_due and state.begun:
                state.ack_due = False
                due.append(Ack(stream, state.epoch, state.handed_seq, state.next_seq))
        return due

    def disconnect(self) -> None:
        """The connection is gone; positions stay."""
        for state in self._streams.values():
            state.begun = False

    def _begun(self, stream: Stream) -> InStream:
        state = self._streams.get(stream)
        if state is None or not state.begun:
            raise RemoteProtocolError(f"{stream.name} stream used before its BEGIN")
        return state
