"""Subject and headers, end to end, over real sockets: they arrive with their message, however it comes."""

import pickle
import threading
from itertools import pairwise
from typing import Any

import pytest

from netcomm import ConfigurationError, Limits, Message, MessageTooLarge, SnakemqConnector, SnakemqListener
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.storage import QueueStorage
from netcomm.testing import FaultProxy
from tests.integration.helpers import DEADLINE_S, FAST, Pair, Recorder, wait_until

HEADERS = {"traceparent": "00-ab-cd-01", "ž": ""}

Seen = tuple[bytes, str | None, dict[str, str]]


def seen(recorder: Recorder, count: int) -> list[Seen]:
    """Data, subject and headers of the messages that came."""
    return [(message.data, message.subject, dict(message.headers)) for _, message in recorder.wait(count)]


class LastingStorage(MemoryQueueStorage):
    """A storage that several peers own, one after the other."""

    def close(self) -> None:
        pass


class OlderStorage(LastingStorage):
    """One of a plug-in that knows of no envelopes."""

    keeps_envelopes = False


def test_they_arrive_with_each_message_in_order() -> None:
    messages = Recorder()
    with Pair() as pair:
        pair.niess.on_message.add(messages)
        pair.bob.send("niess", b"plain")
        pair.bob.send("niess", b"one", subject="weather")
        pair.bob.send("niess", b"two", headers=HEADERS)
        pair.bob.send("niess", b"three", subject="weather", headers=HEADERS, ttl=60)
        pair.bob.send("niess", b"empty", headers={})
        pair.bob.send_many("niess", [b"4", b"5"], subject="news", headers=HEADERS)
        pair.bob.send_many("niess", [b"6", b"7"])
        assert seen(messages, 9) == [
            (b"plain", None, {}),
            (b"one", "weather", {}),
            (b"two", None, HEADERS),
            (b"three", "weather", HEADERS),
            (b"empty", None, {}),
            (b"4", "news", HEADERS),
            (b"5", "news", HEADERS),
            (b"6", None, {}),
            (b"7", None, {}),
        ]


def test_a_message_can_still_be_hashed_and_pickled_and_its_headers_not_changed() -> None:
    messages = Recorder()
    with Pair() as pair:
        pair.niess.on_message.add(messages)
        pair.bob.send("niess", b"plain")
        pair.bob.send("niess", b"one", subject="weather", headers=HEADERS)
        for _, message in messages.wait(2):
            back = pickle.loads(pickle.dumps(message))
            assert isinstance(back, Message)
            assert (back, hash(back)) == (message, hash(message))
            with pytest.raises(TypeError):
                message.headers["more"] = "x"


def test_thousands_of_them_between_plain_ones_keep_the_order() -> None:
    messages = Recorder()
    count = 3000
    with Pair() as pair:
        pair.niess.on_message.add(messages)
        for number in range(count):
            data = number.to_bytes(4)
            if number % 3:
                pair.bob.send("niess", data)
            else:
                pair.bob.send("niess", data, subject=f"s{number}")
        expected = [(number.to_bytes(4), None if number % 3 else f"s{number}", {}) for number in range(count)]
        wrong = [pair for pair in zip(seen(messages, count), expected, strict=True) if pair[0] != pair[1]]
        assert wrong[:3] == []


@pytest.mark.parametrize("size", [130_000, 300_000, 5_000_000])
def test_they_arrive_with_large_messages(size: int) -> None:
    messages = Recorder()
    large = {"large": "x" * 60_000}
    with Pair() as pair:
        pair.niess.on_message.add(messages)
        for headers in (HEADERS, large):
            pair.bob.send("niess", bytes(size), subject="large", headers=headers)
        assert seen(messages, 2) == [(bytes(size), "large", HEADERS), (bytes(size), "large", large)]


def test_they_survive_the_sender() -> None:
    storage = LastingStorage()
    niess = SnakemqListener("niess", "127.0.0.1", 0)
    messages = Recorder()
    niess.on_message.add(messages)
    with SnakemqConnector("bob", *niess.address, storage=storage, limits=FAST) as bob:
        bob.send("niess", b"one", persistent=True, subject="weather", headers=HEADERS)
        bob.send_many("niess", [b"two", b"three"], persistent=True, headers=HEADERS)
        bob.send("niess", b"plain", persistent=True)
        bob.terminate(0)
    with niess, SnakemqConnector("bob", *niess.address, storage=storage, limits=FAST):
        assert seen(messages, 4) == [
            (b"one", "weather", HEADERS),
            (b"two", None, HEADERS),
            (b"three", None, HEADERS),
            (b"plain", None, {}),
        ]
        wait_until(lambda: storage.streams()[0].count == 0)


@pytest.mark.parametrize("storage", [None, LastingStorage()], ids=["volatile", "persistent"])
def test_they_survive_the_receiver(storage: QueueStorage | None) -> None:
    """What a first process did not acknowledge comes to a second one, with all that belongs to it."""
    first = SnakemqListener("niess", "127.0.0.1", 0, dispatch="manual")
    with SnakemqConnector("bob", *first.address, storage=storage, limits=FAST) as bob:
        with first:
            assert bob.wait_connected("niess", DEADLINE_S)
            persistent = storage is not None
            bob.send("niess", b"one", persistent=persistent, subject="weather", headers=HEADERS)
            bob.send_many("niess", [b"two", b"three"], persistent=persistent, headers=HEADERS)
            wait_until(lambda: bob.stats().peers["niess"].in_flight == 3)
            wait_until(lambda: first.stats().peers["bob"].received == 3)
            first.terminate(0)
        messages = Recorder()
        second = SnakemqListener("niess", *first.address)
        second.on_message.add(messages)
        with second:
            assert seen(messages, 3) == [
                (b"one", "weather", HEADERS),
                (b"two", None, HEADERS),
                (b"three", None, HEADERS),
            ]
            assert [message.redelivered for _, message in messages.calls] == [True] * 3


def test_they_survive_connections_that_break() -> None:
    messages = Recorder()
    niess = SnakemqListener("niess", "127.0.0.1", 0, limits=FAST)
    niess.on_message.add(messages)
    count = 400
    with (
        niess,
        FaultProxy(niess.address, cut_every=2_000.0, seed=3) as proxy,
        SnakemqConnector("bob", f"tcp:{proxy.address[0]}", proxy.address[1], limits=FAST) as bob,
    ):
        for start in range(0, count, 20):
            headers = {"start": str(start)}
            bob.send_many("niess", [number.to_bytes(4) for number in range(start, start + 20)], headers=headers)
        found = seen(messages, count)
        proxy.cut_every = None
        assert proxy.cuts > 3
    assert found == [(number.to_bytes(4), None, {"start": str(number - number % 20)}) for number in range(count)]


def test_a_storage_that_can_not_keep_them_takes_none() -> None:
    with SnakemqConnector("bob", "127.0.0.1", 1, True, storage=OlderStorage()) as bob:
        for act in (
            lambda: bob.send("niess", b"x", subject="s"),
            lambda: bob.send_many("niess", [b"x"], headers=HEADERS),
        ):
            with pytest.raises(ConfigurationError, match="keeps neither subject nor headers"):
                act()
        assert bob.stats().peers == {}
        bob.send("niess", b"x")
        bob.send("niess", b"x", persistent=False, subject="s")
        bob.send("niess", b"x", ttl=0, subject="s")
        bob.terminate(0)


def test_what_does_not_fit_into_a_frame_with_them_is_refused() -> None:
    limits = Limits(max_frame_bytes=1033)
    with Pair(limits=limits) as pair:
        messages = Recorder()
        pair.niess.on_message.add(messages)
        raw = 2 + 3 + 1 + 7
        words = f"message of {1001 - raw} bytes with a subject and headers that take {raw}, 1000 are allowed"
        for refused in (
            lambda data: pair.bob.send("niess", data, subject="weather"),
            lambda data: pair.bob.send_many("niess", [data], subject="weather"),
        ):
            with pytest.raises(MessageTooLarge, match=words):
                refused(bytes(1001 - raw))
        pair.bob.send("niess", bytes(1000 - raw), subject="weather")
        pair.bob.send_many("niess", [bytes(1000 - raw)], subject="weather")
        assert seen(messages, 2) == [(bytes(1000 - raw), "weather", {})] * 2


def test_a_header_that_can_not_be_sent_is_named() -> None:
    headers: Any = {"n": 1}
    with Pair() as pair, pytest.raises(ConfigurationError, match="the header 'n' must be a str, not int"):
        pair.bob.send("niess", b"x", headers=headers)


def test_several_threads_send_with_and_without_them() -> None:
    messages = Recorder()

    def send(pair: Pair, name: str) -> None:
        for number in range(500):
            if number % 2:
                pair.bob.send("niess", b"%d" % number, subject=name)
            else:
                pair.bob.send("niess", name.encode() + b" %d" % number)

    with Pair() as pair:
        pair.niess.on_message.add(messages)
        threads = [threading.Thread(target=send, args=(pair, name)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = seen(messages, 1500)
    for name in "abc":
        mine = [int(data.split()[-1]) for data, subject, _ in found if (subject or data.decode()[0]) == name]
        assert len(mine) == 500
        assert all(before < after for before, after in pairwise(mine))
    assert all((subject is None) is (b" " in data) for data, subject, _ in found)
