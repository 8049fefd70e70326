"""Every example answers --help, and does what it says, as a program of its own."""

import hashlib
import json
import random
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from netcomm import SnakemqConnector
from netcomm.testing.proxy import FaultProxy
from tests.integration.processes import ROOT, WAIT_S, Program, run

EXAMPLES = ROOT / "examples"
MIB = 1024 * 1024


def port_of(listener: Program) -> str:
    return listener.wait_for("listening at port ").split()[-1]


def end(program: Program) -> None:
    program.interrupt()
    assert program.wait() == 0, program.output
    assert "Traceback" not in program.output


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(name: str) -> ModuleType:
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_answers_help(path: Path) -> None:
    code, output = run(path, "--help")
    assert code == 0
    assert "usage:" in output
    assert path.name in output


def test_hello_is_answered() -> None:
    with Program(EXAMPLES / "hello_listener.py", "--port", "0") as listener:
        port = port_of(listener)
        code, output = run(EXAMPLES / "hello_connector.py", "--port", port, "--ident", "zoë", "good morning, 世界")
        assert (code, output) == (0, "niess: hello, zoë")
        assert listener.wait_for("zoë: ") == "zoë: good morning, 世界"
        end(listener)


def test_snakemq_style_server_and_client_talk() -> None:
    script = EXAMPLES / "snakemq_style.py"
    with Program(script, "server", "--port", "0") as server:
        with Program(script, "client", "--port", port_of(server)) as client:
            client.wait_for("received from server: {'type': 'execute', 'value': 'abc'}")
            server.wait_for("received from client: {'type': 'status', 'value': 'ready'}")
            client.wait_for("[snakemq_style] connected: server")
            end(client)
        server.wait_for("[snakemq_style] disconnected: client")
        end(server)


@pytest.fixture
def receiver(tmp_path: Path):
    """A file_transfer_listener that runs; the folder that it writes to, and its port."""
    folder = tmp_path / "received"
    with Program(EXAMPLES / "file_transfer_listener.py", "--port", "0", "--folder", folder) as listener:
        port = port_of(listener)
        yield folder, port
        end(listener)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".incoming-")] == []


def test_files_of_all_sizes_arrive(receiver: tuple[Path, str], tmp_path: Path) -> None:
    folder, port = receiver
    sources = []
    chance = random.Random(2)
    for name, size in [
        ("empty", 0),
        ("one byte.bin", 1),
        ("all bytes.bin", 256),
        ("just a piece.bin", MIB),
        ("a piece and one.bin", MIB + 1),
        ("Übung — 练习.txt", 5000),
        ("a hundred.bin", 100 * 1000 * 1000),
    ]:
        path = tmp_path / name
        path.write_bytes(bytes(range(256)) if size == 256 else chance.randbytes(size))
        sources.append(path)
    code, output = run(EXAMPLES / "file_transfer_connector.py", "--port", port, *sources)
    assert code == 0, output
    assert output.splitlines() == [f"{path}: ok" for path in sources]
    for path in sources:
        assert sha256(folder / path.name) == sha256(path), path.name
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in sources)


def test_a_file_arrives_though_the_connection_is_cut_again_and_again(
    receiver: tuple[Path, str], tmp_path: Path
) -> None:
    folder, port = receiver
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(3).randbytes(20 * MIB))
    with FaultProxy(("localhost", int(port)), cut_every=3 * MIB) as proxy:
        code, output = run(EXAMPLES / "file_transfer_connector.py", "--port", str(proxy.address[1]), path)
        assert (code, output) == (0, f"{path}: ok")
        assert proxy.cuts > 0
    assert sha256(folder / "large.bin") == sha256(path)


def test_a_file_that_cannot_be_stored_is_told_of_and_the_next_one_arrives(
    receiver: tuple[Path, str], tmp_path: Path
) -> None:
    folder, port = receiver
    (folder / "taken").mkdir()
    large, small = tmp_path / "taken", tmp_path / "small"
    large.write_bytes(bytes(3 * MIB))
    small.write_bytes(b"content")
    code, output = run(EXAMPLES / "file_transfer_connector.py", "--port", port, large, small)
    assert code == 1
    told_large, told_small = output.splitlines()
    assert "IsADirectoryError" in told_large
    assert told_small == f"{small}: ok"
    assert (folder / "small").read_bytes() == b"content"


def test_without_a_listener_the_file_connector_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # Nothing listens at port 1 of this machine.
    code, output = run(EXAMPLES / "file_transfer_connector.py", "--port", "1", "--timeout", "0.2", tmp_path / "file")
    assert (code, output) == (1, "no listener at localhost:1")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\windows\\system.ini", "system.ini"),
        ("..", "unnamed"),
        ("a/..", "unnamed"),
        ("", "unnamed"),
        ("nul\0and\nnewline", "nulandnewline"),
        (".hidden", ".hidden"),
        ("Übung — 练习.txt", "Übung — 练习.txt"),
    ],
)
def test_a_name_from_elsewhere_stays_in_the_folder(name: str, safe: str) -> None:
    assert load("file_transfer_listener").safe_name(name) == safe


def test_a_stranger_cannot_write_outside_of_the_folder(receiver: tuple[Path, str]) -> None:
    folder, port = receiver
    before = sorted(folder.parent.iterdir())
    empty = hashlib.sha256(b"").hexdigest()
    answers: list[dict[str, object]] = []
    with SnakemqConnector("stranger", "localhost", int(port)) as stranger:
        stranger.on_recv.add(lambda ident, data: answers.append(json.loads(data)))
        for message in (
            json.dumps({"name": "../escaped", "offset": 0, "sha256": empty}).encode() + b"\n",
            b"neither a header nor a line",
            json.dumps(["not", "a", "header"]).encode() + b"\n",
            json.dumps({"name": 5, "offset": 0}).encode() + b"\n",
            json.dumps({"name": "torn", "offset": 7}).encode() + b"\n",
            json.dumps({"name": "wrong", "offset": 0, "sha256": "0" * 64}).encode() + b"\n",
        ):
            assert stranger.send("files", message).wait(WAIT_S)
    assert sorted(folder.parent.iterdir()) == before
    assert [path.name for path in folder.iterdir()] == ["escaped"]
