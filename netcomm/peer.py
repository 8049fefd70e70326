"""`Peer`: a named partner in conversations, which connectors and listeners are.

It has the verbs, their arguments and their documentation. What they do is in `netcomm.runtime`.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeVar

from netcomm.errors import ConfigurationError
from netcomm.limits import Limits
from netcomm.message import Delivery, check_ident
from netcomm.protocol import envelope
from netcomm.protocol.extension import Extension
from netcomm.protocol.remote_peer import PeerStats
from netcomm.runtime.attachment import Attachment
from netcomm.runtime.runtime import Runtime
from netcomm.runtime.sender import UNSET, Data, Unset, check_encoding, check_ttl
from netcomm.storage import QueueStorage
from netcomm.transport.addresses import check_place

T = TypeVar("T")

# Of the percent-encoded ident in the name of a file: names have 255 bytes at the most, also with what comes around it,
# and the longest ending that SQLite appends.
_LONGEST_NAME = 255 - len("netcomm-.db-journal")
_HASH_SIZE = 16


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
    one at a time and in the order of what happened, so they may take their time, and use the peer. With
    `dispatch="manual"`, they run in `dispatch`, on a thread of the program.

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
        dispatch: Literal["thread", "manual"] = "thread",
    ) -> None:
        """Make a peer that is connected to nothing yet.

        ident: its name, 1 to 255 bytes of UTF-8; unique among the peers that talk to each other. None makes one of the
            host's name, the process id and chance; others know that it does not come back in another process.
        persistent: whether messages are persistent, where `send` says nothing else. True without `storage` keeps them
            in the SQLite file `netcomm-<ident>.db` in the current folder, and needs `ident`.
        storage: what keeps persistent messages, and the positions in those of others: a URL, see `open_storage`; or a
            QueueStorage, which then belongs to the peer, and is closed with it.
        encoding: the name of a codec; with it, `send` takes str too, and `on_recv` gets str.
        ttl: the seconds that messages live for, where `send` says nothing else; None for no limit.
        limits: sizes and times, see `Limits`.
        dispatch: "thread" runs callbacks on a thread of the peer's own; "manual" where the program calls `dispatch`.

        Raises ConfigurationError for an argument that can't be used; StorageError where the storage can't be opened.
        """
        if persistent and storage is None:
            if ident is None:
                raise ConfigurationError("a persistent peer needs an ident: its storage is found again by it")
            from urllib.parse import quote  # slow to import, as platform is below

            storage = f"sqlite:///{quote(_file_name(check_ident(ident)))}"
        made_up = ident is None
        if ident is None:
            import platform

            ident = f"{platform.node()[:64]}-{os.getpid()}-{os.urandom(3).hex()}"
        check_ident(ident)
        super().__init__(name=f"netcomm-{ident}", daemon=True)
        if encoding is not None:
            check_encoding(encoding)
        check_ttl(ttl)
        if not isinstance(storage, str | QueueStorage | None):
            raise ConfigurationError(f"a storage must be a URL or a QueueStorage, not {type(storage).__name__}")
        if dispatch not in ("thread", "manual"):
            raise ConfigurationError(f'dispatch must be "thread" or "manual", not {dispatch!r}')
        limits = limits if limits is not None else Limits()
        self._runtime = runtime = Runtime(
            ident,
            limits,
            storage,
            encoding=encoding,
            ttl=ttl,
            persistent=bool(persistent),
            made_up=made_up,
            on_program_thread=dispatch == "manual",
        )
        callbacks = runtime.callbacks
        self.on_recv, self.on_message = callbacks.on_recv, callbacks.on_message
        self.on_connect, self.on_disconnect = callbacks.on_connect, callbacks.on_disconnect
        self.on_drop, self.on_error = callbacks.on_drop, callbacks.on_error

    # -- Life -------------------------------------------------------------------------------------------------

    @property
    def local_ident(self) -> str:
        """This peer's name. (`ident` is the thread's identifier, as `threading` has it.)"""
        return self._runtime.ident

    def add_connector(self, host: str, port: int) -> None:
        """Connect to a place, and again whenever the connection is lost, until `terminate`.

        host: a name or an IP address, resolved afresh at each attempt; or `unix:/path`, with any port. Where it is
            this machine, a Unix socket takes the place of TCP if the listener offers one; not with `tcp:` before it.
        port: 1 to 65535.

        Before or after `start`. Raises ConfigurationError, LifecycleError. May be called from any thread.
        """
        host, port = check_place(host, port)
        self._runtime.add_connector(host, port)

    def add_listener(self, host: str, port: int) -> str | tuple[str, int]:
        """Accept connections at a place, until `terminate`.

        host: a name or an IP address of this machine ("0.0.0.0" and "::" are all of them), with `tcp:` before it to
            offer nothing else to programs on this machine; or `unix:/path`, with any port.
        port: 0 to 65535; 0 picks a free one.

        Returns the bound address: (host, port), or `unix:/path`. Before or after `start`. Raises BindError where the
        place can't be had, ConfigurationError, LifecycleError. May be called from any thread.
        """
        host, port = check_place(host, port)
        return self._runtime.add_listener(host, port)

    def _setup(self, step: Callable[[], T]) -> T:
        """Run a step of a subclass's constructor; where it fails, leave nothing open."""
        try:
            return step()
        except BaseException:
            self.terminate(0)
            raise

    def start(self) -> None:
        """Start to connect and to accept. Raises LifecycleError where that was done before."""
        self._runtime.start(self, super().start)

    def run(self) -> None:
        """What the thread does; `start` calls it."""
        self._runtime.deputize()

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

        A peer that was made with `dispatch="manual"`: what waits for `dispatch` stays unacknowledged where no other
        thread has called that last. While another one has, it has the time to go on.

        It may be called from any thread, several times and at once; also from a callback, which then counts as
        returned. Not from a signal handler: set an event there, and call it from where the event is awaited.
        """
        self._runtime.terminate(timeout)

    # -- Callbacks on a thread of the program -----------------------------------------------------------------

    def dispatch(self, timeout: float | None = 0.0) -> int:
        """Run the callbacks that wait, on the calling thread; for a peer that was made with `dispatch="manual"`.

        It runs what waits when it begins; what comes in meanwhile is left to the next call. Where nothing waits, it
        runs what comes first within `timeout`, and what has come together with that.

        timeout: the seconds to wait where nothing waits; None for as long as it takes.

        Returns how many messages and events callbacks were called with, each counted once, however many functions are
        in the list: a message, a connect, a disconnect, a message that was dropped, an error, a message whose end a
        function of `add_done_callback` is told of. Messages that are held
        back do not count. 0 is returned after `timeout`, or when the peer ends.

        KeyboardInterrupt, and whatever else is no `Exception`, goes on to the caller, from a callback too. What was
        being handed over then is handed over again by the next call, to all functions, a message marked `redelivered`;
        it is not acknowledged before.

        While and after the peer is terminated, it runs the callbacks of the events that still wait, and hands over
        messages only until it ends. Raises AlreadyDispatching in a callback, and while another thread dispatches;
        ConfigurationError where the peer has a thread for its callbacks; LifecycleError before `start`, in a forked
        child, and after `terminate`, once nothing waits. May be called from any thread, one at a time.
        """
        return self._runtime.dispatch(timeout)

    def fileno(self) -> int:
        """A descriptor that is readable while something waits for `dispatch`; to be watched by a main loop, not read.

        Now and then it may be readable though nothing waits: `dispatch` returns 0 then. When the peer ends, it is
        readable until `dispatch` has raised LifecycleError. `terminate` closes it: take it out of the main loop before.

        Raises ConfigurationError where the peer has a thread for its callbacks, and LifecycleError after `terminate`.
        May be called from any thread, also before `start`.
        """
        return self._runtime.fileno()

    # -- Sending ----------------------------------------------------------------------------------------------

    def send(
        self,
        ident: str,
        data: Data,
        *,
        ttl: float | Unset | None = UNSET,
        persistent: bool | Unset = UNSET,
        timeout: float | None = None,
        subject: str | None = None,
        headers: Mapping[str, str] | None = None,
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
        subject: what the message is about, as its receiver sees it in `Message.subject`: 1 to 255 bytes of UTF-8, or
            None.
        headers: what is to be said of it by name, as in `Message.headers`, such as `{"traceparent": …}`: keys of 1 to
            255 bytes of UTF-8, values of up to 65,535, and all of it together no more than that. A snakeMQ peer gets
            neither subject nor headers.

        Raises StorageError where a persistent message can't be stored; QueueFull after `timeout`; MessageTooLarge
        where it does not fit into a frame, with subject and headers; ConfigurationError for an argument that can't be
        used, and for a persistent message with subject or headers where the storage does not keep them;
        LifecycleError. May be called from any thread, and from a callback.
        """
        sender = self._runtime.sender
        if subject is not None or headers is not None:
            return sender.send(ident, data, ttl, persistent, timeout, envelope.of_message(subject, headers))
        if ttl is UNSET and persistent is UNSET and type(data) is bytes and type(ident) is str:
            run = sender.open_runs.get(ident)
            if (
                run is not None
                and (joined := run.join(data)) is not None
                and (run.is_open or sender.accepted(run, joined))
            ):
                return joined
        return sender.send(ident, data, ttl, persistent, timeout)

    sendMsg = send

    def send_many(
        self,
        ident: str,
        items: Iterable[Data],
        *,
        ttl: float | Unset | None = UNSET,
        persistent: bool | Unset = UNSET,
        timeout: float | None = None,
        subject: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Sequence[Delivery]:
        """Queue messages for one peer, in their order; returns their Deliveries.

        It is `send` for each of `items`, made cheaper. Persistent messages are stored in one transaction: all of them,
        or, where it raises, none. Of transient messages, those before the one that failed are queued; `timeout` is for
        all of them together, and each Delivery is made when it is looked at. All have the same subject and headers.
        """
        its_envelope = envelope.of_message(subject, headers)
        return self._runtime.sender.send_many(ident, items, ttl, persistent, timeout, its_envelope)

    def discard(self, ident: str) -> int:
        """Give up what waits for a peer: end every message to it that has not ended, as DISCARDED.

        Persistent messages are deleted from the storage. `on_drop` is called with each message; with those that only
        the storage has, once they have been read there. The peer may be connected, or not, or be unknown.

        Messages that were sent already may have arrived, or arrive still. As long as the peer is connected, they count
        in its window until it has acknowledged them. Persistent messages whose `send` has not returned yet may stay. A
        process that is killed right after the call may leave persistent messages in its storage.

        Returns how many messages have ended. Raises LifecycleError; ConfigurationError where no peer can have such an
        ident. May be called from any thread, and from a callback.
        """
        return self._runtime.discard(ident)

    # -- Waiting ----------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every message has ended, persistent or not; at most `timeout` seconds (None: as long as it takes).

        Returns whether all have. Raises LifecycleError. May be called from any thread, and from a callback.
        """
        return self._runtime.flush(timeout)

    def wait_connected(self, ident: str | None = None, timeout: float | None = None) -> bool:
        """Wait until a peer is connected, at most `timeout` seconds (None: as long as it takes).

        ident: the one to wait for; None for any.

        Returns whether it is. Raises LifecycleError. May be called from any thread, and from a callback.
        """
        return self._runtime.wait_connected(ident, timeout)

    # -- Looking ----------------------------------------------------------------------------------------------

    @property
    def peers(self) -> list[str]:
        """The idents that are connected now, in order. From any thread; raises LifecycleError in a forked child."""
        return self._runtime.connected_idents()

    def stats(self) -> Stats:
        """A snapshot of the traffic. From any thread; raises LifecycleError in a forked child."""
        return Stats(self._runtime.stats())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._runtime!r}>"


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


def attach(peer: Peer, extension: Extension) -> Attachment:
    """Let an extension take part in a peer: see `netcomm.protocol.extension`. For what is built on peers.

    Before or after `start`. Raises ConfigurationError where one of its streams has another extension already;
    LifecycleError. May be called from any thread.
    """
    return peer._runtime.attach(extension)
