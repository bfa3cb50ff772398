# SPDX-License-Identifier: Apache-2.0
"""Use the bus and leave without a word, as a program.

    python -m tests.functional.world WORLD tests.functional.leaver URL CONF WHAT TOPIC

WHAT is left as it is when the program ends: ``client`` a transport that has made
calls, ``server`` also a stock server that was stopped, ``listener`` a notification
listener that was stopped. It prints ``done`` last.

With ``handler`` it is a transport that the program uses once more, and cleans up, in
an exit handler that is older than the driver; that one prints what the server of TOPIC,
which is another process's, answers, and then ``done``.
"""

import atexit
import sys
import warnings


def main() -> None:
    warnings.simplefilter("ignore")
    import oslo_messaging
    from oslo_config import cfg
    from oslo_messaging import conffixture

    from tests.functional import world

    url, conf_file, what, topic = sys.argv[1:]
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[conf_file], default_config_dirs=[])
    conffixture.ConfFixture(conf)
    executor = world.executors()[0]

    class Endpoint:
        def echo(self, ctxt, value):
            return value

        def info(self, *args):
            pass

    if what == "handler":

        def last() -> None:
            print(client.call({}, "who"))
            transport.cleanup()
            print("done", flush=True)

        atexit.register(last)
        # Handlers run in the reverse order: proton's, if it has one, comes before.
        assert "cproton" not in sys.modules
        transport = oslo_messaging.get_rpc_transport(conf, url)
        client = oslo_messaging.get_rpc_client(
            transport, oslo_messaging.Target(topic=topic), timeout=60
        )
        assert client.call({}, "who")
        return
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
