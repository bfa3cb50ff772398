# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends each subcommand without a traceback, with the exit status 130."""

import signal
import socket
import subprocess
import sys
import time

import cffi
import pytest

from greenamqp.broker import Broker
from greenamqp.command.ending import interrupted_by

#: Far above what any of it takes on a busy machine.
_LIMIT = 120


def interrupt(process):
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=_LIMIT)
    assert process.returncode == 130, said
    assert "Traceback" not in said


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "greenamqp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job would have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("arguments", "stream", "line"),
    [
        (["listen", "topic"], "stdout", "is served"),
        (["tail"], "stderr", "subscribed"),
    ],
)
def test_while_it_serves(arguments, stream, line):
    with Broker() as broker:
        process = command(*arguments, "--url", broker.url)
        try:
            assert line in getattr(process, stream).readline()
            interrupt(process)
        finally:
            process.kill()
            process.communicate()


def test_while_it_sends_many():
    """As call and cast do."""
    with Broker() as broker:
        many = ("notify", "topic", "event", "--rate", "50", "--count", "1000000")
        tail = command("tail", "topic", "--url", broker.url)
        try:
            assert "subscribed" in tail.stderr.readline()
            notify = command(*many, "--url", broker.url)
            try:
                assert "event" in tail.stdout.readline()
                interrupt(notify)
            finally:
                notify.kill()
                notify.communicate()
        finally:
            tail.kill()
            tail.communicate()


@pytest.mark.parametrize(
    "arguments",
    [["call", "topic", "go"], ["doctor"], ["outbox", "send", "."]],
    ids=lambda arguments: arguments[0],
)
def test_while_it_connects(arguments):
    """To what takes connections, and says nothing.  cast and notify are as call."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(_LIMIT)
        url = f"amqp://127.0.0.1:{silent.getsockname()[1]}"
        process = command(*arguments, "--url", url)
        try:
            connection, _ = silent.accept()
            with connection:
                interrupt(process)
        finally:
            process.kill()
            process.communicate()


class _Struck:
    """As an object of proton's that is interrupted while it is taken apart."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def _called_back():
    callback = cffi.FFI().callback("void(void)")(
        lambda: signal.raise_signal(signal.SIGTERM)
    )
    callback()


@pytest.mark.parametrize("strike", [_Struck, _called_back])
def test_what_python_ignores_comes_again(strike, monkeypatch):
    """It comes out of the wait, and not where it was ignored."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), interrupted_by(signal.SIGTERM):
        strike()
        begun = True
        time.sleep(_LIMIT)
    assert begun
    assert before == (
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGALRM),
    )
