# SPDX-License-Identifier: Apache-2.0
"""Makes the picture of ``greenamqp top`` for the docs: ``python -m tools.screenshot``.

Three processes of one embedded broker call, listen and notify; it is drawn as a
terminal has it, of what they say a second apart.
"""

from __future__ import annotations

import io
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from rich.console import Console

from greenamqp.command import states, top
from greenamqp.command.processes import die_with_parent
from greenamqp.testing.process import BrokerProcess

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "top.svg"

#: Columns of the terminal.
_WIDTH = 162


def main() -> None:
    """Make it."""
    with tempfile.TemporaryDirectory() as folder, BrokerProcess() as broker:
        where = pathlib.Path(folder) / "state"
        config = pathlib.Path(folder) / "service.conf"
        config.write_text(
            f"[DEFAULT]\ntransport_url = {broker.url}\n"
            f"[oslo_messaging_amqp]\nstate_dir = {where}\n"
        )
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "greenamqp", *words]
                + ["--config-file", str(config)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=die_with_parent,
            )
            for words in (
                ["listen", "conductor"],
                ["call", "conductor", "ping", "--count", "100000", "--rate", "200"],
                ["notify", "notifications", "it", "--count", "100000", "--rate", "50"],
            )
        ]
        try:
            before = _all_up(where, len(started))
            time.sleep(1)
            now = states.read(where)
        finally:
            for process in started:
                process.kill()
                process.wait()
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    console.print(top.drawn(now, before))
    drawn = console.export_svg(title="greenamqp top")
    # A picture in a page loads no fonts from elsewhere.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


def _all_up(where: pathlib.Path, count: int) -> list[dict[str, object]]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = states.read(where) if where.is_dir() else []
        rows = states.rows(found)
        if len(rows) >= count and all((row.get("sent") or 0) > 3 for row in rows):
            return found
        time.sleep(0.1)
    raise SystemExit("the processes did not come up")


if __name__ == "__main__":
    main()
