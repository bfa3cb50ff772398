"""Known mistakes, each planted into greenamqp by a context manager: a simulation that
does not find them finds nothing.  ``python -m tests.simulation.planted`` says after how
many runs each is found."""

import concurrent.futures
import contextlib
import os
import sys
from unittest import mock

from greenamqp.client.client import Client
from greenamqp.client.copies import Known
from greenamqp.client.receiving import ReceivingLink
from greenamqp.client.replies import Replies
from greenamqp.client.sending import SendingLink
from greenamqp.client.wanted import Phase, WantedLink
from greenamqp.client.watchdog import Watchdog
from greenamqp.connection.failover import Backoff
from greenamqp.connection.pump import BUFFER_SIZE, Pump
from greenamqp.driver import GreenAMQPDriver
from greenamqp.engine import Connection
from greenamqp.hubs.base import Hub
from greenamqp.hubs.green import GreenWaiter
from tests.simulation.run import Run, plan
from tests.simulation.world import SimWatch

MOST = 2000


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


def _receive_data(self, data, size, right=Connection.receive_data):
    right(self, data, min(size, 2000))
    return size


def _turn(self, right=SimWatch.turn):
    right(self)
    self.hub.not_ready(self)  # there may be more to be read


def _wake(self, right=GreenWaiter.wake):
    if self.greenlet is not None:
        right(self)


def _wait(self, deadline, right=GreenWaiter.wait):
    return right(self, None)


def _message(
    self,
    link,
    delivery,
    data,
    right=ReceivingLink._message,
    give_back=ReceivingLink.give_back,
):
    give_back(self, link)
    right(self, link, delivery, data)


@contextlib.contextmanager
def _on_arrival():
    """Credit goes back as soon as a message comes, and not when it is done with."""
    with (
        mock.patch.object(ReceivingLink, "_message", _message),
        mock.patch.object(ReceivingLink, "give_back", _nothing),
    ):
        yield


class _Settled:
    """A link whose delivery is settled already."""

    def __init__(self, link):
        self.connection = link.connection

    settle = _nothing


def _reply(self, link, delivery, data, right=Replies._message, held={}):  # noqa: B006
    link.settle(delivery)
    # It is handed over when it is convenient: with the next one.
    before = held.pop(self, None)
    held[self] = (_Settled(link), None, bytes(data))
    if before is not None:
        right(self, *before)


def _leave(self, entry, right=Client._leave):
    if isinstance(sys.exception(), Exception | None):
        return right(self, entry)
    return False  # whoever waited was killed


def _went_down(self, right=WantedLink.went_down):
    if self.phase is Phase.DECLARING:
        self.link = None
        return None
    return right(self)


def _give_up(self, late, right=Watchdog._give_up):
    right(self, {link: late[link] for link in late if not link.alone})


def _patch(place, name, planted):
    return lambda: mock.patch.object(place, name, planted)


PLANTED = {
    "a link that is alone is never left again": _patch(Watchdog, "_give_up", _give_up),
    "credit is given back on arrival": _on_arrival,
    "a ready descriptor is cleared too early": _patch(SimWatch, "turn", _turn),
    "a wake-up between check and wait is lost": _patch(GreenWaiter, "wake", _wake),
    "the tail of a read is dropped": _patch(Connection, "receive_data", _receive_data),
    "an entry is not withdrawn on a kill": _patch(Client, "_leave", _leave),
    "a reply is settled before it is handed over": _patch(Replies, "_message", _reply),
    "a back-off never ends": _patch(
        Backoff, "next_pause", lambda self, lasted=None, refused=False: 1e6
    ),
    "a subscription is not restored when the connection dies while declaring": _patch(
        WantedLink, "went_down", _went_down
    ),
    "a timer survives its owner": _patch(Watchdog, "stop", _nothing),
    "the tail of a write is dropped": _patch(Pump, "_write", _write),
    "a write that waited for room is not resumed": _patch(Pump, "_writable", _writable),
    "a deadline is forgotten": _patch(GreenWaiter, "wait", _wait),
    "outcomes of a lost connection are not told": _patch(
        SendingLink, "connection_lost", _nothing
    ),
    "a call that is over is still expected": _patch(Replies, "forget", _nothing),
    "a copy of a request is not known": _patch(Known, "add", _nothing),
    "a child has its parent's client": _patch(GreenAMQPDriver, "forked", _nothing),
    "a child has its parent's connection": _patch(Hub, "_let_go", _nothing),
    "what waits is not withdrawn": _patch(SendingLink, "withdraw", _nothing),
}


def find(name: str, most: int = MOST) -> tuple[int, str]:
    """After how many runs a planted mistake is found, and by what; 0: it is not."""
    with PLANTED[name]():
        for number in range(1, most + 1):
            mistakes = Run(plan(number)).run()
            if mistakes:
                return number, mistakes[0].splitlines()[0]
    return 0, ""


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [*sys.orig_argv])
    names = sys.argv[1:] or list(PLANTED)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for name, (number, why) in zip(names, pool.map(find, names), strict=True):
            print(f"{name}: {number or 'not found'}: {why[:90]}", flush=True)
