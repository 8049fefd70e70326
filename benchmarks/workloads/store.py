"""Persistent messages, stored one by one, on the disk where this runs. Nobody receives them."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter, time

from benchmarks.harness import Contender, Measured, Scale, Workload
from benchmarks.processes import Child, Control

Store = Callable[[bytes], object]

_SIZE = 100
_SECONDS = 0.8


@dataclass
class Storing:
    """A process that stores for a time."""

    name: str
    what: str
    seconds: float

    def open(self, stack: ExitStack) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="."))
        self._child = stack.enter_context(Child(store, what=self.what, folder=folder))
        self._child.hear()

    def measure(self) -> Measured:
        rate: float = self._child.ask(seconds=self.seconds)["rate"]
        return {"": rate}


def store(control: Control, what: str, folder: str) -> None:
    put = _STORES[what](Path(folder))
    data = bytes(_SIZE)
    put(data)
    control.tell(ready=True)
    for order in control:
        stored = 0
        started = perf_counter()
        while (seconds := perf_counter() - started) < order["seconds"]:
            put(data)
            stored += 1
        control.tell(rate=stored / seconds)


def _netcomm_peer(folder: Path, query: str = "") -> Store:
    from netcomm import SnakemqListener

    peer = SnakemqListener(
        "sender", "127.0.0.1", 0, persistent=True, storage=f"sqlite:///{folder / 'netcomm.db'}{query}"
    )
    peer.start()
    return lambda data: peer.send("receiver", data)


def _netcomm_peer_process(folder: Path) -> Store:
    return _netcomm_peer(folder, "?durability=process")


def _netcomm_storage(folder: Path) -> Store:
    from netcomm.storage import Append, StoredMessage
    from netcomm_sqlite import SqliteQueueStorage

    storage = SqliteQueueStorage(folder / "storage.db")
    seqs = count()
    return lambda data: storage.append(
        [Append("receiver", 1, [StoredMessage(next(seqs), b"u" * 16, data, time(), None)])]
    )


def _snakemq(folder: Path) -> Store:
    from snakemq.message import FLAG_PERSISTENT, Message
    from snakemq.storage.sqlite import SqliteQueuesStorage

    storage = SqliteQueuesStorage(str(folder / "snakemq.db"))
    return lambda data: storage.push("receiver", Message(data, ttl=None, flags=FLAG_PERSISTENT))


def _litequeue(folder: Path) -> Store:
    from litequeue import LiteQueue

    return LiteQueue(folder / "litequeue.db").put  # type: ignore[no-any-return]


def _persistqueue(folder: Path) -> Store:
    from persistqueue import SQLiteQueue

    return SQLiteQueue(str(folder / "persistqueue"), auto_commit=True).put  # type: ignore[no-any-return]


def _persistqueue_ack(folder: Path) -> Store:
    from persistqueue import SQLiteAckQueue

    return SQLiteAckQueue(str(folder / "persistqueue-ack")).put  # type: ignore[no-any-return]


_STORES: dict[str, Callable[[Path], Store]] = {
    "netcomm": _netcomm_peer,
    "netcomm process": _netcomm_peer_process,
    "netcomm storage": _netcomm_storage,
    "snakemq": _snakemq,
    "litequeue": _litequeue,
    "persistqueue": _persistqueue,
    "persistqueue ack": _persistqueue_ack,
}


def _power(scale: Scale) -> Sequence[Contender]:
    seconds = _SECONDS * scale.factor
    return [
        Storing("netcomm", "netcomm", seconds),
        Storing("netcomm, storage alone", "netcomm storage", seconds),
        Storing("snakeMQ", "snakemq", seconds),
        Storing("persist-queue", "persistqueue", seconds),
        Storing("persist-queue, ack", "persistqueue ack", seconds),
        Storing("litequeue (not synced)", "litequeue", seconds),
    ]


def _process(scale: Scale) -> Sequence[Contender]:
    seconds = _SECONDS * scale.factor
    return [Storing("netcomm", "netcomm process", seconds), Storing("litequeue", "litequeue", seconds)]


# What each asks of SQLite, as its source has it. FULL is what SQLite itself starts with.
_SETTINGS = (
    "netcomm: WAL, synchronous=FULL with durability=power, the default; NORMAL with durability=process",
    "snakeMQ 1.6: sets neither, so a rollback journal, synchronous=FULL",
    "persist-queue 1.1: WAL, synchronous not set, so FULL; litequeue 0.9: WAL, synchronous=NORMAL",
    "NORMAL with a WAL does not wait for the disk: a power cut takes the last messages",
)

WORKLOADS = [
    Workload(
        "store-one", f"persistent messages of {_SIZE} bytes, one by one, power cuts survived", _power, notes=_SETTINGS
    ),
    Workload(
        "store-one-process", "the same without waiting for the disk, as litequeue does it", _process, notes=_SETTINGS
    ),
]
