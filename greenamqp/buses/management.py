# SPDX-License-Identifier: Apache-2.0
"""Asking a broker to have things there, and hearing what became of it.

:class:`Management` asks over a pair of links in a session of its own, since a request
that a broker cannot read, or that the login has no right to, may end the session.  The
pair is then made anew, the request that was at fault is refused by name, and the others
are asked again: all of them may be repeated.

What is said to the broker is a subclass's: it names the ends of the links, and turns a
declaration into :data:`Steps`, a generator that yields each message to send and gets
its answer.  The generator ends when the thing is there and raises :class:`Refused` when
it is not to be had.

For the client only, in the hub's context or under its lock.  Nothing here waits:
what became of a declaration is told to a callback.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import logging
import typing

from greenamqp import chance
from greenamqp.engine import (
    Connection,
    DecodeError,
    Delivery,
    LinkState,
    LocalProtocolError,
    Message,
    Receiver,
    RemoteError,
    Sender,
    SettleMode,
    Terminus,
)

LOG = logging.getLogger(__name__)

_FORBIDDEN = frozenset(("amqp:unauthorized-access", "amqp:not-allowed"))


class Again(enum.Enum):
    """When it is of use to ask again for what was refused."""

    #: Not before somebody changes something.
    NEVER = enum.auto()
    #: At once, and for all that was declared before it: some of that has gone.
    AT_ONCE = enum.auto()
    #: After a short pause: what stands in its way is on its way out.
    SOON = enum.auto()
    #: After a long one: nothing is known of it.
    LATER = enum.auto()

    @classmethod
    def after(cls, error: RemoteError | None) -> Again:
        """The same for a link that the peer refused or detached."""
        forbidden = error is not None and error.condition in _FORBIDDEN
        return cls.NEVER if forbidden else cls.LATER


class Refused(Exception):
    """The broker did not do what was asked; the text says what and why."""

    def __init__(self, reason: str, again: Again = Again.LATER) -> None:
        super().__init__(reason)
        self.again = again

    @classmethod
    def by_link(cls, what: str, error: RemoteError | None) -> Refused:
        """It was told by the end of a link."""
        return cls(f"{what}: {error or 'no reason given'}", Again.after(error))


@dataclasses.dataclass(frozen=True)
class Declaration:
    """Something that must be there.  Each broker has its own kinds.

    :ivar what: how errors name it
    :ivar optional: whether it is in order that it is refused
    """

    what: str
    optional: bool = dataclasses.field(default=False, kw_only=True)


Declarations = tuple[Declaration, ...]
Done = typing.Callable[[Refused | None], None]
Steps = typing.Generator[Message, Message, None]

#: What the declaration says that it is, how many receive from it, and how many messages
#: wait in it.
Seen = typing.Callable[[str, int, int], None]


def check_policy(
    what: str, wanted: dict[str, typing.Any], found: typing.Any, remark: str = ""
) -> None:
    """Whether a queue that exists has all that a policy asks for.

    :param found: what the broker says that it has
    :raises Refused: if not, with both
    """
    found = found if isinstance(found, dict) else {}
    differing = {
        key: found.get(key, "unset")
        for key, value in wanted.items()
        if found.get(key) != value
    }
    if differing:
        raise Refused(
            f"{what} exists with {listed(differing)}; the queue policy asks for "
            f"{listed(wanted)}{remark}",
            Again.NEVER,
        )


def listed(attributes: dict[str, typing.Any]) -> str:
    """Attributes of a queue, for messages to people."""
    return ", ".join(f"{key} {value}" for key, value in sorted(attributes.items()))


class Batch:
    """What one caller asked for together."""

    __slots__ = ("done", "left", "refused")

    def __init__(self, left: int, done: Done) -> None:
        self.left = left
        self.done = done
        self.refused: Refused | None = None

    def one_less(self, refused: Refused | None) -> None:
        self.left -= 1
        # The first one: a binding fails because its queue did.
        self.refused = self.refused or refused
        if not self.left:
            self.done(self.refused)


class Request:
    """What is asked of the broker, and who wants to know what became of it.

    :ivar what: how errors name it
    :ivar declaration: what will be there afterwards, or None
    :ivar message: what is to be said next
    """

    __slots__ = ("_begin", "_steps", "batches", "declaration", "message", "what")

    def __init__(
        self,
        what: str,
        begin: typing.Callable[[], Steps],
        declaration: Declaration | None = None,
    ) -> None:
        self.what = what
        self.declaration = declaration
        self.batches: list[Batch] = []
        self._begin = begin
        self.message: Message
        self._steps: Steps

    def begin(self) -> None:
        """From the start, perhaps once more."""
        self._steps = self._begin()
        self.message = next(self._steps)

    def answered(self, answer: Message) -> bool:
        """Go on.  Returns whether there is more to say.

        :raises Refused: if it is not to be had
        """
        try:
            self.message = self._steps.send(answer)
        except StopIteration:
            return False
        return True

    def finish(self, refused: Refused | None) -> None:
        """Tell all who asked."""
        batches, self.batches = self.batches, []
        for batch in batches:
            batch.one_less(refused)


class Management:
    """See the module.  One for each connection; it goes with it.

    This class itself is for buses where nothing has to be declared.

    :param connection: an open one
    :param flush: has what the engine holds written before long
    """

    #: The broker's node that takes requests.
    node: typing.ClassVar[str] = ""
    #: Answers that may be on their way at once.
    window: typing.ClassVar[int] = 100
    #: Whether `compare` finds anything out.
    compares: typing.ClassVar[bool] = False
    #: Properties of both links, or None.
    link_properties: typing.ClassVar[dict[str, typing.Any] | None] = None

    def __init__(
        self, connection: Connection, flush: typing.Callable[[], None]
    ) -> None:
        self._connection = connection
        self._flush = flush
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None
        self._waiting: collections.deque[Request] = collections.deque()
        # Asked and not answered, in the order in which they were asked.
        self._asked: dict[str, Request] = {}
        self._wanted: dict[Declaration, Request] = {}
        self._there: set[Declaration] = set()
        # What may be refused, and is for good: it is not asked for again.
        self._dispensable: set[Declaration] = set()
        self._count = 0

    # -- what a broker's own module says

    def _source(self) -> Terminus:
        """Where answers come from."""
        return Terminus(dynamic=True)

    def _reply_to(self, receiver: Receiver) -> str | None:
        """Where answers are to be sent."""
        return receiver.remote_source.address

    def _steps(self, declaration: typing.Any) -> Steps:
        """Have a declaration there."""
        raise NotImplementedError(f"{declaration.what}: this bus has no such thing")

    def _removal(self, name: str) -> Steps:
        """Remove a queue."""
        raise NotImplementedError(f"queue {name!r}: this bus cannot be told")

    def _removals(
        self, address: str | None, declarations: Declarations
    ) -> dict[str, typing.Callable[[], Steps]]:
        """How what a node is may be removed, each by how errors name it."""
        return {}

    def _comparison(
        self, declaration: typing.Any, seen: Seen
    ) -> typing.Callable[[], Steps] | None:
        """How what there is of it may be compared; None: not at all."""
        return None

    # -- for the client

    def has(self, declarations: Declarations) -> bool:
        """Whether all of these were declared over this connection, and not
        forgotten since."""
        return self._there.issuperset(declarations)

    def forget(self, declarations: Declarations) -> None:
        """Somebody may have removed these: the next `declare` will ask again."""
        self._there.difference_update(declarations)
        self._there |= self._dispensable

    def declare(self, declarations: Declarations, done: Done) -> None:
        """Have all of these, in this order; then call `done`, with None or with what
        was refused.  It may be called at once."""
        missing = [each for each in declarations if each not in self._there]
        if not missing:
            done(None)
            return
        batch = Batch(len(missing), done)
        fresh = []
        for declaration in missing:
            request = self._wanted.get(declaration)
            if request is None:
                request = Request(
                    declaration.what,
                    functools.partial(self._steps, declaration),
                    declaration,
                )
                self._wanted[declaration] = request
                fresh.append(request)
            request.batches.append(batch)
        # All are in the batch now: one that is refused at once ends none too early.
        for request in fresh:
            self._enter(request)
        self._ask()

    def renew(self, declarations: Declarations, done: Done) -> None:
        """Ask for what was declared once more, as somebody may have removed it; then
        call `done`, with None or with what was refused.  For all others it stays
        declared meanwhile."""
        steps = self._steps
        self._ask_for(
            [(each.what, functools.partial(steps, each)) for each in declarations], done
        )

    @property
    def link(self) -> Sender | None:
        """The link by which requests leave, if there is one."""
        return self._sender

    @property
    def unanswered(self) -> object:
        """What has waited longest for an answer, None if nothing waits."""
        return next(iter(self._asked), None)

    def delete_queue(self, name: str) -> None:
        """Remove a queue, if it is there.  Nobody hears of the outcome."""
        self._enter(Request(f"queue {name!r}", lambda: self._removal(name)))
        self._ask()

    def remove(
        self, nodes: typing.Iterable[tuple[str | None, Declarations]], done: Done
    ) -> None:
        """Remove what these nodes are, with the messages that are there; then call
        `done`, with None or with what was refused first.  It may be called at once.

        What the bus removes by itself, and what is not there, is in order.

        :param nodes: of each the address and what was declared for it
        """
        found: dict[str, typing.Callable[[], Steps]] = {}
        for address, declarations in nodes:
            found.update(self._removals(address, declarations))
        if not found:
            done(None)
            return
        self._ask_for(found.items(), done)

    def _ask_for(
        self,
        found: typing.Collection[tuple[str, typing.Callable[[], Steps]]],
        done: Done,
    ) -> None:
        """Make these requests, of which nobody else waits for one."""
        batch = Batch(len(found), done)
        for what, begin in found:
            request = Request(what, begin)
            request.batches.append(batch)
            self._enter(request)
        self._ask()

    def compare(self, declarations: Declarations, seen: Seen, done: Done) -> bool:
        """See whether what there is of these is as they want it, and make nothing;
        then call `done`, for each that can be compared, with None or with what is
        wrong.  Returns whether there is any.

        :param seen: is told of each queue that is there, before
        """
        found = [(each.what, self._comparison(each, seen)) for each in declarations]
        requests = [Request(what, begin) for what, begin in found if begin is not None]
        for request in requests:
            request.batches.append(Batch(1, done))
            self._enter(request)
        self._ask()
        return bool(requests)

    # -- the pair of links

    def _enter(self, request: Request) -> None:
        """A request is new."""
        try:
            request.begin()
        except NotImplementedError as exc:
            self._finish(request, Refused(str(exc), Again.NEVER))
        else:
            self._waiting.append(request)

    def _open(self) -> None:
        name = f"management/{chance.unique()}"
        sender = None
        try:
            sender = self._connection.create_sender(
                Terminus(self.node),
                name=name,
                settle_mode=SettleMode.SETTLED,
                properties=self.link_properties,
                own_session=True,
            )
            receiver = self._connection.create_receiver(
                self._source(),
                name=name,
                properties=self.link_properties,
                beside=sender,
            )
        except LocalProtocolError as exc:
            if sender is not None:
                sender.close()
            self._refuse_all(Refused(f"cannot reach {self.node}: {exc}"))
            return
        self._sender, self._receiver = sender, receiver
        sender.on_detached = receiver.on_detached = self._detached
        sender.on_attached = sender.on_credit = self._ready
        receiver.on_attached = self._attached
        receiver.on_message = self._message

    def _attached(self, receiver: Receiver) -> None:
        receiver.flow(self.window)
        self._ask()

    def _ready(self, sender: Sender) -> None:
        self._ask()

    def _ask(self) -> None:
        """Send what waits, as far as credit goes."""
        if self._sender is None:
            if self._waiting:
                self._open()
                self._flush()
            return
        sender, receiver = self._sender, self._receiver
        if receiver is None or receiver.state is not LinkState.ATTACHED:
            return
        if sender.state is not LinkState.ATTACHED:
            return
        sent = False
        while self._waiting and sender.credit > 0 and len(self._asked) < self.window:
            request = self._waiting.popleft()
            self._count += 1
            number = str(self._count)
            message = request.message
            message.id = number
            message.reply_to = self._reply_to(receiver)
            try:
                data = self._connection.codec.encode(message)
            except ValueError as exc:  # no way to write a name in it
                self._finish(request, Refused(f"{request.what}: {exc}", Again.NEVER))
                continue
            self._asked[number] = request
            sender.send(data, None, True)
            sent = True
        if sent:
            self._flush()

    def _message(self, link: Receiver, delivery: Delivery, data: memoryview) -> None:
        try:
            answer = link.connection.codec.decode(data)
            problem = "" if answer.correlation_id is not None else "it names no request"
        except DecodeError as exc:
            problem = str(exc)
        if problem:
            # Whose it is nobody knows: as if it had been the end of the pair.
            LOG.error("an answer of %s cannot be read: %s", self.node, problem)
            link.close()
            self._detached(link, None)
            return
        link.settle(delivery)
        link.flow(1)
        request = self._asked.pop(str(answer.correlation_id), None)
        if request is not None:
            self._answered(request, answer)
        self._ask()

    def _answered(self, request: Request, answer: Message) -> None:
        try:
            if request.answered(answer):
                # Before others, so that declarations stay in their order.
                self._waiting.appendleft(request)
                return
        except Refused as refused:
            self._finish(request, refused)
            return
        except Exception as exc:  # whatever a broker says, nobody waits for ever
            reason = f"{request.what}: the answer of {self.node} makes no sense: {exc}"
            self._finish(request, Refused(reason))
            return
        self._finish(request, None)

    def _finish(self, request: Request, refused: Refused | None) -> None:
        declaration = request.declaration
        if declaration is not None:
            self._wanted.pop(declaration, None)
            if refused is not None and declaration.optional:
                LOG.debug("that is in order: %s", refused)
                if refused.again is Again.NEVER:
                    self._dispensable.add(declaration)
                refused = None
            if refused is None:
                self._there.add(declaration)
        request.finish(refused)

    def _detached(self, link: Sender | Receiver, error: RemoteError | None) -> None:
        if link not in (self._sender, self._receiver) or link.connection.ended:
            return
        sender, receiver = self._sender, self._receiver
        self._sender = self._receiver = None
        for each in (sender, receiver):
            if each is not None and each is not link:
                each.close()
        if not self._asked:
            # The pair itself: nothing can be asked.
            self._refuse_all(Refused.by_link(f"{self.node} was closed", error))
            return
        # The broker works on one after another: the oldest was at fault.
        asked, self._asked = list(self._asked.values()), {}
        culprit = asked.pop(0)
        for request in reversed(asked):
            request.begin()
            self._waiting.appendleft(request)
        self._finish(culprit, Refused.by_link(f"{culprit.what} was refused", error))
        self._ask()

    def _refuse_all(self, refused: Refused) -> None:
        waiting, self._waiting = self._waiting, collections.deque()
        for request in waiting:
            self._finish(request, refused)
