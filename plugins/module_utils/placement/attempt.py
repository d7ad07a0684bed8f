# SPDX-License-Identifier: GPL-3.0-or-later
"""What one engine makes of one variant on one machine: where everything lies, whether it fits, how fast it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import engines, memory, speed, threads
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory, Offload, Speed
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Layer, Shape

#: The request that engines are compared by: documents retrieved for a question, and an answer.
PROMPT_TOKENS = 2000
ANSWER_TOKENS = 400
#: A second figure within a tenth of the first counts as equal: predictions are not more exact than that.
TIE = 1.1
#: Prompts kept in RAM for conversations that come back; llama.cpp's own default of 8 GiB is too much to take unasked.
CACHE_RAM = 2 << 30
CACHE_RAM_SHARE = 16
"""No more than this part of the RAM: 2 GiB from 32 GiB on."""
ENDLESS = 1 << 60


class Wishes(NamedTuple):
    """What is fixed before anything is decided, by the model's entry or by a pin. None: the planner's choice."""

    threads: int | None = None
    threads_batch: int | None = None
    numa: Mapping[str, Any] | None = None
    gpu_layers: int | None = None
    cpu_moe_layers: int | None = None
    split: tuple[float, ...] = ()
    """Proportions per GPU."""
    ubatch: int | None = None
    cache_type: str = "f16"
    cache_ram: int | None = None
    flash: bool | None = None
    tensor_parallel: int | None = None
    mode: str | None = None
    unseen: tuple[str, ...] = ()
    """Pinned options that move weights in ways nothing here computes."""


def request_seconds(kind: str, figures: Speed) -> float:
    """Machine time of the typical request; of an embedding model, which only reads, that of the prompt."""
    read = PROMPT_TOKENS / figures["prefill"] if figures["prefill"] else 0.0
    if kind == "embedding":
        return read or PROMPT_TOKENS / max(figures["total"], 1e-9)
    return read + ANSWER_TOKENS / max(figures["total"], 1e-9)


@dataclass(frozen=True)
class Option:
    """One way to run it. ``hardware`` has only the GPUs that the engine uses; ``places`` says which those are."""

    engine: str
    variant: Mapping[str, Any]
    shape: Shape
    method: engines.Method
    hardware: Hardware
    places: Sequence[int]
    kind: str
    context: int
    slots: int
    offload: Offload
    devices: list[DeviceMemory]
    ubatch: int
    cache_type: str
    cache_ram: int
    flash: bool
    wishes: Wishes
    paged: int = 0
    """Bytes of weights that miss RAM and are read from the disk."""
    twin: Option | None = None
    """The same of an engine that is just as fast."""

    @cached_property
    def missing(self) -> dict[str, int]:
        """Device -> bytes that are too much on it."""
        return {one["device"]: -memory.free(one) for one in self.devices if memory.free(one) < 0}

    @property
    def fits(self) -> str:
        """memory, paged or no."""
        if not self.missing:
            return "memory"
        return "paged" if self.paged and set(self.missing) == {"ram"} else "no"

    @cached_property
    def all_on_gpu(self) -> bool:
        return self.offload["gpu_layers"] > len(self.shape["layers"]) and not self.offload["cpu_moe_layers"]

    @cached_property
    def _run(self) -> tuple[dict[str, Any], int, Speed]:
        """NUMA policy, threads and speed: of equally fast policies the first."""
        if self.twin:
            return self.twin._run
        found = [(policy, *self._predicted(number)) for number, policy in enumerate(self._policies)]
        best = min(self.seconds_of(one[2]) for one in found)
        return next(one for one in found if self.seconds_of(one[2]) <= best * TIE)

    def _predicted(self, number: int) -> tuple[int, Speed]:
        """Threads and speed with one of the policies."""
        if number not in self._figures:
            policy = self._policies[number]
            count = self.wishes.threads or threads.count(self.hardware, policy["nodes"])
            self._figures[number] = count, _speed(self, policy, count)
        return self._figures[number]

    @cached_property
    def _figures(self) -> dict[int, tuple[int, Speed]]:
        return {}

    @property
    def alone(self) -> float:
        """Seconds of the typical request in one conversation, with the policy that is always possible."""
        if self.twin:
            return self.twin.alone
        figures = self._predicted(len(self._policies) - 1)[1]
        return self.seconds_of({**figures, "total": figures["decode"]})

    @property
    def steady(self) -> bool:
        """Whether a larger cache moves no weights: all of them lie on the GPUs, or the experts in RAM for good."""
        return self.all_on_gpu or engines.RULES[self.engine].experts_in_ram

    @cached_property
    def _policies(self) -> list[dict[str, Any]]:
        # Nothing is known of nodes: there is one then.
        nodes = [node["id"] for node in threads.compute_nodes(self.hardware)] or [0]
        if self.wishes.numa:
            pinned = dict(self.wishes.numa)
            if pinned["policy"] != "none" and not pinned["nodes"]:
                pinned["nodes"] = nodes
            if pinned["policy"] == "bind":
                bound = threads.compute_nodes(self.hardware, pinned["nodes"])
                pinned["cpus"] = sorted(cpu for node in bound for cpu in node["cpus"])
            return [pinned]
        if engines.RULES[self.engine].experts_in_ram:
            return [{"policy": "pools", "nodes": nodes}]
        if self.engine != "llamacpp" or self.all_on_gpu:
            return [{"policy": "none", "nodes": []}]
        disk = self.hardware["disk"]
        network = bool(disk and disk["network"]) and not self.paged
        ram = self.devices[0]
        return threads.policies(self.hardware, network, memory.used(ram), ram["others"], self.slots)

    @property
    def policy(self) -> dict[str, Any]:
        # Ollama has no option for it.
        return self._run[0] if self.engine != "ollama" else {"policy": "none", "nodes": []}

    @property
    def threads(self) -> int:
        return self._run[1]

    @property
    def speed(self) -> Speed:
        return self._run[2]

    def seconds_of(self, figures: Speed) -> float:
        return request_seconds(self.kind, figures)

    @property
    def seconds(self) -> float:
        return self.seconds_of(self.speed)


_Value = TypeVar("_Value")
_kept: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def kept(what: str, thing: Any, key: Any, make: Callable[[], _Value]) -> _Value:
    """What was made of this very object before: shapes and machines are asked about again and again."""
    found = _kept.get((what, id(thing), key))
    if found is None or found[0] is not thing:
        found = _kept[what, id(thing), key] = (thing, make())
    return found[1]


def _speed(option: Option, policy: Mapping[str, Any], count: int) -> Speed:
    """Of a model that lies on GPUs alone the rest of the machine does not matter: predicted once for equal GPUs."""
    if not option.all_on_gpu:
        return _predict(option, policy, count)
    cards = tuple((one["bandwidth"], one["flops"], one["compute_capability"]) for one in option.hardware["gpus"])
    key = (option.engine, tuple(option.offload["split"]), cards, option.slots, option.ubatch)
    return kept("speed", option.shape, key, lambda: _predict(option, policy, count))


def _predict(option: Option, policy: Mapping[str, Any], count: int) -> Speed:
    return speed.predict(
        option.shape,
        option.hardware,
        engine=option.engine,
        offload=option.offload,
        threads=count,
        slots=option.slots,
        numa=policy,
        paged_bytes=option.paged,
        ubatch=option.ubatch or threads.UBATCH,
    )


def with_gpus(hardware: Hardware, places: Sequence[int]) -> Hardware:
    """The machine with only the GPUs at these places, the same object each time."""
    if len(places) == len(hardware["gpus"]):
        return hardware

    def make() -> Hardware:
        return {**hardware, "gpus": [hardware["gpus"][place] for place in places]}

    return kept("gpus", hardware, tuple(places), make)


def converted(shape: Shape, method: engines.Method) -> Shape:
    """The model with its experts as the conversion leaves them, the same object each time."""
    if method.converted == 1:
        return shape

    def make() -> Shape:
        layers: list[Layer] = [
            {**layer, "experts": int(layer["experts"] * method.converted)} for layer in shape["layers"]
        ]
        saved = sum(old["experts"] - new["experts"] for old, new in zip(shape["layers"], layers, strict=True))
        return {**shape, "layers": layers, "weights": shape["weights"] - saved, "quantisation": method.name}

    return kept("converted", shape, method.converted, make)


def cache_size(shape: Shape, context: int, slots: int, cache_type: str) -> int:
    """Bytes of llama.cpp's KV cache."""
    key = (context, slots, cache_type)
    return kept("kv", shape, key, lambda: memory.kv_bytes(shape, context * slots, slots, cache_type))


def cache_ram(hardware: Hardware, kind: str) -> int:
    """Bytes of RAM for prompts to come back to: steps of 64 MiB, as another kernel leaves a few MiB more or less."""
    if kind == "embedding":
        return 0
    limit = min(hardware["memory"]["total"], hardware["memory"]["limit"] or ENDLESS)
    return min(CACHE_RAM, limit // CACHE_RAM_SHARE) >> 26 << 26


def _parallel(hardware: Hardware, shape: Shape, wanted: int | None) -> list[int]:
    """Over how many GPUs the tensors may be split: powers of two that divide the heads."""
    count = len(hardware["gpus"])
    if wanted:
        return [wanted] if wanted <= count else []
    return [n for n in (1, 2, 4, 8, 16) if n <= count and shape["heads"] % n == 0]


def options(
    engine: str,
    hardware: Hardware,
    places: Sequence[int],
    variant: Mapping[str, Any],
    shape: Shape,
    methods: Sequence[engines.Method],
    kind: str,
    context: int,
    slots: int,
    taken: Mapping[str, int],
    wishes: Wishes,
) -> list[Option]:
    """The ways this engine could run it, the preferred one first: more than one for conversions and numbers of GPUs."""
    machine = with_gpus(hardware, places)
    here = {"ram": taken.get("ram", 0)} | {
        f"gpu{number}": taken.get(f"gpu{place}", 0) for number, place in enumerate(places)
    }
    tokens, layers = context * slots, len(shape["layers"])
    base = Option(
        engine, variant, shape, methods[0], machine, places, kind, context, slots,
        {"gpu_layers": 0, "cpu_moe_layers": 0, "split": []}, [], 0, "f16", 0, True, wishes,
    )  # fmt: skip
    if engine in ("llamacpp", "ollama"):
        return [_llama(base, here)]
    if engine == engines.CLASSIC:
        return [_classic(base, here)]
    everything: Offload = {"gpu_layers": layers + 1, "cpu_moe_layers": 0, "split": []}
    found = []
    for count in _parallel(machine, shape, wishes.tensor_parallel):
        split = [layers + 1] * count
        if engine == "ktransformers":
            for method in methods:
                smaller = converted(shape, method)
                devices = memory.ktransformers(
                    smaller, machine, tokens=tokens, slots=slots, taken=here, tensor_parallel=count
                )
                lies: Offload = {**everything, "cpu_moe_layers": layers, "split": split}
                found.append(replace(base, shape=smaller, method=method, offload=lies, devices=devices))
        else:
            devices = memory.vllm(shape, machine, tokens=tokens, slots=slots, tensor_parallel=count, taken=here)
            found.append(replace(base, offload={**everything, "split": split}, devices=devices))
    if engine == "ktransformers":
        found.sort(key=lambda one: methods.index(one.method))
    return found


def _ubatches(base: Option) -> list[int]:
    """Lengths of a physical batch worth trying; an embedding model reads its whole input in one."""
    if base.wishes.ubatch:
        return [base.wishes.ubatch]
    return [base.context] if base.kind == "embedding" else [threads.UBATCH]


def _llama(base: Option, taken: Mapping[str, int]) -> Option:
    shape, machine, wishes = base.shape, base.hardware, base.wishes
    tokens = base.context * base.slots
    # The January-2025 files of DeepSeek have keys of 192 and values of 128 elements: not every GPU kernel takes that.
    flash = shape["attention"] != "legacy MLA" if wishes.flash is None else wishes.flash
    kept = cache_ram(machine, base.kind) if wishes.cache_ram is None else wishes.cache_ram
    (ubatch,) = _ubatches(base)
    fixed = wishes.gpu_layers is not None or wishes.cpu_moe_layers is not None

    def judge(offload: Offload, batch: int) -> list[DeviceMemory]:
        return memory.llamacpp(
            shape, machine, tokens=tokens, slots=base.slots, ubatch=batch, cache_type=wishes.cache_type,
            offload=offload, cache_ram=kept, taken=taken, flash=flash,
        )  # fmt: skip

    if fixed:
        offload = _pinned(base, taken)
    else:
        offload = memory.fit_offload(
            shape, machine, tokens=tokens, slots=base.slots, ubatch=ubatch, cache_type=wishes.cache_type, taken=taken,
            cache_ram=kept, flash=flash, by_hand=base.engine != "ollama",
        )  # fmt: skip
    # Proportions that name none of these GPUs count for nothing.
    if sum(wishes.split[: len(machine["gpus"])]):
        offload = {**offload, "split": _shares(wishes.split, offload["gpu_layers"], len(machine["gpus"]))}
    devices = judge(offload, ubatch)
    fits = all(memory.free(one) >= 0 for one in devices)
    longer = base.kind == "chat" and wishes.ubatch is None and offload["cpu_moe_layers"] > 0
    if fits and longer and offload["gpu_layers"]:
        more = judge(offload, threads.UBATCH_EXPERTS)
        if all(memory.free(one) >= 0 for one in more):
            devices, ubatch = more, threads.UBATCH_EXPERTS
    return replace(
        base, offload=offload, devices=devices, ubatch=ubatch, cache_type=wishes.cache_type, cache_ram=kept, flash=flash
    )


def _classic(base: Option, taken: Mapping[str, int]) -> Option:
    """Experts in RAM, once per NUMA node with CPUs (USE_NUMA keeps a copy on each), everything else on the GPUs."""
    layers = len(base.shape["layers"])
    split = memory.split_layers(base.shape, base.hardware, layers + 1, layers, taken)
    offload: Offload = {"gpu_layers": layers + 1, "cpu_moe_layers": layers, "split": split}
    devices = memory.llamacpp(
        base.shape, base.hardware, tokens=base.context * base.slots, slots=base.slots, ubatch=threads.UBATCH,
        cache_type="f16", offload=offload, cache_ram=0, taken=taken, flash=True,
    )  # fmt: skip
    copies = max(1, len(threads.compute_nodes(base.hardware)))
    for one in devices:
        one["weights"] *= copies if one["device"] == "ram" else 1
    return replace(base, offload=offload, devices=devices, ubatch=threads.UBATCH)


def _pinned(base: Option, taken: Mapping[str, int]) -> Offload:
    """Where the layers lie by pinned options, split over the GPUs as llama.cpp would."""
    shape, wishes = base.shape, base.wishes
    layers = len(shape["layers"])
    wanted = layers + 1 if wishes.gpu_layers is None else wishes.gpu_layers
    on_gpu = min(wanted, layers + 1) if base.hardware["gpus"] else 0
    # The first layers are the ones that stay in RAM, so those of them that are there anyway do not count.
    experts = min(wishes.cpu_moe_layers or 0, layers) if shape["experts"] else 0
    split = memory.split_layers(shape, base.hardware, on_gpu, experts, taken)
    if on_gpu and not sum(split):
        # Nothing is free anywhere; the first GPU shows what is missing.
        split[0] = on_gpu
    return {"gpu_layers": on_gpu, "cpu_moe_layers": experts, "split": split}


def _shares(proportions: Sequence[float], layers: int, gpus: int) -> list[int]:
    """Layers per GPU for pinned proportions, as llama.cpp cuts them: layer n lies on the first GPU whose edge is above
    n, so a part of a layer counts as a whole one (std::upper_bound over n / layers in load_tensors)."""
    parts = [*proportions, *[0.0] * gpus][:gpus]
    total = sum(parts)
    edges = [0, *(math.ceil(layers * (part / total) - 1e-6) for part in accumulate(parts))]
    return [end - begin for begin, end in pairwise(edges)]


def paged(option: Option, taken: Mapping[str, int]) -> Option | None:
    """The same with mmap: weights that miss RAM come from the disk. None when more than weights is missing.

    None as well when another load mode is pinned: without mmap the weights would have to be in RAM.
    """
    if option.wishes.mode not in (None, "auto", "mmap"):
        return None
    machine: Hardware = {
        **option.hardware,
        "memory": {**option.hardware["memory"], "total": ENDLESS, "limit": None},
    }
    here = {"ram": taken.get("ram", 0)} | {
        f"gpu{number}": taken.get(f"gpu{place}", 0) for number, place in enumerate(option.places)
    }
    wishes = option.wishes._replace(cache_ram=option.wishes.cache_ram or 0)
    roomy = _llama(replace(option, hardware=machine, wishes=wishes), here)
    devices = memory.llamacpp(
        option.shape, option.hardware, tokens=option.context * option.slots, slots=option.slots, ubatch=roomy.ubatch,
        cache_type=roomy.cache_type, offload=roomy.offload, cache_ram=roomy.cache_ram, taken=here, flash=roomy.flash,
    )  # fmt: skip
    found = replace(roomy, hardware=option.hardware, devices=devices)
    # Only the cache of prompts found no room.
    if not found.missing:
        return found
    lacking = found.missing.get("ram", 0)
    weights = next(one["weights"] for one in devices if one["device"] == "ram")
    if set(found.missing) != {"ram"} or lacking > weights:
        return None
    return replace(found, paged=lacking)
