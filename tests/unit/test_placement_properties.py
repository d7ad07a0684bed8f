# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for any machine: more memory never hurts, and what is said to fit does fit."""

from __future__ import annotations

import copy
from typing import Any

from decisions import GIB, ask, catalogue, header, machine, machines
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import memory

HEADERS = (
    "deepseek-r1-ud-iq1_s-legacy", "deepseek-r1-q4_k_m-mla", "llama-70b-q4_k_m", "qwen3-30b-a3b-q4_k_m",
    "qwen3-235b-a22b-q4_k_m", "gpt-oss-120b-mxfp4", "qwen3-4b-q4_k_m",
)  # fmt: skip
RANK = {"no": 0, "paged": 1, "memory": 2}

models = st.sampled_from(HEADERS)
gpu_lists = st.lists(st.sampled_from(sorted(machines.gpus())), max_size=4)
sizes = st.none() | st.sampled_from((512, 2048, 4096, 8192, 32768))
slots = st.none() | st.integers(1, 8)


def build(machine_id: str, gpus: list[str], ram: int, factors: list[float]) -> Hardware:
    """A recorded machine with another amount of RAM (GiB) and of memory on its GPUs."""
    found: Any = copy.deepcopy(machine(machine_id, *gpus))
    found["memory"] |= {"total": ram * GIB, "limit": None}
    for card, factor in zip(found["gpus"], factors, strict=False):
        card["memory"] = int(card["memory"] * factor)
    for node in found["numa"]:
        node["memory"] = node["available"] = ram * GIB // len(found["numa"])
    return found  # type: ignore[no-any-return]


hardware = st.builds(
    build,
    st.sampled_from(sorted(machines.machines())),
    gpu_lists,
    st.integers(2, 2048),
    st.lists(st.floats(0.1, 4), max_size=4),
)


@settings(max_examples=150, deadline=None)
@given(hardware, models, sizes, slots)
def test_what_fits_never_exceeds_a_device(host: Hardware, name: str, context: int | None, parallel: int | None) -> None:
    placement = ask(host, [header(name), catalogue("qwen3-30b-a3b", "FP8")], context, parallel)
    assert placement["reasons"]
    lacking = {one["device"] for one in placement["memory"] if memory.free(one) < 0}
    if placement["fits"] == "memory":
        assert not lacking
    elif placement["fits"] == "paged":
        assert lacking == {"ram"}
    if placement["fits"] != "no":
        assert placement["context"] == (context or placement["context"])
        assert placement["slots"] == (parallel or placement["slots"])
        assert 1 <= placement["threads"] <= max(1, host["cpu"]["cores"])
        assert placement["predicted"] and placement["predicted"]["decode"] > 0


@settings(max_examples=150, deadline=None)
@given(hardware, models, sizes, slots, st.integers(1, 512), st.lists(st.floats(1, 4), min_size=4, max_size=4))
# With the memory that leaves no room for the cache of prompts alone.
@example(build("emr-2s-cxl-xeon-gold-6530", [], 156, []), "deepseek-r1-q4_k_m-mla", None, None, 238, [1.0] * 4)
def test_more_memory_never_makes_a_fitting_model_unfit(
    host: Hardware, name: str, context: int | None, parallel: int | None, more: int, factors: list[float]
) -> None:
    before = ask(host, [header(name)], context, parallel)
    larger: Any = copy.deepcopy(host)
    larger["memory"]["total"] += more * GIB
    for card, factor in zip(larger["gpus"], factors, strict=False):
        card["memory"] = int(card["memory"] * factor)
    after = ask(larger, [header(name)], context, parallel)
    assert RANK[after["fits"]] >= RANK[before["fits"]], (before["reasons"], after["reasons"])


@settings(max_examples=80, deadline=None)
@given(hardware, models, st.integers(0, 120), st.integers(0, 120))
def test_pinned_layers_are_counted_or_refused(host: Hardware, name: str, gpu_layers: int, cpu_moe: int) -> None:
    placement = ask(host, [header(name)], 4096, 1, pin={"flags": {"gpu-layers": gpu_layers, "n-cpu-moe": cpu_moe}})
    if placement["fits"] == "memory":
        assert all(memory.free(one) >= 0 for one in placement["memory"])
        layers = len(header(name)[1]["layers"])
        assert placement["offload"]["gpu_layers"] == (min(gpu_layers, layers + 1) if host["gpus"] else 0)
