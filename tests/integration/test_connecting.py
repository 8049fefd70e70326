"""Places to listen at and to connect to: addresses of every kind, names, sockets in the file system, reconnecting."""

import contextlib
import errno
import itertools
import logging
import os
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from netcomm import BindError, ConfigurationError, Limits
from netcomm.protocol import encode, frames
from tests.integration.helpers import (
    DEADLINE_S,
    FAST,
    Peer,
    Program,
    Recorder,
    SnakemqConnector,
    SnakemqListener,
    hello,
    in_thread,
    leaves_nothing,
    raw_listener,
    read_to_end,
    record,
    wait_until,
)


def _talk(one: Peer, other: Peer) -> None:
    """Both peers send, and are delivered to."""
    assert one.wait_connected(other.local_ident, DEADLINE_S)
    assert other.wait_connected(one.local_ident, DEADLINE_S)
    assert one.send(other.local_ident, b"there").wait(DEADLINE_S)
    assert other.send(one.local_ident, b"back").wait(DEADLINE_S)


# Addresses


@pytest.mark.parametrize(
    ("listen", "connect"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("localhost", "localhost"),
        ("127.0.0.1", "localhost"),
        ("", "127.0.0.1"),
    ],
)
def test_peers_meet_at_addresses_and_names(listen: str, connect: str) -> None:
    with leaves_nothing(), SnakemqListener("niess", listen, 0) as niess:
        assert niess.address[1] > 0
        with SnakemqConnector("bob", connect, niess.address[1]) as bob:
            _talk(bob, niess)


def test_port_0_picks_a_port_of_its_own_each_time() -> None:
    with SnakemqListener("a", "127.0.0.1", 0) as first, SnakemqListener("b", "127.0.0.1", 0) as second:
        assert first.address[0] == second.address[0] == "127.0.0.1"
        assert first.address[1] != second.address[1]


def test_a_listener_that_is_not_started_keeps_its_place_and_those_who_come_wait() -> None:
    niess = SnakemqListener("niess", "127.0.0.1", 0)
    with SnakemqConnector("bob", *niess.address) as bob:
        delivery = bob.send("niess", b"x")
        assert not bob.wait_connected("niess", 0.1)
        with niess:
            assert delivery.wait(DEADLINE_S)


def test_a_listener_whose_name_is_looked_up_for_long_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess, SnakemqConnector("bob", *niess.address) as bob:
        assert bob.wait_connected("niess", DEADLINE_S)
        real = socket.getaddrinfo
        asked, answered = threading.Event(), threading.Event()

        def look_up(*args: Any, **options: Any) -> Any:
            asked.set()
            assert answered.wait(DEADLINE_S)
            return real(*args, **options)

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        added = in_thread(lambda: niess.add_listener("localhost", 0))
        assert asked.wait(DEADLINE_S)
        assert bob.send("niess", b"x").wait(DEADLINE_S)
        assert niess.peers == ["bob"]
        answered.set()
        assert added()


def test_one_peer_listens_and_connects_at_many_places(tmp_path: Path) -> None:
    with SnakemqListener("left", "127.0.0.1", 0) as left, SnakemqListener("right", "127.0.0.1", 0) as right:
        hub = Peer("hub")
        before = hub.add_listener("127.0.0.1", 0)
        hub.add_connector(*left.address)
        with hub:
            after = hub.add_listener("::1", 0)
            unix = hub.add_listener(f"unix:{tmp_path / 'hub'}", 0)
            hub.add_connector(*right.address)
            with (
                SnakemqConnector("one", *before) as one,
                SnakemqConnector("two", *after) as two,
                SnakemqConnector("three", unix, 0) as three,
            ):
                for other in (left, right, one, two, three):
                    _talk(other, hub)
                assert hub.peers == ["left", "one", "right", "three", "two"]
                assert sorted(hub.stats().connected) == hub.peers


def test_two_connectors_to_one_listener_make_one_conversation() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        bob = SnakemqConnector("bob", *niess.address, limits=FAST)
        bob.add_connector(*niess.address)
        with bob:
            _talk(bob, niess)
            deliveries = bob.send_many("niess", [b"%d" % number for number in range(100)])
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        assert [data for _, data in received.calls[1:]] == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize(
    ("host", "port"), [(None, 1), (b"127.0.0.1", 1), ("127.0.0.1", "1"), ("127.0.0.1", -1), ("127.0.0.1", True)]
)
def test_a_place_that_is_none_is_refused(host: Any, port: Any) -> None:
    peer = Peer("a")
    with pytest.raises(ConfigurationError):
        peer.add_connector(host, port)
    with pytest.raises(ConfigurationError):
        peer.add_listener(host, port)
    peer.terminate()


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "two..dots", "label-too-long-" * 5])
def test_a_place_that_is_not_of_this_machine_can_not_be_bound(host: str) -> None:
    with leaves_nothing(), pytest.raises(BindError) as caught:
        SnakemqListener("a", host, 0)
    assert host in str(caught.value)


# Unix sockets


def test_peers_meet_at_a_unix_socket_and_the_file_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "place"
    with SnakemqListener("niess", f"unix:{path}", 0) as niess:
        assert niess.address == f"unix:{path}"
        assert stat.S_ISSOCK(path.stat().st_mode)
        with SnakemqConnector("bob", niess.address, 0) as bob:
            _talk(bob, niess)
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_a_listener_that_was_never_started_is_removed(tmp_path: Path) -> None:
    niess = SnakemqListener("niess", f"unix:{tmp_path / 'place'}", 0)
    niess.terminate()
    assert list(tmp_path.iterdir()) == []


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "place"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    with (
        SnakemqListener("niess", f"unix:{path}", 0) as niess,
        SnakemqConnector("bob", f"unix:{path}", 0) as bob,
    ):
        _talk(bob, niess)


def test_a_unix_socket_in_use_raises_and_its_owner_goes_on(tmp_path: Path) -> None:
    with SnakemqListener("niess", f"unix:{tmp_path / 'place'}", 0) as niess:
        with leaves_nothing():
            with pytest.raises(BindError) as caught:
                SnakemqListener("other", niess.address, 0)
            assert caught.value.errno == errno.EADDRINUSE
        with SnakemqConnector("bob", niess.address, 0) as bob:
            _talk(bob, niess)


def test_a_unix_socket_in_use_by_somebody_who_does_not_accept_raises_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "place")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_full_unix_server(path))
        result = in_thread(lambda: SnakemqListener("other", f"unix:{path}", 0))
        try:
            with pytest.raises(BindError) as caught:
                wait_and_close(result, server)
            assert caught.value.errno == errno.EADDRINUSE
        finally:
            server.close()
    assert os.path.exists(path)


def wait_and_close(result: Any, server: socket.socket) -> None:
    """Wait for the thread; whatever it waits for itself, closing the server after a while ends that."""
    timer = threading.Timer(3, server.close)
    timer.start()
    try:
        result().terminate()
    finally:
        timer.cancel()
        timer.join()


@contextlib.contextmanager
def _full_unix_server(path: str) -> Any:
    """A Unix socket that listens, does not accept, and has a full backlog."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.settimeout(DEADLINE_S)
        server.bind(path)
        server.listen(0)
        while True:
            filler = stack.enter_context(socket.socket(socket.AF_UNIX))
            filler.setblocking(False)
            try:
                filler.connect(path)
            except BlockingIOError:
                break
        yield server


def test_a_connector_to_a_unix_socket_whose_backlog_is_full_says_so_and_connects_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "place")
    with _full_unix_server(path) as server:
        bob = SnakemqConnector("bob", f"unix:{path}", 0, limits=FAST)
        errors = record(bob.on_error)
        with bob:
            assert "can't connect" in str(errors.wait(1, 3)[0])
            assert caplog.text.count("can't connect") == 1
            while True:  # the fillers come first
                sock, _ = server.accept()
                with sock:
                    sock.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        sock.recv(1)
                        continue
                    sock.settimeout(0.2)
                    with contextlib.suppress(TimeoutError):
                        if sock.recv(1):
                            break


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "place"
    path.write_text("precious")
    with leaves_nothing(), pytest.raises(BindError):
        SnakemqListener("niess", f"unix:{path}", 0)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("path", ["/no/such/directory/place", "x" * 200])
def test_a_path_that_can_not_be_had_raises(path: str) -> None:
    with leaves_nothing(), pytest.raises(BindError):
        SnakemqListener("niess", f"unix:{path}", 0)


@pytest.mark.parametrize("path", ["x" * 200, ""])
def test_a_path_that_can_not_be_connected_to_is_reported_and_tried_again(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "netcomm")
    bob = SnakemqConnector("bob", f"unix:{path}", 0, limits=FAST)
    errors = record(bob.on_error)
    with bob:
        wait_until(lambda: caplog.text.count("can't connect") >= 3, "three attempts")
        assert bob.is_alive()
        assert len(errors.wait(1)) == 1


ABSTRACT = """
import os, sys, threading
from tests.integration.helpers import SnakemqConnector, SnakemqListener
place = "unix:" + chr(0) + "netcomm-" + str(os.getpid())
with SnakemqListener("niess", place, 0) as niess, SnakemqConnector("bob", place, 0) as bob:
    print(bob.send("niess", b"x").wait(20))
threads = [thread for thread in threading.enumerate() if thread.name != "netcomm-log"]
print(len(threads), [name for name in os.listdir("/proc/self/fd") if int(name) > 2][1:])
"""


def test_a_listener_in_the_abstract_namespace_can_be_ended() -> None:
    with Program(ABSTRACT) as program:
        assert program.line() == "True"
        assert program.line() == "1 []"
        assert program.wait() == 0
        assert program.errors == ""


# Local sockets: what takes the place of TCP between programs on one machine


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="local sockets are in Linux's abstract namespace")


def _ways() -> set[str]:
    """How this process's connections are made: "local", or "TCP"."""
    found = set()
    inodes = {os.stat(f"/proc/self/fd/{name}").st_ino for name in os.listdir("/proc/self/fd") if _is_socket(name)}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, _, _, state, inode, *name = line.split()
        if state == "03" and int(inode) in inodes and name and name[0].startswith("@netcomm/"):
            found.add("local")
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "01" and int(fields[9]) in inodes:
                found.add("TCP")
    return found


def _is_socket(name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return False


@pytest.mark.requirement("P-67", "positive")
@linux_only
@pytest.mark.parametrize(
    ("listen", "connect", "way"),
    [
        ("127.0.0.1", "127.0.0.1", "local"),
        ("0.0.0.0", "127.0.0.1", "local"),
        ("0.0.0.0", "127.3.2.1", "local"),
        ("127.3.2.1", "127.3.2.1", "local"),
        ("::1", "::1", "local"),
        ("::", "::1", "local"),
        ("", "localhost", "local"),
        ("tcp:127.0.0.1", "127.0.0.1", "TCP"),
        ("127.0.0.1", "tcp:127.0.0.1", "TCP"),
        ("tcp:localhost", "tcp:localhost", "TCP"),
    ],
)
def test_programs_on_one_machine_need_no_tcp(listen: str, connect: str, way: str) -> None:
    with leaves_nothing(), SnakemqListener("niess", listen, 0) as niess:
        assert not str(niess.address[0]).startswith("tcp:")
        with SnakemqConnector("bob", connect, niess.address[1]) as bob:
            _talk(bob, niess)
            assert _ways() == {way}


@linux_only
def test_a_listener_has_the_local_socket_of_its_own_address_only() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        port = niess.address[1]
        with SnakemqListener("other", "127.0.0.2", port), SnakemqConnector("bob", "127.0.0.2", port) as bob:
            assert bob.wait_connected("other", DEADLINE_S)
            assert _ways() == {"local"}
            assert bob.peers == ["other"]


@linux_only
def test_where_the_name_of_a_local_socket_is_taken_tcp_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0netcomm/127.0.0.1:{port}")  # and does not listen
        with SnakemqListener("niess", "127.0.0.1", port) as niess, SnakemqConnector("bob", "127.0.0.1", port) as bob:
            _talk(bob, niess)
            assert _ways() == {"TCP"}


STRANGER = """
import os, socket, sys
if os.geteuid() == 0:
    os.setuid(65534)
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(chr(0) + "netcomm/127.0.0.1:" + sys.argv[1])
    listener.listen()
    print("listens")
    while True:
        connection, _ = listener.accept()
        print("got", connection.recv(1000))
"""


@pytest.mark.requirement("P-67", "negative")
@linux_only
def test_the_local_socket_of_another_user_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:  # then this process can't start one of another user: it says that it is another itself
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with SnakemqListener("niess", "tcp:127.0.0.1", 0) as niess, Program(STRANGER, niess.address[1]) as stranger:
        assert stranger.line() == "listens"
        with SnakemqConnector("bob", "127.0.0.1", niess.address[1]) as bob:
            _talk(bob, niess)
            assert _ways() == {"TCP"}
        assert stranger.line() == "got b''"


@linux_only
def test_the_local_socket_goes_with_its_listener() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        name = f"\0netcomm/127.0.0.1:{niess.address[1]}"
        with socket.socket(socket.AF_UNIX) as dialled:
            dialled.connect(name)
    with socket.socket(socket.AF_UNIX) as dialled, pytest.raises(ConnectionRefusedError):
        dialled.connect(name)


@linux_only
def test_the_log_names_the_process_at_the_other_end_of_a_local_socket(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "netcomm")
    with SnakemqListener("niess", "127.0.0.1", 0) as niess, SnakemqConnector("bob", *niess.address) as bob:
        _talk(bob, niess)
    assert f"connected to 'bob' at process {os.getpid()} of this machine" in caplog.text
    assert f"connected to 'niess' at 127.0.0.1:{niess.address[1]}" in caplog.text


# Names


class Names:
    """Stands in for the name service: what it says of one name changes from one question to the next."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = Recorder()
        self.answer: Any = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self._name = name
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: Any, *args: Any, **options: Any) -> Any:
        if host != self._name:
            return self._real(host, *args, **options)
        self.asked(threading.current_thread().name)
        answer = self.answer
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        return [self._real(address, *args, **options)[0] for address in answer]


def test_a_name_is_resolved_afresh_at_each_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names("niess.example", monkeypatch)
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        bob = SnakemqConnector("bob", "niess.example", niess.address[1], limits=FAST)
        errors = record(bob.on_error)
        with bob:
            names.asked.wait(3)
            assert len(errors.wait(1)) == 1
            assert caplog.text.count("can't connect") == 1
            names.answer = ["127.0.0.1"]
            _talk(bob, niess)


def test_a_name_that_moves_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names("niess.example", monkeypatch)
    first = SnakemqListener("niess", "127.0.0.1", 0)
    names.answer = ["127.0.0.1"]
    with (
        SnakemqListener("elsewhere", "::1", first.address[1]) as second,
        first,
        SnakemqConnector("bob", "niess.example", first.address[1], limits=FAST) as bob,
    ):
        _talk(bob, first)
        names.answer = ["::1"]
        first.terminate()
        _talk(bob, second)


def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names("niess.example", monkeypatch)
    names.answer = ["::1", "127.0.0.2", "127.0.0.1"]
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        bob = SnakemqConnector("bob", "niess.example", niess.address[1])
        errors = record(bob.on_error)
        with bob:
            _talk(bob, niess)
            assert errors.calls == []
            assert len(names.asked) == 1


def test_a_name_service_that_hangs_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names("hanging.example", monkeypatch)
    release = threading.Event()
    names.answer = lambda: release.wait(DEADLINE_S) and ["127.0.0.1"]
    try:
        with SnakemqListener("niess", "127.0.0.1", 0) as niess:
            bob = SnakemqConnector("bob", *niess.address, limits=FAST)
            bob.add_connector("hanging.example", 9)
            with bob:
                (thread,) = names.asked.wait(1)
                assert thread not in (bob.name, threading.current_thread().name)
                for _ in range(10):
                    _talk(bob, niess)
                started = time.monotonic()
                bob.terminate(1)
                assert time.monotonic() - started < 4
                assert not bob.is_alive()
    finally:
        release.set()


def test_a_resolver_that_fails_in_an_odd_way_does_not_end_the_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names("odd.example", monkeypatch)
    names.answer = UnicodeError("label too long")
    with SnakemqConnector("bob", "odd.example", 9, limits=FAST):
        names.asked.wait(3)


def test_an_address_of_an_interface_that_is_not_there_is_reported_and_does_not_end_the_peer() -> None:
    peer = Peer("bob", limits=FAST)
    errors = record(peer.on_error)
    peer.add_connector("fe80::1%nosuch0", 9)
    with peer:
        assert isinstance(errors.wait(1)[0], OSError)
        assert peer.is_alive()


# Reconnecting


def _attempt_times(server: socket.socket, count: int, say: bytes = b"") -> list[float]:
    """Accept and close `count` connections; when each came."""
    times = []
    for _ in range(count):
        sock, _ = server.accept()
        times.append(time.monotonic())
        with sock:
            sock.settimeout(DEADLINE_S)
            if say:
                sock.sendall(say)
                with contextlib.suppress(TimeoutError):
                    sock.settimeout(0.2)
                    read_to_end(sock)
    return times


@pytest.mark.requirement("P-68", "positive")
def test_the_delay_doubles_up_to_its_limit_with_jitter() -> None:
    limits = Limits(reconnect_min_s=0.08, reconnect_max_s=0.32)
    with raw_listener() as server, SnakemqConnector("bob", *server.getsockname(), limits=limits):
        times = _attempt_times(server, 7)
    delays = [later - earlier for earlier, later in itertools.pairwise(times)]
    for delay, nominal in zip(delays, [0.08, 0.16, 0.32, 0.32, 0.32, 0.32], strict=True):
        assert nominal / 2 <= delay + 0.01, delays
        assert delay <= nominal + 0.3, delays
    assert max(delays[2:]) - min(delays[2:]) > 0.001, delays


def test_connectors_do_not_all_come_back_at_the_same_moment() -> None:
    limits = Limits(reconnect_min_s=0.5, reconnect_max_s=0.5)
    with raw_listener() as server, contextlib.ExitStack() as stack:
        for number in range(6):
            stack.enter_context(SnakemqConnector(f"bob-{number}", *server.getsockname(), limits=limits))
        _attempt_times(server, 6)
        again = _attempt_times(server, 6)
    assert again[-1] - again[0] > 0.02


@pytest.mark.requirement("P-68", "positive")
def test_a_good_connection_sets_the_delay_back() -> None:
    limits = Limits(reconnect_min_s=0.05, reconnect_max_s=10)
    greeting = encode.version() + hello() + encode.ident("niess") + encode.begin(frames.Begin(0, 1, 0, 0))
    with raw_listener() as server:
        bob = SnakemqConnector("bob", *server.getsockname(), limits=limits)
        connected = record(bob.on_connect)
        with bob:
            times = _attempt_times(server, 5)  # the next delay is 0.8 s, at least half of it
            assert times[-1] - times[-2] >= 0.2 - 0.01
            sock, _ = server.accept()
            with sock:
                sock.sendall(greeting)
                connected.wait(1)
                lost = time.monotonic()
            (again,) = _attempt_times(server, 1)
            # 0.05 s and not 1.6 s: half of that is still far away.
            assert again - lost < 0.6


@pytest.mark.requirement("P-68", "negative")
def test_a_connection_that_never_identifies_does_not_set_the_delay_back() -> None:
    limits = Limits(reconnect_min_s=0.05, reconnect_max_s=10)
    with raw_listener() as server, SnakemqConnector("bob", *server.getsockname(), limits=limits):
        times = _attempt_times(server, 5, encode.version())
    assert times[4] - times[3] >= 0.2 - 0.01


def test_while_nobody_listens_there_the_delay_stays_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "netcomm.transport.dialer")
    limits = Limits(reconnect_min_s=0.005, reconnect_refused_s=0.01, reconnect_max_s=1000)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with SnakemqConnector("bob", *nobody.getsockname(), limits=limits):
            wait_until(
                lambda: sum("can't connect" in entry.getMessage() for entry in list(caplog.records)) >= 20,
                "20 attempts, the last of which would be an hour away if the delay went on doubling",
            )


@pytest.mark.requirement("P-58", "positive")
@pytest.mark.requirement("P-58", "negative")
@pytest.mark.requirement("P-68", "negative")
@pytest.mark.parametrize(
    "refusal",
    [encode.INCOMPATIBLE, encode.refuse(frames.RefuseCode.DUPLICATE_IDENT, "no")],
    ids=["INCOMPATIBLE", "REFUSE"],
)
def test_a_refused_connector_closes_and_waits_before_it_tries_again(refusal: bytes) -> None:
    limits = Limits(reconnect_min_s=0.5, reconnect_max_s=0.5, handshake_s=10 * DEADLINE_S)  # not what ends it
    refused_at = None
    with raw_listener() as server, SnakemqConnector("bob", *server.getsockname(), limits=limits):
        for _ in range(3):
            sock, _ = server.accept()
            with sock:
                # Before the refusal is said: however late this test is, the connector is later by its whole delay.
                if refused_at is not None:
                    assert time.monotonic() - refused_at >= 0.25
                sock.settimeout(DEADLINE_S)
                refused_at = time.monotonic()
                sock.sendall(encode.version() + refusal)
                read_to_end(sock)


def test_a_server_that_accepts_and_closes_is_not_passed_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with raw_listener() as server:
        bob = SnakemqConnector("bob", *server.getsockname(), limits=FAST)
        errors = record(bob.on_error)
        with bob:
            _attempt_times(server, 5)
            assert len(errors.wait(1, 3)) == 1
            warnings = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
            assert len(warnings) == 1


def test_a_lost_connection_is_made_again_and_what_was_queued_arrives_once() -> None:
    place = None
    received = Recorder()
    with contextlib.ExitStack() as stack:
        for round_ in range(3):
            niess = SnakemqListener("niess", *(place or ("127.0.0.1", 0)))
            niess.on_recv.add(received)
            if place is None:
                place = niess.address
                bob = stack.enter_context(SnakemqConnector("bob", *place, limits=FAST))
            delivery = bob.send("niess", b"%d" % round_)
            with niess:
                assert delivery.wait(DEADLINE_S)
            wait_until(lambda bob=bob: bob.peers == [], "the loss of the connection")
        assert bob.stats().peers["niess"].reconnects == 2
    assert [data for _, data in received.calls] == [b"0", b"1", b"2"]
