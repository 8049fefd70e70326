"""Pyro5: an exposed object, and a call for each message, with marshal: the fastest serializer that takes bytes."""

import threading
from time import perf_counter

import Pyro5
import Pyro5.api

from benchmarks.peers import Address, Checking

Pyro5.config.SERIALIZER = "marshal"


class Echo(Checking):
    def __init__(self) -> None:
        super().__init__()
        daemon = Pyro5.api.Daemon("127.0.0.1")
        daemon.register(self, "echo")
        self.address = daemon.locationStr.rpartition(":")[2]
        threading.Thread(target=daemon.requestLoop, daemon=True).start()

    @Pyro5.api.expose
    def echo(self, data: bytes) -> bytes:
        self.check.take(data)
        return data


class Caller:
    def __init__(self, address: Address) -> None:
        self._proxy = Pyro5.api.Proxy(f"PYRO:echo@127.0.0.1:{address}")

    def round_trips(self, payloads: list[bytes]) -> list[float]:
        times = []
        for payload in payloads:
            started = perf_counter()
            self._proxy.echo(payload)
            times.append(perf_counter() - started)
        return times
