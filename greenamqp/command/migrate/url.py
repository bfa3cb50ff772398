# SPDX-License-Identifier: Apache-2.0
"""Transport URLs as text: what is not changed stays as it was written."""

from __future__ import annotations

import dataclasses
import re
import typing
import urllib.parse

from oslo_utils import netutils

from greenamqp import options
from greenamqp.command import service
from greenamqp.command.masking import masked
from greenamqp.command.migrate import table
from greenamqp.connection.failover import AMQP_PORT

#: The scheme of oslo.messaging's driver for AMQP 0-9-1, and its other name.
RABBIT, KOMBU = "rabbit", "kombu"

#: Options of TLS, and how ``[oslo_messaging_rabbit]`` names them.
TLS = ("ssl", "ssl_ca_file", "ssl_cert_file", "ssl_key_file")


def scheme(value: str) -> str:
    """The scheme of what may be a transport URL, or ``""``."""
    found = re.match(r"([a-z]+)://", value)
    return found[1] if found else ""


@dataclasses.dataclass
class Url:
    """A transport URL, in parts as they were written."""

    scheme: str
    hosts: list[str]
    path: str
    query: list[tuple[str, str]]

    @classmethod
    def parse(cls, text: str) -> Url:
        """:raises Unusable: if it is none"""
        try:
            parts = urllib.parse.urlsplit(text, allow_fragments=False)
        except ValueError:  # whose text may have the password
            raise service.Unusable(f"{masked(text)} is no URL") from None
        query = [part.partition("=") for part in parts.query.split("&") if part]
        return cls(
            RABBIT if parts.scheme == KOMBU else parts.scheme,
            parts.netloc.split(","),
            parts.path,
            [(name, value) for name, _, value in query],
        )

    def __str__(self) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.query)
        hosts = ",".join(self.hosts)
        return f"{self.scheme}://{hosts}{self.path}{'?' if query else ''}{query}"

    def said(self, name: str) -> str | None:
        """What the query says of an option."""
        found = dict(self.query).get(name)
        return None if found is None else urllib.parse.unquote_plus(found)

    def write_ports(self) -> None:
        """Give hosts without a port the one that they meant: 5672, with TLS too.

        :raises ValueError: if what stands for a port is none
        """
        for index, host in enumerate(self.hosts):
            login, at, name = host.rpartition("@")
            try:
                address, port = netutils.parse_host_port(name or "localhost")
            except ValueError:  # whose text may have the password
                raise ValueError(
                    "what stands for the port of a host is no number (in a password / "
                    "is written as %2F, # as %23 and @ as %40)"
                ) from None
            if port is None:
                address = netutils.escape_ipv6(address)
                self.hosts[index] = f"{login}{at}{address}:{AMQP_PORT}"

    def without_login(self) -> list[str]:
        """The hosts that have no user name."""
        return [host for host in self.hosts if not host.rpartition("@")[0]]


@dataclasses.dataclass(frozen=True)
class FromQuery:
    """An option of the query, and what became of it."""

    name: str
    value: str
    verdict: str
    why: str
    becomes: dict[str, str]


def from_rabbit(
    url: Url, around: table.Around, further: typing.Mapping[str, str]
) -> tuple[Url, list[FromQuery]]:
    """The URL that means here what this one means for ``rabbit://``.

    :param around: what it is with this URL
    :param further: options to add to the query, as they are in the configuration
    :raises ValueError: if a port of it makes no sense
    """
    made = Url("amqp", list(url.hosts), url.path, [])
    made.write_ports()
    found = []
    for written, raw in url.query:
        value = urllib.parse.unquote_plus(raw)
        name, meaning = table.of_rabbit(written)
        verdict, why, new = meaning.of(value, around)
        if name in options.RABBIT_NAMES:
            made.query.append((name, raw))
        elif name == "ssl":
            made.query.append((name, raw))
            verdict, why, new = table.READ, "the port is written out", {}
        made.query += [(each, quoted(text)) for each, text in new.items()]
        found.append(FromQuery(written, value, verdict, why, new))
    there = {name for name, _ in made.query}
    # oslo.config puts in what $ stands for, in the URL as in the option.
    made.query += [
        (name, quoted(text, "${}"))
        for name, text in further.items()
        if name not in there
    ]
    return made, found


def quoted(text: str, besides: str = "") -> str:
    """A value for the query; what is in `besides` stays as it is."""
    return urllib.parse.quote(text, safe="/:," + besides)
