# SPDX-License-Identifier: Apache-2.0
"""A link that is wanted, over any number of attaches and connections in turn.

What sends, what receives and what replies come by differ in what they do with a link;
how they come by one is the same, and written here::

    phase        event                                     next
    ---------    --------------------------------------    ----------
    WANTED       want(), something is to be declared       DECLARING
    WANTED       want(), nothing is                        ATTACHING
    DECLARING    it is there                               ATTACHING, or UP
    DECLARING    no answer; it was there before            ATTACHING, or UP
    DECLARING    it is refused, and Again.AT_ONCE          DECLARING; RESTING in the end
    DECLARING    it is refused otherwise                   RESTING
    ATTACHING    the peer's Attach                         UP
    ATTACHING    refused, or no room for it                RESTING
    UP           the peer's Detach                         RESTING
    UP           what was declared may be gone             DECLARING
    UP           reattach()                                ATTACHING
    RESTING      the pause is over                         WANTED, or UP
    any          the connection was lost                   WANTED
    any          close()                                   GONE

A link that nobody needs at the moment stays WANTED instead of RESTING: it is for the
subclass to ask for a pause.  Where something is declared anew while the link is up, the
link is kept, and UP is what follows.

Nothing here waits, and nothing knows what is sent or received.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import logging
import typing

from greenamqp.buses import Again, Node, Refused
from greenamqp.client.context import Context
from greenamqp.client.pauses import doubled
from greenamqp.engine import (
    LinkLimitError,
    LocalProtocolError,
    Receiver,
    RemoteError,
    Sender,
)
from greenamqp.hubs import Countdown

LOG = logging.getLogger("greenamqp.client")

# How often a declaration is begun anew without a pause, Again.AT_ONCE, before it is as
# Again.SOON: an exchange of RabbitMQ's that removes itself goes with its last queue,
# also between its own declaration and that of a new queue's binding.
DECLARED_ANEW = 3

# What was declared over an earlier connection is waited for so long: RabbitMQ's nodes
# agree on each declaration, and on none while one of them is frozen, for a minute.  If
# it has gone, an attach or a message is refused.  Seconds.
KNOWN_PATIENCE = 2.0

# A link that was up is attached again after this pause: whatever took it, an operator
# or the end of another link's session, is over as a rule.  Seconds.
FIRST_PAUSE = 0.5

L = typing.TypeVar("L", Sender, Receiver)


class Phase(enum.Enum):
    """Where a wanted link is; see the table in the module."""

    WANTED = "wanted"
    DECLARING = "declaring"
    ATTACHING = "attaching"
    UP = "up"
    RESTING = "resting"
    GONE = "gone"


class WantedLink(abc.ABC, typing.Generic[L]):
    """See the module.  Hub's context or lock.

    :ivar link: the engine's link while there is one
    :ivar node: what it is attached to, on the bus at hand
    :ivar alone: whether its next attach, or the one that is under way, has a session
        of its own: it may be refused, or may hold up others
    """

    __slots__ = (
        "_anew",
        "_assumed",
        "_context",
        "_rest",
        "_was_up",
        "alone",
        "link",
        "node",
        "phase",
    )

    def __init__(self, context: Context) -> None:
        self._context = context
        self.phase = Phase.WANTED
        self.link: L | None = None
        self.node = Node()
        self.alone = False
        self._rest = Countdown(context.hub)
        # How often the declaration was begun anew.
        self._anew = 0
        # Whether the link at hand was up; it may be DECLARING since.
        self._was_up = False
        # Whether what its node needs is taken to be there, as it was before.
        self._assumed = False

    # -- what a subclass says

    @abc.abstractmethod
    def _prepare(self) -> bool:
        """Find the node.  Returns whether the link is to be attached now.

        :raises ValueError: the bus has no way to write such a name
        """

    @abc.abstractmethod
    def _create(self) -> L | None:
        """Create the link and set its callbacks, but for those of the life cycle.

        :return: None: not now; it is wanted again by who said so
        :raises LinkLimitError: there is no room for it
        :raises LocalProtocolError: the connection is closed
        :raises ValueError: AMQP has no way to write such a name
        """

    @abc.abstractmethod
    def _no_room(self, reason: str) -> bool:
        """There are too many links, by the connection's own or the bus's count.
        Returns whether others make room, or it is wanted elsewhere from now on."""

    @abc.abstractmethod
    def _not_created(self, error: LocalProtocolError | ValueError) -> None:
        """`_create` raised, and no room is made, or `_prepare` did."""

    @abc.abstractmethod
    def _not_declared(self, refused: Refused) -> None:
        """What it needs was refused."""

    @abc.abstractmethod
    def _attached(self, link: L) -> None:
        """The peer's Attach came."""

    @abc.abstractmethod
    def _detached(self, link: L, error: RemoteError | None, was_up: bool) -> None:
        """The peer refused or detached it, and no room is made; ``link`` is None
        already."""

    def _declaring(self) -> None:
        """What it needs is being declared."""

    def _redeclared(self) -> None:
        """What was declared anew is there, and the link is up."""

    def _rested(self) -> None:
        """The pause is over."""
        self.want()

    # -- what moves it

    def want(self) -> None:
        """Attach it, if the connection is up and nothing else is under way."""
        if self.phase is not Phase.WANTED or self._context.engine is None:
            return
        try:
            prepared = self._prepare()
        except ValueError as exc:
            self._not_created(exc)
            return
        if not prepared or self.declare():
            return
        self.phase = Phase.ATTACHING
        try:
            link = self._create()
        except (LocalProtocolError, ValueError) as exc:
            self.phase = Phase.WANTED
            if not (isinstance(exc, LinkLimitError) and self._no_room(str(exc))):
                self._not_created(exc)
            return
        if link is None:
            if self.phase is Phase.ATTACHING:
                self.phase = Phase.WANTED
            return
        self.link = link
        link.on_attached = self._on_attached
        link.on_detached = self._on_detached
        if self._context.watchdog is not None:
            self._context.watchdog.attaching(link)
        # A subscription wants several: their attaches leave together.
        self._context.flush_soon()

    def declare(self) -> bool:
        """Have what its node needs declared, if it may not be there.  Returns whether
        that is under way."""
        if self.phase is Phase.DECLARING:
            return True
        context = self._context
        management = context.management
        declarations = self.node.declarations
        if (
            self.phase not in (Phase.WANTED, Phase.UP)
            or management is None
            or not self.undeclared
        ):
            return False
        self.phase = Phase.DECLARING
        self._declaring()
        if context.declared.issuperset(declarations):
            self._rest.call_in(KNOWN_PATIENCE, self._assume)
        management.declare(declarations, self._on_declared)
        return True

    @property
    def undeclared(self) -> bool:
        """Whether something that its node needs may not be there."""
        management = self._context.management
        if management is None or self._assumed:
            return False
        return not management.has(self.node.declarations)

    def forget_declarations(self) -> None:
        """What was declared may have been removed by somebody."""
        management = self._context.management
        self._assumed = False
        if self.node.declarations and management is not None:
            management.forget(self.node.declarations)
            self._context.declared.difference_update(self.node.declarations)

    def repair(self) -> None:
        """Something of what its node needs has gone, or what leads on from there."""
        node = self.node
        if node.repairs:
            self.node = dataclasses.replace(
                node, declarations=node.declarations + node.repairs, repairs=()
            )
        self.forget_declarations()

    @property
    def undeclared_pause(self) -> float | None:
        """How long to rest, for `rest`, after something was not declared.

        RabbitMQ says that it has made an exchange, and has not, while it still deletes
        the one before: for a moment, or for seconds where it is busy.  And for a moment
        it has queues of a node that stops."""
        beyond = self._anew - DECLARED_ANEW
        if beyond <= 0:
            return None
        longest: float = self._context.options.link_retry_delay
        return doubled(FIRST_PAUSE, beyond - 1, longest)

    def rest(self, pause: float | None = None) -> None:
        """Try again after `pause` seconds; None: what ``link_retry_delay`` says."""
        if self.phase not in (Phase.WANTED, Phase.UP):
            return
        if pause is None:
            pause = self._context.options.link_retry_delay
        self.phase = Phase.RESTING
        self._rest.call_in(pause, self._rest_is_over)

    def reattach(self) -> None:
        """Attach another link instead of the one that is up."""
        if self.phase is not Phase.UP or self.link is None:
            return
        link, self.link = self.link, None
        self._was_up = False
        self._calm(Phase.WANTED)
        LOG.debug("link %s is detached, to be attached anew", link.name)
        link.close()
        self.want()

    def rejoin(self, link: L) -> None:
        """It has got its answer: it need not be alone any more."""
        if self.alone:
            self.alone = False
            link.share_session()

    def went_down(self) -> L | None:
        """The link went with the connection; returns what there was."""
        if self.phase is not Phase.GONE:
            self._calm(Phase.WANTED)
        self._assumed = self._was_up = False
        self._anew = 0
        link, self.link = self.link, None
        if link is not None:
            LOG.debug("link %s went with its connection", link.name)
        return link

    def go(self) -> L | None:
        """It is wanted no longer; returns the link that is to be closed, if any."""
        self._calm(Phase.GONE)
        link, self.link = self.link, None
        if link is not None:
            LOG.debug("link %s is detached: it is wanted no longer", link.name)
            self._answered(link)
        return link

    def _calm(self, phase: Phase) -> None:
        self.phase = phase
        self._rest.cancel()

    def _settled_phase(self) -> Phase:
        return Phase.WANTED if self.link is None else Phase.UP

    def _rest_is_over(self) -> None:
        self.phase = self._settled_phase()
        self._rested()

    def _assume(self) -> None:
        self._assumed = True
        self.phase = self._settled_phase()
        self._go_on()

    def _go_on(self) -> None:
        """What it needs is there."""
        if self.link is None:
            self.want()
        else:
            self._redeclared()

    def _on_declared(self, refused: Refused | None) -> None:
        if self.phase is not Phase.DECLARING:
            return
        self._rest.cancel()
        self.phase = self._settled_phase()
        if refused is None:
            self._anew = 0
            self._context.declared.update(self.node.declarations)
            self._go_on()
            return
        if refused.again is Again.AT_ONCE:
            self._anew += 1
            self.forget_declarations()
        elif refused.again is Again.SOON:
            self._anew = max(self._anew, DECLARED_ANEW) + 1  # after a pause
        else:
            self._anew = 0
        if not 0 < self._anew <= DECLARED_ANEW:
            self._not_declared(refused)
        elif self.link is None:
            self.want()
        else:
            self.declare()

    def _answered(self, link: L) -> None:
        """The bus said something to the attach, or it is wanted no longer."""
        if self._context.watchdog is not None:
            self._context.watchdog.answered(link)

    def _on_attached(self, link: L) -> None:
        if link is not self.link:
            return
        self._answered(link)
        if self.phase is Phase.ATTACHING:
            self.phase = Phase.UP
        self._was_up = True
        LOG.debug("link %s is attached", link.name)
        self._attached(link)

    def _on_detached(self, link: L, error: RemoteError | None) -> None:
        if link is not self.link or link.connection.ended:
            return  # the client hears of the connection, and calls went_down
        self.link = None
        self._answered(link)
        if self.phase is not Phase.DECLARING:
            self._calm(Phase.WANTED)
        was_up, self._was_up = self._was_up, False
        if Again.after(error) is Again.NEVER:
            was_up = False  # a router says so after it has attached the link
        LOG.debug(
            "link %s was %s: %s",
            link.name,
            "detached by the peer" if was_up else "refused",
            error or "no reason given",
        )
        if not (self._found_full(link, error, was_up) and self._no_room(str(error))):
            self._detached(link, error, was_up)

    def _found_full(self, link: L, error: RemoteError | None, was_up: bool) -> bool:
        """Whether the bus refused the link as there are too many.  A router does that
        in that it attaches and detaches it."""
        if error is None or error.condition != "amqp:resource-limit-exceeded":
            return False
        in_use = isinstance(link, Sender) and link.unsettled
        return not was_up or (self._context.bus.is_router and not in_use)
