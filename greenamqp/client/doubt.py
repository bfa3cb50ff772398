# SPDX-License-Identifier: Apache-2.0
"""Calls that may have arrived, where any server of a topic may have them.

Their outcome was lost, and the bus keeps what is sent to their reply address.  To send
such a call again at once would give a copy to another server.  So it waits until the
reply of the one that did arrive would have come: IN_DOUBT_FOR after the loss, and
REPLIES_COME_IN after replies can come again.  Then it is sent again.
"""

from __future__ import annotations

import typing

from greenamqp.client.context import Context
from greenamqp.client.outgoing import Call, Outgoing
from greenamqp.client.replies import Replies
from greenamqp.hubs import Countdown

#: Seconds.
IN_DOUBT_FOR = 1.0
REPLIES_COME_IN = 0.3


class CallsInDoubt:
    """See the module.  Those of one destination; hub's context or lock.

    :param replies: where the replies to calls come
    :param send_again: takes each call that has waited long enough
    """

    def __init__(
        self,
        context: Context,
        replies: Replies,
        send_again: typing.Callable[[Call], None],
    ) -> None:
        self._context = context
        self._replies = replies
        self._send_again = send_again
        # Since when each is in doubt.
        self._since: dict[Call, float] = {}
        # Runs while replies come.
        self._pause = Countdown(context.hub)

    def __iter__(self) -> typing.Iterator[Call]:
        return iter([call for call in self._since if not call.done])

    def add(self, call: Call) -> None:
        """Its outcome was lost just now."""
        self._since[call] = self._context.hub.now()

    def discard(self, entry: Outgoing) -> None:
        """This one is not to be sent again, if it is here at all."""
        self._since.pop(typing.cast(Call, entry), None)

    def replies_come(self) -> None:
        """From now on, if there is an address for them."""
        if self._replies.address is None or not self._since or self._pause.runs:
            return
        until = max(
            self._context.hub.now() + REPLIES_COME_IN,
            max(self._since.values()) + IN_DOUBT_FOR,
        )
        self._pause.call_at(until, self._end)

    def replies_stop(self) -> None:
        """They come no more."""
        self._pause.cancel()

    def fail_all(self, reason: str) -> None:
        """None is sent again."""
        self.replies_stop()
        while self._since:
            self._since.popitem()[0].failed(reason)

    def _end(self) -> None:
        if self._replies.address is None:
            return
        since, self._since = self._since, {}
        for call in since:
            if not call.done:
                self._send_again(call)
        self._context.flush()
