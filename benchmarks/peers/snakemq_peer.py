"""snakeMQ 1.6, as its tutorial has it: link, packeter and messaging, callbacks, and its loop in a thread.

It does not acknowledge, so the receiver says with a message that it has got all.
"""

import threading
import warnings
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

# snakeMQ says `count is not 0`, and compilers have come to warn of that.
warnings.simplefilter("ignore", SyntaxWarning)

from snakemq.link import Link  # noqa: E402
from snakemq.message import FLAG_PERSISTENT, Message  # noqa: E402
from snakemq.messaging import Messaging  # noqa: E402
from snakemq.packeter import Packeter  # noqa: E402
from snakemq.storage.sqlite import SqliteQueuesStorage  # noqa: E402

from benchmarks.payloads import Check  # noqa: E402
from benchmarks.peers import Address, Checking  # noqa: E402

_TIMEOUT_S = 110.0


class _Peer:
    def __init__(self, ident: str, storage: SqliteQueuesStorage | None = None) -> None:
        self.link = Link()
        self.messaging = Messaging(ident, "", Packeter(self.link), storage)
        self.messaging.on_message_recv.add(self.on_message_recv)
        self.messaging.on_connect.add(self.on_connect)
        self.connected = threading.Event()

    def on_connect(self, connection: str, ident: str) -> None:
        self.connected.set()

    def on_message_recv(self, connection: str, ident: str, message: Any) -> None:
        raise NotImplementedError

    def listen(self, port: int = 0) -> int:
        bound: int = self.link.add_listener(("127.0.0.1", port))[1]
        return bound

    def connect(self, port: int) -> None:
        self.link.add_connector(("127.0.0.1", port))
        self.loop()
        if not self.connected.wait(_TIMEOUT_S):
            raise TimeoutError("not connected")

    def loop(self) -> None:
        threading.Thread(target=self.link.loop, daemon=True).start()

    def send_to(self, ident: str, data: bytes, flags: int = 0) -> None:
        self.messaging.send_message(ident, Message(data, ttl=None, flags=flags))


class _Receiving(Checking, _Peer):
    def __init__(self, ident: str, check: Check | None = None) -> None:
        Checking.__init__(self, check)
        _Peer.__init__(self, ident)

    def on_message_recv(self, connection: str, ident: str, message: Any) -> None:
        self.check.take(message.data)
        if self.check.taken == self.check.count:
            self.send_to(ident, b"")


class Receiver(_Receiving):
    def __init__(self, check: Check | None = None, address: Address = 0) -> None:
        super().__init__("receiver", check)
        self.address = self.listen(address)
        self.loop()


class Sender(_Peer):
    def __init__(self, address: Address, ident: str = "sender") -> None:
        super().__init__(ident)
        self._all_received = threading.Event()
        self.connect(address)

    def on_message_recv(self, connection: str, ident: str, message: Any) -> None:
        self._all_received.set()

    def send(self, payloads: list[bytes]) -> None:
        self._all_received.clear()
        for payload in payloads:
            self.send_to("receiver", payload)
        if not self._all_received.wait(_TIMEOUT_S):
            raise TimeoutError("not all received")


class Echo(_Receiving):
    def __init__(self) -> None:
        super().__init__("echo")
        self.address = self.listen()
        self.loop()

    def on_message_recv(self, connection: str, ident: str, message: Any) -> None:
        self.check.take(message.data)
        self.send_to(ident, message.data)


class Caller(_Peer):
    def __init__(self, address: Address) -> None:
        super().__init__("caller")
        self._times: list[float] = []
        self._payloads: list[bytes] = []
        self._done = threading.Event()
        self.connect(address)

    def on_message_recv(self, connection: str, ident: str, message: Any) -> None:
        self._times.append(perf_counter())
        answered = len(self._times) - 1
        if answered < len(self._payloads):
            self.send_to(ident, self._payloads[answered])
        else:
            self._done.set()

    def round_trips(self, payloads: list[bytes]) -> list[float]:
        self._done.clear()
        self._payloads = payloads
        self._times = [perf_counter()]
        self.send_to("echo", payloads[0])
        if not self._done.wait(_TIMEOUT_S):
            raise TimeoutError("no answer")
        return [after - before for before, after in pairwise(self._times)]


class PersistentSender(_Peer):
    """Its storage can be used by the thread only that has made it: so what stores has to run the loop, too."""

    def __init__(self, address: Address, folder: str) -> None:
        super().__init__("sender", SqliteQueuesStorage(str(Path(folder, "sender.db"))))
        self.link.add_connector(("127.0.0.1", address))
        self.link.loop()

    def on_connect(self, connection: str, ident: str) -> None:
        self.link.stop()

    def on_message_recv(self, connection: str, ident: str, message: Any) -> None:
        self.link.stop()

    def send(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.send_to("receiver", payload, FLAG_PERSISTENT)
        self.link.loop()


class Backlog(_Peer):
    """It has been received when the receiver's message says so."""

    def __init__(self, folder: str) -> None:
        super().__init__("sender", SqliteQueuesStorage(str(Path(folder, "backlog.db"))))
        self.address = self.listen()

    def on_message_recv(self, connection: str, ident: str, message: Any) -> None:
        self.link.stop()

    def store(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.send_to("receiver", payload, FLAG_PERSISTENT)

    def drain(self) -> None:
        self.link.loop()


class BacklogReceiver(_Receiving):
    def __init__(self, folder: str) -> None:
        super().__init__("receiver")
