# SPDX-License-Identifier: Apache-2.0
"""Which host is tried next, and when: policy alone, no clock and no socket."""

from __future__ import annotations

import dataclasses
import typing

from greenamqp import chance

#: The port of a host for which the URL gives none (IANA: amqp).
AMQP_PORT = 5672

#: The same where the URL asks for TLS (IANA: amqps).
AMQPS_PORT = 5671

#: The longest pause where nobody listens: a refused connection costs nobody anything,
#: and everybody is to be back soon when somebody does.  Seconds.
MAX_REFUSED_PAUSE = 10.0


@dataclasses.dataclass(frozen=True)
class Host:
    """One host of the transport URL, with credentials of its own."""

    hostname: str
    port: int
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)

    def __str__(self) -> str:
        name = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{name}:{self.port}"


class Hosts:
    """The hosts of a URL, in turn.  Begins at a random one, to share the load."""

    def __init__(self, hosts: typing.Sequence[Host]) -> None:
        self._hosts = list(hosts)
        self._index = chance.below(len(self._hosts))

    def __len__(self) -> int:
        return len(self._hosts)

    @property
    def current(self) -> Host:
        """The host that is connected to, or tried."""
        return self._hosts[self._index]

    def advance(self) -> Host:
        """Go on to the next host and return it."""
        self._index = (self._index + 1) % len(self._hosts)
        return self.current


class Backoff:
    """Seconds to pause before the next attempt.

    The hosts of one round follow each other at once; after a round without success
    comes a pause of `interval`, longer by `step` each time, up to `maximum`, or to
    MAX_REFUSED_PAUSE where all hosts refused the connection.  Half of a pause is
    random, so that the clients of a bus that died do not come back all in the same
    moment.

    A connection that was lost begins a first round anew if it lasted, that is, longer
    than `interval` and than the latest pause.  One that did not counts as a failed
    attempt, or a bus that opens connections only to close them would be asked again
    and again without a pause.
    """

    def __init__(
        self, hosts: int, interval: float, step: float, maximum: float
    ) -> None:
        self._hosts = hosts
        self._interval = interval
        self._step = step
        self._maximum = maximum
        self._failures = 0
        self._pause = 0.0
        # Whether all hosts of the round so far refused the connection.
        self._refused = True

    def reset(self) -> None:
        """A first round begins anew."""
        self._failures = 0
        self._refused = True

    def next_pause(self, lasted: float | None = None, refused: bool = False) -> float:
        """An attempt failed, or the connection was lost: seconds until the next.

        :param lasted: seconds for which the lost connection was open; None: it was
            never
        :param refused: whether nobody listened there
        """
        if lasted is not None and lasted >= max(self._interval, self._pause):
            self.reset()
        self._failures += 1
        self._refused &= refused
        rounds, within = divmod(self._failures, self._hosts)
        if within:
            return 0.0
        pause = min(self._interval + (rounds - 1) * self._step, self._maximum)
        if self._refused:
            pause = min(pause, MAX_REFUSED_PAUSE)
        self._refused = True
        self._pause = pause * (0.5 + 0.5 * chance.share())
        return self._pause
