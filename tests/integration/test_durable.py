"""Persistent messages, end to end, over real storages: they survive what DESIGN says they survive."""

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import netcomm_sqlite.storage
from netcomm import (
    ConfigurationError,
    Delivery,
    DeliveryState,
    LifecycleError,
    Limits,
    Message,
    Peer,
    SnakemqConnector,
    SnakemqListener,
    StorageError,
    StorageLocked,
    StorageUnavailable,
    clocks,
)
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import DURABLE
from netcomm.protocol import durable_out_stream, storage_sync
from netcomm.protocol.events import Load, Mark, Received, Renew, StorePosition
from netcomm.protocol.messaging import Messaging
from netcomm.runtime import runtime, storage_worker
from netcomm.storage import Append, Position, QueueStorage, StoredMessage, StoredStream
from netcomm.storage_url import open_storage
from tests.integration.helpers import (
    DEADLINE_S,
    FAST,
    Program,
    Recorder,
    in_thread,
    leaves_nothing,
    record,
    refusing_place,
    wait_until,
)
from tests.unit.helpers import not_waited_for, receive_on

SNAKEMQ_PEER = Path(__file__).parents[1] / "interop" / "snakemq_peer.py"


# -- Helpers --------------------------------------------------------------------------------------------------


class LastingStorage(MemoryQueueStorage):
    """A storage that several peers own, one after the other."""

    def close(self) -> None:
        pass


class WrappedStorage(QueueStorage):
    """A storage that hands everything on to another, after `before(name)`, and before `after(name)`."""

    def __init__(self, inner: QueueStorage | None = None) -> None:
        self.inner = inner if inner is not None else LastingStorage()
        self.closed = threading.Event()

    def before(self, name: str) -> None:
        pass

    def after(self, name: str) -> None:
        pass

    def _pass_on(self, name: str, *args: Any) -> Any:
        self.before(name)
        result = getattr(self.inner, name)(*args)
        self.after(name)
        return result

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> "WrappedStorage":
        raise NotImplementedError

    @property
    def store_id(self) -> bytes:
        return self.inner.store_id

    @property
    def incarnation(self) -> int:
        return self.inner.incarnation

    def append(self, batch: Sequence[Append]) -> None:
        self._pass_on("append", batch)

    def read(self, ident: str, from_seq: int, max_count: int, max_bytes: int) -> list[StoredMessage]:
        return self._pass_on("read", ident, from_seq, max_count, max_bytes)

    def delete_below(self, ident: str, seq: int) -> None:
        self._pass_on("delete_below", ident, seq)

    def delete(self, ident: str, seqs: Sequence[int]) -> None:
        self._pass_on("delete", ident, seqs)

    def expired(
        self, ident: str, from_seq: int, now: float, max_count: int
    ) -> tuple[list[StoredMessage], float | None]:
        return self._pass_on("expired", ident, from_seq, now, max_count)

    def streams(self) -> list[StoredStream]:
        return self._pass_on("streams")

    def mark_sent(self, ident: str, below: int) -> None:
        self._pass_on("mark_sent", ident, below)

    def renew(self, ident: str, epoch: int) -> None:
        self._pass_on("renew", ident, epoch)

    def positions(self) -> dict[str, Position]:
        return self._pass_on("positions")

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        self._pass_on("store_positions", positions)

    def close(self) -> None:
        self.inner.close()
        self.closed.set()


class FailingStorage(WrappedStorage):
    """A storage that raises `error` while it is not None, for the methods that `failing` names (empty: for all)."""

    def __init__(self, inner: QueueStorage | None = None, *failing: str) -> None:
        super().__init__(inner)
        self.error: BaseException | None = None
        self.failing = failing
        self.failures: list[str] = []

    def before(self, name: str) -> None:
        if self.error is not None and (not self.failing or name in self.failing):
            self.failures.append(name)
            raise self.error


class HeldStorage(WrappedStorage):
    """A storage whose method `name` has done its work, and returns only when it is let go."""

    def __init__(self, name: str, inner: QueueStorage | None = None) -> None:
        super().__init__(inner)
        self.name = name
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def after(self, name: str) -> None:
        if name == self.name:
            self.reached.set()
            self.let_go.wait(DEADLINE_S)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/sender.db"


@pytest.fixture
def inbox_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/receiver.db"


@pytest.fixture
def nowhere() -> Iterator[tuple[str, int]]:
    with refusing_place() as place:
        yield place


class Receiver(SnakemqListener):
    """A listener "receiver" that records what comes."""

    def __init__(self, place: tuple[str, int] = ("127.0.0.1", 0), **options: Any) -> None:
        super().__init__("receiver", *place, **{"limits": FAST, **options})
        self.messages = Recorder()
        self.on_message.add(lambda ident, message: self.messages(message))

    def data(self) -> list[bytes]:
        return [message.data for message in list(self.messages.calls)]


def sender_to(place: Any, storage: Any, **options: Any) -> SnakemqConnector:
    return SnakemqConnector("sender", *place, True, storage=storage, **{"limits": FAST, **options})


def numbered(start: int, stop: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, stop)]


def queue(place: tuple[str, int], storage: Any, items: Sequence[bytes], **options: Any) -> None:
    """Let a process of the sender's, so to speak, store messages for a receiver that it can't reach."""
    with sender_to(place, storage) as peer:
        peer.send_many("receiver", items, **options)


def storage_errors(errors: Recorder) -> list[StorageError]:
    """Of what `on_error` was called with, what tells of a storage; a connector that can't connect is reported too."""
    return [error for error in list(errors.calls) if isinstance(error, StorageError)]


def in_storage(url: str) -> list[bytes]:
    """What waits in a storage for the receiver, read beside its owner."""
    with open_storage(url, read_only=True) as storage:
        return [message.data for message in storage.read("receiver", 0, 1_000_000, 1 << 40)]


def set_clock(monkeypatch: pytest.MonkeyPatch, offset: float) -> None:
    """Set the wall clock that netcomm sees; the one that is never set goes on as it does."""
    monkeypatch.setattr(clocks, "read", lambda: (clocks.now(), time.time() + offset))


def sleep_for(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the clocks be as they are when the machine was suspended for so long."""
    awake = clocks.now
    monkeypatch.setattr(clocks, "now", lambda: awake() + seconds)
    set_clock(monkeypatch, seconds)


def keep_little_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_out_stream, "_MAX_LOADED", 4)
    monkeypatch.setattr(durable_out_stream, "_LOAD_COUNT", 3)


# -- Restarts -------------------------------------------------------------------------------------------------


def test_messages_to_an_absent_receiver_survive_the_sender(url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer:
        deliveries = [peer.send("receiver", data) for data in numbered(0, 50)]
        deliveries += peer.send_many("receiver", numbered(50, 100))
    assert {delivery.state for delivery in deliveries} == {DeliveryState.QUEUED}
    assert not deliveries[0].wait()  # it does not end in this process any more
    assert in_storage(url) == numbered(0, 100)
    with Receiver() as receiver, sender_to(receiver.address, url) as peer:
        peer.send("receiver", b"100")
        assert peer.flush(DEADLINE_S)
        assert receiver.data() == numbered(0, 101)
        assert all(message.persistent for message in receiver.messages.calls)
    assert in_storage(url) == []


@pytest.mark.parametrize("stores", [True, False], ids=["receiver with a storage", "receiver without"])
def test_nothing_is_lost_or_doubled_when_the_receiver_is_restarted(url: str, inbox_url: str, stores: bool) -> None:
    storage = inbox_url if stores else None
    with Receiver(storage=storage) as first, sender_to(first.address, url) as peer:
        peer.send_many("receiver", numbered(0, 500))
        assert peer.flush(DEADLINE_S)
        first.terminate()
        peer.send_many("receiver", numbered(500, 1000))
        with Receiver(first.address, storage=storage) as second:
            assert peer.flush(DEADLINE_S)
            assert first.data() == numbered(0, 500)
            assert second.data() == numbered(500, 1000)
            # They were sent for the first time, after the receiver had come back.
            assert not any(message.redelivered for message in second.messages.calls[10:])


def test_both_sides_may_be_restarted_between_any_two_messages(url: str, inbox_url: str) -> None:
    received = []
    place = ("127.0.0.1", 0)
    for number in range(6):
        with Receiver(place, storage=inbox_url) as receiver, sender_to(receiver.address, url) as peer:
            place = receiver.address
            peer.send("receiver", b"%d" % number)
            assert peer.flush(DEADLINE_S)
            received += receiver.data()
    assert received == numbered(0, 6)


def test_a_message_that_was_not_handed_over_in_full_comes_again_marked(url: str, inbox_url: str) -> None:
    with Receiver(storage=inbox_url) as first, sender_to(first.address, url) as peer:
        reached, let_go = threading.Event(), threading.Event()

        def hold(ident: str, message: Message) -> None:
            if message.data == b"2":
                reached.set()
                let_go.wait(DEADLINE_S)

        first.on_message.add(hold)
        peer.send_many("receiver", numbered(0, 5))
        assert reached.wait(DEADLINE_S)
        first.terminate(0)
        let_go.set()
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith(first.name)])
        with Receiver(first.address, storage=inbox_url) as second:
            assert peer.flush(DEADLINE_S)
            again = second.data()
            assert again[-3:] == numbered(2, 5)
            assert len(again) <= 5
            assert all(message.redelivered for message in second.messages.calls)


# -- Deliveries -----------------------------------------------------------------------------------------------


def test_a_delivery_is_queued_then_sent_then_delivered(url: str, inbox_url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer:
        delivery = peer.send("receiver", b"x")
        assert delivery.state is DeliveryState.QUEUED
        assert delivery.persistent
        with Receiver(nowhere, storage=inbox_url) as receiver:
            reached, let_go = threading.Event(), threading.Event()
            receiver.on_recv.add(lambda ident, data: (reached.set(), let_go.wait(DEADLINE_S)))
            try:
                assert reached.wait(DEADLINE_S)
                assert delivery.state is DeliveryState.SENT
                assert not delivery.wait(0)
            finally:
                let_go.set()
            assert delivery.wait(DEADLINE_S)
            assert delivery.state is DeliveryState.DELIVERED
            assert delivery.data is None


def test_delivered_means_that_the_receiver_has_stored_its_position(url: str) -> None:
    storage = HeldStorage("store_positions")
    with Receiver(storage=storage) as receiver, sender_to(receiver.address, url) as peer:
        storage.name = "nothing"
        delivery = peer.send("receiver", b"x")
        assert delivery.wait(DEADLINE_S)
        storage.name = "store_positions"
        delivery = peer.send("receiver", b"y")
        try:
            assert storage.reached.wait(DEADLINE_S)
            receiver.messages.wait(2)
            assert delivery.state is DeliveryState.SENT
        finally:
            storage.let_go.set()
        assert delivery.wait(DEADLINE_S)


def test_a_delivery_that_is_in_the_storage_alone_ends_too(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_little_in_memory(monkeypatch)
    with sender_to(nowhere, url) as peer:
        deliveries = peer.send_many("receiver", numbered(0, 100))
        with Receiver(nowhere) as receiver:
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            assert receiver.data() == numbered(0, 100)


def test_what_the_receiver_cannot_take_is_rejected_and_the_rest_arrives(url: str) -> None:
    small = Limits(max_frame_bytes=4096, reconnect_min_s=0.02, reconnect_max_s=0.1)
    with Receiver(limits=small) as receiver, sender_to(receiver.address, url) as peer:
        drops = record(peer.on_drop)
        large, *rest = peer.send_many("receiver", [bytes(10_000), *numbered(0, 3)])
        assert peer.flush(DEADLINE_S)
        assert large.state is DeliveryState.REJECTED
        assert drops.wait(1) == [("receiver", large)]
        assert all(delivery.state is DeliveryState.DELIVERED for delivery in rest)
    assert in_storage(url) == []


def test_a_backlog_goes_on_behind_messages_that_are_all_rejected(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_little_in_memory(monkeypatch)
    queue(nowhere, url, [bytes(10_000)] * 20 + numbered(0, 3))
    small = Limits(max_frame_bytes=4096, reconnect_min_s=0.02, reconnect_max_s=0.1)
    with Receiver(nowhere, limits=small) as receiver, sender_to(nowhere, url) as peer:
        assert peer.flush(5), peer.stats()
        assert receiver.data() == numbered(0, 3)


def test_terminate_leaves_a_backlog_to_an_absent_receiver_at_once(url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer:
        peer.send_many("receiver", numbered(0, 10_000))
        started = time.monotonic()
        peer.terminate(20)
        assert time.monotonic() - started < 10
    assert len(in_storage(url)) == 10_000


# -- All or none ----------------------------------------------------------------------------------------------


def test_send_many_stores_all_or_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver, sender_to(receiver.address, url) as peer:
        assert peer.send("receiver", b"before").wait(DEADLINE_S)
        with monkeypatch.context() as patch:

            def fail(*args: object) -> None:
                raise sqlite3.OperationalError("disk I/O error")

            # The messages are in, and the transaction is not at its end.
            patch.setattr(netcomm_sqlite.storage, "update_stream", fail)
            with pytest.raises(StorageError):
                peer.send_many("receiver", numbered(0, 100))
        assert in_storage(url) in ([], [b"before"])
        # The numbers of the lost ones are a gap that must not be in the way of those behind it.
        peer.send_many("receiver", numbered(100, 200))
        assert peer.flush(DEADLINE_S)
        assert receiver.data() == [b"before", *numbered(100, 200)]


def test_send_many_checks_every_message_before_it_stores_one(url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer, pytest.raises(ConfigurationError):
        peer.send_many("receiver", [b"fine", "no encoding"])
    assert not Path(url.removeprefix("sqlite:///")).exists() or in_storage(url) == []


def test_a_message_whose_storing_failed_is_never_sent(url: str) -> None:
    storage = FailingStorage(None, "append")
    with Receiver() as receiver, sender_to(receiver.address, storage) as peer:
        assert peer.send("receiver", b"1").wait(DEADLINE_S)
        storage.error = StorageUnavailable("the disk is away")
        with pytest.raises(StorageUnavailable, match="the disk is away"):
            peer.send("receiver", b"2")
        storage.error = None
        assert peer.send("receiver", b"3").wait(DEADLINE_S)
        assert receiver.data() == [b"1", b"3"]
        assert peer.stats().peers["receiver"].queued == 0


def test_the_very_first_message_may_fail_to_be_stored(url: str) -> None:
    storage = FailingStorage(None, "append")
    with Receiver() as receiver, sender_to(receiver.address, storage) as peer:
        assert peer.wait_connected("receiver", DEADLINE_S)
        storage.error = StorageUnavailable("the disk is away")
        with pytest.raises(StorageUnavailable):
            peer.send("receiver", b"1")
        storage.error = None
        assert peer.send("receiver", b"2").wait(DEADLINE_S)
        assert receiver.data() == [b"2"]


# -- Time to live ---------------------------------------------------------------------------------------------


def test_the_time_to_live_goes_on_while_the_sender_is_down(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(nowhere, url, [b"short"], ttl=100)
    queue(nowhere, url, [b"long"], ttl=1000)
    queue(nowhere, url, [b"endless"], ttl=None)
    set_clock(monkeypatch, +500)
    peer = sender_to(nowhere, url)
    drops = record(peer.on_drop)
    with peer:
        ((ident, delivery),) = drops.wait(1)
        assert (ident, delivery.data, delivery.state) == ("receiver", b"short", DeliveryState.EXPIRED)
        with Receiver(nowhere) as receiver:
            assert peer.flush(DEADLINE_S)
            assert receiver.data() == [b"long", b"endless"]
            assert [message.ttl for message in receiver.messages.calls] == [pytest.approx(500, abs=20), None]
        assert len(drops) == 1


def test_a_message_never_lives_longer_than_it_was_given_though_the_clock_was_set_back(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(nowhere, url, [b"x"], ttl=1000)
    set_clock(monkeypatch, -1_000_000)
    with Receiver(nowhere) as receiver, sender_to(nowhere, url) as peer:
        assert peer.flush(DEADLINE_S)
        (message,) = receiver.messages.calls
        assert 0 < message.ttl <= 1000


def test_a_message_expires_though_the_clock_was_set_back_while_the_sender_was_down(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(nowhere, url, [b"x"], ttl=0.5)
    set_clock(monkeypatch, -1_000_000)
    peer = sender_to(nowhere, url)
    drops = record(peer.on_drop)
    with peer:
        drops.wait(1, timeout=5)


def test_a_message_that_is_in_the_storage_alone_expires_though_the_clock_was_set_back_meanwhile(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_little_in_memory(monkeypatch)
    with sender_to(nowhere, url) as peer:
        drops = record(peer.on_drop)
        peer.send_many("receiver", numbered(0, 10), ttl=0.5)
        set_clock(monkeypatch, -1_000_000)
        drops.wait(10, timeout=5)


@pytest.mark.parametrize("little", [False, True], ids=["in memory", "in the storage alone"])
def test_a_message_does_not_outlive_a_suspended_machine(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch, little: bool
) -> None:
    if little:
        keep_little_in_memory(monkeypatch)
    with sender_to(nowhere, url) as peer:
        drops = record(peer.on_drop)
        peer.send_many("receiver", numbered(0, 10), ttl=60)
        peer.send_many("receiver", numbered(10, 20), ttl=60, persistent=False)
        last = peer.send("receiver", b"last", ttl=7200)
        sleep_for(monkeypatch, 3600)
        with Receiver(nowhere) as receiver:
            assert last.wait(DEADLINE_S)
            assert receiver.data() == [b"last"]
        assert {delivery.state for _, delivery in drops.wait(20)} == {DeliveryState.EXPIRED}


def test_a_message_lives_as_long_as_it_was_given_though_the_clock_is_set_forward(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_little_in_memory(monkeypatch)
    set_clock(monkeypatch, -1_000_000_000)  # a board without a battery
    with sender_to(nowhere, url) as peer:
        drops = record(peer.on_drop)
        peer.send_many("receiver", numbered(0, 10), ttl=1000)
        brief = peer.send_many("receiver", numbered(10, 20), ttl=0.5)
        set_clock(monkeypatch, 0)  # the network is there, and the time with it
        peer.send_many("receiver", numbered(20, 30), ttl=1000)
        assert {delivery for _, delivery in drops.wait(10, timeout=5)} == set(brief)
        with Receiver(nowhere) as receiver:
            assert peer.flush(DEADLINE_S)
            assert receiver.data() == numbered(0, 10) + numbered(20, 30)
            assert {message.ttl for message in receiver.messages.calls} <= set(range(900, 1001))


def test_a_message_that_is_sent_after_the_clock_was_set_forward_is_stored_with_the_right_time(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, -1_000_000_000)
    with sender_to(nowhere, url) as peer:
        set_clock(monkeypatch, 0)
        peer.send("receiver", b"x", ttl=1000)
        peer.terminate(0)
    with sender_to(nowhere, url) as peer, Receiver(nowhere) as receiver:
        assert peer.flush(DEADLINE_S)
        assert receiver.data() == [b"x"]


def test_messages_that_are_in_the_storage_alone_expire_in_time(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_little_in_memory(monkeypatch)
    with sender_to(nowhere, url) as peer:
        drops = record(peer.on_drop)
        peer.send_many("receiver", numbered(0, 10), ttl=None)
        mortal = peer.send_many("receiver", numbered(10, 60), ttl=0.3)
        calls = drops.wait(50)
        assert sorted(delivery.seq for _, delivery in calls) == [delivery.seq for delivery in mortal]
        assert {id(delivery) for _, delivery in calls} == {id(delivery) for delivery in mortal}
        assert all(delivery.state is DeliveryState.EXPIRED for delivery in mortal)
        assert peer.stats().peers["receiver"].queued == 10
        assert peer.stats().peers["receiver"].dropped == 50
        with Receiver(nowhere) as receiver:
            assert peer.flush(DEADLINE_S)
            assert receiver.data() == numbered(0, 10)
    assert in_storage(url) == []


@pytest.mark.parametrize("persistent", [False, True])
def test_a_message_expires_in_time_while_nothing_else_happens(url: str, persistent: bool) -> None:
    with Peer("sender", storage=url) as peer:  # no connector whose attempts would wake the loop
        drops = record(peer.on_drop)
        in_thread(lambda: peer.send("receiver", b"x", ttl=0.2, persistent=persistent))()
        drops.wait(1, timeout=5)
        peer.send("receiver", b"y", ttl=0.2, persistent=persistent)
        drops.wait(2, timeout=5)


def test_a_large_backlog_expires_to_its_end_while_nothing_else_happens(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_sync, "_FIND_COUNT", 10)
    queue(nowhere, url, numbered(0, 100), ttl=100)
    set_clock(monkeypatch, +200)
    peer = Peer("sender", storage=url)
    drops = record(peer.on_drop)
    with peer:
        drops.wait(100, timeout=5)


def test_a_ttl_of_0_is_never_stored(url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer:
        drops = record(peer.on_drop)
        delivery = peer.send("receiver", b"x", ttl=0)
        assert delivery.state is DeliveryState.EXPIRED
        assert not delivery.persistent
        assert drops.wait(1) == [("receiver", delivery)]
        with Receiver(nowhere) as receiver:
            assert peer.wait_connected("receiver", DEADLINE_S)
            assert peer.send("receiver", b"y", ttl=0).wait(DEADLINE_S)
            assert [(message.data, message.persistent) for message in receiver.messages.calls] == [(b"y", False)]
    assert in_storage(url) == []


def test_what_an_earlier_process_may_have_sent_expires_once_the_receiver_says_that_it_has_not_got_it(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(nowhere, url, numbered(0, 10), ttl=100)
    queue(nowhere, url, numbered(10, 20), ttl=None)
    with open_storage(url) as storage:
        storage.mark_sent("receiver", 100)
    set_clock(monkeypatch, +200)
    peer = sender_to(nowhere, url)
    drops = record(peer.on_drop)
    with Receiver(nowhere) as receiver, peer:
        assert peer.flush(DEADLINE_S)
        assert receiver.data() == numbered(10, 20)
        assert [delivery.data for _, delivery in drops.wait(10)] == numbered(0, 10)


def test_a_message_that_has_expired_is_not_sent_by_a_load_that_was_under_way(nowhere: Any) -> None:
    storage = HeldStorage("expired")
    with sender_to(nowhere, storage) as peer:
        errors, drops = record(peer.on_error), record(peer.on_drop)
        peer.send_many("receiver", numbered(0, 10), ttl=None)
        peer.terminate()
    # In the second process everything is in the storage alone.
    queue(nowhere, storage, numbered(10, 20), ttl=0.2)
    storage.reached.clear()
    with sender_to(nowhere, storage) as peer:
        errors, drops = record(peer.on_error), record(peer.on_drop)
        try:
            assert storage.reached.wait(DEADLINE_S)  # they are found; messaging has not heard of it
            with Receiver(nowhere) as receiver:
                assert peer.wait_connected("receiver", DEADLINE_S)
                # The receiver's first answer makes it ask for the backlog.
                wait_until(lambda: peer._runtime._messaging.peers["receiver"].outbox.durables[DURABLE]._asked_for)
                storage.let_go.set()
                assert peer.flush(DEADLINE_S)
                assert [delivery.data for _, delivery in drops.wait(10)] == numbered(10, 20)
                assert receiver.data() == numbered(0, 10)
                stats = peer.stats().peers["receiver"]
                assert (stats.queued, stats.delivered, stats.dropped) == (0, 10, 10)
        finally:
            storage.let_go.set()
    assert storage_errors(errors) == []
    assert [stream.count for stream in storage.inner.streams()] == [0]


def test_a_message_sent_while_an_emptied_backlog_is_being_loaded_is_sent_once(nowhere: Any) -> None:
    storage = HeldStorage("expired")
    queue(nowhere, storage, numbered(0, 10), ttl=0.2)
    with sender_to(nowhere, storage) as peer:
        errors, drops = record(peer.on_error), record(peer.on_drop)
        try:
            assert storage.reached.wait(DEADLINE_S)
            with Receiver(nowhere) as receiver:
                assert peer.wait_connected("receiver", DEADLINE_S)
                wait_until(lambda: peer._runtime._messaging.peers["receiver"].outbox.durables[DURABLE]._asked_for)
                # Stored before the load reads, and queued behind what is about to turn out as expired.
                storage.let_go.set()
                deliveries = [peer.send("receiver", data) for data in numbered(10, 30)]
                assert peer.flush(DEADLINE_S)
                drops.wait(10)
                assert receiver.data() == numbered(10, 30)
                assert all(delivery.state is DeliveryState.DELIVERED for delivery in deliveries)
                assert peer.stats().peers["receiver"].queued == 0
        finally:
            storage.let_go.set()
    assert storage_errors(errors) == []


# -- Backlogs -------------------------------------------------------------------------------------------------


def test_a_backlog_is_read_on_piece_by_piece(url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_little_in_memory(monkeypatch)
    queue(nowhere, url, numbered(0, 500))
    with Receiver(nowhere) as receiver, sender_to(nowhere, url) as peer:
        for data in numbered(500, 700):  # behind it, while it drains
            peer.send("receiver", data)
        assert peer.flush(DEADLINE_S)
        assert receiver.data() == numbered(0, 700)


def test_a_backlog_far_above_the_receivers_position_is_sent(
    nowhere: Any, inbox_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A mark of what may be sent lies some way ahead of what was; here everything below it has expired since.
    monkeypatch.setattr(durable_out_stream, "_MARK_AHEAD", 100)
    storage = LastingStorage()
    with Receiver(nowhere) as receiver, sender_to(nowhere, storage) as peer:
        peer.send_many("receiver", numbered(0, 10))
        assert peer.flush(DEADLINE_S)
    with sender_to(nowhere, storage) as peer:
        drops = record(peer.on_drop)
        peer.send_many("receiver", numbered(10, 500), ttl=0.1)
        peer.send_many("receiver", numbered(500, 505), ttl=None)
        drops.wait(490)
    # Neither knows any more where the stream was, but for the storage.
    with Receiver(nowhere) as receiver, sender_to(nowhere, storage) as peer:
        assert peer.flush(5), peer.stats()
        assert receiver.data() == numbered(500, 505)


# -- Restored backups -----------------------------------------------------------------------------------------


def test_a_sender_restored_from_a_backup_loses_nothing_that_it_accepts_after(
    url: str, inbox_url: str, nowhere: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _run_restored(url, inbox_url, nowhere, tmp_path, caplog, offline=[])


def test_a_restored_sender_may_have_appended_before_it_connects(
    url: str, inbox_url: str, nowhere: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _run_restored(url, inbox_url, nowhere, tmp_path, caplog, offline=[], before_connecting=300)


def test_a_restored_sender_may_have_appended_and_been_restarted_before_it_connects(
    url: str, inbox_url: str, nowhere: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _run_restored(url, inbox_url, nowhere, tmp_path, caplog, offline=[b"new %d" % number for number in range(300)])


def _run_restored(
    url: str,
    inbox_url: str,
    nowhere: Any,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    offline: list[bytes],
    before_connecting: int = 0,
) -> None:
    with Receiver(nowhere, storage=inbox_url) as receiver:
        with sender_to(nowhere, url) as peer:
            peer.send_many("receiver", numbered(0, 10))
            assert peer.flush(DEADLINE_S)
        shutil.copy(folder / "sender.db", folder / "backup.db")
        with sender_to(nowhere, url) as peer:
            peer.send_many("receiver", numbered(10, 200))
            assert peer.flush(DEADLINE_S)
    shutil.copy(folder / "backup.db", folder / "sender.db")
    if offline:
        queue(nowhere, url, offline)
    expected = list(offline)
    with sender_to(nowhere, url) as peer:
        errors = record(peer.on_error)
        early = [b"early %d" % number for number in range(before_connecting)]
        peer.send_many("receiver", early)
        expected += early
        with Receiver(nowhere, storage=inbox_url) as receiver, caplog.at_level(logging.WARNING, "netcomm"):
            assert peer.wait_connected("receiver", DEADLINE_S)
            late = [b"late %d" % number for number in range(50)]
            peer.send_many("receiver", late)
            assert peer.flush(DEADLINE_S)
            assert receiver.data() == expected + late
        wait_until(lambda: storage_errors(errors), "an error that tells of it")
        (error,) = storage_errors(errors)
        assert "backup" in str(error)
        assert "backup" in caplog.text


def test_a_receiver_restored_from_a_backup_loses_nothing_that_waits(
    url: str, inbox_url: str, nowhere: Any, tmp_path: Path
) -> None:
    with sender_to(nowhere, url) as peer:
        with Receiver(nowhere, storage=inbox_url):
            peer.send_many("receiver", numbered(0, 10))
            assert peer.flush(DEADLINE_S)
        shutil.copy(tmp_path / "receiver.db", tmp_path / "backup.db")
        with Receiver(nowhere, storage=inbox_url):
            peer.send_many("receiver", numbered(10, 200))
            assert peer.flush(DEADLINE_S)
        shutil.copy(tmp_path / "backup.db", tmp_path / "receiver.db")
        errors = record(peer.on_error)
        peer.send_many("receiver", numbered(200, 300))
        with Receiver(nowhere, storage=inbox_url) as receiver:
            assert peer.flush(DEADLINE_S)
            assert receiver.data() == numbered(200, 300)
        assert storage_errors(errors) == []


def test_a_late_acknowledgement_of_the_old_epoch_does_not_count_for_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without sockets, since it takes a certain order: the receiver's callbacks end just while the sender renews."""

    def messaging_of(ident: str, **options: Any) -> Messaging:
        name = ident.encode().ljust(16)
        return Messaging(ident, Limits(), peer_id=name, boot_id=name, owner=not_waited_for, **options)

    def feed(target: Messaging, number: int, source: Messaging, source_number: int) -> None:
        source.next_events()
        receive_on(target, number, b"".join(source.output(source_number, 1 << 20, 0.0)[0]), 0.0)

    def connect(sender: Messaging, receiver: Messaging, number: int) -> None:
        sender.sessions.connection_opened(number, "there", 1, 0.0)
        receiver.sessions.connection_opened(number, "here", 0, 0.0)

    def send(sender: Messaging, count: int) -> list[Delivery]:
        deliveries = [Delivery("receiver", bytes(16), b"x", 38, None, DURABLE, not_waited_for) for _ in range(count)]
        sender.storage_sync.number("receiver", deliveries)
        sender.send_stored("receiver", deliveries, 0.0)
        return deliveries

    receiver = messaging_of("receiver", first_epoch=1, stores_positions=True)
    sender = messaging_of("sender", first_epoch=100)
    connect(sender, receiver, 1)
    send(sender, 105)
    sender.answered(Mark("receiver", 1000), None, 0.0, 0.0)
    received: list[Received] = []
    for _ in range(4):
        feed(receiver, 1, sender, 1)
        received += [event for event in receiver.next_events() if isinstance(event, Received)]
        feed(sender, 1, receiver, 1)
    assert sum(len(event.items) for event in received) == 105
    epoch = received[0].epoch
    receiver.sessions.connection_lost(1, "cut", 0.0)

    restored = messaging_of("sender", first_epoch=200)
    restored.restore([StoredStream("receiver", epoch, 5, 5, 0, 0, None, None, None)], {}, 0.0, 0.0)
    keep_little_in_memory(monkeypatch)  # the most of it is in the storage alone
    deliveries = send(restored, 200)
    restored.next_events()
    connect(restored, receiver, 2)
    renew = None
    while renew is None:
        feed(receiver, 2, restored, 2)
        receive_on(restored, 2, b"".join(receiver.output(2, 1 << 20, 0.0)[0]), 0.0)
        renew = next((event for event in restored.next_events() if isinstance(event, Renew)), None)
    # The storage has renewed the stream; the receiver has not heard of it, when its callbacks return.
    restored.answered(renew, None, 0.0, 0.0)
    for event in received:
        receiver.mark_handled(event, 0, len(event.items), 0.0)
        position = Position(epoch, event.items[-1][0] + 1)
        receiver.answered(StorePosition("sender", position), None, 0.0, 0.0)
    feed(restored, 2, receiver, 2)
    loads = [event for event in restored.next_events() if isinstance(event, Load)]
    for load in loads:
        messages = [StoredMessage(seq, bytes(16), b"x", 0.0, None) for seq in range(load.from_seq, load.from_seq + 3)]
        restored.answered(load, messages, 0.0, 0.0)
    assert {delivery.state for delivery in deliveries} == {DeliveryState.QUEUED}


def test_a_sender_with_a_new_storage_starts_anew(url: str, inbox_url: str, nowhere: Any, tmp_path: Path) -> None:
    with Receiver(nowhere, storage=inbox_url) as receiver:
        for number in range(3):
            with sender_to(nowhere, f"sqlite:///{tmp_path}/{number}.db") as peer:
                peer.send_many("receiver", numbered(0, 10))
                assert peer.flush(DEADLINE_S)
        assert receiver.data() == numbered(0, 10) * 3


# -- Threads --------------------------------------------------------------------------------------------------


def test_threads_and_callbacks_that_send_at_the_same_time_keep_their_order(
    url: str, inbox_url: str, nowhere: Any
) -> None:
    threads, count = 8, 150
    with Receiver(nowhere, storage=inbox_url, persistent=True) as receiver, sender_to(nowhere, url) as peer:
        receiver.on_recv.add(lambda ident, data: receiver.send(ident, b"echo " + data))
        echoes = Recorder()
        peer.on_recv.add(lambda ident, data: echoes(data))
        # A callback that sends persistently, on the dispatcher thread of the busy peer.
        peer.on_recv.add(lambda ident, data: peer.send("other", data))
        start = threading.Barrier(threads)

        def send(thread: int) -> None:
            start.wait(DEADLINE_S)
            for number in range(count):
                peer.send("receiver", b"%d %d" % (thread, number))

        results = [in_thread(lambda thread=thread: send(thread)) for thread in range(threads)]
        for result in results:
            result()
        assert len(echoes.wait(threads * count)) == threads * count
        received = [tuple(map(int, data.split())) for data in receiver.data()]
        assert len(received) == threads * count
        for thread in range(threads):
            assert [number for each, number in received if each == thread] == list(range(count))
        wait_until(lambda: peer.stats().peers["other"].queued == threads * count)


def test_a_callback_may_wait_for_a_persistent_delivery(url: str, inbox_url: str, nowhere: Any) -> None:
    with Receiver(nowhere, storage=inbox_url) as receiver, sender_to(nowhere, url) as peer:
        waited = Recorder()
        peer.on_recv.add(lambda ident, data: waited(peer.send(ident, b"answer").wait(DEADLINE_S)))
        assert peer.wait_connected("receiver", DEADLINE_S)
        receiver.wait_connected("sender", DEADLINE_S)
        receiver.send("sender", b"question")
        assert waited.wait(1) == [True]


def test_an_interrupted_send_tells_those_whose_messages_it_was_storing(nowhere: tuple[str, int]) -> None:
    storage = HeldStorage("append")
    failing = FailingStorage(storage, "append")
    with sender_to(nowhere, failing) as peer:
        first = in_thread(lambda: peer.send("receiver", b"first"))
        assert storage.reached.wait(DEADLINE_S)
        others = [in_thread(lambda: peer.send("receiver", b"other")) for _ in range(3)]
        wait_until(lambda: len(peer._runtime.sender._group_commit._uncommitted) == 4, "the others")
        failing.error = KeyboardInterrupt()
        storage.let_go.set()
        assert first().state is DeliveryState.QUEUED
        raised = []
        for other in others:
            with pytest.raises((KeyboardInterrupt, StorageUnavailable)) as info:
                other()
            raised.append(info.type)
        assert sorted(raised, key=str) == [KeyboardInterrupt, StorageUnavailable, StorageUnavailable]
        failing.error = None
        peer.send("receiver", b"last")
        assert peer.stats().peers["receiver"].queued == 2
    assert [message.data for message in storage.read("receiver", 0, 10, 1000)] == [b"first", b"last"]


# -- snakeMQ --------------------------------------------------------------------------------------------------


class Snake:
    """A real snakeMQ peer, "receiver", as a process of its own that listens."""

    def __init__(self, port: int = 0) -> None:
        settings = json.dumps({"ident": "receiver", "listen": ["127.0.0.1", port]})
        self.process = subprocess.Popen(
            [sys.executable, str(SNAKEMQ_PEER), settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.uuids = Recorder()
        self.blocked = threading.Event()
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        assert ready["event"] == "ready"
        self.address = tuple(ready["address"])
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "message":
                self.uuids(event["uuid"])
            elif event["event"] == "blocked":
                self.blocked.set()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"cmd": command}).encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def __enter__(self) -> "Snake":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def test_a_message_to_snakemq_stays_in_the_file_until_the_pong(url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer, Snake(nowhere[1]) as snake:
        assert peer.wait_connected("receiver", DEADLINE_S)
        snake.tell("block")
        first = peer.send("receiver", b"1")
        if not snake.blocked.wait(1):  # it came before the command: the next one is held
            assert first.wait(DEADLINE_S)
        held = peer.send("receiver", b"2")
        assert snake.blocked.wait(DEADLINE_S)
        assert b"2" in in_storage(url)
        assert held.state in (DeliveryState.SENT, DeliveryState.QUEUED)
        snake.tell("release")
        assert held.wait(DEADLINE_S)
        wait_until(lambda: in_storage(url) == [])


def test_killing_snakemq_at_any_point_loses_nothing(url: str, nowhere: Any) -> None:
    seen: set[str] = set()
    sent: list[str] = []
    with sender_to(nowhere, url) as peer:
        for kill_after in (0, 1, 7, 30):
            sent += [each.uuid.hex() for each in peer.send_many("receiver", numbered(0, 100))]
            with Snake(nowhere[1]) as snake:
                snake.uuids.wait(kill_after)
            seen |= set(snake.uuids.calls)
        with Snake(nowhere[1]) as snake:
            assert peer.flush(DEADLINE_S)
            wait_until(lambda: seen | set(snake.uuids.calls) == set(sent), "everything has arrived")
    assert in_storage(url) == []


def test_a_backlog_in_the_storage_goes_to_snakemq_after_a_restart(
    url: str, nowhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_little_in_memory(monkeypatch)
    queue(nowhere, url, numbered(0, 100))
    with Snake(nowhere[1]) as snake, sender_to(nowhere, url) as peer:
        assert peer.flush(DEADLINE_S)
        assert len(set(snake.uuids.wait(100))) == 100
    assert in_storage(url) == []


# -- With and without a storage -------------------------------------------------------------------------------


def test_a_peer_without_a_storage_talks_with_one_that_has_one(url: str, nowhere: Any) -> None:
    with Receiver(nowhere) as receiver, sender_to(nowhere, url) as peer:
        with pytest.raises(ConfigurationError, match="storage"):
            receiver.send("sender", b"x", persistent=True)
        answers = record(peer.on_recv)
        assert peer.send("receiver", b"kept").wait(DEADLINE_S)
        assert peer.send("receiver", b"not kept", persistent=False).wait(DEADLINE_S)
        assert receiver.send("sender", b"answer").wait(DEADLINE_S)
        assert [(message.data, message.persistent) for message in receiver.messages.calls] == [
            (b"kept", True),
            (b"not kept", False),
        ]
        assert answers.wait(1) == [("receiver", b"answer")]


@pytest.mark.parametrize(
    ("ident", "name"),
    [
        ("bob", "netcomm-bob.db"),
        ("a/b", "netcomm-a%2Fb.db"),
        ("../up", "netcomm-..%2Fup.db"),
        ("50%?#", "netcomm-50%25%3F%23.db"),
        ("grüße", "netcomm-gr%C3%BC%C3%9Fe.db"),
    ],
)
def test_a_persistent_peer_has_a_file_named_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ident: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with Peer(ident, True) as peer:
            peer.send("somebody", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}-lock"}
    with open_storage(f"sqlite:///{name.replace('%', '%25')}", read_only=True) as storage:
        assert len(storage.read("somebody", 0, 10, 1000)) == 2


def test_a_persistent_peer_without_an_ident_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ident"):
        Peer(None, True)


def test_a_storage_of_a_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="storage"):
        Peer("bob", storage=tmp_path / "queue.db")  # type: ignore[arg-type]


@pytest.mark.parametrize("started", [True, False])
def test_a_storage_that_was_given_is_closed_with_the_peer(started: bool) -> None:
    storage = WrappedStorage()
    peer = Peer("bob", storage=storage)
    if started:
        peer.start()
    peer.terminate()
    assert storage.closed.is_set()
    peer.terminate()


def test_a_peer_that_cannot_start_gives_its_storage_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer("bob", storage=url)

    def fail(self: object, *arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(storage_worker.StorageWorker, "start", fail)
        with pytest.raises(RuntimeError):
            peer.start()
    peer.terminate()
    open_storage(url).close()


def test_a_constructor_that_fails_behind_the_opening_gives_its_storage_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as planted:
        planted.setattr(runtime, "Node", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:
            Peer("sender", storage=url)
    Peer("sender", storage=url).terminate()
    assert caught.value.__traceback__ is not None  # it keeps the peer that was not made, and so what that holds


def test_a_peer_whose_end_fails_leaves_nothing_behind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with leaves_nothing(), monkeypatch.context() as planted:
        planted.setattr(Messaging, "discard_all", lambda messaging: 1 / 0)
        failing = Peer("sender", storage=url)
        failing.start()
        failing.terminate(1)
        assert not failing.is_alive()
    Peer("sender", storage=url).terminate()


def test_a_constructor_that_fails_gives_its_storage_up(url: str) -> None:
    with pytest.raises(OSError, match="192"):
        SnakemqListener("bob", "192.0.2.1", 0, storage=url)
    open_storage(url).close()


# -- Owners ---------------------------------------------------------------------------------------------------

_OPEN = """
import sys
from netcomm import Peer, StorageLocked
try:
    Peer("second", storage=sys.argv[1])
except StorageLocked as error:
    print("locked", error)
"""


def test_a_storage_has_one_owner_at_a_time(url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer:
        peer.send("receiver", b"x")
        with pytest.raises(StorageLocked, match=r"sender\.db"):
            Peer("second", storage=url)
        with Program(_OPEN, url) as program:
            assert program.line().startswith("locked ")
            assert program.wait() == 0
        assert in_storage(url) == [b"x"]  # looking is allowed
        peer.send("receiver", b"y")
        assert in_storage(url) == [b"x", b"y"]
    Peer("second", storage=url).terminate()


def test_a_forked_child_leaves_the_storage_to_its_parent(url: str, nowhere: Any) -> None:
    with sender_to(nowhere, url) as peer:
        peer.send("receiver", b"1")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with contextlib.suppress(LifecycleError):
                    peer.send("receiver", b"from the child")
                    os._exit(2)
                peer.terminate()
                # The parent owns the file still.
                with contextlib.suppress(StorageLocked):
                    Peer("second", storage=url)
                    os._exit(3)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        peer.send("receiver", b"2")
        with pytest.raises(StorageLocked):
            Peer("second", storage=url)
        with Receiver(nowhere) as receiver:
            assert peer.flush(DEADLINE_S)
            assert receiver.data() == [b"1", b"2"]


_FORK = """
import os, sys
from netcomm import Peer
peer = Peer("sender", storage=sys.argv[1])
peer.start()
peer.send("receiver", b"1", persistent=True)
child = os.fork()
if child == 0:
    sys.exit(0)  # with everything that an interpreter does at its end
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
peer.send("receiver", b"2", persistent=True)
peer.terminate()
print("done")
"""


def test_a_forked_child_that_ends_in_the_usual_way_does_no_harm(url: str) -> None:
    with Program(_FORK, url) as program:
        assert program.line() == "0"
        assert program.line() == "done"
        assert program.wait() == 0
        assert "Error" not in program.errors
    assert in_storage(url) == [b"1", b"2"]


# -- A storage that fails for a while -------------------------------------------------------------------------


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_worker, "_RETRY_MIN_S", 0.005)
    monkeypatch.setattr(storage_worker, "_RETRY_MAX_S", 0.02)


def test_a_sender_outlives_a_storage_that_fails_for_a_while(url: str, nowhere: Any, quick_retries: None) -> None:
    storage = FailingStorage(open_storage(url))
    with Receiver(nowhere) as receiver, sender_to(nowhere, storage) as peer:
        errors = record(peer.on_error)
        assert peer.send("receiver", b"0").wait(DEADLINE_S)
        storage.failing = ("delete_below",)
        storage.error = StorageUnavailable("away")
        assert peer.send("receiver", b"1").wait(DEADLINE_S)
        wait_until(lambda: storage.failures.count("delete_below") >= 5)
        storage.failing = ()
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                peer.send("receiver", b"never accepted")
        wait_until(lambda: storage.failures.count("delete_below") >= 10)
        assert b"1" in in_storage(url)
        storage.error = None
        wait_until(lambda: in_storage(url) == [])
        assert peer.send("receiver", b"2").wait(DEADLINE_S)
        assert receiver.data() == [b"0", b"1", b"2"]
        assert [str(error) for error in errors.calls] == ["away"]


def test_on_error_of_a_failing_storage_runs_where_all_callbacks_do_and_may_wait(
    url: str, nowhere: Any, quick_retries: None
) -> None:
    storage = FailingStorage(open_storage(url), "delete_below")
    with Receiver(nowhere), sender_to(nowhere, storage) as peer:
        outcome: list[Any] = []

        @peer.on_error.add
        def wait_for_what_the_storage_brings_about(error: BaseException) -> None:
            storage.error = None
            outcome.append((threading.current_thread().name, peer.send("receiver", b"2").wait(DEADLINE_S)))

        drops = record(peer.on_error)
        storage.error = StorageUnavailable("away")
        assert peer.send("receiver", b"1").wait(DEADLINE_S)
        drops.wait(1)
        assert outcome == [("netcomm-sender-dispatcher", True)]


def test_on_error_of_a_failing_storage_may_terminate(url: str, nowhere: Any, quick_retries: None) -> None:
    storage = FailingStorage(open_storage(url), "delete_below")
    with Receiver(nowhere):
        peer = sender_to(nowhere, storage)
        peer.on_error.add(lambda error: peer.terminate(1))
        after = record(peer.on_error)
        peer.start()
        storage.error = StorageUnavailable("away")
        assert peer.send("receiver", b"1").wait(DEADLINE_S)
        peer.join(DEADLINE_S)
        assert not peer.is_alive()
        assert [str(error) for error in after.wait(1)] == ["away"]  # and no RuntimeError of a thread that joins itself
        storage.error = None
        peer.terminate()


def test_a_backlog_waits_for_a_storage_that_fails_for_a_while(url: str, nowhere: Any, quick_retries: None) -> None:
    queue(nowhere, url, numbered(0, 100))
    storage = FailingStorage(open_storage(url), "read", "mark_sent")
    with sender_to(nowhere, storage) as peer:
        errors = record(peer.on_error)
        storage.error = StorageUnavailable("away")
        with Receiver(nowhere) as receiver:
            wait_until(lambda: storage.failures.count("read") >= 5)
            assert receiver.data() == []
            storage.error = None
            assert peer.flush(DEADLINE_S)
            assert receiver.data() == numbered(0, 100)
        assert [str(error) for error in storage_errors(errors)] == ["away"]


def test_a_receiver_acknowledges_only_when_its_storage_works_again(url: str, nowhere: Any, quick_retries: None) -> None:
    storage = FailingStorage(None, "store_positions")
    with Receiver(nowhere, storage=storage) as receiver, sender_to(nowhere, url) as peer:
        errors = record(receiver.on_error)
        storage.error = StorageUnavailable("away")
        deliveries = peer.send_many("receiver", numbered(0, 10))
        receiver.messages.wait(10)
        wait_until(lambda: storage.failures.count("store_positions") >= 5)
        assert not any(delivery.done for delivery in deliveries)
        assert len(in_storage(url)) == 10
        storage.error = None
        assert peer.flush(DEADLINE_S)
        assert receiver.data() == numbered(0, 10)
        assert [str(error) for error in errors.calls] == ["away"]


def test_a_plugin_that_raises_an_error_of_its_own_does_not_end_the_background_work(
    url: str, nowhere: Any, quick_retries: None
) -> None:
    storage = FailingStorage(None, "store_positions")
    with Receiver(nowhere, storage=storage) as receiver, sender_to(nowhere, url) as peer:
        errors = record(receiver.on_error)
        storage.error = RuntimeError("a defect of the plug-in")
        delivery = peer.send("receiver", b"x")
        errors.wait(1, timeout=5)
        storage.error = None
        assert delivery.wait(5)


def test_terminate_is_bounded_while_the_storage_fails(url: str, nowhere: Any) -> None:
    storage = FailingStorage(None, "store_positions", "mark_sent", "delete_below")
    with Receiver(nowhere, storage=storage) as receiver, sender_to(nowhere, url) as peer:
        storage.error = StorageUnavailable("away")
        peer.send_many("receiver", numbered(0, 10))
        receiver.messages.wait(10)
        started = time.monotonic()
        receiver.terminate(1)
        assert time.monotonic() - started < 4
        assert storage.closed.wait(DEADLINE_S)
        # Not acknowledged, so not lost: they come again to the next process.
        with Receiver(nowhere) as second:
            assert peer.flush(DEADLINE_S)
            assert second.data() == numbered(0, 10)
