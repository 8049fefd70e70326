"""Of many inputs, few that go through everything that any of them goes through."""

import sys
from collections.abc import Iterable
from functools import partial
from types import FrameType
from typing import Any

from netcomm.protocol import (
    decode,
    durable_out_stream,
    encode,
    expiry,
    frames,
    inbox,
    messaging,
    out_stream,
    outbox,
    session,
)
from tests.fuzz.measures import fails
from tests.fuzz.planted import DEFECTS, HIDDEN
from tests.fuzz.targets import run_input

_CORE = (frames, encode, decode, session, inbox, expiry, out_stream, durable_out_stream, outbox, messaging)
_FILES = frozenset(module.__file__ for module in _CORE)

Arc = tuple[str, int, int]


def arcs(data: bytes) -> set[Arc]:
    """From which line to which an input takes the core, and in which function."""
    found: set[Arc] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in _FILES:
            return None
        line = -1 if event == "return" else frame.f_lineno
        found.add((code.co_qualname, last.get(frame, 0), line))
        if event == "return":
            last.pop(frame, None)
        else:
            last[frame] = line
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run_input(data)
    finally:
        sys.settrace(before)
    return found


def minimised(inputs: Iterable[bytes]) -> list[bytes]:
    """Those that go where no shorter one goes, or show a planted defect that no shorter one shows."""
    kept = []
    covered: set[Arc | str] = set()
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        new = arcs(data) | _shown(data)
        if not new <= covered:
            covered |= new
            kept.append(data)
    return kept


def _shown(data: bytes) -> set[str]:
    found = set()
    for name, defect in DEFECTS.items():
        with defect.planted():
            if name != HIDDEN and fails(partial(run_input, data)):
                found.add(name)
    return found
