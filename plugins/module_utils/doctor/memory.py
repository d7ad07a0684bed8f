# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan's memory against what the engine's own loader says of the same model and flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, ok, warning


def judge(host: str, model: str, answer: Mapping[str, Any]) -> Finding:
    """One answer of C(llamacpp_memory). A wrong estimate is no untruth of the service, so it only warns."""
    check = f"memory.{model}"
    if answer.get("reported") is None:
        reason = answer.get("reason") or answer.get("msg") or "no reason given"
        remedy = "the plan's memory stays an estimate here; a build of llama.cpp with llama-fit-params compares it"
        return warning(check, host, f"not compared: {' '.join(str(reason).split())}", remedy)
    if answer["differences"]:
        remedy = "the plan is wrong about this model: pin what it should be (placements), and report the two figures"
        return warning(check, host, " ".join(answer["differences"]), remedy)
    sizes = [f"{device} {sum(parts.values()) / 2**30:.2f} GiB" for device, parts in answer["reported"].items()]
    return ok(check, host, f"llama.cpp lays it out as planned: {', '.join(sizes)}")
