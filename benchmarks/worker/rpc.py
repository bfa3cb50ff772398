# SPDX-License-Identifier: Apache-2.0
"""A side as its workers know it, and the transports that it makes."""

import json
import os
import tempfile


def configure(options):
    """oslo.config's global object, with `options` by group; the drivers read theirs
    when they are made.  It is the global one since oslo.messaging 18 registers some
    of the options that RPC needs there alone."""
    from oslo_config import cfg

    with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
        for group, values in options.items():
            file.write(f"[{group}]\n")
            for name, value in values.items():
                file.write(f"{name} = {value}\n")
    try:
        cfg.CONF(["--config-file", file.name], project="benchmark")
    finally:
        os.unlink(file.name)
    if options.get("oslo_messaging_amqp", {}).get("metrics") == "true":
        collect()
    return cfg.CONF


def collect():
    """Have somebody whom metrics are for, or they would cost nothing."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))


class Side:
    """What a worker knows of its side; from the command line.

    :param hub: eventlet, gevent, threads, or blocking
    :param url: transport URL
    :param stack: "oslo", "nothing" for oslo.messaging with a driver that does
        nothing, or "proton" for proton's C API alone
    :param server: "stock" for oslo.messaging's own servers, "own" for greenamqp's
    :param options: oslo.config options by group
    :param prefix: of all topics and addresses
    """

    def __init__(
        self, *, hub, url, stack="oslo", server="stock", options=None, prefix="bench"
    ):
        self.hub = hub
        self.url = url
        self.stack = stack
        self.server = server
        self.prefix = prefix
        self._options = options or {}
        self._conf = None

    @classmethod
    def parse(cls, text):
        """From JSON."""
        return cls(**json.loads(text))

    def topic(self, number=0):
        """The topic of the target of that number, or name."""
        return f"{self.prefix}-{number}"

    def transport(self, kind):
        """A new transport; `kind` is "rpc" or "notification"."""
        conf = self._conf = self._conf or configure(self._options)
        import oslo_messaging

        if self.stack == "nothing":
            from nothing import transport

            return transport(conf, kind)
        if kind == "rpc":
            return oslo_messaging.get_rpc_transport(conf, self.url)
        return oslo_messaging.get_notification_transport(conf, self.url)

    @property
    def executor(self):
        """The executor that a stock server takes: under gevent, patched threads."""
        return "eventlet" if self.hub == "eventlet" else "threading"
