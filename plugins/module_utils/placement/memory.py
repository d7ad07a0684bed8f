# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a model takes on each device of a host, by engine. Pure; all sizes in bytes.

llama.cpp: weights and the cache are counted as its loader lays them out. The compute buffers follow from the graph of
one batch; which vectors of it live at the same time was measured with llama.cpp 0.7.0 (llama-fit-params and
llama-server; CPU, RPC and Vulkan devices, not CUDA; llama, qwen3moe, gpt-oss, gemma3, lfm2, bert and both forms of
deepseek2, tiny and at the size of published models: tests/fixtures/llamacpp_memory.json). They are upper bounds: see
BAND. What CUDA takes besides its context (buffers of kernels) is for the margin of each GPU to hold.
vLLM, SGLang and KTransformers were not run; what is estimated there says so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory, Offload
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Cache, Layer, Shape

MIB = 1 << 20
GIB = 1 << 30

#: Cache type -> bytes of 32 elements (ggml's blocks).
CACHE_TYPES = {
    "f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18, "iq4_nl": 18,
}  # fmt: skip
#: llama.cpp rounds the cells of a slot, and those of a sliding window, up to this (measured, 0.7.0).
PAD = 256
#: How far llama.cpp's own figures may lie from the plan's, as a share of the plan's: (below, above). The plan of the
#: compute buffers is an upper bound: it also holds the copy of weights that a GPU may make, or not. Measured at the
#: size of published models: weights and cache equal to the MiB; compute 0.74 to 1.04 of the plan where all is in RAM
#: or all on one or two GPUs (the larger ones above 0.84), less where weights are in RAM, 1.14 at most (DeepSeek of
#: January 2025 with flash attention on several GPUs, which CUDA has no kernel for).
BAND = {"weights": (0.05, 0.05), "kv_cache": (0.10, 0.10), "compute": (1.00, 0.15)}
#: Of a process that uses a GPU, on that GPU (NVIDIA's context and kernels; llama.cpp shows it as unaccounted).
CUDA_CONTEXT = GIB // 2
#: Left free on each GPU: llama.cpp's own --fit-target.
GPU_MARGIN = GIB
#: llama-server itself without model: resident size of 0.7.0 with a model of 1 MB, measured 26 MB.
PROCESS = 32 * MIB
#: Copies of a layer's inputs when a batch goes through several GPUs as through a pipeline (GGML_SCHED_MAX_COPIES).
PIPELINE = 4
#: Part of a layer's feed-forward weights that its largest tensor is: a third, or more where down is stored with more
#: bits (Q4_K_M: Q6_K 210 against twice Q4_K 144).
LARGEST = 0.43
#: States of sliding and recurrent layers llama-server keeps to go back to (--ctx-checkpoints; its default is 32).
CHECKPOINTS = 4
#: The system's own share of RAM: daemons, page cache for what is not the model, kernel. The kernel's page tables for
#: RAM itself are not part of MemTotal, so beyond some size more RAM needs no more of this.
OS_SHARE, OS_LEAST, OS_MOST = 0.04, GIB, 16 * GIB

#: vLLM and SGLang: part of each GPU they may take (their own default), tokens of one batch, and besides the weights
#: NVIDIA's context (0.33 GiB seen, vllm#14452) and CUDA graphs (0.36 GiB seen, gpustack/runner#251).
VLLM_SHARE = 0.90
VLLM_BATCH = 8192
VLLM_OVERHEAD = GIB
#: KTransformers: its GPU side is SGLang; --chunked-prefill-size as the plan sets it.
KT_BATCH = 4096
#: RAM of one Python process with torch and CUDA loaded. Estimate.
PYTHON_PROCESS = 2 * GIB

# --- what one model asks for


def check(tokens: int, slots: int, ubatch: int, cache_type: str) -> None:
    for name, value in (("tokens", tokens), ("slots", slots), ("ubatch", ubatch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if slots > tokens:
        raise ValueError(f"{slots} slots share {tokens} tokens: less than one token each; give more tokens")
    if cache_type not in CACHE_TYPES:
        raise ValueError(f"cache type '{cache_type}' is unknown; there are {', '.join(CACHE_TYPES)}")


def padded(tokens: int) -> int:
    return -(-tokens // PAD) * PAD


def cells(cache: Cache, tokens: int, slots: int, ubatch: int) -> int:
    """Tokens one slot has room for in one layer."""
    own = padded(-(-tokens // slots))
    return min(own, padded(cache["window"] + ubatch)) if cache["kind"] == "sliding" else own


def layer_kv(cache: Cache, tokens: int, slots: int, cache_type: str, ubatch: int) -> int:
    """Bytes one layer keeps for all slots."""
    if cache["kind"] == "recurrent":
        return cache["state"] * slots
    if cache["kind"] == "none":
        return 0
    elements = cache["heads"] * (cache["key"] + cache["value"])
    return elements * CACHE_TYPES[cache_type] * slots * cells(cache, tokens, slots, ubatch) // 32


def kv_bytes(shape: Shape, tokens: int, slots: int, cache_type: str = "f16", ubatch: int = 512) -> int:
    """The whole cache of llama.cpp for ``tokens`` in all slots together. ValueError for what cannot be."""
    check(tokens, slots, ubatch, cache_type)
    return sum(layer_kv(layer["cache"], tokens, slots, cache_type, ubatch) for layer in shape["layers"])


def os_reserve(hardware: Hardware) -> int:
    return int(min(max(ram(hardware) * OS_SHARE, OS_LEAST), OS_MOST))


def ram(hardware: Hardware) -> int:
    """RAM this system may use at all."""
    memory = hardware["memory"]
    return min(memory["total"], memory["limit"] or memory["total"])


def used(device: DeviceMemory) -> int:
    """What the model itself takes there."""
    return device["weights"] + device["kv_cache"] + device["compute"] + device["overhead"]


def free(device: DeviceMemory) -> int:
    """What stays; negative: so much is missing. Where nothing is put nothing is missing, however small it is."""
    left = device["capacity"] - used(device) - device["reserve"] - device["others"]
    return left if used(device) else max(left, 0)


# --- compute buffers


def _feed_forward(shape: Shape) -> int:
    """About how long the hidden vector of a dense layer is: three matrices, in the bytes per element of all that is
    no routed expert."""
    dense = max(layer["dense"] for layer in shape["layers"])
    routed = [layer["experts"] for layer in shape["layers"] if layer["experts"]]
    elements = shape["parameters"] - len(routed) * 3 * shape["experts"] * shape["expert_width"] * shape["embedding"]
    weight = shape["weights"] - sum(routed)
    if not dense or elements <= 0 or weight <= 0 or not shape["embedding"]:
        return 0
    return int(dense * elements / weight / 3 / shape["embedding"])


def _attention(shape: Shape, cache: Cache, length: int, flash: bool) -> float:
    """Elements per token of the batch in a layer's attention; ``length``: tokens it looks back on."""
    heads, key, value = shape["heads"], cache["key"], cache["value"]
    scores = 0 if flash else heads * length
    if cache["kind"] == "mla":
        # Twice the compressed part, three times the rotated, once the head's own: 512, 64 and 128 of 576.
        return heads * key * 7 / 3 + scores
    if shape["attention"] == "legacy MLA":
        return heads * (3 * key + 2 * value) + scores
    if cache["kind"] in ("full", "sliding"):
        own = heads * key + cache["heads"] * (key + value)
        return own if flash else own + heads * key + scores
    # Without a cache (embedding models) it looks at the batch. Of recurrent layers only short convolutions (lfm2) were
    # measured, and take less; other kinds hold more vectors.
    return {"none": 3.0, "recurrent": 12.0}[cache["kind"]] * shape["embedding"] + (0 if flash else heads * length)


class _Needs:
    """What follows from a shape and its use alone. Sums before each layer, so that any range is one subtraction."""

    def __init__(self, shape: Shape, tokens: int, slots: int, ubatch: int, cache_type: str, flash: bool) -> None:
        check(tokens, slots, ubatch, cache_type)
        layers = shape["layers"]
        self.count = len(layers)
        self.others = [0, *accumulate(_rest(layer) for layer in layers)]
        self.experts = [0, *accumulate(layer["experts"] for layer in layers)]
        caches = [layer["cache"] for layer in layers]
        self.kv = [0, *accumulate(layer_kv(one, tokens, slots, cache_type, ubatch) for one in caches)]
        self.table = shape["embeddings"]
        self.output = shape["output"]
        self.copy = shape["embeddings"] if shape["tied"] else 0
        batch = min(ubatch, tokens)
        kinds = {tuple(one.values()): one for one in caches}.values()
        lengths = {
            one["kind"]: batch if one["kind"] == "none" else cells(one, tokens, slots, ubatch)
            for one in kinds
            if one["kind"] != "recurrent"
        }
        #: One mask for the layers that see everything, one for those with a window; without flash attention also where
        #: each element of a value goes, as values are stored transposed then.
        self.inputs = batch * sum(lengths.values()) * (2 if flash else 4)
        if not flash:
            values = {one["kind"]: one["heads"] * one["value"] for one in kinds if one["kind"] in ("full", "sliding")}
            self.inputs += batch * sum(values.values()) * 8
        self.unit = 4 * batch
        self.embedding = shape["embedding"]
        attention = max(_attention(shape, one, lengths.get(one["kind"], 0), flash) for one in kinds)
        routed = shape["experts_used"] * (self.embedding + 3 * shape["expert_width"])
        #: Elements per token where a layer needs most of them.
        self.widest = int(max(attention, 3 * _feed_forward(shape), routed))
        #: A model without cache gives vectors, no logits.
        self.vocabulary = shape["vocabulary"] if any(one["kind"] != "none" for one in caches) else 0
        #: Where a batch is computed on a GPU from weights in RAM, the largest of them is copied there.
        self.largest_expert = int(max(layer["experts"] for layer in layers) * LARGEST)
        self.largest_rest = int(max(max(layer["dense"], layer["attention"]) for layer in layers) * LARGEST)
        #: Sliding and recurrent states kept to go back to, in RAM.
        short = sum(
            layer_kv(one, tokens, slots, cache_type, ubatch)
            for one in caches
            if one["kind"] in ("sliding", "recurrent")
        )
        self.checkpoints = CHECKPOINTS * short

    def graph(self, vectors: int, copies: int, outputs: int, copied: int = 0) -> int:
        """Bytes of a device's compute buffer: inputs, vectors as long as a token's, and the widest step: a layer with
        the weights ``copied`` for it, or the logits."""
        widest = max(self.unit * self.widest + copied, outputs * self.vocabulary * 4)
        return copies * self.inputs + vectors * self.unit * self.embedding + widest

    def layers_on(self, first: int, end: int, cpu_moe: int) -> tuple[int, int]:
        """Bytes of weights and cache of the layers from first to before end; the experts of the first stay away."""
        weights = self.others[end] - self.others[first]
        start = min(max(first, cpu_moe), end)
        return weights + self.experts[end] - self.experts[start], self.kv[end] - self.kv[first]


def _rest(layer: Layer) -> int:
    return layer["attention"] + layer["dense"] + layer["shared"] + layer["other"]


#: The last few, by the identity of the shape: a planner asks for the same ones again and again.
_needs: dict[tuple[int, int, int, int, str, bool], tuple[Shape, _Needs]] = {}


def _needs_of(shape: Shape, tokens: int, slots: int, ubatch: int, cache_type: str, flash: bool) -> _Needs:
    key = (id(shape), tokens, slots, ubatch, cache_type, flash)
    found = _needs.get(key)
    if found is None or found[0] is not shape:
        if len(_needs) >= 1024:
            _needs.clear()
        found = _needs[key] = (shape, _Needs(shape, tokens, slots, ubatch, cache_type, flash))
    return found[1]


# --- llama.cpp


class _Plan:
    """The cost of items on GPUs. Items are the layers on GPUs, the last ones of the model, and the output behind."""

    def __init__(self, needs: _Needs, offload: tuple[int, int], gpus: int, outputs: int) -> None:
        self.needs, self.outputs = needs, outputs
        self.gpu_layers, self.cpu_moe = offload
        #: The first item; layers before it stay in RAM.
        self.start = needs.count + 1 - self.gpu_layers
        pipeline = gpus > 1 and self.gpu_layers > needs.count and not self.cpu_moe
        self.copies = PIPELINE if pipeline else 1
        #: Vectors alive at the same time, on the first GPU and on the others: inputs of a pipeline are there four
        #: times, and the first GPU also holds what it hands on.
        self.vectors = (19, 11) if pipeline else (4, 4) if gpus < 2 else (7, 7)
        copied = 0
        if self.cpu_moe:
            copied = needs.largest_expert
        if self.gpu_layers <= needs.count:
            copied = max(copied, needs.largest_rest, needs.largest_expert)
        self.copied = copied

    def parts(self, begin: int, end: int, first: bool) -> tuple[int, int, int]:
        """Weights, cache and compute of the items from begin to before end on one GPU."""
        needs = self.needs
        if begin == end:
            return 0, 0, 0
        output = end > needs.count
        weights, kv = needs.layers_on(begin, min(end, needs.count), self.cpu_moe)
        vectors = self.vectors[0 if first else 1]
        compute = needs.graph(vectors, self.copies, self.outputs if output else 0, self.copied if first else 0)
        return weights + (needs.output + needs.copy if output else 0), kv, compute

    def cost(self, begin: int, end: int, first: bool) -> int:
        weights, kv, compute = self.parts(begin, end, first)
        return weights + kv + compute + CUDA_CONTEXT

    def fill(self, room: Sequence[float]) -> list[int] | None:
        """Items per GPU when each takes as many as it has room for, in order; None when not all find a place."""
        at, last, split = self.start, self.needs.count + 1, [0] * len(room)
        for number, space in enumerate(room):
            if at == last:
                break
            first = at == self.start
            if self.cost(at, last, first) <= space:
                taken = last - at
            elif number == len(room) - 1:
                return None
            else:
                # The cost of [at, end) grows with end.
                taken = bisect_right(range(at + 1, last), space, key=lambda end: self.cost(at, end, first))
            split[number] = taken
            at += taken
        return split if at == last else None


def _rooms(hardware: Hardware, taken: Mapping[str, int]) -> list[int]:
    """What each GPU has left; one whose memory is unknown has nothing."""
    return [
        max(0, gpu["memory"] - GPU_MARGIN - taken.get(f"gpu{number}", 0)) if gpu["memory"] else 0
        for number, gpu in enumerate(hardware["gpus"])
    ]


def _even(plan: _Plan, room: Sequence[int]) -> list[int] | None:
    """The split that leaves every GPU as evenly filled as possible; None when none fits."""
    best = plan.fill(room)
    if best is None or len(room) == 1:
        return best
    low, high = 0, 64
    while high - low > 1:
        middle = (low + high) // 2
        found = plan.fill([space * middle / 64 for space in room])
        low, high, best = (low, middle, found) if found else (middle, high, best)
    return best


def _known(hardware: Hardware) -> int:
    return sum(1 for gpu in hardware["gpus"] if gpu["memory"])


def split_layers(
    shape: Shape, hardware: Hardware, gpu_layers: int, cpu_moe_layers: int, taken: Mapping[str, int]
) -> list[int]:
    """Layers (and the output, with the last one) per GPU in proportion to its free memory, as llama.cpp does."""
    room = _rooms(hardware, taken)
    total = sum(room)
    if not total or gpu_layers <= 0:
        return [0] * len(room)
    edges = [round(gpu_layers * part / total) for part in accumulate(room)]
    return [end - begin for begin, end in zip([0, *edges[:-1]], edges, strict=True)]


def llamacpp(
    shape: Shape,
    hardware: Hardware,
    *,
    tokens: int,
    slots: int,
    ubatch: int,
    cache_type: str,
    offload: Offload,
    cache_ram: int,
    taken: Mapping[str, int],
    flash: bool = True,
    outputs: int | None = None,
) -> list[DeviceMemory]:
    """What llama-server takes on ram, gpu0, gpu1 ...: all devices of the hardware, used or not.

    ``offload``: gpu_layers N are the output and the last N - 1 layers, as --gpu-layers of llama.cpp 0.7.0 counts;
    split counts the same and gives the output to the last GPU that has any. ``outputs``: tokens of a batch whose
    logits are computed: one per slot in llama-server (the default here), the whole batch in llama-fit-params.
    ``taken``: device -> bytes of the models placed before. ValueError for what cannot be.
    """
    needs = _needs_of(shape, tokens, slots, ubatch, cache_type, flash)
    gpu_layers = _checked(offload, needs.count, hardware)
    outputs = slots if outputs is None else outputs
    split = offload["split"] if gpu_layers else []
    if gpu_layers and not split:
        split = [gpu_layers]
    gpus = sum(1 for items in split if items)
    moe = min(offload["cpu_moe_layers"], needs.count)
    plan = _Plan(needs, (gpu_layers, moe), max(gpus, _known(hardware)), outputs)

    start = min(plan.start, needs.count)
    weights, kv = needs.layers_on(0, start, 0)
    if gpus:
        weights += needs.experts[max(start, moe)] - needs.experts[start]
        compute = plan.copies * (needs.inputs + 2 * needs.unit * needs.embedding) + 2 * needs.unit * needs.embedding
        if start or moe:
            compute = max(compute, needs.graph(5, 1, 0))
    else:
        weights += needs.output
        compute = needs.graph(5, 1, outputs)
    # The logits of a batch as they are handed to the caller.
    compute += slots * needs.vocabulary * 4
    found = [
        _device("ram", ram(hardware), os_reserve(hardware), taken)
        | {
            "weights": weights + needs.table,
            "kv_cache": kv,
            "compute": compute,
            "overhead": cache_ram + needs.checkpoints + PROCESS,
        }
    ]
    at = plan.start
    for number, gpu in enumerate(hardware["gpus"]):
        items = split[number] if number < len(split) else 0
        on_gpu, cache, buffers = plan.parts(at, at + items, at == plan.start)
        found.append(
            _device(f"gpu{number}", gpu["memory"] or 0, GPU_MARGIN if gpu["memory"] else 0, taken)
            | {
                "weights": on_gpu,
                "kv_cache": cache,
                "compute": buffers,
                "overhead": CUDA_CONTEXT if items else 0,
            }
        )
        at += items
    return found  # type: ignore[return-value]


def _checked(offload: Offload, count: int, hardware: Hardware) -> int:
    """gpu_layers within what the model has; ValueError where the parts do not fit each other."""
    gpus = len(hardware["gpus"])
    if min(offload["gpu_layers"], offload["cpu_moe_layers"], *offload["split"], 0) < 0:
        raise ValueError(f"an offload counts layers, none is below 0: {offload}")
    found = min(offload["gpu_layers"], count + 1)
    if found and not gpus:
        raise ValueError(f"{found} layers shall lie on a GPU, and there is none; give gpu_layers 0")
    if found and offload["split"] and sum(offload["split"]) != found:
        total = sum(offload["split"])
        raise ValueError(f"the split {offload['split']} places {total} layers, gpu_layers says {found}")
    if len(offload["split"]) > gpus:
        raise ValueError(f"the split names {len(offload['split'])} GPUs, there are {gpus}")
    return found


def _device(name: str, capacity: int, reserve: int, taken: Mapping[str, int]) -> dict[str, Any]:
    return {"device": name, "capacity": capacity, "reserve": reserve, "others": taken.get(name, 0)}


def fit_offload(
    shape: Shape,
    hardware: Hardware,
    *,
    tokens: int,
    slots: int,
    ubatch: int,
    cache_type: str,
    taken: Mapping[str, int],
    cache_ram: int,
    flash: bool = True,
    by_hand: bool = True,
) -> Offload:
    """The best offload of llama.cpp that fits: everything on the GPUs; else, with experts, all layers there and the
    experts of the fewest first layers in RAM (``by_hand``; Ollama cannot be told); else as many of the last layers as
    fit; else nothing.

    Where RAM is too small for each of these, the first of them.
    """
    needs = _needs_of(shape, tokens, slots, ubatch, cache_type, flash)
    room, known, count = _rooms(hardware, taken), _known(hardware), needs.count
    offloads: list[Offload] = []

    def plan(gpu_layers: int, cpu_moe: int) -> _Plan:
        return _Plan(needs, (gpu_layers, cpu_moe), known, slots)

    def fits(gpu_layers: int, cpu_moe: int) -> bool:
        return plan(gpu_layers, cpu_moe).fill(room) is not None

    def candidates() -> Iterator[tuple[int, int]]:
        """Layers on GPUs and layers without their experts there, the best first; all of them fit the GPUs."""
        moe = count if by_hand and needs.experts[count] else 0
        if whole := fits(count + 1, 0):
            yield count + 1, 0
        if moe and fits(count + 1, moe):
            # The more experts in RAM, the less lies on the GPUs.
            yield count + 1, 1 + bisect_right(range(1, moe), 0, key=lambda n: fits(count + 1, n))
            yield count + 1, moe
        elif not whole and (most := bisect_right(range(1, count + 1), 0, key=lambda n: not fits(n, moe))):
            yield most, moe
        yield 0, 0

    for gpu_layers, cpu_moe in candidates():
        split = _even(plan(gpu_layers, cpu_moe), room) or []
        offloads.append({"gpu_layers": gpu_layers, "cpu_moe_layers": cpu_moe, "split": split})
        devices = llamacpp(
            shape, hardware, tokens=tokens, slots=slots, ubatch=ubatch, cache_type=cache_type, offload=offloads[-1],
            cache_ram=cache_ram, taken=taken, flash=flash,
        )  # fmt: skip
        if all(free(device) >= 0 for device in devices):
            return offloads[-1]
    # What fits the GPUs but not RAM may still be paged.
    return offloads[0]


# --- engines that cut every layer into equal parts over their GPUs


def _tensor_parallel(
    shape: Shape,
    hardware: Hardware,
    *,
    tokens: int,
    slots: int,
    tensor_parallel: int,
    taken: Mapping[str, int],
    batch: int,
    experts_in_ram: bool,
) -> list[DeviceMemory]:
    check(tokens, slots, batch, "bf16")
    gpus = hardware["gpus"]
    if not 1 <= tensor_parallel <= len(gpus):
        raise ValueError(f"tensor_parallel is {tensor_parallel}; there are {len(gpus)} GPUs")
    experts, others, width, caches = _totals(shape)
    matrices = others + shape["output"] + (0 if experts_in_ram else experts)
    # A tied table is one tensor here: it is read as the output and cut like it.
    weights = -(-(matrices + shape["embeddings"]) // tensor_parallel)
    kv = sum(count * _part_kv(cache, tokens, slots, batch, tensor_parallel) for cache, count in caches)
    # Activations of a batch in 16 bits: whole vectors on every GPU, the inner ones cut. Estimate.
    activations = 2 * min(batch, tokens) * (4 * shape["embedding"] + width // tensor_parallel)
    found = [
        _device("ram", ram(hardware), os_reserve(hardware), taken)
        | {
            "weights": experts if experts_in_ram else 0,
            "kv_cache": 0,
            "compute": 0,
            "overhead": PYTHON_PROCESS * tensor_parallel,
        }
    ]
    for number, gpu in enumerate(gpus):
        here = number < tensor_parallel
        capacity = gpu["memory"] or 0
        found.append(
            _device(f"gpu{number}", capacity, capacity - int(capacity * VLLM_SHARE), taken)
            | {
                "weights": weights if here else 0,
                "kv_cache": kv if here else 0,
                "compute": activations + slots * shape["vocabulary"] * 4 if here else 0,
                "overhead": VLLM_OVERHEAD if here else 0,
            }
        )
    return found  # type: ignore[return-value]


_sums: dict[int, tuple[Shape, tuple[int, int, int, list[tuple[Cache, int]]]]] = {}


def _totals(shape: Shape) -> tuple[int, int, int, list[tuple[Cache, int]]]:
    """Bytes of all routed experts and of everything else in layers; the widest step of a layer; the caches there are
    and how many layers have each."""
    found = _sums.get(id(shape))
    if found is None or found[0] is not shape:
        if len(_sums) >= 1024:
            _sums.clear()
        layers = shape["layers"]
        counts = Counter(tuple(layer["cache"].items()) for layer in layers)
        caches: list[Any] = [(dict(cache), count) for cache, count in counts.items()]
        width = max(3 * _feed_forward(shape), shape["experts_used"] * (shape["embedding"] + 3 * shape["expert_width"]))
        sums = (sum(layer["experts"] for layer in layers), sum(map(_rest, layers)), width, caches)
        found = _sums[id(shape)] = (shape, sums)
    return found[1]


def _part_kv(cache: Cache, tokens: int, slots: int, batch: int, parts: int) -> int:
    """Bytes of one layer's cache on one of ``parts`` GPUs: heads are dealt out, and doubled where there are fewer than
    GPUs; the one compressed vector of MLA lies on each. 16 bits."""
    if cache["kind"] == "recurrent":
        return -(-cache["state"] * slots // parts)
    if cache["kind"] == "none":
        return 0
    heads = -(-cache["heads"] // parts)
    length = -(-tokens // slots)
    if cache["kind"] == "sliding":
        length = min(length, cache["window"] + batch)
    return heads * (cache["key"] + cache["value"]) * 2 * length * slots


def vllm(
    shape: Shape, hardware: Hardware, *, tokens: int, slots: int, tensor_parallel: int, taken: Mapping[str, int]
) -> list[DeviceMemory]:
    """What vLLM (and SGLang) must find on each of the first ``tensor_parallel`` GPUs for these conversations; what is
    left of its share it fills with more cache. ValueError for more GPUs than there are."""
    return _tensor_parallel(
        shape, hardware, tokens=tokens, slots=slots, tensor_parallel=tensor_parallel, taken=taken, batch=VLLM_BATCH,
        experts_in_ram=False,
    )  # fmt: skip


def ktransformers(
    shape: Shape, hardware: Hardware, *, tokens: int, slots: int, taken: Mapping[str, int], tensor_parallel: int = 1
) -> list[DeviceMemory]:
    """Routed experts in RAM, everything else and the cache on the GPUs. The shape is that of the files it runs from:
    the safetensors, or the converted experts.

    The thread pools share the experts, they hold no copies. Prefill by layer on the GPU
    (--kt-gpu-prefill-token-threshold) would take one layer's experts more of the GPU; the plan does not set it.
    """
    return _tensor_parallel(
        shape, hardware, tokens=tokens, slots=slots, tensor_parallel=tensor_parallel, taken=taken, batch=KT_BATCH,
        experts_in_ram=True,
    )  # fmt: skip


# --- NUMA


def nodes(devices: Sequence[DeviceMemory], hardware: Hardware, policy: Mapping[str, Any]) -> list[dict[str, int]]:
    """Where the model's RAM lies: node, capacity, used.

    distribute, interleave and pools: in equal parts on the policy's nodes (all that have memory, if it names none),
    bind: the same on those it names; a full node leaves its part to the others. none: the kernel gives memory from the
    node of the thread that touches it first; assumed here: nodes are filled in their order. What fits nowhere is on
    the last one.
    """
    left = sum(used(device) for device in devices if device["device"] == "ram")
    places = [(node["id"], node["memory"]) for node in hardware["numa"] if node["memory"] > 0]
    if not places:
        places = [(0, ram(hardware))]
    named = [number for number in policy.get("nodes") or [] if number in dict(places)]
    allowed = [place for place in places if not named or place[0] in named]
    shares = dict.fromkeys(dict(places), 0)
    if policy.get("policy", "none") == "none":
        for number, memory in allowed:
            shares[number] = min(left, memory)
            left -= shares[number]
    else:
        # The smallest first: what it cannot hold is shared by those after it.
        by_size = sorted(allowed, key=lambda place: place[1])
        for done, (number, memory) in enumerate(by_size):
            shares[number] = min(memory, -(-left // (len(by_size) - done)))
            left -= shares[number]
    shares[allowed[-1][0]] += left
    return [{"node": number, "capacity": memory, "used": shares[number]} for number, memory in places]
