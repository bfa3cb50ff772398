# SPDX-License-Identifier: Apache-2.0
"""The life of one connection: hosts, attempts, TLS, login, bytes, liveness.

:class:`greenamqp.connection.life.BusConnection` is what the client sees of it: it
connects when it is first wanted, and again whenever it was lost, until it is closed::

    state        event                              next
    ---------    -------------------------------    ----------
    IDLE         somebody wants something           CONNECTING
    CONNECTING   the stream is connected            OPENING
    CONNECTING   it cannot be                       WAITING
    OPENING      the peer's Open frame              UP
    OPENING      refused, broken or too late        WAITING
    UP           lost or closed by the peer         WAITING
    WAITING      the pause is over                  CONNECTING
    any          close                              CLOSED

It promises that every attempt has a deadline, that a lost connection is told once and
made anew, and that why it failed is said in words that name the cause.  It must know
nothing of messages, targets, or what a message bus calls its queues.

Within: ``life`` (the table above), ``failover`` (which host is next, and when),
``connect`` and ``tls`` (how a stream comes about), ``security`` (what the options say
of TLS and logins), ``diagnosis`` (why the peer did not open the connection), ``pump``
(bytes between stream and engine), ``guard`` (heartbeats while the process is busy).
"""
