# SPDX-License-Identifier: GPL-3.0-or-later
"""One difference between a host and its description, the verdict over all, and how people and programs read it."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# What no task looks at: a run of site.yml does not put it right.
PROBE = "no task looks at it"


@dataclass(frozen=True)
class Difference:
    """``what`` names one object (a file, a unit, a package, an entry); ``how`` says how it differs, on one line."""

    host: str
    what: str
    how: str
    found_by: str = PROBE  # "role: task"
    diff: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Broken:
    """Where the look at a host ended early: what comes after it was not looked at."""

    host: str
    found_by: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def unified(before: str, after: str) -> str:
    """What differs between two texts, a few lines around it, without file names."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "as it is", "as it shall be", lineterm="", n=1
    )
    return "\n".join(lines)


def report(
    hosts: Iterable[str], found: Iterable[Mapping[str, Any]], broken: Iterable[Mapping[str, Any]], time: str
) -> dict[str, Any]:
    """The report as in the JSON file. ``ok``: every host was looked at to the end, and nothing differs."""
    differences = [dict(one) for one in found]
    errors = [dict(one) for one in broken]
    return {
        "ok": not differences and not errors,
        "time": time,
        "hosts": {host: sum(one["host"] == host for one in differences) for host in hosts},
        "differences": differences,
        "not_looked_at": errors,
    }


def headline(report: Mapping[str, Any]) -> str:
    """The result on one line."""
    count, errors = len(report["differences"]), sorted({one["host"] for one in report["not_looked_at"]})
    differing = [host for host, number in report["hosts"].items() if number]
    text = f"{count} difference{'s' if count != 1 else ''} on {len(differing)} of {len(report['hosts'])} hosts"
    text += f" ({', '.join(differing)})" if differing else ""
    return text + (f"; not looked at to the end: {', '.join(errors)}" if errors else "")


def table(report: Mapping[str, Any], width: int = 118, lines: int = 12) -> list[str]:
    """The list people read; of each diff at most ``lines`` lines, with 0 nothing."""
    shown: list[str] = []
    for host, count in report["hosts"].items():
        own = [one for one in report["differences"] if one["host"] == host]
        broken = [one for one in report["not_looked_at"] if one["host"] == host]
        if not own and not broken:
            continue
        shown += ["", f"{host}: {count} difference{'s' if count != 1 else ''}"]
        for one in own:
            shown += _wrap(f"  {one['what']}: {one['how']}", width)
            shown.append(f"      ({one['found_by']})")
            diff = one["diff"].splitlines()
            shown += [f"      {line[: width - 6]}" for line in diff[:lines]]
            shown += [f"      ... {len(diff) - lines} more lines"] if 0 < lines < len(diff) else []
        for one in broken:
            shown += _wrap(f"  NOT LOOKED AT after {one['found_by']}: {one['reason']}", width)
    return [*shown, "", headline(report)]


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)


def metrics(report: Mapping[str, Any], seconds: float) -> str:
    """For the textfile collector of node_exporter. ``seconds``: when the look ended, since the epoch."""
    broken = {one["host"] for one in report["not_looked_at"]}
    rows: Sequence[tuple[str, str, list[tuple[str, float]]]] = (
        (
            "onprem_llm_drift_differences",
            "Differences between a host and its description.",
            [(f'{{host="{host}"}}', number) for host, number in report["hosts"].items()],
        ),
        (
            "onprem_llm_drift_complete",
            "1 when the host was looked at to the end.",
            [(f'{{host="{host}"}}', host not in broken) for host in report["hosts"]],
        ),
        ("onprem_llm_drift_time_seconds", "When the look ended.", [("", seconds)]),
    )
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} gauge\n"
        + "".join(f"{name}{label} {value:.0f}\n" for label, value in values)
        for name, text, values in rows
    )
