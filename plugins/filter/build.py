# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def build_plan(*given: Any) -> Any:
    from ansible_collections.onprem.llm.plugins.module_utils import build

    return build.plan(*given)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"build_plan": build_plan}
