# SPDX-License-Identifier: Apache-2.0
"""Numbers of what clients are doing, and of what they have done: what is observed.

A number has a name, attributes and a value; those of the same name and attributes are
added up, over all connections of all transports of the process.
"""

from __future__ import annotations

import collections
import typing

from greenamqp.telemetry.tally import Tally

#: Attributes, as pairs.
Attributes = tuple[tuple[str, str | int], ...]

#: The values by name, and attributes.
Numbers = dict[str, collections.Counter[Attributes]]

#: In all attributes of messages.
SYSTEM = ("messaging.system", "amqp")

#: What operations are called, by the kind of message.
OPERATIONS = {
    "RPC call": "call",
    "RPC cast": "cast",
    "RPC reply": "reply",
    "RPC heartbeat": "heartbeat",
    "RPC request": "request",
    "notification": "notify",
}


class Described(typing.Protocol):
    """An outbox."""

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`."""


class Observed(typing.NamedTuple):
    """An instrument whose values are these numbers."""

    name: str
    #: ``counter``, or ``gauge`` for what goes up and down.
    kind: str
    unit: str
    description: str


OBSERVED = (
    Observed(
        "messaging.client.sent.messages",
        "counter",
        "{message}",
        "Messages that were sent, or were to be, by what became of them",
    ),
    Observed(
        "messaging.client.consumed.messages",
        "counter",
        "{message}",
        "Messages that were handed to a server or listener",
    ),
    Observed(
        "greenamqp.client.outcomes",
        "counter",
        "{outcome}",
        "Outcomes that the message bus told, several of one message where it is sent "
        "again",
    ),
    Observed(
        "greenamqp.connections",
        "gauge",
        "{connection}",
        "Connections by their state",
    ),
    Observed(
        "greenamqp.connection.opened",
        "counter",
        "{connection}",
        "How often a connection came up: all but the first time of each, again",
    ),
    Observed(
        "greenamqp.connection.down_time",
        "counter",
        "s",
        "For how long connections were wanted and not up",
    ),
    Observed(
        "greenamqp.call.unanswered",
        "gauge",
        "{call}",
        "RPC calls that wait for their reply",
    ),
    Observed(
        "greenamqp.request.at_work",
        "gauge",
        "{request}",
        "RPC requests that were taken and not replied to yet",
    ),
    Observed("greenamqp.sender.links", "gauge", "{link}", "Links to send by"),
    Observed(
        "greenamqp.sender.credit",
        "gauge",
        "{message}",
        "Messages that may be sent before the message bus gives more credit",
    ),
    Observed(
        "greenamqp.sender.unsettled",
        "gauge",
        "{message}",
        "Messages in flight: sent, and their outcome is due",
    ),
    Observed(
        "greenamqp.sender.pending",
        "gauge",
        "{message}",
        "Messages that cannot be sent now, for want of a link or of credit",
    ),
    Observed(
        "greenamqp.receiver.links", "gauge", "{link}", "Links that are received by"
    ),
    Observed(
        "greenamqp.receiver.credit",
        "gauge",
        "{message}",
        "Messages that may come before this process gives more credit",
    ),
    Observed(
        "greenamqp.outbox.waiting",
        "gauge",
        "{message}",
        "Notifications that wait on disk",
    ),
    Observed(
        "greenamqp.outbox.sent",
        "counter",
        "{message}",
        "Notifications that were sent from the disk",
    ),
    Observed(
        "greenamqp.outbox.dropped",
        "counter",
        "{message}",
        "Notifications that fell out of the outbox, by the reason",
    ),
)

_COUNTERS = frozenset(each.name for each in OBSERVED if each.kind == "counter")


def empty() -> Numbers:
    """No numbers yet."""
    return {each.name: collections.Counter() for each in OBSERVED}


def message_attributes(what: str, topic: str | None, error: str = "") -> Attributes:
    """The attributes of a kind of message, by the messaging conventions."""
    found: list[tuple[str, str | int]] = [
        SYSTEM,
        ("messaging.operation.name", OPERATIONS.get(what, what)),
    ]
    if topic is not None:
        found.append(("messaging.destination.name", topic))
    if error:
        found.append(("error.type", error))
    return tuple(found)


def add_tally(numbers: Numbers, tally: Tally) -> None:
    """What became of a client's messages.  Its hub's lock."""
    sent = numbers["messaging.client.sent.messages"]
    outcomes = numbers["greenamqp.client.outcomes"]
    consumed = numbers["messaging.client.consumed.messages"]
    for (what, topic), kind in tally.kinds.items():
        attributes = message_attributes(what, topic)
        if kind.sent:
            sent[attributes] += kind.sent
        if kind.received:
            consumed[attributes] += kind.received
        if kind.accepted:
            accepted = ("greenamqp.outcome", "accepted")
            outcomes[(*message_attributes(what, None), accepted)] += kind.accepted
    for (what, topic, error), count in tally.failed.items():
        sent[message_attributes(what, topic, error)] += count
    for (what, outcome, condition), count in tally.refused.items():
        attributes = message_attributes(what, None, condition)
        outcomes[(*attributes, ("greenamqp.outcome", outcome))] += count


def add_connections(numbers: Numbers, connections: list[dict[str, typing.Any]]) -> None:
    """What ``connections`` of :func:`greenamqp.describe` says."""
    for each in connections:
        address, _, port = each["host"].rpartition(":")
        server: Attributes = (
            SYSTEM,
            ("server.address", address.strip("[]")),
            ("server.port", int(port)),
        )
        state = (*server, ("greenamqp.state", each["state"]))
        numbers["greenamqp.connections"][state] += 1
        values: dict[str, float] = {
            "greenamqp.call.unanswered": each["unanswered_calls"],
            "greenamqp.request.at_work": each["requests_at_work"],
        }
        senders = each["senders"]
        values["greenamqp.sender.links"] = len(senders)
        for name in ("credit", "unsettled", "pending"):
            values[f"greenamqp.sender.{name}"] = sum(one[name] for one in senders)
        links = [link for one in each["subscriptions"] for link in one["links"]]
        values["greenamqp.receiver.links"] = len(links)
        values["greenamqp.receiver.credit"] = sum(link["credit"] for link in links)
        for name, value in values.items():
            numbers[name][server] += typing.cast(int, value)
        # These add up over the hosts of a URL.
        numbers["greenamqp.connection.opened"][(SYSTEM,)] += each["came_up"]
        numbers["greenamqp.connection.down_time"][(SYSTEM,)] += each["time_down"]


def add_outbox(numbers: Numbers, outbox: dict[str, typing.Any]) -> None:
    """What ``outbox`` of :func:`greenamqp.describe` says."""
    numbers["greenamqp.outbox.waiting"][(SYSTEM,)] += outbox["waiting"]
    numbers["greenamqp.outbox.sent"][(SYSTEM,)] += outbox["sent"]
    for reason, count in outbox["dropped"].items():
        attributes = (SYSTEM, ("greenamqp.reason", reason))
        numbers["greenamqp.outbox.dropped"][attributes] += count


def add_counters(numbers: Numbers, others: Numbers) -> None:
    """What others have counted; not what they are doing."""
    for name in _COUNTERS:
        for attributes, value in others[name].items():
            numbers[name][attributes] += value
