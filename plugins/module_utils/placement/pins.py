# SPDX-License-Identifier: GPL-3.0-or-later
"""Placements pinned in the inventory: what can be said of them before any hardware is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import llamacpp
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import flags as ktransformers
from ansible_collections.onprem.llm.plugins.module_utils.placement import engines

#: Options of the engine that are not a site's to give: the role's own, and what would change who may do what.
NOT_PINNED = (
    *llamacpp.OURS, "api-key-file", "ssl-key-file", "ssl-cert-file", "api-prefix", "tools", "agent",
    *ktransformers.OURS, *ktransformers.NOT_PINNED,
)  # fmt: skip
#: Engines that have a role. Hosts of the group of this name, or the engine's `engines.group`, may run them.
ROLES = ("llamacpp", "ollama", "ktransformers", engines.CLASSIC)
PIN_KEYS = (
    "model", "host", "engine", "port", "quantisation", "context", "parallel", "threads", "threads_batch", "numa",
    "flags",
)  # fmt: skip


def check(
    pins: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
) -> list[str]:
    """What makes the pins impossible, one sentence each, naming the pin, the value and the way out."""
    by_name = {m["name"]: m for m in models}
    problems = []
    ports: dict[tuple[str, int], str] = {}
    seen: set[tuple[str, str]] = set()
    for number, pin in enumerate(pins):
        missing = [key for key in ("model", "host") if pin.get(key) is None]
        if missing:
            problems.append(f"placements: entry {number + 1} ({dict(pin)}) has no {', '.join(missing)}.")
            continue
        model, host = str(pin["model"]), str(pin["host"])
        label = f"placements: '{model}' on '{host}'"
        unknown = [key for key in pin if key not in PIN_KEYS]
        if unknown:
            problems.append(f"{label}: unknown {', '.join(unknown)}. A pin may have: {', '.join(PIN_KEYS)}.")
        problems += _shape_problems(label, pin)
        if (model, host) in seen:
            problems.append(f"{label}: pinned twice. One host serves a model once; put both entries together.")
        seen.add((model, host))
        if model not in by_name:
            known = ", ".join(sorted(by_name)) or "none"
            problems.append(f"{label}: there is no such model in `models` (there: {known}).")
        if host not in groups.get("inference", []):
            members = ", ".join(groups.get("inference", [])) or "nobody"
            problems.append(
                f"{label}: the host is no member of the group inference (members: {members}). "
                "Add it there, or place the model on a member."
            )
        problems += _engine_problems(label, pin, host, groups)
        if pin.get("port") is not None:
            problems += _port_problems(label, pin["port"], host, model, ports)
        quantisations = [one["quantisation"] for one in by_name.get(model, {}).get("variants", [])]
        wanted = pin.get("quantisation")
        if wanted and any(quantisations) and wanted not in quantisations:
            problems.append(f"{label}: there is no variant '{wanted}'. There are: {', '.join(quantisations)}.")
    return problems


def _shape_problems(label: str, pin: Mapping[str, Any]) -> list[str]:
    """Values of the wrong kind, and flags that are not the plan's to give."""
    problems = []
    flags, numa = pin.get("flags"), pin.get("numa")
    if flags is not None and not isinstance(flags, Mapping):
        problems.append(f"{label}: flags is {flags!r}. Write a map of options without dashes, e.g. {{cache-ram: 0}}.")
    if numa is not None and not isinstance(numa, (str, Mapping)):
        problems.append(
            f"{label}: numa is {numa!r}. Write distribute, interleave, none or {{policy: bind, nodes: [0]}}."
        )
    taken = [flag for flag in flags if flag in NOT_PINNED] if isinstance(flags, Mapping) else []
    if taken:
        problems.append(
            f"{label}: the flags {', '.join(taken)} are set by the role, so that door, firewall and service agree. "
            "Leave them out; a port is pinned as `port`."
        )
    values = flags.items() if isinstance(flags, Mapping) else ()
    broken = [str(flag) for flag, value in values if re.search(r"[\x00-\x1f]", " ".join(map(str, _list(value))))]
    if broken:
        problems.append(
            f"{label}: the flags {', '.join(broken)} hold a line break or another control character, and an engine's "
            "options are one line of a file. Leave such values out, or send them with each request."
        )
    return problems


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _engine_problems(label: str, pin: Mapping[str, Any], host: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    engine = pin.get("engine")
    if engine is None:
        return []
    if engine not in ROLES:
        return [f"{label}: there is no role for the engine '{engine}'. Known: {', '.join(ROLES)}."]
    group = engines.group(str(engine))
    if host not in groups.get(group, []):
        return [
            f"{label}: the engine is {engine}, but the host is no member of the group {group}. "
            "Add it to that group in the inventory's hosts.yml, or pin an engine it has."
        ]
    return []


def _port_problems(label: str, port: Any, host: str, model: str, ports: dict[tuple[str, int], str]) -> list[str]:
    try:
        number = int(port)
    except (TypeError, ValueError):
        number = 0
    if not 1024 <= number <= 65535:
        return [f"{label}: the port is {port!r}. Use a number from 1024 to 65535."]
    if (host, number) in ports:
        return [
            f"{label}: port {number} is taken by '{ports[host, number]}' on the same host. "
            "Give each model of a host its own port."
        ]
    ports[host, number] = model
    return []
