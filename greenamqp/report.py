# SPDX-License-Identifier: Apache-2.0
"""A section of the Guru Meditation Report, where the process has one (oslo.reports).

A service sets its report up before it uses a transport; so with the first use of one
the section is registered, if oslo.reports was imported by then.  It shows for each
transport what :func:`greenamqp.describe` has.
"""

from __future__ import annotations

import sys
import typing

TITLE = "Message bus (greenamqp)"

_MODULE = "oslo_reports.guru_meditation_report"


class Described(typing.Protocol):
    """A driver."""

    def describe(self) -> dict[str, typing.Any]:
        """See :func:`greenamqp.describe`."""


def register(drivers: typing.Callable[[], typing.Sequence[Described]]) -> None:
    """Have the section in each report from now on.  Once is enough.

    :param drivers: those of the process; called in the signal handler that makes the
        report
    """
    module = sys.modules.get(_MODULE)
    if module is None:
        return
    # The one that services set up; each has a list of its own.
    reports = module.TextGuruMeditation
    sections = getattr(reports, "persistent_sections", ())
    if any(title == TITLE for title, _ in sections):
        return

    def section() -> typing.Any:
        from oslo_reports.models import with_default_views

        return with_default_views.ModelWithDefaultViews(
            data={"transports": [driver.describe() for driver in drivers()]}
        )

    reports.register_section(TITLE, section)
