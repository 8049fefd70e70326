"""`QueueStorage`: what keeps persistent messages until they have arrived.

A storage keeps two things for one peer: the durable streams that it sends (messages, and the counter that numbers
them), and the positions that it has reached in the durable streams of others. It works in batches, knows nothing of
connections, and is asked from several threads.

Plug-ins subclass `QueueStorage`, and name themselves in the entry-point group `netcomm.storage`, under the scheme of
their URLs. They import this module, `netcomm.message`, `netcomm.errors` and `netcomm.logs`, those that keep what hosts
need also `netcomm.host_storage` and `netcomm.host_changes`, and nothing else of netcomm. The test class
`netcomm.testing.QueueStorageContract` says whether they keep the contract.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from netcomm.message import DURABLE, Stream


class StoredMessage(NamedTuple):
    """One message of a durable stream.

    seq: its number in the stream.
    uuid: 16 bytes that name it.
    data: the payload.
    queued_at: when it was sent, in seconds since the epoch, by the wall clock.
    ttl: the seconds that it lives for from then on, or None.
    envelope: what stands beside the payload, opaque; only for storages that say `keeps_envelopes`.
    """

    seq: int
    uuid: bytes
    data: bytes
    queued_at: float
    ttl: float | None
    envelope: bytes = b""

    @property
    def expires_at(self) -> float | None:
        """When it expires, in seconds since the epoch, or None."""
        return None if self.ttl is None else self.queued_at + self.ttl


class Append(NamedTuple):
    """Messages to be stored at the end of one durable stream.

    ident: the receiver.
    epoch: names a stream that begins with this append, below 2**63; one that exists keeps its own.
    messages: their seqs rise, lie above those of everything that the stream has had, and below 2**63. The seqs of an
        append that failed are passed over: they are not used again.
    stream: which of the receiver's durable streams. Only for a `netcomm.host_storage.HostStorage` is it another than
        DURABLE.
    """

    ident: str
    epoch: int
    messages: Sequence[StoredMessage]
    stream: Stream = DURABLE


@dataclass(frozen=True, slots=True)
class StoredStream:
    """What a storage keeps of one durable stream.

    next_seq: is above the seq of everything that was ever appended.
    sent_below: what lies at or above it has certainly not been sent; see `QueueStorage.mark_sent`.
    count, size: of the stored messages, the size as the sum of their payloads and envelopes in bytes.
    oldest_at, newest_at: when the ones with the lowest and the highest seq were sent; next_expiry: when the first of
        them expires; in seconds since the epoch.
    stream: which of the durable streams to the receiver it is.
    """

    ident: str
    epoch: int
    next_seq: int
    sent_below: int
    count: int
    size: int
    oldest_at: float | None
    next_expiry: float | None
    newest_at: float | None
    stream: Stream = DURABLE


class Position(NamedTuple):
    """How far a received durable stream was handed over: everything below `next_seq`."""

    epoch: int
    next_seq: int


class QueueStorage(ABC):
    """A place that outlives the process.

    One owner at a time: opening it while another has it raises StorageLocked at once.

    All methods may be called from any thread; each is complete on the disk, or the server's, when it returns, but for
    `delete_below`, which may be late. Where one raises StorageError, nothing of its batch need be stored, and all that
    was stored before still is. StorageUnavailable says that trying again may help.

    keeps_envelopes: whether it keeps `StoredMessage.envelope`. One that does not is given none.
    """

    keeps_envelopes: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open the storage that a URL names, whose scheme has chosen this class.

        read_only: open it for a look, without becoming its owner, also while another has it. Methods that would
            change it raise StorageError then.

        Raises ConfigurationError for a URL that can't be used, and StorageError.
        """

    @property
    @abstractmethod
    def store_id(self) -> bytes:
        """16 random bytes that name the storage, the same for as long as it exists."""

    @property
    @abstractmethod
    def incarnation(self) -> int:
        """How often it has been opened by an owner; it rises with each."""

    @abstractmethod
    def append(self, batch: Sequence[Append]) -> None:
        """Store messages, with their streams' counters, all of them or none.

        A stream that does not exist begins with its first append. Raises StorageError.
        """

    @abstractmethod
    def read(self, ident: str, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        """The first messages of a stream at or above `from_seq`, in order.

        At most `max_count`, and no more once their payloads and envelopes reach `max_bytes`; at least one, if there
        is one.
        Raises StorageError; StorageCorrupt where one is not what was stored.
        """

    @abstractmethod
    def delete_below(self, ident: str, seq: int) -> None:
        """Forget the messages of a stream below `seq`: they have arrived.

        It may take effect later, with another call, but before `close` returns. Raises StorageError.
        """

    @abstractmethod
    def delete(self, ident: str, seqs: Sequence[int]) -> None:
        """Forget single messages of a stream: they have expired, or were rejected or discarded. Raises StorageError."""

    @abstractmethod
    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        """The messages of a stream at or above `from_seq` that expire at or before `now`, at most `max_count`.

        Returns them, and when the next one after `now` expires, or None. `now` is in seconds since the epoch. Raises
        StorageError.
        """

    @abstractmethod
    def streams(self) -> list[StoredStream]:
        """The streams that were ever appended to. Raises StorageError."""

    @abstractmethod
    def mark_sent(self, ident: str, below: int) -> None:
        """Remember that messages of a stream below `below` may be sent from now on; nothing where there is no stream.

        Raises StorageError.
        """

    @abstractmethod
    def renew(self, ident: str, epoch: int) -> None:
        """Give a stream another epoch, and move its `sent_below` to its `next_seq`, in one step.

        Messages and counter stay. Where there is no stream, it does nothing. Raises StorageError.
        """

    @abstractmethod
    def positions(self) -> dict[str, Position]:
        """The positions in the streams of others, by sender. Raises StorageError."""

    @abstractmethod
    def store_positions(self, positions: Mapping[str, Position]) -> None:
        """Store positions, in place of the earlier ones of the same senders. Raises StorageError."""

    @abstractmethod
    def close(self) -> None:
        """Give the storage up to the next owner. Closing again does nothing. Raises StorageError."""

    def abandon(self) -> None:  # noqa: B027 - there need not be anything to let go of
        """In a forked child: let go of what the child shares with its parent, without touching the storage."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
