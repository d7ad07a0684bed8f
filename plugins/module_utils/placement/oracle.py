# SPDX-License-Identifier: GPL-3.0-or-later
"""What llama.cpp itself says it needs, against what the plan says.

Two forms, both of 0.7.0 and in whole MiB: the lines of ``llama-fit-params --fit-print on`` (device, model, context,
compute), which needs no memory for the model, and the rows of ``fit_memory_breakdown`` that ``llama-server
--log-jsonl`` writes of what it has really taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.placement.memory import BAND, GIB, MIB
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory

#: Device -> weights, kv_cache and compute, bytes.
Reported = dict[str, dict[str, int]]

LINE = re.compile(r"^(?P<name>\S+) (?P<weights>\d+) (?P<kv_cache>\d+) (?P<compute>\d+) *$", re.MULTILINE)
PARTS = ("weights", "kv_cache", "compute")
NAMES = {"weights": "weights", "kv_cache": "cache", "compute": "compute buffers"}
#: Options of llama-server that llama-fit-params takes too, and that change what lies where.
OPTIONS = (
    "ctx-size", "parallel", "batch-size", "ubatch-size", "cache-type-k", "cache-type-v", "flash-attn", "device",
    "gpu-layers", "n-cpu-moe", "split-mode", "tensor-split",
)  # fmt: skip
#: Below this no difference is worth a word: both sides round, and small buffers are not modelled.
SLACK = 16 * MIB


class OracleError(Exception):
    """llama.cpp said nothing that can be compared."""


def arguments(model_path: str, flags: Mapping[str, Any]) -> list[str]:
    """Arguments of llama-fit-params for the flags of a placement.

    Without repacking, as repacked weights have rows of their own that it does not print.
    """
    found = ["--model", model_path, "--fit", "off", "--fit-print", "on", "--no-repack"]
    for name in OPTIONS:
        if name in flags:
            found += [f"--{name}", str(flags[name])]
    return found


def device(name: str) -> str:
    """ram for Host and its buffers, gpu1 for CUDA1 (also Vulkan1, ROCm1 ...)."""
    found = re.fullmatch(r"(?!CPU)[A-Za-z]+(\d+)", name)
    return f"gpu{found[1]}" if found else "ram"


def fit_print(text: str) -> Reported:
    """From the standard output of llama-fit-params."""
    return _sum(LINE.finditer(text), text, "a line of a device, its model, context and compute in MiB")


def breakdown(text: str) -> Reported:
    """From the log of llama-server --log-jsonl: the last breakdown in it."""
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        if '"fit_memory_breakdown"' not in line:
            continue
        try:
            rows = json.loads(line)["data"]["rows"]
            rows = [
                {"name": row["name"], "weights": row["model"], "kv_cache": row["context"], "compute": row["compute"]}
                for row in rows
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise OracleError(f"a fit_memory_breakdown that cannot be read: {line[:200]}") from error
    return _sum(rows, text, "a fit_memory_breakdown")


def named(reported: Reported, visible: str) -> Reported:
    """The devices by their number in the host: with ``CUDA_VISIBLE_DEVICES`` a program counts only those it sees."""
    places = [place for place in visible.split(",") if place]
    return {
        f"gpu{places[int(name[3:])]}" if name != "ram" and int(name[3:]) < len(places) else name: parts
        for name, parts in reported.items()
    }


def _sum(rows: Any, text: str, what: str) -> Reported:
    found: Reported = {}
    for row in rows:
        parts = found.setdefault(device(row["name"]), dict.fromkeys(PARTS, 0))
        for part in PARTS:
            parts[part] += int(row[part]) * MIB
    if not found:
        end = " / ".join(text.strip().splitlines()[-3:])[-300:]
        raise OracleError(f"llama.cpp printed no memory; expected {what}. It ended with: {end or 'nothing'}")
    return found


def compare(
    planned: Sequence[DeviceMemory],
    reported: Reported,
    band: Mapping[str, tuple[float, float]] = BAND,
    logits: int = 0,
) -> list[str]:
    """Where the report lies outside the band: one sentence each, with both figures.

    ``logits``: bytes the reporting program takes for the logits of a whole batch and the server does not:
    llama-fit-params plans ubatch x vocabulary x 4.
    """
    plans = {one["device"]: one for one in planned}
    found = []
    for name in sorted({*plans, *reported}):
        for part in PARTS:
            expected = int(plans[name][part]) if name in plans else 0  # type: ignore[literal-required]
            said = reported.get(name, {}).get(part, 0)
            below, above = band[part]
            most = expected * (1 + above) + SLACK + (logits if part == "compute" else 0)
            least = expected * (1 - below) - SLACK
            if least <= said <= most:
                continue
            change = f"{abs(said / expected - 1):.0%} {'more' if said > expected else 'less'}" if expected else "more"
            limit = above if said > most else below
            found.append(
                f"{name}: the plan expects {_gib(expected)} of {NAMES[part]}, llama.cpp reports {_gib(said)} "
                f"({change}; {limit:.0%} is the band)."
            )
    return found


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
