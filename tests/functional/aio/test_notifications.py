# SPDX-License-Identifier: Apache-2.0
"""Notifications, sent and received by coroutines, and by stock peers."""

import asyncio

import pytest
from oslo_messaging import Target

import greenamqp
from greenamqp import aio
from tests.functional.aio.conftest import in_thread
from tests.functional.harness import Notified, Recorder

pytestmark = pytest.mark.needs("store")

PRIORITIES = (
    *("audit", "debug", "info", "warn", "warning", "error", "critical", "sample"),
)


class Collecting:
    """An endpoint whose methods are coroutines."""

    def __init__(self, wanted, answer=lambda number: None):
        self._wanted = wanted
        self._answer = answer
        self.numbers = []
        self.all = asyncio.Event()

    async def info(self, ctxt, publisher, event_type, payload, metadata):
        await asyncio.sleep(0)
        number = payload["number"]
        answer = self._answer(number)
        if answer is None:
            self.numbers.append(number)
            if len(self.numbers) == self._wanted:
                self.all.set()
        return answer


async def notify(notifier, count):
    await asyncio.gather(
        *(notifier.info({}, "event", {"number": number}) for number in range(count))
    )


def test_to_a_stock_listener(bus, run, notifications, topic):
    seen = Notified()
    bus.listener(seen, [Target(topic=topic)])

    async def test():
        async with notifications() as transport:
            notifier = aio.Notifier(transport, "me", "messaging", topics=[topic])
            for priority in PRIORITIES:
                await getattr(notifier, priority)({}, f"e.{priority}", {"a": 1})

    run(test)
    found = seen.got.wait(8)
    assert sorted((each[0], each[2]) for each in found) == sorted(
        (priority.replace("warning", "warn"), f"e.{priority}")
        for priority in PRIORITIES
    )


def test_from_a_stock_notifier(bus, run, notifications, topic):
    async def test():
        async with notifications() as transport, aio.Server(transport) as server:
            endpoint = Collecting(50)
            await server.listen_for_notifications([Target(topic=topic)], [endpoint])
            notifier = bus.notifier(topics=[topic])
            for number in range(50):
                await in_thread(notifier.info, {}, "event", {"number": number})
            await endpoint.all.wait()
            assert sorted(endpoint.numbers) == list(range(50))

    run(test)


@pytest.mark.needs("requeue")
def test_what_is_given_back_comes_again(run, notifications, topic):
    given_back = []

    def answer(number):
        if number == 3 and not given_back:
            given_back.append(number)
            return "requeue"
        return None

    async def test():
        async with notifications() as transport, aio.Server(transport) as server:
            endpoint = Collecting(10, answer)
            await server.listen_for_notifications(
                [Target(topic=topic)], [endpoint], allow_requeue=True
            )
            notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
            await notify(notifier, 10)
            await endpoint.all.wait()
            assert sorted(endpoint.numbers) == list(range(10))

    run(test)
    assert given_back == [3]


def test_lists(run, notifications, topic):
    async def test():
        async with notifications() as transport, aio.Server(transport) as server:
            sizes = []
            done = asyncio.Event()

            class Batches:
                async def info(self, messages):
                    sizes.append(len(messages))
                    if sum(sizes) == 30:
                        done.set()

            await server.listen_for_notifications(
                [Target(topic=topic)], [Batches()], batch_size=10, batch_timeout=0.5
            )
            await notify(
                aio.Notifier(transport, "me", "messagingv2", topics=[topic]), 30
            )
            await done.wait()
            assert max(sizes) <= 10 and len(sizes) < 30

    run(test)


@pytest.mark.needs("pools")
def test_pools_and_their_members(run, notifications, topic):
    async def test():
        async with notifications() as transport, aio.Server(transport) as server:
            seen = {"one": [], "two": []}
            done = asyncio.Event()

            def callback(pool):
                async def callback(message):
                    seen[pool].append(message["payload"]["number"])
                    if all(len(each) == 20 for each in seen.values()):
                        done.set()

                return callback

            for pool in ("one", "one", "two"):
                await server.join_consumer_pool(callback(pool), pool, f"{topic}.info")
            await notify(
                aio.Notifier(transport, "me", "messagingv2", topics=[topic]), 20
            )
            await done.wait()
            assert all(sorted(each) == list(range(20)) for each in seen.values())

    run(test)


@pytest.mark.needs("requeue")
def test_messages_as_they_come(run, notifications, topic):
    async def test():
        async with notifications() as transport:
            notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
            seen = []
            async with aio.subscribe(transport, f"{topic}.info") as messages:
                await notify(notifier, 10)
                async for message in messages:
                    number = message.message["payload"]["number"]
                    if number == 5 and 5.5 not in seen:
                        seen.append(5.5)
                        message.requeue()
                        continue
                    seen.append(number)
                    message.acknowledge()
                    if len(seen) == 11:
                        break
            assert sorted(seen) == sorted([*range(10), 5.5])
            batched = []
            async with aio.subscribe(
                transport, f"{topic}.info", batch_size=4, batch_timeout=0.5
            ) as messages:
                await notify(notifier, 10)
                async for batch in messages.batches():
                    assert len(batch) <= 4
                    for message in batch:
                        batched.append(message.message["payload"]["number"])
                        message.acknowledge()
                    if len(batched) == 10:
                        break
            assert sorted(batched) == list(range(10))

    run(test)


def test_what_is_not_acknowledged_goes_to_others(run, notifications, topic):
    async def test():
        async with notifications() as transport:
            notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
            async with aio.subscribe(transport, f"{topic}.info") as messages:
                await notify(notifier, 3)
                taken = [await anext(messages)]
            del taken
            async with aio.subscribe(transport, f"{topic}.info") as messages:
                numbers = set()
                async for message in messages:
                    numbers.add(message.message["payload"]["number"])
                    message.acknowledge()
                    if len(numbers) == 3:
                        break

    run(test)


def test_a_notifier_does_not_raise(run, bus, topic, caplog):
    async def test():
        transport = bus.notification_transport(url="amqp://127.0.0.1:1")
        async with aio.closing(transport):
            notifier = aio.Notifier(
                transport, "me", "messaging", retry=0, topics=[topic]
            )
            assert not greenamqp.is_connected(transport)
            await notifier.info({}, "event", {})

    run(test)
    assert any(
        "no notification could be sent" in each.message for each in caplog.records
    )


def test_drivers_that_send_elsewhere(run, notifications, caplog):
    caplog.set_level("INFO", "oslo.messaging.notification")

    async def test():
        async with notifications() as transport:
            notifier = aio.Notifier(transport, "me", "log", topics=["t"])
            await notifier.info({}, "event", {"number": 1})

    run(test)
    assert any("oslo.messaging.notification" in each.name for each in caplog.records)


def test_leaving_a_subscription_ends_its_iteration(run, notifications, topic):
    async def test():
        async with notifications() as transport:
            seen = Recorder()
            messages = aio.subscribe(transport, f"{topic}.info")
            async with messages:

                async def iterate():
                    async for message in messages:
                        seen.add(message)

                task = asyncio.create_task(iterate())
                await asyncio.sleep(0)
            await task
            assert not seen.items

    run(test)


async def _waits_in_vain():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.mark.parametrize("kind", ["one", "list", "pool"])
def test_what_an_endpoint_waits_for_is_cancelled(run, bus, topic, kind):
    """It has failed, and its credit is given back."""

    async def test():
        transport = bus.notification_transport(
            options={"oslo_messaging_amqp": {"notify_server_credit": 2}}
        )
        async with aio.closing(transport), aio.Server(transport) as server:
            seen = []
            done = asyncio.Event()

            async def take(*args):
                seen.append(args)
                if len(seen) == 6:
                    done.set()
                await _waits_in_vain()

            class Endpoint:
                info = staticmethod(take)

            target = Target(topic=topic)
            if kind == "pool":
                await server.join_consumer_pool(take, "pool", f"{topic}.info")
            else:
                await server.listen_for_notifications(
                    [target],
                    [Endpoint()],
                    batch_size=1 if kind == "list" else None,
                    batch_timeout=0.1,
                )
            notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
            await notify(notifier, 6)
            await done.wait()

    run(test)


@pytest.mark.needs("requeue")
def test_a_cancelled_worker_gives_back_what_it_has(run, notifications, topic):
    async def test():
        async with notifications() as transport, aio.Server(transport) as server:
            seen = []
            done = asyncio.Event()

            class Endpoint:
                async def info(self, *args):
                    seen.append(args)
                    if len(seen) == 2:
                        done.set()
                        return
                    asyncio.current_task().cancel()
                    await asyncio.sleep(0)

            await server.listen_for_notifications([Target(topic=topic)], [Endpoint()])
            notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
            await notify(notifier, 1)
            await done.wait()

    run(test)


@pytest.mark.needs("requeue")
def test_a_worker_that_is_cancelled_before_it_began(run, notifications, topic):
    cancelled = []

    def make(loop, coroutine, **options):
        task = asyncio.Task(coroutine, loop=loop, **options)
        if coroutine.__qualname__ == "TaskExecutor._run" and not cancelled:
            cancelled.append(task)
            task.cancel()
        return task

    async def test():
        async with notifications() as transport, aio.Server(transport, 1) as server:
            done = asyncio.Event()

            class Endpoint:
                async def info(self, *args):
                    done.set()

            await server.listen_for_notifications([Target(topic=topic)], [Endpoint()])
            notifier = aio.Notifier(transport, "me", "messagingv2", topics=[topic])
            loop = asyncio.get_running_loop()
            loop.set_task_factory(make)
            try:
                await notify(notifier, 1)
                await done.wait()
            finally:
                loop.set_task_factory(None)
            assert cancelled

    run(test)


def test_a_subscription_may_outlive_its_transport(run, notifications, topic):
    async def test():
        async with notifications() as transport:
            async with aio.subscribe(transport, f"{topic}.info"):
                await aio.cleanup(transport)
            assert transport._driver.client is None

    run(test)
