# SPDX-License-Identifier: Apache-2.0
"""Whether a transport URL is one that the demo can use, before anything is started.

A dozen processes that each find out by themselves would say so a dozen times.
"""

import re
import urllib.parse

from greenamqp import options


class Unusable(Exception):
    """The demo cannot use that URL; the text says why, in one line."""


def without_password(url: str) -> str:
    """The URL with ``***`` for each password and without its query, to be shown.

    The query may hold a password too: any option can stand there.
    """
    return re.sub(r"(?<=[/,])([^/:@,]*):[^/@,]*@", r"\1:***@", url.partition("?")[0])


def check_url(url: str) -> None:
    """Have the driver read the URL.  Connects to nothing.

    Raises Unusable for what is no URL of this driver's, has no host, or says what the
    driver does not know.
    """
    import oslo_messaging
    from oslo_config import cfg

    scheme, _, rest = url.partition("://")
    if not rest or rest.startswith(("/", "?")):
        raise Unusable(
            f"{without_password(url)!r} is no transport URL with a host, such as "
            "amqp://host:5672"
        )
    if scheme not in options.SCHEMES:
        raise Unusable(
            f"{scheme}:// is not of this driver, which the demo is about: its URLs "
            "begin with amqp:// or amqps://"
        )
    try:
        # Its ValueError names the port; oslo.messaging's does not.
        for host in urllib.parse.urlsplit(url).netloc.split(","):
            _ = urllib.parse.urlsplit(f"//{host}").port
        transport = oslo_messaging.get_rpc_transport(cfg.ConfigOpts(), url=url)
    except (ValueError, oslo_messaging.DriverLoadFailure) as exc:
        raise Unusable(f"the transport URL cannot be used: {exc}") from exc
    transport.cleanup()
