# SPDX-License-Identifier: Apache-2.0
"""What a command found, for people and for programs: ``-f``, as OpenStack's clients
have it.

``json`` and ``yaml`` have all of it, as plain data; ``table`` and ``csv`` the rows that
the command makes of it, with a name above each column.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import typing
from collections.abc import Mapping, Sequence

#: For programs, whatever the command.
PROGRAMS = ("json", "yaml", "csv")

Row = Mapping[str, typing.Any]


def add_argument(
    parser: argparse.ArgumentParser,
    *,
    people: Sequence[str] = ("text", "table"),
    what: str = "how it is shown",
) -> None:
    """Declare the argument ``-f``.

    :param people: the forms for people, the usual one first
    """
    parser.add_argument(
        "-f",
        "--format",
        choices=(*people, *PROGRAMS),
        default=people[0],
        help=f"{what} (%(default)s)",
    )


def rendered(
    form: str, whole: typing.Any, rows: Sequence[Row], columns: Sequence[str]
) -> str:
    """It in one of the forms, without the end of the last line.

    :param form: ``json``, ``yaml``, ``table`` or ``csv``
    :param whole: for json and yaml: plain data; what is none is shown as its text
    :param rows: for table and csv; a column that a row has not is empty
    """
    if form == "json":
        return json.dumps(whole, indent=2, default=str)
    if form == "yaml":
        return as_yaml(whole)
    if form == "csv":
        return as_csv(rows, columns, header=True)
    return as_table(rows, columns)


def as_yaml(whole: typing.Any) -> str:
    """Plain data as a YAML document, in the order that it has."""
    import yaml

    plain = json.loads(json.dumps(whole, default=str))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")


def as_csv(rows: Sequence[Row], columns: Sequence[str], *, header: bool) -> str:
    """Rows as lines of CSV, perhaps below the names of the columns."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([_text(row.get(each)) for each in columns] for row in rows)
    return made.getvalue().rstrip("\n")


def as_table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Rows below the names of their columns, each as wide as its longest cell."""
    lines = [list(columns), *cells(rows, columns)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def cells(rows: Sequence[Row], columns: Sequence[str]) -> list[list[str]]:
    """The texts of a table: what is empty has a dash."""
    return [[on_one_line(_text(row.get(each))) for each in columns] for row in rows]


def on_one_line(text: str) -> str:
    """A text for a terminal, a dash if there is none: what would move the cursor, as a
    peer may have it in a name, is not passed on."""
    return "".join(one if one.isprintable() else " " for one in text) or "-"


def _text(value: typing.Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, (dict, bool)):
        return json.dumps(value, default=str)
    return str(value)


def flat(whole: typing.Any, name: str = "") -> list[Row]:
    """Plain data as rows of ``field`` and ``value``: the names on the way to a value
    are joined by dots."""
    inner: typing.Iterable[tuple[typing.Any, typing.Any]]
    if isinstance(whole, dict) and whole:
        inner = whole.items()
    elif isinstance(whole, list) and any(isinstance(one, dict) for one in whole):
        inner = enumerate(whole)
    else:
        return [{"field": name, "value": whole}]
    return [
        row
        for key, value in inner
        for row in flat(value, f"{name}.{key}" if name else str(key))
    ]
