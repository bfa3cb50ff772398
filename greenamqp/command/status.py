# SPDX-License-Identifier: Apache-2.0
"""``greenamqp-status upgrade check``: what stands in the way of this release, as
OpenStack's other projects say it (oslo.upgradecheck; the extra ``status``).

It connects to nothing: ``greenamqp doctor`` does.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib import metadata

import oslo_messaging
from oslo_config import cfg
from oslo_upgradecheck.upgradecheck import Code, Result, UpgradeCommands
from oslo_upgradecheck.upgradecheck import main as upgradecheck

from greenamqp import options
from greenamqp.command import service
from greenamqp.command.doctor import settings
from greenamqp.transport import register_options


class Checks(UpgradeCommands):
    """The checks of this release.

    :param conf: of the service, once its files are read
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf

    def _driver(self) -> Result:
        found = metadata.entry_points(group="oslo.messaging.drivers", name="amqp")
        others = sorted(
            each.value for each in found if not each.value.startswith("greenamqp.")
        )
        if others:
            return Result(
                Code.FAILURE,
                f"{', '.join(others)} is called amqp as well, and which of the two is "
                "used is chance: install oslo.messaging 15 or later",
            )
        return Result(Code.SUCCESS)

    @functools.cached_property
    def _url(self) -> oslo_messaging.TransportURL | service.Unusable:
        """The transport URL, or why it cannot be used."""
        register_options(self._conf)
        try:
            return service.parse(self._conf, None)
        except service.Unusable as exc:
            return exc

    def _transport_url(self) -> Result:
        if isinstance(self._url, service.Unusable):
            return Result(Code.WARNING, str(self._url))
        return Result(Code.SUCCESS)

    def _options(self) -> Result:
        url = self._url
        if isinstance(url, service.Unusable):
            return Result(Code.WARNING, "not looked at, without a transport URL")
        names = settings.written(self._conf.config_file)
        try:
            values = options.of(self._conf, url)
            found = "; ".join(settings.remarks(values, url, names))
        except (cfg.Error, ValueError) as exc:
            return Result(Code.FAILURE, str(exc))
        return Result(Code.WARNING if found else Code.SUCCESS, found or None)

    _upgrade_checks = (
        ("Driver of amqp://", _driver),
        ("Transport URL", _transport_url),
        ("Options", _options),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 1 for a warning, 2 for a failure."""
    conf = cfg.ConfigOpts()
    arguments = sys.argv[1:] if argv is None else list(argv)
    status: int = upgradecheck(conf, "greenamqp", Checks(conf), argv=arguments)
    return status
