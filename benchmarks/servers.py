"""Starts the servers that some peers need between sender and receiver, where they are found on the PATH."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from benchmarks.processes import Failed, Missing

_START_S = 60.0
_END_S = 15.0
# Debian's rabbitmq-server on the PATH changes to a user who can't use our folder; this is what it calls.
_DEBIAN_RABBITMQ = "/usr/lib/rabbitmq/bin"


@contextmanager
def nats(folder: str) -> Iterator[int]:
    """nats-server; it may keep what a slow receiver has not taken yet."""
    config = Path(folder, "nats.conf")
    config.write_text("max_pending: 1GB\nmax_payload: 8MB\n")
    port = _free_port()
    with _running("nats-server", ["-a", "127.0.0.1", "-p", str(port), "-c", str(config)], {}, port):
        yield port


@contextmanager
def rabbitmq(folder: str) -> Iterator[int]:
    """A node of RabbitMQ of its own, which leaves alone what else runs here."""
    port = _free_port()
    where = Path(folder).absolute()
    settings = {
        "RABBITMQ_NODENAME": f"netcomm-benchmark-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "RABBITMQ_MNESIA_BASE": str(where / "mnesia"),
        "RABBITMQ_LOG_BASE": str(where / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(where / "plugins"),
        "RABBITMQ_PID_FILE": str(where / "pid"),
        "ERL_CRASH_DUMP": str(where / "crash.dump"),
        "HOME": str(where),
    }
    with _running("rabbitmq-server", [], settings, port):
        yield port


@contextmanager
def _running(command: str, arguments: Sequence[str], settings: Mapping[str, str], port: int) -> Iterator[None]:
    found = shutil.which(command, path=os.pathsep.join((_DEBIAN_RABBITMQ, os.environ.get("PATH", os.defpath))))
    if found is None:
        raise Missing(f"{command} is not on the PATH")
    process = subprocess.Popen(
        [found, *arguments],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = monotonic() + _START_S
        while not _answers(port):
            if process.poll() is not None or monotonic() > until:
                raise Failed(f"{command} does not start")
            sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
