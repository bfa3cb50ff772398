# SPDX-License-Identifier: Apache-2.0
"""One process of one side of a benchmark: a client or a server, or many services.

Run as ``python benchmarks/worker ROLE SIDE PLAN`` by the interpreter of the side's
own environment, so that nothing of this project but this folder can be imported,
except where greenamqp is what is measured.  SIDE and PLAN are JSON.
"""

import json
import logging
import sys


def main():
    """Patch first, import later."""
    role, side_text, plan_text = sys.argv[1:]
    hub = json.loads(side_text)["hub"]
    if hub == "eventlet":
        import eventlet

        eventlet.monkey_patch()
    elif hub == "gevent":
        import gevent.monkey

        gevent.monkey.patch_all()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    from control import Control
    from rpc import Side

    control = Control(hub)
    side = Side.parse(side_text)
    plan = json.loads(plan_text)
    if side.stack == "proton":
        _floor(role, side, control, plan)
    elif side.stack not in ("oslo", "nothing"):
        from peers import STACKS

        client, server = STACKS[side.stack]
        (client if role == "client" else server)(side).run(control)
    elif hub in ("asyncio", "uvloop"):
        from coroutines import CoroutineClient, CoroutineServers

        kind = CoroutineClient if role == "client" else CoroutineServers
        kind(side, plan).run(control)
    elif role == "client":
        from client import Client

        Client(side, plan).run(control)
    elif role == "server":
        from server import Servers

        Servers(side, plan).run(control)
    elif role in ("fleet", "controller"):
        from fleet import Controller, Fleet

        {"fleet": Fleet, "controller": Controller}[role](side, plan).run(control)
    else:
        raise SystemExit(f"no such role: {role}")


def _floor(role, side, control, plan):
    import floor
    import profiler
    from measure import census, mark
    from server import Tally

    tally = Tally()
    handlers = {"mark": mark, **profiler.commands()}
    if role == "client":
        floor.call(side, control, handlers)
        return
    handlers["mark"] = lambda: {**mark(), **tally.report()}
    handlers["received"] = tally.received
    handlers["census"] = census
    floor.serve(side, control, tally, handlers, plan.get("targets", 1))


if __name__ == "__main__":
    main()
