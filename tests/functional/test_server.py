# SPDX-License-Identifier: Apache-2.0
"""greenamqp.Server, its executors, RPCServer and pools: what is greenamqp's own."""

import os
import select
import signal
import threading

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging import Target

import greenamqp
from greenamqp.listener import Listener
from tests.functional import world
from tests.functional.harness import (
    WAIT,
    Gate,
    InfoBatches,
    InfoOnly,
    Recorder,
    in_thread,
)

pytestmark = [
    pytest.mark.needs("amqp", "store", "pools"),
    pytest.mark.proves("servers"),
]


class Echo:
    """Answers with what it was given, and by which server."""

    def __init__(self, name=""):
        self.name = name
        self.got = Recorder()

    def echo(self, ctxt, value):
        self.got.add(value)
        return [self.name, value]

    def fail(self, ctxt):
        raise LookupError("as asked")


class Running:
    """A started Server; with the blocking executor, in a thread of its own."""

    def __init__(self, server, executor):
        self.server = server
        self._thread = None
        if executor == "blocking":
            ready = threading.Event()
            server.listen(
                Target(topic=f"ready-{id(self)}", server="s"), [_Ready(ready)]
            )
            self._thread = threading.Thread(target=server.start)
            self._thread.start()
        else:
            server.start()

    def stop(self):
        self.server.stop()
        if self._thread is not None:
            self._thread.join(WAIT)
            assert not self._thread.is_alive()
        self.server.wait()


class _Ready:
    def __init__(self, event):
        self._event = event

    def ping(self, ctxt):
        self._event.set()


@pytest.fixture
def transports(the_bus):
    """Makes transports of their own connection each."""
    made = []

    def make(kind="rpc", **query):
        factory = getattr(oslo_messaging, f"get_{kind}_transport")
        made.append(factory(cfg.CONF, url=the_bus.url_with(**query)))
        return made[-1]

    yield make
    for transport in made:
        transport.cleanup()


@pytest.fixture(params=world.own_executors())
def serve(request, transports):
    """Makes and starts servers with each executor; stops them."""
    running = []

    def start(server=None, prepare=None):
        server = server or greenamqp.Server(transports(), executor=request.param)
        if prepare is not None:
            prepare(server)
        running.append(Running(server, request.param))
        return server

    start.executor = request.param
    yield start
    for each in running:
        each.stop()


@pytest.fixture
def client(transports):
    transport = transports()

    def client(topic, server=None, timeout=WAIT, **prepare):
        return oslo_messaging.get_rpc_client(
            transport, Target(topic=topic, server=server, **prepare), timeout=timeout
        )

    return client


def test_many_targets(serve, client, unique):
    """Each target has its own endpoints, all on one connection."""
    topics = [unique() for _ in range(30)]

    def prepare(server):
        for topic in topics:
            server.listen(Target(topic=topic, server="s"), [Echo(topic)])

    serve(prepare=prepare)
    for topic in topics:
        assert client(topic).call({}, "echo", value=1) == [topic, 1]
    with pytest.raises(LookupError, match="as asked"):
        client(topics[0]).call({}, "fail")


def test_targets_come_and_go(serve, client, unique):
    """After the start, from an endpoint and from another thread; stop() of one
    leaves the others alone."""
    first, second, third = unique(), unique(), unique()
    handles = {}

    class Opener:
        def open(self, ctxt, topic):
            handles[topic] = server.listen(
                Target(topic=topic, server="s"), [Echo(topic)]
            )

        def close(self, ctxt, topic):
            handles[topic].stop()

    server = serve(
        prepare=lambda server: server.listen(
            Target(topic=first, server="s"), [Opener(), Echo(first)]
        )
    )
    client(first).call({}, "open", topic=second)
    assert client(second).call({}, "echo", value=2) == [second, 2]
    adder = threading.Thread(
        target=lambda: server.listen(Target(topic=third, server="s"), [Echo(third)])
    )
    adder.start()
    adder.join(WAIT)
    assert client(third).call({}, "echo", value=3) == [third, 3]
    client(first).call({}, "close", topic=second)
    with pytest.raises(oslo_messaging.MessagingTimeout):
        client(second, timeout=1).call({}, "echo", value=4)
    assert client(third).call({}, "echo", value=5) == [third, 5]


def test_a_target_stops_itself(serve, client, unique):
    """An endpoint may stop the listening that it serves; its answer still leaves."""
    topic = unique()
    handles = []

    class Suicidal:
        def leave(self, ctxt):
            handles[0].stop()
            return "bye"

    serve(
        prepare=lambda server: handles.append(
            server.listen(Target(topic=topic, server="s"), [Suicidal()])
        )
    )
    assert client(topic).call({}, "leave") == "bye"


def test_several_transports(serve, client, transports, unique):
    """One server on the exchanges of several transports."""
    topic, other = unique(), transports("notification")
    endpoint, echo = InfoOnly(), Echo("x")
    target = Target(topic=topic, exchange=unique("exchange"))

    def prepare(server):
        server.listen(Target(topic=topic, server="s"), [echo])
        server.listen_for_notifications([target], [endpoint], transport=other)

    serve(prepare=prepare)
    client(topic).call({}, "echo", value=1)
    sender = transports("notification")
    sender._send_notification(
        Target(topic=f"{topic}.info", exchange=target.exchange),
        {},
        {
            "event_type": "e",
            "publisher_id": "p",
            "payload": {},
            "priority": "INFO",
            "message_id": "1",
            "timestamp": "now",
        },
        version=2.0,
    )
    assert endpoint.got.wait(1) == ["e"]


def test_no_heartbeats_for_what_is_not_found(serve, client, unique):
    """A thread that sent them for so long would outlast the server."""
    topic = unique("topic")
    serve().listen(Target(topic=topic, server="s"), [Echo()])
    before = set(threading.enumerate())
    calling = client(topic).prepare(call_monitor_timeout=20)
    with pytest.raises(oslo_messaging.RemoteError, match="NoSuchMethod"):
        calling.call({}, "nosuch")
    names = [each.name for each in set(threading.enumerate()) - before]
    assert not [name for name in names if "_watchdog" in name]


@pytest.mark.needs("absent")
def test_a_backlog_keeps_nobody_waiting(serve, client, unique):
    """While one target works off a backlog, another one's message gets its turn
    within a round."""
    busy, idle = unique("busy"), unique("idle")
    order = Recorder()

    class Busy:
        def work(self, ctxt, number):
            order.add("busy")

    class Idle:
        def work(self, ctxt):
            order.add("idle")

    # Stored before anybody listens, so both are there when the server starts.
    for number in range(500):
        client(busy, server="s").cast({}, "work", number=number)
    client(idle, server="s").cast({}, "work")

    def prepare(server):
        server.listen(Target(topic=busy, server="s"), [Busy()])
        server.listen(Target(topic=idle, server="s"), [Idle()])

    serve(prepare=prepare)
    items = order.wait(501)
    assert items.count("busy") == 500
    # Not behind the backlog: the window of one link is 100, and a round is shared.
    assert items.index("idle") <= 200


def test_one_that_blocks(serve, client, unique):
    """An endpoint that blocks holds one worker, not the others."""
    if serve.executor == "blocking":
        pytest.skip("it dispatches one after another")
    topic = unique()
    gate = Gate()

    class Blocker(Echo):
        def block(self, ctxt):
            gate.enter()

    serve(
        prepare=lambda server: server.listen(
            Target(topic=topic, server="s"), [Blocker()]
        )
    )
    client(topic).cast({}, "block")
    gate.wait_entered()
    assert client(topic).call({}, "echo", value=1) == ["", 1]
    gate.open()


def test_one_that_blocks_all_its_workers(serve, client, unique):
    """More requests that block than there are workers leave some to the others."""
    if serve.executor == "blocking":
        pytest.skip("it dispatches one after another")
    slow, quick = unique("slow"), unique("quick")
    gate = Gate()
    done = Recorder()

    class Blocker:
        def block(self, ctxt, number):
            gate.enter()
            done.add(number)

    def prepare(server):
        server.listen(Target(topic=slow, server="s"), [Blocker()])
        server.listen(Target(topic=quick, server="s"), [Echo()])

    serve(prepare=prepare)
    for number in range(90):  # the pool has 64 workers
        client(slow).cast({}, "block", number=number)
    for _ in range(40):
        gate.wait_entered()
    for value in range(20):
        assert client(quick).call({}, "echo", value=value) == ["", value]
    gate.open()
    assert sorted(done.wait(90)) == list(range(90))


def notifies(serve, server, transports, ready, topic):
    """Starts the server; returns a notifier on `topic` once all is subscribed."""
    server.listen(Target(topic=ready, server="s"), [Echo()])
    serve(server)
    caller = oslo_messaging.get_rpc_client(
        transports(), Target(topic=ready), timeout=WAIT
    )
    caller.call({}, "echo", value=1)
    return oslo_messaging.Notifier(
        transports("notification"), "p", driver="messagingv2", topics=[topic]
    )


def test_batches_and_pools(serve, transports, unique):
    """Batches of notifications for two pools; each gets a copy of all."""
    topic, shared = unique(), Recorder()
    one, two = InfoBatches(shared=shared), InfoBatches(shared=shared)
    target = Target(topic=topic)

    def prepare(server):
        for pool, endpoint in (("one", one), ("two", two)):
            server.listen_for_notifications(
                [target], [endpoint], pool=pool, batch_size=10, batch_timeout=0.05
            )

    server = greenamqp.Server(transports("notification"), executor=serve.executor)
    prepare(server)
    notifier = notifies(serve, server, transports, unique("ready"), topic)
    for number in range(25):
        notifier.info({}, f"event-{number}", {})
    shared.wait_for(
        lambda batches: sum(len(batch) for batch in batches) >= 50, "two copies"
    )
    expected = sorted(f"event-{number}" for number in range(25))
    for endpoint in (one, two):
        assert sorted(endpoint.events()) == expected
        assert max(len(batch) for batch in endpoint.got.items) <= 10


def test_a_consumer_pool_beside_a_target(serve, transports, unique):
    """In one dispatcher: a message that its callback fails on comes again, to it."""
    topic, got = unique(), Recorder()

    def callback(message):
        again = message["event_type"] in got.items
        got.add(message["event_type"])
        if not again:
            raise ValueError("on purpose")

    server = greenamqp.Server(transports("notification"), executor=serve.executor)
    server.join_consumer_pool(callback, "pool", f"{topic}.info", requeue_on_error=True)
    notifier = notifies(serve, server, transports, unique("ready"), topic)
    for name in ("one", "two"):
        notifier.info({}, name, {})
    assert sorted(got.wait(4)) == ["one", "one", "two", "two"]


@pytest.mark.parametrize("executor", world.own_executors())
def test_rpc_server_cls(executor, transports, client, unique):
    """greenamqp.RPCServer in oslo.messaging's own get_rpc_server."""
    topic = unique()
    server = oslo_messaging.get_rpc_server(
        transports(),
        Target(topic=topic, server="s"),
        [Echo(topic)],
        executor=executor,
        server_cls=greenamqp.RPCServer,
    )
    if executor == "blocking":
        thread = threading.Thread(target=server.start)
        thread.start()
    else:
        server.start()
    assert client(topic).call({}, "echo", value=1) == [topic, 1]
    server.stop()
    if executor == "blocking":
        thread.join(WAIT)
        assert not thread.is_alive()
    server.wait()


def test_notification_listener(transports, unique):
    """The counterpart of oslo.messaging's get_notification_listener."""
    topic, endpoint = unique(), InfoOnly()
    listener = greenamqp.get_notification_listener(
        transports("notification"),
        [Target(topic=topic)],
        [endpoint],
        world.own_executors()[0],
    )
    listener.start()
    notifier = oslo_messaging.Notifier(
        transports("notification"), "p", driver="messagingv2", topics=[topic]
    )
    notifier.info({}, "event", {})
    assert endpoint.got.wait(1) == ["event"]
    listener.stop()
    listener.wait()


def test_start_again(serve, client, unique):
    """stop(), wait(), start(): what was cast meanwhile is not lost."""
    if serve.executor == "blocking":
        pytest.skip("its start() is in another thread here")
    topic, echo = unique(), Echo()
    server = serve(
        prepare=lambda server: server.listen(Target(topic=topic, server="s"), [echo])
    )
    client(topic).call({}, "echo", value=1)
    server.stop()
    server.wait()
    client(topic).cast({}, "echo", value=2)
    server.start()
    assert echo.got.wait(2) == [1, 2]


@pytest.mark.parametrize("all_of_it", [False, True])
def test_what_is_stopped_while_others_are_subscribed(transports, unique, all_of_it):
    """By another thread, say: the one, or the whole server."""
    topic, transport = unique(), transports()
    server = greenamqp.Server(transport, world.own_executors()[0])
    first, second = (
        server.listen(Target(topic=topic, server=name), [Echo()]) for name in "ab"
    )
    subscribe = first._subscribe

    def meanwhile():
        if all_of_it:
            server.stop()
            server.wait()
        else:
            second.stop()
        return subscribe()

    first._subscribe = meanwhile
    server.start()
    subscriptions = transport._driver.client.room.subscriptions
    assert len(subscriptions) == (0 if all_of_it else 1)
    server.stop()
    server.wait()
    assert not subscriptions


class _StoppedEarly(greenamqp.Server):
    """By another thread, say, while its start() subscribes."""

    waits = False

    def _begin(self, executor, subscriptions):
        super()._begin(executor, subscriptions)
        self.stop()
        if self.waits:
            self.wait()
        hub = executor.hub
        waiter = hub.waiter()
        hub.call_inside(waiter.wake)  # behind what stop() left for the hub
        assert waiter.wait(hub.now() + WAIT)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("executor", world.own_executors())
def test_stop_while_it_starts(transports, unique, executor, waits):
    def life():
        server = _StoppedEarly(transports(), executor)
        server.waits = waits
        server.listen(Target(topic=unique(), server="s"), [Echo()])
        server.start()
        server.wait()

    in_thread(life).result()


@pytest.mark.parametrize("executor", world.own_executors()[:1])
def test_a_subscription_is_stopped_while_it_is_waited_for(
    unique, executor, monkeypatch, caplog
):
    """start() does not go on waiting for it."""
    nobody = oslo_messaging.get_rpc_transport(cfg.CONF, url="amqp://127.0.0.1:1")
    server = greenamqp.Server(nobody, executor)
    subscription = server.listen(Target(topic=unique(), server="s"), [Echo()])
    wait_attached = Listener.wait_attached

    def stop_and_wait(listener, deadline):
        stopping = in_thread(subscription.stop)
        assert not wait_attached(listener, deadline)
        stopping.result()
        return False

    monkeypatch.setattr(Listener, "wait_attached", stop_and_wait)
    server.start()
    server.stop()
    server.wait()
    nobody.cleanup()
    assert "not subscribed yet" not in caplog.text


def test_subscriptions_that_are_stopped_as_the_server_ends(serve, unique):
    if serve.executor == "blocking":
        pytest.skip("its start() is in another thread here")
    server = serve()
    first, second, third = (
        server.listen(Target(topic=unique(), server="s"), [Echo()]) for _ in range(3)
    )
    detach = first._detach

    def detach_and_stop_it():
        detach()
        first._detach = detach
        first.stop()  # by another thread

    first._detach = detach_and_stop_it
    listeners = [second._listener, third._listener]
    server.stop()
    server.wait()
    for listener in listeners:
        with pytest.raises(ValueError, match="cleaned up"):
            listener.fileno()


@pytest.mark.parametrize("executor", world.own_executors()[:1])
def test_who_waits_before_it_is_stopped(transports, unique, executor):
    target = Target(topic=unique(), server="s")
    dispatcher = oslo_messaging.RPCDispatcher([Echo()], None)
    server = greenamqp.RPCServer(transports(), target, dispatcher, executor)
    server.start()
    waiting = threading.Event()
    wait = server._server.wait

    def tell_and_wait():
        waiting.set()
        wait()

    server._server.wait = tell_and_wait
    waits = in_thread(server.wait)
    assert waiting.wait(WAIT)
    server.stop()
    waits.result()


def test_a_start_that_failed_fails_again(transports, unique, monkeypatch):
    server = greenamqp.get_notification_listener(
        transports("notification"), [Target(topic=unique())], [InfoOnly()]
    )

    def begin(self, executor, subscriptions):
        raise NotImplementedError("as asked")

    monkeypatch.setattr(greenamqp.Server, "_begin", begin)
    for _ in range(2):
        with pytest.raises(NotImplementedError):
            server.start()


@pytest.mark.skipif(world.current() != "threads", reason="makes native threads")
def test_where_no_thread_can_be_made(transports, client, unique, monkeypatch, caplog):
    topic = unique()
    server = greenamqp.Server(transports(), "threading")
    server.listen(Target(topic=topic, server="s"), [Echo("it")])
    server.start()
    start = threading.Thread.start
    failures = [RuntimeError("can't start new thread")] * 2

    def fail_first(thread):
        if thread.name.startswith("greenamqp-worker") and failures:
            raise failures.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_first)
    assert client(topic).call({}, "echo", value=1) == ["it", 1]
    assert not failures
    said = [each.getMessage() for each in caplog.records if "worker" in each.msg]
    assert said == ["no further worker, of which 0 work: can't start new thread"]
    server.stop()
    in_thread(server.wait).result()


def test_join_consumer_pool(transports, unique):
    """One member of each pool gets each message, and messages need not be
    notifications."""
    topic, exchange = unique("any.topic"), unique("exchange")
    transport = transports("notification")
    # Some buses name a pool's queue after the pool alone, and keep what is in it.
    first, second = unique("a"), unique("b")
    got = {first: Recorder(), second: Recorder()}
    members = [
        greenamqp.join_consumer_pool(
            transport, got[pool].add, pool, topic, exchange_name=exchange
        )
        for pool in (first, first, second)
    ]
    sender = transports("notification")
    target = Target(topic=topic, exchange=exchange)
    for number in range(20):
        sender._send_notification(target, {}, {"plain": number}, version=2.0)
    for pool in got.values():
        items = pool.wait(20)
        assert sorted(item["plain"] for item in items) == list(range(20))
    for member in members:
        member.stop()
    # While a pool has no members its messages are kept.
    sender._send_notification(target, {}, {"plain": 99}, version=2.0)
    again = greenamqp.join_consumer_pool(
        transport, got[first].add, first, topic, exchange_name=exchange
    )
    assert got[first].wait(21)[-1] == {"plain": 99}
    again.stop()


@pytest.mark.parametrize(
    "raised, options", [(RuntimeError, {"requeue_on_error": True}), (SystemExit, {})]
)
def test_a_pool_callback_that_fails(transports, unique, raised, options):
    """Its message is acknowledged by default, and given back on request; one that exits
    in a native thread gives it back in any case."""
    if raised is SystemExit and world.current() != "threads":
        pytest.skip("there it ends the process")
    topic = unique()
    transport = transports("notification")
    seen = Recorder()

    def fail_once(message):
        seen.add(message["n"])
        if len(seen) == 1:
            raise raised("the first time")

    member = greenamqp.join_consumer_pool(transport, fail_once, "p", topic, **options)
    transports("notification")._send_notification(
        Target(topic=topic), {}, {"n": 1}, version=2.0
    )
    assert seen.wait(2) == [1, 1]
    member.stop()


@pytest.mark.needs("requeue")
@pytest.mark.parametrize(
    "kind, endpoint",
    [
        (greenamqp.get_notification_listener, InfoOnly),
        (greenamqp.get_batch_notification_listener, InfoBatches),
    ],
)
def test_an_endpoint_that_exits_in_a_native_thread(bus, unique, kind, endpoint, caplog):
    """That ends neither the process nor the listener: the message comes again."""
    if world.current() != "threads":
        pytest.skip("there it ends the process")
    topic = unique()
    left = []

    def exit_once(event):
        if not left:
            left.append(event)
            raise SystemExit(3)

    made = endpoint(exit_once)
    listener = bus.listener(
        [made], [Target(topic=topic)], executor="threading", kind=kind
    )
    notifier = bus.notifier([topic])
    notifier.info({}, "event", {})
    first, again = made.got.wait(2)
    assert first == again
    bus.stop(listener)  # the worker may be about to say so
    assert "a worker failed" in caplog.text


@pytest.mark.needs("policy", "absent")
@pytest.mark.proves("policy")
def test_queue_policy(transports, client, unique):
    """A message that outlived its time is not delivered; a later one is."""
    topic, echo = unique(), Echo()
    transport = transports()
    target = Target(topic=topic, server="late")
    greenamqp.set_queue_policy(
        transport, target, greenamqp.QueuePolicy(expires=600, max_length=2)
    )
    caster = oslo_messaging.get_rpc_client(transport, target)
    for value in (1, 2, 3):
        caster.cast({}, "echo", value=value)
    server = greenamqp.Server(transport)
    server.listen(target, [echo])
    server.start()
    # Two were kept, and more push out the oldest.
    assert echo.got.wait(2) == [2, 3]
    server.stop()
    server.wait()


def test_a_policy_that_makes_no_sense():
    with pytest.raises(ValueError, match="expires"):
        greenamqp.QueuePolicy(expires=-1)
    with pytest.raises(ValueError, match="message_ttl"):
        greenamqp.QueuePolicy(message_ttl="soon")


def test_wrong_executors(transports):
    with pytest.raises(ValueError, match="executor must be one of"):
        greenamqp.Server(transports(), executor="twisted")


def test_wrong_driver():
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url="fake://")
    with pytest.raises(TypeError, match="fake"):
        greenamqp.Server(transport)


def test_targets_without_topic(transports):
    server = greenamqp.Server(transports())
    with pytest.raises(oslo_messaging.InvalidTarget):
        server.listen(Target(server="s"), [Echo()])
    with pytest.raises(oslo_messaging.InvalidTarget):
        server.listen(Target(topic="t"), [Echo()])
    with pytest.raises(oslo_messaging.InvalidTarget):
        server.listen_for_notifications([Target()], [InfoOnly()])


@pytest.mark.skipif(
    world.current() != "threads", reason="green processes have threads of their own"
)
def test_blocking_makes_no_thread(the_bus, unique):
    """A whole server with the blocking executor, stopped by a signal's handler."""
    import subprocess
    import sys

    topic = unique()
    program = f"""
import os, signal, sys, threading
import oslo_messaging
from oslo_config import cfg
import greenamqp

class Endpoint:
    def threads(self, ctxt):
        return len(os.listdir("/proc/self/task"))

cfg.CONF([])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, url={the_bus.url!r})
server = greenamqp.Server(transport, executor="blocking")
for number in range(20):
    server.listen(
        oslo_messaging.Target(topic={topic!r} + str(number), server="s"), [Endpoint()]
    )
signal.signal(signal.SIGTERM, lambda *_: server.stop())
print("ready", flush=True)
server.start()
server.wait()
transport.cleanup()
print("stopped", len(os.listdir("/proc/self/task")), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=the_bus.url)
        client = oslo_messaging.get_rpc_client(
            transport, Target(topic=topic + "7"), timeout=WAIT
        )
        assert client.call({}, "threads") == 1
        transport.cleanup()
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.readline() == "stopped 1\n"
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.communicate()


def test_an_endpoint_that_runs_the_loop_of_its_program(transports, client, unique):
    """It is called again within itself, by the same listener."""
    if world.is_green():
        pytest.skip("there is no blocking executor")
    topic = unique()
    server = greenamqp.Server(transports(hub="blocking"), "blocking")

    class Endpoint:
        begun = done = 0

        def work(self, ctxt):
            self.begun += 1
            if self.begun == 1:
                run(lambda: self.begun > 1)
            self.done += 1

    def run(over):
        loop = select.poll()
        loop.register(server.fileno(), select.POLLIN)
        while not over():
            assert loop.poll(WAIT * 1000)
            server.step()

    endpoint = Endpoint()
    server.listen(Target(topic=topic, server="s"), [endpoint])
    server.attach()
    for _ in range(2):
        client(topic).cast({}, "work")
    run(lambda: endpoint.done == 2)
    server.stop()
    server.wait()
