# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs to each subcommand, and what is said.

    python -m tests.wrong_input FILE

gives each to the command and writes what it said, and after how long, as a page of the
documentation; to be made on a machine that does nothing else.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import sys
import time

from greenamqp import command

#: What is given, and what the last line must say, as a regular expression.
WRONG = [
    ("", "arguments are required: command"),
    ("nosuch", "invalid choice: 'nosuch'"),
    ("--nosuch", "arguments are required: command"),
    ("demo --nosuch", "unrecognized arguments: --nosuch"),
    ("demo extra", "unrecognized arguments: extra"),
    ("demo --hub x", "argument --hub: invalid choice: 'x'"),
    ("demo --duration", "argument --duration: expected one argument"),
    ("demo --duration 0", "'0' is not a number from 0.1"),
    ("demo --rate -1", "'-1' is not a number from 0"),
    ("demo --samples /nosuch", "--samples: .*'/nosuch'"),
    ("demo --samples /", "--samples: .*directory: '/'"),
    ("demo --url=", "argument --url: it is empty"),
    ("demo --url localhost", "transport URL with a host"),
    ("demo --url amqp://", "transport URL with a host"),
    ("demo --url amqp://[::1", "--url: Invalid IPv6 URL"),
    ("demo --url http://h", "http:// is not of this driver"),
    ("demo --url rabbit://h", "rabbit:// is not of this driver"),
    ("demo --url amqp://h:0", "port of h must be from 1 to 65535"),
    ("demo --url amqp://h:99999", "Port out of range"),
    ("demo --url amqp://h:port", "Port .*'port'"),
    ("demo --url amqp://h/?nosuch=1", "no option 'nosuch'"),
    ("demo --url amqp://h/?addressing_mode=x", "addressing_mode must be"),
    ("demo --url amqp://h/?ssl=maybe", "ssl must be Boolean; 'maybe' is not"),
    ("demo --url amqp://h/?idle_timeout=-1", "idle_timeout must be .*'-1' is not"),
    ("demo --url amqps://h/?ssl=false", "amqps:// asks for TLS"),
    ("demo --url amqp://h/?ssl_cert_file=/nosuch", "file '/nosuch' cannot be read"),
    # Cyrus SASL, where proton was built with it, may know any mechanism.
    (
        "demo --url amqp://h/?sasl_mechanisms=NOSUCH",
        "sasl_mechanisms: NOSUCH|cannot look the name up",
    ),
    ("demo --url amqp://127.0.0.1:1", "no message bus at 127.0.0.1:1: .*refused"),
    ("broker --nosuch", "unrecognized arguments: --nosuch"),
    ("broker --host=", "argument --host: it is empty"),
    ("broker --port=", "'' is not a whole number from 0 to 65535"),
    ("broker --port 99999", "'99999' is not a whole number from 0 to 65535"),
    ("broker --product x", "argument --product: invalid choice: 'x'"),
    ("broker --user me", "--user number 1 is not NAME:PASSWORD"),
    ("broker --tls-cert /nosuch", "file '/nosuch' cannot be read"),
    ("broker --tls-cert setup.cfg", "'setup.cfg' cannot be used"),
    ("broker --tls-ca /nosuch", "go with tls_cert, which is not given"),
    ("broker --tls-require-client-cert", "go with tls_cert, which is not given"),
    ("broker --hostname=", "argument --hostname: it is empty"),
    ("broker --queue-prefix=", "argument --queue-prefix: it is empty"),
    ("broker --refuse-prefix=", "argument --refuse-prefix: it is empty"),
    ("broker --max-memory=", "'' is not a whole number from 1"),
    ("broker --host 192.0.2.1 --port 0", "cannot listen on 192.0.2.1:0: .*address"),
    ("call topic", "arguments are required: method"),
    ("call topic m {", "'{' is no JSON"),
    ("call topic m [1]", r"'\[1\]' is no JSON object"),
    ("call topic m --context 3", "'3' is no JSON object"),
    ("call topic m --count 0", "'0' is not a whole number from 1"),
    ("call topic m --timeout 0", "'0' is not a number from 0.1"),
    ("call topic m", "no transport URL"),
    ("call topic m --url=", "argument --url: it is empty"),
    ("call topic m --url amqp://me:secret@[::1", "transport URL: Invalid IPv6 URL"),
    ("call topic m --url amqp://h:0", "transport URL: the port of h must be from 1"),
    ("call topic m --url amqp://127.0.0.1:1", "no message bus at .*refused"),
    ("call topic m --config-file /nosuch", "Failed to find some config files"),
    ("call topic m --config-file /", "directory: '/'"),
    ("cast topic m --server=", "argument --server: it is empty"),
    ("cast topic m --url amqp://127.0.0.1:1", "no message bus at .*refused"),
    ("notify topic event --priority x", "invalid choice: 'x'"),
    ("notify topic event --url amqp://127.0.0.1:1", "no message bus at .*refused"),
    ("listen topic --url amqp://127.0.0.1:1", "no message bus at .*refused"),
    ("tail --url amqp://127.0.0.1:1", "no message bus at .*refused"),
    ("tail --where [", "--where: Invalid jmespath expression: Incomplete expression"),
    ("tail --where nosuch(payload)", r"--where: Unknown function: nosuch\(\)"),
    ("state x", "'x' is not a whole number from 1 to 4194304"),
    ("state 1", "no state_dir: name it"),
    ("top --state-dir /nosuch", "/nosuch is no directory"),
    ("top --interval 0", "'0' is not a number from 0.1"),
    ("outbox", "an action is required"),
    ("outbox list /nosuch", "/nosuch: No such file or directory"),
    ("outbox purge /nosuch --older-than -1", "'-1' is not a number from 0"),
    ("outbox send /nosuch --url amqp://h", "/nosuch: No such file or directory"),
    ("outbox send /tmp --config-file /nosuch", "Failed to find some config files"),
    ("outbox send /tmp --url rabbit://h", "rabbit:// is not of this driver"),
    ("outbox send /tmp --url amqp://127.0.0.1:1", "no message bus at .*refused"),
    ("doctor --topic=", "argument --topic: it is empty"),
    ("migrate", "arguments are required: CONFIG"),
    ("migrate /nosuch", "/nosuch: No such file or directory"),
    ("migrate --write setup.cfg", "neither transport_url nor .* is set there"),
]

_HEAD = """\
What is said of wrong input
===========================

Each line was given to ``greenamqp``; what came in its last line, and after how many
seconds, its start not counted. Made by ``{command}``.

.. list-table::
   :header-rows: 1
   :widths: 30 60 10

   * - given
     - said
     - s
"""


def give(line: str) -> tuple[int, str]:
    """The exit status, and all that was said of it."""
    arguments = line.split()
    if arguments[:1] == ["demo"]:
        arguments[1:1] = ["--hub", "threads"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = command.main(arguments)
        except SystemExit as exited:
            status = int(exited.code or 0)
    return status, said.getvalue()


def page(command: str) -> str:
    """All of them, as reStructuredText."""
    text = _HEAD.format(command=command)
    give("demo --url localhost")  # what it imports is not counted
    for line, _ in WRONG:
        before = time.monotonic()
        status, said = give(line)
        seconds = time.monotonic() - before
        last = said.splitlines()[-1]
        text += "   * - ``" + f"greenamqp {line}".rstrip() + "``\n"
        text += f"     - ``{last}`` (exit status {status})\n     - {seconds:.1f}\n"
    return text


if __name__ == "__main__":
    (file,) = sys.argv[1:]
    pathlib.Path(file).write_text(page(f"python -m tests.wrong_input {file}"))
