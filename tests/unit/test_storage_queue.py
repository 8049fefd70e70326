"""`protocol.storage_queue`: what supersedes what, the order of the jobs, and what becomes of those that fail."""

from typing import Any

import pytest

from netcomm.errors import StorageUnavailable
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.protocol.events import Delete, DeleteBelow, Load, Mark, Renew, StorageRequest, StorePosition
from netcomm.protocol.storage_queue import Job, StorageQueue
from netcomm.storage import Append, Position, StoredMessage


def queue_of(*requests: StorageRequest) -> StorageQueue:
    queue = StorageQueue()
    for request in requests:
        queue.add(request)
    return queue


def requests_of(jobs: list[Job]) -> list[list[StorageRequest]]:
    return [job.requests for job in jobs]


def test_an_empty_queue_has_nothing_to_do() -> None:
    queue = StorageQueue()
    assert not queue
    assert queue.take(with_deletes=True) == []


def test_positions_come_first_and_in_one_job_deletions_of_what_has_arrived_last() -> None:
    queue = queue_of(
        DeleteBelow("b", 3),
        Load("b", 1, 2, 3),
        StorePosition("c", Position(1, 2)),
        Mark("b", 4),
        StorePosition("d", Position(5, 6)),
        Delete("b", [7]),
    )
    assert queue
    assert requests_of(queue.take(with_deletes=True)) == [
        [StorePosition("c", Position(1, 2)), StorePosition("d", Position(5, 6))],
        [Load("b", 1, 2, 3)],
        [Mark("b", 4)],
        [Delete("b", [7])],
        [DeleteBelow("b", 3)],
    ]
    assert not queue


def test_of_the_positions_in_one_stream_the_last_counts_and_of_the_seqs_to_delete_below_the_highest() -> None:
    queue = queue_of(
        StorePosition("c", Position(1, 2)),
        StorePosition("c", Position(1, 9)),
        DeleteBelow("b", 8),
        DeleteBelow("b", 5),
    )
    assert requests_of(queue.take(with_deletes=True)) == [[StorePosition("c", Position(1, 9))], [DeleteBelow("b", 8)]]


def test_deletions_of_what_has_arrived_may_wait() -> None:
    queue = queue_of(DeleteBelow("b", 3))
    assert queue.has_deletes
    assert queue.may_wait
    queue.add(Mark("b", 1))
    assert not queue.may_wait
    assert requests_of(queue.take(with_deletes=False)) == [[Mark("b", 1)]]
    assert queue.may_wait
    assert requests_of(queue.take(with_deletes=True)) == [[DeleteBelow("b", 3)]]
    assert not queue.has_deletes


def test_jobs_that_are_put_back_keep_their_order_and_give_way_to_what_supersedes_them() -> None:
    queue = queue_of(Mark("b", 1), StorePosition("c", Position(1, 2)), Renew("b", 7), DeleteBelow("b", 3))
    for job in queue.take(with_deletes=True):
        queue.put_back(job)
    queue.add(Mark("b", 8))
    queue.add(StorePosition("c", Position(1, 5)))
    queue.add(DeleteBelow("b", 2))
    assert requests_of(queue.take(with_deletes=True)) == [
        [StorePosition("c", Position(1, 5))],
        [Mark("b", 1)],
        [Renew("b", 7)],
        [Mark("b", 8)],
        [DeleteBelow("b", 3)],
    ]


def test_each_job_asks_the_storage_for_what_its_requests_say() -> None:
    storage = MemoryQueueStorage()
    messages = [StoredMessage(seq, bytes(16), b"%d" % seq, 0.0, None) for seq in range(6)]
    storage.append([Append("b", 1, messages)])
    queue = queue_of(
        Load("b", 1, 2, 1000),
        Mark("b", 2),
        Renew("b", 9),
        Delete("b", [5]),
        StorePosition("c", Position(1, 2)),
        StorePosition("d", Position(3, 4)),
        DeleteBelow("b", 2),
    )
    results: list[Any] = [job.carry_out(storage) for job in queue.take(with_deletes=True)]
    assert results == [None, messages[1:3], None, None, None, None]
    (stream,) = storage.streams()
    assert (stream.epoch, stream.sent_below, stream.count) == (9, 6, 3)
    assert storage.positions() == {"c": Position(1, 2), "d": Position(3, 4)}


def test_what_the_storage_raises_comes_out_of_the_job() -> None:
    class Away(MemoryQueueStorage):
        def mark_sent(self, ident: str, below: int) -> None:
            raise StorageUnavailable("away")

    (job,) = queue_of(Mark("b", 1)).take(with_deletes=True)
    with pytest.raises(StorageUnavailable):
        job.carry_out(Away())
