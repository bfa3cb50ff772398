# SPDX-License-Identifier: Apache-2.0
"""Deployments in murano's way: an API, a conductor and agents that start late.

    python examples/deploy.py api [--url ...] [--deployments N]
    python examples/deploy.py conductor [--url ...]
    python examples/deploy.py agent NAME [--url ...]

The api casts deployment tasks and follows their progress by notifications.  The
conductor works on several at once, in green threads: each task wants an agent, which
runs on a machine that is only just booting.  The agent's execution plan is cast to it
before it exists; the message bus keeps the plan until the agent starts, but not for
ever: the queues of agents expire.  The agent carries the plan out, answers the
conductor, and ends; so does the api when all its deployments are done.
"""

import argparse

import eventlet

eventlet.monkey_patch()

import oslo_messaging  # noqa: E402
from oslo_config import cfg  # noqa: E402

import greenamqp  # noqa: E402

#: An agent that has not fetched its plan by then never will.  Seconds.
AGENT_QUEUE_EXPIRES = 600


def transports(url):
    cfg.CONF([], project="deploy")
    rpc = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    # Both the conductor, who makes the queue by casting, and the agent, who may come
    # first, ask for the same.
    greenamqp.set_queue_policy(
        rpc,
        oslo_messaging.Target(topic="agent"),
        greenamqp.QueuePolicy(expires=AGENT_QUEUE_EXPIRES),
    )
    return rpc, oslo_messaging.get_notification_transport(cfg.CONF, url=url)


class Progress:
    """The api's view of its deployments."""

    def __init__(self, expected):
        self._expected = expected
        self._done = set()
        self.finished = eventlet.event.Event()

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        print(f"{payload['task']}: {event_type}", flush=True)
        if event_type == "deployment.done":
            self._done.add(payload["task"])
            if self._done == self._expected:
                self.finished.send()


def api(url, count):
    rpc, notifications = transports(url)
    tasks = {f"deployment-{number}" for number in range(count)}
    progress = Progress(tasks)
    server = greenamqp.Server(notifications)
    server.listen_for_notifications(
        [oslo_messaging.Target(topic="progress")], [progress]
    )
    server.start()
    conductor = oslo_messaging.get_rpc_client(
        rpc, oslo_messaging.Target(topic="conductor")
    )
    for task in sorted(tasks):
        conductor.cast({}, "deploy", task=task, agent=f"agent-of-{task}")
    progress.finished.wait()
    server.stop()
    server.wait()
    notifications.cleanup()
    rpc.cleanup()
    print(f"all {count} deployments are done", flush=True)


class Conductor:
    """Carries out deployment tasks, each in a green thread of the server's pool."""

    def __init__(self, rpc, notifications):
        self._rpc = rpc
        self._notifier = oslo_messaging.Notifier(
            notifications, "conductor", driver="messagingv2", topics=["progress"]
        )
        self._answers = {}

    def deploy(self, ctxt, task, agent):
        self._notifier.info({}, "deployment.started", {"task": task})
        answer = self._answers[task] = eventlet.event.Event()
        client = oslo_messaging.get_rpc_client(
            self._rpc, oslo_messaging.Target(topic="agent", server=agent)
        )
        client.cast({}, "execute", task=task, plan=["install", "configure", "start"])
        self._notifier.info({}, "deployment.waiting", {"task": task})
        steps = answer.wait()
        del self._answers[task]
        self._notifier.info({}, "deployment.done", {"task": task, "steps": steps})

    def answer(self, ctxt, task, steps):
        self._answers[task].send(steps)
        return True


def conductor(url):
    rpc, notifications = transports(url)
    server = greenamqp.Server(rpc)
    server.listen(
        oslo_messaging.Target(topic="conductor", server="conductor-1"),
        [Conductor(rpc, notifications)],
    )
    server.start()
    print("conductor ready", flush=True)
    eventlet.event.Event().wait()


class Agent:
    """Carries out one execution plan."""

    def __init__(self, rpc):
        self._conductor = oslo_messaging.get_rpc_client(
            rpc, oslo_messaging.Target(topic="conductor"), timeout=30
        )
        self.finished = eventlet.event.Event()

    def execute(self, ctxt, task, plan):
        steps = [f"{step}: done" for step in plan]
        self._conductor.call({}, "answer", task=task, steps=steps)
        self.finished.send()


def agent(url, name):
    rpc, notifications = transports(url)
    endpoint = Agent(rpc)
    server = greenamqp.Server(rpc)
    server.listen(oslo_messaging.Target(topic="agent", server=name), [endpoint])
    server.start()
    endpoint.finished.wait()
    server.stop()
    server.wait()
    rpc.cleanup()
    notifications.cleanup()
    print(f"{name}: plan carried out", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("role", choices=("api", "conductor", "agent"))
    parser.add_argument("name", nargs="?", help="of the agent")
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--deployments", type=int, default=3)
    args = parser.parse_args(argv)
    if args.role == "agent" and not args.name:
        parser.error("an agent has a name")
    if args.role == "api":
        api(args.url, args.deployments)
    elif args.role == "conductor":
        conductor(args.url)
    else:
        agent(args.url, args.name)


if __name__ == "__main__":
    main()
