# SPDX-License-Identifier: Apache-2.0
"""The demo's child processes: messages, deaths, and none left behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from greenamqp.command.demo import processes

#: Far above what any of this takes, on a busy machine too.
_LIMIT = 60.0

_ROLE = """
import json, socket, sys
channel = socket.socket(fileno=int(sys.argv[-1]))
def say(**message):
    channel.sendall(json.dumps(message).encode() + b"\\n")
def hear():
    return json.loads(reader.readline() or "null")
reader = channel.makefile()
"""

#: A process that says that it is there and then does nothing.
_IDLE = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def crew():
    crew = processes.Crew()
    yield crew
    crew.close()


def until(crew, condition, on_message=lambda process, message: None):
    deadline = time.monotonic() + _LIMIT
    while not condition():
        assert time.monotonic() < deadline
        crew.poll(1.0, on_message)


def test_messages_go_both_ways(crew):
    script = _ROLE + "say(type='hello'); say(type='echo', of=hear())"
    process = crew.start("role", ["-c", script], channel=True)
    heard = []
    until(crew, lambda: heard, lambda p, message: heard.append((p, message)))
    assert heard == [(process, {"type": "hello"})]
    process.dismissed = True
    process.tell({"type": "go", "text": "ä" * 10_000})
    until(crew, lambda: not process.running, lambda p, m: heard.append((p, m)))
    # What it said just before its end is not lost.
    assert heard[1][1] == {"type": "echo", "of": {"type": "go", "text": "ä" * 10_000}}


@pytest.mark.parametrize(
    "end, how",
    [
        ("sys.exit(3)", "ended with status 3"),
        ("sys.exit(0)", "ended with status 0"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_a_process_that_ends_by_itself_is_an_error_with_its_last_words(crew, end, how):
    script = f"import sys; print('last words', flush=True); {end}"
    crew.start("gone", ["-c", script], channel=False)
    with pytest.raises(processes.ProcessFailed) as caught:
        until(crew, lambda: False)
    assert f"process gone {how}" in str(caught.value)
    assert "last words" in str(caught.value)


def test_a_dismissed_process_may_end_well_but_not_badly(crew):
    good = crew.start("good", ["-c", ""])
    good.dismissed = True
    until(crew, lambda: not good.running)
    bad = crew.start("bad", ["-c", "raise SystemExit(5)"])
    bad.dismissed = True
    with pytest.raises(processes.ProcessFailed, match="bad ended with status 5"):
        until(crew, lambda: False)


def test_only_the_last_lines_of_much_output_are_kept(crew):
    process = crew.start("chatty", ["-c", "for n in range(10000): print('line', n)"])
    process.dismissed = True
    until(crew, lambda: not process.running)
    assert process.lines[-1] == "line 9999"
    assert len(process.lines) < 100


def test_telling_a_process_that_has_ended_is_no_error(crew):
    process = crew.start("role", ["-c", ""], channel=True)
    process.dismissed = True
    process.popen.wait()
    for _ in range(3):
        process.tell({"type": "start"})


def test_close_ends_all_even_one_that_ignores_the_request(monkeypatch):
    monkeypatch.setattr(processes, "_TERMINATE_WITHIN", 0.2)
    crew = processes.Crew()
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('deaf', flush=True)\nwhile True: time.sleep(60)"
    )
    deaf = crew.start("deaf", ["-c", stubborn])
    other = crew.start("other", ["-c", _IDLE])
    until(crew, lambda: deaf.lines and other.lines)
    crew.close()
    assert deaf.popen.returncode == -signal.SIGKILL
    assert other.popen.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel for it")
def test_no_process_outlives_a_parent_that_is_killed():
    script = """
import os, sys
from greenamqp.command.demo import processes
crew = processes.Crew()
child = crew.start("child", ["-c", sys.argv[1]])
while not child.lines:
    crew.poll(1.0, lambda process, message: None)
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, _IDLE], capture_output=True, timeout=_LIMIT
    )
    child = int(done.stdout)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + _LIMIT
    while _runs(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        os.sched_yield()


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            # A process that nobody has waited for yet is a zombie.
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_usage_of_a_process():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        before = processes.usage(os.getpid(), frozenset([port]))
        with (
            socket.create_connection(("127.0.0.1", port)),
            listening.accept()[0],
        ):
            ready, leave = threading.Event(), threading.Event()
            thread = threading.Thread(target=lambda: (ready.set(), leave.wait()))
            thread.start()
            assert ready.wait(_LIMIT)
            outgoing = processes.usage(os.getpid(), frozenset([port]))
            incoming = processes.usage(os.getpid(), frozenset([port]), local=True)
            leave.set()
            thread.join()
    assert before.connections == 0
    assert outgoing.connections == incoming.connections == 1
    assert outgoing.fds == before.fds + 2
    assert outgoing.threads >= 2
    # Those of earlier tests may end meanwhile, so it is not counted exactly; ours has
    # ended for Python a moment before it has for the system.
    while processes.usage(os.getpid(), frozenset()).threads >= outgoing.threads:
        pass
    assert outgoing.memory > 1_000_000
    assert outgoing.cpu > 0


def test_usage_of_a_process_that_has_ended():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert processes.usage(ended.pid, frozenset()) is None


def test_the_larger_figures_are_kept():
    one = processes.Usage(threads=1, fds=9, connections=1, memory=5, cpu=0.5)
    other = processes.Usage(threads=2, fds=3, connections=1, memory=6, cpu=0.1)
    assert one.most(other) == processes.Usage(2, 9, 1, 6, 0.5)
    assert one.most(None) == one
