# SPDX-License-Identifier: Apache-2.0
"""What every kind of bus has to tell of itself.

A kind knows how to install a bus, to write the configuration of a node and to
run it; :mod:`tools.buses.bus` does the rest, the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from .scratch import Scratch


@dataclasses.dataclass(frozen=True)
class Command:
    """How a process of a bus is run."""

    argv: Sequence[str]
    env: Mapping[str, str]
    root: Path | None = None
    cwd: Path | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where an instance lives: its folder and every node's ports."""

    instance: str
    folder: Path
    software: Path
    #: Per node: the AMQP port first, then what :attr:`Kind.ports` asks for.
    ports: Sequence[Sequence[int]]
    #: Ports of the instance as a whole.
    shared_ports: Sequence[int]

    def node_folder(self, node: int) -> Path:
        """Configuration, data and log of one node, counted from 0."""
        return self.folder / f"node{node + 1}"

    def amqp_port(self, node: int) -> int:
        """The port on which a node serves AMQP 1.0."""
        return self.ports[node][0]


class Kind:
    """A bus by name and version.  Subclasses say how it is run."""

    #: One line for ``list``.
    summary = ""
    user = "greenamqp"
    password = "greenamqp"
    #: Number of brokers.
    nodes = 1
    #: Ports needed by each node, the AMQP one included.
    ports = 1
    #: Ports needed by the instance as a whole.
    shared_ports = 0
    #: Schemes that the AMQP port serves, for ``url``.
    schemes: tuple[str, ...] = ("amqp",)
    #: Seconds that a node may take from its start to its first login.
    start_timeout = 180.0

    def __init__(self, name: str) -> None:
        self.name = name

    def install(self, scratch: Scratch) -> Path:
        """Install what is missing; the software's folder.  Raises BusError."""
        raise NotImplementedError

    def prepare(self, layout: Layout, node: int) -> None:
        """Write a node's configuration.  The node never ran before."""
        raise NotImplementedError

    def command(self, layout: Layout, node: int) -> Command:
        """How a node is run in the foreground."""
        raise NotImplementedError

    def shared_command(self, layout: Layout) -> Command | None:
        """A process that the nodes need beside them, None for none."""
        return None

    def ready_nodes(self) -> Sequence[Sequence[int]]:
        """Groups of nodes; ready means that one of each group lets users in."""
        return [(node,) for node in range(self.nodes)]

    def settle(self, layout: Layout) -> None:
        """What remains to be awaited once every group has a ready node."""

    def remove(self, layout: Layout) -> None:
        """Remove what :meth:`prepare` put outside of the instance's folder."""

    def control(self, layout: Layout, node: int) -> Command | None:
        """The broker's own command line tool, arguments to be appended."""
        return None
