"""A plug-in for pytest: `-p tests.faults.plant --plant NAME` plants a defect of `runtime_bugs`, and runs tests with it.

It imports netcomm late: its locks are watched from the first one on.
"""

from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--plant", metavar="NAME", help="the defect, by its name in tests/faults/runtime_bugs.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    from tests.faults.runtime_bugs import BUGS

    name = session.config.getoption("--plant")
    (mutation,) = [bug.mutation for bug in BUGS if bug.name == name]
    with mutation.planted():
        return (yield)
