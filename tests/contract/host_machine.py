"""`HostMachine`: any sequence of steps on a `HostStorage`, beside one in memory, which makes them one by one.

Both must keep the same afterwards, whatever was made together, however often the storage was closed or its process
died, and whatever was committed again.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netcomm.errors import ConfigurationError, StorageLocked
from netcomm.host_storage import HostPosition, HostRow, HostStep, HostStorage
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import Stream
from netcomm.storage import Append, StoredMessage
from netcomm.testing.host_steps import everything, streams

# Few, and alike, so that they meet often. One is also a receiver's.
names = st.sampled_from(["bob", "tasks", "ž.$"])
logs = st.lists(names, max_size=2, unique=True)
contents = st.binary(max_size=6) | st.integers(0, 40).map(bytes)
# From the number that the log's next row would have, on either side.
offsets = st.integers(-6, 2)
gaps = st.sampled_from([0, 0, 0, 0, 0, 1, 3, 2**40])
times = st.integers(0, 6).map(float)
drafts = st.lists(st.tuples(gaps, contents, contents, times, st.binary(max_size=2)), max_size=5)
numbers = st.integers(0, 2**63 - 2) | st.integers(0, 5)
keys = st.tuples(names, st.sampled_from([Stream.BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE]))
positions = st.builds(HostPosition, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), times)


def few(values: st.SearchStrategy[Any], of: st.SearchStrategy[Any] = names) -> st.SearchStrategy[dict[Any, Any]]:
    return st.dictionaries(of, values, max_size=2)


sketches = st.fixed_dictionaries(
    {},
    optional={
        "dropped": logs,
        "next_numbers": few(offsets),
        "appended": few(drafts),
        "changed": few(st.dictionaries(offsets, st.binary(max_size=3), max_size=3)),
        "deleted": few(st.lists(st.tuples(offsets, st.integers(-1, 4)), max_size=4)),
        "marks": few(st.none() | numbers),
        "documents": few(st.none() | contents),
        "positions": few(st.none() | positions, keys),
    },
)
Sketch = dict[str, Any]


class HostMachine(RuleBasedStateMachine):
    """The calls, each as a rule."""

    def __init__(
        self,
        opens: Callable[[bool], HostStorage],
        has_place: bool = True,
        die: Callable[[], Callable[[bool], HostStorage]] | None = None,
    ) -> None:
        """Make it for one new storage.

        opens: opens it, for a look if its argument is true.
        has_place: whether it can be opened again.
        die: brings about what is left when the storage's process dies now; returns what opens that.
        """
        super().__init__()
        self.opens = opens
        self.has_place = has_place
        self.die = die
        self.model = MemoryQueueStorage()
        self.last: list[HostStep] = []

    @initialize(found=st.lists(sketches, min_size=1, max_size=2))
    def open(self, found: list[Sketch]) -> None:
        self.storage = self.opens(False)
        self.commit(found)

    @invariant()
    def both_keep_the_same(self) -> None:
        if hasattr(self, "storage"):
            assert everything(self.storage) == everything(self.model)

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            self.storage.close()

    def steps_of(self, found: list[Sketch]) -> list[HostStep]:
        """Make steps of sketches: what says how far from a log's next number becomes a number."""
        following = {name: log.next_number for name, log in self.model.logs().items()}
        steps = []
        for sketch in found:
            step = dict(sketch)
            following |= dict.fromkeys(step.get("dropped", ()), 0)

            def near(name: str, offset: int) -> int:
                return min(max(0, following.get(name, 0) + offset), 2**63 - 2)  # noqa: B023 - called in this round

            step["next_numbers"] = {name: near(name, offset) for name, offset in step.get("next_numbers", {}).items()}
            following |= {name: max(following.get(name, 0), end) for name, end in step["next_numbers"].items()}
            appended: Mapping[str, list[Any]] = step.get("appended", {})
            step["appended"] = {}
            for name, rows in appended.items():
                step["appended"][name] = []
                for gap, *values in rows:
                    number = following.get(name, 0) + gap
                    if number < 2**63 - 1:
                        step["appended"][name].append(HostRow(number, *values))
                        following[name] = number + 1
            step["changed"] = {
                name: {near(name, offset): state for offset, state in states.items()}
                for name, states in step.get("changed", {}).items()
            }
            step["deleted"] = {
                name: [(near(name, offset), near(name, offset + length)) for offset, length in ranges]
                for name, ranges in step.get("deleted", {}).items()
            }
            steps.append(HostStep(**step))
        return steps

    @rule(found=st.lists(sketches, max_size=5))
    def commit(self, found: list[Sketch]) -> None:
        self.last = self.steps_of(found)
        self.storage.commit(self.last)
        for step in self.last:
            self.model.commit([step])

    @rule()
    def commit_again(self) -> None:
        self.storage.commit(self.last)
        self.model.commit(self.last)

    @rule(found=st.lists(sketches, max_size=3))
    def commit_and_fail(self, found: list[Sketch]) -> None:
        with pytest.raises(ConfigurationError):
            self.storage.commit([*self.steps_of(found), HostStep(marks={"bob": -1})])

    @rule(name=names, offset=offsets, max_count=st.integers(1, 9), max_bytes=st.integers(0, 60))
    def read(self, name: str, offset: int, max_count: int, max_bytes: int) -> None:
        log = self.model.logs().get(name)
        start = max(0, offset + (0 if log is None else log.next_number))
        found = self.storage.rows(name, start, max_count, max_bytes)
        assert found == self.model.rows(name, start, max_count, max_bytes)

    @rule(ident=names, stream=st.sampled_from([Stream.DURABLE, Stream.BUS_DURABLE]), envelope=contents, data=contents)
    def append(self, ident: str, stream: Stream, envelope: bytes, data: bytes) -> None:
        known = streams(self.model).get((ident, stream))
        seq = 0 if known is None else known.next_seq
        batch = [Append(ident, 1, [StoredMessage(seq, bytes(16), data, 1.0, None, envelope)], stream)]
        self.storage.append(batch)
        self.model.append(batch)
        assert streams(self.storage) == streams(self.model)

    @rule(ident=names, stream=st.sampled_from([Stream.DURABLE, Stream.BUS_DURABLE]), seq=st.integers(0, 4))
    def delete(self, ident: str, stream: Stream, seq: int) -> None:
        for storage in (self.storage, self.model):
            storage.delete(ident, [seq], stream=stream)
            storage.mark_sent(ident, seq, stream=stream)
        assert self.storage.read(ident, 0, 99, 999, stream=stream) == self.model.read(ident, 0, 99, 999, stream=stream)
        assert streams(self.storage) == streams(self.model)

    @precondition(lambda self: self.has_place)
    @rule()
    def look_from_elsewhere(self) -> None:
        with self.opens(True) as look:
            assert everything(look) == everything(self.model)
            assert streams(look) == streams(self.model)

    @precondition(lambda self: self.has_place)
    @rule()
    def reopen(self) -> None:
        with pytest.raises(StorageLocked):
            self.opens(False)
        self.storage.close()
        self.storage = self.opens(False)
        assert streams(self.storage) == streams(self.model)

    @precondition(lambda self: self.die is not None)
    @rule()
    def die_and_open(self) -> None:
        assert self.die is not None
        opens = self.die()
        self.storage.close()
        self.opens = opens
        self.storage = opens(False)
        assert streams(self.storage) == streams(self.model)
