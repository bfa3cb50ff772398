# SPDX-License-Identifier: Apache-2.0
"""The link that the replies to this process's calls come by."""

from __future__ import annotations

import dataclasses
import logging
import typing

from greenamqp import chance
from greenamqp.buses import Again, BadMessage, Node, Refused
from greenamqp.client import notices
from greenamqp.client.context import LINK_NAME, Context
from greenamqp.client.outgoing import Call, Reply
from greenamqp.client.wanted import DECLARED_ANEW, FIRST_PAUSE, WantedLink
from greenamqp.engine import (
    REJECTED,
    DecodeError,
    Delivery,
    LocalProtocolError,
    Receiver,
    RemoteError,
    SessionStalled,
)

LOG = logging.getLogger("greenamqp.client")

# So many requests that were given up are known, to tell what a reply that nobody waits
# for is.
GIVEN_UP = 1000

# So often what replies come from is asked for again soon: for 7.5 s, with pauses that
# begin with FIRST_PAUSE and double.
MOST_SOON = 4


class Replies(WantedLink[Receiver]):
    """See the module.  Hub's context or lock.

    It is attached with the first call.  Its credit is never less than the number of
    calls that wait, so that a router drops no reply for want of credit.

    :param make_room: has others make room for this link; returns whether they do
    :param ready: called when the address is known: calls may leave
    :param forbidden: called when asking for one again is of no use, before somebody
        changes something
    :ivar address: where replies are to be sent; None while there is no such place
    :ivar refusal: why there is none, for those who time out meanwhile
    :ivar waiting: the calls that wait, by the id of their request
    """

    __slots__ = (
        "_count",
        "_credit",
        "_forbidden",
        "_given",
        "_given_up",
        "_make_room",
        "_name",
        "_prefix",
        "_ready",
        "_refused",
        "address",
        "refusal",
        "waiting",
    )

    def __init__(
        self,
        context: Context,
        make_room: typing.Callable[[], bool],
        ready: typing.Callable[[], None],
        forbidden: typing.Callable[[Exception], None],
    ) -> None:
        super().__init__(context)
        self._make_room = make_room
        self._ready = ready
        self._forbidden = forbidden
        # Of all ids of requests, and of what replies come from: the same over any
        # number of connections, as long as that answers.
        self._prefix = chance.unique()
        self._name = self._prefix
        # The node whose declarations were refused.
        self._refused: Node | None = None
        # The address that the bus made and keeps while there is no link to it.
        self._given: str | None = None
        self._count = 0
        self.address: str | None = None
        self.waiting: dict[typing.Any, Call] = {}
        # Ids of requests whose callers left without a reply, the latest last.
        self._given_up: dict[typing.Any, None] = {}
        self.refusal = ""
        self._credit = 0  # of the link, as the peer sees it

    @property
    def survives(self) -> bool:
        """Whether replies are kept while the connection is lost."""
        return self.node.survives

    @property
    def _outlives_link(self) -> bool:
        """Whether they are kept while the link alone is lost."""
        return self.node.survives or self.node.outlives_link

    def expect(self, call: Call) -> None:
        """A request leaves: its reply will be recognised by its id."""
        assert self.address is not None
        if not call.in_doubt:
            # A fresh id for each attempt: a late reply to an earlier one must not be
            # taken for this one's.
            self._count += 1
            call.id = f"{self._prefix}.{self._count}"
        assert call.id is not None
        call.format.expect_reply(call.message, call.id, self.address)
        self.waiting[call.id] = call
        if call.monitor is not None:
            call.monitor_deadline = self._context.hub.now() + call.monitor
        self._top_up()

    def forget(self, call: Call) -> None:
        """Its caller waits no longer."""
        if self.waiting.pop(call.id, None) is not None:
            self._given_up[call.id] = None
            if len(self._given_up) > GIVEN_UP:
                self._given_up.pop(next(iter(self._given_up)), None)

    # -- the life of its link

    def _prepare(self) -> bool:
        context = self._context
        assert context.addresser is not None
        try:
            node = context.addresser.reply_source(self._name)
        except NotImplementedError as exc:
            self.refusal = str(exc)
            return False
        if node.otherwise is not None and node == self._refused:
            node = node.otherwise
        is_kept = node.survives or node.outlives_link
        if node.dynamic and is_kept and self._given is not None:
            node = dataclasses.replace(node, dynamic=False, address=self._given)
        if self.waiting and node.dynamic:
            # It will be another address than theirs, perhaps on another bus.
            self.fail_all("the replies cannot be had from this message bus")
        self.node = node
        return True

    def _create(self) -> Receiver:
        context = self._context
        assert context.engine is not None
        link = context.engine.create_receiver(
            self.node,
            name=f"{LINK_NAME}/receiver/[rpc-response]/{chance.unique()}",
            properties=context.precedence(self.node),
            # One for all calls: no refusal of another link is to end it.
            own_session=self.node.survives,
        )
        link.on_message = self._message
        link.on_aborted = self._aborted
        return link

    def _no_room(self, reason: str) -> bool:
        if not self._make_room():
            return False
        self.refusal = f"no link for replies: {reason}"
        LOG.debug("%s; others make room for it", self.refusal)
        self._address_lost(self.refusal, self._outlives_link)
        self.rest(FIRST_PAUSE)
        return True

    def _not_created(self, error: LocalProtocolError | ValueError) -> None:
        self.refusal = f"no link for replies: {error}"
        LOG.error("%s", self.refusal)
        self.rest()

    def _declaring(self) -> None:
        self.refusal = "waiting for the message bus to declare a queue for replies"

    def _not_declared(self, refused: Refused) -> None:
        self.refusal = f"no queue for replies: {refused}"
        if self.node.otherwise is not None:
            LOG.info("%s; they are lost with the connection", self.refusal)
            self._refused = self.node
            self.want()
            return
        soon = self._anew <= DECLARED_ANEW + MOST_SOON
        if refused.again is Again.SOON and soon:
            # The calls that wait may be answered yet: by this name, on another node.
            LOG.info("%s; it is asked for again", self.refusal)
            self.rest(self.undeclared_pause)
            return
        LOG.error("%s", self.refusal)
        self._elsewhere()
        if refused.again is Again.NEVER:
            self._forbidden(refused)
        self.rest()

    def _elsewhere(self) -> None:
        """What replies come from does not answer: its node may be gone.  From now on
        they come from somewhere else, and those that wait get none."""
        self._name = chance.unique()
        self._given = None
        self.fail_all(self.refusal)

    def _attached(self, link: Receiver) -> None:
        node = self.node
        self.address = node.reply_to or node.address or link.remote_source.address
        if node.dynamic and self._outlives_link:
            self._given = self.address
        self.refusal = ""
        self._credit = 0
        self._top_up()
        self._ready()

    def _detached(
        self, link: Receiver, error: RemoteError | None, was_up: bool
    ) -> None:
        reason = str(error) if error is not None else "no reason given"
        gone = not was_up and error is not None and error.condition == "amqp:not-found"
        if gone and self._given is not None:
            # After a failover; the calls that wait are told below.
            LOG.debug("replies come from another address from now on: %s", reason)
        else:
            LOG.error("the link for replies was closed by the peer: %s", reason)
        self.refusal = f"the link for replies was closed: {reason}"
        stalled = isinstance(error, SessionStalled)
        if not stalled:
            # Nodes agree on no declaration while one of them stands still.
            self.forget_declarations()
        self._address_lost(self.refusal, self._outlives_link)
        watchdog = self._context.watchdog
        if stalled and watchdog is not None and watchdog.hasty:
            self.want()  # it may soon be served by another node
        elif stalled or (gone and self._given is not None):
            self._elsewhere()
            self.want()
        elif was_up:
            self.rest(FIRST_PAUSE)
        else:
            if Again.after(error) is Again.NEVER:
                self._forbidden(Refused.by_link("the link for replies", error))
            self.rest()

    # -- replies

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
        format = self._context.format
        try:
            request_id, is_reply, content = format.open_reply(message)
        except BadMessage as exc:
            LOG.error("a reply that cannot be read was dropped: %s", exc)
            self._used_credit()
            return
        call = self.waiting.get(request_id)
        if call is None:
            self._unclaimed(request_id)
        elif is_reply:
            # In this order: what a signal handler raises may cut it off.
            call.reply = Reply(format, content)
            call.finish(None)
            self.waiting.pop(request_id, None)
        elif call.monitor is not None:
            # A heartbeat: the server is at work on it.
            call.monitor_deadline = self._context.hub.now() + call.monitor
        self._used_credit()

    def _unclaimed(self, id: typing.Any) -> None:
        """A reply came to a request that no call waits for."""
        if id in self._given_up:
            self._context.notices.add(notices.LATE, id=id)
        elif isinstance(id, str) and id.startswith(f"{self._prefix}."):
            # Who serves sends a reply again if the connection was lost before it was
            # acknowledged.
            LOG.debug("the reply to request %s came again, and was dropped", id)
        else:
            self._context.notices.add(notices.STRAY, id=id)

    def _aborted(self, link: Receiver) -> None:
        LOG.warning("a reply was lost: the peer aborted it")
        self._used_credit()

    def _used_credit(self) -> None:
        self._credit -= 1
        self._top_up()

    def _top_up(self) -> None:
        """Grant credit when half the window is used, or more calls wait than replies
        may come; then for twice as many, so that not each call costs a frame."""
        waiting = len(self.waiting)
        window = self._context.options.reply_link_credit
        if self.link is not None and (
            self._credit < waiting or self._credit * 2 <= window
        ):
            grant = max(window, 2 * waiting) - self._credit
            self._credit += grant
            self.link.flow(grant)

    # -- the end

    def connection_lost(self, reason: str) -> None:
        """The link is gone with the connection."""
        self.went_down()
        if not self.survives:
            self._given = None
        self._address_lost(reason, self.survives)

    def _address_lost(self, reason: str, is_kept: bool) -> None:
        """The address that replies are sent to is gone with the link, unless the bus
        keeps it: then those who wait go on waiting."""
        self.address = None
        if not is_kept:
            self.fail_all(reason)

    def close(self) -> None:
        """Detach the link."""
        link = self.go()
        self.address = None
        if link is not None:
            link.close()
        management = self._context.management
        if self.node.remove and management is not None:
            management.delete_queue(self.node.remove)

    def fail_all(self, reason: str) -> None:
        """Fail all calls that wait for a reply."""
        reason += "; whether the request was carried out is unknown"
        for call in list(self.waiting.values()):
            call.failed(reason)
            self.forget(call)
