"""The tests find defects of the runtime that are there: each of a catalogue is planted, and its tests have to fail."""

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.runtime_bugs import BUGS, RuntimeBug

ROOT = Path(__file__).parents[2]
# Some defects make a test wait for what never comes: that is long enough.
_TEST_TIMEOUT_S = 2
_AT_ONCE = 4  # most of the time is waited


def failures(tests: Iterable[str], *arguments: str) -> set[str]:
    """Run tests in a process of its own; returns those that have failed, as the catalogue names them."""
    paths = [f"tests/{module}.py::{function}" for module, _, function in (test.partition("::") for test in tests)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:hypothesispytest", *arguments, *paths],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'storage'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    found = {words[1] for words in lines if words and words[0] in ("FAILED", "ERROR")}
    return {name.partition("[")[0].removeprefix("tests/").replace(".py::", "::") for name in found}


def test_the_catalogue_is_long_enough_and_names_each_once() -> None:
    assert len(BUGS) >= 30
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_without_a_defect_all_of_these_tests_pass() -> None:
    assert failures(sorted({test for bug in BUGS for test in bug.tests})) == set()


@pytest.fixture(scope="module")
def failed(request: pytest.FixtureRequest) -> dict[str, set[str]]:
    """The tests that have failed, by the defect, for those that were asked for."""
    names = {
        item.callspec.params["bug"].name
        for item in request.session.items
        if hasattr(item, "callspec") and "bug" in item.callspec.params
    }
    bugs = [bug for bug in BUGS if bug.name in names]

    def run(bug: RuntimeBug) -> set[str]:
        return failures(bug.tests, "-p", "tests.faults.plant", "--plant", bug.name, "--timeout", str(_TEST_TIMEOUT_S))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip([bug.name for bug in bugs], pool.map(run, bugs), strict=True))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_a_planted_defect_is_noticed(bug: RuntimeBug, failed: dict[str, set[str]]) -> None:
    assert failed[bug.name] == set(bug.tests)
