# SPDX-License-Identifier: Apache-2.0
"""PEM files as the key stores that brokers in Java read."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

#: Of all key stores.
PASSWORD = "changeit"

_ENCRYPTION = serialization.BestAvailableEncryption(PASSWORD.encode())


def write_key(pem: str, path: Path) -> None:
    """A PKCS 12 file with the key and the certificates of a PEM file."""
    data = Path(pem).read_bytes()
    first, *chain = x509.load_pem_x509_certificates(data)
    key = serialization.load_pem_private_key(data, None)
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(b"broker", key, first, chain, _ENCRYPTION)
    )


def write_trust(pem: str, path: Path) -> None:
    """A PKCS 12 file that trusts the certificate of a PEM file."""
    authority = x509.load_pem_x509_certificate(Path(pem).read_bytes())
    trusted = [pkcs12.PKCS12Certificate(authority, b"ca")]
    path.write_bytes(pkcs12.serialize_java_truststore(trusted, _ENCRYPTION))
