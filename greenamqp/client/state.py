# SPDX-License-Identifier: Apache-2.0
"""Where the connection is in its life, and the names that its links have."""

from __future__ import annotations

import enum

# Prefix of the names of links, as the predecessor's: operators know them.
LINK_NAME = "openstack.org/om"


class State(enum.Enum):
    """Where the connection is in its life; see the table in the package."""

    IDLE = "idle"
    CONNECTING = "connecting"
    OPENING = "opening"
    UP = "up"
    WAITING = "waiting"
    CLOSED = "closed"
