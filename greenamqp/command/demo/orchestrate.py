# SPDX-License-Identifier: Apache-2.0
"""The parent of the demo's processes: starts, paces, watches and ends them.

It sends and receives no message itself. It waits for what a process says, never
for a time, except for the duration of the load. Every wait has a limit after which
the demo fails with the name of what it waited for. To be used from the main thread
of a process without monkey patching.
"""

import dataclasses
import re
import time
import uuid
import warnings
from collections.abc import Callable, Collection

from greenamqp.command.demo import plan, processes, report, workload
from greenamqp.command.masking import masked

#: How long the broker may take to listen and a role to be ready, seconds. Generous:
#: a dozen Python processes start at once, perhaps on one slow core.
_READY_WITHIN = 120.0

#: How long a role may take to carry out a command, seconds. More than a call may
#: take, as those under way are waited for.
_DONE_WITHIN = plan.CALL_TIMEOUT + 30.0

#: What was sent and has not come is lost when nothing at all has come for this
#: long, seconds.
_QUIET = 15.0

#: How often to look at what the processes hold, seconds.
_LOOK_EVERY = 1.0

#: What is not looked at on some buses.
_LEFT_OUT = (
    "Left out: whether a notification came on its own exchange, which this bus does"
    " not tell"
)

_LISTENING = re.compile(r"listening on amqp://\S+:(\d+)\b")


class DemoFailed(Exception):
    """The demo could not be run to its end; the text says why."""


class Demo:
    """One run. :meth:`run` does it all; ``close`` must be called after it."""

    def __init__(
        self,
        *,
        url: str | None,
        duration: float,
        rate: float,
        hub: str,
        samples: str,
        screen: report.Screen,
    ):
        self._crew = processes.Crew()
        self._screen = screen
        self._duration = duration
        self._broker: processes.Process | None = None
        run_id = uuid.uuid4().hex[:8]
        self._run = plan.Run(
            id=run_id,
            url=url or "",
            hub=hub,
            rate=rate,
            # Others may use these exchanges, or an earlier run may have left
            # something in them.
            suffix=f"-demo-{run_id}" if url else "",
            samples=samples,
        )
        self._ports: frozenset[int] = frozenset()
        self._picture = report.Picture(run=self._run, bus="")
        for stream, receivers in plan.streams():
            self._picture.ledger.expect(stream, receivers)
        #: Roles that said they are ready, and (role, command) pairs carried out.
        self._ready: set[str] = set()
        self._did: set[tuple[str, str]] = set()
        self._finished: set[str] = set()
        self._last_receipt = 0.0
        self._next_look = 0.0
        self._next_screen = 0.0
        self._load_since: float | None = None
        self._tidied = False

    def run(self) -> bool:
        """Run the demo and show its summary. True if all went well.

        Raises DemoFailed or processes.ProcessFailed if it could not be finished.
        """
        self._screen.say(["Starting the processes ..."])
        self._find_bus()
        server = self._start_role("rpc-server", "server")
        agents = [
            self._start_role(worker, "agent", pool)
            for pool in plan.POOLS
            for worker in plan.worker_names(pool)
        ]
        publishers = [
            self._start_role(f"{service}-publisher", "publisher", service)
            for service in workload.SERVICES
        ]
        clients = [self._start_role(name, "client") for name in plan.client_names()]
        self._await_ready([server, *agents, *publishers, *clients])

        senders = [*publishers, *clients]
        self._picture.phase = "Running"
        self._load_since = self._last_receipt = time.monotonic()
        self._command(senders, "start")
        self._wait(lambda: False, self._duration)
        self._command(senders, "pause")
        self._load_since = None
        self._picture.phase = "Draining"
        self._await_receipts()

        self._picture.phase = "Finishing"
        self._dismiss([*agents, server])
        inspector = self._start_role("inspector", "inspector")
        self._await_ready([inspector])
        self._command(publishers, "mark")
        if not self._wait(lambda: "inspector" in self._finished, _QUIET):
            self._picture.events["not all markers came to the end of the pools"] += 1
        self._dismiss([inspector, *senders])
        if self._broker is not None:
            self._broker.dismissed = True
        self._tidy()
        lines, well = report.summary(self._picture)
        self._screen.say(lines)
        return well

    def close(self) -> None:
        """End every process that still runs, and remove what they left on the bus."""
        self._crew.close()
        self._tidy()

    def _tidy(self) -> None:
        """Remove what the run made on a bus that stays, and say what it cannot."""
        if self._broker is not None or not self._crew.processes or self._tidied:
            return
        self._tidied = True
        from greenamqp.command.demo import tidy

        if why := tidy.tidy(self._run):
            names = f"queues of this run, with {self._run.suffix} in their names"
            self._screen.say([f"Not removed from the bus, {names}: {why}"])

    def _find_bus(self) -> None:
        """Start the embedded broker, or see that the given bus can be used.

        Otherwise every role would wait for what is not to be had.
        """
        if self._run.url:
            # By modules that cost something, and are not needed without a URL.
            with warnings.catch_warnings():
                # oslo.messaging imports eventlet, which says that it is deprecated.
                warnings.simplefilter("ignore")
                from greenamqp.command.demo import probe

            try:
                ports = probe.check_url(self._run.url)
                one_queue = probe.one_queue(self._run.url)
            except probe.Unusable as exc:
                raise DemoFailed(str(exc)) from exc
            self._ports = frozenset(ports)
            self._picture.bus = masked(self._run.url)
            if one_queue:
                self._run = dataclasses.replace(self._run, apart=False)
                self._picture.run = self._run
                self._screen.say([f"{_LEFT_OUT}: {one_queue}"])
            return
        self._broker = self._crew.start(
            "broker", ["-u", "-m", "greenamqp", "broker", "--port", "0"]
        )
        broker = self._broker

        def port() -> int | None:
            for line in broker.lines:
                if found := _LISTENING.search(line):
                    return int(found[1])
            return None

        if not self._wait(lambda: port() is not None, _READY_WITHIN):
            raise DemoFailed(
                f"the broker did not say within {_READY_WITHIN:.0f} s that it listens"
                + broker.tail()
            )
        url = f"amqp://127.0.0.1:{port()}"
        self._run = plan.Run(**{**vars(self._run), "url": url})
        self._ports = frozenset([port() or 0])
        self._picture.run = self._run
        self._picture.bus = f"embedded broker at {url}"

    def _start_role(self, name: str, kind: str, of: str = "") -> processes.Process:
        return self._crew.start(
            name, plan.role_command(name, kind, self._run, of), channel=True
        )

    def _await_ready(self, started: Collection[processes.Process]) -> None:
        names = {process.name for process in started}
        if not self._wait(lambda: names <= self._ready, _READY_WITHIN):
            waiting = [p for p in started if p.name not in self._ready]
            raise DemoFailed(
                f"not ready within {_READY_WITHIN:.0f} s: "
                + ", ".join(p.name + p.tail() for p in waiting)
            )

    def _command(self, to: Collection[processes.Process], command: str) -> None:
        """Give a command and wait until all have carried it out."""
        due = {(process.name, command) for process in to}
        for process in to:
            process.tell({"type": command})
        if not self._wait(lambda: due <= self._did, _DONE_WITHIN):
            waiting = [p for p in to if (p.name, command) not in self._did]
            raise DemoFailed(
                f"did not {command} within {_DONE_WITHIN:.0f} s: "
                + ", ".join(p.name + p.tail() for p in waiting)
            )

    def _await_receipts(self) -> None:
        """Wait until all has come, or nothing has come for too long."""
        ledger = self._picture.ledger
        while not self._wait(ledger.complete, 1.0):
            if time.monotonic() - self._last_receipt > _QUIET:
                return

    def _dismiss(self, which: Collection[processes.Process]) -> None:
        """Stop roles and wait for their end."""
        self._look()
        for process in which:
            process.dismissed = True
        self._command(which, "stop")
        if not self._wait(lambda: not any(p.running for p in which), _DONE_WITHIN):
            alive = ", ".join(p.name + p.tail() for p in which if p.running)
            raise DemoFailed(f"stopped but did not end: {alive}")

    def _wait(self, condition: Callable[[], bool], limit: float) -> bool:
        """Serve the processes until a condition holds; False after ``limit`` s."""
        deadline = time.monotonic() + limit
        while not condition():
            now = time.monotonic()
            if now >= deadline:
                return False
            self._tick(now)
            due = min(deadline, self._next_look, self._next_screen)
            self._crew.poll(max(0.0, due - now), self._on_message)
        return True

    def _tick(self, now: float) -> None:
        if self._load_since is not None:
            self._picture.elapsed = now - self._load_since
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            self._look()
        if now >= self._next_screen:
            self._next_screen = now + self._screen.interval
            if self._picture.phase:
                self._screen.update(self._picture)

    def _look(self) -> None:
        """See what every process holds."""
        known = self._picture.usage
        for process in self._crew.processes:
            is_broker = process is self._broker
            if process.running:
                found = processes.usage(process.pid, self._ports, local=is_broker)
                if found is not None:
                    known[process.name] = found.most(known.get(process.name))

    def _on_message(
        self, process: processes.Process, message: processes.Message
    ) -> None:
        kind = message["type"]
        if kind == "ready":
            self._ready.add(process.name)
        elif kind == "did":
            self._did.add((process.name, message["command"]))
        elif kind == "finished":
            self._finished.add(process.name)
        elif kind == "report":
            self._on_report(process, message)

    def _on_report(
        self, process: processes.Process, message: processes.Message
    ) -> None:
        picture = self._picture
        for stream, number, failed in message["sent"]:
            picture.ledger.sent(stream, number, failed)
        for stream, receiver, numbers in message["got"]:
            picture.ledger.got(stream, receiver, process.name, numbers)
            self._last_receipt = time.monotonic()
        for what, seconds in message["latencies"].items():
            picture.latencies[what] += seconds
        picture.events.update(message["events"])
