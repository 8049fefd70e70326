"""What the tests of this folder share to run programs: the command `netcomm`, and the examples."""

import errno
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Self

WAIT_S = 60.0
ROOT = Path(__file__).parents[2]
_TERMINAL = {"TERM": "xterm", "COLUMNS": "100"}


class Program:
    """A Python program that runs; `with` ends it. Its standard output and error are read together."""

    def __init__(
        self, *arguments: str | Path, terminal: bool = False, python: str = sys.executable, **environment: str
    ) -> None:
        """Start it. With `terminal`, it believes that somebody looks at what it prints."""
        search_path = os.pathsep.join([str(ROOT), str(ROOT / "storage"), *filter(None, [os.environ.get("PYTHONPATH")])])
        reading, writing = pty.openpty() if terminal else os.pipe()
        # A test run in the background ignores SIGINT, and what is started from it would too.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self._process = subprocess.Popen(
                [python, "-W", "error", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env={**os.environ, "PYTHONPATH": search_path, "PYTHONIOENCODING": "utf-8", **_TERMINAL, **environment},
            )
        finally:
            signal.signal(signal.SIGINT, previous)
            os.close(writing)
        self._reading = reading
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._read_lines():
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read_lines(self) -> Iterator[str]:
        with open(self._reading, "rb") as file:
            try:
                for line in file:
                    yield line.decode().rstrip("\r\n")
            except OSError as error:
                if error.errno != errno.EIO:  # the end, where it is a terminal
                    raise

    @property
    def output(self) -> str:
        with self._changed:
            return "\n".join(self._lines)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        with self._changed:
            return self._ended

    def wait_for(self, text: str) -> str:
        """Wait for a line that contains a text; returns the first one."""
        until = monotonic() + WAIT_S
        with self._changed:
            while not (found := [line for line in self._lines if text in line]):
                assert not self._ended, f"it has ended without a word of {text!r}:\n" + "\n".join(self._lines)
                assert self._changed.wait(until - monotonic()), f"no {text!r} in:\n" + "\n".join(self._lines)
            return found[0]

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Let it die without a word."""
        self._process.kill()

    def wait(self) -> int:
        """Wait for its end, and that of every process that it has started; returns the exit code."""
        code = self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)  # all of them hold the pipe that it reads
        assert self._ended, "what it has started still runs"
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(WAIT_S)


def run(*arguments: str | Path) -> tuple[int, str]:
    """Run a Python program to its end; returns the exit code and the output."""
    with Program(*arguments) as program:
        code = program.wait()
        return code, program.output
