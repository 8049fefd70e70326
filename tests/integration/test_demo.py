"""`netcomm demo` sends real files through cuts and kills, tells the truth about it, and leaves nothing running."""

import hashlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from netcomm import cli
from netcomm.cli.demo import director, journal
from netcomm.cli.demo.journal import ReceivedJournal, Record
from netcomm.cli.demo.judge import Report, judge
from netcomm.cli.demo.plan import standard_library
from tests.integration import processes
from tests.integration.processes import Program, run

COLUMNS = ["files", "bytes", "seconds", "reconnects", "redelivered", "lost", "duplicated", "wrong hash"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several kinds: text, binary, empty, larger than one message; some in a folder of their own."""
    root = tmp_path / "data"
    (root / "deep" / "er").mkdir(parents=True)
    chance = random.Random(1)
    (root / "text.txt").write_text("zwölf Boxkämpfer\n" * 100, encoding="utf-8")
    (root / "empty").touch()
    (root / "deep" / "large.bin").write_bytes(chance.randbytes(9_000_000))
    for number in range(20):
        (root / "deep" / "er" / f"né {number}.bin").write_bytes(chance.randbytes(number * 1000))
    return root


def table(output: str) -> dict[str, str]:
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    assert len(rows) == 2, output
    return dict(zip(*rows, strict=True))


def test_a_folder_arrives_though_the_connection_is_cut_and_both_processes_are_killed(folder: Path) -> None:
    code, output = run("-m", "netcomm", "demo", folder)
    assert code == 0, output
    shown = table(output)
    assert list(shown) == COLUMNS
    assert shown["files"] == "23"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert shown["bytes"] == f"{size:,}"
    assert int(shown["reconnects"]) >= 3
    assert int(shown["redelivered"]) >= 0
    assert float(shown["seconds"]) > 0
    assert (shown["lost"], shown["duplicated"], shown["wrong hash"]) == ("0", "0", "0")
    for text in (
        r"\d+ of 25 messages are sent: the TCP connection is cut",
        r"connected again after \d+\.\d\d s",
        r"\d+ of 25 messages are sent: the listener, process \d+, is killed",
        r"another listener, process \d+, is connected after \d+\.\d\d s",
        r"\d+ of 25 messages are sent: the connector, process \d+, is killed",
        r"another connector: \d+ messages wait in its storage, \d+ are still to be sent",
        r"another connector, process \d+, is connected after \d+\.\d\d s",
    ):
        assert re.search(f"^{text}$", output, re.MULTILINE), f"no {text!r} in:\n{output}"
    assert "\x1b" not in output, "without a terminal there are no escape sequences"


def test_on_a_terminal_there_is_a_bar(folder: Path) -> None:
    with Program("-m", "netcomm", "demo", folder, terminal=True) as program:
        assert program.wait() == 0, program.output
        assert "\x1b[" in program.output
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", program.output)
        assert "100 % ━━━" in plain
        assert table(plain)["files"] == "23"


def test_the_table_is_whole_where_there_is_no_terminal_and_where_it_is_narrow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(processes._TERMINAL, "COLUMNS", "80")
    code, output = run("-m", "netcomm", "demo", folder)
    assert code == 0, output
    assert list(table(output)) == COLUMNS
    with Program("-m", "netcomm", "demo", folder, terminal=True) as program:
        assert program.wait() == 0, program.output
        assert list(table(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", program.output))) == COLUMNS


@pytest.mark.parametrize("name", ["text.txt", "empty", "deep/large.bin"])
def test_one_file_arrives(folder: Path, name: str) -> None:
    code, output = run("-m", "netcomm", "demo", folder / name)
    assert code == 0, output
    assert table(output)["files"] == "1"
    assert table(output)["bytes"] == f"{(folder / name).stat().st_size:,}"


def test_without_a_path_the_standard_library_is_sent() -> None:
    code, output = run("-m", "netcomm", "demo")
    assert code == 0, output
    sources = [path for path in standard_library().rglob("*.py") if "site-packages" not in path.parts]
    assert table(output)["files"] == f"{len(sources):,}"
    assert table(output)["bytes"] == f"{sum(path.stat().st_size for path in sources):,}"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "no file in"),
        (os.mkfifo, "neither a file nor a folder"),
    ],
    ids=["missing", "empty folder", "pipe"],
)
def test_a_path_that_cannot_be_sent_is_told_of(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "this"
    make(path)
    code, output = run("-m", "netcomm", "demo", path)
    assert code == 2
    assert says in output
    assert "Traceback" not in output


def test_a_file_that_cannot_be_read_is_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so that no mode of a file would do
    monkeypatch.setattr(sys, "argv", ["netcomm", "demo", str(folder / "text.txt")])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 2
    assert f"can't read {folder / 'text.txt'}: Permission denied" in capsys.readouterr().err


@pytest.fixture
def long_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """A demo that has begun, and won't end by itself within the test."""
    path = tmp_path / "huge.bin"
    path.touch()
    os.truncate(path, 50_000_000_000)  # of which nothing is on the disk
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with Program("-m", "netcomm", "demo", path) as program:
        program.wait_for("listener: process ")
        program.wait_for("connector: process ")
        yield program


def test_ctrl_c_ends_everything(long_demo: Program, tmp_path: Path) -> None:
    long_demo.interrupt()
    assert long_demo.wait() == 130
    assert long_demo.output.endswith("interrupted; the processes have been ended")
    assert "Traceback" not in long_demo.output
    assert list((tmp_path / "tmp").iterdir()) == []


def test_no_process_outlives_a_parent_that_is_killed(long_demo: Program) -> None:
    long_demo.kill()
    long_demo.wait()
    assert "Traceback" not in long_demo.output


# -- The judge ------------------------------------------------------------------------------------------------

PLANNED = [("a", 0), ("b", 0), ("c", 0)]


def sent(*names: str) -> list[Record]:
    """What the connector notes, when it sends these, one after the other."""
    return [
        Record(number, name, 0, len(name), hashlib.sha256(name.encode()).hexdigest())
        for number, name in enumerate(names)
    ]


ABC = sent("a", "b", "c")
A, B, C = ABC


def again(record: Record, process: int = 1, redelivered: bool = True) -> Record:
    """What the listener notes, when a message is handed over again: to process 1, while it was process 0 before."""
    return replace(record, process=process, redelivered=redelivered)


def judged(
    received: list[Record], attempts: list[Record] = ABC, accepted: set[int] | None = None, connects: int = 1
) -> Report:
    return judge(PLANNED, attempts, range(len(attempts)) if accepted is None else accepted, received, connects)


def test_the_judge_finds_nothing_wrong_with_what_is_right() -> None:
    report = judged(ABC, connects=2)
    assert report == Report(files=3, bytes=3, reconnects=1)
    assert report.good


def test_the_judge_finds_what_was_sent_and_did_not_arrive() -> None:
    report = judged([A, C])
    assert (report.files, report.lost, report.good) == (2, ["b"], False)


def test_the_judge_finds_what_was_never_sent() -> None:
    report = judged([A, B], attempts=[A, B])
    assert (report.lost, report.good) == (["c"], False)


def test_the_judge_finds_a_part_that_did_not_arrive() -> None:
    parts = [Record(offset, "large", offset, 1, "hash") for offset in range(3)]
    report = judge([part.key for part in parts], parts, range(3), parts[:2], connects=1)
    assert (report.files, report.lost, report.good) == (0, ["large"], False)


def test_the_judge_finds_what_arrived_twice() -> None:
    report = judged([A, B, B, C])
    assert (report.files, report.bytes, report.duplicated, report.good) == (3, 3, ["b"], False)


def test_the_judge_finds_what_arrived_twice_without_being_marked() -> None:
    report = judged([A, B, again(B, redelivered=False), C])
    assert (report.redelivered, report.duplicated, report.good) == (0, ["b"], False)


def test_the_judge_finds_what_one_process_got_twice_though_it_was_marked() -> None:
    report = judged([A, B, again(B, process=0), C])
    assert (report.redelivered, report.duplicated, report.good) == (0, ["b"], False)


def test_the_judge_finds_what_another_process_got_twice() -> None:
    report = judged([A, B, again(B), again(B), C])
    assert (report.redelivered, report.duplicated, report.good) == (1, ["b"], False)


def test_the_judge_accepts_what_another_process_gets_again_with_a_mark() -> None:
    report = judged([A, B, again(B), again(C)])
    assert (report.files, report.bytes, report.redelivered, report.good) == (3, 3, 1, True)


def test_the_judge_tells_a_repetition_by_the_sender_from_a_duplicate() -> None:
    attempts = sent("a", "b", "b", "c")
    report = judged(attempts, attempts, accepted={0, 2, 3})
    assert (report.files, report.bytes, report.repeated, report.duplicated, report.good) == (3, 3, 1, [], True)


def test_the_judge_does_not_miss_what_the_sender_could_not_send() -> None:
    attempts = sent("a", "b", "b", "c")
    report = judged([attempts[0], *attempts[2:]], attempts, accepted={0, 2, 3})
    assert (report.repeated, report.lost, report.good) == (0, [], True)


def test_the_judge_finds_a_repetition_that_did_not_arrive_though_it_was_accepted() -> None:
    attempts = sent("a", "b", "b", "c")
    report = judged([*attempts[:2], attempts[3]], attempts, accepted={0, 2, 3})
    assert (report.lost, report.good) == (["b"], False)


def test_the_judge_finds_what_is_not_what_was_sent() -> None:
    report = judged([A, replace(B, sha256="of something else"), C])
    assert (report.wrong, report.lost, report.good) == (["b"], [], False)


def test_the_judge_finds_what_is_not_what_its_header_says() -> None:
    report = judged([A, replace(B, intact=False), C])
    assert (report.wrong, report.good) == (["b"], False)


def test_the_judge_finds_a_message_with_the_number_of_another() -> None:
    report = judged([A, B, replace(A, attempt=2)])
    assert (report.wrong, report.good) == (["c"], False)


def test_the_judge_finds_what_nobody_sent() -> None:
    stranger = replace(sent("d")[0], attempt=-1)
    report = judged([*ABC, stranger, stranger])
    assert (report.files, report.wrong, report.duplicated, report.good) == (3, ["d"], [], False)


def test_a_line_that_was_cut_off_does_not_count_and_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "received.jsonl").write_bytes(b'{"attempt": 1, "na')
    with ReceivedJournal(tmp_path) as writer:
        writer.note(A)
    assert journal.received(tmp_path) == [A]


# -- Planted faults -------------------------------------------------------------------------------------------

# What replaces the listener process: its netcomm hands over the messages of two files differently.
FAULTY_LISTENER = """
import json
import sys
from dataclasses import replace
from netcomm.cli.demo import roles
from netcomm.callbacks import Callback

call = Callback.__call__

def faulty(self, *args):
    if self._name == "on_message" and json.loads(args[1].data.split(b"\\n")[0])["name"] in ("2", "7"):
        ident, message = args
        {fault}
    else:
        call(self, *args)

Callback.__call__ = faulty
roles.main(sys.argv[1:])
"""
TWICE_UNMARKED = "for _ in range(2): call(self, ident, replace(message, redelivered=False))"
TWICE_MARKED = "for _ in range(2): call(self, ident, replace(message, redelivered=True))"
FLIPPED = "call(self, ident, replace(message, data=message.data[:-1] + bytes([message.data[-1] ^ 1])))"


@pytest.mark.parametrize(
    ("column", "fault"),
    [
        ("lost", "pass"),
        ("duplicated", TWICE_UNMARKED),
        ("duplicated", TWICE_MARKED),
        ("wrong hash", FLIPPED),
    ],
    ids=["dropped", "handed over twice", "handed over twice to one process, marked", "flipped"],
)
def test_a_planted_fault_is_found(
    column: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]))
    command = director._command

    def faulty_command(role: str) -> list[str]:
        if role == "listener":
            return [sys.executable, "-P", "-c", FAULTY_LISTENER.replace("{fault}", fault), role]
        return command(role)

    monkeypatch.setattr(director, "_command", faulty_command)
    monkeypatch.setattr(sys, "argv", ["netcomm", "demo", str(tmp_path)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 1
    output = capsys.readouterr().out
    shown = table(output)
    assert {name: shown[name] for name in COLUMNS[5:]} == {**dict.fromkeys(COLUMNS[5:], "0"), column: "2"}
    assert f"{column}: 2\n{column}: 7\n" in output, "the files are named"
    assert "Every file has arrived" not in output


def test_a_process_that_dies_is_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = director._command
    dying = [sys.executable, "-c", "import os; os._exit(3)"]
    monkeypatch.setattr(director, "_command", lambda role: dying if role == "connector" else command(role))
    monkeypatch.setattr(sys, "argv", ["netcomm", "demo", str(folder)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 1
    assert "the connector process has ended unexpectedly" in capsys.readouterr().err


def test_when_nothing_moves_it_gives_up_and_reports_what_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, go_on, patience_s = director.FaultProxy.cut, director._Child.go_on, director._STALL_S

    def cut_for_good(self: director.FaultProxy, reset: bool = False) -> int:
        monkeypatch.setattr(director, "_STALL_S", 1.0)  # not before: on a busy machine, processes start slowly
        self.refuse()
        return cut(self, reset)

    def report(self: director._Child) -> None:
        monkeypatch.setattr(director, "_STALL_S", patience_s)
        go_on(self)

    monkeypatch.setattr(director.FaultProxy, "cut", cut_for_good)
    monkeypatch.setattr(director._Child, "go_on", report)
    monkeypatch.setattr(sys, "argv", ["netcomm", "demo", str(folder)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == 1
    output = capsys.readouterr().out
    assert "giving up" in output
    assert int(table(output)["lost"]) > 0
