# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def transfer_plan(*given: Any, **options: Any) -> dict[str, Any]:
    from ansible_collections.onprem.llm.plugins.module_utils.model_store import sharing

    return sharing.transfer_plan(*given, **options)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"transfer_plan": transfer_plan}
