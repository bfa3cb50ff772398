# SPDX-License-Identifier: Apache-2.0
"""The README shows the programs that the documentation has as files."""

import pathlib
import textwrap

import pytest

_TOP = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_readme_has_the_program(name):
    program = (_TOP / f"docs/programs/{name}.py").read_text()
    license_line, _, program = program.partition("\n")
    assert license_line.startswith("# SPDX")
    assert textwrap.indent(program, "    ") in (_TOP / "README.rst").read_text()
