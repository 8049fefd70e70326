"""`peer.attach`, over real sockets: streams of an extension go on whatever callbacks do."""

import itertools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

import pytest

from netcomm import ConfigurationError, LifecycleError, Limits, MessageTooLarge
from netcomm.host_storage import HostPosition, HostRow, HostStep, HostStorage
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import Delivery, DeliveryState, Stream
from netcomm.peer import attach
from netcomm.protocol import envelope
from netcomm.protocol.envelope import Envelope
from netcomm.protocol.events import Received
from netcomm.protocol.extension import Extension, NodePort
from netcomm.protocol.frames import MAX_BULK_BYTES
from netcomm.runtime.attachment import Attachment
from netcomm.storage import QueueStorage
from netcomm_sqlite import SqliteQueueStorage
from tests.integration import helpers
from tests.integration.helpers import DEADLINE_S, SnakemqConnector

SMALL = Limits(window_bytes=10_000)


class Take(Extension):
    """Lets the test have what comes in its streams, on the thread that dispatches, or where it comes."""

    streams = (Stream.BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)

    def __init__(self, on_dispatcher: bool = False) -> None:
        self.got: SimpleQueue[tuple[Received, int]] = SimpleQueue()
        self._on_dispatcher = on_dispatcher

    def attached(self, node: NodePort, now: float) -> None:
        self._node = node

    def receive(self, received: Received, now: float) -> None:
        if self._on_dispatcher:
            self._node.messaging.call_soon(self._put, received)
        else:
            self._put(received)

    def _put(self, received: Received) -> None:
        self.got.put((received, threading.get_ident()))


class Pair(helpers.Pair):
    """A listener "niess" that takes streams, and a connector "bob" that sends in them."""

    def __init__(self, take: Take, limits: Limits | None = None, storage: QueueStorage | None = None) -> None:
        """storage: bob's."""
        self.niess = helpers.SnakemqListener("niess", "127.0.0.1", 0, limits=limits)
        self.bob = SnakemqConnector("bob", *self.niess.address, storage=storage)
        self.take = take
        self.hold = attach(self.niess, take)
        self.source = attach(self.bob, Take())


def test_a_callback_that_takes_its_time_holds_up_no_other_stream() -> None:
    may_return = threading.Event()
    with Pair(Take(), SMALL) as pair:
        pair.niess.on_recv.add(lambda ident, data: may_return.wait(DEADLINE_S))
        held = pair.bob.send_many("niess", [bytes(1000)] * 100)  # ten windows
        for number in range(50):
            (delivery,) = pair.source.send("niess", Stream.BUS_VOLATILE, [b"%d" % number])
            received, _ = pair.take.got.get(timeout=DEADLINE_S)
            assert received.payloads == [b"%d" % number]
            assert not delivery.done
            pair.hold.handled(received, 1)
            assert delivery.wait(DEADLINE_S)
        assert not held[0].done
        may_return.set()
        assert pair.bob.flush(DEADLINE_S)


def test_a_stream_that_is_held_back_holds_up_no_callback() -> None:
    with Pair(Take(), SMALL) as pair:
        pair.niess.on_recv.add(lambda ident, data: None)
        held = pair.source.send("niess", Stream.BULK, [bytes(1000)] * 100)
        deliveries = pair.bob.send_many("niess", [bytes(1000)] * 100)
        assert deliveries[-1].wait(DEADLINE_S)
        count = sum(delivery.state is DeliveryState.SENT for delivery in held)
        assert 0 < count <= 10
        pair.bob.terminate(0)


def test_what_is_called_soon_runs_where_callbacks_run() -> None:
    threads: SimpleQueue[int] = SimpleQueue()
    with Pair(Take(on_dispatcher=True)) as pair:
        pair.niess.on_recv.add(lambda ident, data: threads.put(threading.get_ident()))
        pair.bob.send("niess", b"x")
        pair.source.send("niess", Stream.BUS_VOLATILE, [b"y"])
        received, thread = pair.take.got.get(timeout=DEADLINE_S)
        assert thread == threads.get(timeout=DEADLINE_S)
        pair.hold.handled(received, 1)
        assert pair.bob.flush(DEADLINE_S)


@pytest.mark.requirement("P-87", "negative")
def test_a_piece_that_is_too_large_is_refused_where_it_is_sent() -> None:
    with Pair(Take()) as pair:
        with pytest.raises(MessageTooLarge, match="BULK"):
            pair.source.send("niess", Stream.BULK, [b"", bytes(MAX_BULK_BYTES + 1)])
        pair.source.send("niess", Stream.BULK, [bytes(MAX_BULK_BYTES)])
        received, _ = pair.take.got.get(timeout=DEADLINE_S)
        assert [len(payload) for payload in received.payloads] == [MAX_BULK_BYTES]
        pair.hold.handled(received, 1)


def test_a_durable_stream_needs_a_storage_and_a_stream_takes_one_extension() -> None:
    with Pair(Take()) as pair:
        with pytest.raises(ConfigurationError, match="storage"):
            pair.source.send("niess", Stream.BUS_DURABLE, [b"x"])
        with pytest.raises(ConfigurationError, match="BULK"):
            attach(pair.niess, Take())


@pytest.mark.parametrize("is_taken", [False, True])
def test_terminate_waits_for_messages_that_an_extension_has_and_for_no_others(is_taken: bool) -> None:
    class Nothing(Take):
        streams = ()

    take = Take() if is_taken else Nothing()
    with Pair(take) as pair:
        pair.source.send("niess", Stream.BUS_VOLATILE, [b"x"])
        helpers.wait_until(lambda: any(peer.received for peer in pair.niess.stats().peers.values()), "the message")
        ended = threading.Event()
        thread = threading.Thread(target=lambda: (pair.niess.terminate(DEADLINE_S), ended.set()))
        thread.start()
        if is_taken:
            assert not ended.wait(0.3)
            received, _ = take.got.get(timeout=DEADLINE_S)
            pair.hold.handled(received, 1)
        assert ended.wait(DEADLINE_S / 2)
        thread.join()


@pytest.mark.parametrize("stream", [Stream.BUS_VOLATILE, Stream.BUS_DURABLE])
def test_the_ids_in_the_envelopes_of_what_is_sent_together_count_up(stream: Stream) -> None:
    with Pair(Take(), storage=MemoryQueueStorage()) as pair:
        pair.source.send("niess", stream, [b"a", b"b", b"c"], envelope=envelope.encode(Envelope(id=7)))
        ids: list[int | None] = []
        while len(ids) < 3:
            received, _ = pair.take.got.get(timeout=DEADLINE_S)
            ids += [None if its is None else its.id for *_, its in received.items]
            pair.hold.handled(received, len(received.items))
        assert ids == [7, 8, 9]


def test_a_count_of_more_messages_than_there_are_is_refused() -> None:
    with Pair(Take()) as pair:
        deliveries = pair.source.send("niess", Stream.BUS_VOLATILE, [b"x"])
        received, _ = pair.take.got.get(timeout=DEADLINE_S)
        with pytest.raises(ConfigurationError, match="2 messages"):
            pair.hold.handled(received, 2)
        assert not deliveries[0].done
        pair.hold.handled(received, 1)
        assert deliveries[0].wait(DEADLINE_S)


def interrupted_at(number: int, action: Callable[[], object], handler: Callable[[], object] = bool) -> bool:
    """Let a call be interrupted where the library's function of this number begins; returns whether it was.

    handler: what a signal's handler does before it raises.
    """
    calls = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        is_call = event == "call" and frame.f_globals["__name__"].startswith("netcomm.")
        calls += is_call
        if is_call and calls == number:
            sys.setprofile(None)
            handler()
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_handled_may_be_interrupted_anywhere_and_is_called_again() -> None:
    with Pair(Take()) as pair:
        for number in itertools.count(1):
            (delivery,) = pair.source.send("niess", Stream.BUS_VOLATILE, [b"x"])
            received, _ = pair.take.got.get(timeout=DEADLINE_S)
            was_interrupted = interrupted_at(number, lambda: pair.hold.handled(received, 1))  # noqa: B023
            pair.hold.handled(received, 1)
            assert delivery.wait(DEADLINE_S)
            if not was_interrupted:
                break
        assert number > 2


def test_discard_that_was_interrupted_ends_no_message_that_is_sent_later() -> None:
    with Pair(Take()) as pair:
        deliveries: list[Delivery] = []
        for number in itertools.count(1):
            was_interrupted = interrupted_at(
                number,
                lambda: pair.bob.discard("niess"),
                lambda: deliveries.append(pair.bob.send("niess", b"x")),
            )
            deliveries.append(pair.bob.send("niess", b"x"))
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            if not was_interrupted:
                break
        assert number > 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_acknowledges_nothing() -> None:
    with Pair(Take()) as pair:
        (delivery,) = pair.source.send("niess", Stream.BUS_VOLATILE, [b"x"])
        received, _ = pair.take.got.get(timeout=DEADLINE_S)
        child = os.fork()
        if not child:
            try:
                pair.hold.handled(received, 1)
            except LifecycleError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        pair.hold.handled(received, 1)
        assert delivery.wait(DEADLINE_S)


# -- add_done_callback --------------------------------------------------------------------------------------------


def test_a_done_callback_runs_where_callbacks_run_once_and_after_the_end() -> None:
    told: SimpleQueue[tuple[object, DeliveryState, int]] = SimpleQueue()
    with Pair(Take()) as pair:
        threads: SimpleQueue[int] = SimpleQueue()
        pair.bob.on_recv.add(lambda ident, data: threads.put(threading.get_ident()))
        pair.niess.on_recv.add(lambda ident, data: pair.niess.send(ident, data))
        deliveries = pair.bob.send_many("niess", [b"%d" % number for number in range(5)])
        for delivery in deliveries:
            delivery.add_done_callback(
                lambda delivery: told.put((delivery, delivery.state, threading.get_ident()))  # type: ignore[misc]
            )
        found = [told.get(timeout=DEADLINE_S) for _ in deliveries]
        assert {delivery for delivery, _, _ in found} == set(deliveries)
        assert {state for _, state, _ in found} == {DeliveryState.DELIVERED}
        late = [thread for _, _, thread in found if thread != threading.get_ident()]
        assert set(late) <= {threads.get(timeout=DEADLINE_S)}


def test_a_done_callback_of_a_message_that_has_ended_is_called_at_once() -> None:
    told: list[object] = []
    with Pair(Take()) as pair:
        pair.niess.on_recv.add(lambda ident, data: None)
        delivery = pair.bob.send("niess", b"x")
        assert delivery.wait(DEADLINE_S)
        delivery.add_done_callback(told.append)
        assert told == [delivery]
    delivery.add_done_callback(told.append)  # the peer has ended
    assert told == [delivery, delivery]


def test_what_a_done_callback_raises_on_the_callers_thread() -> None:
    def interrupted(delivery: Delivery) -> None:
        raise KeyboardInterrupt

    errors: SimpleQueue[tuple[BaseException, str]] = SimpleQueue()
    with Pair(Take()) as pair:
        pair.bob.on_error.add(lambda error: errors.put((error, threading.current_thread().name)))
        delivery = pair.bob.send("niess", b"x")
        assert delivery.wait(DEADLINE_S)
        with pytest.raises(KeyboardInterrupt):  # it is for the thread that is interrupted
            delivery.add_done_callback(interrupted)
        delivery.add_done_callback(lambda delivery: 1 / 0)
        error, thread = errors.get(timeout=DEADLINE_S)
        assert isinstance(error, ZeroDivisionError)
        assert thread == "netcomm-bob-dispatcher"  # as all callbacks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_done_callback_that_forks_on_the_callers_thread_and_raises_ends_no_child() -> None:
    parent = os.getpid()

    def fork(delivery: Delivery) -> None:
        child = os.fork()
        if not child:
            raise ValueError("in the child")
        children.append(child)

    children: list[int] = []
    with Pair(Take()) as pair:
        delivery = pair.bob.send("niess", b"x")
        assert delivery.wait(DEADLINE_S)
        try:
            delivery.add_done_callback(fork)
        finally:
            if os.getpid() != parent:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7


def test_what_a_done_callback_raises_goes_to_on_error_and_the_next_one_is_called() -> None:
    errors: SimpleQueue[BaseException] = SimpleQueue()
    told: SimpleQueue[object] = SimpleQueue()
    with Pair(Take()) as pair:
        pair.bob.on_error.add(errors.put)
        delivery = pair.bob.send("niess", b"x")
        delivery.add_done_callback(lambda delivery: 1 / 0)
        delivery.add_done_callback(told.put)
        pair.niess.on_recv.add(lambda ident, data: None)
        assert told.get(timeout=DEADLINE_S) == delivery
        assert isinstance(errors.get(timeout=DEADLINE_S), ZeroDivisionError)


def test_terminating_tells_who_watches_what_it_discards() -> None:
    told: SimpleQueue[DeliveryState] = SimpleQueue()
    bob = SnakemqConnector("bob", "127.0.0.1", 1)
    with bob:
        bob.send("nobody", b"x").add_done_callback(lambda delivery: told.put(delivery.state))
        bob.terminate(0)
        assert told.get(timeout=DEADLINE_S) is DeliveryState.DISCARDED


class Keep(Take):
    """A host in short: stores a row for each message, in one step with the position, and then is done with it."""

    streams = (Stream.BUS_DURABLE,)

    def __init__(self, storage: HostStorage) -> None:
        super().__init__(on_dispatcher=True)
        self.storage = storage
        self.hold: Attachment | None = None

    def _put(self, received: Received) -> None:
        assert self.hold is not None
        first, count = received.runs[0][0], len(received.payloads)
        rows = [HostRow(first + place, data, b"", 0.0) for place, data in enumerate(received.payloads)]
        positions = {(received.ident, Stream.BUS_DURABLE): HostPosition(received.epoch, first + count, 0.0)}
        self.storage.commit([HostStep(appended={"log": rows}, positions=positions)])
        self.hold.handled(received, count)


def test_durable_messages_of_the_bus_outlive_both_programs_and_come_once(tmp_path: Path) -> None:
    def keeping() -> tuple[SqliteQueueStorage, helpers.SnakemqListener]:
        storage = SqliteQueueStorage.from_url(f"sqlite:///{tmp_path}/host.db")
        host = helpers.SnakemqListener("host", f"unix:{tmp_path}/s", 0, storage=storage)
        keep = Keep(storage)
        keep.hold = attach(host, keep)
        return storage, host

    def sending() -> SnakemqConnector:
        return SnakemqConnector("client", f"unix:{tmp_path}/s", 0, storage=f"sqlite:///{tmp_path}/client.db")

    client = sending()
    with client:  # nobody is there, and the program ends
        attach(client, Take()).send("host", Stream.BUS_DURABLE, [b"%d" % number for number in range(100)])
        client.terminate(0)
    storage, host = keeping()
    with sending() as client, host:
        attachment = attach(client, Take())
        attachment.send("host", Stream.BUS_DURABLE, [b"100"])
        assert client.flush(DEADLINE_S)
        host.terminate(1)
        (late,) = attachment.send("host", Stream.BUS_DURABLE, [b"101"])  # to the host's next process
        storage, host = keeping()
        with host:
            assert late.wait(DEADLINE_S)
            rows = storage.rows("log", 0, 1000, 1 << 20)
    assert [row.data for row in rows] == [b"%d" % number for number in range(102)]
