"""`Sender`: queues what the program sends, as there is room for it: terms, payloads, batches."""

import enum
import itertools
import os
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, NoReturn

from netcomm import clocks
from netcomm.errors import ConfigurationError, MessageTooLarge, QueueFull
from netcomm.limits import Limits
from netcomm.message import BULK, DURABLE, VOLATILE, Delivery, DeliveryOwner, Stream, check_ident
from netcomm.protocol import envelope as envelopes
from netcomm.protocol import frames
from netcomm.protocol.batch import (
    MAX_BATCH_BYTES,
    MAX_BATCH_COUNT,
    Batch,
    BatchDelivery,
    Deliveries,
    Entry,
    Run,
)
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.open_run import MAX_JOINING_BYTES, OpenRun
from netcomm.runtime.dispatcher import Dispatcher
from netcomm.runtime.group_commit import GroupCommit
from netcomm.runtime.handover import Handover
from netcomm.runtime.lifecycle import RUNNING, Lifecycle
from netcomm.runtime.loop import Loop, reentrant

_NUMBER_BITS = MAX_BATCH_COUNT.bit_length()  # of a uuid: they count the messages of a batch

Data = bytes | bytearray | memoryview | str


class Unset(enum.Enum):
    """What an argument is that was left out, where None says something."""

    UNSET = enum.auto()


UNSET = Unset.UNSET


class Sender:
    """Queues messages. All methods that have no `_` before their name may be called from any thread.

    open_runs: by ident, what further messages of the peer's own terms may join: see `netcomm.protocol.open_run`. It is
        another, empty dict while messages are deferred, which none may pass.
    """

    def __init__(
        self,
        life: Lifecycle,
        messaging: Messaging,
        loop: Loop,
        dispatcher: "Dispatcher[Any]",
        handover: Handover,
        commit: GroupCommit | None,
        owner: DeliveryOwner,
        limits: Limits,
        *,
        encoding: str | None,
        ttl: float | None,
        persistent: bool,
    ) -> None:
        """Make it.

        commit: stores persistent messages, None where there is no storage.
        owner: of the Deliveries.
        encoding, ttl, persistent: as for `Peer`.

        Raises ConfigurationError for a ttl that can't be used.
        """
        self._life = life
        self._messaging = messaging
        self._loop = loop
        self._dispatcher = dispatcher
        self._handover = handover
        self._group_commit = commit
        self._owner = owner
        self._max_data_bytes = frames.max_data_size(limits.max_frame_bytes)
        self._encoding = encoding
        self._ttl = check_ttl(ttl)
        self._persistent = persistent
        self._terms = ttl, persistent and ttl != 0  # of messages for which `send` says nothing else
        self._uuid_prefix = os.urandom(8)
        self._uuid_counter = itertools.count(1)  # next() is one step, whichever threads send
        self._runs: dict[str, OpenRun] = messaging.open_runs if self._terms == (None, False) else {}
        self.open_runs = self._runs

    def abandon(self) -> None:
        """In a forked child: let nothing join what waits, which is the parent's."""
        self._runs.clear()

    def accepted(self, run: OpenRun, joined: BatchDelivery) -> bool:
        """Whether a message that has joined a run was in its place before the run was closed."""
        with self._loop.mutex:  # the thread that closes a run holds it
            return run.accepted(joined)

    def send(
        self,
        ident: str,
        data: Data,
        ttl: float | Unset | None,
        persistent: bool | Unset,
        timeout: float | None,
        envelope: bytes | None = None,
    ) -> Delivery:
        """See `Peer.send`. envelope: as on the wire, or None."""
        if ttl is UNSET and persistent is UNSET:
            check_ident(ident)
            ttl, persistent = self._terms
        else:
            ttl, persistent = self._check_terms(ident, ttl, persistent)
        if type(data) is not bytes or envelope is not None or len(data) > self._max_data_bytes:
            data = self._to_payload(data, envelope)
        if persistent:
            self._check_kept(envelope)
            delivery = self._make_delivery(ident, data, ttl, DURABLE, envelope)
            self._group_commit.commit(ident, [delivery], ttl)  # type: ignore[union-attr]  # as _check_terms has seen
            return delivery
        until = None if timeout is None else monotonic() + timeout
        loop = self._loop
        if loop.is_interrupting():
            delivery = self._make_delivery(ident, data, ttl, VOLATILE, envelope)
            self._defer(ident, delivery)
            return delivery
        with loop.mutex:
            if self._life.phase is not RUNNING:
                self._life.check_running()
            entry: Entry
            may_be_joined = ttl is None and envelope is None and len(data) <= MAX_JOINING_BYTES
            if may_be_joined and not self._messaging.peers.has_small_backlog(ident):
                batch = self._make_batch(ident, [data], None, VOLATILE, None)
                entry, delivery = batch.run(), batch.delivery(0)
            else:
                entry = delivery = self._make_delivery(ident, data, ttl, VOLATILE, envelope)
            self._queue(ident, entry, until)
            return delivery

    def send_many(
        self,
        ident: str,
        items: Iterable[Data],
        ttl: float | Unset | None,
        persistent: bool | Unset,
        timeout: float | None,
        envelope: bytes | None = None,
    ) -> Sequence[Delivery]:
        """See `Peer.send_many`. envelope: as on the wire, or None."""
        ttl, persistent = self._check_terms(ident, ttl, persistent)
        return self._send_all(ident, DURABLE if persistent else VOLATILE, items, ttl, timeout, envelope)

    def send_in(
        self,
        ident: str,
        stream: Stream,
        items: Sequence[bytes],
        ttl: float | None,
        timeout: float | None,
        envelope: bytes | None,
    ) -> Sequence[Delivery]:
        """See `Attachment.send`."""
        check_ident(ident)
        check_ttl(ttl)
        if stream.durable and self._group_commit is None:
            raise ConfigurationError("the peer has no storage for persistent messages")
        if stream is Stream.BUS_DURABLE and not self._group_commit.keeps_streams:  # type: ignore[union-attr]
            raise ConfigurationError("the storage keeps one stream for each receiver: use one that is a HostStorage")
        if stream is BULK and (largest := max(map(len, items), default=0)) > frames.MAX_BULK_BYTES:
            raise MessageTooLarge(f"piece of {largest} bytes, {frames.MAX_BULK_BYTES} are allowed in the stream BULK")
        return self._send_all(ident, stream, items, ttl, timeout, envelope)

    def _send_all(
        self,
        ident: str,
        stream: Stream,
        items: Iterable[Data],
        ttl: float | None,
        timeout: float | None,
        envelope: bytes | None,
    ) -> Sequence[Delivery]:
        if stream.durable:
            self._check_kept(envelope)
            its: Iterable[bytes | None] = itertools.repeat(None)
            if envelope is not None:
                its = map(envelopes.behind, itertools.repeat(envelope), itertools.count())
            stored = [
                self._make_delivery(ident, self._to_payload(data, envelope), ttl, stream, its_envelope)
                for data, its_envelope in zip(items, its, strict=False)
            ]
            self._group_commit.commit(ident, stored, ttl)  # type: ignore[union-attr]  # as the caller has seen
            return stored
        until = None if timeout is None else monotonic() + timeout
        deliveries = Deliveries()
        left = iter(items)
        while True:
            payloads: list[bytes] = []
            try:
                self._take_payloads(payloads, itertools.islice(left, MAX_BATCH_COUNT), envelope)
            finally:  # also where one of them can't be sent
                if payloads:
                    batch = self._make_batch(ident, payloads, ttl, stream, envelope)
                    deliveries.add(batch)
                    self._queue_run(ident, batch.run(), until)
            if not payloads:
                return deliveries

    # -- What is to be sent -----------------------------------------------------------------------------------

    def _check_terms(
        self, ident: str, ttl: float | Unset | None, persistent: bool | Unset
    ) -> tuple[float | None, bool]:
        """The ttl of a message, and whether it is to be stored."""
        check_ident(ident)
        if ttl is UNSET and persistent is UNSET:
            return self._terms
        ttl = self._ttl if ttl is UNSET else check_ttl(ttl)
        if persistent is UNSET:
            persistent = self._persistent
        if not persistent:
            return ttl, False
        if self._group_commit is None:
            raise ConfigurationError("the peer has no storage for persistent messages")
        return ttl, ttl != 0

    def _check_kept(self, envelope: bytes | None) -> None:
        """Raise ConfigurationError where the storage would lose the envelope of a message."""
        if envelope is not None and not self._group_commit.keeps_envelopes:  # type: ignore[union-attr]
            raise ConfigurationError(
                "the storage keeps neither subject nor headers, so a persistent message can have none: leave them out,"
                " or use a storage whose plug-in keeps them"
            )

    def _make_delivery(
        self, ident: str, data: bytes, ttl: float | None, stream: Stream, envelope: bytes | None
    ) -> Delivery:
        expires_at = None if ttl is None else clocks.now() + ttl
        uuid = self._uuid_prefix + (next(self._uuid_counter) << _NUMBER_BITS).to_bytes(8)
        size = len(data) + frames.OVERHEAD_BYTES
        if envelope is not None:
            size += len(envelope)
        return Delivery(ident, uuid, data, size, expires_at, stream, self._owner, envelope)

    def _make_batch(
        self, ident: str, payloads: list[bytes], ttl: float | None, stream: Stream, envelope: bytes | None
    ) -> Batch:
        expires_at = None if ttl is None else clocks.now() + ttl
        number = next(self._uuid_counter) << _NUMBER_BITS
        overhead = frames.OVERHEAD_BYTES + (0 if envelope is None else len(envelope))
        return Batch(ident, self._uuid_prefix, number, payloads, overhead, expires_at, self._owner, envelope, stream)

    def _take_payloads(self, payloads: list[bytes], items: Iterable[Data], envelope: bytes | None) -> None:
        """Append the payloads of items, up to the one that reaches MAX_BATCH_BYTES."""
        left, largest = MAX_BATCH_BYTES, self._max_data_bytes - (0 if envelope is None else len(envelope))
        for data in items:
            if type(data) is not bytes:
                data = self._to_payload(data, envelope)
            size = len(data)
            if size > largest:
                self._refuse_size(size, envelope)
            payloads.append(data)
            left -= size
            if left <= 0:
                break

    def _to_payload(self, data: Data, envelope: bytes | None) -> bytes:
        if type(data) is not bytes:
            data = self._to_bytes(data)
        if len(data) + (0 if envelope is None else len(envelope)) > self._max_data_bytes:
            self._refuse_size(len(data), envelope)
        return data

    def _refuse_size(self, size: int, envelope: bytes | None) -> NoReturn:
        what = f"message of {size} bytes"
        if envelope is not None:
            what += f" with a subject and headers that take {len(envelope)}"
        raise MessageTooLarge(f"{what}, {self._max_data_bytes} are allowed")

    def _to_bytes(self, data: Data) -> bytes:
        if isinstance(data, str):
            if self._encoding is None:
                raise ConfigurationError("data is a str, and the peer has no encoding to make bytes of it")
            try:
                return bytes(data.encode(self._encoding))
            except Exception as error:  # a codec may raise anything
                raise ConfigurationError(f"data can't be encoded: {error}") from None
        if isinstance(data, bytes | bytearray | memoryview):
            return bytes(data)
        raise ConfigurationError(f"data must be bytes-like or a str, not {type(data).__name__}")

    # -- Queueing ---------------------------------------------------------------------------------------------

    def _defer(self, ident: str, entry: Entry) -> None:
        self._life.check_running()
        self.open_runs = {}
        self._loop.defer(ident, entry)

    def _is_behind_deferred(self, ident: str) -> bool:
        """With the mutex held: queue what was deferred; returns whether some for this receiver has to wait for room."""
        loop = self._loop
        loop.queue_deferred()
        if not loop.has_deferred:
            self.open_runs = self._runs
            if loop.has_deferred:  # a finalizer has come in between
                self.open_runs = {}
        return loop.defers(ident)

    def _queue_run(self, ident: str, run: Run, until: float | None) -> None:
        if self._loop.is_interrupting():
            self._defer(ident, run)
            return
        with self._loop.mutex:
            self._life.check_running()
            self._queue(ident, run, until)

    def _queue(self, ident: str, entry: Entry, until: float | None) -> None:
        """With the mutex held: queue transient messages, as there is room for them."""
        left = entry.count
        while (taken := self._queue_some(ident, entry)) < left:
            left -= taken
            self._wait_for_room(ident, entry, until)

    def _queue_some(self, ident: str, entry: Entry) -> int:
        """With the mutex held: queue what there is room for, and write what should not wait; returns how many."""
        loop, messaging = self._loop, self._messaging
        try:
            if self.open_runs is not self._runs and self._is_behind_deferred(ident):
                return 0
            loop.has_sent = True
            now = clocks.now()
            if (run := self.open_runs.get(ident)) is not None and run.is_full:
                loop.write_to(ident, now)
            count = entry.count
            taken = messaging.send(ident, entry, now)
            urgent = messaging.urgent
            if urgent and self._dispatcher.is_current() and loop.leadership.vacant:
                self._handover.attention = True  # it goes out together with what the callback's end brings
            elif urgent or taken < count:
                loop.write_to(ident, now)
            else:
                loop.wake()
        except BaseException:
            loop.abort(ident)
            raise
        return taken

    def _wait_for_room(self, ident: str, entry: Entry, until: float | None) -> None:
        stream, size = entry.stream, entry.first_size

        def room_or_end() -> bool:
            if self._life.phase is not RUNNING:
                return True
            return self._messaging.peers.has_room(ident, stream, size) and not self._loop.defers(ident)

        if self._loop.leadership.is_current():
            raise reentrant("send to a queue that is full")
        self._loop.wake()
        if not self._loop.wait_until(room_or_end, until):
            raise QueueFull(f"the queue to {ident!r} is full")
        self._life.check_running()


def check_ttl(ttl: float | None) -> float | None:
    """Return a time to live if a message can have it. Raises ConfigurationError where it can't."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 <= ttl < frames.INFINITE_TTL:
        raise ConfigurationError(f"a ttl must be None or a number of seconds from 0 on, not {ttl!r}")
    return ttl


def check_encoding(encoding: str) -> None:
    """Raise ConfigurationError where a codec's name can't be used."""
    try:
        "".encode(encoding)
    except Exception as error:  # a codec may raise anything
        raise ConfigurationError(f"an encoding that can't be used: {encoding!r}: {error}") from None
