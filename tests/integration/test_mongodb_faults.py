"""The MongoDB storage while its server goes and comes, the network fails, and owners are taken for dead."""

import contextlib
import copy
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, PyMongoError

from netcomm.errors import StorageError, StorageLocked, StorageUnavailable
from netcomm.storage import Append, Position, QueueStorage, StoredMessage
from netcomm.testing import FaultProxy
from netcomm_mongodb import MongoQueueStorage
from tests.contract.mongodb_server import MongodbServer, own_mongodb

__all__ = ["own_mongodb"]  # a fixture

_ROOT = Path(__file__).parents[2]
_DEADLINE_S = 60.0
_ROUNDS = 20
_numbers = itertools.count(1)


def message(seq: int, data: bytes = b"data") -> StoredMessage:
    return StoredMessage(seq, os.urandom(16), data, 1000.0 + seq, None)


def read_all(storage: QueueStorage) -> list[StoredMessage]:
    return storage.read("bob", 0, 10**6, 2**40)


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody announces."""
    until = time.monotonic() + _DEADLINE_S
    while not true():
        assert time.monotonic() < until, f"{what} has not come true within {_DEADLINE_S:g} s"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _quick_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """pymongo looks for a server that is away, and its threads for their end, this often."""
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.05)


@pytest.fixture
def place() -> str:
    """What follows the server's URL for a storage of the test's own."""
    return f"netcomm?netcomm_prefix=test{next(_numbers)}_&serverSelectionTimeoutMS=150"


def open_when_free(url: str) -> MongoQueueStorage:
    """Take a storage once its owner's lease is over."""
    opened: list[MongoQueueStorage] = []

    def is_free() -> bool:
        try:
            opened.append(MongoQueueStorage.from_url(url))
        except StorageLocked:
            return False
        return True

    wait_until(is_free, "the lease's end")
    return opened[0]


class Writer:
    """A thread that appends all the time, and goes on after failures, as netcomm does: with later seqs, or the same."""

    def __init__(self, storage: QueueStorage, seed: int, first_seq: int = 0) -> None:
        self.accepted: list[StoredMessage] = []
        self.failures = 0
        self.lost: StorageLocked | None = None
        self.gate = threading.Lock()
        """Held by the writer while it appends."""
        self._storage = storage
        self._random = random.Random(seed)
        self._seq = first_seq
        self._changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(_DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop and self.lost is None:
            count = self._random.randrange(1, 10)
            size = self._random.randrange(200)
            batch = [message(seq, os.urandom(size)) for seq in range(self._seq, self._seq + count)]
            with self.gate:
                try:
                    self._storage.append([Append("bob", 1, batch)])
                except StorageUnavailable:
                    accepted = False
                except StorageLocked as error:
                    self.lost = error
                    accepted = False
                else:
                    accepted = True
            with self._changed:
                if accepted:
                    self.accepted += batch
                else:
                    self.failures += 1
                if accepted or self._random.random() < 0.5:
                    self._seq += count
                self._changed.notify_all()

    def wait(self, true: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: true() or self.lost is not None, _DEADLINE_S), what
            assert self.lost is None

    def wait_for_more(self, count: int) -> None:
        wanted = len(self.accepted) + count
        self.wait(lambda: len(self.accepted) >= wanted, "more messages are accepted")

    def wait_for_failure(self) -> None:
        wanted = self.failures + 1
        self.wait(lambda: self.failures >= wanted, "an append fails")


def assert_kept(url: str, storage: MongoQueueStorage, accepted: list[StoredMessage]) -> None:
    """What was accepted is there, and nothing else: now, for others, and after closing."""
    size = sum(len(message.data) for message in accepted)
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        for seen in (storage, look):
            assert read_all(seen) == accepted
            (stream,) = seen.streams()
            assert (stream.count, stream.size) == (len(accepted), size)
            assert stream.next_seq > accepted[-1].seq
    storage.close()
    with MongoQueueStorage.from_url(url) as again:
        assert read_all(again) == accepted
        assert again.streams() == [stream]
        again.delete_below("bob", stream.next_seq)
        assert again.streams()[0].count == 0


def test_nothing_that_was_accepted_is_lost_when_the_server_goes(own_mongodb: MongodbServer, place: str) -> None:
    url = own_mongodb.url + place
    storage = MongoQueueStorage.from_url(url)
    chance = random.Random(1)
    with Writer(storage, seed=2) as writer:
        for number in range(_ROUNDS):
            writer.wait_for_more(chance.randrange(1, 50))
            # Asked to end, FerretDB serves its clients for three seconds more.
            end = own_mongodb.stop if number == 4 else own_mongodb.kill
            if number % 2:
                with writer.gate:  # between two appends
                    end()
            else:
                end()
            writer.wait_for_failure()
            with pytest.raises(StorageUnavailable, match="is the server running"):
                storage.read("bob", 0, 1, 1)
            with pytest.raises(StorageUnavailable, match="what was accepted before is kept"):
                storage.store_positions({"eve": Position(1, number)})
            if number % 5 == 0:
                with pytest.raises(StorageUnavailable):
                    MongoQueueStorage.from_url(url)
            own_mongodb.start()
        writer.wait_for_more(10)
    assert writer.failures >= _ROUNDS
    assert_kept(url, storage, writer.accepted)


def test_an_append_whose_answer_is_lost_is_stored_or_undone(own_mongodb: MongodbServer, place: str) -> None:
    """Connections break at random: also between the server's work and its answer."""
    host, port = own_mongodb.url.removeprefix("mongodb://").rstrip("/").split(":")
    with FaultProxy((host, int(port)), seed=3) as proxy:
        through = f"mongodb://{proxy.address[0]}:{proxy.address[1]}/{place}".replace("=150", "=2000")
        storage = MongoQueueStorage.from_url(through)
        proxy.cut_every = 8000
        with Writer(storage, seed=4) as writer:
            writer.wait(lambda: writer.failures >= 15, "connections break")
            proxy.cut_every = None
            writer.wait_for_more(10)
        assert proxy.cuts >= 15
        assert_kept(through, storage, writer.accepted)


def assert_refused(storage: QueueStorage, next_seq: int) -> None:
    """A storage that was taken over does nothing any more."""
    uses: list[Callable[[], object]] = [
        lambda: storage.append([Append("bob", 1, [message(next_seq)])]),
        lambda: storage.append([Append("eve", 1, [message(0)])]),
        lambda: storage.delete("bob", [next_seq - 1]),
        lambda: storage.delete_below("bob", next_seq),
        lambda: storage.store_positions({"eve": Position(1, 1)}),
        lambda: storage.mark_sent("bob", next_seq),
        lambda: storage.renew("bob", 2),
        lambda: read_all(storage),
        storage.streams,
    ]
    for use in uses:
        with pytest.raises(StorageLocked, match="taken over"):
            use()


def test_an_owner_that_was_taken_for_dead_leaves_no_trace(own_mongodb: MongodbServer, place: str) -> None:
    """The network of one that is appending becomes a black hole for longer than its lease, again and again."""
    direct = f"{own_mongodb.url}{place}&netcomm_lease_s=0.5"
    host, port = own_mongodb.url.removeprefix("mongodb://").rstrip("/").split(":")
    chance = random.Random(5)
    kept: list[StoredMessage] = []
    for number in range(5):
        with FaultProxy((host, int(port))) as proxy:
            through = f"mongodb://{proxy.address[0]}:{proxy.address[1]}/{place}&netcomm_lease_s=0.5"
            old = open_when_free(through.replace("=150", "=2000"))
            assert read_all(old) == kept
            first_seq = kept[-1].seq + 1 if kept else 0
            with Writer(old, seed=number, first_seq=first_seq) as writer:
                writer.wait_for_more(chance.randrange(1, 60))
                proxy.stall()
                new = open_when_free(direct)
                taken = read_all(new)
                next_seq = new.streams()[0].next_seq
                appended = [message(next_seq + offset) for offset in range(3)]
                new.append([Append("bob", 1, appended)])
                proxy.resume()
                wait_until(lambda writer=writer: writer.lost is not None, "the old owner notices")
            assert "taken over" in str(writer.lost)
            assert_refused(old, next_seq)
            old.close()
        # All that the old owner had accepted, among it what it never heard of, and nothing after that.
        assert taken == kept + writer.accepted
        kept = taken + appended
        assert read_all(new) == kept
        assert new.positions() == {}
        (stream,) = new.streams()
        assert (stream.count, stream.epoch, stream.sent_below) == (len(kept), 1, 0)
        new.close()


def test_an_owner_that_nobody_replaced_goes_on(own_mongodb: MongodbServer, place: str) -> None:
    host, port = own_mongodb.url.removeprefix("mongodb://").rstrip("/").split(":")
    with FaultProxy((host, int(port))) as proxy, MongoClient(own_mongodb.url) as client:
        url = f"mongodb://{proxy.address[0]}:{proxy.address[1]}/{place}&netcomm_lease_s=0.3"
        with MongoQueueStorage.from_url(url.replace("=150", "=2000")) as storage:
            storage.append([Append("bob", 1, [message(0)])])
            proxy.stall()
            meta = client["netcomm"][place.partition("prefix=")[2].partition("&")[0] + "meta"]

            def lease_is_over() -> bool:
                now = client.admin.command("hello")["localTime"]
                return (now - meta.find_one({"_id": "lease"})["renewed_at"]).total_seconds() > 0.4

            wait_until(lease_is_over, "the lease's end")
            proxy.resume()
            storage.append([Append("bob", 1, [message(1)])])
            assert [found.seq for found in read_all(storage)] == [0, 1]
            wait_until(lambda: not lease_is_over(), "the lease is renewed")
            with pytest.raises(StorageLocked):
                MongoQueueStorage.from_url(url)


_OWNER = """
import sys
from netcomm.storage import Append, StoredMessage
from netcomm_mongodb import MongoQueueStorage
storage = MongoQueueStorage.from_url(sys.argv[1])
for seq in range(5):
    storage.append([Append("bob", 1, [StoredMessage(seq, bytes(16), b"mine", 1000.0, None)])])
print("ready", flush=True)
for line in sys.stdin:
    try:
        storage.append([Append("bob", 1, [StoredMessage(5, bytes(16), b"late", 1000.0, None)])])
        print("accepted", flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


@contextmanager
def owner_process(url: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that owns a storage, has appended five messages, and appends another for each line that it gets."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "storage")])}
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_process_that_was_frozen_can_append_no_more(own_mongodb: MongodbServer, place: str) -> None:
    url = f"{own_mongodb.url}{place}&netcomm_lease_s=0.5"
    with owner_process(url) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGSTOP)
        with open_when_free(url) as storage:
            storage.append([Append("bob", 1, [message(6, b"new")])])
            process.send_signal(signal.SIGCONT)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "StorageLocked\n"
            assert [(found.seq, found.data) for found in read_all(storage)] == [
                *((seq, b"mine") for seq in range(5)),
                (6, b"new"),
            ]
            assert storage.streams()[0].count == 6


def test_a_crashed_owner_is_replaced_when_its_lease_is_over(own_mongodb: MongodbServer, place: str) -> None:
    url = f"{own_mongodb.url}{place}&netcomm_lease_s=1"
    with owner_process(url) as process:
        with pytest.raises(StorageLocked):
            MongoQueueStorage.from_url(url)
        process.kill()
        process.wait()
    with pytest.raises(StorageLocked, match="the lock ends in"):
        MongoQueueStorage.from_url(url)
    with open_when_free(url) as storage:
        assert storage.incarnation == 2
        assert [found.seq for found in read_all(storage)] == [0, 1, 2, 3, 4]
        storage.append([Append("bob", 1, [message(5)])])
    with MongoQueueStorage.from_url(url) as storage:
        assert storage.streams()[0].count == 6


def test_closing_ends_also_while_the_server_is_away(own_mongodb: MongodbServer, place: str) -> None:
    url = f"{own_mongodb.url}{place}&netcomm_lease_s=0.5"
    storage = MongoQueueStorage.from_url(url)
    storage.append([Append("bob", 1, [message(seq) for seq in range(5)])])
    storage.delete_below("bob", 3)
    own_mongodb.stop()
    try:
        with pytest.raises(StorageUnavailable, match=r"stays locked for up to 0.5 s"):
            storage.close()
        storage.close()
        with pytest.raises(StorageError, match="closed"):
            read_all(storage)
    finally:
        own_mongodb.start()
    with open_when_free(url) as storage:
        assert {3, 4} <= {found.seq for found in read_all(storage)}


@pytest.mark.timeout(300)  # above the time that the server gets for one answer
def test_a_hundred_thousand_messages_keep_their_order(own_mongodb: MongodbServer, place: str) -> None:
    # FerretDB reads them all for each query, which takes its time on a busy machine.
    url = f"{own_mongodb.url}{place}&socketTimeoutMS=120000"
    with MongoQueueStorage.from_url(url) as storage:
        for start in range(0, 100_000, 1000):
            batch = [
                StoredMessage(seq, seq.to_bytes(16), b"%d" % seq, 1000.0, None) for seq in range(start, start + 1000)
            ]
            storage.append([Append("bob", 1, batch)])
    with MongoQueueStorage.from_url(url) as storage:
        found = storage.read("bob", 0, 200_000, 2**40)
    assert [(message.seq, message.data) for message in found] == [(seq, b"%d" % seq) for seq in range(100_000)]


class LossyCollection:
    """A collection whose changes get lost, or their answers, or come late: which no server does when it is asked to."""

    def __init__(self, real: Any, chance: random.Random, late: list[Callable[[], object]]) -> None:
        self._real = real
        self._chance = chance
        self._late = late

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name not in ("update_one", "insert_many", "replace_one", "delete_many", "bulk_write"):
            return method

        def change(*args: Any, **options: Any) -> Any:
            self.deliver(len(self._late) // 4)
            fate = self._chance.random()
            if fate < 0.7:
                return method(*args, **options)
            if fate < 0.8:
                method(*args, **options)
            elif fate < 0.9:
                # As it was sent: what was handed over may change afterwards.
                sent = copy.deepcopy(args)
                self._late.append(lambda: method(*sent, **options))
            raise AutoReconnect("cut by the test")

        return change

    def deliver(self, count: int) -> None:
        """Let some of what comes late come now."""
        for _ in range(count):
            change = self._late.pop(self._chance.randrange(len(self._late)))
            with contextlib.suppress(PyMongoError):
                change()


def make_lossy(storage: MongoQueueStorage, chance: random.Random, late: list[Callable[[], object]]) -> LossyCollection:
    for name in ("meta", "streams", "positions", "messages", "parts", "host", "rows", "row_parts"):
        lossy = LossyCollection(getattr(storage._connection, name), chance, late)
        setattr(storage._connection, name, lossy)
    return lossy


_IDENTS = ["bob", "eve", "kim"]


class Model:
    """What a storage must hold after a number of changes."""

    def __init__(self) -> None:
        self.messages: dict[str, list[StoredMessage]] = {}
        self.next_seqs: dict[str, int] = {}
        self.sent_below: dict[str, int] = {}
        self.positions: dict[str, Position] = {}
        self.used = dict.fromkeys(_IDENTS, 0)
        self.failed: set[tuple[str, int]] = set()

    def check(self, storage: QueueStorage) -> None:
        found = {stream.ident: stream for stream in storage.streams()}
        assert found.keys() == self.messages.keys()
        for ident, kept in self.messages.items():
            assert storage.read(ident, 0, 10**6, 2**40) == kept
            assert (found[ident].count, found[ident].size) == (len(kept), sum(len(message.data) for message in kept))
            assert (found[ident].next_seq, found[ident].sent_below) == (self.next_seqs[ident], self.sent_below[ident])
        assert storage.positions() == self.positions

    def check_after_crash(self, storage: QueueStorage) -> None:
        """What had arrived may be there again; with it gone, all is as it must be."""
        for ident, kept in self.messages.items():
            found = storage.read(ident, 0, 10**6, 2**40)
            assert found[len(found) - len(kept) :] == kept
            storage.delete_below(ident, kept[0].seq if kept else self.next_seqs[ident])
        self.check(storage)


@pytest.mark.parametrize("seed", range(4))
def test_changes_that_fail_are_undone_however_late_they_come(
    own_mongodb: MongodbServer, place: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("netcomm_mongodb.documents._PART_BYTES", 100)
    monkeypatch.setattr("netcomm_mongodb.garbage._JOURNAL_ENTRIES", 4)
    monkeypatch.setattr("netcomm_mongodb.garbage._LATE_DELETES", 5)
    url = own_mongodb.url + place
    chance = random.Random(seed)
    model = Model()
    late: list[Callable[[], object]] = []
    with MongoClient(own_mongodb.url) as client:
        meta = client["netcomm"][place.partition("prefix=")[2].partition("&")[0] + "meta"]
        for _ in range(4):
            storage = MongoQueueStorage.from_url(url)
            try:
                model.check(storage)
                lossy = make_lossy(storage, chance, late)
                for _ in range(60):
                    change_at_random(storage, chance, model)
                    for ident, kept in model.messages.items():
                        assert storage.read(ident, 0, 10**6, 2**40) == kept
                # One change that succeeds, so that none is in doubt. Then the process dies.
                while not change_at_random(storage, chance, model):
                    pass
                lossy.deliver(len(late) // 2)
                meta.update_one({"_id": "head"}, {"$set": {"owner": None}})
                with MongoQueueStorage.from_url(url) as heir:
                    model.check_after_crash(heir)
                    lossy.deliver(len(late))
                    model.check(heir)
            finally:
                storage._owner.stop()
                storage._connection.close()
            late.clear()


def change_at_random(storage: QueueStorage, chance: random.Random, model: Model) -> bool:
    """Change something, in the model too if the storage says it is done; returns whether nothing is in doubt."""
    ident = chance.choice(_IDENTS)
    kept = model.messages.get(ident, [])
    what = chance.choice(["append", "append", "append", "delete", "delete_below", "mark_sent", "store_positions"])
    try:
        if what == "append":
            append_at_random(storage, chance, model)
        elif what == "delete":
            # A message whose seq was used by an append that failed may come back: netcomm does not use it again.
            seqs = [found.seq for found in kept if chance.random() < 0.3 and (ident, found.seq) not in model.failed]
            storage.delete(ident, seqs)
            kept[:] = [found for found in kept if found.seq not in seqs]
        elif what == "delete_below":
            below = kept[chance.randrange(len(kept))].seq if kept else 0
            # It need not succeed at once to be seen: nobody wants these messages any more.
            kept[:] = [found for found in kept if found.seq >= below]
            storage.delete_below(ident, below)
        elif what == "mark_sent":
            below = chance.randrange(100)
            storage.mark_sent(ident, below)
            if ident in model.messages:
                model.sent_below[ident] = below
        else:
            positions = {f"sender {chance.randrange(8)}": Position(1, chance.randrange(1000)) for _ in range(3)}
            storage.store_positions(positions)
            model.positions.update(positions)
    except StorageUnavailable:
        return False
    return what in ("append", "store_positions")


def append_at_random(storage: QueueStorage, chance: random.Random, model: Model) -> None:
    batch: dict[str, list[StoredMessage]] = {}
    for ident in chance.sample(_IDENTS, chance.randrange(1, len(_IDENTS) + 1)):
        first = model.used[ident] if chance.random() < 0.7 else model.next_seqs.get(ident, 0)
        size = chance.choice([0, 10, 90, 250])
        batch[ident] = [message(seq, os.urandom(size)) for seq in range(first, first + chance.randrange(0, 4))]
        model.used[ident] = max([model.used[ident], *(found.seq + 1 for found in batch[ident])])
    try:
        storage.append([Append(ident, 1, appended) for ident, appended in batch.items()])
    except StorageUnavailable:
        model.failed |= {(ident, found.seq) for ident, appended in batch.items() for found in appended}
        raise
    for ident, appended in batch.items():
        model.messages.setdefault(ident, []).extend(appended)
        model.next_seqs[ident] = max([model.next_seqs.get(ident, 0), *(found.seq + 1 for found in appended)])
        model.sent_below.setdefault(ident, 0)
