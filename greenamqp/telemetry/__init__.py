# SPDX-License-Identifier: Apache-2.0
"""What a process tells of itself by OpenTelemetry, where the options ask for it.

``tally`` counts what becomes of messages, ``sample`` chooses which durations are
recorded, ``states`` makes numbers of what :func:`greenamqp.describe` has, and
``instruments`` shows them; ``traces`` makes spans.  Only the last two import
OpenTelemetry, and only when a transport is made or used whose options ask for it.
"""

from __future__ import annotations

import logging
import typing

from greenamqp.client import Client
from greenamqp.telemetry.states import Described

if typing.TYPE_CHECKING:
    from greenamqp.telemetry.traces import Tracer

LOG = logging.getLogger(__name__)

_INSTALL = "pip install greenamqp[telemetry]"


def measure(client: Client, outbox: Described | None) -> None:
    """Have a transport's client among those that are measured, until it is closed.
    Does not block, and raises nothing: what is in the way is logged.  From any thread.

    :param outbox: where its notifications wait, or None
    """
    try:
        from greenamqp.telemetry.instruments import INSTRUMENTS
    except ImportError as exc:
        LOG.warning("metrics: %s: nothing is measured; %s", exc, _INSTALL)
        return
    INSTRUMENTS.add(client, outbox)


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
