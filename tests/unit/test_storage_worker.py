"""`netcomm.runtime.storage_worker`: what is merged, what is tried again, in which order, and how it ends."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from netcomm.errors import StorageError, StorageUnavailable
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.protocol.events import Delete, DeleteBelow, FindExpired, Load, Mark, Renew, StorageRequest, StorePosition
from netcomm.runtime import storage_worker
from netcomm.runtime.storage_worker import StorageWorker
from netcomm.storage import Append, Position, StoredMessage

DEADLINE_S = 20.0
NOW = 5000.0


class FailingStorage(MemoryQueueStorage):
    """A storage that notes its calls, fails as often as it is told to, and can be made to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, list[Exception]] = {}
        self.open = threading.Event()  # while it is not set, calls wait
        self.open.set()
        self.entered = threading.Semaphore(0)

    def _note(self, name: str, *args: Any) -> None:
        self.entered.release()
        assert self.open.wait(DEADLINE_S)
        self.calls.append((name, *args))
        if failures := self.failures.get(name):
            raise failures.pop(0)

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def read(self, ident: str, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        self._note("read", ident, from_seq, max_count, max_bytes)
        return super().read(ident, from_seq, max_count, max_bytes)

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        self._note("expired", ident, from_seq, now, max_count)
        return super().expired(ident, from_seq, now, max_count)

    def mark_sent(self, ident: str, below: int) -> None:
        self._note("mark_sent", ident, below)
        super().mark_sent(ident, below)

    def renew(self, ident: str, epoch: int) -> None:
        self._note("renew", ident, epoch)
        super().renew(ident, epoch)

    def delete(self, ident: str, seqs: Sequence[int]) -> None:
        self._note("delete", ident, list(seqs))
        super().delete(ident, seqs)

    def delete_below(self, ident: str, seq: int) -> None:
        self._note("delete_below", ident, seq)
        super().delete_below(ident, seq)

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        self._note("store_positions", dict(positions))
        super().store_positions(positions)

    def close(self) -> None:
        self._note("close")


class Watched:
    """A storage worker, and what it has answered and reported."""

    def __init__(self) -> None:
        self.storage = FailingStorage()
        self.storage.append([Append("b", 99, [message(seq, ttl=seq or None) for seq in range(4)])])
        self._changed = threading.Condition()
        self.answers: list[tuple[StorageRequest, Any]] = []
        self.reports: list[Exception] = []
        self.threads: set[threading.Thread] = set()
        self.worker = StorageWorker("test-worker", self.storage)

    def start(self) -> None:
        self.worker.start(self._answer, self._report)

    def _answer(self, request: StorageRequest, result: Any) -> None:
        with self._changed:
            self.threads.add(threading.current_thread())
            self.answers.append((request, result))
            self._changed.notify_all()

    def _report(self, error: Exception) -> None:
        with self._changed:
            self.reports.append(error)
            self._changed.notify_all()

    def wait(self, true: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(true, DEADLINE_S), (self.answers, self.storage.calls)

    def answered(self, count: int) -> list[tuple[StorageRequest, Any]]:
        self.wait(lambda: len(self.answers) >= count)
        return self.answers

    def put_together(self, *requests: StorageRequest) -> None:
        """Queue requests so that the worker finds all of them at once."""
        self.storage.open.clear()
        self.worker.put(Mark("b", 0))
        assert self.storage.entered.acquire(timeout=DEADLINE_S)
        for request in requests:
            self.worker.put(request)
        self.storage.open.set()

    def end(self) -> None:
        self.worker.stop()
        self.worker.join(DEADLINE_S)
        assert self.storage.names()[-1] == "close"
        assert self.storage.names().count("close") == 1


def message(seq: int, ttl: float | None = None) -> StoredMessage:
    return StoredMessage(seq, bytes(16), b"%d" % seq, NOW - 2, ttl)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_worker, "_RETRY_MIN_S", 0.002)
    monkeypatch.setattr(storage_worker, "_RETRY_MAX_S", 0.02)
    monkeypatch.setattr(storage_worker, "_DELETE_DELAY_S", 0.01)


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    made.start()
    yield made
    made.storage.open.set()
    made.worker.stop()
    made.worker.join(DEADLINE_S)


# -- Carrying out -------------------------------------------------------------------------------------------------


def test_each_request_is_carried_out_and_answered_with_its_result(watched: Watched) -> None:
    storage = watched.storage
    requests: list[StorageRequest] = [
        Load("b", 1, 2, 1000),
        FindExpired("b", 1, NOW, 3),
        Mark("b", 50),
        Renew("b", 7),
        Delete("b", [3]),
        StorePosition("c", Position(5, 6)),
    ]
    for count, request in enumerate(requests, 1):
        watched.worker.put(request)
        watched.answered(count)
    assert watched.answers == [
        (requests[0], [message(1, 1), message(2, 2)]),
        (requests[1], ([message(1, 1), message(2, 2)], NOW + 1)),
        *((request, None) for request in requests[2:]),
    ]
    (stream,) = storage.streams()
    assert (stream.sent_below, stream.epoch, stream.count) == (stream.next_seq, 7, 3)  # renewing comes last
    assert storage.positions() == {"c": Position(5, 6)}
    assert storage.calls[1] == ("expired", "b", 1, NOW, 3)
    assert {thread.name for thread in watched.threads} == {"test-worker"}
    assert watched.reports == []


def test_nothing_is_carried_out_before_it_is_started() -> None:
    made = Watched()
    made.worker.put(Mark("b", 1))
    assert made.storage.calls == []
    made.start()
    made.answered(1)
    made.end()


def test_requests_of_one_kind_keep_their_order(watched: Watched) -> None:
    requests: list[StorageRequest] = [Mark("b", seq) for seq in range(1, 50)]
    for request in requests:
        watched.worker.put(request)
    assert [request for request, _ in watched.answered(len(requests))] == requests


def test_positions_go_before_what_else_there_is(watched: Watched) -> None:
    watched.put_together(Load("b", 0, 1, 1), StorePosition("c", Position(1, 2)), Mark("b", 3))
    watched.answered(4)
    assert watched.storage.names() == ["mark_sent", "store_positions", "read", "mark_sent"]


# -- Merging ------------------------------------------------------------------------------------------------------


def test_positions_of_one_sender_are_merged_to_the_last_and_those_of_all_stored_at_once(watched: Watched) -> None:
    watched.put_together(
        *(StorePosition("c", Position(1, seq)) for seq in range(100)),
        StorePosition("d", Position(2, 7)),
        StorePosition("c", Position(1, 100)),
    )
    answers = watched.answered(3)
    assert watched.storage.calls[1:] == [("store_positions", {"c": Position(1, 100), "d": Position(2, 7)})]
    assert [request for request, _ in answers[1:]] == [
        StorePosition("c", Position(1, 100)),
        StorePosition("d", Position(2, 7)),
    ]


def test_a_position_that_comes_while_the_one_before_is_stored_is_stored_too(watched: Watched) -> None:
    watched.storage.open.clear()
    watched.worker.put(StorePosition("c", Position(1, 1)))
    assert watched.storage.entered.acquire(timeout=DEADLINE_S)
    watched.worker.put(StorePosition("c", Position(1, 2)))
    watched.storage.open.set()
    assert [request.position.next_seq for request, _ in watched.answered(2)] == [1, 2]  # type: ignore[union-attr]
    assert watched.storage.positions() == {"c": Position(1, 2)}


def test_deletions_of_what_has_arrived_are_merged_and_never_go_back(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_worker, "_DELETE_DELAY_S", 3600)
    for seq in (1, 3, 2):
        watched.worker.put(DeleteBelow("b", seq))
    watched.worker.put(DeleteBelow("c", 9))
    watched.worker.put(Mark("b", 1))
    watched.answered(1)
    assert watched.storage.names() == ["mark_sent"]  # that is all for now
    watched.end()
    assert watched.storage.calls[1:3] == [("delete_below", "b", 3), ("delete_below", "c", 9)]
    assert watched.storage.streams()[0].count == 1


def test_what_has_arrived_is_deleted_a_little_later_by_itself(watched: Watched) -> None:
    watched.worker.put(DeleteBelow("b", 2))
    assert watched.storage.entered.acquire(timeout=DEADLINE_S)
    watched.end()
    assert watched.storage.names() == ["delete_below", "close"]


# -- Failing ------------------------------------------------------------------------------------------------------

REQUESTS: dict[str, StorageRequest] = {
    "read": Load("b", 0, 1, 1),
    "expired": FindExpired("b", 0, NOW, 1000),
    "mark_sent": Mark("b", 5),
    "renew": Renew("b", 5),
    "delete": Delete("b", [1]),
    "store_positions": StorePosition("c", Position(1, 2)),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("kind", [StorageUnavailable, StorageError, RuntimeError])
def test_what_fails_is_tried_again_until_it_succeeds_and_reported_once(
    watched: Watched, name: str, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    errors = [kind(str(number)) for number in range(5)]
    watched.storage.failures[name] = list(errors)
    watched.worker.put(REQUESTS[name])
    ((request, _),) = watched.answered(1)
    assert request == REQUESTS[name]
    assert watched.storage.names() == [name] * 6
    assert watched.reports == errors[:1]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def test_deleting_what_has_arrived_is_tried_again_too(watched: Watched) -> None:
    watched.storage.failures["delete_below"] = [StorageUnavailable("x")] * 3
    watched.worker.put(DeleteBelow("b", 2))
    for _ in range(4):
        assert watched.storage.entered.acquire(timeout=DEADLINE_S)
    watched.end()
    assert watched.storage.names() == ["delete_below"] * 4 + ["close"]
    assert watched.storage.streams()[0].count == 2
    assert len(watched.reports) == 1


def test_what_succeeds_is_not_held_up_by_what_fails(watched: Watched) -> None:
    watched.storage.failures["read"] = [StorageError("x")] * 3
    watched.put_together(Load("b", 0, 1, 1), Mark("b", 5), Delete("b", [0]))
    answers = watched.answered(4)
    assert [type(request) for request, _ in answers] == [Mark, Mark, Delete, Load]
    assert watched.storage.names().count("mark_sent") == 2
    assert watched.storage.names().count("delete") == 1


def test_what_fails_together_is_tried_again_in_its_order(watched: Watched) -> None:
    requests: list[StorageRequest] = [Load("b", 0, 1, 1), Renew("b", 5), Load("b", 1, 1, 1), Delete("b", [1])]
    watched.storage.failures["read"] = [StorageError("x")] * 4
    watched.storage.failures["renew"] = [StorageError("x")] * 2
    watched.storage.failures["delete"] = [StorageError("x")] * 2
    watched.put_together(*requests)
    assert [request for request, _ in watched.answered(5)[1:]] == requests
    assert watched.storage.names()[1:] == ["read", "renew", "read", "delete"] * 3


def test_a_position_that_could_not_be_stored_is_replaced_by_a_later_one(watched: Watched) -> None:
    watched.storage.failures["store_positions"] = [StorageUnavailable("x")] * 2
    watched.storage.open.clear()
    watched.worker.put(StorePosition("c", Position(1, 1)))
    assert watched.storage.entered.acquire(timeout=DEADLINE_S)
    watched.worker.put(StorePosition("c", Position(1, 2)))
    watched.storage.open.set()
    assert watched.answered(1) == [(StorePosition("c", Position(1, 2)), None)]


def test_a_storage_that_fails_is_asked_again_after_pauses_that_double(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    get = watched.worker._requests.get

    class Requests:
        """Notes for how long the worker waits while requests that failed are left."""

        def get(self, timeout: float | None) -> StorageRequest | None:
            if timeout is not None:
                pauses.append(timeout)
            return get(timeout=timeout)

        get_nowait, put = watched.worker._requests.get_nowait, watched.worker._requests.put

    monkeypatch.setattr(watched.worker, "_requests", Requests())
    watched.storage.failures["mark_sent"] = [StorageUnavailable("x")] * 6
    watched.worker._requests.put(Mark("b", 1))
    watched.answered(1)
    assert pauses == [0.002, 0.004, 0.008, 0.016, 0.02, 0.02]


def test_after_a_success_a_failure_is_news_again(watched: Watched) -> None:
    watched.storage.failures["mark_sent"] = [StorageError("first")] * 2
    watched.worker.put(Mark("b", 1))
    watched.answered(1)
    # The success is noted behind the answer, but before the next request is looked at by itself.
    watched.worker.put(Load("b", 0, 1, 1))
    watched.answered(2)
    watched.storage.failures["renew"] = [StorageError("second")] * 2
    watched.worker.put(Renew("b", 1))
    watched.answered(3)
    assert [str(error) for error in watched.reports] == ["first", "second"]


# -- Ending -------------------------------------------------------------------------------------------------------


def test_what_was_put_before_the_end_is_done_before_the_storage_is_closed() -> None:
    made = Watched()
    made.start()
    made.storage.open.clear()
    made.worker.put(Mark("b", 1))
    made.worker.put(StorePosition("c", Position(1, 2)))
    made.worker.put(DeleteBelow("b", 3))
    made.worker.put(Delete("b", [3]))
    made.worker.stop()
    made.storage.open.set()
    made.worker.join(DEADLINE_S)
    assert sorted(made.storage.names()[:-1]) == ["delete", "delete_below", "mark_sent", "store_positions"]
    assert made.storage.names()[-1] == "close"
    assert made.storage.streams()[0].count == 0


def test_a_storage_that_goes_on_failing_does_not_keep_it_from_ending() -> None:
    made = Watched()
    for name in REQUESTS:
        made.storage.failures[name] = [StorageUnavailable("x")] * 1000
    made.start()
    for request in REQUESTS.values():
        made.worker.put(request)
    made.wait(lambda: bool(made.reports))
    made.end()
    assert made.answers == []


def test_a_storage_that_can_not_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = Watched()
    made.storage.failures["close"] = [StorageError("as the test wants")]
    made.start()
    made.end()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "as the test wants" in caplog.text


def test_one_that_was_never_started_closes_its_storage_all_the_same() -> None:
    made = Watched()
    made.end()
    assert made.storage.names() == ["close"]


def test_one_whose_start_is_interrupted_closes_its_storage_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_and_interrupt(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    made = Watched()
    with monkeypatch.context() as planted:
        planted.setattr(threading.Thread, "start", start_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.start()
    made.end()
    assert made.storage.names() == ["close"]
    assert not made.worker._thread.is_alive()  # type: ignore[union-attr]
