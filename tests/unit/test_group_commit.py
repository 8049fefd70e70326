"""`netcomm.runtime.group_commit`: what threads send at the same time is stored together; and failures. A real peer."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from netcomm import LifecycleError, Peer, StorageUnavailable
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.storage import Append

DEADLINE_S = 20.0


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    until = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.001)


class Gated(MemoryQueueStorage):
    """A storage that keeps who appends waiting, as long as it is told to; and fails as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.appends: list[Sequence[Append]] = []
        self.failures: list[BaseException] = []
        self.late_failure: BaseException | None = None  # raised when all is stored
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.open.set()

    def append(self, appends: Sequence[Append]) -> None:
        self.entered.release()
        assert self.open.wait(DEADLINE_S)
        self.appends.append(appends)
        if self.failures:
            raise self.failures.pop(0)
        super().append(appends)
        if self.late_failure is not None:
            raise self.late_failure

    def payloads(self) -> list[list[bytes]]:
        """What each call was to store."""
        return [[message.data for append in appends for message in append.messages] for appends in self.appends]


class Scene:
    """A peer "bob" with nobody to talk to, and threads that send."""

    def __init__(self) -> None:
        self.storage = Gated()
        self.bob = Peer("bob", True, storage=self.storage)
        self.raised: dict[bytes, BaseException | None] = {}
        self._threads: list[threading.Thread] = []

    def send(self, payload: bytes, ident: str = "niess") -> None:
        """Send on a thread of its own; returns once its message waits to be stored, or is being stored."""
        uncommitted = self.bob._runtime._commit._uncommitted  # type: ignore[union-attr]
        count = len(uncommitted)

        def run() -> None:
            try:
                self.bob.send(ident, payload)
                self.raised[payload] = None
            except BaseException as error:
                self.raised[payload] = error

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        wait_until(lambda: len(uncommitted) > count)

    def send_together(self, *payloads: bytes) -> None:
        """Let the first be stored by itself, and meanwhile the others wait."""
        self.storage.open.clear()
        self.send(payloads[0])
        assert self.storage.entered.acquire(timeout=DEADLINE_S)
        for payload in payloads[1:]:
            self.send(payload)
        self.go_on()

    def go_on(self) -> None:
        """Let the storage go on, and all threads come to their end."""
        self.storage.open.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def queued(self) -> int:
        return self.bob.stats().peers["niess"].queued


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    with made.bob:
        yield made
        made.bob.terminate(0)


def test_what_is_sent_while_others_are_stored_is_stored_together(scene: Scene) -> None:
    scene.send_together(b"0", b"1", b"2", b"3")
    assert scene.storage.payloads() == [[b"0"], [b"1", b"2", b"3"]]
    assert scene.raised == dict.fromkeys([b"0", b"1", b"2", b"3"])
    assert [message.seq for message in scene.storage.read("niess", 0, 10, 1000)] == [0, 1, 2, 3]
    assert scene.queued() == 4


def test_where_storing_fails_all_of_them_hear_of_it_and_nothing_is_queued(scene: Scene) -> None:
    error = StorageUnavailable("as the test wants")
    scene.storage.failures = [error, error]
    scene.send_together(b"0", b"1", b"2")
    assert scene.raised == dict.fromkeys([b"0", b"1", b"2"], error)
    assert scene.queued() == 0
    scene.bob.send("niess", b"3")
    assert [message.data for message in scene.storage.read("niess", 0, 10, 1000)] == [b"3"]
    assert scene.queued() == 1


def test_what_was_stored_before_the_storage_raised_is_deleted_again(scene: Scene) -> None:
    scene.storage.late_failure = StorageUnavailable("as the test wants")
    with pytest.raises(StorageUnavailable):
        scene.bob.send("niess", b"0")
    scene.storage.late_failure = None
    scene.bob.send("niess", b"1")
    wait_until(lambda: [message.data for message in scene.storage.read("niess", 0, 10, 1000)] == [b"1"])


def test_an_interruption_is_told_to_its_own_thread_alone(scene: Scene) -> None:
    interruption = KeyboardInterrupt()
    scene.storage.failures = [ValueError("as the test wants"), interruption]
    scene.send_together(b"0", b"1", b"2")
    interrupted = [payload for payload, error in scene.raised.items() if error is interruption]
    assert isinstance(scene.raised[b"0"], ValueError)
    assert len(interrupted) == 1
    (other,) = {b"1", b"2"} - set(interrupted)
    assert isinstance(scene.raised[other], StorageUnavailable)
    assert scene.queued() == 0


def test_nothing_is_stored_of_nothing(scene: Scene) -> None:
    assert list(scene.bob.send_many("niess", [])) == []
    assert scene.storage.appends == []


def test_what_is_sent_to_several_receivers_is_stored_together_each_in_its_stream(scene: Scene) -> None:
    scene.storage.open.clear()
    scene.send(b"0")
    assert scene.storage.entered.acquire(timeout=DEADLINE_S)
    scene.send(b"1")
    scene.send(b"2", "other")
    scene.go_on()
    assert sorted(append.ident for append in scene.storage.appends[1]) == ["niess", "other"]
    assert {stream.ident: stream.count for stream in scene.storage.streams()} == {"niess": 2, "other": 1}


def test_once_the_peer_has_ended_nothing_is_stored(scene: Scene) -> None:
    scene.bob.terminate(0)
    with pytest.raises(LifecycleError):
        scene.bob.send("niess", b"")
    assert scene.storage.appends == []
