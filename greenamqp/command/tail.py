# SPDX-License-Identifier: Apache-2.0
"""``greenamqp tail``: notifications as they pass, taken from nobody.

It is a pool of its own, which gets a copy of each notification; the bus is asked to
remove its queue when it is gone.  Where the bus has no pools, or would keep the queue,
it refuses.

Exit status: 0 after ``--count`` notifications, 130 when interrupted, 1 if the bus
cannot do it or is not there, 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import signal
import sys
import typing
import uuid

from greenamqp.command import count, formats, named, service
from greenamqp.command.ending import interrupted_by
from greenamqp.command.messages import PRIORITIES

#: Seconds without a consumer after which the bus removes the copy's queue.
_LIFE = 10.0

_Chosen = typing.Callable[[dict[str, typing.Any]], bool]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    service.add_arguments(parser)
    parser.add_argument(
        "topic", nargs="*", type=named, help="without the priority (notifications)"
    )
    parser.add_argument(
        "--exchange",
        action="append",
        type=named,
        default=[],
        help="control_exchange otherwise (repeatable)",
    )
    parser.add_argument(
        "--priority",
        action="append",
        default=[],
        choices=PRIORITIES,
        help="all of them otherwise (repeatable)",
    )
    parser.add_argument(
        "--event",
        action="append",
        type=named,
        default=[],
        metavar="PATTERN",
        help="event types such as 'compute.instance.*' alone (repeatable)",
    )
    parser.add_argument(
        "--where",
        metavar="JMESPATH",
        help="those alone for which it gives something, such as "
        "\"payload.state == 'error'\"; needs jmespath",
    )
    parser.add_argument("--count", type=count, metavar="N", help="end after so many")
    formats.add_argument(
        parser,
        people=("text",),
        what="a line for people; the whole as a line of JSON or a document of YAML; "
        "or a line of CSV",
    )


def run(args: argparse.Namespace) -> int:
    """Show them; returns the exit status."""
    import oslo_messaging

    try:
        chosen = _filter(args)
        conf = service.configuration(args)
        transport = service.transport(conf, args.url, args.timeout, notifications=True)
    except service.Unusable as exc:
        print(f"greenamqp tail: {exc}", file=sys.stderr)
        return exc.status

    with interrupted_by(signal.SIGTERM):
        try:
            return _follow(transport._driver, args, chosen)
        except (oslo_messaging.MessagingException, NotImplementedError) as exc:
            print(f"greenamqp tail: {exc}", file=sys.stderr)
            return 1
        finally:
            transport.cleanup()


def _follow(driver: typing.Any, args: argparse.Namespace, chosen: _Chosen) -> int:
    from oslo_messaging import Target

    from greenamqp.policy import QueuePolicy

    targets = [
        Target(exchange=exchange, topic=topic)
        for exchange in args.exchange or [None]
        for topic in args.topic or ["notifications"]
    ]
    for target in targets:
        driver.policies.set(target, QueuePolicy(expires=_LIFE))
    listener = driver.subscribe_for_notifications(
        [
            (target, priority)
            for target in targets
            for priority in args.priority or PRIORITIES
        ],
        f"greenamqp-tail-{uuid.uuid4().hex}",
        1,
        None,
    )
    shown = 0
    try:
        hub = listener.hub
        if not listener.wait_attached(hub.now() + args.timeout):
            reason = listener.refusal or "no answer in time"
            print(f"greenamqp tail: not subscribed: {reason}", file=sys.stderr)
            return 1
        print("greenamqp tail: subscribed", file=sys.stderr, flush=True)
        if args.format == "csv":
            print(formats.as_csv([], _COLUMNS, header=True), flush=True)
        while args.count is None or shown < args.count:
            for notification in listener.poll():
                notification.acknowledge()
                if chosen(notification.message):
                    shown += 1
                    print(_shown(notification.message, args.format), flush=True)
        return 0
    finally:
        listener.stop()
        listener.cleanup()


def _filter(args: argparse.Namespace) -> _Chosen:
    """:raises Unusable: if the JMESPath cannot be used"""
    matches: typing.Any = None
    if args.where:
        try:
            import jmespath
        except ImportError:
            raise service.Unusable(
                "--where needs jmespath: pip install 'greenamqp[cli]'"
            ) from None
        try:
            matches = jmespath.compile(args.where).search
            with contextlib.suppress(jmespath.exceptions.JMESPathTypeError):
                matches({})  # it looks its functions up when it is used
        except jmespath.exceptions.JMESPathError as exc:
            said = str(exc).partition("\n")[0]  # what follows shows where
            raise service.Unusable(f"--where: {said.rstrip(':')}") from None

    def chosen(message: dict[str, typing.Any]) -> bool:
        kind = str(message.get("event_type", ""))
        if args.event and not any(fnmatch.fnmatchcase(kind, one) for one in args.event):
            return False
        try:
            return matches is None or bool(matches(message))
        except ValueError:  # jmespath's: a function takes another kind of value
            return False

    return chosen


_HEAD = ("timestamp", "priority", "publisher_id", "event_type")
_COLUMNS = (*_HEAD, "payload")


def _shown(message: dict[str, typing.Any], form: str) -> str:
    if form == "json":
        return json.dumps(message, default=str)
    if form == "yaml":
        return f"---\n{formats.as_yaml(message)}"
    payload = json.dumps(message.get("payload"), default=str)
    if form == "csv":
        return formats.as_csv([message | {"payload": payload}], _COLUMNS, header=False)
    named = (formats.on_one_line(str(message.get(key, ""))) for key in _HEAD)
    return f"{' '.join(named)} {payload}"
