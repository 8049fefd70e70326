"""`netcomm queue` shows, drops and exports what waits in a storage, also while its owner runs."""

import base64
import json
import os
import pty
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from time import monotonic, time
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

import netcomm.storage_url
from netcomm import SnakemqConnector, SnakemqListener
from netcomm.cli import output as cli_output
from netcomm.cli.queue import command
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.message import Stream
from netcomm.protocol.envelope import of_message
from netcomm.storage import Append, Position, StoredMessage
from netcomm.storage_url import open_storage
from tests.integration.processes import ROOT, WAIT_S, Program, run

EPOCH = 0xABCDEF
NOW = time()
HOUR = 3600.0
DAY = 24 * HOUR
# Half an hour, in ages, so that what is shown is the same however long the tests run.
OLD = 1 * DAY + 3.5 * HOUR
OLDER = 4 * DAY + 7.5 * HOUR
TTL = 9 * DAY + 2.5 * HOUR


def message(seq: int, data: bytes = b"hello", age: float = OLD, ttl: float | None = None) -> StoredMessage:
    return StoredMessage(seq, seq.to_bytes(16), data, NOW - age, ttl)


def fill(path: Path, messages: Sequence[StoredMessage], ident: str = "bob") -> None:
    with open_storage(f"sqlite:///{path}") as storage:
        storage.append([Append(ident, EPOCH, messages)])


def seqs(path: Path, ident: str = "bob") -> list[int]:
    with open_storage(f"sqlite:///{path}", read_only=True) as storage:
        return [each.seq for each in storage.read(ident, 0, 1000, 2**40)]


def queue(*arguments: str | Path) -> tuple[int, str]:
    return run("-m", "netcomm", "queue", *arguments)


def queue_here(*arguments: str | Path) -> Result:
    """The same in this process, where there are many."""
    return CliRunner().invoke(command, list(map(str, arguments)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A storage with messages for three receivers, one of whom has got them all."""
    path = tmp_path / "queue.db"
    fill(path, [message(0, b"a" * 1000), message(1, b"b" * 500, age=2 * HOUR, ttl=TTL), message(7, b"")])
    fill(path, [message(3, age=OLDER, ttl=10)], ident="älice")
    fill(path, [message(0)], ident="carol")
    with open_storage(f"sqlite:///{path}") as storage:
        storage.delete_below("carol", 1)
        storage.store_positions({"dave": Position(2**63 + 5, 12)})
    return path


# -- list -----------------------------------------------------------------------------------------------------


def test_list_has_a_row_for_each_receiver_and_each_position(path: Path) -> None:
    code, output = queue("list", f"sqlite:///{path}")
    assert code == 0
    assert [re.split(r"  +", line.strip()) for line in output.splitlines()] == [
        ["receiver", "messages", "bytes", "oldest", "expires in", "epoch", "next seq"],
        ["bob", "3", "1,500", "1 d 3 h", "9 d 0 h", "0000000000abcdef", "8"],
        ["carol", "0", "0", "-", "-", "0000000000abcdef", "1"],
        ["älice", "1", "5", "4 d 7 h", "expired", "0000000000abcdef", "4"],
        [""],
        ["sender", "epoch", "next seq"],
        ["dave", "8000000000000005", "12"],
    ]
    header, bob, carol, alice = output.splitlines()[:4]
    assert header.index("messages") + len("messages") == bob.index("3") + 1 == alice.index("1 ") + 1
    assert header.index("epoch") == bob.index("0000") == carol.index("0000") == alice.index("0000")


def test_list_as_json_is_one_document(path: Path) -> None:
    code, output = queue("list", path, "--json")
    assert code == 0
    document = json.loads(output)
    with open_storage(f"sqlite:///{path}", read_only=True) as storage:
        assert document["store_id"] == storage.store_id.hex()
        assert document["incarnation"] == storage.incarnation
    assert document["positions"] == [{"ident": "dave", "epoch": "8000000000000005", "next_seq": 12}]
    bob, carol, alice = document["receivers"]
    assert bob.pop("oldest_age_s") == pytest.approx(time() - NOW + OLD, abs=WAIT_S)
    assert bob.pop("next_expiry_in_s") == pytest.approx(NOW - 2 * HOUR + TTL - time(), abs=WAIT_S)
    assert bob == {
        "ident": "bob",
        "messages": 3,
        "bytes": 1500,
        "oldest_at": NOW - OLD,
        "next_expiry_at": NOW - 2 * HOUR + TTL,
        "epoch": "0000000000abcdef",
        "next_seq": 8,
    }
    assert carol == {
        **dict.fromkeys(["oldest_at", "oldest_age_s", "next_expiry_at", "next_expiry_in_s"]),
        "ident": "carol",
        "messages": 0,
        "bytes": 0,
        "epoch": "0000000000abcdef",
        "next_seq": 1,
    }
    assert (alice["ident"], alice["messages"]) == ("älice", 1)


def test_a_path_that_looks_like_a_url_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "qu?eue %41#.db"
    path.parent.joinpath("queue.db").touch()
    with netcomm.storage_url._load_plugin("sqlite")(path) as storage:  # type: ignore[call-arg]
        storage.append([Append("bob", EPOCH, [message(0)])])
    code, output = queue("list", path)
    assert code == 0, output
    assert "bob" in output


def test_a_path_may_have_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path / "queue") + b"-caf\xe9 %41.db"))
    with netcomm.storage_url._load_plugin("sqlite")(path) as storage:  # type: ignore[call-arg]
        storage.append([Append("bob", EPOCH, [message(seq) for seq in range(3)])])
    files = set(os.listdir(os.fsencode(tmp_path)))
    for arguments, says in [
        (["list", path], "bob"),
        (["show", path, "bob"], "hello"),
        (["drop", path, "bob", "--seq", "1", "--yes"], "dropped 1 message for bob"),
        (["export", path, "-o", "-"], "2 messages, 10 bytes"),
    ]:
        code, output = queue(*arguments)
        assert code == 0, output
        assert says in output
    new = set(os.listdir(os.fsencode(tmp_path))) - files
    assert not {name for name in new if not name.endswith((b"-wal", b"-shm"))}, "no other file was taken for it"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (60, "1 min"), (7380, "2 h 3 min"), (90000, "1 d 1 h")],
)
def test_a_duration_has_the_unit_that_fits(seconds: float, shown: str) -> None:
    assert cli_output._duration(seconds) == shown


def test_an_empty_storage_is_told_of(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path}/queue.db").close()
    assert queue("list", tmp_path / "queue.db") == (0, "It has no messages, and never had any.")


def test_on_a_terminal_there_is_a_table_and_no_ident_steers_it(tmp_path: Path) -> None:
    fill(tmp_path / "queue.db", [message(0)], ident="[red]x\x1b[5m\n[/]")
    with Program("-m", "netcomm", "queue", "list", tmp_path / "queue.db", terminal=True) as program:
        assert program.wait() == 0, program.output
        plain = re.sub(r"\x1b\[[0-9;]*m", "", program.output)
        assert "╭" in plain
        assert "│ [red]x?[5m?[/] │" in plain
        assert "\x1b[5m" not in program.output


# -- show -----------------------------------------------------------------------------------------------------


def test_show_lists_the_messages_of_one_receiver(path: Path) -> None:
    code, output = queue("show", path, "bob")
    assert code == 0
    rows = [re.split(r"  +", line.strip()) for line in output.splitlines()]
    assert re.fullmatch(r"2 h \d+ min", rows[2].pop(3))
    assert rows == [
        ["seq", "uuid", "bytes", "age", "expires in", "preview"],
        ["0", f"{0:032x}", "1,000", "1 d 3 h", "-", "a" * 48 + "…"],
        ["1", f"{1:032x}", "500", "9 d 0 h", "b" * 48 + "…"],
        ["7", f"{7:032x}", "0", "1 d 3 h", "-"],
    ]


def test_show_as_json_has_a_line_for_each_message(path: Path) -> None:
    code, output = queue("show", path, "bob", "--json")
    assert code == 0
    entries = [json.loads(line) for line in output.splitlines()]
    assert entries[1].pop("age_s") == pytest.approx(time() - NOW + 2 * HOUR, abs=WAIT_S)
    assert entries[1].pop("ttl_left_s") == pytest.approx(NOW - 2 * HOUR + TTL - time(), abs=WAIT_S)
    assert entries[1] == {
        "seq": 1,
        "uuid": f"{1:032x}",
        "bytes": 500,
        "queued_at": NOW - 2 * HOUR,
        "ttl": TTL,
        "preview": "b" * 48 + "…",
    }
    assert (entries[0]["ttl"], entries[0]["ttl_left_s"]) == (None, None)
    assert [entry["seq"] for entry in entries] == [0, 1, 7]


def test_show_keeps_to_its_limit_and_says_where_to_go_on(path: Path) -> None:
    code, output = queue("show", path, "bob", "--limit", "2")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == ["seq", "0", "1", "There"]
    assert output.splitlines()[-1] == "There are more: --from 7"
    code, output = queue("show", path, "bob", "--limit", "2", "--from", "7")
    assert [line.split()[0] for line in output.splitlines()] == ["seq", "7"]
    assert queue("show", path, "bob", "--from", "8") == (0, "No messages wait for bob from seq 8 on.")
    assert queue("show", path, "carol") == (0, "No messages wait for carol.")


@pytest.mark.parametrize(
    ("data", "preview"),
    [
        (b"plain", "plain"),
        ("zwölf".encode(), "zwölf"),
        (b"\x1b[31mred\x07\r\n\tend", "·[31mred····end"),
        (b"\xff\xfe\x00", "···"),
        ("\u202etxt.\u200b".encode(), "·txt.·"),
        (b"x" * 48, "x" * 48),
        (b"x" * 49, "x" * 48 + "…"),
        ("😀".encode() * 49, "😀" * 48 + "…"),
    ],
)
def test_a_preview_is_short_and_safe(tmp_path: Path, data: bytes, preview: str) -> None:
    fill(tmp_path / "queue.db", [message(0, data)])
    result = queue_here("show", tmp_path / "queue.db", "bob")
    assert result.exit_code == 0
    assert result.output.splitlines()[1].endswith(f"  {preview}")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_without_preview_nothing_of_a_payload_is_shown(tmp_path: Path, more: list[str]) -> None:
    fill(tmp_path / "queue.db", [message(0, b"secret")])
    code, output = queue("show", tmp_path / "queue.db", "bob", "--no-preview", *more)
    assert code == 0
    assert f"{0:032x}" in output
    assert "secret" not in output
    assert "preview" not in output


# -- drop -----------------------------------------------------------------------------------------------------


def test_drop_takes_out_single_messages(path: Path) -> None:
    assert queue("drop", path, "bob", "--seq", "7", "--seq", "0", "--yes") == (0, "dropped 2 messages for bob")
    assert seqs(path) == [1]
    assert seqs(path, "älice") == [3]


def test_drop_takes_out_all_messages_of_one_receiver(path: Path) -> None:
    assert queue("drop", path, "bob", "--all", "--yes") == (0, "dropped 3 messages for bob")
    assert seqs(path) == []
    assert seqs(path, "älice") == [3]
    assert queue("drop", path, "bob", "--all", "--yes") == (0, "No messages wait for bob.")


def test_drop_of_a_message_that_is_not_there_drops_nothing(path: Path) -> None:
    code, output = queue("drop", path, "bob", "--seq", "1", "--seq", "5", "--yes")
    assert (code, output) == (1, "netcomm: no message with seq 5 waits for bob; nothing was dropped")
    assert seqs(path) == [0, 1, 7]


@pytest.mark.parametrize("what", [[], ["--all", "--seq", "1"]])
def test_drop_has_to_be_told_what(path: Path, what: list[str]) -> None:
    code, output = queue("drop", path, "bob", "--yes", *what)
    assert code == 2
    assert "either --seq, or --all" in output
    assert seqs(path) == [0, 1, 7]


def test_drop_without_a_terminal_needs_a_yes(path: Path) -> None:
    code, output = queue("drop", path, "bob", "--all")
    assert code == 2
    assert "--yes" in output
    assert seqs(path) == [0, 1, 7]


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, []), ("n", 1, [0, 1, 7]), ("", 1, [0, 1, 7])])
def test_drop_asks_on_a_terminal(path: Path, answer: str, code: int, left: list[int]) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "netcomm", "queue", "drop", str(path), "bob", "--all"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        os.write(ours, f"{answer}\n".encode())
        output, _ = process.communicate(timeout=WAIT_S)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == code
    assert b"Drop 3 messages for bob? [y/N]" in output
    assert seqs(path) == left


def test_what_was_dropped_is_not_sent_and_the_rest_is(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    got: list[bytes] = []
    with SnakemqListener("bob", "127.0.0.1", 0, storage=f"sqlite:///{tmp_path}/bob.db") as bob:
        bob.on_recv.add(lambda ident, data: got.append(data))
        port = bob.address[1]

        def send(*items: bytes, connected: bool = True) -> None:
            with SnakemqConnector("ann", "127.0.0.1", int(port), True, storage=f"sqlite:///{path}") as ann:
                ann.send_many("bob" if connected else "nobody", items)
                assert not connected or ann.flush(WAIT_S)

        send(b"first")
        with open_storage(f"sqlite:///{path}") as storage:
            (stream,) = storage.streams()
            storage.append([Append("bob", 0, [message(seq, b"%d" % seq) for seq in range(1, 11)])])
        assert queue_here("drop", path, "bob", "--seq", "1", "--seq", "5", "--seq", "10", "--yes").exit_code == 0
        send(b"second")
        with open_storage(f"sqlite:///{path}") as storage:
            storage.append([Append("bob", 0, [message(seq, b"%d" % seq) for seq in range(12, 15)])])
        assert queue_here("drop", path, "bob", "--all", "--yes").exit_code == 0
        send(b"third")
    assert got == [b"first", b"2", b"3", b"4", b"6", b"7", b"8", b"9", b"second", b"third"]
    with open_storage(f"sqlite:///{path}", read_only=True) as storage:
        assert storage.streams()[0].epoch == stream.epoch


# -- export ---------------------------------------------------------------------------------------------------


def exported(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]


def test_export_writes_every_message(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    assert queue("export", path, "-o", file) == (0, "4 messages, 1,505 bytes")
    entries = exported(file)
    assert [(entry["ident"], entry["seq"]) for entry in entries] == [("bob", 0), ("bob", 1), ("bob", 7), ("älice", 3)]
    assert entries[1] == {
        "ident": "bob",
        "seq": 1,
        "uuid": f"{1:032x}",
        "queued_at": NOW - 2 * HOUR,
        "ttl": TTL,
        "data": base64.b64encode(b"b" * 500).decode(),
    }
    assert seqs(path) == [0, 1, 7]


def test_export_writes_the_messages_of_one_receiver(path: Path) -> None:
    code, output = queue("export", path, "älice", "-o", "-")
    assert code == 0
    entry, summary = output.splitlines()
    assert (json.loads(entry)["seq"], summary) == (3, "1 messages, 5 bytes")


def test_export_overwrites_nothing(path: Path) -> None:
    before = path.read_bytes()
    code, output = queue("export", path, "-o", path)
    assert (code, output) == (1, f"netcomm: can't write {path}: File exists")
    assert path.read_bytes() == before


def test_export_has_only_a_part_of_the_backlog_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    for seq in range(60):
        fill(path, [message(seq, bytes([seq]) * 1_000_000)])
    tracemalloc.start()
    try:
        result = queue_here("export", path, "-o", tmp_path / "out.jsonl")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.exit_code == 0
    entries = exported(tmp_path / "out.jsonl")
    assert [base64.b64decode(entry["data"])[:1][0] for entry in entries] == list(range(60))
    assert peak < 20_000_000


# -- While the owner runs -------------------------------------------------------------------------------------

# Sends to somebody who is away, as fast as it can, until it is killed.
OWNER = """
import sys
from itertools import count
from netcomm import SnakemqConnector
with SnakemqConnector("ann", "127.0.0.1", 1, True, storage="sqlite:///" + sys.argv[1]) as ann:
    for number in count():
        ann.send("bob", b"%d" % number)
        if number == 0:
            print("sending", flush=True)
"""


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Path]:
    """A storage whose owner runs, and sends."""
    with Program("-c", OWNER, tmp_path / "queue.db") as program:
        program.wait_for("sending")
        yield tmp_path / "queue.db"


def test_looking_is_possible_while_the_owner_sends(owned: Path) -> None:
    counts = []
    until = monotonic() + WAIT_S
    while len(counts) < 100 or counts[-1] == counts[0]:
        assert monotonic() < until, "the owner does not send"
        listed = queue_here("list", owned, "--json")
        assert listed.exit_code == 0, listed.output
        (bob,) = json.loads(listed.output)["receivers"]
        counts.append(bob["messages"])
        shown = queue_here("show", owned, "bob", "--limit", "3", "--json")
        assert shown.exit_code == 0, shown.output
        previews = [json.loads(line)["preview"] for line in shown.output.splitlines()]
        assert len(previews) >= min(3, counts[-1])
        assert previews == ["0", "1", "2"][: len(previews)]
    assert counts == sorted(counts)


def test_an_export_has_an_end_while_the_owner_sends(owned: Path, tmp_path: Path) -> None:
    code, output = queue("export", owned, "-o", tmp_path / "out.jsonl")
    assert code == 0, output
    entries = exported(tmp_path / "out.jsonl")
    assert entries
    assert [base64.b64decode(entry["data"]) for entry in entries] == [b"%d" % seq for seq in range(len(entries))]


def test_dropping_is_refused_while_the_owner_runs(owned: Path) -> None:
    code, output = queue("drop", owned, "bob", "--all", "--yes")
    assert code == 1
    assert re.fullmatch(r"netcomm: .*queue\.db is open already.*; end the peer that uses it first", output)
    assert seqs(owned)[0] == 0


# -- What can't be done ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["list", "nowhere.db"], 2, "neither a file, nor a URL"),
        (["list", "carrierpigeon://loft"], 2, "no storage plug-in for 'carrierpigeon'; installed are:"),
        (["list", "sqlite://host/queue.db"], 2, "an SQLite URL is"),
        (["list", "sqlite:////nowhere/queue.db"], 1, "there is no queue storage at /nowhere/queue.db"),
        (["list", "garbage.db"], 1, "damaged"),
        (["show", "queue.db", "eve"], 1, "never had a message for 'eve'; receivers are: bob"),
        (["drop", "queue.db", "eve", "--all", "--yes"], 1, "never had a message for 'eve'"),
        (["drop", "sqlite:///new.db", "bob", "--all", "--yes"], 1, "there is no queue storage at new.db"),
        (["export", "queue.db", "eve", "-o", "out"], 1, "never had a message for 'eve'"),
        (["export", "queue.db", "-o", "no/such/folder"], 1, "can't write no/such/folder: No such file"),
    ],
)
def test_what_goes_wrong_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("queue.db"), [message(0)])
    Path("garbage.db").write_bytes(b"no database" * 1000)
    result = queue_here(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("netcomm: ")
    assert says in result.stderr
    # A look at an SQLite file makes FILE-wal and FILE-shm, and can't remove them.
    files = {name for name in os.listdir() if not name.endswith(("-wal", "-shm"))}
    assert files == {"queue.db", "queue.db-lock", "garbage.db"}


def test_a_damaged_message_ends_an_export_and_what_is_before_it_is_kept(path: Path, tmp_path: Path) -> None:
    with open_storage(f"sqlite:///{path}") as storage:
        damage = "UPDATE message SET data = 'B' || substr(data, 2) WHERE id = (SELECT min(id) + 1 FROM message)"
        storage.database.execute(damage)  # type: ignore[attr-defined]
    code, output = queue("export", path, "bob", "-o", tmp_path / "out.jsonl")
    assert code == 1
    assert "message 1 is not what was stored" in output
    assert "(1 messages were written before)" in output
    assert [entry["seq"] for entry in exported(tmp_path / "out.jsonl")] == [0]


# -- Other plug-ins -------------------------------------------------------------------------------------------


class Shelf(MemoryQueueStorage):
    """A plug-in that nobody has told the command of. There is one shelf, and it puts off what is to be forgotten."""

    the_shelf: "Shelf"

    def __init__(self) -> None:
        super().__init__()
        self.put_off: list[tuple[str, int]] = []
        self.opened: list[bool] = []
        self.closed = threading.Event()

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        cls.the_shelf.opened.append(read_only)
        return cls.the_shelf  # type: ignore[return-value]

    def delete_below(self, ident: str, seq: int) -> None:
        self.put_off.append((ident, seq))

    def close(self) -> None:
        for ident, seq in self.put_off:
            super().delete_below(ident, seq)
        self.put_off.clear()
        self.closed.set()


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    Shelf.the_shelf = Shelf()
    point = EntryPoint("shelf", f"{__name__}:Shelf", "netcomm.storage")
    monkeypatch.setattr(netcomm.storage_url, "_entry_points", lambda: [point])
    Shelf.the_shelf.append([Append("bob", EPOCH, [message(seq) for seq in range(5)])])
    return Shelf.the_shelf


def test_subject_and_headers_are_shown_and_exported(shelf: Shelf, tmp_path: Path) -> None:
    raw = of_message("weather", {"traceparent": "00-\x1b[31m"})
    assert raw is not None
    kept = [message(seq)._replace(envelope=envelope) for seq, envelope in ((5, raw), (6, b"\0\1\2"))]
    shelf.append([Append("bob", EPOCH, kept)])
    rows = queue_here("show", "shelf:", "bob", "--from", "4").output.splitlines()
    assert [row.rpartition("  ")[2] for row in rows[1:]] == [
        "hello",
        "[weather traceparent=00-·[31m] hello",
        "[damaged: envelope of 3 bytes] hello",
    ]
    lines = queue_here("show", "shelf:", "bob", "--from", "4", "--json").output.splitlines()
    plain, with_both, damaged = (json.loads(line) for line in lines)
    assert not plain.keys() & {"subject", "headers", "envelope"}
    assert (with_both["subject"], with_both["headers"]) == ("weather", {"traceparent": "00-\x1b[31m"})
    assert damaged["envelope"] == "damaged: envelope of 3 bytes"
    assert "weather" not in queue_here("show", "shelf:", "bob", "--no-preview").output
    assert queue_here("export", "shelf:", "-o", tmp_path / "out.jsonl").exit_code == 0
    assert [entry.get("subject") for entry in exported(tmp_path / "out.jsonl")] == [None] * 5 + ["weather", None]


def test_every_plug_in_will_do(shelf: Shelf, tmp_path: Path) -> None:
    assert "bob" in queue_here("list", "shelf:").output
    assert len(queue_here("show", "shelf:", "bob").output.splitlines()) == 6
    assert queue_here("export", "shelf:", "-o", tmp_path / "out.jsonl").exit_code == 0
    assert len(exported(tmp_path / "out.jsonl")) == 5
    assert shelf.opened == [True, True, True]
    assert queue_here("drop", "shelf:", "bob", "--seq", "2", "--yes").exit_code == 0
    assert [each.seq for each in shelf.read("bob", 0, 10, 2**40)] == [0, 1, 3, 4]
    assert queue_here("drop", "shelf:", "bob", "--all", "--yes").exit_code == 0
    assert shelf.read("bob", 0, 10, 2**40) == []
    assert shelf.closed.is_set()


def test_messages_of_the_bus_are_counted_apart_and_left_alone(path: Path, tmp_path: Path) -> None:
    with open_storage(f"sqlite:///{path}") as storage:
        message = StoredMessage(0, bytes(16), b"of the bus", NOW, None)
        storage.append([Append("bob", EPOCH + 1, [message], Stream.BUS_DURABLE)])
    code, output = queue("list", path)
    assert code == 0
    assert "1 messages of topics and queues wait for bob." in output.splitlines()
    assert json.loads(queue("list", path, "--json")[1])["bus"] == {"bob": 1}
    assert b"of the bus" not in queue("show", path, "bob")[1].encode()
    code, _ = queue("drop", path, "bob", "--all", "--yes")
    assert code == 0
    with open_storage(f"sqlite:///{path}", read_only=True) as storage:
        left = {(stream.ident, stream.stream): stream.count for stream in storage.streams()}
    assert left["bob", Stream.DURABLE] == 0
    assert left["bob", Stream.BUS_DURABLE] == 1
