# SPDX-License-Identifier: Apache-2.0
"""What is done with a request or notification: oslo.messaging's dispatching, awaited.

What a message means, which endpoint it is for and what becomes of it is as in
oslo.messaging's own servers.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import logging
import operator
import sys
import typing

from oslo_messaging._drivers import base
from oslo_messaging.notify import dispatcher as notify_dispatcher
from oslo_messaging.rpc import dispatcher as rpc_dispatcher

from greenamqp import hubs
from greenamqp.hubs.coroutines import CoroutineHub
from greenamqp.incoming import RpcIncoming
from greenamqp.server import RPCDispatcher

LOG = logging.getLogger(__name__)

_Function = typing.TypeVar("_Function", bound=typing.Callable[..., typing.Any])
_REQUEUE: str = notify_dispatcher.NotificationResult.REQUEUE
_HANDLED: str = notify_dispatcher.NotificationResult.HANDLED


def in_place(function: _Function) -> _Function:
    """Decorator for a plain method of an endpoint, or a pool's callback, that does not
    block: it is called in the loop's thread instead of another one."""
    typing.cast(typing.Any, function).in_place = True
    return function


def expected_exceptions(
    *kinds: type[Exception],
) -> typing.Callable[[_Function], _Function]:
    """As :func:`oslo_messaging.expected_exceptions`, for ``async def``: these are told
    to the caller, and are no errors here."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        async def expected(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            try:
                return await function(*args, **kwargs)
            except kinds:
                raise rpc_dispatcher.ExpectedException() from None

        return typing.cast(_Function, expected)

    return decorate


async def invoke(
    function: typing.Callable[..., typing.Any], *args: typing.Any, **kwargs: typing.Any
) -> typing.Any:
    """Call a coroutine function, or a plain one: in a thread, unless `in_place`."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **kwargs)
    if getattr(function, "in_place", False):
        result = function(*args, **kwargs)
    else:
        hub = typing.cast(CoroutineHub, hubs.get("asyncio"))
        result = await hub.call_outside(_futureproof, function, args, kwargs)
    if inspect.isawaitable(result):
        result = await result
    return result


def _futureproof(
    function: typing.Callable[..., typing.Any],
    args: tuple[typing.Any, ...],
    kwargs: dict[str, typing.Any],
) -> typing.Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as exc:
        # No future can hold one: before Python 3.12 who waits for it waits for ever.
        raise RuntimeError("StopIteration was raised") from exc


def _is_cancelled() -> bool:
    """Whether the task itself is cancelled, not only what its endpoint waited for."""
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


class RPC:
    """Serves requests with endpoints."""

    def __init__(self, dispatcher: RPCDispatcher) -> None:
        self._dispatcher = dispatcher

    async def process(self, messages: list[base.IncomingMessage]) -> None:
        """Serve one request: acknowledge it, call, reply."""
        message = typing.cast(RpcIncoming, messages[0])
        message.acknowledge()
        beats = self._beats(message)
        result, failure = None, None
        try:
            result = await self._call(message)
        except rpc_dispatcher.ExpectedException as exc:
            failure = exc.exc_info
            LOG.debug("request %s: an expected exception: %s", message.msg_id, exc)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            failure = sys.exc_info()
            LOG.error("request %s: its method was cancelled", message.msg_id)
        except Exception:
            failure = sys.exc_info()
            LOG.exception("request %s failed", message.msg_id)
        finally:
            if beats is not None:
                beats.cancel()
        try:
            message.reply(result, failure)
        except Exception:
            LOG.exception("no reply could be made to request %s", message.msg_id)
        finally:
            del failure  # it refers to this frame

    async def _call(self, message: RpcIncoming) -> typing.Any:
        dispatcher = self._dispatcher
        endpoint, method = dispatcher.find(message.message)
        serializer = dispatcher.serializer
        ctxt = serializer.deserialize_context(message.ctxt)
        arguments = {
            name: serializer.deserialize_entity(ctxt, value)
            for name, value in message.message.get("args", {}).items()
        }
        result = await invoke(getattr(endpoint, method), ctxt, **arguments)
        return serializer.serialize_entity(ctxt, result)

    def _beats(self, message: RpcIncoming) -> asyncio.Task[None] | None:
        """Heartbeats for a caller that wants them, twice within its patience."""
        if not message.client_timeout:
            return None
        try:
            interval = int(message.client_timeout) / 2
        except (TypeError, ValueError):
            interval = 0.0
        if interval < 1:
            LOG.warning(
                "request %s: there are no heartbeats for a call_monitor_timeout of %r",
                message.msg_id,
                message.client_timeout,
            )
            return None
        return asyncio.get_running_loop().create_task(self._beat(message, interval))

    async def _beat(self, message: RpcIncoming, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            message.heartbeat()


class Notifications(notify_dispatcher.NotificationDispatcher):
    """Gives notifications to endpoints, one at a time.

    :param allow_requeue: whether endpoints may give them back
    """

    def __init__(
        self,
        endpoints: typing.Sequence[object],
        serializer: typing.Any,
        allow_requeue: bool,
    ) -> None:
        super().__init__(endpoints, serializer)
        self._allow_requeue = allow_requeue

    async def process(self, messages: list[base.IncomingMessage]) -> None:
        """Call the endpoints, then say what became of it."""
        requeue = False
        try:
            requeue = await self._handle(messages[0]) == _REQUEUE
        except Exception:
            LOG.exception("a notification could not be dispatched")
            requeue = True
        self._settle(messages[0], requeue)

    def _settle(self, message: base.IncomingMessage, requeue: bool) -> None:
        if requeue and self._allow_requeue:
            message.requeue()
        else:
            message.acknowledge()

    async def _handle(self, incoming: base.IncomingMessage) -> str:
        priority, _, message = self._extract_user_message(incoming)
        for screen, callback in self._callbacks(priority):
            if screen and not _matches(screen, message):
                continue
            result = await self._notify(
                callback,
                message["ctxt"],
                message["publisher_id"],
                message["event_type"],
                message["payload"],
                message["metadata"],
            )
            if result == _REQUEUE:
                return _REQUEUE
        return _HANDLED

    def _callbacks(self, priority: str) -> list[tuple[typing.Any, typing.Any]]:
        if priority not in notify_dispatcher.PRIORITIES:
            LOG.warning("a notification of the unknown priority %r", priority)
        callbacks: dict[str, list[tuple[typing.Any, typing.Any]]]
        callbacks = self._callbacks_by_priority
        return callbacks.get(priority, [])

    async def _notify(
        self, callback: typing.Callable[..., typing.Any], *args: typing.Any
    ) -> typing.Any:
        try:
            return await invoke(callback, *args)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            LOG.error("an endpoint for notifications was cancelled")
        except Exception:
            LOG.exception("an endpoint for notifications failed")
        return _REQUEUE


class Batches(Notifications):
    """Gives notifications to endpoints as lists, one for each priority."""

    async def process(self, messages: list[base.IncomingMessage]) -> None:
        """Call the endpoints, then say what became of each."""
        requeued: set[base.IncomingMessage] = set()
        try:
            await self._handle_all(messages, requeued)
        except Exception:
            LOG.exception("notifications could not be dispatched")
            requeued.update(messages)
        for message in messages:
            self._settle(message, message in requeued)

    async def _handle_all(
        self,
        messages: list[base.IncomingMessage],
        requeued: set[base.IncomingMessage],
    ) -> None:
        priority_of = operator.itemgetter(0)
        extracted = sorted(
            (self._extract_user_message(each) for each in messages), key=priority_of
        )
        for priority, group in itertools.groupby(extracted, priority_of):
            _, incoming, contents = zip(*group, strict=True)
            for screen, callback in self._callbacks(priority):
                wanted = [
                    each for each in contents if not screen or _matches(screen, each)
                ]
                if wanted and await self._notify(callback, wanted) == _REQUEUE:
                    requeued.update(incoming)
                    break


def _matches(screen: typing.Any, message: dict[str, typing.Any]) -> bool:
    return bool(
        screen.match(
            message["ctxt"],
            message["publisher_id"],
            message["event_type"],
            message["metadata"],
            message["payload"],
        )
    )


class Pool:
    """Gives the messages of a consumer pool to a callback."""

    def __init__(
        self, callback: typing.Callable[[typing.Any], object], requeue_on_error: bool
    ) -> None:
        self._callback = callback
        self._requeue_on_error = requeue_on_error

    async def process(self, messages: list[base.IncomingMessage]) -> None:
        """Call back with each message, then say what became of it."""
        for message in messages:
            failed = True
            try:
                await invoke(self._callback, message.message)
                failed = False
            except asyncio.CancelledError:
                if _is_cancelled():
                    raise
                LOG.error("a pool's callback was cancelled")
            except Exception:
                LOG.exception("a pool's callback failed")
            if failed and self._requeue_on_error:
                message.requeue()
            else:
                message.acknowledge()
