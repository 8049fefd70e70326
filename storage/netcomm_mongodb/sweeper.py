"""Work of a host's that is put off: removing rows that are gone, giving rows their states, compacting the journal.

All of it can be done again. A record leaves the journal only after its log has been swept: so the next owner, which
looks for logs that were not swept in the journal alone, finds them all.
"""

from collections.abc import Iterable
from itertools import islice

from pymongo.errors import PyMongoError

from netcomm.logs import Log
from netcomm_mongodb.bulk import replace_older
from netcomm_mongodb.connection import Connection
from netcomm_mongodb.head import Head
from netcomm_mongodb.host_documents import LogRecord, is_content
from netcomm_mongodb.rows import Rows

_log = Log("netcomm.mongodb")

_JOURNAL_RECORDS = 200
_WAITING = 1000
_FAILED = 100
_AGE = 10_000
_LOGS = 100


class Sweeper:
    """Knows which rows are no longer wanted, and are still there; one thread at a time.

    name: what texts call the storage.
    """

    def __init__(self, name: str, connection: Connection, head: Head, rows: Rows) -> None:
        self._name = name
        self._connection = connection
        self._head = head
        self._host = head.host
        self._rows = rows
        # How much waits, by the name of the log.
        self._unswept: dict[str, int] = {}
        # Ranges of steps that were not made, and may have left rows.
        self._debris: list[tuple[int, int]] = []
        self._era = 0

    def load(self) -> None:
        """Note what the owner before this one may have left, once the head is loaded."""
        host = self._host
        self._unswept = {record.name: 1 for record in host.journal.values() if isinstance(record, LogRecord)}
        self._debris = list(zip(host.said.failed[::2], host.said.failed[1::2], strict=True))
        self._era = self._head.n // _AGE

    def note(self, name: str, count: int) -> None:
        """Note that rows of a log are gone, or have new states."""
        self._unswept[name] = self._unswept.get(name, 0) + count

    def note_failed(self, low: int, high: int) -> None:
        """Note that steps from a number to below another were not made."""
        self._debris.append((low, high))

    def collect(self) -> bool:
        """Do a part of what waits; returns whether there is more."""
        if self._debris:
            self._remove_debris()
        elif self._host.said.removals:
            self._remove()
        elif self._unswept:
            self.sweep(islice(self._unswept, _LOGS))
        return bool(self._debris or self._host.said.removals or self._unswept)

    def do_when_much_waits(self) -> None:
        """Do what waits if it is much; later, where the server fails now."""
        try:
            if sum(self._unswept.values()) + len(self._host.said.removals) >= _WAITING:
                self._sweep_all()
            if len(self._host.said.failed) > 2 * _FAILED:
                self._remove_debris()
                self._host.forget_failed(_FAILED // 2)
            if len(self._host.journal) > _JOURNAL_RECORDS:
                self.compact()
        except PyMongoError as error:
            _log.debug("%s: rows that are gone stay for now: %s", self._name, error)

    def compact(self) -> None:
        """Do all that waits, and compact the journal."""
        self._sweep_all()
        if self._host.journal:
            replace_older(self._connection.host, self._host.journal_documents())
            self._host.forget_journal()
        era = self._head.n // _AGE
        if era > self._era:
            # What is left of forgotten records: earlier ones are too old to come any more.
            self._connection.host.delete_many({"gone": True, "version": {"$lt": (era - 1) * _AGE}})
            self._era = era

    def sweep(self, names: Iterable[str]) -> None:
        """Remove the rows of logs that are gone, and give others their states."""
        names = list(names)
        logs = [log for name in names if (log := self._host.logs.get(name)) is not None and (log.holes or log.states)]
        self._rows.remove_holes(logs)
        self._rows.give_states(logs)
        for log in logs:
            self._host.swept(log)
        for name in names:
            self._unswept.pop(name, None)

    def _sweep_all(self) -> None:
        self._remove()
        self.sweep(self._unswept)

    def _remove(self) -> None:
        removals = self._host.said.removals
        if removals:
            self._rows.remove_contents([removal for removal in removals if is_content(removal)])
            for removal in removals:
                if not is_content(removal):
                    self._rows.remove_log(removal)
            self._host.removed(removals)

    def _remove_debris(self) -> None:
        self._rows.withdraw(self._debris)
        self._debris = []
