"""A program in which SIGPIPE has its default action: no write to a connection that is gone ends it."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.helpers import DEADLINE_S, Program, dial, legacy_handshake, raw_listener, wait_until

DEATHS = 10

# It sends as fast as it can, whether or not anybody reads.
SENDING = """
import signal, sys, threading
from netcomm import Limits, QueueFull, SnakemqConnector
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
limits = Limits(reconnect_min_s=0.01, reconnect_max_s=0.02)
with SnakemqConnector("bob", sys.argv[1], int(sys.argv[2]), limits=limits) as bob:
    while not ended.is_set():
        try:
            bob.send("niess", bytes(100), timeout=0.01)
        except QueueFull:
            pass
    bob.terminate(0)
print("ended")
"""

# One connection, which the test closes before the program writes to it. Nothing is read meanwhile, so that it is a
# write that finds out.
WRITING = """
import signal, sys
from netcomm import Limits
from netcomm.connections import Opened
from netcomm.transport.acceptor import listen
from netcomm.transport.link import Link
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
_, place, how = sys.argv
link = Link(Limits())
listening = listen(place, 0)
address = listening.address
link.add_listener(listening)
print(address if isinstance(address, str) else address[1])
opened = []
while not opened:
    opened = [event.connection for event in link.poll(1) if isinstance(event, Opened)]
(number,) = opened
print("opened")
sys.stdin.readline()
connection = link._connections[number]
if how == "farewell":
    link.write(number, [b"x"])  # the answer to this says that nobody is there
    link.close(number, [b"farewell"])
    while not link.quiet:
        list(link.poll(1))
else:
    while connection.broken is None:
        link.write(number, [b"x"] if how == "one buffer" else [b"x", b"y"])
print("alive")
"""

FORWARDING = """
import signal, sys
from netcomm.testing.proxy import FaultProxy
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with FaultProxy(("127.0.0.1", int(sys.argv[1]))) as proxy:
    print(proxy.address[1])
    sys.stdin.readline()
print("alive")
"""


@contextlib.contextmanager
def _listening(place: str) -> Iterator[tuple[socket.socket, int]]:
    """A socket that listens at a place, and its port."""
    if place.startswith("unix:"):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.removeprefix("unix:"))
            server.listen()
            server.settimeout(DEADLINE_S)
            yield server, 0
    else:
        with raw_listener() as server:
            yield server, server.getsockname()[1]


def _place(kind: str, folder: Path) -> str:
    return "tcp:127.0.0.1" if kind == "TCP" else f"unix:{folder / 'place'}"


@pytest.mark.parametrize("kind", ["TCP", "Unix socket"])
def test_a_sender_lives_on_however_often_the_other_side_dies(kind: str, tmp_path: Path) -> None:
    place = _place(kind, tmp_path)
    with _listening(place) as (server, port), Program(SENDING, place, port) as program:
        for _ in range(DEATHS):
            sock, _ = server.accept()
            with sock:
                sock.settimeout(DEADLINE_S)
                sock.sendall(legacy_handshake("niess"))
                received = 0
                while received < 20_000:  # it is in the middle of sending
                    received += len(sock.recv(65536))
        program.tell("end")
        assert program.line() == "ended"
        assert program.wait() == 0


@pytest.mark.parametrize("kind", ["TCP", "Unix socket"])
@pytest.mark.parametrize("how", ["one buffer", "two buffers", "farewell"])
def test_no_write_to_a_connection_that_is_gone_ends_the_program(kind: str, how: str, tmp_path: Path) -> None:
    place = _place(kind, tmp_path)
    with Program(WRITING, place, how) as program:
        address = program.line()
        if kind == "TCP":
            client = dial(("127.0.0.1", int(address)))
        else:
            client = socket.socket(socket.AF_UNIX)
            client.connect(address.removeprefix("unix:"))
        with client:
            assert program.line() == "opened"
        program.tell("write")
        assert program.line() == "alive"
        assert program.wait() == 0


def test_a_proxy_lives_on_when_one_side_of_a_connection_dies() -> None:
    with raw_listener() as server, Program(FORWARDING, server.getsockname()[1]) as program:
        with dial(("127.0.0.1", int(program.line()))):
            sock, _ = server.accept()
        with sock:
            sock.setblocking(False)
            wait_until(lambda: _refuses_more(sock), "the end of the connection")
        program.tell("end")
        assert program.line() == "alive"
        assert program.wait() == 0


def _refuses_more(sock: socket.socket) -> bool:
    """Send a byte; whether the connection has been found to be gone."""
    try:
        sock.send(b"x")
    except ConnectionError:
        return True
    return False
