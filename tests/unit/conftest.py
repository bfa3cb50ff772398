# SPDX-License-Identifier: Apache-2.0
"""No test asserts how long something takes; hypothesis does, unless told otherwise."""

import pytest
from hypothesis import settings

from greenamqp import chance

settings.register_profile("any time", deadline=None)
settings.load_profile("any time")


@pytest.fixture
def no_chance(monkeypatch):
    """The first host comes first, and no pause is cut short."""
    monkeypatch.setattr(chance, "below", lambda number: 0)
    monkeypatch.setattr(chance, "share", lambda: 1.0)
