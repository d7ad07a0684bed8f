# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host had when it was first looked at: written down once, before any role changes anything.

One folder: ``before.json``, below ``files/`` copies of the distribution's files that roles replace, and below
``returned/`` the copies of those that were put back and are the operator's again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FORMAT = 1
RECORD = "before.json"
COPIES = "files"
RETURNED = "returned"


class BeforeError(Exception):
    """The record cannot be read. The text says which and the way out."""


@dataclass(frozen=True)
class Before:
    """Names only; versions and contents stay the distribution's business."""

    packages: Sequence[str] = ()
    """As dpkg names them: ``name``, or ``name:architecture`` where several may be installed."""
    automatic: Sequence[str] = ()
    """Those of them that were installed only because others need them."""
    units: dict[str, str] = field(default_factory=dict)
    """Unit files and their state (enabled, disabled, static ...)."""
    running: Sequence[str] = ()
    """Services that ran, instances of templates among them."""
    users: Sequence[str] = ()
    groups: Sequence[str] = ()

    def had_unit(self, name: str) -> bool:
        """Also an instance of a template that was there."""
        return name in self.units or f"{name.partition('@')[0]}@.{name.rpartition('.')[2]}" in self.units


def render(before: Before) -> str:
    return json.dumps({"format": FORMAT, **asdict(before)}, indent=1, sort_keys=True) + "\n"


def read(folder: Path) -> Before | None:
    """The record of a folder; ``None`` when the host was never looked at."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        if found.pop("format") != FORMAT:
            raise BeforeError(f"{path} was written by another release of onprem.llm. Uninstall with that release.")
        return Before(**found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BeforeError(
            f"{path} is damaged ({error}). It says which packages were here before onprem.llm. Move it away "
            f"(mv {folder} {folder}.old): then all packages stay, and you remove by hand what you do not want."
        ) from error
