# SPDX-License-Identifier: Apache-2.0
"""RPC calls and casts that are awaited, to stock servers."""

import asyncio
import random
import threading

import oslo_messaging
import pytest
from oslo_messaging import Target
from oslo_messaging.rpc.client import RemoteError

import greenamqp
from greenamqp import aio
from tests.functional import world
from tests.functional.aio.conftest import in_thread, others
from tests.functional.errors import Custom
from tests.functional.harness import WAIT, Gate, Recorder
from tests.functional.test_call import VALUES


class Endpoint:
    target = Target(version="1.1")

    def __init__(self):
        self.seen = Recorder()

    def echo(self, ctxt, value):
        self.seen.add((ctxt, value))
        return value

    def fail(self, ctxt, text):
        raise Custom(text)

    def stop_iteration(self, ctxt):
        raise StopIteration("of the server")


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def target(bus, topic, unique, endpoint):
    """Where a stock server listens."""
    bus.server(endpoint, Target(topic=topic, server=unique("server")))
    return Target(topic=topic)


def nothing_waits(transport):
    (connection,) = greenamqp.describe(transport)["connections"]
    return connection["unanswered_calls"] == 0 and not any(
        sender["pending"] or sender["unsettled"] for sender in connection["senders"]
    )


def test_values_come_back_as_they_are(run, rpc, target):
    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, target)
            for value in VALUES:
                answer = await client.call({}, "echo", value=value)
                assert answer == value
                assert type(answer) is type(value)

    run(test)


def test_many_calls_at_a_time(run, rpc, target):
    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, target, timeout=WAIT)
            answers = await asyncio.gather(
                *(client.call({}, "echo", value=number) for number in range(1000))
            )
            assert answers == list(range(1000))
            assert nothing_waits(transport)

    run(test)


def test_casts_and_contexts(run, rpc, target, endpoint):
    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, target)
            await client.cast({"who": "me"}, "echo", value=1)
            await client.prepare(fanout=True).cast({}, "echo", value=2)

    run(test)
    seen = endpoint.seen.wait(2)
    assert sorted(value for _, value in seen) == [1, 2]
    assert next(ctxt["who"] for ctxt, value in seen if value == 1) == "me"


def test_what_the_server_raises(run, rpc, target):
    async def test():
        async with rpc(exmods=[Custom.__module__]) as transport:
            client = aio.RPCClient(transport, target)
            with pytest.raises(Custom, match="such a thing"):
                await client.call({}, "fail", text="such a thing")
            with pytest.raises(RuntimeError):  # as no coroutine can raise it
                await client.call({}, "stop_iteration")
        async with rpc() as transport:
            client = aio.RPCClient(transport, target)
            with pytest.raises(RemoteError, match="such a thing"):
                await client.call({}, "fail", text="such a thing")
            with pytest.raises(RemoteError):
                await client.call({}, "no_such_method")

    run(test)


@pytest.mark.needs("mandatory")
def test_a_request_to_nobody_may_fail_at_once(run, rpc, unique):
    options = oslo_messaging.TransportOptions(at_least_once=True)

    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, Target(topic=unique("nobody")))
            client = client.prepare(transport_options=options)
            with pytest.raises(oslo_messaging.MessageUndeliverable):
                await client.call({}, "echo", value=1)
            with pytest.raises(oslo_messaging.MessageUndeliverable):
                await client.cast({}, "echo", value=1)

    run(test)


def test_retries_are_taken(run, rpc, target):
    async def test():
        async with rpc() as transport:
            for retry in (None, -1, 0, 3):
                client = aio.RPCClient(transport, target, retry=retry, timeout=WAIT)
                assert await client.call({}, "echo", value=retry) == retry

    run(test)


def test_nothing_is_sent_that_cannot_be(run, rpc, target, endpoint):
    circular = []
    circular.append(circular)

    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, target(version="1.1"), version_cap="1.1")
            assert client.can_send_version("1.0")
            assert not client.can_send_version("1.2")
            with pytest.raises(oslo_messaging.RPCVersionCapError):
                await client.prepare(version="1.2").call({}, "echo", value=1)
            with pytest.raises(oslo_messaging.MessagingException, match="nonsense"):
                client.prepare(version="nonsense")
            with pytest.raises(oslo_messaging.InvalidTarget, match="fanout"):
                await client.prepare(fanout=True).call({}, "echo", value=1)
            with pytest.raises(oslo_messaging.InvalidTarget, match="topic"):
                await aio.RPCClient(transport, Target()).cast({}, "echo", value=1)
            with pytest.raises(ValueError, match="[Cc]ircular"):
                await client.call({}, "echo", value=circular)
            assert await client.call({}, "echo", value="after") == "after"

    run(test)
    assert [value for _, value in endpoint.seen.items] == ["after"]


def test_a_serializer(run, rpc, target):
    class Doubling(oslo_messaging.NoOpSerializer):
        def serialize_entity(self, ctxt, entity):
            return entity * 2

        def deserialize_entity(self, ctxt, entity):
            return entity + ctxt["more"]

    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, target, serializer=Doubling())
            assert await client.call({"more": 1}, "echo", value=20) == 41

    run(test)


@pytest.mark.needs("ttl")
def test_time_outs(run, rpc, target, unique):
    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, target)
            nobody = client.prepare(server=unique("nobody"), timeout=1)
            with pytest.raises(oslo_messaging.MessagingTimeout):
                await nobody.call({}, "echo", value=1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await nobody.prepare(timeout=WAIT).call({}, "echo", value=1)
            assert await client.call({}, "echo", value=2) == 2
            assert nothing_waits(transport)

    run(test)


@pytest.mark.needs("call_monitor", "ttl")
def test_that_nobody_works_on_a_call_is_noticed(run, rpc, target, unique):
    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(
                transport, target, timeout=WAIT, call_monitor_timeout=1
            )
            with pytest.raises(oslo_messaging.MessagingTimeout):
                await client.prepare(server=unique("nobody")).call({}, "echo", value=1)
            assert await client.call({}, "echo", value=2) == 2
            assert nothing_waits(transport)

    run(test)


@pytest.mark.needs("call_monitor")
def test_heartbeats_keep_a_long_call_alive(run, bus, rpc, topic, unique):
    gate = Gate()

    class Slow:
        def hold(self, ctxt):
            gate.enter()
            return "held"

    bus.server(Slow(), Target(topic=topic, server=unique("server")))

    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, Target(topic=topic), timeout=WAIT)
            client = client.prepare(call_monitor_timeout=2)
            held = asyncio.create_task(client.call({}, "hold"))
            await in_thread(gate.wait_entered)
            # Twice its patience.
            done, _ = await asyncio.wait([held], timeout=4)
            assert not done
            gate.open()
            assert await held == "held"

    run(test)


def test_a_late_reply_is_nobodys(run, bus, rpc, topic, unique):
    gate = Gate()

    class Slow(Endpoint):
        def hold(self, ctxt):
            gate.enter()
            return "too late"

    bus.server(Slow(), Target(topic=topic, server=unique("server")))

    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, Target(topic=topic))
            held = asyncio.create_task(client.call({}, "hold"))
            await in_thread(gate.wait_entered)
            held.cancel()
            with pytest.raises(asyncio.CancelledError):
                await held
            gate.open()
            for number in range(10):
                assert await client.call({}, "echo", value=number) == number
            assert nothing_waits(transport)

    run(test)


def test_calls_that_are_cancelled_at_any_moment(run, rpc, target):
    """Half of 10,000; the others get their own replies, and nothing is left."""
    rng = random.Random(4)

    async def test():
        async with rpc() as transport:
            client = aio.RPCClient(transport, target, timeout=WAIT)
            loop = asyncio.get_running_loop()
            for _ in range(50):
                calls = [
                    asyncio.create_task(client.call({}, "echo", value=number))
                    for number in range(200)
                ]
                for call in calls[::2]:
                    loop.call_later(rng.random() * 0.2, call.cancel)
                answers = await asyncio.gather(*calls, return_exceptions=True)
                for number, answer in enumerate(answers):
                    if number % 2 or not isinstance(answer, asyncio.CancelledError):
                        assert answer == number
            assert await client.call({}, "echo", value="after") == "after"
            assert nothing_waits(transport)

    run(test, patience=10 * WAIT)


def test_who_blocks_the_loop_is_refused(run, rpc, target):
    async def test():
        async with rpc() as transport:
            assert await aio.RPCClient(transport, target).call({}, "echo", value=1) == 1
            stock = oslo_messaging.get_rpc_client(transport, target)
            with pytest.raises(oslo_messaging.MessageDeliveryFailure, match="aio"):
                stock.call({}, "echo", value=2)
            # A thread may wait.
            assert await in_thread(stock.call, {}, "echo", value=3) == 3

    run(test)


@pytest.mark.skipif(
    world.is_green(), reason="green threads and coroutines of one loop share transports"
)
def test_a_transport_belongs_to_its_loop(run, bus, target):
    transport = bus.rpc_transport()
    other = bus.rpc_transport()
    assert bus.client(target, other).call({}, "echo", value=1) == 1

    async def call(transport, value):
        return await aio.RPCClient(transport, target).call({}, "echo", value=value)

    async def test():
        assert await call(transport, 2) == 2
        with pytest.raises(RuntimeError, match="threads hub"):
            await call(other, 3)
        failed = []

        def elsewhere():
            try:
                asyncio.run(call(transport, 4))
            except RuntimeError as exc:
                failed.append(str(exc))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await in_thread(thread.join)
        assert "another asyncio loop" in failed[0]
        await aio.cleanup(transport)
        await aio.cleanup(transport)
        # It may be used again afterwards.
        assert await call(transport, 5) == 5
        await aio.cleanup(transport)

    run(test)


def test_cleanup_in_the_loop_does_not_wait(run, bus, target):
    async def test():
        transport = bus.rpc_transport()
        assert await aio.RPCClient(transport, target).call({}, "echo", value=1) == 1
        transport.cleanup()
        while others():
            await asyncio.sleep(0)

    run(test)
