"""Starts the processes that do the work, and talks with them.

Each end of a conversation is a process of its own, `python -m benchmarks.processes MODULE FUNCTION ARGUMENTS`. It gets
orders as lines of JSON on its standard input, and answers in lines of JSON on its standard output. It ends when its
standard input does, so none outlives the process that has started it.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]

_ROOT = Path(__file__).parents[1]
_ANSWER_S = 120.0
_END_S = 5.0


class Failed(Exception):
    """A process has failed, or has said nothing for too long; the text says what is known."""


class Missing(Exception):
    """A peer, or its server, is not installed; the text says what is missing."""


class Child:
    """The starting side: a process that runs `function(control, **arguments)`."""

    def __init__(self, function: Callable[..., None], **arguments: Any) -> None:
        self._what = f"{function.__module__}.{function.__qualname__}"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, function.__module__, function.__qualname__, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._records: SimpleQueue[Record | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **record: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(record).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has died; `hear` tells of what

    def hear(self, timeout: float = _ANSWER_S) -> Record:
        """The next thing that it says. Raises Failed, or Missing."""
        try:
            record = self._records.get(timeout=timeout)
        except Empty:
            raise Failed(f"{self._what} has said nothing for {timeout:.0f} s") from None
        if record is None:
            self._errors.seek(0)
            raise Failed(f"{self._what} has died: {self._errors.read().decode(errors='replace')[-500:]}")
        if "missing" in record:
            raise Missing(record["missing"])
        if "failed" in record:
            raise Failed(f"{self._what}: {record['failed']}")
        return record

    def ask(self, **record: Any) -> Record:
        self.tell(**record)
        return self.hear()

    def kill(self) -> None:
        """End it at once; `end` tidies up."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Let it end by itself, and see to it that it does."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            try:
                self._process.stdin.close()
                self._process.wait(_END_S)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
        self._close()

    def _close(self) -> None:
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for file in (self._process.stdin, self._process.stdout, self._errors):
            try:
                file.close()
            except OSError:
                pass  # what was still to be written has no reader

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._records.put(json.loads(line))
        self._records.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Control:
    """The side of the process that was started. Iterate over it to get the orders."""

    def __init__(self) -> None:
        # What libraries print must not get among the answers.
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def tell(self, **record: Any) -> None:
        self._out.write(json.dumps(record).encode() + b"\n")

    def __iter__(self) -> Iterator[Record]:
        return map(json.loads, sys.stdin)


def main() -> None:
    module, function, arguments = sys.argv[1:]
    control = Control()
    try:
        getattr(importlib.import_module(module), function)(control, **json.loads(arguments))
    except (ImportError, Missing) as error:
        control.tell(missing=str(error))
    except Exception as error:
        traceback.print_exc()
        control.tell(failed=f"{type(error).__name__}: {error}")
    # Threads of libraries that do not end by themselves shall not keep the process.
    os._exit(0)


if __name__ == "__main__":
    main()
