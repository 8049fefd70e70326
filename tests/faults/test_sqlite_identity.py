"""A storage is a file, whatever its names are: names that are deleted, moved, taken by others, or several of one file.

And it is one process's: a forked child keeps nothing of it.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netcomm.errors import ConfigurationError, StorageCorrupt, StorageError, StorageLocked, StorageUnavailable
from netcomm.storage import Append, Position, StoredMessage
from netcomm_sqlite import SqliteQueueStorage, file_watch, forks, open_file, owner_lock
from netcomm_sqlite.names import ATTRIBUTE
from netcomm_sqlite.owned_file import OwnedFile
from tests.faults.helpers import DEADLINE_S, ROOT


def message(seq: int) -> StoredMessage:
    return StoredMessage(seq, seq.to_bytes(16), b"%d" % seq, 0.0, None)


def append(storage: SqliteQueueStorage, *seqs: int) -> None:
    storage.append([Append("receiver", 1, [message(seq) for seq in seqs])])


def seqs(storage: SqliteQueueStorage) -> list[int]:
    return [message.seq for message in storage.read("receiver", 0, 1000, 1 << 20)]


CHANGES: list[Callable[[SqliteQueueStorage], object]] = [
    lambda storage: append(storage, 100),
    lambda storage: append(storage, 101, 102),
    lambda storage: storage.mark_sent("receiver", 1),
    lambda storage: storage.renew("receiver", 2),
    lambda storage: storage.delete("receiver", [0]),
    lambda storage: storage.delete_below("receiver", 1),
    lambda storage: storage.store_positions({"sender": Position(1, 1)}),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "queue.db"


def in_a_process(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


_OPEN = """
import sys
from netcomm.errors import StorageError
from netcomm_sqlite import SqliteQueueStorage
try:
    SqliteQueueStorage(sys.argv[1]).close()
except StorageError as error:
    print(type(error).__name__)
else:
    print("opened")
"""


def opened_elsewhere(path: Path) -> str:
    """Open it as its owner in another process; returns "opened", or the name of the error."""
    done = in_a_process(_OPEN, path)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- Names that are deleted, moved, or taken ------------------------------------------------------------------


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def delete_all(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def delete_file(path: Path) -> None:
    path.unlink()


def move_file(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace_file(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def delete_log(path: Path) -> None:
    log_of(path).unlink()


def move_log(path: Path) -> None:
    log_of(path).rename(path.with_name("moved-wal"))


def replace_log(path: Path) -> None:
    shutil.copy(log_of(path), path.with_name("copy"))
    path.with_name("copy").replace(log_of(path))


HARMS = [
    delete_all,
    delete_folder,
    move_folder,
    delete_file,
    move_file,
    replace_file,
    delete_log,
    move_log,
]


@pytest.mark.parametrize("harm", HARMS)
def test_nothing_is_promised_when_the_file_or_its_log_is_not_there_any_more(
    path: Path, harm: Callable[[Path], None]
) -> None:
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
        append(storage, 1)
        harm(path)
        for change in [*CHANGES, *CHANGES]:
            with pytest.raises(StorageError, match="not there any more as it was opened") as caught:
                change(storage)
            assert not isinstance(caught.value, StorageUnavailable)
            assert str(path) in str(caught.value)
            assert "What was accepted before is in the files" in str(caught.value)
        # To put it right takes a new owner, who knows what the file has.
        assert seqs(storage)[:2] in ([0, 1], [1])


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("harm", [delete_file, delete_log])
def test_each_kind_of_change_is_looked_after(
    path: Path, harm: Callable[[Path], None], change: Callable[[SqliteQueueStorage], object]
) -> None:
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
        harm(path)
        with pytest.raises(StorageError, match="not there any more"):
            change(storage)


def test_a_log_is_looked_at_again_after_the_folder_has_been_still(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "_RECENT_NS", 0)
    monkeypatch.setattr(file_watch, "_RECENT_COARSE_NS", 0)
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
        (path.parent / "other").touch()
        append(storage, 1)
        append(storage, 2)
        move_log(path)
        log_of(path).touch()
        with pytest.raises(StorageError, match="log FILE-wal has been replaced"):
            append(storage, 3)


_REPLACE_LOG = """
import sys
from pathlib import Path
from tests.faults import test_sqlite_identity as here
path = Path(sys.argv[1])
storage = here.SqliteQueueStorage(path)
here.append(storage, 0)
here.replace_log(path)
before = here.log_of(path).read_bytes()
for change in here.CHANGES:
    try:
        change(storage)
    except here.StorageError as error:
        print("its log FILE-wal has been replaced" in str(error))
storage.close()
print(before == here.log_of(path).read_bytes())
"""


def test_a_log_of_a_stranger_is_left_alone(path: Path) -> None:
    done = in_a_process(_REPLACE_LOG, path)
    assert done.stdout.split() == ["True"] * (len(CHANGES) + 1), done.stderr


def test_what_was_accepted_before_the_log_was_deleted_is_saved_by_closing(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        for seq in range(5):
            append(storage, seq)
        delete_log(path)
        with pytest.raises(StorageError, match="not there any more"):
            append(storage, 5)
    with SqliteQueueStorage(path) as storage:
        assert seqs(storage)[:5] == [0, 1, 2, 3, 4]


_HARM_AND_END = """
import os, sys
from pathlib import Path
from netcomm.errors import StorageError
from tests.faults import test_sqlite_identity as here
path = Path(sys.argv[1])
storage = here.SqliteQueueStorage(path)
for seq in range(5):
    here.append(storage, seq)
for name in ("queue.db", "queue.db-wal", "queue.db-shm"):
    os.replace(path.with_name("stranger") / name, path.with_name(name))
if sys.argv[2] == "after a change":
    try:
        here.append(storage, 5)
    except StorageError:
        print("refused")
storage.close()
"""


@pytest.mark.parametrize("when", ["after a change", "with no change"])
def test_closing_and_ending_leave_the_files_of_a_stranger_alone(path: Path, when: str) -> None:
    stranger = path.with_name("stranger")
    stranger.mkdir()
    left_open = in_a_process(
        "import os, sys; from tests.faults import test_sqlite_identity as here\n"
        "here.append(here.SqliteQueueStorage(sys.argv[1]), 7); os.kill(os.getpid(), 9)",
        stranger / "queue.db",
    )
    assert left_open.returncode == -signal.SIGKILL
    before = {name: (stranger / name).read_bytes() for name in ("queue.db", "queue.db-wal")}
    done = in_a_process(_HARM_AND_END, path, when)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("refused\n" if when == "after a change" else "")
    assert {name: path.with_name(name).read_bytes() for name in before} == before
    with SqliteQueueStorage(path) as storage:
        assert seqs(storage) == [7]


def test_a_lock_file_that_is_deleted_lets_no_second_owner_in(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
        path.with_name("queue.db-lock").unlink()
        with pytest.raises(StorageLocked):
            SqliteQueueStorage(path)
        assert opened_elsewhere(path) == "StorageLocked"
        append(storage, 1)
    assert opened_elsewhere(path) == "opened"
    with SqliteQueueStorage(path) as storage:
        assert seqs(storage) == [0, 1]


def test_a_program_may_change_its_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with SqliteQueueStorage("queue.db") as storage:
        monkeypatch.chdir("/")
        append(storage, 0)
    with SqliteQueueStorage(path) as storage:
        assert seqs(storage) == [0]


def test_a_link_to_the_file_that_leads_elsewhere_is_noticed(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    with SqliteQueueStorage(link) as storage:
        append(storage, 0)
        link.unlink()
        link.symlink_to(path.with_name("other.db"))
        with pytest.raises(StorageError, match="not there any more"):
            append(storage, 1)


def test_a_file_that_was_filled_and_is_empty_is_damaged_and_not_new(path: Path) -> None:
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
    os.truncate(path, 0)
    for read_only in (False, True):
        with pytest.raises(StorageCorrupt, match="it is empty"):
            SqliteQueueStorage(path, read_only=read_only)
    assert path.stat().st_size == 0


# -- Several names --------------------------------------------------------------------------------------------


@pytest.fixture
def second_name(path: Path, tmp_path: Path) -> Path:
    """Another folder with a hard link to the file."""
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
    (tmp_path / "other").mkdir()
    name = tmp_path / "other" / "again.db"
    name.hardlink_to(path)
    return name


@pytest.fixture
def mounted_name(path: Path, tmp_path: Path) -> Iterator[Path]:
    """Another folder with a mount of the file alone."""
    if os.geteuid() != 0:
        why = "only root may mount a file: run this as root, or under `unshare -rm`"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
    (tmp_path / "a folder").mkdir()
    name = tmp_path / "a folder" / "mounted.db"
    name.touch()
    subprocess.run(["mount", "--bind", str(path), str(name)], check=True)
    try:
        yield name
    finally:
        subprocess.run(["umount", "-l", str(name)], check=True)


@pytest.fixture(params=["second_name", "mounted_name"])
def name(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_file_with_two_names_has_one_owner(path: Path, name: Path, is_swapped: bool) -> None:
    first, second = (name, path) if is_swapped else (path, name)
    with SqliteQueueStorage(first) as storage:
        append(storage, 1)
        with pytest.raises(StorageLocked):
            SqliteQueueStorage(second)
        assert opened_elsewhere(second) == "StorageLocked"
        append(storage, 2)
    with SqliteQueueStorage(second) as storage:
        assert seqs(storage) == [0, 1, 2]
        append(storage, 3)
    with SqliteQueueStorage(first) as storage:
        assert seqs(storage) == [0, 1, 2, 3]


_DIE = """
import os, sys
from tests.faults import test_sqlite_identity as here
storage = here.SqliteQueueStorage(sys.argv[1])
here.append(storage, 1)
here.append(storage, 2)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("is_swapped", [False, True])
def test_messages_that_a_killed_owner_has_left_beside_another_name_are_not_passed_over(
    path: Path, name: Path, is_swapped: bool
) -> None:
    first, second = (name, path) if is_swapped else (path, name)
    with SqliteQueueStorage(second, read_only=True):
        pass  # a look leaves an empty log beside this name
    assert in_a_process(_DIE, first).returncode == -signal.SIGKILL
    for read_only in (False, True):
        with pytest.raises(StorageError, match=f"was left open, as {first}") as caught:
            SqliteQueueStorage(second, read_only=read_only)
        assert type(caught.value) is StorageError
    with SqliteQueueStorage(first) as storage:
        assert seqs(storage) == [0, 1, 2]
        with pytest.raises(StorageError, match="which names the same file"):
            SqliteQueueStorage(second, read_only=True)
    with SqliteQueueStorage(second) as storage:
        assert seqs(storage) == [0, 1, 2]


def test_a_log_beside_another_name_can_be_given_up(path: Path, second_name: Path) -> None:
    assert in_a_process(_DIE, path).returncode == -signal.SIGKILL
    with pytest.raises(StorageError, match=f"setfattr -x {ATTRIBUTE}"):
        SqliteQueueStorage(second_name)
    os.removexattr(second_name, ATTRIBUTE)
    with SqliteQueueStorage(second_name) as storage:
        assert seqs(storage) == [0]


def test_a_file_with_two_names_is_refused_where_nothing_can_be_noted_at_it(
    path: Path, second_name: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getxattr(*arguments: Any) -> bytes:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "getxattr", getxattr)
    with pytest.raises(StorageError, match="several names"):
        SqliteQueueStorage(second_name)
    second_name.unlink()
    SqliteQueueStorage(path).close()


_CONNECT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT count(*) FROM message").fetchone()[0])
db.close()  # the last connection to a file moves its log into it, and removes the log
"""


def test_an_attempt_by_another_name_does_not_take_the_locks_of_sqlite_from_this_process(
    path: Path, second_name: Path
) -> None:
    with SqliteQueueStorage(path) as storage:
        append(storage, 1)
        with pytest.raises(StorageLocked):
            SqliteQueueStorage(second_name)
        assert in_a_process(_CONNECT, path).stdout == "2\n"
        assert log_of(path).exists()
        append(storage, 2)
    # A look of this process goes on when the owner, in this process, has closed the file.
    owner = SqliteQueueStorage(path)
    with SqliteQueueStorage(path, read_only=True) as look:
        assert seqs(look) == [0, 1, 2]
        owner.close()
        assert seqs(look) == [0, 1, 2]
        in_a_process(_CONNECT, path)
        assert log_of(path).exists()
        assert opened_elsewhere(path) == "opened"
    SqliteQueueStorage(path).close()


def test_descriptors_of_the_file_do_not_pile_up(path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    SqliteQueueStorage(path).close()
    before = count()
    for _ in range(5):
        with SqliteQueueStorage(path) as storage, SqliteQueueStorage(path, read_only=True):
            with pytest.raises(StorageLocked):
                SqliteQueueStorage(path)
            storage.close()
            SqliteQueueStorage(path).close()
    assert count() == before


def test_a_disk_where_both_kinds_of_locks_are_one_is_locked_by_the_lock_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*arguments: Any) -> None:
        raise BlockingIOError  # as on NFS, where SQLite's locks would meet ours

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with SqliteQueueStorage(path) as storage:
        append(storage, 0)
        # The lock on the file is given up again.
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert opened_elsewhere(path) == "StorageLocked"


# -- Names in URLs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("a#1.db", "a#1.db"),
        ("a%231.db", "a#1.db"),
        ("a;b=1.db", "a;b=1.db"),
        ("a%3Fb.db", "a?b.db"),
        ("a\tb.db", "a\tb.db"),
        ("a\nb.db", "a\nb.db"),
        (" a.db ", " a.db "),
        ("50%25.db", "50%.db"),
        ("[a.db", "[a.db"),
        ("grüße.db", "grüße.db"),
        ("%fe.db", os.fsdecode(b"\xfe.db")),
    ],
)
def test_a_url_names_the_file_that_it_says(tmp_path: Path, part: str, name: str) -> None:
    with SqliteQueueStorage.from_url(f"sqlite:///{tmp_path}/{part}?durability=process") as storage:
        append(storage, 0)
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name}-lock"}
    with SqliteQueueStorage.from_url(f"sqlite:///{tmp_path}/{part}", read_only=True) as storage:
        assert seqs(storage) == [0]


def test_a_path_with_two_slashes_is_a_path(tmp_path: Path) -> None:
    with SqliteQueueStorage.from_url(f"sqlite:////{tmp_path}/queue.db"):
        assert (tmp_path / "queue.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:queue.db",
        "sqlite:/queue.db",
        "sqlite://queue.db",
        "sqlite://host/queue.db",
        "sqlite:///",
        "sqlite:///?durability=process",
        "sqlite:///a%00b.db",
        "sqlite:///a.db?durability=process#b",
        "sqlite:///a.db?durabilty=process",
    ],
)
def test_a_url_that_names_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError):
        SqliteQueueStorage.from_url(url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("length", [248, 251, 255, 256, 5000])
def test_a_name_that_is_too_long_is_refused_with_the_reason(tmp_path: Path, length: int, read_only: bool) -> None:
    with pytest.raises(StorageError, match="too long a name"):
        SqliteQueueStorage(tmp_path / ("x" * length), read_only=read_only)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_just_not_too_long_is_fine(tmp_path: Path) -> None:
    with SqliteQueueStorage(tmp_path / ("x" * 247)) as storage:
        append(storage, 0)


# -- Forks ----------------------------------------------------------------------------------------------------


class Fork:
    """A child that runs a function, and lives on until the end of the block."""

    def __init__(self, run: Callable[[], None] = lambda: None) -> None:
        self._ready, ready = os.pipe()
        end, self._end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._end)
                run()
                status = 0
            finally:
                os.write(ready, b"%d" % status)
                os.read(end, 1)
                os._exit(status)
        os.close(ready)
        os.close(end)

    def __enter__(self) -> "Fork":
        assert os.read(self._ready, 1) == b"0"
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._end)
        os.close(self._ready)
        os.waitpid(self.pid, 0)


pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Paused:
    """Opens a storage on a thread, which waits where a function of the module is called."""

    def __init__(self, path: Path, owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        function = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is self.thread:
                self.reached.set()
                assert self.go_on.wait(DEADLINE_S)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, call)
        self.storage: SqliteQueueStorage | None = None
        self.thread = threading.Thread(target=self.open, args=(path,))
        self.thread.start()
        assert self.reached.wait(DEADLINE_S)

    def open(self, path: Path) -> None:
        self.storage = SqliteQueueStorage(path)

    def result(self) -> SqliteQueueStorage:
        self.go_on.set()
        self.thread.join(DEADLINE_S)
        assert self.storage is not None
        return self.storage


@pytest.mark.parametrize(
    ("owner", "where"),
    [
        (owner_lock, "lock_file"),
        (owner_lock, "meets_locks_of_sqlite"),
        (open_file, "enter"),
        (open_file, "connect"),
        (OwnedFile, "_begin_log"),
    ],
)
def test_a_child_that_is_forked_while_a_storage_is_opened_keeps_no_lock_of_it(
    path: Path, owner: object, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = Paused(path, owner, where, monkeypatch)
    with Fork():
        storage = paused.result()
        append(storage, 0)
        # What the child has closed is still locked here.
        assert opened_elsewhere(path) == "StorageLocked"
        if where == "_begin_log":  # a kill, so that only the child could hold the lock
            for lock in list(forks.locks):
                lock.let_go()
        else:
            storage.close()
        assert opened_elsewhere(path) == "opened"


def test_a_fork_waits_until_a_descriptor_that_a_child_has_to_close_is_known(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = threading.Event()
    opened = os.open

    def open_slowly(name: Any, *arguments: Any, **options: Any) -> int:
        descriptor = opened(name, *arguments, **options)
        if str(name).endswith("-lock") and threading.current_thread() is not threading.main_thread():
            reached.set()
            # The fork can't happen here, between the descriptor and the note of it.
            assert not forked.wait(0.2)
        return descriptor

    reached = threading.Event()
    monkeypatch.setattr(os, "open", open_slowly)
    storages: list[SqliteQueueStorage] = []
    thread = threading.Thread(target=lambda: storages.append(SqliteQueueStorage(path)))
    thread.start()
    assert reached.wait(DEADLINE_S)
    with Fork():
        forked.set()
        thread.join(DEADLINE_S)
        for lock in list(forks.locks):
            lock.let_go()
        assert opened_elsewhere(path) == "opened"


CALLS: dict[str, Callable[[SqliteQueueStorage], object]] = {
    "append": lambda storage: append(storage, 100),
    "append_many": lambda storage: append(storage, 101, 102),
    "read": lambda storage: storage.read("receiver", 0, 1, 1),
    "delete_below": lambda storage: storage.delete_below("receiver", 1),
    "delete": lambda storage: storage.delete("receiver", [0]),
    "expired": lambda storage: storage.expired("receiver", 0, 0.0, 1),
    "streams": lambda storage: storage.streams(),
    "mark_sent": lambda storage: storage.mark_sent("receiver", 1),
    "renew": lambda storage: storage.renew("receiver", 2),
    "positions": lambda storage: storage.positions(),
    "store_positions": lambda storage: storage.store_positions({"sender": Position(1, 1)}),
    "database": lambda storage: storage.database,
}


def _calls_all(storage: SqliteQueueStorage) -> None:
    for call in CALLS.values():
        with pytest.raises(StorageError, match="before this process was forked"):
            call(storage)
    storage.close()
    storage.abandon()
    storage.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_forked_child_is_told_so_by_every_method_also_while_another_thread_has_the_lock(
    path: Path, read_only: bool
) -> None:
    with SqliteQueueStorage(path) as owner:
        append(owner, 0)
        with contextlib.ExitStack() as stack:
            storage = stack.enter_context(SqliteQueueStorage(path, read_only=True)) if read_only else owner
            held, go_on = threading.Event(), threading.Event()

            def hold() -> None:
                with storage._file.lock:
                    held.set()
                    go_on.wait(DEADLINE_S)

            thread = threading.Thread(target=hold)
            thread.start()
            assert held.wait(DEADLINE_S)
            try:
                with Fork(lambda: _calls_all(storage)):
                    pass
            finally:
                go_on.set()
                thread.join()
        append(owner, 1)
        assert opened_elsewhere(path) == "StorageLocked"
    with SqliteQueueStorage(path) as storage:
        assert seqs(storage) == [0, 1]


_FORK_AND_END = """
import os, sys
from tests.faults import test_sqlite_identity as here
storage = here.SqliteQueueStorage(sys.argv[1])
here.append(storage, 0)
if os.fork() == 0:
    os.read(0, 1)  # until the parent is dead
    sys.exit(0)  # and the interpreter ends in order
os.kill(os.getpid(), 9)
"""


def test_a_child_that_ends_in_order_leaves_the_file_of_its_dead_parent_alone(path: Path) -> None:
    command = [sys.executable, "-c", _FORK_AND_END, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.wait(DEADLINE_S) == -signal.SIGKILL
        before = log_of(path).read_bytes()
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.close()
        assert parent.stdout.read() == b""  # the child has ended
    assert log_of(path).read_bytes() == before
    with SqliteQueueStorage(path) as storage:
        assert seqs(storage) == [0]
