# SPDX-License-Identifier: Apache-2.0
"""Publish notifications as five services would, for examples/agent.py to collect.

    python examples/publish.py [--url amqp://host] [--count N]

It ends when the message bus has taken all N of each service.
"""

import argparse

import oslo_messaging
from oslo_config import cfg

EVENTS = {
    "nova": "compute.instance.create.end",
    "neutron": "port.create.end",
    "cinder": "volume.create.end",
    "glance": "image.upload",
    "keystone": "identity.project.created",
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--count", type=int, default=20, help="of each service")
    args = parser.parse_args(argv)

    cfg.CONF([], project="publish")
    for service, event_type in EVENTS.items():
        # The exchange of a notifier is that of its service.
        oslo_messaging.set_transport_defaults(control_exchange=service)
        transport = oslo_messaging.get_notification_transport(cfg.CONF, url=args.url)
        notifier = oslo_messaging.Notifier(
            transport, f"{service}.host", driver="messagingv2", topics=["notifications"]
        )
        for number in range(args.count):
            # Returns when the message bus has accepted it.
            notifier.info({}, event_type, {"number": number})
        transport.cleanup()
    print(f"{args.count * len(EVENTS)} notifications published")


if __name__ == "__main__":
    main()
