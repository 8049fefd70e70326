"""The owner's changes to `rows` and `row_parts`: inserting rows, and removing those that are gone."""

from collections.abc import Collection, Iterable, Sequence

from pymongo import ASCENDING, UpdateOne

from netcomm.host_storage import HostRow
from netcomm_mongodb.bulk import remove_range, slices
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import Document, decoded
from netcomm_mongodb.head import Head
from netcomm_mongodb.host_documents import BY_STEP, LogRecord, number_of, row_document, row_id, state_fields
from netcomm_mongodb.inserter import Inserter

Ranges = Collection[tuple[int, int]]

_FEW = 100


class Rows:
    """The rows as their owner changes them; one thread at a time."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self._inserter = Inserter(connection, head, "step")
        self._has_index = False
        self._has_parts: bool | None = None

    def insert(self, rows: list[Document], parts: list[Document]) -> None:
        """Insert the rows of a step, in place of debris."""
        if not self._has_index:
            self._connection.rows.create_index([("step", ASCENDING)], name=BY_STEP)
            self._has_index = True
        if parts:
            self._has_parts = True
        for part in parts:
            self._inserter.insert(self._connection.row_parts, [part])
        self._inserter.insert(self._connection.rows, rows)

    def replace(self, log: LogRecord, rows: Iterable[HostRow]) -> None:
        """Give rows that are there another payload; their states stay. A step that comes again has the same ones."""
        for row in rows:
            document, parts = row_document(log.key, row, 0)
            if parts:
                self._has_parts = True
            for part in parts:
                self._connection.row_parts.replace_one({"_id": part["_id"]}, part, upsert=True)
            kept = ("step", "state", "state_version", "state_checksum", "_id")
            change = {field: value for field, value in document.items() if field not in kept}
            self._connection.rows.update_one({"_id": document["_id"]}, {"$set": change})

    def sizes(self, wanted: Iterable[tuple[LogRecord, Ranges, Collection[int]]]) -> dict[str, dict[int, int]]:
        """Of rows of logs, in ranges and with some numbers, those that are there: sizes in bytes by log and number."""
        logs = {}
        ids: list[str] = []
        filters: list[Document] = []
        for log, ranges, numbers in wanted:
            key = log.key
            logs[key] = log
            ids += [row_id(key, number) for number in numbers]
            for low, high in ranges:
                if high - low <= _FEW:
                    ids += [row_id(key, number) for number in range(low, high)]
                else:
                    filters.append({"_id": {"$gte": row_id(key, low), "$lt": row_id(key, high)}})
        filters += [{"_id": {"$in": some}} for some in slices(ids)]
        found: dict[str, dict[int, int]] = {log.name: {} for log in logs.values()}
        for which in filters:
            for document in self._connection.rows.find(which, {"size": 1, "step": 1}):
                key, number, size, step = decoded(_counted, document)
                if logs[key].has(number) and self._head.host.said.made(step):
                    found[logs[key].name][number] = size
        return found

    def withdraw(self, steps: Ranges) -> None:
        """Remove the rows of steps that were not made."""
        for low, high in steps:
            self._connection.rows.delete_many({"step": {"$gte": low, "$lt": high}})
            if self._parts_exist():
                self._connection.row_parts.delete_many({"step": {"$gte": low, "$lt": high}})

    def remove_log(self, key: str) -> None:
        """Remove all rows of the log with that key."""
        self._remove_range(f"{key}.", f"{key}/")

    def remove_contents(self, ids: list[str]) -> None:
        """Remove contents of documents."""
        for some in slices(ids):
            self._connection.rows.delete_many({"_id": {"$in": some}})
        if self._parts_exist():
            for id in ids:
                remove_range(self._connection.row_parts, f"{id}.", f"{id}/")

    def remove_holes(self, logs: Iterable[LogRecord]) -> None:
        """Remove the rows of logs that these say are deleted."""
        ids: list[str] = []
        for log in logs:
            key = log.key
            for low, high in zip(log.holes[::2], log.holes[1::2], strict=True):
                if high - low <= _FEW and not self._parts_exist():
                    ids += [row_id(key, number) for number in range(low, high)]
                else:
                    self._remove_range(row_id(key, low), row_id(key, high))
        for some in slices(ids):
            self._connection.rows.delete_many({"_id": {"$in": some}})

    def give_states(self, logs: Iterable[LogRecord]) -> None:
        """Give rows of logs the states that these say they have."""
        changes = [
            UpdateOne(
                {"_id": row_id(key, number), "state_version": {"$lt": log.version}},
                {"$set": state_fields(number, state, log.version)},
            )
            for log in logs
            for key in [log.key]
            for number, state in log.states
        ]
        for some in slices(changes):
            self._connection.rows.bulk_write(some, ordered=False)

    def _remove_range(self, start: str, end: str) -> None:
        remove_range(self._connection.rows, start, end)
        if self._parts_exist():
            remove_range(self._connection.row_parts, start, end)

    def _parts_exist(self) -> bool:
        if self._has_parts is None:
            self._has_parts = self._connection.row_parts.find_one({}, {"_id": 1}) is not None
        return self._has_parts


def _counted(document: Document) -> tuple[str, int, int, int]:
    key = document["_id"].partition(".")[0]
    return key, number_of(document), int(document["size"]), int(document["step"])


def joined(ranges: Sequence[int], more: Ranges) -> tuple[int, ...]:
    """Ranges, as where each begins and ends, with more of them."""
    found: list[int] = []
    for low, high in sorted([*zip(ranges[::2], ranges[1::2], strict=True), *more]):
        if found and low <= found[-1]:
            found[-1] = max(found[-1], high)
        else:
            found += low, high
    return tuple(found)
