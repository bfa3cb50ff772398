# SPDX-License-Identifier: Apache-2.0
"""tools/pythons.py: which version of Python runs which world."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

PYTHONS = pathlib.Path(__file__).parents[2] / "tools/pythons.py"
THIS = "{}.{}".format(*sys.version_info)
OTHERS = [version for version in ("3.12", "3.13", "3.14") if version != THIS]


@pytest.fixture
def deal(tmp_path):
    """Deal worlds on a machine that has some other versions; returns what is printed
    to the standard output, and to the standard error."""

    def run(versions, *worlds):
        for version in versions:
            where = tmp_path / "versions" / f"{version}.7" / "bin"
            where.mkdir(parents=True)
            (where / "python").write_text(f"#!/bin/sh\necho {version}.7 of its day\n")
            (where / "python").chmod(0o755)
        done = subprocess.run(
            [sys.executable, PYTHONS, "deal", *worlds],
            env={"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), done.stderr

    return run


def test_the_newest_has_cyrus_and_each_world_runs_once(deal):
    older, newer = OTHERS[:2]
    targets, said = deal([older, newer], "gevent", "eventlet", "threads")
    assert targets == [
        f"python-{newer}-gevent-cyrus",
        f"python-{older}-eventlet",
        "test-threads",
    ]
    assert newer not in said


def test_more_versions_than_worlds(deal):
    targets, _ = deal(OTHERS, "eventlet-asyncio")
    assert targets == [f"python-{OTHERS[-1]}-eventlet-asyncio-cyrus"]


def test_without_any_other_this_one_has_both_builds(deal):
    targets, said = deal([], "gevent", "eventlet", "threads")
    assert targets == [
        f"python-{THIS}-gevent-cyrus",
        f"python-{THIS}-eventlet",
        "test-threads",
    ]
    assert f"Python {OTHERS[0]} was not found" in said


def test_with_one_other_this_one_has_the_other_build(deal):
    targets, _ = deal([OTHERS[0]], "gevent", "eventlet")
    assert targets == [f"python-{OTHERS[0]}-gevent-cyrus", f"python-{THIS}-eventlet"]


def test_each_unit_test_runs_here_or_with_cyrus():
    here = subprocess.check_output([sys.executable, PYTHONS, "here"], text=True).split()
    assert len(set(here)) == len(here)
    root = PYTHONS.parents[1]
    files = {str(path.relative_to(root)) for path in root.glob("tests/unit/test_*.py")}
    assert set(here) < files
    spec = importlib.util.spec_from_file_location("pythons", PYTHONS)
    pythons = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pythons)
    folder, *left_out = pythons.all_but_long()
    assert folder == "tests/unit"
    assert {name.removeprefix("--ignore=") for name in left_out} <= set(here)


@pytest.mark.parametrize("target", ["3.12", "gevent", "2.7-gevent", "3.99-gevent"])
def test_what_cannot_be_run(target):
    done = subprocess.run(
        [sys.executable, PYTHONS, "run", target], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert target in done.stderr or "was not found" in done.stderr
