# SPDX-License-Identifier: Apache-2.0
"""What is private to pyngus and used all the same: a new pyngus may have it no more."""

import pathlib
import re

import proton
import pytest
from pyngus import link

import greenamqp
from greenamqp.engine import Connection, Terminus, lifecycle
from tests.unit.wire import Recorder

OF_A_CONNECTION = [
    "_pn_connection",
    "_pn_transport",
    "_pn_collector",
    "_pn_sasl",
    "_transport_bound",
    "_sender_links",
    "_receiver_links",
    "_error",
    "_handler",
    "_handle_proton_event",
]
OF_A_LINK = ["_pn_link", "_handler", "_name", "_handle_proton_event"]
OF_A_SESSION = ["_pn_session", "_links", "_name", "_handle_proton_event"]
#: What pyngus calls, which is overridden.
CALLED_BY_PYNGUS = ["_ep_active", "_ep_need_close", "_ep_closed", "_ep_error"]


@pytest.fixture
def engine():
    made = Connection("test", Recorder())
    made.open()
    yield made
    made.destroy()


def lacks(thing, names):
    return [name for name in names if not hasattr(thing, name)]


def test_what_is_private_is_there(engine):
    sender = engine.create_sender(Terminus("q"))
    endpoint = sender._endpoint
    assert lacks(engine.lifecycle, OF_A_CONNECTION) == []
    assert lacks(endpoint, OF_A_LINK) == []
    assert lacks(sender.session, OF_A_SESSION) == []
    assert lacks(link._SessionProxy, [*CALLED_BY_PYNGUS, "link_destroyed"]) == []
    assert isinstance(lifecycle.proton_link(endpoint), proton.Sender)
    assert lifecycle.link_of(endpoint) is sender
    assert engine.lifecycle.links(senders=True) == {sender.name: endpoint}


def test_nothing_else_knows_pyngus():
    """The table of private names is the whole of it."""
    package = pathlib.Path(greenamqp.__file__).parent
    private = re.compile(r"(import|from) pyngus|\._pn_|_(sender|receiver)_links\b")
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if private.search(path.read_text())
    }
    assert found == {"engine/lifecycle.py"}
