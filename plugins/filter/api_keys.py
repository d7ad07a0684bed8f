# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def api_key_problem(text: Any, name: str) -> str:
    from ansible_collections.onprem.llm.plugins.module_utils import api_keys

    return api_keys.problem(str(text), name)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"api_key_problem": api_key_problem}
