# SPDX-License-Identifier: Apache-2.0
"""What Artemis and Broker-J are asked, and what their answers come to."""

import json

import pytest

from greenamqp.buses import Again, artemis, broker_j, embedded
from greenamqp.engine import Message
from tests.unit.wire import Recorder, joined


class Broker(Recorder):
    """The other end: answers each request by `answer`, refuses what is in `refused`."""

    def __init__(self):
        super().__init__()
        self.asked = []
        self.targets = []
        self.refused = {}
        self.answer = lambda message: {}
        self._answers = None

    def link_requested(self, connection, link):
        if link.is_sender:
            source = link.remote_source
            source.address = "answers"
            link.accept(source=source)
            self._answers = link
            return
        address = link.remote_target.address
        self.targets.append((address, link.remote_target.capabilities))
        if address in self.refused:
            link.reject(self.refused[address], "no right")
            return
        link.accept()
        link.flow(100)
        link.on_message = self._message

    def _message(self, link, delivery, data):
        message = link.connection.codec.decode(data)
        link.settle(delivery)
        assert message.reply_to == "answers"
        self.asked.append(message)
        reply = Message(correlation_id=message.id, **self.answer(message))
        self._answers.send(link.connection.codec.encode(reply), None, True)


class Pair:
    def __init__(self, dialect):
        self.broker = Broker()
        self.client, _, wire = joined(None, self.broker)
        self.run = wire.run
        self.management = dialect.Management(self.client, lambda: None)

    def declare(self, *declarations):
        outcomes = []
        self.management.declare(declarations, outcomes.append)
        self.run()
        (outcome,) = outcomes
        assert self.management.has(declarations) == (outcome is None)
        return outcome


# -- Artemis


@pytest.fixture
def one():
    return Pair(artemis)


def told(succeeded, result):
    return {
        "body": json.dumps([result]),
        "properties": {"_AMQ_OperationSucceeded": succeeded},
    }


def operation(message):
    assert message.properties["_AMQ_ResourceName"] == "broker"
    return message.properties["_AMQ_OperationName"]


EXISTS = told(False, "AMQ229019: Queue q already exists on address a")
WANTED = {"ring-size": 3, "auto-delete": True}


def test_a_queue_without_attributes_is_made_by_a_link(one):
    assert one.declare(artemis.attached_queue("a", "q")) is None
    assert one.broker.targets == [("a::q", ("topic",))]
    assert one.broker.asked == []
    assert not one.client._links


def test_a_name_that_no_link_can_have_is_refused(one):
    refused = one.declare(artemis.attached_queue("a", "q" * 100_000))
    assert "do not go into a frame" in str(refused)
    assert refused.again is Again.NEVER


def test_a_link_that_is_refused_is_a_refusal(one):
    one.broker.refused["a::q"] = "amqp:unauthorized-access"
    refused = one.declare(artemis.attached_queue("a", "q"))
    assert "queue 'q' was refused: amqp:unauthorized-access" in str(refused)
    assert refused.again is Again.NEVER


def test_a_queue_with_attributes_is_asked_for(one):
    one.broker.answer = lambda message: told(True, json.dumps(WANTED))
    assert one.declare(artemis.queue("a", "q", artemis.ANYCAST, WANTED)) is None
    (message,) = one.broker.asked
    assert operation(message) == "createQueue"
    queue, if_not_there = json.loads(message.body)
    assert if_not_there is False
    assert json.loads(queue) == WANTED | {
        "name": "q",
        "address": "a",
        "routing-type": "ANYCAST",
        "durable": True,
        "auto-create-address": True,
    }


@pytest.mark.parametrize("ring, agrees", [(3, True), (-1, False)])
def test_one_that_is_there_is_changed_if_it_may_be(one, ring, agrees):
    def answer(message):
        if operation(message) == "createQueue":
            return EXISTS
        return told(True, json.dumps({"ring-size": ring, "auto-delete": True}))

    one.broker.answer = answer
    refused = one.declare(artemis.queue("a", "q", artemis.ANYCAST, WANTED))
    assert [operation(message) for message in one.broker.asked] == [
        "createQueue",
        "updateQueue",
    ]
    if agrees:
        assert refused is None
    else:
        assert "queue 'q' exists with ring-size -1" in str(refused)
        assert "auto-delete True, ring-size 3" in str(refused)
        assert refused.again is Again.NEVER


def test_an_operation_that_fails_is_told(one):
    one.broker.answer = lambda message: told(False, "AMQ229036: no right")
    refused = one.declare(artemis.queue("a", "q", artemis.ANYCAST, WANTED))
    assert "queue 'q' with auto-delete True, ring-size 3 was refused" in str(refused)
    assert "no right" in str(refused)


@pytest.mark.parametrize(
    "body", [None, 7, "no JSON", "[1, 2]", '["no JSON"]', "[[]]", "[" * 100_000]
)
def test_an_answer_that_makes_no_sense_is_no_success(one, body):
    one.broker.answer = lambda message: {
        "body": body,
        "properties": {"_AMQ_OperationSucceeded": True},
    }
    assert one.declare(artemis.queue("a", "q", artemis.ANYCAST, WANTED)) is not None


def test_no_right_to_the_node_is_a_refusal_of_policies_alone(one):
    one.broker.refused["activemq.management"] = "amqp:unauthorized-access"
    refused = one.declare(artemis.queue("a", "q", artemis.ANYCAST, WANTED))
    assert "activemq.management was closed: amqp:unauthorized-access" in str(refused)
    assert refused.again is Again.NEVER
    assert one.declare(artemis.attached_queue("a", "q")) is None


# -- Broker-J


@pytest.fixture
def two():
    pair = Pair(broker_j)
    pair.broker.answer = lambda message: status(201)
    return pair


def status(code, description="", body=None):
    return {
        "body": body or {},
        "properties": {"statusCode": code, "statusDescription": description},
    }


POLICY = {"maximumQueueDepthMessages": 3, "overflowPolicy": "RING"}


def test_objects_are_created_in_order(two):
    wanted = (
        broker_j.fanout_exchange("e"),
        broker_j.queue("q", 10, "dead", POLICY),
        broker_j.binding("e", "q"),
    )
    assert two.declare(*wanted) is None
    exchange, queue, binding = two.broker.asked
    assert exchange.properties == {
        "operation": "CREATE",
        "type": "org.apache.qpid.FanoutExchange",
    }
    assert exchange.body == {"name": "e", "durable": True}
    assert queue.body == POLICY | {
        "name": "q",
        "durable": True,
        "maximumDeliveryAttempts": 10,
        "alternateBinding": {"destination": "dead"},
    }
    assert binding.properties == {
        "operation": "bind",
        "type": "org.apache.qpid.Exchange",
        "index": "object-path",
        "key": "e",
        "destination": "q",
        "bindingKey": "",
    }


def test_one_that_exists_will_do_where_nothing_is_asked_of_it(two):
    two.broker.answer = lambda message: status(409, "exists")
    assert two.declare(broker_j.queue("q", 10, "dead")) is None
    assert len(two.broker.asked) == 1


@pytest.mark.parametrize(
    "found, differing",
    [
        (POLICY | {"durable": True}, None),
        ({}, "maximumQueueDepthMessages unset, overflowPolicy unset"),
        (POLICY | {"maximumQueueDepthMessages": 4}, "maximumQueueDepthMessages 4"),
    ],
)
def test_one_that_exists_must_agree_with_a_policy(two, found, differing):
    two.broker.answer = lambda message: (
        status(409, "exists")
        if message.properties["operation"] == "CREATE"
        else status(200, body=found)
    )
    refused = two.declare(broker_j.queue("q", policy=POLICY))
    assert two.broker.asked[1].properties["key"] == "q"
    if differing is None:
        assert refused is None
    else:
        assert f"queue 'q' exists with {differing};" in str(refused)
        assert refused.again is Again.NEVER


@pytest.mark.parametrize(
    "code, again",
    [
        (400, Again.NEVER),
        (403, Again.NEVER),
        (404, Again.LATER),
        (500, Again.LATER),
    ],
)
def test_a_refusal_is_told(two, code, again):
    two.broker.answer = lambda message: status(code, "this is why")
    for declaration in (broker_j.queue("q"), broker_j.binding("e", "q")):
        refused = two.declare(declaration)
        assert f"was refused ({code}): this is why" in str(refused)
        assert refused.again is again


def test_an_answer_without_a_status_is_no_success(two):
    two.broker.answer = lambda message: {}
    assert "was refused (0)" in str(two.declare(broker_j.queue("q")))


def test_requests_are_asked_a_few_at_a_time(two):
    """So that answers, which show that the broker lives, come in between."""
    at_once = []
    answer, two.management._answered = two.management._answered, None

    def answered(request, message):
        at_once.append(len(two.management._asked) + 1)
        answer(request, message)

    two.management._answered = answered
    assert two.declare(*(broker_j.queue(str(n)) for n in range(50))) is None
    assert len(two.broker.asked) == 50
    assert max(at_once) == 8


def test_a_name_that_cannot_be_written_is_refused_and_no_other(two):
    refused = two.declare(broker_j.queue("\ud800"), broker_j.queue("good"))
    assert "queue '\\ud800'" in str(refused) and "surrogates" in str(refused)
    assert refused.again is Again.NEVER
    assert two.management.has((broker_j.queue("good"),))
    assert two.management.unanswered is None


def test_a_pair_of_links_that_finds_no_room_leaves_none(two):
    two.client.links_per_session = 1
    for _ in range(3):
        assert "cannot reach $management" in str(two.declare(broker_j.queue("q")))
        two.run()
    assert not two.client._links


def test_an_answer_that_cannot_be_read_is_one(two):
    """To the oldest request: the others are asked once more, over another pair."""
    answer = two.broker._message

    def garbled(link, delivery, data):
        link.settle(delivery)
        two.broker._message = answer
        two.broker._answers.send(b"\xff", None, True)

    two.broker._message = garbled
    refused = two.declare(broker_j.queue("q"), broker_j.queue("good"))
    assert "queue 'q' was refused" in str(refused)
    assert two.management.has((broker_j.queue("good"),))


def test_what_a_bus_has_no_requests_for_is_refused():
    told = []
    management = embedded.Management(None, lambda: None)
    for _ in range(2):
        management.declare((artemis.attached_queue("a", "q"),), told.append)
    assert ["has no such thing" in str(each) for each in told] == [True, True]
    assert {each.again for each in told} == {Again.NEVER}
