"""The journals: what the connector and the listener note, so that it survives their death; lines of JSON.

The connector's journal has a line for each attempt to send, and one for each attempt that was accepted. The listener's
has a line for each message that has arrived, and one for each connection.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netcomm.cli.demo.plan import Key

_SENT = "sent.jsonl"
_RECEIVED = "received.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """A journal's line: one message, as the process that writes the journal has seen it.

    attempt: which attempt of the connector to send something it was; -1 where the message does not say.
    size, sha256: of the content.
    intact: whether the content is what the message's own header says.
    redelivered: whether the message was marked so.
    process: the id of the process that has written the line.
    """

    attempt: int
    name: str
    offset: int
    size: int
    sha256: str
    intact: bool = True
    redelivered: bool = False
    process: int = 0

    @property
    def key(self) -> Key:
        """What names the piece."""
        return self.name, self.offset


def create(folder: Path) -> None:
    """Make both journals, with nothing in them."""
    for name in (_SENT, _RECEIVED):
        (folder / name).touch()


class Journal:
    """A journal that a process adds lines to; `with` closes it."""

    def __init__(self, path: Path) -> None:
        # Not buffered: what was written survives the process.
        self._file = path.open("ab", buffering=0)
        self._file.write(b"\n")  # ends a line that an earlier process could not complete

    def note(self, record: Record) -> None:
        """Note a message: it is about to be sent, or it has arrived."""
        self._write(asdict(record))

    def _write(self, entry: dict[str, object]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class SentJournal(Journal):
    """The connector's journal."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / _SENT)

    def note_accepted(self, attempt: int) -> None:
        """Note that `send` has returned."""
        self._write({"accepted": attempt})


class ReceivedJournal(Journal):
    """The listener's journal."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / _RECEIVED)

    def note_connected(self, ident: str) -> None:
        """Note a connection."""
        self._write({"connected": ident})


def sent(folder: Path) -> tuple[list[Record], set[int]]:
    """The attempts to send, and the numbers of those that were accepted."""
    entries = list(_entries(folder / _SENT))
    return (
        [Record(**entry) for entry in entries if "accepted" not in entry],
        {entry["accepted"] for entry in entries if "accepted" in entry},
    )


def received(folder: Path) -> list[Record]:
    """The messages that have arrived."""
    return [Record(**entry) for entry in _entries(folder / _RECEIVED) if "connected" not in entry]


def connects(folder: Path) -> int:
    """How often the two were connected."""
    return sum("connected" in entry for entry in _entries(folder / _RECEIVED))


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as journal:
        for line in journal:
            try:
                yield json.loads(line)
            except ValueError:  # its writer was killed meanwhile: it had not come to what the line says
                pass
