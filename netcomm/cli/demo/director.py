"""The director: starts the processes, makes the faults, and tells the audience how it goes."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from netcomm.cli.demo import journal, plan, roles
from netcomm.cli.demo.judge import Report
from netcomm.cli.demo.plan import DemoError, Piece
from netcomm.testing.proxy import FaultProxy

# Nothing has been heard for so long: something is wrong, and waiting won't mend it.
_STALL_S = 30.0
_END_S = 5.0

Event = dict[str, Any]


class Audience(Protocol):
    """Who is told how it goes."""

    def note(self, text: str) -> None:
        """Something has happened."""

    def fault(self, text: str) -> None:
        """Something was broken on purpose."""

    def recovered(self, text: str) -> None:
        """It works again."""

    def progress(self, arrived_bytes: int) -> None:
        """So much has arrived until now."""


def run(pieces: list[Piece], audience: Audience) -> Report:
    """Send the pieces from one process to another, through three faults; returns what the receiving one reports.

    Raises DemoError. However it ends, all processes are gone then.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="netcomm-demo-"))
        plan.save(pieces, Path(folder))
        journal.create(Path(folder))
        return _Run(stack, folder, audience).run(len(pieces))


class _Run:
    """One run of the demo, with the processes that it needs."""

    def __init__(self, stack: ExitStack, folder: str, audience: Audience) -> None:
        self._stack = stack
        self._folder = folder
        self._audience = audience
        self._events: SimpleQueue[Event] = SimpleQueue()

    def run(self, total: int) -> Report:
        """Make the three faults while the messages are sent.

        total: how many messages there are.
        """
        audience = self._audience
        listener = self._start("listener", "0")
        port = self._await("listening")["port"]
        audience.note(f"listener: process {listener.pid}, at 127.0.0.1:{port}")
        proxy = self._stack.enter_context(FaultProxy(("127.0.0.1", port)))
        proxy_port = proxy.address[1]
        connector = self._start("connector", str(proxy_port), roles.FIRST)
        audience.note(f"connector: process {connector.pid}, through a proxy at 127.0.0.1:{proxy_port}")
        self._await("connected")
        started = monotonic()
        connector.go_on()
        try:
            sent = self._await("fault")["sent"]
            proxy.cut(reset=True)
            cut_at = monotonic()
            audience.fault(f"{sent:,} of {total:,} messages are sent: the TCP connection is cut")
            self._await("connected")
            audience.recovered(f"connected again after {monotonic() - cut_at:.2f} s")
            connector.go_on()

            sent = self._await("fault")["sent"]
            killed_at = self._kill(listener, f"{sent:,} of {total:,} messages are sent")
            listener = self._start("listener", str(port))
            self._await("connected")
            audience.recovered(
                f"another listener, process {listener.pid}, is connected after {monotonic() - killed_at:.2f} s"
            )
            connector.go_on()

            sent = self._await("fault")["sent"]
            killed_at = self._kill(connector, f"{sent:,} of {total:,} messages are sent")
            connector = self._start("connector", str(proxy_port), roles.AGAIN)
            self._await_delivered(connector, killed_at)
        except _Stalled:
            audience.note(f"nothing has moved for {_STALL_S:g} s: giving up")
        seconds = monotonic() - started
        listener.go_on()
        event = self._await("report")
        return replace(Report(**event["report"]), seconds=seconds)

    def _await_delivered(self, connector: "_Child", killed_at: float) -> None:
        """Wait until the connector in the place of a killed one has delivered everything."""
        # It may have delivered everything before the listener has said that it is connected.
        missing = {"restored", "connected", "delivered"}
        while missing:
            event = self._await(*missing)
            missing.remove(event["event"])
            if event["event"] == "restored":
                self._audience.note(
                    f"another connector: {event['waiting']:,} messages wait in its storage,"
                    f" {event['left']:,} are still to be sent"
                )
            elif event["event"] == "connected":
                self._audience.recovered(
                    f"another connector, process {connector.pid}, is connected after {monotonic() - killed_at:.2f} s"
                )

    def _start(self, role: str, *arguments: str) -> "_Child":
        return self._stack.enter_context(_Child(role, self._events, self._folder, *arguments))

    def _kill(self, child: "_Child", state: str) -> float:
        """Kill a process; returns when it was."""
        child.kill()
        killed_at = monotonic()
        self._audience.fault(f"{state}: the {child.role}, process {child.pid}, is killed")
        return killed_at

    def _await(self, *kinds: str) -> Event:
        """The next event of one of these kinds; the audience is told of what comes before it."""
        while True:
            try:
                event = self._events.get(timeout=_STALL_S)
            except Empty:
                raise _Stalled(f"neither process has said anything for {_STALL_S:g} s") from None
            kind = event["event"]
            if kind in kinds:
                return event
            if kind == "progress":
                self._audience.progress(event["bytes"])
            elif kind == "trouble":
                self._audience.note(f"{event['role']}: {event['text']}")
            elif kind == "failed":
                raise DemoError(f"{event['role']}: {event['text']}")
            elif kind == "ended":
                raise DemoError(f"the {event['role']} process has ended unexpectedly")


class _Stalled(DemoError):
    pass


def _command(role: str) -> list[str]:
    """What starts a process; its arguments follow."""
    return [sys.executable, "-P", "-m", "netcomm.cli.demo.roles", role]


class _Child:
    """One of the processes. `with` starts and ends it."""

    def __init__(self, role: str, events: SimpleQueue[Event], *arguments: str) -> None:
        self.role = role
        self._events = events
        self._killed = False
        # It finds the modules that this process finds, wherever either was started.
        search_path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [*_command(role), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # Ctrl-C is the director's
        )
        self._reader = threading.Thread(target=self._read, name=f"netcomm-demo-{role}", daemon=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it without a warning: SIGKILL, where there are signals."""
        self._killed = True
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go on\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended, which its reader tells
            pass

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):  # the last one may be cut off, where the process was killed
                self._events.put({**json.loads(line), "role": self.role})
        if not self._killed:
            self._events.put({"event": "ended", "role": self.role})
