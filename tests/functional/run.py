# SPDX-License-Identifier: Apache-2.0
"""Run the functional tests once in every world, each in a process of its own.

    python tests/functional/run.py [--hub HUB ...] [--url URL] [-k EXPRESSION]
                                   [-- argument of pytest ...]

HUB is one of the worlds of world.py: threads, eventlet, eventlet-asyncio, gevent; by
default all, one after the other. Without ``--url`` each has an embedded broker of its
own. The exit status is 0 only if all passed.
"""

import argparse
import os
import pathlib
import subprocess
import sys

if __name__ == "__main__":
    # Started by its path, only this folder is on the path.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from tests.functional import buses, world


def run(name: str, url: str | None, arguments: list[str]) -> int:
    """The exit status of pytest in the world ``name``."""
    environment = buses.plain_environment()
    if url:
        environment[buses.ENV] = url
    command = [sys.executable, "-m", "tests.functional.world", name, "pytest"]
    return subprocess.run(
        [*command, *arguments], cwd=buses.ROOT, env=environment
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hub", action="append", choices=world.WORLDS)
    parser.add_argument("--url", default=os.environ.get(buses.ENV))
    parser.add_argument("-k", metavar="EXPRESSION", help="as pytest's")
    parser.add_argument("arguments", nargs="*", help="for pytest")
    options = parser.parse_args()
    arguments = options.arguments or ["tests/functional"]
    if options.k:
        arguments = ["-k", options.k, *arguments]
    failed = {}
    for name in options.hub or world.WORLDS:
        print(f"== {name}", flush=True)
        if status := run(name, options.url, arguments):
            failed[name] = status
    for name, status in failed.items():
        print(f"{name}: pytest ended with {status}")
    print(f"{len(failed)} worlds failed" if failed else "all worlds passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
