# SPDX-License-Identifier: Apache-2.0
"""Exceptions for endpoints to raise, in a module that a transport may allow."""


class Custom(Exception):
    """An exception that a client knows only when it allows this module."""


class WithArguments(Exception):
    """An exception whose constructor takes more than a text."""

    def __init__(self, code, reason=None):
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
