# SPDX-License-Identifier: Apache-2.0
"""A message on its way out: where to, and what has become of it."""

from __future__ import annotations

import logging
import typing

from oslo_messaging import Target, exceptions

from greenamqp import buses
from greenamqp.buses import Format
from greenamqp.client.observer import Observation
from greenamqp.engine import Message
from greenamqp.hubs import Waiter, logs

LOG = logging.getLogger("greenamqp.client")

#: Makes the message in a format.  What cannot be serialised is raised to the sender,
#: since this is called before anything is sent; it may be called again, should the
#: message bus turn out to be of another kind.
Compose = typing.Callable[[Format], Message]


class Destination(typing.NamedTuple):
    """Where a message goes: a target and kind of traffic, or a ready address."""

    exchange: str | None
    topic: str | None
    server: str | None
    fanout: bool
    service: buses.Service
    address: str | None = None

    @classmethod
    def of(cls, target: Target, service: buses.Service) -> Destination:
        """The destination of what is sent to `target`."""
        return cls(
            target.exchange, target.topic, target.server, bool(target.fanout), service
        )

    @classmethod
    def reply(cls, address: str) -> Destination:
        """The destination of replies to `address`."""
        return cls(None, None, None, False, buses.Service.RPC, address)

    def node(self, addresser: buses.Addresser) -> buses.Node:
        """As the bus at hand names it.

        :raises NotImplementedError: if the bus cannot keep the policy asked for
        """
        if self.address is not None:
            return addresser.reply_destination(self.address)
        target = Target(
            exchange=self.exchange,
            topic=self.topic,
            server=self.server,
            fanout=self.fanout,
        )
        return addresser.destination(target, self.service)

    def __str__(self) -> str:
        if self.address is not None:
            return self.address
        return " ".join(
            f"{name}={value}"
            for name, value in zip(
                ("exchange", "topic", "server", "fanout"), self[:4], strict=True
            )
            if value
        )


class Reply(typing.NamedTuple):
    """What a call was replied, in the format that it came in."""

    format: Format
    content: typing.Any

    def result(self, allowed_modules: list[str]) -> typing.Any:
        """As :meth:`greenamqp.buses.Format.result`."""
        return self.format.result(self.content, allowed_modules)


class Rejected(exceptions.MessageDeliveryFailure):
    """The message bus has seen the message and does not take it, or it is none that
    could be sent: to try again is of no use."""


class Withdrawn(Exception):
    """It need not be sent any more: somebody else sees to it, such as an outbox."""


class Outgoing:
    """A message on its way out, until its outcome is known.

    :ivar format: what its message is in
    :ivar error: after `done`, why it failed, or None
    """

    __slots__ = (
        "_compose",
        "attempts",
        "deadline",
        "destination",
        "done",
        "error",
        "expires",
        "format",
        "impatient",
        "last_reason",
        "mandatory",
        "message",
        "observation",
        "on_end",
        "posted",
        "repeatable",
        "retries",
        "settled",
        "traced",
        "volatile",
        "what",
        "waiter",
        "wanting_since",
    )

    _end = "done"  # for the trace

    def __init__(
        self,
        what: str,
        destination: Destination,
        compose: Compose,
        format: Format,
        *,
        deadline: float | None = None,
        retries: int | None = None,
        settled: bool = False,
        repeatable: bool = False,
        mandatory: bool = False,
        waiter: Waiter | None = None,
    ) -> None:
        self.what = what
        self.destination = destination
        self._compose = compose
        self.format = format
        self.message = compose(format)
        self.deadline = deadline
        # Whether nobody may act on it after that.
        self.expires = self.message.ttl is not None
        # None: as often as the deadline allows.
        self.retries = _limit(retries)
        self.settled = settled
        # Whether it may be sent again when it may have been accepted.
        self.repeatable = repeatable
        # Whether it fails when nobody is there to take it.
        self.mandatory = mandatory
        self.waiter = waiter
        # Whether the log alone hears of its end.
        self.posted = False
        # Whether nobody asks for its outcome where it may be lost all the same, since
        # what it is sent to goes with a connection.
        self.volatile = False
        # Told what becomes of it, where somebody wants to know.
        self.observation: Observation | None = None
        # Whether it does not wait for long for somebody to be there.
        self.impatient = False
        # When it was first found that nobody is there to take it.
        self.wanting_since: float | None = None
        # Told of the end, with the error or None, where nobody waits.
        self.on_end: typing.Callable[[Exception | None], None] | None = None
        self.attempts = 0
        self.done = False
        self.error: Exception | None = None
        self.last_reason = ""
        # Whether what becomes of it is logged.  Looked at once, for speed; and not of
        # what a logging handler sends, or each record would make another.
        self.traced = LOG.isEnabledFor(logging.DEBUG) and not logs.in_handler()

    @property
    def name(self) -> str:
        """What it is and its id, for the log."""
        return f"{self.what} {self.format.identify(self.message)}".rstrip()

    def taken_over(
        self, waiter: Waiter, deadline: float | None, retries: int | None
    ) -> None:
        """Somebody waits for it from now on, in place of who was told of its end."""
        self.on_end = None
        self.waiter = waiter
        self.deadline = deadline
        self.retries = _limit(retries)

    def trace(self, event: str, *args: object) -> None:
        """Log what happened to it; to be called where it is `traced`."""
        LOG.debug("%s to %s: " + event, self.name, self.destination, *args)

    def recompose(self, format: Format) -> None:
        """The bus at hand wants another format.

        :raises TypeError, ValueError: if it cannot be put into that
        """
        self.message = self._compose(format)
        self.format = format

    def may_retry(self) -> bool:
        """Whether another attempt is allowed; counts it."""
        if self.retries is None:
            return True
        self.retries -= 1
        return self.retries >= 0

    def may_follow(self) -> bool:
        """Whether it may be sent over the next link, its own being lost.  That is a
        retry where somebody waits; else the deadline alone limits it."""
        return self.waiter is None or self.may_retry()

    def accepted(self) -> None:
        """The next hop took it."""
        self.finish(None)

    def finish(self, error: Exception | None) -> None:
        """Nothing more will happen to it."""
        if self.done:
            return
        self.done = True
        self.error = error
        if self.observation is not None:
            self.observation.ended(error)
        if self.traced:
            if error is not None:
                self.trace("failed: %s", error)
            else:
                self.trace(self._end)
        if self.on_end is not None:
            self.on_end(error)
        elif self.waiter is not None:
            self.waiter.wake()

    def given_up(self) -> None:
        """Who sent it waits no longer: whatever becomes of it goes unheard."""
        self.done = True
        if self.observation is not None:
            endless = self.deadline is None
            self.observation.ended(Withdrawn() if endless else TimeoutError())

    def failed(self, reason: str, cause: Exception | None = None) -> None:
        """Finish with the error that the application is to see."""
        error = exceptions.MessageDeliveryFailure(
            f"{self.what} to {self.destination} failed: {reason}"
        )
        error.__cause__ = cause
        self.finish(error)

    def rejected(self, reason: str) -> None:
        """As `failed`, where it would fail whenever it is sent again."""
        self.finish(Rejected(f"{self.what} to {self.destination} failed: {reason}"))

    def undeliverable(self, address: str | None) -> None:
        """Finish as the ``mandatory`` flag promises: nobody takes it."""
        self.finish(
            exceptions.MessageUndeliverable(
                f"{self.what} to {self.destination}: nobody there to take it",
                self.destination.exchange,
                address,
                self.message,
            )
        )


class Call(Outgoing):
    """A request whose caller waits for a reply.

    :ivar id: by which the reply to the latest attempt is known, once there was one
    :ivar in_doubt: whether an attempt may have arrived whose outcome was lost: all that
        follow it have its id
    """

    __slots__ = ("id", "in_doubt", "monitor", "monitor_deadline", "reply")

    _end = "replied"

    def __init__(
        self,
        what: str,
        destination: Destination,
        compose: Compose,
        format: Format,
        *,
        deadline: float,
        retries: int | None,
        settled: bool,
        mandatory: bool,
        waiter: Waiter,
        monitor: float | None,
    ) -> None:
        super().__init__(
            what,
            destination,
            compose,
            format,
            deadline=deadline,
            retries=retries,
            settled=settled,
            mandatory=mandatory,
            waiter=waiter,
        )
        self.id: str | None = None
        self.in_doubt = False
        #: Once it is done without an error.
        self.reply: Reply
        self.monitor = monitor
        self.monitor_deadline: float | None = None

    def accepted(self) -> None:
        # It is not done: from now on it waits for its reply alone.
        self.last_reason = ""


def _limit(retries: int | None) -> int | None:
    return None if retries is None or retries < 0 else retries
