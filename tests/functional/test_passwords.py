# SPDX-License-Identifier: Apache-2.0
"""A password that changes is used at the next connection, without a restart."""

import shlex
import sys

import pytest
from oslo_messaging import Target

from greenamqp.broker import Broker

pytestmark = [pytest.mark.needs("amqp"), pytest.mark.any_bus]


class Endpoint:
    def echo(self, ctxt, value):
        return value


@pytest.fixture(params=["password_file", "password_command"])
def given(request, tmp_path):
    """The file that has the password, and the options that name it."""
    path = tmp_path / "password"
    value = str(path)
    if request.param == "password_command":
        code = f"print(open({value!r}).read())"
        value = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    return path, {"oslo_messaging_amqp": {request.param: value}}


def test_a_new_password(bus, topic, given):
    path, options = given
    path.write_text("the first")
    target = Target(topic=topic, server="one")
    with Broker(users={"nova": "the first"}) as first:
        url, port = f"amqp://nova@127.0.0.1:{first.port}/", first.port
        bus.server(Endpoint(), target, bus.rpc_transport(url=url, options=options))
        client = bus.client(target, bus.rpc_transport(url=url, options=options))
        assert client.call({}, "echo", value=1) == 1
    path.write_text("the second\n")
    with Broker(users={"nova": "the second"}, port=port):
        assert client.call({}, "echo", value=2) == 2
