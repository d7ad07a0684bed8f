# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a configuration onto the host. Each step is whole or not done; done twice it does nothing more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.onprem.llm.plugins.module_utils import config_files, service, systemctl, transfer
from ansible_collections.onprem.llm.plugins.module_utils.rollout import compare
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import Configuration


def point(link: str, target: str) -> None:
    """Let a link lead to a target, in one step."""
    now = compare.link(link)
    if now is not None and compare.leads_to(link, now) == compare.leads_to(link, target):
        return
    Path(link).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    transfer.point(Path(link), target)


def remove(path: str) -> None:
    """A file or a folder; the folder it was in goes too when it is a unit's own and empty now."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
        return
    config_files.draft_of(path).unlink(missing_ok=True)
    Path(path).unlink(missing_ok=True)
    folder = os.path.dirname(path)
    if folder.endswith(".service.d") and os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)


def apply(wanted: Configuration, left: Sequence[compare.Gone], units: systemctl.Units) -> list[str]:
    """Links, files and services as wanted, and nothing of what is ``left`` over; the units that were restarted.

    First what is left over, so that its memory and its port are free. OSError, FileError or ServiceError when a step
    fails.
    """
    for gone in left:
        if gone.unit and units.state(gone.unit).active != "not there yet":
            units.do("disable", "--now", gone.unit)
        # Backwards: a role finds what is left to remove by the first.
        for path in reversed(gone.paths):
            remove(path)
    for path in [*wanted.links, *(file.path for file in wanted.files)]:
        config_files.draft_of(path).unlink(missing_ok=True)
    for file in wanted.files:
        differs = config_files.compare(compare.wanted_file(file))
        if differs:
            config_files.write(differs, lambda _: (0, ""))
    for path, target in wanted.links.items():
        point(path, target)
    states = {one.unit: units.state(one.unit) for one in wanted.services}
    owed = {one.unit: service.owed(states[one.unit], one.restart_on, [])[0] for one in wanted.services}
    # Also where nothing is to be restarted: the run before may have broken off before it.
    units.do("daemon-reload")
    for unit, actions in owed.items():
        if "enable" in actions:
            units.do("enable", unit)
    restarts = [unit for unit, actions in owed.items() if "restart" in actions]
    # The port or the memory that one needs now may be what another has until it stops.
    for unit in restarts if len(restarts) > 1 else []:
        if states[unit].active not in ("inactive", "failed", "not there yet"):
            units.do("stop", unit)
    for unit in restarts:
        units.restart(unit)
    return restarts
