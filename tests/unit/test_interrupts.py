# SPDX-License-Identifier: Apache-2.0
"""An exception of a signal handler is told from a bug."""

import functools
import signal

import pytest

from greenamqp import interrupts


class Limit(Exception):
    """Of the application's."""


def function(number, frame):
    raise Limit


class Callable:
    def method(self, number, frame):
        raise Limit

    def __call__(self, number, frame):
        self.method(number, frame)


@pytest.fixture
def install():
    before = signal.getsignal(signal.SIGUSR1)
    yield functools.partial(signal.signal, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "handler", [function, Callable().method, Callable(), functools.partial(function)]
)
def test_a_handlers_own(install, handler):
    install(handler)
    with pytest.raises(Limit) as caught:
        signal.raise_signal(signal.SIGUSR1)
    assert interrupts.struck(caught.value)


@pytest.mark.parametrize("handler", [function, signal.SIG_IGN, signal.SIG_DFL])
def test_a_bug(install, handler):
    install(handler)
    with pytest.raises(ZeroDivisionError) as caught:
        1 // 0  # noqa: B018
    assert not interrupts.struck(caught.value)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_no_bug_is_told_by(kind):
    assert interrupts.struck(kind())
