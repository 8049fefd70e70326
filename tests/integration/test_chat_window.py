"""`examples/chat_window.py` in real windows: keys are pressed, and what the windows show is looked at.

NETCOMM_SCREENSHOTS names a folder for the picture, chat-window.png; the one in docs/images was made so.
"""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netcomm.testing.proxy import FaultProxy
from tests.integration.helpers import wait_until
from tests.integration.processes import ROOT, WAIT_S, Program, run
from tests.integration.screen import Screen

EXAMPLE = ROOT / "examples" / "chat_window.py"
MARK_COLOUR = "#228b22"  # forest green
END_S = 5.0
"""A window that is closed ends its program within this; it waits for messages for a second."""


class Window:
    """A chat window, in a process of its own."""

    def __init__(self, screen: Screen, ident: str, other: str, port: int, *options: str) -> None:
        self.title = f"{ident}: chat with {other}"
        self._screen = screen
        arguments = (EXAMPLE, ident, other, "--host", "tcp:127.0.0.1", "--port", str(port), *options)
        self.program = Program(*arguments, python=screen.python, **screen.environment)

    def type(self, text: str) -> None:
        self._screen.type(self.title, text)

    def paste(self, text: str) -> None:
        self._screen.ask(self.title, f".!entry insert insert {{{text}}}")

    def press(self, *keys: str) -> None:
        self._screen.press(self.title, *keys)

    @property
    def status(self) -> str:
        return str(self._screen.ask(self.title, ".!label cget -text"))

    @property
    def lines(self) -> list[str]:
        return str(self._screen.ask(self.title, ".!text get 1.0 end-1c")).splitlines()

    def wait_for_line(self, line: str) -> None:
        wait_until(lambda: self.program.ended or line in self.lines, f"a line {line!r} in {self.title!r}", WAIT_S)
        assert not self.program.ended, self.program.output

    def wait_for_status(self, status: str) -> None:
        wait_until(lambda: self.status == status, f"{self.title!r} with {status!r}", WAIT_S)

    def wait_for_end(self) -> float:
        """Wait for the program's end, which is a good one, without a word; returns how long that took, in seconds."""
        started = time.monotonic()
        assert (self.program.wait(), self.program.output) == (0, "")
        return time.monotonic() - started


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    with Screen(tmp_path) as made:
        yield made


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def test_what_is_typed_in_one_window_is_shown_by_the_other(screen: Screen, tmp_path: Path) -> None:
    folder = Path(os.environ.get("NETCOMM_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "chat-window.png"
    port = free_port()
    bob = Window(screen, "bob", "niess", port)
    with bob.program:
        screen.move(bob.title, 440, 10)
        bob.wait_for_status("Here: nobody. What you write waits for niess.")
        bob.type("Are you there?")
        bob.wait_for_line("bob: Are you there? …")
        niess = Window(screen, "niess", "bob", port, "--listen")
        with niess.program:
            screen.move(niess.title, 10, 10)
            niess.wait_for_line("bob: Are you there?")
            bob.wait_for_line("bob: Are you there? ✓")
            niess.type("Yes. I have been away for a moment, so your message has waited.")
            niess.wait_for_line("niess: Yes. I have been away for a moment, so your message has waited. ✓")
            bob.wait_for_line("niess: Yes. I have been away for a moment, so your message has waited.")
            niess.wait_for_status("Here: bob.")
            bob.wait_for_status("Here: niess.")
            bob.paste("Déjà vu ☺")  # the keyboard has no such keys
            bob.press("Return")
            niess.wait_for_line("bob: Déjà vu ☺")
            bob.wait_for_line("bob: Déjà vu ☺ ✓")
            assert niess.lines.count("bob: Are you there?") == 1
            wait_until(lambda: _shows_marks(screen, picture), "a picture with marks in both windows")


def _shows_marks(screen: Screen, picture: Path) -> bool:
    screen.take_picture(picture)
    middle = screen.WIDTH // 2
    left, right = ((0, middle), (middle, screen.WIDTH))
    return all(screen.count_pixels(picture, MARK_COLOUR, *columns) > 0 for columns in (left, right))


def test_a_window_tells_of_a_connection_that_is_cut_and_delivers_when_it_is_back(screen: Screen) -> None:
    port = free_port()
    with (
        FaultProxy(("127.0.0.1", port)) as proxy,
        (niess := Window(screen, "niess", "bob", port, "--listen")).program,
        (bob := Window(screen, "bob", "niess", proxy.address[1])).program,
    ):
        bob.wait_for_status("Here: niess.")
        niess.wait_for_status("Here: bob.")
        proxy.refuse()
        proxy.cut()
        bob.wait_for_status("Here: nobody. What you write waits for niess.")
        niess.wait_for_status("Here: nobody. What you write waits for bob.")
        bob.wait_for_line("niess is away")
        bob.type("from bob")
        niess.type("from niess")
        bob.wait_for_line("bob: from bob …")
        niess.wait_for_line("niess: from niess …")
        assert "bob: from bob" not in niess.lines
        proxy.accept()
        bob.wait_for_line("bob: from bob ✓")
        niess.wait_for_line("niess: from niess ✓")
        bob.wait_for_line("niess: from niess")
        niess.wait_for_line("bob: from bob")
        bob.wait_for_status("Here: niess.")
        niess.wait_for_status("Here: bob.")


def test_closing_a_window_ends_its_program_soon_and_the_other_window_tells(screen: Screen) -> None:
    port = free_port()
    with (
        (niess := Window(screen, "niess", "bob", port, "--listen")).program,
        (bob := Window(screen, "bob", "niess", port)).program,
    ):
        bob.wait_for_status("Here: niess.")
        niess.press("alt+F4")
        assert niess.wait_for_end() < END_S
        bob.wait_for_status("Here: nobody. What you write waits for niess.")
        bob.type("too late")
        bob.wait_for_line("bob: too late …")
        bob.press("alt+F4")
        assert bob.wait_for_end() < END_S


def test_ctrl_c_in_the_terminal_ends_it_as_well(screen: Screen) -> None:
    window = Window(screen, "niess", "bob", free_port(), "--listen")
    with window.program:
        window.wait_for_line("You are niess.")
        window.program.interrupt()
        assert window.wait_for_end() < END_S


def test_a_port_that_is_taken_is_told_of_and_no_window_is_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = run(EXAMPLE, "niess", "bob", "--listen", "--host", "127.0.0.1", "--port", port)
    assert code == 1
    assert port in output
    assert "Traceback" not in output
