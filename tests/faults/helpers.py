"""What the fault tests share: processes that start cheaply and are killed, and the side files that they write."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0
"""So long may anything take that has no bound of its own."""


def wait_until(true: Callable[[], bool], what: str, timeout: float = DEADLINE_S) -> None:
    """Wait for something that another process does."""
    until = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < until, f"{what} has not come true within {timeout:g} s"
        time.sleep(0.0005)


class SideFile:
    """A file that a process appends a line to for each thing that it has done, at once: it tells after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def size(self) -> int:
        return self.path.stat().st_size


class Line:
    """The writing end of a SideFile."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, *lines: str) -> None:
        os.write(self._descriptor, "".join(line + "\n" for line in lines).encode())


class Nursery:
    """Makes processes: one that has imported everything, and has no threads, forks them.

    That is ten times as quick as starting an interpreter for each; and a process is dead, and everything that it held
    is given up, when `kill` returns.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.helpers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                text=True,
            )

    def _ask(self, **request: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the nursery has ended: {self.log()}"
        return int(answer)

    def start(self, module: str, **config: Any) -> "Child":
        """Run `main(config)` of a module of this folder in a process of its own."""
        return Child(self, self._ask(do="start", module=f"tests.faults.{module}", config=config))

    def log(self) -> str:
        """What the processes have written to stderr."""
        return self._log.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._process.stdout.close()


class Child:
    """A process that a Nursery has made."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.status: int | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Kill it, and wait for its end; nothing happens where it was waited for."""
        if self.status is None:
            os.kill(self.pid, number)
            self.wait()

    def wait(self) -> int:
        """Wait for its end; returns its exit status, or minus the signal that killed it."""
        if self.status is None:
            self.status = self._nursery._ask(do="wait", pid=self.pid)
        return self.status

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            status = self._nursery._ask(do="look", pid=self.pid)
            self.status = None if status == _RUNS else status
        return self.status is not None


_RUNS = 1000


def _run(module: str, config: dict[str, Any]) -> None:
    """In a new child: run it, and end without what belongs to the parent."""
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        __import__(module)
        sys.modules[module].main(config)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _nurse() -> None:
    """Make children, as the standard input says, until it ends; then end them."""
    import netcomm_sqlite  # noqa: F401 - here, once, and not in each child
    import tests.faults.crash
    import tests.faults.receiver
    import tests.faults.sender  # noqa: F401

    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        answer = _RUNS
        if request["do"] == "start":
            answer = os.fork()
            if answer == 0:
                _run(request["module"], request["config"])
            children.add(answer)
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG if request["do"] == "look" else 0)
            if pid:
                children.discard(pid)
                answer = os.waitstatus_to_exitcode(status)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _nurse()
