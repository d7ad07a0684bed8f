# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plan says of one model on one host. Sizes are bytes, speeds tokens per second."""

from __future__ import annotations

from typing import Any, TypedDict

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware


class Offload(TypedDict):
    """What lies on the GPUs. Counted from the end, as llama.cpp does: 1 is the output, N the output and the last N - 1
    layers; everything is layers + 1."""

    gpu_layers: int
    cpu_moe_layers: int
    """Layers, from the first, whose routed experts stay in RAM although the layer is on a GPU."""
    split: list[int]
    """Layers per GPU, in the order of the GPUs; the last that has any also holds the output, which counts as one. Empty
    without GPU."""


class DeviceMemory(TypedDict):
    """What one model takes on one device."""

    device: str
    """ram, or gpu0, gpu1 ... in the order of the hardware's list."""
    capacity: int
    weights: int
    kv_cache: int
    compute: int
    overhead: int
    """What comes with the engine itself: the CUDA context, the cache of prompts in RAM."""
    reserve: int
    """Left for the system (RAM) or as a margin (GPU)."""
    others: int
    """Taken by the models placed there before."""


class Speed(TypedDict):
    decode: float
    decode_low: float
    decode_high: float
    prefill: float | None
    prefill_low: float | None
    prefill_high: float | None
    total: float
    """Decoded tokens per second of all conversations together, when every slot is busy."""
    basis: str
    """What the figures rest on: bandwidths and the constant of the engine's class."""


class Rejection(TypedDict):
    """An engine or a variant that was not chosen."""

    engine: str
    variant: str
    reason: str
    better: bool
    """It would be better, but is not allowed on this host, or has no role yet."""


class Placement(TypedDict):
    model: str
    kind: str
    host: str
    fits: str
    """memory, paged or no."""
    engine: str
    """Empty when nothing fits."""
    variant: dict[str, Any]
    """The chosen entry of the model's variants: format, quantisation, source, repo, revision, include, entry ..."""
    quantisation: str
    context: int
    """Tokens per conversation."""
    slots: int
    """Conversations at once."""
    port: int
    flags: dict[str, Any]
    """Long options of the engine without dashes; True means no value."""
    environment: dict[str, str]
    threads: int
    threads_batch: int
    numa: dict[str, Any]
    """policy: none, distribute, interleave, bind or pools; nodes: list of node ids."""
    offload: Offload
    memory: list[DeviceMemory]
    nodes: list[dict[str, int]]
    """Per NUMA node: node, capacity, used (RAM only)."""
    disk: int
    """Bytes of the files, conversions included."""
    converted: int
    """Bytes of what the engine's role converts before it serves; 0 where the files are used as they are."""
    predicted: Speed | None
    reasons: list[str]
    """Sentences: why this, which figure decided, what is unknown."""
    alternatives: list[str]
    """Sentences: what would fit, or would be better, and what it takes."""
    rejected: list[Rejection]
    pinned: list[str]
    """Names of what the inventory pinned."""
    model_path: str
    source: str
    dimensions: int
    """Of an embedding's vectors; 0 for other models."""


class Plan(TypedDict):
    """What is shown to a person."""

    title: str
    placements: list[Placement]
    """In the order they were packed; the ones of a host need not stand together."""
    hosts: dict[str, Hardware]
    changes: list[str]
    """Sentences: what differs from what is installed. Empty where nobody looked."""
    notes: list[str]
    """Sentences about the plan itself: what the headers cost, which could not be read."""
    what_if: bool
    """The machines come from a file; no host was asked."""
