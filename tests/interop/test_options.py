# SPDX-License-Identifier: Apache-2.0
"""The options of both drivers, compared as oslo.config has them."""

import inspect
import json
import pathlib
import re
import subprocess

import pytest

from greenamqp import options
from tests.unit.test_options import DEVIATIONS, PREDECESSOR

MIGRATION = pathlib.Path(__file__).parents[2] / "docs" / "migration.rst"


def described(opt) -> dict:
    """An option of ours, or of the predecessor's."""
    return {
        "kind": type(opt).__name__,
        "default": opt.default,
        "min": getattr(opt.type, "min", None),
        "max": getattr(opt.type, "max", None),
        "secret": bool(opt.secret),
        "old names": sorted(
            f"{old.group}/{old.name or opt.name}" for old in opt.deprecated_opts
        ),
    }


#: Prints the predecessor's options; run by its own Python.
DUMP = f"""
import inspect
import json
from oslo_messaging._drivers.amqp1_driver import opts
{inspect.getsource(described)}
print(json.dumps({{opt.dest: described(opt) for opt in opts.amqp1_opts}}))
"""


@pytest.fixture(scope="module")
def theirs(pythons):
    return json.loads(subprocess.check_output([pythons["old"], "-c", DUMP], text=True))


@pytest.fixture(scope="module")
def ours():
    return {opt.dest: described(opt) for opt in options.OPTIONS}


@pytest.fixture(scope="module")
def deviations():
    """The options that the migration page names, with what it says of each."""
    table = MIGRATION.read_text().partition("What differs\n")[2]
    table = table.partition("Connections:\n")[0]
    rows = re.split(r"\n   \* - ", table)[2:]  # the first is the heading
    return {
        name: row
        for row in rows
        for name in re.findall(r"``(\w+)``", row.partition("\n")[0])
    }


def test_every_option_is_there_and_differs_only_where_that_is_said(
    theirs, ours, deviations
):
    assert len(theirs) == len(PREDECESSOR)
    differ = {
        name: {
            key: (value, ours[name][key])
            for key, value in their.items()
            if value != ours[name][key]
        }
        for name, their in theirs.items()
    }
    differ = {name: found for name, found in differ.items() if found}
    # Nothing but defaults, but for bounds beyond which the predecessor made no sense.
    for found in differ.values():
        before, _now = found.pop("max", (None, None))
        assert before is None
    differ = {name: found for name, found in differ.items() if found}
    assert differ.pop("idle_timeout") == {"default": (0, 30), "min": (None, 0)}
    assert differ.pop("default_notify_timeout") == {"default": (30, None)}
    assert differ.pop("default_reply_retry") == {"default": (0, -1)}
    assert {name: set(found) for name, found in differ.items()} == {
        "pre_settled": {"default"}
    }
    assert differ["pre_settled"]["default"] == (
        ["rpc-cast", "rpc-reply"],
        DEVIATIONS["pre_settled"],
    )
    for name in DEVIATIONS:
        assert "default" in deviations[name]
        assert deviations[name].count("\n     - ") == 2  # what, and why


def test_the_table_of_the_ordinary_tests_is_right(theirs):
    for name, (kind, default, minimum, old_group) in PREDECESSOR.items():
        their = theirs[name]
        assert their["kind"] == kind.__name__
        assert their["default"] == default
        assert their["min"] == minimum
        assert their["old names"] == ([f"amqp1/{name}"] if old_group else [])


def test_every_row_of_the_migration_page_is_an_option(theirs, ours, deviations):
    assert set(deviations) <= set(ours)
    assert set(DEVIATIONS) <= set(deviations)
    # New, and it changes what happens by default.
    assert set(deviations) - set(theirs) == {"silent_host_timeout"}
