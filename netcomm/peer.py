"""`Peer`: the thread that joins link, messaging, dispatcher and callers.

Three kinds of threads meet here. The *dispatcher* runs callbacks. *Callers* send and wait. And the *loop* waits for the
sockets: it is a role, see `netcomm.leadership`, and the dispatcher's while no callback is to be run. The Peer itself,
which is a thread, is the deputy. One lock, the mutex, guards messaging and the output of the connections; nobody holds
it while user code runs, or while anything can block.

Whoever changes messaging, under the mutex, calls `_settle` before letting go, and the loop once for all that a pass has
brought: it writes what became writable, and acts on what happened. Callers call `_write`, which writes what they have
queued, and leaves the rest to the loop. So a message for an idle connection is on its way before `send` returns,
without waking the loop; and what a callback sends, when the callback returns. A connection that is busy is left to the
loop: a message that joins those that wait for it already needs nothing else, and goes out in one batch with them.

The main thread can be interrupted between any two steps, by Ctrl-C; the peer's own threads can't. So callers do little
that would have to be undone: where one is interrupted, the connection is closed, and what was taken from the queue for
it goes back there (`_interrupted`).

With a storage, a fourth thread, the *keeper*, does its background work. Persistent messages are stored by the callers,
before `send` returns: one of those that come at the same time stores the messages of all, in one transaction, under
the commit lock. Locks are acquired in one order only: commit lock, then mutex or the storage's own, and neither of
those two while the other is held.
"""

import enum
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from netcomm import clocks, link, places, process
from netcomm.callbacks import Callback
from netcomm.dispatcher import Dispatcher
from netcomm.errors import (
    ConfigurationError,
    LifecycleError,
    MessageTooLarge,
    NetcommError,
    QueueFull,
    StorageUnavailable,
)
from netcomm.keeper import Keeper
from netcomm.leadership import Leadership
from netcomm.logs import Log
from netcomm.message import FLAG_PERSISTENT, Delivery, DeliveryState, Limits, Message, check_ident
from netcomm.protocol import frames
from netcomm.protocol.batch import MAX_BATCH_BYTES, MAX_BATCH_COUNT, Batch, Deliveries, Entry
from netcomm.protocol.events import Connected, Disconnected, Dropped, Event, Failed, Received, StorageRequest
from netcomm.protocol.messaging import CONVERSATION, Messaging, PeerStats
from netcomm.protocol.node import Node
from netcomm.protocol.open_run import MAX_JOINING_BYTES, OpenRun
from netcomm.storage import Append, QueueStorage, StoredMessage, open_storage

log = Log("netcomm.peer")

_NUMBER_BITS = MAX_BATCH_COUNT.bit_length()  # of a uuid: they count the messages of a batch
# So long may the acknowledgement of a message wait for its successors, to go out together with theirs.
_ACK_DELAY_S = 0.005
# Set aside for ending, of the time that terminate() may take.
_CLOSING_S = 0.25
# How often a thread that waits, and that the process waits for, looks whether the process is ending.
_EXIT_LOOK_S = 0.25

T = TypeVar("T")
Data = bytes | bytearray | memoryview | str


class _Unset(enum.Enum):
    UNSET = enum.auto()


UNSET = _Unset.UNSET


class _Phase(enum.Enum):
    UNMADE = "is being made"
    NEW = "has not been started"
    RUNNING = "is running"
    TERMINATING = "is being terminated"
    TERMINATED = "has been terminated"
    FORKED = "belongs to the parent process"


_RUNNING = _Phase.RUNNING
# Of the percent-encoded ident in the name of a file: names have 255 bytes at the most, also with what comes around it,
# and the longest ending that SQLite appends.
_LONGEST_NAME = 255 - len("netcomm-.db-journal")
_HASH_SIZE = 16


@dataclass(slots=True)
class _Uncommitted:
    """Persistent messages of one call.

    epoch: that of their stream, once they are numbered, and -1 before.
    at: when they were numbered, in seconds since the epoch.
    ended: whether they have been stored, or `error` tells what kept them from being stored.
    """

    ident: str
    ttl: float | None
    deliveries: list[Delivery]
    epoch: int = -1
    at: float = 0.0
    ended: bool = False
    error: BaseException | None = None


def _appends(batches: list[_Uncommitted]) -> list[Append]:
    """What is to be stored."""
    appends: dict[tuple[str, int], list[StoredMessage]] = {}
    for batch in batches:
        messages = appends.setdefault((batch.ident, batch.epoch), [])
        for delivery in batch.deliveries:
            message = StoredMessage(delivery.seq, delivery.uuid, delivery.data, batch.at, batch.ttl)  # type: ignore[arg-type]
            messages.append(message)
    return [Append(ident, epoch, messages) for (ident, epoch), messages in appends.items()]


class _Release:
    """To the dispatcher: there may be a function for what was held back."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a peer knows of its traffic: a snapshot.

    peers: by ident, every peer that was connected or written to.
    """

    peers: Mapping[str, PeerStats]

    @property
    def connected(self) -> list[str]:
        """The idents that are connected."""
        return [ident for ident, peer in self.peers.items() if peer.connected]

    @property
    def waiting(self) -> list[str]:
        """The idents that messages wait for, and that are not connected."""
        return [ident for ident, peer in self.peers.items() if peer.queued and not peer.connected]


class Peer(threading.Thread):
    """A named partner in conversations, on any number of connections.

    It is a thread: `start` it, and `terminate` it; `with` does both. Callbacks run on another thread, the dispatcher,
    one at a time and in the order of what happened, so they may take their time, and use the peer.

    Callback lists, each with what its functions are called with:

    - `on_recv(ident, data)`: a message came in; data is bytes, or str where `encoding` is given.
    - `on_message(ident, message)`: the same, as a `Message`.
    - `on_connect(ident)`, `on_disconnect(ident)`.
    - `on_drop(ident, delivery)`: a message ended without being delivered; `delivery` equals the one that `send`
      returned, and its `state` says how.
    - `on_error(exception)`: something failed that no call could report: a callback raised, the other side refused
      the connection or broke the protocol, a connector can't connect (once, until it has been connected again).

    A received message counts as delivered when its callbacks have returned, or raised. While neither `on_recv` nor
    `on_message` has a function, messages are held back, and the window stops their senders in the end.
    """

    def __init__(
        self,
        ident: str | None = None,
        persistent: bool = False,
        *,
        storage: str | QueueStorage | None = None,
        encoding: str | None = None,
        ttl: float | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Make a peer that is connected to nothing yet.

        ident: its name, 1 to 255 bytes of UTF-8; unique among the peers that talk to each other. None makes one of the
            host's name, the process id and chance.
        persistent: whether messages are persistent, where `send` says nothing else. True without `storage` keeps them
            in the SQLite file `netcomm-<ident>.db` in the current folder, and needs `ident`.
        storage: what keeps persistent messages, and the positions in those of others: a URL, see `open_storage`; or a
            QueueStorage, which then belongs to the peer, and is closed with it.
        encoding: the name of a codec; with it, `send` takes str too, and `on_recv` gets str.
        ttl: the seconds that messages live for, where `send` says nothing else; None for no limit.
        limits: sizes and times, see `Limits`.

        Raises ConfigurationError for an argument that can't be used; StorageError where the storage can't be opened.
        """
        if persistent and storage is None:
            if ident is None:
                raise ConfigurationError("a persistent peer needs an ident: its storage is found again by it")
            from urllib.parse import quote  # slow to import, as platform is below

            storage = f"sqlite:///{quote(_file_name(check_ident(ident)))}"
        if ident is None:
            import platform

            ident = f"{platform.node()[:64]}-{os.getpid()}-{os.urandom(3).hex()}"
        self._local_ident = check_ident(ident)
        super().__init__(name=f"netcomm-{ident}", daemon=True)
        if encoding is not None:
            _check_encoding(encoding)
        self._encoding = encoding
        self._ttl = _check_ttl(ttl)
        self._limits = limits if limits is not None else Limits()
        self._max_data_bytes = frames.max_data_size(self._limits.max_frame_bytes)
        self._persistent = bool(persistent)
        self._terms = self._ttl, self._persistent and self._ttl != 0  # of messages for which `send` says nothing else
        self._uuid_prefix = os.urandom(8)
        self._uuid_counter = itertools.count(1)  # next() is one step, whichever threads send

        check = self._check_process
        self.on_recv = Callback("on_recv", self._not_handled, self._release, check, self._look_at_functions)
        self.on_message = Callback("on_message", self._not_handled, self._release, check, self._look_at_functions)
        self.on_connect = Callback("on_connect", self._report, check=check)
        self.on_disconnect = Callback("on_disconnect", self._report, check=check)
        self.on_drop = Callback("on_drop", self._report, check=check)
        self.on_error = Callback("on_error", check=check)

        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._waiters = 0
        self._phase = _Phase.UNMADE
        self._failure: BaseException | None = None  # what has ended it
        self._storage: QueueStorage | None = None
        self._gathering: dict[str, OpenRun] = {}
        if not isinstance(storage, str | QueueStorage | None):
            raise ConfigurationError(f"a storage must be a URL or a QueueStorage, not {type(storage).__name__}")
        self._link = link.Link(self._limits)
        process.enter(self)
        try:
            self._open(storage)
        except BaseException:
            process.leave(self)
            self._link.shut()
            if self._storage is not None:
                self._storage.close()
            raise

    def _open(self, storage: str | QueueStorage | None) -> None:
        """The rest of the constructor: what a fork may meet half-way."""
        self._storage = open_storage(storage) if isinstance(storage, str) else storage
        self._messaging = Messaging(
            self._local_ident,
            self._limits,
            peer_id=os.urandom(16) if self._storage is None else self._storage.store_id,
            boot_id=os.urandom(16),
            first_epoch=int.from_bytes(os.urandom(8)) >> 1,
            wait=self._wait_for_delivery,
            progress=lambda number: self._link.progress(number),
            stores_positions=self._storage is not None,
        )
        self._node = Node(self._messaging, self._link)
        if self._terms == (None, False):
            # What a message of the peer's own terms may join.
            self._gathering = self._messaging.gathering
        self._keeper: Keeper | None = None
        if self._storage is not None:
            self._restore(self._storage)
        self._commit_lock = threading.Lock()
        self._uncommitted: deque[_Uncommitted] = deque()
        self._leadership = Leadership(self._link.ring)
        self._dispatcher: Dispatcher[Event | _Release] = Dispatcher(
            f"{self.name}-dispatcher", self._dispatch, self._lead, self._link.ring
        )
        self._wait_delivery = self._wait_for_delivery  # bound once, not for each message

        # What the dispatcher is at: of `_batch`, the payloads that have not been given to callbacks are `_left`. The
        # dispatcher takes from `_left`; the node is told under the mutex.
        self._batch: Received | None = None
        self._left: Iterator[bytes] = iter(())
        # The dispatcher has something to do before the next callback: to write what one has sent, to tell of those that
        # have returned where nobody else does, or, where it is muted, to call no more of them.
        self._attention = False
        self._tell_at: float | None = None
        self._wake_at: float | None = None  # when the loop will look at the deadlines again by itself
        # What came in while there was no function to hand it to; only the dispatcher changes it.
        self._held: deque[Received] = deque()
        self._muted = False  # no more received messages to callbacks
        self._has_spoken = False  # since messages have come in last
        self._conversing = False  # few have come in, and before them something was sent: perhaps it goes on like that
        self._phase = _Phase.NEW

    def _restore(self, storage: QueueStorage) -> None:
        for request in self._node.restore(storage.streams(), storage.positions(), *clocks.read()):
            request.carry_out(storage)
        self._keeper = Keeper(f"{self.name}-keeper", storage, self._on_storage_answer, self._report_later)

    # -- Life -------------------------------------------------------------------------------------------------

    @property
    def local_ident(self) -> str:
        """This peer's name. (`ident` is the thread's identifier, as `threading` has it.)"""
        return self._local_ident

    def add_connector(self, host: str, port: int) -> None:
        """Connect to a place, and again whenever the connection is lost, until `terminate`.

        host: a name or an IP address, resolved afresh at each attempt; or `unix:/path`, with any port. Where it is
            this machine, a Unix socket takes the place of TCP if the listener offers one; not with `tcp:` before it.
        port: 1 to 65535.

        Before or after `start`. Raises ConfigurationError, LifecycleError. May be called from any thread.
        """
        host, port = places.check_place(host, port)
        with self._mutex:
            self._check_phase(_Phase.NEW, _Phase.RUNNING)
            self._link.add_connector(host, port)

    def add_listener(self, host: str, port: int) -> str | tuple[str, int]:
        """Accept connections at a place, until `terminate`.

        host: a name or an IP address of this machine ("0.0.0.0" and "::" are all of them), with `tcp:` before it to
            offer nothing else to programs on this machine; or `unix:/path`, with any port.
        port: 0 to 65535; 0 picks a free one.

        Returns the bound address: (host, port), or `unix:/path`. Before or after `start`. Raises BindError where the
        place can't be had, ConfigurationError, LifecycleError. May be called from any thread.
        """
        host, port = places.check_place(host, port)
        with self._mutex:
            self._check_phase(_Phase.NEW, _Phase.RUNNING)
            return self._link.add_listener(host, port)

    def _setup(self, step: Callable[[], T]) -> T:
        """Run a step of a subclass's constructor; where it fails, leave nothing open."""
        try:
            return step()
        except BaseException:
            self.terminate(0)
            raise

    def start(self) -> None:
        """Start to connect and to accept. Raises LifecycleError where that was done before."""
        with self._mutex:
            self._check_phase(_Phase.NEW)
            self._phase = _Phase.RUNNING
            try:
                self._dispatcher.start()
                if self._keeper is not None:
                    self._keeper.start()
                super().start()
            except BaseException:
                self._end_under_mutex()
                raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def terminate(self, timeout: float = 5.0) -> None:
        """End, within `timeout` seconds.

        As far as the time allows, it waits until what was sent is delivered, and until what was received has been
        through its callbacks. Then it closes the connections and ends the threads. Transient messages that are not
        delivered end as DISCARDED; persistent ones stay in their storage.

        It may be called from any thread, several times and at once; also from a callback, which then counts as
        returned. Not from a signal handler: set an event there, and call it from where the event is awaited.
        """
        if self._phase in (_Phase.FORKED, _Phase.UNMADE):
            return
        until = monotonic() + max(0.0, timeout)
        in_callback = self._dispatcher.is_current()
        with self._mutex:  # the condition's own __enter__ could be interrupted when it has the lock
            if self._phase is _Phase.NEW:
                self._end_under_mutex()
            first = self._phase is _Phase.RUNNING
            if in_callback and not first and not self._muted:
                self._count_callback()
            if first:
                try:
                    self._wind_down(until - _CLOSING_S, in_callback)
                    self._stop_threads()
                except BaseException:  # the caller was interrupted, perhaps in `_stop_threads`
                    self._stop_threads()
                    raise
        until = min(until, monotonic() + threading.TIMEOUT_MAX / 2)
        if self.ident is not None:
            self.join(max(2 * _CLOSING_S, until - monotonic()))
        self._dispatcher.join(max(0.0, until - monotonic()))
        if self._keeper is not None:
            self._keeper.join(max(_CLOSING_S, until - monotonic()))

    def _wind_down(self, until: float, in_callback: bool) -> None:
        """With the mutex held: wait until nothing is left to be done, as far as the time allows."""
        self._phase = _Phase.TERMINATING
        self._messaging.stop_gathering()
        self._changed.notify_all()
        self._wait_until(lambda: self._messaging.may_end, until)
        self._messaging.stop_receiving()
        self._link.ring()
        if in_callback:
            self._count_callback()
        self._wait_until(self._may_close, until)

    def _stop_threads(self) -> None:
        """With the mutex held: let the loop and the dispatcher end."""
        self._mute()
        self._leadership.stop()

    def _count_callback(self) -> None:
        """With the mutex held: the callback that terminates the peer counts as returned, and is the last one."""
        self._mute(running=0)
        self._settle()
        self._changed.notify_all()

    def _mute(self, running: int = 1) -> None:
        """With the mutex held: hand nothing more to callbacks, and count none that returns from now on.

        running: as for `_tell`.
        """
        self._tell(running)
        self._muted = self._attention = True

    def _may_close(self) -> bool:
        """With the mutex held: whether nothing that was received waits for callbacks, or for the storage."""
        return self._messaging.all_stored and (self._muted or bool(self._held) or self._messaging.all_handed_over)

    def _check_phase(self, *allowed: _Phase) -> None:
        if self._phase not in allowed:
            if self._failure is not None:
                raise LifecycleError(f"peer {self._local_ident!r} has failed: {self._failure!r}") from self._failure
            raise LifecycleError(f"peer {self._local_ident!r} {self._phase.value}")

    def _check_usable(self) -> None:
        self._check_phase(_Phase.RUNNING)

    def _check_process(self) -> None:
        """Before any lock is asked for: in a forked child, a thread that does not exist there may hold it for ever."""
        if self._phase is _Phase.FORKED:
            self._check_usable()

    # -- Sending ----------------------------------------------------------------------------------------------

    def send(
        self,
        ident: str,
        data: Data,
        *,
        ttl: float | _Unset | None = UNSET,
        persistent: bool | _Unset = UNSET,
        timeout: float | None = None,
    ) -> Delivery:
        """Queue a message for a peer, which need not be connected; returns at once with its `Delivery`.

        A persistent message is in the storage when this returns.

        ident: the receiver's name.
        data: the payload: bytes-like; or str, which needs the peer's `encoding`.
        ttl: the seconds from now within which it has to be sent, None for no limit; 0 means "only if connected now".
            Where it is left out, the peer's `ttl`.
        persistent: whether it outlives this process. Where it is left out, the peer's `persistent`. A message with
            ttl 0 never is.
        timeout: the seconds to wait while the queue to that receiver is full; None waits as long as it takes. The
            queue of persistent messages is never full.

        Raises StorageError where a persistent message can't be stored; QueueFull after `timeout`; MessageTooLarge;
        ConfigurationError for an argument that can't be used; LifecycleError. May be called from any thread, and from
        a callback.
        """
        if ttl is UNSET and persistent is UNSET and type(data) is bytes and type(ident) is str:
            run = self._gathering.get(ident)
            if run is not None and (joined := run.join(data)) is not None:
                if run.is_open:
                    return joined
                with self._mutex:  # who closes a run holds it
                    if run.accepted(joined):
                        return joined
        if ttl is UNSET and persistent is UNSET:
            check_ident(ident)
            ttl, persistent = self._terms
        else:
            ttl, persistent = self._check_terms(ident, ttl, persistent)
        if type(data) is not bytes or len(data) > self._max_data_bytes:
            data = self._to_payload(data)
        if persistent:
            delivery = self._make_delivery(ident, data, ttl, True)
            self._commit(ident, [delivery], ttl)
            return delivery
        until = None if timeout is None else monotonic() + timeout
        with self._mutex:
            if self._phase is not _RUNNING:
                self._check_usable()
            entry: Entry
            if ttl is None and len(data) <= MAX_JOINING_BYTES and not self._messaging.converses(ident):
                batch = self._make_batch(ident, [data], None)
                entry, delivery = batch.run(), batch.delivery(0)
            else:
                entry = delivery = self._make_delivery(ident, data, ttl, False)
            self._queue(ident, entry, until)
            return delivery

    sendMsg = send

    def send_many(
        self,
        ident: str,
        items: Iterable[Data],
        *,
        ttl: float | _Unset | None = UNSET,
        persistent: bool | _Unset = UNSET,
        timeout: float | None = None,
    ) -> Sequence[Delivery]:
        """Queue messages for one peer, in their order; returns their Deliveries.

        It is `send` for each of `items`, made cheaper. Persistent messages are stored in one transaction: all of them,
        or, where it raises, none. Of transient messages, those before the one that failed are queued; `timeout` is for
        all of them together, and each Delivery is made when it is looked at.
        """
        ttl, persistent = self._check_terms(ident, ttl, persistent)
        if persistent:
            stored = [self._make_delivery(ident, self._to_payload(data), ttl, True) for data in items]
            self._commit(ident, stored, ttl)
            return stored
        until = None if timeout is None else monotonic() + timeout
        deliveries = Deliveries()
        left = iter(items)
        while True:
            payloads: list[bytes] = []
            try:
                self._take_payloads(payloads, itertools.islice(left, MAX_BATCH_COUNT))
            finally:  # also where one of them can't be sent
                if payloads:
                    batch = self._make_batch(ident, payloads, ttl)
                    deliveries.add(batch)
                    with self._mutex:
                        self._check_usable()
                        self._queue(ident, batch.run(), until)
            if not payloads:
                return deliveries

    def _check_terms(
        self, ident: str, ttl: float | _Unset | None, persistent: bool | _Unset
    ) -> tuple[float | None, bool]:
        """The ttl of a message, and whether it is to be stored."""
        check_ident(ident)
        if ttl is UNSET and persistent is UNSET:
            return self._terms
        ttl = self._ttl if ttl is UNSET else _check_ttl(ttl)
        if persistent is UNSET:
            persistent = self._persistent
        if not persistent:
            return ttl, False
        if self._storage is None:
            raise ConfigurationError("the peer has no storage for persistent messages")
        return ttl, ttl != 0

    def _make_delivery(self, ident: str, data: bytes, ttl: float | None, persistent: bool) -> Delivery:
        expires_at = None if ttl is None else clocks.now() + ttl
        uuid = self._uuid_prefix + (next(self._uuid_counter) << _NUMBER_BITS).to_bytes(8)
        size = len(data) + frames.OVERHEAD_BYTES
        return Delivery(ident, uuid, data, size, expires_at, persistent, self._wait_delivery)

    def _make_batch(self, ident: str, payloads: list[bytes], ttl: float | None) -> Batch:
        expires_at = None if ttl is None else clocks.now() + ttl
        number = next(self._uuid_counter) << _NUMBER_BITS
        return Batch(ident, self._uuid_prefix, number, payloads, frames.OVERHEAD_BYTES, expires_at, self._wait_delivery)

    def _take_payloads(self, payloads: list[bytes], items: Iterable[Data]) -> None:
        """Append the payloads of items, up to the one that reaches MAX_BATCH_BYTES."""
        left, largest = MAX_BATCH_BYTES, self._max_data_bytes
        for data in items:
            if type(data) is not bytes:
                data = self._to_payload(data)
            size = len(data)
            if size > largest:
                self._refuse_size(size)
            payloads.append(data)
            left -= size
            if left <= 0:
                break

    def _queue(self, ident: str, entry: Entry, until: float | None) -> None:
        """With the mutex held: queue transient messages, as there is room for them."""
        left = entry.count
        while (taken := self._queue_some(ident, entry)) < left:
            left -= taken
            self._wait_for_room(ident, entry.first_size, until)

    def _queue_some(self, ident: str, entry: Entry) -> int:
        """With the mutex held: queue what there is room for, and write what should not wait; returns how many."""
        try:
            self._has_spoken = True
            now = clocks.now()
            if (run := self._gathering.get(ident)) is not None and run.is_full:
                self._write(ident, now)
            count = entry.count
            taken = self._messaging.send(ident, entry, now)
            prompt = self._messaging.prompt
            if prompt and self._dispatcher.is_current() and self._leadership.vacant:
                self._attention = True  # it goes out together with what the callback's end brings
            elif prompt or taken < count:
                self._write(ident, now)
            else:
                self._link.ring()
        except BaseException:
            self._interrupted(ident)
            raise
        return taken

    def _write(self, ident: str, now: float) -> None:
        """With the mutex held, on a caller's thread: write what waits for a receiver. The rest is left to the loop."""
        self._node.write_to(ident, now)
        self._call_loop()

    def _interrupted(self, ident: str) -> None:
        """With the mutex held: the caller was interrupted, by Ctrl-C, while it queued or wrote messages."""
        self._node.abort(ident)
        self._link.ring()

    def _wait_for_room(self, ident: str, size: int, until: float | None) -> None:
        def room_or_end() -> bool:
            return self._phase is not _Phase.RUNNING or self._messaging.has_room(ident, size)

        self._link.ring()
        if not self._wait_until(room_or_end, until):
            raise QueueFull(f"the queue to {ident!r} is full")
        self._check_usable()

    def _commit(self, ident: str, deliveries: list[Delivery], ttl: float | None) -> None:
        """Store persistent messages, and queue them.

        Whoever gets the commit lock stores what others want stored meanwhile, too; they find it done.
        """
        if self._phase is not _RUNNING:  # in a forked child, the commit lock may be held for ever
            self._check_usable()
        if not deliveries:
            return
        batch = _Uncommitted(ident, ttl, deliveries)
        self._uncommitted.append(batch)
        with self._commit_lock:
            if not batch.ended:
                self._commit_all(batch)
        if batch.error is not None:
            raise batch.error

    def _commit_all(self, own: _Uncommitted) -> None:
        """With the commit lock held: store what is uncommitted in one transaction, and queue it."""
        assert self._storage is not None
        batches = list(self._uncommitted)
        error: BaseException | None = None
        try:
            with self._mutex:
                if self._phase is not _RUNNING:
                    self._check_usable()
                at = self._messaging.stored_time(*clocks.read())
                for batch in batches:
                    batch.at = at
                    batch.epoch = self._messaging.number(batch.ident, batch.deliveries)
            self._storage.append(_appends(batches))
        # Whatever a plug-in raises, the callers must hear of it; and of an interruption of this thread, in another way.
        except BaseException as raised:
            error = raised
        try:
            self._end_commit(batches, own, error)
        except BaseException:  # Ctrl-C
            self._end_commit(batches, own, error)
            raise

    def _end_commit(self, batches: list[_Uncommitted], own: _Uncommitted, error: BaseException | None) -> None:
        """With the commit lock held: queue what has been stored, or tell why it was not; may be called again."""
        with self._mutex:
            now = clocks.now()
            for batch in batches:
                if batch.ended:
                    continue
                if error is None:
                    self._has_spoken = True
                    self._messaging.send_stored(batch.ident, batch.deliveries, now)
                else:
                    is_for_all = batch is own or isinstance(error, Exception)
                    batch.error = error if is_for_all else StorageUnavailable("storing was interrupted; try again")
                    if batch.epoch >= 0:
                        self._messaging.not_stored(batch.ident, batch.deliveries)
                batch.ended = True
            while self._uncommitted and self._uncommitted[0].ended:
                self._uncommitted.popleft()
            for ident in {batch.ident: None for batch in batches}:
                try:
                    self._node.write_to(ident, now)
                except BaseException:
                    self._interrupted(ident)
                    raise
            self._call_loop()

    def _to_payload(self, data: Data) -> bytes:
        if type(data) is not bytes:
            data = self._to_bytes(data)
        if len(data) > self._max_data_bytes:
            self._refuse_size(len(data))
        return data

    def _refuse_size(self, size: int) -> NoReturn:
        raise MessageTooLarge(f"message of {size} bytes, {self._max_data_bytes} are allowed")

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

    # -- Waiting ----------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every message has ended, persistent or not; at most `timeout` seconds (None: as long as it takes).

        Returns whether all have. Raises LifecycleError. May be called from any thread, and from a callback.
        """
        until = None if timeout is None else monotonic() + timeout
        with self._mutex:
            self._check_usable()
            self._wait_until(lambda: self._messaging.idle or self._phase is _Phase.TERMINATED, until)
            return self._messaging.idle

    def wait_connected(self, ident: str | None = None, timeout: float | None = None) -> bool:
        """Wait until a peer is connected, at most `timeout` seconds (None: as long as it takes).

        ident: the one to wait for; None for any.

        Returns whether it is. Raises LifecycleError. May be called from any thread, and from a callback.
        """
        until = None if timeout is None else monotonic() + timeout

        def connected() -> bool:
            if ident is None:
                return bool(self._messaging.connected_idents())
            return self._messaging.is_connected(ident)

        with self._mutex:
            self._check_usable()
            self._wait_until(lambda: connected() or self._phase is not _Phase.RUNNING, until)
            return connected()

    def _wait_for_delivery(self, delivery: Delivery, timeout: float | None) -> bool:
        if not delivery.done:
            self._check_process()
            until = None if timeout is None else monotonic() + timeout
            with self._mutex:
                self._wait_until(lambda: delivery.done or self._phase is _Phase.TERMINATED, until)
        return delivery.state is DeliveryState.DELIVERED

    def _wait_until(self, true: Callable[[], bool], until: float | None) -> bool:
        """Wait, with the mutex held, until a condition on what it guards has come true; returns whether it has."""
        if self._dispatcher.is_current():
            self._settle()
            self._leadership.await_deputy()
        self._waiters += 1
        try:
            if process.keeps_the_process():
                until = self._wait_for_exit(true, until)
            left = None if until is None else min(max(0.0, until - monotonic()), threading.TIMEOUT_MAX)
            return self._changed.wait_for(true, left)
        finally:
            self._waiters -= 1

    def _wait_for_exit(self, true: Callable[[], bool], until: float | None) -> float:
        """With the mutex held: wait as `_wait_until`, but no longer than until the process is ending.

        Returns until when to wait on.
        """
        while not process.is_ending():
            look = monotonic() + _EXIT_LOOK_S
            if until is not None and until <= look:
                return until
            if self._changed.wait_for(true, _EXIT_LOOK_S):
                return look
        return min(monotonic() + process.EXIT_S, inf if until is None else until)

    # -- Looking ----------------------------------------------------------------------------------------------

    @property
    def peers(self) -> list[str]:
        """The idents that are connected now, in order. From any thread; raises LifecycleError in a forked child."""
        self._check_process()
        with self._mutex:
            return self._messaging.connected_idents()

    def stats(self) -> Stats:
        """A snapshot of the traffic. From any thread; raises LifecycleError in a forked child."""
        self._check_process()
        with self._mutex:
            return Stats(self._messaging.stats())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._local_ident!r} {self._phase.value}>"

    # -- The loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Lead while callbacks keep the dispatcher from it, and in the end close everything; `start` calls it."""
        try:
            while self._leadership.deputize():
                try:
                    with self._mutex:
                        self._tell_at = clocks.now()  # the first pass tells of the callbacks that have returned
                    while not self._leadership.wanted:
                        self._pass()
                finally:
                    self._leadership.release()
            self._leadership.acquire_last()
            try:
                self._close_connections()
            finally:
                self._leadership.release()
        except BaseException as error:
            self._fail(error)
        finally:
            try:
                self._end()
            except BaseException as error:
                self._fail(error)

    def _lead(self) -> bool:
        """On the dispatcher's thread, when nothing waits for callbacks: be the loop for a pass.

        Returns False when there is no loop any more.
        """
        if not self._leadership.acquire():
            return False
        try:
            self._link.will_wait()
            if self._dispatcher.empty:
                self._pass()
        except BaseException as error:
            self._fail(error)
        finally:
            self._leadership.release()
        return True

    def _fail(self, error: BaseException) -> None:
        """End the peer: something has gone wrong that belongs to no connection.

        To be called without the mutex: it logs.
        """
        with self._mutex:
            self._note_failure(error)
        log.critical("peer %r has failed", self._local_ident, exc_info=error)
        self._report_later(NetcommError(f"peer {self._local_ident!r} has failed: {error!r}"))

    def _note_failure(self, error: BaseException) -> None:
        """With the mutex held: hand nothing more to callbacks, count none that returns, and let the loop end."""
        self._failure = self._failure or error
        self._muted = self._attention = True
        self._leadership.stop()

    def _pass(self) -> None:
        self._link.will_wait()
        with self._mutex:
            if self._leadership.wanted:
                return
            if self._messaging.has_pending_work:  # since a caller found nobody who waits
                self._settle()
            when = self._wake_at = self._next_deadline()
        timeout = None if when is None else max(0.0, when - clocks.now())
        for event in self._link.poll(timeout, self._conversing):
            with self._mutex:
                self._node.on_link(event, clocks.now())
        with self._mutex:
            # Behind what has come in: who has answered in time is not late because nobody could read.
            if when is not None and (now := clocks.now()) >= when:
                if self._tell_at is not None and now >= self._tell_at:
                    self._tell_at = now + _ACK_DELAY_S if self._tell() else None
                    self._attention = self._attention or self._tell_at is None
                self._node.tick(now)
            self._settle()

    def _next_deadline(self) -> float | None:
        """With the mutex held: when the loop has something to do, though nothing happens."""
        when = self._node.deadline()
        return self._tell_at if when is None or (self._tell_at is not None and self._tell_at < when) else when

    def _settle(self) -> None:
        """With the mutex held: write what can be written, and hand on what is for other threads."""
        if self._messaging.has_pending_work:
            try:
                self._process_pending()
            except Exception as error:
                # Messages may have been lost on their way to callbacks: none behind them may be acknowledged.
                self._note_failure(error)
                raise
        self._call_loop()

    def _process_pending(self) -> None:
        work = self._node.process_pending(clocks.now())
        for event in work.dispatch:
            self._dispatcher.put(event)
        for request in work.storage:
            assert self._keeper is not None
            self._keeper.put(request)
        if work.awaited and self._waiters:
            self._changed.notify_all()

    def _call_loop(self) -> None:
        """With the mutex held: end the loop's wait, if there is more to be done, or sooner, than it knows of."""
        if self._link.waiting:
            when = self._next_deadline()
            is_sooner = when is not None and (self._wake_at is None or when < self._wake_at)
            if self._messaging.has_pending_work or is_sooner:
                self._wake_at = when
                self._link.ring()

    def _on_storage_answer(self, request: StorageRequest, result: Any) -> None:
        """On the keeper's thread: the storage has done what it was asked for."""
        try:
            with self._mutex:
                self._node.on_storage(request, result, *clocks.read())
                self._settle()
        except BaseException as error:
            self._fail(error)

    def _close_connections(self) -> None:
        """Close everything, gently: what was written still goes out, if the other side takes it soon."""
        with self._mutex:
            self._settle()
            self._messaging.close_all("terminated", clocks.now())
            self._settle()
            self._link.stop_accepting()
        until = monotonic() + _CLOSING_S
        left = 0.0  # what the other side has closed already is found without waiting
        while not self._link.quiet and left >= 0:
            for _ in self._link.poll(left):
                pass
            left = until - monotonic()

    def _end(self) -> None:
        with self._mutex:
            self._end_under_mutex()

    def _end_under_mutex(self) -> None:
        self._phase = _Phase.TERMINATED
        try:
            self._leadership.stop()
            self._messaging.discard_all()
            self._settle()
        finally:  # whatever has failed: no socket, thread or storage is left behind
            self._link.shut()
            self._changed.notify_all()
            self._dispatcher.stop()
            if self._keeper is not None:
                self._keeper.stop()

    def _abandon(self) -> None:
        """In a forked child: the peer is the parent's. Its sockets are closed by `process`."""
        # No lock: a thread that does not exist here may hold it for ever.
        self._phase = _Phase.FORKED
        self._muted = self._attention = True  # a callback may have forked, and the dispatcher goes on in the child
        self._gathering.clear()
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        if self._storage is not None:
            self._storage.abandon()

    # -- The dispatcher ---------------------------------------------------------------------------------------

    def _dispatch(self, event: "Event | _Release") -> None:
        self._leadership.begin_work()
        match event:
            case Received() | _Release():
                try:
                    self._dispatch_received(event)
                except BaseException as error:
                    # A message may have been passed over: no later one may be acknowledged, for that would cover it.
                    self._fail(error)
            case Connected(ident):
                self.on_connect(ident)
            case Disconnected(ident):
                self.on_disconnect(ident)
            case Dropped(deliveries):
                for delivery in deliveries:
                    self.on_drop(delivery.ident, delivery)
            case Failed(error):
                self.on_error(error)
        if self._phase is _Phase.FORKED:  # by a callback, which has returned
            process.end_child(None)
        if self._messaging.prompt:  # what a callback has sent
            with self._mutex:
                self._settle()

    def _dispatch_received(self, event: "Received | _Release") -> None:
        if isinstance(event, _Release):
            self._hand_over_held()
        elif self._held:
            self._held.append(event)
            self._hand_over_held()
        elif self.on_recv.functions or self.on_message.functions:
            self._hand_over(event)
        else:
            with self._mutex:
                self._held.append(event)
                self._changed.notify_all()  # `terminate` does not wait for what is held back
            self._tell_of_held()

    def _release(self) -> None:
        self._dispatcher.put(_Release())

    def _look_at_functions(self) -> None:
        """A function was removed: there may be none for the next message."""
        self._attention = True

    def _tell_of_held(self) -> None:
        log.warning("%r holds messages back: on_recv and on_message are empty", self._local_ident)

    def _hand_over_held(self) -> None:
        while self._held and (self.on_recv or self.on_message):
            self._hand_over(self._held.popleft())

    def _hand_over(self, received: Received) -> None:
        """Run the callbacks of a batch; acknowledge it in parts, as the time goes by, and at its end."""
        self._conversing = self._has_spoken and len(received.payloads) < CONVERSATION
        self._has_spoken = False
        handled = received.handled  # before it was held back
        left = iter(received.payloads[handled:] if handled else received.payloads)
        with self._mutex:
            self._batch, self._left = received, left
            self._tell_at = clocks.now() + _ACK_DELAY_S
            if len(received.payloads) > 1 and not self._leadership.vacant:
                self._settle()  # the deputy has to know when it is to look
        ident, encoding = received.ident, self._encoding
        on_recv, on_message = self.on_recv, self.on_message
        items: list[frames.Item] = []
        for payload in left:
            if self._attention and not self._attend():
                return
            data: Any = payload if encoding is None else self._decode(payload, encoding, ident)
            if data is not None:
                for function in on_recv.functions:  # as on_recv(ident, data), which costs a call more for each message
                    try:
                        function(ident, data)
                    except BaseException as error:
                        on_recv.failed(function, error)
            if on_message.functions:
                items = items or received.items
                on_message(ident, _message(items[-length_hint(left) - 1], received.redelivered_below))
        with self._mutex:
            self._attention = self._muted
            if self._muted:
                return
            self._tell(running=0)
            self._batch = self._tell_at = None
            self._settle()
            if self._phase is not _RUNNING:
                self._changed.notify_all()

    def _attend(self) -> bool:
        """Between two callbacks: returns False where there are to be no more of them.

        While callbacks return one after the other, the deputy tells of it. Where it has found that one takes long, and
        does not look any more, this thread does when that one has returned. It settles, too, where one has sent
        something that should not wait.
        """
        with self._mutex:
            self._attention = self._muted
            if self._muted:  # where the callback has terminated the peer, `terminate` has counted it
                return False
            self._tell()
            self._tell_at = clocks.now() + _ACK_DELAY_S
            has_functions = bool(self.on_recv.functions or self.on_message.functions)
            if not has_functions and self._batch is not None:
                self._held.appendleft(self._batch)
                self._batch = self._tell_at = None
                self._changed.notify_all()
            self._settle()
        if not has_functions:
            self._tell_of_held()
        return has_functions

    def _tell(self, running: int = 1) -> bool:
        """With the mutex held: tell messaging of the callbacks that have returned; returns whether any had.

        running: how many of the messages that were given to callbacks may still be with them: the last one.
        """
        if self._batch is None or self._muted:
            return False
        returned = len(self._batch.payloads) - length_hint(self._left) - running
        return self._node.on_handled(self._batch, returned, clocks.now())

    def _decode(self, data: bytes, encoding: str, ident: str) -> str | None:
        try:
            return data.decode(encoding)
        except Exception as error:  # a codec may raise anything
            log.error("a message from %r is not %s: %s", ident, encoding, error)
            self._report(error)
            return None

    def _report(self, error: BaseException) -> None:
        if self._phase is _Phase.FORKED:  # by the callback that has raised: it means the child
            process.end_child(error)
        self.on_error(error)

    def _report_later(self, error: BaseException) -> None:
        """From any thread: let the dispatcher call `on_error`."""
        self._dispatcher.put(Failed(error))

    def _not_handled(self, error: BaseException) -> None:
        """A function that was called with a message has raised.

        The message counts as delivered all the same, as it would raise again. But where the program is ending, it may
        have raised for that: the message, and those behind it, are left to the next process.
        """
        if process.is_ending() and self._phase is not _Phase.FORKED:
            with self._mutex:
                first = not self._muted
                self._mute()
                self._settle()
            if first:
                log.warning(
                    "the program is ending, and a callback raised: %r hands over no more messages, and leaves this one"
                    " unacknowledged",
                    self._local_ident,
                )
        self._report(error)


def _message(item: frames.Item, redelivered_below: int) -> Message:
    seq, uuid, ttl, flags, data = item
    return Message(
        data, uuid, None if ttl == frames.INFINITE_TTL else ttl, flags & FLAG_PERSISTENT, seq < redelivered_below
    )


def _check_ttl(ttl: float | None) -> float | None:
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 <= ttl < frames.INFINITE_TTL:
        raise ConfigurationError(f"a ttl must be None or a number of seconds from 0 on, not {ttl!r}")
    return ttl


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except Exception as error:  # a codec may raise anything
        raise ConfigurationError(f"an encoding that can't be used: {encoding!r}: {error}") from None


def _file_name(ident: str) -> str:
    """The file that a persistent peer keeps its messages in, where it is not told another one.

    A name of a file has 255 bytes at the most, also with what SQLite and the lock append to it.
    """
    from urllib.parse import quote

    name = quote(ident, safe="")
    if len(name) > _LONGEST_NAME:
        from hashlib import sha256

        name = f"{name[: _LONGEST_NAME - 1 - _HASH_SIZE]}-{sha256(ident.encode()).hexdigest()[:_HASH_SIZE]}"
    return f"netcomm-{name}.db"
