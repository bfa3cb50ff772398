# SPDX-License-Identifier: Apache-2.0
"""What has to be done besides: on the bus, host by host, and on the way back."""

from __future__ import annotations

import dataclasses
import typing

#: What ``--write`` adds to the name of a file.
SUFFIX = ".greenamqp"


@dataclasses.dataclass
class Plan:
    """Sentences, each in the order in which they are to be done."""

    bus: list[str] = dataclasses.field(default_factory=list)
    hosts: list[str] = dataclasses.field(default_factory=list)
    back: list[str] = dataclasses.field(default_factory=list)


def make(
    kinds: typing.Collection[str],
    files: typing.Sequence[str],
    *,
    tls: bool,
    several_hosts: bool,
    cells: bool,
) -> Plan:
    """The plan.

    :param kinds: ``rabbit`` and ``amqp``, as far as there are such URLs
    :param files: paths that change
    :param tls: whether any URL of ``rabbit://`` has TLS
    :param several_hosts: whether one of these has more than one
    :param cells: whether the service is one whose database has transport URLs
    """
    plan = Plan()
    if "rabbit" in kinds:
        _rabbit(plan, tls, several_hosts)
    if "amqp" in kinds:
        _amqp(plan)
    new = " ".join(f"--config-file {path}{SUFFIX}" for path in files)
    plan.hosts.append(
        "On each host: install greenamqp into the environment of the service, with "
        "oslo.messaging 15 or newer."
    )
    if files:
        plan.hosts += [
            f"On one host: `greenamqp doctor {new}`, until it ends in ok.",
            "There: keep "
            + ", ".join(f"{path} as {path}.before" for path in files)
            + ", have the new one in its place, restart the service, and see what it "
            "logs.",
        ]
    else:
        plan.hosts.append("Restart the service there.")
    if "rabbit" in kinds:
        plan.hosts.append(
            "Then the other hosts, in any order and one by one: on RabbitMQ 4 services "
            "that were moved and those that were not hear each other."
        )
    else:
        plan.hosts.append(
            "Then the other hosts, in any order and one by one: the old driver and "
            "this one hear each other."
        )
    if cells:
        plan.hosts.append(
            "Last, the cells, whose transport URLs are in the API database: "
            "`nova-manage cell_v2 list_cells --verbose` shows them, `nova-manage "
            "cell_v2 update_cell` changes those that begin with rabbit://; a template "
            "({scheme}://...) follows transport_url by itself. Until then they go on "
            "with the old driver."
        )
    _back(plan, kinds, files)
    return plan


def _rabbit(plan: Plan, tls: bool, several_hosts: bool) -> None:
    plan.bus += [
        "RabbitMQ 4.0 or newer: nothing. AMQP 1.0 is spoken on the ports that there "
        "are, with the same users; their rights to configure, write and read are "
        "enough.",
        "RabbitMQ 3: bring it to 4 first. With `rabbitmq-plugins enable "
        "rabbitmq_amqp1_0` greenamqp works there too, but does not hear services on "
        "rabbit://, so that all of them would have to move in one pause; and a policy "
        "must remove its queues: rabbitmqctl set_policy --apply-to queues greenamqp "
        "'^amq\\.gen-|^reply\\.' '{\"expires\":600000}'",
        "Leave addressing_mode alone while services on rabbit:// are left: queues, "
        "exchanges and messages are then theirs. `declared` is for a virtual host on "
        "which all use greenamqp; it does not hear the others, so all change to it in "
        "one pause, after which the old queues are to be deleted.",
    ]
    if tls:
        text = "TLS: certificates are always verified"
        if several_hosts:
            text += (
                ", and each host's must name it, which rabbit:// does not look at "
                "where transport_url has several hosts"
            )
        plan.bus.append(text + ".")


def _amqp(plan: Plan) -> None:
    plan.bus += [
        "qpidd and routers: nothing.",
        "Artemis and Broker-J: the old driver took them for a router; set "
        "addressing_mode = routable to go on so, or leave it for what these buses "
        "have, in all services at once.",
    ]


def _back(
    plan: Plan, kinds: typing.Collection[str], files: typing.Sequence[str]
) -> None:
    if files:
        plan.back.append(
            "On any host, at any time: "
            + ", ".join(f"have {path}.before back as {path}" for path in files)
            + ", and restart the service."
        )
    if "rabbit" in kinds:
        plan.back.append(
            "Nothing has to be undone on the bus: the queues are the same, what waits "
            "in them can be read by both, and those of one process expire. rabbit:// "
            "does not read [oslo_messaging_amqp], and [oslo_messaging_rabbit] was not "
            "changed."
        )
    if "amqp" in kinds:
        plan.back.append(
            "For amqp:// the old driver is in oslo.messaging up to 14.9: install that, "
            "without greenamqp."
        )
