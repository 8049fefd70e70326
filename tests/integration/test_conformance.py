"""`python -m netcomm.testing.conformance`, with real listeners: a right one, a wrong one, and none."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from netcomm.peer import attach
from netcomm.testing import conformance
from tests.echoes import TakeAll
from tests.integration.helpers import DEADLINE_S, ROOT, SnakemqListener
from tests.simulation.mutations import Mutation

WAIT = f"{DEADLINE_S:g}"


def test_a_netcomm_listener_answers_all_vectors_twice_over_tcp() -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        attach(niess, TakeAll())
        place = f"127.0.0.1:{niess.address[1]}"
        command = [sys.executable, "-m", "netcomm.testing.conformance", place, "--wait", WAIT]
        for _ in range(2):  # what it has learnt in the first run is no hindrance
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert (result.returncode, result.stderr) == (0, "")
            *lines, total = result.stdout.splitlines()
            assert total == f"{len(lines)} of {len(lines)} vectors are answered as the page says"
            assert {line.split()[0] for line in lines} == {"right"}
            assert len(lines) > 90


def test_a_netcomm_listener_that_sends_messages_back_answers_the_vectors_for_that(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        attach(niess, TakeAll(echoes=True))
        niess.on_message.add(
            lambda ident, message: niess.send(
                ident, message.data, ttl=message.ttl, subject=message.subject, headers=message.headers
            )
        )
        result = conformance.main([f"127.0.0.1:{niess.address[1]}", "--echo", "--wait", WAIT])
    output = capsys.readouterr().out
    assert result == 0, output
    assert len(output.splitlines()) > 9


def test_a_listener_with_a_defect_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    defect = Mutation(
        "no word to another VERSION",
        "protocol.session:Session._receive_version",
        "self._output.append(encode.INCOMPATIBLE)",
        "pass",
    )
    with defect.planted(), SnakemqListener("niess", "127.0.0.1", 0) as niess:
        attach(niess, TakeAll())
        assert conformance.main([f"127.0.0.1:{niess.address[1]}", "--wait", WAIT]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if line.startswith("WRONG")]
    assert wrong == ["WRONG  [P-19] VERSION 2"]
    assert lines[lines.index(wrong[0]) + 1].endswith("hears 00000001 01: the connection is closed")


def test_where_nobody_listens_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert conformance.main([place]) == 2
    assert f"can't connect to {place}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["localhost"], ["localhost:x"], ["localhost:1", "--page", "none"]])
def test_what_makes_no_sense_is_told(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        conformance.main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m netcomm.testing.conformance" in capsys.readouterr().err


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        page = conformance.PAGE.read_text(encoding="utf-8")
        vector = next(conformance.all_vectors(page))
        complaint = conformance.judge(vector, lambda: conformance.SocketLine(server.getsockname(), 0.05))
    assert complaint is not None
    assert complaint.endswith("nothing comes")
