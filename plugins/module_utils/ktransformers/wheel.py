# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a host can run KTransformers from its wheels, before gigabytes are fetched for it.

The numbers are those of the planner's rules (placement/engines.py); here they meet the variables of the role.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement.engines import (
    CLASSIC,
    RULES,
    Rule,
    dotted,
    usable_gpus,
    version,
)

INSTEAD = "ktransformers_install_method"


def rule_of(method: str) -> Rule:
    """The planner's rule of what a method installs: wheel, source or classic."""
    return RULES[CLASSIC if method == "classic" else "ktransformers"]


def problems(hardware: Hardware, settings: Mapping[str, Any]) -> list[str]:
    """Why nothing is installed on this host, one sentence or two each: object, value, limit, way out.

    ``settings``: method (wheel, source, classic), version, python (version, as 3.11), interpreter (its path), path and
    space (where it goes, and bytes needed there, 0 when it is installed already), check (whether this is a check, which
    comes before the driver is installed). A host without a GPU is not refused: the plan never places a model there.
    """
    method = settings["method"]
    rule = rule_of(method)
    what = f"KTransformers {settings['version']} ({method})"
    host, system, said = hardware["id"], hardware["system"], []
    if hardware["architecture"] != "x86_64":
        said.append(f"{host} is {hardware['architecture']}; {what} needs x86_64. Use llama.cpp on this host.")
    elif gone := [flag for flag in rule.isa if flag not in hardware["cpu"]["isa"]]:
        said.append(
            f"The CPU of {host} ({hardware['cpu']['model']}) lacks {', '.join(gone)}, which {what} needs. "
            "Use llama.cpp on this host."
        )
    if settings["python"] and settings["python"] not in rule.python:
        said.append(
            f"Python on {host} is {settings['python']} ({settings['interpreter']}); {what} exists for "
            f"{' and '.join(rule.python)}. Use a host with Debian 12 or Ubuntu 24.04, or install such a Python "
            f"beside it and name it: ktransformers_python: /path/python{rule.python[-1]}."
        )
    glibc = version(system["glibc"])
    if rule.glibc and glibc and glibc < rule.glibc:
        said.append(
            f"glibc on {host} is {system['glibc']} ({system['distribution']} {system['version']}); {what} needs "
            f"{dotted(rule.glibc)}. Use Debian 12, Ubuntu 22.04 or newer, or llama.cpp."
        )
    said += _gpu_problems(hardware, method, what, settings["check"])
    disk, space = hardware["disk"], settings["space"]
    if disk and disk["free"] is not None and disk["free"] < space:
        said.append(
            f"{settings['path']} on {host} has {disk['free'] / 1e9:.1f} GB free; {what} takes {space / 1e9:.0f} GB. "
            "Make room, or put opt_dir on a larger disk."
        )
    return said


def _gpu_problems(hardware: Hardware, method: str, what: str, check: bool) -> list[str]:
    """What is wrong with the GPUs, when none of them can be used, and with their driver."""
    engine = CLASSIC if method == "classic" else "ktransformers"
    rule, host, driver = RULES[engine], hardware["id"], hardware["driver"]
    cards = hardware["gpus"]
    known = [(card["name"], number) for card in cards if (number := version(card["compute_capability"]))]
    lowest, below = rule.capability or (0, 0), rule.capability_below if method == "wheel" else None
    bad = [(name, number) for name, number in known if number < lowest or (below and number >= below)]
    if known and len(bad) == len(known):
        name, number = bad[0]
        limit = f"{dotted(lowest)} or newer" + (f" and below {dotted(below)}" if below else "")
        return [
            f"{name} in {host} has compute capability {dotted(number)}; {what} needs {limit}. "
            + (_old_card(number, method) if number < lowest else f"Set {INSTEAD}: source, or use llama.cpp.")
        ]
    have = version(driver["version"])
    if cards and rule.driver and have and have < rule.driver:
        better = f", better {rule.driver_better[0]}" if rule.driver_better else ""
        return [
            f"The NVIDIA driver on {host} is {driver['version']}; {what} needs {rule.driver[0]}{better} or newer. "
            "Install a newer driver, restart, and run again."
        ]
    if cards and not check and driver["state"] not in ("ok", "unknown"):
        return usable_gpus(engine, hardware)[1]
    return []


def _old_card(number: tuple[int, int], method: str) -> str:
    oldest = RULES[CLASSIC].capability
    classic = f", or pin classic KTransformers ({INSTEAD}: classic)" if method != "classic" else ""
    return f"Use llama.cpp{classic if oldest and number >= oldest else ''}, or a newer card."
