# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan would change on the hosts, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement

NOTHING = "Nothing would change."


def differences(planned: Sequence[Placement], installed: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """One sentence per model and host that changes, or that nothing does.

    ``installed``: host -> what it serves, each with model, engine, flags, source and port.
    """
    said = []
    for host in dict.fromkeys([p["host"] for p in planned] + list(installed)):
        here = {p["model"]: p for p in planned if p["host"] == host}
        if host not in installed:
            said.append(f"{host}: not asked what it serves now")
            continue
        there = {item["model"]: item for item in installed.get(host, [])}
        for model, placement in here.items():
            if placement["fits"] == "no":
                said.append(f"{host}: {model} does not fit, so the run would stop and leave the host as it is")
            elif model not in there:
                said.append(f"{host}: {model} is new")
            elif changed := _changed(placement, there[model]):
                said.append(f"{host}: {model}: " + "; ".join(changed))
        said += [f"{host}: {model} stops" for model in there if model not in here]
    return said or [NOTHING]


def numa_text(policy: Mapping[str, Any]) -> str:
    """A policy and its nodes, as the unit's drop-in names them."""
    return " ".join([str(policy["policy"]), *map(str, policy.get("nodes") or [])])


def _changed(planned: Placement, installed: Mapping[str, Any]) -> list[str]:
    found = []
    for key, word in (("engine", "engine"), ("source", "files"), ("port", "port")):
        before, after = installed.get(key), planned[key]  # type: ignore[literal-required]
        if str(before) != str(after):
            found.append(f"{word} {before} -> {after}")
    if "numa" in installed and installed["numa"] != numa_text(planned["numa"]):
        found.append(f"NUMA policy {installed['numa']} -> {numa_text(planned['numa'])}")
    if installed.get("environment", {}) != planned["environment"] and installed.get("engine") == planned["engine"]:
        before, after = (
            " ".join(f"{name}={value}" for name, value in sorted(one.items())) or "none"
            for one in (installed.get("environment", {}), planned["environment"])
        )
        found.append(f"environment {before} -> {after}")
    if installed.get("engine") == planned["engine"]:
        # Options of another engine are other words; that they differ says nothing.
        found += _options(planned["flags"], installed.get("flags") or {})
    return found


def _options(planned: Mapping[str, Any], installed: Mapping[str, Any]) -> list[str]:
    def written(option: str, value: Any) -> str:
        return option if value is True else f"{option} {value}"

    found = []
    for option in dict.fromkeys([*installed, *planned]):
        if option not in installed:
            found.append(f"{written(option, planned[option])} is added")
        elif option not in planned:
            found.append(f"{written(option, installed[option])} is dropped")
        elif str(installed[option]) != str(planned[option]):
            found.append(f"{option} {installed[option]} -> {planned[option]}")
    return found
