"""What `FaultProxy` promises, with plain sockets on both sides of it."""

import fcntl
import random
import socket
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import pytest

from netcomm import ConfigurationError, LifecycleError
from netcomm.testing import FaultProxy

DEADLINE_S = 10.0


class Ends:
    """A proxy with a client and a server, all closed at the end of the test."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(DEADLINE_S)
        self.target: tuple[str, int] = self.listener.getsockname()

    def proxy(self, **options: object) -> FaultProxy:
        proxy = FaultProxy(self.target, **options)  # type: ignore[arg-type]
        self._stack.callback(proxy.close)
        proxy.start()
        return proxy

    def connect(self, proxy: FaultProxy) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(proxy.address, DEADLINE_S))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def accept(self) -> socket.socket:
        server, _ = self.listener.accept()
        self._stack.enter_context(server)
        server.settimeout(DEADLINE_S)
        return server

    def pair(self, proxy: FaultProxy) -> tuple[socket.socket, socket.socket]:
        client = self.connect(proxy)
        return client, self.accept()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack)


def receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(65536)
        assert chunk, f"closed after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def ending(sock: socket.socket) -> str:
    """Read to the end; returns how it came."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "reset"
    return "end"


def write_until_it_breaks(sock: socket.socket) -> None:
    """Write more than a random cut will let through, and close."""
    try:
        for _ in range(100):
            sock.sendall(bytes(256))
    except OSError:
        pass
    sock.close()


def test_bytes_go_through_in_both_directions_and_are_counted(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    client.sendall(b"question")
    assert receive(server, 8) == b"question"
    server.sendall(b"the answer")
    assert receive(client, 10) == b"the answer"
    assert (proxy.connections, proxy.cuts, proxy.forwarded_bytes) == (1, 0, 18)


def test_connections_made_before_the_start_are_served_after_it(ends: Ends) -> None:
    with FaultProxy(ends.target) as early:
        assert early.address[1] != 0
    proxy = FaultProxy(ends.target)
    try:
        client = ends.connect(proxy)
        client.sendall(b"x")
        proxy.start()
        assert receive(ends.accept(), 1) == b"x"
    finally:
        proxy.close()


def test_more_than_the_buffers_hold_goes_through_while_the_receiver_is_slow(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    data = bytes(range(256)) * 64 * 1024  # 16 MiB
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    try:
        assert receive(server, len(data)) == data
    finally:
        sender.join(DEADLINE_S)
    assert proxy.forwarded_bytes == len(data)


@pytest.mark.parametrize("chunk_bytes", [1, 7])
def test_split_bytes_come_in_order_and_in_more_than_one_piece(ends: Ends, chunk_bytes: int) -> None:
    proxy = ends.proxy(chunk_bytes=chunk_bytes, seed=3)
    client, server = ends.pair(proxy)
    sizes = []
    data = bytes(range(256)) * 100  # so many pieces that no reader misses all the gaps between them
    client.sendall(data)
    received = bytearray()
    while len(received) < len(data):
        chunk = server.recv(65536)
        received += chunk
        sizes.append(len(chunk))
    assert received == data
    assert len(sizes) > 1, "everything came in one piece"


def test_a_half_close_is_passed_on_as_a_half_close(ends: Ends) -> None:
    client, server = ends.pair(ends.proxy())
    client.sendall(b"all")
    client.shutdown(socket.SHUT_WR)
    assert receive(server, 3) == b"all"
    assert server.recv(1) == b""
    server.sendall(b"still heard")
    server.close()
    assert receive(client, 11) == b"still heard"
    assert client.recv(1) == b""


def test_a_reset_is_passed_on_as_a_reset(ends: Ends) -> None:
    client, server = ends.pair(ends.proxy())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert ending(server) == "reset"


def test_a_target_that_nobody_listens_on_closes_the_connection(ends: Ends) -> None:
    ends.listener.close()
    try:
        client = ends.connect(ends.proxy())
    except ConnectionResetError:  # before connect() had returned
        return
    assert ending(client) == "reset"


@pytest.mark.parametrize(("reset", "how"), [(False, "end"), (True, "reset")])
def test_cut_ends_every_connection_on_both_sides(ends: Ends, reset: bool, how: str) -> None:
    proxy = ends.proxy()
    pairs = [ends.pair(proxy) for _ in range(3)]
    for client, server in pairs:  # a connection that has carried something is past its handshake in the proxy
        client.sendall(b"x")
        receive(server, 1)
    assert proxy.cut(reset) == 3
    assert [ending(sock) for pair in pairs for sock in pair] == [how] * 6
    assert proxy.cuts == 3
    assert proxy.cut(reset) == 0


def test_a_gentle_cut_delivers_what_was_forwarded_before_it(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    client.sendall(b"last words")
    assert server.recv(10, socket.MSG_PEEK | socket.MSG_WAITALL) == b"last words"
    server.sendall(b"unread by the proxy or not, it must not turn the end into a reset")
    proxy.cut()
    assert receive(server, 10) == b"last words"
    assert server.recv(1) == b""
    assert ending(client) == "end"


def test_new_connections_work_after_a_cut(ends: Ends) -> None:
    proxy = ends.proxy()
    for _ in range(3):
        client, server = ends.pair(proxy)
        client.sendall(b"x")
        assert receive(server, 1) == b"x"
        proxy.cut(reset=True)
    assert proxy.connections == proxy.cuts == 3


def test_a_stall_holds_everything_back_and_resume_lets_it_go(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    client.sendall(b"1")
    receive(server, 1)
    proxy.stall()
    client.sendall(b"2")
    server.sendall(b"3")
    server.shutdown(socket.SHUT_WR)
    late = ends.connect(proxy)  # the kernel makes it
    late.sendall(b"4")
    for sock in (client, server):
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(DEADLINE_S)
    assert (proxy.connections, proxy.forwarded_bytes) == (1, 1)
    proxy.resume()
    assert receive(client, 1) == b"3"
    assert client.recv(1) == b""
    assert receive(server, 1) == b"2"
    assert receive(ends.accept(), 1) == b"4"


def test_a_stalled_connection_can_be_cut(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    client.sendall(b"x")
    receive(server, 1)
    proxy.stall()
    client.sendall(b"lost")
    assert proxy.cut() == 1
    assert ending(client) == "end"
    assert server.recv(1) == b""
    assert proxy.forwarded_bytes == 1


def test_a_refusing_proxy_closes_new_connections_only(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    client.sendall(b"x")
    receive(server, 1)
    proxy.refuse()
    assert ends.connect(proxy).recv(1) == b""
    client.sendall(b"y")
    assert receive(server, 1) == b"y"
    proxy.accept()
    other, other_server = ends.pair(proxy)
    other.sendall(b"z")
    assert receive(other_server, 1) == b"z"
    assert proxy.connections == 2


def test_random_cuts_come_at_the_mean_distance_and_both_ways(ends: Ends) -> None:
    proxy = ends.proxy(cut_every=1000, seed=11)
    how = set()
    before = 0
    for number in range(60):
        client, server = ends.pair(proxy)
        write_until_it_breaks(client)
        how.add(ending(server))
        assert proxy.cuts == number + 1
        assert proxy.forwarded_bytes > before
        before = proxy.forwarded_bytes
    assert how == {"end", "reset"}
    # The mean of 60 exponential distances is within a factor of two of the expected one, but for 1 in 10,000 seeds.
    assert 500 < proxy.forwarded_bytes / proxy.cuts < 2000


def test_a_seed_makes_the_same_cuts_again(ends: Ends) -> None:
    runs = []
    for _ in range(2):
        proxy = ends.proxy(cut_every=300, seed=5)
        places = []
        for _ in range(10):
            client, server = ends.pair(proxy)
            write_until_it_breaks(client)
            places.append(ending(server))
            places.append(str(proxy.forwarded_bytes))
        runs.append(places)
    assert runs[0] == runs[1]


def test_delay_holds_each_piece_so_long_and_does_not_add_up(ends: Ends) -> None:
    proxy = ends.proxy(delay=0.3, chunk_bytes=1)
    client, server = ends.pair(proxy)
    started = monotonic()
    client.sendall(bytes(range(100)))
    client.shutdown(socket.SHUT_WR)
    assert receive(server, 100) == bytes(range(100))
    assert 0.3 <= monotonic() - started < 0.3 * 100 / 4
    assert server.recv(1) == b""


@pytest.mark.parametrize("rate", [250_000, 2_000_000])
def test_a_slow_line_passes_so_many_bytes_a_second_in_each_direction_and_holds_few(ends: Ends, rate: int) -> None:
    proxy = ends.proxy(bytes_per_s=rate)
    client, server = ends.pair(proxy)
    started = monotonic()
    data = random.Random(1).randbytes(rate)
    for sock in (client, server):
        threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
    first = receive(server, rate // 2)
    # The sender feels it: most of the second half waits on its side.
    assert held_by_kernel(client) >= rate // 10
    assert first + receive(server, rate - len(first)) == data
    assert receive(client, rate) == data
    assert 0.9 <= monotonic() - started < 10  # as fast as it is told to be, and a busy machine's time


def held_by_kernel(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def test_a_line_may_become_slow_and_fast_again(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    client.sendall(bytes(100_000))
    receive(server, 100_000)
    proxy.bytes_per_s = 1000
    started = monotonic()
    client.sendall(bytes(500))
    receive(server, 500)
    assert monotonic() - started >= 0.45
    proxy.bytes_per_s = None
    started = monotonic()
    client.sendall(bytes(100_000))
    receive(server, 100_000)
    assert monotonic() - started < 5


def test_order_is_kept_while_the_delay_becomes_shorter(ends: Ends) -> None:
    proxy = ends.proxy(delay=0.3)
    client, server = ends.pair(proxy)
    client.sendall(b"first")
    server.sendall(b"a")  # once it is back, the proxy has long read "first"
    receive(client, 1)
    proxy.delay = 0.0
    client.sendall(b"second")
    assert receive(server, 11) == b"firstsecond"


def test_methods_may_be_called_from_many_threads_at_once(ends: Ends) -> None:
    proxy = ends.proxy()
    failures: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(100):
                proxy.stall()
                proxy.cut()
                proxy.refuse()
                proxy.resume()
                proxy.accept()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures
    client, server = ends.pair(proxy)
    client.sendall(b"x")
    assert receive(server, 1) == b"x"


def test_close_closes_everything_and_may_be_repeated(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    client.sendall(b"x")
    receive(server, 1)
    proxy.close()
    proxy.close()
    assert ending(client) == "end"
    assert ending(server) == "end"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(proxy.address, DEADLINE_S)
    assert proxy.cut() == 0


def test_close_without_start_leaves_nothing_open(ends: Ends) -> None:
    proxy = FaultProxy(ends.target)
    proxy.close()
    with pytest.raises(LifecycleError):
        proxy.start()


def test_a_proxy_is_started_once(ends: Ends) -> None:
    proxy = ends.proxy()
    with pytest.raises(LifecycleError):
        proxy.start()


@pytest.mark.parametrize(
    "options", [{"cut_every": 0}, {"chunk_bytes": 0}, {"delay": -1}, {"delay": float("inf")}, {"bytes_per_s": 0}]
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        FaultProxy(("127.0.0.1", 1), **options)  # type: ignore[arg-type]


def test_another_target_is_used_by_new_connections_only(ends: Ends) -> None:
    proxy = ends.proxy()
    client, server = ends.pair(proxy)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(DEADLINE_S)
        proxy.target = elsewhere.getsockname()
        ends.connect(proxy).sendall(b"new")
        new, _ = elsewhere.accept()
        with new:
            new.settimeout(DEADLINE_S)
            assert receive(new, 3) == b"new"
    client.sendall(b"old")
    assert receive(server, 3) == b"old"
