# SPDX-License-Identifier: Apache-2.0
"""What is on an Artemis, and an Artemis with TLS."""

from __future__ import annotations

import contextlib
import json
import time
import typing
from collections.abc import Callable, Iterator

from proton import Message
from proton.utils import BlockingConnection

from tests.integration.keystores import PASSWORD, write_key, write_trust
from tests.integration.services import PATIENCE
from tools.buses.artemis import Artemis
from tools.buses.kinds import Layout

#: How often the queues are listed at most, where some go meanwhile.
_TRIES = 20


class Failed(Exception):
    """An operation of the broker ended in an error of the broker."""


class Operator:
    """Somebody who may manage the broker; see :func:`operator`."""

    def __init__(self, connection: BlockingConnection) -> None:
        self._answers = connection.create_receiver(None, dynamic=True, credit=10)
        self._requests = connection.create_sender("activemq.management")

    def ask(self, operation: str, *arguments: typing.Any) -> typing.Any:
        """What an operation of the broker returns."""
        properties = {
            "_AMQ_ResourceName": "broker",
            "_AMQ_OperationName": operation,
        }
        reply_to = self._answers.link.remote_source.address
        body = json.dumps(arguments)
        self._requests.send(Message(body, properties=properties, reply_to=reply_to))
        answer = self._answers.receive()
        self._answers.accept()
        if not answer.properties["_AMQ_OperationSucceeded"]:
            raise Failed(answer.body)
        return json.loads(answer.body)[0] if answer.body else None

    def queues(self, part: str) -> dict[str, dict[str, str]]:
        """The queues of addresses that have `part` in their names, by name."""
        wanted = {"field": "address", "operation": "CONTAINS", "value": part}
        for _ in range(_TRIES):
            try:
                found = json.loads(self.ask("listQueues", json.dumps(wanted), 1, 1000))
            except Failed as error:
                # A queue went while it was listed.
                if "is null" not in str(error):
                    raise
            else:
                return {queue["name"]: queue for queue in found["data"]}
        raise AssertionError("queues go all the time")

    def come_to(
        self, part: str, wanted: Callable[[dict[str, dict[str, str]]], bool]
    ) -> dict[str, dict[str, str]]:
        """As `queues`, once they are as wanted.

        The broker says goodbye to a link or connection, and may remove what goes with
        it a moment later.
        """
        until = time.monotonic() + PATIENCE
        while not wanted(found := self.queues(part)):
            assert time.monotonic() < until, sorted(found)
        return found

    def user_without_management(self, name: str) -> None:
        """Add a user with the rights that greenamqp needs at most, but for policies."""
        everybody, operators = f"{name},amq", "amq"
        self.ask("addUser", name, "secret", name, True)
        # send, consume, create and delete durable queues, the same for others, manage,
        # browse, create and delete addresses
        self.ask(
            "addSecuritySettings",
            "#",
            *[everybody] * 3,
            operators,
            *[everybody] * 2,
            *[operators] * 2,
            everybody,
            operators,
        )
        self.ask("addSecuritySettings", "activemq.management", *[operators] * 10)


@contextlib.contextmanager
def operator(url: str) -> Iterator[Operator]:
    connection = BlockingConnection(
        url.split("?")[0], timeout=PATIENCE, allowed_mechs="PLAIN"
    )
    try:
        yield Operator(connection)
    finally:
        connection.close()


class TlsArtemis(Artemis):
    """An Artemis that has a second port, with TLS.

    :param certificate: PEM file of its certificate and key
    :param authority: PEM file of the CA of its clients, who must have a certificate
    """

    ports = 2

    def __init__(self, name: str, certificate: str, authority: str) -> None:
        super().__init__(name)
        self._certificate = certificate
        self._authority = authority

    def prepare(self, layout: Layout, node: int) -> None:
        super().prepare(layout, node)
        folder = layout.node_folder(node) / "etc"
        key, trust = folder / "key.p12", folder / "trust.p12"
        write_key(self._certificate, key)
        write_trust(self._authority, trust)
        acceptor = (
            f'<acceptor name="tls">tcp://127.0.0.1:{layout.ports[node][1]}'
            "?protocols=AMQP;sslEnabled=true;needClientAuth=true"
            f";keyStorePath={key};keyStoreType=PKCS12;keyStorePassword={PASSWORD}"
            f";trustStorePath={trust};trustStoreType=PKCS12"
            f";trustStorePassword={PASSWORD}</acceptor>"
        )
        broker = folder / "broker.xml"
        text = broker.read_text()
        assert text.count("</acceptors>") == 1
        broker.write_text(text.replace("</acceptors>", f"{acceptor}</acceptors>"))
