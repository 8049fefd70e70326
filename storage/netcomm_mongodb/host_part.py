"""The host's part of the head, as its owner knows it.

A step of a host is one update of the head, as every change is. Its rows are inserted before that, and carry its number.
They are there once the head says that the step was made: the numbers of steps rise, the head has that of the last one,
and the ranges of those below it that were not made (`HostHead`). A step that is tried again has another number; so rows
of one that failed may come as late as they like.

What a step changes besides, logs, marks, documents and positions, are records: entries of a journal in the head, which
go to the collection `host` once there are many, as streams and positions do. What is to be removed is removed after the
update, by `Sweeper`, which can be done again; the head tells of it until then.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from netcomm_mongodb.connection import Connection
from netcomm_mongodb.documents import Document
from netcomm_mongodb.host_documents import (
    DocumentRecord,
    HostHead,
    HostPositionRecord,
    LogRecord,
    MarkRecord,
    Record,
    records_of,
)

_R = TypeVar("_R", bound=LogRecord | MarkRecord | DocumentRecord | HostPositionRecord)


@dataclass(frozen=True, slots=True)
class HostUpdate:
    """What an update of the head changes for a host: the records, and what the head says besides."""

    said: HostHead
    records: Collection[Record]


@dataclass(frozen=True, slots=True)
class HostChange:
    """An update as it is written. fields: of the head; records: the new ones, by `_id`, with their documents."""

    fields: Document
    said: HostHead
    records: dict[str, tuple[Record, Document]]


class HostPart:
    """What the head has for a host, and what follows from it. `Head` alone calls `load`, `change` and `changed`.

    said: what the head says, beside the journal.
    logs: by name. marks: by name. contents: where the documents' contents are, by name.
    journal: the records in the head, by `_id`.

    Any thread may read them, the first ones in the order `logs`, `said`: so the steps of a log that it reads were made.
    """

    def __init__(self) -> None:
        self.said = HostHead()
        self.logs: dict[str, LogRecord] = {}
        self.marks: dict[str, int] = {}
        self.contents: dict[str, str] = {}
        self.journal: dict[str, Record] = {}
        self._documents: dict[str, Document] = {}
        # Whether the head may say something else: an update is in doubt, or something was removed since.
        self._differs = False

    def load(self, connection: Connection, said: HostHead, journal: dict[str, Record]) -> None:
        """Read what there is, once the head was read."""
        self.said = said
        self.journal = journal
        self._documents = {id: record.document() for id, record in journal.items()}
        self.logs, self.marks, self.contents = {}, {}, {}
        for record in load_records(connection, journal, DocumentRecord, LogRecord, MarkRecord):
            self._note(record.id, record)

    def change(self, n: int, update: HostUpdate | None) -> HostChange:
        """The fields that an update of the head writes; n: its number."""
        if update is None:
            if not self._differs:
                return HostChange({}, self.said, {})
            update = HostUpdate(self.said, ())
        self._differs = True
        records: dict[str, tuple[Record, Document]] = {}
        for record in update.records:
            new = replace(record, version=n)
            records[new.id] = new, new.document()
        entries = {**self._documents, **{id: document for id, (_, document) in records.items()}}
        return HostChange({**update.said.fields(), "host": list(entries.values())}, update.said, records)

    def changed(self, change: HostChange) -> None:
        """Note that an update was made."""
        if change.fields:
            self._differs = False
        self.said = change.said
        for id, (record, document) in change.records.items():
            self.journal[id] = record
            self._documents[id] = document
            self._note(id, record)

    def _note(self, id: str, record: Record) -> None:
        match record:
            case LogRecord():
                self.logs[record.name] = record
            case MarkRecord():
                self.marks[record.name] = record.number
            case DocumentRecord():
                self.contents[record.name] = record.content
            case HostPositionRecord():
                pass  # there may be very many, and no step needs them
            case _:
                sort, _, name = id.partition(":")
                if sort == "log":
                    self.logs.pop(name, None)
                elif sort == "mark":
                    self.marks.pop(name, None)
                elif sort == "document":
                    self.contents.pop(name, None)

    def swept(self, log: LogRecord) -> None:
        """Note that the rows of a log are removed, and have their states: the next update that is written says so."""
        self.logs[log.name] = new = log.swept()
        if log.id in self.journal:
            self.journal[log.id] = new
            self._documents[log.id] = new.document()
        self._differs = True

    def removed(self, removals: Collection[str]) -> None:
        """Note that rows are removed: the next update that is written does not tell of them."""
        self.said = replace(self.said, removals=tuple([each for each in self.said.removals if each not in removals]))
        self._differs = True

    def forget_failed(self, count: int) -> None:
        """Forget the oldest ranges of steps that failed: their rows are too old to come any more."""
        self.said = replace(self.said, failed=self.said.failed[2 * count :])
        self._differs = True

    def journal_documents(self) -> list[Document]:
        """The journal's entries, for the collection `host`."""
        return list(self._documents.values())

    def forget_journal(self) -> None:
        """Note that the journal's entries are in the collection `host`: the next update that is written has none."""
        self.journal = {}
        self._documents = {}
        self._differs = True


def load_records(connection: Connection, journal: Mapping[str, Record], *sorts: type[_R]) -> list[_R]:
    """The records of sorts: of the journal, which was read before, and of the collection `host`.

    sorts: in the order of their names, and next to each other there.
    """
    start, end = sorts[0].SORT, f"{sorts[-1].SORT[:-1]};"
    found = records_of(connection.host.find({"_id": {"$gte": start, "$lt": end}}))
    for id, record in journal.items():
        if start <= id < end and (id not in found or found[id].version <= record.version):
            found[id] = record
    return [record for record in found.values() if isinstance(record, sorts)]


def load_log(connection: Connection, journal: Mapping[str, Record], name: str) -> LogRecord | None:
    """The record of a log: of the journal, which was read before, or of the collection `host`."""
    id = LogRecord.SORT + name
    kept = connection.host.find_one({"_id": id})
    found = [] if kept is None else list(records_of([kept]).values())
    if id in journal:
        found.append(journal[id])
    newest = max(found, key=lambda record: record.version, default=None)
    return newest if isinstance(newest, LogRecord) else None
