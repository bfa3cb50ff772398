# SPDX-License-Identifier: Apache-2.0
"""Exceptions of endpoints: what the client gets, what the server logs."""

import logging

import oslo_messaging
import pytest
from oslo_messaging import Target

from tests.functional import errors

pytestmark = pytest.mark.proves("remote errors")

MODULE = errors.__name__


class Failing:
    def value_error(self, ctxt, text):
        raise ValueError(text)

    def custom(self, ctxt, text):
        raise errors.Custom(text)

    def with_arguments(self, ctxt):
        raise errors.WithArguments(42, "reason")

    @oslo_messaging.expected_exceptions(errors.Custom)
    def expected(self, ctxt, text):
        raise errors.Custom(text)

    @oslo_messaging.expected_exceptions(errors.Custom)
    def other_than_expected(self, ctxt):
        raise LookupError("not expected")

    def fine(self, ctxt):
        return "fine"

    def _private(self, ctxt):
        return "secret"


@pytest.fixture
def target(topic, unique):
    return Target(topic=topic, server=unique("server"))


def test_builtin_exception_is_raised_again(bus, target):
    bus.server(Failing(), target)
    client = bus.client(target)
    with pytest.raises(ValueError, match="žluť 漢"):
        client.call({}, "value_error", text="žluť 漢")
    assert client.call({}, "fine") == "fine"


@pytest.mark.needs("remote_errors")
def test_rebuilt_exception_says_that_it_is_remote(bus, target):
    bus.server(Failing(), target)
    client = bus.client(target, bus.rpc_transport(exmods=[MODULE]))
    with pytest.raises(errors.Custom) as caught:
        client.call({}, "custom", text="text")
    assert type(caught.value).__name__ == "Custom_Remote"
    # The server's traceback comes along.
    assert "in custom" in str(caught.value)


def test_exception_of_an_allowed_module(bus, target):
    bus.server(Failing(), target)
    client = bus.client(target, bus.rpc_transport(exmods=[MODULE]))
    with pytest.raises(errors.Custom, match="text"):
        client.call({}, "custom", text="text")
    with pytest.raises(errors.WithArguments) as caught:
        client.call({}, "with_arguments")
    assert (caught.value.code, caught.value.reason) == (42, "reason")


@pytest.mark.needs("remote_errors")
def test_exception_of_a_module_that_is_not_allowed(bus, target):
    bus.server(Failing(), target)
    client = bus.client(target, bus.rpc_transport(exmods=["some.other.module"]))
    with pytest.raises(oslo_messaging.RemoteError) as caught:
        client.call({}, "custom", text="text")
    assert not isinstance(caught.value, errors.Custom)
    assert caught.value.exc_type == "Custom"
    assert caught.value.value == "text"


def test_unexpected_exception_is_logged_by_the_server(bus, target, caplog):
    bus.server(Failing(), target)
    with pytest.raises(ValueError):
        bus.client(target).call({}, "value_error", text="text")
    bus.stop_servers()
    assert any(r.levelno == logging.ERROR for r in caplog.records)


def test_expected_exception_is_not_logged_as_an_error(bus, target, caplog):
    bus.server(Failing(), target)
    client = bus.client(target, bus.rpc_transport(exmods=[MODULE]))
    with pytest.raises(errors.Custom, match="text"):
        client.call({}, "expected", text="text")
    bus.stop_servers()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_other_exception_than_the_expected(bus, target, caplog):
    bus.server(Failing(), target)
    with pytest.raises(LookupError, match="not expected"):
        bus.client(target).call({}, "other_than_expected")
    bus.stop_servers()
    assert any(r.levelno == logging.ERROR for r in caplog.records)


@pytest.mark.needs("remote_errors")
def test_missing_method(bus, target):
    bus.server(Failing(), target)
    client = bus.client(target)
    with pytest.raises(oslo_messaging.RemoteError) as caught:
        client.call({}, "no_such_method")
    assert caught.value.exc_type == "NoSuchMethod"
    assert client.call({}, "fine") == "fine"


@pytest.mark.needs("remote_errors")
def test_access_policy(bus, target):
    bus.server(Failing(), target, access_policy=oslo_messaging.DefaultRPCAccessPolicy)
    with pytest.raises(oslo_messaging.RemoteError) as caught:
        bus.client(target).call({}, "_private")
    assert caught.value.exc_type == "NoSuchMethod"


def test_call_to_fanout_is_refused(bus, topic):
    client = bus.client(Target(topic=topic, fanout=True))
    with pytest.raises(oslo_messaging.InvalidTarget):
        client.call({}, "fine")


@pytest.mark.needs("remote_errors")
class TestNamespacesAndVersions:
    @pytest.fixture
    def call(self, bus, target):
        class Plain:
            def where(self, ctxt):
                return "plain 1.0"

        class Named:
            target = Target(namespace="named", version="2.3")

            def where(self, ctxt):
                return "named 2.3"

        class Newer:
            target = Target(version="3.1.4")

            def where(self, ctxt):
                return "plain 3.1.4"

        bus.server([Plain(), Named(), Newer()], target)
        client = bus.client(target)

        def call(**which):
            return client.prepare(**which).call({}, "where")

        return call

    @pytest.mark.parametrize(
        ("which", "where"),
        [
            ({}, "plain 1.0"),
            ({"version": "1.0"}, "plain 1.0"),
            ({"namespace": "named", "version": "2.0"}, "named 2.3"),
            ({"namespace": "named", "version": "2.3"}, "named 2.3"),
            ({"version": "3.0"}, "plain 3.1.4"),
            ({"version": "3.1.4"}, "plain 3.1.4"),
        ],
    )
    def test_found(self, call, which, where):
        assert call(**which) == where

    @pytest.mark.parametrize(
        "which",
        [
            {"version": "1.1"},
            {"version": "2.0"},
            {"version": "3.1.5"},
            {"namespace": "named"},
            {"namespace": "named", "version": "2.4"},
            {"namespace": "other", "version": "1.0"},
        ],
    )
    def test_not_found(self, call, which):
        with pytest.raises(oslo_messaging.RemoteError) as caught:
            call(**which)
        assert caught.value.exc_type == "UnsupportedVersion"
        assert call() == "plain 1.0"
