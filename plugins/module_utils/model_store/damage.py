# SPDX-License-Identifier: GPL-3.0-or-later
"""What the last verification of a store found damaged; a file of the host, next to no store's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import transfer


@dataclass(frozen=True)
class Damage:
    """One published file that is no longer what it was."""

    repo: str
    revision: str
    path: str
    pieces: tuple[int, ...] = ()
    """Indices of its damaged pieces; none: its pieces are not known, it is damaged as a whole."""


@dataclass(frozen=True)
class Findings:
    """What a verification found."""

    checked: float = 0.0
    """When it ended, seconds since the epoch; 0: never."""
    damaged: tuple[Damage, ...] = ()


def read(path: Path) -> Findings:
    """The findings; empty where there are none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Findings(
            float(data["checked"]),
            tuple(
                Damage(str(one["repo"]), str(one["revision"]), str(one["path"]), tuple(map(int, one["pieces"])))
                for one in data["damaged"]
            ),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Findings()


def write(path: Path, checked: float, damaged: Sequence[Damage]) -> None:
    """Replace the findings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"checked": checked, "damaged": [asdict(one) for one in damaged]}
    transfer.write_atomically(path, json.dumps(data, indent=2) + "\n", 0o644)
