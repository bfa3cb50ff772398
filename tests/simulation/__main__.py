"""``python -m tests.simulation --seed N --trace`` plays one run again, ``--runs N``
plays many, two at a time.  Ends with 1 if a promise was not kept."""

import argparse
import concurrent.futures
import os
import sys
import time

from tests.simulation.run import Run, plan, shrink


def play(seed: int) -> tuple[int, list[str]]:
    """What was wrong in the run of a seed."""
    return seed, Run(plan(seed)).run()


def report(seed: int, trace: bool = True) -> None:
    """Say why a seed fails, with the fewest faults."""
    smallest = shrink(plan(seed))
    run = Run(smallest)
    run.run()
    print(f"seed {seed} on {smallest.bus}, threads {smallest.threads}:")
    for mistake in run.mistakes:
        print(f"  {mistake}")
    print("  with these faults:")
    for fault in smallest.faults:
        print(f"  {fault}")
    if trace:
        print("\n".join(run.timeline))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="one run, or the first of many")
    parser.add_argument("--runs", type=int, help="how many runs")
    parser.add_argument("--trace", action="store_true", help="print the timeline")
    args = parser.parse_args()
    if args.runs is None:
        run = Run(plan(args.seed or 0))
        mistakes = run.run()
        if args.trace:
            print("\n".join(run.timeline))
        if mistakes:
            report(run.plan.seed, trace=not args.trace)
        return bool(mistakes)
    first = int(time.time()) * 1000 if args.seed is None else args.seed
    print(f"{args.runs} runs from seed {first}", flush=True)
    failed = []
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        seeds = range(first, first + args.runs)
        for seed, mistakes in pool.map(play, seeds, chunksize=5):
            if mistakes:
                failed.append(seed)
                print(f"seed {seed}: {mistakes[0].splitlines()[0]}", flush=True)
    print(f"{len(failed)} of {args.runs} runs failed")
    return bool(failed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of strings is part of a run.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [*sys.orig_argv])
    sys.exit(main())
