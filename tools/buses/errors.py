# SPDX-License-Identifier: Apache-2.0
"""The one error that the tool raises on purpose: its text is for a reader."""


class BusError(Exception):
    """A bus could not be installed, started or reached; the text says why."""
