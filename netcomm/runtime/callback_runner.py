"""`CallbackRunner`: runs the functions of the callback lists, on the thread that dispatches, with no lock held."""

from collections import deque
from collections.abc import Callable
from operator import length_hint
from typing import Any

from netcomm import clocks
from netcomm.callbacks import Callback
from netcomm.logs import Log
from netcomm.message import FLAG_PERSISTENT, NO_HEADERS, Message
from netcomm.protocol import frames
from netcomm.protocol.events import Call, Connected, Disconnected, Dropped, ErrorReported, Event, Received
from netcomm.protocol.messaging import Messaging
from netcomm.runtime import process
from netcomm.runtime.dispatcher import Dispatcher
from netcomm.runtime.handover import ACK_DELAY_S, Handover
from netcomm.runtime.lifecycle import FORKED, RUNNING, Lifecycle
from netcomm.runtime.loop import Loop

log = Log("netcomm.runtime.callback_runner")


class Release:
    """To the dispatcher: there may be a function for the messages that were held back."""


def weigh(event: "Event | Release") -> int:
    """How many messages and events an event holds that no callback has been told of."""
    match event:
        case Received():
            return len(event.payloads) - event.returned
        case Dropped():
            return len(event.deliveries) - event.told
        case Release():
            return 0
    return 1


class CallbackRunner:
    """Hands events to callbacks, messages in batches.

    While neither `on_recv` nor `on_message` has a function, messages are held back, and are not acknowledged.

    All methods but `release` and `call_at_once` are called on the thread that dispatches.
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
        # A thread of the program has KeyboardInterrupt and SystemExit for itself, and goes on in a forked child.
        self._catches: type[BaseException] = BaseException if dispatcher.owns_thread else Exception
        self._end_child: Callable[[BaseException | None], None] = (
            process.end_child if dispatcher.owns_thread else lambda error: None
        )
        catches = self._catches
        check, report, failed, look = life.check_process, self._report, self._not_handled, self._look_at_functions
        self.on_recv = Callback("on_recv", failed, self.release, check, look, catches)
        self.on_message = Callback("on_message", failed, self.release, check, look, catches)
        self.on_connect = Callback("on_connect", report, check=check, catches=catches)
        self.on_disconnect = Callback("on_disconnect", report, check=check, catches=catches)
        self.on_drop = Callback("on_drop", report, check=check, catches=catches)
        self.on_error = Callback("on_error", check=check, catches=catches)

    def release(self) -> None:
        """From any thread: a function was added; hand over what was held back."""
        self._dispatcher.put(Release())

    def _look_at_functions(self) -> None:
        """From any thread: a function was removed, and there may be none for the next message."""
        self._handover.attention = True

    @property
    def holds_back(self) -> bool:
        """With the mutex held: whether messages wait for a function."""
        return bool(self._held) and self._handover.batch is None

    def dispatch(self, event: "Event | Release") -> int:
        """Run the callbacks of an event; returns how many messages and events were handed over."""
        self._loop.leadership.begin_work()
        count = 1
        match event:
            case Received() | Release():
                try:
                    count = self._dispatch_received(event)
                except self._catches as error:
                    # A message may have been passed over: no later one may be acknowledged, for that would cover it.
                    self._loop.fail(error)
            case Connected(ident):
                self.on_connect(ident)
            case Disconnected(ident):
                self.on_disconnect(ident)
            case Dropped(deliveries):
                count = len(deliveries) - event.told
                for delivery in deliveries[event.told :]:
                    self.on_drop(delivery.ident, delivery)
                    event.told += 1
            case ErrorReported(error):
                self.on_error(error)
            case Call(function, argument):
                self._call(function, argument)
        if self._life.phase is FORKED:  # by a callback, which has returned
            self._end_child(None)
            return count
        if self._messaging.urgent:  # what a callback has sent
            with self._loop.mutex:
                self._loop.hand_on()
        return count

    def _call(self, function: Callable[[Any], object], argument: Any) -> None:
        try:
            function(argument)
        except self._catches as error:
            log.error("%r raised", function, exc_info=error)
            self._report(error)

    def call_at_once(self, function: Callable[[Any], object], argument: Any) -> None:
        """From any thread: call a function there; an Exception that it raises is logged, and goes to `on_error`."""
        try:
            function(argument)
        except Exception as error:  # and not Ctrl-C, which is the caller's
            log.error("%r raised", function, exc_info=error)
            if self._life.phase is not FORKED:
                self._loop.report(error)

    # -- Messages ---------------------------------------------------------------------------------------------

    def _dispatch_received(self, event: "Received | Release") -> int:
        if isinstance(event, Release):
            return self._run_held()
        if self._held:
            self._held.append(event)
            return self._run_held()
        if self.on_recv.functions or self.on_message.functions:
            return self.run(event)
        with self._loop.mutex:
            self._held.append(event)
            self._loop.changed.notify_all()  # `terminate` does not wait for what is held back
        self._tell_of_held()
        return 0

    def _tell_of_held(self) -> None:
        log.warning("%r holds messages back: on_recv and on_message are empty", self._life.ident)

    def _run_held(self) -> int:
        count = 0
        while self._held and (self.on_recv or self.on_message):
            count += self.run(self._held[0])
            self._held.popleft()  # not sooner: `run` may be interrupted, and may hold the batch back again
        return count

    def run(self, received: Received) -> int:
        """Run the callbacks of a batch; acknowledge it in parts, as the time goes by, and at its end.

        Returns how many messages they were called with.
        """
        loop, handover = self._loop, self._handover
        count = len(received.payloads)
        before = received.returned or received.handled
        loop.handing_over(count)
        with loop.mutex:
            left = handover.begin(received)
            if count > 1 and not loop.leadership.vacant:
                loop.hand_on()  # the deputy has to know when it is to look
        ident, encoding = received.ident, self._encoding
        on_recv, on_message = self.on_recv, self.on_message
        items: list[frames.Item] = []
        for payload in left:
            if handover.attention and not self._attend():
                return count - before - length_hint(left) - 1
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
            if not handover.muted:
                handover.report(running=0)
                handover.end()
                loop.hand_on()
                if self._life.phase is not RUNNING:
                    loop.changed.notify_all()
        return count - before

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
            loop.hand_on()
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
            self._end_child(error)
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
                self._loop.hand_on()
            if first:
                log.warning(
                    "the program is ending, and a callback raised: %r hands over no more messages, and leaves this one"
                    " unacknowledged",
                    self._life.ident,
                )
        self._report(error)


def _message(item: frames.Item, redelivered_below: int) -> Message:
    seq, uuid, ttl, flags, data, envelope = item
    subject, headers = (None, NO_HEADERS) if envelope is None else (envelope.subject, envelope.headers)
    left = None if ttl == frames.INFINITE_TTL else ttl
    return Message(data, uuid, left, flags & FLAG_PERSISTENT, seq < redelivered_below, subject, headers)
