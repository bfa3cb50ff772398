# SPDX-License-Identifier: Apache-2.0
"""``greenamqp call``, ``cast`` and ``notify``: messages by hand, one or many.

Exit status: 0 all went well, 1 one did not, 2 the arguments are wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import typing
import uuid

from greenamqp.command import count, named, rate, service
from greenamqp.command.percentiles import percentile

#: Of notifications.
PRIORITIES = ("audit", "debug", "info", "warn", "error", "critical", "sample")


class Command:
    """One of the three.

    :param name: of the subcommand
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments of the subcommand."""
        service.add_arguments(parser)
        parser.add_argument("topic", type=named)
        if self._name == "notify":
            parser.add_argument("event_type", type=named)
            parser.add_argument(
                "payload", nargs="?", type=_json, default={}, help="JSON"
            )
            parser.add_argument(
                "--priority",
                default="info",
                choices=PRIORITIES,
            )
            parser.add_argument(
                "--publisher", type=named, default="greenamqp", metavar="ID"
            )
        else:
            parser.add_argument("method", type=named)
            parser.add_argument(
                "arguments",
                nargs="?",
                type=_arguments,
                default={},
                help="of the method, a JSON object such as '{\"value\": 1}'",
            )
            parser.add_argument(
                "--server", type=named, help="the one server that is meant"
            )
            parser.add_argument("--namespace")
            parser.add_argument("--version", default="1.0")
            if self._name == "cast":
                parser.add_argument(
                    "--fanout", action="store_true", help="to all servers"
                )
        parser.add_argument("--exchange", type=named, help="control_exchange otherwise")
        parser.add_argument(
            "--context", type=_object, default={}, metavar="JSON", help="of the request"
        )
        parser.add_argument(
            "--count", type=count, default=1, metavar="N", help="so many of them"
        )
        parser.add_argument(
            "--rate",
            type=rate,
            default=0.0,
            metavar="N",
            help="so many in a second; 0: one after the other (%(default)g)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Send; returns the exit status."""
        try:
            conf = service.configuration(args)
            if args.exchange:
                service.set_exchange(conf, args.exchange)
            transport = service.transport(
                conf, args.url, args.timeout, notifications=self._name == "notify"
            )
        except service.Unusable as exc:
            print(f"greenamqp {self._name}: {exc}", file=sys.stderr)
            return exc.status
        try:
            status = _send_all(self._name, self._sender(transport, args), args)
            if status:
                _say_where(transport)
            return status
        finally:
            transport.cleanup()

    def _sender(
        self, transport: typing.Any, args: argparse.Namespace
    ) -> typing.Callable[[], object]:
        import oslo_messaging

        if self._name == "notify":
            return lambda: _notify(transport, args)
        target = oslo_messaging.Target(
            topic=args.topic,
            server=args.server,
            namespace=args.namespace,
            version=args.version,
            fanout=getattr(args, "fanout", None) or None,
        )
        client = oslo_messaging.get_rpc_client(transport, target, timeout=args.timeout)
        act = client.call if self._name == "call" else client.cast
        return lambda: act(args.context, args.method, **args.arguments)


def _arguments(text: str) -> dict[str, typing.Any]:
    """:raises argparse.ArgumentTypeError: if no client can send them"""
    value = _object(text)
    # Parameters of oslo.messaging's own client.
    if taken := sorted(value.keys() & {"self", "ctxt", "method"}):
        raise argparse.ArgumentTypeError(
            f"oslo.messaging has no way to send an argument {taken[0]!r}"
        )
    return value


def _notify(transport: typing.Any, args: argparse.Namespace) -> None:
    """As oslo.messaging's Notifier does, which logs a failure and goes on."""
    import oslo_messaging

    message = notification(args.event_type, args.payload, args.publisher, args.priority)
    target = oslo_messaging.Target(topic=f"{args.topic}.{args.priority}")
    transport._send_notification(target, args.context, message, version=2.0, retry=0)


def notification(
    event_type: str,
    payload: typing.Any,
    publisher: str = "greenamqp",
    priority: str = "info",
) -> dict[str, typing.Any]:
    """A notification as oslo.messaging's Notifier makes it."""
    from oslo_utils import timeutils

    return {
        "message_id": str(uuid.uuid4()),
        "publisher_id": publisher,
        "event_type": event_type,
        "priority": priority.upper(),
        "payload": payload,
        "timestamp": str(timeutils.utcnow()),
    }


def _send_all(
    name: str, send: typing.Callable[[], object], args: argparse.Namespace
) -> int:
    """Send as many as asked for, as fast as asked for."""
    import oslo_messaging

    taken: list[float] = []
    failed = 0
    begun = time.monotonic()
    for number in range(args.count):
        if args.rate:
            time.sleep(max(0.0, begun + number / args.rate - time.monotonic()))
        at = time.monotonic()
        try:
            result = send()
        except (oslo_messaging.MessagingException, NotImplementedError) as exc:
            failed += 1
            print(f"greenamqp {name}: {exc}", file=sys.stderr)
        except Exception as exc:  # what the server raised, as its own class
            failed += 1
            print(f"greenamqp {name}: {type(exc).__name__}: {exc}", file=sys.stderr)
        else:
            taken.append(time.monotonic() - at)
            if name == "call":
                print(json.dumps(result, default=str))
    if args.count > 1:
        _show_rate(taken, failed, time.monotonic() - begun)
    return 1 if failed else 0


def _say_where(transport: typing.Any) -> None:
    """To whom it may have gone: who listens elsewhere cannot have got it."""
    from greenamqp import describe

    for connection in describe(transport)["connections"]:
        for sender in connection["senders"]:
            if sender["address"] is None:
                continue  # there is no way to write it
            where = f"{connection['host']}: {connection['bus'] or 'not connected'}"
            print(f"  sent to {sender['address']} ({where})", file=sys.stderr)


def _show_rate(taken: list[float], failed: int, seconds: float) -> None:
    line = f"{len(taken)} of {len(taken) + failed} in {seconds:.2f} s"
    if taken:
        taken.sort()
        middle = taken[len(taken) // 2] * 1000
        slow = percentile(taken, 0.99) * 1000
        line += (
            f", {len(taken) / seconds:.0f}/s; half within {middle:.1f} ms, 99 % within "
            f"{slow:.1f} ms"
        )
    print(line, file=sys.stderr)


def _json(text: str) -> typing.Any:
    """:raises argparse.ArgumentTypeError: saying where it is no JSON"""
    try:
        return json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {exc}") from None


def _object(text: str) -> dict[str, typing.Any]:
    """:raises argparse.ArgumentTypeError: if it is something else"""
    value = _json(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
