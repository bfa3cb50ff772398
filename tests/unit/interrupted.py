# SPDX-License-Identifier: Apache-2.0
r"""What a signal handler or finalizer may do, checked in one process under one hub.

Each check is `run` in a process of its own, which prints ``ok`` at the end, or fails
with a traceback.

In valgrind, beside a broker and a process that answers::

    greenamqp broker
    python -m tests.functional.peer amqp://127.0.0.1 /dev/null interruptions peer
    PYTHONMALLOC=malloc valgrind --error-limit=no python -m tests.functional.world \
        eventlet tests.unit.interrupted eventlet amqp://127.0.0.1 \
        casts_at_random_instants

A handler is called at a place that is chosen: in the midst of a computation, in the
engine, or where the hub waits for descriptors, in a call as well as in a sleep.  None
of the checks sleeps in order to synchronise, none asserts how long something takes.
"""

from __future__ import annotations

import dis
import faulthandler
import functools
import gc
import logging
import opcode
import os
import pathlib
import signal
import sys
import threading
import types
import typing
import warnings

from tests.functional import world

#: Seconds that nothing takes, however slow the machine.
FAR = 60.0

#: Each with the world that it is of.
HUBS = {"blocking": "threads", **{name: name for name in world.WORLDS}}

#: Where the handler is called.
COMPUTING, IN_CALL, IN_SLEEP, IN_ENGINE = "computing", "call", "sleep", "engine"

CHECKS: dict[str, typing.Callable[..., None]] = {}


def check(function: typing.Callable[..., None]) -> typing.Callable[..., None]:
    """Add a check."""
    CHECKS[function.__name__] = function
    return function


class _Problems(logging.Handler):
    """Keeps what was logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(logging.Formatter().format(record))


class Env:
    """A transport on one hub, another process that answers, and places."""

    def __init__(self, hub: str, url: str) -> None:
        import oslo_messaging
        from oslo_config import cfg
        from oslo_messaging import conffixture

        self.name = hub.partition("-")[0]
        self.oslo = oslo_messaging
        self.conf = cfg.ConfigOpts()
        self.conf([], default_config_files=[], default_config_dirs=[])
        conffixture.ConfFixture(self.conf)
        self.url = url
        self.problems = _Problems()
        logging.getLogger("greenamqp").addHandler(self.problems)
        self._transports: list[typing.Any] = []
        self._unique = 0
        self.transport = self.new_transport()
        self.driver = self.transport._driver
        self.hub = self.driver.use_hub(self.name)
        self.green = self.name in ("eventlet", "gevent")

    def new_transport(self, keep: bool = True) -> typing.Any:
        """Another one, with a connection of its own, on the same hub; it is cleaned up
        in the end, if it is to be kept."""
        transport = self.oslo.get_rpc_transport(self.conf, self.url)
        transport.conf.set_override("hub", self.name, group="oslo_messaging_amqp")
        # Who waits for a connection is not to wait for long.
        for name, value in (("", 1), ("_backoff", 0), ("_interval_max", 1)):
            name = f"connection_retry{name}" if name else "connection_retry_interval"
            transport.conf.set_override(name, value, group="oslo_messaging_amqp")
        if keep:
            self._transports.append(transport)
        return transport

    def close(self) -> None:
        """Clean up all transports."""
        for transport in self._transports:
            transport.cleanup()

    def target(self) -> typing.Any:
        """One that nobody else knows."""
        self._unique += 1
        name = f"{os.getpid()}-{self._unique}"
        return self.oslo.Target(topic=f"topic-{name}", server="server")

    def client(self, target: typing.Any, transport: typing.Any = None) -> typing.Any:
        """What calls and casts to `target`."""
        return self.oslo.get_rpc_client(
            transport or self.transport, target, timeout=FAR
        )

    @property
    def echo(self) -> typing.Any:
        """A client of the process that answers."""
        return self.client(self.oslo.Target(topic="interruptions", server="peer"))

    def listen(self, target: typing.Any) -> typing.Any:
        """The driver's own listener."""
        return self.driver.listen(target, 1, None)

    def spawn(self, function: typing.Callable[[], object]) -> typing.Any:
        """A thread, a green one where threads are; returns what joins it."""
        thread = threading.Thread(target=function, daemon=True)
        thread.start()
        return thread

    def turn(self) -> None:
        """Let the hub do what is due now."""
        waiter = self.hub.waiter()
        self.hub.call_inside(waiter.wake)
        assert waiter.wait(self.hub.now() + FAR)

    # -- places

    def interrupt(self, place: str, handler: typing.Callable[[], object]) -> bool:
        """Have a signal handler call `handler` at that place, in the main thread.

        Returns whether it was: eventlet's loop, say, is not polled in a computation.
        """
        called: list[bool] = []
        poll = self._poll_interrupted(called)

        def on_signal(number: int, frame: object) -> None:
            if called:  # another one may be on its way already
                return
            if place == IN_CALL and not self.green and self.hub.engaged():
                # Another thread read for the main one, which was not asleep yet.
                poll.again()
                return
            called.append(True)
            handler()

        before = signal.signal(signal.SIGUSR1, on_signal)
        try:
            if place == COMPUTING:
                sum(range(1000))
                signal.raise_signal(signal.SIGUSR1)
                sum(range(1000))
            elif place == IN_ENGINE:
                with self.hub.lock:
                    signal.raise_signal(signal.SIGUSR1)
                self.turn()
            else:
                with poll:
                    if place == IN_SLEEP:
                        self._sleep(called)
                    else:
                        while not called:
                            assert self.echo.call({}, "echo", value=1) == 1
        finally:
            signal.signal(signal.SIGUSR1, before)
        return bool(called)

    def _sleep(self, called: list[bool]) -> None:
        import time

        if self.green:
            while not called:
                time.sleep(0)
            return
        # A sleep that the signal interrupts: it comes while that lasts, or before.
        main = threading.main_thread().ident
        assert main is not None
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        old = signal.signal(
            signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGUSR1)
        )
        try:
            while not called:
                time.sleep(0.02)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)

    def _poll_interrupted(self, called: list[bool]) -> _PollInterrupted:
        """Within this, the next poll of the main thread is interrupted."""
        return _PollInterrupted(self, called)


class _PollInterrupted:
    def __init__(self, env: Env, called: list[bool]) -> None:
        self._env = env
        self._called = called
        self._struck = False
        self._undo: typing.Callable[[], None] = lambda: None

    def again(self) -> None:
        """It was struck too early: strike in a later poll."""
        self._struck = False

    def _strike(self) -> None:
        if self._called or self._struck:
            return
        if threading_is_main():
            self._struck = True
            signal.raise_signal(signal.SIGUSR1)
        elif getattr(self._env.hub, "_followers", None):
            # Another thread waits as well, and reads for the main one.
            self._struck = True
            signal.pthread_kill(MAIN, signal.SIGUSR1)

    def __enter__(self) -> None:
        hub: typing.Any = self._env.hub
        if self._env.name == "gevent":
            prepare = hub.hub.loop.prepare()
            prepare.start(self._strike)
            self._undo = prepare.stop
            return
        if self._env.name != "eventlet":
            owner, name = hub._reactor, "poll"
        elif hasattr(hub.loop, "loop"):
            owner, name = hub.loop.loop._selector, "select"  # asyncio's
        else:
            owner, name = hub.loop, "wait"
        original = getattr(owner, name)

        def interrupted(*args: typing.Any) -> typing.Any:
            self._strike()
            return original(*args)

        setattr(owner, name, interrupted)
        self._undo = lambda: delattr(owner, name)

    def __exit__(self, *exc_info: object) -> None:
        self._undo()


def threading_is_main() -> bool:
    """Whether this is the main native thread, whatever is patched."""
    from greenamqp.hubs import native

    return native.original("_thread", "get_ident")() == MAIN


# -- what the handler does


def refused(env: Env, place: str) -> bool:
    """Whether what waits is refused there."""
    return place == IN_ENGINE or (env.green and place in (IN_CALL, IN_SLEEP))


def attempt(env: Env, place: str, function: typing.Callable[[], object]) -> None:
    """Call what waits, at that place: it works, or says at once why not."""
    outcome: list[object] = []

    def handler() -> None:
        try:
            outcome.append(function())
        except env.oslo.MessageDeliveryFailure as exc:
            outcome.append(exc)

    assert env.interrupt(place, handler)
    (result,) = outcome
    if refused(env, place):
        assert isinstance(result, Exception), result
        assert "cannot wait for the message bus" in str(result)
    else:
        assert not isinstance(result, Exception), result


def a_call(env: Env, place: str) -> None:
    assert env.echo.call({}, "echo", value="before") == "before"
    attempt(env, place, lambda: env.echo.call({}, "echo", value="within"))
    assert env.echo.call({}, "echo", value="after") == "after"


def a_cast(env: Env, place: str) -> None:
    target = env.target()
    listener = env.listen(target)
    client = env.client(target)
    attempt(env, place, lambda: client.cast({}, "within"))
    client.cast({}, "after")
    wanted = ["after"] if refused(env, place) else ["within", "after"]
    for method in wanted:
        (incoming,) = listener.poll(FAR)
        assert incoming.message["method"] == method
        incoming.acknowledge()
    listener.cleanup()


def a_first_cast(env: Env, place: str) -> None:
    """Of a transport that has no connection yet, and makes one for it."""
    target = env.target()
    listener = env.listen(target)
    client = env.client(target, env.new_transport())
    attempt(env, place, lambda: client.cast({}, "within"))
    client.cast({}, "after")
    (incoming,) = listener.poll(FAR)
    assert incoming.message["method"] == ("after" if refused(env, place) else "within")
    listener.cleanup()


def a_notification(env: Env, place: str) -> None:
    target = env.oslo.Target(topic=env.target().topic)
    listener = env.driver.listen_for_notifications([(target, "info")], None, 1, None)
    notifier = env.oslo.Notifier(
        env.transport, "publisher", driver="messagingv2", topics=[target.topic]
    )
    logging.getLogger("oslo.messaging").disabled = True
    failed = logging.getLogger("oslo_messaging.notify.messaging")
    failed.disabled = True  # a notifier logs what fails
    assert env.interrupt(place, lambda: notifier.info({}, "within", {}))
    notifier.info({}, "after", {})
    (incoming,) = listener.poll(FAR)
    assert incoming.message["event_type"] == (
        "after" if refused(env, place) else "within"
    )
    listener.cleanup()


def an_acknowledgement(env: Env, place: str) -> None:
    """Of the first of two messages: the second comes first when somebody else asks."""
    target = env.target()
    listener = env.listen(target)
    client = env.client(target)
    client.cast({}, "one")
    client.cast({}, "two")
    (incoming,) = listener.poll(FAR)
    assert incoming.message["method"] == "one"
    assert env.interrupt(place, incoming.acknowledge)
    env.turn()
    env.turn()
    listener.cleanup()
    listener = env.listen(target)
    (incoming,) = listener.poll(FAR)
    assert incoming.message["method"] == "two", incoming.message
    listener.cleanup()


def a_reply(env: Env, place: str) -> None:
    target = env.target()
    listener = env.listen(target)
    client = env.client(target, env.new_transport())
    answers: list[object] = []
    caller = env.spawn(lambda: answers.append(client.call({}, "question")))
    (incoming,) = listener.poll(FAR)
    incoming.acknowledge()
    assert env.interrupt(place, lambda: incoming.reply("answer"))
    env.turn()
    caller.join(FAR)
    assert answers == ["answer"]
    listener.cleanup()


def a_stop(env: Env, place: str) -> None:
    """Of a listener; what it had not given goes back."""
    target = env.target()
    listener = env.listen(target)
    client = env.client(target)
    closed = []

    def handler() -> None:
        listener.cleanup()
        closed.append(listener._closed)

    assert env.interrupt(place, handler)
    assert closed == [not refused(env, place)]
    client.cast({}, "later")
    while not listener._closed:
        env.turn()
    other = env.listen(target)
    (incoming,) = other.poll(FAR)
    assert incoming.message["method"] == "later"
    other.cleanup()


def a_cleanup(env: Env, place: str) -> None:
    """Of another transport than that which the main thread uses."""
    transport = env.new_transport()
    target = env.target()
    client = env.client(target, transport)
    client.cast({}, "one")
    connection = transport._driver._client.connection
    closed = []

    def handler() -> None:
        transport.cleanup()
        closed.append(connection.engine is None)

    assert env.interrupt(place, handler)
    assert closed == [not refused(env, place)]
    while connection.engine is not None:
        env.turn()
    assert transport._driver._client is None
    # It can be used again.
    client.cast({}, "two")


ACTS = {
    function.__name__: function
    for function in (
        a_call,
        a_cast,
        a_first_cast,
        a_notification,
        an_acknowledgement,
        a_reply,
        a_stop,
        a_cleanup,
    )
}


def _at_each_place(act: typing.Callable[[Env, str], None]) -> None:
    def run(env: Env) -> None:
        for place in (COMPUTING, IN_CALL, IN_SLEEP, IN_ENGINE):
            for _ in range(3):
                print(place, flush=True)
                act(env, place)
                assert env.problems.seen == [], env.problems.seen

    run.__name__ = act.__name__
    check(run)


for _act in ACTS.values():
    _at_each_place(_act)


@check
def a_slow_handler_stops_no_other_thread(env: Env) -> None:
    """It has interrupted the thread that reads for all, and returns only when another
    thread has had its reply."""
    if env.name != "threads":
        return
    echo = env.echo
    for _ in range(3):
        answers: list[object] = []
        done = threading.Event()

        def other(answers: list[object] = answers, done: typing.Any = done) -> None:
            answers.append(echo.call({}, "echo", value="other"))
            done.set()

        def handler(done: typing.Any = done, other: typing.Any = other) -> None:
            env.spawn(other)
            assert done.wait(FAR)

        assert env.interrupt(IN_CALL, handler)
        assert answers == ["other"]
    assert env.problems.seen == [], env.problems.seen


#: Calls within which signals come.
CALLS = 500


def _while_interrupted(env: Env, do: typing.Callable[[], object]) -> int:
    """Make calls while `do` is called by a signal handler again and again; returns how
    often it was refused."""
    counts = {"refused": 0, "done": 0}
    stop = [False]

    def handler(number: int, frame: object) -> None:
        if stop[0]:
            return
        try:
            do()
            counts["done"] += 1
        except env.oslo.MessageDeliveryFailure as exc:
            assert "cannot wait for the message bus" in str(exc), exc
            counts["refused"] += 1
        finally:
            # Not while a handler runs: they would nest without end.
            if not stop[0]:
                signal.setitimer(signal.ITIMER_REAL, 0.002)

    echo = env.echo
    assert echo.call({}, "echo", value=0) == 0
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.002)
    try:
        for number in range(CALLS):
            assert echo.call({}, "echo", value=number) == number
            sum(range(number % 1000))
    finally:
        stop[0] = True
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert env.problems.seen == [], env.problems.seen
    assert counts["refused"] + counts["done"] > 10, counts
    print(counts, flush=True)
    return counts["done"]


@check
def casts_at_random_instants(env: Env) -> None:
    """What was sent is there, all of it, and nothing else."""
    target = env.target()
    listener = env.listen(target)
    client = env.client(target)
    done = _while_interrupted(env, lambda: client.cast({}, "cast"))
    client.cast({}, "last")
    casts = 0
    while True:
        (incoming,) = listener.poll(FAR)
        incoming.acknowledge()
        if incoming.message["method"] == "last":
            break
        casts += 1
    assert casts == done


@check
def calls_at_random_instants(env: Env) -> None:
    client = env.echo

    def call() -> None:
        assert client.call({}, "echo", value="within") == "within"

    _while_interrupted(env, call)


#: What the interpreter looks for signals after.
_LOOKS = {
    opcode.opmap[name]
    for name in ("RESUME", "JUMP_BACKWARD", "CALL", "CALL_FUNCTION_EX")
}

_PACKAGE = pathlib.Path(__file__).parents[2] / "greenamqp"


@functools.cache
def _guards(code: types.CodeType) -> list[tuple[int, int, int]]:
    """Which instructions are guarded, from where to where and by which handler."""
    return [
        (entry.start, entry.end, entry.target)
        for entry in dis.Bytecode(code).exception_entries
    ]


def _guard(code: types.CodeType, offset: int) -> int | None:
    """Where what is raised at that instruction is handled, if it is."""
    for start, end, target in _guards(code):
        if start <= offset < end:
            return target
    return None


class Points:
    """The instants within `do` at which a signal handler of the main thread may come
    while greenamqp runs, one after another; at one of them `strike` is called."""

    def __init__(
        self, do: typing.Callable[[], object], strike: typing.Callable[[], object]
    ) -> None:
        self._do = do
        self._strike = strike
        self._left: int | None = None
        # The frames that a function in Python returns to: it looks when that begins,
        # and not when it is over.
        self._callers: set[types.FrameType] = set()
        self.seen = 0
        #: Whether the one that was asked for was reached.
        self.struck = False

    def run(self, at: int | None) -> object:
        """Call `do`, and strike at the point with that number; None: count them."""
        self._left = at
        self.seen = 0
        self.struck = False
        sys.settrace(self._entered)
        try:
            return self._do()
        finally:
            sys.settrace(None)
            self._callers.clear()

    def _entered(self, frame: types.FrameType, event: str, arg: object) -> typing.Any:
        if frame.f_back is not None:
            self._callers.add(frame.f_back)
        if _PACKAGE not in pathlib.Path(frame.f_code.co_filename).parents:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        code = frame.f_code
        before: int | None = None

        def step(frame: types.FrameType, event: str, arg: object) -> typing.Any:
            nonlocal before
            if event == "opcode":
                # What is raised between two instructions comes from the first of them.
                last, before = before, frame.f_lasti
                called = frame in self._callers
                self._callers.discard(frame)
                if (
                    last is not None
                    and not called
                    and code.co_code[last] in _LOOKS
                    and _guard(code, last) == _guard(code, before)
                ):
                    self._reached()
            return step

        return step

    def _reached(self) -> None:
        self.seen += 1
        if self._left is not None and self.seen > self._left:
            self._left = None
            self.struck = True
            sys.settrace(None)
            self._strike()


@check
def a_call_at_each_point_of_a_call(env: Env) -> None:
    """A handler calls, or is told that it cannot; the call that it came in gets its
    reply in either case."""
    echo = env.echo
    refused, answered = [], []

    def strike() -> None:
        try:
            assert echo.call({}, "echo", value="within") == "within"
            answered.append(True)
        except env.oslo.MessageDeliveryFailure as exc:
            assert "cannot wait for the message bus" in str(exc), exc
            refused.append(True)

    points = Points(lambda: echo.call({}, "echo", value="around"), strike)
    points.run(None)
    points.run(None)
    for number in range(points.seen):
        assert points.run(number) == "around"
    assert env.problems.seen == [], env.problems.seen
    print(len(refused), len(answered), flush=True)
    assert len(refused) > 10
    assert len(answered) > 10


class SoftLimit(TimeoutError):
    """As a time limit of the application's; so it is an OSError, too."""


def _limit(number: int, frame: object) -> None:
    raise SoftLimit


#: A connection that such a limit costs is made anew: of so many points one is tried.
SOME = 5


@check
def exceptions_at_some_points_of_a_call(env: Env) -> None:
    """What a handler raises reaches whom it struck, or a connection is replaced; and
    either way everything works afterwards, in both directions."""
    target = env.target()
    listener = env.listen(target)
    client = env.client(target)
    echo = env.echo
    signal.signal(signal.SIGUSR1, _limit)  # by which the driver knows it
    caught = 0
    points = Points(lambda: echo.call({}, "echo", value=1), lambda: _limit(0, None))
    points.run(None)
    points.run(None)
    for number in range(0, points.seen, SOME):
        try:
            points.run(number)
            # In a loop's own green thread it strikes the loop, which logs it.
            assert env.green or not points.struck, f"nobody heard of {number}"
        except SoftLimit:
            caught += 1
        except env.oslo.MessageDeliveryFailure as exc:
            assert "interrupted" in str(exc), exc
    print(points.seen, caught, flush=True)
    assert caught > 5
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for attempt in (1, 2):
        try:
            assert echo.call({}, "echo", value="after") == "after"
            break
        except env.oslo.MessageDeliveryFailure as exc:
            # The last one's connection was replaced only now.
            assert attempt == 1
            assert "interrupted" in str(exc), exc
    client.cast({}, "after")
    (incoming,) = listener.poll(FAR)
    assert incoming.message["method"] == "after"
    listener.cleanup()


@check
def exceptions_at_some_points_of_a_poll(env: Env) -> None:
    """What comes meanwhile is not kept by a listener that has lost sight of it."""
    target = env.oslo.Target(topic=env.target().topic)
    listener = env.driver.listen_for_notifications([(target, "info")], None, 1, None)
    notifier = env.oslo.Notifier(
        env.new_transport(), "p", driver="messagingv2", topics=[target.topic]
    )
    seen: list[str] = []

    def poll() -> None:
        for incoming in listener.poll(0.2):
            seen.append(incoming.message["event_type"])
            incoming.acknowledge()

    notifier.info({}, "first", {})
    while not seen:
        poll()
    signal.signal(signal.SIGUSR1, _limit)
    points = Points(poll, lambda: _limit(0, None))
    notifier.info({}, "counted", {})
    points.run(None)
    wanted = []
    for number in range(0, points.seen + 100, SOME):
        wanted.append(str(number))
        notifier.info({}, wanted[-1], {})
        try:
            points.run(number)
        except SoftLimit:
            pass
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    end = env.hub.now() + FAR
    while not set(wanted).issubset(seen):
        assert env.hub.now() < end, sorted(set(wanted).difference(seen))
        poll()
    listener.cleanup()


class _Sends(logging.Handler):
    """Sends each record, as oslo.messaging's LoggingNotificationHandler does."""

    def __init__(self, notifier: typing.Any) -> None:
        super().__init__(logging.INFO)
        self._notifier = notifier

    def emit(self, record: logging.LogRecord) -> None:
        self._notifier.info({}, "log", {"message": record.getMessage()})


@check
def a_log_handler_that_sends(env: Env) -> None:
    """All that is logged, from the first connection on; the bus goes and comes back."""
    from tests.functional import buses

    broker = buses.EmbeddedBroker()
    env.url = broker.url
    for name in ("default_send_timeout", "default_notify_timeout"):
        env.conf.set_override(name, 5, group="oslo_messaging_amqp")
    transport = env.new_transport()
    topic = env.target().topic
    notifier = env.oslo.Notifier(
        transport, "publisher", driver="messagingv2", topics=[topic], retry=0
    )
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    handler = _Sends(notifier)
    root.addHandler(handler)
    target = env.target()
    client = env.oslo.get_rpc_client(transport, target, timeout=1)
    client.cast({}, "before")
    broker.stop()
    for _ in range(2):
        try:
            client.cast({}, "while it is away")
        except (env.oslo.MessageDeliveryFailure, env.oslo.MessagingTimeout):
            pass
        logging.getLogger("application").warning("the bus is away")
    broker = buses.EmbeddedBroker("--port", str(broker.port))
    notifications = transport._driver.listen_for_notifications(
        [(env.oslo.Target(topic=topic), "info")], None, 1, None
    )
    logging.getLogger("application").warning("the bus is back")
    seen = ""
    while "the bus is back" not in seen:
        (incoming,) = notifications.poll(FAR)
        incoming.acknowledge()
        seen = incoming.message["payload"]["message"]
        assert "could not be sent" not in seen
    notifications.cleanup()
    listener = transport._driver.listen(target, 1, None)
    client.cast({}, "after")
    (incoming,) = listener.poll(FAR)
    assert incoming.message["method"] == "after"
    transport.cleanup()
    root.removeHandler(handler)
    broker.stop()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@check
def forgotten_transports(env: Env) -> None:
    """They give everything back, with a warning each; one that listens is in use."""
    assert env.echo.call({}, "echo", value=0) == 0
    target = env.target()
    listener = env.new_transport(keep=False)._driver.listen(target, 1, None)
    gc.collect()
    before = _descriptors()
    clients = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for number in range(10):
            transport = env.new_transport(keep=False)
            client = env.client(target, transport)
            client.cast({}, f"cast {number}")
            clients.append(transport._driver._client)
            del transport, client
            gc.collect()
        while any(client.connection.engine is not None for client in clients):
            env.turn()
    messages = [str(each.message) for each in caught]
    assert sum("was not cleaned up" in each for each in messages) == 10, messages
    for number in range(10):
        (incoming,) = listener.poll(FAR)
        assert incoming.message["method"] == f"cast {number}"
    listener.cleanup()
    end = env.hub.now() + FAR
    while _descriptors() > before:
        assert env.hub.now() < end, (before, _descriptors())
        env.turn()
    assert env.problems.seen == [], env.problems.seen


@check
def finalizers_that_send(env: Env) -> None:
    """The garbage collector runs at each allocation of a container."""
    client = env.echo
    outcomes = {True: 0, False: 0}

    class Sends:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            try:
                client.cast({}, "echo", value=1)
                outcomes[True] += 1
            except env.oslo.MessageDeliveryFailure:
                outcomes[False] += 1

    assert client.call({}, "echo", value=0) == 0
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(100):
            Sends()
            assert client.call({}, "echo", value=number) == number
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert sum(outcomes.values()) == 100, outcomes
    assert env.problems.seen == [], env.problems.seen


@check
def finalizers_of_public_objects(env: Env) -> None:
    """All that an application holds is collected in the midst of its calls."""
    client = env.echo
    assert client.call({}, "echo", value=0) == 0
    gc.collect()
    before = _descriptors()
    connections = []

    def make_and_forget(number: int) -> None:
        transport = env.new_transport(keep=False)
        target = env.target()
        caller = env.client(target, transport)
        caller.cast({}, f"cast {number}")
        driver = transport._driver
        listeners = [
            driver.listen(target, 1, None),
            driver.listen_for_notifications([(target, "info")], None, 1, None),
        ]
        for listener in listeners:
            listener.cleanup()
        notifier = env.oslo.Notifier(
            transport, "publisher", driver="messagingv2", topics=[target.topic]
        )
        notifier.info({}, "event", {})
        server = env.oslo.get_rpc_server(transport, target, [], executor="threading")
        # Nothing but the collector frees a cycle.
        circle: list[object] = [transport, caller, *listeners, notifier, server]
        circle.append(circle)
        connections.append(driver._client.connection)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for number in range(10):
            make_and_forget(number)
            threshold = gc.get_threshold()
            gc.set_threshold(1)
            try:
                while not all(each.engine is None for each in connections):
                    assert client.call({}, "echo", value=number) == number
            finally:
                gc.set_threshold(*threshold)
    end = env.hub.now() + FAR
    while _descriptors() > before:
        assert env.hub.now() < end, (before, _descriptors())
        env.turn()
    assert env.problems.seen == [], env.problems.seen


#: The main thread, in a process that runs a check.
MAIN = 0


def run(hub: str, url: str, name: str) -> None:
    """Run one check."""
    global MAIN
    from greenamqp.hubs import native

    MAIN = native.original("_thread", "get_ident")()
    faulthandler.enable()
    faulthandler.dump_traceback_later(2 * FAR, exit=True)
    env = Env(hub, url)
    CHECKS[name](env)
    env.close()
    print("ok", flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
