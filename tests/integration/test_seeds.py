"""The test scripts that users wrote for snakeMQ's wrapper run with nothing changed but imports and `encoding`."""

import threading
from pathlib import Path

import pytest

from netcomm import SnakemqConnector, SnakemqListener

MESSAGES = 100
WAIT_S = 60.0


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The content of testfile.txt, 1 MB of text that is not only ASCII; persistent peers keep their files here too."""
    monkeypatch.chdir(tmp_path)
    line = "机会总是留给有准备的人, a line of a text file, 0123456789\n"
    Path("testfile.txt").write_text(line * (1_000_000 // len(line.encode())), encoding="utf-8")
    with open("testfile.txt", encoding="utf-8") as f:
        return f.read()


@pytest.mark.parametrize("persistent", [False, True])
def test_a_file_sent_a_hundred_times_arrives_a_hundred_times_in_order(text: str, persistent: bool) -> None:
    sent = [f"{i}\n{text}" for i in range(MESSAGES)]
    received: list[tuple[str, str]] = []
    answers: list[tuple[str, str]] = []
    all_answered = threading.Event()

    def niess_received(ident: str, data: str) -> None:
        received.append((ident, data))
        niess.sendMsg("bob", f"hello,{ident}".encode())

    def bob_received(ident: str, data: str) -> None:
        answers.append((ident, data))
        if len(answers) == MESSAGES:
            all_answered.set()

    niess = SnakemqListener("niess", "127.0.0.1", 0, encoding="utf-8")
    niess.on_recv.add(niess_received)
    niess.start()
    bob = SnakemqConnector("bob", "127.0.0.1", niess.address[1], persistent, encoding="utf-8")
    bob.on_recv.add(bob_received)
    bob.start()
    try:
        for txt in sent:
            bob.sendMsg("niess", txt.encode("utf-8"))
        assert all_answered.wait(WAIT_S), f"{len(received)} received, {len(answers)} answered"
    finally:
        bob.terminate()
        niess.terminate()
    assert [ident for ident, _ in received] == ["bob"] * MESSAGES
    assert [data.partition("\n")[0] for _, data in received] == [str(i) for i in range(MESSAGES)]
    assert all(data == txt for (_, data), txt in zip(received, sent, strict=True))
    assert answers == [("niess", "hello,bob")] * MESSAGES
    assert not bob.is_alive()
    assert not niess.is_alive()


def test_what_was_sent_before_the_listener_started_arrives(text: str) -> None:
    received: list[str] = []
    with SnakemqListener("niess", "127.0.0.1", 0) as first:
        port = first.address[1]
    bob = SnakemqConnector("bob", "127.0.0.1", port, True)
    bob.start()
    niess = None
    try:
        deliveries = [bob.sendMsg("niess", f"{i}\n{text}".encode()) for i in range(10)]
        niess = SnakemqListener("niess", "127.0.0.1", port, encoding="utf-8")
        niess.on_recv.add(lambda ident, data: received.append(data))
        niess.start()
        assert all(delivery.wait(WAIT_S) for delivery in deliveries)
    finally:
        bob.terminate()
        if niess is not None:
            niess.terminate()
    assert [data.partition("\n")[0] for data in received] == [str(i) for i in range(10)]
    assert all(data.partition("\n")[2] == text for data in received)
