"""ZeroMQ, by pyzmq: `send` in a loop, `recv` in a loop; the high-water marks off, so that nothing is dropped."""

from time import perf_counter

import zmq

from benchmarks.payloads import Check
from benchmarks.peers import Address, Checking

_context = zmq.Context()
# From this size on, its users hand over and take buffers instead of having them copied.
_COPY_BELOW = 64 * 1024


def _bound(kind: int, port: int = 0) -> tuple[zmq.Socket, int]:
    socket = _context.socket(kind)
    socket.set_hwm(0)
    socket.bind(f"tcp://127.0.0.1:{port or '*'}")
    return socket, int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


def _connected(kind: int, port: int) -> zmq.Socket:
    socket = _context.socket(kind)
    socket.set_hwm(0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


class Receiver(Checking):
    """PULL. It says over a second pair of sockets that it has got all: ZeroMQ does not acknowledge."""

    def __init__(self, check: Check | None = None, address: Address = (0, 0)) -> None:
        super().__init__(check)
        self._socket, port = _bound(zmq.PULL, address[0])
        self._back, back_port = _bound(zmq.PUSH, address[1])
        self.address = (port, back_port)

    def finish(self) -> None:
        check = self.check
        recv, take = self._socket.recv, check.take
        if check.size < _COPY_BELOW:
            for _ in range(check.count):
                take(recv())
        else:
            for _ in range(check.count):
                take(recv(copy=False).buffer)
        self._back.send(b"")


class Sender:
    """PUSH."""

    def __init__(self, address: Address, ident: str = "") -> None:
        self._socket = _connected(zmq.PUSH, address[0])
        self._back = _connected(zmq.PULL, address[1])

    def send(self, payloads: list[bytes]) -> None:
        send = self._socket.send
        if len(payloads[0]) < _COPY_BELOW:
            for payload in payloads:
                send(payload)
        else:
            for payload in payloads:
                send(payload, copy=False)
        self._back.recv()


class Echo(Checking):
    """REP."""

    def __init__(self) -> None:
        super().__init__()
        self._socket, self.address = _bound(zmq.REP)

    def finish(self) -> None:
        for _ in range(self.check.count):
            data = self._socket.recv()
            self.check.take(data)
            self._socket.send(data)


class Caller:
    """REQ."""

    def __init__(self, address: Address) -> None:
        self._socket = _connected(zmq.REQ, address)

    def round_trips(self, payloads: list[bytes]) -> list[float]:
        times = []
        for payload in payloads:
            started = perf_counter()
            self._socket.send(payload)
            self._socket.recv()
            times.append(perf_counter() - started)
        return times
