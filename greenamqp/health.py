# SPDX-License-Identifier: Apache-2.0
"""A plugin for the healthcheck of oslo.middleware (entry point ``greenamqp``).

::

    [healthcheck]
    backends = greenamqp

It says that a process is unavailable while a transport that it uses has no connection
to the message bus.
"""

from __future__ import annotations

from oslo_middleware.healthcheck import pluginbase

from greenamqp import inspection


class Healthcheck(pluginbase.HealthcheckBaseExtension):
    """See the module."""

    def healthcheck(self, server_port: int) -> pluginbase.HealthcheckResult:
        """Does not wait for the message bus, and sends nothing."""
        failures = inspection.failures()
        if not failures:
            return pluginbase.HealthcheckResult(available=True, reason="OK")
        return pluginbase.HealthcheckResult(
            available=False,
            reason="no connection to the message bus",
            details="; ".join(failures),
        )
