"""A process that commits steps of a host, one after the other, and may be told to die in one of them.

Step number N appends row N to the log "tasks", changes the state of the row before it, and deletes the third one before
it; mark, document and position say N, and a log of one row is dropped and begins anew. So all of them must agree,
whenever the process dies: `steps_kept` fails where they do not.
"""

from typing import Any

from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep, HostStorage
from netcomm.message import Stream
from netcomm.testing.host_steps import all_rows
from netcomm_sqlite import SqliteQueueStorage
from tests.faults.crash import die
from tests.faults.helpers import Line

KEY = ("client", Stream.BUS_DURABLE)


def step(number: int) -> HostStep:
    return HostStep(
        dropped=["last"],
        appended={
            "tasks": [HostRow(number, b"row %d" % number * 50, b"envelope", float(number))],
            "last": [HostRow(number, b"", b"", 0.0)],
        },
        changed={"tasks": {number - 1: b"attempt %d" % number}},
        deleted={"tasks": [(number - 3, number - 2)]},
        marks={"mark": number},
        documents={"document": b"%d" % number},
        positions={KEY: HostPosition(1, number, float(number))},
    )


def steps_kept(storage: HostStorage) -> int:
    """How many steps the storage has; fails where its parts do not agree."""
    position = storage.host_positions().get(KEY)
    if position is None:
        assert (storage.logs(), storage.marks(), storage.documents()) == ({}, {}, {})
        return 0
    last = position.next_seq
    assert position == HostPosition(1, last, float(last))
    assert storage.marks() == {"mark": last}
    assert storage.documents() == {"document": b"%d" % last}
    states = {last: b""}
    kept = [
        HostRow(n, b"row %d" % n * 50, b"envelope", float(n), states.get(n, b"attempt %d" % (n + 1)))
        for n in range(max(1, last - 2), last + 1)
    ]
    assert all_rows(storage, "tasks") == kept
    assert all_rows(storage, "last") == [HostRow(last, b"", b"", 0.0)]
    size = sum(len(row.data) + len(row.envelope) for row in kept)
    assert storage.logs()["tasks"] == HostLog(last + 1, len(kept), size, kept[0].number, kept[0].stored_at, float(last))
    return last


def main(config: dict[str, Any]) -> None:
    """Commit steps to `path` and note in `done` the number of each that is stored, until killed or `last` is reached.

    crash: a step, and the statement of SQLite in the course of it at which the process kills itself; 0 for the moment
        when the commit has returned. None: never.
    """
    noted = Line(config["done"])
    doomed, statement = config["crash"] or (None, None)
    left: int | None = None

    def trace(sql: str) -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0:
                die()

    with SqliteQueueStorage(config["path"], durability="process") as storage:
        storage.database.conn.set_trace_callback(trace)
        for number in range(steps_kept(storage) + 1, config["last"] + 1):
            if number == doomed and statement:
                left = statement
            storage.commit([step(number)])
            left = None
            if number == doomed and statement == 0:
                die()
            noted(str(number))
