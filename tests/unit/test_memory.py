# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory model against llama.cpp's own figures, published needs, and itself."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ansible_collections.onprem.llm.plugins.module_utils import ranges
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import memory
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory, Offload
from ansible_collections.onprem.llm.plugins.module_utils.shape.read import read_shape
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Cache, Layer, Shape

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models

GIB, MIB = memory.GIB, memory.MIB
MEASURED = json.loads((Path(__file__).parents[1] / "fixtures/llamacpp_memory.json").read_text())["rows"]


@cache
def published(name: str, vocabulary: int = 0) -> Shape:
    """A published model; with fewer tokens for what was measured so."""
    with TemporaryDirectory() as folder:
        path = tiny_models.write_published(name, Path(folder), **({"vocabulary": vocabulary} if vocabulary else {}))
        return read_shape(lambda part: ranges.LocalFile(path.parent / part), [path.name])


def hardware(
    ram: int, gpus: tuple[int | None, ...] = (), numa: tuple[int, ...] = (), limit: int | None = None
) -> Hardware:
    """What the memory model looks at."""
    return {  # type: ignore[typeddict-item]
        "memory": {"total": ram, "limit": limit},
        "gpus": [{"memory": size} for size in gpus],
        "numa": [{"id": number, "memory": size} for number, size in enumerate(numa)],
    }


def kv_cache(
    kind: str = "full", heads: int = 8, key: int = 128, value: int = 128, window: int = 0, state: int = 0
) -> Cache:
    return {"kind": kind, "heads": heads, "key": key, "value": value, "window": window, "state": state}


def model(layers: int = 8, kind: Cache | None = None, **changes: Any) -> Shape:
    """A made-up model; bytes per layer are keywords too."""
    sizes = {part: changes.pop(part, 0) for part in ("attention", "dense", "experts", "shared", "other")}
    layer: Layer = {**sizes, "cache": kind or kv_cache()}
    shape: dict[str, Any] = {
        "format": "gguf", "architecture": "llama", "name": "made up", "quantisation": "Q4_K_M", "context": 32768,
        "vocabulary": 32000, "embedding": 4096, "heads": 32, "experts": 0, "experts_used": 0, "expert_width": 0,
        "layers": [layer] * layers, "embeddings": 100 * MIB, "output": 100 * MIB, "tied": False, "attention": "GQA",
        "types": {}, "chat_template": True, "pooling": "", "basis": "made up", "exact": True,
    } | changes  # fmt: skip
    shape["weights"] = shape["embeddings"] + shape["output"] + layers * sum(sizes.values())
    shape["parameters"] = shape["weights"] * 2
    return shape  # type: ignore[return-value]


def plan(shape: Shape, machine: Hardware, offload: Offload, **changes: Any) -> dict[str, DeviceMemory]:
    asked: dict[str, Any] = {
        "tokens": 8192, "slots": 1, "ubatch": 512, "cache_type": "f16", "cache_ram": 0, "taken": {},
    } | changes  # fmt: skip
    return {one["device"]: one for one in memory.llamacpp(shape, machine, offload=offload, **asked)}


def fit(shape: Shape, machine: Hardware, **changes: Any) -> Offload:
    asked: dict[str, Any] = {
        "tokens": 8192, "slots": 1, "ubatch": 512, "cache_type": "f16", "cache_ram": 0, "taken": {},
    } | changes  # fmt: skip
    return memory.fit_offload(shape, machine, **asked)


def offload(gpu_layers: int = 0, cpu_moe: int = 0, split: tuple[int, ...] = ()) -> Offload:
    """On one GPU, unless split over several."""
    return {
        "gpu_layers": gpu_layers,
        "cpu_moe_layers": cpu_moe,
        "split": list(split) or [gpu_layers] * (gpu_layers > 0),
    }


# --- the cache


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("deepseek-r1", 70_272),  # 61 layers x 576 x 2
        ("deepseek-r1-legacy", 4_997_120),  # 61 x 128 heads x (192 + 128) x 2: 4.77 MiB
        ("llama-70b", 320 * 1024),
        ("qwen3-235b-a22b", 188 * 1024),
        ("gpt-oss-120b", 36 * 1024),  # the half that sees everything; windows do not grow
    ],
)
def test_cache_per_token_to_the_byte(name: str, per_token: int) -> None:
    shape = published(name)
    assert memory.kv_bytes(shape, 16384, 1) - memory.kv_bytes(shape, 8192, 1) == 8192 * per_token
    if name != "gpt-oss-120b":
        assert memory.kv_bytes(shape, 8192, 1) == 8192 * per_token


def test_windows_recurrent_states_and_layers_without_cache() -> None:
    token = 8 * (128 + 128) * 2
    sliding = model(2, kv_cache("sliding", window=1000))
    assert memory.kv_bytes(sliding, 8192, 1) == 2 * 1536 * token  # 1000 + 512, to the next 256
    assert memory.kv_bytes(sliding, 8192, 4, ubatch=128) == 2 * 4 * 1280 * token
    assert memory.kv_bytes(sliding, 1024, 4) == 2 * 4 * 256 * token  # a slot has less than the window
    assert memory.kv_bytes(model(2, kv_cache("recurrent", state=1000)), 8192, 3) == 2 * 3 * 1000
    assert memory.kv_bytes(model(2, kv_cache("none")), 8192, 3) == 0


def test_slots_are_rounded_each() -> None:
    token = 8 * (128 + 128) * 2
    assert memory.kv_bytes(model(1), 1000, 3) == 3 * 512 * token
    assert memory.kv_bytes(model(1), 1, 1) == 256 * token


@pytest.mark.parametrize(
    ("cache_type", "bits"), [("f32", 32), ("bf16", 16), ("q8_0", 8.5), ("q5_1", 6), ("q4_0", 4.5), ("iq4_nl", 4.5)]
)
def test_cache_types(cache_type: str, bits: float) -> None:
    assert memory.kv_bytes(model(1), 1024, 1, cache_type) == 1024 * 8 * 256 * bits / 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"slots": -1}, "slots is -1; it must be at least 1"),
        ({"slots": 9, "tokens": 8}, "9 slots share 8 tokens: less than one token each; give more tokens"),
        ({"cache_type": "q3"}, "cache type 'q3' is unknown; there are f32, f16, bf16, q8_0,"),
        ({"offload": offload(9, split=(8,))}, "the split [8] places 8 layers, gpu_layers says 9"),
        ({"offload": offload(9, split=(5, 4))}, "the split names 2 GPUs, there are 1"),
        ({"offload": offload(-1)}, "an offload counts layers, none is below 0"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {"offload": offload(0)} | changes
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        plan(model(), hardware(GIB, (GIB,)), **given)


def test_layers_on_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="9 layers shall lie on a GPU, and there is none; give gpu_layers 0"):
        plan(model(), hardware(GIB), offload(9, split=()))
    with pytest.raises(ValueError, match="tensor_parallel is 2; there are 1 GPUs"):
        memory.vllm(model(), hardware(GIB, (GIB,)), tokens=8192, slots=1, tensor_parallel=2, taken={})


# --- what llama.cpp 0.7.0 says


@pytest.mark.parametrize(
    "row", MEASURED, ids=lambda row: "-".join(str(row[key]) for key in ("model", "gpu_layers", "cpu_moe_layers"))
)
def test_plan_is_what_llama_cpp_reports(row: Mapping[str, Any]) -> None:
    """Each device: weights within 5 %, cache within 10 %, compute buffers below the plan by the band at most."""
    machine = hardware(10**13, (10**13,) * len(row["split"]))
    shape = published(row["model"], row.get("vocabulary", 0))
    devices = plan(
        shape, machine,
        {key: row[key] for key in ("gpu_layers", "cpu_moe_layers", "split")},  # type: ignore[arg-type]
        tokens=row["tokens"], slots=row["slots"], ubatch=row["ubatch"], cache_type=row["cache_type"],
        flash=row["flash"], outputs=min(row["ubatch"], row["tokens"]),
    )  # fmt: skip
    for name, (weights, kv, compute) in row["reported"].items():
        assert devices[name]["weights"] / MIB == pytest.approx(weights, rel=0.05, abs=2), name
        assert devices[name]["kv_cache"] / MIB == pytest.approx(kv, rel=0.10, abs=2), name
        planned = devices[name]["compute"] / MIB
        assert compute <= planned * (1 + memory.BAND["compute"][1]) + 3, name
        # A plan much above the report would refuse what fits; experts in RAM may be copied to the GPU, or not.
        whole = not row["gpu_layers"] or row["gpu_layers"] > len(shape["layers"])
        if whole and not row["cpu_moe_layers"]:
            assert compute >= planned * 0.74 - 3, name


def test_the_server_needs_the_logits_of_one_token_per_slot() -> None:
    """Measured on llama-server 0.7.0: 69 MiB here, where llama-fit-params says 271."""
    shape = model(2, vocabulary=128256, embedding=2048, heads=16, dense=3 * 2048 * 8192, parameters=0)
    shape["parameters"] = shape["weights"]
    one, batch = (plan(shape, hardware(64 * GIB), offload(), outputs=outputs)["ram"] for outputs in (None, 512))
    assert batch["compute"] - one["compute"] > 150 * MIB


# --- where the parts lie


def test_everything_is_counted_once() -> None:
    shape = model(8, attention=10 * MIB, dense=20 * MIB, other=MIB)
    for gpu_layers in range(10):
        devices = plan(shape, hardware(64 * GIB, (24 * GIB,)), offload(gpu_layers))
        assert sum(one["weights"] for one in devices.values()) == shape["weights"]
        assert sum(one["kv_cache"] for one in devices.values()) == memory.kv_bytes(shape, 8192, 1)
    assert devices["ram"]["weights"] == shape["embeddings"]
    assert devices["gpu0"]["overhead"] == GIB // 2


def test_one_gpu_layer_is_the_output() -> None:
    """As llama.cpp 0.7.0 counts them: --gpu-layers 20 of 32 puts 19 layers and the output there."""
    devices = plan(model(8, dense=20 * MIB), hardware(64 * GIB, (24 * GIB,)), offload(1))
    assert (devices["gpu0"]["weights"], devices["gpu0"]["kv_cache"]) == (100 * MIB, 0)


def test_a_tied_table_is_there_twice_with_a_gpu() -> None:
    shape = model(8, tied=True, output=MIB)
    devices = plan(shape, hardware(64 * GIB, (24 * GIB,)), offload(9))
    assert (devices["ram"]["weights"], devices["gpu0"]["weights"]) == (100 * MIB, 101 * MIB)
    assert plan(shape, hardware(64 * GIB), offload())["ram"]["weights"] == 101 * MIB


def test_experts_of_the_first_layers_stay() -> None:
    shape = model(8, attention=10 * MIB, experts=100 * MIB, experts_used=2, expert_width=512) | {"experts": 16}
    devices = plan(shape, hardware(64 * GIB, (24 * GIB,)), offload(9, cpu_moe=3))
    assert devices["ram"]["weights"] == (100 + 3 * 100) * MIB
    # Of the four layers on the GPU the first two are below 6.
    devices = plan(shape, hardware(64 * GIB, (24 * GIB,)), offload(5, cpu_moe=6))
    assert devices["gpu0"]["weights"] == (100 + 4 * 10 + 2 * 100) * MIB


def test_cache_of_prompts_taken_memory_and_reserves() -> None:
    machine = hardware(100 * GIB, (24 * GIB,), limit=50 * GIB)
    devices = plan(model(), machine, offload(9), cache_ram=2 * GIB, taken={"ram": GIB, "gpu0": 5 * GIB})
    ram, gpu = devices["ram"], devices["gpu0"]
    assert (ram["capacity"], ram["reserve"], ram["others"]) == (50 * GIB, 2 * GIB, GIB)
    assert ram["overhead"] == 2 * GIB + memory.PROCESS
    assert (gpu["capacity"], gpu["reserve"], gpu["others"]) == (24 * GIB, GIB, 5 * GIB)
    assert memory.free(gpu) == 18 * GIB - memory.used(gpu)


@pytest.mark.parametrize(("ram", "reserve"), [(8 * GIB, GIB), (100 * GIB, 4 * GIB), (1024 * GIB, 16 * GIB)])
def test_os_reserve(ram: int, reserve: int) -> None:
    assert memory.os_reserve(hardware(ram)) == reserve


# --- the best offload


DENSE = model(8, attention=300 * MIB, dense=700 * MIB)
MOE = model(8, attention=100 * MIB, experts=2000 * MIB, experts_used=2, expert_width=512) | {"experts": 16}


def test_offload_by_size_of_the_gpu() -> None:
    ram = 64 * GIB
    assert fit(DENSE, hardware(ram)) == {"gpu_layers": 0, "cpu_moe_layers": 0, "split": []}
    assert fit(DENSE, hardware(ram, (24 * GIB,))) == offload(9)
    some = fit(DENSE, hardware(ram, (6 * GIB,)))
    assert 1 < some["gpu_layers"] < 9 and not some["cpu_moe_layers"]
    assert fit(DENSE, hardware(ram, (GIB,))) == {"gpu_layers": 0, "cpu_moe_layers": 0, "split": [0]}
    assert fit(DENSE, hardware(ram, (None,))) == {"gpu_layers": 0, "cpu_moe_layers": 0, "split": [0]}
    mixed = fit(MOE, hardware(ram, (10 * GIB,)))
    assert mixed["gpu_layers"] == 9 and 0 < mixed["cpu_moe_layers"] < 8


def test_gpus_are_filled_evenly_and_an_unknown_one_stays_empty() -> None:
    even = fit(DENSE, hardware(64 * GIB, (12 * GIB, 12 * GIB)))
    assert even["gpu_layers"] == 9 and sorted(even["split"]) in ([4, 5],)
    mixed = fit(DENSE, hardware(64 * GIB, (24 * GIB, None, 8 * GIB)))
    assert mixed["gpu_layers"] == 9 and mixed["split"][1] == 0 and mixed["split"][0] > mixed["split"][2]
    assert sum(mixed["split"]) == 9


@pytest.mark.parametrize("shape", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("size", [1.5, 2.5, 4, 6, 8, 11, 14, 18, 21])
def test_offload_is_the_best_there_is(shape: Shape, size: float) -> None:
    """Against all that could be chosen, judged by llamacpp()."""
    machine = hardware(64 * GIB, (int(size * GIB),))
    moe = 8 if shape is MOE else 0

    def fits(gpu_layers: int, cpu_moe: int) -> bool:
        return all(memory.free(one) >= 0 for one in plan(shape, machine, offload(gpu_layers, cpu_moe)).values())

    wanted = [(9, n) for n in range(moe + 1)] + [(n, moe) for n in range(8, 0, -1)]
    best = next((choice for choice in wanted if fits(*choice)), (0, 0))
    found = fit(shape, machine)
    assert (found["gpu_layers"], found["cpu_moe_layers"]) == best


sizes = st.integers(0, 40).map(lambda half: half * GIB // 2)


@settings(max_examples=150, deadline=None)
@given(
    ram=sizes, gpus=st.lists(sizes, max_size=3), more=st.lists(sizes, min_size=4, max_size=4), moe=st.booleans(),
    tokens=st.sampled_from([2048, 16384, 65536]), slots=st.sampled_from([1, 4]), flash=st.booleans(),
)  # fmt: skip
# A card that is too small for anything.
@example(ram=10 * GIB, gpus=[0], more=[0, GIB // 2, 0, 0], moe=False, tokens=2048, slots=1, flash=True)
def test_more_memory_never_makes_it_unfit(
    ram: int, gpus: list[int], more: list[int], moe: bool, tokens: int, slots: int, flash: bool
) -> None:
    shape = MOE if moe else DENSE
    fitting = []
    for extra in ([0] * 4, more):
        machine = hardware(ram + extra[0], tuple(size + plus for size, plus in zip(gpus, extra[1:], strict=False)))
        chosen = fit(shape, machine, tokens=tokens, slots=slots, flash=flash)
        devices = plan(shape, machine, chosen, tokens=tokens, slots=slots, flash=flash)
        fitting.append(all(memory.free(one) >= 0 for one in devices.values()))
        assert all(memory.free(one) >= 0 for name, one in devices.items() if name != "ram" and memory.used(one))
    assert fitting[1] or not fitting[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40000), st.integers(1, 40000), st.integers(1, 8), st.sampled_from([*tiny_models.PUBLISHED]))
def test_more_tokens_never_need_less(tokens: int, more: int, slots: int, name: str) -> None:
    tokens = max(tokens, slots)
    shape, machine = published(name), hardware(10**13, (10**13,))
    less, most = (
        plan(shape, machine, offload(len(shape["layers"]) + 1), tokens=n, slots=slots) for n in (tokens, tokens + more)
    )
    assert all(memory.used(most[device]) >= memory.used(less[device]) for device in less)


# --- the other engines


def safetensors(name: str, expert_bits: float, other_bits: float) -> Shape:
    """The published model with so many bits per weight of its experts and of everything else."""
    arch, _, figures = tiny_models.PUBLISHED["deepseek-r1"] if name == "deepseek" else ("", "", MODELS[name])
    del arch
    d = figures
    experts = 3 * d["experts"] * d["embedding"] * d["expert_width"] * expert_bits / 8
    mla = (
        d["embedding"] * d["q_rank"] + d["q_rank"] * d["heads"] * 192 + d["embedding"] * 576
        + 512 * d["heads"] * 256 + d["heads"] * 128 * d["embedding"]
    )  # fmt: skip
    attention = mla if d["q_rank"] else d["embedding"] * d["head"] * 2 * (d["heads"] + d["kv_heads"])
    kind = kv_cache("mla", 1, 576, 0) if d["q_rank"] else kv_cache("full", d["kv_heads"], d["head"], d["head"])
    shared = 3 * d["embedding"] * d["expert_width"] * d["shared_experts"]
    table = d["embedding"] * d["vocabulary"] * 2
    return model(
        d["layers"] - d["dense_layers"], kind, attention=int(attention * other_bits / 8), experts=int(experts),
        shared=int(shared * other_bits / 8), embeddings=table, output=table, embedding=d["embedding"],
        heads=d["heads"], vocabulary=d["vocabulary"], experts_used=d["experts_used"], expert_width=d["expert_width"],
    ) | {"experts": d["experts"]}  # type: ignore[return-value]  # fmt: skip


#: config.json of the publishers.
MODELS: dict[str, dict[str, int]] = {
    "kimi-k2": {
        "embedding": 7168, "layers": 61, "heads": 64, "vocabulary": 163840, "experts": 384, "experts_used": 8,
        "expert_width": 2048, "shared_experts": 1, "dense_layers": 1, "q_rank": 1536,
    },
    "minimax-m2": {
        "embedding": 3072, "layers": 62, "heads": 48, "head": 128, "kv_heads": 8, "vocabulary": 200064, "experts": 256,
        "experts_used": 8, "expert_width": 1536, "shared_experts": 0, "dense_layers": 0, "q_rank": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expert_bits", "other_bits", "vram", "ram"),
    [
        # KTransformers' own tutorials: DeepSeek-V3.2 AMXINT4, Kimi-K2-Thinking RAWINT4, MiniMax-M2.1 FP8; GB.
        ("deepseek", 4 + 32 / 7168, 8, 27, 350),
        ("kimi-k2", 4 + 16 / 32, 16, 48, 650),
        ("minimax-m2", 8, 8, 32, 256),
    ],
)
def test_ktransformers_needs_what_its_makers_say(
    name: str, expert_bits: float, other_bits: float, vram: int, ram: int
) -> None:
    """The tutorials name what to buy. The plan of one conversation of 8192 tokens is 80 to 100 % of that RAM, and 25 to
    100 % of that graphics memory, which also holds the prefill buffer and a larger cache."""
    shape = safetensors(name, expert_bits, other_bits)
    devices = memory.ktransformers(shape, hardware(1000 * GIB, (vram * 10**9,)), tokens=8192, slots=1, taken={})
    host, gpu = devices
    assert 0.80 * ram <= memory.used(host) / 1e9 <= ram
    assert 0.25 * vram <= memory.used(gpu) / 1e9 <= vram
    assert memory.free(gpu) >= 0


def test_tensor_parallel_cuts_weights_and_doubles_heads() -> None:
    machine = hardware(256 * GIB, (80 * GIB,) * 8)
    shape = model(8, kv_cache(heads=2), attention=800 * MIB)
    asked: dict[str, Any] = {"tokens": 8192, "slots": 2, "taken": {}}
    one, four = ({d["device"]: d for d in memory.vllm(shape, machine, tensor_parallel=n, **asked)} for n in (1, 4))
    assert four["gpu3"]["weights"] == -(-one["gpu0"]["weights"] // 4)
    # Two heads on four GPUs: each holds one.
    assert four["gpu3"]["kv_cache"] == one["gpu0"]["kv_cache"] // 2
    assert memory.used(four["gpu4"]) == 0
    assert one["gpu0"]["reserve"] == pytest.approx(8 * GIB, abs=1)
    compressed = model(8, kv_cache("mla", 1, 576, 0))
    whole = [memory.vllm(compressed, machine, tensor_parallel=n, **asked)[1]["kv_cache"] for n in (1, 8)]
    assert whole[0] == whole[1] == 8 * 576 * 2 * 8192


# --- NUMA


def ram_use(size: int) -> list[DeviceMemory]:
    rest: Any = dict.fromkeys(("capacity", "kv_cache", "compute", "overhead", "reserve", "others"), 0)
    return [{**rest, "device": "ram", "weights": size, "reserve": 9, "others": 9}]


@pytest.mark.parametrize(
    ("policy", "nodes", "used"),
    [
        ("distribute", [], [40, 40, 0]),
        ("interleave", [0, 1], [40, 40, 0]),
        ("pools", [0, 1], [40, 40, 0]),
        ("bind", [1], [0, 80, 0]),
        ("none", [], [80, 0, 0]),
    ],
)
def test_ram_per_node(policy: str, nodes: list[int], used: list[int]) -> None:
    machine = hardware(200, numa=(100, 100, 0))
    found = memory.nodes(ram_use(80), machine, {"policy": policy, "nodes": nodes})
    assert [(one["node"], one["capacity"]) for one in found] == [(0, 100), (1, 100)]
    assert [one["used"] for one in found] == used[:2]


def test_full_nodes_and_no_nodes() -> None:
    machine = hardware(300, numa=(20, 180, 100))
    spread = memory.nodes(ram_use(200), machine, {"policy": "distribute", "nodes": []})
    assert [one["used"] for one in spread] == [20, 90, 90]
    over = memory.nodes(ram_use(400), machine, {"policy": "none", "nodes": []})
    assert [one["used"] for one in over] == [20, 180, 200]
    assert memory.nodes(ram_use(80), hardware(100), {}) == [{"node": 0, "capacity": 100, "used": 80}]


def test_nodes_lose_nothing() -> None:
    for count, size in itertools.product(range(1, 5), range(0, 500, 37)):
        machine = hardware(1000, numa=tuple(range(50, 50 * count + 1, 50)))
        for policy in ("none", "distribute", "bind"):
            found = memory.nodes(ram_use(size), machine, {"policy": policy, "nodes": []})
            assert sum(one["used"] for one in found) == size
