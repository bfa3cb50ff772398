# SPDX-License-Identifier: Apache-2.0
"""Signal handlers and finalizers that use the driver: see
:mod:`tests.unit.interrupted`, which runs each check in a process of its own."""

import contextlib
import functools
import subprocess
import sys

import pytest

from tests.functional import buses
from tests.unit import interrupted


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A broker, and a process that answers calls."""
    broker = buses.EmbeddedBroker()
    conf = tmp_path_factory.mktemp("interruptions") / "peer.conf"
    conf.write_text("")
    peer = subprocess.Popen(
        [sys.executable, "-m", "tests.functional.peer", broker.url, conf]
        + ["interruptions", "peer"],
        cwd=buses.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert peer.stdout.readline() == "ready\n"
        yield broker.url
    finally:
        peer.stdin.close()
        peer.wait()
        peer.stdout.close()
        broker.stop()


@pytest.fixture(scope="module")
def run(url, tmp_path_factory):
    """Run a check under a hub, in a process of its own; returns its exit status and
    what it wrote."""
    folder = tmp_path_factory.mktemp("checks")
    with contextlib.ExitStack() as stack:

        @functools.cache
        def serving(hub):
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.unit.interrupted"]
                + [hub, url],
                cwd=buses.ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)  # closes its input, which ends it
            return process

        def run(hub, check):
            output = folder / f"{hub}-{check}"
            process = serving(hub)
            print(check, output, file=process.stdin, flush=True)
            status = process.stdout.readline().strip()
            return status, output.read_text()

        yield run


@pytest.mark.parametrize("hub", interrupted.HUBS)
@pytest.mark.parametrize("check", interrupted.CHECKS)
def test_interrupted(run, hub, check):
    library = hub.partition("-")[0]
    if library in ("eventlet", "gevent"):
        pytest.importorskip(library)
    status, said = run(hub, check)
    assert status == "0", f"{status}\n{said}"
    assert said.endswith("ok\n"), said
