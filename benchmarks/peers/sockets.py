"""Plain blocking sockets: the limit. What they do is not messaging: no acknowledgement, no queue, no reconnecting.

Each message has its length in 4 bytes before it. The sender joins what fits into 64 KiB, or one larger message, and
hands it to one `sendall`. The receiver has one large buffer, and slices the messages out of it. In the end it says with
one byte that it has got all.
"""

import socket
from struct import Struct
from time import perf_counter

from benchmarks.peers import Address, Checking

_LENGTH = Struct(">I")
_BATCH_BYTES = 64 * 1024
_BUFFER_BYTES = 256 * 1024


class _Listening(Checking):
    def __init__(self) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[1]
        self._accepted: socket.socket | None = None

    def _socket(self) -> socket.socket:
        if self._accepted is None:
            self._accepted, _ = self._listener.accept()
            self._accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._accepted


class Receiver(_Listening):
    def finish(self) -> None:
        check = self.check
        sock = self._socket()
        take, unpack, header = check.take, _LENGTH.unpack_from, _LENGTH.size
        view = memoryview(bytearray(max(_BUFFER_BYTES, 2 * (header + check.size))))
        end = 0
        while check.taken < check.count:
            received = sock.recv_into(view[end:])
            if not received:
                raise EOFError("the sender has gone")
            end += received
            start = 0
            while end - start >= header:
                stop = start + header + unpack(view, start)[0]
                if stop > end:
                    break
                take(bytes(view[start + header : stop]))
                start = stop
            view[: end - start] = view[start:end]
            end -= start
        sock.sendall(b"!")


class Sender:
    def __init__(self, address: Address, ident: str = "") -> None:
        self._socket = _connected(address)

    def send(self, payloads: list[bytes]) -> None:
        pack, sendall = _LENGTH.pack, self._socket.sendall
        batch: list[bytes] = []
        size = 0
        for payload in payloads:
            batch += (pack(len(payload)), payload)
            size += len(payload)
            if size >= _BATCH_BYTES:
                sendall(b"".join(batch))
                batch = []
                size = 0
        sendall(b"".join(batch))
        _receive(self._socket, 1)


class Echo(_Listening):
    def finish(self) -> None:
        sock = self._socket()
        for _ in range(self.check.count):
            header = _receive(sock, _LENGTH.size)
            data = _receive(sock, *_LENGTH.unpack(header))
            self.check.take(data)
            sock.sendall(header + data)


class Caller:
    def __init__(self, address: Address) -> None:
        self._socket = _connected(address)

    def round_trips(self, payloads: list[bytes]) -> list[float]:
        times = []
        for payload in payloads:
            started = perf_counter()
            self._socket.sendall(_LENGTH.pack(len(payload)) + payload)
            _receive(self._socket, *_LENGTH.unpack(_receive(self._socket, _LENGTH.size)))
            times.append(perf_counter() - started)
        return times


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _receive(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError("the other side has gone")
    return data
