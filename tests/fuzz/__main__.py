"""`python -m tests.fuzz`: replay one input, or let libFuzzer look for one that shows a defect."""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from tests.fuzz.minimise import minimised
from tests.fuzz.planted import DEFECTS
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import run_input

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parents[2]
# Longer inputs say little that shorter ones don't, and cost more.
_MAX_INPUT_BYTES = 64
_HANGS_AFTER_S = 60


def replay_command(file: Path, plant: str | None) -> str:
    return f"python -m tests.fuzz --replay {file}" + (f" --plant {plant}" if plant else "")


def _engine(
    seed: int, runs: int, folder: Path, found: Path, plant: str | None, output: TextIO
) -> subprocess.Popen[str]:
    """Start libFuzzer. What it does depends on the seed and, a little, on where things are in memory."""
    options = {
        "runs": runs,
        "seed": seed,
        "max_len": _MAX_INPUT_BYTES,
        "timeout": _HANGS_AFTER_S,
        "artifact_prefix": f"{folder}/",
        "use_counters": 0,  # how often a branch is taken would make the corpus five times as large, of slow inputs
        "reload": 0,  # to look for new files every second would depend on the clock
    }
    planted = ["--plant", plant] if plant else []
    flags = [f"-{name}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.engine", *planted, *flags, str(found), str(CORPUS)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fuzz(runs: int, seed: int, jobs: int, grow: bool, plant: str | None) -> int:
    """Run inputs in several processes, of which each has a seed of its own; returns the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="netcomm-fuzz-"))
    ran = 0
    failed = False
    with ExitStack() as stack:
        running = []
        for job in range(jobs):
            found = folder / f"corpus-{job}"
            found.mkdir()
            output = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            share = runs // jobs + (job < runs % jobs)
            process = _engine(seed * jobs + job + 1, share, folder, found, plant, output)  # seed 0 would mean: any
            stack.enter_context(process)
            stack.callback(process.kill)  # where this process is being ended
            running.append((process, output))
        for process, output in running:
            process.wait()
            output.seek(0)
            said = output.read()
            done = re.search(r"^Done (\d+) runs.*", said, re.MULTILINE)
            ran += int(done[1]) if done else 0
            failed = failed or process.returncode != 0 or not done
            print(said if process.returncode or not done else "\n".join(re.findall(r"^(?:#.*DONE|Done).*", said, re.M)))
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        print(f"replay it: {replay_command(file, plant)}")
    print(f"Done {ran} runs in all", flush=True)
    if not failed:
        if grow:
            _merge(list(folder.glob("corpus-*")))
        shutil.rmtree(folder)
    return 1 if failed else 0


def _merge(found: list[Path]) -> None:
    """Make the corpus anew, of the seeds, of itself, and of what was found; names of files are hashes of contents."""
    inputs = minimised([*seeds(), *(file.read_bytes() for folder in (CORPUS, *found) for file in folder.iterdir())])
    shutil.rmtree(CORPUS)
    CORPUS.mkdir()
    for data in inputs:
        (CORPUS / hashlib.sha1(data).hexdigest()).write_bytes(data)
    print(f"the corpus has {len(inputs)} inputs, {sum(map(len, inputs))} bytes")


def replay(file: Path, plant: str | None) -> None:
    """Run one input, without libFuzzer; raises what it shows."""
    if plant:
        with DEFECTS[plant].planted():
            run_input(file.read_bytes())
    else:
        run_input(file.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--replay", type=Path, metavar="FILE", help="run this input")
    what.add_argument("--runs", type=int, metavar="N", help="let libFuzzer run so many inputs; needs the extra 'fuzz'")
    parser.add_argument("--seed", type=int, default=0, help="what chance begins with; 0 if it is not given")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run them on")
    parser.add_argument("--grow", action="store_true", help="take what was found into the corpus, and minimise it")
    parser.add_argument("--plant", choices=sorted(DEFECTS), help="with this defect in netcomm, which is to be found")
    options = parser.parse_args()
    if options.replay is not None:
        replay(options.replay, options.plant)
        print("nothing is wrong")
        return 0
    return fuzz(options.runs, options.seed, options.jobs, options.grow, options.plant)


if __name__ == "__main__":
    sys.exit(main())
