"""Reading `rows` and `row_parts`: the rows and contents that are there, without debris, for owner and readers."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial

from pymongo import ASCENDING, DESCENDING

from netcomm.host_storage import HostLog, HostRow
from netcomm_mongodb.bulk import slices
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import Document, decoded
from netcomm_mongodb.host_documents import (
    HostHead,
    LogRecord,
    number_of,
    row_id,
    stored_content,
    stored_row,
)
from netcomm_mongodb.parts import is_whole

_MAX_LIMIT = 2**31 - 1
_READ_AHEAD = 10_000
_Ends = tuple[Document, Document]


class RowReader:
    """Reads rows of a log, which the caller names as the head has it. Any thread may call it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, log: LogRecord, said: HostHead, from_number: int, max_count: int, max_bytes: int) -> list[HostRow]:
        """The first rows at or above `from_number`, as `HostStorage.rows` returns them."""
        average = log.size // max(log.count, 1) + 1
        batch_size = max(1, min(max_count, max_bytes // average + 1, _READ_AHEAD))
        states = dict(log.states)
        found: list[HostRow] = []
        start = from_number
        while len(found) < max_count:
            limit = min(max_count - len(found), _MAX_LIMIT)
            seen = 0
            with self._connection.rows.find(
                _within(log, start), sort=[("_id", ASCENDING)], limit=limit, batch_size=batch_size
            ) as cursor:
                for document in cursor:
                    seen += 1
                    start = number_of(document) + 1
                    if not _is_there(log, said, document) or not self._is_whole(document):
                        continue
                    row = decoded(partial(stored_row, log), document)
                    if row.number in states:
                        row = row._replace(state=states[row.number])
                    found.append(row)
                    max_bytes -= len(row.data) + len(row.envelope)
                    if max_bytes <= 0:
                        return found
            if seen < limit:
                break
            # Debris was among them, in whose place there may be others.
        return found

    def summaries(self, logs: Collection[LogRecord], said: HostHead) -> dict[str, HostLog]:
        """What `HostStorage.logs` says of logs."""
        few = sum([log.count for log in logs]) <= _READ_AHEAD
        found = self._ends_of_few(logs, said) if few else self._ends(logs, said)
        return {log.name: _summary(log, found.get(log.key)) for log in logs}

    def _ends(self, logs: Iterable[LogRecord], said: HostHead) -> dict[str, _Ends]:
        """The first and the last row of logs, by their keys."""
        found = {}
        for log in logs:
            if log.count:
                first = self._outermost(log, said, ASCENDING)
                last = self._outermost(log, said, DESCENDING)
                if first is not None and last is not None:
                    found[log.key] = first, last
        return found

    def _ends_of_few(self, logs: Iterable[LogRecord], said: HostHead) -> dict[str, _Ends]:
        """The same with one request, where there are few rows in all."""
        by_key = {log.key: log for log in logs}
        found: dict[str, _Ends] = {}
        for document in self._connection.rows.find({}, {"stored_at": 1, "step": 1}):
            log = by_key.get(document["_id"].partition(".")[0])
            if log is not None and _is_there(log, said, document):
                first, last = found.get(log.key, (document, document))
                found[log.key] = (
                    min(first, document, key=number_of),
                    max(last, document, key=number_of),
                )
        return found

    def contents(self, ids: Mapping[str, str]) -> dict[str, bytes]:
        """The contents of documents by name; ids: where they are. Those that were deleted meanwhile are missing."""
        found = {}
        for some in slices(list(ids.values())):
            for document in self._connection.rows.find({"_id": {"$in": some}}):
                if self._is_whole(document):
                    found[document["_id"]] = decoded(stored_content, document)
        return {name: found[id] for name, id in ids.items() if id in found}

    def _outermost(self, log: LogRecord, said: HostHead, direction: int) -> Document | None:
        with self._connection.rows.find(
            _within(log, 0),
            {"stored_at": 1, "step": 1},
            sort=[("_id", direction)],
            batch_size=10,  # more than one, for there may be debris
        ) as cursor:
            return next((document for document in cursor if _is_there(log, said, document)), None)

    def _is_whole(self, document: Document) -> bool:
        return is_whole(self._connection.rows, self._connection.row_parts, document)


def _within(log: LogRecord, from_number: int) -> Document:
    key = log.key
    return {"_id": {"$gte": row_id(key, from_number), "$lt": row_id(key, log.next_number)}}


def _is_there(log: LogRecord, said: HostHead, document: Document) -> bool:
    return log.has(number_of(document)) and said.made(decoded(lambda found: int(found["step"]), document))


def _summary(log: LogRecord, ends: _Ends | None) -> HostLog:
    return HostLog(
        next_number=log.next_number,
        count=log.count,
        size=log.size,
        first_number=None if ends is None else number_of(ends[0]),
        oldest_at=None if ends is None else _stored_at(ends[0]),
        newest_at=None if ends is None else _stored_at(ends[1]),
    )


def _stored_at(document: Document) -> float:
    return decoded(lambda found: float(found["stored_at"]), document)
