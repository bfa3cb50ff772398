"""Known mistakes, each planted into greenamqp by a context manager: a simulation that
does not find them finds nothing.  ``python -m tests.simulation.planted`` says after how
many runs each is found."""

import concurrent.futures
import itertools
import sys
from unittest import mock

from greenamqp.client.replies import Replies
from greenamqp.client.sending import SendingLink
from greenamqp.connection.failover import Backoff
from greenamqp.connection.pump import BUFFER_SIZE, Pump
from greenamqp.hubs.green import GreenWaiter
from greenamqp.listener import Listener
from tests.simulation.run import Run, plan

MOST = 60


def _nothing(*_args, **_fields):
    """What should be done is not."""


def _write(self, stream):
    anything = False
    while size := self.engine.data_to_send(self._output_pointer, BUFFER_SIZE):
        stream.send(self._output[:size])
        self.engine.data_sent(size)
        anything = True
    return anything


def _writable(self):
    self._watch.want_write(None)
    self.flush()  # it is still marked as one that waits for room


def _wake(self, right=GreenWaiter.wake):
    if self.greenlet is not None:
        right(self)


def _wait(self, deadline, right=GreenWaiter.wait):
    return right(self, None)


PLANTED = {
    "the tail of a write is dropped": lambda: mock.patch.object(
        Pump, "_write", _write
    ),
    "a write that waited for room is not resumed": lambda: mock.patch.object(
        Pump, "_writable", _writable
    ),
    "a wake-up between check and wait is lost": lambda: mock.patch.object(
        GreenWaiter, "wake", _wake
    ),
    "a deadline is forgotten": lambda: mock.patch.object(GreenWaiter, "wait", _wait),
    "a back-off never ends": lambda: mock.patch.object(
        Backoff, "next_pause", lambda self, lasted=None: 1e6
    ),
    "outcomes of a lost connection are not told": lambda: mock.patch.object(
        SendingLink, "connection_lost", _nothing
    ),
    "a call that is over is still expected": lambda: mock.patch.object(
        Replies, "forget", _nothing
    ),
    "a copy of a request is not known": lambda: mock.patch.object(
        Listener, "remember", _nothing
    ),
    "an entry is not withdrawn": lambda: mock.patch.object(
        SendingLink, "withdraw", _nothing
    ),
}


def find(name: str) -> tuple[int, str]:
    """After how many runs a planted mistake is found, and by what; 0: it is not."""
    with PLANTED[name]():
        for number in itertools.count(1):
            if number > MOST:
                return 0, ""
            mistakes = Run(plan(number)).run()
            if mistakes:
                return number, mistakes[0].splitlines()[0]
    raise AssertionError


if __name__ == "__main__":
    names = sys.argv[1:] or list(PLANTED)
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        for name, (number, why) in zip(names, pool.map(find, names), strict=True):
            print(f"{name}: {number or 'not found'}: {why[:90]}", flush=True)
