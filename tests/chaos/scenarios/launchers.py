# SPDX-License-Identifier: Apache-2.0
"""A connected process that starts workers, as services do.

The parent has a connection of its own and uses it all the time; the workers serve, with
the transport that the parent made.
"""

import os
import threading

from tests.chaos.workers import Stage

TOPIC = "of-the-workers"


class Endpoint:
    def pid(self, ctxt):
        return os.getpid()


class Parent:
    """What the process has before it starts workers."""

    def __init__(self, stage: Stage, url: str, options: dict) -> None:
        self.stage = stage
        self.transport = stage.transport(url, **options)
        self.client = stage.client(self.transport, TOPIC)
        client = self.transport._driver._connected()
        # A cast to nobody, which the broker keeps: connected from here on.
        stage.client(self.transport, "nobody").cast({}, "nothing")
        stage.say("parent", container=container(client), pid=os.getpid())
        self._thread = threading.Thread(target=self._obey, daemon=True)
        self._thread.start()

    def _obey(self) -> None:
        """Call the workers as often as the test says, in a thread of the parent."""
        while order := self.stage.hear():
            pids = [self.client.call({}, "pid") for _ in range(order["call"])]
            self.stage.say("answered", pids=pids)

    def end(self) -> None:
        self.transport.cleanup()
        self.stage.say("ended")


class Work:
    """What a worker does."""

    def __init__(self, parent: Parent) -> None:
        self._stage = parent.stage
        self._transport = parent.transport
        self._server = None

    def begin(self) -> None:
        self._server = self._stage.server(self._transport, TOPIC, Endpoint())
        client = self._transport._driver._connected()
        self._stage.say("worker", container=container(client), pid=os.getpid())

    def end(self) -> None:
        if self._server is None:
            return  # oslo.service stops it in the parent too
        self._stage.end([self._server])
        self._transport.cleanup()


def container(client) -> str | None:
    engine = client.connection.engine
    return engine and engine.lifecycle.connection.container


def oslo_service(stage: Stage, url: str, workers: int, options: dict) -> None:
    """oslo.service's ProcessLauncher: with eventlet, or with threads and cotyledon."""
    from oslo_service import service

    parent = Parent(stage, url, options)

    class Service(service.ServiceBase):
        def __init__(self) -> None:
            self._work = Work(parent)

        def start(self) -> None:
            self._work.begin()

        def stop(self) -> None:
            self._work.end()

        def wait(self) -> None:
            pass

        def reset(self) -> None:
            pass

    launcher = service.ProcessLauncher(stage.conf(), restart_method="mutate")
    launcher.launch_service(Service(), workers=workers)
    try:
        launcher.wait()
    finally:
        parent.end()


def cotyledon(stage: Stage, url: str, workers: int, options: dict) -> None:
    import cotyledon

    parent = Parent(stage, url, options)

    class Service(cotyledon.Service):
        def __init__(self, worker_id: int) -> None:
            super().__init__(worker_id)
            self._work = Work(parent)

        def run(self) -> None:
            self._work.begin()

        def terminate(self) -> None:
            self._work.end()

    manager = cotyledon.ServiceManager()
    manager.add(Service, workers)
    try:
        manager.run()
    finally:
        parent.end()
