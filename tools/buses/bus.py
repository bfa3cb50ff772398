# SPDX-License-Identifier: Apache-2.0
"""Start, stop and kill an instance of a bus; the same for every kind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import amqp, artemis, broker_j, rabbitmq
from .errors import BusError
from .kinds import Command, Kind, Layout
from .scratch import POLL_INTERVAL, Process, Scratch

#: Every bus on offer, by name.
BUSES: dict[str, Kind] = {
    kind.name: kind
    for module in (rabbitmq, artemis, broker_j)
    for kind in module.kinds()
}

#: Seconds that a broker may take to end in an orderly way.
_STOP_TIMEOUT = 60.0


class Bus:
    """An instance of a bus; the same one for the same scratch and instance name.

    It lives in processes of its own and outlasts this object and this
    process: ``with`` it, or call :meth:`stop`, or use the command's
    ``stop --all``.  Methods block, raise BusError, and are for one thread at a
    time; several processes may use the same scratch folder.
    """

    def __init__(
        self,
        name: str,
        instance: str | None = None,
        scratch: Scratch | Path | str | None = None,
    ) -> None:
        if name not in BUSES:
            known = ", ".join(sorted(BUSES))
            raise BusError(f"unknown bus {name!r}; there are {known}")
        self.kind = BUSES[name]
        self.instance = instance or name
        if not self.instance.replace("-", "").replace(".", "").isalnum():
            raise BusError(f"bad instance name {self.instance!r}")
        self.scratch = scratch if isinstance(scratch, Scratch) else Scratch(scratch)

    def __enter__(self) -> Bus:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # -- what there is

    def _entry(self, state: dict[str, Any]) -> dict[str, Any] | None:
        entry = state.get(self.instance)
        if entry is not None and entry["bus"] != self.kind.name:
            raise BusError(f"instance {self.instance!r} is of {entry['bus']}")
        return entry

    def _known(self) -> dict[str, Any]:
        with self.scratch.state() as state:
            entry = self._entry(state)
        if entry is None:
            raise BusError(f"{self.instance} was not started")
        return entry

    def _layout(self, entry: dict[str, Any]) -> Layout:
        return Layout(
            instance=self.instance,
            folder=self.scratch.run / self.instance,
            software=Path(entry["software"]),
            ports=entry["ports"],
            shared_ports=entry["shared_ports"],
        )

    @staticmethod
    def _process(entry: dict[str, Any], key: str) -> Process | None:
        known = entry["processes"].get(key)
        return Process(*known) if known else None

    def exists(self) -> bool:
        """Whether it was started and not stopped since, killed or not."""
        with self.scratch.state() as state:
            return self._entry(state) is not None

    def running(self) -> list[bool]:
        """For each node, whether its process runs."""
        entry = self._known()
        processes = [self._process(entry, str(n)) for n in range(self.kind.nodes)]
        return [process is not None and process.alive() for process in processes]

    def cpu(self) -> float:
        """CPU seconds that its nodes used since they were started last."""
        return sum(process.cpu() for process in self._nodes())

    def memory(self) -> int:
        """Bytes of resident memory of its nodes."""
        return sum(process.memory() for process in self._nodes())

    def _nodes(self) -> Iterator[Process]:
        """The process of each node that was started."""
        entry = self._known()
        for node in range(self.kind.nodes):
            process = self._process(entry, str(node))
            if process is not None:
                yield process

    def ports(self, which: int = 0) -> list[int]:
        """A port of each node, the same for as long as it exists: the AMQP port, or
        another one that its kind asks for."""
        return [ports[which] for ports in self._known()["ports"]]

    def url(self, scheme: str = "amqp") -> str:
        """The transport URL that names every node, for oslo.messaging."""
        if scheme not in self.kind.schemes:
            raise BusError(f"{self.kind.name} does not serve {scheme}://")
        login = f"{self.kind.user}:{self.kind.password}"
        hosts = (f"{login}@127.0.0.1:{port}" for port in self.ports())
        return f"{scheme}://{','.join(hosts)}/"

    def logs(self) -> list[Path]:
        """The output of each node."""
        layout = self._layout(self._known())
        return [layout.folder / f"node{n + 1}.log" for n in range(self.kind.nodes)]

    # -- start and stop

    def start(self, wait: bool = True) -> Bus:
        """Start what does not run, install what is missing, wait until ready.

        Nodes that ran before come back on their ports with their data.  Without
        *wait* it returns as soon as the processes run.
        """
        with self.scratch.state() as state:
            entry = self._entry(state)
        new = entry is None
        if entry is None:
            software = self.kind.install(self.scratch)
            with self.scratch.state() as state:
                entry = self._entry(state)
                if entry is None:
                    entry = state[self.instance] = self._new_entry(state, software)
        with self.scratch.lock(f"instance-{self.instance}"):
            layout = self._layout(entry)
            try:
                started = self._start_missing(layout)
                if started and wait:
                    self._await_ready(layout)
            except BaseException:
                # An instance that never ran leaves nothing behind.
                if new:
                    self._end(self._known(), keep=False)
                raise
        return self

    def _new_entry(self, state: dict[str, Any], software: Path) -> dict[str, Any]:
        taken = {
            port
            for other in state.values()
            for ports in (*other["ports"], other["shared_ports"])
            for port in ports
        }
        kind = self.kind
        count = kind.nodes * kind.ports + kind.shared_ports
        free = self.scratch.free_ports(count, taken)
        nodes = [free[n * kind.ports : (n + 1) * kind.ports] for n in range(kind.nodes)]
        return {
            "bus": kind.name,
            "software": str(software),
            "ports": nodes,
            "shared_ports": free[kind.nodes * kind.ports :],
            "processes": {},
        }

    def _start_missing(self, layout: Layout) -> bool:
        """Start every process that does not run; whether there was one."""
        layout.folder.mkdir(parents=True, exist_ok=True)
        started = False
        shared = self.kind.shared_command(layout)
        if shared is not None:
            started |= self._start_process(layout, "shared", shared)
        for node in range(self.kind.nodes):
            prepared = layout.folder / f"node{node + 1}.prepared"
            if not prepared.exists():
                self.kind.prepare(layout, node)
                prepared.touch()
            command = self.kind.command(layout, node)
            started |= self._start_process(layout, str(node), command)
        return started

    def _start_process(self, layout: Layout, key: str, command: Command) -> bool:
        process = self._process(self._known(), key)
        if process is not None and process.alive():
            return False
        name = f"node{int(key) + 1}" if key.isdigit() else key
        process = Process.start(
            command.argv,
            env=command.env,
            root=command.root,
            cwd=command.cwd,
            log=layout.folder / f"{name}.log",
        )
        with self.scratch.state() as state:
            state[self.instance]["processes"][key] = [process.pid, process.started]
        return True

    def _await_ready(self, layout: Layout) -> None:
        for group in self.kind.ready_nodes():
            self._await_group(layout, group)
        self.kind.settle(layout)

    def wait_ready(self) -> None:
        """Wait until it lets users in, as :meth:`start` does."""
        self._await_ready(self._layout(self._known()))

    def _await_group(self, layout: Layout, group: Sequence[int]) -> None:
        entry = self._known()
        processes = [self._process(entry, str(node)) for node in group]
        deadline = time.monotonic() + self.kind.start_timeout
        while True:
            for node in group:
                port = layout.amqp_port(node)
                try:
                    amqp.check("127.0.0.1", port, self.kind.user, self.kind.password)
                    return
                except (OSError, amqp.NotReady) as exc:
                    reason: Exception = exc
            if not any(process and process.alive() for process in processes):
                raise BusError(f"{self.instance} ended at once.{self._tail(group)}")
            if time.monotonic() > deadline:
                raise BusError(
                    f"{self.instance} is not ready after"
                    f" {self.kind.start_timeout:g} s: {reason}.{self._tail(group)}"
                )
            time.sleep(POLL_INTERVAL)

    def _tail(self, group: Sequence[int]) -> str:
        text = ""
        for node in group:
            log = self.logs()[node]
            if log.exists():
                lines = log.read_text(errors="replace").splitlines()
                # Of a Java stack trace the first line tells, the frames do not.
                last = [x for x in lines if not x.startswith("\tat ")][-15:]
                text += f"\n{log}:\n" + "\n".join(f"    {x}" for x in last)
        return text

    def stop(self, keep: bool = False) -> None:
        """End it and remove all of it; with *keep* its data stay for a start.

        Does nothing where there is no such instance.
        """
        with self.scratch.state() as state:
            entry = self._entry(state)
        if entry is None:
            return
        with self.scratch.lock(f"instance-{self.instance}"):
            self._end(entry, keep)

    def _end(self, entry: dict[str, Any], keep: bool) -> None:
        nodes = [self._process(entry, str(n)) for n in range(self.kind.nodes)]
        processes = [process for process in nodes if process is not None]
        if keep:
            # All at once: the last of a cluster may wait for the others.
            for process in processes:
                process.signal(signal.SIGTERM)
            for process in processes:
                if not process.wait_gone(_STOP_TIMEOUT):
                    process.kill()
        else:
            for process in processes:
                process.kill()
        shared = self._process(entry, "shared")
        if shared is not None:
            shared.kill()
        if not keep:
            self._discard(self._layout(entry))

    def _discard(self, layout: Layout) -> None:
        self.kind.remove(layout)
        shutil.rmtree(layout.folder, ignore_errors=True)
        with self.scratch.state() as state:
            state.pop(self.instance, None)
        (self.scratch.folder / f"instance-{self.instance}.lock").unlink(missing_ok=True)
        for folder in (self.scratch.run,):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def kill9(self, node: int | None = None) -> None:
        """SIGKILL to one node (counted from 0) or to all; the data stay."""
        entry = self._known()
        chosen = range(self.kind.nodes) if node is None else (node,)
        for one in chosen:
            process = self._process(entry, str(one))
            if process is not None:
                process.kill()

    def signal(self, number: int, node: int) -> None:
        """Send a signal to one node, counted from 0: SIGSTOP freezes it."""
        process = self._process(self._known(), str(node))
        if process is not None:
            process.signal(number)

    def wait_gone(self, node: int) -> None:
        """Wait for the end of a node that was told to end."""
        process = self._process(self._known(), str(node))
        if process is not None and not process.wait_gone(_STOP_TIMEOUT):
            raise BusError(f"node {node + 1} of {self.instance} does not end")

    def control(self, *arguments: str, node: int = 0) -> str:
        """Run the broker's own command line tool; its output.

        rabbitmqctl for RabbitMQ, the instance's artemis for Artemis.
        """
        command = self.kind.control(self._layout(self._known()), node)
        if command is None:
            raise BusError(f"{self.kind.name} has no command line tool")
        argv = (*command.argv, *arguments)
        if command.root is not None:
            argv = ("chroot", str(command.root), *argv)
        done = subprocess.run(
            argv,
            env=dict(command.env),
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise BusError(f"{' '.join(arguments)}: {done.stdout.strip()}")
        return done.stdout


def instances(scratch: Scratch) -> list[Bus]:
    """Every instance in a scratch folder."""
    with scratch.state() as state:
        known = [(entry["bus"], name) for name, entry in state.items()]
    return [Bus(bus, name, scratch) for bus, name in known if bus in BUSES]
