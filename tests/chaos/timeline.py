# SPDX-License-Identifier: Apache-2.0
"""A picture of a round of faults: rates, errors and faults over time, as SVG."""

from __future__ import annotations

import html
import pathlib
import typing

#: Seconds that a bar stands for, and pixels.
STEP = 0.5
WIDE = 4
HIGH = 60
LEFT = 110

_COLOURS = {"call": "#3b6ea5", "notify": "#5a9e6f"}


def draw(
    path: pathlib.Path,
    windows: list[typing.Any],
    ledgers: dict[str, dict[str, typing.Any]],
) -> None:
    """Write it.

    :param windows: the faults: name, node, begin, end
    :param ledgers: of each driver, its key "sent" as of tests.ledger.Sending
    """
    lanes = [
        (driver, kind, ledger["sent"][kind])
        for driver, ledger in ledgers.items()
        for kind in ("call", "notify")
    ]
    notes = [note for _, _, lane in lanes for note in lane]
    first = min(begun for _, begun, _, _ in notes)
    last = max(ended for _, _, ended, _ in notes)

    def x(instant: float) -> float:
        return round(LEFT + (instant - first) / STEP * WIDE, 1)

    bottom = 30 + len(lanes) * (HIGH + 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{x(last) + 20:.0f}" '
        f'height="{bottom + 30}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for window in windows:
        wide = max(2.0, x(window.end) - x(window.begin))
        parts.append(
            f'<rect x="{x(window.begin)}" y="16" width="{wide}" '
            f'height="{bottom - 20}" fill="#f2d6a2"/>'
            f'<text x="{x(window.begin)}" y="12">'
            f"{html.escape(window.name)} {window.node + 1}</text>"
        )
    for number, (driver, kind, lane) in enumerate(lanes):
        floor = 30 + HIGH + number * (HIGH + 10)
        wells, errors = _bars(lane, first)
        tallest = max(wells.values(), default=1)
        parts.append(
            f'<text x="4" y="{floor - HIGH / 2}">{html.escape(driver)}</text>'
            f'<text x="4" y="{floor - HIGH / 2 + 13}">{kind}: {tallest / STEP:.0f}/s'
            f'</text><path d="M{LEFT} {floor}H{x(last)}" stroke="#999"/>'
        )
        for step, count in wells.items():
            tall = round(count / tallest * HIGH, 1)
            parts.append(
                f'<rect x="{LEFT + step * WIDE}" y="{round(floor - tall, 1)}" '
                f'width="{WIDE}" height="{tall}" fill="{_COLOURS[kind]}"/>'
            )
        for step in errors:
            parts.append(
                f'<rect x="{LEFT + step * WIDE}" y="{floor - HIGH}" width="{WIDE}" '
                f'height="8" fill="#c0392b"/>'
            )
    for second in range(0, int(last - first) + 1, 10):
        parts.append(
            f'<text x="{x(first + second)}" y="{bottom + 18}">{second} s</text>'
        )
    path.write_text("\n".join([*parts, "</svg>\n"]))


def _bars(
    lane: list[typing.Any], first: float
) -> tuple[dict[int, int], dict[int, int]]:
    """How many ended well and not, by step."""
    wells: dict[int, int] = {}
    errors: dict[int, int] = {}
    for _, _, ended, error in lane:
        bars = errors if error else wells
        step = int((ended - first) / STEP)
        bars[step] = bars.get(step, 0) + 1
    return wells, errors
