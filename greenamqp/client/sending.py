# SPDX-License-Identifier: Apache-2.0
"""What goes to one destination, over any number of links in turn."""

from __future__ import annotations

import collections
import typing
import uuid

from greenamqp import addressing
from greenamqp.client import notices
from greenamqp.client.outgoing import Call, Destination, Outgoing
from greenamqp.client.state import LINK_NAME, State
from greenamqp.engine import (
    ACCEPTED,
    MODIFIED,
    REJECTED,
    RELEASED,
    LinkLimitError,
    LinkState,
    LocalProtocolError,
    RemoteError,
    Sender,
    SessionStalled,
    Terminus,
)
from greenamqp.hubs import Timer
from greenamqp.management import Refused

if typing.TYPE_CHECKING:
    from greenamqp.client.client import Client

# A message that the peer released is sent again after this pause, twice as long each
# further time up to the option link_retry_delay.  A mesh of routers takes up to a
# second to know a new consumer everywhere.  Seconds.
FIRST_RETRY_PAUSE = 0.1

# On a router the pause grows no longer than this: what a router releases is stored
# nowhere, and a mesh that lost a router has found its other ways within seconds.
# Nothing ends the pause early: each RELEASED brings a flow, so to try again with that
# would be a hot loop.  Seconds.
LONGEST_ROUTER_PAUSE = 1.0

# A refusal of these kinds does not go away by trying again.
_PERMANENT = frozenset(
    (
        "amqp:unauthorized-access",
        "amqp:not-allowed",
        "amqp:invalid-field",
        "amqp:not-implemented",
        "amqp:precondition-failed",
    )
)


class SendingLink:
    """What goes to one destination, over one link at a time.  Hub's context or lock."""

    __slots__ = (
        "_declaring",
        "_doubtful",
        "_limit",
        "_link",
        "_client",
        "_node",
        "_resting",
        "_retry_timer",
        "address",
        "destination",
        "last_used",
        "pending",
        "refusal",
    )

    def __init__(self, client: Client, destination: Destination) -> None:
        self._client = client
        self.destination = destination
        self.address: str | None = None
        self.pending: collections.deque[Outgoing] = collections.deque()
        self.last_used = client.hub.now()
        self.refusal = ""
        self._link: Sender | None = None
        # Bytes that it takes in one message; 0: any number.
        self._limit = 0
        # What the destination is on the bus at hand.
        self._node = addressing.Node()
        # Whether what it needs is being declared.
        self._declaring = False
        # Whether messages were left without an outcome, and none has had one since.
        self._doubtful = False
        self._retry_timer: Timer | None = None
        # What the peer released, until its pause is over.
        self._resting: dict[Outgoing, Timer] = {}

    @property
    def link(self) -> Sender | None:
        """The link, if there is one."""
        return self._link

    @property
    def in_use(self) -> bool:
        """Whether anything waits here, for credit or for its outcome."""
        return bool(
            self.pending
            or self._resting
            or self._declaring
            or (self._link is not None and self._link.unsettled)
        )

    def submit(self, entry: Outgoing) -> None:
        """Send now if that is possible, else when it is."""
        self.last_used = self._client.hub.now()
        link = self._link
        if not self.pending and link is not None and self._ready(link, entry):
            self._transmit(link, entry)
            return
        self.pending.append(entry)
        if link is None:
            self.attach()

    def _ready(self, link: Sender, entry: Outgoing) -> bool:
        if link.state is not LinkState.ATTACHED or link.credit <= 0:
            return False
        if self._declaring:
            return False
        return not entry.is_call or self._client.replies.address is not None

    def _transmit(self, link: Sender, entry: Outgoing) -> None:
        client = self._client
        if entry.format is not client.format:
            try:
                entry.recompose(client.format)
            except (TypeError, ValueError) as exc:
                entry.failed(f"it cannot be written for {client.bus}: {exc}")
                return
        message = entry.message
        message.address = self.address
        limited = entry.expires or self._node.message_ttl is not None
        message.ttl = self._ttl(entry) if limited else None
        if self._node.durable and (not entry.is_call or client.replies.survives):
            # No request has to outlive the address that its reply goes to.
            message.durable = True
        if entry.is_call:
            client.replies.expect(typing.cast(Call, entry))
        engine = client.engine
        assert engine is not None
        data = engine.codec.encode(message)
        if 0 < self._limit < len(data):
            entry.failed(
                f"the message has {len(data)} bytes, and the link to {self.address} "
                f"takes {self._limit} at most"
            )
            return
        entry.attempts += 1
        link.send(data, entry, entry.settled)
        if entry.settled:
            entry.accepted()

    def _ttl(self, entry: Outgoing) -> float | None:
        """How long a message may live from now on.  Seconds."""
        ttl = self._node.message_ttl
        if entry.expires and entry.deadline is not None:
            # What is left of it: nobody may act on a request whose caller has given up.
            left = max(0.001, entry.deadline - self._client.hub.now())
            return left if ttl is None else min(ttl, left)
        return ttl

    def send_pending(self) -> None:
        """Send what waits, as far as credit goes."""
        link = self._link
        if link is None:
            return
        pending = self.pending
        while pending:
            entry = pending[0]
            if entry.done:  # its caller gave up
                pending.popleft()
                continue
            if not self._ready(link, entry):
                break
            pending.popleft()
            self._transmit(link, entry)
        self._client.flush()

    def attach(self) -> None:
        """Attach the link, if the connection is up."""
        client = self._client
        if self._link is not None or client.state is not State.UP:
            return
        if self._retry_timer is not None:
            return
        assert client.engine is not None
        assert client.addresser is not None
        try:
            node = self.destination.node(client.addresser)
        except NotImplementedError as exc:
            self._refused(str(exc), True)
            return
        self._node = node
        self.address = node.to or node.address
        if self._must_declare():
            return
        try:
            link = client.engine.create_sender(
                node,
                Terminus(self.address, outcomes=node.outcomes),
                name=f"{LINK_NAME}/sender/[{self.address}]/{uuid.uuid4().hex}",
                properties=node.link_properties,
                own_session=self._doubtful,
            )
        except LinkLimitError as exc:
            # Room comes with the peer's answers to the detaches.
            made = client.make_room()
            self._refused(str(exc), False, FIRST_RETRY_PAUSE if made else None)
            return
        except LocalProtocolError as exc:
            self._refused(str(exc), False)
            return
        except ValueError as exc:  # AMQP has no way to write such a name
            self._refused(str(exc), True)
            return
        self._link = link
        link.on_attached = self._attached
        link.on_detached = self._detached
        link.on_credit = self._credit
        link.on_settled = self._settled
        client.flush()

    def _must_declare(self) -> bool:
        """Whether something must be declared first; has that done."""
        management = self._client.management
        declarations = self._node.declarations
        if self._declaring or management is None or management.has(declarations):
            return self._declaring
        self._declaring = True
        self.refusal = f"waiting for the message bus to declare {self.address}"
        management.declare(declarations, self._declared)
        return True

    def _declared(self, refused: Refused | None) -> None:
        self._declaring = False
        if refused is not None:
            self._refused(str(refused), refused.permanent)
            return
        self.refusal = ""
        if self._link is None:
            self.attach()
        else:
            self.send_pending()

    def _attached(self, link: Sender) -> None:
        self.refusal = ""
        self._limit = link.max_message_size
        self.send_pending()

    def _credit(self, link: Sender) -> None:
        if self.pending:
            self.send_pending()

    def _settled(
        self, link: Sender, entry: Outgoing, outcome: int, error: typing.Any
    ) -> None:
        if self._doubtful:
            self._doubtful = False
            link.share_session()
        if outcome == ACCEPTED:
            entry.accepted()
            return
        is_absent = outcome == REJECTED and self._is_absent(error)
        if outcome == RELEASED or (is_absent and self._node.rejects_absent):
            self._nobody_there(entry, error)
        elif is_absent and self._node.may_be_unheard:
            # An exchange that went with the last of those who listened; the next one
            # who does will declare it.
            entry.accepted()
        elif is_absent and self._node.declarations:
            # Something that was declared was removed by somebody.
            self._forget_declarations()
            self._again(entry, f"the message bus rejected it: {error}")
        elif outcome == REJECTED:
            reason = str(error) if error is not None else "no reason given"
            reason = f"the message bus rejected it: {reason}"
            if self._client.bus.may_take_it_later(error):
                self._again(entry, reason)
            else:
                entry.failed(reason)
        elif outcome == MODIFIED:
            in_doubt = error["failed"] or error["undeliverable"]
            reason = "the message bus returned it: " + (
                "its consumer was lost" if error["failed"] else "it was modified"
            )
            if in_doubt and not entry.repeatable:
                entry.failed(reason)
            else:
                self._again(entry, reason)
        else:
            # Settled, and not a word of what became of it.
            entry.accepted()

    @staticmethod
    def _is_absent(error: RemoteError | None) -> bool:
        """Whether a rejection says that there is no such place."""
        return error is not None and error.condition == "amqp:not-found"

    def _nobody_there(self, entry: Outgoing, error: RemoteError | None) -> None:
        """The message bus says that nobody is there to take it."""
        if entry.mandatory:
            entry.undeliverable(self.address)
        elif self._node.may_be_unheard:
            entry.accepted()
        else:
            self._forget_declarations()
            how = "released" if error is None else "rejected"
            self._again(
                entry, f"the message bus {how} it: nobody there to take it"
            )

    def _forget_declarations(self) -> None:
        management = self._client.management
        if self._node.declarations and management is not None:
            management.forget(self._node.declarations)

    def _again(self, entry: Outgoing, reason: str) -> None:
        if entry.done:
            return
        entry.last_reason = reason
        if entry.is_call:
            # No server has it: no reply can come, and none may be waited for.
            self._client.replies.forget(typing.cast(Call, entry))
        if not entry.may_retry():
            entry.failed(reason)
            return
        client = self._client
        longest = client.options.link_retry_delay
        if client.bus.is_router:
            longest = min(longest, LONGEST_ROUTER_PAUSE)
        pause = min(FIRST_RETRY_PAUSE * 2 ** min(entry.attempts - 1, 16), longest)
        self._resting[entry] = client.hub.call_at(
            client.hub.now() + pause, lambda: self._resend(entry)
        )

    def _resend(self, entry: Outgoing) -> None:
        del self._resting[entry]
        if not entry.done:
            if entry.is_call:
                # The link may have gone with the connection, with no call to keep it.
                self._client.replies.attach()
            if self._link is not None:
                self._must_declare()
            self.submit(entry)
            self._client.flush()

    def _detached(self, link: Sender, error: RemoteError | None) -> None:
        """The peer closed the link, or refused it, or the connection went."""
        if link is not self._link or link.connection.ended:
            return  # the client hears of the connection, and tells connection_lost
        if isinstance(error, SessionStalled):
            self._stalled(link, str(error))
            return
        self._link = None
        self._forget_declarations()
        reason = str(error) if error is not None else "the peer detached the link"
        permanent = error is not None and error.condition in _PERMANENT
        self._client.notices.add(
            notices.LINK_CLOSED, address=self.address, reason=reason
        )
        again = self._lost_outcomes(link, reason)
        self._refused(reason, permanent)
        self._put_back(again)

    def _stalled(self, link: Sender, reason: str) -> None:
        """The bus does not answer in the link's session: on in another one."""
        self._link = None
        self._doubtful = link.unsettled > 0
        self._client.notices.add(
            notices.LINK_CLOSED, address=self.address, reason=reason
        )
        self.pending.extendleft(reversed(self._lost_outcomes(link, reason)))
        if self.pending:
            self.attach()

    def _refused(
        self, reason: str, permanent: bool, pause: float | None = None
    ) -> None:
        self.refusal = reason
        waiting, self.pending = self.pending, collections.deque()
        for entry in waiting:
            entry.last_reason = reason
            if entry.done:
                continue
            if permanent or not entry.may_retry():
                where = f"{self.address}: " if self.address else ""
                entry.failed(f"{where}{reason}")
            else:
                self.pending.append(entry)
        self._retry_later(pause)

    def _retry_later(self, pause: float | None = None) -> None:
        """After `pause` seconds; None: as long as the option link_retry_delay says."""
        if self._declaring or self._retry_timer is not None:
            return
        if self.pending and (self._link is None or self._undeclared()):
            client = self._client
            if pause is None:
                pause = client.options.link_retry_delay
            self._retry_timer = client.hub.call_at(
                client.hub.now() + pause, self._retry
            )

    def _undeclared(self) -> bool:
        management = self._client.management
        return management is not None and not management.has(self._node.declarations)

    def _retry(self) -> None:
        self._retry_timer = None
        if not self.pending:
            return
        if self._link is None:
            self.attach()
        elif not self._must_declare():
            self.send_pending()

    def _put_back(self, entries: list[Outgoing]) -> None:
        """Send these again, before what was never sent."""
        self.pending.extendleft(reversed(entries))
        self._retry_later()

    def _lost_outcomes(self, link: Sender, reason: str) -> list[Outgoing]:
        """The link is gone, and with it the outcome of what is unsettled on it.

        Returns what is to be sent again, in the order in which it was.
        """
        again = []
        for entry in link.abandon():
            if entry.done:
                continue
            entry.last_reason = reason
            if entry.is_call and self._client.replies.survives:
                continue  # if it arrived, its reply will
            if entry.repeatable and entry.may_retry():
                again.append(entry)
            else:
                entry.failed(f"{reason}; whether it arrived is unknown")
        return again

    def connection_lost(self, reason: str) -> None:
        """The link went with the connection, or there was none: what may be sent
        when it is back waits on, within its retries."""
        self._declaring = self._doubtful = False
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        link, self._link = self._link, None
        again = self._lost_outcomes(link, reason) if link is not None else []
        waiting, self.pending = self.pending, collections.deque()
        for entry in waiting:
            if entry.done:
                continue
            entry.last_reason = reason
            # A reply that has not left yet is not sent again, but for the first time.
            if (entry.on_failure and not entry.attempts) or entry.may_retry():
                self.pending.append(entry)
            else:
                entry.failed(reason)
        self.pending.extendleft(reversed(again))

    def withdraw(self, entry: Outgoing) -> None:
        """Do not send this one any more, if it is not on its way."""
        if entry in self.pending:
            self.pending.remove(entry)
        timer = self._resting.pop(entry, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Detach the link; what waits is the caller's to see to."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def fail_all(self, reason: str) -> None:
        """Fail all that waits here, for good."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        resting, self._resting = self._resting, {}
        for entry, timer in resting.items():
            timer.cancel()
            entry.failed(reason)
        link, self._link = self._link, None
        if link is not None:
            for entry in link.abandon():
                entry.failed(reason)
        while self.pending:
            self.pending.popleft().failed(reason)
