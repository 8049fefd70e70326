"""A process whose descriptors are used up: nothing spins, nothing ends, and it goes on when there are some again."""

import contextlib
import errno
import re
import socket
import time
from pathlib import Path

import pytest

from netcomm import Limits
from netcomm.connections import Closed, ConnectionEvent, Opened, Unreachable
from netcomm.transport.link import Link
from tests.integration.helpers import (
    DEADLINE_S,
    Program,
    SnakemqConnector,
    SnakemqListener,
    dial,
    listen_at,
    poll,
    raw_listener,
    wait_until,
)

PAUSE_S = 1.0  # so long a listener waits that could not accept

# What both programs below know: to tell what is logged, with the time; to use up all descriptors; to be asked things.
COMMON = """
import logging, os, resource, sys, time

class Tell(logging.Handler):
    def emit(self, record):
        print(f"{time.monotonic():.3f} {record.getMessage()}", file=sys.stderr, flush=True)

logging.getLogger("netcomm").addHandler(Tell())
logging.getLogger("netcomm").setLevel("DEBUG")
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
taken = []

def take_all():
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass

def answer(peer):
    while True:
        match sys.stdin.readline().strip():
            case "times":
                print(sum(os.times()[:2]))
            case "alive":
                print(peer.is_alive())
            case "free":
                while taken:
                    os.close(taken.pop())
                print("freed")
            case _:
                break
"""

LISTENING = (
    COMMON
    + """
from tests.integration.helpers import SnakemqListener
with SnakemqListener("niess", "tcp:127.0.0.1", 0) as niess:
    print(niess.address[1])
    answer(niess)
"""
)

CONNECTING = (
    COMMON
    + """
from netcomm import Limits
from tests.integration.helpers import SnakemqConnector
limits = Limits(reconnect_min_s=0.05, reconnect_max_s=0.1)
bob = SnakemqConnector("bob", sys.argv[1], int(sys.argv[2]), limits=limits)
bob.on_error.add(lambda error: print("error", error.errno))
take_all()
with bob:
    answer(bob)
"""
)


def _reports(program: Program, text: str) -> list[float]:
    """When the program has logged a text, on its own clock."""
    return [float(when) for when in re.findall(rf"^(\d+\.\d+) .*{text}", program.errors, re.MULTILINE)]


def _ask(program: Program, question: str) -> str:
    program.tell(question)
    return program.line()


# Accepting


def test_a_listener_without_descriptors_rests_serves_those_it_has_and_accepts_who_waits_when_there_are_some() -> None:
    with Program(LISTENING) as program, contextlib.ExitStack() as stack:
        place = ("127.0.0.1", int(program.line()))
        bob = stack.enter_context(SnakemqConnector("bob", f"tcp:{place[0]}", place[1]))
        assert bob.wait_connected("niess", DEADLINE_S)
        fillers = [stack.enter_context(dial(place)) for _ in range(40)]
        waiting = stack.enter_context(dial(place))  # in the queue of the kernel, behind the others

        wait_until(lambda: len(_reports(program, "can't accept")) >= 1, "the first report")
        used = float(_ask(program, "times"))
        assert bob.send("niess", b"still served").wait(DEADLINE_S)
        wait_until(lambda: len(_reports(program, "can't accept")) >= 3, "two more attempts")
        first, *_, last = reports = _reports(program, "can't accept")
        assert last - first > (len(reports) - 1) * PAUSE_S - 0.01, reports
        assert float(_ask(program, "times")) - used < 0.3 * (last - first), "it spins"
        assert bob.send("niess", b"still served").wait(DEADLINE_S)

        for filler in fillers:
            filler.close()
        started = time.monotonic()
        assert waiting.recv(1), "it was closed"
        assert time.monotonic() - started < PAUSE_S + 3
        assert bob.stats().peers["niess"].reconnects == 0
        bob.terminate(1)
        assert _ask(program, "alive") == "True"
        program.tell("end")
        assert program.wait() == 0


def test_connections_that_are_being_closed_count_as_open() -> None:
    link = Link(Limits(max_connections=2))
    place = listen_at(link, "tcp:127.0.0.1")
    assert isinstance(place, tuple)
    with contextlib.ExitStack() as stack:
        stack.callback(link.close_now)
        stack.enter_context(dial(place))
        stack.enter_context(dial(place))
        opened = _opened(link, 2)
        link.close(opened[0], [])
        refused = stack.enter_context(dial(place))
        refused.settimeout(0)
        wait_until(lambda: _ended(link, refused), "the end of the third connection")
        assert not link.quiet  # the first is still being closed
        wait_until(lambda: [*link.poll(0.01)] == [] and link.quiet, "the end of the first connection")
        stack.enter_context(dial(place))
        _opened(link, 1)


def _opened(link: Link, count: int) -> list[int]:
    """Let connections be opened; returns their numbers."""
    numbers: list[int] = []

    def has_opened() -> bool:
        numbers.extend(event.connection for event in poll(link, 0.01) if isinstance(event, Opened))
        return len(numbers) >= count

    wait_until(has_opened, f"{count} connections")
    return numbers


def _ended(link: Link, sock: socket.socket) -> bool:
    """Let a link go on; whether it has closed a connection whose other end is `sock`, and which it never tells of."""
    assert [*link.poll(0.01)] == []
    with contextlib.suppress(BlockingIOError):
        assert sock.recv(1) == b""
        return True
    return False


# Connecting


@pytest.mark.parametrize("host", ["127.0.0.1", "tcp:127.0.0.1", "localhost", "unix:"])
def test_a_connector_without_descriptors_goes_on_trying_and_connects_when_there_are_some(
    host: str, tmp_path: Path
) -> None:
    if host == "unix:":
        host += str(tmp_path / "place")
    with SnakemqListener("niess", host, 0) as niess:
        port = 0 if host.startswith("unix:") else niess.address[1]
        with Program(CONNECTING, host, port) as program:
            kind, number = program.line().split()
            assert kind == "error"
            if host != "localhost":  # the name service may give another reason than the real one
                assert int(number) == errno.EMFILE
            wait_until(lambda: len(_reports(program, "can't connect")) >= 5, "five attempts")
            assert _ask(program, "alive") == "True"
            assert _ask(program, "free") == "freed"
            assert niess.wait_connected("bob", DEADLINE_S)
            assert niess.send("bob", b"x").wait(DEADLINE_S)
            program.tell("end")
            assert program.wait() == 0


# Watching: the system limits how many sockets a user may watch. That limit is not a process's own, so it is played.


class _Full:
    """Lets a selector fail to register what comes at certain places of the order."""

    def __init__(self, link: Link, fails: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self._fails = fails
        self.registered = 0
        self._register = link._selector.register
        monkeypatch.setattr(link._selector, "register", self._count)

    def _count(self, *arguments: object) -> object:
        self.registered += 1
        if self.registered in self._fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._register(*arguments)  # type: ignore[arg-type]


def _events(link: Link, until: type[ConnectionEvent], timeout: float = DEADLINE_S) -> list[ConnectionEvent]:
    """What happens until an event of a kind."""
    events: list[ConnectionEvent] = []

    def has_happened() -> bool:
        events.extend(poll(link, 0.01))
        return any(isinstance(event, until) for event in events)

    wait_until(has_happened, until.__name__, timeout)
    return events


def test_a_listener_that_can_not_be_watched_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("netcomm.transport.acceptor._ACCEPT_PAUSE_S", 0.05)
    link = Link(Limits())
    full = _Full(link, {1, 2}, monkeypatch)
    place = listen_at(link, "tcp:127.0.0.1")
    assert isinstance(place, tuple)
    with contextlib.closing(dial(place)), contextlib.ExitStack() as stack:
        stack.callback(link.close_now)
        assert len(_events(link, Opened)) == 1
    assert full.registered == 3
    assert caplog.text.count("can't accept") == 2


def test_a_connection_that_can_not_be_watched_begins_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        link = Link(Limits())
        stack.callback(link.close_now)
        place = listen_at(link, "tcp:127.0.0.1")
        assert isinstance(place, tuple)
        assert [*link.poll(0)] == []
        _Full(link, {1}, monkeypatch)
        lost, kept = (stack.enter_context(dial(place)) for _ in range(2))
        events = _events(link, Closed)
        assert [type(event) for event in events] == [Opened, Opened, Closed]
        assert events[-1] == Closed(1, "No space left on device")
        assert lost.recv(1) == b""
        link.write(2, [b"x"])
        assert kept.recv(1) == b"x"


def test_a_connection_that_can_not_be_watched_while_it_is_being_closed_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.ExitStack() as stack:
        link = Link(Limits())
        stack.callback(link.close_now)
        place = listen_at(link, "tcp:127.0.0.1")
        assert isinstance(place, tuple)
        client = stack.enter_context(dial(place))
        (number,) = _opened(link, 1)
        link.pause(number, True)
        assert [*link.poll(0)] == []
        _Full(link, {1}, monkeypatch)
        link.close(number, [b"farewell"])
        assert [*link.poll(0)] == []
        assert link.quiet
        assert client.recv(100) == b"farewell"
        assert client.recv(100) == b""


def test_a_connector_whose_socket_can_not_be_watched_goes_on_trying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with contextlib.ExitStack() as stack, raw_listener() as server:
        link = Link(Limits(reconnect_min_s=0.01, reconnect_max_s=0.02))
        stack.callback(link.close_now)
        # Twice while it connects, and then, when it has connected at last, once more.
        _Full(link, {1, 2, 4}, monkeypatch)
        link.add_connector("tcp:127.0.0.1", server.getsockname()[1])
        events = _events(link, Closed)
        events += _events(link, Opened)
        assert [type(event) for event in events] == [Unreachable, Opened, Closed, Opened]
        unreachable = events[0]
        assert isinstance(unreachable, Unreachable)
        assert unreachable.error.errno == errno.ENOSPC
