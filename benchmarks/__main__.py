"""`python -m benchmarks`: netcomm beside its peers. It needs what `pip install 'netcomm[bench]'` brings.

python -m benchmarks                            # everything, in about ten minutes
python -m benchmarks --only latency-100,import --rounds 3
python -m benchmarks --quick                    # to try it: the figures mean little
"""

import argparse
from pathlib import Path

from benchmarks import report
from benchmarks.harness import Scale, Workload, run
from benchmarks.workloads import ALL

_ROUNDS = 5
_QUICK = Scale(0.02)
_QUICK_ROUNDS = 2


def main() -> None:
    options = _parser().parse_args()
    if options.list:
        for workload in ALL.values():
            print(f"{workload.name:20} {workload.title}")
        return
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    console = report.console()
    results = []
    with console.status("") as status:
        for workload in options.only or ALL.values():
            result = run(workload, rounds, _QUICK if options.quick else Scale(), status.update)
            results.append(result)
            report.print_result(console, result)
    report.print_targets(console, results)
    if options.json:
        report.write_json(options.json, results)
    if options.plot:
        report.write_plot(options.plot, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="netcomm beside its peers, in turns.")
    parser.add_argument("--only", metavar="WORKLOAD[,…]", type=_workloads, help="these workloads, see --list")
    parser.add_argument("--rounds", metavar="N", type=_positive, help=f"how often each has its turn; {_ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it: the figures mean little")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw it, as .png or .svg")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    return parser


def _workloads(text: str) -> list[Workload]:
    try:
        return [ALL[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"there is no workload {error}; there are {', '.join(ALL)}") from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    main()
