"""The peer in Go, as tests run it: built from its sources, started, and read while it runs."""

import base64
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.integration.helpers import DEADLINE_S

SOURCES = Path(__file__).parent / "go"


def build(sources: Path, program: Path) -> None:
    """Build the program, without anything from the network. Raises AssertionError with Go's errors."""
    environment = {**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    command = ["go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", str(program), "."]
    result = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@dataclass(frozen=True)
class Received:
    """A message that the program has handed over."""

    ident: str
    stream: str
    data: bytes
    redelivered: bool
    subject: str | None = None
    id: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


class GoPeer:
    """A running peer in Go. What it prints is read as it comes."""

    def __init__(self, program: Path, *arguments: str) -> None:
        """Start it."""
        self._process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._changed = threading.Condition()
        self._events: dict[str, list[dict[str, Any]]] = {}
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):  # the last one may be cut by a kill
                event = json.loads(line)
                with self._changed:
                    self._events.setdefault(event["event"], []).append(event)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; waits until it does."""
        (event,) = self.wait("listening", 1)
        host, _, port = event["address"].rpartition(":")
        return host, int(port)

    def wait(self, kind: str, count: int) -> list[dict[str, Any]]:
        """Wait for so many events of one kind; returns all that have come."""
        return self.wait_until(kind, lambda found: len(found) >= count)

    def wait_until(self, kind: str, true: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Wait until the events of one kind are as they should be; returns them."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or true(self.events(kind)), DEADLINE_S)
            found = self.events(kind)
            assert true(found), f"not after {DEADLINE_S:g} s: {len(found)} of {kind}, {self._events.get('ended')}"
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind that have come."""
        return list(self._events.get(kind, ()))

    @property
    def received(self) -> list[Received]:
        """What it has handed over so far."""
        return [
            Received(
                event["ident"],
                event["stream"],
                base64.b64decode(event["data"]),
                event.get("redelivered", False),
                event.get("subject"),
                event.get("id"),
                tuple((header["Key"], header["Value"]) for header in event.get("headers", [])),
            )
            for event in self.events("received")
        ]

    def kill(self) -> None:
        """Kill it with -9, and read what it has printed until then."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Let it end in order, and read what it has printed until then."""
        self._end(signal.SIGTERM)
        assert self._process.returncode == 0

    def _end(self, number: int) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.send_signal(number)
        self._process.wait(DEADLINE_S)
        self._reader.join()
        complaints = self._process.stderr.read().decode()
        self._process.stdout.close()
        self._process.stderr.close()
        assert complaints == ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            self.kill()
