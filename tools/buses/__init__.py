# SPDX-License-Identifier: Apache-2.0
"""Run real message buses for tests, by name and version.

As a library: ``with Bus("artemis") as bus: ... bus.url() ...``.  As a command:
``python -m tools.buses``.  Buses run on loopback ports of their own, several
at once, in a scratch folder; what is missing is installed from Debian's
packages and Maven Central.  Standard library only.
"""

from .bus import BUSES, Bus, instances
from .errors import BusError
from .scratch import Scratch

__all__ = ["BUSES", "Bus", "BusError", "Scratch", "instances"]
