# SPDX-License-Identifier: Apache-2.0
"""oslo.messaging's notifier, whose notifications are awaited."""

from __future__ import annotations

import copy
import functools
import logging
import typing

from oslo_messaging import Target, exceptions
from oslo_messaging import notify as oslo_notify
from oslo_messaging import transport as oslo_transport

from greenamqp.aio.transport import hub_of
from greenamqp.server import driver_of

LOG = logging.getLogger(__name__)


class _Notification(typing.NamedTuple):
    target: Target
    ctxt: dict[str, typing.Any]
    message: dict[str, typing.Any]
    version: float
    retry: int | None


class _Collector(oslo_transport.NotificationTransport):
    """What oslo.messaging's drivers for notifications send over: it keeps what they
    send, for a coroutine to send it."""

    def __init__(self, transport: typing.Any) -> None:
        super().__init__(driver_of(transport))
        self.collected: list[_Notification] = []

    def _send_notification(
        self,
        target: Target,
        ctxt: dict[str, typing.Any],
        message: dict[str, typing.Any],
        version: float,
        retry: int | None = None,
    ) -> None:
        if not target.topic:
            raise exceptions.InvalidTarget("A topic is required to send", target)
        self.collected.append(_Notification(target, ctxt, message, version, retry))


class Notifier:
    """As :class:`oslo_messaging.Notifier`, for coroutines: ``await notifier.info(ctxt,
    event_type, payload)``, and ``audit``, ``debug``, ``warn``, ``warning``, ``error``,
    ``critical``, ``sample`` likewise.

    Each returns when the message bus has accepted the notification, or it is in the
    outbox.  As with oslo.messaging, what cannot be sent is logged, and nothing is
    raised.  All drivers of oslo.messaging may be asked for; those that do not send over
    a transport (``log``, for instance) do their work in the loop's thread.

    :param transport: of ``oslo_messaging.get_notification_transport``
    :param publisher_id: who sends, such as ``compute.host1``
    :param driver: None: the option ``driver`` of ``[oslo_messaging_notifications]``
    :param serializer: of payloads and contexts
    :param retry: further attempts where the bus gives a notification back, or the
        connection is lost; None: the option; -1: for ever
    :param topics: None: the option
    :raises TypeError: for a transport of another driver
    """

    def __init__(
        self,
        transport: typing.Any,
        publisher_id: str | None = None,
        driver: str | None = None,
        serializer: typing.Any = None,
        retry: int | None = None,
        topics: typing.Sequence[str] | None = None,
    ) -> None:
        self._transport = transport
        self._collector = _Collector(transport)
        self._notifier: typing.Any = oslo_notify.Notifier(
            self._collector, publisher_id, driver, serializer, retry, topics
        )

    def prepare(self, **changes: typing.Any) -> Notifier:
        """A notifier with another ``publisher_id`` or ``retry``."""
        prepared = copy.copy(self)
        prepared._notifier = self._notifier.prepare(**changes)
        return prepared

    async def _notify(
        self,
        priority: str,
        ctxt: dict[str, typing.Any],
        event_type: str,
        payload: typing.Any,
    ) -> None:
        # Nothing is awaited meanwhile, so that what is collected is this one's.
        getattr(self._notifier, priority)(ctxt, event_type, payload)
        collected, self._collector.collected = self._collector.collected, []
        driver, hub = hub_of(self._transport)
        for each in collected:
            try:
                await hub.drive(driver.notifying(*each))
            except Exception:
                LOG.exception("no notification could be sent to %s", each.target.topic)

    audit = functools.partialmethod(_notify, "audit")
    debug = functools.partialmethod(_notify, "debug")
    info = functools.partialmethod(_notify, "info")
    warn = warning = functools.partialmethod(_notify, "warn")
    error = functools.partialmethod(_notify, "error")
    critical = functools.partialmethod(_notify, "critical")
    sample = functools.partialmethod(_notify, "sample")
