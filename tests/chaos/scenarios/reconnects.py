# SPDX-License-Identifier: Apache-2.0
"""A process whose connection is broken over and over, and what it holds meanwhile."""

import ctypes
import gc
import os

import oslo_messaging
from oslo_messaging import opts

from tests.chaos.workers import Stage
from tests.functional import leaks

TOPIC = "reconnects"


class Endpoint:
    def echo(self, ctxt, value):
        return value

    def info(self, ctxt, publisher, event_type, payload, metadata):
        pass


def resident() -> int:
    """Bytes of memory that this process has, what is free given back before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(stage: Stage, url: str) -> None:
    """Do what the test says, until it says no more.

    call VALUE: answered once a call gets through, whatever breaks meanwhile; census
    EXPECTED: what there is, once that is as expected or has had time to be.
    """
    stage.eager(0)
    transport = stage.transport(url)
    # oslo.messaging's executors start a worker with each message until they have these.
    for group, options in opts.list_opts():
        transport.conf.register_opts(options, group)
    opts.set_defaults(transport.conf, executor_thread_pool_size=2)
    endpoint = Endpoint()
    server = stage.server(transport, TOPIC, endpoint)
    listener = stage.listener(transport, TOPIC, endpoint)
    client = stage.client(transport, TOPIC)
    notifier = oslo_messaging.Notifier(
        transport, "publisher", driver="messagingv2", topics=[TOPIC], retry=-1
    )
    stage.say("ready")
    while order := stage.hear():
        if "census" in order:
            stage.say(
                "census", census=leaks.settled(order["census"]), resident=resident()
            )
            continue
        notifier.info({}, "event", {})
        stage.say("answered", value=client.call({}, "echo", value=order["call"]))
    stage.end([server, listener])
    transport.cleanup()
