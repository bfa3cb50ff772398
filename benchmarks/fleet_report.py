# SPDX-License-Identifier: Apache-2.0
"""The figures of `fleet` as a table and as a picture."""

from __future__ import annotations

import pathlib
import typing

from benchmarks.report import NOISY, aligned

Results = dict[str, typing.Any]
Row = dict[str, typing.Any]

#: A figure: its name, and what it is of a row; "" where there is none.
_Figure = tuple[str, typing.Callable[[Row], str]]


def _each(row: Row, value: float, unit: float, digits: int = 1) -> str:
    """A value's share of one service."""
    return f"{value / row['services'] / unit:,.{digits}f}"


def _of_bus(what: str, unit: float = 1, digits: int = 2) -> typing.Callable[[Row], str]:
    def show(row: Row) -> str:
        value = row["bus"].get(what)
        return "" if value is None else _each(row, value, unit, digits)

    return show


def _of_host(what: str, unit: float, digits: int) -> typing.Callable[[Row], str]:
    return lambda row: f"{row['host'][what] / unit:,.{digits}f}"


def _cpu(phase: str, whose: str) -> typing.Callable[[Row], str]:
    """In thousandths of a per cent of a core, for each service."""
    return lambda row: f"{100 * row[phase][whose] / row['services']:.4f}"


def _latency(phase: str, which: str) -> typing.Callable[[Row], str]:
    def show(row: Row) -> str:
        value = row[phase][which]
        return "" if value is None else f"{value / 1e3:,.1f}"

    return show


def _storm(show: typing.Callable[[Row, Row], str]) -> typing.Callable[[Row], str]:
    return lambda row: show(row, row["storm"]) if "storm" in row else ""


def _answered(share: float) -> typing.Callable[[Row], str]:
    """Seconds after which so many services have answered."""

    def show(row: Row, storm: Row) -> str:
        position = max(0, round(share * row["services"]) - 1)
        answered = storm["answered"]
        return f"{answered[position]:.1f}" if position < len(answered) else "never"

    return _storm(show)


def _failed_calls(_row: Row, storm: Row) -> str:
    return str(sum(storm["failed_calls"].values()))


def refused(storm: Row) -> int:
    """Attempts after the port was open that came to nothing."""
    return max(0, storm["attempts_after"] - storm["connections"])


_FIGURES: tuple[str | _Figure, ...] = (
    "start",
    ("seconds until all had answered", lambda row: f"{row['seconds']:.1f}"),
    "the bus, for each service",
    ("connections", _of_bus("connections")),
    ("sessions of AMQP 1.0", _of_bus("sessions")),
    ("channels", _of_bus("channels")),
    ("queues", _of_bus("queues")),
    ("exchanges", _of_bus("exchanges")),
    ("bindings", _of_bus("bindings")),
    ("resident memory, kB", _of_bus("memory", 1e3, 1)),
    ("% of a core, idle", _cpu("idle", "bus_cpu")),
    ("% of a core, load", _cpu("load", "bus_cpu")),
    "the host, for each service",
    ("resident memory, kB", _of_host("rss", 1e3, 0)),
    ("descriptors", _of_host("fds", 1, 2)),
    ("threads", _of_host("threads", 1, 2)),
    ("green threads", _of_host("greenlets", 1, 2)),
    ("% of a core, idle", _cpu("idle", "host_cpu")),
    (
        "context switches a second, idle",
        lambda row: _each(row, row["idle"]["switches"], 1, 2),
    ),
    ("% of a core, load", _cpu("load", "host_cpu")),
    "reports of all under the load, ms",
    ("p50", _latency("load", "p50")),
    ("p99", _latency("load", "p99")),
    ("longest", _latency("load", "max")),
    "calls by one caller, after the load",
    ("p50, ms", _latency("calls", "p50")),
    ("p99, ms", _latency("calls", "p99")),
    ("us of the caller's CPU", lambda row: f"{1e6 * row['calls']['client_cpu']:,.0f}"),
    ("us of the bus's CPU", lambda row: f"{1e6 * row['calls']['bus_cpu']:,.0f}"),
    "storm, seconds since the port was open",
    ("half of all answer", _answered(0.5)),
    ("99 % answer", _answered(0.99)),
    ("all answer", _answered(1.0)),
    (
        "attempts for each while it was away",
        _storm(lambda row, storm: _each(row, storm["attempts_before"], 1, 2)),
    ),
    (
        "attempts for each since",
        _storm(lambda row, storm: _each(row, storm["attempts_after"], 1, 2)),
    ),
    ("attempts in vain since, of all", _storm(lambda row, storm: f"{refused(storm)}")),
    ("calls that timed out or failed since", _storm(_failed_calls)),
    (
        "most memory of the bus, MB",
        _storm(lambda row, storm: f"{storm['bus_memory'] / 1e6:,.0f}"),
    ),
    ("CPU seconds of the bus", _storm(lambda row, storm: f"{storm['bus_cpu']:.1f}")),
    (
        "CPU seconds of the hosts",
        _storm(lambda row, storm: f"{storm['host_cpu']:.1f}"),
    ),
    "lost or failed",
    ("messages", lambda row: str(row["lost"] + row["failures"])),
)


def table(results: Results) -> str:
    """All figures; a column for each run."""
    rows = results["rows"]
    if not rows:
        return "nothing was measured"
    lines = [
        ["", *(row["side"] for row in rows)],
        ["services", *(f"{row['services']:,}" for row in rows)],
    ]
    heading: list[str] = []
    for figure in _FIGURES:
        if isinstance(figure, str):
            heading = [figure]
            continue
        name, show = figure
        cells = [show(row) for row in rows]
        if any(cells):
            lines += [heading] if heading else []
            lines.append([f"  {name}", *cells])
            heading = []
    notes = [
        "",
        f"bus: {results['bus']}; machine: {results['machine']['system']}, "
        f"{results['machine']['cores']} cores",
    ]
    noise = max(row[phase]["noise"] for row in rows for phase in ("idle", "load"))
    if noise > NOISY:
        notes.append(
            f"! other processes used up to {noise:.0%} of a core meanwhile: times are "
            "not for comparison with other runs"
        )
    return aligned(lines) + "\n".join(notes)


def chart(results: Results, path: pathlib.Path) -> bool:
    """Draw cost against the number of services, and the largest storm over time.

    Returns False where matplotlib is not installed, or nothing was measured.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = results["rows"]
    if not rows:
        return False
    figure, axes = pyplot.subplots(1, 4, figsize=(20, 4.5))
    panels: tuple[tuple[str, typing.Callable[[Row], float]], ...] = (
        (
            "memory of the bus for each service, kB",
            lambda row: row["bus"].get("memory", 0) / row["services"] / 1e3,
        ),
        ("CPU of the bus, idle, cores", lambda row: row["idle"]["bus_cpu"]),
        (
            "a call: CPU of caller and bus, us",
            lambda row: 1e6 * (row["calls"]["client_cpu"] + row["calls"]["bus_cpu"]),
        ),
    )
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        for axis, (title, value) in zip(axes, panels, strict=False):
            numbers = [row["services"] for row in own]
            axis.plot(numbers, [value(row) for row in own], marker="o", label=side)
            axis.set(title=title, xlabel="services", xscale="log")
        answered = own[-1].get("storm", {}).get("answered", [])
        axes[3].step(
            answered, range(1, len(answered) + 1), label=f"{side} {own[-1]['services']}"
        )
    axes[3].set(title="services that answer", xlabel="seconds since the port was open")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(f"{results['began']}, {results['bus']}")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return True
