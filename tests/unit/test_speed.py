# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed predictions: their units and how they move, and the published rows beside them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hindcast

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import speed
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Offload, Speed
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

GIB = 2**30
ALONE: dict[str, Any] = {"policy": "none", "nodes": []}


def row(name: str) -> dict[str, Any]:
    return next(one for one in hindcast.ROWS if one["name"] == name)


def machine(name: str, *gpus: str) -> Hardware:
    return hindcast.hardware({"machine": name, "gpus": gpus})


def model(name: str, quantisation: str, **more: Any) -> Shape:
    return hindcast.shape({"model": name, "format": "gguf", "quantisation": quantisation, **more})


def offload(layers: int = 0, experts: int = 0, split: list[int] | None = None) -> Offload:
    return {"gpu_layers": layers, "cpu_moe_layers": experts, "split": split or []}


def predict(shape: Shape, hardware: Hardware, **more: Any) -> Speed:
    given: dict[str, Any] = {
        "engine": "llamacpp",
        "offload": offload(),
        "threads": hardware["cpu"]["cores"],
        "slots": 1,
        "numa": ALONE,
    }
    return speed.predict(shape, hardware, **{**given, **more})


LLAMA = model("Llama 3.1 8B", "Q4_K_M")
QWEN = model("Qwen3 30B A3B", "Q4_K_M")
WORKSTATION = machine("Core i9-10900X", "NVIDIA GeForce RTX 4090")
SERVER = machine("2 x Xeon Gold 6454S", "NVIDIA GeForce RTX 4090")


def test_tokens_per_second_are_bandwidth_over_bytes() -> None:
    """All on one GPU: every byte but the token table once per token, at the class's share of the bandwidth."""
    answer = predict(LLAMA, WORKSTATION, offload=offload(33, split=[33]), depth=0)
    constants = speed.CLASSES["llamacpp gpu"]
    seconds = (LLAMA["weights"] - LLAMA["embeddings"]) / (1008e9 * constants.decode) + 32 * constants.layer
    assert answer["decode"] == pytest.approx(1 / seconds, rel=0.01)
    assert answer["total"] == pytest.approx(answer["decode"])
    assert answer["basis"] == f"1008 GB/s of gpu0, class llamacpp gpu ({constants.decode:.2f})"


def test_a_conversation_slows_down_with_its_length() -> None:
    short, long = (predict(LLAMA, WORKSTATION, offload=offload(33, split=[33]), depth=depth) for depth in (0, 32768))
    cache = 32 * 8 * 2 * 128 * 2 * 32768
    extra = 1 / long["decode"] - 1 / short["decode"]
    assert extra == pytest.approx(cache / (1008e9 * speed.CLASSES["llamacpp gpu"].decode), rel=0.01)


def test_only_the_experts_a_token_needs_are_read() -> None:
    dense = copy.deepcopy(QWEN)
    dense["experts_used"] = dense["experts"]
    assert predict(QWEN, SERVER)["decode"] > 4 * predict(dense, SERVER)["decode"]


def test_the_planned_70b_on_a_4090_with_48_gb() -> None:
    """Near 20 tok/s, which is what it does."""
    published = row("Ollama Llama 70B Q4_K_M, RTX 4090 48 GB")
    answer = hindcast.predict(published)
    assert answer["decode"] == pytest.approx(20, rel=0.15)
    assert answer["decode_low"] < 20 < answer["decode_high"]


def test_cores_bound_what_a_quota_leaves() -> None:
    whole, half = copy.deepcopy(WORKSTATION), copy.deepcopy(WORKSTATION)
    for hardware, cpus in ((whole, 1.0), (half, 0.5)):
        hardware["cpu"]["usable"] = cpus
    fast, slow = (predict(LLAMA, hardware, threads=1) for hardware in (whole, half))
    assert slow["decode"] == pytest.approx(fast["decode"] / 2)
    assert "cores at" in fast["basis"]


def test_gpus_work_one_after_the_other_in_llamacpp_and_together_in_vllm() -> None:
    one, two = (machine("EPYC 7713", *["NVIDIA GeForce RTX 4090"] * count) for count in (1, 2))
    shape = model("Llama 3.1 8B", "BF16", format="safetensors")
    speeds = {}
    for engine in ("llamacpp", "vllm"):
        speeds[engine] = [
            predict(shape, hardware, engine=engine, offload=offload(33, split=split))["decode"]
            for hardware, split in ((one, [33]), (two, [17, 16]))
        ]
    assert speeds["llamacpp"][1] == pytest.approx(speeds["llamacpp"][0])
    assert speeds["vllm"][1] > 1.1 * speeds["vllm"][0]


def test_pages_that_nothing_places_cost_speed_on_two_sockets() -> None:
    placed = predict(LLAMA, SERVER, numa={"policy": "distribute", "nodes": [0, 1]})
    assert predict(LLAMA, SERVER)["decode"] < placed["decode"]
    bound = predict(LLAMA, SERVER, numa={"policy": "bind", "nodes": [0]}, threads=32)
    assert "307 GB/s of RAM by its DIMMs, class llamacpp ram (" in bound["basis"]


@pytest.mark.parametrize(
    "change",
    [{"experts_used": 0}, {"parameters": 0}, {"weights": 0}, {"layers": [], "output": 0, "embeddings": 0, "types": {}}],
    ids=str,
)
@pytest.mark.parametrize("rates", [{}, {"measured": {"0": 0}, "bandwidth": 0}], ids=str)
def test_nothing_is_divided_by_zero(change: dict[str, Any], rates: dict[str, Any]) -> None:
    shape: Any = {**QWEN, **change}
    hardware: Any = {**SERVER, "memory": {**SERVER["memory"], **rates}}
    for slots in (1, 4):
        for lies in (offload(), offload(20, 0, [20]), offload(49, 48, [49])):
            found = predict(shape, hardware, offload=lies, slots=slots)
            assert found["decode"] > 0 and found["total"] > 0 and (found["prefill"] or 0) > 0


def test_the_basis_names_the_source_of_the_bandwidth() -> None:
    measured, typical, unknown = (copy.deepcopy(machine("EPYC 7713")) for _ in range(3))
    measured["memory"]["measured"] = {"0": 150_000_000_000}
    typical["memory"]["bandwidth"] = unknown["memory"]["bandwidth"] = None
    typical["cpu"]["model"] = "AMD EPYC 7713 64-Core Processor"
    unknown["cpu"]["model"] = "a processor nobody knows"
    answers = [predict(LLAMA, hardware) for hardware in (measured, machine("EPYC 7713"), typical, unknown)]
    for answer, text in zip(
        answers,
        (
            "150 GB/s measured from RAM",
            "205 GB/s of RAM by its DIMMs",
            "205 GB/s of RAM typical of this processor",
            "19 GB/s of RAM assumed, as neither DIMMs nor processor say more",
        ),
        strict=True,
    ):
        assert text in answer["basis"]
    widths = [answer["decode_high"] / answer["decode_low"] for answer in answers]
    assert widths[0] == pytest.approx(widths[1]) and widths[1] < widths[2] < widths[3]


def test_what_misses_ram_comes_from_disk_and_the_interval_is_wide() -> None:
    answer = predict(QWEN, machine("EPYC 7713"))
    hardware = machine("EPYC 7713")
    hardware["disk"] = {
        "path": "/models",
        "total": 10**12,
        "free": 10**12,
        "filesystem": "ext4",
        "network": False,
        "rotational": True,
    }
    paged = [predict(QWEN, one, paged_bytes=4 * GIB) for one in (machine("EPYC 7713"), hardware)]
    assert answer["decode"] > paged[0]["decode"] > paged[1]["decode"]
    assert "GB of each token at 1.5 GB/s from a solid state disk, assumed" in paged[0]["basis"]
    assert "from a rotational disk" in paged[1]["basis"] and "assumed" not in paged[1]["basis"]
    assert paged[0]["decode_high"] / paged[0]["decode_low"] > 4 * answer["decode_high"] / answer["decode_low"]


def test_experts_in_ram_make_prompts_wait_for_the_link() -> None:
    """They are copied to the GPU for every batch, so longer batches read faster."""
    short, long = (
        predict(QWEN, WORKSTATION, offload=offload(49, 48, [49]), ubatch=ubatch)["prefill"] for ubatch in (512, 2048)
    )
    assert short is not None and long is not None
    assert 3 * short < long < 4 * short


def test_classic_ktransformers_reads_experts_from_ram_whatever_the_offload_says() -> None:
    answer = predict(QWEN, SERVER, engine="ktransformers-classic", offload=offload(49, split=[49]))
    assert "of RAM by its DIMMs, class classic ram, nodes" in answer["basis"]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([LLAMA, QWEN]),
    engine=st.sampled_from(sorted(speed.FAMILIES)),
    layers=st.integers(0, 49),
    experts=st.integers(0, 48),
    threads=st.integers(1, 64),
    slots=st.integers(1, 64),
    depth=st.integers(0, 32768),
    more=st.floats(1.0, 10.0),
)
def test_more_never_means_less(
    shape: Shape, engine: str, layers: int, experts: int, threads: int, slots: int, depth: int, more: float
) -> None:
    """More bandwidth is never slower, more slots never give less in total, and every interval holds its figure."""
    given: dict[str, Any] = {
        "engine": engine,
        "offload": offload(layers, experts, [layers]),
        "threads": threads,
        "numa": {"policy": "distribute", "nodes": [0, 1]},
        "depth": depth,
    }
    answer = predict(shape, SERVER, slots=slots, **given)
    assert 0 < answer["decode_low"] <= answer["decode"] <= answer["decode_high"]
    assert answer["prefill"] is not None and answer["prefill_low"] is not None and answer["prefill_high"] is not None
    assert 0 < answer["prefill_low"] <= answer["prefill"] <= answer["prefill_high"]
    faster = copy.deepcopy(SERVER)
    faster["memory"]["bandwidth"] = int((faster["memory"]["bandwidth"] or 0) * more)
    faster["gpus"][0]["bandwidth"] = int((faster["gpus"][0]["bandwidth"] or 0) * more)
    assert predict(shape, faster, slots=slots, **given)["decode"] >= answer["decode"] * 0.999
    assert predict(shape, SERVER, slots=slots + 1, **given)["total"] >= answer["total"] * 0.999
    assert (
        predict(shape, SERVER, slots=slots, **{**given, "threads": threads + 1})["decode"] >= answer["decode"] * 0.999
    )


def test_the_held_out_rows() -> None:
    """Answers: what docs/speed.md says of the half that no constant was fitted on."""
    held_out = [
        one for one in hindcast.results() if one.kind in ("decode", "total") and not hindcast.fitted(one.row["name"])
    ]
    median, near, inside = hindcast.summary(held_out)
    assert len(held_out) >= 20
    assert median <= 1.15
    assert near >= 0.8
    assert inside >= 0.9
    misses = {one.row["name"] for one in held_out if one.factor > 1.5}
    assert misses == {
        "KTransformers R1 UD-Q2_K_XL, 2 x E5-2630 v4",
        "KTransformers R1, 2 x E5-2686 v4",
        "Ollama Qwen2.5 Coder 32B Q4_K_M, Ryzen AI 9 HX 370",
        "ik_llama.cpp R1 Q4, EPYC 7773X",
        "llama.cpp Llama 70B F16, 2 x EPYC 9175F",
        "llama.cpp gpt-oss 20B, RTX PRO 6000 Max-Q",
    }


def test_each_row_says_where_it_is_from() -> None:
    assert len({one["name"] for one in hindcast.ROWS}) == len(hindcast.ROWS) >= 20
    for one in hindcast.ROWS:
        assert one["source"] and one["date"], one["name"]


def test_the_page_shows_what_the_model_says_now() -> None:
    assert hindcast.PAGE.read_text() == hindcast.page(), "run tests/bench/fit-speed --write"
