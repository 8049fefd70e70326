"""`Session`: one connection, without its socket: handshake, identity, keep-alive, legacy acknowledgement.

Bytes go in by `get_buffer` and `buffer_updated`, frames that matter to others come out of `next_event`, and what the
session itself has to say comes out of `take_output`. It reads no clock: every method that needs the time is handed
`now`, in seconds of a monotonic clock.

Both sides send VERSION, HELLO and IDENT at once. A side whose IDENT came without a HELLO is *legacy*: a snakeMQ
peer, which knows neither streams nor acknowledgements. To such a peer a ping goes out behind the messages, as a
barrier: snakeMQ answers it only after it has run the callbacks of everything before it.

A ping waits behind what was written before it, on a slow line for a long time. Meanwhile the answer can't come; but
that the other side's system takes these bytes shows that the connection lives. See `Ahead`.
"""

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from netcomm.errors import ConnectionRefusedByPeer, LocalProtocolError, RemoteProtocolError
from netcomm.limits import Limits
from netcomm.protocol import decode, encode, frames


@dataclass(slots=True)
class Identified:
    """The other side has said who it is. Nothing more comes out of the session until it is admitted."""

    ident: str


# More packets than are left unsent when the next bytes come, unless the other side pings and does not read.
_MAX_OUTPUT = 1000
# A snakeMQ peer that refuses an ident closes as soon as it has read it.
LEGACY_GRACE_S = 0.1

# How many bytes were written to a connection, and how many of them the other side's system has taken.
Progress = Callable[[], tuple[int, int]]


def _unwatched(when: float) -> None:
    pass


SessionEvent = Identified | frames.Begin | frames.Data | frames.Messages | frames.Ack | frames.Skip | frames.Goodbye
# The frames that come out as they are.
_PASSED_ON = frozenset({frames.Begin, frames.Data, frames.Messages, frames.Ack, frames.Skip})


class State(enum.Enum):
    """How far the handshake has come."""

    AWAIT_VERSION = enum.auto()
    AWAIT_IDENT = enum.auto()
    IDENTIFIED = enum.auto()
    LEGACY = enum.auto()
    EXTENDED = enum.auto()
    ENDED = enum.auto()


_IDENTIFIED = State.IDENTIFIED

# What the other side may send, by state. Whatever else comes closes the connection.
_ALLOWED: dict[State, frozenset[type]] = {
    State.AWAIT_VERSION: frozenset({frames.Version, frames.Incompatible, frames.Refuse}),
    State.AWAIT_IDENT: frozenset({frames.Hello, frames.Ident, frames.Incompatible, frames.Refuse}),
    State.IDENTIFIED: frozenset(),
    State.LEGACY: frozenset({frames.Messages, frames.Ping, frames.Pong, frames.Incompatible}),
    State.EXTENDED: frozenset(
        {
            frames.Begin,
            frames.Data,
            frames.Ack,
            frames.Skip,
            frames.Ping,
            frames.Pong,
            frames.Refuse,
            frames.Goodbye,
        }
    ),
    State.ENDED: frozenset(),
}


class Ahead:
    """The output of a connection that a ping, which is sent now, waits behind.

    Output that is written later does not count: for a process that hangs, its system goes on taking bytes, and a little
    output now and then would keep its connection open for hours.
    """

    __slots__ = ("_end", "_progress", "_taken")

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._end, self._taken = progress()

    @property
    def passed(self) -> bool:
        """Whether all of it had been taken at the last look: the ping was next."""
        return self._taken >= self._end

    def has_moved(self) -> bool:
        """Whether the other side's system has taken some of it since the last look, or since it was made."""
        if self.passed:
            return False
        before = self._taken
        _, self._taken = self._progress()
        return self._taken > before


class Session:
    """The state of one connection.

    remote_ident: the other side's name, None until it is known.
    remote: its HELLO, None for a legacy peer.
    legacy: whether it is a snakeMQ peer that this side has admitted.
    established: whether the other side has accepted this one too, so that messages may flow: see `establish`.
    """

    __slots__ = (
        "_ahead",
        "_allowed",
        "_error",
        "_frames",
        "_last_received",
        "_limits",
        "_output",
        "_pings",
        "_reader",
        "_refusable_until",
        "_started_at",
        "_state",
        "_waits_since",
        "_watch",
        "established",
        "legacy",
        "remote",
        "remote_ident",
    )

    def __init__(
        self,
        ident: str,
        hello: frames.Hello,
        limits: Limits,
        scratch: memoryview,
        now: float,
        watch: Callable[[float], object] = _unwatched,
    ) -> None:
        """Begin the handshake.

        scratch: memory that is shared with other sessions, see `decode.Reader`.
        watch: called with the time of `deadline` whenever it may be a sooner one than before.
        """
        self._limits = limits
        self._reader = decode.Reader(limits, scratch)
        self._frames: deque[frames.Frame] = deque()
        self._error: RemoteProtocolError | None = None
        self._enter(State.AWAIT_VERSION)
        self._started_at = now
        self._last_received = now
        # Since a ping went out, or some of what is ahead of it was seen to be taken; None where none is outstanding.
        self._waits_since: float | None = None
        self._ahead: Ahead | None = None  # of the latest such ping
        self._refusable_until: float | None = None
        self._pings: deque[frames.Ack | None] = deque()  # what each outstanding ping is the barrier of
        self._output = [encode.version(), encode.hello(hello), encode.ident(ident)]
        self.remote_ident: str | None = None
        self.remote: frames.Hello | None = None
        self.legacy = False
        self.established = False
        self._watch = watch
        watch(self.deadline())

    @property
    def extended(self) -> bool:
        """Whether the other side is a netcomm peer that this side has admitted."""
        return self._state is State.EXTENDED

    def get_buffer(self) -> memoryview:
        """Where the next bytes of the connection are to be received; until `buffer_updated`, it is the same one."""
        return self._reader.buffer

    def buffer_updated(self, count: int, now: float) -> None:
        """So many bytes of the connection have been received into the buffer."""
        self._last_received = now
        if self._waits_since is not None:
            self.excuse(now)
        if self._error is not None or self._state is State.ENDED:
            return
        if len(self._output) > _MAX_OUTPUT:
            self._error = RemoteProtocolError("pings, and nobody reads the answers")
            return
        parsed, self._error = self._reader.buffer_updated(count)
        self._frames += parsed

    def next_event(self) -> SessionEvent | None:
        """The next thing that the bytes so far have said, or None where they say no more.

        Raises RemoteProtocolError for what the protocol does not allow, and ConnectionRefusedByPeer where
        the other side refuses; the connection has to be closed then.
        """
        while self._frames and self._state is not _IDENTIFIED:
            frame = self._frames.popleft()
            kind = type(frame)
            if kind not in self._allowed:
                raise RemoteProtocolError(f"unexpected {kind.__name__.upper()} ({self._state.name})")
            if kind in _PASSED_ON:
                return frame  # type: ignore[return-value]
            match frame:
                case frames.Ping():
                    self._output.append(encode.PONG)
                case frames.Pong():
                    if self._pings and (barrier := self._pings.popleft()) is not None:
                        return barrier
                case frames.Version(number):
                    self._receive_version(number)
                case frames.Hello():
                    if self.remote is not None:
                        raise RemoteProtocolError("second HELLO")
                    self.remote = frame
                case frames.Ident(ident):
                    self.remote_ident = ident
                    self._enter(State.IDENTIFIED)
                    return Identified(ident)
                case frames.Incompatible():
                    raise ConnectionRefusedByPeer(
                        f"protocol version {frames.PROTOCOL_VERSION} is not spoken there",
                        frames.RefuseCode.INCOMPATIBLE,
                    )
                case frames.Refuse(code, text):
                    raise ConnectionRefusedByPeer(text, code)
                case frames.Goodbye():
                    self._enter(State.ENDED)
                    self._frames.clear()  # what follows it has no meaning
                    self._error = None
                    return frame
        if self._error is not None and self._state is not _IDENTIFIED:
            raise self._error
        return None

    def put_back(self, event: SessionEvent) -> None:
        """Let `next_event` return a frame once more."""
        assert not isinstance(event, Identified)
        self._frames.appendleft(event)

    def _enter(self, state: State) -> None:
        self._state = state
        self._allowed = _ALLOWED[state]

    def _receive_version(self, number: int) -> None:
        if number != frames.PROTOCOL_VERSION:
            self._output.append(encode.INCOMPATIBLE)
            raise RemoteProtocolError(f"protocol version {number}, only {frames.PROTOCOL_VERSION} is spoken here")
        self._enter(State.AWAIT_IDENT)

    def admit(self) -> None:
        """Let the identified other side in: its frames come out of `next_event` from now on."""
        if self._state is not _IDENTIFIED:
            raise LocalProtocolError(f"admit in state {self._state.name}")
        self.legacy = self.remote is None
        self._enter(State.LEGACY if self.legacy else State.EXTENDED)

    def begin(self, frame: frames.Begin) -> None:
        """Tell the other side where a stream begins."""
        self._output.append(encode.begin(frame))

    def acknowledge(self, frame: frames.Ack) -> None:
        """Tell the other side how far a stream has come."""
        self._output.append(encode.ack(frame))

    def refuse(self, code: frames.RefuseCode, text: str) -> None:
        """Tell the other side why the connection is about to be closed, if it can understand that."""
        if self.remote is not None:
            self._output.append(encode.refuse(code, text, self.remote.max_frame_bytes))

    def say_goodbye(self) -> None:
        """Tell the other side that this process ends, if it can understand that, and has accepted this one."""
        if self.extended and self.established:
            self._output.append(encode.GOODBYE)

    def barrier(self, frame: frames.Ack) -> bytes:
        """A packet to go behind what `frame` acknowledges; a legacy peer's answer to it comes out as that frame."""
        self._pings.append(frame)
        return encode.PING

    def probe(self, now: float, progress: Progress) -> None:
        """Ask for a sign of life. `progress` is also called later, by `check`."""
        self._pings.append(None)
        self._output.append(encode.PING)
        if self._waits_since is None:
            self._waits_since = now
            self._ahead = Ahead(progress)
            self._watch(self.deadline())

    def excuse(self, now: float) -> None:
        """Count the silence from `now` on: something has come, or nothing was read meanwhile."""
        self._last_received = now
        if self._waits_since is not None:
            self._waits_since = None
            self._watch(self.deadline())  # the next look may be due before the answer would have been

    def wait_for_refusal(self, now: float) -> None:
        """Let `deadline` be the end of the moment in which a legacy peer may refuse the ident, by closing."""
        self._refusable_until = now + LEGACY_GRACE_S
        self._watch(self.deadline())

    def establish(self) -> None:
        """The other side has accepted this one: messages may flow."""
        self.established = True
        self._watch(self.deadline())

    @property
    def has_output(self) -> bool:
        """Whether there is something to be sent: `take_output` tells what."""
        return bool(self._output)

    def take_output(self) -> list[bytes]:
        """The packets that the session wants sent, which it then forgets."""
        output, self._output = self._output, []
        return output

    def deadline(self) -> float:
        """When `check` is due."""
        if not self.established:
            if self._refusable_until is not None:
                return self._refusable_until
            return self._started_at + self._limits.handshake_s
        if self._waits_since is not None:
            return self._waits_since + self._limits.keepalive_wait_s
        return self._last_received + self._limits.keepalive_idle_s

    def check(self, now: float, progress: Progress) -> str | None:
        """Do what the time asks for; returns why the connection has to be closed, if it has to be.

        progress: called only where something is due, since the system has to be asked.
        """
        if now >= self.deadline():
            if not self.established:
                return f"no complete handshake within {self._limits.handshake_s:g} s"
            if self._waits_since is None:
                self.probe(now, progress)
            else:
                assert self._ahead is not None
                if not self._ahead.has_moved():
                    return f"no answer to a ping within {self._limits.keepalive_wait_s:g} s"
                self._waits_since = now
        self._watch(self.deadline())
        return None
