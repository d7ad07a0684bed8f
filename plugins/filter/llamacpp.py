# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def llamacpp_flags(placement: Any, address: str) -> dict[str, Any]:
    from ansible_collections.onprem.llm.plugins.module_utils import llamacpp

    return llamacpp.server_flags(placement, address)


def command_line(flags: Any) -> str:
    from ansible_collections.onprem.llm.plugins.module_utils import command_line

    return command_line.written(flags)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"llamacpp_flags": llamacpp_flags, "command_line": command_line}
