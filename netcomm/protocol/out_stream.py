"""`OutStream`: the sending end of one stream: order, seqs, what waits, what is in flight, what has ended.

`VolatileOutStream` is one whose messages are in memory alone. Of the durable ones, see `durable_out_stream`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from netcomm.limits import Limits
from netcomm.message import BULK, DELIVERED, DURABLE, QUEUED, SENT, VOLATILE, Delivery, DeliveryState, Stream
from netcomm.protocol.batch import Entry, Run
from netcomm.protocol.expiry import Expiry
from netcomm.protocol.frames import Begin, max_data_size, packet_size
from netcomm.protocol.open_run import MAX_JOINING_BYTES, OpenRun


@dataclass(frozen=True, slots=True)
class Receiver:
    """What the outbox has to know of the peer at the other end of the connection.

    window_bytes: so much of each stream may be in flight to it; one larger message may go alone.
    bulk_window_bytes: the same, for the stream BULK.
    max_packet_bytes: it rejects larger messages, as they are on the wire.
    max_bus_packet_bytes: the same, for streams that are not of plain messages: a snakeMQ peer takes none of them.
    legacy: whether it is a snakeMQ peer, which can't say what it has.
    """

    window_bytes: int
    bulk_window_bytes: int
    max_packet_bytes: int
    max_bus_packet_bytes: int
    legacy: bool


class OutStream:
    """The sending end of one stream. Its messages are numbered: each has a seq, one more than the message before it.

    Where the seqs lie, while a connection stands and messages flow:

        handed over  |  in flight  |  waiting, in memory          |
        -------------+-------------+------------------------------+------------------------->  seq
                     |             |                              |
                     first_seq()   receiver_next, sent_below      next_seq = added_below

    When a connection breaks, `sent_below` stays: messages below it may have been on the wire. Where the next connection
    goes on is `receiver_next`. It is None until the receiver has said it, and may then lie anywhere from `first_seq()`
    to `sent_below`. Messages that are sent again lie below `sent_below`.

    epoch, next_seq: name the next message.
    added_below: all messages below this seq have been added, or never will be.
    sent_below: messages below this seq may have been on the wire.
    untold_below: messages below this seq may have been handed over by a process of the receiver that has died since;
        none of them expires.
    receiver_next: the seq that the receiver expects next on this connection, or None until it is known.
    waiting, in_flight: the messages in memory, in order; all of `in_flight` come before those that wait.
    in_flight_bytes: the size of the messages in flight, on the wire, so that even empty messages count; with those that
        were discarded while they were in flight, and are not acknowledged.
    empty_places: how many of `waiting` have expired; they keep their places, since closing each at once costs more.
    queued, queued_bytes: how many messages have not ended, and their size on the wire.
    """

    __slots__ = (
        "_discarded",
        "added_below",
        "empty_places",
        "epoch",
        "in_flight",
        "in_flight_bytes",
        "next_seq",
        "queued",
        "queued_bytes",
        "receiver_next",
        "sent_below",
        "stream",
        "untold_below",
        "waiting",
    )

    def __init__(self, stream: Stream, epoch: int) -> None:
        self.stream = stream
        self.epoch = epoch
        self.next_seq = 0
        self.added_below = 0
        self.sent_below = 0
        self.untold_below = 0
        self.receiver_next: int | None = None
        self.empty_places = 0
        self.queued = 0
        self.queued_bytes = 0
        self.waiting: deque[Entry] = deque()
        self.in_flight: deque[Entry] = deque()
        self.in_flight_bytes = 0
        # What was discarded while it was in flight, and is not acknowledged: a first seq, the seq behind the last, and
        # the size of all of it, until the last one is acknowledged.
        self._discarded: list[tuple[int, int, int]] = []

    def first_seq(self) -> int:
        """The seq of the first message that has not ended; where all have, that of the next to be added."""
        if self.in_flight:
            return self.in_flight[0].seq
        return self.waiting[0].seq if self.waiting else self.added_below

    def begin(self) -> Begin:
        """The BEGIN that opens this stream on a new connection."""
        first = self.begins_at()
        if self._discarded:  # the receiver says how much of it waits for callbacks still
            first = min(first, self._discarded[0][0])
        self.sent_below = max(self.sent_below, first)
        return Begin(self.stream, self.epoch, first, self.sent_below)

    def begins_at(self) -> int:
        """The first seq to be named in BEGIN."""
        return self.first_seq()

    def may_send_below(self) -> int:
        """Messages below this seq may go on the wire already."""
        return self.next_seq

    def acknowledge(self, next_seq: int) -> list[Entry]:
        """The receiver has handed over all messages below `next_seq`; returns those that have ended with it.

        Memory may run out at each step: then the messages that have not ended are in flight still.
        """
        delivered: list[Entry] = []
        in_flight = self.in_flight
        count = size = 0
        try:
            while in_flight and (entry := in_flight[0]).seq < next_seq:
                if isinstance(entry, Run) and entry.seq + entry.count > next_seq:
                    entry = self._split_first(entry, next_seq - entry.seq)
                delivered.append(entry)
                ended, ended_size = entry.count, entry.size
                entry.state = DELIVERED
                entry.data = None
                in_flight.popleft()
                count += ended
                size += ended_size
        finally:
            self.in_flight_bytes -= size
            self._count_ended(count, size)
        if self._discarded:
            self._keep_discarded([part for part in self._discarded if part[1] > next_seq])
        return delivered

    def _split_first(self, run: Run, count: int) -> Run:
        """Cut off the first messages of the run that was sent first."""
        self.in_flight.appendleft(run)  # a place for them
        try:
            head = run.split(count)
        except BaseException:
            self.in_flight.popleft()
            raise
        self.in_flight[0] = head
        return head

    def _count_ended(self, count: int, size: int) -> None:
        self.queued -= count
        self.queued_bytes -= size

    def finish(self, entries: Sequence[Entry], state: DeliveryState) -> None:
        """End messages, which the caller has taken out of the queue."""
        count = size = 0
        for entry in entries:
            size += entry.size
            count += entry.count
            entry.state = state
            if state is DELIVERED:
                entry.data = None
        self._count_ended(count, size)

    def requeue(self, from_seq: int = 0) -> list[Entry]:
        """Put messages in flight, from a seq on, back in front of those that wait; returns them, the last first.

        Memory may run out at each step: then each message is in flight still, or waits.
        """
        if self._discarded:  # it is not sent again
            self._keep_discarded(
                [(first, min(below, from_seq), size) for first, below, size in self._discarded if first < from_seq]
            )
        returned: list[Entry] = []
        waiting, in_flight = self.waiting, self.in_flight
        while in_flight and (entry := in_flight[-1]).seq + entry.count > from_seq:
            if isinstance(entry, Run):
                if entry.seq < from_seq:
                    self._split_last(entry, from_seq - entry.seq)
                entry.resent = True
            entry.state = QUEUED
            returned.append(entry)
            waiting.appendleft(entry)
            in_flight.pop()
            self.in_flight_bytes -= entry.size
        return returned

    def _split_last(self, run: Run, count: int) -> None:
        """Cut off the first messages of the run that was sent last; both parts are in flight."""
        self.in_flight.append(run)
        try:
            self.in_flight[-2] = run.split(count)
        except BaseException:
            self.in_flight.pop()
            raise

    def take(self, budget: int, receiver: Receiver, expiry: Expiry) -> tuple[list[Entry], list[Entry]]:
        """Move waiting messages to in flight: about `budget` bytes, as far as the window allows.

        receiver: whose window it is.
        expiry: is told of runs that are split.

        Returns the messages to be sent, and those that were rejected because the receiver accepts no frame of their
        size. An interruption leaves what `take_back` puts in order.
        """
        batch: list[Entry] = []
        rejected: list[Entry] = []
        waiting, in_flight = self.waiting, self.in_flight
        in_flight_bytes = self.in_flight_bytes
        window = receiver.bulk_window_bytes if self.stream is BULK else receiver.window_bytes
        may_send_below = self.may_send_below()
        end = in_flight_bytes + budget
        limit = min(window, end)
        largest = receiver.max_packet_bytes if self.stream <= DURABLE else receiver.max_bus_packet_bytes
        while waiting and in_flight_bytes < end:
            entry = waiting[0]
            if entry.state is not QUEUED:
                self.empty_places -= 1
                waiting.popleft()
                continue
            size = entry.size
            if (size > largest or in_flight_bytes + size > limit) and isinstance(entry, Run):
                count = 1 if entry.largest > largest else max(1, entry.fitting(limit - in_flight_bytes))
                if count < entry.count:
                    entry = self._split_waiting(entry, count, expiry)
                    size = entry.size
            if size > largest and entry.count == 1:
                self.finish([entry], DeliveryState.REJECTED)
                rejected.append(entry)
                waiting.popleft()
                continue
            if (in_flight_bytes and in_flight_bytes + size > window) or entry.seq >= may_send_below:
                break
            # What `take_back` finds, wherever this is interrupted.
            entry.state = SENT
            in_flight.append(entry)
            waiting.popleft()
            in_flight_bytes += size
            batch.append(entry)
        self.in_flight_bytes = in_flight_bytes
        if batch:
            last = batch[-1]
            self.receiver_next = last.seq + last.count
            self.sent_below = max(self.sent_below, self.receiver_next)
        return batch, rejected

    def _split_waiting(self, run: Run, count: int, expiry: Expiry) -> Run:
        """Cut off the first messages of the run that waits first."""
        waiting = self.waiting
        try:
            waiting.appendleft(run)  # a place for them
            waiting[0] = head = run.split(count)
        except BaseException:
            if len(waiting) > 1 and waiting[0] is waiting[1]:
                waiting.popleft()
            raise
        expiry.split(run, head, may_expire=head.seq >= self.untold_below)
        return head

    def take_back(self) -> None:
        """`take` was interrupted: a message that is on its way from waiting to in flight goes to one of the two."""
        waiting, in_flight = self.waiting, self.in_flight
        if waiting and waiting[0].state is SENT:
            if in_flight and in_flight[-1] is waiting[0]:
                waiting.popleft()
            else:
                waiting[0].state = QUEUED
        self.in_flight_bytes = sum(entry.size for entry in in_flight) + self._discarded_bytes

    def discard(self) -> list[Entry]:
        """End every message in memory that has not ended; returns them.

        Those in flight count in the window until the receiver has acknowledged the last of them, or has said that it
        does not have them.
        """
        discarded = [entry for entry in (*self.in_flight, *self.waiting) if not entry.done]
        if self.in_flight:
            first, last = self.in_flight[0], self.in_flight[-1]
            size = self.in_flight_bytes - self._discarded_bytes
            self._discarded.append((first.seq, last.seq + last.count, size))
        self.finish(discarded, DeliveryState.DISCARDED)
        self.in_flight.clear()
        self.waiting.clear()
        self.empty_places = 0
        return discarded

    @property
    def _discarded_bytes(self) -> int:
        return sum(size for _, _, size in self._discarded)

    def _keep_discarded(self, parts: list[tuple[int, int, int]]) -> None:
        """Of what was discarded in flight, only these parts are in the receiver's hands still."""
        before = self._discarded_bytes
        self._discarded = parts
        self.in_flight_bytes += self._discarded_bytes - before

    def expirable(self, first: int = 0) -> list[Entry]:
        """The waiting messages that have a time to live, and that no process of the receiver can have handed over.

        first: so many entries, from the first one that waits on, are not looked at.
        """
        untold_below = self.untold_below
        return [
            entry
            for entry in islice(self.waiting, first, None)
            if entry.expires_at is not None and entry.state is QUEUED and entry.seq >= untold_below
        ]

    def leave_place(self) -> None:
        """A waiting message has expired; close the empty places once they are half of what waits."""
        self.empty_places += 1
        if self.empty_places > len(self.waiting) // 2:
            self.waiting = deque([entry for entry in self.waiting if entry.state is QUEUED])
            self.empty_places = 0


class VolatileOutStream(OutStream):
    """The sending end of a stream that is not durable: bounded, and all of it in memory.

    Only messages of the stream VOLATILE join a run. Those that have joined the open run have no seq yet: `next_seq`
    lies behind those that were there before, until the run is closed. It is the last that waits.

        waiting             | run, when it was opened | joined      |
        --------------------+-------------------------+- - - - - - -+- - - - ->  seq
                                                      |             |
                                                      next_seq      next_seq, once the run is closed

    open_run: the run that waits last, while messages may join it; those are counted when it is closed.
    """

    __slots__ = ("open_run",)

    def __init__(self, stream: Stream, epoch: int) -> None:
        super().__init__(stream, epoch)
        self.open_run: OpenRun | None = None

    def has_room(self, size: int, limits: Limits) -> bool:
        """Whether a message of `size` bytes on the wire may be appended; if none is there, one always may.

        What has joined is counted first.
        """
        self.close_run()
        return not self.queued or (
            self.queued < limits.max_queued_messages and self.queued_bytes + size <= limits.max_queued_bytes
        )

    def append(self, entry: Entry, limits: Limits) -> Entry | None:
        """Number and append messages, as far as there is room for them; returns what was appended, cut off `entry`."""
        if self.open_run is not None:
            self.close_run()
        room = limits.max_queued_messages - self.queued
        room_bytes = limits.max_queued_bytes - self.queued_bytes
        fits = entry.count <= room and entry.size <= room_bytes
        if not fits:
            fitting = 0 if isinstance(entry, Delivery) else min(room, entry.fitting(room_bytes))
            if fitting <= 0:
                if self.queued:
                    return None
                fitting = 1
            if isinstance(entry, Run) and fitting < entry.count:
                entry = entry.split(fitting)
        count, size, seq = entry.count, entry.size, self.next_seq
        # As in `close_run`: no call before the last step.
        entry.seq = seq
        self.next_seq = self.added_below = seq + count
        self.queued += count
        self.queued_bytes += size
        self.waiting.append(entry)
        if fits and self.stream is VOLATILE and isinstance(entry, Run):
            largest = min(MAX_JOINING_BYTES, max_data_size(limits.max_frame_bytes))
            room = min(room - count, (room_bytes - size) // packet_size(largest))
            # Where these are larger, so are those that follow, as a rule.
            if size <= count * packet_size(largest):
                self.open_run = OpenRun.of(entry, room, largest)
        return entry

    def close_run(self) -> None:
        """Number and count the messages that have joined the open run; no more do."""
        run = self.open_run
        if run is None:
            return
        behind = run.close()
        next_seq = self.next_seq + run.joined
        size = run.joined_bytes
        for other in behind:
            other.seq = next_seq
            next_seq += other.count
            size += other.size
        # Here no call is in between, and so no Ctrl-C, since CPython looks for signals where calls begin and end, and
        # where loops go back. Before this, it is all done again; behind it, it is done.
        self.queued += next_seq - self.next_seq
        self.queued_bytes += size
        self.next_seq = self.added_below = next_seq
        self.open_run = None
        self.waiting.extend(behind)

    def discard(self) -> list[Entry]:
        """As `OutStream.discard`, and also what has joined the open run."""
        self.close_run()
        return super().discard()
