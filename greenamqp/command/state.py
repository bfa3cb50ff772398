# SPDX-License-Identifier: Apache-2.0
"""``greenamqp state PID``: all that one process tells of itself."""

from __future__ import annotations

import argparse
import sys
import typing

from greenamqp.command import formats, service, states, whole

#: The largest that Linux gives.
_MAX_PID = 2**22


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    states.add_arguments(parser)
    formats.add_argument(parser)
    parser.add_argument("pid", type=lambda text: whole(text, 1, _MAX_PID))


def run(args: argparse.Namespace) -> int:
    """Show it; 1 if the process says nothing, 2 if the directory cannot be used."""
    try:
        found = states.read(states.directory(args), args.pid)
    except (service.Unusable, OSError) as exc:
        print(f"greenamqp state: {exc}", file=sys.stderr)
        return 2
    if not found:
        print(
            f"greenamqp state: process {args.pid} says nothing there: it has ended, "
            "has no transport in use, or another state_dir",
            file=sys.stderr,
        )
        return 1
    (all_of_it,) = found
    if args.format == "text":
        print("\n".join(_outline(all_of_it)))
    else:
        rows = formats.flat(all_of_it)
        print(formats.rendered(args.format, all_of_it, rows, ("field", "value")))
    return 0


def _outline(value: typing.Any, indent: str = "") -> list[str]:
    """Plain data as lines: a name and its value, or what belongs to it below."""
    lines = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            lines += [f"{indent}{name}:", *_outline(inner, indent + "    ")]
        elif isinstance(inner, list) and any(
            not isinstance(each, dict) for each in inner
        ):
            texts = (formats.on_one_line(str(each)) for each in inner)
            lines.append(f"{indent}{name}: {', '.join(texts)}")
        elif isinstance(inner, list):
            lines.append(f"{indent}{name}: {len(inner)}")
            for each in inner:
                below = _outline(each, indent + "    ")
                lines += [f"{indent}  -{below[0][len(indent) + 3 :]}", *below[1:]]
        else:
            text = "" if inner is None else str(inner)
            lines.append(f"{indent}{name}: {formats.on_one_line(text)}")
    return lines
