# SPDX-License-Identifier: GPL-3.0-or-later
"""Threads, NUMA policy and load mode of a placement, and the options an engine is started with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware, Node
from ansible_collections.onprem.llm.plugins.module_utils.placement.memory import CHECKPOINTS, os_reserve
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Offload

#: Above it llama.cpp is often slower, on some machines faster (lc#6434): the plan says so, a measurement decides.
MANY_THREADS = 64
BATCH = 2048
UBATCH = 512
#: Of an embedding model whose files do not say: llama.cpp's own default then is none, which its API refuses.
POOLING = "mean"
UBATCH_EXPERTS = 2048
"""Experts in RAM are copied to the GPU for every batch of a prompt, so long batches read faster (Unsloth's guides)."""


def compute_nodes(hardware: Hardware, ids: Iterable[int] = ()) -> list[Node]:
    """The NUMA nodes that have CPUs; only those of ``ids`` where some are named."""
    wanted = set(ids)
    return [node for node in hardware["numa"] if node["cpus"] and (not wanted or node["id"] in wanted)]


def count(hardware: Hardware, ids: Iterable[int] = ()) -> int:
    """One thread for each physical core (of the named nodes), no more than the CPUs this system may use; at least 1."""
    named = sum(node["cores"] for node in compute_nodes(hardware, ids)) if ids else 0
    return max(1, min(named or hardware["cpu"]["cores"], math.ceil(hardware["cpu"]["usable"])))


def thread_reasons(hardware: Hardware, threads: int, engine: str) -> list[str]:
    """Why so many, and what is worth knowing about it."""
    cpu = hardware["cpu"]
    cores = f"{cpu['cores']} physical {'core' if cpu['cores'] == 1 else 'cores'}"
    many = f"{threads} {'thread' if threads == 1 else 'threads'}"
    if cpu["usable"] < cpu["cores"] and threads <= math.ceil(cpu["usable"]):
        said = [f"{many}: this system may use {cpu['usable']:g} CPUs at once, of {cores}."]
    elif threads == cpu["cores"]:
        said = [f"{many}: one for each of the {cores}; a second one on a core only gets in its way."]
    else:
        said = [f"{many}, of {cores}."]
    if cpu["offline"]:
        there = ", ".join(map(str, cpu["offline"]))
        said.append(f"CPU {there} is offline and not counted: {cpu['threads']} logical CPUs on {cores} are online.")
    if threads > MANY_THREADS and engine in ("llamacpp", "ollama"):
        said.append(f"More than {MANY_THREADS} threads are often slower: pin `threads: {MANY_THREADS}` and compare.")
    return said


def policies(hardware: Hardware, network: bool, ram: int, others: int, slots: int) -> list[dict[str, Any]]:
    """NUMA policies worth predicting for llama.cpp, the preferred one first. Bytes of RAM: its own, and taken before.

    One node with CPUs needs none. Several: spread over all of them, with mmap (lc#11744, lc#10981), or, from a network
    filesystem, where mmap crawls, interleaved by numactl. What fits into one node may also be bound to it, unless
    a model placed before may lie there; not with many slots, which want all the cores. The node's size counts, not what
    is free now: the plan must be the same while what it planned is running.
    """
    nodes = compute_nodes(hardware)
    if len(nodes) < 2:
        return [{"policy": "none", "nodes": []}]
    ids = [node["id"] for node in nodes]
    found: list[dict[str, Any]] = [{"policy": "interleave" if network else "distribute", "nodes": ids}]
    needed = ram + os_reserve(hardware)
    room = next((node for node in nodes if node["memory"] >= needed), None)
    if slots <= 2 and room and not others:
        found.insert(0, {"policy": "bind", "nodes": [room["id"]], "cpus": sorted(room["cpus"])})
    return found


def numa_reasons(hardware: Hardware, policy: Mapping[str, Any]) -> list[str]:
    """Why this policy; what memory without CPUs is good for."""
    nodes, kind = policy["nodes"], policy["policy"]
    names = ", ".join(map(str, nodes))
    compute = compute_nodes(hardware)
    said = {
        "none": f"One NUMA node has CPUs (node {compute[0]['id']}): nothing to spread." if len(compute) == 1 else "",
        "distribute": f"{len(compute)} NUMA nodes have CPUs ({names}): threads and weights are spread over all of them."
        " Set kernel.numa_balancing to 0, or the kernel moves the pages again.",
        "interleave": f"{len(compute)} NUMA nodes have CPUs ({names}), and the files lie on a network: read into "
        "memory, with the pages interleaved over all nodes.",
        "bind": f"It fits into NUMA node {names}: bound to it, nothing crosses the sockets.",
        "pools": f"{len(nodes)} pools, one for each NUMA node with CPUs ({names}); sockets do not count.",
    }[kind]
    reasons = [said] if said and len(hardware["numa"]) > 0 else []
    bare = [node for node in hardware["numa"] if not node["cpus"]]
    if bare:
        size = sum(node["memory"] for node in bare) / 2**30
        which = ", ".join(str(node["id"]) for node in bare)
        reasons.append(
            f"NUMA node {which} has memory and no CPUs: its {size:.0f} GiB count as memory, but no threads run there."
        )
    return reasons


def load_mode(hardware: Hardware, everything_on_gpu: bool, paged: bool) -> tuple[str, str]:
    """How llama.cpp brings the weights in, and why."""
    disk = hardware["disk"]
    if paged and disk and disk["network"]:
        return "mmap", (
            f"Load mode mmap: weights that miss RAM are read over the network ({disk['filesystem']}) when they are "
            "needed, which is slower still. Keep the files on a local disk."
        )
    if paged:
        return "mmap", "Load mode mmap: weights that miss RAM are read from the disk when they are needed."
    if disk and disk["network"]:
        return "none", f"Load mode none: mmap from a network filesystem ({disk['filesystem']}) crawls."
    if everything_on_gpu:  # lc#14396: 14.3 s instead of 33.7 s on an A100
        return "none", "Load mode none: everything goes to the GPUs, and plain reading is faster than mmap."
    return (
        "mmap",
        "Load mode mmap: the files' pages are the weights, so nothing is copied, and a restart finds them warm.",
    )


def llamacpp(
    *,
    context: int,
    slots: int,
    threads: int,
    threads_batch: int,
    ubatch: int,
    cache_type: str,
    cache_ram: int,
    flash: bool,
    offload: Offload,
    gpus: int,
    policy: Mapping[str, Any],
    mode: str,
    embedding: bool,
    pooling: str,
) -> dict[str, Any]:
    """Long options of llama-server 0.7.0: everything a default could change under us. ``cache_ram`` in bytes.

    ``gpus``: how many the engine could see, used or not.
    """
    flags: dict[str, Any] = {
        "ctx-size": context * slots,
        "parallel": slots,
        "threads": threads,
        "threads-batch": threads_batch,
        "batch-size": max(ubatch, BATCH) if not embedding else ubatch,
        "ubatch-size": ubatch,
        "cache-type-k": cache_type,
        "cache-type-v": cache_type,
        "flash-attn": "on" if flash else "off",
        "load-mode": mode,
        "lazy-mode": "off",
        "cache-ram": cache_ram // 2**20,
        "ctx-checkpoints": CHECKPOINTS,
        "fit": "off",
    }
    if policy["policy"] == "distribute":
        flags["numa"] = "distribute"
    elif policy["policy"] in ("interleave", "bind"):
        flags["numa"] = "numactl"
    if gpus:
        flags["gpu-layers"] = offload["gpu_layers"]
        if not offload["gpu_layers"]:
            # Else it would still copy weights to the GPU for long prompts.
            flags["device"] = "none"
        elif offload["cpu_moe_layers"]:
            flags["n-cpu-moe"] = offload["cpu_moe_layers"]
        if len(offload["split"]) > 1 and offload["gpu_layers"]:
            flags |= {"split-mode": "layer", "tensor-split": ",".join(map(str, offload["split"]))}
    if embedding:
        flags |= {"embedding": True, "pooling": pooling}
    return flags


def ollama(
    *,
    context: int,
    slots: int,
    threads: int,
    ubatch: int,
    cache_type: str,
    cache_ram: int,
    flash: bool,
    offload: Offload,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Parameters of a model, and the environment of its service, which llama-server inherits. ``cache_ram``: bytes."""
    flags = {"num_ctx": context, "num_thread": threads, "num_batch": ubatch, "num_gpu": offload["gpu_layers"]}
    environment = {
        "OLLAMA_CONTEXT_LENGTH": str(context),
        "OLLAMA_NUM_PARALLEL": str(slots),
        "OLLAMA_KV_CACHE_TYPE": cache_type,
        "OLLAMA_FLASH_ATTENTION": "1" if flash else "0",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_LOAD_TIMEOUT": "60m",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "LLAMA_ARG_CACHE_RAM": str(cache_ram // 2**20),
        "LLAMA_ARG_FIT": "off",
    }
    return flags, environment


def vllm(*, context: int, slots: int, tensor_parallel: int, share: float, embedding: bool) -> dict[str, Any]:
    """Options of ``vllm serve`` 0.33; ``share`` is the part of each GPU's memory it may take."""
    flags: dict[str, Any] = {
        "tensor-parallel-size": tensor_parallel,
        "max-model-len": context,
        "max-num-seqs": slots,
        "gpu-memory-utilization": share,
        "kv-cache-dtype": "auto",
    }
    return flags | ({"runner": "pooling"} if embedding else {})


def sglang(*, context: int, slots: int, tensor_parallel: int, share: float, embedding: bool) -> dict[str, Any]:
    """Options of ``sglang.launch_server`` 0.5.23."""
    flags: dict[str, Any] = {
        "tp": tensor_parallel,
        "context-length": context,
        "max-running-requests": slots,
        "mem-fraction-static": share,
        "enable-metrics": True,
    }
    return flags | ({"is-embedding": True} if embedding else {})


def ktransformers(
    *,
    context: int,
    slots: int,
    tensor_parallel: int,
    share: float,
    method: str,
    variant: str,
    threads: int,
    pools: list[int],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of sglang-kt 0.7.2, and its environment: the build of kt-kernel is named, not detected."""
    flags: dict[str, Any] = {
        "kt-method": method,
        "kt-cpuinfer": threads,
        "kt-threadpool-count": len(pools),
        "kt-numa-nodes": " ".join(map(str, pools)),
        "kt-num-gpu-experts": 0,
        "context-length": context,
        "max-total-tokens": context * slots,
        "max-running-requests": slots,
        "mem-fraction-static": share,
        "chunked-prefill-size": 4096,
        "attention-backend": "flashinfer",
        "tensor-parallel-size": tensor_parallel,
        "disable-shared-experts-fusion": True,
        "trust-remote-code": True,
        "enable-metrics": True,
    }
    return flags, {"KT_KERNEL_CPU_VARIANT": variant}


def classic(*, context: int, threads: int) -> dict[str, Any]:
    """Options of KTransformers up to 0.4.1."""
    return {"cpu_infer": threads, "cache_lens": context, "max_new_tokens": context // 2}
