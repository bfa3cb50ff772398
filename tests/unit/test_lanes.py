# SPDX-License-Identifier: Apache-2.0
"""tools/lanes.py: targets of make side by side."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

LANES = pathlib.Path(__file__).parents[2] / "tools/lanes.py"

MAKEFILE = """\
one:
\t@echo begin one; echo from one > pipe; echo end one
two:
\t@echo begin two; cat pipe; echo end two
wait:
	@cat held
bad:
\t@echo so bad; exit 3
"""


@pytest.fixture
def lanes(tmp_path):
    (tmp_path / "Makefile").write_text(MAKEFILE)
    os.mkfifo(tmp_path / "pipe")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, LANES, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


def test_side_by_side_and_each_in_one_piece(lanes):
    """Each of the two waits for the other, so one after the other they would hang."""
    done = lanes("one", "two")
    assert done.returncode == 0, done.stdout
    assert "==== one\nbegin one\nend one\n==== one: passed" in done.stdout
    assert "==== two\nbegin two\nfrom one\nend two\n==== two: passed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 in ")


def test_a_failure_stops_nobody_and_counts(lanes):
    done = lanes("-j", "1", "bad", "one-more", "bad")
    assert done.returncode == 1
    assert done.stdout.count("so bad") == 2
    assert "one-more: failed with 2" in done.stdout


def test_after_ctrl_c_nothing_else_begins(lanes, tmp_path):
    os.mkfifo(tmp_path / "held")
    process = subprocess.Popen(
        [sys.executable, LANES, "-j", "1", "wait", "bad"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # As a terminal's foreground job: all of it gets the signal.
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        # Opened as soon as what reads it is there, which waits for more.
        with open(tmp_path / "held", "wb"):
            os.killpg(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "==== wait: failed" in said
    assert "so bad" not in said
    assert "Traceback" not in said
