# SPDX-License-Identifier: Apache-2.0
"""What a process tells of itself, by OpenTelemetry too, where the options ask for it.

``tally`` counts what becomes of messages, ``sample`` chooses which durations are
recorded, ``latest`` keeps those of the last minute, ``states`` makes numbers of what
:func:`greenamqp.describe` has, and ``instruments`` shows them; ``traces`` makes spans.
Only the last two import OpenTelemetry, and only when a transport is made or used whose
options ask for it.
"""

from __future__ import annotations

import logging
import typing

from greenamqp.client import Client
from greenamqp.telemetry.latest import Latest
from greenamqp.telemetry.states import Described
from greenamqp.telemetry.tally import Tally

if typing.TYPE_CHECKING:
    from greenamqp.telemetry.traces import Tracer

LOG = logging.getLogger(__name__)

_INSTALL = "pip install greenamqp[telemetry]"


def measure(client: Client, outbox: Described | None, metrics: bool) -> None:
    """Have a transport's client say how long its messages take, until it is closed.
    Does not block, and raises nothing: what is in the way is logged.  From any thread.

    :param outbox: where its notifications wait, or None
    :param metrics: whether OpenTelemetry's instruments show it as well
    """
    latest = Latest(client.hub.now)
    client.latency = latest.describe
    if metrics:
        try:
            from greenamqp.telemetry.instruments import INSTRUMENTS
        except ImportError as exc:
            LOG.warning("metrics: %s: nothing is shown; %s", exc, _INSTALL)
        else:
            INSTRUMENTS.add(client, outbox, latest)
            return
    tally = Tally(client.hub.now, client.hub.lock, latest.histograms(None))
    client.on_send = tally.sending


def tracer(conf: typing.Any) -> Tracer | None:
    """What makes spans of a transport's messages; None, which the log tells, without
    OpenTelemetry.

    :param conf: the configuration, which says what oslo.messaging traces itself
    """
    try:
        from greenamqp.telemetry.traces import Tracer
    except ImportError as exc:
        LOG.warning("traces: %s: nothing is traced; %s", exc, _INSTALL)
        return None
    theirs = getattr(conf, "oslo_messaging_tracing", None)
    return Tracer(rpc=not getattr(theirs, "tracing_enabled", False))
