# SPDX-License-Identifier: Apache-2.0
"""What is declared on a broker before links are attached: RabbitMQ's management.

RabbitMQ from 4.0 on makes no queue because a link is attached to one; it is asked to,
by messages to its node ``/management``.  :class:`Management` asks, over a pair of links
in a session of its own, since a request that the broker cannot read, or that the login
has no right to, ends the session.  The pair is then made anew, the request that was at
fault is refused by name, and the others are asked again: all of them may be repeated.

For the messenger only, in the hub's context or under its lock.  Nothing here waits:
what became of a declaration is told to a callback.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import typing
import urllib.parse
import uuid

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

_NODE = "/management"

# The word by which the broker knows that answers go to the other link of the pair.
_REPLY_TO = "$me"

# Answers that may be on their way at once.  The broker takes 8 requests at a time.
_CREDIT = 100

# Answers that another attempt does not change: no right, or it exists and differs.
_PERMANENT_STATUS = frozenset(("403", "405", "409"))
_PERMANENT_CONDITIONS = frozenset(("amqp:unauthorized-access", "amqp:not-allowed"))


def quote(name: str) -> str:
    """A name as a segment of an address or a path."""
    return urllib.parse.quote(name, safe="")


class Refused(Exception):
    """The broker did not do what was asked; the text says what and why.

    :ivar permanent: whether asking again is of no use
    """

    def __init__(self, reason: str, permanent: bool) -> None:
        super().__init__(reason)
        self.permanent = permanent


_Items = tuple[tuple[str, typing.Any], ...]


@dataclasses.dataclass(frozen=True)
class Declaration:
    """Something that must be there.  See :func:`queue` and its like.

    :ivar what: how errors name it
    :ivar must_agree: False: one that exists with other arguments will do
    """

    what: str
    method: str
    path: str
    fields: _Items
    arguments: _Items = ()
    must_agree: bool = True

    def body(self) -> dict[str, typing.Any]:
        """The body of the request."""
        return dict(self.fields) | {"arguments": dict(self.arguments)}


def queue(
    name: str,
    arguments: typing.Mapping[str, typing.Any] | None = None,
    *,
    durable: bool = True,
    auto_delete: bool = False,
    must_agree: bool = True,
) -> Declaration:
    """A queue."""
    return Declaration(
        f"queue {name!r}",
        "PUT",
        f"/queues/{quote(name)}",
        (("durable", durable), ("exclusive", False), ("auto_delete", auto_delete)),
        tuple(sorted((arguments or {}).items())),
        must_agree,
    )


def exchange(
    name: str,
    kind: str,
    *,
    durable: bool = True,
    auto_delete: bool = False,
    must_agree: bool = True,
) -> Declaration:
    """An exchange of the type `kind`."""
    return Declaration(
        f"exchange {name!r}",
        "PUT",
        f"/exchanges/{quote(name)}",
        (
            ("type", kind),
            ("durable", durable),
            ("auto_delete", auto_delete),
            ("internal", False),
        ),
        must_agree=must_agree,
    )


def binding(exchange: str, queue: str, key: str) -> Declaration:
    """A binding of a queue to an exchange."""
    return Declaration(
        f"binding of queue {queue!r} to exchange {exchange!r} with key {key!r}",
        "POST",
        "/bindings",
        (
            ("source", exchange),
            ("destination_queue", queue),
            ("binding_key", key),
        ),
    )


Declarations = tuple[Declaration, ...]
Done = typing.Callable[[Refused | None], None]


class _Batch:
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


class _Request:
    """A message to the broker, and who wants to know what became of it."""

    __slots__ = ("batches", "body", "declaration", "method", "path", "what")

    def __init__(
        self,
        what: str,
        method: str,
        path: str,
        body: dict[str, typing.Any] | None,
        declaration: Declaration | None = None,
    ) -> None:
        self.what = what
        self.method = method
        self.path = path
        self.body = body
        self.declaration = declaration
        self.batches: list[_Batch] = []

    def finish(self, refused: Refused | None) -> None:
        batches, self.batches = self.batches, []
        for batch in batches:
            batch.one_less(refused)


class Management:
    """See the module.  One for each connection; it goes with it.

    :param connection: an open one
    :param flush: has what the engine holds written before long
    """

    def __init__(
        self, connection: Connection, flush: typing.Callable[[], None]
    ) -> None:
        self._connection = connection
        self._flush = flush
        self._sender: Sender | None = None
        self._receiver: Receiver | None = None
        self._waiting: collections.deque[_Request] = collections.deque()
        # Asked and not answered, in the order in which they were asked.
        self._asked: dict[str, _Request] = {}
        self._wanted: dict[Declaration, _Request] = {}
        self._there: set[Declaration] = set()
        self._count = 0

    def has(self, declarations: Declarations) -> bool:
        """Whether all of these were declared over this connection, and not
        forgotten since."""
        return self._there.issuperset(declarations)

    def forget(self, declarations: Declarations) -> None:
        """Somebody may have removed these: the next `declare` will ask again."""
        self._there.difference_update(declarations)

    def declare(self, declarations: Declarations, done: Done) -> None:
        """Have all of these, in this order; then call `done`, with None or with what
        was refused.  It may be called at once."""
        missing = [each for each in declarations if each not in self._there]
        if not missing:
            done(None)
            return
        batch = _Batch(len(missing), done)
        for declaration in missing:
            request = self._wanted.get(declaration)
            if request is None:
                request = _Request(
                    declaration.what,
                    declaration.method,
                    declaration.path,
                    declaration.body(),
                    declaration,
                )
                self._wanted[declaration] = request
                self._waiting.append(request)
            request.batches.append(batch)
        self._ask()

    def delete_queue(self, name: str) -> None:
        """Remove a queue, if it is there.  Nobody hears of the outcome."""
        self._waiting.append(
            _Request(f"queue {name!r}", "DELETE", f"/queues/{quote(name)}", None)
        )
        self._ask()

    # -- the pair of links

    def _open(self) -> None:
        name = f"management/{uuid.uuid4().hex}"
        paired = {"paired": True}
        try:
            sender = self._connection.create_sender(
                Terminus(_NODE),
                name=name,
                settle_mode=SettleMode.SETTLED,
                properties=paired,
                own_session=True,
            )
            receiver = self._connection.create_receiver(
                Terminus(_NODE), name=name, properties=paired, beside=sender
            )
        except LocalProtocolError as exc:
            self._refuse_all(Refused(f"cannot reach {_NODE}: {exc}", False))
            return
        self._sender, self._receiver = sender, receiver
        sender.on_detached = receiver.on_detached = self._detached
        sender.on_attached = sender.on_credit = self._ready
        receiver.on_attached = self._attached
        receiver.on_message = self._message

    def _attached(self, receiver: Receiver) -> None:
        receiver.flow(_CREDIT)
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
        while self._waiting and sender.credit > 0 and len(self._asked) < _CREDIT:
            request = self._waiting.popleft()
            self._count += 1
            number = str(self._count)
            self._asked[number] = request
            message = Message(
                request.body,
                id=number,
                address=request.path,
                subject=request.method,
                reply_to=_REPLY_TO,
            )
            sender.send(self._connection.codec.encode(message), None, True)
            sent = True
        if sent:
            self._flush()

    def _message(self, link: Receiver, delivery: Delivery, data: memoryview) -> None:
        try:
            answer = link.connection.codec.decode(data)
        except DecodeError as exc:
            LOG.error("an answer of %s cannot be decoded: %s", _NODE, exc)
            link.settle(delivery)
            link.flow(1)
            return
        link.settle(delivery)
        link.flow(1)
        request = self._asked.pop(str(answer.correlation_id), None)
        if request is not None:
            self._answered(request, answer.subject or "", answer.body)
        self._ask()

    def _answered(self, request: _Request, status: str, body: typing.Any) -> None:
        declaration = request.declaration
        if declaration is not None:
            self._wanted.pop(declaration, None)
        differs = (
            status == "409" and declaration is not None and not declaration.must_agree
        )
        if differs:
            LOG.warning("%s is used as it is: %s", request.what, body)
        if status.startswith("2") or differs:
            if declaration is not None:
                self._there.add(declaration)
            request.finish(None)
            return
        reason = body if isinstance(body, str) else "no reason given"
        request.finish(
            Refused(
                f"{request.what} was refused ({status}): {reason}",
                status in _PERMANENT_STATUS,
            )
        )

    def _detached(self, link: Sender | Receiver, error: RemoteError | None) -> None:
        if link not in (self._sender, self._receiver) or link.connection.ended:
            return
        sender, receiver = self._sender, self._receiver
        self._sender = self._receiver = None
        for each in (sender, receiver):
            if each is not None and each is not link:
                each.close()
        permanent = error is not None and error.condition in _PERMANENT_CONDITIONS
        reason = error or "no reason given"
        if not self._asked:
            # The pair itself: nothing can be asked.
            self._refuse_all(Refused(f"{_NODE} was closed: {reason}", permanent))
            return
        # The broker works on one after another: the oldest was at fault.
        asked, self._asked = list(self._asked.values()), {}
        culprit = asked.pop(0)
        self._waiting.extendleft(reversed(asked))
        if culprit.declaration is not None:
            self._wanted.pop(culprit.declaration, None)
        culprit.finish(Refused(f"{culprit.what} was refused: {reason}", permanent))
        self._ask()

    def _refuse_all(self, refused: Refused) -> None:
        waiting, self._waiting = self._waiting, collections.deque()
        self._wanted.clear()
        for request in waiting:
            request.finish(refused)
