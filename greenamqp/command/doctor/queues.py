# SPDX-License-Identifier: Apache-2.0
"""Queues that the service will use, and that others may have made differently."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence

from oslo_config import cfg
from oslo_messaging import Target

from greenamqp.buses import Addresser, Service
from greenamqp.command.doctor.findings import Findings
from greenamqp.command.messages import PRIORITIES
from greenamqp.driver import GreenAMQPDriver

#: Notification drivers that send over the bus.
_MESSAGING = ("messaging", "messagingv2")


def notified(conf: cfg.ConfigOpts) -> list[Target]:
    """What the service notifies, as its configuration says."""
    group = conf.oslo_messaging_notifications
    if not set(_MESSAGING) & set(group.driver):
        return []
    return [
        Target(topic=f"{topic}.{priority}")
        for topic in group.topics
        for priority in PRIORITIES
    ]


def look_at(
    findings: Findings,
    driver: GreenAMQPDriver,
    called: Sequence[Target],
    notified: Sequence[Target],
    timeout: float,
) -> None:
    """See whether queues that are there are as the service would declare them.  Makes
    none.

    :param called: what it calls or serves by RPC
    :param notified: what it notifies; of each its priority too
    """
    client = driver.client
    if client is None:
        return
    waiter = client.hub.waiter()
    told: list[object] = []

    def done(refused: object) -> None:
        told.append(refused)
        waiter.wake()

    with client.hub.lock:
        context = client.context
        bus = str(context.bus)
        if context.addresser is None or context.management is None:
            return
        asked = sum(
            context.management.compare((each,), done)
            for each in _declarations(context.addresser, called, notified)
        )
    deadline = client.hub.now() + timeout
    while len(told) < asked and waiter.wait(deadline):
        pass
    wrong = [each for each in told if each is not None]
    for refused in wrong:
        findings.failed("queues", bus, str(refused))
    if len(told) < asked:
        findings.failed("queues", bus, f"the bus did not answer within {timeout:g} s")
    elif asked and not wrong:
        findings.ok(
            "queues",
            bus,
            f"{asked} looked for: none is there and differs from what "
            "the service wants",
        )


def _declarations(
    addresser: Addresser, called: Sequence[Target], notified: Sequence[Target]
) -> Iterator[typing.Any]:
    for target in called:
        for node in addresser.rpc_sources(target):
            yield from node.declarations
    for target in notified:
        yield from addresser.destination(target, Service.NOTIFY).declarations
