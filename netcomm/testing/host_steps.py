"""Rows and steps of which the tests of a `HostStorage` are made, and what they read from one."""

from typing import Any

from netcomm.host_storage import HostPosition, HostRow, HostStep, HostStorage, PositionKey
from netcomm.message import Stream
from netcomm.storage import StoredStream

EVERYTHING = 10**6
NOW = 1_700_000_000.25
BUS = Stream.BUS_DURABLE
KEY: PositionKey = ("bob", Stream.BUS_VOLATILE)
PLACE = HostPosition(1, 2, NOW)

NAMES = [
    "a",
    "a ",
    " a",
    "A",
    "á",
    "a\u0301",
    "with.dots.",
    ".",
    "$dollar",
    "prices.#",
    "queue/tasks.dead",
    "quotes'\"`",
    "per%20cent%",
    "line\nend",
    "名前",
    "x" * 512,
    "ž" * 256,
]

STEPS: dict[str, HostStep] = {
    "dropped": HostStep(dropped=["tasks"]),
    "next_numbers": HostStep(next_numbers={"tasks": 100}),
    "a new log": HostStep(next_numbers={"new": 0}),
    "appended": HostStep(appended={"tasks": [HostRow(50, b"x", b"", NOW)]}),
    "changed": HostStep(changed={"tasks": {0: b"changed"}}),
    "deleted": HostStep(deleted={"tasks": [(0, 1)]}),
    "marks": HostStep(marks={"mark": 7}),
    "a forgotten mark": HostStep(marks={"there": None}),
    "documents": HostStep(documents={"document": b"x"}),
    "a forgotten document": HostStep(documents={"there": None}),
    "positions": HostStep(positions={("eve", BUS): PLACE}),
    "a forgotten position": HostStep(positions={KEY: None}),
}
"""Steps that change what `some_of_everything` stores, each in one way."""

BAD_STEPS: dict[str, HostStep] = {
    "numbers that do not rise": HostStep(appended={"tasks": [HostRow(60, b"", b"", NOW), HostRow(60, b"", b"", NOW)]}),
    "a number below 0": HostStep(appended={"tasks": [HostRow(-1, b"", b"", NOW)]}),
    "a number that is too large": HostStep(appended={"tasks": [HostRow(2**63 - 1, b"", b"", NOW)]}),
    "a next number of 64 bits": HostStep(next_numbers={"tasks": 2**63}),
    "a mark that is too large": HostStep(marks={"mark": 2**63 - 1}),
    "a mark below 0": HostStep(marks={"mark": -1}),
    "a name without a character": HostStep(next_numbers={"": 1}),
    "a name with NUL": HostStep(documents={"a\0b": b""}),
    "a name of 513 bytes": HostStep(marks={"x" * 513: 1}),
    "a name that is no UTF-8": HostStep(dropped=["\ud800"]),
    "a position in the durable stream": HostStep(positions={("bob", Stream.DURABLE): PLACE}),
}

some_of_everything = HostStep(
    appended={"tasks": [HostRow(number, b"%d" % number, b"envelope", NOW + number) for number in range(5)]},
    marks={"there": 3},
    documents={"there": b"content"},
    positions={KEY: PLACE},
)


def row(number: int, data: bytes = b"data", envelope: bytes = b"", state: bytes = b"") -> HostRow:
    """A row whose time follows from its number."""
    return HostRow(number, data, envelope, NOW + number, state)


def rows(*numbers: int) -> list[HostRow]:
    """Rows with these numbers."""
    return [row(number) for number in numbers]


def all_rows(storage: HostStorage, log: str) -> list[HostRow]:
    """Every row of a log."""
    return storage.rows(log, 0, EVERYTHING, 2**40)


def numbers(storage: HostStorage, log: str) -> list[int]:
    """The numbers of a log's rows."""
    return [row.number for row in all_rows(storage, log)]


def everything(storage: HostStorage) -> tuple[object, ...]:
    """All that a storage keeps for a host."""
    logs = storage.logs()
    return (
        logs,
        {name: all_rows(storage, name) for name in logs},
        storage.marks(),
        storage.documents(),
        storage.host_positions(),
    )


def streams(storage: HostStorage) -> dict[tuple[str, Stream], StoredStream]:
    """What a storage says of its durable streams."""
    return {(stream.ident, stream.stream): stream for stream in storage.streams()}


def renamed(step: HostStep, name: str) -> HostStep:
    """A step that concerns one log, mark, document and sender, for those of another name."""
    changed: dict[str, Any] = {}
    for part, value in step._asdict().items():
        if part == "positions":
            changed[part] = dict.fromkeys([(name, BUS)] * len(value), *value.values())
        elif part != "dropped":
            changed[part] = dict.fromkeys([name] * len(value), *value.values())
    return step._replace(**changed)
