# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor found: one answer, the verdict over all of them, and the table people read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, FAILED, NOT_ASKED, WARNING = "ok", "failed", "not_asked", "warning"
SHOWN = {OK: "ok", FAILED: "FAILED", NOT_ASKED: "not asked", WARNING: "look"}


class DoctorError(Exception):
    """The doctor itself was asked something impossible."""


@dataclass(frozen=True)
class Finding:
    """One answer. Whatever is not ok says what to do about it."""

    check: str  # stable dotted name, e.g. units.nginx
    host: str
    state: str
    detail: str  # what was seen
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.state not in SHOWN:
            raise DoctorError(f"finding {self.check}: '{self.state}' is no state; known are {', '.join(SHOWN)}")
        if self.state != OK and not self.remedy:
            raise DoctorError(f"finding {self.check} is {self.state} and names no remedy")

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def ok(check: str, host: str, detail: str) -> Finding:
    return Finding(check, host, OK, detail)


def failed(check: str, host: str, detail: str, remedy: str) -> Finding:
    return Finding(check, host, FAILED, detail, remedy)


def not_asked(check: str, host: str, detail: str, remedy: str) -> Finding:
    return Finding(check, host, NOT_ASKED, detail, remedy)


def warning(check: str, host: str, detail: str, remedy: str) -> Finding:
    """The service is true to what was asked of it, and yet something is not as expected."""
    return Finding(check, host, WARNING, detail, remedy)


def parse(raw: Mapping[str, Any]) -> Finding:
    try:
        return Finding(**{key: str(raw[key]) for key in ("check", "host", "state", "detail", "remedy")})
    except KeyError as error:
        raise DoctorError(f"a finding lacks {error}: {dict(raw)}") from error


def from_task(host: str, task: str, result: Mapping[str, Any]) -> list[Finding]:
    """Findings in the result of one task on one host. A host that kept silent is a finding as well."""
    if result.get("unreachable"):
        return [
            failed(
                "host.reachable",
                host,
                f"Ansible cannot reach it: {_line(result.get('msg'))}",
                f"start {host}, check ansible_host and ssh to it (ansible {host} -m ping), then run the doctor again",
            )
        ]
    if result.get("lost"):
        # What it serves is asked at the front door; so this alone is no untruth, but not green either.
        return [
            not_asked(
                "host.reachable",
                host,
                "this run could not reach it, or ended there before: it is owed the rest",
                f"see above what became of {host}, mend that (ansible {host} -m ping), then run site.yml again",
            )
        ]
    if "results" in result:
        # A loop: every item is an answer of its own.
        return [found for item in result["results"] for found in from_task(host, task, item)]
    if "findings" in result:
        return [parse(raw) for raw in result["findings"]]
    if result.get("skipped"):
        return []
    return [
        failed(
            f"doctor.{task}",
            host,
            f"the doctor's own question broke off: {_line(result.get('msg'))}",
            "run again with -vvv to see where; python3 >= 3.10 and sudo must work on the host",
        )
    ]


def _line(text: object) -> str:
    return " ".join(str(text or "no reason given").split())


def verdict(findings: Iterable[Finding]) -> dict[str, Any]:
    """ok only when everything was asked and everything is true: not asked is not green. A warning is no untruth."""
    counts = dict.fromkeys(SHOWN, 0)
    for finding in findings:
        counts[finding.state] += 1
    return {"ok": counts[OK] > 0 and counts[FAILED] == 0 and counts[NOT_ASKED] == 0, "counts": counts}


def unique(findings: Iterable[Finding]) -> list[Finding]:
    """Without repetitions: a host that is unreachable says so in every task."""
    return list(dict.fromkeys(findings))


def table(findings: Sequence[Finding], width: int = 110) -> list[tuple[str, str]]:
    """The report as (line, state); state is '' for headings."""
    lines: list[tuple[str, str]] = []
    name = max((len(finding.check) for finding in findings), default=0)
    for host in dict.fromkeys(finding.host for finding in findings):
        lines += [("", ""), (host, "")]
        for finding in findings:
            if finding.host == host:
                head = f"  {SHOWN[finding.state]:9}  {finding.check:{name}}  "
                lines += [(line, finding.state) for line in _wrap(head, finding.detail, width)]
    for state, title in ((WARNING, "Worth a look"), (NOT_ASKED, "Not asked"), (FAILED, "FAILED")):
        wanting = [finding for finding in findings if finding.state == state]
        if wanting:
            lines += [("", ""), (f"{title}, and what to do:", "")]
            lines += [(line, state) for line in advice(wanting, width)]
    counts = verdict(findings)["counts"]
    worst = FAILED if counts[FAILED] else NOT_ASKED if counts[NOT_ASKED] or not counts[OK] else OK
    lines += [
        ("", ""),
        (", ".join(f"{counts[state]} {SHOWN[state]}" for state in SHOWN if counts[state] or state == OK), worst),
    ]
    return lines


def advice(findings: Iterable[Finding], width: int = 110) -> list[str]:
    """What to do, once for all the checks that say the same."""
    checks: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        checks.setdefault((one.host, one.detail, one.remedy), []).append(one.check)
    lines: list[str] = []
    for (host, detail, remedy), names in checks.items():
        lines += _wrap(f"  {host}: {', '.join(names)}: ", detail, width, hang=6)
        lines += _wrap("      do: ", remedy, width, hang=10)
    return lines


def _wrap(head: str, text: str, width: int, hang: int | None = None) -> list[str]:
    indent = " " * (len(head) if hang is None else hang)
    room = max(width, len(indent) + 40)
    return textwrap.wrap(
        head + text,
        room,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    ) or [head.rstrip()]
