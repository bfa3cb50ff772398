# SPDX-License-Identifier: Apache-2.0
"""The README's commands on a fresh Debian, and how long each takes.

    python3 -m tools.fresh_debian [--without-tests] SUITE ...

For each SUITE (bookworm, trixie) a minimal system is made in a folder, which is removed
at the end. In it, by chroot, the packages are installed as the README says, then come
``make demo`` and ``make test``, in a clone of this repository. The exit status is 0
only if all succeeded.

Needs root, a Debian mirror (see tools/buses) and what pip needs. Takes a gigabyte under
/var/tmp for each suite.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from tools.buses import BusError
from tools.buses.install import debian_tree
from tools.buses.scratch import Scratch

ROOT = pathlib.Path(__file__).parents[1]

#: In this order; each is a line of the README.
COMMANDS = (
    "apt-get update && apt-get install -y $(tools/check-build-deps --debian)",
    "make demo",
    "make test",
)

#: Where the clone is, in the system.
_CLONE = "root/greenamqp"

#: How this machine reaches the registries is no part of what is tried.
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")
_CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL")

#: In a process and mount namespace of its own, so that nothing of it stays.
_INSIDE = (
    "mount -t proc proc /proc; mount -t tmpfs shm /dev/shm; "
    "mount -t devpts devpts /dev/pts; cd /{} && {}"
)


def furnish(system: pathlib.Path) -> dict[str, str]:
    """Put the clone and the network's files into the system.  Returns the environment
    of what runs there."""
    certificates = {
        name: os.environ[name] for name in _CERTIFICATES if name in os.environ
    }
    proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    for name in (*_NETWORK, *certificates.values()):
        if os.path.isfile(name):
            into = system / name.lstrip("/")
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, into)
    (system / "dev/shm").mkdir(exist_ok=True)
    clone = str(system / _CLONE)
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        **certificates,
        **proxies,
    }


def run(system: pathlib.Path, command: str, environment: dict[str, str]) -> int:
    """The exit status of a command of the README in the system."""
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        + ["chroot", str(system), "sh", "-c", _INSIDE.format(_CLONE, command)],
        env=environment,
        stdin=subprocess.DEVNULL,
    ).returncode


def try_suite(suite: str, commands: list[str]) -> bool:
    """Whether all commands succeeded; says how long each took."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        # What pip needs to trust a registry; nothing of what is tried.
        system = debian_tree(Scratch(folder), suite, suite, "ca-certificates")
        environment = furnish(system)
        for command in commands:
            before = time.monotonic()
            status = run(system, command, environment)
            seconds = time.monotonic() - before
            said = f"failed with {status}" if status else "succeeded"
            print(f"== {suite}: {command}: {said} in {seconds:.0f} s", flush=True)
            if status:
                return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--without-tests", action="store_true")
    options = parser.parse_args()
    readme = (ROOT / "README.rst").read_text()
    if missing := [command for command in COMMANDS if command not in readme]:
        parser.error(f"the README does not say: {', '.join(missing)}")
    commands = list(COMMANDS[:-1] if options.without_tests else COMMANDS)
    try:
        return 0 if all([try_suite(suite, commands) for suite in options.suites]) else 1
    except BusError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
