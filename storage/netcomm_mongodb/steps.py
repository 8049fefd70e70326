"""A host's steps: what they change, as one update of the head."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from pymongo.errors import PyMongoError

from netcomm.errors import StorageLocked
from netcomm.host_changes import HostChanges, LogChanges
from netcomm.host_storage import HostPosition, HostRow, PositionKey
from netcomm.logs import Log
from netcomm_mongodb.documents import Document
from netcomm_mongodb.head import Head
from netcomm_mongodb.host_documents import (
    DocumentRecord,
    Gone,
    HostPositionRecord,
    LogRecord,
    MarkRecord,
    Record,
    content_document,
    content_id,
    first_step,
    row_document,
)
from netcomm_mongodb.host_part import HostPart, HostUpdate
from netcomm_mongodb.rows import Rows, joined
from netcomm_mongodb.sweeper import Sweeper

_log = Log("netcomm.mongodb")


class _Draft:
    """What a step is going to change; number: the step's."""

    def __init__(self, number: int, host: HostPart) -> None:
        self.number = number
        self.records: dict[str, Record] = {}
        self.removals: list[str] = []
        self.rows: list[Document] = []
        self.parts: list[Document] = []
        self.again: list[tuple[LogRecord, list[HostRow]]] = []
        # Of logs, how many rows are deleted or changed.
        self.waiting: dict[str, int] = {}
        self._host = host

    def add(self, record: Record) -> None:
        self.records[record.id] = record

    def insert(self, found: tuple[Document, list[Document]]) -> None:
        row, parts = found
        self.rows.append(row)
        self.parts += parts

    def change_marks(self, forgotten: Collection[str], marks: Iterable[tuple[str, int]]) -> None:
        for name in forgotten:
            self.add(Gone(MarkRecord.SORT + name))
        for name, number in marks:
            before = None if name in forgotten else self._host.marks.get(name)
            if before is None or before < number:
                self.add(MarkRecord(name, number))

    def change_documents(self, documents: Iterable[tuple[str, bytes | None]]) -> None:
        for index, (name, content) in enumerate(documents):
            before = self._host.contents.get(name)
            if before is not None:
                self.removals.append(before)
            if content is None:
                self.add(Gone(DocumentRecord.SORT + name))
            else:
                id = content_id(self.number, index)
                self.insert(content_document(id, content, self.number))
                self.add(DocumentRecord(name, id))

    def change_positions(self, positions: Iterable[tuple[PositionKey, HostPosition | None]]) -> None:
        for place, position in positions:
            self.add(Gone(HostPositionRecord.id_of(place)) if position is None else HostPositionRecord(place, position))

    def update(self) -> HostUpdate:
        said = self._host.said.after(self.number)
        return HostUpdate(replace(said, removals=(*said.removals, *self.removals)), self.records.values())


class _LogDraft:
    """What a step is going to change in a log.

    before: the log as the step finds it.
    deleted: ranges of rows. again: numbers of rows that are appended, and may be there.
    """

    def __init__(self, before: LogRecord, change: LogChanges, again: list[int]) -> None:
        self.before = before
        self.deleted = _below(_without(change.deleted, again), before.next_number)
        self.again = again
        self._change = change

    def change(self, draft: _Draft, there: Mapping[int, int]) -> None:
        """Add it to a step; there: of the rows that are deleted, or appended again, the sizes of those there are."""
        log, change = self.before, self._change
        key = log.key
        size = 0
        again = []
        for row in change.appended.values():
            size += len(row.data) + len(row.envelope)
            if row.number in there:
                again.append(row)
            else:
                draft.insert(row_document(key, row, draft.number))
        if again:
            draft.again.append((log, again))
        after = replace(
            log,
            next_number=max(log.next_number, change.next_number or 0),
            count=log.count + len(change.appended) - len(there),
            size=log.size + size - sum(there.values()),
            holes=joined(log.holes, self.deleted) if len(there) > len(again) else log.holes,
        )
        states = {number: state for number, state in log.states if number not in change.appended}
        states |= change.changed | {row.number: row.state for row in again}
        kept = [(number, state) for number, state in states.items() if number < log.next_number and after.has(number)]
        after = replace(after, states=tuple(kept))
        if after != log:
            draft.add(after)
            draft.waiting[log.name] = len(there) + len(change.changed)


class Steps:
    """Makes the steps of a host, for the owner; one thread at a time.

    name: what texts call the storage.
    """

    def __init__(self, name: str, head: Head, rows: Rows, sweeper: Sweeper) -> None:
        self._name = name
        self._head = head
        self._host = head.host
        self._rows = rows
        self._sweeper = sweeper
        self._tried = 0

    def load(self, incarnation: int) -> None:
        """Number the steps from those of this owner on, once the head is loaded."""
        self._tried = max(first_step(incarnation), self._host.said.step)

    def commit(self, changes: HostChanges) -> None:
        """Make the change, all of it or nothing. Raises StorageError."""
        if self._head.commit_in_doubt:
            self._head.commit()  # rows of a step that may have been made must not be replaced
        draft = _Draft(self._tried + 1, self._host)
        self._change_logs(draft, changes.logs)
        draft.change_marks(changes.forgotten_marks, changes.marks.items())
        draft.change_documents(changes.documents.items())
        draft.change_positions(changes.positions.items())
        self._tried = draft.number
        try:
            if draft.rows:
                self._rows.insert(draft.rows, draft.parts)
            for log, again in draft.again:
                self._rows.replace(log, again)
            made = self._host.said.step
            self._head.commit(host=draft.update())
        except StorageLocked:
            self._withdraw(draft.number)
            raise
        if made + 1 < draft.number:
            self._sweeper.note_failed(made + 1, draft.number)
        for name, count in draft.waiting.items():
            self._sweeper.note(name, count)
        self._sweeper.do_when_much_waits()

    def _change_logs(self, draft: _Draft, changes: Mapping[str, LogChanges]) -> None:
        again = {
            name: numbers
            for name, change in changes.items()
            if not change.dropped and (numbers := self._rows_again(name, change))
        }
        # No row may come to lie where rows are still to be removed.
        self._sweeper.sweep([name for name, rows in again.items() if not all(map(self._host.logs[name].has, rows))])
        drafts = [
            _LogDraft(before, change, again.get(name, []))
            for name, change in changes.items()
            if (before := self._log_before(draft, name, change)) is not None
        ]
        there = self._rows.sizes([(log.before, log.deleted, log.again) for log in drafts if log.deleted or log.again])
        for log in drafts:
            log.change(draft, there.get(log.before.name, {}))

    def _rows_again(self, name: str, change: LogChanges) -> list[int]:
        """The numbers of rows that were stored before: the step comes again."""
        log = self._host.logs.get(name)
        return [] if log is None else [number for number in change.appended if number < log.next_number]

    def _log_before(self, draft: _Draft, name: str, change: LogChanges) -> LogRecord | None:
        """A log as the step finds it, also where it begins it; None where there is none."""
        log = self._host.logs.get(name)
        if change.dropped and log is not None:
            draft.removals.append(log.key)
            draft.add(Gone(log.id))
            log = None
        if log is None and change.next_number is not None:
            log = LogRecord(name, draft.number)
            draft.add(log)
        return log

    def _withdraw(self, step: int) -> None:
        """Remove the rows of a step that this owner, which no longer is one, could not have made."""
        try:
            self._rows.withdraw([(step, step + 1)])
        except PyMongoError as error:
            _log.debug("%s: debris is left: %s", self._name, error)


def _below(ranges: Iterable[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    return [(low, min(high, end)) for low, high in ranges if low < end]


def _without(ranges: Iterable[tuple[int, int]], numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges without single numbers, which rise."""
    for low, high in ranges:
        for number in numbers:
            if low <= number < high:
                if low < number:
                    yield low, number
                low = number + 1
        if low < high:
            yield low, high
