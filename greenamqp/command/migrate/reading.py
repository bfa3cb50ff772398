# SPDX-License-Identifier: Apache-2.0
"""What a configuration says to the old driver, and what has to be said to this one."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from greenamqp import options
from greenamqp.command import service
from greenamqp.command.masking import masked
from greenamqp.command.migrate import plan, table, url
from greenamqp.command.migrate.file import ConfigFile, Setting

#: Where these options stand, the old name of the group included.
_OWN_GROUPS = (options.GROUP.name, "amqp1")

#: Schemes of the URLs that are looked at.
_OURS = (url.RABBIT, url.KOMBU, *options.SCHEMES)


@dataclasses.dataclass(frozen=True)
class Row:
    """One option, or one transport URL, that is set.  Plain data; no password.

    :ivar where: the group, or ``the query of`` an option with a URL
    :ivar verdict: see :mod:`greenamqp.command.migrate.table`
    :ivar becomes: the options of ``[oslo_messaging_amqp]`` that do it here; of a URL,
        its new text
    """

    file: str
    line: int
    where: str
    option: str
    value: str
    verdict: str
    why: str
    becomes: dict[str, str]


class Migration:
    """All that is to be said of the files of one service.

    :param paths: in the order in which the service reads them
    :ivar rows: as they stand in the files
    :ivar first: what somebody has to do before services move, for people
    :ivar plan: what there is to be done besides
    :raises Unusable: if a file cannot be read, or none has anything to do with this
    """

    def __init__(self, paths: typing.Sequence[str]) -> None:
        self._files = [ConfigFile(path) for path in paths]
        self.rows: list[Row] = []
        self.first: list[str] = []
        #: File -> what is changed: setting, its old text and its new one.
        self._changes: dict[ConfigFile, list[tuple[Setting, str, str]]] = {}
        #: The same for options that are added: name -> (file, text, where it is from).
        self._additions: dict[str, tuple[ConfigFile, str, str]] = {}
        self._own = {
            setting.name
            for _, setting in self._settings()
            if setting.group in _OWN_GROUPS
        }
        urls = [
            (file, setting, text, url.Url.parse(text))
            for file, setting in self._settings()
            if not _goes_on(setting)
            for text in setting.values
            if url.scheme(text) in _OURS
        ]
        theirs = [parsed for *_, parsed in urls if parsed.scheme == url.RABBIT]
        secured = [self._has_tls(parsed) for parsed in theirs]
        #: Whether what the configuration says of TLS cannot hold for all URLs.
        self._mixed = len(set(secured)) > 1
        self._around = table.Around(
            tls=any(secured) if theirs else self._has_tls(None),
            streams=table.is_set(self._set_for_rabbit("rabbit_stream_fanout")),
        )
        for file, setting in self._settings():
            self._look_at(file, setting)
        for file, setting, text, parsed in urls:
            self._translate(file, setting, text, parsed)
        order = [str(file.path) for file in self._files]
        self.rows.sort(key=lambda row: (order.index(row.file), row.line))
        self._say_what_is_missing(theirs, bool(urls))
        kinds = {
            "rabbit" if parsed.scheme == url.RABBIT else "amqp" for *_, parsed in urls
        }
        self.plan = plan.make(
            kinds or {"rabbit"},
            self.changes,
            tls=any(secured),
            several_hosts=any(len(parsed.hosts) > 1 for parsed in theirs),
            cells=any("api_database" in file.groups for file in self._files),
        )

    def _settings(self) -> typing.Iterator[tuple[ConfigFile, Setting]]:
        for file in self._files:
            for setting in file.settings:
                yield file, setting

    def _set_for_rabbit(self, name: str) -> str | None:
        """What ``[oslo_messaging_rabbit]`` says; the last one counts."""
        value = None
        for _, setting in self._settings():
            if setting.group == options.RABBIT_GROUP:
                if table.of_rabbit(setting.name)[0] == name:
                    value = setting.value
        return value

    def _has_tls(self, parsed: url.Url | None) -> bool:
        said = parsed.said("ssl") if parsed is not None else None
        return table.is_set(said or self._set_for_rabbit("ssl"))

    # -- options

    def _look_at(self, file: ConfigFile, setting: Setting) -> None:
        if setting.group == options.RABBIT_GROUP:
            self._of_rabbit(file, setting)
        elif setting.group in _OWN_GROUPS:
            verdict, why = table.of_amqp(setting.name, setting.value)
            self._row(file, setting, verdict, why)
        elif setting.group == "DEFAULT" and setting.name == "rpc_backend":
            self._row(
                file,
                setting,
                table.NOTHING,
                "oslo.messaging does not read it; greenamqp.get_rpc_transport() does, "
                "where there is no transport_url",
            )
        elif _goes_on(setting):
            why = "a transport URL on several lines: write it on one"
            self._row(file, setting, table.FIRST, why)
        elif setting.name.endswith("transport_url"):
            for text in setting.values:
                if url.scheme(text) not in _OURS:
                    self._row(file, setting, table.READ, "of another driver")

    def _of_rabbit(self, file: ConfigFile, setting: Setting) -> None:
        name, meaning = table.of_rabbit(setting.name)
        verdict, why, new = meaning.of(setting.value, self._around)
        if name in url.TLS and self._mixed and new:
            new, why = {}, "not all transport URLs have TLS: it goes into those that do"
        # The last one counts.
        for option in [each for each, of in self._additions.items() if of[2] == name]:
            del self._additions[option]
        there = sorted(new.keys() & self._own)
        if there:
            why += f"; {', '.join(there)} is set already, and stays"
        for option, value in new.items():
            if option not in self._own:
                self._additions[option] = (file, value, name)
        self._row(file, setting, verdict, why, new)

    def _row(
        self,
        file: ConfigFile,
        setting: Setting,
        verdict: str,
        why: str,
        becomes: dict[str, str] | None = None,
    ) -> None:
        shown = _shown(setting.name, setting.value)
        group = f"[{setting.group}]"
        self._add(
            file, setting, group, setting.name, shown, verdict, why, becomes or {}
        )

    def _add(self, file: ConfigFile, setting: Setting, *said: typing.Any) -> None:
        """A row of what that setting says.

        :param said: the fields of Row from `where` on
        """
        row = Row(str(file.path), setting.at + 1, *said)
        self.rows.append(row)
        if row.verdict == table.FIRST:
            self.first.append(f"{row.where} {row.option} = {row.value}: {row.why}")

    # -- URLs

    def _translate(
        self, file: ConfigFile, setting: Setting, text: str, parsed: url.Url
    ) -> None:
        place = f"[{setting.group}] {setting.name}"
        new, why = parsed, "as before"
        found: list[url.FromQuery] = []
        try:
            if parsed.scheme == url.RABBIT:
                tls = self._has_tls(parsed)
                further = self._tls_options() if tls and self._mixed else {}
                around = self._around._replace(tls=tls)
                new, found = url.from_rabbit(parsed, around, further)
                why = "AMQP 1.0, with the same hosts, users and virtual host"
            elif table.is_true(parsed.said("ssl") or "false"):
                new = dataclasses.replace(parsed, hosts=list(parsed.hosts))
                if parsed.scheme not in options.TLS_SCHEMES:
                    new.write_ports()
                    why = "the port is written out: with ssl in the URL it is 5671 now"
        except ValueError as exc:
            shown = masked(text)
            self.first.append(f"{place} = {shown}: {exc}")
            return
        changed = str(new) != str(parsed)
        if changed:
            self._changes.setdefault(file, []).append((setting, text, str(new)))
        shown = masked(text)
        self._add(
            file,
            setting,
            f"[{setting.group}]",
            setting.name,
            shown,
            table.BECOMES if changed else table.READ,
            why,
            {setting.name: masked(str(new))} if changed else {},
        )
        for each in found:
            self._add(
                file,
                setting,
                f"the query of {place}:",
                each.name,
                _shown(each.name, each.value),
                each.verdict,
                each.why,
                each.becomes,
            )
        if parsed.scheme == url.RABBIT and parsed.without_login():
            self.first.append(
                f"{place} = {shown}: write user and password for each host; without "
                "them rabbit:// logs in as guest"
            )

    def _tls_options(self) -> dict[str, str]:
        """Of the configuration, for the query of a URL."""
        said = ((name, self._set_for_rabbit(name)) for name in url.TLS)
        return {name: value for name, value in said if value}

    def _say_what_is_missing(
        self, theirs: typing.Sequence[url.Url], any_url: bool
    ) -> None:
        if not any_url and not any(
            row.option.endswith("transport_url") for row in self.rows
        ):
            if not self.rows:
                raise service.Unusable(
                    f"{', '.join(str(file.path) for file in self._files)}: neither "
                    f"transport_url nor [{options.RABBIT_GROUP}] nor "
                    f"[{options.GROUP.name}] is set there"
                )
            self.first.append(
                "there is no transport_url: write one; without it oslo.messaging takes "
                "rabbit:// with guest on localhost"
            )
        secured = [parsed for parsed in theirs if self._has_tls(parsed)]
        if not self._set_for_rabbit("ssl_ca_file") and any(
            not parsed.said("ssl_ca_file") for parsed in secured
        ):
            self.first.append(
                "TLS without ssl_ca_file: rabbit:// verified no certificate; here "
                "they are, with the system's CAs: set ssl_ca_file in "
                f"[{options.GROUP.name}] if yours is not one of them"
            )

    # -- the new files

    def _changed(self) -> list[ConfigFile]:
        """Those that have to be others."""
        adding = {file for file, _, _ in self._additions.values()}
        return [file for file in self._files if file in self._changes or file in adding]

    @property
    def changes(self) -> list[str]:
        """The paths of the files that have to change."""
        return [str(file.path) for file in self._changed()]

    def write(self) -> list[pathlib.Path]:
        """Make a new file beside each that has to change.  Returns their paths.

        :raises OSError: if one cannot be made
        """
        written = []
        for file in self._changed():
            for setting, old, new in self._changes.get(file, ()):
                file.replace(setting, old, new)
            lines: list[str] = []
            said = ""
            for name, (where, value, source) in self._additions.items():
                if where is file:
                    if source != said:
                        lines.append(f"# As [{options.RABBIT_GROUP}] {source}.")
                        said = source
                    lines.append(f"{name} = {value}")
            additions = {options.GROUP.name: lines} if lines else {}
            written.append(file.write_beside(plan.SUFFIX, file.text(additions)))
        return written


def _goes_on(setting: Setting) -> bool:
    """Whether it is a URL of ours that goes on in further lines, which oslo.messaging
    reads as one."""
    first, *others = setting.values
    return url.scheme(first) in _OURS and any(not url.scheme(each) for each in others)


def _shown(name: str, value: str) -> str:
    """What an option says, as it may be shown."""
    if name.endswith("password"):
        return "***"
    return masked(", ".join(value.split("\n")))
