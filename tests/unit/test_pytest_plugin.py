# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin, as the tests of another program have it."""

import os
import pathlib
import subprocess
import sys
import threading

import pytest

pytest_plugins = ["pytester"]

PROGRAM = pathlib.Path(__file__).parents[2] / "docs/programs/test_greeting.py"

# A bus that is a broker, one that is a router, and both where they run.
PLACES = """
import pytest

@pytest.fixture(params=["greenamqp", "skupper-router"])
def product(request):
    return request.param

@pytest.fixture(params=[False, True], ids=["thread", "process"])
def greenamqp_broker_settings(request, product):
    return {"product": product, "process": request.param}
"""


def run(pytester, passed, *arguments):
    # In a process of its own: it is found by its entry point, as everywhere.
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)
    result.assert_outcomes(passed=passed)
    return result


def test_the_program_of_the_docs(pytester):
    pytester.makepyfile(test_greeting=PROGRAM.read_text())
    pytester.makeconftest(PLACES)
    run(pytester, 4)


@pytest.mark.parametrize("library", ["eventlet", "gevent"])
def test_monkey_patched(pytester, library):
    patch = {
        "eventlet": "import eventlet; eventlet.monkey_patch()",
        "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    }[library]
    pytester.makeconftest(f"{patch}\n{PLACES}")
    pytester.makepyfile(test_greeting=PROGRAM.read_text())
    run(pytester, 4, "-W", "ignore::DeprecationWarning")


def test_the_broker_goes_and_comes_back(pytester):
    pytester.makeconftest(PLACES)
    pytester.makepyfile(
        """
        import greenamqp
        import oslo_messaging
        import pytest

        @pytest.fixture
        def product():
            return "greenamqp"

        def test_it(greenamqp_broker, greenamqp_notification_transport):
            notifier = oslo_messaging.Notifier(
                greenamqp_notification_transport, "me", driver="messaging", topics=["t"]
            )
            notifier.info({}, "one", {})
            assert greenamqp_broker.connections == 1
            port = greenamqp_broker.port
            greenamqp_broker.kill()
            greenamqp_broker.start()
            assert greenamqp_broker.port == port
            notifier.info({}, "two", {})
            assert greenamqp_broker.drop_connections() == 1
            notifier.info({}, "three", {})
            [connection] = greenamqp.describe(greenamqp_notification_transport)[
                "connections"
            ]
            [sender] = connection["senders"]
            assert greenamqp_broker.depth(sender["address"]) == 2
        """
    )
    run(pytester, 2)


def test_nothing_is_imported_before_a_fixture_is_used(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_it(pytestconfig):
            assert pytestconfig.pluginmanager.has_plugin("greenamqp")
            rooms = {name for name in sys.modules if name.startswith("greenamqp")}
            assert rooms == {
                "greenamqp", "greenamqp.testing", "greenamqp.testing.plugin"
            }
            assert not {
                "eventlet", "gevent", "oslo_messaging", "oslo_config", "proton"
            } & set(sys.modules)
        """
    )
    run(pytester, 1)


def test_a_setting_that_is_not_allowed_is_named(pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize(
            "greenamqp_broker_settings",
            [{"product": "x"}, {"product": "x", "process": True}],
        )
        def test_it(greenamqp_transport):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=2)
    assert result.stdout.str().count("product must be one of") >= 2


def test_the_process_ends_with_its_parent():
    parent = """
import os
from greenamqp.testing.process import BrokerProcess
broker = BrokerProcess().start()
print(broker._process.pid, flush=True)
os._exit(0)
"""
    out = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    )
    with out:
        pid = int(out.stdout.readline())
        # The child holds no copy of this pipe that would end only with it.
        out.wait()
    _wait_gone(pid)


def _wait_gone(pid):
    """Until no process has that number, or it is another one's by now."""
    command = pathlib.Path(f"/proc/{pid}/cmdline")
    try:
        while b"greenamqp.testing.process" in command.read_bytes():
            pass  # the guard ends it
    except (FileNotFoundError, ProcessLookupError):
        pass


def test_what_cannot_be_served_is_told():
    from greenamqp.testing.process import BrokerProcess

    with BrokerProcess() as first:
        second = BrokerProcess(port=first.port)
        with pytest.raises(RuntimeError, match="OSError"):
            second.start()
    with pytest.raises(RuntimeError, match="was not started, or is stopped"):
        second.depth("a")


def test_it_is_stopped_whatever_children_there_are():
    from greenamqp.testing.process import BrokerProcess

    broker = BrokerProcess().start()
    process = broker._process
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)  # as long as the parent has the pipe
        os._exit(0)
    os.close(reader)
    try:
        stopping = threading.Thread(target=broker.stop, daemon=True)
        stopping.start()
        stopping.join(20)
        assert process.returncode == 0
    finally:
        os.close(writer)
        os.waitpid(child, 0)
