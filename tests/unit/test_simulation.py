"""Some runs of tests.simulation, with seeds that nobody has seen, and those kept.

``make test-simulation`` plays many more.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.simulation import __main__ as command
from tests.simulation import planted
from tests.simulation.plan import BUSES, Fault, Plan, plan
from tests.simulation.run import Run, shrink

ROOT = pathlib.Path(__file__).parents[2]

#: The first seed that is played, and how many each time.
FIRST, SOME = 1795976688000, 3

#: Seeds that have failed, whether that was before the plan's last change, and what was
#: wrong.
KEPT = {
    (21, True): "replies were lost in a session that was deaf, and nobody noticed",
    (117, True): "a wait had a gap, in the simulation alone",
    (34, True): "a link was attached in a session that the bus had ended",
    (11, True): "two threads had a copy of a request each, and both executed it",
    (1795976283004, True): "a timer of a process that was frozen could not be "
    "cancelled any more, in the simulation alone",
    (88000064, False): "a session was not used between the loss of what it sends and "
    "the peace, in which its first call failed, in the simulation alone",
    (90000155, False): "what was on its way to a subscription that made room for "
    "another link was told to be lost",
    (2735905545098, False): "a session that had lost what it was sent was not left, as "
    "each who waited there had given up before",
    (90000235, False): "a client backed off for longer than a call may take, in the "
    "simulation alone",
    (2735905545431, False): "the same, after four connections in a row",
    (94000345, False): "a process stood still, and found a late reply before the "
    "deadline, in the simulation alone",
    (50003726, False): "a connection died without a word while it was opened, which is "
    "noticed after CONNECT_TIMEOUT, in the simulation alone",
}

# These are found within so many runs.
FOUND = {
    "a wake-up between check and wait is lost": 20,
    "credit is given back on arrival": 20,
    "the tail of a read is dropped": 20,
}


def play(seed, before=False):
    mistakes = Run(plan(seed, before)).run()
    assert not mistakes, (
        f"PYTHONHASHSEED={os.environ.get('PYTHONHASHSEED', '0')} "
        f"python -m tests.simulation --seed {seed}{' --before' * before}: {mistakes}"
    )


@pytest.mark.parametrize("batch", range(4))
def test_some_seeds(batch):
    for seed in range(FIRST + batch * SOME, FIRST + (batch + 1) * SOME):
        play(seed)


@pytest.mark.parametrize(("seed", "before"), KEPT)
def test_kept_seeds(seed, before):
    play(seed, before)


@pytest.mark.parametrize("name", FOUND)
def test_what_is_planted_is_found(name):
    assert planted.find(name, FOUND[name])[0]


def test_the_same_seed_is_the_same_run():
    """Also under the Python of `make`, where that is another, or has another build of
    proton: see tools/pythons.py."""

    def trace(interpreter):
        return subprocess.run(
            [interpreter, "-m", "tests.simulation", "--seed", "21", "--trace"],
            capture_output=True,
            check=True,
        ).stdout

    first = trace(sys.executable)
    assert first.count(b"\n") > 500
    usual = ROOT / ".venv/bin/python"
    assert trace(usual if usual.exists() else sys.executable) == first


@pytest.mark.parametrize("bus", sorted(set(BUSES)))
def test_a_run_without_faults_has_no_failure(bus):
    run = Run(Plan(5, bus, 0.0, ()))
    assert run.run() == []
    came = run.ledger.arrivals
    assert sum(len(each) for each in came.values()) > 150
    assert {message.kind for message in run.ledger.messages.values()} == {
        "call",
        "cast",
        "notify",
        "keep",
    }


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


@pytest.mark.parametrize(
    ("commit", "first"), [("00000002" + 32 * "f", 2000), ("", command.USUAL)]
)
def test_seeds_follow_from_the_commit(commit, first, monkeypatch):
    played = []
    monkeypatch.setattr(command, "commit", lambda: commit)
    monkeypatch.setattr(command, "play_many", lambda *args: played.extend(args) or [])
    monkeypatch.setattr(sys, "argv", ["simulation", "--commit", "--runs", "7"])
    assert command.main() == 0
    assert played[:2] == [first, 7]


def test_a_failure_says_how_it_is_seen_again(monkeypatch, capsys):
    monkeypatch.setattr(command, "play_many", lambda *_: [7, 9])
    monkeypatch.setattr(sys, "argv", ["simulation", "--commit", "--runs", "7"])
    with planted.PLANTED["the tail of a write is dropped"]():
        assert command.main() == 1
    said = capsys.readouterr().out
    assert "without any fault" in said
    assert said.endswith("python -m tests.simulation --seed 7 --trace\n")
