"""A server that speaks MongoDB's protocol, for tests: one that is there, or one of the tests' own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from pymongo import MongoClient

_START_S = 30.0
_HOW = (
    "put `mongod`, or FerretDB 1's `ferretdb` (one program, which keeps its data with SQLite), on the PATH, or set"
    " NETCOMM_TEST_MONGODB_URL to the URL of a server that may be written to"
)


class MongodbServer:
    """A server of the tests' own, that can be stopped, killed and started again with the same data and port."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()

    @property
    def url(self) -> str:
        """Without a database."""
        return f"mongodb://127.0.0.1:{self._port}/"

    @property
    def log(self) -> Path:
        return self._folder / "log"

    def start(self) -> None:
        """Start it; it accepts connections when this returns."""
        data = self._folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(data), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder
            )
        until = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, f"{self._program} has ended:\n{self._tail()}"
            assert time.monotonic() < until, f"{self._program} does not answer:\n{self._tail()}"
            time.sleep(0.005)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                pytest.fail(f"{self._program} has not ended within {_START_S:g} s")

    def _command(self, data: Path) -> list[str]:
        if Path(self._program).name.startswith("mongod"):
            return [
                self._program,
                "--quiet",
                "--bind_ip",
                "127.0.0.1",
                "--port",
                f"{self._port}",
                "--dbpath",
                f"{data}",
            ]
        return [
            self._program,
            "--handler=sqlite",
            f"--sqlite-url=file:{data}/",
            f"--state-dir={self._folder}",
            f"--listen-addr=127.0.0.1:{self._port}",
            "--debug-addr=-",
            "--log-level=warn",
            "--telemetry=disable",
        ]

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _without_server(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="module")
def own_mongodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongodbServer]:
    """A running server that the tests may stop. Who stops it starts it again."""
    program = shutil.which("mongod") or shutil.which("ferretdb")
    if program is None:
        _without_server(f"there is no MongoDB server of our own: {_HOW.partition(', or set')[0]}")
    server = MongodbServer(program, tmp_path_factory.mktemp("mongodb"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def mongodb_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database that is empty, and removed in the end, on a running server; options can be added."""
    base = os.environ.get("NETCOMM_TEST_MONGODB_URL")
    if base is None:
        if not (shutil.which("mongod") or shutil.which("ferretdb")):
            _without_server(f"there is no MongoDB server: {_HOW}")
        base = request.getfixturevalue("own_mongodb").url
    server, _, options = base.partition("?")
    scheme, _, place = server.partition("://")
    database = f"netcomm_test_{os.urandom(6).hex()}"
    yield f"{scheme}://{place.partition('/')[0]}/{database}?{options or 'appname=netcomm'}"
    with MongoClient(base) as client:
        client.drop_database(database)
