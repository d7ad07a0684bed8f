# SPDX-License-Identifier: GPL-3.0-or-later
"""Threads, NUMA policies, load modes, and options that llama-server 0.7.0 knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from decisions import ask, header, machine

from ansible_collections.onprem.llm.plugins.module_utils import llamacpp
from ansible_collections.onprem.llm.plugins.module_utils.placement import threads

HELP = (Path(__file__).parents[1] / "fixtures/llama-server-help-0.7.0.txt").read_text()


@pytest.mark.parametrize(
    ("machine_id", "count", "nodes"),
    [
        ("spr-2s-xeon-gold-6430", 64, [0, 1]),
        ("spr-2s-snc4-xeon-8480", 112, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("genoa-1s-nps4-epyc-9534", 64, [0, 1, 2, 3]),
        ("emr-2s-cxl-xeon-gold-6530", 64, [0, 1]),
        ("genoa-2s-offline-epyc-9554", 128, [0, 1]),
        ("icx-2s-interleaved-xeon-silver-4310", 24, [0, 1]),
        ("laptop-i7-1260p", 12, [0]),
        ("vm-1s-epyc-2vcpu", 2, [0]),
    ],
)
def test_threads_are_physical_cores_and_nodes_have_cpus(machine_id: str, count: int, nodes: list[int]) -> None:
    hardware = machine(machine_id)
    assert threads.count(hardware) == count
    assert [node["id"] for node in threads.compute_nodes(hardware)] == nodes


def test_no_more_threads_than_cpus_that_may_be_used_and_at_least_one() -> None:
    hardware: Any = machine("spr-2s-xeon-gold-6430")
    for usable, expected in ((3.9, 4), (0.5, 1), (500.0, 64)):
        hardware["cpu"]["usable"] = usable
        assert threads.count(hardware) == expected
    assert threads.count(hardware, [1]) == 32


def test_no_numa_nodes_at_all() -> None:
    hardware: Any = machine("laptop-i7-1260p")
    hardware["numa"] = []
    assert threads.policies(hardware, False, 10**9, 0, 1) == [{"policy": "none", "nodes": []}]
    assert threads.numa_reasons(hardware, {"policy": "none", "nodes": []}) == []


def test_a_small_model_may_be_bound_to_a_node() -> None:
    hardware = machine("spr-2s-xeon-gold-6430")
    small = threads.policies(hardware, False, 10 * 2**30, 0, 1)
    assert [one["policy"] for one in small] == ["bind", "distribute"]
    assert [one["policy"] for one in threads.policies(hardware, False, 10 * 2**30, 0, 4)] == ["distribute"]
    assert [one["policy"] for one in threads.policies(hardware, False, 400 * 2**30, 0, 1)] == ["distribute"]
    beside = threads.policies(hardware, False, 10 * 2**30, 2**30, 1)
    assert [one["policy"] for one in beside] == ["distribute"], "what was placed before may lie on that node"
    assert threads.numa_reasons(hardware, small[0]) == [
        "It fits into NUMA node 0: bound to it, nothing crosses the sockets."
    ]


@pytest.mark.parametrize(
    ("network", "on_gpu", "paged", "mode"),
    [
        (False, False, False, "mmap"),
        (False, True, False, "none"),
        (True, False, False, "none"),
        (True, False, True, "mmap"),
        (False, False, True, "mmap"),
    ],
)
def test_load_mode(network: bool, on_gpu: bool, paged: bool, mode: str) -> None:
    hardware: Any = machine("laptop-i7-1260p")
    hardware["disk"]["network"] = network
    assert threads.load_mode(hardware, on_gpu, paged)[0] == mode


@pytest.mark.parametrize(
    ("machine_id", "gpus", "name", "kind", "slots"),
    [
        ("laptop-i7-1260p", [], "qwen3-embedding-0.6b-q8_0", "embedding", 1),
        ("genoa-1s-nps4-epyc-9534", [], "qwen3-235b-a22b-q4_k_m", "chat", 4),
        ("spr-2s-xeon-gold-6430", ["rtx-4090-24g"], "qwen3-235b-a22b-q4_k_m", "chat", 1),
        ("genoa-2s-epyc-9654", ["a100-sxm4-80g", "a100-sxm4-80g"], "deepseek-r1-ud-iq1_s-legacy", "chat", 1),
    ],
)
def test_llama_server_knows_every_option(machine_id: str, gpus: list[str], name: str, kind: str, slots: int) -> None:
    placement = ask(machine(machine_id, *gpus), [header(name)], 4096, slots, kind=kind)
    assert placement["engine"] == "llamacpp"
    assert llamacpp.unknown_options(placement["flags"], HELP) == []


def test_nothing_is_left_to_a_default_that_may_change() -> None:
    placement = ask(machine("spr-2s-xeon-gold-6430", "rtx-4090-24g"), [header("qwen3-30b-a3b-q4_k_m")], 8192, 2)
    assert set(placement["flags"]) >= {
        "ctx-size", "parallel", "threads", "threads-batch", "batch-size", "ubatch-size", "cache-type-k", "cache-type-v",
        "flash-attn", "load-mode", "lazy-mode", "cache-ram", "ctx-checkpoints", "fit", "gpu-layers",
    }  # fmt: skip
    assert placement["flags"]["fit"] == "off" and placement["flags"]["lazy-mode"] == "off"


def test_no_layer_on_the_gpu_means_no_gpu() -> None:
    flags = threads.llamacpp(
        context=4096, slots=1, threads=4, threads_batch=4, ubatch=512, cache_type="f16", cache_ram=0, flash=True,
        offload={"gpu_layers": 0, "cpu_moe_layers": 0, "split": [0]}, gpus=1, policy={"policy": "none", "nodes": []},
        mode="mmap", embedding=False, pooling="mean",
    )  # fmt: skip
    assert (flags["gpu-layers"], flags["device"]) == (0, "none")


def test_ollama_is_told_everything() -> None:
    placement = ask(machine("laptop-i7-1260p"), [header("qwen3-4b-q4_k_m")], 4096, 2, engine="ollama")
    assert placement["engine"] == "ollama"
    assert placement["flags"] == {"num_ctx": 4096, "num_thread": 12, "num_batch": 512, "num_gpu": 0}
    environment = placement["environment"]
    assert (environment["OLLAMA_NUM_PARALLEL"], environment["OLLAMA_NO_CLOUD"]) == ("2", "1")
