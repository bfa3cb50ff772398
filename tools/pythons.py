# SPDX-License-Identifier: Apache-2.0
"""The tests under other Pythons, and with proton built with and without Cyrus SASL.

    python3 tools/pythons.py deal WORLD ...
    python3 tools/pythons.py here
    python3 tools/pythons.py run VERSION-WORLD[-cyrus] [argument of pytest ...]

What takes long is not run under every Python: it is dealt, and runs under one of them.

``deal`` prints, for each WORLD of the functional tests, the target of make that runs
it: ``python-...`` under another version of Python as long as there are any, else
``test-WORLD`` under this one. Versions are looked for on the PATH and where pyenv puts
them; which were not found it says on the standard error. The newest has proton with
Cyrus SASL, the others have it without; where there are too few others, one of these
two is this version, with a proton of its own.

``run`` makes an environment in build/pythons, compiles proton there as it is asked for,
and runs unit tests and the functional tests of one world. With Cyrus SASL these are all
unit tests but the long ones, elsewhere those that say something about a Python or about
proton's build (with OTHER_PYTHONS=yes all but the long ones everywhere).

``here`` prints what is left of the unit tests for this version, which make
test-unit-here runs: the long ones, and again those that say something about a Python:
proton is built here as for the others.

Compiling proton with Cyrus SASL needs pkg-config and libsasl2's headers. What was
compiled is kept where pip keeps such things, apart by build.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[1]

#: What greenamqp runs under.
VERSIONS = ("3.11", "3.12", "3.13", "3.14")

#: One environment for each target; what is in it can be made again.
ENVIRONMENTS = ROOT / "build" / "pythons"

_CYRUS = "cyrus"

_UNIT = pathlib.Path("tests/unit")

#: They start hundreds of processes or play whole worlds, and take as long as the rest.
_LONG = [
    str(_UNIT / f"test_{name}.py")
    for name in ("demo_orchestrate", "interruptions", "simulation")
]

#: But these are about Pythons.
_COMPARED = (
    f"{_UNIT}/test_simulation.py::test_the_same_seed_is_the_same_run",
    "tests/chaos/test_forks.py::test_os_fork[eventlet-asyncio]",
)

#: What is near to Python's own library.
_PYTHON = (
    *("hubs", "interrupts", "blocked_hub", "driver", "broker_server", "fail_fast"),
    *("command", "wrong_input"),
)

#: What is near to how proton was built, and to TLS.
_PROTON = ("engine_*", "message", "security", "tls", "connect")

_TARGET = re.compile(rf"(3\.\d+)-(.+?)(-{_CYRUS})?")

_EXTENDED = "import proton; print(proton.SASL.extended())"


THIS = ".".join(platform.python_version_tuple()[:2])


def find(version: str) -> str | None:
    """The interpreter of a version, None where this machine has none."""
    if version == THIS:
        return sys.executable
    candidates = [shutil.which(f"python{version}")]
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates += map(str, pyenv.glob(f"versions/{version}.*/bin/python"))
    for candidate in filter(None, candidates):
        # A shim of pyenv's is on the PATH also for what it has not chosen.
        asked = subprocess.run(
            [candidate, "-c", "import venv, ensurepip, sys; print(sys.version)"],
            capture_output=True,
            text=True,
        )
        if asked.returncode == 0 and asked.stdout.startswith(f"{version}."):
            return candidate
    return None


def deal(worlds: list[str]) -> list[str]:
    """A target of make for each world."""
    found = {version: find(version) for version in VERSIONS if version != THIS}
    for version, interpreter in found.items():
        if interpreter is None:
            print(f"Python {version} was not found", file=sys.stderr)
    versions = [version for version in found if found[version]]
    versions.sort(key=VERSIONS.index, reverse=True)
    # One with Cyrus SASL and one without in any case.
    versions += [THIS] * (2 - len(versions))
    targets = [f"test-{world}" for world in worlds]
    for at, (version, world) in enumerate(zip(versions, worlds, strict=False)):
        targets[at] = f"python-{version}-{world}" + ("" if at else f"-{_CYRUS}")
    return targets


def near(names: Sequence[str]) -> list[str]:
    """The unit tests that are meant."""
    return [
        str(path.relative_to(ROOT))
        for name in names
        for path in sorted((ROOT / _UNIT).glob(f"test_{name}.py"))
    ]


def all_but_long() -> list[str]:
    """All unit tests but those that run under one Python."""
    return [str(_UNIT), *(f"--ignore={name}" for name in _LONG)]


def run(target: str, arguments: list[str]) -> int:
    """The exit status of the first tests that failed, 0 where none did."""
    parsed = _TARGET.fullmatch(target)
    if parsed is None:
        raise SystemExit(f"{target} is no VERSION-WORLD[-{_CYRUS}]")
    version, world, cyrus = parsed.groups()
    interpreter = find(version)
    if interpreter is None:
        raise SystemExit(f"Python {version} was not found")
    python = make(ENVIRONMENTS / target, interpreter, bool(cyrus))
    whole = cyrus or os.environ.get("OTHER_PYTHONS") == "yes"
    # Side by side, as the latter mostly wait; what they say comes after the rest.
    functional = ["tests.functional.world", world, "pytest", "tests/functional"]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [python, "-m", *functional, *arguments],
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as beside,
    ):
        failed = 0
        for names in (all_but_long() if whole else near(_PYTHON + _PROTON)), _COMPARED:
            command = [python, "-m", "pytest", *names, *arguments]
            failed = failed or subprocess.run(command, cwd=ROOT).returncode
        beside.wait()
        said.seek(0)
        sys.stdout.flush()
        shutil.copyfileobj(said, sys.stdout.buffer)
    return failed or beside.returncode


def make(folder: pathlib.Path, interpreter: str, cyrus: bool) -> str:
    """An environment for the tests; returns its interpreter."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    if cyrus and subprocess.run(["pkg-config", "--exists", "libsasl2"]).returncode:
        raise SystemExit("for Cyrus SASL pkg-config and libsasl2-dev are missing")
    with proton_environment(cyrus) as environment:
        subprocess.run([*pip, *proton_requirement()], env=environment, check=True)
    asked = subprocess.check_output([python, "-c", _EXTENDED], text=True).strip()
    if asked != str(cyrus):
        raise SystemExit(f"python-qpid-proton: Cyrus SASL is {asked}")
    with alone():
        subprocess.run([*pip, "-e", ".[test]"], cwd=ROOT, check=True)
    return python


def proton_requirement() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line.split("#")[0].strip() for line in lines if "proton>=" in line]


@contextlib.contextmanager
def proton_environment(cyrus: bool) -> Iterator[dict[str, str]]:
    """In which proton is compiled with what pkg-config knows, or with nothing."""
    # As builds that are made for use: proton's assertions end the process, and without
    # any optimisation what recurses needs a larger stack.
    environment = dict(os.environ, CFLAGS="-O1 -g0 -DNDEBUG")
    # What pip has kept, of other flags too, may be of the other build.
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    kept = cache / "greenamqp" / (_CYRUS if cyrus else "plain")
    environment["PIP_CACHE_DIR"] = str(kept)
    with tempfile.TemporaryDirectory() as nothing:
        if not cyrus:
            environment["PKG_CONFIG_LIBDIR"] = nothing
        yield environment


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While it lasts no other target installs the tree: pip writes into it."""
    with open(ENVIRONMENTS / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    match arguments:
        case ["deal", _, *_]:
            print(*deal(arguments[1:]))
            return 0
        case ["here"]:
            print(*_LONG, *near(_PYTHON))
            return 0
        case ["run", target, *rest]:
            return run(target, rest)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
