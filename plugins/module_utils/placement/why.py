# SPDX-License-Identifier: GPL-3.0-or-later
"""The sentences of a decision, and the placement they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import gguf
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import attempt, engines, memory, threads, words
from ansible_collections.onprem.llm.plugins.module_utils.placement.attempt import Option
from ansible_collections.onprem.llm.plugins.module_utils.placement.pinned import Pin
from ansible_collections.onprem.llm.plugins.module_utils.placement.speed import disk as disk_speed
from ansible_collections.onprem.llm.plugins.module_utils.placement.speed import ram as ram_speed
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory, Placement, Rejection
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def rate(option: Option) -> str:
    figures = option.speed
    if option.kind == "embedding":
        return f"reads about {words.rate(figures['prefill'] or 0)} tok/s"
    return f"about {words.rate(figures['decode'])} tok/s"


def _name(device: str) -> str:
    return "RAM" if device == "ram" else device


def device_name(option: Option, device: str) -> str:
    """As the machine counts its GPUs, which an engine may use only some of."""
    return device if device == "ram" else f"gpu{option.places[int(device[3:])]}"


def short(option: Option) -> str:
    """As in: 12.3 GiB of RAM and 1.0 GiB of gpu0."""
    return " and ".join(
        f"{gib(size)} of {_name(device_name(option, device))}" for device, size in option.missing.items()
    )


def culprit(option: Option) -> str:
    """What does not fit: the weights alone, or with them the KV cache, or then the buffers."""
    # What the planner finds no place for on the GPUs ends up in RAM, so there all of it counts together.
    spread = set(option.missing) == {"ram"} and option.wishes.gpu_layers is None
    spread = spread and option.engine in ("llamacpp", "ollama")
    counted = [one for one in option.devices if spread or one["device"] in option.missing]
    budget = max(0, sum(one["capacity"] - one["reserve"] - one["others"] for one in counted))
    weights, cache = sum(one["weights"] for one in counted), sum(one["kv_cache"] for one in counted)
    compute = sum(one["compute"] for one in counted)
    if weights > budget:
        return f"the weights of {gib(weights)} are more than the {gib(budget)} that are there for this model"
    if weights + cache > budget:
        return f"the KV cache of {gib(cache)} does not fit beside the weights of {gib(weights)} in {gib(budget)}"
    return f"the compute buffers of {gib(compute)} do not fit beside weights and KV cache ({gib(weights + cache)})"


def size(option: Option) -> str:
    """As in: 8192 tokens x 4 slots."""
    return f"{option.context} tokens × {option.slots} {'slot' if option.slots == 1 else 'slots'}"


def lacking(option: Option) -> str:
    """What is too much, and by how much."""
    return f"{short(option)} missing with {size(option)}: {culprit(option)}."


def unequal(engine: str, hardware: Hardware, shape: Shape) -> str:
    return (
        f"{engines.title(engine)} splits {shape['heads']} heads over 1, 2, 4, 8 or 16 equal GPUs; this machine has "
        f"{len(hardware['gpus'])}, and the pinned number is not among those. Pin one that divides the heads."
    )


def refused(hardware: Hardware, asked: Mapping[str, Any], pin: Pin, problems: Sequence[str]) -> Placement:
    """What is asked for cannot work on any machine, or nobody knows the model."""
    return _placement(hardware, asked, pin, [*problems, *asked["unread"]])


def no(
    hardware: Hardware,
    asked: Mapping[str, Any],
    pin: Pin,
    nearest: Option | None,
    rejected: list[Rejection],
    reasons: Sequence[str],
    alternatives: Sequence[str],
) -> Placement:
    """Nothing fits; ``nearest`` is what came closest, and its memory shows what is missing where."""
    said = []
    if nearest:
        label = engines.quantisation(nearest.shape, nearest.variant)
        said.append(f"Does not fit: {engines.title(nearest.engine)} with {label}: {lacking(nearest)}")
        if nearest.wishes.mode not in (None, "auto", "mmap"):
            said.append(f"Pinned: load-mode {nearest.wishes.mode}. Only with mmap may weights that miss RAM be paged.")
    else:
        said += _refusals(rejected, reasons)
    found = _placement(hardware, asked, pin, [*said, *reasons, *asked["unread"]])
    found["rejected"], found["alternatives"] = rejected, list(alternatives)
    if nearest:
        found["context"], found["slots"], found["offload"] = nearest.context, nearest.slots, nearest.offload
        found["variant"], found["quantisation"] = (
            dict(nearest.variant),
            engines.quantisation(nearest.shape, nearest.variant),
        )
        found["memory"] = _devices(hardware, nearest, {})
        found["disk"] = _disk(nearest)[0]
    return found


def _refusals(rejected: Sequence[Rejection], bars: Sequence[str]) -> list[str]:
    """What the engines say that may run here, also of files they cannot read; then what the others say."""
    asked = [one for one in rejected if not one["better"] and not one["reason"].startswith("The engine is ")]
    closed = {one["engine"] for one in asked if any(bar.startswith(engines.title(one["engine"])) for bar in bars)}
    first = [one for one in asked if one["engine"] not in closed]
    first += [one for one in asked if one["engine"] in closed and one["variant"]]
    return list(dict.fromkeys(one["reason"] for one in first))


def placement(
    hardware: Hardware,
    asked: Mapping[str, Any],
    pin: Pin,
    option: Option,
    taken: Mapping[str, int],
    rejected: list[Rejection],
    extra: Sequence[str],
    alternatives: Sequence[str],
    allow_paging: bool,
) -> Placement:
    """The chosen way, with every value an engine is started with."""
    flags, environment, mode = _flags(hardware, option, asked)
    flags |= pin.flags
    disk, converted = _disk(option)
    batch = pin.wishes.threads_batch or option.threads
    if len(hardware["gpus"]) > 1 and option.places and option.offload["gpu_layers"]:
        # CUDA counts the fastest card first, nvidia-smi and the plan by the bus.
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        if len(option.places) < len(hardware["gpus"]):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, option.places))
    on_cpu = option.engine not in ("vllm", "sglang")
    reasons = [
        _verdict(option, allow_paging),
        _where(option),
        *extra,
        *(threads.thread_reasons(option.hardware, option.threads, option.engine) if on_cpu else []),
        *_threads_pinned(option, batch),
        *threads.numa_reasons(option.hardware, option.policy),
        *([mode] if mode else []),
        *_model_reasons(option),
        *_conversion(option, disk, converted),
        f"The files take {disk / 1e9:.1f} GB of the disk.",
        *engines.assumptions(option.engine, option.hardware),
        *_unknown(hardware, option),
        *asked["unread"],
    ]
    found = _placement(hardware, asked, pin, [one for one in reasons if one])
    found |= {
        "fits": option.fits,
        "engine": option.engine,
        "variant": dict(option.variant),
        "quantisation": engines.quantisation(option.shape, option.variant)
        if option.method.converted == 1
        else f"{engines.quantisation(option.shape, option.variant)} → {option.method.name}",
        "context": option.context,
        "slots": option.slots,
        "flags": flags,
        "environment": environment,
        "threads": option.threads,
        "threads_batch": batch,
        "numa": option.policy,
        "offload": option.offload,
        "memory": _devices(hardware, option, taken),
        "nodes": memory.nodes(option.devices, option.hardware, option.policy),
        "disk": disk,
        "converted": converted,
        "predicted": option.speed,
        "rejected": rejected,
        "alternatives": list(alternatives),
        "source": "{}@{}".format(option.variant.get("repo", ""), option.variant.get("revision", "")),
    }
    return found


def _placement(hardware: Hardware, asked: Mapping[str, Any], pin: Pin, reasons: Sequence[str]) -> Placement:
    return {
        "model": asked["name"],
        "kind": asked["kind"],
        "host": asked["host"],
        "fits": "no",
        "engine": "",
        "variant": {},
        "quantisation": "",
        "context": pin.context or asked["context"] or 0,
        "slots": pin.slots or asked["parallel"] or 0,
        "port": pin.port or 0,
        "flags": {},
        "environment": {},
        "threads": 0,
        "threads_batch": 0,
        "numa": {"policy": "none", "nodes": []},
        "offload": {"gpu_layers": 0, "cpu_moe_layers": 0, "split": []},
        "memory": [],
        "nodes": [],
        "disk": 0,
        "converted": 0,
        "predicted": None,
        "reasons": list(reasons),
        "alternatives": [],
        "rejected": [],
        "pinned": list(pin.names),
        "model_path": "",
        "source": "",
        "dimensions": 0,
    }


def _devices(hardware: Hardware, option: Option, taken: Mapping[str, int]) -> list[DeviceMemory]:
    """With the GPUs that the engine leaves alone, in the machine's order."""
    used = {device_name(option, one["device"]): one for one in option.devices}
    found = [used["ram"]]
    for place, card in enumerate(hardware["gpus"]):
        name = f"gpu{place}"
        empty: DeviceMemory = {
            "device": name, "capacity": card["memory"] or 0, "weights": 0, "kv_cache": 0, "compute": 0, "overhead": 0,
            "reserve": 0, "others": taken.get(name, 0),
        }  # fmt: skip
        found.append({**used.get(name, empty), "device": name})
    return found


def _visible(hardware: Hardware, option: Option) -> int:
    """GPUs that the engine finds: all, though it may be told to use none; 0 for a build that looks for none."""
    if not option.places and engines.usable_gpus(option.engine, hardware)[0]:
        return 0
    return len(hardware["gpus"])


def _flags(hardware: Hardware, option: Option, asked: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], str]:
    """Options, environment, and why the load mode."""
    embedding, gpus = option.kind == "embedding", option.offload["split"]
    shared = {"context": option.context, "slots": option.slots}
    if option.engine == "llamacpp":
        mode, said = threads.load_mode(option.hardware, option.all_on_gpu, bool(option.paged))
        return (
            threads.llamacpp(
                **shared, threads=option.threads, threads_batch=option.wishes.threads_batch or option.threads,
                ubatch=option.ubatch, cache_type=option.cache_type, cache_ram=option.cache_ram, flash=option.flash,
                offload=option.offload, gpus=_visible(hardware, option), policy=option.policy, mode=mode,
                embedding=embedding, pooling=asked["pooling"] or option.shape["pooling"] or threads.POOLING,
            ),
            {},
            said if option.wishes.mode is None else f"Load mode {option.wishes.mode}: pinned.",
        )  # fmt: skip
    if option.engine == "ollama":
        flags, environment = threads.ollama(
            **shared, threads=option.threads, ubatch=option.ubatch, cache_type=option.cache_type,
            cache_ram=option.cache_ram, flash=option.flash, offload=option.offload,
        )  # fmt: skip
        return flags, environment, ""
    if option.engine == engines.CLASSIC:
        return threads.classic(context=option.context, threads=option.threads), {}, ""
    share = _share(option)
    if option.engine == "ktransformers":
        flags, environment = threads.ktransformers(
            **shared, tensor_parallel=len(gpus), share=share, method=option.method.name,
            variant=engines.kt_variant(option.hardware), threads=option.threads, pools=option.policy["nodes"],
        )  # fmt: skip
        return flags, environment, ""
    build = threads.vllm if option.engine == "vllm" else threads.sglang
    return build(**shared, tensor_parallel=len(gpus), share=share, embedding=embedding), {}, ""


def _share(option: Option) -> float:
    """Part of each GPU's memory for the engine (of SGLang without its buffers): its own default, or what it needs."""
    static = option.engine != "vllm"
    most = {"vllm": 0.90, "sglang": 0.85, "ktransformers": 0.85}[option.engine]
    found = most
    for one in option.devices:
        if one["device"] != "ram" and memory.used(one):
            buffers = one["compute"] + one["overhead"]
            kept = one["reserve"] + one["others"] + (buffers if static else 0)
            needed = one["weights"] + one["kv_cache"] + (0 if static else buffers)
            there = min(most, math.floor(100 * (1 - kept / one["capacity"]) + 0.01) / 100)
            found = min(found, max(there, math.ceil(100 * needed / one["capacity"]) / 100))
    return found


def _disk(option: Option) -> tuple[int, int]:
    """Bytes of the files with what a conversion writes beside them, and of the latter alone."""
    files = int(option.variant.get("size") or 0) or option.shape["weights"]
    converted = option.method.converted != 1
    written = sum(layer["experts"] for layer in option.shape["layers"]) if converted else 0
    if _merged(option):
        written = files
    return files + written, written


def _merged(option: Option) -> bool:
    """Whether Ollama needs the parts of this model as one file."""
    return option.engine == "ollama" and gguf.SPLIT_NAME.fullmatch(option.variant.get("entry") or "") is not None


def _conversion(option: Option, disk: int, converted: int) -> list[str]:
    """How long a conversion takes at least."""
    if not converted:
        return []
    speed, origin = disk_speed(option.hardware)
    if _merged(option):
        return [
            f"Ollama reads one file, and this model comes in parts: they are merged, {converted / 1e9:.0f} GB more on "
            f"the disk, and at least {disk / speed / 60:.0f} minutes of reading and writing ({origin})."
        ]
    return [
        f"The experts are converted to {option.method.name}: {converted / 1e9:.0f} GB more on the disk, and at least "
        f"{disk / speed / 60:.0f} minutes of reading {(disk - converted) / 1e9:.0f} GB and writing them ({origin})."
    ]


def _verdict(option: Option, allow_paging: bool) -> str:
    name = f"{engines.title(option.engine)} with {engines.quantisation(option.shape, option.variant)}"
    if option.kind == "embedding":
        figures = f"{rate(option)}"
    else:
        wait = option.seconds * option.slots
        figures = (
            f"{rate(option)} in one conversation"
            + (f", {words.rate(option.speed['total'])} in all {option.slots} together" if option.slots > 1 else "")
            + f"; a typical request ({attempt.PROMPT_TOKENS} tokens in, {attempt.ANSWER_TOKENS} out) takes "
            + (f"{wait:.0f} s" if wait >= 1 else "less than a second")
            + (" when every slot is busy" if option.slots > 1 else "")
        )
    if not option.paged:
        return f"{name}: {figures}."
    stop = "" if allow_paging else " This stops the run unless placement_allow_paging is set."
    return (
        f"{name}, paged: {gib(option.paged)} of the weights miss RAM and are read from the disk again and again; "
        f"{rate(option)}.{stop}"
    )


def _where(option: Option) -> str:
    """Which part of the model lies where."""
    layers, offload = len(option.shape["layers"]), option.offload
    split = offload["split"] or [1]
    gpus = ", ".join(f"gpu{place}" for place, items in zip(option.places, split, strict=False) if items)
    if option.engine in ("vllm", "sglang"):
        return f"Everything lies on {gpus}" + (f", every tensor split over {len(split)}." if len(split) > 1 else ".")
    if option.engine == "ktransformers":
        return (
            f"The experts lie in RAM ({engines.kt_variant(option.hardware)} kernels, method {option.method.name}), "
            f"everything else and the KV cache on {gpus}."
        )
    if not offload["gpu_layers"]:
        return "Everything lies in RAM." + (" No layer fits on a GPU." if option.places else "")
    if option.all_on_gpu:
        return f"All {layers} layers lie on {gpus}."
    # The output is one of those that are counted.
    on_gpu = min(layers, offload["gpu_layers"] - 1)
    if not on_gpu:
        return f"Only the output lies on {gpus}, all layers in RAM."
    first = layers - on_gpu
    moved = sum(1 for layer in option.shape["layers"][first : offload["cpu_moe_layers"]] if layer["experts"])
    if on_gpu == layers:
        return f"All {layers} layers lie on {gpus}" + (f", the experts of {moved} of them in RAM." if moved else ".")
    kept = f"the other layers and the experts of {moved}" if moved else "the others"
    return f"{on_gpu} of {layers} layers lie on {gpus}, {kept} in RAM."


def _threads_pinned(option: Option, batch: int) -> list[str]:
    cores = option.hardware["cpu"]["cores"]
    usable = math.ceil(option.hardware["cpu"]["usable"])
    most = max(option.threads, batch)
    if usable < most <= cores:
        return [
            f"Pinned: {most} threads, but this system may use {option.hardware['cpu']['usable']:g} CPUs at once. More "
            "threads than that can be many times slower."
        ]
    if most <= cores:
        return []
    # kt#432: 126 threads on 64 cores gave 0.5 tokens per second, 64 gave 13.
    return [f"Pinned: {most} threads on {cores} physical cores. More threads than cores can be many times slower."]


def _model_reasons(option: Option) -> list[str]:
    shape, said = option.shape, []
    if shape["attention"] == "legacy MLA":
        one = memory.kv_bytes(shape, memory.PAD, 1, option.cache_type) / memory.PAD
        said.append(
            "These files lack the keys of compressed attention (made before llama.cpp had them), so the KV cache "
            f"takes {one / 2**20:.2f} MiB per token instead of tens of KiB. Newer files of the model need a fraction."
        )
    if not shape["exact"]:
        said.append(f"Known from {shape['basis']}: sizes are close, not exact.")
    said += [f"Pinned: {name}. The memory is computed without it." for name in option.wishes.unseen]
    return said


def _unknown(hardware: Hardware, option: Option) -> list[str]:
    """Facts that nobody knows and the figures depend on."""
    said = []
    if hardware["disk"] is None:
        said.append("Unknown: the disk behind the models; assumed: a local one.")
    if hardware["memory"]["bandwidth"] is None and hardware["memory"]["measured"] is None and not option.all_on_gpu:
        taken, _, origin = ram_speed(hardware)
        said.append(
            f"Unknown: bandwidth of the RAM; taken: {taken / 1e9:.0f} GB/s, {origin}. "
            "Measure it (plan_measure_bandwidth), or give a record its dimms."
        )
    if not hardware["numa"]:
        said.append("Unknown: NUMA nodes; assumed: one.")
    return said
