# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the code does, where that can be compared."""

import ast
import functools
import pathlib
import re
import textwrap

import pytest

from tests import features

_TOP = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["server", "client"])
def test_the_readme_has_the_program(name):
    program = (_TOP / f"docs/programs/{name}.py").read_text()
    license_line, _, program = program.partition("\n")
    assert license_line.startswith("# SPDX")
    assert textwrap.indent(program, "    ") in (_TOP / "README.rst").read_text()


def test_the_table_of_buses_has_every_feature():
    """It is made by a command, and has to be made again when features change."""
    page = (_TOP / "docs/buses/matrix.rst").read_text()
    for text in features.FEATURES.values():
        assert f"\n   * - {text}\n" in page


# -- the messages that the troubleshooting page begins from

#: Texts within our messages that are OpenSSL's or the operating system's.
_FOREIGN = (
    "unable to get local issuer certificate",
    "self-signed certificate in certificate chain",
    "Hostname mismatch, certificate is not valid for",
    "IP address mismatch",
    "certificate has expired",
    "certificate is not yet valid",
    "Connection refused",
    "Invalid IPv6 URL",
)

#: What stands where the code puts a value; in the page that is in italics.
_VALUE = "\0"


def _quoted() -> list[str]:
    """Each message of the page: what is in italics there is one _VALUE here."""
    lines = (_TOP / "docs/troubleshooting.rst").read_text().splitlines()
    heads = [
        line
        for line, below in zip(lines, lines[1:], strict=False)
        if "``" in line and not line.startswith((" ", "*")) and below[:4] == "    "
    ]
    messages = []
    for head in heads:
        # What is set apart by a comma outside of quotes is another message.
        for text in re.split(r"(?<=``), (?=``)", head):
            text = re.sub(r"(?<!`)\*[^*]+\*|\.\.\.", _VALUE, text)
            messages.append(text.replace("\\ ", "").replace("``", "").strip())
    return messages


@functools.cache
def _texts() -> set[str]:
    """The texts of the code, cut where a value is put in."""
    found: set[str] = set()
    for path in (_TOP / "greenamqp").rglob("*.py"):
        tree = ast.parse(path.read_text())
        # An f-string's texts are nodes of their own.
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.split(r"%[srgd]|%\.\d+f|\{\w*\}", node.value))
    return {text.strip() for text in found}


@functools.cache
def _sentences() -> list[str]:
    """Those of several words, longest first: single ones are in everything."""
    return sorted((text for text in _texts() if " " in text), key=len, reverse=True)


def test_there_are_messages_on_the_page():
    assert len(_quoted()) > 40


@pytest.mark.parametrize("message", _quoted())
def test_a_quoted_message_is_one_that_the_code_writes(message):
    rest = message
    for text in (*_FOREIGN, *_sentences()):
        # The page may quote a part of a text, too.
        for part in rest.split(_VALUE):
            if len(part.split()) > 1 and part.strip() in text:
                rest = rest.replace(part, _VALUE)
        rest = rest.replace(text, _VALUE)
    # Left are single words between values; those are in the code as well.
    assert all(len(part.split()) < 4 for part in rest.split(_VALUE))
    assert set(_words(rest)) <= {word for text in _texts() for word in _words(text)}


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]{4,}", text)
