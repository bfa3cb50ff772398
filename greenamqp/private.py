# SPDX-License-Identifier: Apache-2.0
"""Directories for the user of this process alone."""

from __future__ import annotations

import os
import stat


def make(path: str) -> None:
    """Make the directory where there is none, and see that this user can use it, and
    nobody else enter it.  Blocks, as disks do.

    :raises ValueError: it cannot be so; names the path
    """
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.stat(path)
    except OSError as exc:
        raise ValueError(f"{exc.filename}: {exc.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{path} is no directory")
    if found.st_uid != os.geteuid():
        raise ValueError(f"{path} is another user's")
    if found.st_mode & 0o077:
        raise ValueError(f"others than its user can enter {path}: it needs mode 0700")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"{path}: {os.strerror(13)}")
