# SPDX-License-Identifier: Apache-2.0
"""The same round trip by AMQP libraries that leave RPC to the program: what they lack
is made here in the plainest way that their documentation shows.

Every request and every reply is confirmed, and its body is JSON.  There is nothing
else: no exceptions that travel, no reconnecting, no dispatcher.
"""

import asyncio
import itertools
import json
import os
import queue
import threading

import profiler
from client import PATIENCE, Client, WrongAnswer
from coroutines import CoroutineClient, runner
from measure import census, mark
from server import Tally

_CREDIT = 500


class _PeerClient(Client):
    """A Client that has callers of its own: as many as are needed at a time, which are
    kept."""

    def __init__(self, side):
        self._side = side
        self._numbers = itertools.count()
        self._failed = 0
        self._free = []

    def _operations(self, load, value):
        text = json.dumps(value).encode()

        def operation():
            try:
                caller = self._free.pop()
            except IndexError:
                caller = self._connect()
            if json.loads(caller(text)) != value:
                raise WrongAnswer("the reply is not what was sent")
            self._free.append(caller)

        return [operation]

    def _cleanup(self):
        os._exit(0)  # their threads wait for the bus


class _PeerServer:
    """Serves echo in a thread."""

    def __init__(self, side):
        self._side = side

    def run(self, control):
        """Until the benchmark has enough."""
        ready = threading.Event()
        threading.Thread(target=self._serve, args=(ready,), daemon=True).start()
        ready.wait()
        control.answer(ready=True, subscribed=0.0, **mark())
        control.serve(_handlers())
        os._exit(0)


def _handlers():
    tally = Tally()
    return {
        "mark": lambda: {**mark(), **tally.report()},
        "received": tally.received,
        "census": census,
        **profiler.commands(),
    }


# -- proton's BlockingConnection


def _proton(url):
    from proton.utils import BlockingConnection

    how = {} if "@" in url else {"allowed_mechs": "ANONYMOUS"}
    return BlockingConnection(url, timeout=PATIENCE, **how)


class ProtonClient(_PeerClient):
    """A connection for each caller, with proton's own SyncRequestResponse."""

    def _connect(self):
        from proton import Message
        from proton.utils import SyncRequestResponse

        rpc = SyncRequestResponse(_proton(self._side.url), self._side.topic())
        # Texts: what it gives as binary is not kept beyond the next event.
        return lambda text: rpc.call(Message(body=text.decode())).body


class ProtonServer(_PeerServer):
    """One connection, one thread."""

    def _serve(self, ready):
        from proton import Message

        connection = _proton(self._side.url)
        requests = connection.create_receiver(self._side.topic(), credit=_CREDIT)
        senders = {}
        ready.set()
        while True:
            request = requests.receive(timeout=None)
            requests.accept()
            sender = senders.get(request.reply_to)
            if sender is None:
                sender = connection.create_sender(request.reply_to)
                senders[request.reply_to] = sender
            reply = Message(body=request.body)
            reply.correlation_id = request.correlation_id
            sender.send(reply)


# -- RabbitMQ's client of AMQP 1.0


def _rabbit(url):
    from rabbitmq_amqp_python_client import Environment

    connection = Environment(uri=url).connection()
    connection.dial()
    return connection


def _consume(url, name, on_message, ready):
    """Have `on_message` called with each message of a new queue, for ever."""
    from rabbitmq_amqp_python_client import (
        AddressHelper,
        AMQPMessagingHandler,
        ClassicQueueSpecification,
    )

    class Handler(AMQPMessagingHandler):
        def on_amqp_message(self, event):
            self.delivery_context.accept(event)
            on_message(event.message)

    connection = _rabbit(url)
    specification = ClassicQueueSpecification(name=name, is_auto_delete=True)
    connection.management().declare_queue(specification)
    address = AddressHelper.queue_address(name)
    consumer = connection.consumer(address, message_handler=Handler(), credit=_CREDIT)
    ready.set()
    consumer.run()


class RabbitClient(_PeerClient):
    """A connection for each caller, and one whose thread receives all replies."""

    def __init__(self, side):
        super().__init__(side)
        self._waiting = {}
        self._replies = side.topic("replies")
        ready = threading.Event()
        threading.Thread(
            target=_consume,
            args=(side.url, self._replies, self._replied, ready),
            daemon=True,
        ).start()
        ready.wait()

    def _replied(self, message):
        self._waiting.pop(message.correlation_id).put(bytes(message.body))

    def _connect(self):
        from rabbitmq_amqp_python_client import AddressHelper, Message

        address = AddressHelper.queue_address(self._side.topic())
        publisher = _rabbit(self._side.url).publisher(address)
        replies = queue.SimpleQueue()
        reply_to = AddressHelper.queue_address(self._replies)

        def call(text):
            number = str(next(self._numbers))
            self._waiting[number] = replies
            publisher.publish(
                Message(text, reply_to=reply_to, correlation_id=number, inferred=True)
            )
            return replies.get(timeout=PATIENCE)

        return call


class RabbitServer(_PeerServer):
    """Two connections, since its consumer cannot publish over its own."""

    def _serve(self, ready):
        from rabbitmq_amqp_python_client import Message

        publisher = _rabbit(self._side.url).publisher()

        def answer(request):
            publisher.publish(
                Message(
                    bytes(request.body),
                    address=request.reply_to,
                    correlation_id=request.correlation_id,
                    inferred=True,
                )
            )

        _consume(self._side.url, self._side.topic(), answer, ready)


# -- aio-pika, of AMQP 0-9-1


async def _pika(url):
    import aio_pika

    connection = await aio_pika.connect(url)
    channel = await connection.channel()  # which confirms
    await channel.set_qos(_CREDIT)
    return channel


class PikaClient(CoroutineClient):
    """All callers over one channel."""

    def __init__(self, side):
        self._side = side
        self._numbers = itertools.count()
        self._failed = 0
        self._waiting = {}
        self._runner = runner(side.hub)
        self._runner.run(self._begin())

    async def _begin(self):
        self._channel = await _pika(self._side.url)
        replies = await self._channel.declare_queue(exclusive=True)
        self._reply_to = replies.name
        await replies.consume(self._replied)

    async def _replied(self, message):
        await message.ack()
        self._waiting.pop(message.correlation_id).set_result(message.body)

    def _operations(self, load, value):
        import aio_pika

        text = json.dumps(value).encode()
        topic = self._side.topic()
        exchange = self._channel.default_exchange

        async def operation():
            number = str(next(self._numbers))
            reply = asyncio.get_running_loop().create_future()
            self._waiting[number] = reply
            message = aio_pika.Message(
                text, reply_to=self._reply_to, correlation_id=number
            )
            await exchange.publish(message, routing_key=topic)
            if json.loads(await asyncio.wait_for(reply, PATIENCE)) != value:
                raise WrongAnswer("the reply is not what was sent")

        return [operation]

    def _cleanup(self):
        os._exit(0)


class PikaServer(_PeerServer):
    """One channel, with a task for each request."""

    def _serve(self, ready):
        runner(self._side.hub).run(self._answer(ready))

    async def _answer(self, ready):
        import aio_pika

        channel = await _pika(self._side.url)
        exchange = channel.default_exchange

        async def answer(request):
            await request.ack()
            message = aio_pika.Message(
                request.body, correlation_id=request.correlation_id
            )
            await exchange.publish(message, routing_key=request.reply_to)

        requests = await channel.declare_queue(self._side.topic(), auto_delete=True)
        await requests.consume(answer)
        ready.set()
        await asyncio.Event().wait()


#: By what the side says of its stack, the client and the server.
STACKS = {
    "proton-blocking": (ProtonClient, ProtonServer),
    "rabbitmq-amqp": (RabbitClient, RabbitServer),
    "aio-pika": (PikaClient, PikaServer),
}
