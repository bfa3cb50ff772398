# SPDX-License-Identifier: Apache-2.0
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import oslo_messaging
from oslo_config import cfg

TARGET = oslo_messaging.Target(topic="numbers")


class Endpoint:
    def __init__(self, transport):
        self.client = oslo_messaging.get_rpc_client(transport, TARGET)

    def double(self, ctxt, number):
        time.sleep(0.1)  # a database is asked
        return 2 * number

    def total(self, ctxt, numbers):
        def double(number):
            return self.client.call(ctxt, "double", number=number)

        with ThreadPoolExecutor() as pool:
            return sum(pool.map(double, numbers))


cfg.CONF([])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, "amqp://127.0.0.1:5672")
server = oslo_messaging.get_rpc_server(
    transport, TARGET(server="one"), [Endpoint(transport)], executor="threading"
)
server.start()
print("serving", flush=True)
threading.Event().wait()
