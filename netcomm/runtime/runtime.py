"""`Runtime`: all that a peer runs on, from its making to its end.

Three kinds of threads meet here. The *dispatcher* runs callbacks. *Callers* send and wait. And the *loop* waits for the
sockets: it is a role, and the dispatcher's while no callback is to be run. The Peer itself, which is a thread, is the
deputy, which leads while callbacks keep the dispatcher from it; always, where a thread of the program dispatches. With
a storage, a fourth thread, the *storage worker*, does its background work. Persistent messages are stored by the
callers, before `send` returns.
"""

import os
from collections.abc import Callable
from threading import TIMEOUT_MAX, Thread, get_ident
from time import monotonic

from netcomm import clocks, logs
from netcomm.host_storage import HostStorage
from netcomm.limits import Limits
from netcomm.message import DURABLE, Delivery, DeliveryState, Stream, check_ident
from netcomm.protocol.events import Event, StorageRequest
from netcomm.protocol.extension import Extension
from netcomm.protocol.messaging import Messaging
from netcomm.protocol.node import Node
from netcomm.protocol.remote_peer import PeerStats
from netcomm.runtime import process
from netcomm.runtime.attachment import Attachment
from netcomm.runtime.callback_runner import CallbackRunner, Release, weigh
from netcomm.runtime.dispatcher import Dispatcher, ThreadDispatcher
from netcomm.runtime.group_commit import GroupCommit
from netcomm.runtime.handover import Handover, NotedHandover
from netcomm.runtime.lifecycle import RUNNING, TERMINATED, Lifecycle, Phase
from netcomm.runtime.loop import CLOSING_S, Loop, reentrant
from netcomm.runtime.manual_dispatcher import ManualDispatcher
from netcomm.runtime.sender import Sender
from netcomm.runtime.storage_worker import StorageWorker
from netcomm.storage import Position, QueueStorage
from netcomm.storage_url import open_storage
from netcomm.transport.acceptor import listen
from netcomm.transport.addresses import Address
from netcomm.transport.link import Link


class Runtime:
    """The parts of one peer, and their life.

    ident: the peer's name.
    callbacks, sender: what the peer's verbs use. Other methods may be called from any thread, but for `deputize`.
    """

    def __init__(
        self,
        ident: str,
        limits: Limits,
        storage: str | QueueStorage | None,
        *,
        encoding: str | None,
        ttl: float | None,
        persistent: bool,
        made_up: bool = False,
        on_program_thread: bool = False,
    ) -> None:
        """Make all of it; no thread runs before `start`.

        made_up: whether the ident was made up.
        on_program_thread: whether callbacks run where the program calls `dispatch`, and not on a thread of their own.

        Raises StorageError where the storage can't be opened.
        """
        self.ident = ident
        self._life = Lifecycle(ident)
        self._storage: QueueStorage | None = None
        self._deputy: Thread | None = None
        self._link = Link(limits)
        self._dispatcher: Dispatcher[Event | Release]
        self._dispatcher = ThreadDispatcher(f"netcomm-{ident}-dispatcher", self._link.ring)
        process.enter(self)
        try:
            if on_program_thread:
                self._dispatcher = ManualDispatcher(ident, weigh)
            self._build(limits, storage, encoding, ttl, persistent, made_up)
        except BaseException:
            process.leave(self)
            self._dispatcher.close()
            self._link.close_now()
            if self._storage is not None:
                self._storage.close()
            raise

    def _build(
        self,
        limits: Limits,
        storage: str | QueueStorage | None,
        encoding: str | None,
        ttl: float | None,
        persistent: bool,
        made_up: bool,
    ) -> None:
        """The rest of the constructor, which a fork may meet half-way."""
        life, link, name = self._life, self._link, f"netcomm-{self._life.ident}"
        self._storage = opened = open_storage(storage) if isinstance(storage, str) else storage
        self._messaging = messaging = Messaging(
            life.ident,
            limits,
            peer_id=os.urandom(16) if opened is None else opened.store_id,
            boot_id=os.urandom(16),
            first_epoch=int.from_bytes(os.urandom(8)) >> 1,
            owner=self,
            progress=link.progress,
            stores_positions=opened is not None,
            made_up=made_up,
        )
        self._node = node = Node(messaging, link)
        worker = None if opened is None else StorageWorker(f"{name}-storage", opened)
        self._worker = worker
        if opened is not None:
            for request in node.restore(opened.streams(), _positions(opened), *clocks.read()):
                request.carry_out(opened)
        self._handover = Handover(node) if self._dispatcher.owns_thread else NotedHandover(node)
        store = _no_storage if worker is None else worker.put
        self._loop = loop = Loop(life, node, link, self._dispatcher, self._handover, store)
        self.callbacks = CallbackRunner(life, messaging, loop, self._dispatcher, self._handover, encoding)
        self._commit = commit = None
        if opened is not None and worker is not None:
            self._commit = commit = GroupCommit(life, messaging, loop, node, opened, worker)
        self.sender = Sender(
            life,
            messaging,
            loop,
            self._dispatcher,
            self._handover,
            commit,
            self,
            limits,
            encoding=encoding,
            ttl=ttl,
            persistent=persistent,
        )
        life.phase = Phase.NEW

    def __repr__(self) -> str:
        return f"{self._life.ident!r} {self._life.phase.value}"

    # -- Life -------------------------------------------------------------------------------------------------

    def add_connector(self, host: str, port: int) -> None:
        """See `Peer.add_connector`; host and port are checked."""
        self._loop.refuse_interruption("add_connector")
        with self._loop.mutex:
            self._life.check(Phase.NEW, RUNNING)
            self._link.add_connector(host, port)

    def add_listener(self, host: str, port: int) -> str | Address:
        """See `Peer.add_listener`; host and port are checked."""
        self._loop.refuse_interruption("add_listener")
        self._life.check(Phase.NEW, RUNNING)
        # To look up a name and to bind may take their time. The peer may end meanwhile.
        with listen(host, port) as listening, self._loop.mutex:
            self._life.check(Phase.NEW, RUNNING)
            self._link.add_listener(listening)
        return listening.address

    def start(self, deputy: Thread, start_deputy: Callable[[], None]) -> None:
        """Start all threads; start_deputy: starts the deputy, which calls `deputize`. Raises LifecycleError."""
        loop, worker = self._loop, self._worker
        loop.refuse_interruption("start")
        with loop.mutex:
            self._life.check(Phase.NEW)
            self._life.phase = RUNNING
            self._deputy = deputy
            try:
                self._dispatcher.start(self.callbacks.dispatch, loop.lead)
                if worker is not None:
                    worker.start(loop.on_storage_answer, loop.report)
                start_deputy()
                return
            except BaseException as error:
                failure = error
                loop.leadership.stop()  # before a thread that was started can poll what is closed now
        self._end()
        self._dispatcher.close()
        raise failure

    def deputize(self) -> None:
        """On the deputy's thread: lead while callbacks keep the dispatcher from it, and in the end close everything."""
        self._loop.deputize()
        try:
            self._end()
        except BaseException as error:
            self._loop.fail(error)

    def terminate(self, timeout: float) -> None:
        """See `Peer.terminate`."""
        if self._life.phase in (Phase.FORKED, Phase.UNMADE):
            return
        self._refuse_waiting("terminate")
        until = monotonic() + max(0.0, timeout)
        in_callback = self._dispatcher.is_current()
        mutex = self._loop.mutex
        is_new = False
        try:
            with mutex:
                is_new = self._life.phase is Phase.NEW
                if is_new:
                    self._life.phase = Phase.TERMINATING
                elif self._life.phase is RUNNING:
                    self._end_running(until - CLOSING_S, in_callback)
                elif in_callback and not self._handover.muted:
                    self._end_callbacks(running=0)
        finally:  # also where the caller was interrupted: nobody else ends what was never started
            if is_new:
                self._end()
        until = min(until, monotonic() + TIMEOUT_MAX / 2)
        if self._deputy is not None and self._deputy.ident not in (None, get_ident()):
            self._deputy.join(max(2 * CLOSING_S, until - monotonic()))
        self._dispatcher.join(max(0.0, until - monotonic()))
        if self._worker is not None:
            self._worker.join(max(CLOSING_S, until - monotonic()))
        self._dispatcher.close()
        logs.flush(max(CLOSING_S, until - monotonic()))

    def _end_running(self, until: float, in_callback: bool) -> None:
        """With the mutex held: see `_wind_down`; then let the threads end."""
        try:
            self._wind_down(until, in_callback)
            self._stop_threads()
        except BaseException:  # the caller was interrupted, perhaps in `_stop_threads`
            self._stop_threads()
            raise

    def _wind_down(self, until: float, in_callback: bool) -> None:
        """With the mutex held: wait until nothing is left to be done, as far as the time allows."""
        loop, messaging = self._loop, self._messaging
        self._life.phase = Phase.TERMINATING
        messaging.close_runs()
        loop.changed.notify_all()
        loop.wait_until(lambda: messaging.peers.may_end and not loop.has_deferred, until)
        messaging.sessions.stop_receiving()
        loop.wake()
        if not self._dispatcher.goes_on_meanwhile():
            self._end_callbacks(running=0 if in_callback else 1)
        loop.wait_until(self._may_close, until)

    def _may_close(self) -> bool:
        """With the mutex held: whether nothing that was received waits for callbacks, or for the storage."""
        callbacks_are_done = self._handover.muted or self.callbacks.holds_back or self._node.all_handed_over
        return self._messaging.storage_sync.all_stored and callbacks_are_done

    def _end_callbacks(self, running: int) -> None:
        """With the mutex held: no more callbacks are called.

        running: 0 where a callback terminates the peer, which counts as returned; else 1.
        """
        self._handover.mute(running)
        self._loop.hand_on()
        self._loop.changed.notify_all()

    def _stop_threads(self) -> None:
        """With the mutex held: let the loop and the dispatcher end."""
        self._handover.mute()
        self._loop.leadership.stop()

    def _end(self) -> None:
        loop, life = self._loop, self._life
        try:
            with loop.mutex:
                if life.phase is not TERMINATED:
                    life.phase = Phase.TERMINATING
            self._link.stop_accepting()  # it removes files, and nothing is added any more
            with loop.mutex:
                life.phase = TERMINATED  # together with the end of all messages: threads that wait look for either
                loop.leadership.stop()
                loop.discard_all()
        finally:  # whatever has failed: no socket, thread or storage is left behind
            with loop.mutex:
                life.phase = TERMINATED
                self._link.close_now()
                loop.changed.notify_all()
            self._dispatcher.stop()
            if self._worker is not None:
                self._worker.stop()

    def abandon(self) -> None:
        """In a forked child: the peer is the parent's. Its sockets are closed by `netcomm.descriptors`."""
        unmade = self._life.phase is Phase.UNMADE
        self._life.phase = Phase.FORKED
        if self._storage is not None:
            self._storage.abandon()
        self._dispatcher.abandon()
        if not unmade:
            self._loop.renew_mutex()
            # A callback may have forked, and the dispatcher goes on here.
            self._handover.muted = self._handover.attention = True
            self.sender.abandon()

    # -- Extensions -------------------------------------------------------------------------------------------

    def attach(self, extension: Extension) -> Attachment:
        """Let an extension take part.

        Before or after `start`. Raises ConfigurationError where one of its streams has another one already;
        LifecycleError.
        """
        self._loop.refuse_interruption("attach")
        with self._loop.mutex:
            self._life.check(Phase.NEW, RUNNING)
            self._node.attach(extension, clocks.now())
            self._loop.wake()
        return Attachment(self._life, self._node, self._loop, self.sender)

    # -- On a thread of the program ---------------------------------------------------------------------------

    def fileno(self) -> int:
        """See `Peer.fileno`."""
        return self._dispatcher.fileno()

    def dispatch(self, timeout: float | None) -> int:
        """See `Peer.dispatch`."""
        self._refuse_waiting("dispatch")
        has_ended = self._life.phase is TERMINATED
        if has_ended and self._dispatcher.empty:
            self._dispatcher.hush()  # it has rung for the end, which is told now
        if not has_ended or self._dispatcher.empty:
            self._life.check(RUNNING, Phase.TERMINATING)
        count = self._dispatcher.dispatch(timeout)
        self._life.check_process()
        return count

    # -- Waiting ----------------------------------------------------------------------------------------------

    def _refuse_waiting(self, call: str) -> None:
        """Raise ReentrantCall where the caller's thread is one that others wait for; call: for the error's text."""
        self._loop.refuse_waiting(call)
        if self._commit is not None and self._commit.is_interrupting():
            raise reentrant(call)

    def flush(self, timeout: float | None) -> bool:
        """See `Peer.flush`."""
        loop = self._loop
        self._refuse_waiting("flush")
        until = None if timeout is None else monotonic() + timeout
        with loop.mutex:
            self._life.check_running()
            loop.wait_until(lambda: self._is_idle or self._life.phase is TERMINATED, until)
            return self._is_idle

    def discard(self, ident: str) -> int:
        """See `Peer.discard`."""
        check_ident(ident)
        self._life.check_process()
        self._refuse_waiting("discard")
        with self._loop.mutex:
            self._life.check(RUNNING, Phase.TERMINATING)
            count = self._loop.discard(ident)
            if count is None:
                self._life.check_running()
            return count or 0

    @property
    def _is_idle(self) -> bool:
        return self._messaging.peers.idle and not self._loop.has_deferred

    def wait_connected(self, ident: str | None, timeout: float | None) -> bool:
        """See `Peer.wait_connected`."""
        loop, messaging = self._loop, self._messaging
        self._refuse_waiting("wait_connected")
        until = None if timeout is None else monotonic() + timeout

        def connected() -> bool:
            return bool(messaging.peers.connected_idents()) if ident is None else messaging.peers.is_connected(ident)

        with loop.mutex:
            self._life.check_running()
            loop.wait_until(lambda: connected() or self._life.phase is not RUNNING, until)
            return connected()

    def wait_for_delivery(self, delivery: Delivery, timeout: float | None) -> bool:
        """See `Delivery.wait`."""
        if not delivery.done:
            self._life.check_process()
            self._refuse_waiting("Delivery.wait")
            loop = self._loop
            until = None if timeout is None else monotonic() + timeout
            with loop.mutex:
                loop.wait_until(lambda: delivery.done or self._life.phase is TERMINATED, until)
        return delivery.state is DeliveryState.DELIVERED

    def watch_delivery(self, delivery: Delivery, function: Callable[[Delivery], object]) -> None:
        """See `Delivery.add_done_callback`."""
        self._life.check_process()
        self._loop.refuse_interruption("Delivery.add_done_callback")
        with self._loop.mutex:
            is_watched = self._messaging.peers.watch(delivery, function)
        if not is_watched:
            self.callbacks.call_at_once(function, delivery)

    # -- Looking ----------------------------------------------------------------------------------------------

    def connected_idents(self) -> list[str]:
        """See `Peer.peers`."""
        self._life.check_process()
        self._loop.refuse_interruption("peers")
        with self._loop.mutex:
            return self._messaging.peers.connected_idents()

    def stats(self) -> dict[str, PeerStats]:
        """What `Peer.stats` shows."""
        self._life.check_process()
        self._loop.refuse_interruption("stats")
        with self._loop.mutex:
            return self._messaging.peers.stats()


def _positions(storage: QueueStorage) -> dict[tuple[str, Stream], Position]:
    """The positions that a storage has kept, by sender and stream."""
    positions = {(sender, DURABLE): position for sender, position in storage.positions().items()}
    if isinstance(storage, HostStorage):
        for key, (epoch, next_seq, *_) in storage.host_positions().items():
            positions[key] = Position(epoch, next_seq)
    return positions


def _no_storage(request: StorageRequest) -> None:
    raise AssertionError("without a storage, nothing is asked of it")
