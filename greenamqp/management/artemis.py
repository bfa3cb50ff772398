# SPDX-License-Identifier: Apache-2.0
"""Artemis: what an attach makes, and requests to ``activemq.management``.

A queue without further attributes is made by a link that names it, which every user may
attach who may use it.  One with attributes takes a request, and the right to make such:
an operation and its arguments as JSON.  The answer says whether it succeeded, and with
what or why not.
"""

from __future__ import annotations

import dataclasses
import json
import typing

from greenamqp import chance
from greenamqp.engine import (
    Connection,
    LocalProtocolError,
    Message,
    RemoteError,
    Sender,
    Terminus,
)
from greenamqp.management import base
from greenamqp.management.base import Refused, Steps, check_policy, listed

#: One consumer of an address gets a message.
ANYCAST = "ANYCAST"
#: Each queue of an address gets it.
MULTICAST = "MULTICAST"

# The broker's text, which begins with a number that stands for it, where a queue of
# that name is there already.
_EXISTS = "AMQ229019"

_Items = tuple[tuple[str, typing.Any], ...]


@dataclasses.dataclass(frozen=True)
class Declaration(base.Declaration):
    """A queue.  See :func:`queue` and :func:`attached_queue`."""

    address: str
    name: str
    routing: str
    arguments: _Items = ()


def queue(
    address: str,
    name: str,
    routing: str,
    arguments: typing.Mapping[str, typing.Any],
) -> Declaration:
    """A durable queue of an address, with further attributes, all of which the broker
    must agree to."""
    return Declaration(
        f"queue {name!r}", address, name, routing, tuple(sorted(arguments.items()))
    )


def attached_queue(address: str, name: str) -> Declaration:
    """A multicast queue of an address as an attach makes it: durable, for good."""
    return Declaration(f"queue {name!r}", address, name, MULTICAST)


class Management(base.Management):
    """See the module."""

    node = "activemq.management"

    def __init__(
        self, connection: Connection, flush: typing.Callable[[], None]
    ) -> None:
        super().__init__(connection, flush)
        # Links that are attached only to have their queue made.
        self._makers: dict[Sender, base.Request] = {}

    def _enter(self, request: base.Request) -> None:
        declaration = request.declaration
        if isinstance(declaration, Declaration) and not declaration.arguments:
            self._attach(request, declaration)
        else:
            super()._enter(request)

    def _attach(self, request: base.Request, declaration: Declaration) -> None:
        target = Terminus(
            f"{declaration.address}::{declaration.name}", capabilities=("topic",)
        )
        try:
            link = self._connection.create_sender(
                target, name=f"management/{chance.unique()}"
            )
        except LocalProtocolError as exc:
            self._finish(request, Refused(f"{declaration.what}: {exc}", False))
            return
        self._makers[link] = request
        link.on_attached = self._made
        link.on_detached = self._not_made
        self._flush()

    def _made(self, link: Sender) -> None:
        request = self._makers.pop(link)
        link.close()
        self._flush()
        self._finish(request, None)

    def _not_made(self, link: Sender, error: RemoteError | None) -> None:
        request = self._makers.pop(link, None)
        if request is None or link.connection.ended:
            return
        self._finish(request, Refused.by_link(f"{request.what} was refused", error))

    def _steps(self, declaration: Declaration) -> Steps:
        wanted = dict(declaration.arguments)
        whole = wanted | {
            "name": declaration.name,
            "address": declaration.address,
            "routing-type": declaration.routing,
            "durable": True,
            "auto-create-address": True,
        }
        answer = yield _operation("createQueue", json.dumps(whole), False)
        told = _result(answer)
        if not _succeeded(answer) and str(told).startswith(_EXISTS):
            # What may be changed of it is; the answer has what it is now.
            changes = {"name": declaration.name, **wanted}
            answer = yield _operation("updateQueue", json.dumps(changes))
            told = _result(answer)
        if not _succeeded(answer):
            raise Refused(
                f"{declaration.what} with {listed(wanted)} was refused: {told}", False
            )
        try:
            found = json.loads(told)
        except (TypeError, ValueError):
            found = None
        check_policy(
            declaration.what, wanted, found, ", and the broker changes it no more"
        )


def _operation(name: str, *arguments: typing.Any) -> Message:
    """A request to the broker as a whole."""
    return Message(
        json.dumps(arguments),
        properties={"_AMQ_ResourceName": "broker", "_AMQ_OperationName": name},
    )


def _succeeded(answer: Message) -> bool:
    return bool((answer.properties or {}).get("_AMQ_OperationSucceeded"))


def _result(answer: Message) -> typing.Any:
    """What it returned, or why it did not: JSON in a list of one."""
    try:
        (result,) = json.loads(answer.body)
    except (TypeError, ValueError):
        return answer.body
    return result
