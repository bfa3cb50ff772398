# SPDX-License-Identifier: Apache-2.0
"""A configuration file whose lines can be changed: all others stay as they are."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing

from oslo_config import iniparser

from greenamqp.command import service


@dataclasses.dataclass
class Setting:
    """An option that is set.

    :ivar group: as oslo.config compares it: small letters, but for DEFAULT
    :ivar name: with _ for -
    :ivar values: one for each of its lines
    :ivar at: the index of its first line
    """

    group: str
    name: str
    values: list[str]
    at: int

    @property
    def value(self) -> str:
        """As oslo.config reads it."""
        return "\n".join(self.values)


class _Parser(iniparser.BaseParser):
    """oslo.config's own, which also keeps where things are."""

    def __init__(self) -> None:
        self.settings: list[Setting] = []
        #: Group -> the index of the line after which another option of it may stand.
        self.ends: dict[str, int] = {}
        self._group = ""
        self._at = 0

    def new_section(self, section: str) -> None:
        self._group = section if section == "DEFAULT" else section.lower()
        self.ends[self._group] = self.lineno

    def _split_key_value(self, line: str) -> typing.Any:
        self._at = self.lineno - 1
        return super()._split_key_value(line)

    def assignment(self, key: str, value: list[str]) -> None:
        if not self._group:
            raise self.parse_exc(
                "Section must be started before assignment", self._at + 1, key
            )
        name = key.replace("-", "_")
        self.settings.append(Setting(self._group, name, value, self._at))
        self.ends[self._group] = self._at + len(value)


class ConfigFile:
    """One of them.

    :raises Unusable: if it cannot be read
    """

    def __init__(self, path: str) -> None:
        self.path = pathlib.Path(path)
        parser = _Parser()
        try:
            # Without another idea of newlines than the file's own.
            with open(path, encoding="utf-8", newline="") as stream:
                self._lines = list(stream)
            parser.parse(self._lines)
        except iniparser.ParseError as exc:
            # Its text has the line, which may have a password.
            raise service.Unusable(f"{path}: line {exc.lineno}: {exc.msg}") from None
        except UnicodeDecodeError as exc:
            raise service.Unusable(f"{path}: it is not UTF-8: {exc.reason}") from None
        except OSError as exc:
            raise service.Unusable(f"{path}: {exc.strerror}") from None
        self.settings = parser.settings
        self._ends = parser.ends
        windows = bool(self._lines) and self._lines[0].endswith("\r\n")
        self._newline = "\r\n" if windows else "\n"

    @property
    def groups(self) -> set[str]:
        """Those that have a header in it."""
        return set(self._ends)

    def replace(self, setting: Setting, old: str, new: str) -> None:
        """Have `new` in place of the value `old` of a setting."""
        for index in range(setting.at, setting.at + len(setting.values)):
            before, found, after = self._lines[index].rpartition(old)
            if found:
                self._lines[index] = before + new + after
                return

    def text(self, additions: typing.Mapping[str, typing.Sequence[str]]) -> str:
        """The whole file, with further lines at the end of groups."""
        lines = list(self._lines)
        if lines and not lines[-1].endswith(("\n", "\r")):
            lines[-1] += self._newline
        known = [group for group in additions if group in self._ends]
        for group in sorted(known, key=lambda group: -self._ends[group]):
            at = self._ends[group]
            lines[at:at] = [line + self._newline for line in additions[group]]
        for group in [group for group in additions if group not in self._ends]:
            if lines and lines[-1].strip():
                lines.append(self._newline)
            for line in (f"[{group}]", *additions[group]):
                lines.append(line + self._newline)
        return "".join(lines)

    def write_beside(self, suffix: str, text: str) -> pathlib.Path:
        """Make a file beside it, with its rights and, where that is allowed, its owner;
        one that is there is replaced.  Returns the path.

        :raises OSError: if it cannot be
        """
        path = self.path.with_name(self.path.name + suffix)
        own = self.path.stat()
        half = path.with_name(f"{path.name}.{os.getpid()}")
        # It has passwords: nobody else's until it has the right owner.
        fd = os.open(half, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with open(fd, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
                if (own.st_uid, own.st_gid) != (os.geteuid(), os.getegid()):
                    try:
                        os.fchown(stream.fileno(), own.st_uid, own.st_gid)
                    except PermissionError:
                        pass  # it stays the user's who runs this, and for him alone
                    else:
                        os.fchmod(stream.fileno(), own.st_mode & 0o777)
                else:
                    os.fchmod(stream.fileno(), own.st_mode & 0o777)
            os.replace(half, path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
        return path
