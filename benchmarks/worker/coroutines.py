# SPDX-License-Identifier: Apache-2.0
"""Both processes where callers and endpoints are coroutines, in asyncio or uvloop."""

import array
import asyncio
import time

import profiler
from client import PATIENCE, Client, WrongAnswer, collected, rounds
from measure import census, mark
from server import Servers


def runner(hub):
    """A runner with the loop of that name."""
    factory = None
    if hub == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    return asyncio.Runner(loop_factory=factory)


class CoroutineClient(Client):
    """As Client, with tasks for callers."""

    def __init__(self, side, plan):
        super().__init__(side, plan)
        self._runner = runner(side.hub)

    def _make_client(self, transport, target):
        from greenamqp import aio

        return aio.RPCClient(transport, target, timeout=PATIENCE)

    def _make_notifier(self, transport, topic):
        from greenamqp import aio

        return aio.Notifier(transport, "benchmark", "messagingv2", topics=[topic])

    def _call(self, client, value):
        async def operation():
            if await client.call({}, "echo", body=value) != value:
                raise WrongAnswer("the reply is not what was sent")

        return operation

    def _run(self, operations, callers, seconds, least=0):
        return self._runner.run(_run(operations, callers, seconds, least))

    def _cleanup(self):
        from greenamqp import aio

        with self._runner as loop:
            loop.run(aio.cleanup(self._transport))


async def _run(operations, callers, seconds, least):
    latencies = [array.array("d") for _ in range(callers)]
    failures = []
    clock = time.monotonic
    until = clock() + seconds

    async def caller(index):
        add = latencies[index].append
        mine = rounds(operations, index)
        now = clock()
        done = 0
        while now < until or done < least:
            done += 1
            operation = next(mine)
            try:
                await operation()
            except Exception as exc:
                failures.append(f"{type(exc).__name__}: {exc}")
                now = clock()
                continue
            then = clock()
            add(then - now)
            now = then

    await asyncio.gather(*map(caller, range(callers)))
    return collected(latencies), failures


class CoroutineEndpoint:
    """What RPC clients call, and notifiers."""

    def __init__(self, tally):
        self._tally = tally

    async def echo(self, ctxt, body):
        """Give it back."""
        return body

    async def note(self, ctxt, number, body):
        """Count it."""
        self._tally.note(number)


class CoroutineNotificationEndpoint:
    """Counts notifications."""

    def __init__(self, tally):
        self._tally = tally

    async def info(self, ctxt, publisher_id, event_type, payload, metadata):
        """Count it."""
        self._tally.note(payload["number"])


class CoroutineServers(Servers):
    """As Servers, of RPC and single notifications."""

    endpoint = CoroutineEndpoint
    notification_endpoint = CoroutineNotificationEndpoint

    def run(self, control):
        with runner(self._side.hub) as loop:
            loop.run(self._serve(control))

    async def _serve(self, control):
        from greenamqp import aio

        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with aio.closing(self._transport), aio.Server(self._transport) as server:
            began = time.monotonic()
            for how, target, endpoints in self._listeners():
                if how == "rpc":
                    await server.listen(target, endpoints)
                else:
                    await server.listen_for_notifications([target], endpoints)
            seconds = time.monotonic() - began
            handlers = {
                "mark": lambda: {**mark(), **self.tally.report()},
                "received": self.tally.received,
                "census": census,
                **profiler.commands(),
            }
            control.answer(ready=True, subscribed=seconds, **mark())
            control.serve_in_thread(
                handlers, lambda: loop.call_soon_threadsafe(over.set)
            )
            await over.wait()
