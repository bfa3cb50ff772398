# SPDX-License-Identifier: Apache-2.0
"""Signal handlers that come between any two instructions: see interrupted.py."""

import json
import uuid

import pytest
from oslo_messaging import Target

from tests.functional import world
from tests.functional.harness import Program


class Endpoint:
    def __init__(self):
        self.casts = 0

    def echo(self, ctxt, value):
        return value

    def cast(self, ctxt):
        self.casts += 1


@pytest.fixture
def interrupted(bus):
    """Runs the program; returns what it says and how many casts came."""
    programs = []

    def run(kind):
        topic = uuid.uuid4().hex
        endpoint = Endpoint()
        server = bus.server(endpoint, Target(topic=topic, server="s"))
        program = Program(
            "interrupted", bus.bus.url, topic, kind, in_world=world.current()
        )
        programs.append(program)
        said = json.loads(program.read())
        assert program.finish() == 0, program.errors()
        server.stop()
        server.wait()
        return said, endpoint.casts

    yield run
    for program in programs:
        program.kill()


@pytest.mark.needs("amqp")
@pytest.mark.proves("call", "cast")
def test_a_handler_that_sends(interrupted):
    """It is told where it cannot wait; nothing is lost, doubled or mixed up."""
    said, casts = interrupted("sends")
    assert said["wrong"] == []
    assert said["raised"] == 0
    assert said["answered"] == 1500
    assert said["sent"] > 0
    assert said["refused"] > 0
    assert casts == said["sent"]


@pytest.mark.any_bus  # it is about the connection, which each costs some time
@pytest.mark.skipif(
    world.current() == "eventlet-asyncio",
    reason="eventlet's asyncio hub does not outlive what is raised in its loop",
)
def test_a_handler_that_raises(interrupted):
    """Its exception reaches the caller, and the transport is whole afterwards."""
    said, _ = interrupted("raises")
    assert said["wrong"] == []
    assert said["caught"] > 0
    # A request whose connection was given up may be told as unknown.
    assert said["answered"] + said["caught"] + said["raised"] == 200
