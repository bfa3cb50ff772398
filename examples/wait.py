# SPDX-License-Identifier: Apache-2.0
"""Wait for a listener's descriptor with whatever waits for descriptors.

    python examples/wait.py --with select|poll|epoll|selectors|asyncio|eventlet|gevent
                            [--url amqp://host] [--count N]

Takes N notifications of topic ``wait`` and prints their payloads.  No callback and no
polling thread: the program waits for ``listener.fileno()`` in its own way and takes
what is there when that is readable.
"""

import argparse
import asyncio
import select
import selectors

import oslo_messaging
from oslo_config import cfg


def take(listener):
    """What has come; a wake-up may be spurious, then it is nothing."""
    while messages := listener.poll(timeout=0):
        for message in messages:
            print(message.message["payload"], flush=True)
            message.acknowledge()
            yield message


def with_select(listener, count):
    while count > 0:
        select.select([listener], [], [])
        count -= sum(1 for _ in take(listener))


def with_poll(listener, count):
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while count > 0:
        poller.poll()
        count -= sum(1 for _ in take(listener))


def with_epoll(listener, count):
    with select.epoll() as epoll:
        epoll.register(listener, select.EPOLLIN)
        while count > 0:
            epoll.poll()
            count -= sum(1 for _ in take(listener))


def with_selectors(listener, count):
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while count > 0:
            selector.select()
            count -= sum(1 for _ in take(listener))


def with_asyncio(listener, count):
    async def main():
        loop, left, done = asyncio.get_running_loop(), count, asyncio.Event()

        def readable():
            nonlocal left
            left -= sum(1 for _ in take(listener))
            if left <= 0:
                done.set()

        loop.add_reader(listener, readable)
        await done.wait()
        loop.remove_reader(listener)

    asyncio.run(main())


def with_eventlet(listener, count):
    from eventlet.hubs import trampoline

    while count > 0:
        trampoline(listener.fileno(), read=True)
        count -= sum(1 for _ in take(listener))


def with_gevent(listener, count):
    from gevent.socket import wait_read

    while count > 0:
        wait_read(listener.fileno())
        count -= sum(1 for _ in take(listener))


WAITS = {
    "select": with_select,
    "poll": with_poll,
    "epoll": with_epoll,
    "selectors": with_selectors,
    "asyncio": with_asyncio,
    "eventlet": with_eventlet,
    "gevent": with_gevent,
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--with", dest="way", choices=WAITS, default="poll")
    parser.add_argument("--url", default="amqp://127.0.0.1:5672")
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args(argv)

    cfg.CONF([], project="wait")
    # In an unpatched process the option chooses the hub; with "blocking" nothing but
    # this program's own wait moves a byte.
    hub = args.way if args.way in ("eventlet", "gevent") else "blocking"
    transport = oslo_messaging.get_notification_transport(
        cfg.CONF, url=f"{args.url}{'&' if '?' in args.url else '?'}hub={hub}"
    )
    listener = transport._listen_for_notifications(
        [(oslo_messaging.Target(topic="wait"), "info")], None, 1, None
    )
    print("waiting", flush=True)
    WAITS[args.way](listener, args.count)
    listener.cleanup()
    transport.cleanup()


if __name__ == "__main__":
    main()
