# SPDX-License-Identifier: GPL-3.0-or-later
"""Pins override what would be decided; one that cannot work is refused, with the figures."""

from __future__ import annotations

from typing import Any

import decisions
import pytest
from decisions import GIB, ask, catalogue, device, header, machine, said

from ansible_collections.onprem.llm.plugins.module_utils.placement import memory, pinned
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement

GOLD = "spr-2s-xeon-gold-6430-1tb"
X99 = ("hsx-1s-x99-e5-2696v3-64gb", "rtx-2080ti-22g-modded")


def pinned_to(hardware: Any, name: str, **pin: Any) -> Placement:
    return ask(hardware, [header(name)], 8192, 1, pin=pin)


def test_pinned_values_are_what_the_engine_gets() -> None:
    placement = pinned_to(
        machine(GOLD), "qwen3-4b-q4_k_m", threads=48, threads_batch=64, numa="none", context=4096, parallel=2,
        port=9200, flags={"temp": 0, "batch-size": 1024},
    )  # fmt: skip
    flags = placement["flags"]
    assert (flags["threads"], flags["threads-batch"], flags["ctx-size"], flags["parallel"]) == (48, 64, 8192, 2)
    assert (flags["temp"], flags["batch-size"]) == (0, 1024)
    assert "numa" not in flags and placement["numa"] == {"policy": "none", "nodes": []}
    assert (placement["context"], placement["slots"], placement["port"]) == (4096, 2, 9200)
    assert placement["pinned"] == [
        "threads", "threads_batch", "numa", "context", "parallel", "port", "flags.temp", "flags.batch-size"
    ]  # fmt: skip


def test_ctx_size_is_shared_by_the_slots() -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", flags={"ctx-size": 4096, "parallel": 2})
    assert (placement["context"], placement["slots"]) == (2048, 2)
    assert placement["flags"]["ctx-size"] == 4096
    ram = device(placement, "ram")
    assert ram["kv_cache"] == memory.kv_bytes(header("qwen3-4b-q4_k_m")[1], 4096, 2)


@pytest.mark.parametrize("value", ["all", 999, -1, "81"])
def test_all_layers_on_the_gpu_need_61_of_24_gib_no_more(value: Any) -> None:
    placement = pinned_to(machine(GOLD, "rtx-4090-24g"), "llama-70b-q4_k_m", flags={"gpu-layers": value})
    assert placement["fits"] == "no" and placement["engine"] == ""
    assert (
        "of gpu0 missing with 8192 tokens × 1 slot: the weights of 39.0 GiB are more than the 23.0 GiB"
        in placement["reasons"][0]
    )
    assert placement["offload"]["gpu_layers"] == 81


def test_fewer_layers_on_the_gpu_fit() -> None:
    placement = pinned_to(machine(GOLD, "rtx-4090-24g"), "llama-70b-q4_k_m", flags={"n-gpu-layers": 30})
    assert (placement["fits"], placement["offload"]["gpu_layers"]) == ("memory", 30)
    said(placement, "29 of 80 layers lie on gpu0, the others in RAM.")


@pytest.mark.parametrize("flags", [{"cpu-moe": True}, {"n-cpu-moe": 48}, {"n-cpu-moe": "all"}])
def test_experts_in_ram_are_counted_there(flags: dict[str, Any]) -> None:
    placement = pinned_to(machine(*X99), "qwen3-30b-a3b-q4_k_m", flags=flags)
    shape = header("qwen3-30b-a3b-q4_k_m")[1]
    assert placement["offload"]["cpu_moe_layers"] == 48
    assert device(placement, "ram")["weights"] >= sum(layer["experts"] for layer in shape["layers"])
    assert {key: placement["flags"][key] for key in flags} == flags


def test_a_shorter_cache_type_takes_less() -> None:
    whole = pinned_to(machine(GOLD), "llama-70b-q4_k_m")
    short = pinned_to(machine(GOLD), "llama-70b-q4_k_m", flags={"cache-type-k": "q8_0", "cache-type-v": "q8_0"})
    assert device(short, "ram")["kv_cache"] * 2 == pytest.approx(device(whole, "ram")["kv_cache"] * 34 / 32)
    assert (short["flags"]["cache-type-k"], short["flags"]["cache-type-v"]) == ("q8_0", "q8_0")


def test_a_pinned_batch_and_prompt_cache_are_counted() -> None:
    usual = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m")
    more = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", flags={"ubatch-size": 4096, "cache-ram": 8192})
    assert device(more, "ram")["compute"] > device(usual, "ram")["compute"]
    assert device(more, "ram")["overhead"] - device(usual, "ram")["overhead"] == 6 * GIB


def test_more_threads_than_cores_are_allowed_with_a_warning() -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", threads=100)
    assert placement["fits"] == "memory" and placement["flags"]["threads"] == 100
    said(placement, "Pinned: 100 threads on 64 physical cores. More threads than cores can be many times slower.")


def test_an_engine_that_the_card_cannot_run() -> None:
    placement = ask(machine(*X99), [catalogue("deepseek-r1", "FP8")], 8192, 1, pin={"engine": "ktransformers"})
    assert placement["fits"] == "no"
    assert placement["reasons"] == [
        "gpu0 (NVIDIA GeForce RTX 2080 Ti) has compute capability 7.5; KTransformers needs 8.0 or newer. "
        "Use llama.cpp with this card, or a newer card."
    ]


def test_an_engine_that_the_host_may_not_run() -> None:
    hardware = machine(GOLD, "rtx-4090-24g")
    placement = ask(
        hardware, [catalogue("deepseek-r1", "FP8")], 8192, 1, pin={"engine": "ktransformers"}, roles={"llamacpp"}
    )
    assert placement["fits"] == "no"
    assert placement["reasons"] == ["KTransformers is not available: there is no role for KTransformers yet."]


def test_classic_ktransformers_only_where_it_is_pinned() -> None:
    hardware: Any = machine(*X99)
    hardware["memory"]["total"] = 768 * GIB
    files = [header("deepseek-r1-ud-q2_k_xl-legacy")]
    assert all(one["engine"] != "ktransformers-classic" for one in ask(hardware, files, 1024, 1)["rejected"])
    placement = ask(hardware, files, 1024, 1, pin={"engine": "ktransformers-classic"}, what_if=True, roles={"llamacpp"})
    assert (placement["fits"], placement["engine"]) == ("memory", "ktransformers-classic")
    assert placement["flags"]["cpu_infer"] == 18


def test_a_context_beyond_the_trained_one() -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", context=65536)
    assert placement["fits"] == "no"
    assert placement["reasons"][0].startswith(
        "A context of 65536 tokens is longer than the 40960 the model was trained for. Take 40960 or less"
    )
    stretched = pinned_to(
        machine(GOLD), "qwen3-4b-q4_k_m", context=65536, flags={"rope-scaling": "yarn", "rope-scale": 2}
    )
    assert (stretched["fits"], stretched["context"]) == ("memory", 65536)


def test_a_quantisation_that_does_not_fit_and_one_that_would() -> None:
    files = [header("deepseek-r1-q4_k_m-legacy"), header("deepseek-r1-ud-iq1_s-legacy")]
    hardware: Any = machine("icx-2s-xeon-8352v-16vcpu-90gb", "vgpu-32g")
    hardware["memory"]["total"] = 200 * GIB
    free = ask(hardware, files, 2048, 1)
    assert (free["fits"], free["quantisation"]) == ("memory", "UD-IQ1_S")
    fixed = ask(hardware, files, 2048, 1, pin={"quantisation": "Q4_K_M"})
    assert fixed["fits"] == "paged"
    assert any(
        one.startswith("Without the pinned Q4_K_M it would fit in memory (llama.cpp, UD-IQ1_S, about ")
        for one in fixed["alternatives"]
    )


@pytest.mark.parametrize(
    ("pin", "sentence"),
    [
        ({"quantisation": "Q9"}, "Pinned: quantisation Q9. There is no such variant; there are: Q4_K_M."),
        ({"engine": "lmstudio"}, "There is no engine 'lmstudio'. Known: llamacpp, "),
        ({"threads": "many"}, "Pinned: threads 'many'. Use a whole number from 1."),
        ({"context": 0}, "Pinned: context 0. Use a whole number from 1."),
        ({"numa": "everywhere"}, "Pinned: numa 'everywhere'. Known: none, distribute, interleave, bind, pools."),
        ({"numa": "bind"}, "Pinned: numa bind without nodes. Say which: {policy: bind, nodes: [0]}."),
        ({"numa": True}, "Pinned: numa True. Known: none, "),
        ({"numa": 5}, "Pinned: numa 5. Known: none, "),
        ({"numa": ["x"]}, "Pinned: numa ['x']. Known: none, "),
        ({"numa": {"nodes": [0]}}, "Pinned: numa without a policy. Say which: {policy: bind, nodes: [0]}."),
        (
            {"numa": {"policy": "bind", "nodes": ["one"]}},
            "Pinned: numa nodes ['one']. Use a list of numbers: {policy: bind, nodes: [0]}.",
        ),
        ({"numa": {"policy": "bind", "nodes": [True]}}, "Pinned: numa nodes [True]. Use a list of numbers"),
        (
            {"numa": {"policy": "none", "nodes": [1]}},
            "Pinned: numa none with nodes [1]. Leave the nodes out, or pin the policy bind.",
        ),
        ({"flags": {"numa": "everywhere"}}, "Pinned: flags.numa 'everywhere'. Known: distribute, isolate, numactl."),
        ({"flags": ["--mlock"]}, "Pinned: flags ['--mlock']. Use names with values, as in {mlock: true}."),
        (
            {"flags": {"tensor-split": "0,0"}},
            "Pinned: tensor-split '0,0'. Use numbers with commas, one for each GPU: 0",
        ),
        ({"flags": {"tensor-split": "-1,2"}}, "Pinned: tensor-split '-1,2'. Use numbers with commas"),
        ({"flags": {"tensor-split": "nan,1"}}, "Pinned: tensor-split 'nan,1'. Use numbers with commas"),
        ({"flags": {"tensor-split": "1e308,1e308"}}, "Pinned: tensor-split '1e308,1e308'. Use numbers with commas"),
        ({"flags": {"gpu-layers": "--5"}}, "Pinned: gpu-layers '--5'. Use a whole number from 0."),
        ({"flags": {"gpu-layers": "²"}}, "Pinned: gpu-layers '²'. Use a whole number from 0."),
        (
            {"numa": {"policy": "bind", "nodes": [7]}},
            "Pinned: NUMA nodes 7. Nodes with CPUs here: 0, 1. Pin one of these.",
        ),
        ({"flags": {"cache-type-k": "q3"}}, "Pinned: cache type 'q3'. Known: f32, f16, "),
        (
            {"flags": {"tensor-split": "a,b"}},
            "Pinned: tensor-split 'a,b'. Use numbers with commas, one for each GPU: 0",
        ),
        ({"flags": {"gpu-layers": "most"}}, "Pinned: gpu-layers 'most'. Use a whole number from 0."),
        ({"flags": {"ctx-size": 1, "parallel": 4}}, "Pinned: ctx-size 1 for 4 slots. Pin a larger ctx-size."),
    ],
)
def test_a_pin_that_cannot_be_read(pin: dict[str, Any], sentence: str) -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", **pin)
    assert placement["fits"] == "no" and placement["flags"] == {}
    assert placement["reasons"][0].startswith(sentence)


@pytest.mark.parametrize("more", [{}, {"parallel": 4}])
def test_too_small_a_ctx_size_is_refused_once(more: dict[str, Any]) -> None:
    files = [header("qwen3-4b-q4_k_m"), catalogue("deepseek-r1-distill-llama-70b", "Q4_K_M")]
    placement = ask(machine(GOLD), files, None, 4, pin={"flags": {"ctx-size": 2}, **more})
    assert placement["reasons"] == ["Pinned: ctx-size 2 for 4 slots. Pin a larger ctx-size."]


@pytest.mark.parametrize("nodes", [1, "1", [1], ["1"], [1, 1]])
def test_a_bound_node_counts_its_own_cores(nodes: Any) -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", numa={"policy": "bind", "nodes": nodes})
    assert placement["threads"] == 32
    assert placement["numa"]["policy"] == "bind" and placement["numa"]["nodes"] == [1]
    assert placement["numa"]["cpus"] == sorted(machine(GOLD)["numa"][1]["cpus"])
    assert [one["node"] for one in placement["nodes"] if one["used"]] == [1]


@pytest.mark.parametrize(
    ("pin", "policy"),
    [
        ({"numa": "interleave"}, "interleave"),
        ({"numa": {"policy": "distribute"}}, "distribute"),
        ({"numa": {"policy": "interleave", "nodes": None}}, "interleave"),
        ({"flags": {"numa": "numactl"}}, "interleave"),
    ],
)
def test_a_policy_without_nodes_takes_all_that_have_cpus(pin: dict[str, Any], policy: str) -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", **pin)
    assert placement["numa"] == {"policy": policy, "nodes": [0, 1]}
    said(placement, "2 NUMA nodes have CPUs (0, 1)")


def test_an_unknown_number_of_nodes_counts_as_one() -> None:
    hardware: Any = {**machine(GOLD), "numa": []}
    placement = pinned_to(hardware, "qwen3-4b-q4_k_m", numa="interleave")
    assert placement["numa"] == {"policy": "interleave", "nodes": [0]}
    bound = pinned_to(hardware, "qwen3-4b-q4_k_m", numa={"policy": "bind", "nodes": [0]})
    assert bound["reasons"] == ["Pinned: NUMA nodes 0. Nodes with CPUs here: none is known. Pin no nodes."]


def test_pools_are_for_engines_that_have_them() -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", engine="llamacpp", numa="pools")
    assert placement["fits"] == "no"
    assert placement["reasons"] == [
        "llama.cpp is not available: numa pools is pinned, and llama.cpp has no pools "
        "(pin none, distribute, interleave or bind)."
    ]
    hardware = machine("spr-2s-xeon-8480-2tb", *["h200-sxm"] * 8, driver=decisions.NEW_DRIVER)
    files, pin = [catalogue("deepseek-r1", "FP8")], {"engine": "ktransformers"}
    pools = ask(hardware, files, 8192, 1, pin={**pin, "numa": "pools"})
    assert (pools["fits"], pools["flags"]["kt-threadpool-count"]) == ("memory", len(pools["numa"]["nodes"]))
    assert pools["numa"]["nodes"] == [node["id"] for node in hardware["numa"] if node["cpus"]]
    none = ask(hardware, files, 8192, 1, pin={**pin, "numa": "none"})
    assert none["reasons"] == [
        "KTransformers is not available: numa none is pinned, and KTransformers works in pools (pin pools)."
    ]


def test_on_and_off_of_yaml_are_the_words() -> None:
    flags = {"flash-attn": True, "fit": False, "lazy-mode": True, "mlock": True}
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", flags=flags)
    assert {name: placement["flags"][name] for name in flags} == {
        "flash-attn": "on", "fit": "off", "lazy-mode": "on", "mlock": True
    }  # fmt: skip
    off = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", flags={"flash-attn": False})
    assert off["flags"]["flash-attn"] == "off"
    assert device(off, "ram")["compute"] > device(placement, "ram")["compute"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, True) for name in ("no-kv-offload", "swa-full", "no-host", "no-repack", "kv-unified")],
        *[("split-mode", value) for value in ("row", "tensor", "none")],
        *[(name, 1) for name in ("main-gpu", "moe-cache-mib", "ctx-checkpoints", "kv-unified-per-slot")],
        ("device", "CUDA0"), ("rpc", "h:1"), ("model-draft", "f"), ("mmproj-url", "u"), ("override-tensor", "exps=CPU"),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_said(name: str, value: Any) -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", flags={name: value})
    said(placement, f"Pinned: {name}. The memory is computed without it.")


@pytest.mark.parametrize("flags", [{"split-mode": "layer"}, {"swa-full": False}, {"no-kv-offload": None}])
def test_what_changes_nothing_is_not_said(flags: dict[str, Any]) -> None:
    placement = pinned_to(machine(GOLD), "qwen3-4b-q4_k_m", flags=flags)
    assert not any("computed without it" in one for one in placement["reasons"])


def test_pinned_options_of_vllm() -> None:
    hardware = machine("spr-2s-xeon-8480-2tb", *["h200-sxm"] * 8, driver=decisions.NEW_DRIVER)
    placement = ask(
        hardware, [catalogue("deepseek-r1-distill-llama-70b", "FP8")],
        pin={"engine": "vllm", "flags": {"tensor-parallel-size": 4, "max-model-len": 16384, "max-num-seqs": 32}},
    )  # fmt: skip
    assert (placement["fits"], placement["context"], placement["slots"]) == ("memory", 16384, 32)
    assert len(placement["offload"]["split"]) == 4
    too_many = ask(
        hardware, [catalogue("deepseek-r1-distill-llama-70b", "FP8")],
        pin={"engine": "vllm", "flags": {"tensor-parallel-size": 9}},
    )  # fmt: skip
    assert too_many["fits"] == "no"
    assert "this machine has 8, and the pinned number is not among those" in too_many["reasons"][0]


def test_nothing_pinned() -> None:
    assert pinned.read({"model": "m", "host": "h"}) == (pinned.Pin(), [])


@pytest.mark.parametrize(
    ("proportions", "layers"),
    [("3,1", [37, 12]), ("1,1", [25, 24]), ("24,25", [24, 25]), ("1/1", [25, 24]), ("0,5", [0, 49]), ("1", [49, 0])],
)
def test_a_pinned_split_is_cut_as_llama_cpp_does(proportions: str, layers: list[int]) -> None:
    hardware = machine(GOLD, "rtx-4090-24g", "rtx-4090-24g")
    placement = pinned_to(hardware, "qwen3-30b-a3b-q4_k_m", flags={"tensor-split": proportions})
    assert placement["offload"]["split"] == layers and placement["flags"]["tensor-split"] == proportions
    weights = [device(placement, name)["weights"] for name in ("gpu0", "gpu1")]
    assert [weight > 0 for weight in weights] == [count > 0 for count in layers]


def test_a_pinned_split_over_gpus_that_are_not_there_counts_for_nothing() -> None:
    hardware = machine(GOLD, "rtx-4090-24g", "rtx-4090-24g")
    placement = pinned_to(hardware, "qwen3-30b-a3b-q4_k_m", flags={"tensor-split": "0,0,1"})
    assert sum(placement["offload"]["split"]) == 49
