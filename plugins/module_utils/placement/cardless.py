# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that serve on cards their driver does not reach now: what runs goes on, what is restarted would not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import engines

#: The option by which an engine that runs without a GPU as well says how much of a model lies there.
LAYERS = {"llamacpp": "gpu-layers", "ollama": "num_gpu"}


def on_cards(service: Mapping[str, Any]) -> bool:
    """Of a service as ``installed.read`` gives it."""
    option = LAYERS.get(service["engine"])
    return not option or str(service["flags"].get(option, "0")) != "0"


def said(host: str, hardware: Hardware, services: Sequence[Mapping[str, Any]]) -> str:
    """Why this host shall stay as it is, and what to do; empty where nothing speaks against a change."""
    there = [one for one in services if on_cards(one)]
    state = hardware["driver"]["state"]
    if not hardware["gpus"] or state in ("ok", "unknown") or not there:
        return ""
    models = ", ".join(sorted(str(one["model"]) for one in there))
    groups = ",".join(sorted({engines.group(str(one["engine"])) for one in there}))
    why = hardware["unknown"].get("driver") or "look at nvidia-smi there"
    return (
        f"{host} serves {models} on its GPU, and the state of its NVIDIA driver is '{state}': {why}. A plan of now "
        "would put that onto the CPU, so this host is left as it is. Mend its driver, then run site.yml again (a "
        "reboot alone: -e nvidia_driver_reboot=if_needed). To serve without its cards: playbooks/uninstall.yml -e "
        f"uninstall={groups} --limit {host}, then site.yml."
    )
