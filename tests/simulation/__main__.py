"""`python -m tests.simulation`: replay one schedule, or run many; of netcomm as it is, or with a defect planted."""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.schedule import Result, run

_BY_NAME = {mutation.name: mutation for mutation in MUTATIONS}


def replay_command(seed: int) -> str:
    return f"python -m tests.simulation --seed {seed} -v"


def search_command(mutation: Mutation) -> str:
    return f'python -m tests.simulation --plant "{mutation.name}" --seeds {mutation.first}..{mutation.first + 1000}'


def run_many(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """The results of many schedules, as they come."""
    if jobs == 1:
        yield from map(run, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=20)


def _replay(seed: int, verbose: bool) -> int:
    result = run(seed, tracing=True)
    if verbose:
        print(*result.lines or [], sep="\n")
    print(f"seed {result.seed}: {result.steps} steps, trace {result.trace_hash}: {result.violation or 'ok'}")
    return 0 if result.violation is None else 1


def _run_all(seeds: Iterable[int], jobs: int, keep_going: bool) -> int:
    failures = count = 0
    started = time.monotonic()
    for result in run_many(seeds, jobs):
        count += 1
        if result.violation is not None:
            failures += 1
            print(f"seed {result.seed}: {result.violation}\n    {replay_command(result.seed)}", flush=True)
            if not keep_going:
                break
    print(f"{count} schedules, {failures} failures, {time.monotonic() - started:.1f} s")
    return 1 if failures else 0


def _search(mutations: Iterable[Mutation], seeds: Iterable[int]) -> int:
    """Print the first schedule that shows each."""
    hidden = 0
    for mutation in mutations:
        started = time.monotonic()
        found = mutation.shown_by(seeds)
        hidden += found is None
        what = "not found" if found is None else f"seed {found.seed}: {found.violation}"
        print(f"{mutation.name} ({time.monotonic() - started:.1f} s): {what}", flush=True)
    return 1 if hidden else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="replay this schedule")
    what.add_argument("--seeds", metavar="A..B", help="run the schedules from A up to, and not including, B")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run them on")
    parser.add_argument("-k", "--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the trace")
    parser.add_argument(
        "--plant",
        metavar="NAME",
        choices=["all", *_BY_NAME],
        help="plant this defect of the catalogue; with --seeds, look for the first schedule that shows it, or each",
    )
    options = parser.parse_args()
    if options.plant == "all" and options.seed is not None:
        parser.error("a seed shows one defect at a time")
    if options.seed is not None:
        with _BY_NAME[options.plant].planted() if options.plant else nullcontext():
            return _replay(options.seed, options.verbose)
    first, _, last = options.seeds.partition("..")
    seeds = range(int(first), int(last))
    if options.plant is None:
        return _run_all(seeds, options.jobs, options.keep_going)
    return _search(MUTATIONS if options.plant == "all" else [_BY_NAME[options.plant]], seeds)


if __name__ == "__main__":
    sys.exit(main())
