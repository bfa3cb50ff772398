# SPDX-License-Identifier: Apache-2.0
"""Qpid Broker-J's management: requests to the node ``$management``.

A request has its operation and the type of object in application properties, and the
attributes of a new object in a map for its body.  The answer has a status, numbered as
HTTP's, in application properties.
"""

from __future__ import annotations

import dataclasses
import typing

from greenamqp.engine import Message
from greenamqp.management import base
from greenamqp.management.base import Refused, Steps, check_policy

_Items = tuple[tuple[str, typing.Any], ...]

_EXISTS = 409
# Answers that another attempt does not change.
_PERMANENT_STATUS = frozenset((400, 403, _EXISTS))

_QUEUE = "org.apache.qpid.Queue"
_FANOUT_EXCHANGE = "org.apache.qpid.FanoutExchange"
_EXCHANGE = "org.apache.qpid.Exchange"


@dataclasses.dataclass(frozen=True)
class Created(base.Declaration):
    """An object that there is to be.

    :ivar attributes: what it is made with
    :ivar agreed: those of them that one that exists must have, too
    """

    kind: str
    name: str
    attributes: _Items = ()
    agreed: _Items = ()


@dataclasses.dataclass(frozen=True)
class Binding(base.Declaration):
    """A binding of a queue to a fanout exchange."""

    exchange: str
    queue: str


def queue(
    name: str,
    attempts: int = 0,
    dead_letters: str | None = None,
    policy: typing.Mapping[str, typing.Any] | None = None,
) -> Created:
    """A durable queue.

    :param attempts: how often a message is delivered at most; 0: any number of times
    :param dead_letters: the queue that takes it then
    :param policy: further attributes, in which one that exists must agree
    """
    attributes: _Items = ()
    if attempts:
        attributes = (("maximumDeliveryAttempts", attempts),)
    if dead_letters is not None:
        attributes += (("alternateBinding", (("destination", dead_letters),)),)
    agreed = tuple(sorted((policy or {}).items()))
    return Created(f"queue {name!r}", _QUEUE, name, attributes, agreed)


def fanout_exchange(name: str) -> Created:
    """A durable exchange that gives each of its queues a copy."""
    return Created(f"exchange {name!r}", _FANOUT_EXCHANGE, name)


def binding(exchange: str, queue: str) -> Binding:
    """A binding of a queue to a fanout exchange."""
    what = f"binding of queue {queue!r} to exchange {exchange!r}"
    return Binding(what, exchange, queue)


class Management(base.Management):
    """See the module."""

    node = "$management"
    # The broker works off all that it has read before it writes anything, and what is
    # created is on disk first: many at once and it is silent for so long on a busy
    # machine that the connection counts as lost.
    window = 8

    def _steps(self, declaration: typing.Any) -> Steps:
        if isinstance(declaration, Binding):
            answer = yield _request(
                "bind",
                _EXCHANGE,
                declaration.exchange,
                destination=declaration.queue,
                bindingKey="",
            )
            _check(answer, declaration.what)
            return
        agreed = dict(declaration.agreed)
        attributes = {
            key: dict(value) if isinstance(value, tuple) else value
            for key, value in declaration.attributes
        }
        answer = yield _request(
            "CREATE",
            declaration.kind,
            body={"name": declaration.name, "durable": True} | attributes | agreed,
        )
        if _status(answer) != _EXISTS:
            _check(answer, declaration.what)
        elif agreed:
            # It may be another one: the broker does not compare.
            answer = yield _request("READ", declaration.kind, declaration.name)
            _check(answer, declaration.what)
            check_policy(declaration.what, agreed, answer.body)


def _request(
    operation: str,
    kind: str,
    name: str | None = None,
    body: dict[str, typing.Any] | None = None,
    **arguments: str,
) -> Message:
    properties = {"operation": operation, "type": kind, **arguments}
    if name is not None:
        properties |= {"index": "object-path", "key": name}
    return Message(body or {}, properties=properties)


def _status(answer: Message) -> int:
    status = (answer.properties or {}).get("statusCode")
    return int(status) if isinstance(status, int) else 0


def _check(answer: Message, what: str) -> None:
    """Refuse what the broker refused."""
    status = _status(answer)
    if not 200 <= status < 300:
        reason = (answer.properties or {}).get("statusDescription", "no reason given")
        raise Refused(
            f"{what} was refused ({status}): {reason}", status in _PERMANENT_STATUS
        )
