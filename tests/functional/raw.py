# SPDX-License-Identifier: Apache-2.0
"""A raw AMQP 1.0 peer, for what no well-behaved driver would put on the wire.

Runs in a process of its own, in native threads, on proton alone:

    python -m tests.functional.raw product URL        what the bus says it is: JSON
    python -m tests.functional.raw send URL           sends what stdin says
    python -m tests.functional.raw serve URL ADDRESS  receives, and replies as told

``send`` reads JSON objects, one per line: ``address``, ``body`` (a string, or
``{"data": hex}`` for a data section, ``{"value": anything}`` for an AMQP value) and
any of ``properties``, ``correlation_id``, ``reply_to``, ``id``, ``subject``. For
each it prints a line of JSON with the ``outcome`` at the bus.

``serve`` prints ``ready``, then for each message a line of JSON with its ``id``,
``reply_to``, ``correlation_id``, ``ttl`` and ``body``, and reads one line: a list of
messages as for ``send``, which it sends.
"""

import json
import sys

import proton
from proton.utils import BlockingConnection, SendException

TIMEOUT = 30


def product(url: str) -> None:
    connection = BlockingConnection(url, timeout=TIMEOUT)
    properties = connection.conn.remote_properties or {}
    said = {
        name: str(properties.get(proton.symbol(name), "unknown"))
        for name in ("product", "version")
    }
    print(json.dumps(said))
    connection.close()


def message(request: dict) -> proton.Message:
    body = request["body"]
    if isinstance(body, dict) and "data" in body:
        made = proton.Message(body=bytes.fromhex(body["data"]), inferred=True)
    elif isinstance(body, dict):
        made = proton.Message(body=body["value"])
    else:
        made = proton.Message(body=body)
    made.address = request["address"]
    for name in ("correlation_id", "reply_to", "id", "subject", "properties", "ttl"):
        if name in request:
            setattr(made, name, request[name])
    return made


def send(url: str) -> None:
    connection = BlockingConnection(url, timeout=TIMEOUT)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            sender = connection.create_sender(request["address"])
            try:
                sender.send(message(request), timeout=TIMEOUT)
                outcome = "accepted"
            except SendException as error:
                rejected = error.state == proton.Disposition.REJECTED
                outcome = "rejected" if rejected else str(error.state)
            sender.close()
        except proton.ProtonException as error:
            outcome = f"error: {error}"
        print(json.dumps({"outcome": outcome}), flush=True)
    connection.close()


def serve(url: str, address: str) -> None:
    connection = BlockingConnection(url, timeout=TIMEOUT)
    receiver = connection.create_receiver(address, credit=10)
    print("ready", flush=True)
    while True:
        got = receiver.receive(timeout=None)
        receiver.accept()
        heard = {
            "id": got.id if isinstance(got.id, str) else str(got.id),
            "reply_to": got.reply_to,
            "correlation_id": got.correlation_id,
            "ttl": got.ttl,
            "body": got.body,
        }
        print(json.dumps(heard), flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        for request in json.loads(line):
            sender = connection.create_sender(request["address"])
            sender.send(message(request), timeout=TIMEOUT)
            sender.close()
    connection.close()


def main() -> None:
    command, *arguments = sys.argv[1:]
    {"product": product, "send": send, "serve": serve}[command](*arguments)


if __name__ == "__main__":
    main()
