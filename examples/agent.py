# SPDX-License-Identifier: Apache-2.0
"""A telemetry agent in ceilometer's way: one process, many services, two pools.

    python examples/agent.py [--url amqp://host] [--database samples.sqlite]
                             [--expect N]

It listens on the notification exchanges of five services over one connection.  Pool
``metering`` writes a sample for each notification into sqlite; pool ``audit`` counts
what happened, by event type.  Each pool gets its own copy of every notification, and
other listeners lose none to them.  While the agent is down the message bus keeps what
is for its pools: started again it drains the queues first.

It ends on SIGTERM or SIGINT, or after N samples.  ``examples/publish.py`` publishes.
"""

import argparse
import collections
import signal
import sqlite3
import threading

import oslo_messaging
from oslo_config import cfg

import greenamqp

SERVICES = ("nova", "neutron", "cinder", "glance", "keystone")


class Metering:
    """Writes samples; a notification is acknowledged when its sample is on disk."""

    def __init__(self, path):
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS samples ("
            "message_id TEXT PRIMARY KEY, publisher TEXT, event_type TEXT, at TEXT)"
        )
        self._database.commit()

    def info(self, messages):
        rows = [
            (
                message["metadata"]["message_id"],
                message["publisher_id"],
                message["event_type"],
                message["metadata"]["timestamp"],
            )
            for message in messages
        ]
        with self._lock, self._database:
            # Delivered again after a lost connection, it is still one sample.
            self._database.executemany(
                "INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?)", rows
            )

    def count(self):
        with self._lock:
            return self._database.execute("SELECT count(*) FROM samples").fetchone()[0]

    def close(self):
        self._database.close()


class Audit:
    """Counts events."""

    def __init__(self):
        self.seen = collections.Counter()

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        self.seen[event_type] += 1


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--database", default="samples.sqlite")
    parser.add_argument("--expect", type=int, default=0, help="end after so many")
    args = parser.parse_args(argv)

    cfg.CONF([], project="agent")
    transport = oslo_messaging.get_notification_transport(cfg.CONF, url=args.url)
    targets = [
        oslo_messaging.Target(topic="notifications", exchange=name) for name in SERVICES
    ]
    metering, audit = Metering(args.database), Audit()
    before = metering.count()
    done = threading.Event()

    server = greenamqp.Server(transport)
    server.listen_for_notifications(
        targets, [metering], pool="metering", batch_size=50, batch_timeout=0.2
    )
    server.listen_for_notifications(targets, [audit], pool="audit")
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: done.set())
    server.start()
    print(f"listening to {', '.join(SERVICES)}", flush=True)
    while not done.wait(0.1):
        if args.expect and metering.count() - before >= args.expect:
            break
    server.stop()
    server.wait()
    transport.cleanup()
    print(f"{metering.count()} samples in {args.database}")
    for event_type, number in sorted(audit.seen.items()):
        print(f"  {event_type}: {number}")
    metering.close()


if __name__ == "__main__":
    main()
