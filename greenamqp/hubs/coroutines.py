# SPDX-License-Identifier: Apache-2.0
"""What coroutines ask of the hub that runs in their loop."""

from __future__ import annotations

import abc
import asyncio
import typing

from greenamqp.hubs.base import Hub, Steps, Waiter

_Result = typing.TypeVar("_Result")

#: What is said to who would block it.
STOPS_THE_LOOP = (
    "this cannot wait for the message bus: it would stop the asyncio loop, which would "
    "have to move on meanwhile; await what greenamqp.aio offers instead, or call it in "
    "another thread"
)


class AwaitableWaiter(Waiter):
    """A waiter that a task may wait in."""

    __slots__ = ()

    @abc.abstractmethod
    async def woken(self, deadline: float | None) -> bool:
        """As `wait`, for a coroutine of the hub's loop."""


class CoroutineHub(Hub):
    """A hub that lives in an asyncio loop, whose coroutines wait by awaiting."""

    #: the loop
    event_loop: asyncio.AbstractEventLoop

    @property
    def ended(self) -> bool:
        return self.event_loop.is_closed()

    def is_at_home(self) -> bool:
        """Whether a coroutine of the hub's loop calls, not one of another."""
        return asyncio.get_running_loop() is self.event_loop and not self.inherited

    @abc.abstractmethod
    def waiter(self) -> AwaitableWaiter:
        """A new waiter."""

    async def drive(self, steps: Steps[_Result]) -> _Result:
        """As `run`, for a coroutine of the hub's loop.

        To cancel it ends the steps at their wait: what is not sent yet is withdrawn.
        """
        self.check()
        try:
            waiter, deadline = next(steps)
            while True:
                woken = await typing.cast(AwaitableWaiter, waiter).woken(deadline)
                waiter, deadline = steps.send(woken)
        except StopIteration as end:
            result: _Result = end.value
            return result
        except BaseException:
            steps.close()
            raise

    @abc.abstractmethod
    async def call_outside(
        self, function: typing.Callable[..., _Result], *args: typing.Any
    ) -> _Result:
        """Call `function`, in the task's context (contextvars), where it may block: in
        a thread, or in a green thread where the loop runs those too."""
