# SPDX-License-Identifier: Apache-2.0
"""Peers that misbehave, as a program: what a bus may do to a driver.

    python -m tests.functional.scripted WHAT [ARGUMENT]

It listens on a port of 127.0.0.1 and prints it. WHAT is one of

    small LIMIT     an AMQP 1.0 peer that takes messages up to LIMIT bytes and prints
                    ``took BYTES`` for each
    refuse          closes every AMQP connection with an error
    refuse-links    opens connections, but refuses every link
    silent          accepts TCP connections and never says a word
    garbage         answers in a protocol of its own
    close           closes every TCP connection at once

It ends when its stdin does.
"""

import socket
import sys
import threading

import proton
from proton.handlers import MessagingHandler
from proton.reactor import Container

#: What the peers say when they refuse.
CONDITION = "amqp:unauthorized-access"
DESCRIPTION = "not for the likes of you"


class Peer(MessagingHandler):
    def __init__(self, what: str, limit: int) -> None:
        super().__init__(prefetch=10)
        self.what = what
        self.limit = limit

    def on_start(self, event):
        # Port 0 cannot be asked for its number here, so one is chosen before.
        with socket.create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        event.container.listen(f"127.0.0.1:{port}")
        print(port, flush=True)

    # proton opens this end after on_..._opening, so refusing has to wait until then.

    def on_connection_opened(self, event):
        if self.what == "refuse":
            event.connection.condition = proton.Condition(CONDITION, DESCRIPTION)
            event.connection.close()

    def on_link_opened(self, event):
        if self.what == "refuse-links":
            event.link.condition = proton.Condition(CONDITION, DESCRIPTION)
            event.link.close()

    def on_link_opening(self, event):
        link = event.link
        if self.what == "refuse-links":
            return  # attached without a terminus, as the specification has it
        if link.is_sender:
            if link.remote_source.dynamic:
                link.source.address = f"dynamic/{link.name}"
            else:
                link.source.address = link.remote_source.address
        else:
            link.target.address = link.remote_target.address
            link.max_message_size = self.limit

    def on_message(self, event):
        print("took", len(event.message.encode()), flush=True)


def talk(what: str) -> None:
    """A listener without AMQP."""
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        while True:
            peer, _ = listening.accept()
            if what == "silent":
                kept.append(peer)
                continue
            if what == "garbage":
                peer.sendall(b"220 mail.example.org ESMTP, what can I do for you?\r\n")
                peer.recv(8)
            peer.close()


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what in ("silent", "garbage", "close"):
        run, args = talk, (what,)
    else:
        limit = int(arguments[0]) if arguments else 0
        run, args = Container(Peer(what, limit)).run, ()
    threading.Thread(target=run, args=args, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
