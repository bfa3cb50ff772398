# SPDX-License-Identifier: Apache-2.0
"""Processes under test: each lives in a world and plays one scenario.

The test and the process talk in lines of JSON, over the process's standard input and
output.  :class:`Worker` is the test's end, :class:`Stage` the process's.
"""

import collections
import contextlib
import importlib
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

from greenamqp import hubs
from greenamqp.connection import failover
from greenamqp.hubs import native
from tests.functional import nursery, world

#: Seconds that anything may take that will certainly happen.
WAIT = 90


class Worker:
    """Starts a process in ``world_name`` that plays ``scenario`` ("module:function").

    Use it as a context manager: at the end it is killed if it still runs.

    :param python: which interpreter
    """

    def __init__(
        self,
        world_name: str,
        scenario: str,
        python: str = sys.executable,
        **params: Any,
    ) -> None:
        self._process = nursery.fork(
            world_name,
            "tests.chaos.workers:play",
            python,
            scenario=scenario,
            params=params,
        )
        #: (level, text) of what greenamqp logged there, as far as it was heard.
        self.log: list[tuple[str, str]] = []
        self._heard: collections.deque[dict[str, Any]] = collections.deque()
        # Read by a thread, so that waiting has a limit.
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(WAIT)
        self._process.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, **message: Any) -> None:
        """Give the scenario a message, see Stage.hear."""
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _listen(self, wait: float) -> None:
        """Take one more line, which is a message or a record of the log."""
        try:
            line = self._lines.get(timeout=wait)
        except queue.Empty:
            self._give_up(f"nothing heard in {wait} s")
        if not line:
            self._process.wait(WAIT)
            raise AssertionError(
                f"the scenario ended with status {self._process.returncode}\n"
                f"{self.errors()}"
            )
        message = json.loads(line)
        if message["say"] == "log":
            self.log.append((message["level"], message["text"]))
        else:
            self._heard.append(message)

    def hear(self, wait: float = WAIT) -> dict[str, Any]:
        """The next message of the scenario, see Stage.say."""
        while not self._heard:
            self._listen(wait)
        return self._heard.popleft()

    def logged(self, fragment: str, since: int = 0, wait: float = WAIT) -> str:
        """The first line of the log, from the ``since``th on, that holds ``fragment``;
        waits until it is there."""
        while True:
            for _level, text in self.log[since:]:
                if fragment in text:
                    return text
            self._listen(wait)

    def texts(self, level: str, since: int = 0) -> list[str]:
        """What was heard of the log at this level."""
        return [text for found, text in self.log[since:] if found == level]

    def changes(self, since: int = 0) -> list[str]:
        """What was heard of the connection's changes of state: "lost", "no" or
        "connected"."""
        return [
            text.partition(" ")[0]
            for _level, text in self.log[since:]
            if re.match("(lost the connection|no connection|connected) to ", text)
        ]

    def expect(self, what: str, wait: float = WAIT) -> dict[str, Any]:
        """The next message, which must say ``what``."""
        message = self.hear(wait)
        assert message.get("say") == what, (what, message, self.errors())
        return message

    def finish(self) -> None:
        """Wait until it has ended by itself, and well."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            status = self._process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self._give_up(f"it did not end in {WAIT} s")
        assert status == 0, self.errors()

    def _give_up(self, why: str) -> NoReturn:
        self._process.send_signal(signal.SIGABRT)  # faulthandler writes the stacks
        self._process.wait(WAIT)
        raise AssertionError(f"{why}\n{self.log}\n{self.errors()}")

    def errors(self) -> str:
        """What it has written to stderr so far."""
        self._process.stderr.seek(0)
        return self._process.stderr.read()


class _Teller(logging.Handler):
    """Tells the test what greenamqp logs."""

    def __init__(self, stage: "Stage") -> None:
        super().__init__(logging.INFO)
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._stage.say("log", level=record.levelname, text=text)


def configured(**options: Any) -> Any:
    """A configuration with these options of the driver."""
    from oslo_config import cfg
    from oslo_messaging import conffixture

    from greenamqp import options as driver_options

    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    conffixture.ConfFixture(conf)
    if options:  # another driver's may be of the same names
        driver_options.register(conf)
    for name, value in options.items():
        conf.set_override(name, value, driver_options.GROUP.name)
    return conf


class Stage:
    """Where a scenario plays: how it talks to the test, and what it is made of."""

    def __init__(self) -> None:
        self.world = world.current()
        self._unread = b""
        logging.getLogger("greenamqp").addHandler(_Teller(self))
        logging.getLogger("greenamqp").setLevel(logging.INFO)

    def say(self, what: str, **values: Any) -> None:
        """Tell the test."""
        line = json.dumps({"say": what, **values}) + "\n"
        # In one piece, and by nothing that a green thread could be switched in.
        sys.stdout.buffer.write(line.encode())
        sys.stdout.buffer.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for a message of the test, while other threads run; {} at the end."""
        while b"\n" not in self._unread:
            data = self.natively(self._read)
            if not data:
                return {}
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    @staticmethod
    def _read() -> bytes:
        # Not sys.stdin: its lock, held meanwhile, would be held in every child that is
        # forked, and multiprocessing closes sys.stdin there.
        return native.original("os", "read")(0, 65536)

    def natively(self, function: Any) -> Any:
        """Run what would block a hub, in a native thread."""
        if self.world.startswith("eventlet"):
            return self._beside_eventlet(function)
        if self.world == "gevent":
            import gevent

            return gevent.get_hub().threadpool.apply(function)
        return function()

    @staticmethod
    def _beside_eventlet(function: Any) -> Any:
        """Not by eventlet's tpool: a forked child has a copy of the green thread that
        it wakes up, and takes the parent's wake-ups from their common socket."""
        hub = hubs.get("eventlet")
        waiter = hub.waiter()
        results = []

        def run() -> None:
            try:
                results.append(function())
            finally:
                hub.call_inside(waiter.wake)

        hub.acquire()
        try:
            native.original("_thread", "start_new_thread")(run, ())
            waiter.wait(None)
        finally:
            hub.release()
        return results[0]

    def wait_child(self, pid: int) -> int:
        """Wait for the end of a child process; returns its status."""
        if self.world == "gevent":
            return os.waitpid(pid, 0)[1]  # gevent's
        # eventlet's own would make an event loop for the native thread it is called in.
        waitpid = native.original("os", "waitpid")
        return self.natively(lambda: waitpid(pid, 0)[1])

    def block(self, seconds: float) -> None:
        """Wait in the C library: nothing of this thread runs meanwhile."""
        native.original("time", "sleep")(seconds)

    @staticmethod
    def eager(pause: float | None) -> None:
        """Connect again after so many seconds, whatever the options say; None: as they
        say."""
        if pause is not None:
            failover.Backoff.next_pause = lambda self, *how: pause

    conf = staticmethod(configured)

    def transport(self, url: str, **options: Any) -> Any:
        """A transport for RPC and notifications both."""
        import oslo_messaging

        return oslo_messaging.get_rpc_transport(self.conf(**options), url)

    @property
    def executor(self) -> str:
        return world.executors()[0]

    def server(self, transport: Any, topic: str, endpoint: Any, name: str = "") -> Any:
        """A started stock RPC server."""
        import oslo_messaging

        server = oslo_messaging.get_rpc_server(
            transport,
            oslo_messaging.Target(topic=topic, server=name or f"server-{os.getpid()}"),
            [endpoint],
            executor=self.executor,
        )
        server.start()
        return server

    def listener(self, transport: Any, topic: str, endpoint: Any) -> Any:
        """A started stock listener for notifications."""
        import oslo_messaging

        listener = oslo_messaging.get_notification_listener(
            transport,
            [oslo_messaging.Target(topic=topic)],
            [endpoint],
            executor=self.executor,
        )
        listener.start()
        return listener

    def end(self, servers: list[Any]) -> None:
        """Stop them all and wait for it."""

        def end(server: Any) -> None:
            server.stop()
            server.wait()

        # Side by side: an idle worker of oslo.messaging's executor looks only once a
        # second whether it is to end.
        threads = [threading.Thread(target=end, args=(each,)) for each in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def client(self, transport: Any, topic: str, timeout: float = WAIT) -> Any:
        import oslo_messaging

        return oslo_messaging.get_rpc_client(
            transport, oslo_messaging.Target(topic=topic), timeout=timeout
        )


def wait_until(condition: Any, what: str, wait: float = WAIT) -> None:
    """Look until ``condition()`` is true; for what nobody tells of."""
    deadline = time.monotonic() + wait
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {wait} s: {what}")
        time.sleep(0.02)


def play(scenario: str, params: dict[str, Any]) -> None:
    """In a process of its own: play ``scenario``, "module:function"."""
    module_name, _, function_name = scenario.partition(":")
    module = importlib.import_module(f"tests.chaos.scenarios.{module_name}")
    getattr(module, function_name)(Stage(), **params)
