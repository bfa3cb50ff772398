# SPDX-License-Identifier: Apache-2.0
import oslo_messaging
from oslo_config import cfg

cfg.CONF([])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, "amqp://127.0.0.1:5672")
target = oslo_messaging.Target(topic="numbers")
client = oslo_messaging.get_rpc_client(transport, target)
print(client.call({}, "total", numbers=[1, 2, 3, 4]))
transport.cleanup()
