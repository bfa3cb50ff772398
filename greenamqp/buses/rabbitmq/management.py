# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ's management, which it has from 4.0 on: the node ``/management``.

The two links are a pair: both have its address and one name, and the link property
``paired``.  A request is a message with the method for its subject and the path for its
address; the answer has an HTTP status for its subject.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import typing
import urllib.parse

from greenamqp.buses import management
from greenamqp.buses.management import Again, Refused, Seen, Steps
from greenamqp.engine import Message, Receiver, Terminus

LOG = logging.getLogger(__name__)

# Answers that another attempt does not change: no right, or it exists and differs.
_PERMANENT_STATUS = frozenset(("403", "405", "409"))


def quote(name: str) -> str:
    """A name as a segment of an address or a path."""
    return urllib.parse.quote(name, safe="")


# How the broker says that a binding has nothing to bind: with 400 so far.
_GONE_STATUS = frozenset(("400", "404"))
_GONE = re.compile("no (exchange|queue) ")

# A queue of a node that is being stopped, which the others do not know yet: they then
# know that it is gone with its node.
_STOPPED = "process is stopped by supervisor"

_Items = tuple[tuple[str, typing.Any], ...]
_Texts = tuple[tuple[str, str], ...]

# How the broker names the property in which something that exists differs.
_INEQUIVALENT = re.compile("inequivalent arg '([^']+)'")


@dataclasses.dataclass(frozen=True)
class Declaration(management.Declaration):
    """Something that must be there.  See :func:`queue` and its like.

    :ivar may_differ: properties in which one that exists may differ; it will do
    :ivar options: for properties, where the application sets them: for errors
    """

    method: str
    path: str
    fields: _Items
    arguments: _Items = ()
    may_differ: tuple[str, ...] = ()
    options: _Texts = ()

    def body(self) -> dict[str, typing.Any]:
        """The body of the request."""
        return dict(self.fields) | {"arguments": dict(self.arguments)}

    def explain(self, reason: str) -> tuple[bool, str]:
        """Whether one that exists will do, and `reason` with the option that makes
        it differ."""
        found = _INEQUIVALENT.search(reason)
        if found is None:
            return False, reason
        name = found[1]
        option = dict(self.options).get(name)
        if option is not None:
            reason = f"{reason}; to be set by {option}"
        return name in self.may_differ, reason


def queue(
    name: str,
    arguments: typing.Mapping[str, typing.Any] | None = None,
    *,
    durable: bool = True,
    auto_delete: bool = False,
    options: _Texts = (),
) -> Declaration:
    """A queue."""
    return Declaration(
        f"queue {name!r}",
        "PUT",
        f"/queues/{quote(name)}",
        (("durable", durable), ("exclusive", False), ("auto_delete", auto_delete)),
        tuple(sorted((arguments or {}).items())),
        options=options,
    )


def exchange(
    name: str,
    kind: str,
    *,
    durable: bool = True,
    auto_delete: bool = False,
    may_differ: tuple[str, ...] = (),
    options: _Texts = (),
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
        may_differ=may_differ,
        options=options,
    )


def binding(
    exchange: str, queue: str, key: str, *, optional: bool = False
) -> Declaration:
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
        optional=optional,
    )


def is_binding(declaration: management.Declaration) -> bool:
    """Whether it is one."""
    return isinstance(declaration, Declaration) and declaration.path == "/bindings"


def _again(status: str, reason: str) -> Again:
    if status in _PERMANENT_STATUS:
        return Again.NEVER
    if status in _GONE_STATUS and _GONE.match(reason):
        return Again.AT_ONCE
    return Again.SOON if _STOPPED in reason else Again.LATER


class Management(management.Management):
    """See the module."""

    node = "/management"
    compares = True
    link_properties: typing.ClassVar = {"paired": True}

    def _source(self) -> Terminus:
        return Terminus(self.node)

    def _reply_to(self, receiver: Receiver) -> str:
        # The word by which the broker knows that answers go to the other link.
        return "$me"

    def _steps(self, declaration: Declaration) -> Steps:
        answer = yield Message(
            declaration.body(), address=declaration.path, subject=declaration.method
        )
        status = answer.subject or ""
        if status.startswith("2"):
            return
        reason = answer.body if isinstance(answer.body, str) else "no reason given"
        will_do = False
        if status == "409":
            will_do, reason = declaration.explain(reason)
        if will_do:
            LOG.warning("%s is used as it is: %s", declaration.what, reason)
        else:
            raise Refused(
                f"{declaration.what} was refused ({status}): {reason}",
                _again(status, reason),
            )

    def _removals(
        self, address: str | None, declarations: management.Declarations
    ) -> dict[str, typing.Callable[[], Steps]]:
        # A binding goes with what it binds.
        return {
            each.what: functools.partial(self._delete, each)
            for each in declarations
            if isinstance(each, Declaration) and each.method == "PUT"
        }

    def _comparison(
        self, declaration: Declaration, seen: Seen
    ) -> typing.Callable[[], Steps] | None:
        # To ask for an exchange ends the session.
        if not declaration.path.startswith("/queues/"):
            return None
        return functools.partial(self._compare, declaration, seen)

    def _compare(self, declaration: Declaration, seen: Seen) -> Steps:
        answer = yield Message(None, address=declaration.path, subject="GET")
        if (answer.subject or "").startswith("2"):
            counts = answer.body if isinstance(answer.body, dict) else {}
            seen(
                declaration.what,
                int(counts.get("consumer_count", 0)),
                int(counts.get("message_count", 0)),
            )
            # One that is there is not made by this.
            yield from self._steps(declaration)

    def _delete(self, declaration: Declaration) -> Steps:
        answer = yield Message(None, address=declaration.path, subject="DELETE")
        status = answer.subject or ""
        if not status.startswith("2") and status != "404":
            raise Refused(
                f"{declaration.what} was not removed ({status}): {answer.body}"
            )

    def _removal(self, name: str) -> Steps:
        yield Message(None, address=f"/queues/{quote(name)}", subject="DELETE")
