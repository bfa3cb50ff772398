# SPDX-License-Identifier: Apache-2.0
"""``greenamqp doctor``: what connects to what, and what is wrong with it.

Exit status: 0 all is in order, 1 something is wrong, 2 the arguments are.
"""

from __future__ import annotations

import argparse
import logging
import typing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    from greenamqp.command import formats, named, service

    service.add_arguments(parser)
    formats.add_argument(parser)
    parser.add_argument(
        "--topic",
        action="append",
        type=named,
        default=[],
        help="of RPC, whose queues are compared with the configuration (repeatable)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="connect only, until one host can be used, and send nothing: for probes",
    )


def run(args: argparse.Namespace) -> int:
    """Look at everything; returns the exit status."""
    from greenamqp.command.doctor.findings import Findings

    # What the driver warns of is among what is found; it would be shown twice.
    logging.getLogger("greenamqp").addHandler(logging.NullHandler())
    findings = Findings(print if args.format == "text" else None)
    _examine(args, findings)
    print(
        findings.summary() if args.format == "text" else findings.rendered(args.format)
    )
    return 1 if findings.failures else 0


def _examine(args: argparse.Namespace, findings: typing.Any) -> None:
    from oslo_config import cfg
    from oslo_messaging import Target

    from greenamqp import options
    from greenamqp.command import service
    from greenamqp.command.doctor import hosts, queues, roundtrip, settings
    from greenamqp.command.doctor.advice import Advice

    wrong = Advice("configuration", "who configures the service", "mend what is named")
    try:
        conf = service.configuration(args)
        names = settings.written(args.config_file)
        urls = {"RPC": service.parse(conf, args.url)}
        notifying = service.parse(conf, args.url, notifications=True)
        if str(notifying) != str(urls["RPC"]):
            urls["notifications"] = notifying
        else:
            notifying = urls["RPC"]
        values = {what: options.of(conf, url) for what, url in urls.items()}
    except (service.Unusable, cfg.Error, ValueError) as exc:
        findings.failed("configuration", "configuration", str(exc), None, wrong)
        return
    for what, url in urls.items():
        for remark in settings.remarks(values[what], url, names):
            findings.remark("options", what, remark)
        try:
            bus = hosts.look_at(
                findings, url, values[what], args.timeout, one_is_enough=args.quick
            )
        except ValueError as exc:
            findings.failed("configuration", what, str(exc))
            continue
        if bus is None:
            continue
        for remark in settings.remarks_on_bus(values[what], names, bus):
            findings.remark("options", what, remark)
        if args.quick:
            continue
        try:
            transport = service.transport(conf, str(url), args.timeout, reached=True)
        except service.Unusable as exc:
            findings.failed("configuration", what, str(exc), None, wrong)
            continue
        try:
            driver = transport._driver
            if roundtrip.make(findings, driver, values[what], bus, args.timeout):
                called = [Target(topic=topic) for topic in args.topic]
                queues.look_at(
                    findings,
                    driver,
                    called if what == "RPC" else (),
                    queues.notified(conf) if url is notifying else (),
                    args.timeout,
                )
        finally:
            transport.cleanup()
