"""``python -m tests.simulation --seed N --trace`` plays one run again, ``--runs N``
plays many, in several processes.  Ends with 1 if a promise was not kept.  With
``--digests`` it says of each run what its timeline comes to, which is the same under
every Python and with each build of proton."""

import argparse
import concurrent.futures
import hashlib
import itertools
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
    print(
        f"seed {seed} on {smallest.bus}, threads {smallest.threads}, "
        f"kills {smallest.kills}, of {', '.join(smallest.actors)}:"
    )
    for mistake in run.mistakes:
        print(f"  {mistake}")
    print("  with these faults:")
    for fault in smallest.faults:
        print(f"  {fault}")
    if trace:
        print("\n".join(run.timeline))


def play_one(seed: int, trace: bool) -> int:
    """The run of a seed, with its timeline."""
    run = Run(plan(seed))
    mistakes = run.run()
    if trace:
        print("\n".join(run.timeline))
    if mistakes:
        report(seed, trace=not trace)
    return bool(mistakes)


def play_many(first: int, runs: int, seconds: float, jobs: int) -> int:
    """So many runs, as far as there is time for them."""
    begun = time.monotonic()
    print(f"runs from seed {first}", flush=True)
    played, failed = 0, []
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        seeds = iter(range(first, first + runs))
        going = {pool.submit(play, seed) for seed in itertools.islice(seeds, jobs)}
        while going:
            over, going = concurrent.futures.wait(
                going, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for each in over:
                seed, mistakes = each.result()
                played += 1
                if mistakes:
                    failed.append(seed)
                    print(f"seed {seed}: {mistakes[0].splitlines()[0]}", flush=True)
                if time.monotonic() < begun + seconds:
                    for further in itertools.islice(seeds, 1):
                        going.add(pool.submit(play, further))
    took = time.monotonic() - begun
    print(f"{len(failed)} of {played} runs failed, in {took:.0f} s")
    if failed:
        print(f"to see one: python -m tests.simulation --seed {failed[0]}")
    return bool(failed)


def show_digests(first: int, runs: int) -> None:
    """Play so many runs in turn."""
    for seed in range(first, first + runs):
        run = Run(plan(seed))
        run.run()
        timeline = "\n".join(run.timeline).encode()
        print(seed, hashlib.sha256(timeline).hexdigest(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="one run, or the first of many")
    parser.add_argument("--runs", type=int, help="how many runs")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="how long, at the most"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="how many at a time"
    )
    parser.add_argument("--trace", action="store_true", help="print the timeline")
    parser.add_argument(
        "--digests", action="store_true", help="print a digest of each timeline"
    )
    args = parser.parse_args()
    if args.digests:
        show_digests(args.seed or 0, args.runs or 1)
        return 0
    if args.runs is None:
        return play_one(args.seed or 0, args.trace)
    first = int(time.time()) * 1000 if args.seed is None else args.seed
    return play_many(first, args.runs, args.seconds, args.jobs)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of strings is part of a run.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [*sys.orig_argv])
    sys.exit(main())
