"""Schedules by seed: what netcomm promises holds in each. See docs/testing.md."""

import os
import subprocess
import sys
from multiprocessing import resource_tracker

import pytest

from tests.simulation.__main__ import replay_command, run_many
from tests.simulation.schedule import run
from tests.trials import SOAK, trials

# In all of CI; the parts bound what one test takes, and tell early which seeds are to blame.
_SCHEDULES = 5000
_PARTS = 10
# Time is virtual there, so they may share the machine.
_JOBS = min(os.cpu_count() or 1, 4)
resource_tracker.ensure_running()  # else it would seem that the first test leaves its pipe behind


@pytest.mark.parametrize("part", range(_PARTS))
def test_every_promise_holds_in_every_schedule(part: int) -> None:
    count = _SCHEDULES * SOAK // _PARTS
    with trials("simulated schedules") as tried:
        for result in run_many(range(part * count, (part + 1) * count), _JOBS):
            assert result.violation is None, f"{result.violation}\nreplay: {replay_command(result.seed)}"
            assert result.messages >= 100
            assert result.faults >= 25
            tried.count += 1


def test_a_seed_names_one_course_of_events() -> None:
    assert [run(seed, tracing=True).trace_hash for seed in (1, 2)] == [
        run(seed, tracing=True).trace_hash for seed in (1, 2)
    ]
    assert run(1, tracing=True).trace_hash != run(2, tracing=True).trace_hash


def test_a_seed_names_the_same_course_in_another_process() -> None:
    here = run(3, tracing=True)
    for hash_seed in ("1", "2"):  # the order of sets must not matter
        there = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "3"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert f"trace {here.trace_hash}" in there.stdout, there.stdout + there.stderr


def test_tracing_changes_nothing() -> None:
    for seed in (4, 5):
        traced, plain = run(seed, tracing=True), run(seed)
        assert (traced.steps, traced.violation) == (plain.steps, plain.violation)
