# SPDX-License-Identifier: Apache-2.0
"""Real message buses for these tests, each started when the first test wants it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tools.buses import Bus


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[Bus]:
    """A RabbitMQ of its own, of the kind that ``RABBITMQ`` names, for each module:
    what is declared there, and how, stays."""
    kind = os.environ.get("RABBITMQ", "rabbitmq-4.0")
    with Bus(kind, f"{kind}-tests-{os.getpid()}") as bus:
        yield bus
