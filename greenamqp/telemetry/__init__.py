# SPDX-License-Identifier: Apache-2.0
"""What a process tells of itself by OpenTelemetry, where the options ask for it.

``tally`` counts what becomes of messages, ``sample`` chooses which durations are
recorded, ``states`` makes numbers of what :func:`greenamqp.describe` has, and
``instruments`` shows them.  Only that one imports OpenTelemetry, and only when a
transport is used whose options ask for it.
"""

from __future__ import annotations

import logging

from greenamqp.client import Client
from greenamqp.telemetry.states import Described

LOG = logging.getLogger(__name__)


def measure(client: Client, outbox: Described | None) -> None:
    """Have a transport's client among those that are measured, until it is closed.
    Does not block, and raises nothing: what is in the way is logged.  From any thread.

    :param outbox: where its notifications wait, or None
    """
    try:
        from greenamqp.telemetry.instruments import INSTRUMENTS
    except ImportError as exc:
        LOG.warning(
            "metrics: %s: nothing is measured; pip install greenamqp[telemetry]", exc
        )
        return
    INSTRUMENTS.add(client, outbox)
