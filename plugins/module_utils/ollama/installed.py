# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model's service starts with, as its settings say."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import command_line

#: Variables that the role adds to those of a placement.
OURS = ("OLLAMA_HOST", "OLLAMA_MODELS", "DOOR_MODEL", "DOOR_KIND", "DOOR_GPU_BYTES")


def installed(model: str, text: str) -> dict[str, Any]:
    """Of the text of its environment file: the same keys as a placement's."""

    def said(name: str) -> str:
        found = re.search(rf"^# .*{name}: (.*)$", text, re.MULTILINE)
        return found[1].strip() if found else ""

    return {
        "model": model,
        "engine": "ollama",
        "port": int(said("Port") or 0),
        "source": said("Files"),
        "flags": command_line.read(said("Parameters")),
        "environment": command_line.environment(text, *OURS),
        "numa": "none",
    }
