# SPDX-License-Identifier: Apache-2.0
"""The greenamqp command itself."""

import argparse
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from greenamqp import command
from greenamqp.broker import Broker
from greenamqp.command import broker
from greenamqp.outbox import Directory, Letter, Store


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
    assert f"argument {arguments[0]}: '{arguments[1]}' is not a number " in shown
    assert ("to 86400" if arguments[0] == "--duration" else "to 1000000") in shown


@pytest.mark.parametrize(
    ("option", "wrong", "allowed"),
    [
        ("--port", "99999", "0 to 65535"),
        ("--port", "-1", "0 to 65535"),
        ("--port", "amqp", "0 to 65535"),
        ("--idle-timeout", "-1", "0 to 4294967"),
        ("--idle-timeout", "nan", "0 to 4294967"),
        ("--idle-timeout", "inf", "0 to 4294967"),
        ("--idle-timeout", "4294968", "0 to 4294967"),
        ("--idle-timeout", "long", "0 to 4294967"),
        ("--max-message-size", "0", "1 to 9223372036854775807"),
        ("--max-message-size", "8589934592G", "1 to 9223372036854775807"),
        ("--max-queue-messages", "-5", "1 to 2147483647"),
        ("--max-queue-bytes", "-1k", "1 to 9223372036854775807"),
        ("--max-memory", "M", "1 to 9223372036854775807"),
        ("--max-connections", "0", "1 to 2147483647"),
        ("--max-links", "many", "1 to 2147483647"),
        ("--max-sessions", "65537", "1 to 65536"),
    ],
)
def test_numbers_of_the_broker_have_a_range(option, wrong, allowed, capsys):
    with pytest.raises(SystemExit) as exited:
        command.main(["broker", f"{option}={wrong}"])
    assert exited.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: greenamqp broker")
    last = shown.splitlines()[-1]
    assert f"argument {option}: '{wrong}'" in last and f"from {allowed}" in last


def test_every_number_of_the_broker_has_a_range(capsys):
    parser = argparse.ArgumentParser()
    broker.add_arguments(parser)
    numbers = [
        action
        for action in parser._actions
        if isinstance(action.default, int | float) and action.nargs != 0
    ]
    assert len(numbers) > 8
    for action in numbers:
        with pytest.raises(SystemExit):
            parser.parse_args([f"{action.option_strings[0]}=-7"])
        assert "'-7' is not a" in capsys.readouterr().err
        assert parser.parse_args([f"{action.option_strings[0]}=7"])


#: What a command cannot do without.
_REQUIRED = {
    "call": ["topic", "method"],
    "cast": ["topic", "method"],
    "notify": ["topic", "event"],
    "listen": ["topic"],
    "state": ["1"],
    "migrate": ["nova.conf"],
}


@pytest.mark.parametrize("name", list(command.COMMANDS))
def test_an_unknown_option_shows_the_usage_of_its_command(name, capsys):
    with pytest.raises(SystemExit) as exited:
        command.main([name, *_REQUIRED.get(name, []), "--nosuch"])
    assert exited.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: greenamqp {name} ")
    assert shown.endswith("unrecognized arguments: --nosuch\n")


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
    assert "no message bus at 127.0.0.1:1: cannot connect" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--version"], ["outbox", "count", "."]])
def test_a_reader_that_goes_is_no_error_to_speak_of(arguments, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "greenamqp", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_full_disk_is_named():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "greenamqp", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 1
    assert ended.stderr == "greenamqp: No space left on device\n"


def test_what_the_locale_has_no_letters_for_is_shown(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(command, "_run", lambda argv: print("grüß \ud800") or 0)
    assert command.main([]) == 0
    assert shown.buffer.getvalue() == b"gr\\xfc\\xdf \\ud800\n"


def test_standard_output_may_be_closed():
    done = subprocess.run(
        [sys.executable, "-m", "greenamqp", "--help"],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(1),
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_what_waits_for_another_bus_is_told(tmp_path, capsys):
    there = Directory(str(tmp_path / "outbox"), ["h:5672"], None, None)
    there.make()
    claim = there.new()
    store = Store(claim.path, there.bus)
    store.add([Letter("id", '["e", "t", null, false]', "[{}, {}, true]")])
    store.close()
    claim.release()
    with Broker() as other:
        given = ["--url", f"amqp://127.0.0.1:{other.port}"]
        assert command.main(["outbox", "send", str(tmp_path / "outbox"), *given]) == 1
    shown = capsys.readouterr()
    assert shown.out == "0 notifications sent\n"
    assert "1 wait for another message bus, or exchange: h:5672/" in shown.err


def test_the_outbox_command_says_no_more_than_it_has_to(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "greenamqp", "outbox", "count", str(tmp_path)],
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n", b"")


@pytest.mark.parametrize("name", ["self", "ctxt", "method"])
def test_arguments_that_no_client_can_send(name, capsys):
    with pytest.raises(SystemExit) as exited:
        command.main(["call", "topic", "method", f'{{"{name}": 1}}'])
    assert exited.value.code == 2
    assert repr(name) in capsys.readouterr().err


def test_a_configuration_that_is_no_text_is_named(tmp_path, capsys):
    path = tmp_path / "service.conf"
    path.write_bytes(b"\xd0\xff")
    good = tmp_path / "good.conf"
    good.write_text("")
    files = ["--config-file", str(good), "--config-file", str(path)]
    assert command.main(["call", *files, "topic", "method"]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("said", [b"[]", b"{}", b"1", b'{"pid": 5}'])
def test_a_socket_of_another_program_says_nothing(said, tmp_path, capsys):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "5.1.sock"))
        listening.listen()

        def answer():
            client, _ = listening.accept()
            client.sendall(said)
            client.close()

        thread = threading.Thread(target=answer)
        thread.start()
        given = ["--state-dir", str(tmp_path), "--format", "json"]
        assert command.main(["top", "--once", *given]) == 0
        thread.join()
    assert json.loads(capsys.readouterr().out) == []


def test_top_on_a_full_disk(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "greenamqp", "top", "--state-dir", tmp_path],
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1
    assert b"No space left" in done.stderr
