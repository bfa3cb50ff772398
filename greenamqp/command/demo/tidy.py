# SPDX-License-Identifier: Apache-2.0
"""What the demo made on a bus that was there before, and its removal.

What a process has for itself (queues of replies and of fanout casts) goes with the
process, or by itself soon after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from oslo_messaging import Target

from greenamqp.buses import Addresser, Node, Refused, Service
from greenamqp.command.demo import plan, probe, workload

#: How long the bus may take to answer, seconds.
_WITHIN = 20.0


def _used(addresser: Addresser, run: plan.Run) -> Iterator[Node]:
    """What the roles sent to and listened on."""
    notified = [
        Target(
            exchange=run.exchange(service), topic=f"{run.name(workload.TOPIC)}.{each}"
        )
        for service in workload.SERVICES
        for each in workload.PRIORITIES
    ]
    for target in notified:
        yield addresser.destination(target, Service.NOTIFY)
    for pool in plan.POOLS:
        # Where the bus has no pools, there is nothing of them.
        with contextlib.suppress(NotImplementedError):
            yield from addresser.notification_sources(notified, run.name(pool))
    for topic in plan.RPC_TOPICS:
        for server in plan.server_names():
            target = Target(
                exchange=run.exchange("openstack"), topic=run.name(topic), server=server
            )
            yield from addresser.rpc_sources(target)


def tidy(run: plan.Run) -> str:
    """Remove from the bus what a run has made there.  Returns what it could not
    remove and why, in one line; empty: it removed all.

    May block for some 20 seconds.
    """
    try:
        with probe.connected(run.url) as bus:
            told: list[Refused | None] = []
            waiter = bus.hub.waiter()

            def done(refused: Refused | None) -> None:
                told.append(refused)
                waiter.wake()

            with bus.hub.lock:
                bus.management.remove(
                    [
                        (node.address, node.declarations)
                        for node in _used(bus.addresser, run)
                    ],
                    done,
                )
            deadline = bus.hub.now() + _WITHIN
            while not told and bus.up and waiter.wait(deadline):
                pass
    except probe.Unusable as exc:
        return str(exc)
    if not told:
        return f"the bus did not answer within {_WITHIN:.0f} s"
    return str(told[0]) if told[0] is not None else ""
