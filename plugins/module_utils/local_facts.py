# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed on a host, and what it is still owed: one JSON file in Ansible's folder of local facts.

Shape: ``{"format": 1, "components": {name: {...}}, "debts": [{"component": ..., "what": ..., "why": ...}]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils import config_files

FORMAT = 1
#: What a host can owe, and what pays it. The doctor says the second.
REMEDIES = {
    "reboot": "reboot the host when nobody needs it, or allow it: -e nvidia_driver_reboot=if_needed; then run site.yml",
    "restart": "run site.yml: it restarts the service",
    "rollout": "mend what the reason names, then run site.yml; or ask for what serves in the inventory again",
}


class LocalFactsError(Exception):
    """The file cannot be understood, or what is to be written into it is none of it. The text says the way out."""


class Debt(TypedDict):
    component: str
    what: str
    why: str


class Facts(TypedDict):
    format: int
    components: dict[str, dict[str, Any]]
    debts: list[Debt]


@dataclass(frozen=True)
class Kept:
    """What the file says now, or would in check mode, and its texts. ``before`` is empty where there was none."""

    facts: Facts
    before: str
    after: str

    @property
    def changed(self) -> bool:
        return self.before != self.after


def empty() -> Facts:
    return {"format": FORMAT, "components": {}, "debts": []}


def parse(text: str, path: str) -> Facts:
    """The file's content. LocalFactsError for a file of a newer release, and for one that is damaged."""
    way_out = (
        f"Move it away (mv {path} {path}.old) and run site.yml: what is installed is looked at and written down anew."
    )
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LocalFactsError(f"{path} is no JSON ({error}). {way_out}") from error
    number = found.get("format") if isinstance(found, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise LocalFactsError(
            f"{path} has format {number}, and this release knows {FORMAT}: a newer onprem.llm was here. Use that one; "
            f"to go back nevertheless: {way_out}"
        )
    # What an older release did not write yet is empty.
    sections, owed = (found.get("components", {}), found.get("debts", [])) if isinstance(number, int) else (None, None)
    if not isinstance(sections, dict) or not isinstance(owed, list):
        raise LocalFactsError(f"{path} is not what onprem.llm writes (format {number!r}). {way_out}")
    return {"format": FORMAT, "components": sections, "debts": owed}


def change(
    before: Facts, component: str, facts: Mapping[str, Any] | None, debts: Sequence[Mapping[str, Any]] | None
) -> Facts:
    """A component's section and debts replaced; ``None`` leaves them, an empty section takes the component out."""
    for debt in debts or []:
        if debt.get("what") not in REMEDIES or not debt.get("why"):
            raise LocalFactsError(
                f"debts of {component}: {dict(debt)} is none. Write {{what: {' or '.join(REMEDIES)}, why: ...}}."
            )
    components = dict(before["components"])
    if facts is not None:
        components.pop(component, None)
        if facts:
            components[component] = dict(facts)
    owed = before["debts"]
    if debts is not None:
        owed = [one for one in owed if one["component"] != component]
        owed += [{"component": component, "what": one["what"], "why": one["why"]} for one in debts]
    return {"format": FORMAT, "components": components, "debts": owed}


def render(facts: Facts) -> str:
    return json.dumps(facts, indent=1, sort_keys=True) + "\n"


def read(path: Path) -> tuple[str, Facts]:
    """The file's text and content. LocalFactsError as of ``parse``; no file says nothing."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text, parse(text, str(path)) if text else empty()


def keep(
    path: Path,
    component: str,
    facts: Mapping[str, Any] | None,
    debts: Sequence[Mapping[str, Any]] | None,
    check: bool = False,
) -> Kept:
    """Write a component's section and debts as of ``change``, at once or not at all; a file that is right stays."""
    text, before = read(path)
    after = change(before, component, facts, debts)
    if after == before:
        return Kept(after, text, text)
    wanted = config_files.Wanted(str(path), render(after))
    difference = config_files.compare(wanted)
    if difference and not check:
        config_files.write(difference, lambda command: (0, ""))
    return Kept(after, text, wanted.content)
