"""The work of `netcomm demo`: real files between two real processes, though the connection fails, and they too.

The parent starts two processes, `python -m netcomm.demo listener …` and `… connector …`, with a fault proxy between
them. Each has a queue storage of its own. While the connector sends, the parent resets the connection; kills the
listener, and starts another one at the same port, with the same storage; and kills the connector, and starts another.

The parent knows nothing of the outcome. Each process keeps a journal in a shared folder, in lines of JSON that survive
its death: the connector of what it is about to send, and of what was accepted; the listener of what has arrived, with
the hash of what it really got. At the end the listener judges, by the two journals and the list of what was to be sent.

A process that is killed between doing something and noting it has a gap in its journal. So the connector numbers each
attempt to send, and notes it before `send` and again after. What was not noted as accepted is sent again when it is
back, as another attempt. If the first one was accepted after all, both arrive; that is a repetition by the sender, of
which netcomm knows nothing, and the judge, which counts by attempt, does not take it for a duplicate.

The parent tells its processes to go on with a line on their standard input; what they have to say is a JSON object on
a line of their standard output. A process whose standard input has ended ends too, so none outlives the parent.
"""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self
from urllib.parse import quote

from netcomm.connector import SnakemqConnector
from netcomm.errors import LifecycleError
from netcomm.listener import SnakemqListener
from netcomm.message import Delivery, Message
from netcomm.testing.proxy import FaultProxy

# A file is one message, unless it is larger than this; then it is several.
_PIECE_BYTES = 4 * 1024 * 1024
# A storage takes all that it is given; but the demo should not fill the disk where the files are large.
_BACKLOG_BYTES = 256 * 1024 * 1024
_PROGRESS_EVERY_S = 0.05
# Nothing has been heard for so long: something is wrong, and waiting won't mend it.
_STALL_S = 30.0
_END_S = 5.0

_PLAN = "plan.json"
_SENT = "sent.jsonl"
_RECEIVED = "received.jsonl"

Key = tuple[str, int]
Event = dict[str, Any]


class DemoError(Exception):
    """The demo could not be carried through; the text says why."""


class NothingToSend(DemoError):
    """There is no file to be sent, or one can't be read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message carries: a file, or a part of one.

    name: of the file, relative to the folder that is sent.
    path: where to read it.
    offset, size: the part, in bytes.
    """

    name: str
    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """A journal's line: one message, as the process that writes the journal has seen it.

    attempt: which attempt of the connector to send something it was; -1 where the message does not say.
    size, sha256: of the content.
    intact: whether the content is what the message's own header says.
    redelivered: whether the message was marked so.
    process: the id of the process that has written the line.
    """

    attempt: int
    name: str
    offset: int
    size: int
    sha256: str
    intact: bool = True
    redelivered: bool = False
    process: int = 0

    @property
    def key(self) -> Key:
        """What names the piece."""
        return self.name, self.offset


@dataclass(frozen=True, slots=True)
class Report:
    """How it went.

    files: that have arrived; bytes: that have arrived, each counted once.
    redelivered: how often a message was handed over again by another process of the receiver, and was marked so.
    repeated: how many messages are repetitions by the sender, see above.
    lost, duplicated, wrong: the names of the files that did not arrive or not in full; of which something was handed
        over again without need or mark; of which something arrived that was not sent so.
    """

    files: int
    bytes: int
    reconnects: int
    redelivered: int = 0
    repeated: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether netcomm has kept its promise."""
        return not self.lost and not self.duplicated and not self.wrong


class Audience(Protocol):
    """Who is told how it goes."""

    def note(self, text: str) -> None:
        """Something has happened."""

    def fault(self, text: str) -> None:
        """Something was broken on purpose."""

    def recovered(self, text: str) -> None:
        """It works again."""

    def progress(self, arrived_bytes: int) -> None:
        """So much has arrived until now."""


def judge(
    planned: Iterable[Key], sent: Iterable[Record], accepted: Iterable[int], received: Iterable[Record], connects: int
) -> Report:
    """Compare what has arrived with what was sent, and with what was to be sent.

    accepted: the attempts of which the sender knows that `send` has returned.
    """
    attempts = {record.attempt: record for record in sent}
    arrived: dict[int, list[Record]] = {}
    lost: set[str] = set()
    duplicated: set[str] = set()
    wrong: set[str] = set()
    redelivered = 0
    for record in received:
        attempt = attempts.get(record.attempt)
        if attempt is None:
            wrong.add(record.name)
            continue
        if not record.intact or (attempt.key, attempt.sha256) != (record.key, record.sha256):
            wrong.add(attempt.name)
        before = arrived.setdefault(record.attempt, [])
        if before:
            # Only the death of the process that had it first excuses a second time, and only with the mark.
            if record.redelivered and record.process not in {earlier.process for earlier in before}:
                redelivered += 1
            else:
                duplicated.add(attempt.name)
        before.append(record)
    sizes = {attempts[number].key: records[0].size for number, records in arrived.items()}
    lost.update(name for name, offset in planned if (name, offset) not in sizes)
    lost.update(attempts[number].name for number in accepted if number not in arrived)
    return Report(
        files=len({name for name, _ in sizes} - lost),
        bytes=sum(sizes.values()),
        reconnects=max(0, connects - 1),
        redelivered=redelivered,
        repeated=len(arrived) - len(sizes),
        lost=sorted(lost),
        duplicated=sorted(duplicated),
        wrong=sorted(wrong),
    )


# -- What is sent ---------------------------------------------------------------------------------------------


def standard_library() -> Path:
    """Where the running Python keeps its own library."""
    return Path(sysconfig.get_path("stdlib"))


def plan(path: Path | None) -> list[Piece]:
    """The pieces of a file, or of all files in a folder; of the standard library's sources where it is None.

    Raises NothingToSend.
    """
    try:
        if path is None:
            root = standard_library()
            paths = _walk(root, suffix=".py", without={"site-packages", "dist-packages"})
        elif path.is_dir():
            root = path
            paths = _walk(root)
        elif path.is_file():
            root = path.parent
            paths = [path]
        else:
            raise NothingToSend(f"{path} is neither a file nor a folder")
        pieces = [piece for path in paths for piece in _pieces(path, root)]
    except OSError as error:
        raise NothingToSend(f"can't read {error.filename}: {error.strerror}") from error
    if not pieces:
        raise NothingToSend(f"there is no file in {root}")
    return pieces


def _walk(root: Path, suffix: str = "", without: frozenset[str] | set[str] = frozenset()) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error

    found = []
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(set(folders) - without)
        paths = (Path(folder, name) for name in sorted(names) if name.endswith(suffix))
        found += [path for path in paths if path.is_file()]  # no pipe, and no link that leads nowhere
    return found


def _pieces(path: Path, root: Path) -> list[Piece]:
    with path.open("rb") as file:  # now, so that what can't be read is found before anything is sent
        size = os.fstat(file.fileno()).st_size
    name = path.relative_to(root).as_posix()
    offsets = range(0, max(size, 1), _PIECE_BYTES)
    return [Piece(name, str(path.absolute()), offset, min(_PIECE_BYTES, size - offset)) for offset in offsets]


# -- The parent -----------------------------------------------------------------------------------------------


def run(pieces: list[Piece], audience: Audience) -> Report:
    """Send the pieces from one process to another, through three faults; returns what the receiving one reports.

    Raises DemoError. However it ends, all processes are gone then.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="netcomm-demo-"))
        Path(folder, _PLAN).write_text(json.dumps([asdict(piece) for piece in pieces]))
        for name in (_SENT, _RECEIVED):
            Path(folder, name).touch()
        return _Show(stack, folder, audience).run(pieces)


class _Show:
    """One run of the demo, with the processes that it needs."""

    def __init__(self, stack: ExitStack, folder: str, audience: Audience) -> None:
        self._stack = stack
        self._folder = folder
        self._audience = audience
        self._events: SimpleQueue[Event] = SimpleQueue()

    def run(self, pieces: list[Piece]) -> Report:
        audience = self._audience
        total = len(pieces)
        listener = self._start("listener", "0")
        port = self._await("listening")["port"]
        audience.note(f"listener: process {listener.pid}, at 127.0.0.1:{port}")
        proxy = self._stack.enter_context(FaultProxy(("127.0.0.1", port)))
        proxy_port = proxy.address[1]
        connector = self._start("connector", str(proxy_port), _FIRST)
        audience.note(f"connector: process {connector.pid}, through a proxy at 127.0.0.1:{proxy_port}")
        self._await("connected")
        started = monotonic()
        connector.go_on()
        try:
            sent = self._await("fault")["sent"]
            proxy.cut(reset=True)
            cut_at = monotonic()
            audience.fault(f"{sent:,} of {total:,} messages are sent: the TCP connection is cut")
            self._await("connected")
            audience.recovered(f"connected again after {monotonic() - cut_at:.2f} s")
            connector.go_on()

            sent = self._await("fault")["sent"]
            killed_at = self._kill(listener, f"{sent:,} of {total:,} messages are sent")
            listener = self._start("listener", str(port))
            self._await("connected")
            audience.recovered(
                f"another listener, process {listener.pid}, is connected after {monotonic() - killed_at:.2f} s"
            )
            connector.go_on()

            sent = self._await("fault")["sent"]
            killed_at = self._kill(connector, f"{sent:,} of {total:,} messages are sent")
            connector = self._start("connector", str(proxy_port), _AGAIN)
            # It may have delivered everything before the listener has said that it is connected.
            missing = {"restored", "connected", "delivered"}
            while missing:
                event = self._await(*missing)
                missing.remove(event["event"])
                if event["event"] == "restored":
                    audience.note(
                        f"another connector: {event['waiting']:,} messages wait in its storage,"
                        f" {event['left']:,} are still to be sent"
                    )
                elif event["event"] == "connected":
                    audience.recovered(
                        f"another connector, process {connector.pid}, is connected after"
                        f" {monotonic() - killed_at:.2f} s"
                    )
        except _Stalled:
            audience.note(f"nothing has moved for {_STALL_S:g} s: giving up")
        seconds = monotonic() - started
        listener.go_on()
        event = self._await("report")
        return replace(Report(**event["report"]), seconds=seconds)

    def _start(self, role: str, *arguments: str) -> "_Child":
        return self._stack.enter_context(_Child(role, self._events, self._folder, *arguments))

    def _kill(self, child: "_Child", state: str) -> float:
        """Kill a process; returns when it was."""
        child.kill()
        killed_at = monotonic()
        self._audience.fault(f"{state}: the {child.role}, process {child.pid}, is killed")
        return killed_at

    def _await(self, *kinds: str) -> Event:
        """The next event of one of these kinds; the audience is told of what comes before it."""
        while True:
            try:
                event = self._events.get(timeout=_STALL_S)
            except Empty:
                raise _Stalled(f"neither process has said anything for {_STALL_S:g} s") from None
            kind = event["event"]
            if kind in kinds:
                return event
            if kind == "progress":
                self._audience.progress(event["bytes"])
            elif kind == "trouble":
                self._audience.note(f"{event['role']}: {event['text']}")
            elif kind == "failed":
                raise DemoError(f"{event['role']}: {event['text']}")
            elif kind == "ended":
                raise DemoError(f"the {event['role']} process has ended unexpectedly")


class _Stalled(DemoError):
    pass


def _command(role: str) -> list[str]:
    """What starts a process; its arguments follow."""
    return [sys.executable, "-P", "-m", "netcomm.cli.demo.roles", role]


class _Child:
    """One of the processes. `with` starts and ends it."""

    def __init__(self, role: str, events: SimpleQueue[Event], *arguments: str) -> None:
        self.role = role
        self._events = events
        self._killed = False
        # It finds the modules that this process finds, wherever either was started.
        search_path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [*_command(role), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C is the parent's
        )
        self._reader = threading.Thread(target=self._read, name=f"netcomm-demo-{role}", daemon=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it without a warning: SIGKILL, where there are signals."""
        self._killed = True
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go on\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended, which its reader tells
            pass

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):  # the last one may be cut off, where the process was killed
                self._events.put({**json.loads(line), "role": self.role})
        if not self._killed:
            self._events.put({"event": "ended", "role": self.role})


# -- The processes --------------------------------------------------------------------------------------------

# What a connector is: the first one, which announces when it is time for a fault; or one in the place of a killed one.
_FIRST, _AGAIN = "first", "again"
_FAULTS = 3

_say_lock = threading.Lock()


def _say(event: str, **more: object) -> None:
    with _say_lock:
        print(json.dumps({"event": event, **more}), flush=True)


def _journal(folder: Path, name: str) -> BinaryIO:
    # Not buffered: what was written survives the process.
    journal = (folder / name).open("ab", buffering=0)
    journal.write(b"\n")  # ends a line that an earlier process could not complete
    return journal


def _write(journal: BinaryIO, entry: dict[str, object]) -> None:
    journal.write(json.dumps(entry).encode() + b"\n")


def _entries(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    with (folder / name).open("rb") as journal:
        for line in journal:
            try:
                yield json.loads(line)
            except ValueError:  # its writer was killed meanwhile: it had not come to what the line says
                pass


def _planned(folder: Path) -> list[Piece]:
    return [Piece(**entry) for entry in json.loads((folder / _PLAN).read_text())]


def _received(folder: Path) -> list[Record]:
    return [Record(**entry) for entry in _entries(folder, _RECEIVED) if "connected" not in entry]


def _sent(folder: Path) -> tuple[list[Record], set[int]]:
    """The attempts to send, and the numbers of those that were accepted."""
    entries = list(_entries(folder, _SENT))
    return (
        [Record(**entry) for entry in entries if "accepted" not in entry],
        {entry["accepted"] for entry in entries if "accepted" in entry},
    )


def _storage(folder: Path, role: str) -> str:
    return f"sqlite:///{quote(str(folder / role))}.db"


def _listen(folder: Path, port: int) -> None:
    """The listener: notes what arrives, and judges when it is told to go on."""
    sizes = {record.key: record.size for record in _received(folder)}
    arrived_bytes = sum(sizes.values())
    say_at = 0.0

    with _journal(folder, _RECEIVED) as journal:
        peer = SnakemqListener("listener", "127.0.0.1", port, storage=_storage(folder, "listener"))

        @peer.on_connect.add
        def connected(ident: str) -> None:
            _write(journal, {"connected": ident})
            _say("connected")

        @peer.on_message.add
        def received(ident: str, message: Message) -> None:
            nonlocal arrived_bytes, say_at
            record = _unpack(message)
            _write(journal, asdict(record))  # before this returns, since then the message counts as delivered
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
                _say("report", report=asdict(_judge_journals(folder)))


def _judge_journals(folder: Path) -> Report:
    sent, accepted = _sent(folder)
    connects = sum("connected" in entry for entry in _entries(folder, _RECEIVED))
    planned = [(piece.name, piece.offset) for piece in _planned(folder)]
    return judge(planned, sent, accepted, _received(folder), connects)


def _connect(folder: Path, port: int, which: str) -> None:
    """The connector: sends what was not accepted yet; the first one begins when it is told to go on."""
    peer = SnakemqConnector("connector", "127.0.0.1", port, True, storage=_storage(folder, "connector"))
    told = threading.Semaphore(0)
    peer.on_error.add(_trouble)
    with peer:
        faults = _FAULTS if which == _FIRST else 0
        # On a thread, since this one has to notice the end of the standard input, whatever else waits.
        threading.Thread(target=_send_all, args=(peer, folder, faults, told.acquire), daemon=True).start()
        for _ in sys.stdin:
            told.release()
        peer.terminate(0)


def _send_all(peer: SnakemqConnector, folder: Path, faults: int, wait_until_told: Callable[[], object]) -> None:
    try:
        sent, accepted = _sent(folder)
        done = {record.key for record in sent if record.attempt in accepted}
        attempts = count(max((record.attempt for record in sent), default=-1) + 1)
        pieces = [piece for piece in _planned(folder) if (piece.name, piece.offset) not in done]
        if faults:
            wait_until_told()
        else:
            _say("restored", waiting=sum(each.queued for each in peer.stats().peers.values()), left=len(pieces))
        # It goes on sending while the parent makes a fault; it waits a little later, until that is over, so that no
        # fault comes before its turn, and something is left for the last one.
        fault_at = [len(pieces) * (2 * fault + 1) // (2 * faults) for fault in range(faults)]
        wait_at = [min(len(pieces) * (fault + 1) // faults, len(pieces) - 1) for fault in range(faults)]
        backlog = _Backlog()
        with _journal(folder, _SENT) as journal:
            for number, piece in enumerate(pieces):
                for fault in range(faults):
                    if number == fault_at[fault]:
                        _say("fault", sent=number)
                    if number == wait_at[fault]:
                        wait_until_told()
                record, data = _pack(piece, next(attempts))
                _write(journal, asdict(record))
                delivery = peer.send("listener", data)
                _write(journal, {"accepted": record.attempt})
                backlog.add(delivery)
            if peer.flush():
                _say("delivered")
    except LifecycleError:  # the parent has ended it
        pass
    except Exception as error:
        _say("failed", text=str(error))


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


if __name__ == "__main__":
    main(sys.argv[1:])
