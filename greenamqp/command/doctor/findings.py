# SPDX-License-Identifier: Apache-2.0
"""What was found, step by step, and how it is shown."""

from __future__ import annotations

import dataclasses
import typing

from greenamqp.command import formats
from greenamqp.command.doctor.advice import Advice, advice


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one step came to.

    :ivar step: what was tried
    :ivar where: a host, or what of the configuration
    :ivar result: ``ok``, ``remark`` or ``failed``
    :ivar text: for people
    :ivar seconds: that it took, or None
    :ivar advice: what to do about it, or None
    """

    step: str
    where: str
    result: str
    text: str
    seconds: float | None = None
    advice: Advice | None = None


class Findings:
    """All of them.

    :param shown: takes each line for people when it is found, or None
    """

    def __init__(self, shown: typing.Callable[[str], object] | None) -> None:
        self.all: list[Finding] = []
        self._shown = shown

    def ok(self, step: str, where: str, text: str, taken: float | None = None) -> None:
        """It is as it should be."""
        self._add(Finding(step, where, "ok", text, taken))

    def remark(self, step: str, where: str, text: str) -> None:
        """It works, and is hardly what was meant."""
        self._add(Finding(step, where, "remark", text))

    def failed(
        self,
        step: str,
        where: str,
        text: str,
        taken: float | None = None,
        what_to_do: Advice | None = None,
    ) -> None:
        """It does not work."""
        what_to_do = what_to_do or advice(text)
        self._add(Finding(step, where, "failed", text, taken, what_to_do))

    def excuse(self, since: int) -> None:
        """What was found from that one on, and failed, does not matter after all."""
        for index, finding in enumerate(self.all[since:], since):
            if finding.result == "failed":
                self.all[index] = dataclasses.replace(finding, result="remark")

    def _add(self, finding: Finding) -> None:
        self.all.append(finding)
        if self._shown is not None:
            self._shown(_line(finding))

    @property
    def failures(self) -> list[Finding]:
        """Those that do not work."""
        return [each for each in self.all if each.result == "failed"]

    @property
    def remarks(self) -> list[Finding]:
        """Those that are hardly meant."""
        return [each for each in self.all if each.result == "remark"]

    def summary(self) -> str:
        """``ok``, or a list of what is wrong, who can mend it and how."""
        lines = []
        for finding in self.failures:
            lines.append(f"{finding.where}: {finding.text}")
            if finding.advice is not None:
                lines.append(f"    can be mended by {finding.advice.who}:")
                lines.append(f"    {finding.advice.how}")
        if not lines:
            remarks = len(self.remarks)
            return (
                f"ok, {remarks} remarks"
                if remarks > 1
                else ("ok, 1 remark" if remarks else "ok")
            )
        many = len(self.failures)
        head = f"{many} {'thing is' if many == 1 else 'things are'} wrong:"
        return "\n".join([head, *(f"  {line}" for line in lines)])

    def rendered(self, form: str) -> str:
        """All of it, with names that stay: see :mod:`greenamqp.command.formats`."""
        steps = [dataclasses.asdict(each) for each in self.all]
        rows = [{**step, **(step["advice"] or {})} for step in steps]
        return formats.rendered(
            form, {"ok": not self.failures, "steps": steps}, rows, _COLUMNS
        )


_COLUMNS = ("step", "where", "result", "seconds", "text", "fault", "who", "how")

_MARKS = {"ok": "ok    ", "remark": "remark", "failed": "FAILED"}


def _line(finding: Finding) -> str:
    taken = f"{finding.seconds * 1000:8.1f} ms" if finding.seconds is not None else ""
    return (
        f"{_MARKS[finding.result]} {taken:11} {finding.step:13} "
        f"{finding.where}: {finding.text}"
    )
