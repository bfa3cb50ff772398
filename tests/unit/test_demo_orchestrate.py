# SPDX-License-Identifier: Apache-2.0
"""The demo's parent process, with scripted processes in place of the real roles.

The scripts speak the roles' protocol and send no message anywhere: each stream has
the same few messages, and the receivers report them when they are told to stop. So
a fault can be put in exactly where the parent has to find it.
"""

import io
import json
import re
import socket

import pytest
import trustme

from greenamqp.broker import Broker
from greenamqp.broker.settings import Settings
from greenamqp.command.demo import orchestrate, plan, probe, processes, report

_SCRIPT = """
import json, socket, sys

from greenamqp.command.demo import plan

name, kind, of, fault = sys.argv[1:5]
channel = socket.socket(fileno=int(sys.argv[-1]))
EACH = range(6)

def say(**message):
    channel.sendall(json.dumps(message).encode() + b"\\n")

def report(sent=(), got=(), events=()):
    say(type="report", sent=sent, got=got, latencies={}, events=dict(events))

def start():
    streams = [stream for stream, _ in plan.streams()]
    if kind == "publisher":
        streams = [plan.notify_stream(of)]
    else:
        streams = [s for s in streams if s.split("/")[1] == name]
    failed = [5] if fault == "failed send" and name == "client-1" else []
    report(sent=[(stream, len(EACH), failed) for stream in streams])

def stop():
    got = []
    for stream, receivers in plan.streams():
        for receiver in receivers:
            numbers = list(EACH)
            if receiver in plan.POOLS:
                if kind != "agent" or receiver != of:
                    continue
                workers = plan.worker_names(of)
                numbers = numbers[workers.index(name)::len(workers)]
            elif kind != "server":
                continue
            got.append((stream, receiver, numbers))
    if fault == "lost" and name == "metering-2":
        got[0][2].pop()
    if fault == "doubled" and name == "audit-1":
        got[2][2].append(3)
    report(got=got)

if fault == "dies early" and name == "audit-1":
    sys.exit("cannot go on")
say(type="ready")
for line in channel.makefile():
    command = json.loads(line)["type"]
    if fault == "dies late" and name == "client-2" and command == "pause":
        sys.exit("cannot go on")
    if command == "start":
        start()
    elif command == "pause" and kind == "publisher":
        pass
    elif command == "mark" and fault == "left over" and of == "nova":
        report(got=[(plan.notify_stream("nova"), "audit", [2])])
    elif command == "stop":
        stop()
    say(type="did", command=command)
    if command == "stop":
        break
"""

# The inspector is done when it has seen all markers, which is after the publishers
# sent them; the script has no way to know, so it says so at once.
_READY = 'say(type="ready")\n'
_INSPECTOR = _READY + 'if kind == "inspector": say(type="finished")\n'


@pytest.fixture
def bus():
    """A message bus, where nothing but the demo's first look arrives."""
    with Broker("127.0.0.1", 0) as broker:
        yield broker.url


@pytest.fixture
def run_demo(bus, monkeypatch):
    """Run the demo with a fault; returns (went well, what was shown, demo)."""
    monkeypatch.setattr(orchestrate, "_QUIET", 0.5)
    demos = []

    def run(fault=""):
        def command(name, kind, run, of=""):
            script = _SCRIPT.replace(_READY, _INSPECTOR)
            if fault == "no markers":
                script = _SCRIPT
            return ["-c", script, name, kind, of, fault]

        monkeypatch.setattr(plan, "role_command", command)
        out = io.StringIO()
        demo = orchestrate.Demo(
            url=bus,
            duration=0.05,
            rate=1.0,
            hub="threads",
            samples="",
            screen=report.Screen(out),
        )
        demos.append(demo)
        well = demo.run()
        return well, out.getvalue()

    yield run
    for demo in demos:
        demo.close()
        assert all(not _alive(process) for process in demo._crew.processes)


def _alive(process):
    return process.popen.poll() is None


def test_all_is_well(run_demo):
    well, shown = run_demo()
    assert well
    assert "Nothing was lost, nothing was doubled" in shown
    # The scripts' splits: the even numbers to one worker, the odd ones to the other.
    assert "3 + 3" in shown


@pytest.mark.parametrize(
    "fault, line",
    [
        ("lost", "notify/nova at metering: 1 lost (number 5)"),
        ("doubled", "notify/cinder at audit: 1 doubled (number 3)"),
        ("left over", "notify/nova at audit: 1 doubled (number 2)"),
        ("failed send", "not sent"),
        ("no markers", "not all markers came"),
    ],
)
def test_a_fault_is_found(run_demo, fault, line):
    well, shown = run_demo(fault)
    assert not well
    assert line in shown


@pytest.mark.parametrize(
    "fault, name", [("dies early", "audit-1"), ("dies late", "client-2")]
)
def test_a_role_that_dies_ends_the_demo(run_demo, fault, name):
    with pytest.raises(processes.ProcessFailed) as caught:
        run_demo(fault)
    assert f"process {name} ended with status 1" in str(caught.value)
    assert "cannot go on" in str(caught.value)


def failing(url):
    """What the demo says of a bus, before it has started anything."""
    demo = orchestrate.Demo(
        url=url,
        duration=1.0,
        rate=1.0,
        hub="threads",
        samples="",
        screen=report.Screen(io.StringIO()),
    )
    try:
        with pytest.raises(orchestrate.DemoFailed) as caught:
            demo.run()
        assert not demo._crew.processes
    finally:
        demo.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bus_that_is_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    said = failing(f"amqp://127.0.0.1:{port}")
    assert f"no message bus at 127.0.0.1:{port}: " in said
    assert "refused" in said


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("amqp://nova:wrong@{}", {}, "refused the login of user 'nova' by SASL PLAIN"),
        ("amqp://{}", {}, "the peer offers PLAIN"),
        ("amqps://nova:right@{}", {}, "does it speak TLS on this port?|speaks no TLS"),
        ("amqp://nova:right@{}", {"tls": True}, "wants TLS|a port for TLS"),
        ("amqps://nova:right@{}", {"tls": True}, "certificate does not verify"),
        ("amqp://{},nova:wrong@{}", {}, "refused the login.*PLAIN|PLAIN.*refused the"),
    ],
)
def test_a_bus_that_cannot_be_used(url, settings, said, tmp_path, caplog):
    if settings.get("tls"):
        issued = trustme.CA().issue_cert("127.0.0.1")
        certificate = str(tmp_path / "certificate.pem")
        issued.private_key_and_cert_chain_pem.write_to_path(certificate)
        settings = {"tls_cert": certificate, "tls_key": certificate}
    asked = Settings(users={"nova": "right"}, **settings)
    with Broker("127.0.0.1", 0, settings=asked) as broker:
        text = failing(url.replace("{}", f"127.0.0.1:{broker.port}"))
    assert re.search(said, text)
    assert "wrong@" not in text and "right" not in text
    assert "greenamqp.client" not in caplog.text


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("amqp://localhost", [5672]),
        ("amqp://me:pw@a:1,me:pw@b:2/vhost", [1, 2]),
        ("amqp://[::1]:5673", [5673]),
        ("amqps://one,two:5672", [5671, 5672]),
        ("amqp://host/v?ssl=true", [5671]),
    ],
)
def test_the_ports_of_a_url(url, ports):
    assert probe.check_url(url) == ports


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:5672", "wants a transport URL with a host"),
        ("amqp:", "wants a transport URL with a host"),
        ("amqp://", "wants a transport URL with a host"),
        ("amqp:///v", "wants a transport URL with a host"),
        ("amqp://?ssl=true", "wants a transport URL with a host"),
        ("rabbit://host:5672", "rabbit:// is not of this driver"),
        ("amqp://host:port", "--url: Port .* 'port'"),
        ("amqp://host:99999", "--url: Port out of range"),
        ("amqp://me:secret@host:0", "--url: .* port of host .* from 1 to"),
        ("amqp://host/?nosuch=1", "--url: .* no option 'nosuch'"),
        ("amqp://host/?ssl_ca_file=nosuch", "CA file .nosuch. cannot be read"),
    ],
)
def test_a_bad_url_is_named_in_one_line(url, why):
    with pytest.raises(probe.Unusable, match=why) as caught:
        probe.check_url(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_bad_url_starts_nothing():
    assert "nosuch" in failing("amqp://host/?nosuch=1")


def test_the_roles_command_patches_before_anything_else():
    run = plan.Run(id="r", url="u", hub="gevent", rate=1.0)
    *_, option, code, spec = plan.role_command("a", "agent", run, "audit")
    assert option == "-c"
    assert code.startswith("from gevent import monkey; monkey.patch_all(); from")
    assert json.loads(spec)["run"]["id"] == "r"
