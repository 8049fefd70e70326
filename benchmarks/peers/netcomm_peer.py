"""netcomm, through what its users import, with its defaults. With these, a Unix socket takes the place of TCP."""

import threading
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.payloads import Check
from benchmarks.peers import Address, Checking
from netcomm import Limits, Peer, SnakemqConnector, SnakemqListener

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
