# SPDX-License-Identifier: GPL-3.0-or-later
"""The Shape of a safetensors repository: config.json, the index, and the files' own headers where that is cheap.

A file is 8 bytes (length of the header, little-endian), a JSON header {tensor: {dtype, shape, data_offsets}}, and the
data (huggingface/safetensors, README). The headers and the index of a large mixture of experts are many MB together
(one entry per expert matrix), so there the total size from the index is spread over the layers by the dimensions in
config.json, and the Shape is not ``exact``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import ranges
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import (
    LAYER_LIMIT,
    NUMBER_LIMIT,
    ShapeError,
    attention_of,
    cache,
)
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Cache, Layer, Shape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEADER_LIMIT = 4 << 20
JSON_LIMIT = 1 << 20
"""Bytes of a config.json, or of an index that is read whole."""
FILES_LIMIT = 32
"""Files whose headers are read one by one; each costs at least one window."""

#: Elements in one stored element of a packed integer tensor (AWQ, GPTQ and compressed-tensors; MXFP4 blocks).
PACKED = ((re.compile(r"(qweight|weight_packed)$"), "I32", 8), (re.compile(r"_blocks$"), "U8", 2))
IN_LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d{1,6})\.(.+)")

#: model_type of models that remember nothing.
ENCODERS = ("bert", "roberta", "xlm-roberta", "nomic_bert", "modernbert", "mpnet", "distilbert")

Tensor = tuple[str, str, tuple[int, ...], int]
"""Name, dtype, dimensions, bytes."""


class _Config:
    """config.json, believed only in its form."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise ShapeError(f"{where} holds no object")
        nested = data.get("text_config")
        self.data = {**data, **nested} if isinstance(nested, dict) else data
        self.where = where

    def number(self, *keys: str, default: int = 0) -> int:
        """The first of the keys that is there and not null."""
        for key in keys:
            value = self.data.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < NUMBER_LIMIT:
                raise ShapeError(f"{self.where}: {key} is {value!r:.60}, not a usable whole number")
            return value
        return default

    @property
    def layers(self) -> int:
        count = self.number("num_hidden_layers", "n_layer")
        if not 0 < count <= LAYER_LIMIT:
            raise ShapeError(f"{self.where}: num_hidden_layers is {count}, 1 to {LAYER_LIMIT} are read")
        return count

    @property
    def heads(self) -> int:
        return self.number("num_attention_heads", "n_head", default=1)

    @property
    def kv_heads(self) -> int:
        return self.number("num_key_value_heads", default=self.heads)

    @property
    def embedding(self) -> int:
        return self.number("hidden_size", "n_embd")

    @property
    def head(self) -> int:
        return self.number("head_dim", default=self.embedding // max(self.heads, 1))

    @property
    def experts(self) -> int:
        return self.number("n_routed_experts", "num_local_experts", "num_experts")

    @property
    def expert_width(self) -> int:
        return self.number("moe_intermediate_size", "intermediate_size") if self.experts else 0

    def quantisation(self) -> str:
        """As publishers name it."""
        given = self.data.get("quantization_config")
        if isinstance(given, dict) and given.get("quant_method"):
            method, bits = str(given["quant_method"]), given.get("bits")
            if method == "compressed-tensors":
                return str(given.get("format", method)).upper()
            return method.upper() + (f"-INT{bits}" if isinstance(bits, int) else "")
        dtype = str(self.data.get("torch_dtype") or self.data.get("dtype") or "")
        return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(dtype, dtype.upper())

    def caches(self) -> list[Cache]:
        """What each layer remembers."""
        if self.data.get("model_type") in ENCODERS and not self.data.get("is_decoder"):
            return [cache("none")] * self.layers
        rank = self.number("kv_lora_rank")
        if rank:
            return [cache("mla", 1, rank + self.number("qk_rope_head_dim"))] * self.layers
        kinds, window = self.data.get("layer_types"), self.number("sliding_window")
        if not isinstance(kinds, list) or len(kinds) < self.layers:
            kinds = ["full_attention"] * self.layers
        found = []
        for kind in kinds[: self.layers]:
            if kind == "linear_attention":
                found.append(cache("recurrent", state=self._linear_state()))
            elif kind == "sliding_attention" and window:
                found.append(cache("sliding", self.kv_heads, self.head, self.head, window=window))
            else:
                found.append(cache("full", self.kv_heads, self.head, self.head))
        return found

    def _linear_state(self) -> int:
        """Bytes of a gated delta net's state in 32-bit floats: a matrix per value head and the convolution's past."""
        key, value = self.number("linear_key_head_dim"), self.number("linear_value_head_dim")
        keys, values = self.number("linear_num_key_heads"), self.number("linear_num_value_heads")
        past = max(self.number("linear_conv_kernel_dim") - 1, 0) * (2 * keys * key + values * value)
        return 4 * (values * key * value + past)


def read(open_part: Callable[[str], ranges.File], traffic: ranges.Traffic | None = None) -> Shape:
    """The Shape of the repository behind ``open_part`` (name -> file). RangeError or ShapeError when it is not there
    or says nonsense."""
    config = _Config(_json(open_part, "config.json"), "config.json")
    files, total = _files(open_part)
    found: list[Tensor] = []
    if files is not None and len(files) <= FILES_LIMIT:
        for name in files:
            with open_part(name) as file:
                found += tensors_of(file)
    chat = _chat_template(open_part)
    basis = f"headers of {len(files)} safetensors files" if files and found else "config.json and the total size"
    if traffic is not None and traffic.requests:
        basis += f", {traffic.said()}"
    if found:
        return shape_of_tensors(config.data, found, basis, chat)
    return shape_of_total(config.data, total, basis, chat)


def _json(open_part: Callable[[str], ranges.File], name: str) -> Any:
    with open_part(name) as file:
        if file.size > JSON_LIMIT:
            raise ShapeError(f"{file.name} has {file.size} bytes, at most {JSON_LIMIT} are read")
        try:
            return json.loads(file.read(0, file.size))
        except (ValueError, RecursionError) as error:
            raise ShapeError(f"{file.name} is not JSON") from error


def _chat_template(open_part: Callable[[str], ranges.File]) -> bool:
    try:
        given = _json(open_part, "tokenizer_config.json")
        if isinstance(given, dict) and given.get("chat_template"):
            return True
        with open_part("chat_template.jinja") as file:
            return file.size > 0
    except (ranges.RangeError, ShapeError):
        return False


def _files(open_part: Callable[[str], ranges.File]) -> tuple[list[str] | None, int]:
    """The repository's safetensors files (None where the index is too long to say) and their bytes of tensors."""
    try:
        with open_part(INDEX) as file:
            start = file.read(0, min(file.size, 4096))
            if file.size > JSON_LIMIT:
                said = re.search(rb'"total_size"\s*:\s*(\d{1,16})', start)
                if said is None:
                    raise ShapeError(
                        f"{file.name} does not begin with the total size, and is too long to be read whole"
                    )
                return None, int(said[1])
    except ranges.RangeError as error:
        if not error.missing:
            raise
        return [SINGLE], 0
    index = _json(open_part, INDEX)
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise ShapeError(f"{INDEX} has no weight_map")
    said = index.get("metadata")
    total = said.get("total_size") if isinstance(said, dict) else 0
    names = sorted(set(weights.values()))
    if any("/" in name or not name.endswith(".safetensors") for name in names):
        raise ShapeError(f"{INDEX} names files that are no safetensors files beside it: {', '.join(names)[:200]}")
    return names, int(total) if isinstance(total, (int, float)) and 0 <= total < 1 << 60 else 0


def tensors_of(file: ranges.File) -> list[Tensor]:
    """The tensor table of one file. ShapeError where it is damaged."""

    def wrong(what: str) -> ShapeError:
        return ShapeError(f"{file.name}: {what}: truncated, or no safetensors file")

    if file.size < 10:
        raise wrong(f"{file.size} bytes")
    length = int.from_bytes(file.read(0, 8), "little")
    if not 2 <= length <= min(HEADER_LIMIT, file.size - 8):
        raise wrong(f"its header claims {length} bytes of {file.size}; at most {HEADER_LIMIT} are read")
    try:
        table = json.loads(file.read(8, length))
    except (ValueError, RecursionError) as error:
        raise wrong("its header is not JSON") from error
    if not isinstance(table, dict):
        raise wrong("its header holds no object")
    table.pop("__metadata__", None)
    found = []
    for name, entry in table.items():
        try:
            first, last = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            dtype = str(entry["dtype"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise wrong(f"the entry of tensor '{name[:100]}' is unusable") from error
        if not 0 <= first <= last <= file.size - 8 - length or any(dimension < 0 for dimension in shape):
            raise wrong(f"tensor '{name[:100]}' ends at byte {8 + length + last}, the file at {file.size}")
        found.append((name, dtype, shape, last - first))
    return found


def kind_of(name: str) -> str:
    """What reads a tensor of a layer; ``name`` is without "model.layers.N."."""
    if "norm" in name and "attn" not in name:
        return "other"
    if "shared_expert" in name or re.search(r"(mlp|block_sparse_moe)\.(gate|router)\b", name):
        return "shared"
    if ".experts." in name:
        return "experts"
    if re.match(r"(self_attn|linear_attn|attention|attn)\b", name):
        return "attention"
    return "dense" if name.startswith(("mlp.", "feed_forward.")) else "other"


def shape_of_tensors(data: Mapping[str, Any], tensors: Iterable[Tensor], basis: str, chat: bool) -> Shape:
    """From the tables of all files. ``data`` is config.json."""
    config = _Config(data, "config.json")
    sums = [Counter[str]() for _ in range(config.layers)]
    types: Counter[str] = Counter()
    embeddings = output = elements = 0
    names = set()
    for name, dtype, shape, size in tensors:
        types[dtype] += size
        names.add(name.rpartition(".")[0].rpartition(".")[2])
        pack = next((factor for form, kind, factor in PACKED if kind == dtype and form.search(name)), 1)
        elements += math.prod(shape) * pack if not re.search(r"scale|zeros|g_idx", name) else 0
        found = IN_LAYER.fullmatch(name)
        if found and int(found[1]) < config.layers:
            sums[int(found[1])][kind_of(found[2])] += size
        elif not found and "embed" in name:
            embeddings += size
        elif not found and re.search(r"lm_head|(^|\.)(norm|ln_f)\.", name):
            output += size
    layers = [_layer(sizes, one) for sizes, one in zip(sums, config.caches(), strict=True)]
    result = _shape(config, layers, embeddings, output, dict(types), elements, basis, chat)
    return {**result, "tied": "lm_head" not in names, "exact": True}


def shape_of_total(data: Mapping[str, Any], total: int, basis: str, chat: bool) -> Shape:
    """From config.json and the bytes of all tensors. Embeddings, output and norms are taken as 16-bit, the rest of
    the bytes is spread over the other matrices by their elements."""
    config = _Config(data, "config.json")
    if not total:
        raise ShapeError("neither the index nor the files say how large the model is")
    table = config.number("vocab_size") * config.embedding
    tied = bool(config.data.get("tie_word_embeddings"))
    more = config.number("num_nextn_predict_layers")
    elements = [_elements(config, layer) for layer in range(config.layers + more)]
    matrices = sum(sum(one.values()) for one in elements)
    plain = 2 * table * (1 if tied else 2)
    if not matrices or total <= plain:
        raise ShapeError(f"config.json: its dimensions do not make up the {total} bytes of the files")
    each = (total - plain) / matrices
    layers = [
        _layer({kind: int(count * each) for kind, count in one.items()}, remembered)
        for one, remembered in zip(elements, config.caches(), strict=False)
    ]
    name = config.quantisation()
    types = {"BF16": plain, name: total - plain} if name != "BF16" else {"BF16": total}
    count = matrices + table * (1 if tied else 2)
    result = _shape(config, layers, 2 * table, 0 if tied else 2 * table, types, count, basis, chat)
    return {**result, "tied": tied, "exact": False}


def _elements(config: _Config, layer: int) -> dict[str, int]:
    """Elements of the matrices of one layer, by what reads them."""
    width, heads = config.embedding, config.heads
    if rank := config.number("kv_lora_rank"):
        nope, rope, value = (config.number(f"{key}_head_dim") for key in ("qk_nope", "qk_rope", "v"))
        queries = config.number("q_lora_rank")
        attention = queries * (width + heads * (nope + rope)) if queries else width * heads * (nope + rope)
        attention += width * (rank + rope) + rank * heads * (nope + value) + heads * value * width
    else:
        attention = 2 * width * config.head * (heads + config.kv_heads)
    dense_first = config.number("first_k_dense_replace")
    if not config.experts or layer < dense_first:
        return {"attention": attention, "dense": 3 * width * config.number("intermediate_size")}
    one = 3 * width * config.expert_width
    shared = config.number("n_shared_experts") * one
    shared += 3 * width * config.number("shared_expert_intermediate_size") + width * config.experts
    return {"attention": attention, "experts": one * config.experts, "shared": shared}


def _layer(sizes: Mapping[str, int], remembered: Cache) -> Layer:
    return {
        "attention": sizes.get("attention", 0),
        "dense": sizes.get("dense", 0),
        "experts": sizes.get("experts", 0),
        "shared": sizes.get("shared", 0),
        "other": sizes.get("other", 0),
        "cache": remembered,
    }


def _shape(
    config: _Config,
    layers: list[Layer],
    embeddings: int,
    output: int,
    types: dict[str, int],
    parameters: int,
    basis: str,
    chat: bool,
) -> Shape:
    named = config.data.get("architectures")
    return {
        "format": "safetensors",
        "architecture": str(named[0]) if isinstance(named, list) and named else str(config.data.get("model_type", "")),
        "name": str(config.data.get("_name_or_path", "")),
        "quantisation": config.quantisation(),
        "parameters": parameters,
        "context": config.number("max_position_embeddings", "n_positions"),
        "vocabulary": config.number("vocab_size"),
        "embedding": config.embedding,
        "heads": config.heads,
        "experts": config.experts,
        "experts_used": config.number("num_experts_per_tok", "experts_per_token"),
        "expert_width": config.expert_width,
        "layers": layers,
        "embeddings": embeddings,
        "output": output,
        "tied": False,
        "attention": attention_of([layer["cache"] for layer in layers], config.heads, False),
        "types": types,
        "weights": sum(types.values()),
        "chat_template": chat,
        "pooling": "",
        "basis": basis,
        "exact": False,
    }
