# SPDX-License-Identifier: Apache-2.0
import oslo_messaging
from oslo_config import cfg


class Greeter:
    target = oslo_messaging.Target(version="1.0")

    def greet(self, ctxt, name):
        return f"Hello, {name}"


transport = oslo_messaging.get_rpc_transport(cfg.CONF, url="amqp://127.0.0.1:5672")
server = oslo_messaging.get_rpc_server(
    transport,
    oslo_messaging.Target(topic="greeting", server="one"),
    [Greeter()],
    executor="threading",
)
server.start()
try:
    input("Serving; press Enter to stop. ")
finally:
    server.stop()
    server.wait()
    transport.cleanup()
