# SPDX-License-Identifier: Apache-2.0
"""What the options and the transport URL say about TLS and about logging in.

:class:`Security` is the policy; :mod:`greenamqp.connection.tls` and the engine carry it
out.  Files are read anew for each connection, so that a renewed certificate is used
without a restart.
"""

from __future__ import annotations

import ipaddress
import logging
import shlex
import ssl
import subprocess
import typing

from greenamqp.connection import tls
from greenamqp.connection.failover import Host
from greenamqp.engine import BEARER, Sasl, has_cyrus_sasl

LOG = logging.getLogger(__name__)

# What there is without Cyrus SASL.
_BUILT_IN = ("ANONYMOUS", "EXTERNAL", "PLAIN", *BEARER)

# So long a command may take to write a password.  Seconds.
COMMAND_TIMEOUT = 10.0

# A password, or token, is no longer.  Bytes.
_MAX_PASSWORD = 65_536

# What a user name and password are good for, where Cyrus SASL is there.  Not Kerberos:
# Cyrus would choose it wherever the bus has it, and fail where there is no ticket.
_CYRUS = (
    "SCRAM-SHA-512",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1",
    "DIGEST-MD5",
    "CRAM-MD5",
)

#: By these Kerberos logs in, where Cyrus SASL is there.
_TICKETS = {"GSSAPI", "GSS-SPNEGO"}

# Hosts for which this process has warned that a password goes there in the clear.
_warned: set[str] = set()


class Security:
    """How connections are secured, as the group of options says."""

    def __init__(self, options: typing.Any) -> None:
        self._options = options
        #: Any file that only TLS needs switches it on, as in the predecessor.
        self.tls = bool(options.ssl or options.ssl_ca_file or options.ssl_cert_file)
        self._mechanisms = tuple(options.sasl_mechanisms.upper().split())

    def check(self) -> None:
        """Try what can be tried without a connection.

        :raises ValueError: names the option and what is wrong with it
        """
        options = self._options
        if options.ssl_key_file and not options.ssl_cert_file:
            LOG.warning(
                "ssl_key_file is not used: it needs ssl_cert_file, which is not set"
            )
        if options.password_file and options.password_command:
            raise ValueError(
                "password_file and password_command: only one of them can be set"
            )
        if options.password_file:
            self._from_file()
        if self.tls:
            self.context()
        if self._mechanisms and not has_cyrus_sasl():
            missing = [name for name in self._mechanisms if name not in _BUILT_IN]
            problem = (
                f"sasl_mechanisms: {' '.join(missing)} cannot be used, as "
                "python-qpid-proton is built without Cyrus SASL here; without it there "
                f"are {', '.join(_BUILT_IN)}"
            )
            if len(missing) == len(self._mechanisms):
                raise ValueError(problem)
            if missing:
                LOG.warning("%s", problem)

    def context(self) -> ssl.SSLContext:
        """A TLS context.  Reads files.

        :raises ValueError: names the option and what is wrong with it
        """
        options = self._options
        try:
            return tls.client_context(
                options.ssl_ca_file,
                options.ssl_cert_file,
                options.ssl_key_file,
                options.ssl_key_password,
            )
        except tls.TlsSetupError as exc:
            raise ValueError(
                f"TLS cannot be set up (ssl_ca_file, ssl_cert_file, ssl_key_file, "
                f"ssl_key_password): {exc}"
            ) from None

    def server_name(self, host: Host, virtual_host: str | None) -> str:
        """Whose certificate the peer must show."""
        name = host.hostname
        if self._options.ssl_verify_vhost and virtual_host:
            name = virtual_host
        if ":" in name:
            # The scope of a link-local address is this machine's business alone.
            return name.partition("%")[0]
        # "bus.example." is for the resolver; certificates, and SNI (RFC 6066, section
        # 3), have no dot at the end.
        return name.rstrip(".")

    @property
    def sasl_wanted(self) -> bool:
        """Whether any option speaks of SASL."""
        options = self._options
        return bool(
            self._mechanisms or options.sasl_config_dir or options.sasl_config_name
        )

    @property
    def ticket_wanted(self) -> bool:
        """Whether a login may be by a Kerberos ticket."""
        return not _TICKETS.isdisjoint(self._mechanisms)

    def gets_password(self, host: Host) -> bool:
        """Whether the password for `host` is got by :meth:`password`."""
        options = self._options
        return not host.password and bool(
            options.password_file or options.password_command
        )

    def password(self, host: Host) -> str:
        """The password for `host` as it is now.  Reads a file, or runs a command.

        :raises ValueError: names the option and what is wrong with it
        """
        option = "password_file" if self._options.password_file else "password_command"
        if not host.username:
            raise ValueError(
                f"{option}: the transport URL gives no user name for this host"
            )
        if option == "password_file":
            return self._from_file()
        return self._from_command()

    def _from_file(self) -> str:
        name = self._options.password_file
        try:
            with open(name, "rb") as file:
                return _cleaned(file.read(_MAX_PASSWORD + 1))
        except (OSError, ValueError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else exc
            raise ValueError(f"password_file: {name!r}: {why}") from None

    def _from_command(self) -> str:
        # What it writes is for nobody's eyes: of its errors too, who knows.
        try:
            words = shlex.split(self._options.password_command)
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=COMMAND_TIMEOUT,
            )
            if done.returncode:
                raise ValueError(f"{words[0]!r}: exit status {done.returncode}")
            return _cleaned(done.stdout)
        except subprocess.TimeoutExpired:
            why = f"{words[0]!r}: not done after {COMMAND_TIMEOUT:g} s"
        except OSError as exc:
            why = f"{words[0]!r}: {exc.strerror}"
        except (ValueError, IndexError) as exc:
            why = str(exc)
        raise ValueError(f"password_command: {why}")

    def login(self, host: Host, password: str | None = None) -> Sasl:
        """Who logs in at `host`, and by which mechanisms.

        :param password: in place of the host's

        Without the option sasl_mechanisms a user name is never dropped for ANONYMOUS;
        a client certificate may do in its place (EXTERNAL).
        """
        options = self._options
        user = host.username or None
        realm = options.sasl_default_realm
        if user and realm and "@" not in user:
            user = f"{user}@{realm}"
        mechanisms = self._mechanisms
        if not mechanisms:
            external = ("EXTERNAL",) if options.ssl_cert_file else ()
            if user:
                cyrus = _CYRUS if has_cyrus_sasl() else ()
                mechanisms = (*external, *cyrus, "PLAIN")
            else:
                mechanisms = (*external, "ANONYMOUS")
        return Sasl(
            username=user,
            # A user without a password has an empty one, as in the predecessor.
            password=(password or host.password or "") if user else None,
            mechanisms=" ".join(mechanisms),
            config_dir=options.sasl_config_dir,
            config_name=options.sasl_config_name,
        )

    def warn_of_plain(self, host: Host, login: Sasl) -> None:
        """Warn, once per host, if a password may go there in the clear."""
        if self.tls or not login.username or is_loopback(host.hostname):
            return
        readable = {"PLAIN", *BEARER}
        if not readable & set(login.mechanisms.split()) or str(host) in _warned:
            return
        _warned.add(str(host))
        LOG.warning(
            "the password of user %r goes to %s without TLS: whoever is in between can "
            "read it (ssl=true switches TLS on)",
            login.username,
            host,
        )


def _cleaned(written: bytes) -> str:
    """A password, without the white space around it.

    :raises ValueError: if there is none
    """
    if len(written) > _MAX_PASSWORD:
        raise ValueError(f"more than {_MAX_PASSWORD} bytes are no password")
    try:
        password = written.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("what is in there is no UTF-8") from None
    if not password:
        raise ValueError("it is empty")
    return password


def is_loopback(hostname: str) -> bool:
    """Whether a host name certainly means this machine."""
    if hostname.lower().rstrip(".") in ("localhost", "localhost.localdomain"):
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False
