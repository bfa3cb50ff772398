# SPDX-License-Identifier: Apache-2.0
"""The real thread, lock and poll primitives, whatever has been monkey patched.

A lock that crosses native threads must be a real one: a patched lock would wake a
green thread of the wrong hub, or none.  Looked up when asked, never at import, as
patching may come after this module is loaded.  Neither eventlet nor gevent is
imported here; a process that uses one has it in ``sys.modules``.
"""

from __future__ import annotations

import importlib
import sys
import types
import typing
import weakref

from greenamqp import fork


def eventlet_patched() -> bool:
    """Whether eventlet has replaced the thread module of this process."""
    if "eventlet.patcher" not in sys.modules:
        return False
    patcher: typing.Any = sys.modules["eventlet.patcher"]
    return bool(patcher.is_monkey_patched("thread"))


def gevent_patched() -> bool:
    """Whether gevent has replaced the thread module of this process."""
    if "gevent.monkey" not in sys.modules:
        return False
    monkey: typing.Any = sys.modules["gevent.monkey"]
    return any(map(monkey.is_module_patched, ("threading", "_thread")))


def original(module: str, name: str) -> typing.Any:
    """`module.name` as the standard library has it."""
    if "eventlet.patcher" in sys.modules:
        patcher: typing.Any = sys.modules["eventlet.patcher"]
        # eventlet calls both _thread and threading "thread".  Where nothing is patched
        # its copy of a module would not know the threads of the real one.
        threads = module in ("threading", "_thread")
        if patcher.is_monkey_patched("thread" if threads else module):
            unpatched: types.ModuleType = patcher.original(module)
            return getattr(unpatched, name)
    if "gevent.monkey" in sys.modules:
        monkey: typing.Any = sys.modules["gevent.monkey"]
        return monkey.get_original(module, name)
    return getattr(importlib.import_module(module), name)


def eventlet_loop() -> typing.Any:
    """What eventlet calls the hub of the calling thread; None if there is none yet."""
    threadlocal = getattr(sys.modules.get("eventlet.hubs"), "_threadlocal", None)
    return getattr(threadlocal, "hub", None)


class _EventletLoop:
    """Remembers, in a child, which eventlet loop its thread had before the fork.

    Here, as nothing of eventlet's may be imported before it is wanted, and a process
    may fork before it wants it.
    """

    def __init__(self) -> None:
        self.inherited: weakref.ref[typing.Any] | None = None
        fork.tell(self)

    def forked(self) -> None:
        loop = eventlet_loop()
        self.inherited = None if loop is None else weakref.ref(loop)


_eventlet_loop = _EventletLoop()


def eventlet_loop_inherited(loop: object) -> bool:
    """Whether `loop` shares what it has in the kernel with the parent process.  Says so
    once: whoever asks makes an end of it."""
    reference = _eventlet_loop.inherited
    if reference is None or reference() is not loop:
        return False
    _eventlet_loop.inherited = None
    return True
