# SPDX-License-Identifier: Apache-2.0
"""A transport in an asyncio loop: its hub, its steps and its end."""

from __future__ import annotations

import contextlib
import typing

from greenamqp import hubs
from greenamqp.driver import GreenAMQPDriver
from greenamqp.hubs.coroutines import CoroutineHub
from greenamqp.server import driver_of

_Transport = typing.TypeVar("_Transport")


def hub_of(transport: typing.Any) -> tuple[GreenAMQPDriver, CoroutineHub]:
    """The driver of a transport, and the hub of the running loop that it is on, from
    now on if it is new.

    :raises TypeError: for a transport of another driver
    :raises RuntimeError: if no loop runs in the calling thread, or the transport was
        used elsewhere before: in another loop, or without one
    """
    driver = driver_of(transport)
    client = driver.client
    if client is not None:
        used = client.hub
        if isinstance(used, CoroutineHub) and used.is_at_home():
            return driver, used
    mine = hubs.get("asyncio")
    assert isinstance(mine, CoroutineHub)
    hub = driver.use_hub(mine)
    if hub is mine:
        return driver, mine
    if isinstance(hub, CoroutineHub):
        where = "belongs to another asyncio loop"
    else:
        where = f"is on the {hub.name} hub"
    raise RuntimeError(
        f"this transport {where}: a coroutine wants one that was not used before, with "
        "the option hub = auto"
    )


async def cleanup(transport: typing.Any) -> None:
    """As ``transport.cleanup()``: close the connection in order, wait for that, and let
    go of everything.  Idempotent.  In the loop that the transport belongs to.

    :raises TypeError: for a transport of another driver
    """
    closing = driver_of(transport).closing()
    if closing is None:
        return
    hub, steps = closing
    if isinstance(hub, CoroutineHub) and hub.is_at_home():
        await hub.drive(steps)
    else:
        hub.complete(steps)


@contextlib.asynccontextmanager
async def closing(transport: _Transport) -> typing.AsyncIterator[_Transport]:
    """``async with closing(transport):`` cleans it up at the end; see `cleanup`."""
    try:
        yield transport
    finally:
        await cleanup(transport)
