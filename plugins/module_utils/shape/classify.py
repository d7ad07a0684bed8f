# SPDX-License-Identifier: GPL-3.0-or-later
"""From the metadata and the tensor table of GGUF files to a Shape. Pure.

What a layer remembers is decided as llama.cpp does it (src/llama-hparams.cpp, src/llama-kv-cache.cpp and
src/models of 0.5, September 2026). Layers that predict further tokens (``nextn_predict_layers``) lie in the file and
are counted in ``weights`` and ``types``, but a token does not pass them: they are not in ``layers``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.onprem.llm.plugins.module_utils.gguf import Tensor, Value
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import POOLING, Cache, Layer, Shape

LAYER_LIMIT = 4096
NUMBER_LIMIT = 1 << 40

#: Architectures that remember nothing: encoders, and diffusion models (llama_model::create_memory).
WITHOUT_CACHE = {
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1",
}  # fmt: skip
#: Architecture -> (every n-th layer looks at everything, the first of n instead of the last). llama.cpp uses a window
#: only where its loader for the architecture says so; others ignore `sliding_window` (phi3, qwen2, llama).
PATTERNS = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone-moe": (4, False),
    "exaone4": (4, False), "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "gpt-oss": (2, False),
    "laguna": (4, True), "llama4": (4, False), "mellum": (4, False), "muse-glimmer": (4, False), "olmo2": (4, False),
    "plamo3": (8, False), "smallthinker": (4, True),
}  # fmt: skip
#: Windows the loader sets when the file does not say.
WINDOWS = {"gemma2": 4096, "llama4": 8192, "exaone-moe": 128}

#: general.file_type -> name (llama_ftype in llama.h).
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
    39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
FILE_NAME = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)+|TQ\d_\d)|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32)(?![A-Za-z0-9_])",
    re.IGNORECASE,
)

IN_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)_(ch)?exps\.|ffn_(gate|up|down)\.\d+\.")
SHARED = re.compile(r"ffn_\w*_shexp|ffn_gate_inp|exp_probs_b")
ATTENTION = ("attn_", "ssm_", "time_mix_", "shortconv", "indexer")
RECURRENT = ("ssm_", "time_mix_", "shortconv")
EMBEDDINGS = ("token_embd", "per_layer_token_embd", "position_embd", "token_types")


class ShapeError(Exception):
    """The files say too little, or nonsense, about the model."""


class _Facts:
    """Metadata of one architecture, believed only in its form."""

    def __init__(self, metadata: Mapping[str, Value], where: str) -> None:
        self.metadata, self.where = metadata, where
        self.architecture = str(metadata.get("general.architecture", ""))
        if not self.architecture:
            raise ShapeError(f"{where}: general.architecture is missing, no engine can load it")

    def _checked(self, key: str, value: object) -> int:
        if isinstance(value, bool):
            return int(value)
        if not isinstance(value, int) or not 0 <= value < NUMBER_LIMIT:
            raise ShapeError(f"{self.where}: {self.architecture}.{key} is {value!r:.60}, not a usable whole number")
        return value

    def number(self, key: str, default: int = 0) -> int:
        """One number; of a list the largest."""
        found = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(found, tuple):
            return max((self._checked(key, value) for value in found), default=default)
        return self._checked(key, found)

    def each(self, key: str, layers: int, default: int = 0) -> list[int]:
        """One number per layer, whether the file gives a list or one for all."""
        found = self.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(found, tuple):
            return [self._checked(key, found)] * layers
        if len(found) < layers:
            raise ShapeError(f"{self.where}: {self.architecture}.{key} has {len(found)} values for {layers} layers")
        return [self._checked(key, value) for value in found[:layers]]

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.metadata

    def text(self, key: str) -> str:
        found = self.metadata.get(key, "")
        return found if isinstance(found, str) else ""


def kind_of(name: str) -> str:
    """What reads a tensor of a layer; ``name`` is without "blk.N."."""
    if name.endswith(("norm.weight", "norm.bias")):
        return "other"
    if EXPERTS.match(name):
        return "experts"
    if SHARED.match(name):
        return "shared"
    if name.startswith(ATTENTION):
        return "attention"
    return "dense" if name.startswith(("ffn_", "channel_mix_")) else "other"


def quantisation_of(metadata: Mapping[str, Value], types: Mapping[str, int], files: Iterable[str] = ()) -> str:
    """As publishers name it: from the file's name, else its own claim, else the type most bytes have."""
    for name in files:
        found = FILE_NAME.findall(name.rpartition("/")[2]) or FILE_NAME.findall(name)
        if found:
            return str(found[-1]).upper()
    claimed = metadata.get("general.file_type")
    if isinstance(claimed, int) and claimed in FILE_TYPES:
        return FILE_TYPES[claimed]
    return max(types, key=lambda name: types[name]) if types else ""


def shape_of(
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor],
    basis: str,
    files: Iterable[str] = (),
    where: str = "the header",
) -> Shape:
    """A model's Shape. ``metadata`` is that of the first part, ``tensors`` those of all parts; ``files`` their names,
    ``where`` what messages call them. ShapeError when block_count or the dimensions are missing or absurd, and for
    files without weights to compute with."""
    facts = _Facts(metadata, where)
    count = facts.number("block_count") - facts.number("nextn_predict_layers")
    if not 0 < count <= LAYER_LIMIT:
        raise ShapeError(
            f"{where}: {facts.architecture}.block_count leaves {count} layers, 1 to {LAYER_LIMIT} are read"
        )
    sums = [Counter[str]() for _ in range(count)]
    names: list[set[str]] = [set() for _ in range(count)]
    types: Counter[str] = Counter()
    embeddings = output = 0
    by_name: dict[str, Tensor] = {}
    for tensor in tensors:
        types[tensor.type_name] += tensor.size
        found = IN_LAYER.fullmatch(tensor.name)
        if found and int(found[1]) < count:
            sums[int(found[1])][kind_of(found[2])] += tensor.size
            names[int(found[1])].add(found[2])
            by_name.setdefault(found[2], tensor)
        elif tensor.name.startswith(EMBEDDINGS):
            embeddings += tensor.size
        elif tensor.name.startswith(("output", "cls")):
            output += tensor.size
        if not found:
            by_name[tensor.name] = tensor
    if not any(sum(one.values()) for one in sums):
        raise ShapeError(
            f"{where}: {count} layers and no weights in them. This is a vocabulary, a header or a part of a model; "
            "name the files of the whole model."
        )
    caches = _caches(facts, names)
    layers: list[Layer] = [
        {
            "attention": sizes["attention"],
            "dense": sizes["dense"],
            "experts": sizes["experts"],
            "shared": sizes["shared"],
            "other": sizes["other"],
            "cache": cache,
        }
        for sizes, cache in zip(sums, caches, strict=True)
    ]
    experts, used = facts.number("expert_count"), facts.number("expert_used_count")
    if experts and not 0 < used <= experts:
        raise ShapeError(
            f"{where}: {facts.architecture}.expert_used_count is {used} of {experts} experts, no engine can load it; "
            f"1 to {experts} are possible. Take other files of the model."
        )
    table = by_name.get("token_embd.weight")
    attention = attention_of(caches, facts.number("attention.head_count"), "attn_kv_b.weight" in by_name)
    return {
        "format": "gguf",
        "architecture": facts.architecture,
        "name": facts.text("general.name") or facts.text("general.basename"),
        "quantisation": quantisation_of(metadata, types, files),
        "parameters": sum(tensor.elements for tensor in tensors),
        "context": facts.number("context_length"),
        "vocabulary": table.dimensions[-1] if table and len(table.dimensions) == 2 else facts.number("vocab_size"),
        "embedding": facts.number("embedding_length"),
        "heads": facts.number("attention.head_count"),
        "experts": experts,
        "experts_used": used,
        "expert_width": _expert_width(facts, by_name) if experts else 0,
        "layers": layers,
        "embeddings": embeddings,
        "output": output,
        "tied": "output.weight" not in by_name and attention != "none",
        "attention": attention,
        "types": dict(types),
        "weights": sum(types.values()),
        "chat_template": "tokenizer.chat_template" in metadata,
        "pooling": POOLING.get(facts.number("pooling_type", 0), ""),
        "basis": basis,
        "exact": True,
    }


def _expert_width(facts: _Facts, by_name: Mapping[str, Tensor]) -> int:
    down = by_name.get("ffn_down_exps.weight")
    default = down.dimensions[0] if down and down.dimensions else facts.number("feed_forward_length")
    return facts.number("expert_feed_forward_length", min(default, NUMBER_LIMIT))


def attention_of(caches: Sequence[Cache], heads: int, compressed: bool) -> str:
    """One word for how a model attends. ``compressed``: its layers have a compressed key and value matrix."""
    kinds = {cache["kind"] for cache in caches} - {"none"}
    if not kinds:
        return "none"
    if "recurrent" in kinds or any(cache["state"] for cache in caches):
        return "hybrid"
    if "mla" in kinds:
        return "MLA"
    if compressed:
        return "legacy MLA"
    if "sliding" in kinds:
        return "sliding window"
    shared = any(cache["heads"] < heads for cache in caches if cache["kind"] == "full")
    return "GQA" if shared else "MHA"


def cache(kind: str, heads: int = 0, key: int = 0, value: int = 0, window: int = 0, state: int = 0) -> Cache:
    """What one layer remembers."""
    return {"kind": kind, "heads": heads, "key": key, "value": value, "window": window, "state": state}


def _caches(facts: _Facts, names: Sequence[set[str]]) -> list[Cache]:
    count = len(names)
    if facts.architecture in WITHOUT_CACHE:
        return [cache("none") for _ in names]
    heads = facts.each("attention.head_count", count)
    kv_heads = facts.each("attention.head_count_kv", count) if facts.has("attention.head_count_kv") else heads
    head = facts.number("embedding_length") // max(max(heads), 1)
    key, value = facts.number("attention.key_length", head), facts.number("attention.value_length", head)
    rank = facts.number("attention.kv_lora_rank")
    compressed = rank > 0 and facts.has("attention.key_length_mla") and facts.has("attention.value_length_mla")
    # The sparse attention of DeepSeek-V3.2 and GLM-5 keeps a second, short key per token.
    rope, indexer = facts.number("rope.dimension_count"), facts.number("attention.indexer.key_length")
    state = _state(facts, max(heads))
    window = facts.number("attention.sliding_window", WINDOWS.get(facts.architecture, 0))
    sliding = _sliding(facts, count) if window else [False] * count
    alone = count - facts.number("attention.shared_kv_layers")
    found = []
    for layer, present in enumerate(names):
        mine = state if any(name.startswith(RECURRENT) for name in present) else 0
        attends = any(name.startswith("attn_") and not name.endswith("norm.weight") for name in present)
        if mine and not (attends and kv_heads[layer] and _has_keys(present)):
            found.append(cache("recurrent", state=mine))
        elif not attends or not kv_heads[layer] or layer >= alone:
            found.append(cache("none"))
        elif compressed:
            more = indexer if any(name.startswith("indexer") for name in present) else 0
            found.append(cache("mla", 1, rank + rope + more))
        elif rank and "attn_kv_b.weight" in present:
            found.append(cache("full", heads[layer], key, value))
        elif sliding[layer]:
            short = facts.number("attention.key_length_swa", key), facts.number("attention.value_length_swa", value)
            found.append(cache("sliding", kv_heads[layer], *short, window=window))
        else:
            found.append(cache("full", kv_heads[layer], key, value, state=mine))
    return found


def _has_keys(present: set[str]) -> bool:
    """Whether the layer has keys of its own: linear attention has gates and one joint matrix beside its state."""
    return any(name.startswith(("attn_k.", "attn_kv_a", "attn_k_b.")) for name in present)


def _sliding(facts: _Facts, count: int) -> list[bool]:
    """Which layers look back no further than the window."""
    key = "attention.sliding_window_pattern"
    if isinstance(facts.metadata.get(f"{facts.architecture}.{key}"), tuple):
        return [bool(value) for value in facts.each(key, count)]
    if facts.architecture not in PATTERNS or (facts.architecture == "exaone4" and count != 64):
        return [False] * count
    every, first = PATTERNS[facts.architecture]
    every = facts.number(key, every)
    if not every:
        return [True] * count
    return [layer % every != 0 if first else layer % every < every - 1 for layer in range(count)]


def _state(facts: _Facts, heads: int) -> int:
    """Bytes a recurrent layer keeps per conversation, in 32-bit floats (llama_hparams::n_embd_r and n_embd_s)."""
    embedding, convolution = facts.number("embedding_length"), max(facts.number("ssm.conv_kernel") - 1, 0)
    if wkv := facts.number("wkv.head_size"):
        return 4 * embedding * (facts.number("token_shift_count", 2) + wkv)
    if short := facts.number("shortconv.l_cache"):
        return 4 * embedding * (short - 1)
    if delta := facts.number("kda.head_dim"):
        return 4 * heads * delta * (3 * convolution + delta)
    inner, size = facts.number("ssm.inner_size"), facts.number("ssm.state_size")
    return 4 * (convolution * (inner + 2 * facts.number("ssm.group_count") * size) + size * inner)
