"""What the integration tests share: waiting with deadlines, raw sockets, programs of their own, looks into /proc."""

import contextlib
import itertools
import os
import queue
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

import netcomm
from netcomm import Limits, logs
from netcomm.connections import ConnectionEvent, Opened
from netcomm.protocol import encode, frames
from netcomm.transport.acceptor import listen
from netcomm.transport.link import Link

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0
"""So long may anything take that has no bound of its own; a machine that is busy with other things needs it."""

FAST = Limits(reconnect_min_s=0.02, reconnect_max_s=0.1)
"""Limits for tests that have to see several attempts to connect."""

_numbers = itertools.count(1)


class _Open(netcomm.Peer):
    """Takes whatever comes: without any callback, messages would be held back."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_recv.add(lambda ident, data: None)


class Peer(_Open):
    """A peer that takes whatever comes."""


class SnakemqListener(_Open, netcomm.SnakemqListener):
    """A listener that takes whatever comes."""


class SnakemqConnector(_Open, netcomm.SnakemqConnector):
    """A connector that takes whatever comes."""


class Pair:
    """A listener "niess" and a connector "bob"; callbacks may be added before it is entered, which connects them."""

    niess: netcomm.SnakemqListener
    bob: netcomm.SnakemqConnector

    def __init__(self, **options: Any) -> None:
        self.niess = SnakemqListener("niess", "127.0.0.1", 0, **options)
        self.bob = SnakemqConnector("bob", *self.niess.address, **options)

    def __enter__(self) -> Self:
        self.niess.start()
        self.bob.start()
        assert self.bob.wait_connected("niess", DEADLINE_S)
        assert self.niess.wait_connected("bob", DEADLINE_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bob.terminate(1)
        self.niess.terminate(1)


def wait_until(true: Callable[[], bool], what: str = "the condition", timeout: float = DEADLINE_S) -> None:
    """Wait for something that nobody announces."""
    until = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < until, f"{what} has not come true within {timeout:g} s"
        time.sleep(0.005)


class Recorder:
    """A callback that keeps what it was called with, and can be waited for. One argument stands for itself."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._changed = threading.Condition()

    def __call__(self, *args: Any) -> None:
        with self._changed:
            self.calls.append(args[0] if len(args) == 1 else args)
            self._changed.notify_all()

    def wait(self, count: int, timeout: float = DEADLINE_S) -> list[Any]:
        """Wait for `count` calls at the least; returns all of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, timeout), (
                f"{len(self.calls)} calls of {count} within {timeout:g} s"
            )
            return list(self.calls)

    def __len__(self) -> int:
        return len(self.calls)


def record(callback: Any) -> Recorder:
    """Add a Recorder to a callback list."""
    return callback.add(Recorder())


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run a function on a thread; returns what waits for its result, or raises what it raised."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append((function(), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), f"{function} has not returned within {DEADLINE_S:g} s"
        value, error = box[0]
        if error is not None:
            raise error
        return value

    return result


# What a process holds


def held() -> tuple[set[threading.Thread], set[str]]:
    """The threads of this process, but for the one that writes log records, and its descriptors."""
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir itself used
            descriptors.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
    return {thread for thread in threading.enumerate() if thread.name != logs.WRITER}, descriptors


@contextlib.contextmanager
def leaves_nothing() -> Iterator[None]:
    """The body leaves no thread and no descriptor, half a second after its end at the latest."""
    threads, descriptors = held()
    yield
    until = time.monotonic() + 0.5
    while True:
        threads_left, descriptors_left = (now - then for now, then in zip(held(), (threads, descriptors), strict=True))
        if not threads_left and not descriptors_left:
            return
        assert time.monotonic() < until, f"left behind: {threads_left}, {descriptors_left}"
        time.sleep(0.005)


def threads_of(peer: Peer) -> list[str]:
    """The names of the threads that a peer has."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith(peer.name))


def terminate_in_time(peer: Peer, timeout: float) -> None:
    """Terminate a peer: it must return two seconds after `timeout` at the latest, and the loop must have ended.

    Nothing that it could wait for in vain ends so soon, and a busy machine has that much time to let threads run.
    """
    started = time.monotonic()
    peer.terminate(timeout)
    took = time.monotonic() - started
    assert took < timeout + 2
    assert not peer.is_alive()


def status(process: int | str, name: str) -> int:
    """A number of /proc/PID/status, or of PID/task/TID; sizes are in KiB there."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(name)


class PeakMemory:
    """How far the memory of a process has grown, at its highest, since this was made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # sets the high-water mark back
        self._start = status(pid, "VmRSS")

    def growth_bytes(self) -> int:
        return (status(self._pid, "VmHWM") - self._start) * 1024


def allow_descriptors(count: int) -> None:
    """Raise the soft limit of open files, as far as the hard one lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


# Programs of their own


class Program:
    """A Python program in a process of its own: `source` is its text, `arguments` its sys.argv[1:]."""

    def __init__(self, source: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            # Python warns of forking a process that has threads. Some programs do just that, to see what happens.
            [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", source, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'storage'}", "PYTHONUNBUFFERED": "1"},
        )
        self.pid = self.process.pid
        self._errors: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._lines.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self._errors.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[str], keep: Callable[[str], object]) -> None:
        for line in stream:
            keep(line)
        keep("")

    @property
    def errors(self) -> str:
        """What it has written to stderr so far."""
        return "".join(self._errors)

    def line(self, timeout: float = DEADLINE_S) -> str:
        """The next line of its output."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no line within {timeout:g} s: {self.errors}") from None
        assert line, f"it has ended: {self.errors}"
        return line.rstrip("\n")

    def rest(self) -> list[str]:
        """The lines of its output that nobody has asked for, once it has ended."""
        return [line.rstrip("\n") for line in iter(self._lines.get, "")]

    def tell(self, line: str) -> None:
        """Send a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, timeout: float = DEADLINE_S) -> int:
        """Wait for its end; returns its exit code."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


# Raw sockets


def packet(frame_type: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IB", 1 + len(payload), frame_type) + payload


def hello(**changes: Any) -> bytes:
    number = next(_numbers)
    fields: dict[str, Any] = {
        "version": 1,
        "peer_id": number.to_bytes(16),
        "boot_id": number.to_bytes(16),
        "connector": 1,
        "max_frame_bytes": 1 << 20,
        "window_bytes": 1 << 20,
    }
    return encode.hello(frames.Hello(**{**fields, **changes}))


def new_ident(prefix: str = "stranger") -> str:
    return f"{prefix}-{next(_numbers)}"


def legacy_handshake(ident: str | None = None) -> bytes:
    """What a snakeMQ peer says first."""
    return encode.version() + encode.ident(ident or new_ident())


def netcomm_handshake(ident: str | None = None) -> bytes:
    """What a netcomm peer says first."""
    return encode.version() + hello() + encode.ident(ident or new_ident())


def dial(address: tuple[str, int]) -> socket.socket:
    """A connection, its time-out set to the deadline."""
    return socket.create_connection(address, DEADLINE_S)


def read_to_end(sock: socket.socket) -> bytes:
    """Everything until the other side closes; being reset counts as that."""
    chunks = []
    try:
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    except ConnectionError:
        pass
    return b"".join(chunks)


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send as much as the other side takes before it closes."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(data)


def listen_at(link: Link, host: str) -> str | tuple[str, int]:
    """Let a link accept connections at a host, at a port that is free; returns the address."""
    listening = listen(host, 0)
    link.add_listener(listening)
    return listening.address


def poll(link: Link, timeout: float) -> Iterator[ConnectionEvent]:
    """What happens to a link; new connections are read from."""
    for event in link.poll(timeout):
        if isinstance(event, Opened):
            link.receive_into(event.connection, memoryview(bytearray(100)))
        yield event


@contextlib.contextmanager
def raw_listener() -> Iterator[socket.socket]:
    """A listening socket, its time-out set to the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(DEADLINE_S)
        yield sock


@contextlib.contextmanager
def refusing_place() -> Iterator[tuple[str, int]]:
    """A place that refuses connections, and where a listener that reuses addresses may come to listen."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


@contextlib.contextmanager
def silent_place() -> Iterator[tuple[str, int]]:
    """A place where connecting takes for ever: a listening socket whose backlog is full."""
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(sock.getsockname())
        yield sock.getsockname()
