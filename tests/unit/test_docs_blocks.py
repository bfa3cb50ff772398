# SPDX-License-Identifier: Apache-2.0
"""Every code block of the docs is run, or read by what it is for.

Programs of several pages are in docs/programs, which tests of their own run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import threading
import typing
import urllib.request

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging import Target

import greenamqp
from greenamqp import aio, command, options
from greenamqp.broker import Broker
from greenamqp.command import service

pytest_plugins = ["pytester"]

_TOP = pathlib.Path(__file__).parents[2]
_PAGES = sorted(
    page for page in (_TOP / "docs").rglob("*.rst") if "_build" not in page.parts
)


class Block(typing.NamedTuple):
    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


#: What a block without a language is, by how its first line begins.
_BEGINNINGS = (
    (r"\[\w+\]$", "ini"),
    (r"amqps?://", "url"),
    (r"\$ greenamqp (doctor|migrate) ", "output"),
    (
        r"(\$ |\S*bin/)?(pip|make|greenamqp|oslo-config-generator|tox|python"
        r"|rabbitmqctl|opentelemetry-instrument|apt-get)( |$)|\w+=\S+ \S*python",
        "shell",
    ),
)


def _kind(text: str) -> str:
    first = text.partition("\n")[0]
    if first.startswith("greenamqp broker listening"):
        return "text"
    return next((kind for start, kind in _BEGINNINGS if re.match(start, first)), "text")


def _blocks(page: pathlib.Path) -> typing.Iterator[Block]:
    lines = page.read_text().splitlines()
    name = str(page.relative_to(_TOP))
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        named = re.match(r"\s*\.\. code-block:: (\w+)$", line)
        if named is None and not re.fullmatch(r"\s*(?!\s*\.\. ).*::", line):
            continue
        indent = len(line) - len(line.lstrip())
        begin = at
        while at < len(lines) and (
            not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > indent
        ):
            at += 1
        text = textwrap.dedent("\n".join(lines[begin:at])).strip("\n")
        yield Block(name, begin, named[1] if named else _kind(text), text)


_ALL = [block for page in (*_PAGES, _TOP / "README.rst") for block in _blocks(page)]


def _of(*kinds: str) -> typing.Any:
    found = [block for block in _ALL if block.kind in kinds]
    return pytest.mark.parametrize("block", found, ids=str)


#: What is for people alone, by page: how many such blocks it has.
_FOR_PEOPLE = {
    "docs/architecture.rst": 2,  # the floors, which test_floors.py reads
    "docs/broker.rst": 1,
    "docs/buses/artemis.rst": 1,  # tried in the tests on that bus
    "docs/buses/rabbitmq.rst": 1,  # an error, likewise
    "docs/deployment.rst": 3,  # for systemd, kolla, podman
    "docs/devstack.rst": 2,  # for devstack
    "docs/howto.rst": 1,  # a router's own configuration
    "docs/reliability.rst": 1,
    "docs/security.rst": 1,  # of a bus, as test_tokens.py has it
    "README.rst": 2,  # the programs, which test_docs.py compares
}


def test_no_block_is_left_out():
    kinds = {"python", "console", "shell", "ini", "yaml", "url", "output", "text"}
    assert {block.kind for block in _ALL} <= kinds
    left: dict[str, int] = {}
    for block in _ALL:
        if block.kind == "text":
            left[block.page] = left.get(block.page, 0) + 1
    assert left == _FOR_PEOPLE


# -- commands


def _parses(words: list[str]) -> None:
    """Whether `greenamqp` takes these arguments."""
    with pytest.MonkeyPatch.context() as patched:
        # All but the last step, which would do it.
        for module, _ in command.COMMANDS.values():
            patched.setattr(f"{module}.run", lambda args: 0)
        try:
            command.main(words)
        except (SystemExit, argparse.ArgumentError) as exc:
            raise AssertionError(f"greenamqp {words}") from exc


def _commands(text: str) -> typing.Iterator[list[str]]:
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        line = re.sub(r"(^| )# .*", "", line).removeprefix("$ ").strip()
        line = re.sub(r"\[(.*)\]", "", line) if "[--" in line else line
        # What a command wrote follows it.
        if line and not re.match(r"\d{4}-|\[|\w+ = ", line):
            yield shlex.split(line, posix=True)


_MAKEFILE = (_TOP / "Makefile").read_text()
_TOX = (_TOP / "tox.ini").read_text()


@_of("shell", "console")
def test_commands(block):
    seen = False
    for words in _commands(block.text):
        seen = True
        while "=" in words[0] and not words[0].startswith("-"):
            words.pop(0)  # the environment
        name = words[0].rpartition("/")[2]
        match name:
            case "greenamqp":
                _parses(words[1:])
            case "greenamqp-status":
                assert words[-2:] == ["upgrade", "check"]
            case "make":
                assert re.search(rf"^(\.PHONY:.* )?{words[1]}\b", _MAKEFILE, re.M)
            case "tox":
                assert f"[testenv:{words[words.index('-e') + 1]}]" in _TOX
            case "python" if words[1] == "-m":
                assert importlib.util.find_spec(words[2]) is not None
            case "python" if words[1] == "-c":
                subprocess.run([sys.executable, *words[1:]], check=True)
            case "python":
                assert (_TOP / words[1]).exists()
            case "oslo-config-generator":
                made = subprocess.run(
                    [str(pathlib.Path(sys.executable).parent / name), *words[1:]],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                assert "[oslo_messaging_amqp]" in made.stdout
            case "pip" | "rabbitmqctl" | "apt-get" | "opentelemetry-instrument":
                pass  # somebody else's
            case _:
                raise AssertionError(f"{name} is not known here")
    assert seen


@_of("output")
def test_what_commands_write(block, tmp_path, capsys):
    """As it is shown; what is left out, and what differs each time, is not compared."""
    line, _, shown = block.text.partition("\n")
    words = shlex.split(line.removeprefix("$ "))[1:]
    path = tmp_path / "nova.conf"
    if words[0] == "migrate":
        lines = [""] * 32
        lines[0], lines[29] = "[DEFAULT]", "[oslo_messaging_rabbit]"
        for number, text in re.findall(r"^  (\d+): \[\w+\] (.*)$", shown, re.M):
            lines[int(number) - 1] = text.replace("***", "secret")
        path.write_text("\n".join(lines))
        command.main(["migrate", str(path)])
    else:
        with Broker(users={"nova": "right"}) as bus:
            path.write_text(
                f"[DEFAULT]\ntransport_url = amqp://nova:wrong@127.0.0.1:{bus.port}/\n"
            )
            command.main(["doctor", "--config-file", str(path)])
            shown = shown.replace("bus:5672", f"127.0.0.1:{bus.port}")
    shown = shown.replace("/etc/nova/nova.conf", str(path))
    wanted = re.escape(shown).replace(r"\.\.\.", ".*?")
    wanted = re.sub(r"(\\\s)+\d+\\\.\d\\ ms", r"\\s+[\\d.]+ ms", wanted)
    said = capsys.readouterr().out
    assert re.match(wanted.removesuffix("\n"), said, re.DOTALL), said


# -- configuration


def _read(text: str, folder: pathlib.Path) -> cfg.ConfigOpts:
    path = folder / "service.conf"
    path.write_text(text)
    args = argparse.Namespace(config_file=[str(path)])
    return service.configuration(args)


@_of("ini")
def test_configuration(block, tmp_path):
    """Each option exists, with a value that it may have."""
    conf = _read(block.text, tmp_path)
    sections: dict[str, dict[str, list[str]]] = {}
    cfg.ConfigParser(str(tmp_path / "service.conf"), sections).parse()
    for group, names in sections.items():
        if group == "healthcheck":
            continue  # oslo.middleware's
        for name in names:
            _ = conf[name] if group == "DEFAULT" else conf[group][name]
    if url := sections.get("DEFAULT", {}).get("transport_url"):
        options.check_url(oslo_messaging.TransportURL.parse(conf, url[-1]))


@_of("url")
def test_urls(block, tmp_path):
    conf = _read("", tmp_path)
    for line in block.text.splitlines():
        options.check_url(oslo_messaging.TransportURL.parse(conf, line))


@_of("yaml")
def test_probes(block):
    for command_line in re.findall(r"command: \[(.*)\]", block.text):
        words = [word.strip() for word in command_line.split(",")]
        assert words[0] == "greenamqp"
        _parses(words[1:])


# -- Python


class Endpoint:
    def __init__(self, name: str = "") -> None:
        self.name = name


class Listener:
    def info(self, *_: object) -> None:
        """Takes it."""


def _run(text: str, names: dict[str, typing.Any]) -> None:
    exec(compile(text, "<docs>", "exec"), names)


def _everything(transport: typing.Any, notifying: typing.Any) -> dict[str, typing.Any]:
    """What the pages have said before, by the time that a block comes."""
    return {
        "greenamqp": greenamqp,
        "oslo_messaging": oslo_messaging,
        "aio": aio,
        "Target": Target,
        "Broker": Broker,
        "conf": transport.conf,
        "transport": transport,
        "notification_transport": notifying,
        "target": Target(topic="served", server="one"),
        "compute_nodes": ["cmp1", "cmp2"],
        "Endpoint": Endpoint,
        "endpoints": [Endpoint()],
        "SampleEndpoint": Listener,
        "Watcher": Listener,
        "Meter": Listener,
        "callback": lambda message: None,
    }


def _notify(transport: typing.Any, exchange: str) -> None:
    """On the topic that all blocks listen on."""
    message = {"event_type": "event", "payload": {}, "priority": "info"}
    target = Target(exchange=exchange, topic="notifications.info")
    transport._send_notification(target, {}, message, version=2.0, retry=1)


def _blocking_server(text: str, names: dict[str, typing.Any]) -> None:
    """It dispatches until somebody stops it: the first message, which waits for it."""
    notifying = names["notification_transport"]
    greenamqp.join_consumer_pool(
        notifying, names["callback"], "metering", "notifications.info", "nova"
    ).stop()
    _notify(notifying, "nova")
    names["callback"] = lambda message: names["server"].stop()
    _run(text, names)
    names["server"].wait()


def _coroutine(text: str, names: dict[str, typing.Any]) -> None:
    _run(f"async def main():\n{textwrap.indent(text, '    ')}", names)
    asyncio.run(names["main"]())


def _endless(text: str, names: dict[str, typing.Any]) -> None:
    """The loop over messages ends with its task, when one was shown."""
    shown: list[str] = []

    def show(what: str) -> None:
        shown.append(what)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    @contextlib.asynccontextmanager
    async def subscribe(*args: typing.Any, **options: typing.Any) -> typing.Any:
        async with aio.subscribe(*args, **options) as messages:
            await asyncio.to_thread(_notify, names["notification_transport"], "nova")
            yield messages

    class Module:
        """aio, with a message on its way."""

    Module.subscribe = staticmethod(subscribe)
    with pytest.raises(asyncio.CancelledError):
        _coroutine(text, names | {"aio": Module, "print": show})
    assert shown == ["event"]


_SPECIAL = {
    "docs/asyncio.rst": [_coroutine, _endless],
    "docs/listeners.rst": [_run, _run, _blocking_server, _run],
    "docs/broker.rst": [_run, _run],
    "docs/howto.rst": [_run],
}


def _fragments() -> typing.Iterator[typing.Any]:
    for page, ways in _SPECIAL.items():
        found = [each for each in _ALL if each.page == page and each.kind == "python"]
        assert len(found) == len(ways), page
        for block, way in zip(found, ways, strict=True):
            yield pytest.param(block.text, way, id=str(block))


@pytest.mark.parametrize(("text", "way"), list(_fragments()))
def test_python(text, way, greenamqp_transport, greenamqp_notification_transport):
    names = _everything(greenamqp_transport, greenamqp_notification_transport)
    way(text, names)


def _python(page: str) -> list[str]:
    return [each.text for each in _ALL if each.page == page and each.kind == "python"]


def test_all_python_is_run():
    others = {
        "docs/testing.rst",
        "docs/telemetry.rst",
        "docs/moving.rst",  # the two lines of its program that patch
        "docs/buses/index.rst",  # needs a RabbitMQ; test_buses_tool.py does the same
    }
    with_python = {block.page for block in _ALL if block.kind == "python"}
    assert with_python == others | set(_SPECIAL)
    program = (_TOP / "docs/programs/moving_eventlet.py").read_text()
    assert "\n".join(_python("docs/moving.rst")) in program
    for text in _python("docs/buses/index.rst"):
        compile(text, "<docs>", "exec")


def test_pytest_fixtures(pytester, greenamqp_broker):
    conf, both, suite, without = _python("docs/testing.rst")
    imports = (
        "import greenamqp.transport\nimport oslo_messaging\nimport pytest\n"
        "from oslo_config import cfg\n"
    )
    uses = "\ndef test_it(greenamqp_conf, greenamqp_transport):\n    pass\n"
    pytester.makepyfile(test_conf=imports + conf + uses, test_both=imports + both)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3)
    pytester.makeconftest(imports + suite)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "test_conf.py")
    result.assert_outcomes(passed=2)
    names = {"greenamqp": greenamqp, "oslo_messaging": oslo_messaging}
    with contextlib.closing(_Conf()) as made:
        _run(f"import greenamqp.broker\n{without}", names | {"conf": made.conf})


class _Conf:
    def __init__(self) -> None:
        self.conf = service.configuration(argparse.Namespace(config_file=[]))

    def close(self) -> None:
        self.conf.clear()


def test_metrics_for_prometheus():
    (text,) = _python("docs/telemetry.rst")
    # A port that is free, and what is there then.
    program = text.replace("start_http_server(9464)", "served = start_http_server(0)")
    program += (
        "\nmetrics.get_meter('test').create_counter('tried').add(1)"
        "\nprint(served[0].server_port, flush=True)\ninput()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        port = int(running.stdout.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"tried_total" in answer.read()
        running.communicate("\n")
    assert running.returncode == 0


def test_a_notifier_has_the_exchange_that_was_set_before(greenamqp_broker, tmp_path):
    """The program of the how-to, as it stands but for the port."""
    program = (_TOP / "docs/programs/notify.py").read_text()
    path = tmp_path / "notify.py"
    path.write_text(program.replace("amqp://127.0.0.1:5672", greenamqp_broker.url))
    heard = []
    conf = service.configuration(argparse.Namespace(config_file=[]))
    transport = oslo_messaging.get_notification_transport(
        conf, url=greenamqp_broker.url
    )
    came = threading.Event()

    def callback(message: typing.Any) -> None:
        heard.append(message["event_type"])
        came.set()

    member = greenamqp.join_consumer_pool(
        transport, callback, "pool", "notifications.info", exchange_name="nova"
    )
    try:
        subprocess.run([sys.executable, "-W", "ignore", str(path)], check=True)
        came.wait(30)
    finally:
        member.stop()
        transport.cleanup()
    assert heard == ["instance.create.end"]
