"""`CallbackRunner`: runs the functions of the callback lists, on the dispatcher's thread, with no lock held."""

from collections import deque
from operator import length_hint
from typing import Any

from netcomm import clocks
from netcomm.callbacks import Callback
from netcomm.logs import Log
from netcomm.message import FLAG_PERSISTENT, Message
from netcomm.protocol import frames
from netcomm.protocol.events import Connected, Disconnected, Dropped, ErrorReported, Event, Received
from netcomm.protocol.messaging import Messaging
from netcomm.runtime import process
from netcomm.runtime.dispatcher import Dispatcher
from netcomm.runtime.handover import ACK_DELAY_S, Handover
from netcomm.runtime.lifecycle import FORKED, RUNNING, Lifecycle
from netcomm.runtime.loop import Loop

log = Log("netcomm.runtime.callback_runner")


class Release:
    """To the dispatcher: there may be a function for the messages that were held back."""


class CallbackRunner:
    """Hands events to callbacks, messages in batches.

    While neither `on_recv` nor `on_message` has a function, messages are held back, and are not acknowledged.

    All methods but `release` are called on the dispatcher's thread.
    """

    def __init__(
        self,
        life: Lifecycle,
        messaging: Messaging,
        loop: Loop,
        dispatcher: "Dispatcher[Event | Release]",
        handover: Handover,
        encoding: str | None,
    ) -> None:
        """Make it. encoding: of the codec that makes a str of a payload, None to hand over bytes."""
        self._life = life
        self._messaging = messaging
        self._loop = loop
        self._dispatcher = dispatcher
        self._handover = handover
        self._encoding = encoding
        self._held: deque[Received] = deque()  # what came in while there was no function to hand it to
        check, report = life.check_process, self._report
        self.on_recv = Callback("on_recv", self._not_handled, self.release, check, self._look_at_functions)
        self.on_message = Callback("on_message", self._not_handled, self.release, check, self._look_at_functions)
        self.on_connect = Callback("on_connect", report, check=check)
        self.on_disconnect = Callback("on_disconnect", report, check=check)
        self.on_drop = Callback("on_drop", report, check=check)
        self.on_error = Callback("on_error", check=check)

    def release(self) -> None:
        """From any thread: a function was added; hand over what was held back."""
        self._dispatcher.put(Release())

    def _look_at_functions(self) -> None:
        """From any thread: a function was removed, and there may be none for the next message."""
        self._handover.attention = True

    @property
    def holds_back(self) -> bool:
        """With the mutex held: whether messages wait for a function."""
        return bool(self._held)

    def dispatch(self, event: "Event | Release") -> None:
        """Run the callbacks of an event."""
        self._loop.leadership.begin_work()
        match event:
            case Received() | Release():
                try:
                    self._dispatch_received(event)
                except BaseException as error:
                    # A message may have been passed over: no later one may be acknowledged, for that would cover it.
                    self._loop.fail(error)
            case Connected(ident):
                self.on_connect(ident)
            case Disconnected(ident):
                self.on_disconnect(ident)
            case Dropped(deliveries):
                for delivery in deliveries:
                    self.on_drop(delivery.ident, delivery)
            case ErrorReported(error):
                self.on_error(error)
        if self._life.phase is FORKED:  # by a callback, which has returned
            process.end_child(None)
        if self._messaging.urgent:  # what a callback has sent
            with self._loop.mutex:
                self._loop.process_pending()

    # -- Messages ---------------------------------------------------------------------------------------------

    def _dispatch_received(self, event: "Received | Release") -> None:
        if isinstance(event, Release):
            self._run_held()
        elif self._held:
            self._held.append(event)
            self._run_held()
        elif self.on_recv.functions or self.on_message.functions:
            self.run(event)
        else:
            with self._loop.mutex:
                self._held.append(event)
                self._loop.changed.notify_all()  # `terminate` does not wait for what is held back
            self._tell_of_held()

    def _tell_of_held(self) -> None:
        log.warning("%r holds messages back: on_recv and on_message are empty", self._life.ident)

    def _run_held(self) -> None:
        while self._held and (self.on_recv or self.on_message):
            self.run(self._held.popleft())

    def run(self, received: Received) -> None:
        """Run the callbacks of a batch; acknowledge it in parts, as the time goes by, and at its end."""
        loop, handover = self._loop, self._handover
        count = len(received.payloads)
        loop.handing_over(count)
        with loop.mutex:
            left = handover.begin(received)
            if count > 1 and not loop.leadership.vacant:
                loop.process_pending()  # the deputy has to know when it is to look
        ident, encoding = received.ident, self._encoding
        on_recv, on_message = self.on_recv, self.on_message
        items: list[frames.Item] = []
        for payload in left:
            if handover.attention and not self._attend():
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
        with loop.mutex:
            handover.attention = handover.muted
            if handover.muted:
                return
            handover.report(running=0)
            handover.end()
            loop.process_pending()
            if self._life.phase is not RUNNING:
                loop.changed.notify_all()

    def _attend(self) -> bool:
        """Between two callbacks: returns False where there are to be no more of them."""
        loop, handover = self._loop, self._handover
        with loop.mutex:
            handover.attention = handover.muted
            if handover.muted:  # where the callback has terminated the peer, `terminate` has counted it
                return False
            handover.report()
            handover.report_at = clocks.now() + ACK_DELAY_S
            has_functions = bool(self.on_recv.functions or self.on_message.functions)
            if not has_functions and handover.batch is not None:
                self._held.appendleft(handover.batch)
                handover.end()
                loop.changed.notify_all()
            loop.process_pending()
        if not has_functions:
            self._tell_of_held()
        return has_functions

    # -- What a callback raises -------------------------------------------------------------------------------

    def _decode(self, data: bytes, encoding: str, ident: str) -> str | None:
        try:
            return data.decode(encoding)
        except Exception as error:  # a codec may raise anything
            log.error("a message from %r is not %s: %s", ident, encoding, error)
            self._report(error)
            return None

    def _report(self, error: BaseException) -> None:
        if self._life.phase is FORKED:  # by the callback that has raised: it means the child
            process.end_child(error)
        self.on_error(error)

    def _not_handled(self, error: BaseException) -> None:
        """A function that was called with a message has raised.

        The message counts as delivered all the same, as it would raise again. But where the program is ending, it may
        have raised for that: the message, and those behind it, are left to the next process.
        """
        if process.is_ending() and self._life.phase is not FORKED:
            with self._loop.mutex:
                first = not self._handover.muted
                self._handover.mute()
                self._loop.process_pending()
            if first:
                log.warning(
                    "the program is ending, and a callback raised: %r hands over no more messages, and leaves this one"
                    " unacknowledged",
                    self._life.ident,
                )
        self._report(error)


def _message(item: frames.Item, redelivered_below: int) -> Message:
    seq, uuid, ttl, flags, data = item
    return Message(
        data, uuid, None if ttl == frames.INFINITE_TTL else ttl, flags & FLAG_PERSISTENT, seq < redelivered_below
    )
