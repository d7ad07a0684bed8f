# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed on a host, and what it is still owed: one JSON file in Ansible's folder of local facts.

Shape: ``{"format": 1, "components": {name: {...}}, "debts": [{"component": ..., "what": ..., "why": ...}]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

FORMAT = 1
#: What a host can owe, and what pays it. The doctor says the second.
REMEDIES = {
    "reboot": "reboot the host when nobody needs it, or allow it: -e nvidia_driver_reboot=if_needed; then run site.yml",
    "restart": "run site.yml: it restarts the service",
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
    if number != FORMAT or not isinstance(found.get("components"), dict) or not isinstance(found.get("debts"), list):
        raise LocalFactsError(f"{path} is not what onprem.llm writes (format {number!r}). {way_out}")
    return {"format": FORMAT, "components": found["components"], "debts": found["debts"]}


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
