# SPDX-License-Identifier: Apache-2.0
"""``greenamqp top``: what the processes of this host are doing now.

In a terminal it is drawn by rich, where that is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
import time
import typing

from greenamqp.command import formats, seconds, service, states

if typing.TYPE_CHECKING:
    from rich.console import Group

_CLEAR = "\x1b[H\x1b[2J"

_Processes = list[dict[str, typing.Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    states.add_arguments(parser)
    formats.add_argument(parser, people=("table",))
    parser.add_argument(
        "--interval",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="between two looks (%(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="look once, and end")


def run(args: argparse.Namespace) -> int:
    """Show it until interrupted; once where it is no terminal, and then no rates."""
    try:
        where = states.directory(args)
        if args.once or args.format != "table" or not sys.stdout.isatty():
            print(_once(args.format, states.read(where)))
            return 0
        before: _Processes = []
        with _screen() as show:
            while True:
                found = states.read(where)
                show(found, before)
                before = found
                time.sleep(args.interval)
    except (service.Unusable, OSError) as exc:
        if getattr(exc, "errno", None) in (errno.EPIPE, errno.ENOSPC):
            raise  # of what is shown
        print(f"greenamqp top: {exc}", file=sys.stderr)
        return 2


def _once(form: str, processes: _Processes) -> str:
    if form == "table":
        return plain(processes)
    return formats.rendered(form, processes, states.rows(processes), states.COLUMNS)


def plain(processes: _Processes, before: typing.Sequence[typing.Any] = ()) -> str:
    """A line for each connection, and below them what is wrong."""
    rows = states.rows(processes, before)
    table = formats.as_table(rows, states.SHOWN)
    return "\n".join([table, *states.notes(processes)])


@contextlib.contextmanager
def _screen() -> typing.Iterator[typing.Callable[[_Processes, _Processes], object]]:
    """What shows them in this terminal, in place of what it showed before."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        yield lambda now, before: print(_CLEAR + plain(now, before), flush=True)
        return
    if Console().is_dumb_terminal:
        yield lambda now, before: print(plain(now, before), flush=True)
        return
    # No thread: it is drawn when there is something new.
    with Live(screen=True, auto_refresh=False) as live:
        yield lambda now, before: live.update(drawn(now, before), refresh=True)


_COLOURS = {"up": "green", "waiting": "red"}

_WORDS = ("pid", "host", "bus", "state")


def drawn(processes: _Processes, before: typing.Sequence[typing.Any] = ()) -> Group:
    """The same, for rich."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = states.rows(processes, before)
    texts = formats.cells(rows, states.SHOWN)
    table = Table(box=box.SIMPLE_HEAD, expand=False)
    for number, name in enumerate(states.SHOWN):
        # What is too wide for the terminal is cut in these alone.
        widest = max((len(line[number]) for line in texts), default=0)
        justify: typing.Any = "left" if name in _WORDS else "right"
        table.add_column(
            name.replace("_", " "),
            justify=justify,
            no_wrap=True,
            min_width=None if name in ("host", "bus") else max(widest, len(name)),
        )
    for row, line in zip(rows, texts, strict=True):
        colour = _COLOURS.get(str(row.get("state")), "yellow")
        table.add_row(
            *(
                Text(text, style=colour if name == "state" else "")
                for name, text in zip(states.SHOWN, line, strict=True)
            )
        )
    notes = [Text(line, style="red") for line in states.notes(processes)]
    return Group(table, *notes)
