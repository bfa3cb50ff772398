# SPDX-License-Identifier: Apache-2.0
"""Which bus the tests run on, and what each kind of bus cannot do.

:data:`LACKS` is the one place that says what is not tested where, and why. A test
names the features it needs with ``@pytest.mark.needs("feature", ...)`` and is
skipped with the reason from the table; one that shows how a missing feature is refused
is marked ``@pytest.mark.refuses("feature")`` and runs where it is missing. No test
looks at the URL itself.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
from typing import IO, Any

from greenamqp.command.processes import die_with_parent

ENV = "TRANSPORT_URL"

#: The URL of a real router that the tests of what routers do are to run on, instead of
#: on the embedded broker in the role of each.
ROUTER = os.environ.get("GREENAMQP_TEST_ROUTER", "")

#: Seconds that a helper process may take to come up or to answer. Far more than it
#: needs; only a test that fails anyway waits that long.
START_TIMEOUT = 60

#: What a test may ask for.
FEATURES = {
    "amqp": "speaks AMQP 1.0 through greenamqp",
    "processes": "reaches other processes",
    "store": "keeps messages while nobody listens",
    "absent": "keeps casts for a server that has never been there",
    "survives": "keeps a message when its sender has cleaned up",
    "ttl": "drops a request whose caller has given up",
    "policy": "takes a queue policy",
    "pools": "gives each pool of listeners a copy",
    "pool_names": "keeps pools of one name on several topics apart",
    "pool_store": "keeps a pool's messages while no member listens",
    "requeue": "delivers a requeued message again",
    "call_monitor": "sends call heartbeats",
    "remote_errors": "passes exceptions as text and rebuilds them",
    "json": "turns everything into JSON and back",
    "exchanges": "keeps two exchanges with the same topic apart",
    "balanced": "shares messages fairly among the servers of a topic",
    "backlog": "leaves to others what a stopping server was not yet given",
    "credit": "has a window for undelivered messages that can be set",
    "batch_timeout": "delivers a full batch at once, whatever its time-out",
    "mandatory": "knows at once that nobody listens, on demand",
    "no_threads": "has no native threads of its own in a green world",
    "clean": "leaves nothing behind after cleanup()",
    "exit": "lets the interpreter exit without cleanup()",
    "raw_broker": "an AMQP 1.0 broker that a raw sender can reach",
    "green": "lets other green threads run while it waits",
    "one_connection": "shares one connection among all servers of a transport",
}

_NO_POOLS = "an address has no queue per pool"
_MEMORY = "the driver lives in the memory of one process"
_NO_BINDING = "nothing over AMQP 1.0 binds a queue there"
_POOL_NAMES = "a pool's queue is named after the pool alone"
_EXCHANGES = "queues and fanouts are named after the topic alone"
_NO_QUEUE = "an RPC queue is made by its server; there is none before"
_NO_LEGACY = "it has no addresses of the legacy form"

_ROUTER = {
    "store": "a router stores nothing",
    "absent": "a router stores nothing",
    "pools": _NO_POOLS,
    "pool_names": _NO_POOLS,
    "pool_store": _NO_POOLS,
    "ttl": "a router stores nothing and does not look at the ttl",
    "policy": "a router stores nothing",
    "mandatory": "without a consumer it gives no credit, and says no more",
    "backlog": "a router stores nothing",
}

#: Bus -> feature -> why it cannot be tested there.
LACKS: dict[str, dict[str, str]] = {
    "greenamqp": {
        "mandatory": "AMQP 1.0 has no mandatory flag; a broker stores the request",
    },
    "qpid-dispatch-router": _ROUTER,
    "skupper-router": _ROUTER,
    "qpid-cpp": {
        "pools": _NO_POOLS,
        "pool_names": _NO_POOLS,
        "pool_store": _NO_POOLS,
        "policy": "its links do not say how long a queue lives",
        "mandatory": "qpidd accepts what it drops",
    },
    "apache-activemq-artemis": {
        "mandatory": "a request makes the queue of a server that is not there",
        "raw_broker": _NO_LEGACY,
    },
    "Apache Qpid Broker-J Core": {
        "absent": _NO_QUEUE,
        "policy": "none of its queues expires",
        "raw_broker": _NO_LEGACY,
    },
    # Queues and exchanges of greenamqp's own on RabbitMQ 4: addressing_mode=declared.
    "RabbitMQ declared": {
        "absent": _NO_QUEUE,
        "raw_broker": _NO_LEGACY,
    },
    # The same queues and exchanges as the rabbit:// driver's: addressing_mode=rabbit.
    "RabbitMQ rabbit": {
        "absent": _NO_QUEUE,
        "pool_names": _POOL_NAMES,
        "exchanges": _EXCHANGES,
        "raw_broker": _NO_LEGACY,
    },
    "RabbitMQ 3": {
        "policy": "nothing over AMQP 1.0 says how a queue is to be there",
        "pools": _NO_BINDING,
        "pool_names": _NO_BINDING,
        "pool_store": _NO_BINDING,
        "mandatory": "it accepts what it drops",
        "backlog": "what is on its way to a link that goes waits for its session's end",
        "raw_broker": _NO_LEGACY,
    },
    "fake": {
        "amqp": _MEMORY,
        "processes": _MEMORY,
        "survives": "cleanup() of any transport empties every queue",
        "ttl": "requests stay in memory for ever",
        "call_monitor": "its heartbeat() does nothing",
        "remote_errors": "exceptions are passed as objects",
        "json": "messages are passed as objects",
        "balanced": "listeners poll every 50 ms, the first one takes everything",
        "credit": "there is no window",
        "mandatory": "a call to nobody waits for its time-out",
        "no_threads": "one polling thread per listener",
        "one_connection": _MEMORY,
        "raw_broker": _MEMORY,
    },
    "rabbit": {
        "amqp": "AMQP 0-9-1",
        "absent": _NO_QUEUE,
        "pool_names": _POOL_NAMES,
        "exchanges": _EXCHANGES,
        "raw_broker": "AMQP 0-9-1",
        "no_threads": "heartbeats and polling have threads",
        "one_connection": "one connection per listener",
    },
}

#: How RabbitMQ 4 is used unless the URL says otherwise.
RABBITMQ_MODE = "rabbit"

#: Options that a bus needs to be tested at all: {group: {option: value}}.
BASE_OPTIONS: dict[str, dict[str, dict[str, object]]] = {
    "rabbit": {
        "oslo_messaging_rabbit": {
            "heartbeat_timeout_threshold": 0,
            "rabbit_transient_queues_ttl": 60,
        }
    },
}

#: Options that set a listener's window: bus -> function of the window.
WINDOW_OPTIONS = {
    "rabbit": lambda n: {"oslo_messaging_rabbit": {"rabbit_qos_prefetch_count": n}},
    "amqp": lambda n: {
        "oslo_messaging_amqp": {"rpc_server_credit": n, "notify_server_credit": n}
    },
}


@dataclasses.dataclass(frozen=True)
class Bus:
    """A bus to test on: the URL, and the row of the table that describes it.

    ``product`` and its ``version`` are what an AMQP 1.0 bus says of itself.
    """

    url: str
    kind: str
    product: str = ""
    version: str = ""

    @property
    def scheme(self) -> str:
        return urllib.parse.urlsplit(self.url).scheme

    @property
    def is_amqp(self) -> bool:
        return self.scheme in ("amqp", "greenamqp")

    def lacks(self) -> dict[str, str]:
        """What is not there, and why: the row of the table."""
        return LACKS.get(self.kind, {})

    def why_not(self, feature: str) -> str | None:
        """The reason why ``feature`` is not there, or None if it is."""
        if feature not in FEATURES:
            raise LookupError(f"no such feature: {feature!r}")
        reason = self.lacks().get(feature)
        return reason and f"{self.kind}: {FEATURES[feature]}: not so: {reason}"

    def url_with(self, netloc: str = "", **query: object) -> str:
        """The URL with another host, with further options in its query."""
        parts = urllib.parse.urlsplit(self.url)
        options = urllib.parse.parse_qsl(parts.query)
        options += [(key, str(value)) for key, value in query.items()]
        return parts._replace(
            netloc=netloc or parts.netloc,
            path=parts.path or "/",
            query=urllib.parse.urlencode(options),
        ).geturl()

    def base_options(self) -> dict[str, dict[str, object]]:
        return BASE_OPTIONS.get(self.kind, {})

    def window_options(self, window: int) -> dict[str, dict[str, object]]:
        """Options with which a listener holds at most ``window`` messages."""
        return WINDOW_OPTIONS["amqp" if self.is_amqp else self.kind](window)


def identify(url: str) -> Bus:
    """Find the row of the table for the bus at ``url``.

    An AMQP 1.0 bus is asked for the product that its Open frame names, by another
    process, so that nothing is imported here before it may be.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("amqp", "greenamqp"):
        return Bus(url, scheme)
    answer = subprocess.run(
        [sys.executable, "-m", "tests.functional.raw", "product", raw_url(url)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=START_TIMEOUT,
        check=True,
        cwd=ROOT,
    )
    said = json.loads(answer.stdout)
    product, version = said["product"], said["version"]
    return Bus(url, _row(product, version, url), product, version)


def _row(product: str, version: str, url: str) -> str:
    """The row of :data:`LACKS`: on RabbitMQ it depends on how it is used, too."""
    if product != "RabbitMQ":
        return product
    if version.startswith("3."):
        return "RabbitMQ 3"
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    return f"RabbitMQ {query.get('addressing_mode', [RABBITMQ_MODE])[0]}"


def raw_url(url: str) -> str:
    """The part of a transport URL that proton understands."""
    parts = urllib.parse.urlsplit(url)
    return f"amqp://{parts.netloc}"


#: The folder that holds the tests package: helpers are started from there.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def spawn(
    command: list[str], env: dict[str, str], **more: Any
) -> tuple[subprocess.Popen[str], IO[str]]:
    """A helper that is talked to in lines over its stdin and stdout, and the file that
    has its stderr."""
    # A file, not a pipe: nobody reads it until the end.
    errors = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        bufsize=1,
        env=env,
        preexec_fn=die_with_parent,
        **more,
    )
    return process, errors


class EmbeddedBroker:
    """An embedded broker in a process of its own, from construction to stop().

    Raises RuntimeError if it does not come up.
    """

    GREETING = "greenamqp broker listening on "

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "greenamqp",
                "broker",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=plain_environment(),
            preexec_fn=die_with_parent,
        )
        seen = []
        while line := self._process.stdout.readline():
            if line.startswith(self.GREETING):
                self.url = line[len(self.GREETING) :].strip()
                break
            seen.append(line)
        else:
            status = self._process.wait(START_TIMEOUT)
            raise RuntimeError(
                f"the embedded broker ended with status {status}: {''.join(seen)}"
            )

    @property
    def port(self) -> int:
        return urllib.parse.urlsplit(self.url).port

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process.stdout.close()


def plain_environment() -> dict[str, str]:
    """The environment for a helper: not the world of this process."""
    hidden = ("GREENAMQP_TEST_HUB", "EVENTLET_HUB")
    return {k: v for k, v in os.environ.items() if k not in hidden}
