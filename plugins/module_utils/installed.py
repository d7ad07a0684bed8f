# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host serves now, by the files that the services of the engines start with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import llamacpp
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import flags as ktransformers
from ansible_collections.onprem.llm.plugins.module_utils.ollama import installed as ollama
from ansible_collections.onprem.llm.plugins.module_utils.rollout import beside


def read(etc: Path) -> list[dict[str, Any]]:
    """``etc``: folder with one folder per engine. A copy that answers for a while is no placement."""

    def files(engine: str) -> list[Path]:
        return [one for one in sorted(etc.glob(f"{engine}/*.env")) if not one.stem.endswith(beside.SUFFIX)]

    found = []
    for file in files("llamacpp"):
        dropin = Path(f"/etc/systemd/system/llamacpp@{file.stem}.service.d/numa.conf")
        found.append(llamacpp.installed(file.stem, file.read_text(), dropin.read_text() if dropin.is_file() else ""))
    found += [ollama.installed(file.stem, file.read_text()) for file in files("ollama")]
    found += [ktransformers.installed(file.stem, file.read_text()) for file in files("ktransformers")]
    return found
