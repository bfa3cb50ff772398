"""Some runs of tests.simulation, with seeds that nobody has seen, and those kept."""

import os
import random
import subprocess
import sys

import pytest

from tests.simulation.run import Fault, Plan, Run, plan, shrink

FRESH = 40


@pytest.mark.parametrize("batch", range(4))
def test_fresh_seeds(batch):
    for _ in range(FRESH // 4):
        seed = random.SystemRandom().getrandbits(32)
        mistakes = Run(plan(seed)).run()
        assert not mistakes, (
            f"PYTHONHASHSEED={os.environ.get('PYTHONHASHSEED', '0')} "
            f"python -m tests.simulation --seed {seed}: {mistakes}"
        )


def test_the_same_seed_is_the_same_run():
    def trace():
        return subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "123", "--trace"],
            capture_output=True,
            check=True,
        ).stdout

    first = trace()
    assert first.count(b"\n") > 500
    assert trace() == first


def test_a_run_of_calls_without_faults_has_no_failure():
    run = Run(Plan(5, "greenamqp", 0.0, ()))
    assert run.run() == []
    assert len(run.executed) > 100 and len(run.notified) > 30


def test_the_list_of_faults_is_shrunk():
    # One that no promise survives, among those that all do.
    faults = (
        Fault(1.0, "reset", "bus0", 0.0, 1),
        Fault(2.0, "still", "bus0", 1000.0, 0),
        Fault(3.0, "refuse", "bus0", 1.0, 0),
    )
    failing = Plan(5, "greenamqp", 0.0, faults)
    assert Run(failing).run()
    assert [each.kind for each in shrink(failing).faults] == ["still"]
