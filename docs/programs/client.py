# SPDX-License-Identifier: Apache-2.0
import oslo_messaging
from oslo_config import cfg

transport = oslo_messaging.get_rpc_transport(cfg.CONF, url="amqp://127.0.0.1:5672")
client = oslo_messaging.get_rpc_client(
    transport, oslo_messaging.Target(topic="greeting", version="1.0")
)
print(client.call({}, "greet", name="world"))
transport.cleanup()
