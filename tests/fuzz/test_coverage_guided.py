"""The fuzzer itself, as a process: it runs as many inputs as it is asked for, and finds what is wrong."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.planted import HIDDEN
from tests.trials import SOAK, trials

ROOT = Path(__file__).parents[2]
RUNS = 1_000_000 * SOAK


def fuzz(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer; what it keeps goes to a folder of the test."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.timeout(1800 * SOAK)
def test_no_input_shows_a_defect(tmp_path: Path) -> None:
    with trials("inputs made by the fuzzer") as tried:
        done = fuzz("--runs", str(RUNS), "--seed", "0", "--jobs", "2", folder=tmp_path)
        assert done.returncode == 0, done.stdout
        executed = re.search(r"^Done (\d+) runs in all$", done.stdout, re.MULTILINE)
        assert executed is not None, done.stdout
        tried.count += int(executed[1])
    assert tried.count >= RUNS
    assert list(tmp_path.iterdir()) == [], "an input that shows nothing is not kept"
    print(done.stdout)


@pytest.mark.timeout(1800)
def test_a_planted_defect_is_found_kept_and_replayed(tmp_path: Path) -> None:
    done = fuzz("--runs", "1000000", "--plant", HIDDEN, folder=tmp_path)
    assert done.returncode == 1, done.stdout
    (command,) = re.findall(r"^replay it: (.*)$", done.stdout, re.MULTILINE)
    arguments = shlex.split(command.removeprefix("python -m tests.fuzz "))
    again = fuzz(*arguments, folder=tmp_path)
    assert again.returncode == 1
    assert "AssertionError" in again.stdout
    right = fuzz(*arguments[:2], folder=tmp_path)
    assert (right.returncode, right.stdout) == (0, "nothing is wrong\n")
