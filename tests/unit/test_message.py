# SPDX-License-Identifier: Apache-2.0
"""Bodies of messages: what goes out is oslo.serialization's to the byte, and nothing
that comes in does any harm."""

import collections
import datetime
import decimal
import enum
import ipaddress
import json
import math
import sys
import uuid

import oslo_messaging
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oslo_messaging._drivers import common
from oslo_serialization import jsonutils

from greenamqp.buses import PREDECESSOR, RABBIT, BadMessage
from greenamqp.buses.format import LONG_TEXT, dumps, loads, quoted
from greenamqp.engine import Received

Point = collections.namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


class Plain:
    def __init__(self):
        self.attribute = [1, {"nested": datetime.datetime(2020, 1, 2)}]


class Pairs:
    """As a database row: iterates over pairs."""

    def iteritems(self):
        return iter([("a", 1), ("b", uuid.UUID(int=5))])


_TIMES = st.datetimes(timezones=st.none() | st.just(datetime.UTC))
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(codec=None))  # lone surrogates, too
    | _TIMES
    | st.dates()
    | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.binary().filter(lambda raw: raw.isascii())
    | st.ip_addresses()
    | st.sampled_from([Number.ONE, Colour.RED, Plain(), Pairs()])
)
_KEYS = st.text() | st.integers() | st.floats() | st.booleans() | st.none()
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_KEYS, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.builds(Point, inner, inner)
        | st.sets(st.text() | st.uuids() | st.integers(), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


def outcome(function, *args):
    """What a call returns, or the type of what it raises."""
    try:
        return function(*args)
    except Exception as exc:
        return type(exc)


# -- going out


@given(value=_VALUES)
def test_dumps_is_oslo_serializations_to_the_byte(value):
    assert outcome(dumps, value) == outcome(jsonutils.dumps, value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "ä\u2028\U0001f600\ud800",
        -0.0,
        1e400,
        math.nan,
        10**30,
        decimal.Decimal("1.10"),
        {1: 2, None: 3, False: 4, 2.5: 5},
        {(1, 2): 3},
        {uuid.UUID(int=1): 1},
        Point(1, Point(2, 3)),
        b"bytes",
        b"\xff",
        ipaddress.ip_network("10.0.0.0/30"),
        datetime.datetime(2020, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC),
        {"set": {1}, "frozen": frozenset([2])},
        ValueError("an exception"),
        object,
        print,
        {"deep": {"deep": {"deep": {"deep": Plain()}}}},
        iter([1, 2]),
        range(3),
    ],
    ids=repr,
)
def test_dumps_of_odd_things(value):
    # An iterator is used up by the first of the two.
    other = iter([1, 2]) if isinstance(value, type(iter([]))) else value
    assert outcome(dumps, value) == outcome(jsonutils.dumps, other)


class Text(str):
    """A text of the application's own, as translated ones are."""

    __slots__ = ()

    def replace(self, *_args):
        return "not what json looks at"

    __contains__ = None


def _long(piece):
    return piece * (2 * LONG_TEXT // len(piece))


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        'a \\ and a " there, with nothing else for a long time' + 80 * ".",
        '"many": "escapes", ',
        "one of each: " + "".join(map(chr, range(0x80))) + 4096 * ".",
        "ä",
        "\U0001f600 \ud800",
    ],
    ids=ascii,
)
def test_long_texts_are_written_as_short_ones_are(text):
    for value in (
        _long(text),
        Text(_long(text)),
        {"response": _long(text)},
        {"request": {"args": {_long(text): _long(text)}}, "x": text},
        {"payload": {"deep": {"deeper": [_long(text)]}}},
        [_long(text)],
    ):
        assert dumps(value) == jsonutils.dumps(value)
    assert quoted(_long(text)) == jsonutils.dumps(_long(text))
    assert quoted(text) == jsonutils.dumps(text)


def test_a_circle_with_a_long_text_is_the_applications_mistake():
    circle = {"text": _long("x")}
    circle["self"] = circle
    with pytest.raises((ValueError, RecursionError)):
        dumps(circle)


@pytest.mark.parametrize("kind", [list, dict])
def test_a_circle_is_the_applications_mistake(kind):
    circle = kind()
    if kind is list:
        circle.append(circle)
    else:
        circle["self"] = circle
    with pytest.raises((ValueError, RecursionError)):
        dumps(circle)
    # Nothing is left behind that would harm the next one.
    assert dumps([1]) == "[1]"


def request_body(message, context, monitor=None):
    return PREDECESSOR.request(message, context, "unique", monitor).body


def notification_body(message, context, envelope=True):
    made = PREDECESSOR.notification(message, context, "unique", envelope=envelope)
    return made.body


def reply_body(reply, failure):
    return PREDECESSOR.reply("id", reply, failure, "unique").body


def parse_reply(body, allowed=()):
    _, is_reply, content = PREDECESSOR.open_reply(Received(body))
    assert is_reply
    return PREDECESSOR.result(content, list(allowed))


def test_a_request_is_as_the_predecessor_wrote_it():
    assert request_body({"method": "m"}, {"user": "u"}) == (
        '{"request": {"method": "m"}, "context": {"user": "u"}}'
    )
    assert request_body({}, {}, 5) == (
        '{"request": {}, "context": {}, "call_monitor_timeout": 5}'
    )
    assert request_body({}, {}, 0).endswith(": 0}")


def test_a_notification_is_wrapped_in_oslo_messagings_envelope():
    body = notification_body({"event": "é"}, {})
    assert json.loads(body)["request"] == {
        "oslo.version": "2.0",
        "oslo.message": '{"event": "\\u00e9"}',
    }
    assert body == jsonutils.dumps(
        {"request": common.serialize_msg({"event": "é"}), "context": {}}
    )


def test_a_reply_and_a_failure():
    assert reply_body([1], None) == '{"response": [1]}'
    assert reply_body(None, None) == '{"response": null}'
    try:
        raise KeyError("k")
    except KeyError:
        body = json.loads(reply_body("ignored", sys.exc_info()))
    assert list(body) == ["failure"]
    failure = json.loads(body["failure"])
    assert failure["class"] == "KeyError"
    assert failure["args"] == ["k"]


@pytest.mark.parametrize("format", [PREDECESSOR, RABBIT])
def test_a_failure_that_json_cannot_write(format):
    """The caller hears of it without that; it is not left to wait for its time-out."""
    try:
        b"\xff".decode()
    except UnicodeDecodeError as exc:
        exc.kwargs = {"about": object()}
        made = format.reply("id", None, sys.exc_info(), "unique")
    _, _, content = format.open_reply(Received(made.body, correlation_id="id"))
    with pytest.raises(oslo_messaging.RemoteError, match="byte 0xff") as caught:
        format.result(content, [])
    assert caught.value.exc_type == "UnicodeDecodeError"


# -- coming in


@given(value=_JSON, blanks=st.sampled_from(["", " ", "\n\t ", "\r\n"]))
def test_loads_is_oslo_serializations(value, blanks):
    text = blanks + json.dumps(value) + blanks
    assert loads(text) == jsonutils.loads(text) == value
    assert loads(text.encode()) == value


@given(text=st.text() | st.text('{}[]",:0123456789.eE-+truefalsn \\'))
def test_what_is_no_json_is_a_bad_message(text):
    expected = outcome(jsonutils.loads, text)
    if isinstance(expected, type) and issubclass(expected, ValueError):
        with pytest.raises(BadMessage, match="the body is not JSON"):
            loads(text)
    else:
        assert repr(loads(text)) == repr(expected)


@pytest.mark.parametrize(
    "body, words",
    [
        (None, "not text but NoneType"),
        (7, "not text but int"),
        ({"a": 1}, "not text but dict"),
        (b"\xff\xfe", "not UTF-8"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("{} {}", "not JSON"),
        ("\ufeff{}", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("[" * 100_000, "too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "too deeply"),
        ("[" * 100_000 + "]" * 100_000, "too deeply"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_bad_bodies_say_what_is_wrong(body, words):
    with pytest.raises(BadMessage, match=words):
        loads(body)


def test_a_number_that_python_refuses_to_read():
    with pytest.raises(BadMessage):
        loads("1" * 10_000)


def request(**fields):
    return PREDECESSOR.parse_request(Received(json.dumps(fields)))


@given(
    message=st.dictionaries(st.text(), _JSON), context=st.dictionaries(st.text(), _JSON)
)
def test_a_request_comes_back_as_it_was(message, context):
    for envelope in (False, True):
        body = notification_body(message, context, envelope)
        if "oslo.message" in message and not envelope:
            continue
        parsed = PREDECESSOR.parse_request(Received(body))
        assert parsed.message == message
        assert parsed.context == context


def test_unknown_keys_pass():
    parsed = request(
        request={"method": "m", "trace": 1},
        context={"trace_info": {"hmac_key": "k"}},
        something_new=[1, 2],
    )
    assert parsed[:3] == (
        {"method": "m", "trace": 1},
        {"trace_info": {"hmac_key": "k"}},
        None,
    )


@pytest.mark.parametrize("context", [None, {}])
def test_a_request_without_context(context):
    assert request(request={}, context=context).context == {}
    assert request(request={}).context == {}


@pytest.mark.parametrize("monitor", [0, 1, 2.5, 86400])
def test_the_monitors_time(monitor):
    parsed = request(request={}, call_monitor_timeout=monitor)
    assert parsed.call_monitor_timeout == monitor


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"context": {}}, "the request is not an object but NoneType"),
        ({"request": [1]}, "the request is not an object but list"),
        ({"request": "text"}, "the request is not an object but str"),
        ({"request": {}, "context": []}, "the context is not an object but list"),
        ({"request": {}, "context": "me"}, "the context is not an object but str"),
        ({"request": {}, "call_monitor_timeout": "5"}, "call_monitor_timeout"),
        ({"request": {}, "call_monitor_timeout": True}, "call_monitor_timeout"),
        ({"request": {}, "call_monitor_timeout": [5]}, "call_monitor_timeout"),
        ({"request": {}, "call_monitor_timeout": -1}, "call_monitor_timeout"),
        ({"request": {}, "call_monitor_timeout": math.nan}, "call_monitor_timeout"),
        ({"request": {}, "call_monitor_timeout": math.inf}, "call_monitor_timeout"),
        ({"request": {}, "call_monitor_timeout": 10**400}, "call_monitor_timeout"),
        (
            {"request": {"oslo.version": "3.0", "oslo.message": "{}"}},
            "the envelope cannot be opened",
        ),
        (
            {"request": {"oslo.version": "2.0", "oslo.message": "{"}},
            "the envelope cannot be opened",
        ),
        (
            {"request": {"oslo.version": "2.0", "oslo.message": {"not": "text"}}},
            "the envelope cannot be opened",
        ),
        (
            {"request": {"oslo.version": "2.0", "oslo.message": "[]"}},
            "the request is not an object but list",
        ),
        (
            {"request": {"oslo.version": "2.0", "oslo.message": "[" * 100_000}},
            "too deeply",
        ),
        (
            {"request": {"oslo.version": "x.y", "oslo.message": "{}"}},
            "the envelope cannot be opened",
        ),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_no_request_says_so(fields, words):
    with pytest.raises(BadMessage, match=words):
        request(**fields)


@pytest.mark.parametrize("body", ["[]", "1", "null", '"text"', "true"])
def test_what_is_no_object(body):
    for parse in (PREDECESSOR.parse_request, lambda got: parse_reply(got.body)):
        with pytest.raises(BadMessage, match="not a JSON object but"):
            parse(Received(body))


@given(
    data=st.dictionaries(
        st.sampled_from(["request", "context", "call_monitor_timeout", "x"]),
        _JSON
        | st.dictionaries(
            st.sampled_from(["oslo.version", "oslo.message"]), st.text() | _JSON
        ),
    )
)
def test_whatever_comes_is_a_request_or_a_bad_message(data):
    try:
        parsed = PREDECESSOR.parse_request(Received(json.dumps(data)))
    except BadMessage:
        return
    assert isinstance(parsed.message, dict)
    assert isinstance(parsed.context, dict)


# -- messages of other programs


def test_any_json_of_other_programs():
    own = request_body({"a": 1}, {"b": 2})
    for body, expected in (
        ("[1]", ([1], {}, None)),
        ('{"request": 1}', ({"request": 1}, {}, None)),
        (own, ({"a": 1}, {"b": 2}, None)),
    ):
        assert PREDECESSOR.parse_any(Received(body))[:3] == expected
    with pytest.raises(BadMessage):
        PREDECESSOR.parse_any(Received("no JSON"))


# -- replies and failures


def reply(allowed=(), **fields):
    return parse_reply(json.dumps(fields), allowed)


def failure(**fields):
    return json.dumps(
        {"class": "ValueError", "module": "builtins", "message": "m", "tb": []} | fields
    )


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1]}, "text"])
def test_a_reply(value):
    assert reply(response=value) == value
    assert reply(response=value, failure=None, unknown=1) == value


def test_a_reply_without_anything():
    assert reply() is None


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, OSError])
def test_builtin_exceptions_are_always_allowed(kind):
    try:
        raise kind("the reason")
    except kind:
        body = reply_body(None, sys.exc_info())
    with pytest.raises(kind, match="the reason"):
        parse_reply(body)


def test_an_exception_of_an_allowed_module_has_its_class():
    try:
        raise oslo_messaging.InvalidTarget("bad", oslo_messaging.Target(topic="t"))
    except oslo_messaging.InvalidTarget:
        body = reply_body(None, sys.exc_info())
    with pytest.raises(oslo_messaging.RemoteError) as caught:
        parse_reply(body)
    assert caught.value.exc_type == "InvalidTarget"
    data = {"module": "oslo_messaging.exceptions", "class": "MessagingTimeout"}
    with pytest.raises(oslo_messaging.MessagingTimeout):
        reply(["oslo_messaging.exceptions"], failure=failure(**data))


@pytest.fixture
def landmine(tmp_path, monkeypatch):
    """A module that tells when it is imported."""
    (tmp_path / "greenamqp_landmine.py").write_text(
        "import sys\n"
        "sys.greenamqp_landmine = True\n"
        "class Bang(Exception): pass\n"
        "class NoException: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "greenamqp_landmine"
    sys.modules.pop("greenamqp_landmine", None)
    if hasattr(sys, "greenamqp_landmine"):
        del sys.greenamqp_landmine


def test_nothing_is_imported_that_is_not_allowed(landmine):
    for module in (landmine, f"{landmine}.x", f"os.{landmine}", f"{landmine} "):
        with pytest.raises(oslo_messaging.RemoteError) as caught:
            reply(["allowed"], failure=failure(**{"class": "Bang", "module": module}))
        assert caught.value.exc_type == "Bang"
    assert not hasattr(sys, landmine)
    # What the check would have seen.
    with pytest.raises(Exception) as caught:
        reply([landmine], failure=failure(**{"class": "Bang", "module": landmine}))
    assert type(caught.value).__name__.startswith("Bang")
    assert hasattr(sys, landmine)


@pytest.mark.parametrize(
    "fields",
    [
        {"class": "SystemExit"},
        {"class": "KeyboardInterrupt"},
        {"class": "BaseException"},
        {"class": "eval", "args": ["__import__('os')._exit(1)"]},
        {"class": "print"},
        {"class": "NoSuchThing"},
        {"class": None},
        {"class": ""},
        {"class": "__import__", "args": ["this"]},
        {"class": "ValueError", "kwargs": {"no": "such"}},
        {"class": "UnicodeDecodeError", "args": []},
    ],
    ids=repr,
)
def test_what_is_no_exception_is_not_called(fields):
    with pytest.raises(oslo_messaging.RemoteError):
        reply(failure=failure(**fields))


def test_an_exception_whose_class_does_not_take_its_arguments():
    """What the server raised is told all the same."""
    fields = {"class": "ExceptionGroup", "message": "two of them", "tb": ["line 1"]}
    with pytest.raises(oslo_messaging.RemoteError, match="two of them") as caught:
        reply(failure=failure(args=["two of them", ["not one"]], **fields))
    assert caught.value.exc_type == "ExceptionGroup"
    assert "line 1" in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "no JSON",
        "[]",
        "7",
        "",
        7,
        [],
        {},
        True,
        {"class": "ValueError"},
        json.dumps({"tb": 5, "module": "builtins", "class": "ValueError"}),
        json.dumps({"tb": [5], "message": 5}),
        failure(args=5),
        failure(kwargs=[5]),
        failure(message=None),
        "[" * 100_000,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_failure_that_cannot_be_read(value):
    with pytest.raises((BadMessage, oslo_messaging.RemoteError)):
        reply(failure=value)


@given(
    fields=st.dictionaries(
        st.sampled_from(["class", "module", "message", "tb", "args", "kwargs"]), _JSON
    )
)
def test_whatever_comes_as_a_failure_is_an_exception(fields):
    with pytest.raises(Exception) as caught:
        reply(failure=json.dumps(fields))
    assert isinstance(caught.value, (BadMessage, oslo_messaging.RemoteError))
