"""`fault_proxy`: a fixture for pytest that makes `FaultProxy`s, and closes them when the test is over.

It is not loaded by itself. A project that wants it says so in its topmost conftest.py:

    pytest_plugins = ["netcomm.testing.pytest_plugin"]
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from netcomm.testing.proxy import FaultProxy


@pytest.fixture
def fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """A function that takes what `FaultProxy` takes, and returns a started one; the end of the test closes it."""
    with ExitStack() as stack:

        def start(target: tuple[str, int], **options: Any) -> FaultProxy:
            return stack.enter_context(FaultProxy(target, **options))

        yield start
