# SPDX-License-Identifier: GPL-3.0-or-later
"""llama-server: its command line for a placement, and what the installed program says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import command_line


def _own_flags(placement: Mapping[str, Any], address: str) -> dict[str, Any]:
    """What the role gives itself."""
    return {
        "model": placement["model_path"],
        "alias": placement["model"],
        "host": address,
        "port": placement["port"],
        "metrics": True,
        "offline": True,
        "no-webui": True,
        "no-slots": True,
    }


#: What `server_flags` adds to a placement's own flags.
OURS = tuple(_own_flags({"model_path": "", "model": "", "port": 0}, ""))


def server_flags(placement: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Long options (no dashes) for one placement; ``True`` stands for an option without a value.

    Never in it: --tools, --agent, --mcp-servers (they give clients files and commands), the web UI, slots.
    """
    return {**_own_flags(placement, address), **placement["flags"]}


def installed(model: str, environment: str, numa: str = "") -> dict[str, Any]:
    """What a model's service starts with, as its two files say: the same keys as a placement's."""
    source = re.search(r"^# .*Files: (.*)$", environment, re.MULTILINE)
    line = re.search(r"^LLAMACPP_OPTIONS=(.*)$", environment, re.MULTILINE)
    flags = command_line.read(line[1]) if line else {}
    return {
        "model": model,
        "engine": "llamacpp",
        "port": int(flags.get("port", 0)),
        "source": source[1].strip() if source else "",
        "flags": {key: value for key, value in flags.items() if key not in OURS},
        "environment": command_line.environment(environment, "LLAMACPP_OPTIONS"),
        "numa": "".join(re.findall(r"^# .*NUMA policy of the plan: (.*)$", numa, re.MULTILINE)),
    }


def listed_options(help_text: str) -> set[str]:
    """Long options, without dashes, that a ``--help`` text lists at the start of its lines."""
    options: set[str] = set()
    for line in help_text.splitlines():
        if line.startswith("-"):
            head = re.split(r"\s{2,}[^-\s]", line, maxsplit=1)[0]
            options.update(re.findall(r"(?<![\w-])--([a-z0-9][a-z0-9-]*)", head))
    return options


def unknown_options(options: Iterable[str], help_text: str) -> list[str]:
    """Those of ``options`` that the program does not list."""
    known = listed_options(help_text)
    return sorted(o for o in set(options) if o not in known)


def parse_version(text: str) -> tuple[str, int | None]:
    """Version and build number from ``--version``: ``version: 0.7.0 (build 11669, …)`` or ``version: 8146 (hash)``."""
    match = re.search(r"version:\s*(\S+)\s*\((?:build\s+(\d+))?", text)
    if not match:
        return "unknown", None
    version, build = match.groups()
    if build is None and version.isdigit():
        build = version
    return version, int(build) if build else None


def below_floor(version: str, build: int | None, minimum_build: int, minimum_version: str) -> str:
    """Why a program may not be run; empty when it may.

    Compiled outside git it prints build 0, which says nothing: then its release counts.
    """
    if not minimum_build:
        return ""
    if build:
        return f"is build {build}; the oldest that may be run is {minimum_build}" if build < minimum_build else ""
    release, lowest = (tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (version, minimum_version))
    if "." not in version or not lowest:
        return f"calls itself '{version}' and names no build: nobody can tell whether it is {minimum_build} or later"
    return f"is release {version}; the oldest that may be run is {minimum_version}" if release < lowest else ""
