"""``python -m tests.simulation --seed N --trace`` plays one run again, ``--runs N``
plays many, in several processes.  Ends with 1 if a promise was not kept.  With
``--digests`` it says of each run what its timeline comes to, which is the same under
every Python and with each build of proton.

With ``--commit`` the seeds follow from the commit that is checked out: each has others,
which nobody has played, and the same ones whenever it is tested again.  ``--before`` is
for seeds that were kept when a plan had less in it: tests/unit/test_simulation.py."""

import argparse
import concurrent.futures
import functools
import gc
import hashlib
import itertools
import os
import pathlib
import subprocess
import sys
import time
import typing

from tests.simulation.plan import Plan, plan
from tests.simulation.run import Run, shrink

ROOT = pathlib.Path(__file__).parents[2]

# The seeds where no commit is known.
USUAL = 1795976688000

_Plans = typing.Callable[[int], Plan]


def commit() -> str:
    """The commit that is checked out; "" where there is none."""
    try:
        found = subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except OSError:
        return ""  # there is no git
    return found.stdout.strip()


def play(seed: int, plans: _Plans) -> tuple[int, list[str], float]:
    """What was wrong in the run of a seed, and how long the processor had it."""
    begun = time.process_time()
    return seed, Run(plans(seed)).run(), time.process_time() - begun


def report(failing: Plan, trace: bool) -> None:
    """Say why a plan fails, with the fewest faults."""
    smallest = shrink(failing)
    run = Run(smallest)
    run.run()
    print(
        f"seed {smallest.seed} on {smallest.bus}, threads {smallest.threads}, "
        f"kills {smallest.kills}, pace {smallest.pace}, "
        f"of {', '.join(smallest.actors)}:"
    )
    for mistake in dict.fromkeys(run.mistakes):
        print(f"  {mistake}")
    print("  with these faults:" if smallest.faults else "  without any fault")
    for fault in smallest.faults:
        print(f"  {fault}")
    if trace:
        print("\n".join(run.timeline))


def play_one(wanted: Plan, trace: bool) -> int:
    """One run, with its timeline."""
    run = Run(wanted)
    mistakes = run.run()
    if trace:
        print("\n".join(run.timeline))
    if mistakes:
        report(wanted, trace=not trace)
    return bool(mistakes)


def play_many(
    first: int, runs: int, seconds: float, jobs: int, plans: _Plans
) -> list[int]:
    """So many runs, as far as there is time for them; returns the seeds that fail."""
    begun = time.monotonic()
    played, failed, worked = 0, [], 0.0
    # What was imported is not looked through again and again for what is garbage.
    with concurrent.futures.ProcessPoolExecutor(jobs, initializer=gc.freeze) as pool:
        seeds = iter(range(first, first + runs))
        going = {
            pool.submit(play, seed, plans) for seed in itertools.islice(seeds, jobs)
        }
        while going:
            over, going = concurrent.futures.wait(
                going, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for each in over:
                seed, mistakes, seconds_worked = each.result()
                played += 1
                worked += seconds_worked
                if mistakes:
                    failed.append(seed)
                    print(f"seed {seed}: {mistakes[0].splitlines()[0]}", flush=True)
                if time.monotonic() < begun + seconds:
                    for further in itertools.islice(seeds, 1):
                        going.add(pool.submit(play, further, plans))
    took = time.monotonic() - begun
    print(
        f"{len(failed)} of {played} runs failed, in {took:.0f} s; "
        f"{worked / max(played, 1):.2f} s of a processor each"
    )
    return failed


def show_digests(first: int, runs: int, plans: _Plans) -> None:
    """Play so many runs in turn."""
    for seed in range(first, first + runs):
        run = Run(plans(seed))
        run.run()
        timeline = "\n".join(run.timeline).encode()
        print(seed, hashlib.sha256(timeline).hexdigest(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="one run, or the first of many")
    parser.add_argument(
        "--commit",
        action="store_true",
        help="seeds of the commit that is checked out; where there is none, usual ones",
    )
    parser.add_argument("--runs", type=int, help="how many runs")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="how long, at the most"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="how many at a time"
    )
    parser.add_argument(
        "--before",
        action="store_true",
        help="what a seed meant before callers paused for longer in the end, and a "
        "connection was lost twice",
    )
    parser.add_argument("--trace", action="store_true", help="print the timeline")
    parser.add_argument(
        "--digests", action="store_true", help="print a digest of each timeline"
    )
    args = parser.parse_args()
    plans = functools.partial(plan, before=args.before)
    if args.digests:
        show_digests(args.seed or 0, args.runs or 1, plans)
        return 0
    if args.runs is None:
        return play_one(plans(args.seed or 0), args.trace)
    first, found = args.seed, ""
    if first is None:
        first = int(time.time()) * 1000
        if args.commit:
            found = commit()
            first = int(found[:8], 16) * 1000 if found else USUAL
    of = f", of commit {found[:12]}" if found else ""
    print(f"runs from seed {first}{of}", flush=True)
    failed = play_many(first, args.runs, args.seconds, args.jobs, plans)
    if failed:
        report(plans(failed[0]), trace=False)
        if found:
            print(
                "Nobody has played this commit's seeds before: what they find may be "
                "older than its change, and is a fault all the same."
            )
        before = " --before" if args.before else ""
        print(
            f"To see it again: python -m tests.simulation --seed {failed[0]}{before} "
            "--trace"
        )
    return bool(failed)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of strings is part of a run.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [*sys.orig_argv])
    sys.exit(main())
