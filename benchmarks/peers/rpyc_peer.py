"""RPyC: a service in a ThreadedServer, and a call for each message."""

import threading
from time import perf_counter

import rpyc
from rpyc.utils.server import ThreadedServer

from benchmarks.peers import Address, Checking


class Echo(Checking, rpyc.Service):
    def __init__(self) -> None:
        super().__init__()
        server = ThreadedServer(self, "127.0.0.1", port=0)
        self.address = server.port
        threading.Thread(target=server.start, daemon=True).start()

    def exposed_echo(self, data: bytes) -> bytes:
        self.check.take(data)
        return data


class Caller:
    def __init__(self, address: Address) -> None:
        self._connection = rpyc.connect("127.0.0.1", address)

    def round_trips(self, payloads: list[bytes]) -> list[float]:
        echo = self._connection.root.echo
        times = []
        for payload in payloads:
            started = perf_counter()
            echo(payload)
            times.append(perf_counter() - started)
        return times
