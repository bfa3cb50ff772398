# SPDX-License-Identifier: Apache-2.0
"""The cells of a comparison: which work is done, by how many, how large."""

from __future__ import annotations

import dataclasses
import itertools
import typing

#: What a caller does.  ``batch`` is ``notify`` with a listener that takes batches;
#: ``slow`` is ``call`` while another target of the same server has a backlog that it
#: works off slowly.
LOADS = ("call", "cast", "notify", "batch", "slow")
CALLERS = (1, 16, 64, 256)
#: Bytes of JSON.  2,300 is the median of real notifications.
SIZES = (64, 2300, 64 * 1024, 1024 * 1024)
TARGETS = (1, 200)

#: What the other axes are at while one of them is walked along.
_CALLERS, _SIZE, _TARGETS = 16, 64, 1

#: A batch listener's batches: messages at the most, seconds to wait for more.
BATCH_SIZE = 50
BATCH_TIMEOUT = 0.05

#: The slow target's backlog, and the seconds that each of it takes.
BACKLOG = 300
SLOW_PAUSE = 0.5


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """One kind of work."""

    load: str
    callers: int
    size: int
    targets: int = 1

    def __str__(self) -> str:
        return (
            f"{self.load}, {self.callers} callers, {size_name(self.size)}, "
            f"{self.targets} target{'s' * (self.targets > 1)}"
        )

    @property
    def counted(self) -> bool:
        """Whether the server counts messages, rather than answering them."""
        return self.load in ("cast", "notify", "batch")

    @property
    def operation(self) -> str:
        """What the client does."""
        return {"batch": "notify", "slow": "call"}.get(self.load, self.load)

    def plan(self) -> dict[str, typing.Any]:
        """What client and server are told about it."""
        kind = {"call": "rpc", "cast": "rpc"}.get(self.load, self.load)
        return {
            "kind": kind,
            "targets": self.targets,
            "batch_size": BATCH_SIZE,
            "batch_timeout": BATCH_TIMEOUT,
            "pause": SLOW_PAUSE,
        }


def size_name(size: int) -> str:
    """A size as people say it."""
    if size >= 1024 * 1024:
        return f"{size / 1024 / 1024:g} MB"
    if size >= 16 * 1024:
        return f"{size / 1024:g} kB"
    return f"{size / 1000:g} kB" if size >= 1000 else f"{size} B"


def cross(
    loads: typing.Iterable[str],
    callers: typing.Iterable[int],
    sizes: typing.Iterable[int],
    targets: typing.Iterable[int],
) -> list[Cell]:
    """Every combination."""
    return [
        Cell(*combination)
        for combination in itertools.product(loads, callers, sizes, targets)
    ]


def star() -> list[Cell]:
    """Along each axis, the others kept: what a full comparison does by default."""
    cells = cross(("call", "cast", "notify", "batch"), CALLERS, (_SIZE,), (_TARGETS,))
    cells += cross(("call", "notify"), (_CALLERS,), SIZES[1:], (_TARGETS,))
    cells += cross(("call", "cast"), (_CALLERS,), (_SIZE,), TARGETS[1:])
    cells += cross(("slow",), (_CALLERS,), (_SIZE,), (_TARGETS,))
    return cells


def short() -> list[Cell]:
    """What is looked at in passing."""
    cells = cross(("call",), (1, 16, 64), (_SIZE,), (_TARGETS,))
    return cells + cross(("notify",), (_CALLERS,), (_SIZE,), (_TARGETS,))
