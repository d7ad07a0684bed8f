# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape of a model from its published configuration, for planning where no header can be read.

The dimensions give every tensor's elements exactly. Bytes are elements times the bits that the quantisation usually
gives such a tensor; where the size of the files is published, the experts (or, without experts, all matrices) are
scaled so that the total is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.shape.types import POOLING, Cache, Layer, Shape

#: Bits per weight of ggml's types: bytes of a block * 8 / its elements (ggml-common.h).
TYPES = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q5_1": 6.0, "Q5_0": 5.5,
    "Q4_K": 4.5, "Q4_1": 5.0, "Q4_0": 4.5, "Q3_K": 3.4375, "Q2_K": 2.625, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
    "IQ3_S": 3.4375, "IQ3_XXS": 3.0625, "IQ2_S": 2.5625, "IQ2_XS": 2.3125, "IQ2_XXS": 2.0625, "IQ1_M": 1.75,
    "IQ1_S": 1.5625, "TQ2_0": 2.0625, "TQ1_0": 1.6875, "MXFP4": 4.25,
}  # fmt: skip
#: Bits of down projections where llama.cpp's mix gives them more, on average over the layers (llama_tensor_get_type:
#: half the layers one or two steps up; of Q4_K_S the first eighth; of Q2_K all).
DOWN = {"Q5_K_M": 6.03, "Q4_K_M": 5.53, "Q4_K_S": 4.625, "Q3_K_M": 4.1, "Q2_K": 3.4375}


Kind = Literal["attention", "dense", "experts", "shared", "other"]
KINDS: tuple[Kind, ...] = ("attention", "dense", "experts", "shared", "other")


class Bits(NamedTuple):
    """Bits per weight of each kind of tensor, and the name of the experts' and of the others' type."""

    attention: float
    dense: float
    """Also of shared experts."""
    experts: float
    embeddings: float
    output: float
    router: float
    norms: float
    expert_type: str
    type: str


#: Safetensors: bits of the layers' matrices. Tables, routers and norms stay in 16 bits.
#: FP8: one byte and an F32 scale per block of 128 x 128 (DeepSeek-V3's and Qwen3's config.json); 4 bits: AWQ and GPTQ
#: in groups of 128, each with a 16-bit scale and a 4-bit zero point.
SAFETENSORS = {
    "FP8": 8 + 32 / 128**2,
    "BF16": 16.0,
    "FP16": 16.0,
    "F16": 16.0,
    "AWQ": 4 + 20 / 128,
    "GPTQ": 4 + 20 / 128,
}


def shape(config: Mapping[str, Any], variant: Mapping[str, Any]) -> Shape:
    """The shape of one variant. ValueError names what the configuration or the variant lacks.

    ``config``: GGUF's keys without architecture and dots (``block_count``, ``head_count_kv`` …), ``architecture``,
    and ``tied``. MLA is described by ``kv_lora_rank``; ``sliding_window_pattern`` n: every n-th layer sees all.
    ``variant``: ``format``, ``quantisation``, ``size`` (bytes of all files), ``legacy`` (a GGUF of MLA without
    its keys, so that the cache is not compressed).
    """
    bits = _bits(str(variant["format"]), str(variant["quantisation"]), bool(variant.get("size")))
    count, embedding = _number(config, "block_count"), _number(config, "embedding_length")
    tables = _number(config, "vocab_size") * embedding
    tied = bool(config.get("tied"))
    elements = [_elements(config, number) for number in range(count)]
    layers = [_layer(config, variant, number, one, bits) for number, one in enumerate(elements)]
    embeddings = _bytes(tables, bits.output if tied else bits.embeddings)
    output = _bytes(embedding, bits.norms) + (0 if tied else _bytes(tables, bits.output))
    # Layers for predicting several tokens at once lie in the publisher's files, but a token does not pass them.
    extra = _number(config, "nextn_predict_layers", 0) if variant["format"] == "safetensors" else 0
    spare = extra * (_total(layers[-1:], embeddings, output) + _bytes(2 * embedding**2, bits.embeddings))
    if variant.get("size"):
        embeddings, output = _scale(layers, embeddings, output, int(variant["size"]) - spare)
    experts = sum(layer["experts"] for layer in layers)
    weights = _total(layers, embeddings, output) + spare
    types = {bits.type: weights - experts}
    if experts:
        types[bits.expert_type] = types.get(bits.expert_type, 0) + experts
    return {
        "format": variant["format"],
        "architecture": str(config.get("architecture", "")),
        "name": str(config.get("name", variant.get("repo", ""))),
        "quantisation": variant["quantisation"],
        "parameters": sum(sum(one.values()) for one in elements) + embedding + tables * (1 if tied else 2),
        "context": _number(config, "context_length", 0),
        "vocabulary": _number(config, "vocab_size"),
        "embedding": embedding,
        "heads": _number(config, "head_count"),
        "experts": _number(config, "expert_count", 0),
        "experts_used": _number(config, "expert_used_count", 0),
        "expert_width": _number(config, "expert_feed_forward_length", 0),
        "layers": layers,
        "embeddings": embeddings,
        "output": output,
        "tied": tied,
        "attention": _attention(config, variant),
        "types": types,
        "weights": weights,
        "chat_template": not config.get("pooling_type"),
        "pooling": POOLING.get(_number(config, "pooling_type", 0), ""),
        "basis": "published configuration",
        "exact": False,
    }


def _number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int):
        raise ValueError(f"`published` has no `{key}`. Take it from the model's config.json.")
    return value


def _bits(format: str, quantisation: str, sized: bool) -> Bits:
    name = quantisation.upper()
    if format == "safetensors":
        if name == "MXFP4":
            return Bits(16, 16, TYPES[name], 16, 16, 16, 16, name, "BF16")
        known = next((key for key in SAFETENSORS if name.startswith(key)), "")
        if known:
            bits = SAFETENSORS[known]
            return Bits(bits, bits, bits, 16, 16, 16, 16, name, name)
        raise ValueError(f"`{quantisation}` is no known quantisation of safetensors ({', '.join(SAFETENSORS)}, MXFP4).")
    plain = name.removeprefix("UD-")
    base = next((key for key in sorted(TYPES, key=len, reverse=True) if plain.startswith(key)), "")
    if not base and not sized:
        raise ValueError(f"`{quantisation}` is no known quantisation of GGUF. Give the variant's `size` in bytes.")
    bits, base = TYPES.get(base, TYPES["Q4_K"]), base or plain
    down = DOWN.get(plain, DOWN.get(base, bits))
    if name.startswith("UD-"):
        # Unsloth's dynamic ones: Q4_K, and Q6_K for keys, values and down projections, whatever the experts have.
        return Bits(4.75, 5.5, bits, TYPES["Q4_K"], TYPES["Q6_K"], 32, 32, base, "Q4_K")
    if base == "MXFP4":
        return Bits(8.5, 8.5, bits, 8.5, 8.5, 32, 32, base, "Q8_0")
    output = max(bits, TYPES["Q6_K"])
    return Bits(bits, (2 * bits + down) / 3, (2 * bits + down) / 3, bits, output, 32, 32, base, base)


def _elements(config: Mapping[str, Any], number: int) -> dict[str, int]:
    """Elements of one layer's tensors: attention, dense, experts, shared, router and norms."""
    embedding, heads = _number(config, "embedding_length"), _number(config, "head_count")
    key, value = _number(config, "key_length"), _number(config, "value_length")
    latent = _number(config, "kv_lora_rank", 0)
    norms = 2 * embedding
    if latent:
        rope, query = _number(config, "rope_dimension_count"), _number(config, "q_lora_rank", 0)
        queries = query * (embedding + heads * key) if query else embedding * heads * key
        keys = embedding * (latent + rope) + latent * heads * (key - rope + value)
        norms += latent + query
    else:
        queries = embedding * heads * key
        keys = embedding * _number(config, "head_count_kv") * (key + value)
    attention = queries + keys + heads * value * embedding
    experts = _number(config, "expert_count", 0)
    if not experts or number < _number(config, "leading_dense_block_count", 0):
        dense = 3 * embedding * _number(config, "feed_forward_length")
        return {"attention": attention, "dense": dense, "experts": 0, "shared": 0, "router": 0, "norms": norms}
    each = 3 * embedding * _number(config, "expert_feed_forward_length")
    return {
        "attention": attention,
        "dense": 0,
        "experts": each * experts,
        "shared": each * _number(config, "expert_shared_count", 0),
        "router": embedding * experts,
        "norms": norms,
    }


def _bytes(elements: int, bits: float) -> int:
    return int(elements * bits / 8)


def _layer(
    config: Mapping[str, Any], variant: Mapping[str, Any], number: int, elements: Mapping[str, int], bits: Bits
) -> Layer:
    return {
        "attention": _bytes(elements["attention"], bits.attention),
        "dense": _bytes(elements["dense"], bits.dense),
        "experts": _bytes(elements["experts"], bits.experts),
        "shared": _bytes(elements["shared"], bits.dense) + _bytes(elements["router"], bits.router),
        "other": _bytes(elements["norms"], bits.norms),
        "cache": _cache(config, variant, number),
    }


def _cache(config: Mapping[str, Any], variant: Mapping[str, Any], number: int) -> Cache:
    """What the layer keeps per token: full heads, a window of them, or MLA's compressed vector."""
    latent = _number(config, "kv_lora_rank", 0)
    if latent and not variant.get("legacy"):
        length = latent + _number(config, "rope_dimension_count")
        return {"kind": "mla", "heads": 1, "key": length, "value": 0, "window": 0, "state": 0}
    window, pattern = _number(config, "sliding_window", 0), _number(config, "sliding_window_pattern", 1)
    slides = bool(window) and (pattern == 1 or (number + 1) % pattern != 0)
    return {
        "kind": "sliding" if slides else "full",
        "heads": _number(config, "head_count" if latent else "head_count_kv"),
        "key": _number(config, "key_length"),
        "value": _number(config, "value_length"),
        "window": window if slides else 0,
        "state": 0,
    }


def _attention(config: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    if config.get("kv_lora_rank"):
        return "legacy MLA" if variant.get("legacy") else "MLA"
    if config.get("sliding_window"):
        return "sliding window"
    return "MHA" if config["head_count"] == config["head_count_kv"] else "GQA"


def _total(layers: list[Layer], embeddings: int, output: int) -> int:
    return sum(layer[kind] for layer in layers for kind in KINDS) + embeddings + output


def _scale(layers: list[Layer], embeddings: int, output: int, size: int) -> tuple[int, int]:
    """Make the total ``size``: by the experts where they leave room for it, else by everything alike."""
    experts = sum(layer["experts"] for layer in layers)
    total = _total(layers, embeddings, output)
    # An expert cannot take under a sixth of what its type takes: then the size is not that of this mix.
    by_experts = experts > 0 and size - (total - experts) > experts / 6
    factor = (size - (total - experts)) / experts if by_experts else size / total
    scaled: tuple[Kind, ...] = ("experts",) if by_experts else KINDS
    for layer in layers:
        for kind in scaled:
            layer[kind] = int(layer[kind] * factor)
    return (embeddings, output) if by_experts else (int(embeddings * factor), int(output * factor))
