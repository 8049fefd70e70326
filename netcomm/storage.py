"""`QueueStorage`: what keeps persistent messages until they have arrived.

A storage keeps two things for one peer: the durable streams that it sends (messages, and the counter that numbers
them), and the positions that it has reached in the durable streams of others. It works in batches, knows nothing of
connections, and is asked from several threads.

Plug-ins subclass `QueueStorage`, and name themselves in the entry-point group `netcomm.storage`, under the scheme of
their URLs. They import this module, `netcomm.message`, `netcomm.errors` and `netcomm.logs`, and nothing else of
netcomm. The test class `netcomm.testing.QueueStorageContract` says whether they keep the contract.
"""

import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from netcomm.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "netcomm.storage"


class StoredMessage(NamedTuple):
    """One message of a durable stream.

    seq: its number in the stream.
    uuid: 16 bytes that name it.
    data: the payload.
    queued_at: when it was sent, in seconds since the epoch, by the wall clock.
    ttl: the seconds that it lives for from then on, or None.
    """

    seq: int
    uuid: bytes
    data: bytes
    queued_at: float
    ttl: float | None

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
    """

    ident: str
    epoch: int
    messages: Sequence[StoredMessage]


@dataclass(frozen=True, slots=True)
class StoredStream:
    """What a storage keeps of one durable stream.

    next_seq: is above the seq of everything that was ever appended.
    sent_below: what lies at or above it has certainly not been sent; see `QueueStorage.mark_sent`.
    count, size: of the stored messages, the size as the sum of their payloads in bytes.
    oldest_at, newest_at: when the ones with the lowest and the highest seq were sent; next_expiry: when the first of
        them expires; in seconds since the epoch.
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
    """

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

        At most `max_count`, and no more once their payloads reach `max_bytes`; at least one, if there is one.
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


class _MemoryStream:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.next_seq = 0
        self.sent_below = 0
        self.messages: list[StoredMessage] = []


class MemoryQueueStorage(QueueStorage):
    """A storage that lives as long as the object: for tests, and as the shortest example of one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store_id = os.urandom(16)
        self._streams: dict[str, _MemoryStream] = {}
        self._positions: dict[str, Position] = {}
        self._closed = False

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `memory:`."""
        if url not in ("memory:", "memory://"):
            raise ConfigurationError(f"a memory storage has no place; {url!r} names one")
        return cls()

    @property
    def store_id(self) -> bytes:
        return self._store_id

    @property
    def incarnation(self) -> int:
        return 1

    def append(self, batch: Sequence[Append]) -> None:
        with self._locked():
            complete = [
                (append, list(append.messages), [message.seq + 1 for message in append.messages]) for append in batch
            ]
            for append, messages, ends in complete:
                stream = self._streams.setdefault(append.ident, _MemoryStream(append.epoch))
                stream.messages += messages
                stream.next_seq = max([stream.next_seq, *ends])

    def read(self, ident: str, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        with self._locked():
            messages = self._messages(ident)
            start = bisect_left(messages, from_seq, key=_seq)
            found = []
            for message in messages[start : start + max_count]:
                found.append(message)
                max_bytes -= len(message.data)
                if max_bytes <= 0:
                    break
            return found

    def delete_below(self, ident: str, seq: int) -> None:
        with self._locked():
            messages = self._messages(ident)
            del messages[: bisect_left(messages, seq, key=_seq)]

    def delete(self, ident: str, seqs: Sequence[int]) -> None:
        gone = set(seqs)
        with self._locked():
            messages = self._messages(ident)
            messages[:] = [message for message in messages if message.seq not in gone]

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        with self._locked():
            mortal = [
                (message.expires_at, message)
                for message in self._messages(ident)
                if message.seq >= from_seq and message.expires_at is not None
            ]
        over = [message for expires_at, message in mortal if expires_at <= now]
        return over[:max_count], min((expires_at for expires_at, _ in mortal if expires_at > now), default=None)

    def streams(self) -> list[StoredStream]:
        with self._locked():
            return [
                StoredStream(
                    ident,
                    stream.epoch,
                    stream.next_seq,
                    stream.sent_below,
                    len(stream.messages),
                    sum(len(message.data) for message in stream.messages),
                    stream.messages[0].queued_at if stream.messages else None,
                    min(
                        (message.expires_at for message in stream.messages if message.expires_at is not None),
                        default=None,
                    ),
                    stream.messages[-1].queued_at if stream.messages else None,
                )
                for ident, stream in self._streams.items()
            ]

    def mark_sent(self, ident: str, below: int) -> None:
        with self._locked():
            if ident in self._streams:
                self._streams[ident].sent_below = below

    def renew(self, ident: str, epoch: int) -> None:
        with self._locked():
            if (stream := self._streams.get(ident)) is not None:
                stream.epoch, stream.sent_below = epoch, stream.next_seq

    def positions(self) -> dict[str, Position]:
        with self._locked():
            return dict(self._positions)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        with self._locked():
            self._positions.update(positions)

    def close(self) -> None:
        self._closed = True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise StorageError("the storage has been closed")
            yield

    def _messages(self, ident: str) -> list[StoredMessage]:
        stream = self._streams.get(ident)
        return [] if stream is None else stream.messages


def _seq(message: StoredMessage) -> int:
    return message.seq


def open_storage(url: str, read_only: bool = False) -> QueueStorage:
    """Open the storage that a URL names, as its owner, or for a look.

    url: its scheme chooses the plug-in: `sqlite:///queue.db` (relative), `sqlite:////var/lib/queue.db` (absolute),
        `mongodb://localhost:27017/netcomm`, `memory:`, or that of any plug-in that is installed.
    read_only: see `QueueStorage.from_url`.

    Raises ConfigurationError for a URL that can't be used, or a plug-in that is not installed or is broken; the text
    lists the schemes that are installed. Raises StorageLocked, StorageUnavailable, StorageCorrupt as the plug-in does.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"a storage must be a URL or a QueueStorage, not {type(url).__name__}")
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise ConfigurationError(f"a storage URL has a scheme, as in 'sqlite:///queue.db'; {url!r} has none")
    plugin = MemoryQueueStorage if scheme == "memory" else _load_plugin(scheme)
    return plugin.from_url(url, read_only)


def _load_plugin(scheme: str) -> type[QueueStorage]:
    # A plug-in may serve variants of its scheme: mongodb+srv:// is mongodb's.
    installed = {point.name: point for point in _entry_points()}
    point = installed.get(scheme) or installed.get(scheme.partition("+")[0])
    if point is None:
        raise ConfigurationError(
            f"no storage plug-in for {scheme!r}; installed are: {', '.join(sorted({'memory', *installed}))}"
        )
    try:
        plugin = point.load()
    except Exception as error:
        raise ConfigurationError(f"the storage plug-in {scheme!r} ({point.value}) can't be loaded: {error}") from error
    if not (isinstance(plugin, type) and issubclass(plugin, QueueStorage)):
        raise ConfigurationError(f"the storage plug-in {scheme!r} ({point.value}) is not a QueueStorage")
    return plugin


def _entry_points() -> Iterable["EntryPoint"]:
    from importlib.metadata import entry_points  # slow to import, and most programs need it once, or not at all

    return entry_points(group=ENTRY_POINT_GROUP)
