# SPDX-License-Identifier: Apache-2.0
"""The table of message bus by feature: as text, and as a page of the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from tests import features
from tests.integration.results import Cell, Results, Verdict
from tests.integration.rows import Row

#: The rows that have results, each with them.
Table = list[tuple[Row, Results]]

_PAGE = """\
What works where
================

.. This page was made by `{command}`. Do not edit it.

What the tests found, on running buses: every entry comes from tests that ran.

*works*
    what tests it passed
*refused*
    the bus cannot do it, and whoever asks for it gets an error that says so
*cannot*
    the bus cannot do it, and there is nobody to be told: see the reasons below
*not run*
    no test of it has run on this bus; where one would need something else that is not
    there, the reasons below say what
*FAILED*
    a test of it did not pass

"""


def reasons(table: Table) -> dict[str, list[tuple[str, Cell]]]:
    """By title of a bus: the features that do not work there, with what is known."""
    found = {}
    for row, results in table:
        cells = [(text, results.cell(name)) for name, text in features.FEATURES.items()]
        told = [(text, cell) for text, cell in cells if cell.reason]
        if told:
            found[row.title] = told
    return found


def as_text(table: Table) -> str:
    """For a terminal: features down, buses across, reasons beneath."""
    wide = max(map(len, features.FEATURES.values()))
    widths = [max(len(row.title), 7) for row, _ in table]
    lines = [" " * wide + "".join(f"  {row.title}" for row, _ in table)]
    for group, texts in features.GROUPS.items():
        lines += ["", group]
        for name, text in texts.items():
            line = f"{text:{wide}}"
            for (_, results), width in zip(table, widths, strict=True):
                line += f"  {results.cell(name).verdict.value:{width}}"
            lines.append(line.rstrip())
    for title, told in reasons(table).items():
        lines += ["", f"{title}:"]
        lines += [f"  {text}: {c.verdict.value}: {c.reason}" for text, c in told]
    for row, results in table:
        lines += [
            f"{row.title}: {run}: {wrong}" for run, wrong in results.broken.items()
        ]
    return "\n".join(lines) + "\n"


def as_page(table: Table, command: str) -> str:
    """For the documentation, in reStructuredText."""
    page = _PAGE.format(command=command)
    for group, texts in features.GROUPS.items():
        page += "\n".join(_group(group, texts, table)) + "\n\n"
    page += "\n".join(_reasons(table)) + "\n\n"
    page += "\n".join(_runs(table)) + "\n"
    return page


def _group(group: str, texts: dict[str, str], table: Table) -> Iterator[str]:
    yield group
    yield "-" * len(group)
    yield ""
    rows = [["", *(row.title for row, _ in table)]]
    for name, text in texts.items():
        rows.append([text, *(r.cell(name).verdict.value for _, r in table)])
    yield from _list_table(rows)


def _list_table(rows: list[list[str]]) -> Iterator[str]:
    yield ".. list-table::"
    yield "   :header-rows: 1"
    yield "   :stub-columns: 1"
    yield ""
    for cells in rows:
        for number, cell in enumerate(cells):
            lead = "   * - " if number == 0 else "     - "
            yield (lead + _literal(cell)).rstrip()


def _literal(text: str) -> str:
    """Text that reStructuredText shows as it is."""
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("`", "\\`")


def _reasons(table: Table) -> Iterator[str]:
    yield "Why not"
    yield "-------"
    for title, told in reasons(table).items():
        yield ""
        yield f"**{_literal(title)}**"
        yield ""
        for text, cell in told:
            if cell.verdict in (Verdict.FAILED, Verdict.NOT_RUN):
                text = f"{text} ({cell.verdict.value.lower()})"
            line = f"* {_literal(text)}: {_literal(cell.reason)}"
            yield textwrap.fill(line, 88, subsequent_indent="  ")


def _runs(table: Table) -> Iterator[str]:
    yield "What was run"
    yield "------------"
    yield ""
    rows = [["", "bus", "suite and world", "passed", "failed", "skipped", "on"]]
    for row, results in table:
        product = results.product
        title = row.title
        for run, counts in results.counts().items():
            numbers = [str(counts[x]) for x in ("passed", "failed", "skipped")]
            rows.append([title, product, run, *numbers, results.dates[run]])
            title = product = ""
        for run, wrong in results.broken.items():
            rows.append([title, product, f"{run}: {wrong}", "", "", "", ""])
            title = product = ""
    yield from _list_table(rows)
