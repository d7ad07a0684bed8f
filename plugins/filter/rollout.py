# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def rollout_waves(owed: list[list[dict[str, Any]]]) -> list[int]:
    from ansible_collections.onprem.llm.plugins.module_utils.rollout import waves

    try:
        return waves.waves(owed)
    except waves.BatchError as error:
        raise AnsibleFilterError(str(error)) from error


def rollout_beside(placements: list[dict[str, Any]]) -> dict[str, bool]:
    from ansible_collections.onprem.llm.plugins.module_utils.rollout import beside

    return beside.fits(placements)


def rollback_turns(hosts: dict[str, Any], component: str) -> Any:
    from ansible_collections.onprem.llm.plugins.module_utils.rollout import back

    return back.turns(component, hosts)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"rollback_turns": rollback_turns, "rollout_beside": rollout_beside, "rollout_waves": rollout_waves}
