# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs to each subcommand, and what is said: the cause, never a traceback."""

import pathlib
import re

import pytest

from tests import wrong_input

PAGE = pathlib.Path(__file__).parents[2] / "docs/wrong_input.rst"


@pytest.mark.parametrize(
    ("given", "said"),
    wrong_input.WRONG,
    ids=[each for each, _ in wrong_input.WRONG],
)
def test_its_cause_is_named(given, said):
    status, shown = wrong_input.give(given)
    assert status in (1, 2), shown
    assert "Traceback" not in shown
    # A usage may stand before it; the cause is in the last line.
    assert re.search(said, shown.splitlines()[-1]), shown
    assert "``" + f"greenamqp {given}".rstrip() + "``\n" in PAGE.read_text()
