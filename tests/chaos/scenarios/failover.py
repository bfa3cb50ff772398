# SPDX-License-Identifier: Apache-2.0
"""A server and a client in one process, which go on whatever becomes of the bus."""

import threading

import oslo_messaging

from tests.chaos.workers import Stage, wait_until


class Endpoint:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def echo(self, ctxt, value):
        return value

    def info(self, ctxt, publisher, event_type, payload, metadata):
        self.stage.say("notified", value=event_type)


def serve(
    stage: Stage,
    url: str,
    topic: str,
    timeout: float,
    options: dict,
    pause: float | None = None,
) -> None:
    """Do what the test says, until it says no more.

    call VALUE [timeout SECONDS], notify VALUE: answered when that has ended.
    """
    stage.eager(pause)
    transport = stage.transport(url, **options)
    endpoint = Endpoint(stage)
    server = stage.server(transport, topic, endpoint)
    listener = stage.listener(transport, topic, endpoint)
    client = stage.client(transport, topic, timeout)

    def call(value: object, timeout: float = timeout) -> None:
        try:
            answer = client.prepare(timeout=timeout).call({}, "echo", value=value)
        except oslo_messaging.MessagingException as exc:
            stage.say("failed", value=value, error=str(exc), kind=type(exc).__name__)
        else:
            stage.say("answered", value=answer)

    def notify(value: str) -> None:
        try:
            transport._send_notification(
                oslo_messaging.Target(topic=f"{topic}.info"),
                {},
                {
                    "event_type": value,
                    "publisher_id": "p",
                    "payload": {},
                    "priority": "INFO",
                    "message_id": value,
                    "timestamp": "",
                },
                version=2.0,
                retry=-1,
            )
        except oslo_messaging.MessagingException as exc:
            stage.say("failed", value=value, error=str(exc), kind=type(exc).__name__)
        else:
            stage.say("accepted", value=value)

    stage.say("ready")
    threads = []
    while order := stage.hear():
        work = call if "call" in order else notify
        value = order.pop(work.__name__)
        threads.append(threading.Thread(target=work, args=(value,), kwargs=order))
        threads[-1].start()
    for thread in threads:
        thread.join()
    stage.end([server, listener])
    transport.cleanup()


def many_links(stage: Stage, url: str, count: int) -> None:
    """Have `count` subscriptions and as many senders; say when they are restored."""
    transport = stage.transport(url + "vhost", pseudo_vhost=True)
    endpoint = Endpoint(stage)
    servers = [
        stage.server(transport, f"topic-{number}", endpoint, name=f"server-{number}")
        for number in range(count)
    ]
    clients = [stage.client(transport, f"topic-{number}") for number in range(count)]

    def call_all() -> None:
        for number, client in enumerate(clients):
            # Until one gets through that did not meet the break.
            for _ in range(10):
                try:
                    assert client.call({}, "echo", value=number) == number
                except oslo_messaging.MessageDeliveryFailure:
                    continue
                break
            else:
                raise AssertionError("no call gets through")

    call_all()
    stage.say("ready")
    connection = transport._driver._connected().connection
    first = connection.engine
    wait_until(lambda: connection.engine not in (None, first), "another connection")
    call_all()
    stage.say("restored")
    stage.hear()
    stage.end(servers)
    transport.cleanup()
