"""A process with a sender and a receiver; strace makes the system calls of their storages fail, or kills it at one.

It begins when strace has attached to it. `main` takes a dict:

    folder      where the storages are, sender.db and receiver.db, and the socket
    side        whose storage strace looks at; the other one does without syncs, to be quick
    notes       the side file: a line of JSON for each thing that has happened, see `Life`
    die         whether to die of the first error
    defect      a way to break the promise, for the proof that it is noticed: "early" notes messages as accepted before
                `send` has returned, "silent" does so although it has raised; or None

It ends once everything that was accepted has been delivered, or with an error.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from netcomm import Message, Peer, SnakemqConnector, SnakemqListener, StorageError
from netcomm.runtime import storage_worker
from netcomm.storage import QueueStorage
from netcomm_sqlite import Durability, SqliteQueueStorage
from tests.faults.helpers import DEADLINE_S, Line, wait_until
from tests.faults.sender import LIMITS, number_of, payload

BATCHES = [[1], [2, 3, 4], list(range(10, 40)), [50], [51, 52]]
"""The numbers of the messages that are sent together; those that are alone go by `send`."""

PEERS: dict[str, Callable[..., Peer]] = {"receiver": SnakemqListener, "sender": SnakemqConnector}

T = TypeVar("T")


def place(folder: Path) -> tuple[str, int]:
    return f"unix:{folder}/socket", 1


def on_thread(thread: ThreadPoolExecutor, path: Path, durability: Durability) -> QueueStorage:
    """Open a storage all of whose work is done on one thread, since strace counts each thread's calls by themselves."""

    def call(function: Callable[..., T], *args: Any) -> T:
        return thread.submit(function, *args).result()

    storage = call(partial(SqliteQueueStorage, path, durability=durability))
    for name in QueueStorage.__abstractmethods__:
        method = getattr(storage, name)
        if callable(method) and name != "from_url":
            setattr(storage, name, partial(call, method))
    return storage


class Life:
    """What the process does, and the notes it takes.

    ["accepted", numbers]; ["refused", numbers, error, text]; ["received", number, redelivered]; and ["failed", error,
    text] for what failed elsewhere.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.folder = Path(config["folder"])
        self.side = config["side"]
        self.line = Line(config["notes"])
        self.die = config["die"]
        self.defect = config["defect"]

    def note(self, *what: Any) -> None:
        self.line(json.dumps(what))

    def note_error(self, error: Exception, *what: Any) -> None:
        self.note(*what, type(error).__name__, str(error))
        if self.die:
            os.kill(os.getpid(), signal.SIGKILL)

    def open(self, name: str) -> Peer:
        """Open a peer, and try it again where its storage fails."""
        thread = ThreadPoolExecutor(max_workers=1)
        durability: Durability = "power" if name == self.side else "process"
        while True:
            try:
                storage = on_thread(thread, self.folder / f"{name}.db", durability)
                peer = PEERS[name](name, *place(self.folder), storage=storage, limits=LIMITS)
            except StorageError as error:
                self.note_error(error, "failed")
            else:
                peer.on_error.add(lambda error: self.note_error(error, "failed"))
                return peer

    def received(self, ident: str, message: Message) -> None:
        self.note("received", number_of(message.data), message.redelivered)

    def send(self, sender: Peer, numbers: list[int]) -> None:
        data = [payload(number) for number in numbers]
        if self.defect == "early":
            self.note("accepted", numbers)
        try:
            if len(data) == 1:
                last = sender.send("receiver", data[0], persistent=True)
            else:
                last = sender.send_many("receiver", data, persistent=True)[-1]
        except StorageError as error:
            if self.defect == "silent":
                self.note("accepted", numbers)
            else:
                self.note_error(error, "refused", numbers)
            return
        self.note("accepted", numbers)
        if not last.wait(DEADLINE_S):
            raise SystemExit(f"message {numbers[-1]} is {last.state}")

    def run(self) -> None:
        receiver = self.open("receiver")
        receiver.on_message.add(self.received)
        with receiver, self.open("sender") as sender:
            for numbers in BATCHES:
                self.send(sender, numbers)


def is_traced() -> bool:
    return "\nTracerPid:\t0\n" not in Path("/proc/self/status").read_text()


def main(config: dict[str, Any]) -> None:
    wait_until(is_traced, "strace")
    storage_worker._RETRY_MIN_S = 0.001  # it doubles, and a disk that fails for a moment would cost the tests seconds
    Life(config).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
