# SPDX-License-Identifier: Apache-2.0
"""What the tests are written with: everything on one bus, stopped at the end.

Nothing here knows greenamqp: it uses oslo.messaging's own API, so a test that
passes on one driver says the same of any other. Waiting is done for events, with
:data:`WAIT` as a bound that only a failing test meets.
"""

import configparser
import contextlib
import io
import os
import reprlib
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_messaging import conffixture

from tests.functional import buses, leaks, world

#: Seconds that anything may take that will certainly happen.
WAIT = 60


class Recorder:
    """A list that grows in one thread while another waits for it to do so."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: list[Any] = []

    def add(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    @property
    def items(self) -> list[Any]:
        with self._changed:
            return list(self._items)

    def __len__(self) -> int:
        return len(self.items)

    def wait_for(self, condition: Callable[[list[Any]], bool], what: str) -> list[Any]:
        """Wait until ``condition(items)``; returns the items."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self._items), WAIT):
                raise AssertionError(
                    f"no {what} within {WAIT} s, but {len(self._items)}: "
                    + reprlib.repr(self._items)
                )
            return list(self._items)

    def wait(self, count: int) -> list[Any]:
        """Wait until there are ``count`` items; returns all that there are."""
        return self.wait_for(lambda items: len(items) >= count, f"{count} items")


class Gate:
    """Holds whoever enters until it is opened, and says that somebody has come."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._open = threading.Event()

    def enter(self) -> None:
        """Called by the one who is held."""
        self._entered.release()
        if not self._open.wait(WAIT):
            raise AssertionError("the gate was never opened")

    def wait_entered(self) -> None:
        """Wait until one more has entered."""
        assert self._entered.acquire(timeout=WAIT), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> "Running":
    """Run ``function`` in a thread (a green one where threads are green)."""
    return Running(function, args, kwargs)


class Running:
    """A function at work in a thread; result() waits for what it returns."""

    def __init__(self, function, args, kwargs) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(function, args, kwargs), daemon=True
        )
        self._thread.start()

    def _run(self, function, args, kwargs) -> None:
        try:
            self._value = function(*args, **kwargs)
        except BaseException as error:  # noqa: B036 - handed to result()
            self._error = error

    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(WAIT)
        if self._thread.is_alive():
            raise AssertionError(f"still running after {WAIT} s")
        if self._error is not None:
            raise self._error
        return self._value


class Notified:
    """An endpoint that records (priority, publisher, event type, payload, ctxt)."""

    def __init__(self, answer: Callable[[str], Any] | None = None) -> None:
        self.got = Recorder()
        self._answer = answer or (lambda event_type: None)

    def _record(self, priority, ctxt, publisher, event_type, payload, metadata):
        self.got.add((priority, publisher, event_type, payload, ctxt))
        return self._answer(event_type)

    def events(self) -> list[str]:
        """The event types that came, in their order."""
        return [item[2] for item in self.got.items]

    def audit(self, *args):
        return self._record("audit", *args)

    def debug(self, *args):
        return self._record("debug", *args)

    def info(self, *args):
        return self._record("info", *args)

    def warn(self, *args):
        return self._record("warn", *args)

    def error(self, *args):
        return self._record("error", *args)

    def critical(self, *args):
        return self._record("critical", *args)

    def sample(self, *args):
        return self._record("sample", *args)


class InfoOnly:
    """An endpoint for one priority, so that a listener has one subscription.

    ``shared`` is a recorder for several of them, to wait for all at once.
    """

    def __init__(
        self,
        answer: Callable[[str], Any] | None = None,
        shared: Recorder | None = None,
    ) -> None:
        self.got = Recorder()
        self._shared = shared
        self._answer = answer or (lambda event_type: None)

    def info(self, ctxt, publisher, event_type, payload, metadata):
        self.got.add(event_type)
        if self._shared is not None:
            self._shared.add(event_type)
        return self._answer(event_type)


class InfoBatches:
    """A batch endpoint: records each batch as a list of event types."""

    def __init__(
        self,
        answer: Callable[[list[str]], Any] | None = None,
        shared: Recorder | None = None,
    ) -> None:
        self.got = Recorder()
        self._shared = shared
        self._answer = answer or (lambda events: None)

    def info(self, messages):
        events = [message["event_type"] for message in messages]
        self.got.add(events)
        if self._shared is not None:
            self._shared.add(events)
        return self._answer(events)

    def events(self) -> list[str]:
        return [event for batch in self.got.items for event in batch]


class Harness:
    """Makes transports, servers and clients on one bus and puts them away again."""

    def __init__(self, bus: buses.Bus) -> None:
        self.bus = bus
        self._servers: list[Any] = []
        self._transports: list[Any] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.stop_servers()
        finally:
            try:
                for transport in reversed(self._transports):
                    transport.cleanup()
            finally:
                self._stack.close()

    # -- configuration -------------------------------------------------------

    def _conf_text(self, exchange: str | None, options: dict | None) -> str:
        groups: dict[str, dict[str, object]] = {"DEFAULT": {}}
        if exchange:
            groups["DEFAULT"]["control_exchange"] = exchange
        for source in (self.bus.base_options(), options or {}):
            for group, values in source.items():
                groups.setdefault(group, {}).update(values)
        parser = configparser.RawConfigParser()
        parser.read_dict(groups)
        text = io.StringIO()
        parser.write(text)
        return text.getvalue()

    def conf(
        self, exchange: str | None = None, options: dict | None = None
    ) -> cfg.ConfigOpts:
        """A configuration read from a file, as a service has it."""
        text = self._conf_text(exchange, options)
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
            file.write(text)
            file.flush()
            conf = cfg.ConfigOpts()
            conf(
                [],
                project="greenamqp",
                prog="functional",
                default_config_files=[file.name],
                default_config_dirs=[],
            )
        # Some of oslo.messaging's options are registered on cfg.CONF alone; the
        # fixture registers them on any other.
        conffixture.ConfFixture(conf)
        return conf

    def conf_file(self, options: dict | None = None) -> str:
        """The path of such a file, for another process."""
        text = self._conf_text(None, options)
        file = self._stack.enter_context(
            tempfile.NamedTemporaryFile("w", suffix=".conf")
        )
        file.write(text)
        file.flush()
        return file.name

    # -- transports ----------------------------------------------------------

    def rpc_transport(
        self,
        exchange: str | None = None,
        exmods: list[str] | None = None,
        options: dict | None = None,
        url: str | None = None,
    ) -> Any:
        transport = oslo_messaging.get_rpc_transport(
            self.conf(exchange, options),
            url=url or self.bus.url,
            allowed_remote_exmods=exmods,
        )
        self._transports.append(transport)
        return transport

    def notification_transport(
        self,
        exchange: str | None = None,
        options: dict | None = None,
        url: str | None = None,
    ) -> Any:
        transport = oslo_messaging.get_notification_transport(
            self.conf(exchange, options), url=url or self.bus.url
        )
        self._transports.append(transport)
        return transport

    # -- RPC -----------------------------------------------------------------

    def server(
        self,
        endpoints: Any,
        target: oslo_messaging.Target,
        transport: Any = None,
        executor: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A started stock RPC server; its subscriptions are in place."""
        if not isinstance(endpoints, list):
            endpoints = [endpoints]
        server = oslo_messaging.get_rpc_server(
            transport or self.rpc_transport(),
            target,
            endpoints,
            executor=executor or world.executors()[0],
            **kwargs,
        )
        return self._started(server)

    def client(
        self, target: oslo_messaging.Target, transport: Any = None, **kwargs: Any
    ) -> Any:
        kwargs.setdefault("timeout", WAIT)
        return oslo_messaging.get_rpc_client(
            transport or self.rpc_transport(), target, **kwargs
        )

    # -- notifications -------------------------------------------------------

    def listener(
        self,
        endpoints: Any,
        targets: list[oslo_messaging.Target],
        transport: Any = None,
        executor: str | None = None,
        kind: Any = oslo_messaging.get_notification_listener,
        **kwargs: Any,
    ) -> Any:
        """A started stock notification listener."""
        if not isinstance(endpoints, list):
            endpoints = [endpoints]
        return self._started(
            kind(
                transport or self.notification_transport(),
                targets,
                endpoints,
                executor=executor or world.executors()[0],
                **kwargs,
            )
        )

    def batch_listener(self, *args: Any, **kwargs: Any) -> Any:
        """The same, for batches."""
        kind = oslo_messaging.get_batch_notification_listener
        return self.listener(*args, kind=kind, **kwargs)

    def notifier(
        self,
        topics: list[str],
        publisher: str = "publisher",
        exchange: str | None = None,
        transport: Any = None,
        driver: str = "messagingv2",
        **kwargs: Any,
    ) -> Any:
        return oslo_messaging.Notifier(
            transport or self.notification_transport(exchange),
            publisher,
            driver=driver,
            topics=topics,
            **kwargs,
        )

    # -- life ----------------------------------------------------------------

    def _started(self, server: Any) -> Any:
        server.start()
        self._servers.append(server)
        return server

    def stop(self, server: Any) -> None:
        """Stop one server before the end and wait for what it has at work."""
        self._servers.remove(server)
        server.stop()
        server.wait()

    def cleanup(self, transport: Any) -> None:
        """Clean up one transport before the end."""
        self._transports.remove(transport)
        transport.cleanup()

    def stop_servers(self) -> None:
        """Stop all servers: afterwards nothing more can be delivered to them."""
        servers, self._servers = self._servers, []

        def end(server: Any) -> None:
            server.stop()
            server.wait()

        # Side by side: an idle worker of oslo.messaging's executor looks only once a
        # second whether it is to end.
        for ending in [in_thread(end, server) for server in reversed(servers)]:
            ending.result()

    # -- other processes -----------------------------------------------------

    def program(self, module: str, *arguments: str, in_world: str | None = None):
        """Start ``tests.functional.<module>`` in another process.

        Returns a :class:`Program`; it is killed at the end if it still runs.
        """
        program = Program(module, *arguments, in_world=in_world)
        self._stack.callback(program.kill)
        return program

    def peer(
        self,
        target: oslo_messaging.Target,
        options: dict | None = None,
        in_world: str | None = None,
    ) -> "Program":
        """An RPC server in another process, see peer.py; its subscriptions are up."""
        program = self.program(
            "peer",
            self.bus.url,
            self.conf_file(options),
            target.topic,
            target.server,
            *([target.exchange] if target.exchange else []),
            in_world=in_world,
        )
        assert program.read() == "ready"
        return program


class Program:
    """Another process that is talked to in lines over its stdin and stdout."""

    def __init__(
        self, module: str, *arguments: str, in_world: str | None = None
    ) -> None:
        command = [sys.executable, "-m"]
        if in_world:
            command += ["tests.functional.world", in_world]
        command += [f"tests.functional.{module}", *arguments]
        self._process, self._stderr = buses.spawn(
            command,
            buses.plain_environment() | {"PYTHONUNBUFFERED": "1"},
            cwd=buses.ROOT,
        )

    def say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read(self) -> str:
        """The next line of its stdout, without the line's end."""
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(WAIT)
            raise AssertionError(
                f"the program ended with status {self._process.returncode}\n"
                f"{self.errors()}"
            )
        return line.rstrip("\n")

    def errors(self) -> str:
        """What it has written to stderr so far."""
        self._stderr.seek(0)
        return self._stderr.read()

    def finish(self) -> int:
        """Close its stdin, wait for its end; returns the exit status."""
        self._process.stdin.close()
        return self._process.wait(WAIT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Harmless when it has ended."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._stderr.close()


def native_threads() -> set[str]:
    """The native threads of this process, by the ids that the kernel gave them."""
    return set(os.listdir("/proc/self/task"))


def connections(port: int) -> int:
    """How many TCP connections this process has to ``port``."""
    inodes = leaks.sockets()
    count = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            next(file)
            for row in file:
                fields = row.split()
                remote, state, inode = fields[2], fields[3], fields[9]
                if inode in inodes and state == "01":
                    count += int(remote.rsplit(":", 1)[1], 16) == port
    return count
