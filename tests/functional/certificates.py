# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made when they are needed and kept in a temporary folder."""

import pathlib

import trustme


class Authority:
    """A CA and what it issues; all files are PEM, in `folder`."""

    def __init__(self, folder: pathlib.Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self._name = name
        self.ca = str(folder / f"{name}.pem")
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, *names: str, common_name: str | None = None) -> str:
        """The path of a file with a certificate for `names`, and its key."""
        made = self._ca.issue_cert(*names, common_name=common_name)
        stem = "-".join(names).replace("*", "any").replace(":", "_")
        path = str(self._folder / f"{self._name}-{stem}.pem")
        made.private_key_and_cert_chain_pem.write_to_path(path)
        return path
