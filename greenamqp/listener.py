# SPDX-License-Identifier: Apache-2.0
"""What a ``listen()`` returns; the messages that it gives are in ``incoming.py``.

A :class:`Listener` keeps oslo.messaging's two contracts, and one of its own:

* ``poll()`` returns messages, waiting for them if need be;
* after ``start(callback)`` the driver calls back, and no thread polls;
* ``fileno()`` is readable whenever ``poll(timeout=0)`` has messages to return or
  work to do, so that any event loop can wait for any number of listeners.

Whatever was taken is acknowledged or requeued by its consumer, and only then is its
credit given back to the message bus: a slow consumer holds one window and no more.

Methods may be called from any thread or green thread that the hub knows, and from
other native threads, unless they say otherwise.

A signal handler or finalizer that interrupts the driver in its own thread may call all
that does not wait: it is done at the end of that step.  So are ``stop`` and
``cleanup``, which otherwise wait; ``poll`` raises
:class:`greenamqp.hubs.EngagedError`.

After a fork both belong to the parent alone.  In the child a listener's methods raise
:class:`greenamqp.fork.ForkedError`, but for ``stop`` and ``cleanup``, which do nothing
to the parent's; what becomes of a message is for the parent to say, so that the child's
``acknowledge``, ``requeue`` and ``reply`` only log that they did nothing.
"""

from __future__ import annotations

import logging
import os
import select
import typing

from oslo_messaging._drivers import base

from greenamqp import fork, interrupts
from greenamqp.buses import BadMessage, Request
from greenamqp.client import Client, Known, ReceivingLink, Subscription, notices
from greenamqp.engine import (
    ACCEPTED,
    REJECTED,
    RELEASED,
    DecodeError,
    Delivery,
    Received,
    Receiver,
)
from greenamqp.hubs import Countdown, Hub, Steps, Waiter, logs, native
from greenamqp.incoming import Arrival, Incoming
from greenamqp.options import MAX_WAIT

LOG = logging.getLogger(__name__)

# The condition of what is rejected because its sender has given up.
EXPIRED = "greenamqp:expired"

# Characters of an address that replies are wanted at.  No bus makes longer ones; and
# RabbitMQ quotes one that it does not know in a frame, however large that gets, which
# ends the connection.
LONGEST_ADDRESS = 1024

Callback = typing.Callable[[list[base.IncomingMessage]], object]


def _give_back(taken: typing.Sequence[base.IncomingMessage]) -> None:
    """What a signal handler raised came before anybody had these."""
    for message in taken:
        message.requeue()


class _ReadyFd:
    """A descriptor that is readable while a listener's queue holds something.

    Under the blocking hub it is an epoll set that holds the hub's as well, so that a
    foreign loop that waits for it wakes up for everything the library has to do.
    """

    def __init__(self, hub: Hub) -> None:
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._set = False
        self._epoll: typing.Any = None
        hub_fd = getattr(hub, "fileno", None)
        try:
            if hub_fd is not None:
                epoll = native.original("select", "epoll")
                self._epoll = epoll(flags=select.EPOLL_CLOEXEC)
                self._epoll.register(self._eventfd, select.EPOLLIN)
                self._epoll.register(hub_fd(), select.EPOLLIN)
        except BaseException:
            self.close()
            raise
        fork.tell(self)

    def fileno(self) -> int:
        return self._eventfd if self._epoll is None else self._epoll.fileno()

    def show(self, ready: bool) -> None:
        """Be readable, or not.  An eventfd's counter is emptied by one read, however
        often it was written: state and descriptor cannot drift apart."""
        if ready is self._set:
            return
        self._set = ready
        if ready:
            os.eventfd_write(self._eventfd, 1)
        else:
            os.eventfd_read(self._eventfd)

    def close(self) -> None:
        """Idempotent."""
        eventfd, self._eventfd = self._eventfd, -1
        if eventfd >= 0:
            if self._epoll is not None:
                self._epoll.close()
            os.close(eventfd)

    def forked(self) -> None:
        """Close the child's copies, now: a daemon closes all that it has inherited, and
        has other files by these numbers when it calls `close`."""
        self.close()


class Listener(base.Listener):
    """Gives the messages of one subscription.  Made by the driver.

    :param kind: the class of the messages it gives
    :param batch_size: messages given at once, at the most; never above `credit`,
        since no more are unacknowledged at one time
    :param batch_timeout: seconds that a batch which is not full waits for more
    :param credit: messages that it holds unacknowledged, per link
    """

    def __init__(
        self,
        client: Client,
        kind: type[Incoming],
        batch_size: int,
        batch_timeout: float | None,
        credit: int,
    ) -> None:
        super().__init__(max(1, batch_size or 1), batch_timeout, credit)
        self._client = client
        self.hub = client.hub
        self._kind = kind
        self._may_be_foreign = kind.may_be_foreign
        self._has_priority = kind is Incoming
        # No deque: an empty one takes 760 bytes, of each of thousands that idle; and no
        # more is in here than the window.
        self._queue: list[Arrival] = []
        # What was acknowledged of late, where messages say who they are; of requests,
        # what was taken: those that wait for a worker are executed as well, whatever
        # became of their link.  What is sent to all servers is for each listener.
        self._had = Known()
        for known in (self._had, client.calls_had):
            known.provide(self.prefetch_size)
        self._waiters: list[Waiter] = []
        self._ready_fd: _ReadyFd | None = None
        self._stopped = False
        self._closed = False
        self._on_ready: typing.Callable[[], None] | None = None
        # Who runs the callback now, and the timer of a batch that is not full.
        self._deliverer: object = None
        self._batch_ends = Countdown(self.hub)
        self._batch_due = False
        self._subscription: Subscription | None = None
        #: What it is about, for those who observe.
        self.topic: str | None = None
        #: What made it, and is not to be collected before it.
        self.driver: object = None

    # -- for the driver

    def subscribe(
        self, sources: typing.Callable[[typing.Any], list[typing.Any]]
    ) -> Subscription:
        """Begin to receive from `sources`."""
        self._subscription = self._client.subscribe(
            sources, self.prefetch_size, self._arrived
        )
        return self._subscription

    def attaching(self, deadline: float) -> Steps[bool]:
        """Wait until its subscriptions are up, or the monotonic instant `deadline`.
        Returns whether they are.

        :raises NotImplementedError: if the message bus cannot do what is asked
        """
        assert self._subscription is not None
        return self._subscription.attaching(deadline)

    def wait_attached(self, deadline: float) -> bool:
        """As `attaching`, in the calling thread or green thread."""
        return self.hub.do(self.attaching(deadline))

    def _arrived(
        self,
        source: ReceivingLink,
        link: Receiver,
        delivery: Delivery,
        data: memoryview,
    ) -> None:
        """A message came.  Hub's context."""
        try:
            message = link.connection.codec.decode_request(data)
        except DecodeError as exc:
            self._reject(source, link, delivery, None, str(exc))
            return
        settled = link.presettled(delivery)
        arrival = Arrival(self, source, link, delivery, message, settled)
        if source.awaited and not settled and self._is_accepted_on_arrival(message):
            if message.expiry_time and self._is_too_late(source, message):
                source.settle(link, delivery, REJECTED, EXPIRED, "too late")
                return
            source.accept_on_arrival(link, delivery)
            arrival = arrival._replace(delivery=None, settled=True)
        self._enqueue(arrival)

    def _is_too_late(self, source: ReceivingLink, message: Received) -> bool:
        """Whether its sender waits for its outcome no longer; says so."""
        late = self.hub.wall_clock() - message.expiry_time
        if late > 0:
            add = self._client.notices.add
            add(notices.TOO_LATE, address=source.address, late=late)
        return late > 0

    def _is_accepted_on_arrival(self, message: Received) -> bool:
        """Whether the sender is not to wait until a message is worked on, where nothing
        is stored on the way: a cast would fail that is executed later; a notifier would
        send the next one of a batch only when the batch was handed over."""
        if self._kind.may_come_again:
            return bool(self.batch_size > 1)
        return not message.reply_to

    def put_back(self, arrival: Arrival) -> bool:
        """Have a message that is settled come again from here, as the bus will not give
        it again.  Returns whether that can be.  Lock."""
        if self._stopped:
            return False
        self._enqueue(arrival)
        return True

    def _enqueue(self, arrival: Arrival) -> None:
        self._queue.append(arrival)
        if self._ready_fd is not None:
            self._ready_fd.show(True)
        for waiter in self._waiters:
            waiter.wake()
        if self._on_ready is not None:
            if self.batch_size == 1:
                self._on_ready()
            else:
                self._check_ready()

    def _reject(
        self,
        source: ReceivingLink,
        link: Receiver,
        delivery: Delivery,
        message_id: object,
        reason: str,
    ) -> None:
        LOG.error(
            # The peer chose both texts, and how long they are.
            "a message from %s (id %.100s) was rejected: %.500s",
            source.address,
            logs.printable(str(message_id)),
            logs.printable(reason),
        )
        with self.hub.lock:
            source.settle(link, delivery, REJECTED, "amqp:decode-error", reason)

    @property
    def refusal(self) -> str:
        """Why its subscriptions are not up, as far as is known."""
        subscription = self._subscription
        assert subscription is not None
        return (
            subscription.room.context.connection.last_failure
            or subscription.refusal
            or "the message bus has not answered"
        )

    @property
    def unanswered(self) -> bool:
        """Whether its subscriptions are not up as the message bus says nothing, over a
        connection that is up."""
        subscription = self._subscription
        assert subscription is not None
        return not (
            subscription.room.context.connection.last_failure
            or subscription.attached
            or subscription.refusal
        )

    def known(self, reply_to: str | None) -> Known:
        """By what the copies are known of a message that wants its reply there."""
        is_call = reply_to is not None and not self._kind.may_come_again
        return self._client.calls_had if is_call else self._had

    def _drop_copy(self, arrival: Arrival, unique_id: str) -> None:
        LOG.info(
            "a copy of a message from %s that came before (%s) was dropped",
            arrival.source.address,
            unique_id,
        )
        with self.hub.lock:
            arrival.source.settle(arrival.link, arrival.delivery, ACCEPTED)

    # -- taking messages

    def _take(self, limit: int) -> list[base.IncomingMessage]:
        """Up to `limit` messages from the queue; those that are bad are rejected.

        What came over a link that is gone is left out if the bus delivers it again.
        """
        taken: list[Incoming] = []
        arrival: Arrival | None = None
        lock = self.hub.lock
        try:
            while len(taken) < limit:
                with lock:
                    if not self._queue:
                        if self._ready_fd is not None:
                            self._ready_fd.show(False)
                        break
                    arrival = self._queue[0]
                    del self._queue[0]
                message = self._open(arrival)
                # No call from here on: nothing comes between.
                if message is not None:
                    taken += [message]
                arrival = None
        except BaseException as exc:
            # Nobody knows yet of what was taken.
            if arrival is not None and interrupts.struck(exc):
                with lock:
                    self._enqueue(arrival)
            _give_back(taken)
            raise
        if not self._queue and self._ready_fd is not None:
            with lock:
                if not self._queue:
                    self._ready_fd.show(False)
        return taken

    def _open(self, arrival: Arrival) -> Incoming | None:
        """The message; None if there is none for the application in it."""
        if not arrival.link.usable and not arrival.settled:
            return None
        format = arrival.source.format
        parse = format.parse_any if self._may_be_foreign else format.parse_request
        try:
            request = parse(arrival.message)
            # oslo.messaging's dispatcher would fail with the whole batch that it is in.
            if self._has_priority and not isinstance(
                request.message.get("priority", ""), str
            ):
                raise BadMessage("the priority of the notification is not text")
            if len(request.reply_to or "") > LONGEST_ADDRESS:
                request = self._without_reply(arrival, request)
        except BadMessage as exc:
            self._reject(
                arrival.source,
                arrival.link,
                arrival.delivery,
                arrival.message.id,
                str(exc),
            )
            return None
        unique_id = request.unique_id
        if unique_id is None:
            return self._kind(self._client, arrival, request)
        known = self.known(request.reply_to)
        when_taken = not self._kind.may_come_again  # else: when it is acknowledged
        is_copy = True
        try:
            with self.hub.lock:  # another thread may have a copy in its hands
                is_copy = unique_id in known
                if when_taken and not is_copy:
                    known.add(unique_id)
            if not is_copy:
                return self._kind(self._client, arrival, request)
        except BaseException:
            if when_taken and not is_copy:
                known.discard(unique_id)
            raise
        self._drop_copy(arrival, unique_id)
        return None

    def _without_reply(self, arrival: Arrival, request: Request) -> Request:
        """It wants its reply where none can be sent."""
        LOG.warning(
            "a request from %s (id %.100s) gets no reply: the address for it has %s "
            "characters",
            arrival.source.address,
            logs.printable(str(request.id)),
            len(request.reply_to or ""),
        )
        return request._replace(reply_to=None)

    def poll(
        self,
        timeout: float | None = None,
        batch_size: int = 1,
        batch_timeout: float | None = None,
    ) -> list[base.IncomingMessage]:
        """Messages, `batch_size` of them at the most.

        Waits up to `timeout` seconds (None: for ever) for the first one, then up to
        `batch_timeout` seconds (None: as long as `timeout` lasts) for a full batch.
        Returns what there is, perhaps nothing, as soon as the listener is stopped.
        Raises nothing, where it may be called at all.
        """
        hub = self.hub
        hub.check()
        if hub.foreign():
            return hub.run_inside(self.poll, timeout, batch_size, batch_timeout)
        if hub.is_entered() or timeout is None or timeout > 0:
            hub.check_may_wait()
        batch_size = max(1, min(batch_size, self.prefetch_size))
        # Infinity and the like are no time that a native thread can wait for.
        deadline = None if timeout is None else hub.now() + min(MAX_WAIT, timeout)
        taken: list[base.IncomingMessage] = []
        waiter = hub.waiter()
        try:
            with hub.lock:
                self._waiters.append(waiter)
            try:
                while True:
                    first = not taken
                    taken += self._take(batch_size - len(taken))
                    if len(taken) >= batch_size or self._stopped:
                        return taken
                    if first and taken and batch_timeout is not None:
                        deadline = hub.now() + min(MAX_WAIT, batch_timeout)
                    if not waiter.wait(deadline):
                        # What came in the last moment, and in the blocking hub with the
                        # one turn that even a wait of no time makes.
                        taken += self._take(batch_size - len(taken))
                        return taken
            finally:
                with hub.lock:
                    self._waiters.remove(waiter)
        except BaseException:
            _give_back(taken)
            raise

    # -- being told instead of polling

    def attend(self, on_ready: typing.Callable[[], None] | None) -> None:
        """Call `on_ready` in the hub's context whenever `take` has something to
        return; None: no longer.  For executors."""
        self.hub.check()
        with self.hub.lock:
            self._on_ready = on_ready
            if on_ready is not None:
                self._check_ready()

    def take(self) -> tuple[list[base.IncomingMessage], bool]:
        """The next batch, and whether `take` has more to return.  Does not wait.

        A batch that is not full is given when it has waited for batch_timeout.
        """
        hub = self.hub
        if hub.inherited:
            hub.check()
        with hub.lock:
            if not self._is_ready():
                return [], False
            self._batch_due = False
            self._batch_ends.cancel()
        messages = self._take(self.batch_size)
        if not self._queue:
            return messages, False
        with hub.lock:
            more = self._is_ready()
            if not more:
                self._check_ready()
            return messages, more

    def _is_ready(self) -> bool:
        queued = len(self._queue)
        return queued >= self.batch_size or (self._batch_due and queued > 0)

    def _check_ready(self) -> None:
        """Tell who attends, now or when the batch has waited.  Hub's context or
        lock."""
        if self._on_ready is None or not self._queue:
            return
        if self._is_ready():
            self._on_ready()
        elif self.batch_timeout is not None and not self._batch_ends.runs:
            # Without a batch time-out only full batches are given.
            self._batch_ends.call_in(self.batch_timeout, self._batch_timed_out)

    def _batch_timed_out(self) -> None:
        self._batch_due = True
        self._check_ready()

    def start(self, on_incoming_callback: Callback) -> None:
        """Call `on_incoming_callback` with lists of messages from now on.

        It is called in a green thread, or in the hub's own thread, one list at a
        time; it may block only this listener.
        """
        with self.hub.lock:
            super().start(on_incoming_callback)
            self.attend(self._kick)

    def _kick(self) -> None:
        if self._deliverer is None:  # else it looks again before it ends
            self._deliverer = self
            self.hub.deliver(self._deliver)

    def _deliver(self) -> None:
        """Give the callback what there is.  Where it may block."""
        hub = self.hub
        self._deliverer = hub.current()
        try:
            while (callback := self.on_incoming_callback) is not None:
                messages, more = self.take()
                if messages:
                    self._call(callback, messages)
                if not more:
                    break
        finally:
            with hub.lock:
                self._deliverer = None
                for waiter in self._waiters:
                    waiter.wake()
                self._check_ready()

    def _call(self, callback: Callback, messages: list[base.IncomingMessage]) -> None:
        try:
            callback(messages)
        except Exception:
            LOG.exception("the server did not take a message; it is requeued")
            for message in messages:
                message.requeue()

    def stop(self) -> None:
        """Take no more messages.  Once this returns, the callback is not called.

        What was taken can still be acknowledged; what was not goes back to the bus.
        """
        if not self.hub.inherited:
            self.hub.complete(self.stopping())

    def stopping(self) -> Steps[None]:
        """As `stop`."""
        hub = self.hub
        waiter = hub.waiter()
        with hub.lock:
            callback = self.on_incoming_callback
            self._stopped = True
            self._on_ready = None
            super().stop()
            self._batch_ends.cancel()
            if self._subscription is not None:
                self._subscription.stop()
            for other in self._waiters:
                other.wake()
            self._waiters.append(waiter)
        try:
            while self._deliverer not in (None, hub.current()):
                yield waiter, None
        finally:
            with hub.lock:
                self._waiters.remove(waiter)
        if callback is not None:
            self._return_queue(callback)

    def _return_queue(self, callback: Callback) -> None:
        """Release what is in the queue.  What its sender had settled cannot go back,
        so it is still given to the callback."""
        with self.hub.lock:
            queue, self._queue = self._queue, []
            ours = [
                each
                for each in queue
                if each.settled or each.link.is_settled(each.delivery)
            ]
            for each in queue:
                if each not in ours:
                    each.source.settle(each.link, each.delivery, RELEASED)
            self._queue.extend(ours)
        while self._queue:
            messages = self._take(self.batch_size)
            if messages:
                self._call(callback, messages)

    def cleanup(self) -> None:
        """Detach from the bus.  What is unacknowledged goes back to it.  Idempotent.

        The descriptor of fileno() is closed: take it out of every loop before.
        """
        hub = self.hub
        if hub.inherited:
            # Only the child's copies of the descriptors.
            ready_fd, self._ready_fd = self._ready_fd, None
            if ready_fd is not None:
                ready_fd.close()
            return
        hub.complete(self.closing())

    def closing(self) -> Steps[None]:
        """As `cleanup`."""
        yield from self.stopping()
        with self.hub.lock:
            if self._closed:
                return
            self._closed = True
            self._queue.clear()
            if self._subscription is not None:
                self._client.unsubscribe(self._subscription)
            ready_fd, self._ready_fd = self._ready_fd, None
        if ready_fd is not None:
            ready_fd.close()

    def fileno(self) -> int:
        """A descriptor that is readable whenever ``poll(timeout=0)`` has messages to
        return or, under the blocking hub, work to do.

        It is the same from the first call until cleanup(), whatever becomes of the
        connection.  Only wait for it; never read it.

        :raises ValueError: after cleanup()
        """
        self.hub.check()
        with self.hub.lock:
            if self._closed:
                raise ValueError("the listener was cleaned up: it has no descriptor")
            if self._ready_fd is None:
                self._ready_fd = _ReadyFd(self.hub)
                self._ready_fd.show(bool(self._queue))
            return self._ready_fd.fileno()
