# SPDX-License-Identifier: Apache-2.0
"""The link that replies come by, and the calls that wait for them."""

from __future__ import annotations

import logging
import typing
import uuid

from greenamqp.addressing import Node
from greenamqp.client.outgoing import Call, Reply
from greenamqp.client.state import LINK_NAME, State
from greenamqp.engine import (
    REJECTED,
    DecodeError,
    Delivery,
    LocalProtocolError,
    Receiver,
    RemoteError,
    SessionStalled,
)
from greenamqp.formats import BadMessage
from greenamqp.hubs import Timer
from greenamqp.management import Refused

if typing.TYPE_CHECKING:
    from greenamqp.client.client import Client

# One name for all of the room: where in it something is logged is nobody's business.
LOG = logging.getLogger("greenamqp.client")


class Replies:
    """The link that replies to this process's calls come by.  Hub's context or lock.

    It is attached with the first call.  Its credit is never less than the number of
    calls that wait, so that a router drops no reply for want of credit.
    """

    __slots__ = (
        "_count",
        "_credit",
        "_declaring",
        "_link",
        "_client",
        "_name",
        "_prefix",
        "_retry_timer",
        "_source",
        "address",
        "refusal",
        "waiting",
    )

    def __init__(self, client: Client) -> None:
        self._client = client
        # Of all ids of requests, and of what replies come from: the same over any
        # number of connections, as long as that answers.
        self._prefix = uuid.uuid4().hex
        self._name = self._prefix
        self._count = 0
        self._link: Receiver | None = None
        self._retry_timer: Timer | None = None
        # What replies come from, on the bus at hand.
        self._source: Node | None = None
        # Whether it is being declared.
        self._declaring = False
        #: Where replies are to be sent; None while there is no such place.
        self.address: str | None = None
        self.waiting: dict[typing.Any, Call] = {}
        #: Why there is no such place, for those who time out meanwhile.
        self.refusal = ""
        self._credit = 0  # of the link, as the peer sees it

    @property
    def survives(self) -> bool:
        """Whether replies are kept while the connection is lost."""
        return self._source is not None and self._source.survives

    def expect(self, call: Call) -> None:
        """A request leaves: its reply will be recognised by its id."""
        assert self.address is not None
        # A fresh id for each attempt: a late reply to an earlier one must not be taken
        # for this one's.
        self._count += 1
        call.id = f"{self._prefix}.{self._count}"
        call.format.expect_reply(call.message, call.id, self.address)
        self.waiting[call.id] = call
        if call.monitor is not None:
            call.monitor_deadline = self._client.hub.now() + call.monitor
        self._top_up()

    def forget(self, call: Call) -> None:
        """Its caller waits no longer."""
        self.waiting.pop(call.id, None)

    def attach(self) -> None:
        """Attach the link, if the connection is up and it is not there yet."""
        client = self._client
        if (
            self._link is not None
            or self._retry_timer is not None
            or self._declaring
            or client.state is not State.UP
        ):
            return
        assert client.engine is not None
        assert client.addresser is not None
        try:
            source = client.addresser.reply_source(self._name)
        except NotImplementedError as exc:
            self.refusal = str(exc)
            return
        management = client.management
        if (
            source.declarations
            and management is not None
            and not management.has(source.declarations)
        ):
            self._declaring = True
            self.refusal = "waiting for the message bus to declare a queue for replies"
            management.declare(source.declarations, self._declared)
            return
        if self.waiting and not source.survives:
            # From another bus, over an earlier connection: they are lost.
            self.fail_all("the replies cannot be had from this message bus")
        self._source = source
        try:
            link = client.engine.create_receiver(
                source,
                name=f"{LINK_NAME}/receiver/[rpc-response]/{uuid.uuid4().hex}",
                # One for all calls: no refusal of another link is to end it.
                own_session=source.survives,
            )
        except LocalProtocolError as exc:
            self.refusal = f"no link for replies: {exc}"
            LOG.error("%s", self.refusal)
            client.make_room()
            self._retry_later()
            return
        self._link = link
        link.on_attached = self._attached
        link.on_detached = self._detached
        link.on_message = self._message
        link.on_dropped = self._dropped
        assert client.watch is not None
        client.watch.attaching(link)
        client.flush()

    def _declared(self, refused: Refused | None) -> None:
        self._declaring = False
        if refused is None:
            self.refusal = ""
            self.attach()
            return
        self.refusal = f"no queue for replies: {refused}"
        LOG.error("%s", self.refusal)
        self._elsewhere()
        self._retry_later()

    def _elsewhere(self) -> None:
        """What replies come from does not answer: its node may be gone.  From now on
        they come from somewhere else, and those that wait get none."""
        self._name = uuid.uuid4().hex
        self.fail_all(self.refusal)

    def _retry_later(self) -> None:
        client = self._client
        self._retry_timer = client.hub.call_at(
            client.hub.now() + client.options.link_retry_delay, self._retry
        )

    def _attached(self, link: Receiver) -> None:
        if self._client.watch is not None:
            self._client.watch.answered(link)
        assert self._source is not None
        source = self._source
        self.address = source.reply_to or source.address or link.remote_source.address
        self.refusal = ""
        self._credit = 0
        self._top_up()
        self._client.send_pending()

    def _detached(self, link: Receiver, error: RemoteError | None) -> None:
        if link is not self._link or link.connection.ended:
            return  # the client hears of the connection, and tells connection_lost
        watch = self._client.watch
        if watch is not None:
            watch.answered(link)
        reason = str(error) if error is not None else "no reason given"
        LOG.error("the link for replies was closed by the peer: %s", reason)
        self.refusal = f"the link for replies was closed: {reason}"
        management = self._client.management
        if self._source is not None and management is not None:
            management.forget(self._source.declarations)
        self.connection_lost(self.refusal)
        if isinstance(error, SessionStalled):
            self._elsewhere()
            self.attach()
        else:
            self._retry_later()

    def _retry(self) -> None:
        self._retry_timer = None
        self.attach()

    def _message(self, link: Receiver, delivery: Delivery, data: memoryview) -> None:
        try:
            message = link.connection.codec.decode_reply(data)
        except DecodeError as exc:
            LOG.error("a reply that cannot be decoded was rejected: %s", exc)
            link.settle(
                delivery,
                REJECTED,
                condition="amqp:decode-error",
                description=str(exc),
            )
            self._used_credit()
            return
        link.settle(delivery)
        format = self._client.format
        try:
            request_id, is_reply, content = format.open_reply(message)
        except BadMessage as exc:
            LOG.error("a reply that cannot be read was dropped: %s", exc)
            self._used_credit()
            return
        call = self.waiting.get(request_id)
        if call is None:
            LOG.warning(
                "a reply that nobody waits for was dropped: it came late, or was not "
                "for us (to request %s)",
                request_id,
            )
        elif is_reply:
            del self.waiting[request_id]
            call.reply = Reply(format, content)
            call.finish(None)
        elif call.monitor is not None:
            # A heartbeat: the server is at work on it.
            call.monitor_deadline = self._client.hub.now() + call.monitor
        self._used_credit()

    def _dropped(self, link: Receiver, reason: str) -> None:
        LOG.warning("a reply was lost: %s", reason)
        self._used_credit()

    def _used_credit(self) -> None:
        self._credit -= 1
        self._top_up()

    def _top_up(self) -> None:
        """Grant credit when half the window is used, or more calls wait than replies
        may come; then for twice as many, so that not each call costs a frame."""
        waiting = len(self.waiting)
        window = self._client.options.reply_link_credit
        if self._link is not None and (
            self._credit < waiting or self._credit * 2 <= window
        ):
            grant = max(window, 2 * waiting) - self._credit
            self._credit += grant
            self._link.flow(grant)

    def connection_lost(self, reason: str) -> None:
        """The link is gone, and with it the address that replies are sent to, unless
        that is kept: then those who wait go on waiting."""
        self._stop_timer()
        self._link = None
        self._declaring = False
        self.address = None
        if self.survives:
            return
        self.fail_all(f"{reason}; whether the request was carried out is unknown")

    def _stop_timer(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def close(self) -> None:
        """Detach the link."""
        self._stop_timer()
        link, self._link = self._link, None
        self.address = None
        if link is not None:
            link.close()
        management = self._client.management
        if self._source is not None and self._source.remove and management is not None:
            management.delete_queue(self._source.remove)

    def fail_all(self, reason: str) -> None:
        """Fail all calls that wait for a reply."""
        waiting, self.waiting = self.waiting, {}
        for call in waiting.values():
            call.failed(reason)
