# SPDX-License-Identifier: Apache-2.0
"""One request with its reply, one cast to all servers, and one notification, on
addresses of their own."""

from __future__ import annotations

import threading
import time
import typing
import uuid

import oslo_messaging
from oslo_messaging import Target

from greenamqp import buses
from greenamqp.command.doctor.findings import Findings
from greenamqp.command.messages import notification
from greenamqp.driver import GreenAMQPDriver
from greenamqp.listener import Listener
from greenamqp.policy import QueuePolicy

#: Seconds after which a bus removes what was made here.
_LIFE = 10.0


#: The servers of a topic.
_SERVERS = ("one", "other")


class _Failed(Exception):
    """The text says why."""


class _Mute(_Failed):
    """The bus has let us in, and answers nothing."""


def make(
    findings: Findings,
    driver: GreenAMQPDriver,
    options: typing.Any,
    bus: buses.Bus,
    timeout: float,
) -> bool:
    """Send them.  What the bus made for them it removes by itself, if it can be
    told.  Returns whether anything came through.
    """
    through = False
    target = Target(topic=f"greenamqp-doctor-{uuid.uuid4().hex}")
    for server in _SERVERS:
        _let_expire(driver, target(server=server), options, bus)
    for what, step in _STEPS:
        began = time.monotonic()
        try:
            step(driver, target, began + timeout)
        except (
            oslo_messaging.MessagingException,
            NotImplementedError,
            _Failed,
        ) as exc:
            findings.failed(what, str(bus), str(exc), time.monotonic() - began)
            if isinstance(exc, _Mute):
                break  # and so would the others end
        else:
            taken = time.monotonic() - began
            findings.ok(what, str(bus), "subscribed, sent and received", taken)
            through = True
    return through


def _let_expire(
    driver: GreenAMQPDriver,
    target: Target,
    options: typing.Any,
    bus: buses.Bus,
) -> None:
    group = Target(topic=target.topic)
    for each in (target, group):
        driver.policies.set(each, QueuePolicy(expires=_LIFE))
    try:
        made = buses.choose(options, None, None, bus, driver.policies)
        made.rpc_sources(target)
    except NotImplementedError:
        for each in (target, group):
            driver.policies.set(each, None)


def _attached(driver: GreenAMQPDriver, listener: Listener, deadline: float) -> None:
    if listener.wait_attached(deadline):
        return
    client = driver.client
    mute = listener.unanswered or "did not answer within" in listener.refusal
    if mute and client is not None and client.connected:
        # It has just opened this connection, so it does not stand still.
        raise _Mute(
            "cannot subscribe: the message bus lets clients in and then answers "
            "nothing: it holds back all who publish (is its memory or disk full?)"
        )
    raise _Failed(f"cannot subscribe: {listener.refusal}")


def _left(deadline: float) -> float:
    """Seconds; not 0, which is no time-out."""
    return max(0.1, deadline - time.monotonic())


def _call(driver: GreenAMQPDriver, target: Target, deadline: float) -> None:
    server_target = target(server=_SERVERS[0])
    listener = driver.subscribe(server_target, 1, None)

    def serve() -> None:
        for request in listener.poll(timeout=_left(deadline)):
            request.acknowledge()
            request.reply("here")

    server = threading.Thread(target=serve, daemon=True)
    try:
        _attached(driver, listener, deadline)
        server.start()
        request = {"method": "ping", "args": {}}
        reply = driver.send(
            server_target, {}, request, wait_for_reply=True, timeout=_left(deadline)
        )
        if reply != "here":
            raise _Failed(f"another reply came than was sent: {reply!r}")
    finally:
        listener.stop()
        listener.cleanup()


def _fan_out(driver: GreenAMQPDriver, target: Target, deadline: float) -> None:
    targets = [target(server=server) for server in _SERVERS]
    listeners = [driver.subscribe(each, 1, None) for each in targets]
    came: list[typing.Any] = []

    def take(listener: Listener) -> None:
        for request in listener.poll(timeout=_left(deadline)):
            request.acknowledge()
            came.append(request)

    takers = [
        threading.Thread(target=take, args=(each,), daemon=True) for each in listeners
    ]
    try:
        for listener in listeners:
            _attached(driver, listener, deadline)
        for taker in takers:
            taker.start()
        driver.send(target(fanout=True), {}, {"method": "ping", "args": {}})
        for taker in takers:
            taker.join(_left(deadline))
        if len(came) < len(listeners):
            raise _Failed(
                f"what was sent to all {len(listeners)} servers came to {len(came)}: "
                "the bus does not copy it"
            )
    finally:
        for listener in listeners:
            listener.stop()
            listener.cleanup()


def _notify(driver: GreenAMQPDriver, target: Target, deadline: float) -> None:
    listener = driver.subscribe_for_notifications([(target, "info")], None, 1, None)
    came: list[typing.Any] = []

    def take() -> None:
        # Meanwhile, as a router tells the sender only when it was acknowledged.
        came.extend(listener.poll(timeout=_left(deadline)))
        for each in came:
            each.acknowledge()

    taker = threading.Thread(target=take, daemon=True)
    try:
        _attached(driver, listener, deadline)
        taker.start()
        message = notification("greenamqp.doctor", {})
        whole = Target(topic=f"{target.topic}.info")
        driver.send_notification(whole, {}, message, 2.0, retry=0)
        taker.join(_left(deadline))
        if not came:
            raise _Failed("the notification was accepted, and did not come")
    finally:
        listener.stop()
        listener.cleanup()


_STEPS = (("RPC", _call), ("fanout", _fan_out), ("notification", _notify))
