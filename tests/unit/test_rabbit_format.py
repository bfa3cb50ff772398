# SPDX-License-Identifier: Apache-2.0
"""The format of the rabbit:// driver: compared with what that driver itself makes and
reads, which is run here without a connection."""

import json
import sys
import types

import oslo_messaging
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oslo_messaging._drivers import amqp, amqpdriver, impl_rabbit

from greenamqp.buses import PREDECESSOR, RABBIT, BadMessage
from greenamqp.buses.format import MAX_SECONDS
from greenamqp.engine import Received

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)
# What an application sends has no names of the format's own.
_FIELDS = st.dictionaries(
    st.text().filter(lambda key: not key.startswith("_")), _JSON, max_size=4
)


class Sent:
    """A connection of the rabbit:// driver that keeps what is published."""

    def __init__(self):
        self.bodies = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def _keep(self, body):
        # As kombu puts it on the wire.
        self.bodies.append(json.dumps(body))

    def topic_send(self, exchange_name, topic, msg, **options):
        self._keep(msg)

    def notify_send(self, exchange, topic, msg, retry=None):
        self._keep(msg)

    def direct_send(self, queue, msg):
        self._keep(msg)


class Theirs(amqpdriver.AMQPDriverBase):
    """The rabbit:// driver, without a broker: what it sends is in `bodies`."""

    def __init__(self, allowed=()):
        self.conf = None
        self._default_exchange = "openstack"
        self._allowed_remote_exmods = list(allowed)
        self.connection = Sent()
        self._waiter = self
        self._reply_q = None
        self.replied = None

    @property
    def bodies(self):
        return self.connection.bodies

    def _get_connection(self, *args):
        return self.connection

    def _get_reply_q(self):
        return "reply_theirs"

    # as its own reply waiter
    def listen(self, msg_id):
        pass

    unlisten = listen

    def wait(self, msg_id, timeout, monitor, reply_q):
        return None


TARGET = oslo_messaging.Target(topic="t")


def parsed(body):
    return RABBIT.parse_request(Received(body))


def read_by_them(body):
    """What their listener makes of a body: (context, message, incoming)."""
    raw = types.SimpleNamespace(
        payload=json.loads(body), ack=lambda: None, requeue=lambda: None
    )
    listener = amqpdriver.RpcAMQPListener.__new__(amqpdriver.RpcAMQPListener)
    listener.msg_id_cache = amqp._MsgIdCache()
    listener.incoming = []
    listener._obsolete_reply_queues = None
    listener._message_operations_handler = None
    listener(impl_rabbit.RabbitMessage(raw))
    return listener.incoming[0] if listener.incoming else None


# -- requests


# Names that their server takes out of each context, or puts into it.
_TAKEN = ("msg_id", "reply_q", "client_timeout")
_CONTEXT = st.dictionaries(
    st.text().filter(lambda key: key not in _TAKEN), _JSON, max_size=4
)


@given(message=_FIELDS, context=_CONTEXT)
def test_they_read_our_cast(message, context):
    made = RABBIT.request(message, context, "unique")
    incoming = read_by_them(made.body)
    assert incoming.message == message
    # Theirs puts this one into each context.
    assert incoming.ctxt == context | {"client_timeout": None}
    assert incoming.unique_id == "unique"
    assert incoming.orig_msg_id is None and incoming.reply_q is None


@given(message=_FIELDS, id=st.text(min_size=1), reply_to=st.text(min_size=1))
def test_they_read_our_call(message, id, reply_to):
    made = RABBIT.request(message, {"user": "ü"}, "unique", 2.5)
    RABBIT.expect_reply(made, "an earlier attempt", "an earlier queue")
    RABBIT.expect_reply(made, id, reply_to)
    incoming = read_by_them(made.body)
    assert incoming.message == message
    assert incoming.ctxt == {"user": "ü", "client_timeout": 2.5}
    assert (incoming.msg_id, incoming.reply_q) == (id, reply_to)
    assert incoming.client_timeout == 2.5


@given(message=_FIELDS, context=_CONTEXT)
def test_we_read_their_call(message, context):
    theirs = Theirs()
    theirs.send(TARGET, context, dict(message), True, 10, 5)
    ours = parsed(theirs.bodies[0].encode())
    assert ours.message == message
    assert ours.context == context
    assert ours.reply_to == "reply_theirs"
    assert ours.call_monitor_timeout == 5
    assert len(ours.id) == len(ours.unique_id) == 32


@pytest.mark.parametrize("version", [1.0, 2.0])
def test_notifications_in_both_directions(version):
    message, context = {"event_type": "é", "payload": [1]}, {"user": "u"}
    theirs = Theirs()
    theirs.send_notification(TARGET, context, dict(message), version)
    ours = RABBIT.notification(message, context, "unique", envelope=version == 2.0)
    for body in (theirs.bodies[0], ours.body):
        found = parsed(body)
        assert (found.message, found.context) == (message, context)
        assert found.reply_to is None and found.unique_id
    assert read_by_them(ours.body).message == message
    assert ("oslo.version" in json.loads(ours.body)) == (version == 2.0)


def test_fields_of_the_message_around_the_body():
    for made in (
        RABBIT.request({"method": "m"}, {}, "u"),
        RABBIT.notification({"event_type": "e"}, {}, "u", envelope=True),
        RABBIT.reply("id", 1, None, "u"),
        RABBIT.heartbeat("id", "u"),
    ):
        assert made.content_type == "application/json"
        assert made.content_encoding == "utf-8"
        assert made.durable and made.priority == 0
        assert made.inferred and isinstance(made.body, bytes)


class RequestContext:
    def to_dict(self):
        return {"user": "u"}


@pytest.mark.parametrize(
    "context, found", [(None, {}), (RequestContext(), {"user": "u"})]
)
def test_contexts_that_are_no_dict(context, found):
    assert parsed(RABBIT.request({"method": "m"}, context, "u").body).context == found


def test_what_cannot_be_sent_is_named():
    with pytest.raises(TypeError, match="the context must be a dict, not int"):
        RABBIT.request({}, 7, "u")
    with pytest.raises(TypeError, match="must be a dict, not list"):
        RABBIT.request([1], {}, "u")
    with pytest.raises((TypeError, ValueError)):
        circle = {}
        circle["self"] = circle
        RABBIT.notification(circle, {}, "u", envelope=True)


# -- replies


def their_reply(reply=None, failure=None, ending=True):
    """The body of the reply of their server."""
    connection = Sent()
    incoming = amqpdriver.AMQPIncomingMessage(
        None, {}, {}, "u", "id", "reply_q", None,
        amqpdriver.ObsoleteReplyQueuesCache(), None,
    )  # fmt: skip
    incoming._send_reply(connection, reply, failure, ending)
    return Received(connection.bodies[0].encode())


def read_reply(message, allowed=()):
    id, is_reply, content = RABBIT.open_reply(message)
    assert id == "id"
    if not is_reply:
        return "heartbeat"
    return RABBIT.result(content, list(allowed))


def their_waiter(allowed=()):
    waiter = amqpdriver.ReplyWaiter.__new__(amqpdriver.ReplyWaiter)
    waiter.allowed_remote_exmods = list(allowed)
    waiter.msg_id_cache = amqp._MsgIdCache()
    return waiter


def their_result(made, allowed=()):
    """What their client makes of our reply: (result, ending)."""
    raw = types.SimpleNamespace(payload=json.loads(made.body))
    data = impl_rabbit.RabbitMessage(raw)
    assert data["_msg_id"] == "id"
    return their_waiter(allowed)._process_reply(data)


@given(value=_JSON)
def test_results_in_both_directions(value):
    assert read_reply(their_reply(value)) == value
    assert their_result(RABBIT.reply("id", value, None, "u")) == (value, True)


def test_heartbeats_in_both_directions():
    assert read_reply(their_reply(ending=False)) == "heartbeat"
    assert their_result(RABBIT.heartbeat("id", "u")) == (None, False)


class Own(Exception):
    pass


def _failure():
    try:
        raise Own("the reason")
    except Own:
        return sys.exc_info()


@pytest.mark.parametrize("allowed", [(), (__name__,)])
def test_exceptions_in_both_directions(allowed):
    kind = Own if allowed else oslo_messaging.RemoteError
    with pytest.raises(kind, match="the reason"):
        read_reply(their_reply(failure=_failure()), allowed)
    made = RABBIT.reply("id", "ignored", _failure(), "u")
    result, ending = their_result(made, allowed)
    assert ending and isinstance(result, kind) and "the reason" in str(result)


# -- what is no such message


@pytest.mark.parametrize(
    "body, words",
    [
        (b"\xff", "not UTF-8"),
        (b"[]", "not a JSON object but list"),
        (b"no JSON", "not JSON"),
        (b'{"oslo.version": "2.0", "oslo.message": 1}', "envelope cannot be opened"),
        (b'{"oslo.version": "2.0", "oslo.message": "["}', "envelope cannot be opened"),
        (b'{"oslo.version": "9.0", "oslo.message": "{}"}', "envelope cannot be opened"),
        (b'{"oslo.version": "2.0", "oslo.message": "[]"}', "not a JSON object"),
        (b'{"_msg_id": 1}', "_msg_id is not a string but int"),
        (b'{"_reply_q": []}', "_reply_q is not a string but list"),
        (b'{"_unique_id": {}}', "_unique_id is not a string but dict"),
        (b'{"_timeout": "5"}', "_timeout is no number of seconds"),
        (b'{"_timeout": %d}' % (MAX_SECONDS + 1), "_timeout is no number of seconds"),
        (b'{"a":' * 100_000, "too deeply"),
        (None, "not text but NoneType"),
    ],
)
def test_bad_requests_say_what_is_wrong(body, words):
    with pytest.raises(BadMessage, match=words):
        parsed(body)


@pytest.mark.parametrize("body", [b"[]", b"x", b'{"_msg_id": 1}', None])
def test_bad_replies(body):
    with pytest.raises(BadMessage):
        RABBIT.open_reply(Received(body))


def test_a_request_that_names_no_message_wants_no_reply():
    assert parsed(b'{"_reply_q": "q", "method": "m"}').reply_to is None


def test_any_json_of_other_programs():
    assert RABBIT.parse_any(Received(b"[1]"))[:2] == ([1], {})
    assert RABBIT.parse_any(Received(b'{"a": 1}'))[:2] == ({"a": 1}, {})
    own = RABBIT.notification({"a": 1}, {"b": 2}, "u", envelope=True)
    assert RABBIT.parse_any(Received(own.body))[:2] == ({"a": 1}, {"b": 2})


def test_the_formats_do_not_take_one_another_for_their_own():
    ours = PREDECESSOR.request({"method": "m"}, {}, "u")
    assert "method" not in parsed(ours.body).message
    with pytest.raises(BadMessage):
        PREDECESSOR.parse_request(Received(RABBIT.request({}, {}, "u").body))
