# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of a run go back to what was before, by the local facts of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import GOOD


class Turns(TypedDict):
    going: dict[str, str]
    """By host what it goes back from and to."""
    left: dict[str, str]
    """By host why it stays as it is."""
    refused: str
    """Why nobody may go; empty when they may."""


def turns(component: str, hosts: Mapping[str, Mapping[str, Any] | None]) -> Turns:
    """``hosts``: the local facts of each; ``None`` of one that did not answer.

    Hosts that serve differently do not go together: one step back is the former version for some of them, and one
    older than that for those that have not come to the new one, or went back from it already. Of a host in the midst
    of a change it is what serves, or served until then; a change that is owed and has not begun does not count.
    """
    left: dict[str, str] = {}
    sections: dict[str, Mapping[str, Any]] = {}
    changing: dict[str, bool] = {}
    for host, facts in hosts.items():
        section = (facts or {}).get("components", {}).get(component, {})
        owes = any(one["component"] == component and one["what"] == "rollout" for one in (facts or {}).get("debts", []))
        # Facts of an older release do not tell one that is owed from one that has begun.
        begun = section["state"] != GOOD if "state" in section else owes
        if facts is None:
            left[host] = "nobody could ask it; when it answers: the same again with --limit " + host
        elif not section.get("previous") and not begun:
            left[host] = f"it has served with no other {component} before"
        else:
            sections[host], changing[host] = section, begun
    versions = {host: str(one.get("version", "nothing that passed")) for host, one in sections.items()}
    seen = [("", versions)]
    for model in sorted({model for one in sections.values() for model in one.get("models", {})}):
        here = {host: one["models"][model] for host, one in sections.items() if model in one.get("models", {})}
        seen.append((f"{model} from ", {host: str(one["pointer"]) for host, one in here.items()}))
    # Trees differ where systems do; a step apart are those of which one is what another had before.
    trees = {host: _short(str(one.get("pointer", ""))) for host, one in sections.items()}
    former = {host: _short(str((one.get("previous") or {}).get("pointer", ""))) for host, one in sections.items()}
    apart = any(trees[host] == before != trees[other] for host in trees for other, before in former.items())
    seen += [("", trees)] if apart and len(set(versions.values())) == 1 else []
    seen.append(("", {host: "a change is under way" if now else "none" for host, now in changing.items()}))
    differing = [_by_value(what, values) for what, values in seen if len(set(values.values())) > 1]
    refused = ""
    if differing:
        refused = (
            f"The hosts of this run do not serve {component} alike: {'; '.join(differing)}. One step back is not the "
            "same for all of them. Name those that shall go back with --limit. Nothing was changed."
        )
    elif not sections:
        stay = "; ".join(f"{host}: {why}" for host, why in left.items())
        refused = f"No host of this run can go back with {component}. {stay}. Nothing was changed."
    return {
        "going": {host: _step(component, one, changing[host]) for host, one in sections.items()},
        "left": left,
        "refused": refused,
    }


def _by_value(what: str, values: Mapping[str, str]) -> str:
    """As in: 0.7.0 on gpu1, gpu2 and 0.6.0 on gpu3."""
    hosts: dict[str, list[str]] = {}
    for host, value in values.items():
        hosts.setdefault(value, []).append(host)
    return what + " and ".join(f"{value} on {', '.join(those)}" for value, those in hosts.items())


def _step(component: str, section: Mapping[str, Any], changing: bool) -> str:
    """What changes by going back; what an unfinished change had brought is not in the facts."""
    if changing:
        return f"{component} from a change that is not through"
    before = section["previous"]
    said = []
    if section["version"] != before["version"]:
        said.append(f"{component} from {section['version']} to {before['version']}")
    elif section["pointer"] != before["pointer"]:
        said.append(f"{component} {section['version']} to the build before")
    for model, one in sorted(section.get("models", {}).items()):
        if not one["previous"]:
            said.append(f"{model} goes")
        elif one["previous"] != one["pointer"]:
            said.append(f"{model} from {_short(one['pointer'])} to {_short(one['previous'])}")
    return ", ".join(said) or f"the settings of {component}"


def _short(pointer: str) -> str:
    return os.path.basename(pointer.rstrip("/"))
