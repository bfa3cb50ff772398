# SPDX-License-Identifier: Apache-2.0
"""Where a connection is in its life; the table of transitions is the room's."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where the connection is in its life."""

    IDLE = "idle"
    CONNECTING = "connecting"
    OPENING = "opening"
    UP = "up"
    WAITING = "waiting"
    CLOSED = "closed"
