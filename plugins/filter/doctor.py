# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def doctor_targets(results: Any, looker: str, lookers: int) -> list[dict[str, Any]]:
    from ansible_collections.onprem.llm.plugins.module_utils.doctor import ports

    return ports.targets(results, looker, lookers)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"doctor_targets": doctor_targets}
