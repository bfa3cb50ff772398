# SPDX-License-Identifier: Apache-2.0
"""The serving process: RPC servers and notification listeners that count."""

import functools
import itertools
import select
import threading
import time

import profiler
from bodies import body
from measure import census, mark


class Tally:
    """Which messages have come; numbers count from 0.  For any number of threads.

    :param expected: how many may come: room for more is made when it is needed
    """

    def __init__(self, expected=1 << 16):
        self._seen = bytearray(expected)
        # Touched now, so that memory does not seem to grow with what arrives.
        for page in range(0, expected, 4096):
            self._seen[page] = 0
        self._count = itertools.count()
        self._lock = threading.Lock()
        self.last = 0.0

    def note(self, number):
        """The message of that number came."""
        if number >= len(self._seen):
            with self._lock:
                while number >= len(self._seen):
                    self._seen.extend(bytes(len(self._seen)))
        if self._seen[number] < 255:
            self._seen[number] += 1
        next(self._count)
        self.last = time.monotonic()

    def report(self):
        """How many came, how many different ones, and when the last did."""
        different = len(self._seen) - self._seen.count(0)
        return {
            # itertools.count gives its next number away by this alone.
            "received": self._count.__reduce__()[1][0],
            "different": different,
            "last": self.last,
        }

    def received(self):
        """How many came."""
        return {"received": self._count.__reduce__()[1][0]}


class Endpoint:
    """What RPC clients call."""

    def __init__(self, tally):
        self._tally = tally

    def echo(self, ctxt, body):
        """Give it back."""
        return body

    def note(self, ctxt, number, body):
        """Count it."""
        self._tally.note(number)


class SlowEndpoint(Endpoint):
    """Takes long over each message, until it is let go."""

    def __init__(self, tally, pause):
        super().__init__(tally)
        self._pause = pause
        self.hurry = False

    def note(self, ctxt, number, body):
        """Count it, after a while."""
        if not self.hurry:
            time.sleep(self._pause)
        self._tally.note(number)


class NotificationEndpoint:
    """Counts notifications, one by one."""

    def __init__(self, tally):
        self._tally = tally

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        """Count it."""
        self._tally.note(payload["number"])


class BatchEndpoint:
    """Counts notifications that come in batches."""

    def __init__(self, tally):
        self._tally = tally

    def info(self, messages):
        """Count them."""
        for message in messages:
            self._tally.note(message["payload"]["number"])


def _dispatch(how, dispatcher, incoming):
    """What an executor has a worker do for one message."""
    message = incoming[0]
    if how == "rpc":
        message.acknowledge()
        message.reply(dispatcher.dispatch(message))
    else:
        dispatcher.dispatch(message)
        message.acknowledge()


class Servers:
    """All that one serving process offers.

    :param plan: ``kind`` (rpc, slow, notify, batch), ``targets``, ``pause`` of the
        slow endpoint in seconds, ``expected`` messages, ``attach`` for a loop of our
        own around greenamqp's server
    """

    endpoint = Endpoint
    notification_endpoint = NotificationEndpoint

    def __init__(self, side, plan):
        self._side = side
        self._plan = plan
        self.tally = Tally(plan.get("expected", 1 << 16))
        self.slow = SlowEndpoint(Tally(), plan.get("pause", 0.5))
        self._servers = []
        kind = plan["kind"]
        self._transport = side.transport(
            "rpc" if kind in ("rpc", "slow") else "notification"
        )

    def start(self):
        """Subscribe to everything.  Returns the seconds that took."""
        began = time.monotonic()
        if self._side.server == "own":
            self._start_own()
        else:
            self._start_stock()
        return time.monotonic() - began

    def _listeners(self):
        """(how, target, endpoints) of each thing to listen to."""
        import oslo_messaging

        kind = self._plan["kind"]
        for number in range(self._plan.get("targets", 1)):
            topic = self._side.topic(number)
            if kind in ("rpc", "slow"):
                target = oslo_messaging.Target(topic=topic, server="server")
                yield "rpc", target, [self.endpoint(self.tally)]
            else:
                target = oslo_messaging.Target(topic=topic)
                single = self.notification_endpoint
                endpoint = BatchEndpoint if kind == "batch" else single
                yield kind, target, [endpoint(self.tally)]
        if kind == "slow":
            topic = self._side.topic(number) + "-slow"
            target = oslo_messaging.Target(topic=topic, server="server")
            yield "rpc", target, [self.slow]

    def _start_stock(self):
        import oslo_messaging

        executor = self._side.executor
        for how, target, endpoints in self._listeners():
            if how == "rpc":
                server = oslo_messaging.get_rpc_server(
                    self._transport, target, endpoints, executor=executor
                )
            elif how == "notify":
                server = oslo_messaging.get_notification_listener(
                    self._transport, [target], endpoints, executor=executor
                )
            else:
                server = oslo_messaging.get_batch_notification_listener(
                    self._transport,
                    [target],
                    endpoints,
                    executor=executor,
                    batch_size=self._plan["batch_size"],
                    batch_timeout=self._plan["batch_timeout"],
                )
            server.start()
            self._servers.append(server)

    def _start_own(self):
        if self._side.stack == "nothing":
            self._start_without_executor()
            return
        import greenamqp

        executor = "threading" if self._side.hub == "threads" else self._side.hub
        server = greenamqp.Server(self._transport, executor=executor)
        for how, target, endpoints in self._listeners():
            if how == "rpc":
                server.listen(target, endpoints)
            elif how == "notify":
                server.listen_for_notifications([target], endpoints)
            else:
                server.listen_for_notifications(
                    [target],
                    endpoints,
                    batch_size=self._plan["batch_size"],
                    batch_timeout=self._plan["batch_timeout"],
                )
        self._servers.append(server)
        if self._plan.get("attach"):
            server.attach()
        elif executor != "blocking":
            server.start()

    def _start_without_executor(self):
        """oslo.messaging's dispatchers, called by whoever feeds the listener."""
        from oslo_messaging import RPCDispatcher
        from oslo_messaging.notify import dispatcher as notify_dispatcher

        for how, target, endpoints in self._listeners():
            if how == "rpc":
                dispatcher = RPCDispatcher(endpoints, None)
            else:
                dispatcher = notify_dispatcher.NotificationDispatcher(endpoints, None)
            listener = self._transport._driver.listen(target, 1, None)
            listener.start(functools.partial(_dispatch, how, dispatcher))

    def stop(self):
        """Stop everything and close the connection."""
        for server in self._servers:
            server.stop()
        for server in self._servers:
            server.wait()
        self._transport.cleanup()

    def run(self, control):
        """Start, and serve until the benchmark has enough."""
        seconds = self.start()
        handlers = {
            "mark": lambda: {**mark(), **self.tally.report()},
            "received": self.tally.received,
            "slow": lambda: self.slow._tally.report(),
            "hurry": self._hurry,
            "feed": self._feed,
            "census": census,
            **profiler.commands(),
        }
        control.answer(ready=True, subscribed=seconds, **mark())
        if self._plan.get("attach"):
            self._loop(control, handlers)
        elif self._side.hub == "blocking":
            # The calling thread dispatches; the control's does nothing meanwhile.
            control.serve_in_thread(handlers, self._servers[0].stop)
            self._servers[0].start()
        else:
            control.serve(handlers)
        self.stop()

    def _loop(self, control, handlers):
        """Commands and messages in one thread: the server stands in a loop of ours."""
        server = self._servers[0]
        poll = select.poll()
        poll.register(server.fileno(), select.POLLIN)
        poll.register(control.fileno(), select.POLLIN)
        while True:
            for fd, _events in poll.poll():
                if fd != control.fileno():
                    server.step()
                elif control.serve_one(handlers):
                    return

    def _feed(self, *, load, size, callers, seconds, warmup):
        """One sample of a server whose driver does nothing."""
        listener = self._transport._driver.listeners[0]
        value = body(size)
        listener.feed(load, value, callers, warmup)
        before = mark()
        operations, failures = listener.feed(load, value, callers, seconds)
        return {
            "before": before,
            "after": mark(),
            "operations": operations,
            "failures": failures,
        }

    def _hurry(self, on):
        self.slow.hurry = on
        return {"hurry": on}
