"""A plug-in that was written before there were hosts and envelopes still keeps the contract, and serves a peer.

`ShelfStorage` stands for one of somebody else's: it knows `QueueStorage` as it was, and is not to be changed.
"""

import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import pytest

from netcomm import DeliveryState, Limits, Message, SnakemqConnector, SnakemqListener
from netcomm.errors import ConfigurationError, StorageError
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream
from netcomm.testing import QueueStorageContract
from tests.faults.helpers import DEADLINE_S


class _Shelf:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.next_seq = 0
        self.sent_below = 0
        self.messages: list[StoredMessage] = []


class ShelfStorage(QueueStorage):
    """A storage that lives as long as the object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._store_id = os.urandom(16)
        self._streams: dict[str, _Shelf] = {}
        self._positions: dict[str, Position] = {}
        self._closed = False

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        """Open `shelf:`."""
        if url not in ("shelf:", "shelf://"):
            raise ConfigurationError(f"a shelf has no place; {url!r} names one")
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
                stream = self._streams.setdefault(append.ident, _Shelf(append.epoch))
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


class TestShelf(QueueStorageContract):
    has_place = False

    def open_storage(self, place: Any, read_only: bool = False) -> QueueStorage:
        return ShelfStorage.from_url("shelf:", read_only)


def test_it_keeps_no_envelopes() -> None:
    assert not ShelfStorage().keeps_envelopes


@pytest.mark.parametrize("count", [1, 300])
def test_a_peer_sends_and_receives_through_it(count: int) -> None:
    received: list[bytes] = []
    limits = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05)

    def receive(ident: str, message: Message) -> None:
        received.append(message.data)

    outgoing, incoming = ShelfStorage(), ShelfStorage()
    with SnakemqListener("server", "127.0.0.1", 0, storage=incoming, limits=limits) as server:
        server.on_message.add(receive)
        with SnakemqConnector("client", *server.address, storage=outgoing, limits=limits) as client:
            deliveries = [client.send("server", b"%d" % number, persistent=True) for number in range(count)]
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
    assert {delivery.state for delivery in deliveries} == {DeliveryState.DELIVERED}
    assert received == [b"%d" % number for number in range(count)]
