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
    """See whether queues that are there are as the service would declare them, and who
    receives from those of RPC.  Makes none.

    :param called: what it calls or serves by RPC
    :param notified: what it notifies; of each its priority too
    """
    client = driver.client
    if client is None:
        return
    waiter = client.hub.waiter()
    told: list[object] = []
    seen: list[tuple[Target, str, int, int]] = []

    def done(refused: object) -> None:
        told.append(refused)
        waiter.wake()

    with client.hub.lock:
        context = client.context
        bus = str(context.bus)
        management = context.management
        if context.addresser is None or management is None or not management.compares:
            return
        asked = sum(
            management.compare(
                (each,), lambda *found, of=target: seen.append((of, *found)), done
            )
            for target, each in _declarations(context.addresser, called, notified)
        )
    deadline = client.hub.now() + timeout
    while len(told) < asked and waiter.wait(deadline):
        pass
    wrong = [each for each in told if each is not None]
    for refused in wrong:
        findings.failed("queues", bus, str(refused))
    if len(told) < asked:
        findings.failed("queues", bus, f"the bus did not answer within {timeout:g} s")
        return
    for target, what, receivers, waiting in seen:
        text = f"{what}: {receivers} receive from it, {waiting} messages wait"
        if receivers == 0 and target in called:
            findings.remark("queues", bus, f"{text}: calls of it time out")
        else:
            findings.ok("queues", bus, text)
    for target in called:
        if all(of is not target for of, *_ in seen):
            findings.remark(
                "queues",
                bus,
                f"topic {target.topic!r}: no queue is there: no server has come, or it "
                "has another control_exchange, or is on another bus or virtual host",
            )
    if not called:
        findings.ok("queues", bus, "none of RPC was looked at: --topic names them")


def _declarations(
    addresser: Addresser, called: Sequence[Target], notified: Sequence[Target]
) -> Iterator[tuple[Target, typing.Any]]:
    for target in called:
        for node in addresser.rpc_sources(target):
            for each in node.declarations:
                yield target, each
    for target in notified:
        for each in addresser.destination(target, Service.NOTIFY).declarations:
            yield target, each
