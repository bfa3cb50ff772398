# SPDX-License-Identifier: Apache-2.0
"""Hubs: what "wait" means in this process.  See :mod:`greenamqp.hubs.base`.

Which one is used is decided when the first connection is made, as monkey patching
may come after import; the option ``hub`` forces one.
"""

from __future__ import annotations

import os
import typing

from greenamqp.hubs import native
from greenamqp.hubs.base import (
    Countdown,
    EngagedError,
    Hub,
    Steps,
    Timer,
    Waiter,
    Watch,
)

__all__ = [
    "NAMES",
    "Countdown",
    "EngagedError",
    "Hub",
    "Steps",
    "Timer",
    "Waiter",
    "Watch",
    "choose",
    "get",
]

#: What the option ``hub`` takes beside ``auto``.
NAMES = ("eventlet", "gevent", "threads", "blocking")

# One hub for each scheduler there is: of the process for threads and blocking, of the
# native thread's own event loop for eventlet and gevent.
_hubs: dict[typing.Hashable, Hub] = {}


def choose() -> str:
    """The name of the hub that fits what is monkey patched in this process."""
    if native.eventlet_patched():
        return "eventlet"
    if native.gevent_patched():
        return "gevent"
    return "threads"


def get(name: str | Hub = "auto") -> Hub:
    """The hub of that name for the calling thread, made if need be; a hub itself.

    After a fork the child gets one of its own.  ``asyncio``, which the option does not
    know, is that of the loop that runs in the calling thread: where eventlet runs in
    it, eventlet's.

    :raises ValueError: for an unknown name
    :raises RuntimeError: if no asyncio loop runs in the calling thread
    :raises ImportError: if eventlet or gevent is asked for and not installed
    """
    if isinstance(name, Hub):
        return name
    if name == "auto":
        name = choose()
    if name == "eventlet":
        from eventlet.hubs import get_hub

        mine = (name, id(get_hub()))
        if hasattr(get_hub(), "loop"):  # which runs coroutines, too
            from greenamqp.hubs.eventlet_asyncio import EventletAsyncioHub

            return _cached(mine, EventletAsyncioHub)
        from greenamqp.hubs.eventlet import EventletHub

        return _cached(mine, EventletHub)
    if name == "gevent":
        from gevent.hub import get_hub as get_gevent_hub

        from greenamqp.hubs.gevent import GeventHub

        return _cached((name, id(get_gevent_hub())), GeventHub)
    if name == "asyncio":
        from asyncio import get_running_loop

        from greenamqp.hubs.asyncio import AsyncioHub

        loop = get_running_loop()
        if (name, loop) not in _hubs:
            if getattr(native.eventlet_loop(), "loop", None) is loop:
                return get("eventlet")
            for key, other in list(_hubs.items()):
                if other.ended:
                    del _hubs[key]
                    other._let_go()
        return _cached((name, loop), AsyncioHub)
    if name == "threads":
        from greenamqp.hubs.threads import ThreadsHub

        return _cached((name,), ThreadsHub)
    if name == "blocking":
        from greenamqp.hubs.blocking import BlockingHub

        return _cached((name,), BlockingHub)
    raise ValueError(
        f"hub must be one of {', '.join(('auto', *NAMES))}; it is {name!r}"
    )


def _cached(key: tuple[typing.Hashable, ...], make: typing.Callable[[], Hub]) -> Hub:
    hub = _hubs.get(key)
    if hub is None or hub.pid != os.getpid():
        hub = _hubs[key] = make()
    return hub
