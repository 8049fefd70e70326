"""A backlog is not in memory: a large one opens at once, and neither queueing nor draining it takes much.

The short form has 200,000 messages, the long one (see tests/trials.py) up to 1,000,000: that takes minutes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.helpers import ROOT
from tests.trials import SOAK

COUNT = min(200_000 * SOAK, 1_000_000)
SIZE = 100
MAX_GROWTH_BYTES = 64 * 1024 * 1024
MAX_OPENING_S = 1.0
MAX_EXPIRING_S = 60 * COUNT // 200_000

_COMMON = """
import json, os, sys, threading, time
from netcomm import Limits, Peer, SnakemqConnector, SnakemqListener
import netcomm_sqlite
url, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
limits = Limits(reconnect_min_s=0.01, reconnect_max_s=0.05)

def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

class Growth:
    def __init__(self):
        open("/proc/self/clear_refs", "w").write("5")  # sets the high-water mark back
        self.start = status("VmRSS")
    def __int__(self):
        return status("VmHWM") - self.start

def data(number):
    return b"%d " % number + bytes(size - len(b"%d " % number))
"""

_QUEUE = (
    _COMMON
    + """
with Peer("sender", storage=url, limits=limits) as peer:
    peer.send("receiver", data(0), persistent=True)
    growth = Growth()
    for start in range(1, count, 5000):
        peer.send_many("receiver", [data(n) for n in range(start, min(start + 5000, count))], persistent=True)
    print(json.dumps({"growth": int(growth), "queued": peer.stats().peers["receiver"].queued}))
"""
)

_OPEN = (
    _COMMON
    + """
started = time.monotonic()
peer = Peer("sender", storage=url, limits=limits)
opened = time.monotonic() - started
print(json.dumps({"opened": opened, "queued": peer.stats().peers["receiver"].queued}))
peer.terminate()
"""
)

_DRAIN = (
    _COMMON
    + """
import subprocess
receiver = subprocess.Popen([sys.executable, "-c", sys.argv[4], "-", sys.argv[2], sys.argv[3]],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
port = int(receiver.stdout.readline())
growth = Growth()
with SnakemqConnector("sender", "127.0.0.1", port, storage=url, limits=limits) as peer:
    flushed = peer.flush(600)
    grown = int(growth)
receiver.stdin.close()
print(json.dumps({"growth": grown, "flushed": flushed, **json.loads(receiver.stdout.readline())}))
receiver.wait()
"""
)

_RECEIVE = (
    _COMMON
    + """
expected = 0
wrong = 0
def receive(ident, got):
    global expected, wrong
    wrong += got != data(expected)
    expected += 1
with SnakemqListener("receiver", "127.0.0.1", 0, limits=limits) as receiver:
    growth = Growth()
    receiver.on_recv.add(receive)
    print(receiver.address[1], flush=True)
    sys.stdin.read()
    print(json.dumps({"received": expected, "wrong": wrong, "receiver_growth": int(growth)}), flush=True)
"""
)

_EXPIRE = (
    _COMMON
    + """
from netcomm import clocks
clocks.read = lambda: (clocks.now(), time.time() + 10_000)
dropped = 0
done = threading.Event()
def drop(ident, delivery):
    global dropped
    dropped += 1
    if dropped == count:
        done.set()
peer = Peer("sender", storage=url, limits=limits)
peer.on_drop.add(drop)
growth = Growth()
started = time.monotonic()
with peer:
    done.wait(float(sys.argv[4]))
    print(json.dumps({"dropped": dropped, "seconds": time.monotonic() - started, "growth": int(growth),
        "queued": peer.stats().peers["receiver"].queued}))
    peer.terminate()
"""
)


def run(program: str, path: Path, *more: str, count: int = COUNT) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{path}?durability=process", str(count), str(SIZE), *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    print(result)
    return result


def test_a_large_backlog_opens_at_once_and_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queued = run(_QUEUE, path)
    assert queued["queued"] == COUNT
    assert queued["growth"] < MAX_GROWTH_BYTES
    opened = min((run(_OPEN, path) for _ in range(3)), key=lambda result: result["opened"])
    assert opened["queued"] == COUNT
    assert opened["opened"] < MAX_OPENING_S
    drained = run(_DRAIN, path, _RECEIVE)
    assert drained["flushed"]
    assert (drained["received"], drained["wrong"]) == (COUNT, 0)
    assert drained["growth"] < MAX_GROWTH_BYTES
    assert drained["receiver_growth"] < MAX_GROWTH_BYTES
    assert run(_OPEN, path)["queued"] == 0


def test_a_large_backlog_that_has_expired_is_dropped_in_time_that_grows_with_it_alone(tmp_path: Path) -> None:
    seconds = []
    for count in (COUNT // 10, COUNT // 5, COUNT // 2):
        path = tmp_path / f"{count}.db"
        run(_QUEUE.replace("persistent=True", "persistent=True, ttl=1000"), path, count=count)
        expired = run(_EXPIRE, path, str(MAX_EXPIRING_S), count=count)
        assert (expired["dropped"], expired["queued"]) == (count, 0)
        assert expired["growth"] < MAX_GROWTH_BYTES
        seconds.append(expired["seconds"] / count)
    # A message of a backlog that is five times as large costs as much; at most three times, on a busy machine.
    assert seconds[-1] < 3 * seconds[0]
