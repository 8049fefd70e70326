"""`Loop`: waits for the sockets and for deadlines, and lets the node act on what happens.

To be the loop is a role: the thread that leads has it, see `netcomm.runtime.leadership`. One lock, the *mutex*, guards
the node and the output of the connections. Nobody holds it while code of the program runs, or while anything can block.

A thread that changes messaging, with the mutex held, calls `process_pending` before it lets go, and the loop does so
once for all that a pass has brought: that writes what became writable, and acts on what happened. Callers call
`write_to`, which writes what they have queued, and leaves the rest to the loop. So a message for an idle connection is
on its way before `send` returns, without waking the loop.

The main thread can be interrupted between any two steps, by Ctrl-C; the peer's own threads can't. So callers do little
that would have to be undone: where one is interrupted, the connection is closed, and what was taken from the queue for
it goes back there (`abort`).

A finalizer or a signal handler may interrupt a thread that holds the mutex. The mutex knows its owner: what such a call
sends is queued by the next pass (`defer`), and everything else is refused.
"""

import threading
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from netcomm import clocks
from netcomm.errors import NetcommError, ReentrantCall
from netcomm.logs import Log
from netcomm.protocol.batch import Entry
from netcomm.protocol.events import ErrorReported, StorageRequest
from netcomm.protocol.node import Node
from netcomm.protocol.remote_peer import CONVERSATION
from netcomm.runtime import process
from netcomm.runtime.dispatcher import Dispatcher
from netcomm.runtime.handover import Handover
from netcomm.runtime.leadership import Leadership
from netcomm.runtime.lifecycle import TERMINATED, Lifecycle
from netcomm.transport.link import Link

log = Log("netcomm.runtime.loop")

# How long closing may take, in seconds, of the time that ending may take.
CLOSING_S = 0.25
# How often a thread that waits, and that the process waits for, looks whether the process is ending.
_EXIT_LOOK_S = 0.25


class Loop:
    """The thread that leads runs `lead` or `deputize`; callers hold `mutex` as the methods say.

    changed: the condition, on what the mutex guards, that threads wait for.
    is_interrupting: called without arguments, returns whether the caller's thread has the mutex already.
    wake: called without arguments, from any thread, lets the loop look at what was changed.
    has_sent: whether something was sent since messages have come in last.
    hand_on: called without arguments, with the mutex held, when callbacks have run: `process_pending`. A thread of the
        program, which signals may interrupt, leaves that to the thread that leads.
    """

    def __init__(
        self,
        life: Lifecycle,
        node: Node,
        link: Link,
        dispatcher: "Dispatcher[Any]",
        handover: Handover,
        store: Callable[[StorageRequest], None],
    ) -> None:
        """Make it. store: takes what the storage is to do; called with the mutex held."""
        self._life = life
        self._node = node
        self._messaging = node.messaging
        self._link = link
        self._dispatcher = dispatcher
        self._handover = handover
        self._store = store
        self.wake = link.ring
        self.leadership = Leadership(link.ring)
        self._waiters = 0
        self._wake_at: float | None = None  # when the loop will look at the deadlines again by itself
        self._deferred: deque[tuple[str, Entry]] = deque()
        self._steps: deque[Callable[[], None]] = deque()
        self.has_sent = False
        self._eager = False
        self.hand_on: Callable[[], None] = self.process_pending
        if not dispatcher.owns_thread:
            self.hand_on = self.wake
            self.leadership.retire()
        self.renew_mutex()

    def renew_mutex(self) -> None:
        """Make the mutex. In a forked child, a thread that does not exist there may hold the old one for ever."""
        self.mutex = threading.RLock()
        self.changed = threading.Condition(self.mutex)
        self.is_interrupting: Callable[[], bool] = self.mutex._is_owned  # type: ignore[attr-defined]  # as Condition asks

    # -- Leading ----------------------------------------------------------------------------------------------

    def lead(self) -> bool:
        """On the dispatcher's thread, when nothing waits for callbacks: be the loop for a pass.

        Returns False when there is no loop any more.
        """
        leadership = self.leadership
        if not leadership.acquire():
            return False
        try:
            self._link.will_wait()
            if self._dispatcher.empty:
                self._pass()
        except BaseException as error:
            self.fail(error)
        finally:
            leadership.release()
        return True

    def deputize(self) -> None:
        """On the deputy's thread: be the loop while callbacks keep the dispatcher from it; in the end, close all."""
        leadership = self.leadership
        try:
            while leadership.deputize():
                try:
                    with self.mutex:
                        self._handover.report_at = clocks.now()  # the first pass reports what has returned
                    while not leadership.wanted:
                        self._pass()
                finally:
                    leadership.release()
            leadership.acquire_last()
            try:
                self._close_connections()
            finally:
                leadership.release()
        except BaseException as error:
            self.fail(error)

    def _pass(self) -> None:
        link, node, mutex = self._link, self._node, self.mutex
        link.will_wait()
        with mutex:
            if self.leadership.wanted:
                return
            # Since another thread found nobody who waits.
            if self._messaging.has_pending_work or self._deferred or self._steps or self._handover.untold:
                self.process_pending()
            when = self._wake_at = self._next_deadline()
        timeout = None if when is None else max(0.0, when - clocks.now())
        for event in link.poll(timeout, self._eager):
            with mutex:
                node.on_link(event, clocks.now())
        with mutex:
            # Behind what has come in: who has answered in time is not late because nobody could read.
            if when is not None and (now := clocks.now()) >= when:
                self._handover.report_due(now)
                if self._dispatcher.overdue_at is not None:
                    self._dispatcher.warn(now)
                node.tick(now)
            self.process_pending()

    def _next_deadline(self) -> float | None:
        """With the mutex held: when the loop has something to do, though nothing happens."""
        when = self._node.deadline()
        for other in (self._handover.report_at, self._dispatcher.overdue_at):
            if other is not None and (when is None or other < when):
                when = other
        return when

    def handing_over(self, count: int) -> None:
        """On the dispatcher's thread: so many messages that have come in together go to callbacks.

        Where they are few, and something was sent before, it may go on like that: the loop waits awake for a moment.
        """
        self._eager = self.has_sent and count < CONVERSATION
        self.has_sent = False

    # -- With the mutex held ----------------------------------------------------------------------------------

    def process_pending(self) -> None:
        """Write what can be written, and hand on what is for other threads."""
        if self._deferred:
            self.queue_deferred()
        while self._steps:
            self._steps.popleft()()
        if self._handover.untold:
            self._handover.tell(clocks.now())
            self.changed.notify_all()  # `terminate` waits for callbacks
        if self._messaging.has_pending_work:
            try:
                self._process_pending()
            except Exception as error:
                # Messages may have been lost on their way to callbacks: none behind them may be acknowledged.
                self._note_failure(error)
                raise
        self.call()

    def _process_pending(self) -> None:
        work = self._node.process_pending(clocks.now())
        put = self._dispatcher.put
        for event in work.dispatch:
            put(event)
        for request in work.storage:
            self._store(request)
        if work.awaited and self._waiters:
            self.changed.notify_all()

    def call(self) -> None:
        """End the loop's wait, if there is more to be done, or sooner, than it knows of."""
        if not self._link.waiting:
            return
        # What was deferred waits for room, which only something that happens can make, or has rung by itself.
        if self._messaging.has_pending_work:
            self._link.ring()
        else:
            when = self._next_deadline()
            if when is not None and (self._wake_at is None or when < self._wake_at):
                self._wake_at = when
                self._link.ring()

    def write_to(self, ident: str, now: float) -> None:
        """On a caller's thread: write what waits for a receiver. The rest is left to the loop."""
        self._node.write_to(ident, now)
        self.call()

    def abort(self, ident: str) -> None:
        """The caller was interrupted, by Ctrl-C, while it queued or wrote messages: the connection ends."""
        self._node.abort(ident)
        self._link.ring()

    def discard(self, ident: str) -> int | None:
        """End every message to a receiver that has not ended; returns how many; None where the peer ends meanwhile.

        One of the peer's own threads does it, for the caller may be interrupted, by Ctrl-C, between any two steps. What
        it has not done by then is not done any more: it would end messages that are sent later.
        """
        counts: list[int] = []
        is_wanted = True

        def step() -> None:
            if is_wanted:
                counts.append(self._discard(ident))

        try:
            self._steps.append(step)
            self.wake()
            self.wait_until(lambda: bool(counts) or self._life.phase is TERMINATED, None)
        except BaseException:
            is_wanted = False
            raise
        return counts[0] if counts else None

    def _discard(self, ident: str) -> int:
        count = self._messaging.discard(ident)
        while self.defers(ident):  # an empty queue takes one message at least
            self.queue_deferred()
            count += self._messaging.discard(ident)
        self.changed.notify_all()
        return count

    def do_soon(self, step: Callable[[], None]) -> None:
        """From any thread: let one of the peer's own threads do something with the mutex held, as `discard` has it.

        On the dispatcher's thread, where that is the peer's own, it is done at once.
        """
        self._steps.append(step)
        dispatcher = self._dispatcher
        if dispatcher.owns_thread and dispatcher.is_current() and not self.is_interrupting():
            with self.mutex:
                self.process_pending()
        else:
            self.wake()

    # -- Calls that interrupt their own thread ----------------------------------------------------------------

    def refuse_interruption(self, call: str) -> None:
        """Before the mutex is asked for: raise ReentrantCall where the caller's thread has it.

        call: what is refused, for the error's text.
        """
        if self.is_interrupting():
            raise reentrant(call)

    def refuse_waiting(self, call: str) -> None:
        """As `refuse_interruption`; and on the thread that leads, which would have to bring about what is awaited."""
        if self.is_interrupting() or self.leadership.is_current():
            raise reentrant(call)

    def defer(self, ident: str, entry: Entry) -> None:
        """Let the next pass queue transient messages, since the caller interrupts a thread that has the mutex."""
        self._deferred.append((ident, entry))
        self._link.ring()

    @property
    def has_deferred(self) -> bool:
        """Whether there are messages that were deferred, and are not queued yet."""
        return bool(self._deferred)

    def defers(self, ident: str) -> bool:
        """With the mutex held: whether there are messages to a receiver that were deferred, and are not queued yet."""
        return any(ident == other for other, _ in self._deferred.copy())  # a finalizer may defer more meanwhile

    def queue_deferred(self) -> None:
        """With the mutex held: queue the deferred messages that there is room for; the rest waits, in its order."""
        left: list[tuple[str, Entry]] = []
        full = set()
        try:
            while self._deferred:
                ident, entry = self._deferred[0]
                if entry.seq < 0:  # else it is queued, and the thread was interrupted just then
                    count = entry.count
                    if ident in full or self._messaging.send(ident, entry, clocks.now()) < count:
                        full.add(ident)
                        left.append((ident, entry))
                self._deferred.popleft()
        finally:
            self._deferred.extendleft(reversed(left))

    # -- Waiting ----------------------------------------------------------------------------------------------

    def wait_until(self, true: Callable[[], bool], until: float | None) -> bool:
        """With the mutex held: wait until a condition on what it guards has come true; returns whether it has.

        until: on the clock of `time.monotonic`, None for as long as it takes.
        """
        if self._dispatcher.is_current():
            self.hand_on()
            self.leadership.await_deputy()
        self._waiters += 1
        try:
            if process.keeps_the_process():
                until = self._wait_for_exit(true, until)
            left = None if until is None else min(max(0.0, until - monotonic()), threading.TIMEOUT_MAX)
            return self.changed.wait_for(true, left)
        finally:
            self._waiters -= 1

    def _wait_for_exit(self, true: Callable[[], bool], until: float | None) -> float:
        """Wait as `wait_until`, but no longer than until the process is ending; returns until when to wait on."""
        while not process.is_ending():
            look = monotonic() + _EXIT_LOOK_S
            if until is not None and until <= look:
                return until
            if self.changed.wait_for(true, _EXIT_LOOK_S):
                return look
        return min(monotonic() + process.EXIT_S, inf if until is None else until)

    # -- From other threads -----------------------------------------------------------------------------------

    def on_storage_answer(self, request: StorageRequest, result: Any) -> None:
        """On the storage worker's thread: the storage has done what it was asked for."""
        try:
            with self.mutex:
                self._node.on_storage(request, result, *clocks.read())
                self.process_pending()
        except BaseException as error:
            self.fail(error)

    def report(self, error: BaseException) -> None:
        """From any thread: let the dispatcher call `on_error`."""
        self._dispatcher.put(ErrorReported(error))

    def fail(self, error: BaseException) -> None:
        """From any thread: end the peer, since something has gone wrong that belongs to no connection."""
        with self.mutex:
            self._note_failure(error)
        log.critical("peer %r has failed", self._life.ident, exc_info=error)
        self.report(NetcommError(f"peer {self._life.ident!r} has failed: {error!r}"))

    def _note_failure(self, error: BaseException) -> None:
        """With the mutex held: hand nothing more to callbacks, count none that returns, and let the loop end."""
        self._life.failure = self._life.failure or error
        self._handover.muted = self._handover.attention = True
        self.leadership.stop()

    # -- The end ----------------------------------------------------------------------------------------------

    def _close_connections(self) -> None:
        """Close everything, gently: what was written still goes out, if the other side takes it soon."""
        with self.mutex:
            self.process_pending()
            self._messaging.sessions.close_all("terminated", clocks.now())
            self.process_pending()
        self._link.stop_accepting()
        until = monotonic() + CLOSING_S
        left = 0.0  # what the other side has closed already is found without waiting
        while not self._link.quiet and left >= 0:
            for _ in self._link.poll(left):
                pass
            left = until - monotonic()

    def discard_all(self) -> None:
        """With the mutex held: end every transient message that has not ended."""
        self._messaging.discard_all()
        while self._deferred:  # an empty queue takes one message at least
            self.queue_deferred()
            self._messaging.discard_all()
        self.process_pending()


def reentrant(call: str) -> ReentrantCall:
    """The error of a call that a finalizer or a signal handler makes."""
    return ReentrantCall(
        f"a finalizer or a signal handler has interrupted the library and calls {call}, which can't be done there:"
        " note what is to be done, and do it elsewhere"
    )
