# SPDX-License-Identifier: Apache-2.0
"""Links: a Sender or Receiver on one end of a connection.

A link is made by :meth:`Connection.create_sender` / ``create_receiver`` or handed
to the handler by a peer that attached one.  Its life goes through pyngus::

    state        event                          next
    ---------    ---------------------------    ---------
    REQUESTED    accept()                       ATTACHED    (peer asked)
    REQUESTED    reject()                       DETACHED
    ATTACHING    peer attaches                  ATTACHED    -> on_attached
    ATTACHING    peer attaches, then detaches   DETACHED    -> on_detached (refused)
    ATTACHED     peer detaches or ends session  DETACHED    -> on_detached
    any          close()                        DETACHED    -> on_closed, later
    any          connection fails               DETACHED    -> on_detached

Messages, outcomes and credit go straight to proton's C API.  Callbacks are plain
attributes, called only inside :meth:`Connection.process`; they may call any method
of any link of the same connection, but not ``process`` itself.
"""

from __future__ import annotations

import dataclasses
import enum
import typing

import proton

from greenamqp.engine import capi
from greenamqp.engine.capi import (
    pn_delivery,
    pn_delivery_aborted,
    pn_delivery_partial,
    pn_delivery_pending,
    pn_delivery_readable,
    pn_delivery_remote_state,
    pn_delivery_settle,
    pn_delivery_settled,
    pn_delivery_update,
    pn_link_advance,
    pn_link_credit,
    pn_link_recv,
    pn_link_send,
)
from greenamqp.engine.errors import LocalProtocolError, RemoteError, from_peer
from greenamqp.engine.lifecycle import proton_link

lib = capi.lib
_SECOND = lib.PN_RCV_SECOND

#: A delivery, as the engine's users hold it: opaque, valid while its link is open.
Delivery = typing.Any


#: Expiry policy of a terminus that lasts (AMQP 1.0 part 3, section 3.5.6).
EXPIRE_NEVER: int = proton.Terminus.EXPIRE_NEVER
EXPIRE_WITH_LINK: int = proton.Terminus.EXPIRE_WITH_LINK
#: Durability of a terminus that keeps its messages (section 3.5.5, unsettled-state).
DURABLE: int = proton.Terminus.DELIVERIES


#: A number that an attach writes as int; a plain one becomes a long.
Int = proton.int32


def source_filter(name: str, value: typing.Any) -> dict[typing.Any, typing.Any]:
    """A filter for a Terminus: one entry, which names its own type (AMQP 1.0 part 3,
    section 3.5.8)."""
    key = proton.symbol(name)
    return {key: proton.Described(key, value)}


class LinkState(enum.Enum):
    """Where a link is in its life; see the table at the top of this module."""

    REQUESTED = "requested"
    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHED = "detached"


class SettleMode(enum.IntEnum):
    """snd-settle-mode (AMQP 1.0 part 2, section 2.8.2)."""

    UNSETTLED = lib.PN_SND_UNSETTLED
    SETTLED = lib.PN_SND_SETTLED
    MIXED = lib.PN_SND_MIXED


@dataclasses.dataclass(slots=True)
class Terminus:
    """A source or target (AMQP 1.0 part 3, sections 3.5.3 and 3.5.4).

    ``address=None`` with ``dynamic=False`` is the null address: as a target, the
    anonymous terminus.  ``timeout`` is in seconds.  ``outcomes`` is for sources alone:
    what a delivery from there may come to, where a peer wants to be told; not read.
    """

    address: str | None = None
    dynamic: bool = False
    capabilities: tuple[str, ...] = ()
    durability: int = proton.Terminus.NONDURABLE
    expiry_policy: int = proton.Terminus.EXPIRE_WITH_SESSION
    timeout: int = 0
    distribution_mode: int = proton.Terminus.DIST_MODE_UNSPECIFIED
    filter: dict[typing.Any, typing.Any] | None = None
    node_properties: dict[str, typing.Any] | None = None
    outcomes: tuple[str, ...] = ()

    def write(self, terminus: proton.Terminus) -> None:
        """Put these fields into proton's terminus."""
        if self.dynamic:
            terminus.dynamic = True
        # A dynamic terminus has an address in the answer (section 3.5.3).
        if self.address is not None:
            terminus.address = self.address
        if self.durability != proton.Terminus.NONDURABLE:
            terminus.durability = self.durability
        if self.expiry_policy != proton.Terminus.EXPIRE_WITH_SESSION:
            terminus.expiry_policy = self.expiry_policy
        if self.timeout:
            terminus.timeout = self.timeout
        if self.distribution_mode != proton.Terminus.DIST_MODE_UNSPECIFIED:
            terminus.distribution_mode = self.distribution_mode
        if self.capabilities:
            # An array, not a lone symbol: RabbitMQ refuses the latter.
            terminus.capabilities.put_object(_symbol_array(self.capabilities))
        if self.outcomes:
            terminus.outcomes.put_object(_symbol_array(self.outcomes))
        if self.filter:
            terminus.filter.put_object(self.filter)
        if self.node_properties:
            terminus.properties.put_dict(
                {proton.symbol(k): v for k, v in self.node_properties.items()}
            )

    def echo(self) -> Terminus:
        """What of it is safe to send back: not what a peer may fill at will."""
        return dataclasses.replace(self, filter=None, node_properties=None)

    @classmethod
    @from_peer
    def read(cls, terminus: proton.Terminus) -> Terminus:
        """The fields of proton's terminus, as the peer gave them.

        :raises RemoteProtocolError: if they make no sense
        """
        properties = _object(terminus.properties)
        filters = _object(terminus.filter)
        return cls(
            address=terminus.address,
            dynamic=terminus.dynamic,
            capabilities=_symbols(_object(terminus.capabilities)),
            durability=terminus.durability,
            expiry_policy=terminus.expiry_policy,
            timeout=terminus.timeout,
            distribution_mode=terminus.distribution_mode,
            filter=filters if isinstance(filters, dict) else None,
            node_properties=properties if isinstance(properties, dict) else None,
        )


def _symbol_array(names: tuple[str, ...]) -> proton.Array:
    symbols = (proton.symbol(name) for name in names)
    return proton.Array(proton.UNDESCRIBED, proton.Data.SYMBOL, *symbols)


def _object(data: proton.Data) -> typing.Any:
    data.rewind()
    return data.get_object() if data.next() is not None else None


def _symbols(value: typing.Any) -> tuple[str, ...]:
    """Capabilities come as an array of symbols, or as one symbol alone."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (str(value),)
    elements = getattr(value, "elements", value)
    return tuple(str(element) for element in elements)


class Connection(typing.Protocol):
    """What a link needs of its connection."""

    codec: capi.Codec
    delivery_tag: capi.DeliveryTag
    received: int
    max_message_size: int
    #: Whether the connection failed or is being closed, by either side.
    ended: bool
    #: Bytes of messages whose rest is still to come, by link.
    unfinished: dict[Link, int]

    def forget_link(self, link: Link) -> None:
        """A detached link is told of nothing more, and its name is free."""

    def refuse_link(self, link: Link, condition: str, description: str) -> None:
        """Detach a link whose peer broke a rule, and tell its user."""

    def destroy_later(self, endpoint: typing.Any) -> None:
        """Both ends are detached: free the link once no event can name it."""

    def receive_buffer(self, size: int) -> typing.Any:
        """The buffer for messages, of `size` bytes at least."""

    def message_unfinished(self, link: Link, size: int) -> None:
        """`size` bytes of a message have come, and not yet its end."""


class Link:
    """What Sender and Receiver share.  Made by the connection only."""

    __slots__ = (
        "_endpoint",
        "_pn",
        "connection",
        "context",
        "name",
        "on_attached",
        "on_closed",
        "on_detached",
        "state",
    )

    #: True in Sender.
    is_sender: typing.ClassVar[bool]

    def __init__(self, connection: Connection, endpoint: typing.Any) -> None:
        self.connection = connection
        self.name: str = endpoint.name
        self.state = LinkState.ATTACHING
        self._endpoint = endpoint  # pyngus link
        self._pn = self._proton._impl  # pn_link_t *
        #: Anything the link's user wants to keep with it.
        self.context: typing.Any = None
        self.on_attached: typing.Callable[[typing.Any], None] | None = None
        self.on_detached: (
            typing.Callable[[typing.Any, RemoteError | None], None] | None
        ) = None
        #: The peer has answered our close(): nothing is left of the link there.
        self.on_closed: typing.Callable[[typing.Any], None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state.value}>"

    @property
    def _proton(self) -> typing.Any:
        return proton_link(self._endpoint)

    @property
    def _session(self) -> typing.Any:
        return self._proton.session.context

    @property
    def session(self) -> object:
        """The session that it is in, as something to be compared."""
        return self._session

    @property
    def alone(self) -> bool:
        """Whether its session is its own, and takes no other link."""
        return bool(self._session.reserved)

    def share_session(self) -> None:
        """Let other links into its session, which was its own until now."""
        self._session.reserved = False

    @property
    def closed_by_peer(self) -> bool:
        """Whether the peer closed this very link, not its session or connection."""
        return bool(self._proton.state & proton.Endpoint.REMOTE_CLOSED)

    @property
    def remote_source(self) -> Terminus:
        """The source that the peer named in its attach; errors as Terminus.read."""
        return Terminus.read(self._proton.remote_source)

    @property
    def remote_target(self) -> Terminus:
        """The target that the peer named in its attach; errors as Terminus.read."""
        return Terminus.read(self._proton.remote_target)

    @property
    def is_coordinator(self) -> bool:
        """Whether the peer wants a transaction coordinator for its target (part 4)."""
        return bool(self._proton.remote_target.type == lib.PN_COORDINATOR)

    @property
    def remote_settle_mode(self) -> SettleMode:
        """The peer's snd-settle-mode; MIXED, the default, if it sent nonsense."""
        try:
            return SettleMode(self._proton.remote_snd_settle_mode)
        except ValueError:
            return SettleMode.MIXED

    @property
    @from_peer
    def remote_properties(self) -> dict[typing.Any, typing.Any]:
        """The link properties of the peer's attach.

        :raises RemoteProtocolError: if they make no sense
        """
        return self._proton.remote_properties or {}

    @property
    def credit(self) -> int:
        """Messages that may cross the link before more credit is granted."""
        return pn_link_credit(self._pn) if self._pn is not None else 0

    def accept(
        self,
        source: Terminus | None = None,
        target: Terminus | None = None,
        max_message_size: int = 0,
    ) -> None:
        """Attach a link that the peer asked for; the termini default to the echo of
        the peer's, the settle modes are the peer's.

        :raises LocalProtocolError: if the link was not REQUESTED
        """
        if self.state is not LinkState.REQUESTED:
            raise LocalProtocolError(f"{self!r} was not asked for by the peer")
        pn_link = self._proton
        for given, local, remote in (
            (source, pn_link.source, pn_link.remote_source),
            (target, pn_link.target, pn_link.remote_target),
        ):
            local.type = remote.type
            # Not proton's copy: what a peer made of arrays and maps may be more than
            # proton can encode again, and then it crashes.
            (given or Terminus.read(remote).echo()).write(local)
        pn_link.snd_settle_mode = self.remote_settle_mode
        pn_link.rcv_settle_mode = int(pn_link.remote_rcv_settle_mode == _SECOND)
        if max_message_size:
            pn_link.max_message_size = max_message_size
        self.state = LinkState.ATTACHED
        self._endpoint.open()

    def reject(self, condition: str, description: str = "") -> None:
        """Refuse a link that the peer asked for: attach with a null terminus, then
        detach with the error (AMQP 1.0 part 2, section 2.6.3).

        :raises LocalProtocolError: if the link was not REQUESTED
        """
        if self.state is not LinkState.REQUESTED:
            raise LocalProtocolError(f"{self!r} was not asked for by the peer")
        self.state = LinkState.DETACHED
        # Not pyngus's reject(): that leaves the link and its name to the connection
        # for ever, and names a source for a link that has none.
        pn_link = self._proton
        if self.is_sender:
            pn_link.source.type = proton.Terminus.UNSPECIFIED
        else:
            pn_link.target.type = proton.Terminus.UNSPECIFIED
        pn_link.open()
        pn_link.condition = proton.Condition(condition, description)
        pn_link.close()
        self.connection.forget_link(self)

    def close(self, condition: str = "", description: str = "") -> None:
        """Detach and close the link; no callback but on_closed follows.  Idempotent.

        What is unsettled on it goes back to the peer.
        """
        if self.state is LinkState.DETACHED:
            return
        self.state = LinkState.DETACHED
        self._endpoint.close(
            proton.Condition(condition, description) if condition else None
        )
        self.connection.forget_link(self)

    # See :class:`greenamqp.engine.lifecycle.LinkUser`.

    def attached(self) -> None:
        if self.state is not LinkState.ATTACHING:
            return
        terminus = self._proton
        remote = terminus.remote_target if self.is_sender else terminus.remote_source
        if remote.type == proton.Terminus.UNSPECIFIED:
            # A refusal: the detach with its reason follows (section 2.6.3), if only as
            # the answer to ours.
            self._endpoint.close()
            return
        self.state = LinkState.ATTACHED
        if self.on_attached is not None:
            self.on_attached(self)

    def detached(self, error: RemoteError | None) -> None:
        if self.state is LinkState.DETACHED:
            return
        self.state = LinkState.DETACHED
        self._answer_close()
        self.connection.forget_link(self)
        if self.on_detached is not None:
            self.on_detached(self, error)

    def both_closed(self) -> None:
        """Both ends are detached."""
        if self.state is LinkState.ATTACHING:
            condition = capi.condition_of(lib.pn_link_remote_condition(self._pn))
            self.detached(RemoteError(*condition) if condition else None)
        self.connection.destroy_later(self._endpoint)
        if self.on_closed is not None:
            self.on_closed(self)

    def _answer_close(self) -> None:
        """Answer the peer's detach with ours."""
        if self._endpoint is not None and self._proton is not None:
            self._endpoint.close()

    def released(self) -> None:
        """The connection let go of the proton link: no pointer is valid now."""
        self._pn = None
        self._endpoint = None


# A peer that takes anything at all lets so many messages be on their way in a session
# (section 2.5.6); RabbitMQ takes 400.
_SMALLEST_WINDOW = 100

# So much credit is counted right.
_MOST_CREDIT = 2**31 - 1


class Sender(Link):
    """Sends messages.  ``on_credit(sender)`` says that credit has come;
    ``on_settled(sender, handle, outcome, error)`` gives each outcome, 0 where the peer
    settled without naming one, ``error`` being the peer's condition with REJECTED and a
    dict ``{"failed", "undeliverable"}`` with MODIFIED, else None.
    """

    __slots__ = ("_credited", "_unsettled", "on_credit", "on_drain", "on_settled")

    is_sender = True

    def __init__(self, connection: Connection, endpoint: typing.Any) -> None:
        super().__init__(connection, endpoint)
        self._unsettled: dict[Delivery, typing.Any] = {}
        # Whether there was credit ever.
        self._credited = False
        self.on_credit: typing.Callable[[Sender], None] | None = None
        #: The peer asks to use up or give back the credit (section 2.6.7).
        self.on_drain: typing.Callable[[Sender], None] | None = None
        self.on_settled: (
            typing.Callable[[Sender, typing.Any, int, typing.Any], None] | None
        ) = None

    @property
    def max_message_size(self) -> int:
        """Bytes that the peer takes in one message; 0: it names no limit."""
        return lib.pn_link_remote_max_message_size(self._pn) if self._pn else 0

    def send(self, data: bytes, handle: typing.Any, settled: bool = False) -> None:
        """Send one encoded message.

        Unless `settled`, `handle` comes back in on_settled.  The caller has looked
        at ``credit``: without it proton would keep the message out of reach.

        :raises LocalProtocolError: if the link is not attached or has no credit
        """
        pn = self._pn
        if self.state is not LinkState.ATTACHED or pn_link_credit(pn) <= 0:
            raise LocalProtocolError(f"no credit to send on {self!r}")
        tag = self.connection.delivery_tag
        tag.number[0] += 1
        delivery = pn_delivery(pn, tag.value)
        pn_link_send(pn, data, len(data))
        if settled:
            pn_delivery_settle(delivery)
            pn_link_advance(pn)
            return
        pn_link_advance(pn)
        self._unsettled[delivery] = handle

    def abandon(self) -> list[typing.Any]:
        """The handles of all messages whose outcome will not come; forgets them."""
        handles = list(self._unsettled.values())
        self._unsettled.clear()
        return handles

    def recall(self, handles: set[typing.Any]) -> None:
        """Have these not leave any more, as far as they have not: the peer takes none
        now in a session that was left, and might later.  Their outcomes do not come;
        `abandon` is to follow."""
        if self._pn is None or self.connection.ended or not self._session.left:
            # Where the peer ended link or session nothing leaves anyway; and proton
            # tells of an abort that it meets after them by an event of a freed link.
            return
        for delivery, handle in self._unsettled.items():
            if handle in handles:
                lib.pn_delivery_abort(delivery)

    @property
    def held_back(self) -> bool:
        """Whether messages stay here because the peer takes none in its session, where
        it is alone; it has not got so many yet that this is for their number."""
        if self._pn is None or len(self._unsettled) > _SMALLEST_WINDOW:
            return False
        session = lib.pn_link_session(self._pn)
        return self.alone and bool(lib.pn_session_outgoing_bytes(session) > 0)

    @property
    def handles(self) -> typing.Iterable[typing.Any]:
        """Those of the messages that wait for their outcome, the oldest first."""
        return self._unsettled.values()

    def settle_oldest(self) -> None:
        """Settle the message that has waited longest: its outcome is of no interest
        any more, and will not come.  The peer need not keep it in mind either."""
        delivery = next(iter(self._unsettled))
        del self._unsettled[delivery]
        pn_delivery_settle(delivery)

    def drained(self) -> None:
        """Give back the credit that is left, where the peer asked to drain."""
        lib.pn_link_drained(self._pn)

    @property
    def oldest(self) -> typing.Any:
        """The handle of the message that has waited longest, None if none waits."""
        return next(iter(self._unsettled.values()), None)

    @property
    def unsettled(self) -> int:
        """How many messages wait for their outcome."""
        return len(self._unsettled)

    def _delivery_updated(self, delivery: Delivery) -> None:
        state = pn_delivery_remote_state(delivery)
        if not capi.ACCEPTED <= state <= capi.MODIFIED:
            if not pn_delivery_settled(delivery):
                return  # section 3.4: not terminal, the outcome comes later
            state = 0
        handle = self._unsettled.pop(delivery, capi)
        error: typing.Any = None
        if state == capi.REJECTED:
            condition = capi.condition_of(
                lib.pn_disposition_condition(lib.pn_delivery_remote(delivery))
            )
            error = RemoteError(*condition) if condition else None
        elif state == capi.MODIFIED:
            remote = lib.pn_delivery_remote(delivery)
            error = {
                "failed": lib.pn_disposition_is_failed(remote),
                "undeliverable": lib.pn_disposition_is_undeliverable(remote),
            }
        pn_delivery_settle(delivery)
        if handle is not capi and self.on_settled is not None:
            self.on_settled(self, handle, state, error)

    def _flow(self) -> None:
        credit = pn_link_credit(self._pn)
        if credit > 0:
            self._credited = True
            if self.on_credit is not None:
                self.on_credit(self)
        elif credit < 0 and not self._credited:
            # Where nothing was sent there is no less than none: proton counts with a
            # sign, and would never let anything leave.
            self.connection.refuse_link(
                self,
                "amqp:not-implemented",
                f"a credit of more than {_MOST_CREDIT} cannot be counted here",
            )
            return
        if lib.pn_link_get_drain(self._pn):
            if self.on_drain is not None:
                self.on_drain(self)
            else:
                lib.pn_link_drained(self._pn)


class Receiver(Link):
    """Receives messages.  ``on_message(receiver, delivery, data)`` gives each whole
    message: its encoded bytes in a memoryview that is valid during the callback.
    ``on_aborted(receiver)`` says that the peer aborted one.
    ``on_drained(receiver, credit)`` says how much credit the peer gave back;
    ``on_settled(receiver, delivery)`` that it settled before we did: it waits for no
    outcome any more.

    Credit is the caller's business: :meth:`flow` grants it, nothing else does.
    """

    __slots__ = (
        "_receive_limit",
        "on_aborted",
        "on_drained",
        "on_message",
        "on_settled",
    )

    is_sender = False

    def __init__(self, connection: Connection, endpoint: typing.Any) -> None:
        super().__init__(connection, endpoint)
        self.on_message: (
            typing.Callable[[Receiver, Delivery, memoryview], None] | None
        ) = None
        self.on_aborted: typing.Callable[[Receiver], None] | None = None
        self.on_drained: typing.Callable[[Receiver, int], None] | None = None
        self.on_settled: typing.Callable[[Receiver, Delivery], None] | None = None
        self._receive_limit = connection.max_message_size

    def flow(self, credit: int) -> None:
        """Grant the peer `credit` more messages; ignored once the link is closed.

        Only after the peer's attach: RabbitMQ counts credit wrongly, or ends the
        session, when it is granted earlier.
        """
        if self.state is LinkState.ATTACHED:
            lib.pn_link_flow(self._pn, credit)

    def drain(self) -> None:
        """Ask the peer to use up its credit or give it back (section 2.6.7), until
        the next :meth:`flow`; ignored once the link is closed."""
        if self.state is LinkState.ATTACHED:
            lib.pn_link_drain(self._pn, 0)

    def settle(
        self,
        delivery: Delivery,
        outcome: int = capi.ACCEPTED,
        *,
        failed: bool = False,
        undeliverable: bool = False,
        condition: str = "",
        description: str = "",
    ) -> bool:
        """Settle a delivery with an outcome (AMQP 1.0 part 3, section 3.4).

        `failed` and `undeliverable` go with MODIFIED, `condition` and `description`
        with REJECTED.  Returns False if the link is gone, and the delivery with it:
        the peer will deliver it again, if it keeps it at all.
        """
        if self.state is LinkState.DETACHED or self._pn is None:  # as `usable`
            return False
        if pn_delivery_settled(delivery):
            # Sent settled, or given up by the sender: nobody waits for an outcome.
            pn_delivery_settle(delivery)
            return True
        if outcome == capi.MODIFIED:
            local = lib.pn_delivery_local(delivery)
            lib.pn_disposition_set_failed(local, failed)
            lib.pn_disposition_set_undeliverable(local, undeliverable)
        elif outcome == capi.REJECTED and condition:
            local = lib.pn_delivery_local(delivery)
            capi.set_condition(
                lib.pn_disposition_condition(local), condition, description
            )
        pn_delivery_update(delivery, outcome)
        pn_delivery_settle(delivery)
        return True

    def is_settled(self, delivery: Delivery) -> bool:
        """Whether the sender has settled: the message is ours, whatever comes."""
        return self.usable and bool(pn_delivery_settled(delivery))

    @property
    def usable(self) -> bool:
        """Whether its deliveries can still be settled; if not, they come again."""
        return self.state is not LinkState.DETACHED and self._pn is not None

    def _delivery_updated(self, delivery: Delivery) -> None:
        if pn_delivery_aborted(delivery):
            self._abort(delivery)
            return
        if not pn_delivery_readable(delivery):
            if self.on_settled is not None and pn_delivery_settled(delivery):
                self.on_settled(self, delivery)
            return
        size = pn_delivery_pending(delivery)
        if 0 < self._receive_limit < size:
            self.connection.refuse_link(
                self,
                "amqp:link:message-size-exceeded",
                f"a message of more than {self._receive_limit} bytes",
            )
            return
        connection = self.connection
        if pn_delivery_partial(delivery):
            connection.message_unfinished(self, size)
            return
        if connection.unfinished:
            connection.unfinished.pop(self, None)
        buffer = connection.receive_buffer(size)
        pn_link_recv(self._pn, buffer.pointer, size)
        pn_link_advance(self._pn)
        connection.received += 1
        if self.on_message is not None:
            self.on_message(self, delivery, buffer.view[:size])
        else:
            self.settle(delivery, capi.RELEASED)

    def presettled(self, delivery: Delivery) -> bool:
        """Whether the peer settled the delivery when it sent it."""
        settled: bool = pn_delivery_settled(delivery)
        return settled

    def _abort(self, delivery: Delivery) -> None:
        self.connection.unfinished.pop(self, None)
        if lib.pn_link_current(self._pn) == delivery:
            pn_link_advance(self._pn)
        pn_delivery_settle(delivery)
        if self.on_aborted is not None:
            self.on_aborted(self)

    def _flow(self) -> None:
        """The sender tells what is available, or that it gives credit back."""
        given_back = lib.pn_link_drained(self._pn)
        if given_back > 0 and self.on_drained is not None:
            self.on_drained(self, given_back)
