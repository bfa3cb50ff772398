# SPDX-License-Identifier: Apache-2.0
"""Run by the build back end; the metadata is in setup.cfg (see pbr).

pbr takes the version from an sdist's PKG-INFO or from git. A plain copy of the
tree, a machine without git and a clone that git distrusts because another user
owns it have neither, so they get a fixed version here instead of an error.
"""

import os
import pathlib
import subprocess

import setuptools

_HERE = pathlib.Path(__file__).resolve().parent
_VERSION_WITHOUT_GIT = "0.0.1.dev0"


def _git_knows_this_tree() -> bool:
    """True if this folder is the top of a git work tree with a commit."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "--show-prefix", "HEAD"],
            cwd=_HERE,
            capture_output=True,
            text=True,
        )
    except OSError:
        return False
    # The first line is this folder's path inside the work tree: empty at its top.
    return found.returncode == 0 and found.stdout.startswith("\n")


if not (_HERE / "PKG-INFO").exists() and not _git_knows_this_tree():
    os.environ.setdefault("PBR_VERSION", _VERSION_WITHOUT_GIT)

setuptools.setup(setup_requires=["pbr>=6.1.0"], pbr=True)
