"""ZeroMQ, by pyzmq: `send` in a loop, `recv` in a loop; the high-water marks off, so that nothing is dropped."""

from time import perf_counter

import zmq

from benchmarks.payloads import Check
from benchmarks.peers import Address, Checking

_context = zmq.Context()
_ANY_PORT = "tcp://127.0.0.1:*"
# From this size on, its users hand over and take buffers instead of having them copied.
_COPY_BELOW = 64 * 1024


def _bound(kind: int, address: Address) -> tuple[zmq.Socket, Address]:
    socket = _context.socket(kind)
    socket.set_hwm(0)
    socket.bind(address)
    return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


def _connected(kind: int, address: Address) -> zmq.Socket:
    socket = _context.socket(kind)
    socket.set_hwm(0)
    socket.connect(address)
    return socket


class Receiver(Checking):
    """PULL. It says over a second pair of sockets that it has got all: ZeroMQ does not acknowledge."""

    def __init__(self, check: Check | None = None, address: Address = (_ANY_PORT, _ANY_PORT)) -> None:
        super().__init__(check)
        self._socket, there = _bound(zmq.PULL, address[0])
        self._back, back = _bound(zmq.PUSH, address[1])
        self.address = (there, back)

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

    def __init__(self, address: Address = _ANY_PORT) -> None:
        super().__init__()
        self._socket, self.address = _bound(zmq.REP, address)

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
