# SPDX-License-Identifier: Apache-2.0
"""Signal handlers and finalizers that use the driver: see
:mod:`tests.unit.interrupted`, which runs each check in a process of its own."""

import subprocess
import sys

import pytest

from tests.functional import buses, nursery
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


@pytest.mark.parametrize("hub", interrupted.HUBS)
@pytest.mark.parametrize("check", interrupted.CHECKS)
def test_interrupted(url, hub, check):
    library = hub.partition("-")[0]
    if library in ("eventlet", "gevent"):
        pytest.importorskip(library)
    process = nursery.fork(
        interrupted.HUBS[hub],
        "tests.unit.interrupted:run",
        hub=hub,
        url=url,
        name=check,
    )
    said = process.stdout.read()
    status = process.wait()
    process.stderr.seek(0)
    errors = process.stderr.read()
    process.close()
    assert status == 0, f"{status}\n{said}{errors}"
    assert said.endswith("ok\n"), said
