# SPDX-License-Identifier: Apache-2.0
"""What a transport is doing now, as plain data: for health checks and for operators."""

from __future__ import annotations

import typing

from greenamqp.driver import drivers_in_use
from greenamqp.server import driver_of


def describe(transport: typing.Any) -> dict[str, typing.Any]:
    """What `transport` is doing now.  From any thread; waits for nothing but the lock.

    Lists, dicts, strings, numbers and None alone, so that it can be written as JSON;
    no password.  The names stay::

        pid, hub                    the process; eventlet, gevent, threads or blocking
        outbox                      None without the option notify_outbox
            directory
            waiting                 notifications that are in it
            destinations            where they go, for people
            sent                    how many were sent from it, by this process
            dropped                 how many fell out: too many, too old, rejected
        connections                 one, and others where one cannot hold all
            host, virtual_host
            state                   idle, connecting, opening, up, waiting or closed
            up_for                  seconds, None while it is not up
            came_up                 how many times it has
            sent, received          messages meanwhile, replies and requests for queues
                                    included; None while it is not up
            time_down               seconds that it was wanted and not up, all in all
            bus                     product and version of the peer, "" if never up
            why_down                why it is not up, for people; "" while it is
            unanswered_calls        calls that wait for their reply
            requests_at_work        requests that were taken and not replied to yet
            reply_address           where replies come to, None if there is none
            latency                 None without the options state_dir and metrics
                call                seconds within which half of the calls of the last
                                    minute had their reply, None if there was none
                outcome             the same for outcomes of what was sent
            senders                 one for each destination
                address, phase      phase: wanted, declaring, attaching, up, resting
                credit              messages that may be sent before more is given
                unsettled           messages whose outcome is due
                pending             messages that cannot be sent now
                refusal             why, for people, or ""
            subscriptions           one for each listener
                attached, window
                refusal
                links               address, phase, credit of each

    :raises TypeError: for a transport of another driver
    """
    return driver_of(transport).describe()


def is_connected(transport: typing.Any) -> bool:
    """Whether `transport` has a connection to the message bus that is up, and where it
    needs several, all of them.  A transport that was not used yet has none.  From any
    thread.

    :raises TypeError: for a transport of another driver
    """
    client = driver_of(transport).client
    return client is not None and client.connected


def failures() -> list[str]:
    """Why connections of this process are down, one text for each that is wanted and
    not up; none: all is well, or no transport was used yet.  From any thread."""
    return [
        connection["why_down"]
        for driver in drivers_in_use()
        for connection in driver.describe()["connections"]
        if connection["state"] not in ("up", "idle", "closed")
    ]
