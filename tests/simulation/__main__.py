"""`python -m tests.simulation`: replay one schedule, or run many."""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator

from tests.simulation.schedule import Result, run


def replay_command(seed: int) -> str:
    return f"python -m tests.simulation --seed {seed} -v"


def run_many(seeds: Iterable[int], jobs: int) -> Iterator[Result]:
    """The results of many schedules, as they come."""
    if jobs == 1:
        yield from map(run, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=20)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="replay this schedule")
    what.add_argument("--seeds", metavar="A..B", help="run the schedules from A up to, and not including, B")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run them on")
    parser.add_argument("-k", "--keep-going", action="store_true", help="do not stop at the first failure")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the trace")
    options = parser.parse_args()
    if options.seed is not None:
        result = run(options.seed, tracing=True)
        if options.verbose:
            print(*result.lines or [], sep="\n")
        print(f"seed {result.seed}: {result.steps} steps, trace {result.trace_hash}: {result.violation or 'ok'}")
        return 0 if result.violation is None else 1
    first, _, last = options.seeds.partition("..")
    failures = count = 0
    started = time.monotonic()
    for result in run_many(range(int(first), int(last)), options.jobs):
        count += 1
        if result.violation is not None:
            failures += 1
            print(f"seed {result.seed}: {result.violation}\n    {replay_command(result.seed)}", flush=True)
            if not options.keep_going:
                break
    print(f"{count} schedules, {failures} failures, {time.monotonic() - started:.1f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
