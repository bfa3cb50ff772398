# SPDX-License-Identifier: Apache-2.0
"""Exceptions that both sides can import; imported by name, from this folder."""


class Allowed(Exception):
    """Of a module that clients may allow."""


class Structured(Exception):
    """An exception whose constructor takes more than a text."""

    def __init__(self, code, reason=None):
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
