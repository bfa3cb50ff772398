# SPDX-License-Identifier: Apache-2.0
"""The table of message bus by feature, made of what runs wrote down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import features
from tests.integration import matrix, recorder, results
from tests.integration.results import Cell, Report, Results, Verdict
from tests.integration.rows import ROWS

WORKS = Report("works", "passed", proves=("pools",))
FAILS = Report("a.py::fails", "failed", proves=("pools",))
LACKING = Report("lacking", "skipped", "no queue", ("pools",), lacks="pools")
LACKING_MORE = Report("lacking", "skipped", "no AMQP 1.0", ("pools",), lacks="amqp")
ELSEWHERE = Report("elsewhere", "skipped", "another world", ("pools",))
REFUSAL = Report("refusal", "passed", refuses=("pools",))
NO_REFUSAL = Report("no refusal", "failed", refuses=("pools",))


@pytest.mark.parametrize(
    ("tests", "cell"),
    [
        ([], Cell(Verdict.NOT_RUN)),
        ([ELSEWHERE], Cell(Verdict.NOT_RUN)),
        ([WORKS, ELSEWHERE], Cell(Verdict.WORKS)),
        ([WORKS, LACKING], Cell(Verdict.WORKS)),
        ([WORKS, FAILS], Cell(Verdict.FAILED, "fails")),
        ([LACKING, LACKING_MORE], Cell(Verdict.CANNOT, "no queue")),
        ([LACKING_MORE, ELSEWHERE], Cell(Verdict.NOT_RUN, "no AMQP 1.0")),
        ([LACKING, REFUSAL], Cell(Verdict.REFUSED, "no queue")),
        ([LACKING, NO_REFUSAL], Cell(Verdict.FAILED, "no refusal")),
        ([Report("other", "failed", proves=("call",))], Cell(Verdict.NOT_RUN)),
    ],
)
def test_what_tests_say_of_a_feature(tests, cell):
    assert Results(tests={"functional threads": tests}).cell("pools") == cell


def test_one_world_is_enough_to_fail():
    found = Results(tests={"threads": [WORKS], "eventlet": [FAILS]})
    assert found.cell("pools").verdict is Verdict.FAILED
    assert found.failed()


def test_a_bus_that_does_not_start_fails():
    assert Results(broken={"bus": "no such host"}).failed()
    assert not Results(tests={"threads": [WORKS, LACKING]}).failed()


SUITE = """
import pytest

@pytest.mark.proves("call")
def test_passes():
    pass

@pytest.mark.proves("call", "cast")
def test_fails():
    assert False

@pytest.mark.refuses("pools")
class TestRefusal:
    def test_skips(self):
        pytest.skip("not here")

@pytest.fixture
def lacking(request):
    request.node.user_properties.append(("lacks", ("store", "it keeps nothing")))
    pytest.skip("store: it keeps nothing")

@pytest.mark.proves("store")
def test_lacks(lacking):
    pass

@pytest.fixture
def bad_end():
    yield
    raise OSError

def test_teardown_fails(bad_end):
    pass

def test_crash():
    import os, pathlib
    if pathlib.Path("crash").exists():
        os._exit(9)
"""


@pytest.fixture
def record(tmp_path):
    """Runs a suite with the recorder; returns the file and the exit status."""
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  proves\n  refuses\n")
    path = tmp_path / "record.jsonl"
    root = str(features.__file__).rpartition("/tests/")[0]

    def run():
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.integration.recorder"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": root, recorder.ENV: str(path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return path, done.returncode, done.stdout

    run.folder = tmp_path
    return run


def test_what_is_written_down(record):
    path, status, said = record()
    tests, wrong = results.load_run(path, status)
    assert wrong == "", said
    assert tests == [
        Report("test_it.py::test_passes", "passed", "", ("call",)),
        Report("test_it.py::test_fails", "failed", "", ("call", "cast")),
        Report(
            "test_it.py::TestRefusal::test_skips", "skipped", "not here", (), ("pools",)
        ),
        Report(
            "test_it.py::test_lacks",
            "skipped",
            "it keeps nothing",
            ("store",),
            lacks="store",
        ),
        Report("test_it.py::test_teardown_fails", "failed"),
        Report("test_it.py::test_crash", "passed"),
    ]


def test_a_run_that_crashes_leaves_what_it_did(record):
    (record.folder / "crash").touch()
    path, status, _ = record()
    tests, wrong = results.load_run(path, status)
    assert len(tests) == 5
    assert wrong == "the process ended with 9 in the middle"


def test_a_feature_that_is_not_in_the_table(record):
    (record.folder / "test_it.py").write_text(SUITE.replace('"call"', '"cell"'))
    path, status, said = record()
    assert "no such features: ['cell']" in said
    assert results.load_run(path, status)[1]


def test_kept_results_are_the_same(tmp_path):
    assert results.load(tmp_path) is None
    found = Results("RabbitMQ 4.0.5", broken={"oslo": "gone"})
    found.add("threads", [WORKS, LACKING], "crashed")
    results.save(tmp_path, found)
    assert results.load(tmp_path) == found


def test_a_new_run_takes_the_place_of_the_old_one():
    found = Results()
    found.add("threads", [FAILS], "crashed")
    found.add("eventlet", [WORKS], "")
    assert found.failed() and not found.failed(["eventlet"])
    found.add("threads", [WORKS], "")
    assert not found.failed() and set(found.tests) == {"threads", "eventlet"}


def test_the_table():
    router = ROWS["qpid-dispatch-router"]
    rabbitmq, imitated = Results("RabbitMQ 4.0.5"), Results("a router 1")
    rabbitmq.add("threads", [WORKS], "")
    imitated.add("threads", [LACKING, REFUSAL], "")
    table = [(ROWS["rabbitmq-4.0"], rabbitmq), (router, imitated)]
    pools = features.FEATURES["pools"]
    text = matrix.as_text(table).splitlines()
    (line,) = (line for line in text if line.startswith(pools))
    assert line.split()[-2:] == ["works", "refused"]
    assert f"  {pools}: refused: no queue" in text
    page = matrix.as_page(table, "make it")
    assert f"   * - {pools}\n     - works\n     - refused\n" in page
    assert f"* {pools}: no queue" in page
    assert "made by `make it`" in page
    assert "RabbitMQ 4.0.5\n     - threads\n     - 1\n     - 0\n     - 0" in page
