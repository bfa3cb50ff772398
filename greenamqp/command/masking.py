# SPDX-License-Identifier: Apache-2.0
"""Transport URLs, and what is said of them, without the passwords."""

from __future__ import annotations

import re
import urllib.parse

_PLAIN_HOST = re.compile(r"(\[[^\]@]*\]|[^:@/]*)(:\d+)?(/.*)?", re.DOTALL)

# Options whose value may stand in a query, and is for nobody's eyes.
_SECRET = re.compile(r"((?:^|&)[^=&]*password=)([^&]*)")


def masked(url: str) -> str:
    """A URL as it may be shown: no password, whatever is wrong with it."""
    return _take_out(url)[0]


def without_passwords(text: str, url: str | None) -> str:
    """`text`, which was said of a URL, without the passwords of that."""
    if not url:
        return text
    shown, secrets = _take_out(url)
    text = text.replace(url, shown)
    for secret in secrets:
        for form in {secret, urllib.parse.unquote(secret)} - {""}:
            text = text.replace(form, "***")
    return text


def _take_out(url: str) -> tuple[str, list[str]]:
    """The URL without its passwords, and these as they are written there."""
    head, found, rest = url.partition("://")
    if not found:
        return url, []
    rest, mark, query = rest.partition("?")
    hosts, secrets = [], []
    for host in rest.split(","):
        login, at, name = host.rpartition("@")
        user, colon, password = login.partition(":")
        if at and colon:
            hosts.append(f"{user}:***@{name}")
            secrets.append(password)
        elif at or _PLAIN_HOST.fullmatch(host):
            hosts.append(host)
        else:
            # What looks like no host may be a part of a password.
            hosts.append("***")
            secrets.append(host)
    secrets += [value for _, value in _SECRET.findall(query)]
    query = _SECRET.sub(r"\1***", query)
    return f"{head}://{','.join(hosts)}{mark}{query}", secrets
