"""What an action costs, counted and not timed; and whether a property finds what is wrong."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis.strategies import SearchStrategy


def calls(action: Callable[[], object]) -> int:
    """How many functions an action calls, those in C as well."""
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def fails(check: Callable[[], object]) -> bool:
    """Whether a check finds a defect: then anything may come out, whatever the defect lets out."""
    try:
        check()
    except Exception:
        return True
    return False


def finds(check: Callable[..., None], **arguments: SearchStrategy[Any]) -> bool:
    """Whether some examples are enough for a check to find a defect; they are the same each time."""

    @settings(derandomize=True, phases=[Phase.generate], max_examples=1000)
    @given(**arguments)
    def search(**drawn: Any) -> None:
        check(**drawn)

    return fails(search)
