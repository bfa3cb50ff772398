# SPDX-License-Identifier: Apache-2.0
"""tools/check-build-deps on machines that lack something.

Such a machine is a PATH with nothing but what the script itself may need.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

_SCRIPT = pathlib.Path(__file__).parents[2] / "tools/check-build-deps"


@pytest.fixture
def machine(tmp_path):
    """A PATH, and a function that puts a command on it."""
    for tool in ("sh", "sort", "tr"):
        (tmp_path / tool).symlink_to(shutil.which(tool))

    def put(name, script="exit 0"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    put.path = str(tmp_path)
    return put


def check(machine, *arguments, **environment):
    return subprocess.run(
        ["/bin/sh", str(_SCRIPT), *arguments],
        env={"PATH": machine.path, **environment},
        capture_output=True,
        text=True,
    )


def python_like(machine, *, version=True, modules=True, header=""):
    """A python3 that answers the script's questions as told."""
    machine(
        "python3",
        f"""
case "$2" in
    *"version_info < "*) exit {int(not version)} ;;
    *"version_info["*) echo 3.9 ;;
    *ensurepip*) exit {int(not modules)} ;;
    *Python.h*) echo "{header}" ;;
    *get_config_var*) echo "gcc -pthread" ;;
esac""",
    )


def test_an_empty_machine(machine):
    done = check(machine)
    assert done.returncode == 1
    for what in ("make", "python3", "a C compiler (cc)"):
        assert f"missing: {what}" in done.stderr
    assert "Debian: apt-get install gcc libc6-dev make python3 " in done.stderr
    assert "Fedora: dnf install gcc glibc-devel make python3 " in done.stderr


def test_the_packages_alone(machine):
    done = check(machine, "--debian")
    assert done.returncode == 1
    assert done.stdout.split() == [
        *("gcc", "libc6-dev", "make", "python3", "python3-dev", "python3-venv"),
    ]
    assert done.stderr == ""


def test_an_old_python(machine):
    machine("make")
    machine("cc")
    python_like(machine, version=False)
    done = check(machine)
    assert done.returncode == 1
    assert "Python 3.11 or newer (python3 is 3.9)" in done.stderr
    assert "C compiler" not in done.stderr


def test_debians_python_without_venv_and_headers(machine):
    machine("make")
    machine("gcc")
    python_like(machine, modules=False, header="/nonexistent/Python.h")
    done = check(machine)
    assert done.returncode == 1
    assert "missing: the venv and ensurepip modules" in done.stderr
    assert "missing: Python.h (/nonexistent/Python.h)" in done.stderr
    assert "apt-get install python3-dev python3-venv" in done.stderr
    assert "dnf install python3-devel python3-libs" in done.stderr


def test_a_compiler_without_the_c_library(machine, tmp_path):
    machine("make")
    machine("gcc", "exit 1")
    header = tmp_path / "Python.h"
    header.touch()
    python_like(machine, header=header)
    done = check(machine)
    assert done.returncode == 1
    assert "missing: the C library's headers" in done.stderr
    assert "apt-get install libc6-dev" in done.stderr


def test_the_compiler_that_is_asked_for(machine, tmp_path):
    machine("make")
    machine("mycc")
    header = tmp_path / "Python.h"
    header.touch()
    python_like(machine, header=header)
    assert check(machine, CC="mycc -O2").returncode == 0
    done = check(machine, CC="othercc -O2")
    assert done.returncode == 1
    assert "a C compiler (othercc)" in done.stderr


def test_nothing_is_missing_here():
    """This very environment was made with what the script checks for."""
    done = subprocess.run(
        [str(_SCRIPT)],
        env={**os.environ, "PYTHON": getattr(sys, "_base_executable", sys.executable)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
