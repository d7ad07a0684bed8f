# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether systemd units run, keep running, and will run again after the next boot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, failed, ok

PROPERTIES = (
    "Id",
    "Names",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "UnitFileState",
    "ActiveEnterTimestampMonotonic",
)
YOUNG = 15.0  # seconds; a unit that restarted and is younger than this may be about to fall again


def full(name: str) -> str:
    """systemctl's own rule: a name without a suffix is a service."""
    suffixes = ("service", "socket", "target", "timer", "mount", "path", "slice")
    return name if name.rpartition(".")[2] in suffixes else f"{name}.service"


def parse(shown: str) -> list[dict[str, str]]:
    """Properties of each unit in the output of `systemctl show`."""
    blocks = [block for block in shown.split("\n\n") if block.strip()]
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]


def age(unit: Mapping[str, str], uptime: float) -> float:
    return max(0.0, uptime - int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6)


def restarts(unit: Mapping[str, str]) -> int:
    return int(unit.get("NRestarts") or 0)


def suspicious(unit: Mapping[str, str], uptime: float) -> bool:
    """Worth a second look: it runs, but it fell before and not long ago."""
    return unit.get("ActiveState") in ("active", "activating") and (
        unit.get("ActiveState") == "activating" or (restarts(unit) > 0 and age(unit, uptime) < YOUNG)
    )


def judge(
    host: str, name: str, unit: Mapping[str, str], uptime: float, before: Mapping[str, str] | None = None
) -> Finding:
    """``before``: the same unit some seconds earlier, when there was reason to look twice."""
    check = f"units.{name.removesuffix('.service')}"
    state = f"{unit.get('ActiveState', 'unknown')} ({unit.get('SubState', '?')})"
    journal = f"read journalctl -u {name} on {host}, mend the cause, run site.yml for {host}"
    if unit.get("LoadState") in (None, "", "not-found"):
        return failed(
            check, host, "no such unit", f"run site.yml for {host}: the role that installs {name} did not finish"
        )
    if unit.get("LoadState") == "masked" or unit.get("UnitFileState") == "masked":
        return failed(check, host, "masked", f"systemctl unmask {name} on {host}, then run site.yml")
    if before is not None and (restarts(unit) > restarts(before) or unit.get("SubState") == "auto-restart"):
        return failed(check, host, f"restarts in a loop: {restarts(unit)} times by now, {state}", journal)
    if unit.get("ActiveState") != "active":
        detail = state if unit.get("Result") in (None, "", "success") else f"{state}, {unit['Result']}"
        return failed(check, host, detail, journal)
    if unit.get("UnitFileState") == "disabled":
        return failed(
            check, host, "active, but it will not start at boot", f"systemctl enable {name} on {host}, or run site.yml"
        )
    fell = f", restarted {restarts(unit)} times" if restarts(unit) else ""
    return ok(check, host, f"active for {span(age(unit, uptime))}{fell}")


def match(names: Sequence[str], shown: Sequence[Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Units by the name they were asked by. An alias is shown under its own Id; a pattern (postgresql@*) finds the
    instances there are, and none is as wrong as a missing unit."""
    found: dict[str, Mapping[str, str]] = {}
    for name in names:
        wanted = full(name)
        hits = [unit for unit in shown if wanted in (unit.get("Id"), *unit.get("Names", "").split())]
        if "*" in name:
            hits = [unit for unit in shown if fnmatchcase(unit.get("Id", ""), wanted)]
            found.update({unit["Id"].removesuffix(".service"): unit for unit in hits})
        if not hits:
            found[name] = {}
        elif "*" not in name:
            found[name] = hits[0]
    return found


def span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def uptime(text: str) -> float:
    """Seconds of the monotonic clock, from the text of /proc/uptime."""
    return float(text.split()[0])


def judge_all(
    host: str, names: Sequence[str], first: Sequence[Mapping[str, str]], second: Sequence[Mapping[str, str]], now: float
) -> list[Finding]:
    """``second``: what the suspicious ones said on a second look."""
    once = match(names, first)
    twice = match(list(once), second)
    return [judge(host, name, twice[name] or unit, now, unit if twice[name] else None) for name, unit in once.items()]
