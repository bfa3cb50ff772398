# SPDX-License-Identifier: Apache-2.0
"""The greenamqp command itself."""

import subprocess
import sys

import pytest

from greenamqp import command


def test_help_names_every_subcommand(capsys):
    with pytest.raises(SystemExit) as exited:
        command.main(["--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    for name, (_, summary) in command.COMMANDS.items():
        assert name in shown
        assert summary.split(",")[0] in " ".join(shown.split())


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--hub", "asyncio"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        command.main(arguments)
    assert exited.value.code == 2
    assert "usage: greenamqp" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--duration", "0"],
        ["--duration", "-1"],
        ["--duration", "soon"],
        ["--duration", "inf"],
        ["--rate", "-1"],
        ["--rate", "nan"],
    ],
)
def test_bad_numbers_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        command.main(["demo", *arguments])
    assert exited.value.code == 2
    shown = capsys.readouterr().err
    assert arguments[0] in shown and f"value: '{arguments[1]}'" in shown


def test_a_subcommand_that_was_not_asked_for_is_not_imported():
    script = """
import sys
from greenamqp.command import main
try:
    main(["demo", "--help"])
except SystemExit as exited:
    assert exited.code == 0
for name in ("greenamqp.command.broker", "proton", "oslo_messaging", "eventlet"):
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_it_runs_as_a_module():
    shown = subprocess.run(
        [sys.executable, "-m", "greenamqp", "--version"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert shown.startswith("greenamqp ")


def test_bad_samples_are_named(tmp_path, capsys):
    samples = tmp_path / "samples"
    samples.write_text("{")
    status = command.main(["demo", "--hub", "threads", "--samples", str(samples)])
    assert status == 1
    assert "samples, line 1" in capsys.readouterr().err


def test_an_unreachable_bus_is_named(capsys):
    # Port 1 of the loopback interface: nobody listens there.
    status = command.main(["demo", "--hub", "threads", "--url", "amqp://127.0.0.1:1"])
    assert status == 1
    assert "no message bus at 127.0.0.1:1" in capsys.readouterr().err
