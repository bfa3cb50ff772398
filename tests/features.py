# SPDX-License-Identifier: Apache-2.0
"""What users want of a message bus, and which tests prove it.

A test says what it proves with ``@pytest.mark.proves("feature", ...)``, and which
refusal it shows with ``@pytest.mark.refuses("feature")``. ``python -m
tests.integration`` makes a table of it: message bus by feature.
"""

from __future__ import annotations

import pytest

#: Group of features -> feature -> the line of the table. The order is the table's.
GROUPS: dict[str, dict[str, str]] = {
    "RPC": {
        "call": "calls and their replies, many at once",
        "cast": "casts, to any server and to one by name",
        "fanout": "fanout: each server gets the message once",
        "balanced": "servers of a topic share its messages",
        "remote errors": "exceptions of the server are raised at the caller",
        "time-outs": "a call ends within its time-out, whoever is there",
        "call_monitor": "heartbeats keep a long call alive (call monitor)",
        "ttl": "a request whose caller gave up is not run",
        "mandatory": "a call to nobody fails at once, if asked for (mandatory)",
        "absent": "casts wait for a server that has never been there",
        "backlog": "a server that stops leaves to others what it did not begin",
        "exchanges": "exchanges with the same topic are apart",
    },
    "Notifications": {
        "notify": "every priority and topic, nothing lost, in order",
        "agent": "one listener on the exchanges of many services",
        "compete": "listeners of a topic share its notifications",
        "store": "kept while nobody listens",
        "pools": "each pool of listeners has its own copy",
        "pool_store": "kept for a pool while no member listens",
        "pool_names": "pools of one name on several topics are apart",
        "requeue": "requeued ones come again",
        "batches": "batches by size and time-out",
    },
    "Connection": {
        "reconnect": "subscriptions are restored when it broke",
        "silence": "a silent peer is noticed",
        "one_connection": "one connection for all servers and listeners",
        "others go on": "while one waits for the bus, other (green) threads run",
        "no_threads": "no native thread of its own in a green world",
        "clean": "nothing is left behind after cleanup()",
        "bad input": "bad messages are refused, and nothing else is lost",
        "restart": "what was accepted outlives a kill -9 of the bus",
        "failover": "another node of a cluster takes over",
        "many targets": "many targets in one process",
        "virtual hosts": "virtual hosts are apart",
        "tls": "TLS of the bus, with certificates on both sides",
    },
    "greenamqp's own": {
        "servers": "greenamqp.Server: many targets and pools, one dispatcher",
        "descriptors": "a listener's descriptor in select, epoll, asyncio",
        "policy": "queue policies: expiry, time to live, length",
        "demo": "greenamqp demo and the examples",
    },
    "Together with others": {
        "oslo": "oslo.messaging's own functional tests",
        "rabbit": "greenamqp and rabbit:// services call and hear each other",
    },
}

FEATURES: dict[str, str] = {
    feature: text for group in GROUPS.values() for feature, text in group.items()
}


def named_by(item: pytest.Item, marker: str) -> list[str]:
    """The features that a test's ``proves`` or ``refuses`` markers name.

    Raises pytest.UsageError for one that is not in the table.
    """
    named = {name for found in item.iter_markers(marker) for name in found.args}
    if unknown := named - set(FEATURES):
        raise pytest.UsageError(f"{item.nodeid}: no such features: {sorted(unknown)}")
    return sorted(named)
