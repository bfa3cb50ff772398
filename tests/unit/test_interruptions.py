# SPDX-License-Identifier: Apache-2.0
"""Signal handlers and finalizers that use the driver: see
:mod:`tests.unit.interrupted`, which each test runs in a process of its own."""

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


@pytest.mark.parametrize("check", interrupted.CHECKS)
@pytest.mark.parametrize("hub", interrupted.HUBS)
def test_interrupted(url, hub, check):
    library = hub.partition("-")[0]
    if library in ("eventlet", "gevent"):
        pytest.importorskip(library)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.unit.interrupted"]
        + [hub, url, check],
        cwd=buses.ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.returncode}\n{run.stdout}\n{run.stderr}"
    assert run.stdout.endswith("ok\n"), run.stdout
