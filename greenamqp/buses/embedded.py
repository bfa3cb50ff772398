# SPDX-License-Identifier: Apache-2.0
"""The embedded broker in its own role: qpidd's addresses, with queues and policies."""

from __future__ import annotations

from greenamqp.buses.base import Addresser, Bus
from greenamqp.buses.qpidd import LegacyAddresser


class Embedded(Bus):
    """``greenamqp broker``."""

    PRODUCT = "greenamqp"
    has_shared_queues = True
    has_queue_policies = True

    def family(self) -> type[Addresser]:
        return LegacyAddresser
