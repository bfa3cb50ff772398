# SPDX-License-Identifier: Apache-2.0
"""oslo.messaging's RPC client, whose calls are awaited."""

from __future__ import annotations

import copy
import typing

from oslo_messaging import Target, exceptions
from oslo_messaging import serializer as serializers
from oslo_messaging.rpc import client as rpc_client

from greenamqp.aio.transport import hub_of

_Context = dict[str, typing.Any]


class RPCClient:
    """As :class:`oslo_messaging.RPCClient`, for coroutines: `call` and `cast` are
    awaited, and all else means the same.

    :param transport: of ``oslo_messaging.get_rpc_transport``
    :param target: of all that is sent, unless `prepare` says otherwise
    :param timeout: seconds that a call may take; None: the option
        ``rpc_response_timeout``
    :param version_cap: requests of a later version raise RPCVersionCapError
    :param serializer: of arguments, results and contexts
    :param retry: further attempts where the bus gives a message back; None or -1: as
        many as the time-out allows
    :param call_monitor_timeout: seconds without a heartbeat of the server after which a
        call is given up
    :param transport_options: see :class:`oslo_messaging.TransportOptions`
    :raises TypeError: for a transport of another driver
    """

    def __init__(
        self,
        transport: typing.Any,
        target: Target,
        timeout: float | None = None,
        version_cap: str | None = None,
        serializer: typing.Any = None,
        retry: int | None = None,
        call_monitor_timeout: float | None = None,
        transport_options: typing.Any = None,
    ) -> None:
        transport.conf.register_opts(rpc_client._client_opts)
        # Makes requests; what waits in it is not used.
        self._maker = rpc_client._CallContext(
            transport,
            target,
            serializer or serializers.NoOpSerializer(),
            timeout,
            version_cap,
            retry,
            call_monitor_timeout,
            transport_options,
        )

    @property
    def target(self) -> Target:
        """Where requests go."""
        return self._maker.target

    def prepare(self, **changes: typing.Any) -> RPCClient:
        """A client with other properties: those of the target (``exchange``, ``topic``,
        ``namespace``, ``version``, ``server``, ``fanout``), and of the client
        (``timeout``, ``version_cap``, ``retry``, ``call_monitor_timeout``,
        ``transport_options``).

        :raises MessagingException: for a version that is none
        """
        prepared = copy.copy(self)
        prepared._maker = rpc_client._CallContext._prepare(self._maker, **changes)
        return prepared

    def can_send_version(self, version: str | None = None) -> bool:
        """Whether the version cap allows `version`; None: the target's."""
        return bool(self._maker.can_send_version(version or self.target.version))

    async def cast(self, ctxt: _Context, method: str, **kwargs: typing.Any) -> None:
        """Send a request that has no reply; returns when the message bus has accepted
        it.  With a target whose ``fanout`` is true all servers get it.

        :raises MessageDeliveryFailure: with the reason
        :raises InvalidTarget, RPCVersionCapError: nothing was sent
        """
        await self._send(ctxt, method, kwargs)

    async def call(
        self, ctxt: _Context, method: str, **kwargs: typing.Any
    ) -> typing.Any:
        """Send a request, and return what the server's method returned.

        :raises MessagingTimeout: no reply within the time-out, or no heartbeat within
            call_monitor_timeout
        :raises MessageDeliveryFailure: with the reason
        :raises InvalidTarget, RPCVersionCapError: nothing was sent
        :raises RemoteError: what the server raised; where the transport allows its
            module (``allowed_remote_exmods``), that itself
        """
        maker = self._maker
        if maker.target.fanout:
            raise exceptions.InvalidTarget(
                "A call cannot be used with fanout", maker.target
            )
        timeout = maker.timeout
        if timeout is None:
            timeout = maker.conf.rpc_response_timeout
        result = await self._send(
            ctxt,
            method,
            kwargs,
            wait_for_reply=True,
            timeout=timeout,
            call_monitor_timeout=maker.call_monitor_timeout,
        )
        return maker.serializer.deserialize_entity(ctxt, result)

    async def _send(
        self,
        ctxt: _Context,
        method: str,
        arguments: dict[str, typing.Any],
        **how: typing.Any,
    ) -> typing.Any:
        maker = self._maker
        target = maker.target
        if not target.topic:
            raise exceptions.InvalidTarget("A topic is required to send", target)
        message = maker._make_message(ctxt, method, arguments)
        context = maker.serializer.serialize_context(ctxt)
        maker._check_version_cap(message.get("version"))
        driver, hub = hub_of(maker.transport)
        steps = driver.sending(
            target,
            context,
            message,
            retry=maker.retry,
            transport_options=maker.transport_options,
            **how,
        )
        reply = await hub.drive(steps)
        return None if reply is None else driver.result(reply)
