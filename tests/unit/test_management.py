# SPDX-License-Identifier: Apache-2.0
"""Declarations, and a client in front of a bus that wants them."""

import contextlib
import types
from urllib.parse import unquote

import pytest
from oslo_messaging import Target, exceptions

from greenamqp import buses
from greenamqp.buses import Again, Service, identify
from greenamqp.buses.rabbitmq.management import Management, binding, exchange, queue
from greenamqp.client.doubt import IN_DOUBT_FOR
from greenamqp.client.receiving import RENEW_EVERY
from greenamqp.client.replies import MOST_SOON
from greenamqp.client.wanted import DECLARED_ANEW, FIRST_PAUSE, KNOWN_PATIENCE
from greenamqp.connection.state import State
from greenamqp.engine import ACCEPTED, RELEASED, Message
from greenamqp.policy import Policies, QueuePolicy
from tests.unit import fakes
from tests.unit.wire import Recorder, joined


def addresser(version="4.0.5", policies=None, **options):
    options.setdefault("addressing_mode", "declared")
    return buses.choose(
        fakes.options(**options),
        "openstack",
        "v",
        identify("RabbitMQ", version),
        policies,
    )


# -- addresses


def test_names_are_encoded_in_addresses_and_not_in_bodies():
    made = addresser().rpc_sources(Target(topic="a/b c", server="s%"), "u")
    assert made[0].address == (
        "/queues/openstack.org%2Fom%2Frpc%2Funicast%2Fopenstack%2Fa%2Fb%20c%2Fs%25"
    )
    fanout = made[1]
    name = "openstack.org/om/rpc/multicast/openstack/a/b c"
    assert fanout.declarations[2].body() == {
        "source": name,
        "destination_queue": f"{name}/u",
        "binding_key": "",
        "arguments": {},
    }
    assert fanout.remove == f"{name}/u"


def test_requests_declare_no_queue_and_notifications_do():
    family = addresser()
    request = family.destination(Target(topic="t"), Service.RPC)
    assert (request.address, request.declarations) == (None, ())
    assert request.to == "/queues/openstack.org%2Fom%2Frpc%2Fanycast%2Fopenstack%2Ft"
    notification = family.destination(Target(topic="t.info"), Service.NOTIFY)
    assert [each.what.split()[0] for each in notification.declarations] == [
        "exchange",
        "queue",
        "binding",
    ]
    assert request.durable and notification.durable


def test_a_policy_becomes_arguments():
    policies = Policies()
    policies.set(Target(topic="t"), QueuePolicy(1, 2, 3))
    (source,) = addresser(policies=policies).notification_sources(
        [Target(topic="t.info")], None
    )
    assert dict(source.declarations[1].arguments) == {
        "x-queue-type": "quorum",
        "x-expires": 1000,
        "x-message-ttl": 2000,
        "x-max-length": 3,
        "x-overflow": "drop-head",
    }


def test_the_reply_queue_keeps_its_name():
    family = addresser(rabbit_transient_queues_ttl=7)
    source = family.reply_source("u")
    assert source == family.reply_source("u")
    assert source.survives and source.address == "/queues/reply%2Fu"
    assert dict(source.declarations[0].arguments)["x-expires"] == 7000


@pytest.mark.parametrize("version", ["3.10.8", "3.13.7", ""])
@pytest.mark.parametrize("mode", ["declared", "rabbit"])
def test_before_4_it_says_what_is_needed(version, mode):
    family = addresser(version, addressing_mode=mode)
    for ask in (
        lambda: family.destination(Target(topic="t"), Service.RPC),
        lambda: family.rpc_sources(Target(topic="t", server="s"), "u"),
        lambda: family.notification_sources([Target(topic="t.info")], "pool"),
        lambda: family.reply_source("u"),
    ):
        with pytest.raises(NotImplementedError, match="4.0 or newer"):
            ask()


@pytest.mark.parametrize("product", ["", "qpid-cpp", "qpid-dispatch-router"])
def test_other_buses_are_told_of_no_declarations(product):
    family = buses.choose(fakes.options(), None, None, identify(product))
    for node in family.rpc_sources(Target(topic="t", server="s"), "u"):
        assert node.declarations == () and node.remove is None
    assert family.reply_source("u").dynamic


# -- the requests


class Broker(Recorder):
    """The other end of the pair; answers as `answers` says."""

    def __init__(self):
        super().__init__()
        self.asked = []
        self.pairs = 0
        self.links = {}
        self.answers = {}
        self.held = False

    def link_requested(self, connection, link):
        link.accept()
        self.links[link.is_sender] = link
        if not link.is_sender:
            self.pairs += 1
            link.flow(8)
            link.on_message = self._message

    def _message(self, link, delivery, data):
        message = link.connection.codec.decode(data)
        link.settle(delivery)
        link.flow(1)
        self.asked.append(message)
        answer = self.answers.get(message.address, ("204", None))
        if self.held:
            return
        if answer == "END":
            # The link stands for the session here.
            self.links[True].close("amqp:unauthorized-access", "no right")
            link.close("amqp:unauthorized-access", "no right")
            return
        status, body = answer
        reply = Message(body, correlation_id=message.id, subject=status)
        self.links[True].send(link.connection.codec.encode(reply), None, True)


class Pair:
    def __init__(self):
        self.broker = Broker()
        self.client, _, wire = joined(None, self.broker)
        self.run = wire.run
        self.management = Management(self.client, lambda: None)

    def declare(self, *declarations):
        outcome = []
        self.management.declare(declarations, outcome.append)
        self.run()
        return outcome


@pytest.fixture
def pair():
    return Pair()


def test_what_is_optional_may_be_refused_and_is_asked_for_anew(pair):
    optional = binding("e", "q", "q", optional=True)
    pair.broker.answers["/bindings"] = ("404", "no queue 'q' in vhost '/'")
    for _ in range(2):
        assert pair.declare(exchange("e", "topic"), optional) == [None]
        pair.management.forget((optional,))
    assert len(pair.broker.asked) == 3
    # Not so what somebody needs.
    (refused,) = pair.declare(binding("e", "q", "q"))
    assert refused.again is Again.AT_ONCE


@pytest.mark.parametrize("answer", ["END", ("403", "no right")])
def test_what_is_optional_and_forbidden_is_not_asked_for_again(pair, answer):
    optional = binding("e", "q", "q", optional=True)
    pair.broker.answers["/bindings"] = answer
    for _ in range(2):
        assert pair.declare(exchange("e", "topic"), optional) == [None]
        pair.management.forget((optional,))
    assert [each.address for each in pair.broker.asked].count("/bindings") == 1


def test_declares_in_order_and_once(pair):
    wanted = (exchange("e", "fanout"), queue("q"), binding("e", "q", ""))
    assert pair.declare(*wanted) == [None]
    assert [message.address for message in pair.broker.asked] == [
        "/exchanges/e",
        "/queues/q",
        "/bindings",
    ]
    assert all(message.reply_to == "$me" for message in pair.broker.asked)
    assert pair.management.has(wanted)
    assert pair.declare(*wanted) == [None]
    assert len(pair.broker.asked) == 3
    pair.management.forget(wanted)
    assert pair.declare(*wanted) == [None]
    assert len(pair.broker.asked) == 6


def test_queues_that_are_there_are_compared_and_none_is_made(pair):
    wanted = (exchange("e", "fanout"), queue("q"), queue("gone"), binding("e", "q", ""))
    pair.broker.answers["/queues/gone"] = ("404", "no queue")
    counts = {"consumer_count": 2, "message_count": 3}
    pair.broker.answers["/queues/q"] = ("200", counts)
    outcome, seen = [], []

    def see(*found):
        seen.append(found)

    assert pair.management.compare(wanted, see, outcome.append)
    pair.run()
    assert outcome == [None, None]
    assert seen == [("queue 'q'", 2, 3)]
    asked = [(message.subject, message.address) for message in pair.broker.asked]
    assert sorted(asked) == [
        ("GET", "/queues/gone"),
        ("GET", "/queues/q"),
        ("PUT", "/queues/q"),
    ]
    assert not pair.management.has((queue("q"),))
    alone = (exchange("e", "fanout"),)
    assert not pair.management.compare(alone, see, outcome.append)


def test_who_asks_for_the_same_shares_the_request(pair):
    first, second = [], []
    pair.management.declare((queue("q"),), first.append)
    pair.management.declare((queue("q"), queue("r")), second.append)
    pair.run()
    assert (first, second) == ([None], [None])
    assert len(pair.broker.asked) == 2


def test_more_than_the_broker_takes_at_a_time(pair):
    assert pair.declare(*(queue(str(n)) for n in range(50))) == [None]
    assert len(pair.broker.asked) == 50


def test_a_refusal_is_named(pair):
    pair.broker.answers["/queues/q"] = ("409", "inequivalent arg 'durable'")
    (refused,) = pair.declare(queue("q"), binding("e", "q", ""))
    assert "queue 'q' was refused (409): inequivalent" in str(refused)
    assert refused.again is Again.NEVER
    assert not pair.management.has((queue("q"),))


def test_one_that_differs_may_do(pair, caplog):
    for name, answer in (("e", "durable"), ("f", "type")):
        pair.broker.answers[f"/exchanges/{name}"] = (
            "409",
            f"inequivalent arg '{answer}' for exchange",
        )
    declared = exchange(
        "e", "topic", may_differ=("durable",), options=(("durable", "[g] option"),)
    )
    assert pair.declare(declared) == [None]
    assert "exchange 'e' is used as it is: inequivalent arg 'durable'" in caplog.text
    assert "[g] option" in caplog.text
    (refused,) = pair.declare(exchange("f", "topic", may_differ=("durable",)))
    assert refused.again is Again.NEVER and "'type'" in str(refused)


def test_a_refusal_names_the_option(pair):
    pair.broker.answers["/queues/q"] = (
        "409",
        "inequivalent arg 'x-expires' for queue 'q': received '1' but current is '2'",
    )
    (refused,) = pair.declare(queue("q", options=(("x-expires", "[group] ttl"),)))
    assert "received '1' but current is '2'; to be set by [group] ttl" in str(refused)


def test_a_request_that_ends_the_pair_harms_no_other(pair):
    pair.broker.answers["/queues/bad"] = "END"
    outcomes = {}
    for name in ("a", "bad", "b", "c"):
        pair.management.declare(
            (queue(name),), lambda refused, name=name: outcomes.update({name: refused})
        )
    pair.run()
    assert pair.broker.pairs == 2
    assert {name: outcomes[name] for name in "abc"} == dict.fromkeys("abc")
    assert "queue 'bad' was refused: amqp:unauthorized-access" in str(outcomes["bad"])
    assert outcomes["bad"].again is Again.NEVER


@pytest.mark.parametrize(
    "status, reason, again",
    [
        ("400", "no exchange 't_fanout' in vhost '/'", Again.AT_ONCE),
        ("404", "no queue 'q' in vhost '/'", Again.AT_ONCE),
        ("400", "queue 'q' process is stopped by supervisor", Again.SOON),
        ("400", "bad binding key", Again.LATER),
        ("403", "no right", Again.NEVER),
        ("409", "no exchange for that", Again.NEVER),
    ],
)
def test_a_refusal_tells_when_to_ask_again(pair, status, reason, again):
    pair.broker.answers["/bindings"] = (status, reason)
    (refused,) = pair.declare(exchange("e", "fanout"), binding("e", "q", ""))
    assert refused.again is again


# -- an exchange that goes with its last queue


class Exchanges:
    """What a RabbitMQ answers that has exchanges; `missing` how often a binding finds
    none, though it was declared."""

    def __init__(self, s, missing=0):
        self.there = set()
        self.missing = missing
        #: What the names of those end with.
        self.missing_ends = "_fanout"
        #: How often a queue for replies is told to be of a node that stops.
        self.stopped = 0
        #: Whether it answers nothing.
        self.mute = False
        self.asked = []
        self.bodies = []
        self._unanswered = []
        self._s = s
        s.network.default |= {
            "outcome": self._answer,
            "properties": {"product": "RabbitMQ", "version": "4.0.5"},
        }

    def speak(self):
        """Be mute no more, and answer what was asked meanwhile."""
        self.mute = False
        for message in self._unanswered:
            self._answer(message)

    def _answer(self, message):
        if message.reply_to != "$me":
            return ACCEPTED
        asked = f"{message.subject} {message.address}"
        self.asked.append(asked)
        self.bodies.append(message.body)
        if self.mute:
            self._unanswered.append(message)
            return ACCEPTED
        status, body = "204", None
        if self.stopped and asked.startswith("PUT /queues/reply_"):
            self.stopped -= 1
            status, body = "400", "queue 'it' process is stopped by supervisor"
        elif asked.startswith("PUT /exchanges/"):
            self.there.add(unquote(message.address.rpartition("/")[2]))
        elif message.subject == "POST":
            exchange = message.body["source"]
            if self.missing and exchange.endswith(self.missing_ends):
                self.missing -= 1
                self.there.discard(exchange)
            if exchange not in self.there:
                status, body = "400", f"no exchange '{exchange}' in vhost '/'"
        elif asked.startswith("DELETE /queues/t_fanout"):
            self.there.discard("t_fanout")
        answer = Message(body, correlation_id=message.id, subject=status)
        self._s.peer.send("/management", answer, settled=True)
        return ACCEPTED


@contextlib.contextmanager
def rabbit(kind=Exchanges, *args, addressing_mode="rabbit", **options):
    """A driver, and what a RabbitMQ answers it."""
    with fakes.driver(addressing_mode=addressing_mode, **options) as s:
        yield s, kind(s, *args)


def clean_up(s, listener):
    s.world.go(listener.cleanup)
    s.world.settle()


@pytest.mark.parametrize("missing", [0, 1, DECLARED_ANEW])
def test_what_went_is_declared_anew_at_once(missing):
    with rabbit(Exchanges, missing) as (s, bus):
        listener = s.listen()
        assert listener._subscription.attached
        assert bus.asked.count("PUT /exchanges/t_fanout") == missing + 1
        clean_up(s, listener)


def test_what_goes_again_and_again_is_tried_after_a_pause(caplog):
    with rabbit(Exchanges, DECLARED_ANEW + 1) as (s, bus):
        task = s.world.go(s.driver.listen, Target(topic="t", server="s"), 1, None)
        s.world.settle()
        assert not task.done
        assert "no exchange 't_fanout'" in caplog.text
        s.world.advance(FIRST_PAUSE + 0.1)
        assert bus.missing == 0
        s.world.go(task.result().cleanup)
        s.world.settle()


def test_an_exchange_that_is_not_there_for_long_is_asked_for_less_and_less_often():
    with rabbit(Exchanges, 10**6, link_retry_delay=8) as (s, bus):
        bus.missing_ends = ""
        task = s.notify(Target(topic="t", exchange="e"), retry=-1)
        s.world.advance(60)
        assert DECLARED_ANEW + 8 <= bus.asked.count("POST /bindings") <= 20
        bus.missing = 0
        s.world.advance(8.1)
        assert task.done and task.result() is None


def test_who_listens_again_finds_the_exchange_that_went_with_the_old_queue():
    with rabbit() as (s, bus):
        for count in range(1, 4):
            listener = s.listen()
            assert bus.asked.count("PUT /exchanges/t_fanout") == count
            assert bus.there >= {"t_fanout"}
            clean_up(s, listener)
            assert "t_fanout" not in bus.there
        # Nothing was refused, so that nothing was asked twice.
        assert sum("/bindings" in asked for asked in bus.asked) <= 3 * 3


@pytest.mark.parametrize("mode", ["rabbit", "declared"])
def test_a_server_whose_fanout_exchange_was_removed_is_bound_again(mode, caplog):
    with rabbit(addressing_mode=mode) as (s, bus):
        listener = s.listen()
        before = set(bus.there)
        removed = {
            name for name in bus.there if "fanout" in name or "multicast" in name
        }
        assert len(removed) == 1
        bus.there -= removed
        asked = len(bus.asked)
        s.world.advance(RENEW_EVERY)
        assert bus.there == before
        # The binding is refused; the exchange, the queue and the binding are declared.
        assert [each.split("/")[0] for each in bus.asked[asked:]] == [
            *("POST ", "PUT ", "PUT ", "POST ")
        ]
        assert "somebody removed what leads to" in caplog.text
        assert listener._subscription.attached
        # What is in order costs one request.
        asked = len(bus.asked)
        s.world.advance(RENEW_EVERY)
        assert 1 <= len(bus.asked[asked:]) <= 2
        assert {*bus.asked[asked:]} == {"POST /bindings"}
        clean_up(s, listener)


def test_what_was_removed_and_cannot_be_declared_yet_is_tried_again():
    with rabbit(link_retry_delay=8) as (s, bus):
        listener = s.listen()
        bus.there.discard("t_fanout")
        bus.missing = DECLARED_ANEW + 3
        s.world.advance(RENEW_EVERY + 10)
        assert bus.missing == 0 and "t_fanout" in bus.there
        assert listener._subscription.attached
        assert not listener._subscription.refusal
        clean_up(s, listener)


@pytest.mark.parametrize("mode", ["rabbit", "declared"])
def test_a_pool_alone_has_its_binding_renewed_of_those_who_listen(mode):
    made = addresser(addressing_mode=mode)
    targets = [Target(topic="t.info", exchange=name) for name in ("e", "f")]
    for pool in (None, "pool"):
        for node in made.notification_sources(targets, pool):
            bound = [each for each in node.declarations if each.path == "/bindings"]
            assert bound
            assert list(node.renewals) == (bound if pool else [])


class Unbound(Exchanges):
    """A bus where an exchange was deleted, and with it what leads to a queue."""

    bound = False

    def _answer(self, message):
        if message.reply_to != "$me":
            return ACCEPTED if self.bound else RELEASED
        self.bound |= message.subject == "POST"
        return super()._answer(message)


@pytest.mark.parametrize("server", [None, "one"])
def test_who_calls_binds_the_queue_whose_exchange_was_deleted(server):
    with rabbit(Unbound) as (s, bus):
        call = s.call(Target(topic="t", server=server, exchange="e"), timeout=10)
        s.world.advance(1)
        assert [each for each in bus.asked if "reply" not in each] == [
            *("PUT /exchanges/e",) * 2,
            "POST /bindings",
        ]
        key = "t.one" if server else "t"
        (binding,) = (each for each in bus.bodies if "binding_key" in each)
        assert (binding["source"], binding["destination_queue"]) == ("e", key)
        assert binding["binding_key"] == key
        received = [each.message for each in s.peer.received]
        assert sum(each.reply_to != "$me" for each in received) == 2
        assert not call.done  # it waits for its reply


def test_who_is_told_at_once_that_nobody_is_there_binds_for_the_next(caplog):
    with rabbit(Unbound) as (s, bus):
        options = types.SimpleNamespace(at_least_once=True)
        cast = s.send(Target(topic="t"), transport_options=options)
        s.world.settle()
        with pytest.raises(exceptions.MessageUndeliverable):
            cast.result()
        assert bus.bound
        cast = s.send(Target(topic="t"), transport_options=options)
        s.world.settle()
        assert cast.result() is None


class Deaf(Exchanges):
    """A bus that gives no outcomes for requests, as long as it is deaf."""

    deaf = True

    def _answer(self, message):
        if message.reply_to != "$me" and self.deaf:
            return None
        return super()._answer(message)


def test_a_call_in_doubt_is_sent_again_where_the_bus_takes_something():
    """It may hold back all who publish: then it has the request, and would have it
    twice."""
    with rabbit(Deaf) as (s, bus):

        def requests():
            return [each for each in s.peer.received if each.message.reply_to != "$me"]

        call = s.call(Target(topic="t"), timeout=100)
        s.world.advance(60)
        assert len(requests()) == 1
        bus.deaf = False
        s.call(Target(topic="t"), timeout=100)
        s.world.settle()
        assert len(requests()) == 2
        s.world.advance(IN_DOUBT_FOR)
        first, _, again = (each.message.body for each in requests())
        assert again == first
        assert not call.done


# -- a cluster that agrees on no declaration, as a node of it is frozen


def test_what_was_there_before_is_not_waited_for_long():
    with rabbit() as (s, bus):
        listener = s.listen()
        s.notify()
        s.world.settle()
        bus.mute = True
        s.peer.cut()
        s.world.advance(1)
        known, other = s.notify(), s.notify(Target(topic="other"))
        s.world.advance(KNOWN_PATIENCE - 1)
        assert not known.done and not listener._subscription.attached
        s.world.advance(1.1)
        assert known.result() is None and listener._subscription.attached
        # What was never declared is waited for.
        assert not other.done
        bus.mute = False
        s.world.advance(60)
        assert other.result() is None
        clean_up(s, listener)


@pytest.mark.parametrize("stopped", [1, MOST_SOON, MOST_SOON + 1])
def test_a_node_that_stops_has_the_queue_for_replies_for_a_while(stopped):
    """The call that waits is answered, once the queue is made on another node."""
    with rabbit() as (s, bus):
        task = s.call(timeout=60)
        s.world.settle()
        bus.stopped = stopped
        s.peer.cut()
        s.world.advance(5 + 8)  # to connect, and all pauses
        asked = [each for each in bus.asked if each.startswith("PUT /queues/reply_")]
        if stopped <= MOST_SOON:
            assert not task.done
            assert asked == (stopped + 2) * asked[:1]
        else:
            with pytest.raises(
                exceptions.MessageDeliveryFailure, match="stopped by supervisor"
            ):
                task.result()


def test_what_was_there_before_and_went_is_declared():
    with rabbit() as (s, bus):
        s.notify()
        s.world.settle()
        bus.mute = True
        address = s.peer.attaches[-1]
        s.network.default["refuse"] = {address: ("amqp:not-found", "no exchange")}
        s.peer.cut()
        s.world.advance(1)
        task = s.notify()
        s.world.advance(20)
        assert not task.done
        s.peer.refuse.clear()
        bus.mute = False
        asked = len(bus.asked)
        s.world.advance(60)
        assert task.result() is None
        assert "PUT /exchanges/openstack" in bus.asked[asked:]


def test_a_queue_that_was_there_before_and_went_is_declared_soon():
    with rabbit() as (s, bus):
        listener = s.listen()
        s.world.settle()
        bus.mute = True
        s.network.default["refuse"] = {
            address: ("amqp:not-found", "no queue")
            for address in s.peer.outbound
            if address.startswith("/queues/t")
        }
        s.peer.cut()
        while not listener._subscription.refusal:
            s.world.advance(0.05)
        assert not listener._subscription.attached
        s.peer.refuse.clear()
        bus.speak()
        s.world.advance(FIRST_PAUSE + 0.1)
        assert listener._subscription.attached
        clean_up(s, listener)


# -- the client before a bus that cannot


def test_a_call_to_one_that_is_too_old_says_so():
    with fakes.setting(
        network={"product": "RabbitMQ"}, addressing_mode="declared"
    ) as s:
        task = s.call("question")
        s.world.settle()
        with pytest.raises(
            exceptions.MessageDeliveryFailure, match="needs RabbitMQ 4.0 or newer"
        ):
            task.result()


def test_a_virtual_host_is_asked_for_in_its_way():
    with fakes.setting(
        virtual_host="v",
        network={"product": "RabbitMQ"},
        addressing_mode="legacy",  # the peer here makes what is attached to
    ) as s:
        s.up()
        asked = [peer.engine.remote_hostname for peer in s.network.peers]
        assert asked == [None, "vhost:v"]


@pytest.mark.parametrize(
    "product, expected",
    [("RabbitMQ", ["vhost:v"]), ("another", ["vhost:v", None])],
)
def test_a_guess_at_that_way_is_kept_where_it_is_right(product, expected):
    with fakes.setting(
        virtual_host="v", network={"product": product}, addressing_mode="legacy"
    ) as s:
        connection = s.client.connection
        connection._vhost_prefixed.add(connection.host)
        connection._vhost_guessed[connection.host] = "it left without a word"
        s.up()
        asked = [peer.engine.remote_hostname for peer in s.network.peers]
        assert asked == expected
        assert connection.state is State.UP
        assert not connection._vhost_guessed


def removing(answer, *nodes):
    """What a RabbitMQ that gives `answer` is asked, and what is told."""
    asked, told = [], []
    management = Management(None, lambda: None)
    management._ask = lambda: None
    management.remove(nodes, told.append)
    for request in list(management._waiting):
        asked.append((request.message.subject, request.message.address))
        management._answered(request, Message("why", subject=answer))
    return asked, told


def test_what_was_declared_is_removed_once_and_a_binding_with_its_queue():
    node = ("/queues/q", (exchange("e", "topic"), queue("q"), binding("e", "q", "k")))
    asked, told = removing("200", node, node)
    assert asked == [("DELETE", "/exchanges/e"), ("DELETE", "/queues/q")]
    assert told == [None]
    assert removing("200", ("/queues/q", ())) == ([], [None])


def test_what_is_gone_already_counts_as_removed_and_a_refusal_is_told():
    node = (None, (queue("q"),))
    assert removing("404", node)[1] == [None]
    (told,) = removing("403", node)[1]
    assert "queue 'q' was not removed (403): why" in str(told)
