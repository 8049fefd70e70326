"""The roles: the listener and the connector, each a process, which does what the director tells it.

A process is told to go on with a line on its standard input; what it has to say is a JSON object on a line of its
standard output. When its standard input ends, it ends too.
"""

import hashlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from time import monotonic
from urllib.parse import quote

from netcomm.cli.demo import journal, plan
from netcomm.cli.demo.journal import ReceivedJournal, Record, SentJournal
from netcomm.cli.demo.judge import judge_journals
from netcomm.cli.demo.plan import Piece
from netcomm.connector import SnakemqConnector
from netcomm.errors import LifecycleError
from netcomm.listener import SnakemqListener
from netcomm.message import Delivery, Message

# A storage takes all that it is given; but the demo should not fill the disk where the files are large.
_BACKLOG_BYTES = 256 * 1024 * 1024
_PROGRESS_EVERY_S = 0.05

# What a connector is: the first one, which announces when it is time for a fault; or one in the place of a killed one.
FIRST, AGAIN = "first", "again"

_say_lock = threading.Lock()


def main(arguments: list[str]) -> None:
    """Be one of the processes.

    arguments: "listener", the folder of the journals, the port; or "connector", the folder, the port, "first" or
        "again".
    """
    role, folder, port, *which = arguments
    if role == "listener":
        _listen(Path(folder), int(port))
    else:
        _connect(Path(folder), int(port), *which)


def _listen(folder: Path, port: int) -> None:
    """The listener: notes what arrives, and judges when it is told to go on."""
    sizes = {record.key: record.size for record in journal.received(folder)}
    arrived_bytes = sum(sizes.values())
    say_at = 0.0

    with ReceivedJournal(folder) as received_journal:
        peer = SnakemqListener("listener", "127.0.0.1", port, storage=_storage(folder, "listener"))

        @peer.on_connect.add
        def connected(ident: str) -> None:
            received_journal.note_connected(ident)
            _say("connected")

        @peer.on_message.add
        def received(ident: str, message: Message) -> None:
            nonlocal arrived_bytes, say_at
            record = _unpack(message)
            received_journal.note(record)  # before this returns, since then the message counts as delivered
            if record.key not in sizes:
                sizes[record.key] = record.size
                arrived_bytes += record.size
            if (now := monotonic()) >= say_at:
                say_at = now + _PROGRESS_EVERY_S
                _say("progress", bytes=arrived_bytes)

        peer.on_error.add(_trouble)
        with peer:
            _say("listening", port=peer.address[1])
            for _ in sys.stdin:
                _say("report", report=asdict(judge_journals(folder)))


def _connect(folder: Path, port: int, which: str) -> None:
    """The connector: sends what was not accepted yet; the first one begins when it is told to go on."""
    peer = SnakemqConnector("connector", "127.0.0.1", port, True, storage=_storage(folder, "connector"))
    told = threading.Semaphore(0)
    peer.on_error.add(_trouble)
    with peer:
        # On a thread, since this one has to notice the end of the standard input, whatever else waits.
        threading.Thread(target=_send_all, args=(peer, folder, which, told.acquire), daemon=True).start()
        for _ in sys.stdin:
            told.release()
        peer.terminate(0)


def _send_all(peer: SnakemqConnector, folder: Path, which: str, wait_until_told: Callable[[], object]) -> None:
    try:
        sent, accepted = journal.sent(folder)
        done = {record.key for record in sent if record.attempt in accepted}
        attempts = count(max((record.attempt for record in sent), default=-1) + 1)
        pieces = [piece for piece in plan.load(folder) if piece.key not in done]
        if which == FIRST:
            fault_turns = plan.fault_turns(len(pieces))
            wait_until_told()
        else:
            fault_turns = []
            _say("restored", waiting=sum(each.queued for each in peer.stats().peers.values()), left=len(pieces))
        backlog = _Backlog()
        with SentJournal(folder) as sent_journal:
            for number, piece in enumerate(pieces):
                for say_at, wait_at in fault_turns:
                    if number == say_at:
                        _say("fault", sent=number)
                    if number == wait_at:
                        wait_until_told()
                record, data = _pack(piece, next(attempts))
                sent_journal.note(record)
                delivery = peer.send("listener", data)
                sent_journal.note_accepted(record.attempt)
                backlog.add(delivery)
            if peer.flush():
                _say("delivered")
    except LifecycleError:  # the director has ended it
        pass
    except Exception as error:
        _say("failed", text=str(error))


def _storage(folder: Path, role: str) -> str:
    return f"sqlite:///{quote(str(folder / role))}.db"


class _Backlog:
    """What was sent and has not arrived."""

    def __init__(self) -> None:
        self._deliveries: deque[Delivery] = deque()
        self._size = 0

    def add(self, delivery: Delivery) -> None:
        """Count a message in; where that makes it too much, wait until some have arrived."""
        self._deliveries.append(delivery)
        self._size += delivery.size
        while self._size > _BACKLOG_BYTES or (self._deliveries and self._deliveries[0].done):
            first = self._deliveries.popleft()
            first.wait()
            self._size -= first.size


def _pack(piece: Piece, attempt: int) -> tuple[Record, bytes]:
    """The message of a piece: a header, which is a line of JSON, and the content."""
    with open(piece.path, "rb") as file:
        file.seek(piece.offset)
        content = file.read(piece.size)
    digest = hashlib.sha256(content).hexdigest()
    header = {"attempt": attempt, "name": piece.name, "offset": piece.offset, "sha256": digest}
    record = Record(attempt, piece.name, piece.offset, len(content), digest, process=os.getpid())
    return record, json.dumps(header).encode() + b"\n" + content


def _unpack(message: Message) -> Record:
    head, _, content = message.data.partition(b"\n")
    digest = hashlib.sha256(content).hexdigest()
    attempt, name, offset, intact = -1, "(unreadable header)", 0, False
    try:
        header = json.loads(head)
        attempt, name, offset = int(header["attempt"]), str(header["name"]), int(header["offset"])
        intact = digest == header["sha256"]
    except (ValueError, KeyError, TypeError):
        pass
    return Record(attempt, name, offset, len(content), digest, intact, message.redelivered, os.getpid())


def _trouble(error: BaseException) -> None:
    _say("trouble", text=f"{type(error).__name__}: {error}")


def _say(event: str, **more: object) -> None:
    """Tell the director; any thread may call this."""
    with _say_lock:
        print(json.dumps({"event": event, **more}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
