# SPDX-License-Identifier: Apache-2.0
"""Apache ActiveMQ Artemis as ``artemis create`` sets it up.

The broker's own command writes the configuration, so what the tests see is
what a fresh installation does.  Only the ports, a small heap, and for a pair
what makes it a pair, are told to it.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from .errors import BusError
from .install import java_home, maven_distribution
from .kinds import Command, Kind, Layout
from .scratch import Scratch

#: The current release.  Since 2.50 the project's group is org.apache.artemis.
VERSION = "2.56.0"
_GROUP = "org.apache.artemis"
#: Its classes are compiled for Java 17.
_JAVA = (17, 99)
_MEMORY = "512M"


class Artemis(Kind):
    """A single broker."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.summary = f"Apache ActiveMQ Artemis {VERSION}"

    def install(self, scratch: Scratch) -> Path:
        java_home(*_JAVA)
        return maven_distribution(scratch, _GROUP, "apache-artemis", VERSION)

    def _options(self, layout: Layout, node: int) -> list[str]:
        """Options of ``artemis create`` beyond those of every broker."""
        return []

    def prepare(self, layout: Layout, node: int) -> None:
        folder = layout.node_folder(node)
        argv = [str(layout.software / "bin/artemis"), "create", "--silent"]
        argv += ["--name", f"{layout.instance}-{node + 1}"]
        argv += ["--user", self.user, "--password", self.password]
        argv += ["--require-login", "--no-web", "--no-autotune"]
        argv += ["--no-amqp-acceptor", "--no-hornetq-acceptor"]
        argv += ["--no-mqtt-acceptor", "--no-stomp-acceptor"]
        argv += ["--host", "127.0.0.1"]
        argv += ["--default-port", str(layout.amqp_port(node))]
        argv += ["--java-memory", _MEMORY, *self._options(layout, node), str(folder)]
        done = subprocess.run(
            argv,
            env=self._env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise BusError(f"artemis create failed: {done.stdout}")
        # The profile asks for a first heap that may be above the limit.
        profile = folder / "etc/artemis.profile"
        text = profile.read_text()
        profile.write_text(re.sub(r"-Xms\w+", "-Xms64M", text))

    @staticmethod
    def _env() -> dict[str, str]:
        return dict(os.environ, JAVA_HOME=str(java_home(*_JAVA)), LC_ALL="C.UTF-8")

    def command(self, layout: Layout, node: int) -> Command:
        folder = layout.node_folder(node)
        return Command((str(folder / "bin/artemis"), "run"), self._env(), cwd=folder)

    def control(self, layout: Layout, node: int) -> Command:
        # The tool takes the address and the login as options of its
        # sub-commands, so they cannot be given here.
        folder = layout.node_folder(node)
        return Command((str(folder / "bin/artemis"),), self._env(), cwd=folder)


class ArtemisPair(Artemis):
    """A primary and a backup that share one store.

    The backup opens its port once the primary is gone and serves from the
    same journal, so no accepted durable message is missing after failover.
    """

    nodes = 2

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.summary += ", primary and backup on a shared store"

    def ready_nodes(self) -> list[tuple[int, ...]]:
        return [(0, 1)]

    def _options(self, layout: Layout, node: int) -> list[str]:
        return [
            *_cluster_options(self, layout, node),
            "--shared-store",
            "--data",
            str(layout.folder / "shared"),
            "--failover-on-shutdown",
            *(["--backup"] if node else []),
        ]


class ArtemisCluster(Artemis):
    """Two brokers that both serve and pass messages to where consumers are.

    Each keeps its own messages: while one is down, what it holds waits.
    """

    nodes = 2

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.summary += ", cluster of two that both serve"

    def prepare(self, layout: Layout, node: int) -> None:
        super().prepare(layout, node)
        # The default leaves messages where they came in, even for ever.
        catch_all = '<address-setting match="#">'
        delay = "<redistribution-delay>0</redistribution-delay>"
        folder = layout.node_folder(node) / "etc"
        _rewrite(folder / "broker.xml", catch_all, f"{catch_all}\n{delay}")

    def _options(self, layout: Layout, node: int) -> list[str]:
        return _cluster_options(self, layout, node)


class ArtemisOAuth2(Artemis):
    """A single broker that takes tokens, those too that nobody has signed: it asks no
    identity provider.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.summary += ", with SASL OAUTHBEARER and XOAUTH2"

    def prepare(self, layout: Layout, node: int) -> None:
        super().prepare(layout, node)
        folder = layout.node_folder(node) / "etc"
        for name, before, after in (
            ("broker.xml", ";useEpoll=true", f";useEpoll=true;{_TOKENS}"),
            ("login.config", "activemq {", f"activemq {{{_LOGIN}"),
            ("login.config", "PropertiesLoginModule required", _SUFFICIENT),
        ):
            _rewrite(folder / name, before, after)


def _rewrite(file: Path, before: str, after: str) -> None:
    """Replace what is there once."""
    text = file.read_text()
    if text.count(before) != 1:
        raise BusError(f"artemis create wrote a {file.name} of another shape")
    file.write_text(text.replace(before, after))


_TOKENS = "saslMechanisms=PLAIN,OAUTHBEARER,XOAUTH2"
_SUFFICIENT = "PropertiesLoginModule sufficient"
_LOGIN = """
   org.apache.activemq.artemis.spi.core.security.jaas.OIDCLoginModule sufficient
       provider="http://127.0.0.1:9"
       allowPlainJWT=true
       audience="artemis"
       identityPaths="sub"
       rolesPaths="roles";
"""


def _cluster_options(kind: Kind, layout: Layout, node: int) -> list[str]:
    """What makes two brokers know each other."""
    other = layout.amqp_port(1 - node)
    return [
        "--clustered",
        "--cluster-user",
        kind.user,
        "--cluster-password",
        kind.password,
        "--static-cluster",
        f"tcp://127.0.0.1:{other}",
    ]


def kinds() -> list[Kind]:
    """The single broker, the pair and the cluster."""
    return [
        Artemis("artemis"),
        ArtemisPair("artemis-pair"),
        ArtemisOAuth2("artemis-oauth2"),
        ArtemisCluster("artemis-cluster"),
    ]
