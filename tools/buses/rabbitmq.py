# SPDX-License-Identifier: Apache-2.0
"""RabbitMQ out of Debian's packages, each release in a tree of its own.

A node runs by chroot in its release's tree; its data lie in the tree's srv/
because nothing is mounted, so that it also works where mounts are forbidden.
Everything listens on the loopback interface alone, epmd included, which is one
per instance.  The settings are RabbitMQ's defaults but for what a tree without
/proc and a small machine need.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

from .errors import BusError
from .install import debian_tree, need_root, package_version
from .kinds import Command, Kind, Layout
from .scratch import Scratch

_BIN = "/usr/lib/rabbitmq/bin"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Without /proc the memory cannot be measured.  High enough for the tests,
#: low enough for several nodes on one machine; who has more clients names another.
ENV_MEMORY = "GREENAMQP_BUSES_RABBIT_MEMORY"
_MEMORY_LIMIT = "1GiB"


class RabbitMQ(Kind):
    """One release of RabbitMQ, alone or as a cluster of *nodes*."""

    user = "guest"
    password = "guest"
    ports = 2  # AMQP, Erlang distribution
    shared_ports = 1  # epmd
    schemes = ("amqp", "rabbit")

    def __init__(
        self,
        name: str,
        version: str,
        suite: str,
        plugins: str = "",
        nodes: int = 1,
        settings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(name)
        self.version = version
        self.suite = suite
        self.plugins = plugins
        self.nodes = nodes
        self.settings = settings
        what = f"cluster of {nodes} nodes, " if nodes > 1 else ""
        self.summary = f"RabbitMQ {version}, {what}Debian {suite}"

    def install(self, scratch: Scratch) -> Path:
        need_root("running RabbitMQ in a tree of its own")
        # A cluster shares the tree of the single node.
        tree = debian_tree(
            scratch, f"rabbitmq-{self.suite}", self.suite, "rabbitmq-server"
        )
        version = package_version(tree, "rabbitmq-server")
        if not version.startswith(f"{self.version}."):
            raise BusError(
                f"Debian {self.suite} now brings RabbitMQ {version}, not {self.version}"
            )
        return tree

    @staticmethod
    def _home(layout: Layout, node: int) -> str:
        """A node's folder as seen from inside the tree."""
        return f"/srv/{layout.folder.name}/{node + 1}"

    @classmethod
    def _outer_home(cls, layout: Layout, node: int) -> Path:
        return layout.software / cls._home(layout, node)[1:]

    @staticmethod
    def _node_name(node: int) -> str:
        return f"rabbit{node + 1}@localhost"

    def prepare(self, layout: Layout, node: int) -> None:
        home = self._outer_home(layout, node)
        home.mkdir(parents=True)
        cookie = home / ".erlang.cookie"
        if node:
            shutil.copy(self._outer_home(layout, 0) / cookie.name, cookie)
        else:
            cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        memory = os.environ.get(ENV_MEMORY, _MEMORY_LIMIT)
        lines = [
            f"listeners.tcp.1 = 127.0.0.1:{layout.amqp_port(node)}",
            "vm_memory_calculation_strategy = erlang",
            f"total_memory_available_override_value = {memory}",
            f"vm_memory_high_watermark.absolute = {memory}",
            "log.console = true",
            "log.console.level = info",
            "log.file = false",
            *self.settings,
        ]
        if self.nodes > 1:
            lines.append("cluster_formation.peer_discovery_backend = classic_config")
            for other in range(self.nodes):
                lines.append(
                    f"cluster_formation.classic_config.nodes.{other + 1}"
                    f" = {self._node_name(other)}"
                )
        (home / "rabbitmq.conf").write_text("".join(f"{x}\n" for x in lines))
        (home / "enabled_plugins").write_text(f"[{self.plugins}].\n")

    def _env(self, layout: Layout, node: int) -> dict[str, str]:
        home = self._home(layout, node)
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "HOME": home,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(layout.shared_ports[0]),
            "RABBITMQ_NODENAME": self._node_name(node),
            "RABBITMQ_DIST_PORT": str(layout.ports[node][1]),
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{home}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": f"{home}/rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{home}/data",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            # Its crash dump would be large and is of no use here.
            "ERL_CRASH_DUMP_BYTES": "0",
        }

    def command(self, layout: Layout, node: int) -> Command:
        return Command(
            argv=(f"{_BIN}/rabbitmq-server",),
            env=self._env(layout, node),
            root=layout.software,
            cwd=Path("/"),
        )

    def shared_command(self, layout: Layout) -> Command:
        # Started here, because an epmd that a node starts outlives the node.
        return Command(
            argv=("epmd",),
            env=self._env(layout, 0),
            root=layout.software,
            cwd=Path("/"),
        )

    def settle(self, layout: Layout) -> None:
        if self.nodes == 1:
            return
        control = self.control(layout, 0)
        argv = ("chroot", str(control.root), *control.argv)
        argv += ("await_online_nodes", str(self.nodes), "--timeout", "120")
        done = subprocess.run(
            argv, env=dict(control.env), capture_output=True, text=True, cwd="/"
        )
        if done.returncode:
            raise BusError(f"the cluster did not form: {done.stdout}{done.stderr}")

    def remove(self, layout: Layout) -> None:
        shutil.rmtree(self._outer_home(layout, 0).parent, ignore_errors=True)

    def control(self, layout: Layout, node: int) -> Command:
        return Command(
            argv=(f"{_BIN}/rabbitmqctl", "--quiet"),
            env=self._env(layout, node),
            root=layout.software,
            cwd=Path("/"),
        )


#: Logins by tokens, as well as by password; the key that they are signed with is named
#: "tests", and is given by `rabbitmqctl add_signing_key`.
_TOKENS = (
    "auth_backends.1 = rabbit_auth_backend_oauth2",
    "auth_backends.2 = internal",
    "auth_oauth2.resource_server_id = rabbitmq",
    "auth_oauth2.default_key = tests",
)


def kinds() -> list[Kind]:
    """The releases and clusters on offer."""
    return [
        RabbitMQ("rabbitmq-3.10", "3.10", "bookworm", plugins="rabbitmq_amqp1_0"),
        RabbitMQ("rabbitmq-3.10-plain", "3.10", "bookworm"),
        RabbitMQ("rabbitmq-4.0", "4.0", "trixie"),
        RabbitMQ(
            "rabbitmq-4.0-oauth2",
            "4.0",
            "trixie",
            plugins="rabbitmq_auth_backend_oauth2",
            settings=_TOKENS,
        ),
        RabbitMQ("rabbitmq-4.3", "4.3", "sid"),
        RabbitMQ("rabbitmq-cluster", "4.0", "trixie", nodes=3),
        RabbitMQ("rabbitmq-cluster-4.3", "4.3", "sid", nodes=3),
    ]
