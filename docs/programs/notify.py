# SPDX-License-Identifier: Apache-2.0
import oslo_messaging
from oslo_config import cfg

oslo_messaging.set_transport_defaults(control_exchange="nova")

transport = oslo_messaging.get_notification_transport(
    cfg.CONF, url="amqp://127.0.0.1:5672"
)
notifier = oslo_messaging.Notifier(
    transport, "nova-compute:cmp1", driver="messagingv2", topics=["notifications"]
)
notifier.info({}, "instance.create.end", {"id": "1"})
transport.cleanup()
