# SPDX-License-Identifier: Apache-2.0
"""Use the bus and leave without a word, as a program.

    python -m tests.functional.world WORLD tests.functional.leaver URL CONF WHAT

WHAT is left as it is when the program ends: ``client`` a transport that has made
calls, ``server`` also a stock server that was stopped, ``listener`` a notification
listener that was stopped. It prints ``done`` last.
"""

import sys
import uuid
import warnings


def main() -> None:
    warnings.simplefilter("ignore")
    import oslo_messaging
    from oslo_config import cfg
    from oslo_messaging import conffixture

    from tests.functional import world

    url, conf_file, what = sys.argv[1:]
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[conf_file], default_config_dirs=[])
    conffixture.ConfFixture(conf)
    executor = world.executors()[0]
    topic = f"topic-{uuid.uuid4().hex}"

    class Endpoint:
        def echo(self, ctxt, value):
            return value

        def info(self, *args):
            pass

    if what in ("client", "server"):
        served = oslo_messaging.get_rpc_transport(conf, url)
        server = oslo_messaging.get_rpc_server(
            served,
            oslo_messaging.Target(topic=topic, server="s"),
            [Endpoint()],
            executor=executor,
        )
        server.start()
        transport = oslo_messaging.get_rpc_transport(conf, url)
        client = oslo_messaging.get_rpc_client(
            transport, oslo_messaging.Target(topic=topic), timeout=60
        )
        assert client.call({}, "echo", value=1) == 1
        server.stop()
        server.wait()
        if what == "client":
            served.cleanup()
    else:
        transport = oslo_messaging.get_notification_transport(conf, url)
        listener = oslo_messaging.get_notification_listener(
            transport,
            [oslo_messaging.Target(topic=topic)],
            [Endpoint()],
            executor=executor,
        )
        listener.start()
        notifier = oslo_messaging.Notifier(
            transport, "publisher", driver="messagingv2", topics=[topic]
        )
        notifier.info({}, "event", {})
        listener.stop()
        listener.wait()
    print("done", flush=True)


if __name__ == "__main__":
    main()
