# SPDX-License-Identifier: Apache-2.0
"""What can be set at a broker, and what the products that it can pass for do."""

from __future__ import annotations

import dataclasses
import platform
import socket
from importlib import metadata

MIB = 1024 * 1024


def _version() -> str:
    try:
        return metadata.version("greenamqp")
    except metadata.PackageNotFoundError:
        return "0"  # run from a tree that is not installed


@dataclasses.dataclass(frozen=True)
class Product:
    """How a message bus of this kind behaves, where they differ.

    :ivar router: it stores nothing and settles end to end
    :ivar listed_only: an address that no prefix names is refused, and nothing is made
        for the anonymous terminus, which accepts everything
    :ivar credit: messages a sender may have in flight
    :ivar idle_timeout: seconds of silence it allows a peer, which is asked for half of
        them; None: as set
    :ivar mirrors_idle_timeout: it asks of a peer what that asks of it
    """

    name: str
    version: str
    offered_capabilities: tuple[str, ...] = ("ANONYMOUS-RELAY",)
    router: bool = False
    listed_only: bool = False
    credit: int = 500
    idle_timeout: float | None = None
    mirrors_idle_timeout: bool = False
    max_frame_size: int = 64 * 1024

    def open_properties(self) -> dict[str, str]:
        """The connection properties of its Open frame."""
        properties = {"product": self.name, "version": self.version}
        if self.listed_only:
            properties["platform"] = platform.system()
            properties["host"] = socket.gethostname()
        return properties


def _router(name: str, version: str, *more: str) -> Product:
    return Product(
        name,
        version,
        offered_capabilities=("ANONYMOUS-RELAY", "qd.streaming-links", *more),
        router=True,
        credit=250,
        idle_timeout=16.0,
        max_frame_size=16384,
    )


PRODUCTS = {
    product.name: product
    for product in (
        Product("greenamqp", _version()),
        _router("qpid-dispatch-router", "1.19.0"),
        _router("skupper-router", "3.4.2", "qd.connection_trunking"),
        Product(
            "qpid-cpp",
            "1.40.0",
            listed_only=True,
            mirrors_idle_timeout=True,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a broker.  Times in seconds, sizes in bytes.

    :ivar product: which message bus to be: a key of PRODUCTS
    :ivar queue_prefixes: addresses that begin so are queues; so is all that nothing
        else is said of
    :ivar topic_prefixes: addresses that begin so are topics
    :ivar refused_prefixes: addresses that begin so are refused, to senders and
        receivers
    :ivar users: passwords by name; if there are any, one of them must log in
    :ivar allow_anonymous: whether somebody may connect without a name; None: where
        there are no users
    :ivar hostnames: names that mean this broker itself, not a virtual host, beside
        localhost, addresses of the Internet protocol and this machine's name
    :ivar max_memory: of all messages together, in memory
    :ivar max_links: of one connection
    :ivar max_sessions: of one connection
    :ivar max_addresses: of all virtual hosts together, bound queues included
    :ivar mesh_delay: after which a router knows of a new receiver at its neighbour, at
        the latest; up to 1
    :ivar mesh_timeout: after which a router knows that its neighbour died
    :ivar trace: write every frame to standard error
    :ivar tls_cert: PEM file of the broker's certificate: it speaks TLS alone
    :ivar tls_key: PEM file of its key; empty: it is in `tls_cert`
    :ivar tls_key_password: of the key, if it is encrypted
    :ivar tls_ca: PEM file of the CAs of clients' certificates; whoever shows one may
        log in with EXTERNAL
    :ivar tls_require_client_cert: refuse clients that show none
    :raises ValueError: naming what is wrong
    """

    product: str = "greenamqp"
    queue_prefixes: tuple[str, ...] = ("exclusive", "unicast")
    topic_prefixes: tuple[str, ...] = ("broadcast",)
    refused_prefixes: tuple[str, ...] = ()
    users: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)
    allow_anonymous: bool | None = None
    hostnames: tuple[str, ...] = ()
    idle_timeout: float = 60.0
    handshake_timeout: float = 30.0
    max_message_size: int = 64 * MIB
    max_queue_messages: int = 1_000_000
    max_queue_bytes: int = 256 * MIB
    max_memory: int = 1024 * MIB
    max_connections: int = 10_000
    max_links: int = 8_192
    max_sessions: int = 8_192
    max_addresses: int = 100_000
    max_virtual_hosts: int = 1_000
    mesh_delay: float = 0.66
    mesh_timeout: float = 3.0
    trace: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    tls_key_password: str | None = dataclasses.field(default=None, repr=False)
    tls_ca: str = ""
    tls_require_client_cert: bool = False

    def __post_init__(self) -> None:
        if self.product not in PRODUCTS:
            raise ValueError(
                f"product must be one of {', '.join(PRODUCTS)}; it is {self.product!r}"
            )
        for name in (
            "handshake_timeout",
            "max_message_size",
            "max_queue_messages",
            "max_queue_bytes",
            "max_memory",
            "max_connections",
            "max_links",
            "max_sessions",
            "max_addresses",
            "max_virtual_hosts",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} must be more than 0; it is {getattr(self, name)}"
                )
        if not self.tls_cert and (
            self.tls_key or self.tls_ca or self.tls_require_client_cert
        ):
            raise ValueError(
                "tls_key, tls_ca and tls_require_client_cert go with tls_cert, which is"
                " not given"
            )
        if not 0 <= self.mesh_delay <= 1:
            raise ValueError(f"mesh_delay must be 0 to 1; it is {self.mesh_delay}")
        if not self.mesh_timeout >= 0:
            raise ValueError(
                f"mesh_timeout must be 0 or more; it is {self.mesh_timeout}"
            )
        if self.idle_timeout < 0:
            raise ValueError(
                f"idle_timeout must be 0 (none) or more; it is {self.idle_timeout}"
            )

    @property
    def behaviour(self) -> Product:
        """The product to be."""
        return PRODUCTS[self.product]

    @property
    def anonymous(self) -> bool:
        """Whether somebody may connect without a name."""
        if self.allow_anonymous is None:
            return not self.users
        return self.allow_anonymous
