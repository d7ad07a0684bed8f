# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import wheel


class FilterModule:
    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"ktransformers_problems": wheel.problems}
