# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans written by hand, to look at: what a planner could say, with plausible figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Gpu, Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import (
    DeviceMemory,
    Placement,
    Plan,
    Rejection,
    Speed,
)

GIB = 2**30
GPUS: dict[str, tuple[str, float, str, int]] = {
    "4090": ("NVIDIA GeForce RTX 4090", 23.99, "8.9", 1008),
    "a100": ("NVIDIA A100-SXM4-80GB", 80.0, "8.0", 2039),
    "h200": ("NVIDIA H200", 140.4, "9.0", 4800),
    "2080ti": ("NVIDIA GeForce RTX 2080 Ti", 22.0, "7.5", 616),
}


def gpu(kind: str, index: int) -> Gpu:
    name, size, capability, bandwidth = GPUS[kind]
    return {
        "index": index,
        "name": name,
        "memory": int(size * GIB),
        "compute_capability": capability,
        "bandwidth": bandwidth * 10**9,
        "flops": None,
        "pci_address": f"0000:{index + 1:02x}:00.0",
        "pci_device": None,
        "numa_node": 0,
        "link": 32 * 10**9,
        "mig": False,
    }


def machine(
    id: str,
    model: str,
    sockets: int,
    cores: int,
    isa: Sequence[str],
    ram: float,
    dimms: tuple[int, str, int, int] | None,
    gpus: Sequence[str] = (),
    **changes: Any,
) -> Hardware:
    per_node = cores // sockets
    hardware: Hardware = {
        "id": id,
        "architecture": "x86_64",
        "cpu": {
            "vendor": "GenuineIntel",
            "model": model,
            "sockets": sockets,
            "cores": cores,
            "threads": cores * 2,
            "threads_per_core": 2,
            "offline": [],
            "usable": cores * 2,
            "isa": list(isa),
        },
        "numa": [
            {
                "id": node,
                "socket": node,
                "cpus": list(range(node * per_node, (node + 1) * per_node)),
                "cores": per_node,
                "memory": int(ram / sockets * GIB),
                "available": None,
            }
            for node in range(sockets)
        ],
        "memory": {
            "total": int(ram * GIB),
            "available": int(ram * 0.97 * GIB),
            "limit": None,
            "dimms": None
            if dimms is None
            else {"count": dimms[0], "type": dimms[1], "speed": dimms[2], "channels": dimms[3]},
            "bandwidth": None if dimms is None else dimms[2] * 10**6 * 8 * dimms[3],
            "measured": None,
        },
        "gpus": [gpu(kind, index) for index, kind in enumerate(gpus)],
        "driver": {
            "state": "ok" if gpus else "no_gpu",
            "version": "570.195.03" if gpus else None,
            "cuda": "12.8" if gpus else None,
            "toolkit": None,
        },
        "disk": {
            "path": "/srv/llm",
            "total": 3840 * 10**9,
            "free": 2912 * 10**9,
            "filesystem": "ext4",
            "network": False,
            "rotational": False,
        },
        "system": {
            "distribution": "Debian",
            "version": "13",
            "kernel": "6.12.48",
            "glibc": "2.41",
            "python": ["3.13"],
            "virtualisation": "none",
            "container": None,
        },
        "unknown": {},
    }
    return hardware | changes  # type: ignore[return-value,operator]


def device(
    name: str,
    capacity: float,
    weights: float = 0,
    kv: float = 0,
    compute: float = 0,
    overhead: float = 0,
    reserve: float = 1.0,
    others: float = 0,
) -> DeviceMemory:
    """All in GiB."""
    return {
        "device": name,
        "capacity": int(capacity * GIB),
        "weights": int(weights * GIB),
        "kv_cache": int(kv * GIB),
        "compute": int(compute * GIB),
        "overhead": int(overhead * GIB),
        "reserve": int(reserve * GIB),
        "others": int(others * GIB),
    }


def speed(decode: float, prefill: float | None, slots: int = 1, spread: float = 0.2, basis: str = "") -> Speed:
    low, high = 1 - spread, 1 + spread
    return {
        "decode": decode,
        "decode_low": decode * low,
        "decode_high": decode * high,
        "prefill": prefill,
        "prefill_low": None if prefill is None else prefill * low,
        "prefill_high": None if prefill is None else prefill * high,
        "total": decode * (1 + 0.7 * (slots - 1)),
        "basis": basis or "bytes read per token over the bandwidth of the memory they lie in, times 0.6",
    }


def rejection(engine: str, variant: str, reason: str, better: bool = False) -> Rejection:
    return {"engine": engine, "variant": variant, "reason": reason, "better": better}


def placement(
    model: str, host: str, engine: str, quantisation: str, memory: Sequence[DeviceMemory], **other: Any
) -> Placement:
    found: Placement = {
        "model": model,
        "kind": "chat",
        "host": host,
        "fits": "memory",
        "engine": engine,
        "variant": {
            "format": "gguf" if engine in ("llamacpp", "ollama") else "safetensors",
            "quantisation": quantisation,
            "source": "modelscope",
            "repo": f"unsloth/{model}-GGUF",
            "revision": "master",
            "include": [f"*{quantisation}*"],
            "entry": f"{model}-{quantisation}.gguf",
            "companions": [],
        },
        "quantisation": quantisation,
        "context": 32768,
        "slots": 1,
        "port": 9101,
        "flags": {"ctx-size": 32768, "parallel": 1, "threads": 16, "gpu-layers": 99, "no-mmap": True},
        "environment": {},
        "threads": 16,
        "threads_batch": 16,
        "numa": {"policy": "none", "nodes": []},
        "offload": {"gpu_layers": 0, "cpu_moe_layers": 0, "split": []},
        "memory": list(memory),
        "nodes": [],
        "disk": sum(d["weights"] for d in memory),
        "converted": 0,
        "predicted": speed(19, 480),
        "reasons": ["All layers fit on the GPU."],
        "alternatives": [],
        "rejected": [],
        "dimensions": 0,
        "pinned": [],
        "model_path": f"/srv/llm/served/{model}",
        "source": f"unsloth/{model}-GGUF@master",
    }
    return found | other  # type: ignore[return-value,operator]


def plan(title: str, hosts: Sequence[Hardware], placements: Sequence[Placement], **other: Any) -> Plan:
    found: Plan = {
        "title": title,
        "placements": list(placements),
        "hosts": {host["id"]: host for host in hosts},
        "changes": [],
        "notes": [],
        "what_if": False,
    }
    return found | other  # type: ignore[return-value,operator]


AMX = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avx512vbmi", "amx_tile", "amx_int8", "amx_bf16"]


def amx_r1() -> Plan:
    host = machine(
        "gpu1",
        "Intel(R) Xeon(R) Gold 6430",
        2,
        64,
        AMX,
        1007.5,
        (16, "DDR5", 4400, 16),
        ["4090"],
        unknown={"memory.measured": "not asked for; set host_hardware_measure to measure it"},
    )
    r1 = placement(
        "deepseek-r1",
        "gpu1",
        "ktransformers",
        "FP8",
        [
            device("ram", 1007.5, weights=622.4, overhead=8, reserve=24, compute=6.2),
            device("gpu0", 23.99, weights=15.8, kv=2.15, compute=3.1, overhead=0.6, reserve=1),
        ],
        threads=64,
        threads_batch=64,
        numa={"policy": "pools", "nodes": [0, 1]},
        nodes=[
            {"node": 0, "capacity": int(503.7 * GIB), "used": int(330.3 * GIB)},
            {"node": 1, "capacity": int(503.8 * GIB), "used": int(330.3 * GIB)},
        ],
        flags={
            "kt-method": "FP8",
            "kt-cpuinfer": 64,
            "kt-threadpool-count": 2,
            "kt-num-gpu-experts": 0,
            "attention-backend": "flashinfer",
            "context-length": 32768,
            "max-running-requests": 1,
            "trust-remote-code": True,
            "model": "/srv/llm/served/deepseek-r1",
        },
        environment={"KT_KERNEL_CPU_VARIANT": "amx"},
        disk=688_600_000_000,
        predicted=speed(14.2, 290, spread=0.25),
        source="deepseek-ai/DeepSeek-R1@main",
        reasons=[
            "KTransformers reads the published FP8 files as they are: 622.4 GiB of experts lie in 1007.5 GiB of RAM, "
            "the rest on the GPU.",
            "The CPU has AMX and AVX-512, so the experts are computed at 14.2 tok/s; "
            "llama.cpp would reach 8.1 with Q4_K_M.",
            "64 threads, one per physical core, in 2 pools: one per NUMA node, each with its half of the experts.",
            "The KV cache is MLA: 70272 bytes per token, 2.1 GiB for 32768 tokens.",
        ],
        rejected=[
            rejection("llamacpp", "Q4_K_M", "8.1 tok/s predicted; a typical request takes 77 s instead of 35 s"),
            rejection("ollama", "Q4_K_M", "the same kernels as llamacpp without placing the experts by hand"),
            rejection("vllm", "FP8", "641.3 GiB of weights on 24.0 GiB of GPU memory"),
            rejection("sglang", "FP8", "641.3 GiB of weights on 24.0 GiB of GPU memory"),
        ],
        alternatives=["llamacpp with UD-Q2_K_XL takes 211.4 GiB and leaves room for a second large model."],
    )
    return plan(
        "Plan for inventories/prod", [host], [r1], changes=["gpu1: deepseek-r1: engine llamacpp -> ktransformers"]
    )


def two_a100() -> Plan:
    host = machine(
        "a100", "AMD EPYC 7543 32-Core Processor", 2, 64, ["avx2"], 503.6, (16, "DDR4", 3200, 16), ["a100"] * 2
    )
    r1 = placement(
        "deepseek-r1-iq1",
        "a100",
        "llamacpp",
        "UD-IQ1_S",
        [
            device("ram", 503.6, weights=0.5, compute=0.6, overhead=8, reserve=12),
            device("gpu0", 80, weights=65.0, kv=9.7, compute=1.6, overhead=0.5, reserve=1),
            device("gpu1", 80, weights=64.6, kv=9.4, compute=1.6, overhead=0.5, reserve=1),
        ],
        context=4096,
        nodes=[
            {"node": 0, "capacity": int(251.8 * GIB), "used": int(10.6 * GIB)},
            {"node": 1, "capacity": int(251.8 * GIB), "used": int(10.5 * GIB)},
        ],
        numa={"policy": "bind", "nodes": [0]},
        threads=32,
        offload={"gpu_layers": 62, "cpu_moe_layers": 0, "split": [31, 31]},
        disk=140_200_000_000,
        predicted=speed(13.6, 310, spread=0.3),
        reasons=[
            "All 61 layers and the output lie on the two GPUs, 31 layers on each.",
            "These files are in the legacy form without the keys of the compressed cache: 4.77 MiB per token.",
            "At 8192 tokens the KV cache of 38.1 GiB would be 17.6 GiB too much; at 4096 it fits.",
        ],
        rejected=[
            rejection("vllm", "", "does not read GGUF of deepseek2 in parts, and there are no other files"),
            rejection("ktransformers", "UD-IQ1_S", "needs the safetensors files; the model has none"),
        ],
    )
    return plan("Plan for inventories/prod", [host], [r1], changes=["a100: deepseek-r1-iq1 is new"])


def laptop() -> Plan:
    host = machine(
        "laptop",
        "Intel(R) Core(TM) i7-1260P CPU @ 2.10GHz",
        1,
        12,
        ["avx2"],
        15.4,
        None,
        unknown={"memory.dimms": "dmidecode needs root: run as root, or give `dimms` in the record"},
    )
    small = placement(
        "assistant",
        "laptop",
        "llamacpp",
        "Q4_K_M",
        [device("ram", 15.4, weights=2.3, kv=4.5, compute=0.3, overhead=2, reserve=2)],
        disk=2_497_280_256,
        threads=12,
        predicted=speed(9.3, 41, spread=0.4),
        reasons=[
            "No GPU: llama.cpp on 12 cores.",
            "The bandwidth of the memory is unknown, so the speed is a guess from its type.",
        ],
        rejected=[rejection("ktransformers", "", "no GPU")],
    )
    return plan("What if", [host], [small], what_if=True)


def h200() -> Plan:
    host = machine("h200", "Intel(R) Xeon(R) Platinum 8480+", 2, 112, AMX, 2015.6, (32, "DDR5", 4800, 16), ["h200"] * 8)
    r1 = placement(
        "deepseek-r1",
        "h200",
        "vllm",
        "FP8",
        [
            device("ram", 2015.6, overhead=16, compute=8, reserve=40),
            *[device(f"gpu{i}", 140.4, weights=80.2, kv=32.4, compute=6, overhead=2.4, reserve=14) for i in range(8)],
        ],
        context=65536,
        slots=32,
        nodes=[
            {"node": 0, "capacity": int(1007.8 * GIB), "used": int(32 * GIB)},
            {"node": 1, "capacity": int(1007.8 * GIB), "used": int(32 * GIB)},
        ],
        disk=688_600_000_000,
        flags={"tensor-parallel-size": 8, "max-model-len": 65536, "max-num-seqs": 32},
        predicted=speed(34, 5200, slots=32, spread=0.35),
        reasons=["32 conversations at once, all weights in GPU memory: vLLM answers 760 tok/s of them together."],
        rejected=[
            rejection("sglang", "FP8", "as fast within 10 %, and vllm comes first", better=False),
            rejection("llamacpp", "Q4_K_M", "34 s for a typical request with 32 slots busy, against 9 s"),
        ],
    )
    return plan("Plan for inventories/prod", [host], [r1])


def does_not_fit() -> Plan:
    host = machine("x99", "Intel(R) Xeon(R) CPU E5-2696 v3 @ 2.30GHz", 1, 18, ["avx2"], 62.8, None, ["2080ti"])
    paging = machine("guide", "Intel(R) Xeon(R) Platinum 8352V CPU @ 2.10GHz", 2, 72, AMX[:7], 88.2, None, ["4090"])
    no = placement(
        "llama-70b",
        "x99",
        "",
        "",
        [
            device("ram", 62.8, weights=40, kv=14, compute=2, overhead=8, reserve=4),
            device("gpu0", 22.0, weights=19.4, kv=2.6, compute=1.3, overhead=0.5, reserve=1),
        ],
        fits="no",
        flags={},
        context=131072,
        disk=0,
        predicted=None,
        reasons=["Context 131072 and 1 slot are asked for; the KV cache alone takes 40.0 GiB."],
        alternatives=[
            "With a context of 32768 it fits: 2.1 tok/s.",
            "On host h200 it fits as it is.",
            "IQ2_XS (21.1 GB) would fit with 65536 tokens; the model has no such variant.",
        ],
        rejected=[
            rejection("llamacpp", "Q4_K_M", "8.0 GiB too much"),
            rejection("ktransformers", "", "GPU with compute capability 7.5; 8.0 or newer is needed"),
            rejection("vllm", "AWQ", "37.0 GiB of weights on 22.0 GiB of GPU memory"),
        ],
    )
    paged = placement(
        "deepseek-r1-iq1",
        "guide",
        "llamacpp",
        "UD-IQ1_S",
        [
            device("ram", 88.2, weights=118.4, kv=0, compute=0.6, overhead=2, reserve=4),
            device("gpu0", 23.99, weights=12.2, kv=9.6, compute=1.0, overhead=0.5, reserve=0.5),
        ],
        fits="paged",
        context=2048,
        threads=72,
        numa={"policy": "distribute", "nodes": [0, 1]},
        nodes=[
            {"node": 0, "capacity": int(44.1 * GIB), "used": int(62.5 * GIB)},
            {"node": 1, "capacity": int(44.1 * GIB), "used": int(62.5 * GIB)},
        ],
        disk=140_200_000_000,
        predicted=speed(0.71, 6.2, spread=0.5),
        reasons=["36.8 GiB of the experts do not fit into RAM and come from disk when a token needs them."],
        alternatives=["With 128 GiB of RAM it fits in memory."],
        pinned=["context", "threads"],
    )
    return plan("Plan for inventories/lab", [host, paging], [no, paged])


def three_by_three() -> Plan:
    hosts = [
        machine(
            f"gpu{n}",
            "AMD EPYC 9354 32-Core Processor",
            1,
            32,
            AMX[:7],
            377.3,
            (12, "DDR5", 4800, 12),
            ["4090", "4090"],
        )
        for n in (1, 2, 3)
    ]
    placements = []
    for host in hosts:
        where = host["id"]
        placements += [
            placement(
                "qwen3-235b",
                where,
                "llamacpp",
                "Q4_K_M",
                [
                    device("ram", 377.3, weights=118.2, compute=0.8, overhead=8, reserve=8),
                    device("gpu0", 23.99, weights=6.9, kv=5.9, compute=1.8, overhead=0.5),
                    device("gpu1", 23.99, weights=6.6, kv=5.9, compute=1.8, overhead=0.5),
                ],
                slots=2,
                offload={"gpu_layers": 95, "cpu_moe_layers": 94, "split": [48, 47]},
                predicted=speed(15.6, 160, slots=2),
                reasons=[
                    "All attention on the GPUs, the experts of 94 layers in RAM.",
                    "32 threads: one per physical core.",
                ],
                rejected=[
                    rejection(
                        "ktransformers",
                        "BF16",
                        "Would be better, not available: there is no role for KTransformers yet. KTransformers with "
                        "BF16: 21 tok/s instead of 16 tok/s.",
                        better=True,
                    ),
                    rejection("vllm", "FP8", "219.9 GiB of weights on 48.0 GiB of GPU memory"),
                ],
            ),
            placement(
                "assistant",
                where,
                "llamacpp",
                "Q4_K_M",
                [
                    device("ram", 377.3, weights=0.2, compute=0.1, overhead=2, reserve=8, others=127),
                    device("gpu0", 23.99, weights=2.3, kv=4.5, compute=0.4, overhead=0.5, others=15.1),
                    device("gpu1", 23.99, others=14.8),
                ],
                slots=4,
                context=8192,
                port=9102,
                predicted=speed(121, 4100, slots=4),
            ),
            placement(
                "embedding",
                where,
                "llamacpp",
                "Q8_0",
                [
                    device("ram", 377.3, weights=0.2, compute=0.1, overhead=0, reserve=8, others=129.3),
                    device("gpu0", 23.99, others=22.8),
                    device("gpu1", 23.99, weights=0.6, kv=0.9, compute=0.4, overhead=0.5, others=14.8),
                ],
                kind="embedding",
                slots=1,
                context=8192,
                port=9103,
                predicted=speed(40, 9800),
            ),
        ]
    return plan(
        "Plan for inventories/prod",
        hosts,
        placements,
        changes=[
            "gpu1: assistant: ctx-size 32768 -> 65536; threads 32 -> 64",
            "gpu2: assistant is new",
            "gpu3: old-model stops",
        ],
    )


def fleet() -> Plan:
    """20 hosts with 3 models each."""
    one = three_by_three()
    hosts, placements = [], []
    for number in range(1, 21):
        hosts.append(one["hosts"]["gpu1"] | {"id": f"rack{number:02d}"})
        placements += [p | {"host": f"rack{number:02d}"} for p in one["placements"][:3]]
    return plan("Plan for twenty hosts", hosts, placements)  # type: ignore[arg-type]


ALL = {
    "amx": amx_r1,
    "a100": two_a100,
    "laptop": laptop,
    "h200": h200,
    "no": does_not_fit,
    "nine": three_by_three,
    "fleet": fleet,
}
