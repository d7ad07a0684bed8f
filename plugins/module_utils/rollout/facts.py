# SPDX-License-Identifier: GPL-3.0-or-later
"""What the record of a component's switches means for the host's local facts: its section, and what is owed."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import (
    FAILED,
    RETURNING,
    SWITCHING,
    WATCHING,
    Configuration,
    Record,
)

OWED = {
    SWITCHING: "the switch to {version} that began at {since} did not come to its end",
    WATCHING: "{version} serves since {since} and was not watched to the end",
    RETURNING: "{version} was refused at {since} ({why}), and the way back did not come to its end",
    FAILED: "{version} was refused at {since}: {why}",
}
"""By the record's state. A component that is good is owed nothing."""


def section(record: Record) -> dict[str, Any]:
    """``{version, pointer, state, previous: {version, pointer}, models: {name: {pointer, previous}}}`` of what is good.

    ``state`` is that of the record. Pointers are what links lead to: ``current`` that of the component, any other that
    of a model. Empty while nothing was ever good.
    """
    if record.good is None:
        return {}
    before = _models(record.previous) if record.previous else {}
    return {
        **_one(record.good),
        "state": record.state,
        "previous": _one(record.previous) if record.previous else {},
        "models": {
            name: {"pointer": to, "previous": before.get(name, "")} for name, to in _models(record.good).items()
        },
    }


def debts(record: Record) -> list[dict[str, str]]:
    """What the component is owed, as the local facts list it."""
    words = OWED.get(record.state)
    if words is None:
        return []
    version = record.wanted.version if record.wanted else "the new version"
    why = record.why.strip().split("\n", 1)[0] or "no reason was written down"
    since = datetime.fromtimestamp(record.since, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return [{"what": "rollout", "why": words.format(version=version, since=since, why=why)}]


def _one(state: Configuration) -> dict[str, str]:
    pointers = [to for path, to in state.links.items() if os.path.basename(path) == "current"]
    return {"version": state.version, "pointer": pointers[0] if pointers else ""}


def _models(state: Configuration) -> dict[str, str]:
    links = {os.path.basename(path): to for path, to in sorted(state.links.items())}
    links.pop("current", None)
    return links
