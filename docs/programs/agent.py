# SPDX-License-Identifier: Apache-2.0
import oslo_messaging
from oslo_config import cfg

SERVICES = ("nova", "neutron", "cinder", "glance", "keystone")


class Meter:
    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        print("info", publisher_id, event_type)

    def error(self, ctxt, publisher_id, event_type, payload, metadata):
        print("error", publisher_id, event_type)


transport = oslo_messaging.get_notification_transport(
    cfg.CONF, url="amqp://127.0.0.1:5672"
)
listener = oslo_messaging.get_notification_listener(
    transport,
    [oslo_messaging.Target(exchange=name, topic="notifications") for name in SERVICES],
    [Meter()],
    executor="threading",
    pool="metering",
)
listener.start()
try:
    input("Listening; press Enter to stop. ")
finally:
    listener.stop()
    listener.wait()
    transport.cleanup()
