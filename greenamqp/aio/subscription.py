# SPDX-License-Identifier: Apache-2.0
"""Messages as they come, without endpoints."""

from __future__ import annotations

import collections
import typing

from oslo_messaging import Target
from oslo_messaging._drivers import base

from greenamqp.aio.transport import hub_of
from greenamqp.hubs.coroutines import CoroutineHub
from greenamqp.incoming import AnyIncoming
from greenamqp.listener import Listener
from greenamqp.server import SUBSCRIBE_TIMEOUT


class Messages:
    """What `subscribe` returns: an asynchronous iterator and context manager.

    Each message has ``message`` (its JSON: what a notifier sent, or any other value),
    ``ctxt``, ``acknowledge()`` and ``requeue()``, which do not wait.  The message bus
    gives no more than the option ``notify_server_credit`` says until some of them are
    acknowledged or requeued.

    One coroutine at a time may take messages.
    """

    def __init__(
        self,
        transport: typing.Any,
        subscribe: typing.Callable[[typing.Any], Listener],
    ) -> None:
        self._transport = transport
        self._subscribe = subscribe
        self._listener: Listener | None = None
        self._hub: CoroutineHub | None = None
        # Of a list of them, those that are not handed out yet.
        self._taken: collections.deque[base.IncomingMessage] = collections.deque()

    async def __aenter__(self) -> Messages:
        driver, hub = hub_of(self._transport)
        self._hub = hub
        listener = self._listener = self._subscribe(driver)
        self._waiter = hub.waiter()
        listener.attend(self._waiter.wake)
        try:
            deadline = hub.now() + SUBSCRIBE_TIMEOUT
            if not await hub.drive(listener.attaching(deadline)):
                raise TimeoutError(f"not subscribed: {listener.refusal}")
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take no more, and detach: what is not acknowledged goes back to the bus.
        Idempotent."""
        listener, self._listener = self._listener, None
        self._taken.clear()
        hub = self._hub
        if listener is not None and hub is not None:
            with hub.lock:
                self._waiter.wake()
            await hub.drive(listener.closing())

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> base.IncomingMessage:
        if not self._taken:
            self._taken.extend(await self.take())
        return self._taken.popleft()

    def batches(self) -> Batches:
        """Iterates over lists of up to ``batch_size`` messages instead."""
        return Batches(self)

    async def take(self) -> list[base.IncomingMessage]:
        """Wait for the next list of messages.

        :raises StopAsyncIteration: after `aclose`
        """
        while (listener := self._listener) is not None:
            messages, more = listener.take()
            if messages:
                return messages
            if not more:
                await self._waiter.woken(None)
        raise StopAsyncIteration


class Batches:
    """What ``Messages.batches()`` returns."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> list[base.IncomingMessage]:
        return await self._messages.take()


def subscribe(
    transport: typing.Any,
    topic: str,
    exchange: str | None = None,
    *,
    pool: str | None = None,
    batch_size: int = 1,
    batch_timeout: float | None = None,
) -> Messages:
    """Receive what is sent to `topic`, of notifications with the priority::

        async with subscribe(transport, "notifications.info", "nova") as messages:
            async for message in messages:
                ...
                message.acknowledge()

    :param exchange: None: the control exchange
    :param pool: None: the messages of the topic itself, shared with all others who
        take them; else a copy of each, shared with the other members of the pool
    :param batch_size: of ``batches()``: how many messages at the most
    :param batch_timeout: seconds that a list which is not full waits for more
    :raises TypeError: for a transport of another driver
    :raises TimeoutError: at the beginning, if the bus does not let it subscribe in time
    :raises NotImplementedError: at the beginning, if the bus has no way to make pools
    """
    target = Target(exchange=exchange, topic=topic)
    return Messages(
        transport,
        lambda driver: driver.subscribe_to_topic(
            target, pool, AnyIncoming, batch_size, batch_timeout
        ),
    )
