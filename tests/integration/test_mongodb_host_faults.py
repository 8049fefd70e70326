"""Steps of a host in MongoDB: while its process dies, its server goes and comes, and the network fails.

What is asked for each time: a step that `commit` returned from is there as a whole; one that it raised for, or that its
process died in, is there as a whole or not at all; and committing it again is right in either case.
"""

import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from netcomm.errors import StorageLocked, StorageUnavailable
from netcomm.host_storage import HostPosition, HostRow, HostStep, HostStorage
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import Stream
from netcomm.storage import Append, StoredMessage
from netcomm.testing import FaultProxy
from netcomm.testing.host_steps import everything
from netcomm_mongodb import MongoQueueStorage
from tests.contract.mongodb_server import MongodbServer, own_mongodb
from tests.integration.test_mongodb_faults import make_lossy, open_when_free, wait_until

__all__ = ["own_mongodb"]  # a fixture

_ROOT = Path(__file__).parents[2]
_DEADLINE_S = 60.0
_NAMES = ["tasks", "tasks.dead", "log"]
_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _quick_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """pymongo looks for a server that is away, and its threads for their end, this often."""
    monkeypatch.setattr("pymongo.common.MIN_HEARTBEAT_INTERVAL", 0.05)


@pytest.fixture
def prefix() -> str:
    return f"host{next(_numbers)}_"


@pytest.fixture
def place(prefix: str) -> str:
    """What follows the server's URL for a storage of the test's own."""
    return f"netcomm?netcomm_prefix={prefix}&serverSelectionTimeoutMS=150"


@pytest.fixture
def database(own_mongodb: MongodbServer, prefix: str) -> Iterator[Callable[[str], Any]]:
    """The collections of the test's storage, by their names without prefix."""
    client: MongoClient[dict[str, Any]] = MongoClient(own_mongodb.url)
    with client:
        yield lambda name: client["netcomm"][prefix + name]


def step_at_random(chance: random.Random, model: HostStorage) -> HostStep:
    """A step as a host makes them: work comes in, is handed out, and is done."""
    logs = model.logs()
    name = chance.choice(_NAMES)
    first = logs[name].next_number if name in logs else 0
    kept = [row.number for row in model.rows(name, 0, 10**6, 2**40)]
    count = chance.randrange(5)
    return HostStep(
        dropped=[chance.choice(_NAMES[1:])] if chance.random() < 0.05 else [],
        appended={
            "tasks" if name == "log" else name: [
                HostRow(number, os.urandom(chance.choice([0, 10, 150])), b"envelope", 1.0 * number)
                for number in range(first, first + count)
            ]
        }
        if name != "log"
        else {},
        changed={name: {number: os.urandom(3) for number in kept if chance.random() < 0.2}},
        deleted={name: [(number, number + 1) for number in kept if chance.random() < 0.3]},
        marks={f"mark {chance.randrange(3)}": first + 1},
        documents={f"document {chance.randrange(3)}": chance.choice([None, os.urandom(chance.choice([5, 130]))])},
        positions={("bob", Stream.BUS_DURABLE): HostPosition(1, chance.randrange(2**64), 2.0)},
    )


def commit_until_done(storage: HostStorage, steps: list[HostStep], failed: Callable[[], object]) -> None:
    """Commit steps, again after each failure, as a host does."""
    for _ in range(1000):
        try:
            storage.commit(steps)
        except StorageUnavailable:
            failed()
        else:
            return
    raise AssertionError("it can't be committed")


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes thousands of rows, or large ones, takes a few here."""
    monkeypatch.setattr("netcomm_mongodb.documents._PART_BYTES", 100)
    monkeypatch.setattr("netcomm_mongodb.sweeper._JOURNAL_RECORDS", 6)
    monkeypatch.setattr("netcomm_mongodb.sweeper._WAITING", 8)


@pytest.mark.usefixtures("_small_steps")
@pytest.mark.parametrize("seed", range(3))
def test_steps_that_fail_are_undone_however_late_they_come(
    own_mongodb: MongodbServer, place: str, database: Callable[[str], Any], seed: int
) -> None:
    url = own_mongodb.url + place
    chance = random.Random(seed)
    model = MemoryQueueStorage()
    late: list[Callable[[], object]] = []
    failures = 0

    def failed() -> None:
        nonlocal failures
        failures += 1
        if chance.random() < 0.3:  # something else comes in between
            try:
                storage.append([Append("eve", 1, [StoredMessage(failures, bytes(16), b"", 1.0, None)])])
            except StorageUnavailable:
                pass

    for _ in range(3):
        storage = MongoQueueStorage.from_url(url)
        try:
            assert everything(storage) == everything(model)
            lossy = make_lossy(storage, chance, late)
            for _ in range(15):
                step = step_at_random(chance, model)
                commit_until_done(storage, [step], failed)
                model.commit([step])
            assert everything(storage) == everything(model)
            lossy.deliver(len(late) // 2)
            assert everything(storage) == everything(model)
            # The process dies.
            database("meta").update_one({"_id": "head"}, {"$set": {"owner": None}})
            with MongoQueueStorage.from_url(url) as heir:
                assert everything(heir) == everything(model)
                lossy.deliver(len(late))
                assert everything(heir) == everything(model)
                for _ in range(3):
                    step = step_at_random(chance, model)
                    heir.commit([step])
                    model.commit([step])
                assert everything(heir) == everything(model)
        finally:
            storage._owner.stop()
            storage._connection.close()
        late.clear()
    assert failures > 10


class Worker:
    """A thread that commits steps all the time, and again where they fail."""

    def __init__(self, storage: HostStorage, seed: int) -> None:
        self.model = MemoryQueueStorage()
        self.done = 0
        self.failures = 0
        self.lost: StorageLocked | None = None
        self.last: HostStep | None = None
        """The one that is being committed."""
        self._storage = storage
        self._chance = random.Random(seed)
        self._changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(_DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop and self.lost is None:
            self.last = step_at_random(self._chance, self.model)
            try:
                commit_until_done(self._storage, [self.last], self._note_failure)
            except StorageLocked as error:
                self.lost = error
                return
            self.model.commit([self.last])
            with self._changed:
                self.done += 1
                self._changed.notify_all()

    def _note_failure(self) -> None:
        with self._changed:
            self.failures += 1
            self._changed.notify_all()

    def wait_for_more(self, count: int) -> None:
        wanted = self.done + count
        with self._changed:
            assert self._changed.wait_for(lambda: self.done >= wanted, _DEADLINE_S)

    def wait_for_failures(self, count: int) -> None:
        wanted = self.failures + count
        with self._changed:
            assert self._changed.wait_for(lambda: self.failures >= wanted, _DEADLINE_S)


def assert_kept(url: str, storage: HostStorage, model: HostStorage) -> None:
    """What was committed is there, and nothing else: now, for others, and after closing."""
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert everything(storage) == everything(look) == everything(model)
    storage.close()
    with MongoQueueStorage.from_url(url) as again:
        assert everything(again) == everything(model)


def test_steps_are_whole_when_the_server_goes(own_mongodb: MongodbServer, place: str) -> None:
    url = own_mongodb.url + place
    storage = MongoQueueStorage.from_url(url)
    with Worker(storage, seed=2) as worker:
        for number in range(8):
            worker.wait_for_more(number)
            own_mongodb.kill()
            worker.wait_for_failures(1)
            own_mongodb.start()
        worker.wait_for_more(5)
    assert_kept(url, storage, worker.model)


def test_steps_whose_answers_are_lost_are_made_once(own_mongodb: MongodbServer, place: str) -> None:
    """Connections break at random: also between the server's work and its answer."""
    host, port = own_mongodb.url.removeprefix("mongodb://").rstrip("/").split(":")
    with FaultProxy((host, int(port)), seed=3) as proxy:
        through = f"mongodb://{proxy.address[0]}:{proxy.address[1]}/{place}".replace("=150", "=2000")
        storage = MongoQueueStorage.from_url(through)
        proxy.cut_every = 8000
        with Worker(storage, seed=4) as worker:
            worker.wait_for_failures(15)
            proxy.cut_every = None
            worker.wait_for_more(5)
        assert proxy.cuts >= 15
        assert_kept(through, storage, worker.model)


def test_an_owner_that_was_taken_for_dead_commits_no_more(own_mongodb: MongodbServer, place: str) -> None:
    """The network of one that is committing becomes a black hole for longer than its lease."""
    direct = f"{own_mongodb.url}{place}&netcomm_lease_s=0.5"
    host, port = own_mongodb.url.removeprefix("mongodb://").rstrip("/").split(":")
    with FaultProxy((host, int(port))) as proxy:
        through = f"mongodb://{proxy.address[0]}:{proxy.address[1]}/{place}&netcomm_lease_s=0.5"
        old = open_when_free(through.replace("=150", "=2000"))
        with Worker(old, seed=5) as worker:
            worker.wait_for_more(10)
            proxy.stall()
            new = open_when_free(direct)
            found = everything(new)
            model = MemoryQueueStorage()
            chance = random.Random(6)
            steps = [step_at_random(chance, model) for _ in range(3)]
            new.commit([HostStep(dropped=_NAMES), *steps])
            expected = everything(new)
            proxy.resume()
            wait_until(lambda: worker.lost is not None, "the old owner notices")
        assert "taken over" in str(worker.lost)
        for use in (lambda: old.commit([HostStep(marks={"mark": 9})]), old.logs, old.marks, old.documents):
            with pytest.raises(StorageLocked, match="taken over"):
                use()
        old.close()
    # All that the old owner had committed, and perhaps the step whose answer it never got.
    assert worker.last is not None
    before = everything(worker.model)
    worker.model.commit([worker.last])
    assert found in (before, everything(worker.model))
    assert everything(new) == expected
    new.close()
    with MongoQueueStorage.from_url(direct) as again:
        assert everything(again) == expected


# -- Death at each point of a step ----------------------------------------------------------------------------

POINTS = [
    "before anything",
    "between the parts",
    "before the rows",
    "in the rows",
    "before the head",
    "after the head",
    "before rows are removed",
    "in the removal of rows",
    "before states are given",
    "in the compaction",
    "after the compaction",
]

_OWNER = """
import os, signal, sys
import pymongo.collection
from netcomm.host_storage import HostStep
from netcomm_mongodb import MongoQueueStorage, bulk, documents, rows, sweeper
from tests.integration.test_mongodb_host_faults import the_last_step

url, point = sys.argv[1:]
documents._PART_BYTES = 100
sweeper._WAITING = 1
sweeper._JOURNAL_RECORDS = 1
storage = MongoQueueStorage.from_url(url)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def around(collection, method, before=False, after=False, number=1):
    count = 0
    real = getattr(collection, method)
    def call(*arguments, **options):
        nonlocal count
        count += 1
        if before and count == number:
            die()
        result = real(*arguments, **options)
        if after and count == number:
            die()
        return result
    class Changed:
        def __getattr__(self, name):
            return call if name == method else getattr(collection, name)
    return Changed()

def half(collection):
    class Changed:
        def insert_many(self, documents, **options):
            collection.insert_many(documents[: len(documents) // 2], **options)
            die()
        def __getattr__(self, name):
            return getattr(collection, name)
    return Changed()

at = storage._connection
if point == "before anything":
    at.row_parts = around(at.row_parts, "insert_many", before=True)
elif point == "between the parts":
    at.row_parts = around(at.row_parts, "insert_many", after=True)
elif point == "before the rows":
    at.rows = around(at.rows, "insert_many", before=True)
elif point == "in the rows":
    at.rows = half(at.rows)
elif point == "before the head":
    at.meta = around(at.meta, "update_one", before=True)
elif point == "after the head":
    at.meta = around(at.meta, "update_one", after=True)
elif point == "before rows are removed":
    at.rows = around(at.rows, "delete_many", before=True)
elif point == "in the removal of rows":
    at.rows = around(at.rows, "delete_many", after=True)
elif point == "before states are given":
    at.rows = around(at.rows, "bulk_write", before=True)
elif point == "in the compaction":
    at.host = around(at.host, "bulk_write", before=True)
elif point == "after the compaction":
    at.host = around(at.host, "bulk_write", after=True)
else:
    raise ValueError(point)
storage._owner.stop()
storage.commit([the_last_step()])
print("still alive", flush=True)
"""


def first_steps() -> list[HostStep]:
    return [
        HostStep(
            appended={
                "tasks": [HostRow(number, b"x" * (90 + number), b"e", 1.0, b"new") for number in range(30)],
                "log": [HostRow(0, b"", b"", 1.0)],
                "empty": [],
            },
            marks={"handed out": 3, "old": 1},
            documents={"document": b"y" * 130, "old": b""},
            positions={("bob", Stream.BUS_DURABLE): HostPosition(1, 30, 1.0)},
        )
    ]


def the_last_step() -> HostStep:
    """It has something of everything."""
    return HostStep(
        dropped=["log"],
        next_numbers={"empty": 7},
        appended={"tasks": [HostRow(number, b"z" * 250, b"e", 2.0) for number in range(30, 36)]},
        changed={"tasks": dict.fromkeys(range(10, 20), b"again")},
        deleted={"tasks": [(0, 5), (7, 8), (21, 30)]},
        marks={"handed out": 9, "old": None},
        documents={"document": b"z" * 140, "old": None, "new": b"1"},
        positions={
            ("bob", Stream.BUS_DURABLE): HostPosition(1, 36, 2.0),
            ("eve", Stream.BULK): HostPosition(2, 1, 2.0),
        },
    )


@pytest.mark.parametrize("point", POINTS)
def test_a_step_is_made_or_not_wherever_the_process_dies(
    own_mongodb: MongodbServer, place: str, database: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr("netcomm_mongodb.documents._PART_BYTES", 100)
    url = own_mongodb.url + place
    model = MemoryQueueStorage()
    with MongoQueueStorage.from_url(url) as storage:
        storage.commit(first_steps())
    model.commit(first_steps())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "storage")])}
    owner = subprocess.run(
        [sys.executable, "-c", _OWNER, url, point],
        capture_output=True,
        text=True,
        env=environment,
        cwd=_ROOT,
        timeout=_DEADLINE_S,
        check=False,
    )
    assert owner.returncode == -9, owner.stdout + owner.stderr
    is_made = POINTS.index(point) >= POINTS.index("after the head")
    if is_made:
        model.commit([the_last_step()])
    with MongoQueueStorage.from_url(url, read_only=True) as look:
        assert everything(look) == everything(model)
    database("meta").update_one({"_id": "head"}, {"$set": {"owner": None}})  # the lease is over
    with MongoQueueStorage.from_url(url) as heir:
        assert everything(heir) == everything(model)
        heir.commit([the_last_step()])
        model.commit([the_last_step()])
        assert everything(heir) == everything(model)
        while heir._owner._collect_garbage():
            pass
        assert everything(heir) == everything(model)
    # Nothing is left over.
    kept = model.rows("tasks", 0, 100, 10**6)
    contents = model.documents().values()
    assert database("rows").count_documents({}) == len(kept) + len(contents)
    data = [row.data for row in kept] + list(contents)
    assert database("row_parts").count_documents({}) == sum(-(-len(one) // 100) for one in data if len(one) > 100)
    with MongoQueueStorage.from_url(url) as again:
        assert everything(again) == everything(model)


# -- Backups --------------------------------------------------------------------------------------------------

_COLLECTIONS = ["meta", "streams", "positions", "messages", "parts", "host", "rows", "row_parts"]


def restore(database: Callable[[str], Any], saved: dict[str, list[dict[str, Any]]]) -> None:
    for name, documents in saved.items():
        database(name).delete_many({})
        if documents:
            database(name).insert_many(documents)


def save(database: Callable[[str], Any], name: str) -> list[dict[str, Any]]:
    return list(database(name).find())


@pytest.mark.usefixtures("_small_steps")
def test_a_restored_backup_is_what_it_was(
    own_mongodb: MongodbServer, place: str, database: Callable[[str], Any]
) -> None:
    url = own_mongodb.url + place
    chance = random.Random(7)
    model = MemoryQueueStorage()
    for _ in range(3):
        with MongoQueueStorage.from_url(url) as storage:
            assert everything(storage) == everything(model)
            for _ in range(10):
                step = step_at_random(chance, model)
                storage.commit([step])
                model.commit([step])
            saved = {name: save(database, name) for name in _COLLECTIONS}
            for _ in range(10):
                storage.commit([step_at_random(chance, storage)])
        restore(database, saved)
        database("meta").update_one({"_id": "head"}, {"$set": {"owner": None}})


def test_rows_that_a_backup_has_too_many_are_not_there(
    own_mongodb: MongodbServer, place: str, database: Callable[[str], Any]
) -> None:
    """A backup that is taken while the storage is in use has each collection as it is at another moment."""
    url = own_mongodb.url + place
    with MongoQueueStorage.from_url(url) as storage:
        storage.commit([HostStep(appended={"tasks": [HostRow(0, b"0", b"", 1.0)]}, marks={"mark": 1})])
        before = everything(storage)
        saved = {name: save(database, name) for name in _COLLECTIONS if name != "rows"}
        storage.commit([HostStep(appended={"tasks": [HostRow(number, b"later", b"", 1.0) for number in (1, 2)]})])
        saved["rows"] = save(database, "rows")
    restore(database, saved)
    database("meta").update_one({"_id": "head"}, {"$set": {"owner": None}})
    with MongoQueueStorage.from_url(url) as storage:
        assert everything(storage) == before
        storage.commit([HostStep(appended={"tasks": [HostRow(1, b"1", b"", 1.0)]}, next_numbers={"tasks": 5})])
        assert [(row.number, row.data) for row in storage.rows("tasks", 0, 9, 99)] == [(0, b"0"), (1, b"1")]
        assert storage.logs()["tasks"].count == 2
