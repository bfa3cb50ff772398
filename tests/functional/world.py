# SPDX-License-Identifier: Apache-2.0
"""The world that a test process lives in: native threads, eventlet or gevent.

:func:`enter` patches the process and may be called once, before anything that
makes locks or threads has been imported. As a program it enters a world and runs
something in it:

    python -m tests.functional.world WORLD pytest [argument ...]
    python -m tests.functional.world WORLD MODULE [argument ...]
"""

import os
import runpy
import sys
import warnings

ENV = "GREENAMQP_TEST_HUB"

#: Every world by its name, in the order in which they are run.
WORLDS = ("threads", "eventlet", "eventlet-asyncio", "gevent")

_current: str | None = None


def enter(name: str) -> None:
    """Make this process live in the world ``name``.

    Idempotent for the same name. Raises ValueError for an unknown name, and
    RuntimeError when the process already lives elsewhere or has imported
    oslo.messaging, which keeps references to what would be patched.
    """
    global _current
    if name == _current:
        return
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; one of {', '.join(WORLDS)}")
    if _current is not None:
        raise RuntimeError(f"this process is already in world {_current!r}")
    if name != "threads":
        for module in ("oslo_messaging", "greenamqp"):
            if module in sys.modules:
                raise RuntimeError(
                    f"too late to patch for {name}: {module} is imported; "
                    "run the functional tests in a process of their own"
                )
    if name in ("eventlet", "eventlet-asyncio"):
        # Read by eventlet when its first hub is made.
        if name == "eventlet-asyncio":
            os.environ["EVENTLET_HUB"] = "asyncio"
        with warnings.catch_warnings(record=True):
            # eventlet deprecates itself when it is imported.
            import eventlet

        eventlet.monkey_patch()
    else:
        # oslo.messaging imports eventlet in any world, and its resolver would be a
        # third of the start of each process.
        os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")
    if name == "gevent":
        from gevent import monkey

        monkey.patch_all()
    _end_idle_workers_soon()
    _current = name
    os.environ[ENV] = name


def _end_idle_workers_soon() -> None:
    """An idle worker of a stock executor looks once a second whether it is to end, and
    most tests end with waiting for one."""
    from futurist import _thread

    _thread.ThreadWorker.MAX_IDLE_FOR = 0.05


def current() -> str:
    """The name of the world that this process lives in."""
    return _current or "threads"


def is_green() -> bool:
    """Whether threads of this process are green threads."""
    return current() != "threads"


def executors() -> list[str]:
    """The executors that a stock server can be given in this world."""
    if current().startswith("eventlet"):
        return ["eventlet", "threading"]
    return ["threading"]


def own_executors() -> list[str]:
    """The executors that greenamqp's own servers can have in this world."""
    return {
        "threads": ["threading", "blocking"],
        "eventlet": ["eventlet", "threading"],
        "eventlet-asyncio": ["eventlet"],
        "gevent": ["gevent", "threading"],
    }[current()]


def main() -> None:
    name, program, *arguments = sys.argv[1:]
    # Run as a program this module is __main__: patch through the copy that
    # everything else will import.
    from tests.functional import world

    world.enter(name)
    sys.argv = [program, *arguments]
    if program == "pytest":
        import pytest

        sys.exit(pytest.main(arguments))
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
