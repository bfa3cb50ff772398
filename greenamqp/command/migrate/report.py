# SPDX-License-Identifier: Apache-2.0
"""What a migration comes to, for people and for programs."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from greenamqp.command import formats
from greenamqp.command.migrate import table
from greenamqp.command.migrate.plan import SUFFIX
from greenamqp.command.migrate.reading import Migration, Row


def rendered(
    form: str, migration: Migration, written: typing.Sequence[pathlib.Path]
) -> str:
    """All of it, with names that stay; as a table the settings alone."""
    settings = [dataclasses.asdict(row) for row in migration.rows]
    whole = {
        "ok": not migration.first,
        "settings": settings,
        "first": migration.first,
        **dataclasses.asdict(migration.plan),
        "written": [str(path) for path in written],
    }
    return formats.rendered(form, whole, settings, _COLUMNS)


_COLUMNS = ("file", "line", "where", "option", "value", "verdict", "becomes", "why")


def as_text(migration: Migration, written: typing.Sequence[pathlib.Path]) -> str:
    """All of it for people."""
    lines: list[str] = []
    file = ""
    for row in migration.rows:
        if row.file != file:
            file = row.file
            lines.append(file)
        lines += _row(row)
    for title, sentences in (
        ("Before anything moves:", migration.first),
        ("On the message bus:", migration.plan.bus),
        ("Host by host:", migration.plan.hosts),
        ("And back:", migration.plan.back),
    ):
        if sentences:
            lines += ["", title]
            lines += [f"  {number}. {text}" for number, text in enumerate(sentences, 1)]
    lines.append("")
    if written:
        lines.append(f"written: {', '.join(str(path) for path in written)}")
    elif migration.changes:
        lines.append(f"nothing was written; --write makes CONFIG{SUFFIX}")
    else:
        lines.append("no file has to change")
    return "\n".join(lines)


def _row(row: Row) -> list[str]:
    lines = [f"  {row.line}: {row.where} {row.option} = {row.value}"]
    if row.verdict == table.BECOMES:
        lines += [
            f"      becomes {name} = {value}" for name, value in row.becomes.items()
        ]
        lines.append(f"      {row.why}")
    else:
        lines.append(f"      {_VERDICTS[row.verdict]}: {row.why}")
    return lines


_VERDICTS = {
    table.READ: "stays",
    table.NOTHING: "does nothing here",
    table.FIRST: "TO BE DONE FIRST",
}
