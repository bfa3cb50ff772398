# SPDX-License-Identifier: Apache-2.0
"""One side of a conversation, as a program that either environment can run.

It knows oslo.messaging alone.  ``python party.py`` reads one JSON object per line and
answers each with one line: ``{"ok": VALUE}`` or ``{"error": ...}``.  ``python party.py
coroutines`` does the same by greenamqp.aio, in a loop of its own.  Commands:

``open``      url, conf_file: which transport to use; says what driver it got
``serve``     topic, server, exchange: start an RPC server
``listen``    topics, pool, exchange: start a notification listener
``call``, ``cast``   target, method, arguments, context, timeout, monitor, retry
``notify``    topic, event, payload, context, driver
``events``    all that the endpoints were given so far
``close``     stop servers, clean the transport up
"""

import asyncio
import json
import sys
import threading
import time
import traceback
import warnings

warnings.simplefilter("ignore")

import interop_errors  # noqa: E402
import oslo_messaging  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_messaging import Target  # noqa: E402


class Events:
    def __init__(self):
        self._lock = threading.Lock()
        self._items = []

    def add(self, *item):
        with self._lock:
            self._items.append(item)

    def all(self):
        with self._lock:
            return list(self._items)


class Endpoint:
    def __init__(self, name, events):
        self._name = name
        self._events = events
        self._gate = threading.Event()

    def echo(self, ctxt, value):
        self._events.add("echo", ctxt, value)
        return value

    def context(self, ctxt):
        return ctxt

    def name(self, ctxt):
        return self._name

    def nothing(self, ctxt):
        return None

    def slow(self, ctxt, seconds):
        self._events.add("slow")
        time.sleep(seconds)
        return "done"

    def hold(self, ctxt):
        self._events.add("hold")
        self._gate.wait()

    def allowed(self, ctxt, text):
        raise interop_errors.Allowed(text)

    def structured(self, ctxt):
        raise interop_errors.Structured(42, reason="because")

    def builtin(self, ctxt, text):
        raise ValueError(text)

    @oslo_messaging.expected_exceptions(interop_errors.Allowed)
    def expected(self, ctxt, text):
        raise interop_errors.Allowed(text)


class Notified:
    """Requeues an event named ``again`` when it comes for the first time."""

    def __init__(self, events):
        self._events = events
        self._seen = set()

    def info(self, ctxt, publisher, event_type, payload, metadata):
        return self._take("info", ctxt, publisher, event_type, payload)

    def error(self, ctxt, publisher, event_type, payload, metadata):
        return self._take("error", ctxt, publisher, event_type, payload)

    def _take(self, priority, ctxt, publisher, event_type, payload):
        self._events.add(priority, ctxt, publisher, event_type, payload)
        if event_type.startswith("again") and event_type not in self._seen:
            self._seen.add(event_type)
            return oslo_messaging.NotificationResult.REQUEUE
        return oslo_messaging.NotificationResult.HANDLED


class Party:
    def __init__(self):
        self.conf = cfg.CONF
        self.events = Events()
        self.servers = []
        self.rpc = self.notifications = None

    def open(self, url, conf_file, exmods=()):
        self.conf([], default_config_files=[conf_file], default_config_dirs=[])
        self.rpc = oslo_messaging.get_rpc_transport(
            self.conf, url, allowed_remote_exmods=list(exmods)
        )
        self.notifications = oslo_messaging.get_notification_transport(self.conf, url)
        return type(self.rpc._driver).__module__

    def serve(self, topic, server, exchange=None):
        target = Target(topic=topic, server=server, exchange=exchange)
        made = oslo_messaging.get_rpc_server(
            self.rpc, target, [Endpoint(server, self.events)], executor="threading"
        )
        made.start()
        self.servers.append(made)

    def listen(self, topics, pool=None, exchange=None):
        made = oslo_messaging.get_notification_listener(
            self.notifications,
            [Target(topic=topic, exchange=exchange) for topic in topics],
            [Notified(self.events)],
            executor="threading",
            allow_requeue=True,
            pool=pool,
        )
        made.start()
        self.servers.append(made)

    def _client(self, target, timeout=None, monitor=None, retry=None):
        return oslo_messaging.get_rpc_client(
            self.rpc,
            Target(**target),
            timeout=timeout,
            call_monitor_timeout=monitor,
            retry=retry,
        )

    def call(self, target, method, arguments=None, context=None, **options):
        client = self._client(target, **options)
        return client.call(context or {}, method, **(arguments or {}))

    def cast(self, target, method, arguments=None, context=None, **options):
        client = self._client(target, **options)
        client.cast(context or {}, method, **(arguments or {}))

    def notify(
        self, topic, event, payload, context=None, driver="messagingv2", level="info"
    ):
        notifier = oslo_messaging.Notifier(
            self.notifications, "publisher", driver=driver, topics=[topic], retry=9
        )
        getattr(notifier, level)(context or {}, event, payload)

    def close(self):
        for server in self.servers:
            server.stop()
        for server in self.servers:
            server.wait()
        for transport in (self.rpc, self.notifications):
            transport.cleanup()

    def answer(self, line):
        command = json.loads(line)
        name = command.pop("do")
        try:
            if name == "events":
                return {"ok": self.events.all()}
            return {"ok": getattr(self, name)(**command)}
        except Exception as exc:
            kind = type(exc)
            traceback.print_exc()
            return {
                "error": kind.__name__,
                "module": kind.__module__,
                "bases": [base.__name__ for base in kind.__mro__],
                "text": str(exc),
                "code": getattr(exc, "code", None),
            }


class Coroutines(Party):
    """As Party, in the loop of a thread; endpoints' methods run in further ones."""

    def __init__(self):
        super().__init__()
        from greenamqp import aio

        self._aio = aio
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def _do(self, awaitable):
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result()

    def serve(self, topic, server, exchange=None):
        target = Target(topic=topic, server=server, exchange=exchange)
        made = self._aio.Server(self.rpc)
        self._do(made.listen(target, [Endpoint(server, self.events)]))
        self.servers.append(made)

    def listen(self, topics, pool=None, exchange=None):
        targets = [Target(topic=topic, exchange=exchange) for topic in topics]
        endpoints = [Notified(self.events)]
        made = self._aio.Server(self.notifications)
        self._do(
            made.listen_for_notifications(
                targets, endpoints, pool=pool, allow_requeue=True
            )
        )
        self.servers.append(made)

    def _client(self, target, timeout=None, monitor=None, retry=None):
        return self._aio.RPCClient(
            self.rpc,
            Target(**target),
            timeout=timeout,
            call_monitor_timeout=monitor,
            retry=retry,
        )

    def call(self, *args, **kwargs):
        return self._do(super().call(*args, **kwargs))

    def cast(self, target, method, arguments=None, context=None, **options):
        client = self._client(target, **options)
        self._do(client.cast(context or {}, method, **(arguments or {})))

    def notify(
        self, topic, event, payload, context=None, driver="messagingv2", level="info"
    ):
        notifier = self._aio.Notifier(
            self.notifications, "publisher", driver=driver, topics=[topic], retry=9
        )
        self._do(getattr(notifier, level)(context or {}, event, payload))

    def close(self):
        for server in self.servers:
            self._do(server.stop())
        for transport in (self.rpc, self.notifications):
            self._do(self._aio.cleanup(transport))


def main():
    party = Coroutines() if sys.argv[1:] == ["coroutines"] else Party()
    for line in sys.stdin:
        print(json.dumps(party.answer(line)), flush=True)


if __name__ == "__main__":
    main()
