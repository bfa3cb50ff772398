# SPDX-License-Identifier: Apache-2.0
"""What the parent and the roles of the demo agree on: names, streams, shares.

Pure; imports nothing that a process must patch before.
"""

import dataclasses
import json
from collections.abc import Iterator

from greenamqp.command.demo import workload

#: Pool of notification listeners -> how many worker processes it has.
POOLS = {"metering": 2, "audit": 1}

#: The RPC topics, and how many servers each has. All of them are in one process:
#: 50 targets on one connection.
RPC_TOPICS = ("compute", "scheduler", "l3_agent", "volume", "image")
SERVERS_PER_TOPIC = 10

#: How many processes make RPC calls, casts and fanout casts.
CLIENTS = 2

#: What part of all notifications each service publishes.
SHARES = {
    "nova": 0.40,
    "neutron": 0.25,
    "cinder": 0.15,
    "glance": 0.08,
    "keystone": 0.12,
}

#: RPC operations (calls, casts and fanout casts together) per notification.
RPC_SHARE = 0.4

#: In every ten RPC operations, in this order: mostly calls, as in a real cloud.
RPC_MIX = (
    *("call", "cast", "call", "call", "cast"),
    *("call", "call", "fanout", "cast", "call"),
)

#: How many (green) threads of a client do RPC operations; a call blocks its thread.
CALLERS = 4

#: How many (green) threads of a publisher send when the rate is unlimited; at a
#: given rate one is enough.
UNPACED_SENDERS = 4

#: How long an RPC call may take, seconds.
CALL_TIMEOUT = 30

#: The one receiver of calls and casts, whichever server it is.
SERVERS = "servers"

#: What the roles may run under; what each must be able to import is its name.
HUBS = ("eventlet", "gevent", "threads")


def server_names() -> list[str]:
    """The names of the servers that each RPC topic has."""
    return [f"host-{number:02}" for number in range(1, SERVERS_PER_TOPIC + 1)]


def client_names() -> list[str]:
    """The names of the client processes."""
    return [f"client-{number}" for number in range(1, CLIENTS + 1)]


def worker_names(pool: str) -> list[str]:
    """The names of the processes of a pool."""
    return [f"{pool}-{number}" for number in range(1, POOLS[pool] + 1)]


def notify_stream(service: str) -> str:
    """The ledger's name for the notifications of a service."""
    return f"notify/{service}"


def call_stream(client: str) -> str:
    """The ledger's name for the calls of a client."""
    return f"call/{client}"


def cast_stream(client: str) -> str:
    """The ledger's name for the casts of a client."""
    return f"cast/{client}"


def fanout_stream(client: str, topic: str) -> str:
    """The ledger's name for a client's fanout casts to a topic."""
    return f"fanout/{client}/{topic}"


def streams() -> Iterator[tuple[str, list[str]]]:
    """Every stream with those who have to get each of its messages once."""
    for service in workload.SERVICES:
        yield notify_stream(service), list(POOLS)
    for client in client_names():
        yield call_stream(client), [SERVERS]
        yield cast_stream(client), [SERVERS]
        for topic in RPC_TOPICS:
            yield fanout_stream(client, topic), server_names()


@dataclasses.dataclass(frozen=True)
class Run:
    """What every role has to know of one run."""

    #: Marks this run's messages, so that another one's are not taken for ours.
    id: str
    url: str
    hub: str
    #: Notifications per second of all services together; 0 is as fast as it goes.
    rate: float
    #: Put after every name of an exchange, topic or pool; not empty on a bus that is
    #: not our own.
    suffix: str = ""
    seed: int = 0
    #: A file with notification bodies for nova; empty for generated ones.
    samples: str = ""
    #: Whether listeners know on which exchange a notification came.
    apart: bool = True

    def name(self, name: str) -> str:
        """The topic or pool to use for one that is called ``name`` in the report: not
        every bus has the exchange in the name of a queue."""
        return name + self.suffix

    def exchange(self, name: str) -> str:
        """The exchange to use for one that is called ``name`` in the report."""
        return name + self.suffix


#: What a role's process runs before anything else is imported.
_PATCHING = {
    "eventlet": "import eventlet; eventlet.monkey_patch(); ",
    "gevent": "from gevent import monkey; monkey.patch_all(); ",
    "threads": "",
}


def role_command(name: str, kind: str, run: Run, of: str = "") -> list[str]:
    """The arguments of ``python`` that start the role ``kind`` as process ``name``.

    ``of`` is the service of a publisher, the pool of an agent. The number of the
    channel's descriptor is to be added at the end.
    """
    spec = {"name": name, "kind": kind, "run": dataclasses.asdict(run), "of": of}
    start = "from greenamqp.command.demo.roles import main; main()"
    # eventlet, and oslo.messaging where it uses it, say at each start that they are
    # deprecated.
    quiet = ["-W", "ignore::DeprecationWarning"]
    return [*quiet, "-c", _PATCHING[run.hub] + start, json.dumps(spec)]
