# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases of KTransformers up to 0.4.1: which files they compute with, and their rules for cards before Ampere."""

from __future__ import annotations

import re

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.flags import numbers

ONE_BIT = (0, 2, 3)
"""Release whose CPU kernels know IQ1_S and IQ2_XXS (kt#754); those before write gibberish or stop."""
MARLIN = (8, 0)
"""Compute capability that the 4-bit kernels of the GPU side (Marlin) need (kt#235)."""
#: Architecture (config.json) -> the release's own rules (default_optimize_rules in local_chat.py) ...
RULES = {
    "DeepseekV3ForCausalLM": "DeepSeek-V3-Chat",
    "DeepseekV2ForCausalLM": "DeepSeek-V2-Chat",
    "Qwen2MoeForCausalLM": "Qwen2-57B-A14B-Instruct",
    "MixtralForCausalLM": "Mixtral",
}
#: ... and GPUs -> the end of their name. By itself a release takes those for one GPU.
GPUS = {1: "", 2: "-multi-gpu", 4: "-multi-gpu-4", 8: "-multi-gpu-8"}


def too_old(model: str, quantisation: str, release: str) -> str:
    """Why this release cannot compute with these files; empty when it can."""
    kind = re.search(r"IQ1_S|IQ2_XXS", quantisation.upper())
    if not kind or numbers(release) >= ONE_BIT:
        return ""
    return (
        f"{model}: {quantisation} has experts in {kind[0]}, which classic KTransformers computes with from "
        f"{'.'.join(map(str, ONE_BIT))} on; ktransformers_version is {release}. Install a newer release "
        "(ktransformers_archive), or pin UD-Q2_K_XL or Q4_K_M."
    )


def needs_torch_linear(capabilities: list[tuple[int, int]]) -> bool:
    """Whether one of the cards cannot run the rules as they come."""
    return any(one < MARLIN for one in capabilities)


def torch_rules(rules: str) -> str:
    """Optimise rules with torch's matrices instead of Marlin's, for cards before Ampere such as the 2080 Ti."""
    return rules.replace("KLinearMarlin", "KLinearTorch")
