# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import command_line, llamacpp


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"llamacpp_flags": llamacpp.server_flags, "command_line": command_line.written}
