# SPDX-License-Identifier: Apache-2.0
"""Apache Qpid Broker-J with a durable virtual host.

Broker-J brings no command that makes a configuration; it takes an initial one
as JSON.  This one is its own default but for the user, the loopback address,
no web console, and the virtual host's node auto-creation policies.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from .install import java_home, maven_distribution
from .kinds import Command, Kind, Layout
from .scratch import Scratch

#: The last release that Maven Central has as a distribution.
VERSION = "9.2.1"
#: Compiled for Java 11; uses what Java 24 took away (the security manager).
_JAVA = (11, 23)


class BrokerJ(Kind):
    """A single broker."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.summary = f"Apache Qpid Broker-J {VERSION}"

    def install(self, scratch: Scratch) -> Path:
        java_home(*_JAVA)
        return maven_distribution(
            scratch, "org.apache.qpid", "apache-qpid-broker-j", VERSION
        )

    def prepare(self, layout: Layout, node: int) -> None:
        folder = layout.node_folder(node)
        folder.mkdir(parents=True)
        virtual_host = {"type": "DERBY"}
        config = {
            "name": layout.instance,
            "modelVersion": "8.0",
            "authenticationproviders": [
                {
                    "name": "plain",
                    "type": "Plain",
                    # By default PLAIN is offered over TLS alone.
                    "secureOnlyMechanisms": [],
                    "users": [
                        {
                            "name": self.user,
                            "type": "managed",
                            "password": self.password,
                        }
                    ],
                }
            ],
            # Without one, what goes wrong goes nowhere.
            "brokerloggers": [
                {
                    "name": "console",
                    "type": "Console",
                    "brokerloginclusionrules": [
                        {
                            "name": "Root",
                            "type": "NameAndLevel",
                            "level": "WARN",
                            "loggerName": "ROOT",
                        }
                    ],
                }
            ],
            "ports": [
                {
                    "name": "AMQP",
                    "port": layout.amqp_port(node),
                    "bindingAddress": "127.0.0.1",
                    "authenticationProvider": "plain",
                    "virtualhostaliases": [
                        {"name": "nameAlias", "type": "nameAlias"},
                        {"name": "defaultAlias", "type": "defaultAlias"},
                        {"name": "hostnameAlias", "type": "hostnameAlias"},
                    ],
                }
            ],
            "virtualhostnodes": [
                {
                    "name": "default",
                    "type": "JSON",
                    "defaultVirtualHostNode": "true",
                    "virtualHostInitialConfiguration": json.dumps(virtual_host),
                }
            ],
        }
        (folder / "initial.json").write_text(json.dumps(config, indent=1))

    def command(self, layout: Layout, node: int) -> Command:
        folder = layout.node_folder(node)
        env = dict(
            os.environ,
            PATH=f"{java_home(*_JAVA) / 'bin'}:{os.environ['PATH']}",
            JAVA_HOME=str(java_home(*_JAVA)),
            QPID_WORK=str(folder),
            LC_ALL="C.UTF-8",
        )
        argv = (
            str(layout.software / "bin/qpid-server"),
            "--initial-config-path",
            str(folder / "initial.json"),
        )
        return Command(argv, env, cwd=folder)


def kinds() -> list[Kind]:
    """The single broker."""
    return [BrokerJ("qpid-broker-j")]
