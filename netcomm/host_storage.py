"""`HostStorage`: keeps what a peer hosts: topics, queues, services; in one step with the positions it has reached.

A host must not store a row that has come to it without the position in the stream that it came by, nor the other way
round: the row would come twice, or not at all. So rows, marks, documents and positions of the bus's streams change
together, in steps, each of which is stored as a whole.

Plug-ins that keep what hosts need subclass `HostStorage`. Like `netcomm.storage`, this module may be imported by them.
The test class `netcomm.testing.HostStorageContract` says whether they keep the contract.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from netcomm.message import Stream
from netcomm.storage import QueueStorage, StoredMessage

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class HostRow(NamedTuple):
    """One row of a log.

    number: its number in the log.
    data: the payload.
    envelope: what stands beside the payload, opaque: subject, headers, priority.
    stored_at: when the host got it, in seconds since the epoch, by the wall clock.
    state: what may change of the row, opaque and short: attempts, when it may be handed out.
    """

    number: int
    data: bytes
    envelope: bytes
    stored_at: float
    state: bytes = b""


class HostPosition(NamedTuple):
    """How far a stream of the bus was handed over: everything below `next_seq`.

    epoch, next_seq: as in `Position`.
    stored_at: when that was so, in seconds since the epoch, by the wall clock of the host.
    """

    epoch: int
    next_seq: int
    stored_at: float


PositionKey = tuple[str, Stream]
"""The sender, and which of its streams."""


class HostStep(NamedTuple):
    """What changes together. The parts are made in this order; those of other logs don't concern each other.

    dropped: logs that are forgotten, with their rows and their counters.
    next_numbers: for logs, a number that the next number is raised to; a log that does not exist begins with it.
    appended: rows to be stored at the end of logs. Their numbers rise, are not below the log's next number, and below
        2**63 - 1. A log that does not exist begins with them.
    changed: for logs, the new `state` of rows by number; for rows that are not there, nothing happens.
    deleted: for logs, the rows that are forgotten, as ranges: a number, and the one below which the range ends.
    marks: numbers from 0 to 2**63 - 2, by name, which only rise: a lower one than the storage has changes nothing.
        None forgets the mark.
    documents: contents by name, in place of the earlier ones. None forgets the document.
    positions: positions in the streams of others, in place of the earlier ones; None forgets the position. Those of
        durable streams (Stream.DURABLE) are not among them: `store_positions` has these.

    Names of logs, marks and documents are three sorts. Each is a str of 1 to 512 bytes of UTF-8, without NUL.
    """

    dropped: Sequence[str] = ()
    next_numbers: Mapping[str, int] = _NOTHING
    appended: Mapping[str, Sequence[HostRow]] = _NOTHING
    changed: Mapping[str, Mapping[int, bytes]] = _NOTHING
    deleted: Mapping[str, Sequence[tuple[int, int]]] = _NOTHING
    marks: Mapping[str, int | None] = _NOTHING
    documents: Mapping[str, bytes | None] = _NOTHING
    positions: Mapping[PositionKey, HostPosition | None] = _NOTHING


@dataclass(frozen=True, slots=True)
class HostLog:
    """What a storage keeps of one log.

    next_number: is above the number of every row that was ever appended.
    count, size: of the stored rows, the size as the sum of their payloads and envelopes in bytes.
    first_number: that of the first row that is stored, or None.
    oldest_at, newest_at: when the first and the last one were stored, in seconds since the epoch, or None.
    """

    next_number: int
    count: int
    size: int
    first_number: int | None
    oldest_at: float | None
    newest_at: float | None


class HostStorage(QueueStorage):
    """A queue storage that also keeps what a host has, and durable streams by number.

    Logs are what queues, retained topics and dead queues are made of: rows with numbers. What the rows, marks and
    documents mean is the host's business.

    Two durable streams to one receiver, DURABLE and BUS_DURABLE, are two streams, each with its own messages, counter,
    epoch and `sent_below`. `Append.stream` and `StoredStream.stream` say which one is meant; the methods below do so by
    their last argument.
    """

    # -- What a host keeps ------------------------------------------------------------------------------------

    @abstractmethod
    def commit(self, steps: Sequence[HostStep]) -> None:
        """Make steps, one after the other: all of them or none. They are complete on the disk when it returns.

        Many steps together cost hardly more than one: `netcomm.host_changes.merge` makes one of them.

        Where it raises, the storage has all of the steps or none, as after a death at that moment, and what was stored
        before still is. The host commits the same ones again, before later ones that concern the same names or senders:
        that is right in either case. A row whose number is there already is replaced then. Raises StorageError;
        StorageUnavailable where trying again may help.

        A full place has a reserve for steps that append no row, store no document, and raise no `next_numbers`. A new
        state may take the room of its whole row, which for a large one is more than the reserve has.
        """

    @abstractmethod
    def logs(self) -> dict[str, HostLog]:
        """The logs that exist, by name. Raises StorageError."""

    @abstractmethod
    def rows(self, log: str, from_number: int, max_count: int, max_bytes: int) -> list[HostRow]:
        """The first rows of a log at or above `from_number`, in order; none where there is no such log.

        At most `max_count`, and no more once their payloads and envelopes reach `max_bytes`; at least one, if there is
        one. Raises StorageError; StorageCorrupt where one is not what was stored.
        """

    @abstractmethod
    def marks(self) -> dict[str, int]:
        """The marks by name. Raises StorageError."""

    @abstractmethod
    def documents(self) -> dict[str, bytes]:
        """The documents by name. Raises StorageError; StorageCorrupt where one is not what was stored."""

    @abstractmethod
    def host_positions(self) -> dict[PositionKey, HostPosition]:
        """The positions that steps have stored. Raises StorageError."""

    # -- Durable streams by number ----------------------------------------------------------------------------

    @abstractmethod
    def read(
        self, ident: str, from_seq: int, max_count: int, max_bytes: int, stream: Stream = Stream.DURABLE
    ) -> list[StoredMessage]:
        """As `QueueStorage.read`, of one of the receiver's streams."""

    @abstractmethod
    def delete_below(self, ident: str, seq: int, stream: Stream = Stream.DURABLE) -> None:
        """As `QueueStorage.delete_below`, of one of the receiver's streams."""

    @abstractmethod
    def delete(self, ident: str, seqs: Sequence[int], stream: Stream = Stream.DURABLE) -> None:
        """As `QueueStorage.delete`, of one of the receiver's streams."""

    @abstractmethod
    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int, stream: Stream = Stream.DURABLE
    ) -> tuple[list[StoredMessage], float | None]:
        """As `QueueStorage.expired`, of one of the receiver's streams."""

    @abstractmethod
    def mark_sent(self, ident: str, below: int, stream: Stream = Stream.DURABLE) -> None:
        """As `QueueStorage.mark_sent`, of one of the receiver's streams."""

    @abstractmethod
    def renew(self, ident: str, epoch: int, stream: Stream = Stream.DURABLE) -> None:
        """As `QueueStorage.renew`, of one of the receiver's streams."""
