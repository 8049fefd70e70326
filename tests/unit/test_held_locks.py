"""The watch over the library's locks sees what it is there for."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netcomm import SnakemqConnector
from netcomm.callbacks import Callback
from tests import held_locks


def made_in(module: str, kind: str = "Lock") -> Any:
    """A lock that a module has made."""
    scope: dict[str, Any] = {"__name__": module, "threading": threading}
    exec(f"made = threading.{kind}()", scope)
    return scope["made"]


@pytest.fixture(autouse=True)
def _nothing_is_left_for_others() -> Iterator[None]:
    yield
    held_locks.take()


def touch_a_file() -> None:
    Path(__file__).open().close()


def look_up() -> None:
    socket.getaddrinfo("127.0.0.1", 1)


def read_a_socket_that_blocks() -> None:
    one, other = socket.socketpair()
    with one, other:
        other.send(b"x")
        one.recv(1)


def call_back() -> None:
    callback = Callback()
    callback.add(lambda: None)
    callback()


def log() -> None:
    logger = logging.getLogger("netcomm.test")
    logger.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, "text", (), None))


DEEDS = [touch_a_file, look_up, read_a_socket_that_blocks, call_back, log]


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.parametrize("deed", DEEDS)
def test_what_is_done_with_a_lock_held_is_found(deed: Callable[[], None], kind: str) -> None:
    lock = made_in("netcomm.runtime.loop", kind)
    deed()
    assert held_locks.take() == []
    with lock:
        deed()
    found = held_locks.take()
    assert found
    assert "netcomm.runtime.loop" in found[0]
    deed()
    assert held_locks.take() == []


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("module", ["netcomm.runtime.group_commit", "netcomm_sqlite.storage", "netcomm.storage"])
def test_a_storage_may_use_files_and_servers_with_its_lock_held_and_nothing_else(
    deed: Callable[[], None], module: str
) -> None:
    with made_in(module):
        deed()
    assert bool(held_locks.take()) == (deed in (call_back, log))


def test_a_socket_that_does_not_block_may_be_used() -> None:
    one, other = socket.socketpair()
    with one, other, made_in("netcomm.runtime.loop"):
        one.setblocking(False)
        one.send(b"x")
    assert held_locks.take() == []


def test_who_waits_for_a_condition_does_not_hold_its_lock() -> None:
    condition = threading.Condition(made_in("netcomm.runtime.loop", "RLock"))
    held: list[int] = []

    def look() -> bool:
        held.append(len(held_locks.held()))
        return len(held) > 1

    with condition:
        condition.wait_for(look, 0.01)
        assert held_locks.held()
    assert held_locks.held() == []


def test_the_locks_of_a_peer_are_watched() -> None:
    peer = SnakemqConnector("bob", "unix:/nobody/listens/here", 0)
    with peer._runtime._loop.mutex:
        touch_a_file()
    assert "netcomm.runtime.loop" in held_locks.take()[0]
    peer.terminate(0)
