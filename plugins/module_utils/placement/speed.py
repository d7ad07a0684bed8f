# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast a model will answer on a machine: tokens per second, each with an interval.

One token makes every device read its part of the weights once, and its part of the conversation's cache:

    seconds per token = sum over devices ( bytes read / (bandwidth x share that is reached) + layers x time per layer )

The shares are in CLASSES: one row per engine and kind of device. A processor is bound as well by what its cores can
unpack per second (CORE). Reading a prompt is bound by operations instead. Sources of every constant, and
predictions beside published figures: docs/speed.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.memory import typical_bandwidth
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Gpu, Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import Offload, Speed
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Cache, Layer, Shape


@dataclass(frozen=True)
class Class:
    """Constants of one engine on one kind of device."""

    decode: float
    """Share of the theoretical memory bandwidth that is reached."""
    prefill: float
    """Share of the operations per second that is reached while a prompt is read: of the GPU's theoretical ones, or of
    CORE's."""
    layer: float
    """Seconds per token and layer beside reading: kernel launches, barriers, hand-over between devices."""
    low: float
    high: float
    """The interval: figure x low to figure x high."""
    source: str


#: Engine family and device -> constants. "nodes": the weights lie on several NUMA nodes. "stacked": GPUs with HBM,
#: whose bandwidth llama.cpp's kernels do not use up. "experts": models with experts, whose layers are many small
#: kernels. "legacy MLA": files without the keys of the compressed cache. "figures": how many of the fitted half.
CLASSES: dict[str, Class] = {
    "llamacpp ram": Class(0.37, 0.80, 60e-6, 0.73, 1.38, "4 figures"),
    "llamacpp ram, nodes": Class(0.38, 0.30, 80e-6, 0.42, 2.36, "1 figure"),
    "llamacpp gpu": Class(0.86, 0.33, 60e-6, 0.74, 1.34, "18 figures"),
    "llamacpp gpu, experts": Class(0.70, 0.16, 60e-6, 0.49, 2.05, "2 figures"),
    "llamacpp gpu, stacked": Class(0.62, 0.20, 40e-6, 0.67, 1.50, "3 figures"),
    "llamacpp gpu, stacked, experts": Class(0.70, 0.10, 60e-6, 0.40, 2.50, "none: as other GPUs"),
    "llamacpp gpu, legacy MLA": Class(0.70, 0.05, 643e-6, 0.67, 1.50, "2 figures"),
    "classic ram": Class(0.38, 0.90, 200e-6, 0.60, 1.67, "none: as other RAM"),
    "classic ram, nodes": Class(0.29, 0.35, 200e-6, 0.61, 1.64, "6 figures"),
    "kt ram": Class(0.38, 0.83, 150e-6, 0.60, 1.67, "none: as other RAM"),
    "kt ram, nodes": Class(0.43, 0.83, 150e-6, 0.75, 1.34, "4 figures"),
    "vllm gpu": Class(0.80, 0.50, 20e-6, 0.67, 1.50, "2 figures"),
    "vllm gpus": Class(0.50, 0.40, 60e-6, 0.58, 1.72, "2 figures"),
}
#: What llama.cpp keeps of "llamacpp ram, nodes" when nothing places the pages: dual EPYC 9175F 4.31 -> 2.4 tok/s
#: (llama.cpp issue 11744), dual Genoa 8-9 -> 4-5 (10981).
UNPLACED = 0.55

#: Tensor type -> what one core of the reference machine does with it: bytes of weights per second for single tokens,
#: and 10^9 operations per second while a prompt is read; each with AVX2, AVX-512 and AMX, by tests/bench/cores.
CORE: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "F32": ((12.0e9, 12.5e9, 13.6e9), (30, 33, 33)),  # as BF16: only norms and routers have it
    "F16": ((8.0e9, 12.4e9, 13.6e9), (24, 33, 109)),
    "BF16": ((11.9e9, 12.5e9, 13.7e9), (30, 40, 51)),
    "Q8_0": ((9.8e9, 9.9e9, 11.9e9), (58, 59, 285)),
    "Q6_K": ((8.3e9, 8.7e9, 7.5e9), (99, 105, 130)),
    "Q5_K": ((4.6e9, 4.5e9, 6.6e9), (107, 113, 208)),
    "Q4_K": ((8.2e9, 8.5e9, 7.6e9), (114, 150, 208)),
    "Q4_0": ((5.5e9, 6.2e9, 13.6e9), (92, 135, 280)),
    "Q3_K": ((5.8e9, 6.0e9, 6.3e9), (106, 109, 114)),
    "Q2_K": ((3.8e9, 5.3e9, 5.3e9), (104, 149, 145)),
    "IQ4_XS": ((3.8e9, 3.7e9, 6.7e9), (97, 109, 252)),
    "IQ4_NL": ((5.0e9, 5.6e9, 6.8e9), (86, 112, 123)),
    "MXFP4": ((4.3e9, 5.1e9, 5.4e9), (75, 126, 141)),
    "IQ3_XXS": ((2.6e9, 2.3e9, 2.2e9), (95, 100, 104)),
    "IQ3_S": ((1.7e9, 1.6e9, 1.6e9), (90, 98, 98)),  # not with AMX
    "IQ2_XXS": ((2.2e9, 2.5e9, 2.4e9), (103, 114, 110)),
    "IQ2_S": ((1.8e9, 1.8e9, 1.7e9), (95, 104, 97)),
    "IQ1_S": ((1.6e9, 1.6e9, 1.6e9), (60, 60, 81)),  # single tokens: with AVX-512 only
    "IQ2_XS": ((1.8e9, 1.8e9, 1.7e9), (91, 101, 95)),
}
#: A type that was not measured counts as this one.
OTHER_TYPE = "Q3_K"
#: Share of CORE that a processor without AVX2 reaches. Not measured; such machines get a wide interval.
PLAIN = 0.25

#: Share of a measured bandwidth, which is what a plain reader gets, that llama.cpp gets of one node (tests/bench/cores:
#: models of Q4_K, Q6_K and Q8_0 on two cores, 14.2 to 15.7 of 22 GB/s).
MEASURED = 0.70
#: Where nothing is known: one channel of DDR4-2400; a GPU like a Tesla T4 (320 GB/s, 65 Tflop/s); PCIe 3.0 x16.
UNKNOWN_RAM, UNKNOWN_GPU, UNKNOWN_FLOPS, UNKNOWN_LINK = 19_200_000_000, 300e9, 60e12, 15.75e9
#: Share of a link's theoretical bandwidth that copies of weights reach (PCIe overhead and packets: about a fifth).
LINK = 0.8
#: Bytes per second from disk through page faults, which ask for little at a time.
DISK = {"solid state": 1.5e9, "rotational": 120e6, "network": 100e6}
#: Seconds that nothing is quicker than: files may claim to need no work at all.
LEAST = 1e-9
#: Compute capabilities of GPUs with stacked memory: V100, A100, H100, B200, B300.
STACKED = ("7.0", "8.0", "9.0", "10.0", "10.3")
#: Bytes of a cache element (f16).
ELEMENT = 2
#: Share of a single conversation's step that each further one adds (its sampling, its scheduling): vLLM 0.23 on an A100
#: gives eight conversations 6.6 times the tokens of one (johnmusgrave.com).
PER_SLOT = 0.03
#: A prompt's speed depends on its length and the batch more than an answer's does.
PREFILL_SPREAD = 1.4
#: What the interval is widened by when the figures are not known exactly.
TYPICAL, ASSUMED, PUBLISHED, PAGED = 1.3, 2.0, 1.1, 2.5

FAMILIES = {
    "llamacpp": "llamacpp",
    "ollama": "llamacpp",  # each model is a llama-server since 0.30
    "ktransformers": "kt",
    "ktransformers-classic": "classic",
    "vllm": "vllm",
    "sglang": "vllm",
}


def share_used(shape: Shape) -> float:
    """Part of the experts that one token needs: at least one of them."""
    return min(1.0, max(1, shape["experts_used"]) / shape["experts"]) if shape["experts"] else 1.0


@dataclass(frozen=True)
class Work:
    """What one token makes a device read, in bytes."""

    always: float = 0.0
    """Weights every token needs."""
    experts: float = 0.0
    """The routed experts of one token."""
    cache: float = 0.0
    layers: int = 0
    held: float = 0.0
    """All weights that lie there, needed or not."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.always + other.always,
            self.experts + other.experts,
            self.cache + other.cache,
            self.layers + other.layers,
            self.held + other.held,
        )

    def __sub__(self, other: Work) -> Work:
        return Work(
            self.always - other.always,
            self.experts - other.experts,
            self.cache - other.cache,
            self.layers - other.layers,
            self.held - other.held,
        )

    def part(self, of: int) -> Work:
        """One of `of` equal parts of every layer: tensor parallel."""
        return Work(self.always / of, self.experts / of, self.cache / of, self.layers, self.held / of)

    def read(self, shape: Shape, slots: int) -> float:
        """In one step of `slots` conversations: the weights once, also of experts that several of them need."""
        ratio = share_used(shape)
        return self.always + self.experts * (1 - (1 - ratio) ** slots) / ratio + self.cache * slots


@dataclass(frozen=True)
class Device:
    work: Work
    constants: Class
    rate: float
    """Bytes per second."""
    flops: float
    layer: float
    """Seconds per layer."""
    spread: float
    basis: str


def cache_read(cache: Cache, depth: int) -> float:
    """Bytes of one layer's cache that one token reads, `depth` tokens into the conversation."""
    if cache["kind"] in ("recurrent", "none"):
        return 2.0 * cache["state"]  # read and written back
    seen = min(depth, cache["window"]) if cache["kind"] == "sliding" else depth
    return float(cache["heads"] * (cache["key"] + cache["value"]) * ELEMENT * seen)


def routed(shape: Shape, layer: Layer) -> Work:
    """A layer's experts."""
    if not layer["experts"]:
        return Work()
    return Work(experts=layer["experts"] * share_used(shape), layers=1, held=layer["experts"])


def rest(layer: Layer, depth: int) -> Work:
    """A layer without its experts."""
    weights = layer["attention"] + layer["dense"] + layer["shared"] + layer["other"]
    return Work(always=weights, cache=cache_read(layer["cache"], depth), layers=1, held=weights)


#: By the identity of the shape: a planner asks for the same ones again and again.
_sums: dict[tuple[int, int], tuple[Shape, list[Work], list[Work]]] = {}


def sums(shape: Shape, depth: int) -> tuple[list[Work], list[Work]]:
    """Work of all layers before each one: without their experts, and of the experts alone."""
    key = (id(shape), depth)
    found = _sums.get(key)
    if found is None or found[0] is not shape:
        others = list(accumulate((rest(layer, depth) for layer in shape["layers"]), initial=Work()))
        experts = list(accumulate((routed(shape, layer) for layer in shape["layers"]), initial=Work()))
        found = _sums[key] = (shape, others, experts)
    return found[1], found[2]


def spread_layers(shape: Shape, offload: Offload, gpus: int, depth: int) -> list[Work]:
    """What lies in RAM, then on each GPU: the output and the last layers; the output counts as one of gpu_layers."""
    others, experts = sums(shape, depth)
    count = len(shape["layers"])
    on_gpus = min(offload["gpu_layers"], count + 1) if gpus else 0
    split = offload["split"] or [on_gpus // gpus + (i < on_gpus % gpus) for i in range(gpus)] if gpus else []
    moe = min(offload["cpu_moe_layers"], count)
    at = count + 1 - on_gpus
    first = min(at, count)
    works, last = [others[first] + experts[max(first, moe)]], 0
    for number, items in enumerate(split[:gpus], 1):
        begin, end = min(at, count), min(at + items, count)
        works.append(others[end] - others[begin] + experts[end] - experts[min(max(begin, moe), end)])
        at, last = at + items, number if items else last
    works[last] += matrix(shape)
    return works


def matrix(shape: Shape) -> Work:
    """The output matrix, which is the token table where they are tied."""
    size = shape["output"] + (shape["embeddings"] if shape["tied"] else 0)
    return Work(always=size, held=size)


def share_out(shape: Shape, family: str, offload: Offload, gpus: int, depth: int) -> list[Work]:
    """What each device reads: RAM first. vLLM and KTransformers cut every layer into equal parts."""
    if family == "llamacpp" or not gpus:
        return spread_layers(shape, offload, gpus, depth)
    before, routed_before = sums(shape, depth)
    experts, others = routed_before[-1], before[-1] + matrix(shape)
    if family == "vllm":
        return [Work(), *[(experts + others).part(gpus)] * gpus]
    return [experts, *[others.part(gpus)] * gpus]


def nodes_in_use(hardware: Hardware, numa: Mapping[str, Any]) -> tuple[int, int]:
    """Of the nodes with CPUs, those the engine uses, and all of them."""
    every = [node["id"] for node in hardware["numa"] if node["cpus"]]
    if numa.get("policy") == "bind" and numa.get("nodes"):
        return len(numa["nodes"]), max(len(every), 1)
    return max(len(every), 1), max(len(every), 1)


def ram(hardware: Hardware, part: float = 1.0) -> tuple[float, float, str]:
    """Bytes per second of (a part of) the RAM where nobody measured it, what widens the interval, the origin."""
    typical = typical_bandwidth(hardware)
    if hardware["memory"]["bandwidth"]:
        return hardware["memory"]["bandwidth"] * part, 1.0, "by its DIMMs"
    if typical and typical[0]:
        return typical[0] * part, TYPICAL, "typical of this processor"
    return UNKNOWN_RAM, ASSUMED, "assumed, as neither DIMMs nor processor say more"


def ram_rate(hardware: Hardware, numa: Mapping[str, Any], family: str, name: str) -> tuple[float, float, str]:
    """Bytes per second that a class reaches of the nodes in use, what widens the interval, and the figure's origin."""
    used, every = nodes_in_use(hardware, numa)
    share = CLASSES[name].decode
    if family == "llamacpp" and name.endswith(", nodes") and numa.get("policy", "none") == "none":
        share *= UNPLACED
    measured = sum((hardware["memory"]["measured"] or {}).values())
    if measured:
        rate = measured * used / every
        share = MEASURED * share / CLASSES["llamacpp ram"].decode
        return rate * share, 1.0, f"{rate / 1e9:.0f} GB/s measured from RAM, class {name} ({share:.2f} of it)"
    rate, spread, origin = ram(hardware, used / every)
    return rate * share, spread, f"{rate / 1e9:.0f} GB/s of RAM {origin}, class {name} ({share:.2f} of it)"


def column(isa: Sequence[str]) -> int:
    """Of CORE, for a processor: 0 AVX2, 1 AVX-512, 2 AMX."""
    if {"amx_tile", "amx_int8"} <= set(isa):
        return 2
    return 1 if {"avx512f", "avx512bw"} <= set(isa) else 0


def core_rates(shape: Shape, isa: Sequence[str]) -> tuple[float, float]:
    """Bytes of this model's weights one core works through per second, and its operations per second in a prompt.

    Means over the model's tensor types, by their bytes.
    """
    which, plain = column(isa), 1.0 if "avx2" in isa else PLAIN
    total = sum(shape["types"].values()) or 1
    rows = [(size / total, CORE.get(name.upper(), CORE[OTHER_TYPE])) for name, size in shape["types"].items()]
    reading = sum(part / row[0][which] for part, row in rows) or 1 / CORE[OTHER_TYPE][0][which]
    computing = sum(part / row[1][which] for part, row in rows) or 1 / CORE[OTHER_TYPE][1][which]
    return plain / reading, plain * 1e9 / computing


def processor(
    shape: Shape,
    hardware: Hardware,
    family: str,
    work: Work,
    threads: int,
    numa: Mapping[str, Any],
    core: float,
) -> Device:
    """The processor and its RAM."""
    several = nodes_in_use(hardware, numa)[0] > 1 and hardware["cpu"]["sockets"] > 1
    name = ("llamacpp" if family == "vllm" else family) + (" ram, nodes" if several else " ram")
    constants = CLASSES[name]
    rate, spread, basis = ram_rate(hardware, numa, family, name)
    running = max(1, min(threads, hardware["cpu"]["cores"]))
    cores = min(float(running), hardware["cpu"]["usable"] or running)
    # KTransformers' kernels for GGUF and FP8 do not use AMX.
    isa = [flag for flag in hardware["cpu"]["isa"] if family == "llamacpp" or not flag.startswith("amx")]
    reading, computing = core_rates(shape, isa)
    return Device(
        work,
        constants,
        min(rate, cores * core * reading),
        cores * core * computing * constants.prefill,
        constants.layer * running / cores,  # threads that wait for their turn hold up the others
        spread,
        basis if rate <= cores * core * reading else f"{cores:g} cores at {core * reading / 1e9:.1f} GB/s; {basis}",
    )


def gpu_flops(gpu: Gpu, family: str) -> float:
    """Theoretical operations per second of the kernels that are used.

    llama.cpp accumulates in 16 bits or multiplies integers, which GeForce cards do at full speed; with 32 bits, the
    figure of data sheets, they run at half of it (NVIDIA Ampere and Ada white papers).
    """
    full = 2.0 if "GeForce" in gpu["name"] and family != "vllm" else 1.0
    return full * (gpu["flops"] or UNKNOWN_FLOPS)


def card(family: str, gpu: Gpu, number: int, gpus: int, work: Work, legacy: bool) -> Device:
    """A GPU."""
    if family == "vllm":
        name = "vllm gpus" if gpus > 1 else "vllm gpu"
    else:
        stacked = gpu["compute_capability"] in STACKED
        name = "llamacpp gpu" + (", stacked" if stacked else "") + (", experts" if work.experts else "")
        if legacy:
            name = "llamacpp gpu, legacy MLA"
    constants = CLASSES[name]
    bandwidth, spread, origin = float(gpu["bandwidth"] or 0), 1.0, f"{(gpu['bandwidth'] or 0) / 1e9:.0f} GB/s"
    if not bandwidth:
        bandwidth, spread, origin = UNKNOWN_GPU, ASSUMED, f"{UNKNOWN_GPU / 1e9:.0f} GB/s assumed"
    return Device(
        work,
        constants,
        bandwidth * constants.decode,
        gpu_flops(gpu, family) * constants.prefill,
        constants.layer,
        spread,
        f"{origin} of gpu{number}, class {name} ({constants.decode:.2f})",
    )


def operations(shape: Shape) -> float:
    """For one token of a prompt: two per parameter that takes part."""
    idle = 0.0 if shape["tied"] else float(shape["embeddings"])
    if shape["experts"]:
        every = sum(layer["experts"] for layer in shape["layers"])
        idle += every * (1 - share_used(shape))
    return 2.0 * shape["parameters"] * (1 - idle / (shape["weights"] or 1))


def step(shape: Shape, device: Device, slots: int, part: float) -> float:
    """Seconds in which a device gives each of `slots` conversations its next token. `part`: operations for one."""
    one = device.work.read(shape, 1) / device.rate
    reading = device.work.read(shape, slots) / device.rate
    computing = slots * min(part / device.flops, one)
    return max(reading, computing) + device.work.layers * device.layer + (slots - 1) * PER_SLOT * one


def disk(hardware: Hardware) -> tuple[float, str]:
    """Bytes per second of page faults from the disk of the models, and what it was taken for."""
    found = hardware["disk"]
    kind = "solid state"
    if found and found["network"]:
        kind = "network"
    elif found and found["rotational"]:
        kind = "rotational"
    known = found and (found["network"] or found["rotational"] is not None)
    return DISK[kind], f"{DISK[kind] / 1e9:.2g} GB/s from a {kind} disk{'' if known else ', assumed'}"


def predict(
    shape: Shape,
    hardware: Hardware,
    *,
    engine: str,
    offload: Offload,
    threads: int,
    slots: int,
    numa: Mapping[str, Any],
    depth: int = 1024,
    paged_bytes: int = 0,
    ubatch: int = 512,
    core: float = 1.0,
) -> Speed:
    """Speed of one conversation `depth` tokens long, of its prompt, and of `slots` conversations together.

    paged_bytes: weights that find no room in RAM and come from disk again and again. core: the speed of one core
    against the reference machine's, where it was measured.
    """
    family = FAMILIES[engine]
    gpus = hardware["gpus"][: len(offload["split"]) or None]
    if family == "llamacpp" and not offload["gpu_layers"]:
        gpus = []
    legacy = shape["attention"] == "legacy MLA" and family == "llamacpp"
    works = share_out(shape, family, offload, len(gpus), depth)
    devices = [card(family, gpu, number, len(gpus), works[number + 1], legacy) for number, gpu in enumerate(gpus)]
    if works[0].held or not devices:
        devices.insert(0, processor(shape, hardware, family, works[0], threads, numa, core))

    active = sum(device.work.always + device.work.experts for device in devices) or 1.0
    work = operations(shape)
    parts = [work * (device.work.always + device.work.experts) / active for device in devices]
    parallel = family == "vllm" or (family != "llamacpp" and len(gpus) > 1)
    single = busy = prompt = 0.0
    for device, part in zip(devices, parts, strict=True):
        # GPUs of equal parts work at the same time; llama.cpp's work one after the other.
        together = len(gpus) if parallel and device.work is not works[0] else 1
        single += step(shape, device, 1, part) / together
        busy += step(shape, device, slots, part) / together
        in_ram = device.work is works[0]
        if in_ram and gpus and family == "llamacpp":  # copied to a GPU, batch by batch, and worked on there
            link = (gpus[0]["link"] or UNKNOWN_LINK) * LINK
            flops = gpu_flops(gpus[0], family) * devices[-1].constants.prefill
            prompt += device.work.held / link / ubatch + part / flops
        else:
            prompt += part / device.flops / together
    spread = max(device.spread for device in devices) * (1.0 if shape["exact"] else PUBLISHED)
    basis = [device.basis for device in devices]
    if paged_bytes:
        ram, (rate, text) = works[0], disk(hardware)
        missed = (ram.always + ram.experts) * min(1.0, paged_bytes / ram.held) if ram.held else 0.0
        single, busy, prompt = (
            single + missed / rate,
            busy + slots * missed / rate,
            prompt + paged_bytes / rate / ubatch,
        )
        spread *= PAGED
        basis.append(f"{missed / 1e9:.1f} GB of each token at {text}")
    low = min(device.constants.low for device in devices) / spread
    high = max(device.constants.high for device in devices) * spread
    decode, prefill = 1 / max(single, LEAST), 1 / max(prompt, LEAST)
    return Speed(
        decode=decode,
        decode_low=decode * low,
        decode_high=decode * high,
        prefill=prefill,
        prefill_low=prefill * low / PREFILL_SPREAD,
        prefill_high=prefill * high * PREFILL_SPREAD,
        total=slots / max(busy, LEAST),
        basis="; ".join(dict.fromkeys(basis)),
    )
