# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def ktransformers_problems(hardware: Any, settings: Any) -> list[str]:
    from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import wheel

    return wheel.problems(hardware, settings)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"ktransformers_problems": ktransformers_problems}
