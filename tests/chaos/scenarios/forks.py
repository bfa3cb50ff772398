# SPDX-License-Identifier: Apache-2.0
"""A process that is connected, and forks."""

import contextlib
import multiprocessing
import os
import sys
import threading
import traceback

import oslo_messaging

from greenamqp.fork import ForkedError
from tests.chaos.workers import Stage

TOPIC = "of-the-parent"


class Endpoint:
    def echo(self, ctxt, value):
        return value

    def pid(self, ctxt):
        return os.getpid()


class Load:
    """Threads that call and call, and check every reply."""

    def __init__(self, client, threads: int = 4) -> None:
        self.calls = 0
        self.wrong: list = []
        self._client = client
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,))
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            value = [os.getpid(), number, turn]
            try:
                answer = self._client.call({}, "echo", value=value)
            except Exception as exc:
                self.wrong.append(repr(exc))
                return
            self.calls += 1
            if answer != value:
                self.wrong.append([value, answer])

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def sockets() -> set[str]:
    """The sockets of this process."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/self/fd/{fd}")
            if link.startswith("socket:"):
                found.add(link)
    return found


def watched(pid: int, inode: int) -> list[list[str]]:
    """What is in those epoll sets of a process that watch an inode: descriptors and
    inodes, in the kernel's words."""
    sets = []
    for fd in sorted(os.listdir(f"/proc/{pid}/fdinfo"), key=int):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}") as file:
            lines = [line.split() for line in file if line.startswith("tfd:")]
        if any(f"ino:{inode:x}" in line for line in lines):
            sets.append(sorted(" ".join((line[1], *line[-2:])) for line in lines))
    return sets


class Parent:
    """A process with a connection, a server, a listener and a client."""

    def __init__(self, stage: Stage, url: str, options: dict) -> None:
        self.stage = stage
        self.endpoint = Endpoint()
        self.transport = stage.transport(url, **options)
        self.server = stage.server(self.transport, TOPIC, self.endpoint)
        self.client = stage.client(self.transport, TOPIC)
        self.client.call({}, "echo", value=0)
        self.driver = self.transport._driver
        self.listener = self.driver.listen(oslo_messaging.Target(topic="idle"), 1, None)
        self.listener.fileno()
        client = self.driver._connected()
        self.container = client.connection.engine.lifecycle.connection.container
        fd = client.connection._pump._stream.fileno()
        self.socket = os.readlink(f"/proc/self/fd/{fd}")
        self.inode = os.fstat(fd).st_ino
        # Whatever this world needs for that is there from now on.
        stage.natively(lambda: None)

    def end(self) -> None:
        self.listener.cleanup()
        self.stage.end([self.server])
        self.transport.cleanup()


def use_in_child(parent: Parent, count: int) -> dict:
    """What the child does with what it inherited; returns what it found."""
    found: dict = {"refused": []}
    before = watched(os.getppid(), parent.inode)
    load = Load(parent.client, threads=2)
    while load.calls < count and not load.wrong:
        parent.client.call({}, "echo", value=0)
    load.end()
    found["calls"] = load.calls
    found["wrong"] = load.wrong
    found["parent"] = parent.client.call({}, "pid")
    engine = parent.driver._connected().connection.engine
    found["container"] = engine.lifecycle.connection.container
    for name, use in {
        "fileno": parent.listener.fileno,
        "poll": lambda: parent.listener.poll(timeout=0),
        "take": parent.listener.take,
        "start": lambda: parent.listener.start(lambda messages: None),
    }.items():
        try:
            use()
        except ForkedError as exc:
            found["refused"].append(name)
            found["reason"] = str(exc)
    parent.listener.stop()
    parent.listener.cleanup()
    parent.server.stop()
    # A child may serve as well, on its own.
    endpoint = Endpoint()
    topic = f"of-the-child-{os.getpid()}"
    server = parent.stage.server(parent.transport, topic, endpoint)
    client = parent.stage.client(parent.transport, topic)
    found["own"] = client.call({}, "pid")
    during = watched(os.getppid(), parent.inode)
    parent.stage.end([server])
    parent.transport.cleanup()
    # What is the parent's is as it was, all the time.
    found["holds_socket"] = parent.socket in sockets()
    found["watched"] = [before, during, watched(os.getppid(), parent.inode)]
    found["child"] = os.getpid()
    return found


def _report(stage: Stage, parent: Parent, count: int) -> None:
    try:
        stage.say("child", **use_in_child(parent, count))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def message_at_work(stage: Stage, url: str, options: dict) -> None:
    """Fork with a request in hand: what the child does with it does nothing."""
    parent = Parent(stage, url, options)
    answers: list = []
    caller = threading.Thread(
        target=lambda: answers.append(
            stage.client(parent.transport, "idle").call({}, "anything")
        )
    )
    caller.start()
    (incoming,) = parent.listener.poll(timeout=60)
    pid = os.fork()
    if pid == 0:
        try:
            incoming.acknowledge()
            incoming.requeue()
            incoming.reply("from the child")
            stage.say("child")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = stage.wait_child(pid)
    incoming.acknowledge()
    incoming.reply("from the parent")
    caller.join()
    stage.say("done", status=status, answers=answers)
    parent.end()


def os_fork(stage: Stage, url: str, count: int, options: dict) -> None:
    """Fork in the middle of calls; children of one process after another."""
    parent = Parent(stage, url, options)
    stage.say("parent", container=parent.container, pid=os.getpid())
    load = Load(parent.client)
    watched_before = watched(os.getpid(), parent.inode)
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            _report(stage, parent, count)
            os._exit(0)
        stage.say("ended", status=stage.wait_child(pid))
    load.end()
    stage.say(
        "done",
        calls=load.calls,
        wrong=load.wrong,
        watched=[watched_before, watched(os.getpid(), parent.inode)],
        value=parent.client.call({}, "echo", value="still"),
    )
    stage.hear()
    parent.end()


def _in_process(url: str, options: dict, world: str) -> None:
    """In a child that has inherited nothing but its arguments."""
    stage = Stage()
    transport = stage.transport(url, **options)
    client = stage.client(transport, TOPIC)
    values = [client.call({}, "echo", value=number) for number in range(50)]
    engine = transport._driver._connected().connection.engine
    stage.say(
        "child",
        right=values == list(range(50)),
        container=engine.lifecycle.connection.container,
        child=os.getpid(),
        parent=client.call({}, "pid"),
    )
    transport.cleanup()


def processes(stage: Stage, url: str, method: str, count: int, options: dict) -> None:
    """multiprocessing: several children at once."""
    parent = Parent(stage, url, options)
    stage.say("parent", container=parent.container, pid=os.getpid())
    load = Load(parent.client)
    context = multiprocessing.get_context(method)
    if method == "fork":
        target, args = _report, (stage, parent, count)
    else:
        target, args = _in_process, (url, options, stage.world)
    children = [context.Process(target=target, args=args) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        if (stage.world, method) == ("gevent", "fork"):
            child.join()  # gevent sees to the children that it forks itself
        else:
            stage.natively(child.join)
        stage.say("ended", status=child.exitcode)
    load.end()
    stage.say(
        "done",
        calls=load.calls,
        wrong=load.wrong,
        value=parent.client.call({}, "echo", value="still"),
    )
    stage.hear()
    parent.end()
    if (stage.world, method) == ("gevent", "spawn"):
        # From Python 3.13.5 at the latest, multiprocessing waits for its resource
        # tracker when the interpreter ends; under gevent for ever, whatever is run.
        os._exit(0)


def before_use(stage: Stage, url: str, options: dict) -> None:
    """Fork with a transport that was never used; then both use it."""
    transport = stage.transport(url, **options)
    client = stage.client(transport, TOPIC)
    server = None
    pid = os.fork()
    if pid == 0:
        try:
            # First of all: by itself eventlet cannot start an asyncio loop here.
            client.call({}, "echo", value=0)
            load = Load(client)
            while load.calls < 200 and not load.wrong:
                client.call({}, "echo", value=0)
            load.end()
            stage.say("child", calls=load.calls, wrong=load.wrong)
            transport.cleanup()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    server = stage.server(transport, TOPIC, Endpoint())
    load = Load(client)
    status = stage.wait_child(pid)
    load.end()
    stage.say("done", calls=load.calls, wrong=load.wrong, status=status)
    stage.end([server])
    transport.cleanup()
