# SPDX-License-Identifier: Apache-2.0
"""The faults that a message bus, and those who use it, can have; see
tests.chaos.faults, which plays them."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import typing

from tests.chaos.forwarder import Forwarder
from tests.chaos.workers import Worker


@dataclasses.dataclass
class Field:
    """What a fault can reach.

    :ivar bus: a tools.buses.Bus, or Embedded
    :ivar topics: of each driver; its exchange has the same name
    :ivar workers: by "driver role"
    :ivar paths: what all connections go through, by node, where that is so
    """

    bus: typing.Any
    topics: list[str]
    workers: dict[str, Worker]
    paths: typing.Sequence[Forwarder] = ()

    def evaluate(self, code: str) -> None:
        """Run Erlang on a node of RabbitMQ; "@queues" and "@exchanges" are those that
        belong to the topics."""
        names = ",".join(f"<<{json.dumps(topic)}>>" for topic in self.topics)
        for what, name, listed in (
            ("queues", "element(4, amqqueue:get_name(X))", "rabbit_amqqueue:list()"),
            ("exchanges", "element(4, element(2, X))", "rabbit_exchange:list()"),
        ):
            code = code.replace(
                f"@{what}",
                f"[X || X <- {listed}, T <- [{names}], "
                f"string:find({name}, T) =/= nomatch]",
            )
        self.bus.control("eval", code)

    def every(self, code: str) -> None:
        """Run Erlang on each node of RabbitMQ."""
        for node in range(self.bus.kind.nodes):
            self.bus.control("eval", code, node=node)

    def processes(self, *roles: str) -> list[int]:
        """Those of each driver that play one of these roles."""
        return [
            worker.pid
            for name, worker in self.workers.items()
            if name.split()[1] in roles
        ]

    def each(self, number: int, *roles: str) -> None:
        """A signal to them."""
        for pid in self.processes(*roles):
            os.kill(pid, number)

    def descriptors(self, spare: int | None) -> None:
        """How many more the callers and notifiers may open; None: as many as
        before."""
        for pid in self.processes("call", "notify"):
            _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            limit = most
            if spare is not None:
                limit = len(os.listdir(f"/proc/{pid}/fd")) + spare
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, most))

    def run_out(self) -> None:
        """No descriptor is to be had, and all connections are lost."""
        self.descriptors(0)
        self.bus.control("close_all_connections", "fault")

    def restart(self, node: int) -> None:
        """In order, and wait until it serves."""
        self.bus.signal(signal.SIGTERM, node)
        self.bus.wait_gone(node)
        self.bus.start()


_Step = typing.Callable[[Field, int], typing.Any]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault: what brings it about, how long it lasts, and what ends it.

    :ivar each: whether it is one node's, and comes to each in turn
    :ivar only: what the name of the bus begins with, where not all can have it
    :ivar path: whether all connections have to go through forwarders
    :ivar apart: whether it is played where it is asked for only
    :ivar takes: types of queues, as in QUEUES, that lose what is in them by it
    """

    text: str
    begin: _Step
    seconds: float = 0.0
    end: _Step = lambda field, node: None
    each: bool = False
    only: str = ""
    path: bool = False
    apart: bool = False
    takes: tuple[str, ...] = ()


def _memory(limit: str) -> _Step:
    return lambda field, node: field.bus.control(
        "set_vm_memory_high_watermark", "absolute", limit, node=node
    )


def _evaluate(code: str) -> _Step:
    return lambda field, node: field.evaluate(code)


def _paths(name: str, *arguments: float) -> _Step:
    """Have the paths to all nodes do something."""
    return lambda field, node: [getattr(path, name)(*arguments) for path in field.paths]


def _apart(field: Field, node: int) -> None:
    """The other nodes cannot talk to this one, and know it."""
    field.every(_MINORITY)
    field.bus.control(
        "eval",
        "[begin erlang:set_cookie(N, apart), erlang:disconnect_node(N) end "
        "|| N <- nodes()].",
        node=node,
    )


def _noticed(field: Field, node: int) -> None:
    """As a node that is frozen, but the others give it up within ten seconds."""
    field.every(f"net_kernel:set_net_ticktime(8, 0), {_MINORITY}")
    field.bus.signal(signal.SIGSTOP, node)


# Nodes that are in the minority pause until they are not, as OpenStack's are set up.
_MINORITY = "application:set_env(rabbit, cluster_partition_handling, pause_minority)."


FAULTS: dict[str, Fault] = {
    "kill": Fault(
        "kill -9 of a node, started again",
        lambda field, node: field.bus.kill9(node),
        5.0,
        lambda field, node: field.bus.start(),
        each=True,
        takes=("classic",),
    ),
    "outage": Fault(
        "kill -9 of all nodes, started again",
        lambda field, node: field.bus.kill9(None),
        5.0,
        lambda field, node: field.bus.start(),
        takes=("classic",),
    ),
    "freeze": Fault(
        "a node is frozen for 25 s",
        lambda field, node: field.bus.signal(signal.SIGSTOP, node),
        25.0,
        lambda field, node: field.bus.signal(signal.SIGCONT, node),
        each=True,
    ),
    "freeze-noticed": Fault(
        "a node is frozen for 25 s; the others wait 10 s for it, and not 60",
        _noticed,
        25.0,
        lambda field, node: field.bus.signal(signal.SIGCONT, node),
        each=True,
        only="rabbitmq-cluster",
        apart=True,
    ),
    "partition": Fault(
        "a node is cut off from the others for 25 s",
        _apart,
        25.0,
        lambda field, node: field.bus.control(
            "eval",
            "[erlang:set_cookie(N, erlang:get_cookie()) "
            "|| N <- rabbit_nodes:list_members() -- [node()]].",
            node=node,
        ),
        each=True,
        only="rabbitmq-cluster",
        apart=True,
    ),
    "cut-off": Fault(
        "a node and all clients are cut off from each other for 25 s",
        lambda field, node: field.paths[node].stall(),
        25.0,
        lambda field, node: field.paths[node].go(),
        each=True,
        path=True,
        apart=True,
    ),
    "slow": Fault(
        "all that goes to the bus and comes from it takes 0.2 s for 25 s",
        _paths("delay", 0.2),
        25.0,
        _paths("delay", 0.0),
        path=True,
        apart=True,
    ),
    "disk": Fault(
        "disk alarm of 25 s",
        # Not by a limit: where there is no /proc the room on the disk is not known.
        _evaluate("rabbit_alarm:set_alarm({{resource_limit, disk, node()}, []})."),
        25.0,
        _evaluate("rabbit_alarm:clear_alarm({resource_limit, disk, node()})."),
        only="rabbitmq",
        apart=True,
    ),
    "descriptors": Fault(
        "connections are closed while clients have no descriptor for 10 s",
        lambda field, node: field.run_out(),
        10.0,
        lambda field, node: field.descriptors(None),
        only="rabbitmq",
        apart=True,
    ),
    "alarm": Fault(
        "memory alarm of 25 s",
        _memory("1MiB"),
        25.0,
        _memory("1GiB"),
        only="rabbitmq",
    ),
    "close": Fault(
        "all connections are closed",
        lambda field, node: field.bus.control("close_all_connections", "fault"),
        only="rabbitmq",
    ),
    "stop-app": Fault(
        "stop_app of a node, start_app",
        lambda field, node: field.bus.control("stop_app", node=node),
        5.0,
        lambda field, node: field.bus.control("start_app", node=node),
        each=True,
        only="rabbitmq",
        takes=("classic",),
    ),
    "rolling": Fault(
        "all nodes are restarted in turn",
        lambda field, node: [
            field.restart(each) for each in range(field.bus.kind.nodes)
        ],
        only="rabbitmq-cluster",
        takes=("classic",),
    ),
    "delete-queues": Fault(
        "the topic's queues are deleted",
        _evaluate(
            '[rabbit_amqqueue:delete(Q, false, false, <<"fault">>) || Q <- @queues].'
        ),
        only="rabbitmq",
        takes=("classic", "quorum"),
    ),
    "delete-exchanges": Fault(
        "the exchanges are deleted",
        _evaluate(
            "[rabbit_exchange:ensure_deleted(element(2, E), false, "
            '<<"fault">>) || E <- @exchanges].'
        ),
        only="rabbitmq",
    ),
    "kill-queues": Fault(
        "the processes of the topic's queues are killed",
        _evaluate(
            "[case amqqueue:get_pid(Q) of {N, On} -> "
            "exit(rpc:call(On, erlang, whereis, [N]), kill); "
            "P -> exit(P, kill) end || Q <- @queues]."
        ),
        only="rabbitmq",
        takes=("classic",),
    ),
    "leader": Fault(
        "the leader of each quorum queue moves",
        _evaluate(
            "[case amqqueue:get_pid(Q) of {_, On} -> "
            "rabbit_quorum_queue:transfer_leadership(Q, "
            "hd(rabbit_nodes:list_running() -- [On])); "
            "_ -> classic end || Q <- @queues]."
        ),
        only="rabbitmq-cluster",
    ),
    "stop-client": Fault(
        "callers and notifiers are stopped for 10 s",
        lambda field, node: field.each(signal.SIGSTOP, "call", "notify"),
        10.0,
        lambda field, node: field.each(signal.SIGCONT, "call", "notify"),
    ),
    "stop-server": Fault(
        "one of the two servers is stopped for 10 s",
        lambda field, node: field.each(signal.SIGSTOP, "serve-1"),
        10.0,
        lambda field, node: field.each(signal.SIGCONT, "serve-1"),
    ),
}
