"""The fixture `fault_proxy`, as users load it: in these tests, and in pytest runs of their own."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from netcomm import Limits, SnakemqConnector, SnakemqListener
from netcomm.testing import FaultProxy
from tests.unit.test_docs import ROOT, blocks, environment

LOAD_IT = 'pytest_plugins = ["netcomm.testing.pytest_plugin"]'
pytest_plugins = ["netcomm.testing.pytest_plugin"]

DEADLINE_S = 60.0

StartProxy = Callable[..., FaultProxy]


def run_pytest(folder: Path, test: str, conftest: str = LOAD_IT) -> str:
    """Run a test file as a user would, warnings being errors; returns what pytest prints."""
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_network.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=DEADLINE_S)
    return result.stdout + result.stderr


def test_a_pair_of_peers_survives_random_cuts(fault_proxy: StartProxy) -> None:
    sent = [b"%d " % number * 100 for number in range(200)]
    received: list[bytes] = []
    limits = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05)
    with SnakemqListener("niess", "127.0.0.1", 0, limits=limits) as niess:
        niess.on_recv.add(lambda ident, data: received.append(data))
        proxy = fault_proxy(niess.address, cut_every=5000, seed=4)
        with SnakemqConnector("bob", *proxy.address, limits=limits) as bob:
            bob.send_many("niess", sent)
            assert bob.flush(DEADLINE_S)
    assert received == sent
    assert proxy.cuts >= 3


def test_a_test_may_have_several_proxies_with_options_of_their_own(fault_proxy: StartProxy) -> None:
    first = fault_proxy(("127.0.0.1", 9))
    second = fault_proxy(first.address, chunk_bytes=3, delay=0.5, cut_every=7.0)
    assert isinstance(first, FaultProxy)
    assert (first.chunk_bytes, first.delay, first.cut_every) == (None, 0.0, None)
    assert (second.chunk_bytes, second.delay, second.cut_every) == (3, 0.5, 7.0)
    assert second.target == first.address
    assert first.address != second.address


def test_proxies_are_closed_when_their_test_is_over_also_where_it_fails(tmp_path: Path) -> None:
    output = run_pytest(
        tmp_path,
        conftest=f"from netcomm.testing import FaultProxy\n{LOAD_IT}",
        test="""
import socket
import threading

import pytest

proxies = []

def test_passes(fault_proxy):
    proxies.extend([fault_proxy(("127.0.0.1", 9)), fault_proxy(("127.0.0.1", 9))])

def test_fails(fault_proxy):
    proxies.append(fault_proxy(("127.0.0.1", 9)))
    raise ValueError("on purpose")

def test_they_are_closed():
    assert len(proxies) == 3
    for proxy in proxies:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(proxy.address)
    assert threading.active_count() == 1
""",
    )
    assert "1 failed, 2 passed" in output, output
    assert "ValueError: on purpose" in output


def test_the_documented_test_passes(tmp_path: Path) -> None:
    page = ROOT / "docs" / "testing.md"
    assert LOAD_IT in page.read_text(encoding="utf-8")
    (test,) = [block.code for block in blocks(page) if block.note.startswith("test_network.py")]
    output = run_pytest(tmp_path, f"from netcomm import SnakemqConnector, SnakemqListener\n{test}")
    assert "1 passed" in output, output


def test_nobody_gets_the_fixture_who_has_not_asked_for_it(tmp_path: Path) -> None:
    assert [point for point in entry_points(group="pytest11") if point.value.startswith("netcomm")] == []
    output = run_pytest(tmp_path, "def test_it(fault_proxy):\n    pass\n", conftest="")
    assert "fixture 'fault_proxy' not found" in output, output
