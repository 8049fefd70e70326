"""`StorageMachine`: any sequence of calls on a queue storage, beside a model of plain lists and dictionaries.

What it asks for is what `QueueStorage` says, and nothing more. So `delete_below` may take effect at any time before
`close` returns: the model keeps each seq below which messages may be gone, and takes any of those for an answer.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netcomm.errors import StorageError, StorageLocked
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream
from netcomm.testing.storage_contract import Torn

Open = Callable[[bool], QueueStorage]
# What becomes one Append: the receiver, the epoch, and, for each message, how many seqs are passed over before it.
Draft = tuple[str, int, list[tuple[int, bytes, float, float | None]]]

# Few, and alike, so that they meet often.
idents = st.sampled_from(["bob", "ž.$"])
# From the seq that the stream's next message would have, on either side.
offsets = st.integers(-6, 2)
times = st.integers(0, 6).map(float)
lives = st.none() | st.sampled_from([0.0, 0.1, 2.0, 5.0])
epochs = st.sampled_from([0, 1, 2**32, 2**63 - 1])
counts = st.integers(1, 20)
payloads = st.binary(max_size=6) | st.integers(0, 40).map(bytes)
gaps = st.sampled_from([0, 0, 0, 0, 0, 1, 3, 2**40])
drafts = st.tuples(idents, epochs, st.lists(st.tuples(gaps, payloads, times, lives), max_size=6))
batches = st.lists(drafts, min_size=1, max_size=3)
positions = st.builds(Position, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


@dataclass
class Stream:
    """What the model knows of a stream.

    messages: those that were not deleted for certain.
    floors: seqs; what lies below one of them is gone, and it is the storage's choice below which. They rise.
    """

    epoch: int
    next_seq: int = 0
    sent_below: int = 0
    messages: list[StoredMessage] = field(default_factory=list)
    floors: list[int] = field(default_factory=lambda: [0])

    def possible(self, from_seq: int = 0) -> list[list[StoredMessage]]:
        """The messages at or above a seq, for each floor."""
        return [[message for message in self.messages if message.seq >= max(floor, from_seq)] for floor in self.floors]

    def settle(self) -> None:
        """Let the highest floor be the one."""
        self.messages = self.possible()[-1]
        del self.floors[:-1]


class StorageMachine(RuleBasedStateMachine):
    """The calls, each as a rule."""

    def __init__(self, opens: Open, has_place: bool = True) -> None:
        """Make it for one new storage.

        opens: opens it, for a look if its argument is true.
        has_place: whether it can be opened again.
        """
        super().__init__()
        self.opens = opens
        self.has_place = has_place
        self.streams: dict[str, Stream] = {}
        self.positions: dict[str, Position] = {}
        # The next seq of each stream behind those that were tried, and failed.
        self.untried: dict[str, int] = {}

    @initialize(found=batches)
    def open(self, found: list[Draft]) -> None:
        self.storage = self.opens(False)
        self.check(self.storage)
        self.append(found, False)

    @invariant()
    def what_is_there_is_read(self) -> None:
        for ident, stream in self.streams.items():
            assert _read_all(self.storage, ident) in stream.possible()

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            self.storage.close()

    def next_seq(self, ident: str) -> int:
        return self.streams[ident].next_seq if ident in self.streams else 0

    def seq_near(self, ident: str, offset: int) -> int:
        return max(0, self.next_seq(ident) + offset)

    # -- Changes ----------------------------------------------------------------------------------------------

    def batch_of(self, found: Iterable[Draft], again: bool) -> list[Append]:
        """Make a batch of drafts; `again` says whether it uses seqs that were tried before."""
        batch = []
        next_seqs = {ident: stream.next_seq for ident, stream in self.streams.items()}
        if not again:
            next_seqs |= {ident: max(seq, next_seqs.get(ident, 0)) for ident, seq in self.untried.items()}
        for ident, epoch, contents in found:
            seq = next_seqs.get(ident, 0)
            messages = []
            for gap, data, queued_at, ttl in contents:
                seq += gap
                messages.append(StoredMessage(seq, seq.to_bytes(16), data, queued_at, ttl))
                seq += 1
            next_seqs[ident] = seq
            batch.append(Append(ident, epoch, messages))
        self.untried |= next_seqs
        return batch

    @rule(found=batches, again=st.booleans())
    def append(self, found: list[Draft], again: bool) -> None:
        batch = self.batch_of(found, again)
        self.storage.append(batch)
        for append in batch:
            stream = self.streams.setdefault(append.ident, Stream(append.epoch))
            stream.messages += append.messages
            stream.next_seq = max([stream.next_seq, *(message.seq + 1 for message in append.messages)])

    @rule(found=batches, again=st.booleans())
    def append_and_fail(self, found: list[Draft], again: bool) -> None:
        *batch, last = self.batch_of(found, again)
        with pytest.raises(StorageError):
            self.storage.append([*batch, Append(last.ident, last.epoch, Torn(list(last.messages)))])

    @rule(ident=idents, offset=offsets)
    def delete_below(self, ident: str, offset: int) -> None:
        seq = self.seq_near(ident, offset)
        self.storage.delete_below(ident, seq)
        if ident in self.streams:
            stream = self.streams[ident]
            floor = min(seq, stream.next_seq)  # what is appended later is not meant
            if floor > stream.floors[-1]:
                stream.floors.append(floor)

    @rule(ident=idents, some=st.lists(offsets, max_size=5))
    def delete(self, ident: str, some: list[int]) -> None:
        seqs = [self.seq_near(ident, offset) for offset in some]
        self.storage.delete(ident, seqs)
        if ident in self.streams:
            stream = self.streams[ident]
            stream.messages = [message for message in stream.messages if message.seq not in seqs]

    @rule(ident=idents, offset=offsets)
    def mark_sent(self, ident: str, offset: int) -> None:
        below = self.seq_near(ident, offset)
        self.storage.mark_sent(ident, below)
        if ident in self.streams:
            self.streams[ident].sent_below = below

    @rule(ident=idents, epoch=epochs)
    def renew(self, ident: str, epoch: int) -> None:
        self.storage.renew(ident, epoch)
        if ident in self.streams:
            stream = self.streams[ident]
            stream.epoch, stream.sent_below = epoch, stream.next_seq

    @rule(some=st.dictionaries(idents, positions, max_size=3))
    def store_positions(self, some: dict[str, Position]) -> None:
        self.storage.store_positions(some)
        self.positions |= some

    # -- Looks ------------------------------------------------------------------------------------------------

    @rule(ident=idents, offset=offsets, max_count=counts, max_bytes=st.integers(0, 60))
    def read(self, ident: str, offset: int, max_count: int, max_bytes: int) -> None:
        from_seq = self.seq_near(ident, offset)
        found = self.storage.read(ident, from_seq, max_count, max_bytes)
        assert found in [_first(messages, max_count, max_bytes) for messages in self.possible(ident, from_seq)]

    @rule(ident=idents, offset=offsets, now=st.integers(0, 11).map(float), max_count=counts)
    def expired(self, ident: str, offset: int, now: float, max_count: int) -> None:
        from_seq = self.seq_near(ident, offset)
        found, following = self.storage.expired(ident, from_seq, now, max_count)
        assert any(
            _is_answer(found, following, messages, now, max_count) for messages in self.possible(ident, from_seq)
        )

    @rule()
    def look_at_all(self) -> None:
        self.check(self.storage)

    @precondition(lambda self: self.has_place)
    @rule()
    def look_from_elsewhere(self) -> None:
        with self.opens(True) as look:
            assert (look.store_id, look.incarnation) == (self.storage.store_id, self.storage.incarnation)
            self.check(look)

    def possible(self, ident: str, from_seq: int = 0) -> list[list[StoredMessage]]:
        return self.streams[ident].possible(from_seq) if ident in self.streams else [[]]

    def check(self, storage: QueueStorage) -> None:
        """Compare everything that a storage says with the model."""
        assert storage.positions() == self.positions
        found = storage.streams()
        assert sorted(stream.ident for stream in found) == sorted(self.streams)
        for summary in found:
            stream = self.streams[summary.ident]
            assert summary in [_summary(summary.ident, stream, messages) for messages in stream.possible()]
            assert _read_all(storage, summary.ident) in stream.possible()

    # -- Life -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.has_place)
    @rule()
    def reopen(self) -> None:
        store_id, incarnation = self.storage.store_id, self.storage.incarnation
        with pytest.raises(StorageLocked):
            self.opens(False)
        self.storage.close()
        with pytest.raises(StorageError):
            self.storage.streams()
        for stream in self.streams.values():
            stream.settle()
        self.storage = self.opens(False)
        assert self.storage.store_id == store_id
        assert self.storage.incarnation > incarnation
        self.check(self.storage)


def _read_all(storage: QueueStorage, ident: str) -> list[StoredMessage]:
    return storage.read(ident, 0, 10**6, 2**40)


def _first(messages: list[StoredMessage], max_count: int, max_bytes: int) -> list[StoredMessage]:
    """The messages that a read with these limits returns."""
    found: list[StoredMessage] = []
    for message in messages[:max_count]:
        found.append(message)
        if sum(len(message.data) for message in found) >= max_bytes:
            break
    return found


def _is_answer(
    found: list[StoredMessage], following: float | None, messages: list[StoredMessage], now: float, max_count: int
) -> bool:
    """Whether this is what `expired` may say of these messages: which of too many it returns is its own choice."""
    mortal = [(message.expires_at, message) for message in messages if message.expires_at is not None]
    over = [message for expires_at, message in mortal if expires_at <= now]
    return (
        all(message in over for message in found)
        and len({message.seq for message in found}) == len(found) == min(len(over), max_count)
        and following == min((expires_at for expires_at, _ in mortal if expires_at > now), default=None)
    )


def _summary(ident: str, stream: Stream, messages: list[StoredMessage]) -> StoredStream:
    """The stream with these messages."""
    return StoredStream(
        ident,
        stream.epoch,
        stream.next_seq,
        stream.sent_below,
        len(messages),
        sum(len(message.data) for message in messages),
        messages[0].queued_at if messages else None,
        min((message.expires_at for message in messages if message.expires_at is not None), default=None),
        messages[-1].queued_at if messages else None,
    )
