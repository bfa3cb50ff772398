# SPDX-License-Identifier: Apache-2.0
"""Endpoints that are coroutines, called by stock clients."""

import asyncio
import contextvars
import threading

import oslo_messaging
import pytest
from oslo_messaging import Target
from oslo_messaging.rpc.client import RemoteError

from greenamqp import aio
from tests.functional.aio.conftest import in_thread
from tests.functional.errors import Custom
from tests.functional.harness import WAIT

WHO = contextvars.ContextVar("who", default="nobody")


class Endpoint:
    def __init__(self):
        self.loop_thread = threading.get_ident()
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.at_work = self.most = self.begun = 0

    async def echo(self, ctxt, value):
        await asyncio.sleep(0)
        return value

    def thread(self, ctxt):
        return threading.get_ident() == self.loop_thread

    @aio.in_place
    def here(self, ctxt):
        return threading.get_ident() == self.loop_thread

    async def who(self, ctxt, value):
        before = WHO.get()
        WHO.set(value)
        await asyncio.sleep(0)
        return [before, WHO.get()]

    async def fail(self, ctxt, text):
        raise Custom(text)

    @aio.expected_exceptions(Custom)
    async def expected(self, ctxt, text):
        raise Custom(text)

    def stop_iteration(self, ctxt):
        raise StopIteration

    async def cancelled(self, ctxt):
        raise asyncio.CancelledError

    async def hold(self, ctxt):
        self.begun += 1
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.entered.set()
        await self.gate.wait()
        self.at_work -= 1
        return "held"

    async def _private(self, ctxt):
        return "never"


@pytest.fixture
def serving(run, rpc, topic, unique):
    """Runs ``test(server, endpoint, target)`` with a server that serves."""

    def serving(test, pool_size=None, **options):
        async def body():
            async with rpc() as transport, aio.Server(transport, pool_size) as server:
                endpoint = Endpoint()
                target = Target(topic=topic, server=unique("server"))
                await server.listen(target, [endpoint], **options)
                await test(server, endpoint, target)

        run(body)

    return serving


def test_endpoints_of_each_kind(bus, serving):
    async def test(server, endpoint, target):
        client = bus.client(target)
        assert await in_thread(client.call, {}, "echo", value=[1, "x"]) == [1, "x"]
        assert await in_thread(client.call, {}, "thread") is False
        assert await in_thread(client.call, {}, "here") is True

    serving(test)


def test_each_request_has_a_context_of_its_own(bus, serving):
    async def test(server, endpoint, target):
        WHO.set("the test")
        client = bus.client(target)
        for value in "ab":
            answer = await in_thread(client.call, {}, "who", value=value)
            assert answer == ["nobody", value]

    serving(test)


def test_what_endpoints_raise(bus, serving, caplog):
    async def test(server, endpoint, target):
        transport = bus.rpc_transport(exmods=[Custom.__module__])
        client = bus.client(target, transport)
        for method in ("fail", "expected"):
            with pytest.raises(Custom, match="such a thing"):
                await in_thread(client.call, {}, method, text="such a thing")
        for method in ("stop_iteration", "cancelled", "no_such_method", "_private"):
            with pytest.raises((RemoteError, RuntimeError)):
                await in_thread(client.call, {}, method)
        with pytest.raises(RemoteError, match="UnsupportedVersion"):
            await in_thread(client.prepare(version="2.0").call, {}, "echo", value=1)
        assert await in_thread(client.call, {}, "echo", value=1) == 1

    serving(test)
    (failed,) = [
        each for each in caplog.records if "such a thing" in str(each.exc_info)
    ]
    assert failed.levelname == "ERROR"  # and the expected one is none


def test_versions_and_namespaces(bus, run, rpc, topic, unique):
    class Plain:
        target = Target(version="1.3")

        async def name(self, ctxt):
            return "plain"

    class Spaced(Plain):
        target = Target(namespace="space", version="2.1")

        async def name(self, ctxt):
            return "spaced"

    async def test():
        async with rpc() as transport, aio.Server(transport) as server:
            target = Target(topic=topic, server=unique("server"))
            await server.listen(target, [Plain(), Spaced()])
            client = aio.RPCClient(transport, Target(topic=topic))
            assert await client.prepare(version="1.2").call({}, "name") == "plain"
            spaced = client.prepare(namespace="space", version="2.0")
            assert await spaced.call({}, "name") == "spaced"
            for version in ("1.4", "2.0"):
                with pytest.raises(RemoteError, match="UnsupportedVersion"):
                    await client.prepare(version=version).call({}, "name")

    run(test)


def test_an_access_policy(bus, serving):
    async def test(server, endpoint, target):
        client = bus.client(target)
        with pytest.raises(RemoteError, match="NoSuchMethod"):
            await in_thread(client.call, {}, "echo", value=1)

    serving(test, access_policy=oslo_messaging.ExplicitRPCAccessPolicy)


def test_so_many_are_served_at_a_time(bus, serving):
    async def test(server, endpoint, target):
        client = bus.client(target)
        calls = [in_thread(client.call, {}, "hold") for _ in range(5)]
        while endpoint.begun < 2:
            await endpoint.entered.wait()
            await asyncio.sleep(0)
        # What comes beyond does not keep others of the loop waiting.
        assert await in_thread(lambda: "free") == "free"
        endpoint.gate.set()
        assert await asyncio.gather(*calls) == ["held"] * 5
        assert endpoint.most == 2

    serving(test, pool_size=2)


def test_stop_waits_for_what_is_served(bus, serving):
    async def test(server, endpoint, target):
        call = in_thread(bus.client(target).call, {}, "hold")
        await endpoint.entered.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        assert not stopping.done()
        with pytest.raises(RuntimeError, match="is being stopped"):
            await server.listen(target(server="late"), [])
        endpoint.gate.set()
        await stopping
        assert await call == "held"
        await server.stop()

    serving(test)


def test_an_endpoint_may_stop_its_own_subscription(bus, run, rpc, topic, unique):
    async def test():
        async with rpc() as transport, aio.Server(transport) as server:
            target = Target(topic=topic, server=unique("server"))
            handles = []

            class Stopping:
                async def stop(self, ctxt):
                    await handles[0].stop()
                    return "stopped"

            handles.append(await server.listen(target, [Stopping()]))
            assert "RPC" in repr(handles[0])
            assert await in_thread(bus.client(target).call, {}, "stop") == "stopped"
            await handles[0].stop()

    run(test)


@pytest.mark.needs("call_monitor")
def test_heartbeats_while_a_coroutine_awaits(bus, serving):
    async def test(server, endpoint, target):
        client = bus.client(target, call_monitor_timeout=2)
        call = in_thread(client.call, {}, "hold")
        await endpoint.entered.wait()
        beats = []
        # Twice the caller's patience.
        async with asyncio.timeout(WAIT):
            while len(beats) < 40:
                beats.append(await asyncio.sleep(0.1))
        endpoint.gate.set()
        assert await call == "held"

    serving(test)


def test_endpoints_call_each_other_over_one_transport(run, rpc, topic, unique):
    async def test():
        async with rpc() as transport, aio.Server(transport) as server:
            client = aio.RPCClient(transport, Target(topic=topic))
            stock = oslo_messaging.get_rpc_client(transport, Target(topic=topic))

            class Chain:
                async def down(self, ctxt, depth):
                    if not depth:
                        return 0
                    return 1 + await client.call(ctxt, "up", depth=depth - 1)

                def up(self, ctxt, depth):
                    # A plain method, in a thread, calls as it always did.
                    return 1 + stock.call(ctxt, "down", depth=depth)

            await server.listen(Target(topic=topic, server=unique("s")), [Chain()])
            assert await client.call({}, "down", depth=2) == 4

    run(test)


def test_many_targets_and_transports(run, rpc, unique):
    async def test():
        async with rpc() as one, rpc() as other, aio.Server(one) as server:
            for number in range(20):

                class Who:
                    async def who(self, ctxt, number=number):
                        return number

                await server.listen(
                    Target(topic=topics[number], server="s"),
                    [Who()],
                    transport=other if number % 2 else None,
                )
            client = aio.RPCClient(one, Target())
            calls = [client.prepare(topic=topic).call({}, "who") for topic in topics]
            assert await asyncio.gather(*calls) == list(range(20))

    topics = [unique() for _ in range(20)]
    run(test)


def test_what_a_server_refuses(run, rpc, topic):
    async def test():
        async with rpc() as transport:
            with pytest.raises(ValueError, match="pool of 0"):
                aio.Server(transport, 0)
            async with aio.Server(transport) as server:
                with pytest.raises(oslo_messaging.InvalidTarget, match="server"):
                    await server.listen(Target(topic=topic), [Endpoint()])
                with pytest.raises(oslo_messaging.InvalidTarget, match="topic"):
                    await server.listen_for_notifications([Target()], [Endpoint()])

    run(test)
