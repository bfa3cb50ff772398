# SPDX-License-Identifier: Apache-2.0
"""What one start, call and stop log at DEBUG, in a process of its own."""

import json
import subprocess
import sys

import pytest

from greenamqp.buses.predecessor import PredecessorFormat
from greenamqp.buses.rabbitmq.format import RabbitFormat

_PROGRAM = """
import json, logging, sys

import oslo_messaging
from oslo_config import cfg

lines = []

class Kept(logging.Handler):
    def emit(self, record):
        lines.append((record.name, record.levelname, record.getMessage()))

logging.basicConfig(level=logging.DEBUG, handlers=[Kept()])
if sys.argv[1]:
    logging.getLogger(sys.argv[1]).setLevel(logging.DEBUG)

import greenamqp
from greenamqp.broker import Broker
from greenamqp.hubs import logs

class Endpoint:
    def double(self, ctxt, number):
        return 2 * number

with Broker() as broker:
    conf = cfg.CONF  # where oslo.messaging has its tracing options
    conf([], default_config_files=[], default_config_dirs=[])
    transport = greenamqp.get_rpc_transport(conf, broker.url)
    target = oslo_messaging.Target(topic="topic", server="server")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], "threading")
    server.start()
    client = oslo_messaging.get_rpc_client(
        transport, oslo_messaging.Target(topic="topic"), timeout=20
    )
    assert client.call({}, "double", number=21) == 42
    server.stop()
    server.wait()
    transport.cleanup()
logging.getLogger("pyngus.link").warning("a warning of pyngus's")
logs.drain()
print(json.dumps(lines))
"""


def said(pyngus_logger=""):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, pyngus_logger],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(line) for line in json.loads(done.stdout)]


def test_each_line_names_what_it_is_about():
    lines = said()
    ours = [
        text
        for name, level, text in lines
        if name.startswith("greenamqp.") and level == "DEBUG"
    ]
    assert 10 <= len(ours) <= 40, "\n".join(ours)
    for text in ours:
        assert any(
            named in text for named in ("topic", "link ", "127.0.0.1", "RPC ", "queue ")
        ), text

    def of(*parts):
        return [text for text in ours if all(part in text for part in parts)]

    assert of("subscribed to", "topic", "with a credit of")
    assert of("link openstack.org/om/sender/", "topic", "is attached")
    assert of("link openstack.org/om/receiver/", "topic", "is detached")
    (sent,) = of("RPC call", "bytes sent to")
    (replied,) = of("RPC call", ": replied")
    # The same id in both, and where the request was taken.
    id = replied.split(" to ")[0].split()[-1]
    assert id in sent
    assert of(f"message {id} from", "is acknowledged")
    assert of("RPC reply", "bytes sent to")


@pytest.mark.parametrize("format", [PredecessorFormat(), RabbitFormat()])
def test_each_message_has_a_name(format):
    request = format.request({"a": "_unique_id"}, {}, "one")
    assert format.identify(request) == "one"
    format.expect_reply(request, "two", "address")
    assert format.identify(request) == "two"
    assert format.identify(format.reply("two", 1, None, "three")) == "two"
    for envelope in (False, True):
        notification = format.notification({}, {}, "four", envelope=envelope)
        assert format.identify(notification) == "four"


def test_pyngus_is_heard_where_it_matters():
    of_pyngus = [line[1:] for line in said() if line[0].startswith("pyngus")]
    assert of_pyngus == [("WARNING", "a warning of pyngus's")]


@pytest.mark.parametrize("logger", ["pyngus", "pyngus.link"])
def test_who_asks_for_pyngus_has_it(logger):
    assert ("pyngus.link", "DEBUG", "Opening the link.") in said(logger)
