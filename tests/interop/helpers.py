"""What the tests of this folder share: snakeMQ processes, netcomm peers connected to them, raw connections."""

import contextlib
import itertools
import json
import random
import reprlib
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, Generic, Self, TypeVar

from netcomm import Delivery, DeliveryState, LifecycleError, Limits, Message, Peer, SnakemqConnector, SnakemqListener

WAIT_S = 20.0
LOCALHOST = "127.0.0.1"

# What the other side of a pair does.
LISTENS = "snakeMQ listens"
CONNECTS = "snakeMQ connects"
ROLES = [LISTENS, CONNECTS]

_DRIVER = Path(__file__).with_name("snakemq_peer.py")

T = TypeVar("T")
Event = dict[str, Any]
Address = tuple[str, int]


class Record(Generic[T]):
    """A list that threads append to, and that can be waited for."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._changed = threading.Condition()

    def append(self, item: T) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def items(self) -> list[T]:
        with self._changed:
            return list(self._items)

    def wait(self, true: Callable[[list[T]], bool], what: str) -> list[T]:
        """Wait until a condition on the items holds; returns them. Fails after a generous time."""
        with self._changed:
            held = self._changed.wait_for(lambda: true(self._items), WAIT_S)
            last = ", ".join(map(reprlib.repr, self._items[-5:]))  # messages may be large
            assert held, f"{what}: still not so after {WAIT_S:g} s, with {len(self._items)} items, the last: {last}"
            return list(self._items)

    def wait_for_count(self, count: int) -> list[T]:
        return self.wait(lambda items: len(items) >= count, f"{count} items")


class SnakemqProcess:
    """A snakeMQ peer in a process of its own; `with` ends it."""

    def __init__(self, ident: str, **settings: Any) -> None:
        """Start it, and wait until it listens or connects. Settings: see snakemq_peer.py."""
        self.ident = ident
        self.events: Record[Event] = Record()
        self._process = subprocess.Popen(
            [sys.executable, str(_DRIVER), json.dumps({"ident": ident, **settings})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, name=f"reader of {ident}", daemon=True)
        self._reader.start()
        try:
            self.address: Address = tuple(self.wait_for("ready")[0]["address"])  # type: ignore[assignment]
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):  # else it was killed while it wrote
                self.events.append(json.loads(line))

    def received(self) -> list[tuple[str, str]]:
        """The uuid and the hash of each message that came in so far."""
        return [(event["uuid"], event["sha256"]) for event in self.of("message")]

    def of(self, kind: str) -> list[Event]:
        """The events of one kind, so far."""
        return [event for event in self.events.items() if event["event"] == kind]

    def wait_for(self, kind: str, count: int = 1) -> list[Event]:
        """Wait until there are so many events of a kind; returns those that there are."""

        def enough(events: list[Event]) -> bool:
            # Waking up is for each event, and there may be thousands.
            return len(events) >= count and sum(event["event"] == kind for event in events) >= count

        events = self.events.wait(enough, f"{count} events {kind!r} of snakeMQ peer {self.ident!r}")
        return [event for event in events if event["event"] == kind]

    def tell(self, command: str, **details: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"cmd": command, **details}).encode() + b"\n")
        self._process.stdin.flush()

    def send(self, to: str, **details: Any) -> list[Event]:
        """Let it queue messages; returns what they are, once the last one is queued."""
        before = len(self.of("queued"))
        self.tell("send", to=to, **{"size": 10, "count": 1, **details})
        return self.wait_for("queued", before + details.get("count", 1))[before:]

    def suspend(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Let it close its connections and end."""
        self.tell("stop")
        assert self._process.wait(WAIT_S) == 0
        self._clean_up()

    def kill(self) -> None:
        """Kill it; what it has told until then can be looked at. Nothing happens where it has ended."""
        self._process.kill()
        self._process.wait()
        self._clean_up()

    def _clean_up(self) -> None:
        self._reader.join()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


class Watch:
    """What the callbacks of a netcomm peer were called with."""

    def __init__(self, peer: Peer) -> None:
        self.messages: Record[tuple[str, Message]] = Record()
        self.connects: Record[str] = Record()
        self.disconnects: Record[str] = Record()
        self.errors: Record[BaseException] = Record()
        peer.on_message.add(lambda ident, message: self.messages.append((ident, message)))
        peer.on_connect.add(self.connects.append)
        peer.on_disconnect.add(self.disconnects.append)
        peer.on_error.add(self.errors.append)

    def received(self, *, sender: str) -> list[tuple[str, str]]:
        """The uuid and the hash of each message that came from a peer so far."""
        return [
            (message.uuid.hex(), digest(message.data)) for ident, message in self.messages.items() if ident == sender
        ]


class Pair:
    """A netcomm peer, "net" where nothing else is said, and a snakeMQ process, "snake"."""

    def __init__(self, peer: Peer, watch: Watch, snake: SnakemqProcess) -> None:
        self.peer = peer
        self.watch = watch
        self.snake = snake

    def assert_undisturbed(self) -> None:
        """They were connected once, and are still, and nothing went wrong; whatever others did."""
        assert self.snake.ident not in self.watch.disconnects.items()
        assert self.watch.errors.items() == []
        assert self.watch.connects.items().count(self.snake.ident) <= 1
        assert len(self.snake.of("connect")) == 1
        for kind in ("disconnect", "error", "crash"):
            assert self.snake.of(kind) == []


@contextmanager
def connected_pair(
    role: str, *, limits: Limits | None = None, idents: tuple[str, str] = ("net", "snake"), **settings: Any
) -> Iterator[Pair]:
    """A pair that is connected, as both sides know."""
    net, snake_ident = idents
    with contextlib.ExitStack() as stack:
        if role == LISTENS:
            snake = stack.enter_context(SnakemqProcess(snake_ident, listen=[LOCALHOST, 0], **settings))
            peer: Peer = SnakemqConnector(net, *snake.address, limits=limits)
        else:
            peer = listener = SnakemqListener(net, LOCALHOST, 0, limits=limits)
            stack.callback(peer.terminate, 0)
            snake = stack.enter_context(SnakemqProcess(snake_ident, connect=listener.address, **settings))
        watch = Watch(peer)
        stack.callback(peer.terminate, 0)  # nothing to be waited for: the tests have
        peer.start()
        assert peer.wait_connected(timeout=WAIT_S)
        watch.connects.wait_for_count(1)
        snake.wait_for("connect")
        yield Pair(peer, watch, snake)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of the loopback interface, that several processes can listen on one after the other.

    A socket that is bound to it and does not listen keeps the kernel from giving it to anybody as a client's port;
    whoever sets SO_REUSEADDR can listen there all the same.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOCALHOST, 0))
        if not sys.platform.startswith("linux"):  # elsewhere it would be in the way
            port = sock.getsockname()[1]
            sock.close()
            yield port
            return
        yield sock.getsockname()[1]


class Producer:
    """Sends small numbered messages, one after the other, from a thread of its own until it is stopped."""

    def __init__(self, peer: Peer, ident: str) -> None:
        self.deliveries: Record[Delivery] = Record()
        self._peer = peer
        self._ident = ident
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)

    def _run(self) -> None:
        # The peer is terminated first where a test has failed.
        with contextlib.suppress(LifecycleError):
            for number in itertools.count():
                if self._stopped.is_set():
                    return
                self.deliveries.append(self._peer.send(self._ident, b"%d" % number))

    def wait_for_backlog(self) -> None:
        """Wait until the newest message has been accepted, and not delivered."""
        self.deliveries.wait(lambda deliveries: not deliveries[-1].done, "messages wait to be delivered")

    def stop(self) -> None:
        """Stop, and wait until everything that was accepted has been delivered."""
        self._stopped.set()
        self._thread.join()
        assert self._peer.flush(WAIT_S)
        assert all(delivery.state is DeliveryState.DELIVERED for delivery in self.deliveries.items())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._peer.terminate(0)
            self._thread.join()

    def sent(self) -> list[tuple[str, str]]:
        """The uuid and the hash of each message, in order."""
        deliveries = self.deliveries.items()
        return [(delivery.uuid.hex(), digest(b"%d" % number)) for number, delivery in enumerate(deliveries)]


def payload(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def first_arrivals(*arrivals: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What arrived here, and then there, without what arrived again."""
    return list(dict.fromkeys(itertools.chain(*arrivals)))


def packet(frame_type: int, data: bytes = b"") -> bytes:
    return struct.pack(">IB", 1 + len(data), frame_type) + data


VERSION = packet(0, struct.pack(">I", 1))
PING = packet(4)


def ident_packet(ident: str) -> bytes:
    return packet(2, ident.encode())


def message_packet(uuid: bytes, data: bytes) -> bytes:
    return packet(3, struct.pack(">16sII", uuid, 0xFFFFFFFF, 0) + data)


class RawListener:
    """A place where a test accepts raw connections."""

    def __init__(self) -> None:
        self._socket = socket.create_server((LOCALHOST, 0))
        self._socket.settimeout(WAIT_S)
        self.address: Address = self._socket.getsockname()

    def accept(self) -> "RawConnection":
        return RawConnection(self._socket.accept()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()


class RawConnection:
    """A TCP connection on which a test writes and reads snakeMQ's packets itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._socket.settimeout(WAIT_S)
        self._input = b""

    @classmethod
    def to(cls, address: Address) -> Self:
        return cls(socket.create_connection(address, WAIT_S))

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read_packet(self) -> tuple[int, bytes]:
        """The next packet: its type and its payload. Raises EOFError where the connection was closed."""
        (size,) = struct.unpack(">I", self._read(4))
        data = self._read(size)
        return data[0], data[1:]

    def read_until(self, frame_type: int) -> bytes:
        """The payload of the next packet of a type; what comes before it is passed over."""
        deadline = monotonic() + WAIT_S
        while monotonic() < deadline:
            found, data = self.read_packet()
            if found == frame_type:
                return data
        raise AssertionError(f"no frame of type {frame_type} within {WAIT_S:g} s")

    def _read(self, size: int) -> bytes:
        while len(self._input) < size:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise EOFError
            self._input += chunk
        data, self._input = self._input[:size], self._input[size:]
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
