# SPDX-License-Identifier: Apache-2.0
"""``greenamqp demo``: the main job of the driver, with its figures.

A notification agent in three processes listens on the exchanges of five services,
an RPC server has 50 targets on one connection, and publishers and clients send to
them, all with stock oslo.messaging over the embedded broker or a given bus. The
parent process keeps account of every message.

    orchestrate   the parent: starts, paces, watches and ends the processes
    roles         what the processes do
    plan          names and shares that both agree on
    workload      the notifications
    ledger        was each message received exactly once?
    probe         can the bus at a given URL be used?
    processes     children of the parent, and what they hold
    report        the line of progress and the summary

This module is imported in every role before its hub is chosen: it imports nothing
but argparse.
"""

import argparse

from greenamqp.command import named, rate, seconds
from greenamqp.command.ending import interrupted_by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument(
        "--url",
        type=named,
        metavar="URL",
        help="use the message bus at this transport URL, on exchanges of names that"
        " are made for the run; without it an embedded broker is started",
    )
    parser.add_argument(
        "--hub",
        choices=("eventlet", "gevent", "threads"),
        default="eventlet",
        help="what the processes run under (default: %(default)s)",
    )
    parser.add_argument(
        "--duration",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long to send (default: %(default)g)",
    )
    parser.add_argument(
        "--rate",
        type=rate,
        default=500.0,
        metavar="N",
        help="notifications per second, of all services together, with RPC traffic"
        " in proportion; 0 is as fast as it goes (default: %(default)g)",
    )
    parser.add_argument(
        "--samples",
        metavar="FILE",
        default="",
        help="take nova's notifications from this file, one JSON body a line,"
        " instead of making them up",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo. Exit status 0 only if nothing was lost, doubled or failed."""
    import importlib.util
    import signal
    import sys

    from greenamqp.command.demo import orchestrate, processes, report, workload

    if args.hub != "threads" and importlib.util.find_spec(args.hub) is None:
        print(
            f"greenamqp demo: --hub {args.hub} needs {args.hub}:"
            f" pip install 'greenamqp[{args.hub}]'",
            file=sys.stderr,
        )
        return 1
    if args.samples:
        try:
            workload.load_samples(args.samples)
        except (OSError, ValueError) as exc:
            print(f"greenamqp demo: --samples: {exc}", file=sys.stderr)
            return 1

    screen = report.Screen(sys.stdout)
    demo = orchestrate.Demo(
        url=args.url,
        duration=args.duration,
        rate=args.rate,
        hub=args.hub,
        samples=args.samples,
        screen=screen,
    )
    # So that the processes are ended in the same way as after Ctrl-C.
    with interrupted_by(signal.SIGTERM):
        try:
            return 0 if demo.run() else 1
        except (orchestrate.DemoFailed, processes.ProcessFailed) as exc:
            screen.say([])
            print(f"greenamqp demo: {exc}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            screen.say([])
            print("greenamqp demo: interrupted, ending its processes", file=sys.stderr)
            return 130
        finally:
            demo.close()
