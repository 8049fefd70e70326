"""nng, by pynng: PUSH and PULL, with the largest buffers it has."""

import pynng

from benchmarks.peers import Address, Checking

_BUFFERED_MESSAGES = 8192
_ANY_PORT = "tcp://127.0.0.1:0"


class Receiver(Checking):
    """It says over a second pair of sockets that it has got all: nng does not acknowledge."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = pynng.Pull0(listen=_ANY_PORT, recv_buffer_size=_BUFFERED_MESSAGES, recv_max_size=0)
        self._back = pynng.Push0(listen=_ANY_PORT)
        # The `port` of an address is in the network's byte order in pynng 0.9; its text is right.
        places = [str(socket.listeners[0].local_address) for socket in (self._socket, self._back)]
        self.address = [int(place.rpartition(":")[2]) for place in places]

    def finish(self) -> None:
        for _ in range(self.check.count):
            self.check.take(self._socket.recv())
        self._back.send(b"all")


class Sender:
    def __init__(self, address: Address, ident: str = "") -> None:
        urls = [f"tcp://127.0.0.1:{port}" for port in address]
        self._socket = pynng.Push0(dial=urls[0], send_buffer_size=_BUFFERED_MESSAGES)
        self._back = pynng.Pull0(dial=urls[1])

    def send(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._socket.send(payload)
        self._back.recv()
