# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that writes down what came of each test, and what it proves.

    GREENAMQP_TEST_RECORD=FILE pytest -p tests.integration.recorder ...

FILE gets a line of JSON for each test when the test is over, so that a process that
crashes leaves what it did; the last line has the exit status. :mod:`.results` reads it.
"""

from __future__ import annotations

import json
import os
import typing

import pytest

from tests import features

ENV = "GREENAMQP_TEST_RECORD"

#: The markers of a test that are written down.
_MARKERS = ("proves", "refuses")


class Recorder:
    """Writes to an open text file; everything is there when a hook has returned."""

    def __init__(self, file: typing.TextIO) -> None:
        self._file = file
        self._outcome: dict[str, tuple[str, str]] = {}

    def _write(self, line: dict[str, typing.Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for marker in _MARKERS:
                item.user_properties.append((marker, features.named_by(item, marker)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write({"test": report.nodeid, "outcome": "failed"})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test is what is worst of its setup, call and teardown."""
        outcome, reason = self._outcome.get(report.nodeid, ("passed", ""))
        if report.failed:
            outcome = "failed"
        elif report.skipped and outcome != "failed":
            outcome, reason = "skipped", _reason(report)
        self._outcome[report.nodeid] = (outcome, reason)
        if report.when == "teardown":
            properties = dict(report.user_properties)
            line = {"test": report.nodeid, "outcome": outcome, "reason": reason}
            if "lacks" in properties:
                line["lacks"], line["reason"] = properties["lacks"]
            self._write(line | {marker: properties[marker] for marker in _MARKERS})

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write({"exit": int(exitstatus)})


def _reason(report: pytest.TestReport) -> str:
    where = report.longrepr
    return str(where[2] if isinstance(where, tuple) else where).removeprefix(
        "Skipped: "
    )


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get(ENV)
    if path:
        file = open(path, "w")  # noqa: SIM115 - closed with the process
        config.pluginmanager.register(Recorder(file), "greenamqp-recorder")
        config.add_cleanup(file.close)
