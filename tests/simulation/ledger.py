"""Every message has a number; what became of it, and whether that is as promised."""

from __future__ import annotations

import collections
import dataclasses
import typing

from tests.simulation.plan import CALL_TIMEOUT, Plan

# What may come to a process only once.
REQUESTS = ("call", "cast", "fanout")

#: Seconds after which each kind has to end, whatever happens; None: it may wait.
LIMITS: dict[str, float | None] = {
    "call": 8.0,
    "cast": 10.0,
    "fanout": 10.0,
    "notify": 30.0,
    "bulk": 30.0,
    "insist": None,
    "keep": None,
}

# How much later it may end: the clock is looked at in the hub.
SLACK = 0.5

# A server that has just begun is known everywhere.
KNOWN = 3.0


@dataclasses.dataclass
class Message:
    """One that somebody sent.

    :ivar how: what its endpoint is to do
    :ivar fate: "taken", "failed"; "": nobody knows, or was there to hear it
    """

    number: int
    kind: str
    sender: str
    began: float
    how: str = ""
    fate: str = ""


class Arrival(typing.NamedTuple):
    """A message that came: to which of those that each get one; to which process, in
    which of its lives; when."""

    consumer: str
    process: str
    life: int
    at: float


class Ledger:
    """See the module."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.messages: dict[int, Message] = {}
        self.arrivals: dict[int, list[Arrival]] = collections.defaultdict(list)
        #: those that a consumer has given back
        self.requeued: set[int] = set()
        #: when a process that serves crashed
        self.crashes: list[float] = []
        #: which consumers get each kind
        self.consumers: dict[str, tuple[str, ...]] = {}

    def new(self, kind: str, sender: str, now: float, how: str = "") -> Message:
        """A message that is about to be sent."""
        message = Message(len(self.messages) + 1, kind, sender, now, how)
        self.messages[message.number] = message
        return message

    def came(self, number: int, arrival: Arrival) -> None:
        """A consumer has it."""
        self.arrivals[number].append(arrival)

    def judge(
        self, begin: float, peace_from: float, servers: dict[str, tuple[int, float]]
    ) -> typing.Iterator[str]:
        """What is not as promised.

        :param begin: when the plan's clock was at 0
        :param peace_from: from when on what is begun has to succeed
        :param servers: the life that each server is in, and since when it listens
        """
        for message in self.messages.values():
            arrivals = self.arrivals[message.number]
            if message.kind in REQUESTS:
                yield from self._twice(message, arrivals)
            elif (
                not self._plan.faults
                # To make room a subscription goes elsewhere, with what it holds.
                and not self._plan.most_links
                and message.number not in self.requeued
            ):
                seen = collections.Counter(each.consumer for each in arrivals)
                for consumer, times in seen.items():
                    if times > 1:
                        yield f"{_name(message)} came {times} times to {consumer}"
            if (
                message.fate == "failed"
                and message.kind == "call"
                and message.how in ("", "slow")
                and arrivals
                and self._plan.keeps_replies
                and self._faults_around(message, begin) < 2
            ):
                yield f"{_name(message)} was executed, and its reply was lost"
            if message.fate != "taken":
                continue
            if message.kind == "fanout":
                if message.began > peace_from:
                    yield from self._not_everywhere(message, arrivals, servers)
            elif not self._excused(message):
                had = {each.consumer for each in arrivals}
                for consumer in self.consumers[message.kind]:
                    if consumer not in had:
                        yield f"{_name(message)} was taken and never came to {consumer}"

    def _faults_around(self, message: Message, begin: float) -> int:
        """How many faults a call may have met, or what is left of them."""
        most = CALL_TIMEOUT + SLACK
        return sum(
            abs(begin + fault.at - message.began) < most for fault in self._plan.faults
        )

    def _twice(self, message: Message, arrivals: list[Arrival]) -> typing.Iterator[str]:
        places = collections.Counter((each.process, each.life) for each in arrivals)
        for (process, _), times in places.items():
            if times > 1:
                yield f"{_name(message)} was executed {times} times by {process}"
        if message.kind != "fanout" and len(places) > 1 and not self._plan.faults:
            yield f"{_name(message)} was executed by {len(places)} processes"

    def _not_everywhere(
        self,
        message: Message,
        arrivals: list[Arrival],
        servers: dict[str, tuple[int, float]],
    ) -> typing.Iterator[str]:
        had = {(each.process, each.life) for each in arrivals}
        for server, (life, since) in servers.items():
            if since + KNOWN < message.began and (server, life) not in had:
                yield f"{_name(message)} did not come to {server}, in peace"

    def _excused(self, message: Message) -> bool:
        """Whether whoever had it may have been killed with it: a request is
        acknowledged before it is executed, and through a router a notification for a
        batch before it is handled."""
        early = message.kind in REQUESTS or (
            message.kind == "bulk" and self._plan.is_router
        )
        return early and any(at >= message.began for at in self.crashes)


def _name(message: Message) -> str:
    return f"{message.kind} {message.number}"
