# SPDX-License-Identifier: Apache-2.0
"""An RPC server in a process of its own, as a program.

    python -m tests.functional.peer URL CONF TOPIC SERVER [EXCHANGE]

CONF is a configuration file. It prints ``ready`` when its subscriptions are in
place and ``held NAME`` when somebody calls hold(NAME), and ends when its stdin
does.
"""

import os
import sys
import threading
import warnings

from tests.functional import world


class Endpoint:
    def __init__(self) -> None:
        self._gates: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def _gate(self, name: str) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(name, threading.Event())

    def echo(self, ctxt, value):
        return value

    def pid(self, ctxt):
        return os.getpid()

    def hold(self, ctxt, name):
        """Return when release() is called with the same name."""
        print(f"held {name}", flush=True)
        self._gate(name).wait()
        return name

    def release(self, ctxt, name):
        self._gate(name).set()


def main() -> None:
    # Alone it is a program of native threads; tests.functional.world puts it
    # into another world.
    world.enter(world.current())
    warnings.simplefilter("ignore", DeprecationWarning)
    import oslo_messaging
    from oslo_config import cfg
    from oslo_messaging import conffixture

    url, conf_file, topic, server_name, *exchange = sys.argv[1:]
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[conf_file], default_config_dirs=[])
    conffixture.ConfFixture(conf)
    transport = oslo_messaging.get_rpc_transport(conf, url)
    target = oslo_messaging.Target(
        topic=topic, server=server_name, exchange=exchange[0] if exchange else None
    )
    server = oslo_messaging.get_rpc_server(
        transport, target, [Endpoint()], executor=world.executors()[0]
    )
    server.start()
    print("ready", flush=True)
    # In a green world reading stdin would block everything: a native thread does it.
    read_to_the_end = sys.stdin.read
    if world.current().startswith("eventlet"):
        from eventlet import tpool

        tpool.execute(read_to_the_end)
    elif world.current() == "gevent":
        import gevent

        gevent.get_hub().threadpool.apply(read_to_the_end)
    else:
        read_to_the_end()
    server.stop()
    server.wait()
    transport.cleanup()


if __name__ == "__main__":
    main()
