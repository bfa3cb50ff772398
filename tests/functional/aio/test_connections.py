# SPDX-License-Identifier: Apache-2.0
"""Connections of a loop: lost and made again, by TLS, and given back."""

import asyncio
import gc
import os
import threading
import warnings

import oslo_messaging
import pytest
from oslo_messaging import Target

import greenamqp
from greenamqp import aio, hubs
from greenamqp.outbox import Store
from greenamqp.outbox.directory import is_free
from tests.functional import leaks, world
from tests.functional.aio.conftest import in_thread
from tests.functional.test_reconnect import EAGER, forwarder, url
from tests.functional.test_tls import authority, front, options

__all__ = ["authority", "forwarder", "front", "url"]  # fixtures

pytestmark = pytest.mark.needs("processes")


class Endpoint:
    async def echo(self, ctxt, value):
        await asyncio.sleep(0)
        return value


async def until_answered(client, value):
    """Calls may fail while the connection is away, but must not for ever."""
    for _ in range(20):
        try:
            return await client.prepare(timeout=5).call({}, "echo", value=value)
        except oslo_messaging.MessagingException:
            continue
    return await client.call({}, "echo", value=value)


def test_a_lost_connection_is_made_again(run, rpc, topic, forwarder, url):
    async def test():
        async with (
            rpc(url=url, options=EAGER) as transport,
            aio.Server(transport) as server,
        ):
            await server.listen(Target(topic=topic, server="s"), [Endpoint()])
            client = aio.RPCClient(transport, Target(topic=topic, server="s"))
            for turn in range(3):
                assert await until_answered(client, turn) == turn
                assert await in_thread(forwarder.cut) >= 1

    run(test)


def test_calls_meanwhile_wait_for_the_connection(run, rpc, topic, forwarder, url):
    async def test():
        async with rpc() as serving, aio.Server(serving) as server:
            await server.listen(Target(topic=topic, server="s"), [Endpoint()])
            async with rpc(url=url, options=EAGER) as transport:
                client = aio.RPCClient(transport, Target(topic=topic, server="s"))
                assert await client.call({}, "echo", value="before") == "before"
                await in_thread(forwarder.refuse)
                await in_thread(forwarder.cut)
                calls = [
                    asyncio.create_task(client.call({}, "echo", value=number))
                    for number in range(20)
                ]
                while greenamqp.is_connected(transport):
                    await asyncio.sleep(0.01)
                await in_thread(forwarder.accept)
                assert await asyncio.gather(*calls) == list(range(20))

    run(test)


@pytest.mark.any_bus
def test_tls(run, rpc, topic, authority, front):
    port = front(cert=authority.issue("127.0.0.1")).port

    async def test():
        trusting = options(ssl_ca_file=authority.ca)
        async with (
            rpc(url=f"amqps://127.0.0.1:{port}", options=trusting) as transport,
            aio.Server(transport) as server,
        ):
            await server.listen(Target(topic=topic, server="s"), [Endpoint()])
            client = aio.RPCClient(transport, Target(topic=topic))
            assert await client.call({}, "echo", value="x" * 2**20) == "x" * 2**20

    run(test)


def test_what_is_cleaned_up_leaves_nothing(run, rpc, topic):
    async def once():
        async with rpc() as transport, aio.Server(transport) as server:
            await server.listen(Target(topic=topic, server="s"), [Endpoint()])
            client = aio.RPCClient(transport, Target(topic=topic))
            assert await client.call({}, "echo", value=1) == 1

    async def test():
        await once()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            await once()
        assert len(os.listdir("/proc/self/fd")) == before

    run(test)


def test_who_forgets_to_clean_up_is_warned(run, topic):
    """And gives all back nevertheless."""
    from oslo_config import cfg

    from tests.functional import buses

    async def test():
        broker = await in_thread(buses.EmbeddedBroker)
        cfg.CONF([])
        transport = oslo_messaging.get_rpc_transport(cfg.CONF, broker.url)
        await aio.RPCClient(transport, Target(topic=topic)).cast({}, "note")
        before = len(os.listdir("/proc/self/fd"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del transport
            gc.collect()
        assert any(each.category is ResourceWarning for each in caught)
        while len(os.listdir("/proc/self/fd")) >= before:
            await asyncio.sleep(0.01)
        await in_thread(broker.stop)

    run(test)


@pytest.mark.parametrize("how", ["here", "in a thread", "in another loop", "forgotten"])
def test_what_outlives_its_loop_lets_go(bus, topic, how):
    if world.current() != "threads":
        pytest.skip("there the loop is eventlet's, and stays")
    transport = oslo_messaging.get_rpc_transport(bus.conf(), url=bus.bus.url)

    async def use():
        await aio.RPCClient(transport, Target(topic=topic)).cast({}, "echo", value=1)

    asyncio.run(use())
    (fd,) = transport._driver.client.hub._watches
    inode = str(os.fstat(fd).st_ino)
    assert inode in leaks.sockets()
    if how == "here":
        transport.cleanup()
    elif how == "in a thread":
        thread = threading.Thread(target=transport.cleanup)
        thread.start()
        thread.join()
    elif how == "in another loop":
        asyncio.run(aio.cleanup(transport))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del transport, use
            gc.collect()
    assert inode not in leaks.sockets()


def test_what_outlives_its_loop_is_closed(bus, topic):
    if world.current() != "threads":
        pytest.skip("there the loop is eventlet's, and stays")
    transport = oslo_messaging.get_rpc_transport(bus.conf(), url=bus.bus.url)

    async def use():
        await aio.RPCClient(transport, Target(topic=topic)).cast({}, "echo", value=1)
        assert greenamqp.is_connected(transport)

    asyncio.run(use())
    assert not greenamqp.is_connected(transport)
    (connection,) = greenamqp.describe(transport)["connections"]
    assert connection["state"] == "closed"
    assert "the asyncio loop that it belongs to is closed" in connection["why_down"]
    assert connection["up_for"] is None and connection["sent"] is None
    transport.cleanup()


@pytest.mark.parametrize("how", ["cleaned up", "not"])
def test_what_waits_outlives_its_loop(bus, topic, tmp_path, how):
    """It is for the next transport, in this process or another."""
    if world.current() != "threads":
        pytest.skip("there the loop is eventlet's, and stays")
    transport = oslo_messaging.get_notification_transport(
        bus.conf(
            options={
                "oslo_messaging_amqp": {
                    "notify_outbox": str(tmp_path / "outbox"),
                    "state_dir": str(tmp_path / "state"),
                }
            }
        ),
        url="amqp://127.0.0.1:1",
    )

    async def use():
        notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
        await notifier.info({}, "event", {})

    async def get_hub():
        assert hubs.get("asyncio") is not transport._driver.client.hub

    asyncio.run(use())
    assert list((tmp_path / "state").iterdir())
    if how == "cleaned up":
        transport.cleanup()
    else:
        asyncio.run(get_hub())
    (path,) = tmp_path.rglob("*.db")
    assert is_free(str(path))
    store = Store(str(path))
    assert store.count == 1
    store.close()
    assert not list((tmp_path / "state").iterdir())
    transport.cleanup()
