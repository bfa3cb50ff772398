# SPDX-License-Identifier: Apache-2.0
"""Each hub keeps the contract: see :mod:`tests.unit.hub_contract`."""

import functools
import importlib.util
import pathlib
import subprocess
import sys

import pytest

from greenamqp import hubs
from greenamqp.hubs import native
from tests.unit import fakes, hub_contract

_TOP = pathlib.Path(__file__).parents[2]


@functools.cache
def results(hub: str) -> dict[str, str]:
    """What became of each check.  Only an ``ok`` or ``skip`` is a good beginning."""
    found: dict[str, str] = {}
    left = list(hub_contract.NAMES[hub])
    while left:
        # A check that failed may have left the hub in disorder: the rest gets another.
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.unit.hub_contract", hub]
            + left,
            cwd=_TOP,
            capture_output=True,
            text=True,
        )
        current = None
        for line in run.stdout.splitlines():
            verdict, _, name = line.partition(" ")
            name = name.partition(":")[0]
            if verdict in ("ok", "skip", "FAIL") and name in left:
                current = name
                left.remove(name)
                found[name] = line
            elif current is not None:
                found[current] += "\n" + line
        if run.returncode == 0 and not left:
            break
        if run.returncode != 1 or current is None:
            for name in left:
                found[name] = f"not run: the process ended with {run.returncode}"
            left = []
        if current is not None:
            found[current] += "\n" + run.stderr
    return found


@pytest.mark.parametrize(
    "hub, check",
    [(hub, name) for hub, names in hub_contract.NAMES.items() for name in names],
)
def test_contract(hub, check):
    library = hub.partition("-")[0]
    if library in ("eventlet", "gevent"):
        pytest.importorskip(library)
    elif hub == "asyncio-uvloop":
        pytest.importorskip("uvloop")
    result = results(hub)[check]
    if result.startswith("skip"):
        pytest.skip(result.partition(": ")[2])
    assert result.startswith("ok"), result


def test_every_hub_is_checked():
    checked = {hub.partition("-")[0] for hub in hub_contract.HUBS}
    assert checked == {*hubs.NAMES, "simulated", "asyncio"}
    assert all(len(names) > 30 for names in hub_contract.NAMES.values())


def test_an_unknown_hub():
    with pytest.raises(ValueError, match="auto, eventlet, gevent.*'twisted'"):
        hubs.get("twisted")


def test_without_monkey_patching_threads_are_chosen():
    assert hubs.choose() == "threads"
    assert hubs.get() is hubs.get("threads")


def test_a_hub_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gevent.hub", None)
    with pytest.raises(ImportError):
        hubs.get("gevent")


@pytest.mark.parametrize("module", ["eventlet", "gevent", "eventlet.patcher"])
def test_importing_greenamqp_imports_no_scheduler(module):
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip("not installed")
    # oslo.messaging itself imports eventlet where it is installed, so it is asked
    # for the engine and the hubs alone.
    code = (
        "import sys, greenamqp.hubs, greenamqp.engine, greenamqp.connection.pump\n"
        "from greenamqp.hubs import threads, blocking\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=_TOP).returncode == 0


def test_the_originals_are_the_modules_own_where_nothing_is_patched():
    import threading

    assert native.original("threading", "Lock") is threading.Lock
    assert not native.eventlet_patched()
    assert not native.gevent_patched()


@pytest.mark.parametrize("library", ["eventlet", "gevent"])
def test_the_originals_where_everything_is_patched(library):
    pytest.importorskip(library)
    code = f"""
import _thread, sys
ident, builtin = _thread.get_ident, type(_thread.get_ident)
# By name: eventlet has a _thread of its own, with another type of the same name.  What
# makes one is a function, and from Python 3.13 on that type.
def kind(lock):
    return type(lock).__module__, type(lock).__qualname__
lock = kind(_thread.allocate_lock())
if {library!r} == "eventlet":
    import eventlet
    eventlet.monkey_patch()
else:
    from gevent import monkey
    monkey.patch_all()
import threading
from greenamqp.hubs import native
assert native.{library}_patched()
assert kind(native.original("threading", "Lock")()) == lock
assert kind(threading.Lock()) != lock
for module, name in (("threading", "get_ident"), ("_thread", "start_new_thread")):
    assert type(native.original(module, name)) is builtin, name
    assert type(getattr(sys.modules[module], name)) is not builtin, name
assert native.original("threading", "get_ident")() == ident()
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=_TOP,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_whoever_reads_the_hubs_own_thread_can_come_to():
    """Of native threads, by the table; and none of its states is there for nothing."""
    from greenamqp.hubs.threads import TABLE, Reading

    def reached(state, seen=()):
        seen = {*seen, state}
        for following in TABLE[state].values():
            if following not in seen:
                seen |= reached(following, seen)
        return seen

    assert reached(Reading.NOBODY) == set(Reading)
    for state in Reading:
        assert {Reading.OWN, Reading.NOBODY} <= reached(state)


def test_a_countdown_has_one_callback_at_most():
    world = fakes.World()
    countdown = hubs.Countdown(world)
    called = []
    countdown.call_in(1, lambda: called.append("first"))
    countdown.call_in(2, lambda: called.append("second"))
    assert countdown.runs and world.timers == 1
    world.advance(3)
    assert called == ["second"] and not countdown.runs
    # As it is over, the callback may begin the next one.
    countdown.call_at(
        world.now() + 1, lambda: countdown.call_in(1, lambda: called.append("third"))
    )
    world.advance(1.5)
    assert called == ["second"] and countdown.runs
    countdown.cancel()
    countdown.cancel()
    world.advance(3)
    assert called == ["second"] and not countdown.runs and world.timers == 0
