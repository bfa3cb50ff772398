# SPDX-License-Identifier: Apache-2.0
"""Count what the process has before and after rounds of use, as a program.

    python -m tests.functional.world WORLD tests.functional.leaks URL CONF

Prints two lines of JSON with descriptors by kind, native threads and greenlets: what
there is after a first round, which loads and starts what stays for the life of the
process, and what there is after ROUNDS more.
"""

import contextlib
import gc
import json
import os
import sys
import threading
import time
import uuid
import warnings
from collections import Counter

ROUNDS = 4

#: Seconds for a native thread that has been joined to leave the kernel's list.
SETTLE = 30

#: Readings in a row that make the first count.
QUIET = 20


def sockets(pid: int | str = "self") -> set[str]:
    """The inodes of a process's sockets, as the kernel's tables have them."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            if link.startswith("socket:["):
                inodes.add(link[len("socket:[") : -1])
    return inodes


def census() -> dict:
    """What this process has: descriptors by what they are, threads, greenlets."""
    fds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the descriptor of the listing itself
        # "socket:[123]" and the like are a kind and a number.
        fds[link.split(":[")[0]] += 1
    gc.collect()
    greenlets = 0
    if "greenlet" in sys.modules:
        kind = sys.modules["greenlet"].greenlet
        greenlets = sum(
            isinstance(obj, kind) and bool(obj) and not obj.dead
            for obj in gc.get_objects()
        )
    return {
        "fds": dict(sorted(fds.items())),
        "threads": len(os.listdir("/proc/self/task")),
        "greenlets": greenlets,
    }


def settled(expected: dict | None = None) -> dict:
    """The census when it is as expected, or when it has had time enough to be.

    Without an expectation: when it has been the same QUIET times in a row.
    """
    deadline = time.monotonic() + SETTLE
    now, same = census(), 0
    while time.monotonic() < deadline:
        if now == expected or (expected is None and same >= QUIET):
            break
        time.sleep(0.1)
        before, now = now, census()
        same = same + 1 if now == before else 0
    return now


def use(url: str, conf_file: str) -> None:
    """A server, a client, a listener and a notifier; all put away again."""
    import oslo_messaging
    from oslo_config import cfg
    from oslo_messaging import conffixture

    from tests.functional import world

    conf = cfg.ConfigOpts()
    conf([], default_config_files=[conf_file], default_config_dirs=[])
    conffixture.ConfFixture(conf)
    rpc = oslo_messaging.get_rpc_transport(conf, url)
    notification = oslo_messaging.get_notification_transport(conf, url)
    topic = f"topic-{uuid.uuid4().hex}"
    executor = world.executors()[0]

    class Endpoint:
        def __init__(self):
            self.got = []

        def echo(self, ctxt, value):
            return value

        def info(self, ctxt, publisher, event_type, payload, metadata):
            self.got.append(event_type)

    endpoint = Endpoint()
    servers = [
        oslo_messaging.get_rpc_server(
            rpc,
            oslo_messaging.Target(topic=topic, server=f"server {n}"),
            [endpoint],
            executor=executor,
        )
        for n in range(3)
    ] + [
        oslo_messaging.get_notification_listener(
            notification,
            [oslo_messaging.Target(topic=topic)],
            [endpoint],
            executor=executor,
        )
    ]
    for server in servers:
        server.start()
    client = oslo_messaging.get_rpc_client(
        rpc, oslo_messaging.Target(topic=topic), timeout=60
    )
    for number in range(10):
        assert client.call({}, "echo", value=number) == number
    client.prepare(fanout=True).cast({}, "echo", value=1)
    nobody = client.prepare(topic=topic + "-nobody", timeout=1)
    try:
        nobody.call({}, "echo", value=1)
    except oslo_messaging.MessagingTimeout:
        pass
    notifier = oslo_messaging.Notifier(
        notification, "publisher", driver="messagingv2", topics=[topic]
    )
    for number in range(10):
        notifier.info({}, str(number), {})
    deadline = time.monotonic() + 60
    while len(endpoint.got) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(endpoint.got) == 10

    def end(server):
        server.stop()
        server.wait()

    # Side by side: an idle worker of oslo.messaging's executor looks only once a
    # second whether it is to end.
    ends = [threading.Thread(target=end, args=(server,)) for server in servers]
    for thread in ends:
        thread.start()
    for thread in ends:
        thread.join()
    rpc.cleanup()
    notification.cleanup()


def main() -> None:
    warnings.simplefilter("ignore")
    url, conf_file = sys.argv[1:]
    use(url, conf_file)
    before = settled()
    print(json.dumps(before), flush=True)
    for _ in range(ROUNDS):
        use(url, conf_file)
    print(json.dumps(settled(before)), flush=True)


if __name__ == "__main__":
    main()
