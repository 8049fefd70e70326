"""Whether a check, or a property over examples, finds what is wrong."""

from collections.abc import Callable
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis.strategies import SearchStrategy


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
