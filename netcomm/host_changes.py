"""`merge`: some steps of a host as one change without detours, for the storages.

A row that one step appends and a later one deletes never gets to the disk. What is left is independent of each other,
and a storage can make it in few statements.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from netcomm.errors import ConfigurationError
from netcomm.host_storage import HostPosition, HostRow, HostStep, PositionKey
from netcomm.message import DURABLE

MAX_NAME_BYTES = 512
"""The longest name of a log, a mark or a document, in bytes of UTF-8."""
_NUMBERS = 2**63 - 1  # so that the number behind the last one has 63 bits, too


@dataclass(slots=True)
class LogChanges:
    """What some steps change in one log. A storage makes it in the order of the attributes.

    dropped: the log is forgotten first.
    next_number: the log exists, and its next number is at least that; None: a log that does not exist goes on so.
    deleted: ranges of rows that the storage may have: sorted, and apart from each other.
    appended: rows by number, in order. None of them is meant by `deleted`, which come first, or by `changed`.
    changed: the new states of rows that the storage may have, by number.
    """

    dropped: bool = False
    next_number: int | None = None
    deleted: list[tuple[int, int]] = field(default_factory=list)
    appended: dict[int, HostRow] = field(default_factory=dict)
    changed: dict[int, bytes] = field(default_factory=dict)

    def _append(self, rows: Sequence[HostRow]) -> None:
        appended = self.appended
        number = next(reversed(appended), -1)
        if rows and rows[0].number < 0:
            raise ConfigurationError(f"the numbers of a log begin with 0: {rows[0].number} lies below")
        for row in rows:
            if row.number <= number:
                raise ConfigurationError(f"the numbers of a log rise: {row.number} does not lie above {number}")
            number = row.number
            appended[number] = row
        if self.changed:  # what was changed before a row was there does not concern it
            self.changed = {number: state for number, state in self.changed.items() if number not in appended}
        self._raise_to(number + 1)

    def _raise_to(self, number: int) -> None:
        if not 0 <= number <= _NUMBERS:
            raise ConfigurationError(f"numbers of a log lie below 2**63 - 1, and {number} would be the next one")
        if self.next_number is None or self.next_number < number:
            self.next_number = number

    def _change(self, states: Iterable[tuple[int, bytes]]) -> None:
        for number, state in states:
            row = self.appended.get(number)
            if row is None:
                self.changed[number] = state
            else:
                self.appended[number] = row._replace(state=state)

    def _delete(self, ranges: Sequence[tuple[int, int]]) -> None:
        appended, changed = self.appended, self.changed
        for low, high in ranges:
            for rows in (appended, changed):
                if high - low <= len(rows):
                    for number in range(low, high):
                        rows.pop(number, None)
                elif rows:
                    for number in [number for number in rows if low <= number < high]:
                        del rows[number]
        self.deleted += ranges

    def _join_ranges(self) -> None:
        """Sort the ranges, and make one of those that touch each other."""
        joined: list[tuple[int, int]] = []
        for low, high in sorted(self.deleted):
            low, high = max(0, low), min(_NUMBERS, high)
            if joined and low <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(high, joined[-1][1])
            elif low < high:
                joined.append((low, high))
        self.deleted = joined


@dataclass(slots=True)
class HostChanges:
    """What some steps change. A storage makes it in the order of the attributes.

    logs: by name.
    forgotten_marks: marks that are forgotten first.
    marks: numbers that marks are raised to.
    documents: by name; None for those that are forgotten.
    positions: by sender and stream; None for those that are forgotten.
    """

    logs: dict[str, LogChanges] = field(default_factory=dict)
    forgotten_marks: set[str] = field(default_factory=set)
    marks: dict[str, int] = field(default_factory=dict)
    documents: dict[str, bytes | None] = field(default_factory=dict)
    positions: dict[PositionKey, HostPosition | None] = field(default_factory=dict)

    @property
    def takes_room(self) -> bool:
        """Whether there is more afterwards: such a change may not use the reserve of a full place."""
        return any(document is not None for document in self.documents.values()) or any(
            log.appended or log.next_number is not None for log in self.logs.values()
        )

    def _log(self, name: str) -> LogChanges:
        log = self.logs.get(name)
        if log is None:
            log = self.logs[_checked_name(name)] = LogChanges()
        return log

    def _add(self, step: HostStep) -> None:
        dropped, next_numbers, appended, changed, deleted, marks, documents, positions = step
        for name in dropped:
            self.logs[_checked_name(name)] = LogChanges(dropped=True)
        for name, number in next_numbers.items():
            self._log(name)._raise_to(number)
        for name, rows in appended.items():
            self._log(name)._append(rows)
        for name, states in changed.items():
            self._log(name)._change(states.items())
        for name, ranges in deleted.items():
            self._log(name)._delete(ranges)
        for name, mark in marks.items():
            if mark is None:
                self.forgotten_marks.add(_checked_name(name))
                self.marks.pop(name, None)
            elif not 0 <= mark < _NUMBERS:
                raise ConfigurationError(f"a mark is a number from 0 to 2**63 - 2, not {mark}")
            else:
                self.marks[_checked_name(name)] = max(mark, self.marks.get(name, 0))
        for name in documents:
            _checked_name(name)
        self.documents.update(documents)
        for ident, stream in positions:
            if stream == DURABLE:
                raise ConfigurationError(f"the position in the durable stream of {ident!r} is for `store_positions`")
        self.positions.update(positions)


def merge(steps: Iterable[HostStep]) -> HostChanges:
    """What some steps change, one made after the other. Raises ConfigurationError for what can't be a step."""
    changes = HostChanges()
    for step in steps:
        changes._add(step)
    for log in changes.logs.values():
        if log.deleted:
            log._join_ranges()
    return changes


def _checked_name(name: str) -> str:
    if name.isascii() and 0 < len(name) <= MAX_NAME_BYTES and "\0" not in name:
        return name
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"a name must be encodable as UTF-8: {error}") from None
    if not 0 < size <= MAX_NAME_BYTES or "\0" in name:
        raise ConfigurationError(f"a name has 1 to {MAX_NAME_BYTES} bytes of UTF-8, and no NUL; {name!r} is none")
    return name
