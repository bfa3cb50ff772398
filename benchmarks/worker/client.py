# SPDX-License-Identifier: Apache-2.0
"""The calling process: any number of callers, each with one operation after another."""

import array
import itertools
import threading
import time

import profiler
from bodies import body
from measure import census, mark, summary

#: Seconds for one operation.  Far more than one takes: what it ends is a failure.
PATIENCE = 30


class WrongAnswer(Exception):
    """A reply that is not what was sent."""


class Client:
    """Runs loads when told to, on one transport that is kept.

    :param plan: ``kind`` as the server's, ``targets``
    """

    def __init__(self, side, plan):
        import oslo_messaging

        self._side = side
        self._plan = plan
        # Messages have numbers, so that the server can tell which are missing.
        self._numbers = itertools.count()
        # Of the numbered ones, so that they are not taken for lost.
        self._failed = 0
        self._slow_sent = 0
        kind = plan["kind"]
        topics = [side.topic(number) for number in range(plan.get("targets", 1))]
        if kind in ("rpc", "slow"):
            self._transport = side.transport("rpc")
            client = self._make_client(
                self._transport, oslo_messaging.Target(topic=topics[0])
            )
            self._clients = [client.prepare(topic=topic) for topic in topics]
            self._slow = client.prepare(topic=topics[-1] + "-slow")
        else:
            self._transport = side.transport("notification")
            self._clients = [
                self._make_notifier(self._transport, topic) for topic in topics
            ]

    def _make_client(self, transport, target):
        import oslo_messaging

        return oslo_messaging.get_rpc_client(transport, target, timeout=PATIENCE)

    def _make_notifier(self, transport, topic):
        import oslo_messaging

        return oslo_messaging.Notifier(
            transport, publisher_id="benchmark", driver="messagingv2", topics=[topic]
        )

    def _operations(self, load, value):
        """What a caller does, one function for each target."""
        if load == "call":
            return [self._call(client, value) for client in self._clients]
        if load == "cast":
            return [_cast(client, self._numbers, value) for client in self._clients]
        return [_notify(client, self._numbers, value) for client in self._clients]

    def _call(self, client, value):
        def operation():
            if client.call({}, "echo", body=value) != value:
                raise WrongAnswer("the reply is not what was sent")

        return operation

    def run(self, control):
        """Serve commands until the benchmark has enough."""
        control.answer(ready=True, **mark())
        control.serve(
            {
                "load": lambda **load: self._load(control, **load),
                "flood": self._flood,
                "once": self._once,
                "mark": mark,
                "census": census,
                **profiler.commands(),
            }
        )
        self._cleanup()

    def _cleanup(self):
        self._transport.cleanup()

    def _run(self, operations, callers, seconds, least=0):
        return _run(operations, callers, seconds, least)

    def _load(self, control, *, load, size, callers, seconds, warmup):
        """One sample: warm up, say so, go when told, report."""
        operations = self._operations(load, body(size))
        failures = self._run(operations, callers, warmup)[1]
        self._failed += len(failures)
        control.answer(warm=True, sent=self._numbered(), failed=self._failed)
        control.read()  # go
        before = mark()
        latencies, failures = self._run(operations, callers, seconds)
        after = mark()
        self._failed += len(failures)
        result = summary(latencies)
        result.update(
            operations=len(latencies),
            before=before,
            after=after,
            sent=self._numbered(),
            failed=self._failed,
            failures=len(failures),
            failure=failures[0] if failures else "",
        )
        return result

    def _numbered(self):
        """How many numbers were given to messages so far."""
        return self._numbers.__reduce__()[1][0]

    def _once(self, *, load):
        """One operation, which may fail."""
        _latencies, failures = self._run(self._operations(load, "")[:1], 1, 0.0, 1)
        self._failed += len(failures)
        return {"well": not failures}

    def _flood(self, *, count, size):
        """Cast `count` messages to the slow target."""
        value = body(size)
        for _ in range(count):
            self._slow.cast({}, "note", number=self._slow_sent, body=value)
            self._slow_sent += 1
        return {"sent": self._slow_sent}


def _cast(client, numbers, value):
    return lambda: client.cast({}, "note", number=next(numbers), body=value)


def _notify(client, numbers, value):
    return lambda: client.info(
        {}, "benchmark", {"number": next(numbers), "body": value}
    )


def rounds(operations, index):
    """What a caller does, for ever: with many targets each goes round all of them,
    from its own start."""
    first = index % len(operations)
    return itertools.cycle(operations[first:] + operations[:first])


def collected(latencies):
    """Those of all callers."""
    return list(itertools.chain.from_iterable(latencies))


def _run(operations, callers, seconds, least=0):
    """Let `callers` green threads or threads work for `seconds`, and each of them do
    `least` operations.

    Returns the latencies of what went well, and the reasons of what did not.
    """
    latencies = [array.array("d") for _ in range(callers)]
    failures = []
    clock = time.monotonic
    until = clock() + seconds

    def caller(index):
        add = latencies[index].append
        mine = rounds(operations, index)
        now = clock()
        done = 0
        while now < until or done < least:
            done += 1
            operation = next(mine)
            try:
                operation()
            except Exception as exc:
                failures.append(f"{type(exc).__name__}: {exc}")
                now = clock()
                continue
            then = clock()
            add(then - now)
            now = then

    if callers == 1:
        # In this thread: one caller is a program that has no others.
        caller(0)
    else:
        threads = [
            threading.Thread(target=caller, args=(index,)) for index in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return collected(latencies), failures
