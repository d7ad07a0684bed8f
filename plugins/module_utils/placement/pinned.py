# SPDX-License-Identifier: GPL-3.0-or-later
"""What an entry of the inventory's ``placements`` fixes, read so that memory and speed are computed with it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.placement.attempt import Wishes

#: Names of the same thing: of the pin itself, then options of the engines.
CONTEXT = ("max-model-len", "context-length", "num_ctx")
SLOTS = ("parallel", "max-num-seqs", "max-running-requests")
GPU_LAYERS = ("gpu-layers", "n-gpu-layers", "num_gpu")
POLICIES = ("none", "distribute", "interleave", "bind", "pools")
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
#: What llama.cpp's own option `numa` comes to.
NUMA_OPTION = {"distribute": "distribute", "isolate": "none", "numactl": "interleave"}
#: Options with the values on and off, which YAML reads as true and false.
SWITCHES = ("flash-attn", "fit", "lazy-mode", "reasoning", "log-colors")
#: Options that change what lies where, or how much of it, in ways that are not computed.
UNSEEN = (
    "override-tensor", "n-cpu-ffn", "lora", "lora-scaled", "control-vector", "control-vector-scaled", "mmproj",
    "mmproj-url", "model-draft", "spec-draft-model", "spec-draft-hf", "hf-repo-draft", "spec-type", "spec-default",
    "no-kv-offload", "no-op-offload", "no-host", "no-repack", "swa-full", "kv-unified", "kv-unified-per-slot",
    "main-gpu", "device", "moe-cache-mib", "ctx-checkpoints", "swa-checkpoints", "rpc",
)  # fmt: skip
NUMBER = re.compile("-?[0-9]+")
ALL = 1 << 20
"""More layers than any model has."""


class Pin(NamedTuple):
    engine: str | None = None
    quantisation: str | None = None
    port: int | None = None
    context: int | None = None
    tokens: int | None = None
    """Pinned by ctx-size: of all slots together."""
    slots: int | None = None
    stretched: bool = False
    """Options are pinned that let a model read more than it was trained for."""
    wishes: Wishes = Wishes()
    flags: Mapping[str, Any] = {}
    names: tuple[str, ...] = ()
    """What is pinned, as the inventory calls it."""


def _number(name: str, value: Any, problems: list[str], least: int = 1) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not NUMBER.fullmatch(str(value)) or int(value) < least:
        problems.append(f"Pinned: {name} {value!r}. Use a whole number from {least}.")
        return None
    return int(value)


def _layers(name: str, value: Any, problems: list[str]) -> int | None:
    """A number of layers; ``all`` and a bare switch mean all, ``auto`` leaves it to the planner."""
    if value is True or str(value) in ("all", "-1"):
        return ALL
    if value is None or value is False or str(value) == "auto":
        return None
    return _number(name, value, problems, 0)


def _nodes(value: Any) -> list[int] | None:
    """Numbers of NUMA nodes, each once: from a list, one number, or text with commas. None when they are no numbers."""
    many = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, bool) or not NUMBER.fullmatch(str(one).strip()) for one in many):
        return None
    return sorted({int(one) for one in many})


def _numa(value: Any, option: Any, problems: list[str]) -> dict[str, Any] | None:
    """The pin's own ``numa``, else what the flag ``numa`` comes to."""
    if value is None and option not in (None, False):
        if str(option) not in NUMA_OPTION:
            problems.append(f"Pinned: flags.numa {option!r}. Known: {', '.join(NUMA_OPTION)}.")
            return None
        value = NUMA_OPTION[str(option)]
    if value is None:
        return None
    found = value if isinstance(value, Mapping) else {"policy": value}
    policy, named = found.get("policy"), found.get("nodes")
    nodes = _nodes([] if named is None else named)
    if policy is None:
        problems.append("Pinned: numa without a policy. Say which: {policy: bind, nodes: [0]}.")
    elif policy not in POLICIES:
        problems.append(f"Pinned: numa {policy!r}. Known: {', '.join(POLICIES)}.")
    elif nodes is None:
        problems.append(f"Pinned: numa nodes {named!r}. Use a list of numbers: {{policy: bind, nodes: [0]}}.")
    elif policy == "bind" and not nodes:
        problems.append("Pinned: numa bind without nodes. Say which: {policy: bind, nodes: [0]}.")
    elif policy == "none" and nodes:
        problems.append(f"Pinned: numa none with nodes {named!r}. Leave the nodes out, or pin the policy bind.")
    else:
        return {"policy": policy, "nodes": nodes}
    return None


def _flags(value: Any, problems: list[str]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.append(f"Pinned: flags {value!r}. Use names with values, as in {{mlock: true}}.")
        return {}
    flags = {str(name): found for name, found in value.items()}
    switched = {name: "on" if flags[name] else "off" for name in SWITCHES if isinstance(flags.get(name), bool)}
    return flags | switched


def _split(value: Any, problems: list[str]) -> tuple[float, ...]:
    """Proportions per GPU; llama.cpp takes commas and slashes."""
    if value is None or value is False:
        return ()
    try:
        parts = tuple(float(one) for one in re.split("[,/]", str(value)))
    except ValueError:
        parts = ()
    if not all(one >= 0 for one in parts) or not 0 < sum(parts) < math.inf:
        problems.append(
            f"Pinned: tensor-split {str(value)!r}. Use numbers with commas, one for each GPU: "
            "0 or more, and not all of them 0."
        )
        return ()
    return parts


def _unseen(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Pinned options that are not computed; those that are switched off count for nothing."""
    there = [name for name in UNSEEN if flags.get(name) not in (None, False)]
    return (*there, *(["split-mode"] if str(flags.get("split-mode", "layer")) != "layer" else []))


def read(pin: Mapping[str, Any]) -> tuple[Pin, list[str]]:
    """What is pinned, and a sentence for each value that cannot be read.

    More threads than cores are allowed (the plan warns): a machine may know better than a rule.
    """
    problems: list[str] = []
    flags = _flags(pin.get("flags"), problems)

    def flag(*names: str, least: int = 1) -> int | None:
        name = next((one for one in names if one in flags), "")
        return _number(name, flags.get(name), problems, least)

    moe = ALL if flags.get("cpu-moe") is True else _layers("n-cpu-moe", flags.get("n-cpu-moe"), problems)
    types = {str(flags[name]) for name in ("cache-type-k", "cache-type-v") if name in flags}
    for one in sorted(types - set(CACHE_TYPES)):
        problems.append(f"Pinned: cache type {one!r}. Known: {', '.join(CACHE_TYPES)}.")
    kept = flag("cache-ram", least=0)
    flash = {"on": True, "off": False}.get(str(flags.get("flash-attn")))
    wishes = Wishes(
        threads=_number("threads", pin.get("threads"), problems) or flag("threads", "kt-cpuinfer", "num_thread"),
        threads_batch=_number("threads_batch", pin.get("threads_batch"), problems) or flag("threads-batch"),
        numa=_numa(pin.get("numa"), flags.get("numa"), problems),
        gpu_layers=_layers("gpu-layers", next((flags[one] for one in GPU_LAYERS if one in flags), None), problems),
        cpu_moe_layers=moe,
        split=_split(flags.get("tensor-split"), problems),
        ubatch=flag("ubatch-size", "num_batch"),
        # Of two types the larger one counts: the other only leaves room.
        cache_type=max(types & set(CACHE_TYPES), key=CACHE_TYPES[::-1].index) if types & set(CACHE_TYPES) else "f16",
        cache_ram=None if kept is None else kept << 20,
        flash=flash,
        tensor_parallel=flag("tensor-parallel-size", "tp"),
        mode=str(flags["load-mode"]) if "load-mode" in flags else None,
        unseen=_unseen(flags),
    )
    found = Pin(
        engine=str(pin["engine"]) if pin.get("engine") not in (None, "auto") else None,
        quantisation=str(pin["quantisation"]) if pin.get("quantisation") else None,
        port=_number("port", pin.get("port"), problems, 1024),
        context=_number("context", pin.get("context"), problems) or flag(*CONTEXT),
        tokens=flag("ctx-size"),
        slots=_number("parallel", pin.get("parallel"), problems) or flag(*SLOTS),
        stretched=any(name.startswith(("rope-scal", "yarn-")) for name in flags),
        wishes=wishes,
        flags=flags,
        names=tuple(
            [name for name in pin if name not in ("model", "host", "flags") and pin[name] is not None]
            + [f"flags.{name}" for name in flags]
        ),
    )
    return found, problems
