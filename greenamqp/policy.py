# SPDX-License-Identifier: Apache-2.0
"""How long queues and what is in them live, where the message bus can be told.

A policy is set for a target (:func:`greenamqp.driver.set_queue_policy`) or, by the
options ``queue_expires``, ``queue_message_ttl`` and ``queue_max_length``, for all.  It
is asked for by whoever makes the queue, sender or receiver, in the way that the bus
has.  A bus that stores nothing, or cannot be told, refuses: who sends or listens gets
an error that says so.
"""

from __future__ import annotations

import dataclasses
import typing

from oslo_messaging import Target

from greenamqp.options import GROUP, MAX_LIFE, MAX_NUMBER, MIN_LIFE, RabbitOptions


@dataclasses.dataclass(frozen=True)
class QueuePolicy:
    """What is asked of a queue.  None: nothing.

    :param expires: seconds that the queue lives without a consumer
    :param message_ttl: seconds that a message lives in it
    :param max_length: messages that it holds; more push out the oldest
    :raises ValueError: for a value that makes no sense, naming it
    """

    expires: float | None = None
    message_ttl: float | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{field.name} must be a number: {value!r}")
            least, most = (
                (1, MAX_NUMBER) if field.name == "max_length" else (MIN_LIFE, MAX_LIFE)
            )
            if not least <= value <= most:  # nan is not, either
                raise ValueError(
                    f"{field.name} must be from {least} to {most}: {value!r}"
                )

    def __bool__(self) -> bool:
        return self != QueuePolicy()

    def properties(self) -> dict[str, int]:
        """As arguments of a queue, by the names that brokers use; milliseconds."""
        given: dict[str, int] = {}
        if self.expires is not None:
            given["x-expires"] = max(1, int(self.expires * 1000))
        if self.message_ttl is not None:
            given["x-message-ttl"] = max(1, int(self.message_ttl * 1000))
        if self.max_length is not None:
            given["x-max-length"] = int(self.max_length)
        return given


_Key = tuple[str | None, str | None, str | None]


class Policies:
    """The policies of one transport.

    :param options: the group of options, for targets that have no policy of their own
    :ivar rabbit: what the ``rabbit://`` driver is told about queues and exchanges
    """

    def __init__(
        self, options: typing.Any = None, rabbit: RabbitOptions | None = None
    ) -> None:
        self.rabbit = rabbit or RabbitOptions()
        self._of_target: dict[_Key, QueuePolicy] = {}
        self._default = QueuePolicy()
        if options is not None:
            try:
                self._default = QueuePolicy(
                    options.queue_expires,
                    options.queue_message_ttl,
                    options.queue_max_length,
                )
            except ValueError as exc:
                # oslo.config lets nan through.
                raise ValueError(f"[{GROUP.name}] queue_{exc}") from None

    def set(self, target: Target, policy: QueuePolicy | None) -> None:
        """From the next link on, ask for `policy` where `target` is meant."""
        key = (target.exchange, target.topic, target.server)
        if policy is None:
            self._of_target.pop(key, None)
        else:
            self._of_target[key] = policy

    def find(self, target: Target) -> QueuePolicy:
        """The policy of a target: its own, or that of its topic for all servers, or of
        the topic without the priority of a notification, or the options'."""
        if not self._of_target:
            return self._default
        topics = [target.topic]
        if target.topic and "." in target.topic:
            topics.append(target.topic.rsplit(".", 1)[0])
        for topic in topics:
            for server in dict.fromkeys((target.server, None)):
                policy = self._of_target.get((target.exchange, topic, server))
                if policy is not None:
                    return policy
        return self._default
