# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions for machines that exist, with context and slots given: what is chosen, and the sentences that say why."""

from __future__ import annotations

from typing import Any

import decisions
import pytest
from decisions import GIB, ask, catalogue, device, header, machine, rejection, said

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import decide, memory, words
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Placement

GOLD = "spr-2s-xeon-gold-6430-1tb"
IQ1 = "deepseek-r1-ud-iq1_s-legacy"


def deepseek(name: str) -> list[decisions.Variant]:
    return [catalogue(name, one["quantisation"]) for one in decisions.CATALOGUE[name]["variants"]]


@pytest.mark.parametrize("name", ["deepseek-r1", "deepseek-v3-0324"])
def test_two_gold_6430_with_a_terabyte_run_deepseek_in_ktransformers(name: str) -> None:
    placement = ask(machine(GOLD, "rtx-4090-24g"), deepseek(name), 8192, 1)
    assert (placement["fits"], placement["engine"], placement["quantisation"]) == ("memory", "ktransformers", "FP8")
    assert (placement["context"], placement["slots"]) == (8192, 1)
    assert placement["threads"] == 64
    assert placement["numa"] == {"policy": "pools", "nodes": [0, 1]}
    flags = placement["flags"]
    assert (flags["kt-method"], flags["kt-cpuinfer"], flags["kt-threadpool-count"]) == ("FP8", 64, 2)
    assert (flags["kt-numa-nodes"], flags["tensor-parallel-size"]) == ("0 1", 1)
    assert placement["environment"] == {"KT_KERNEL_CPU_VARIANT": "amx"}
    assert device(placement, "ram")["weights"] > 600 * GIB
    said(placement, "The experts lie in RAM (amx kernels, method FP8)", "gpu0")
    said(placement, "64 threads: one for each of the 64 physical cores")
    said(placement, "2 pools, one for each NUMA node with CPUs (0, 1)")
    assert "driver 580" in rejection(placement, "vllm")["reason"]


def test_without_a_role_ktransformers_would_be_better() -> None:
    placement = ask(machine(GOLD, "rtx-4090-24g"), deepseek("deepseek-r1"), 8192, 1, roles={"llamacpp"})
    assert placement["engine"] == "llamacpp"
    better = rejection(placement, "ktransformers")
    assert better["better"]
    assert better["reason"].startswith(
        "Would be better, not available: there is no role for KTransformers yet. KTransformers with FP8: about "
    )
    assert better["reason"] not in placement["alternatives"], "said once"


def test_a_host_outside_the_group_of_an_engine_does_not_run_it() -> None:
    placement = ask(machine(GOLD, "rtx-4090-24g"), deepseek("deepseek-r1"), 8192, 1, allowed={"llamacpp"})
    assert placement["engine"] == "llamacpp"
    assert "h is no member of the group ktransformers" in rejection(placement, "ktransformers")["reason"]


def test_what_if_every_engine_may_be_chosen() -> None:
    placement = ask(
        machine(GOLD, "rtx-4090-24g"), deepseek("deepseek-r1"), 8192, 1, roles={"llamacpp"}, allowed=set(), what_if=True
    )
    assert placement["engine"] == "ktransformers"
    said(placement, "There is no role for KTransformers yet.")


def guides_machine(**more: Any) -> Placement:
    """Two 8352V, of which 16 cores and 90 GB are given to a virtual machine, and 32 GB of a GPU."""
    return ask(machine("icx-2s-xeon-8352v-16vcpu-90gb", "vgpu-32g"), [header(IQ1)], 2048, 1, **more)


def test_the_guides_machine_pages() -> None:
    placement = guides_machine()
    assert (placement["fits"], placement["engine"]) == ("paged", "llamacpp")
    assert (placement["threads"], placement["flags"]["load-mode"]) == (16, "mmap")
    assert placement["predicted"] and placement["predicted"]["decode"] < 5
    sentence = said(placement, "paged", "miss RAM")
    assert sentence.endswith("This stops the run unless placement_allow_paging is set.")
    assert f"about {words.rate(placement['predicted']['decode'])} tok/s" in sentence
    said(placement, "4.77 MiB per token")
    assert all(memory.free(one) >= 0 for one in placement["memory"] if one["device"] != "ram")
    assert (
        "GiB of RAM missing with 2048 tokens × 1 slot: the weights of 130.6 GiB are more than"
        in (rejection(placement, "llamacpp")["reason"])
    )


def test_paging_that_is_allowed_stops_nothing() -> None:
    placement = guides_machine(paging=True)
    assert placement["fits"] == "paged"
    assert "stops" not in said(placement, "paged", "miss RAM")


def test_x99_with_a_2080_ti_takes_llama_cpp() -> None:
    hardware = machine("hsx-1s-x99-e5-2696v3-64gb", "rtx-2080ti-22g-modded")
    files = [catalogue("qwen3-30b-a3b", "FP8"), header("qwen3-30b-a3b-q4_k_m")]
    placement = ask(hardware, files, 8192, 1)
    assert (placement["fits"], placement["engine"], placement["threads"]) == ("memory", "llamacpp", 18)
    assert rejection(placement, "ktransformers")["reason"] == (
        "gpu0 (NVIDIA GeForce RTX 2080 Ti) has compute capability 7.5; KTransformers needs 8.0 or newer. "
        "Use llama.cpp with this card, or a newer card."
    )
    large = ask(hardware, [catalogue("deepseek-r1", "FP8"), header(IQ1)], 2048, 1)
    assert (large["fits"], large["engine"]) == ("paged", "llamacpp")
    assert "compute capability 7.5" in rejection(large, "ktransformers")["reason"]


def test_a_70b_on_48_gb_lies_on_the_gpu() -> None:
    placement = ask(machine("spr-2s-xeon-gold-6430", "rtx-4090-48g-modded"), [header("llama-70b-q4_k_m")], 8192, 1)
    assert (placement["fits"], placement["engine"]) == ("memory", "llamacpp")
    assert placement["offload"]["gpu_layers"] == 81 == placement["flags"]["gpu-layers"]
    assert placement["predicted"] and 15 < placement["predicted"]["decode"] < 25
    said(placement, "All 80 layers lie on gpu0.")
    assert placement["numa"]["policy"] == "none"
    assert placement["flags"]["load-mode"] == "none"


def two_a100(context: int) -> Placement:
    return ask(machine("genoa-2s-epyc-9654", "a100-sxm4-80g", "a100-sxm4-80g"), [header(IQ1)], context, 1)


def test_two_a100_hold_the_legacy_files_at_4096() -> None:
    placement = two_a100(4096)
    assert (placement["fits"], placement["context"], placement["slots"]) == ("memory", 4096, 1)
    offload = placement["offload"]
    assert (offload["gpu_layers"], offload["cpu_moe_layers"], sum(offload["split"])) == (62, 0, 62)
    said(placement, "All 61 layers lie on gpu0, gpu1.")
    said(placement, "4.77 MiB per token")
    assert placement["flags"]["tensor-split"] == ",".join(map(str, offload["split"]))


def test_two_a100_at_8192_lack_room_for_the_kv_cache() -> None:
    placement = two_a100(8192)
    assert placement["fits"] == "memory" and placement["offload"]["cpu_moe_layers"] > 0
    sentence = said(placement, "Not everything lies on the GPUs")
    assert "with 8192 tokens × 1 slot the KV cache of 38.1 GiB is what does not fit beside the weights of" in sentence
    assert sentence.endswith("with 4096 tokens × 1 slot all would.")


def test_two_a100_and_little_ram_at_8192_do_not_fit_at_all() -> None:
    hardware: Any = machine("laptop-i7-1260p", "a100-sxm4-80g", "a100-sxm4-80g")
    assert ask(hardware, [header(IQ1)], 4096, 1)["fits"] == "memory"
    placement = ask(hardware, [header(IQ1)], 16384, 1)
    assert placement["fits"] in ("no", "paged")
    assert any("4096 tokens × 1 instead of 16384 × 1 would fit in memory" in one for one in placement["alternatives"])
    assert "KV cache" in rejection(placement, "llamacpp")["reason"]


def test_eight_h200_split_r1_eight_ways() -> None:
    hardware = machine("spr-2s-xeon-8480-2tb", *["h200-sxm"] * 8, driver=decisions.NEW_DRIVER)
    placement = ask(hardware, deepseek("deepseek-r1"), 8192, 16)
    assert (placement["fits"], placement["engine"], placement["quantisation"]) == ("memory", "vllm", "FP8")
    assert placement["flags"]["tensor-parallel-size"] == 8
    assert placement["flags"]["max-num-seqs"] == 16 and placement["flags"]["max-model-len"] == 8192
    assert rejection(placement, "sglang")["reason"] == "About as fast as vLLM, which stands before it."
    assert rejection(placement, "llamacpp")["reason"].startswith("Slower: ")


def test_one_h200_with_many_users_takes_vllm() -> None:
    hardware = machine("spr-2s-xeon-8488c", "h200-sxm", driver=decisions.NEW_DRIVER)
    files = [catalogue("deepseek-r1-distill-llama-70b", "FP8"), header("llama-70b-q4_k_m")]
    placement = ask(hardware, files, 8192, 16)
    assert (placement["fits"], placement["engine"], placement["slots"]) == ("memory", "vllm", 16)
    assert rejection(placement, "llamacpp")["reason"].startswith("Slower: ")


def test_four_nodes_per_socket() -> None:
    placement = ask(machine("genoa-1s-nps4-epyc-9534"), [header("qwen3-235b-a22b-q4_k_m")], 8192, 4)
    assert placement["threads"] == 64
    assert placement["numa"] == {"policy": "distribute", "nodes": [0, 1, 2, 3]}
    assert placement["flags"]["numa"] == "distribute" and placement["flags"]["load-mode"] == "mmap"
    assert [one["used"] > 0 for one in placement["nodes"]] == [True] * 4
    said(placement, "4 NUMA nodes have CPUs (0, 1, 2, 3)", "kernel.numa_balancing")


def test_sub_numa_clusters_are_pools() -> None:
    hardware = machine("spr-2s-snc4-xeon-8480", "rtx-4090-24g")
    placement = ask(hardware, [catalogue("qwen3-235b-a22b", "FP8")], 8192, 1)
    assert (placement["engine"], placement["threads"]) == ("ktransformers", 112)
    assert placement["flags"]["kt-threadpool-count"] == 8
    said(placement, "8 pools, one for each NUMA node with CPUs (0, 1, 2, 3, 4, 5, 6, 7); sockets do not count.")


def test_memory_without_cpus_counts_but_is_no_pool() -> None:
    hardware = machine("emr-2s-cxl-xeon-gold-6530", "rtx-4090-24g")
    bare = [node["id"] for node in hardware["numa"] if not node["cpus"]]
    assert bare == [2]
    placement = ask(hardware, [catalogue("qwen3-235b-a22b", "FP8")], 8192, 1)
    assert placement["flags"]["kt-threadpool-count"] == 2 and placement["numa"]["nodes"] == [0, 1]
    assert said(placement, "NUMA node 2 has memory and no CPUs").endswith("count as memory, but no threads run there.")
    assert device(placement, "ram")["capacity"] == hardware["memory"]["total"]


def test_an_offline_cpu_is_not_counted() -> None:
    placement = ask(machine("genoa-2s-offline-epyc-9554"), [header("qwen3-235b-a22b-q4_k_m")], 8192, 4)
    assert placement["threads"] == 128
    said(placement, "CPU 128 is offline and not counted: 255 logical CPUs on 128 physical cores are online.")
    said(placement, "More than 64 threads are often slower: pin `threads: 64` and compare.")


def test_a_laptop_without_gpu() -> None:
    placement = ask(machine("laptop-i7-1260p"), [header("qwen3-4b-q4_k_m")], 4096, 1)
    assert (placement["fits"], placement["engine"], placement["threads"]) == ("memory", "llamacpp", 12)
    assert not {"gpu-layers", "split-mode", "tensor-split", "numa", "device"} & set(placement["flags"])
    assert "needs a GPU; this machine has none" in rejection(placement, "vllm")["reason"]
    assert rejection(placement, "ktransformers")["reason"].startswith("KTransformers is for models of experts")


def test_a_quota_of_cpus_limits_the_threads() -> None:
    hardware: Any = machine(GOLD)
    hardware["cpu"]["usable"] = 5.5
    placement = ask(hardware, [header("qwen3-4b-q4_k_m")], 4096, 1)
    assert placement["threads"] == 6
    said(placement, "this system may use 5.5 CPUs at once, of 64 physical cores")


def test_what_is_not_given_is_chosen_as_long_as_it_costs_no_speed() -> None:
    hardware = machine("spr-2s-xeon-gold-6430", "rtx-4090-48g-modded")
    placement = ask(hardware, [header("llama-70b-q4_k_m")])
    assert placement["offload"]["gpu_layers"] == 81, "a longer context would push layers off the GPU"
    assert (placement["context"], placement["slots"]) == (8192, 2)
    small = ask(hardware, [header("qwen3-4b-q4_k_m")])
    assert (small["context"], small["slots"]) == (32768, 4)


def test_slots_come_before_very_long_contexts() -> None:
    assert decide.in_order([32768, 8192, 4096], [2, 1]) == [
        [(32768, 2), (8192, 2)],
        [(32768, 1), (8192, 1)],
        [(4096, 2)],
        [(4096, 1)],
    ]
    assert decide.in_order([4096], [4, 1]) == [[(4096, 4)], [(4096, 1)]]


def test_a_cache_that_would_crowd_out_the_weights_is_not_taken_unasked() -> None:
    """4.77 MiB per token: 32768 x 4 would fit into a terabyte, with hardly a layer left on the GPU."""
    placement = ask(machine(GOLD, "rtx-4090-24g"), [header("deepseek-r1-q4_k_m-legacy")])
    cache = sum(one["kv_cache"] for one in placement["memory"])
    assert placement["fits"] == "memory"
    assert cache <= max(0.25 * header("deepseek-r1-q4_k_m-legacy")[1]["weights"], 126 * GIB)
    given = ask(machine(GOLD, "rtx-4090-24g"), [header("deepseek-r1-q4_k_m-legacy")], 32768, 4)
    assert (given["fits"], given["context"], given["slots"]) == ("memory", 32768, 4), "what is asked for must hold"


def test_a_context_is_never_longer_than_trained() -> None:
    variant, shape = header("qwen3-4b-q4_k_m")
    short: Any = {**shape, "context": 6000}
    assert ask(machine(GOLD), [(variant, short)])["context"] == 4096
    tiny: Any = {**shape, "context": 512}
    assert ask(machine(GOLD), [(variant, tiny)])["context"] == 512
    refused = ask(machine(GOLD), [(variant, short)], 8192)
    assert refused["fits"] == "no" and refused["engine"] == ""
    assert refused["reasons"] == [
        "A context of 8192 tokens is longer than the 6000 the model was trained for. "
        "Take 6000 or less, or pin the flag rope-scaling for a model that can be stretched."
    ]


def test_an_embedding_model_reads_its_input_in_one_batch() -> None:
    placement = ask(machine("laptop-i7-1260p"), [header("qwen3-embedding-0.6b-q8_0")], 2048, 2, kind="embedding")
    flags = placement["flags"]
    assert (flags["embedding"], flags["cache-ram"]) == (True, 0)
    assert flags["pooling"] == "last", "the files say how the model pools"
    variant, silent = header("qwen3-4b-q4_k_m")
    unsaid = ask(machine("laptop-i7-1260p"), [(variant, silent)], 2048, 2, kind="embedding")
    assert unsaid["flags"]["pooling"] == "mean"
    assert flags["batch-size"] == flags["ubatch-size"] == 2048 and flags["ctx-size"] == 4096


def test_the_first_variant_that_fits_is_taken() -> None:
    files = [header("deepseek-r1-q4_k_m-mla"), header("qwen3-235b-a22b-q4_k_m"), header("qwen3-30b-a3b-q4_k_m")]
    placement = ask(machine("hsx-1s-x99-e5-2696v3-64gb"), files, 4096, 1)
    assert placement["variant"]["repo"] == "org/qwen3-30b-a3b-q4_k_m"
    reason = rejection(placement, "llamacpp")["reason"]
    assert "GiB of RAM missing with 4096 tokens × 1 slot: the weights of" in reason


def test_nothing_fits_and_what_would() -> None:
    hardware: Any = machine("laptop-i7-1260p")
    hardware["memory"]["total"] = 8 * GIB
    placement = ask(hardware, [header("qwen3-4b-q4_k_m")], 32768, 4)
    assert (placement["fits"], placement["engine"], placement["predicted"]) == ("no", "", None)
    assert placement["flags"] == {}
    assert placement["reasons"][0].startswith("Does not fit: llama.cpp with Q4_K_M: ")
    assert (
        "of RAM missing with 32768 tokens × 4 slots: the KV cache of 18.0 GiB does not fit" in placement["reasons"][0]
    )
    assert any("instead of 32768 × 4 would fit in memory (llama.cpp" in one for one in placement["alternatives"])
    ram = device(placement, "ram")
    assert memory.free(ram) < 0


def test_a_build_without_cuda_counts_no_gpu_and_says_what_one_would_do() -> None:
    hardware = machine("spr-2s-xeon-gold-6430", "rtx-4090-48g-modded")
    why = "llamacpp_cuda is false on h: this build computes on the CPU only"
    placement = ask(hardware, [header("llama-70b-q4_k_m")], 8192, 1, no_gpu={"llamacpp": why}, roles={"llamacpp"})
    assert placement["offload"]["gpu_layers"] == 0 and "gpu-layers" not in placement["flags"]
    (sentence,) = [one for one in placement["alternatives"] if one.startswith(why)]
    assert "With the GPU: Q4_K_M, about " in sentence
    assert device(placement, "gpu0")["weights"] == 0


def test_gpus_whose_driver_does_not_run_are_left_alone() -> None:
    hardware: Any = machine("spr-2s-xeon-gold-6430", "rtx-4090-48g-modded")
    hardware["driver"]["state"] = "none"
    hardware["gpus"][0]["memory"] = None
    placement = ask(hardware, [header("llama-70b-q4_k_m")], 8192, 1)
    assert placement["fits"] == "memory" and placement["offload"]["gpu_layers"] == 0
    said(placement, "NVIDIA GeForce RTX 4090: not used, the state of the NVIDIA driver is 'none'.")


def test_only_some_gpus_are_used() -> None:
    """The engine sees the others no more, and the plan counts them as the machine does."""
    hardware = machine(GOLD, "rtx-2080ti-22g-modded", "rtx-4090-24g")
    placement = ask(hardware, [catalogue("deepseek-r1", "FP8")], 8192, 1)
    assert placement["engine"] == "ktransformers"
    assert placement["environment"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert device(placement, "gpu0")["weights"] == 0 and device(placement, "gpu1")["weights"] > 0
    said(placement, "everything else and the KV cache on gpu1.")
    said(placement, "gpu0 (NVIDIA GeForce RTX 2080 Ti) has compute capability 7.5")


def test_a_conversion_is_part_of_the_plan() -> None:
    """With half the RAM the FP8 experts do not fit, AMX weights of 4 bits do."""
    hardware: Any = machine(GOLD, "rtx-4090-24g")
    hardware["memory"]["total"] = 512 * GIB
    placement = ask(hardware, [catalogue("deepseek-r1", "FP8")], 8192, 1)
    assert (placement["fits"], placement["quantisation"]) == ("memory", "FP8 → AMXINT4")
    assert placement["flags"]["kt-method"] == "AMXINT4"
    assert placement["disk"] > 688_600_000_000 + 300_000_000_000
    said(placement, "The experts are converted to AMXINT4", "more on the disk, and at least", "minutes")


def test_files_on_a_network_are_read_not_mapped() -> None:
    hardware: Any = machine("genoa-1s-nps4-epyc-9534")
    hardware["disk"] |= {"network": True, "filesystem": "nfs4"}
    placement = ask(hardware, [header("qwen3-235b-a22b-q4_k_m")], 8192, 4)
    assert (placement["flags"]["load-mode"], placement["flags"]["numa"]) == ("none", "numactl")
    assert placement["numa"]["policy"] == "interleave"
    said(placement, "Load mode none: mmap from a network filesystem (nfs4) crawls.")


def test_a_disk_that_fills_up_changes_no_plan() -> None:
    """What was planned and downloaded takes room itself; a second plan must be the same."""
    hardware: Any = machine(GOLD)
    first = ask(hardware, [header("qwen3-4b-q4_k_m")], 4096, 1)
    hardware["disk"]["free"] = 10**9
    assert ask(hardware, [header("qwen3-4b-q4_k_m")], 4096, 1) == first
    said(first, "The files take 2.5 GB of the disk.")


def test_weights_that_page_over_a_network_are_said_to() -> None:
    hardware: Any = machine("icx-2s-xeon-8352v-16vcpu-90gb", "vgpu-32g")
    hardware["disk"] |= {"network": True, "filesystem": "nfs4"}
    placement = ask(hardware, [header(IQ1)], 2048, 1)
    assert (placement["fits"], placement["flags"]["load-mode"]) == ("paged", "mmap")
    said(placement, "are read over the network (nfs4)", "Keep the files on a local disk.")


@pytest.mark.parametrize(("mode", "fits"), [("none", "no"), ("mlock", "no"), ("dio", "no"), ("mmap", "paged")])
def test_without_mmap_nothing_pages(mode: str, fits: str) -> None:
    placement = guides_machine(pin={"model": "m", "host": "h", "flags": {"load-mode": mode}})
    assert placement["fits"] == fits
    if fits == "no":
        said(placement, f"Pinned: load-mode {mode}. Only with mmap may weights that miss RAM be paged.")


def test_gpus_of_several_kinds_are_counted_by_the_bus() -> None:
    """CUDA counts the fastest first; the split is in the order of nvidia-smi."""
    mixed = ask(machine(GOLD, "rtx-2080ti-22g-modded", "rtx-4090-48g-modded"), [header("llama-70b-q4_k_m")], 4096, 1)
    assert mixed["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert len(mixed["flags"]["tensor-split"].split(",")) == 2
    assert ask(machine(GOLD, "rtx-4090-24g"), [header("qwen3-4b-q4_k_m")], 4096, 1)["environment"] == {}


@pytest.mark.parametrize(
    "change", [{"mig": True}, {"memory": None}, {"compute_capability": "3.7"}], ids=["mig", "memory", "capability"]
)
def test_a_gpu_that_is_not_used_is_not_left_to_the_engine(change: dict[str, Any]) -> None:
    """llama-server would take it by itself."""
    hardware: Any = machine(GOLD, "rtx-4090-24g")
    hardware["gpus"][0].update(change)
    placement = ask(hardware, [header("qwen3-4b-q4_k_m")], 4096, 1)
    assert (placement["fits"], placement["engine"]) == ("memory", "llamacpp")
    assert (placement["flags"]["gpu-layers"], placement["flags"]["device"]) == (0, "none")
    assert not {"tensor-split", "CUDA_VISIBLE_DEVICES"} & {*placement["flags"], *placement["environment"]}


def test_of_two_gpus_only_the_one_that_may_be_used_is_seen() -> None:
    hardware: Any = machine(GOLD, "rtx-4090-24g", "rtx-4090-24g")
    hardware["gpus"][0]["mig"] = True
    placement = ask(hardware, [header("qwen3-4b-q4_k_m")], 4096, 1)
    assert placement["flags"]["gpu-layers"] == 37 and "tensor-split" not in placement["flags"]
    assert placement["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}


def test_with_a_driver_that_is_too_old_the_cpu_computes() -> None:
    old = machine(GOLD, "rtx-4090-24g", driver={"version": "470.256.02", "cuda": "11.4", "toolkit": None})
    placement = ask(old, [header("qwen3-4b-q4_k_m")], 4096, 1)
    assert (placement["fits"], placement["engine"]) == ("memory", "llamacpp")
    assert (placement["flags"]["gpu-layers"], placement["flags"]["device"]) == (0, "none")
    said(
        placement, "NVIDIA GeForce RTX 4090: not used. llama.cpp needs NVIDIA driver 525 or newer; loaded is 470.256.02"
    )


def test_files_that_no_engine_here_reads() -> None:
    placement = ask(machine(GOLD, "rtx-4090-24g"), [catalogue("deepseek-r1", "FP8")], 8192, 1, roles={"llamacpp"})
    assert placement["fits"] == "no"
    assert placement["reasons"][0] == "llama.cpp reads gguf; FP8 is safetensors. Add a variant in gguf."
    named = ask(machine(GOLD), [catalogue("deepseek-r1", "FP8")], 8192, 1, engine="llamacpp")
    assert named["reasons"] == ["llama.cpp reads gguf; FP8 is safetensors. Add a variant in gguf."]


def test_no_less_than_nothing_is_there() -> None:
    placement = ask(machine("laptop-i7-1260p"), [header("qwen3-4b-q4_k_m")], 4096, 1, taken={"ram": 64 * GIB})
    assert placement["fits"] != "memory"
    assert "are more than the 0.0 GiB that are there for this model" in rejection(placement, "llamacpp")["reason"]


def test_more_threads_than_may_run_are_warned_of() -> None:
    hardware: Any = machine(GOLD)
    hardware["cpu"]["usable"] = 4
    placement = ask(hardware, [header("qwen3-4b-q4_k_m")], 4096, 1, pin={"model": "m", "host": "h", "threads": 8})
    assert placement["threads"] == 8
    said(placement, "8 threads, of 64 physical cores.")
    said(placement, "Pinned: 8 threads, but this system may use 4 CPUs at once.", "many times slower")


def test_unknown_facts_are_said() -> None:
    bare = machine("hsx-1s-x99-e5-2696v3-64gb", disk=None, glibc=None, python=None, dimms=None)
    placement = ask(bare, [header("qwen3-4b-q4_k_m")], 4096, 1)
    said(placement, "Unknown: the disk behind the models")
    said(placement, "Unknown: bandwidth of the RAM; taken: 68 GB/s, typical of this processor. Measure it (")


def test_the_engine_of_the_entry_is_the_only_one() -> None:
    hardware = machine("spr-2s-xeon-8488c", "h200-sxm", driver=decisions.NEW_DRIVER)
    files = [catalogue("deepseek-r1-distill-llama-70b", "FP8"), header("llama-70b-q4_k_m")]
    placement = ask(hardware, files, 8192, 16, engine="llamacpp")
    assert placement["engine"] == "llamacpp"
    assert rejection(placement, "vllm")["reason"] == "The engine is llama.cpp (the model's entry)."


def test_no_shape_no_plan() -> None:
    placement = ask(machine(GOLD), [])
    assert placement["fits"] == "no"
    assert placement["reasons"] == ["No variant could be read, so nothing can be planned."]


def test_models_before_leave_less() -> None:
    hardware: Hardware = machine("hsx-1s-x99-e5-2696v3-64gb", "rtx-2080ti-22g-modded")
    alone = ask(hardware, [header("qwen3-30b-a3b-q4_k_m")], 8192, 1)
    beside = ask(hardware, [header("qwen3-30b-a3b-q4_k_m")], 8192, 1, taken={"gpu0": 12 * GIB, "ram": 2 * GIB})
    assert alone["offload"]["cpu_moe_layers"] == 0 < beside["offload"]["cpu_moe_layers"]
    assert device(beside, "gpu0")["others"] == 12 * GIB
    assert beside["flags"]["ubatch-size"] in (512, 2048)
