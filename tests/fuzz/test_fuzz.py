# SPDX-License-Identifier: Apache-2.0
"""Look for trouble."""

import os

from hypothesis import HealthCheck, given, settings

from tests.fuzz import readers, strategies, subject

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))

_thorough = settings(
    max_examples=_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(strategies.CONVERSATIONS)
@_thorough
def test_conversations(example):
    subject.run(example)


@given(strategies.DAMAGE)
@_thorough
def test_damage(example):
    subject.run(example)


@given(strategies.EXAMPLES)
@_thorough
def test_both(example):
    subject.run(example)


@given(strategies.BYTES)
@_thorough
def test_readers(data):
    readers.run(data)
