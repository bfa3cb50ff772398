# SPDX-License-Identifier: Apache-2.0
"""Bring what a bus needs onto this machine, and say clearly what failed.

Debian's packages come through apt-get and mmdebstrap (both need root), Java
distributions through Maven.  What was fetched stays in the scratch folder's
software/ and is used again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .errors import BusError
from .scratch import Scratch

#: A Debian mirror to use instead of the one that apt is set up with.
ENV_MIRROR = "GREENAMQP_BUSES_DEBIAN_MIRROR"
#: Set to take packages from a mirror whose signed Release file has expired.
ENV_STALE = "GREENAMQP_BUSES_STALE_MIRROR"


def _run(argv: Sequence[str], what: str, hint: str) -> str:
    """Run a command that reaches out to a registry; its output."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C"),
        )
    except FileNotFoundError:
        raise BusError(f"{what}: the command {argv[0]!r} is missing. {hint}") from None
    if done.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
        lines = [line for line in text.splitlines() if line.strip(" []ERO")]
        # Maven says the cause first, apt and mmdebstrap say it last.
        wanted = [x for x in lines if x.startswith(("E:", "W:", "[ERROR]"))] or lines
        shown = "\n".join(f"    {line[:300]}" for line in wanted[:4])
        raise BusError(f"{what} failed:\n{shown}\n{hint}")
    return done.stdout


def need_root(what: str) -> None:
    """Raise BusError unless this process runs as root."""
    if os.geteuid() != 0:
        raise BusError(f"{what} needs root (chroot and Debian's package tools)")


def need_command(command: str, package: str) -> str:
    """The path of *command*, installed from Debian's *package* if missing."""
    found = shutil.which(command)
    if found:
        return found
    need_root(f"{command!r} is missing; installing Debian's package {package}")
    _apt_install(
        package, f"Install {package} by hand, or give apt a mirror that can be reached."
    )
    found = shutil.which(command)
    if not found:
        raise BusError(f"package {package} did not bring the command {command!r}")
    return found


def _apt_install(package: str, hint: str) -> None:
    """Install a package of Debian; *hint* says what to do if it cannot be had."""
    what = f"apt-get install {package}"
    install = ("apt-get", "install", "-y", "--no-install-recommends", package)
    try:
        _run(install, what, hint)
    except BusError:
        # The usual reason: the lists are missing or older than the mirror.
        _run(("apt-get", "update"), "apt-get update", hint)
        _run(install, what, hint)


def _mirror() -> str | None:
    """The Debian mirror of this machine's apt, None for mmdebstrap's default."""
    named = os.environ.get(ENV_MIRROR)
    if named:
        return named
    argv = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(SUITE)")
    filters = ("Created-By: Packages", "Origin: Debian", "Component: main")
    done = subprocess.run((*argv, *filters), capture_output=True, text=True)
    for line in done.stdout.splitlines():
        uri, _, suite = line.partition(" ")
        if not re.search("security|updates|backports", uri + suite):
            return uri
    return None


def debian_tree(scratch: Scratch, name: str, suite: str, package: str) -> Path:
    """A root folder holding *suite*'s minimal system and *package*.

    A tree of its own runs a package of any Debian release on any other one,
    touches nothing of the machine and starts no service.
    """
    with scratch.lock("install"):
        tree = scratch.software / name
        if tree.is_dir():
            return tree
        need_root(f"installing {package} of Debian {suite}")
        command = need_command("mmdebstrap", "mmdebstrap")
        scratch.software.mkdir(parents=True, exist_ok=True)
        new = scratch.software / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        argv = [command, "--variant=minbase", f"--include={package}"]
        if os.environ.get(ENV_STALE):
            argv.append('--aptopt=Acquire::Check-Valid-Until "false"')
        argv += [suite, str(new)]
        mirror = _mirror()
        if mirror:
            argv.append(mirror)
        try:
            _run(
                argv,
                f"installing {package} of Debian {suite} into a tree",
                "Is a Debian mirror in reach? One can be named in the environment"
                f" variable {ENV_MIRROR}; one that stands still (expired Release"
                f" file) is accepted with {ENV_STALE}=1.",
            )
            # Not every release's base system brings one; nodes are @localhost.
            (new / "etc/hosts").write_text("127.0.0.1 localhost\n")
            new.rename(tree)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return tree


def package_version(tree: Path, package: str) -> str:
    """The upstream version of an installed package of a tree."""
    status = (tree / "var/lib/dpkg/status").read_text(errors="replace")
    for block in status.split("\n\n"):
        if f"Package: {package}\n" in block + "\n":
            found = re.search(r"^Version: (?:\d+:)?([\w.]+)", block, re.M)
            if found:
                return found[1]
    raise BusError(f"package {package} is not installed in {tree}")


def maven_distribution(
    scratch: Scratch, group: str, artifact: str, version: str
) -> Path:
    """The unpacked folder of a binary distribution in Maven Central."""
    with scratch.lock("install"):
        folder = scratch.software / f"{artifact}-{version}"
        if folder.is_dir():
            return _only_folder(folder)
        command = need_command("mvn", "maven")
        scratch.software.mkdir(parents=True, exist_ok=True)
        new = scratch.software / f"{artifact}-{version}.new"
        shutil.rmtree(new, ignore_errors=True)
        coordinates = f"{group}:{artifact}:{version}:tar.gz:bin"
        try:
            _run(
                (
                    command,
                    "-q",
                    "-B",
                    "-U",  # a failure of yesterday is not the answer of today
                    "dependency:copy",
                    f"-Dartifact={coordinates}",
                    f"-DoutputDirectory={new}",
                ),
                f"fetching {coordinates} from Maven Central",
                "Is Maven Central (or a mirror of it, named in Maven's settings.xml)"
                " in reach?",
            )
            (archive,) = new.glob("*.tar.gz")
            # tarfile's extraction filters came in the middle of Python 3.11.
            subprocess.run(("tar", "-xzf", archive, "-C", new), check=True)
            archive.unlink()
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return _only_folder(folder)


def _only_folder(folder: Path) -> Path:
    """Descend while a folder holds nothing but one other folder."""
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def java_home(oldest: int, newest: int) -> Path:
    """A JDK or JRE of a major version from *oldest* to *newest*, the newest.

    Looks at JAVA_HOME and where Debian and most vendors' packages put theirs.
    """
    homes = [Path(p) for p in (os.environ.get("JAVA_HOME"),) if p]
    homes += sorted(Path("/usr/lib/jvm").glob("*"))
    found: dict[int, Path] = {}
    for home in homes:
        version = _java_version(home)
        if version is not None and oldest <= version <= newest:
            found.setdefault(version, home)
    if found:
        return found[max(found)]
    hint = f"Install a JRE of version {oldest} to {newest}, or set JAVA_HOME."
    need_root(f"no Java {oldest} to {newest} was found; installing one")
    _apt_install("default-jre-headless", hint)
    for home in Path("/usr/lib/jvm").glob("*"):
        version = _java_version(home)
        if version is not None and oldest <= version <= newest:
            return home
    raise BusError(f"Debian's default-jre-headless is not of these versions. {hint}")


def _java_version(home: Path) -> int | None:
    """The major version of the Java that *home* holds, None if it holds none."""
    if not (home / "bin/java").exists():
        return None
    try:
        release = (home / "release").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', release, re.M)
    return int(match[1]) if match else None
