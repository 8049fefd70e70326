"""netcomm, through what its users import, with its defaults. With these, a Unix socket takes the place of TCP."""

import threading
from collections import deque
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.payloads import Check
from benchmarks.peers import Address, Checking
from netcomm import Delivery, Limits, Peer, SnakemqConnector, SnakemqListener
from netcomm.message import Stream
from netcomm.peer import attach
from netcomm.protocol.events import Received
from netcomm.protocol.extension import Extension, NodePort
from netcomm.protocol.frames import MAX_BULK_BYTES

_HOST = "127.0.0.1"
_TIMEOUT_S = 110.0


class _Receiving(Checking):
    """Its `on_recv` is the callback for each message. netcomm acknowledges when it has returned."""

    def on_recv(self, ident: str, data: bytes) -> None:
        self.check.take(data)


class Receiver(_Receiving):
    def __init__(self, check: Check | None = None, address: Address = 0, host: str = _HOST, **options: Any) -> None:
        super().__init__(check)
        listener = SnakemqListener("receiver", host, address, **options)
        listener.on_recv.add(self.on_recv)
        listener.start()
        self.address = listener.address[1]


class Sender:
    """`send` one by one, or from several threads, or `send_many`; then all deliveries are acknowledged."""

    def __init__(
        self, address: Address, ident: str = "sender", many: bool = False, threads: int = 1, **options: Any
    ) -> None:
        self._many = many
        self._threads = threads
        self._connector = SnakemqConnector(ident, _HOST, address, **options)
        self._connector.start()
        if not self._connector.wait_connected("receiver", _TIMEOUT_S):
            raise TimeoutError("not connected")

    def post(self, payloads: list[bytes]) -> None:
        if self._many:
            self._connector.send_many("receiver", payloads)
        else:
            send = self._connector.send
            for payload in payloads:
                send("receiver", payload)

    def flush(self) -> None:
        if not self._connector.flush(_TIMEOUT_S):
            raise TimeoutError("not acknowledged")

    def send(self, payloads: list[bytes]) -> None:
        if self._threads == 1:
            self.post(payloads)
        else:
            part = len(payloads) // self._threads
            parts = [payloads[start : start + part] for start in range(0, len(payloads), part)]
            threads = [threading.Thread(target=self.post, args=(part,)) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.flush()


class Echo(Checking):
    """The callback answers with `send`."""

    def __init__(self, host: str = _HOST) -> None:
        super().__init__()
        self._listener = SnakemqListener("echo", host, 0)
        self._listener.on_recv.add(self._on_recv)
        self._listener.start()
        self.address = self._listener.address[1]

    def _on_recv(self, ident: str, data: bytes) -> None:
        self.check.take(data)
        self._listener.send(ident, data)


class Caller:
    """The callback for an answer sends the next message."""

    def __init__(self, address: Address) -> None:
        self._times: list[float] = []
        self._payloads: list[bytes] = []
        self._done = threading.Event()
        self._connector = SnakemqConnector("caller", _HOST, address)
        self._connector.on_recv.add(self._on_recv)
        self._connector.start()
        if not self._connector.wait_connected("echo", _TIMEOUT_S):
            raise TimeoutError("not connected")

    def _on_recv(self, ident: str, data: bytes) -> None:
        self._times.append(perf_counter())
        answered = len(self._times) - 1
        if answered < len(self._payloads):
            self._connector.send(ident, self._payloads[answered])
        else:
            self._done.set()

    def round_trips(self, payloads: list[bytes]) -> list[float]:
        self._done.clear()
        self._payloads = payloads
        self._times = [perf_counter()]
        self._connector.send("echo", payloads[0])
        if not self._done.wait(_TIMEOUT_S):
            raise TimeoutError("no answer")
        return [after - before for before, after in pairwise(self._times)]


class _Discard(Extension):
    """Takes the pieces of large things, and is done with them at once."""

    streams = (Stream.BULK,)

    def attached(self, node: NodePort, now: float) -> None:
        self._node = node

    def receive(self, received: Received, now: float) -> None:
        self._node.on_handled(received, len(received.payloads), now)


class BulkEcho(Echo):
    """An echo that also takes the pieces of large things."""

    def __init__(self, host: str = _HOST) -> None:
        super().__init__(host)
        attach(self._listener, _Discard())


class BulkCaller(Caller):
    """A caller that also sends pieces of large things, as fast as they are taken."""

    _PIECES = 16

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._attachment = attach(self._connector, _Discard())

    def beside(self, payloads: list[bytes], fills: bool) -> tuple[list[float], float]:
        """The times of round trips, in seconds, and the bytes of pieces that were taken meanwhile, for each second."""
        has_ended = threading.Event()
        sent = 0

        def fill() -> None:
            nonlocal sent
            pieces = [bytes(MAX_BULK_BYTES)] * self._PIECES
            deliveries: deque[Delivery] = deque()
            while not has_ended.is_set():
                deliveries.append(self._attachment.send("echo", Stream.BULK, pieces)[-1])
                if len(deliveries) > self._PIECES:  # more than a window
                    deliveries.popleft().wait(_TIMEOUT_S)
                    sent += self._PIECES * MAX_BULK_BYTES

        filler = threading.Thread(target=fill)
        before = perf_counter()
        if fills:
            filler.start()
        times = self.round_trips(payloads)
        rate = sent / (perf_counter() - before)
        has_ended.set()
        if fills:
            filler.join()
            self._connector.flush(_TIMEOUT_S)
        return times, rate


class Backlog:
    """The sender listens, so that no delay before another attempt to connect gets into the figure."""

    # Backlogs of transient messages are to be longer than what is allowed by default.
    _LIMITS = Limits(max_queued_messages=2_000_000, max_queued_bytes=2**30)

    def __init__(self, folder: str, persistent: bool = True) -> None:
        storage = f"sqlite:///{Path(folder, 'backlog.db')}" if persistent else None
        self._listener = SnakemqListener("sender", _HOST, 0, persistent, storage=storage, limits=self._LIMITS)
        self._listener.start()
        self.address = self._listener.address[1]

    def store(self, payloads: list[bytes]) -> None:
        self._listener.send_many("receiver", payloads)

    def drain(self) -> None:
        if not self._listener.flush(_TIMEOUT_S):
            raise TimeoutError("not acknowledged")


class BacklogReceiver(_Receiving):
    def __init__(self, folder: str, persistent: bool = True) -> None:
        super().__init__()
        storage = f"sqlite:///{Path(folder, 'receiver.db')}" if persistent else None
        self._peer = Peer("receiver", persistent, storage=storage)
        self._peer.on_recv.add(self.on_recv)
        self._peer.start()

    def connect(self, address: Address) -> None:
        self._peer.add_connector(_HOST, address)
